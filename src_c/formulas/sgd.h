/* Stochastic gradient descent, with momentum (Polyak 1964) and Nesterov's form of it (Sutskever et
 * al. 2013, as in torch). `damped` is 1 - dampening; with the learning rate inside the momentum,
 * `damped` and `ahead` carry it and `lr` is 1. */
T u = g;
if (has_buf) {
    buf = momentum * buf + damped * g;
    u = nesterov != 0 ? ahead * g + momentum * buf : buf;
}
p = p - lr * u;
