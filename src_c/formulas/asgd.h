/* Averaged SGD (Polyak, Juditsky 1992). `keep` is 1 - lambd * eta; until the average begins, mu is 1. */
p = keep * p - eta * g;
ax = mu == 1 ? p : ax + (p - ax) * mu;
