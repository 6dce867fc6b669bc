/* FTRL-Proximal (McMahan et al. 2013, KDD, algorithm 1). `inverse_lr` is 1 / lr. Where |z| is at most l1, p is 0;
 * z - z keeps a NaN. `shrinkage` and `l2` are twice the options' numbers, and beta / lr is in l2. */
T before = SQRT(s);
s = s + g * g;
T root = SQRT(s);
z = z + (g + shrinkage * p - (root - before) * inverse_lr * p);
T pull = z > l1 ? l1 - z : z < -l1 ? -l1 - z : z - z;
p = pull / (root * inverse_lr + l2);
