/* NAdam (Dozat 2016, ICLR workshop). `correction2` is 1 / sqrt(1 - beta2^t), `by_g` and `by_m` the step sizes of the
 * gradient and of the momentum that the next step will have. */
m = beta1 * m + one_minus_beta1 * g;
v = beta2 * v + one_minus_beta2 * g * g;
p = p - (by_g * g + by_m * m) / (SQRT(v) * correction2 + eps);
