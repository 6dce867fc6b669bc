/* Lion (Chen et al. 2023, arXiv:2302.06675, algorithm 2). The sign of 0 is 0, that of NaN NaN: both are u - u. */
T u = beta1 * m + one_minus_beta1 * g;
m = beta2 * m + one_minus_beta2 * g;
p = p - lr * (u > 0 ? 1 : u < 0 ? -1 : u - u);
