/* The infinity norm. A NaN stays. */
magnitude = g < 0 ? -g : g;
