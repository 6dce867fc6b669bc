/* Adadelta (Zeiler 2012, arXiv:1212.5701, algorithm 1), with one root instead of two: they cost more than all
 * else. */
s = rho * s + one_minus_rho * (g * g);
T delta = SQRT((d + eps) / (s + eps)) * g;
d = rho * d + one_minus_rho * (delta * delta);
p = p - lr * delta;
