/* AdEMAMix (Pagliardini, Ablin, Grangier 2024, arXiv:2409.03137, algorithm 1). `beta3` and `alpha` may be warming
 * up. `correction1` is 1 / (1 - beta1^t), `correction2` 1 / sqrt(1 - beta2^t); `slow` has none. */
m = beta1 * m + one_minus_beta1 * g;
slow = beta3 * slow + one_minus_beta3 * g;
v = beta2 * v + one_minus_beta2 * g * g;
p = p - lr * ((m * correction1 + alpha * slow) / (SQRT(v) * correction2 + eps));
