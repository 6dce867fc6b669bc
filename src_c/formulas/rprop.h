/* Rprop (Riedmiller, Braun 1993; this form, iRprop-: Igel, Huesken 2000). `start` is the length of the first step,
 * then 0. The sign of 0 is 0, that of NaN NaN: both are g - g. */
T product = g * before;
step = step + start;
step = product > 0 ? step * grow : product < 0 ? step * shrink : step;
step = step < shortest ? shortest : step > longest ? longest : step;
g = product < 0 ? 0 : g;
before = g;
p = p - step * (g > 0 ? 1 : g < 0 ? -1 : g - g);
