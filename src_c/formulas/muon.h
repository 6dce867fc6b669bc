/* Muon (Jordan et al. 2024). `o` is the direction made orthogonal, which Python works out of the whole matrix; `weight` is
 * 1 - momentum. */
buf = buf + weight * (g - buf);
p = p - rate * o;
