/* Adan (Xie, Zhou, Li, Lin, Yan 2022, arXiv:2208.06677, algorithm 1). `before` is minus the last gradient, as in the
 * authors' code; `known` is 0 in the first step, which has none. `step_m` is lr / (1 - beta1^t), `step_v`
 * lr * beta2 / (1 - beta2^t), `correction3` 1 / sqrt(1 - beta3^t), `shrink` 1 / (1 + lr * weight_decay). */
T change = known * (g + before);
m = beta1 * m + one_minus_beta1 * g;
v = beta2 * v + one_minus_beta2 * change;
T ahead = g + beta2 * change;
n = beta3 * n + one_minus_beta3 * ahead * ahead;
before = -g;
p = shrink * (p - (step_m * m + step_v * v) / (SQRT(n) * correction3 + eps));
