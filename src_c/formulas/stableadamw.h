/* StableAdamW (Wortsman et al. 2023, arXiv:2304.13013, algorithm 2). `correction1` is 1 / (1 - beta1^t), `correction2`
 * 1 / sqrt(1 - beta2^t), `eta` lr / max(1, the root of the mean of g^2 / max(v^, eps^2)). */
m = beta1 * m + one_minus_beta1 * g;
v = beta2 * v + one_minus_beta2 * g * g;
T root = SQRT(v) * correction2;
T least = root > eps ? root : eps;
double part = least != 0 ? (double)g / least : 0;
ratio = part * part;
p = p - eta * (m * correction1 / (root + eps) + pull * p);
