/* Signum (Bernstein, Wang, Azizzadenesheli, Anandkumar 2018, arXiv:1802.04434, algorithm 2). The sign
 * of 0 is 0, that of NaN NaN: both are m - m. */
m = beta * m + one_minus_beta * g;
p = p - lr * (m > 0 ? 1 : m < 0 ? -1 : m - m);
