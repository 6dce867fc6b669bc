/* A moving average, or a mean with the weight 1 / (n + 1), in the form of torch's lerp: exact where the weight is 1,
 * and from the nearer end. */
T difference = p - average;
average = weight < (T)0.5 ? average + weight * difference : p - difference * (1 - weight);
