/* Adamax (Kingma, Ba 2014, arXiv:1412.6980, algorithm 2), whose maximum keeps a NaN. One of the two eps is 0.
 * `step_size` is lr / (1 - beta1^t). */
m = beta1 * m + one_minus_beta1 * g;
T size = ABS(g) + eps_inside;
T faded = beta2 * u;
u = size > faded || size != size ? size : faded;
p = p - step_size * (m / (u + eps));
