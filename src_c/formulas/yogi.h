/* Yogi (Zaheer, Reddi, Sachan, Kale, Kumar 2018, NeurIPS, algorithm 2), with Adam's bias correction. Where v is g^2
 * it stays; there, the difference is 0, or NaN. */
m = beta1 * m + one_minus_beta1 * g;
T part = one_minus_beta2 * g * g;
T excess = v - g * g;
v = v - (excess > 0 ? part : excess < 0 ? -part : excess - excess);
p = p - step_size * (m / (SQRT(v) * correction2 + eps));
