/* Adagrad (Duchi, Hazan, Singer 2011, JMLR 12). `lr` is decayed. */
s = s + g * g;
p = p - lr * (g / (SQRT(s + eps_root) + eps));
