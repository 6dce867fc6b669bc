/* What a step costs without its arithmetic: one stream is read, the others are read and written. The
 * additions keep the compiler from leaving the loop out. From the command line: T, the type, and
 * FOR_EACH_WRITTEN(X), which is X(0) X(1) ..., once for each written stream. */

#include <stddef.h>

#define PARAMETER(k) , T *restrict written##k
#define ARGUMENT(k) , written##k
#define ADD(k) written##k[i] += value;

/* A function of its own, because `restrict` does not outlive being inlined into a parallel region. */
static __attribute__((noinline)) void part(
    size_t begin, size_t end, const T *restrict read FOR_EACH_WRITTEN(PARAMETER))
{
    for (size_t i = begin; i < end; i++) {
        const T value = read[i];
        FOR_EACH_WRITTEN(ADD)
    }
}

void streams(size_t size, const T *restrict read FOR_EACH_WRITTEN(PARAMETER), int threads)
{
    const size_t share = size / threads / 64 * 64;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int k = 0; k < threads; k++)
        part(k * share, k + 1 < threads ? (k + 1) * share : size, read FOR_EACH_WRITTEN(ARGUMENT));
}
