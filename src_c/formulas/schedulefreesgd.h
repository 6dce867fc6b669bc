/* Schedule-free SGD (Defazio et al. 2024, arXiv:2405.15682, equations 2 to 4), written for the point y where gradients
 * are taken, as in the authors' package. `part` is the weight of z in the average, `along` lr * (beta * (1 - part) - 1),
 * `rate` lr with its warm-up. */
z = first != 0 ? p : z;
p = p + part * (z - p) + along * g;
z = z - rate * g;
