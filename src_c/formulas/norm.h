/* The square of the norm, in double: so the norm of a float32 gradient is finite where its elements are. */
gg = (double)g * (double)g;
