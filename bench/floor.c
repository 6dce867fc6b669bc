/* What a step costs without its arithmetic: one stream is read, the others are read and written. The
 * additions keep the compiler from leaving the loop out. FOR_EACH_WRITTEN(X) is X(0) X(1) ..., once for
 * each written stream; it comes from the command line. */

#include <stddef.h>

#define PARAMETER(k) , float *restrict written##k
#define ARGUMENT(k) , written##k
#define ADD(k) written##k[i] += value;

/* A function of its own, because `restrict` does not outlive being inlined into a parallel region. */
static __attribute__((noinline)) void part(
    size_t begin, size_t end, const float *restrict read FOR_EACH_WRITTEN(PARAMETER))
{
    for (size_t i = begin; i < end; i++) {
        const float value = read[i];
        FOR_EACH_WRITTEN(ADD)
    }
}

void streams(int threads, size_t size, const float *restrict read FOR_EACH_WRITTEN(PARAMETER))
{
    const size_t share = size / threads / 64 * 64;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int k = 0; k < threads; k++)
        part(k * share, k + 1 < threads ? (k + 1) * share : size, read FOR_EACH_WRITTEN(ARGUMENT));
}
