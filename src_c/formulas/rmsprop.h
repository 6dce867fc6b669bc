/* RMSprop (Hinton 2012, lecture 6e), centred as in Graves 2013, arXiv:1308.0850, eq. 38 to 45. In
 * exact arithmetic the centred second moment is never negative; cancellation can make it so. */
s = alpha * s + one_minus_alpha * g * g;
T moment = s;
if (has_a) {
    a = alpha * a + one_minus_alpha * g;
    moment = s - a * a;
    moment = moment < 0 ? 0 : moment;
}
T u = g / (SQRT(moment + eps_root) + eps);
if (has_buf) {
    buf = momentum * buf + lr_in * u;
    u = buf;
}
p = p - lr * u;
