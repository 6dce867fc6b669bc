/* Adadelta (Zeiler 2012, arXiv:1212.5701, algorithm 1), with one root instead of two: they cost more than all else.
 * A quotient that may lie below the normal numbers is taken 2^120 times as large. */
s = rho * s + one_minus_rho * g * g;
T above = d + eps, below = s + eps;
T most = below < 64 ? below : 64;
T larger = above < most ? (T)0x1p120 : 1;
T smaller = above < most ? (T)0x1p-60 : 1;
T delta = SQRT(above * larger / below) * smaller * g;
d = rho * d + one_minus_rho * delta * delta;
p = p - lr * delta;
