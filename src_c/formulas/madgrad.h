/* MADGRAD (Defazio, Jelassi 2021, arXiv:2101.11075, algorithm 1). x is the parameter before the first step. `keep`
 * is momentum, `part` 1 - momentum; decoupled decay takes from `keep`, and without momentum, where the authors
 * work out x from p, moves x by `drift`. Where q is 0, s is too. */
x = first != 0 ? p : x;
q = q + lamb * g * g;
s = s + lamb * g;
T root = CBRT(q) + eps;
T z = x - s / (root > 0 ? root : 1);
x = x - drift * p;
p = keep * p + part * z;
