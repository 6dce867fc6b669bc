/* Kernels without Python: makes the calls that it reads from standard input and writes the buffers, or in sum
 * mode the sums of each block, to standard output, for the instruction set of its argument or the best one.
 * tests/digest.py speaks to it, so that a program for any processor, or under a sanitizer, is held against the
 * stored digest. */

#include "tasks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a request begins with, in the machine's own byte order. The scalars follow, then the
 * factors, then the given buffers. */
struct request {
    char optimizer[32];
    uint32_t subset, format;
    uint32_t given; /* bit i stands for the i-th buffer of the row */
    uint32_t scalars, factors;
    uint32_t sums; /* how many the row has; 0 in update mode */
    uint32_t first_work, unused; /* the first buffer in the type of the arithmetic, or 0 */
    uint64_t count; /* of elements */
    uint64_t random_key, first_element;
};

static void fail(const char *what, const char *name)
{
    fprintf(stderr, "driver: %s %s\n", what, name);
    exit(2);
}

static void read_all(void *to, size_t size)
{
    if (fread(to, 1, size, stdin) != size)
        fail("the input ends within a call", "");
}

/* Memory of its own for every array, so that a sanitizer sees where it ends. */
static void *allocated(size_t size)
{
    void *const memory = malloc(size);
    if (size && !memory)
        fail("out of memory", "");
    return memory;
}

static const fastopt_table *table(void)
{
    const fastopt_table *found = fastopt_get_table(FASTOPT_ABI_VERSION, sizeof(fastopt_call));
    if (!found)
        fail("the kernels were compiled with another fastopt.h", "");
    return found;
}

static const fastopt_isa *isa_of(const char *name)
{
    for (const fastopt_isa *at = table()->isas; at->name; at++)
        if (!name || !strcmp(name, at->name))
            return at;
    fail("this processor cannot run", name);
    return NULL;
}

static int storage_of(const char *name)
{
    static const char *const names[] = {"float32", "float64", "float16", "bfloat16"};
    for (int storage = 0; storage < FASTOPT_STORAGES; storage++)
        if (!strcmp(name, names[storage]))
            return storage;
    fail("there is no storage", name);
    return 0;
}

static uint8_t itemsize(const char *storage)
{
    static const uint8_t sizes[] = {4, 8, 2, 2};
    return sizes[storage_of(storage)];
}

static void run(const fastopt_isa *isa, const struct request *request)
{
    const fastopt_format *format = &table()->formats[request->format];
    const fastopt_optimizer *row = isa->optimizers;
    fastopt_coefficients coefficients = {.random_key = request->random_key};
    double factors[16];
    const size_t blocks = (request->count + FASTOPT_SUM_BLOCK - 1) / FASTOPT_SUM_BLOCK;
    const size_t bytes_of_sums = blocks * request->sums * sizeof(double);
    double *const sums = allocated(bytes_of_sums);
    fastopt_tensor tensor = {
        .call = {
            .size = sizeof tensor.call,
            .coefficients = &coefficients,
            .factors = factors,
            .sums = sums,
            .first_element = request->first_element,
        },
        .count = request->count,
        .sum_count = (uint8_t)request->sums,
        .first_work = (uint8_t)request->first_work,
        .itemsizes = {itemsize(format->parameter), itemsize(format->gradient), itemsize(format->states)},
        .stage_scale = 1,
        .stage_limit = (double)INFINITY,
    };
    void **const buffers = tensor.call.buffers;

    while (row->name && strcmp(row->name, request->optimizer))
        row++;
    if (!row->name)
        fail("there is no optimizer", request->optimizer);
    if (request->scalars > FASTOPT_MAX_SCALARS || request->factors > sizeof factors / sizeof *factors)
        fail("too many scalars or factors for", request->optimizer);
    read_all(coefficients.scalars, request->scalars * sizeof *coefficients.scalars);
    read_all(factors, request->factors * sizeof *factors);
    for (int i = 0; i < FASTOPT_MAX_BUFFERS; i++)
        if (request->given >> i & 1) {
            const size_t bytes = request->count * fastopt_itemsize(&tensor, i);
            buffers[i] = allocated(bytes);
            read_all(buffers[i], bytes);
        }
    tensor.kernel = (request->sums ? row->sum_kernels : row->kernels)[request->format][request->subset];
    if (strcmp(format->gradient, format->kernel_gradient))
        tensor.stage = isa->converters[storage_of(format->gradient) * FASTOPT_STORAGES
                                       + storage_of(format->kernel_gradient)];
    fastopt_run_tensor(&tensor);
    fwrite(sums, 1, bytes_of_sums, stdout);
    free(sums);
    for (int i = 0; i < FASTOPT_MAX_BUFFERS; i++)
        if (request->given >> i & 1) {
            if (!request->sums)
                fwrite(buffers[i], 1, request->count * fastopt_itemsize(&tensor, i), stdout);
            free(buffers[i]);
        }
    fflush(stdout);
}

int main(int count, char **arguments)
{
    const fastopt_isa *isa = isa_of(count > 1 ? arguments[1] : NULL);
    struct request request;
    while (fread(&request, sizeof request, 1, stdin))
        run(isa, &request);
    return 0;
}
