/* AdaBelief (Zhuang et al. 2020, arXiv:2010.07468, algorithm 2). `correction2` is 1 / sqrt(1 - beta2^t); with rectified
 * steps 1, and `limit` as in RAdam. */
m = beta1 * m + one_minus_beta1 * g;
T surprise = g - m;
s = beta2 * s + one_minus_beta2 * surprise * surprise + eps_root;
T root = SQRT(s) * correction2 + eps;
p = p - step_size * (m / (root > limit ? 1 : root));
