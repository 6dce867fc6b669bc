/* Two limits that no step can beat. Defined on the command line: T, the type; SQRT, its square root; ROOTS and
 * DIVISIONS, how many of each an element takes; FOR_EACH_WRITTEN(X), which is X(0) X(1) ..., once for each
 * array that is written. */

#include <stddef.h>

/* -- The memory-bandwidth limit: a step without its arithmetic. One array is read, the others are read and
 * written. The additions keep the compiler from leaving the loop out. -- */

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

void bandwidth(size_t size, const T *restrict read FOR_EACH_WRITTEN(PARAMETER), int threads)
{
    const size_t share = size / threads / 64 * 64;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int k = 0; k < threads; k++)
        part(k * share, k + 1 < threads ? (k + 1) * share : size, read FOR_EACH_WRITTEN(ARGUMENT));
}

/* -- The division-and-square-root limit: these alone, on numbers that stay in the nearest cache. -- */

enum { NUMBERS = 1024 };

static __attribute__((noinline)) void divide_numbers(const T *restrict a, const T *restrict b, T *restrict out)
{
    for (int i = 0; i < NUMBERS; i++) {
        T value = a[i];
        for (int k = 0; k < ROOTS; k++)
            value = SQRT(value);
        for (int k = 0; k < DIVISIONS; k++)
            value = b[i] / value;
        out[i] = value;
    }
}

void divide(size_t size, int threads)
{
    const size_t share = (size / threads + NUMBERS - 1) / NUMBERS;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int k = 0; k < threads; k++) {
        T numbers[3][NUMBERS];
        for (int i = 0; i < NUMBERS; i++)
            numbers[0][i] = numbers[1][i] = 1 + (T)i / NUMBERS;
        for (size_t j = 0; j < share; j++) {
            divide_numbers(numbers[0], numbers[1], numbers[2]);
            __asm__ volatile("" ::"r"(numbers) : "memory"); /* so that each pass is computed again */
        }
    }
}
