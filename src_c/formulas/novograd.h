/* NovoGrad (Ginsburg et al. 2019, arXiv:1905.11286, algorithm 1). `scale` is 1 / (sqrt(v) + eps), where v is a number
 * of the tensor; `pull` is weight_decay. */
gg = (double)g * (double)g;
m = beta1 * m + (scale * g + pull * p);
p = p - lr * m;
