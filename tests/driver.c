/* Kernels without Python: makes the calls that it reads from standard input and writes the buffers back to
 * standard output, for the instruction set of its argument or the best one. tests/digest.py speaks to it, so
 * that a program for any processor, or under a sanitizer, is held against the stored digest. */

#include "fastopt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a request begins with, in the machine's own byte order. The scalars follow, then the given buffers. */
struct request {
    char optimizer[32];
    uint32_t subset, format;
    uint32_t given; /* bit i stands for the i-th buffer of the row */
    uint32_t scalars;
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

static const fastopt_table *table(void)
{
    const fastopt_table *found = fastopt_get_table(FASTOPT_ABI_VERSION, sizeof(fastopt_call));
    if (!found)
        fail("the kernels were compiled with another fastopt.h", "");
    return found;
}

static const fastopt_optimizer *optimizers_of(const char *isa)
{
    for (const fastopt_isa *at = table()->isas; at->name; at++)
        if (!isa || !strcmp(isa, at->name))
            return at->optimizers;
    fail("this processor cannot run", isa);
    return NULL;
}

/* Bytes of an element. */
static size_t itemsize(const char *storage)
{
    return !strcmp(storage, "float64") ? 8 : !strcmp(storage, "float32") ? 4 : 2;
}

static void run(const fastopt_optimizer *row, const struct request *request)
{
    const fastopt_format *format = &table()->formats[request->format];
    size_t bytes[FASTOPT_MAX_BUFFERS];
    fastopt_coefficients coefficients = {.random_key = request->random_key};
    fastopt_call call = {
        .size = sizeof call,
        .coefficients = &coefficients,
        .first_element = request->first_element,
    };

    while (row->name && strcmp(row->name, request->optimizer))
        row++;
    if (!row->name)
        fail("there is no optimizer", request->optimizer);
    if (request->scalars > FASTOPT_MAX_SCALARS)
        fail("too many scalars for", request->optimizer);
    read_all(coefficients.scalars, request->scalars * sizeof *coefficients.scalars);
    for (int i = 0; i < FASTOPT_MAX_BUFFERS; i++)
        if (request->given >> i & 1) {
            const char *storage = i == 0 ? format->parameter : i == 1 ? format->gradient : format->states;
            bytes[i] = request->count * itemsize(storage);
            call.buffers[i] = malloc(bytes[i]); /* each alone, so that a sanitizer sees where it ends */
            if (bytes[i] && !call.buffers[i])
                fail("out of memory", "");
            read_all(call.buffers[i], bytes[i]);
        }
    row->kernels[request->format][request->subset](&call, 0, request->count);
    for (int i = 0; i < FASTOPT_MAX_BUFFERS; i++)
        if (request->given >> i & 1) {
            fwrite(call.buffers[i], 1, bytes[i], stdout);
            free(call.buffers[i]);
        }
    fflush(stdout);
}

int main(int count, char **arguments)
{
    const fastopt_optimizer *optimizers = optimizers_of(count > 1 ? arguments[1] : NULL);
    struct request request;
    while (fread(&request, sizeof request, 1, stdin))
        run(optimizers, &request);
    return 0;
}
