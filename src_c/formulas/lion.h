/* Lion (Chen et al. 2023, arXiv:2302.06675, algorithm 2). The sign of 0 is 0, that of NaN NaN: both are u - u.
 * Cautious (Liang et al. 2024, arXiv:2411.16085): elements of the direction whose sign is not the gradient's count as
 * 0, the others are multiplied by `scale`. */
T u = beta1 * m + one_minus_beta1 * g;
m = beta2 * m + one_minus_beta2 * g;
T direction = u > 0 ? 1 : u < 0 ? -1 : u - u;
if (has_cautious) {
    kept = direction * g > 0;
    direction = direction * (direction * g > 0 ? scale : 0);
}
p = p - lr * direction;
