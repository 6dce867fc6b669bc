/* Prodigy (Mishchenko, Defazio 2023, arXiv:2306.06101, algorithm 4), with the weights of the authors' package. `d` estimates
 * the distance to the solution, `next_d` after this step; `dlr` is d * lr with its bias correction, `rate` d / d0 * dlr,
 * `gain` the weight of g in s. */
p0 = first != 0 ? p : p0;
progress = (double)g * (p0 - p) * rate;
m = beta1 * m + d * one_minus_beta1 * g;
v = beta2 * v + d * d * one_minus_beta2 * g * g;
s = beta3 * s + gain * g;
length = ABS(s);
p = p - pull * dlr * p;
p = p - dlr * (m / (SQRT(v) + next_d * eps));
