/* Lookahead (Zhang, Lucas, Hinton, Ba 2019, arXiv:1907.08610, algorithm 1), every k-th step: `slow` goes a part of
 * the way, and the parameter goes back to it. */
slow = slow + alpha * (p - slow);
p = slow;
