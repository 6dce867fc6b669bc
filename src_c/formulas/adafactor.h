/* adafactor.h   Adafactor (Shazeer and Stern 2018, arXiv:1804.04235, algorithms 4 and 5). The second moments of a matrix
 * are products of a number of the row and one of the column; v has those of a parameter with one axis. */
const T least = eps < 0 ? EPSILON(eps) : eps;
v = v + weight * (g * g - v);
const T moment = has_v ? v : scale * column;
const T u = g / SQRT(moment < least * least ? least * least : moment);
pp = (double)p * (double)p;
uu = (double)u * (double)u;
p = keep * p - rate * u;
