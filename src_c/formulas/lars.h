/* LARS (You, Gitman, Ginsburg 2017, arXiv:1708.03888, algorithm 1). `pull` is weight_decay, `trust` is made of the
 * norms of p and g; the rest is as in SGD. */
pp = (double)p * (double)p;
gg = (double)g * (double)g;
T u = trust * (g + pull * p);
if (has_buf) {
    buf = momentum * buf + damped * u;
    u = nesterov != 0 ? ahead * u + momentum * buf : buf;
}
p = p - lr * u;
