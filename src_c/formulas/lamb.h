/* LAMB (You et al. 2019, arXiv:1904.00962, algorithm 2). `correction1` is 1 / (1 - beta1^t), `correction2`
 * 1 / sqrt(1 - beta2^t), `pull` weight_decay, `trust` the norm of p by that of u. */
m = beta1 * m + one_minus_beta1 * g;
v = beta2 * v + one_minus_beta2 * g * g;
T u = m * correction1 / (SQRT(v) * correction2 + eps) + pull * p;
pp = (double)p * (double)p;
uu = (double)u * (double)u;
p = p - lr * trust * u;
