/* ADOPT (Taniguchi et al. 2024, arXiv:2411.02853, algorithm 2): g is divided by the root of the v before it. The
 * first step makes v alone: there `bound` is 0, `beta2` and `one_minus_beta2` are 1. `keep` is what decoupled
 * decay leaves of p. The larger of root and eps keeps a NaN. */
T root = SQRT(v);
T u = g / (root < eps ? eps : root);
u = u < -bound ? -bound : u > bound ? bound : u;
m = beta1 * m + one_minus_beta1 * u;
v = beta2 * v + one_minus_beta2 * g * g;
p = keep * p - lr * m;
