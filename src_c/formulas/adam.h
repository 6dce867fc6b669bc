/* Adam (Kingma, Ba 2014, arXiv:1412.6980, algorithm 1) and AMSGrad (Reddi, Kale, Kumar 2018,
 * arXiv:1904.09237), whose maximum keeps a NaN. `correction2` is 1 / sqrt(1 - beta2^t) and `step_size`
 * lr / (1 - beta1^t). */
m = beta1 * m + one_minus_beta1 * g;
v = beta2 * v + one_minus_beta2 * g * g;
T moment = v;
if (has_vmax) {
    vmax = v > vmax || v != v ? v : vmax;
    moment = vmax;
}
p = p - step_size * (m / (SQRT(moment + eps_root) * correction2 + eps));
