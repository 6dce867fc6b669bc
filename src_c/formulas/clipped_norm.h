/* The square of the norm, and that of the gradient which an update clips to ±limit after it has scaled it. `shrink`
 * is 1, but for a sum that overflowed. */
T c = scale * g;
c = c > limit ? limit : c < -limit ? -limit : c;
c = shrink * c;
gg = (double)g * (double)g;
cc = (double)c * (double)c;
