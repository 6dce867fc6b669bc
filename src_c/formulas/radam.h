/* RAdam (Liu et al. 2019, arXiv:1908.03265, algorithm 2). `correction2` is 1 / sqrt(1 - beta2^t), or 1 where eps is
 * added before it. `limit` is -1 in the first steps, which do not divide by the root, then infinite. */
m = beta1 * m + one_minus_beta1 * g;
v = beta2 * v + one_minus_beta2 * g * g;
T root = SQRT(v) * correction2 + eps;
p = p - step_size * (m / (root > limit ? 1 : root));
