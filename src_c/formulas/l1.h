/* L1 regularisation, on a gradient that the kernel has yet to read. */
gradient = factor * gradient + l1 * (p > 0 ? (T)1 : p < 0 ? (T)-1 : p == 0 ? (T)0 : p);
