/* Adam (Kingma, Ba 2014, arXiv:1412.6980, algorithm 1) and AMSGrad (Reddi, Kale, Kumar 2018,
 * arXiv:1904.09237), whose maximum keeps a NaN. `correction2` is 1 / sqrt(1 - beta2^t) and `step_size`
 * lr / (1 - beta1^t). Cautious (Liang et al. 2024, arXiv:2411.16085, algorithm 1): elements of m whose sign is not
 * the gradient's count as 0, the others are multiplied by `scale`. */
m = beta1 * m + one_minus_beta1 * g;
v = beta2 * v + one_minus_beta2 * g * g;
T moment = v;
if (has_vmax) {
    vmax = v > vmax || v != v ? v : vmax;
    moment = vmax;
}
T direction = m;
if (has_cautious) {
    kept = m * g > 0;
    direction = m * (m * g > 0 ? scale : 0);
}
p = p - step_size * (direction / (SQRT(moment + eps_root) * correction2 + eps));
