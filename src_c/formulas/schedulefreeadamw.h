/* Schedule-free AdamW (Defazio et al. 2024, arXiv:2405.15682, algorithm 1), written for the point y where gradients are
 * taken, as in the authors' package. `part` is the weight of z in the average, `along` lr * (beta1 * (1 - part) - 1),
 * `rate` lr with its warm-up; `correction2` is 1 / sqrt(1 - beta2^t). */
z = first != 0 ? p : z;
v = beta2 * v + one_minus_beta2 * g * g;
T u = g / (SQRT(v) * correction2 + eps) + pull * p;
p = p + part * (z - p) + along * u;
z = z - rate * u;
