/* rowwiseadagrad.h   Adagrad with one number for each row (FBGEMM's exact row-wise Adagrad). The kernel runs on one
 * row at a time; Python makes `rate` of the sum. */
gg = (double)g * (double)g;
p = p - rate * g;
