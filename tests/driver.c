/* Kernels without Python: makes the calls that it reads from standard input and writes the buffers back to
 * standard output, for the instruction set of its argument or the best one. tests/digest.py speaks to it, so
 * that a program for any processor, or under a sanitizer, is held against the stored digest. */

#include "fastopt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a call begins with, in the machine's own byte order. The scalars follow, then the given buffers. */
struct call {
    char optimizer[32];
    uint32_t subset, format;
    uint32_t given; /* bit i stands for the i-th buffer of the row */
    uint32_t scalars;
    uint64_t size, key, first;
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

static const fastopt_optimizer *optimizers_of(const char *isa)
{
    for (const fastopt_isa *at = fastopt_isas(); at->name; at++)
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

static void run(const fastopt_optimizer *row, const struct call *call)
{
    const fastopt_format *format = &fastopt_formats()[call->format];
    size_t bytes[FASTOPT_MAX_BUFFERS];
    double scalars[FASTOPT_MAX_SCALARS];
    void *buffers[FASTOPT_MAX_BUFFERS] = {0};

    while (row->name && strcmp(row->name, call->optimizer))
        row++;
    if (!row->name)
        fail("there is no optimizer", call->optimizer);
    read_all(scalars, call->scalars * sizeof *scalars);
    for (int i = 0; i < FASTOPT_MAX_BUFFERS; i++)
        if (call->given >> i & 1) {
            bytes[i] = call->size * itemsize(i == 0 ? format->parameter : i == 1 ? format->gradient : format->states);
            buffers[i] = malloc(bytes[i]); /* each alone, so that a sanitizer sees where it ends */
            if (bytes[i] && !buffers[i])
                fail("out of memory", "");
            read_all(buffers[i], bytes[i]);
        }
    row->kernels[call->format][call->subset](buffers, scalars, 0, call->size, call->key, call->first);
    for (int i = 0; i < FASTOPT_MAX_BUFFERS; i++)
        if (call->given >> i & 1) {
            fwrite(buffers[i], 1, bytes[i], stdout);
            free(buffers[i]);
        }
    fflush(stdout);
}

int main(int count, char **arguments)
{
    const fastopt_optimizer *optimizers = optimizers_of(count > 1 ? arguments[1] : NULL);
    struct call call;
    while (fread(&call, sizeof call, 1, stdin))
        run(optimizers, &call);
    return 0;
}
