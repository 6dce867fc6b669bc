/* Nesterov's accelerated gradient (Nesterov 1983; Sutskever et al. 2013, eq. 3 and 4), the gradient
 * taken at p + momentum * v. Where the parameters stand `ahead`, at that point, momentum * v is in
 * them already. */
T d = lr * g;
v = momentum * v - d;
p = ahead != 0 ? p - d : p + v;
