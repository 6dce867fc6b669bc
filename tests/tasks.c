/* A step's way through tasks.c without Python: gradients that are gathered, converted and clipped, what follows the
 * update, zeros, sums, teams of threads. Each result is compared with plain loops. For sanitizers and emulators:
 *
 *   gcc <FLAGS of setup.py> -Isrc_c tests/tasks.c src_c/?*.c -lm -lpthread -o tasks && ./tasks [INSTRUCTION SET] */

#include "tasks.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 150, COLUMNS = 301, COUNT = ROWS * COLUMNS, MOST_THREADS = 5 };

static const fastopt_table *table;
static const fastopt_isa *isa;
static int failures;

static void check(int right, const char *what)
{
    if (!right) {
        fprintf(stderr, "tasks: %s: wrong (%s)\n", what, isa->name);
        failures++;
    }
}

static void *allocate(size_t bytes)
{
    void *const memory = calloc(bytes + !bytes, 1); /* each alone, so that a sanitizer sees where it ends */
    if (!memory)
        exit(2);
    return memory;
}

static double number(size_t i) /* of either sign, below 4 */
{
    return (double)(uint32_t)((uint32_t)i * 2654435761u) / 536870912.0 - 4;
}

static int format_of(const char *name)
{
    int k = 0;
    while (strcmp(table->formats[k].name, name))
        k++;
    return k;
}

static const fastopt_optimizer *row_of(const fastopt_optimizer *rows, const char *name)
{
    while (strcmp(rows->name, name))
        rows++;
    return rows;
}

static fastopt_converter converter(int from, int to)
{
    return isa->converters[from * FASTOPT_STORAGES + to];
}

/* -- Running -- */

struct member {
    fastopt_work *work;
    int own;
};

static void *run_member(void *member)
{
    fastopt_run_part(((struct member *)member)->work, ((struct member *)member)->own);
    return NULL;
}

/* One tensor by a team of so many threads; 0: by fastopt_run_tensor. */
static void run(fastopt_tensor *tensor, int threads)
{
    fastopt_tensor *const tensors[] = {tensor};
    fastopt_work work = {.tensors = tensors, .tensor_count = 1};
    struct member members[MOST_THREADS];
    pthread_t ids[MOST_THREADS];

    if (!threads) {
        fastopt_run_tensor(tensor);
        return;
    }
    const size_t most = fastopt_most_chunks(&work);
    work.chunks = allocate(most * sizeof *work.chunks);
    work.tasks = allocate((most + 1) * sizeof *work.tasks);
    work.order = allocate(most * sizeof *work.order);
    work.parts = allocate((size_t)threads * sizeof *work.parts);
    fastopt_cut(&work, tensor->sum_count != 0);
    work.scratch_size = fastopt_scratch_size(&work);
    work.scratch = work.scratch_size ? allocate(work.scratch_size * (size_t)threads) : NULL;
    const int team = fastopt_divide(&work, threads);
    for (int k = 0; k < team; k++) {
        members[k] = (struct member){&work, k};
        if (k && pthread_create(&ids[k], NULL, run_member, &members[k]))
            exit(2);
    }
    if (team) /* else there are no elements */
        run_member(&members[0]);
    for (int k = 1; k < team; k++)
        pthread_join(ids[k], NULL);
    free(work.chunks);
    free(work.tasks);
    free(work.order);
    free(work.parts);
    free(work.scratch);
}

/* Each thread has its share of every large tensor, and about as many tasks as any other; each task is given to one. */
static void check_shares(void)
{
    static const size_t counts[] = {1000000, 7, 300000, 70, 2000000, 16384, 16384, 16384, 100000};
    enum { TENSORS = sizeof counts / sizeof *counts };
    fastopt_tensor tensors[TENSORS];
    fastopt_tensor *places[TENSORS];
    memset(tensors, 0, sizeof tensors);
    for (size_t i = 0; i < TENSORS; i++) {
        tensors[i].count = counts[i];
        tensors[i].itemsizes[0] = 4;
        places[i] = &tensors[i];
    }
    fastopt_work work = {.tensors = places, .tensor_count = TENSORS};
    const size_t most = fastopt_most_chunks(&work);
    work.chunks = allocate(most * sizeof *work.chunks);
    work.tasks = allocate((most + 1) * sizeof *work.tasks);
    work.order = allocate(most * sizeof *work.order);
    work.parts = allocate(MOST_THREADS * sizeof *work.parts);
    fastopt_cut(&work, 0);
    for (int team = MOST_THREADS; team > 1; team--) {
        char *const given = allocate(work.task_count);
        check(fastopt_divide(&work, team) == team, "the size of a team");
        for (int k = 0; k < team; k++) {
            const fastopt_part *const part = &work.parts[k];
            const double tasks = (double)(part->end - part->first);
            size_t elements[TENSORS] = {0};
            check(fabs(tasks - (double)work.task_count / team) < 3, "the number of a thread's tasks");
            for (size_t taken = part->next; taken < part->end; taken++) {
                const size_t task = work.order[taken];
                given[task]++;
                for (size_t c = work.tasks[task]; c < work.tasks[task + 1]; c++)
                    elements[work.chunks[c].tensor - tensors] += work.chunks[c].end - work.chunks[c].begin;
            }
            for (size_t i = 0; i < TENSORS; i++)
                if (counts[i] >= 4 * (size_t)team * FASTOPT_TASK)
                    check(fabs((double)elements[i] - (double)counts[i] / team) < 2 * FASTOPT_TASK, "a thread's share");
        }
        for (size_t task = 0; task < work.task_count; task++)
            check(given[task] == 1, "a task that one thread has");
        free(given);
    }
    free(work.chunks);
    free(work.tasks);
    free(work.order);
    free(work.parts);
}

/* -- Converters -- */

/* A number rounded to so many bits, the last one not below 2^least; infinity from `limit` on. */
static double rounded(double value, int bits, int least, double limit)
{
    if (value != value || isinf(value) || value == 0)
        return value;
    int last = ilogb(value) + 1 - bits;
    last = last < least ? least : last;
    const double found = ldexp(rint(ldexp(value, -last)), last);
    return fabs(found) >= limit ? copysign((double)INFINITY, value) : found;
}

/* What a 16-bit number stands for. */
static float value_of(uint16_t bits, int storage)
{
    float value;
    converter(storage, FASTOPT_FLOAT32)(&value, &bits, 1, 1, (double)INFINITY);
    return value;
}

static int equal(double a, double b) { return (a != a && b != b) || (a == b && signbit(a) == signbit(b)); }

static void check_converters(void)
{
    for (int k = 0; k < 1 << 16; k++) { /* from float16, all of them */
        const int exponent = k >> 10 & 31, fraction = k & 1023;
        double value = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
        if (exponent == 31)
            value = fraction ? (double)NAN : (double)INFINITY;
        check(equal(value_of((uint16_t)k, FASTOPT_FLOAT16), k >> 15 ? -value : value), "float16 to float32");
    }
    for (size_t i = 0; i < 400000; i++) {
        /* all exponents; every other number near the middle between two neighbours of 16 bits */
        double value = ldexp(number(i), (int)(i % 320) - 170);
        if (i % 2)
            value = rounded(value, i % 4 == 1 ? 9 : 12, i % 4 == 1 ? -134 : -25, 1e300)
                    * (1 + (double)(int)(i % 5 - 2) * 0x1p-50);
        if (i % 101 == 0)
            value = i % 202 ? (double)NAN : i % 404 ? (double)INFINITY : -0.0;
        const float single = (float)value;
        uint16_t bits;
        converter(FASTOPT_FLOAT64, FASTOPT_BFLOAT16)(&bits, &value, 1, 1, (double)INFINITY);
        check(equal(value_of(bits, FASTOPT_BFLOAT16), rounded(value, 8, -133, 0x1p128)), "float64 to bfloat16");
        converter(FASTOPT_FLOAT64, FASTOPT_FLOAT16)(&bits, &value, 1, 1, (double)INFINITY);
        check(equal(value_of(bits, FASTOPT_FLOAT16), rounded(value, 11, -24, 65536)), "float64 to float16");
        converter(FASTOPT_FLOAT32, FASTOPT_BFLOAT16)(&bits, &single, 1, 1, (double)INFINITY);
        check(equal(value_of(bits, FASTOPT_BFLOAT16), rounded(single, 8, -133, 0x1p128)), "float32 to bfloat16");
        converter(FASTOPT_FLOAT32, FASTOPT_FLOAT16)(&bits, &single, 1, 1, (double)INFINITY);
        check(equal(value_of(bits, FASTOPT_FLOAT16), rounded(single, 11, -24, 65536)), "float32 to float16");
    }
    for (size_t count = 0; count < 70; count++) { /* whole vectors and the rest of one; in place; clipped */
        float *const values = allocate(count * sizeof *values);
        for (size_t i = 0; i < count; i++)
            values[i] = i % 7 == 3 ? NAN : (float)number(i);
        converter(FASTOPT_FLOAT32, FASTOPT_FLOAT32)(values, values, count, -0.7, 1.5);
        for (size_t i = 0; i < count; i++) {
            const float scaled = (float)-0.7 * (float)number(i);
            check(i % 7 == 3 ? values[i] != values[i] : values[i] == fminf(fmaxf(scaled, -1.5f), 1.5f), "clipping");
        }
        free(values);
    }
}

/* -- A step: a gradient in the other order, in each storage; two averages, a copy, zeros -- */

static void check_step(int gradient, const char *format, int threads)
{
    static const uint8_t sizes[] = {4, 8, 2, 2};
    const size_t itemsize = sizes[gradient];
    const int place = format_of(format);
    char *const grad = allocate(COUNT * itemsize);
    float *arrays[2][5], dense[COUNT]; /* as loops make them, as tasks.c does: p, m, average, slow; the gradient */
    uint16_t *const copy = allocate(COUNT * sizeof *copy);
    const fastopt_optimizer *const row = row_of(isa->optimizers, "nag");
    /* momentum, lr, ahead, then grad_scale, weight_decay and decay; of the passes the first alone */
    fastopt_coefficients step = {.scalars = {0.9, 0.1, 0, -1, 0.01, 0.99}};
    fastopt_coefficients weight = {.scalars = {0.25}}, alpha = {.scalars = {0.5}};
    fastopt_source source;

    for (size_t i = 0; i < COUNT; i++) {
        const double value = number(i + 7);
        const float single = (float)value;
        if (gradient == FASTOPT_FLOAT64)
            ((double *)grad)[i] = value;
        else if (gradient == FASTOPT_FLOAT32)
            ((float *)grad)[i] = single;
        else
            converter(FASTOPT_FLOAT32, gradient)(grad + i * itemsize, &single, 1, 1, (double)INFINITY);
    }
    for (int which = 0; which < 2; which++)
        for (int k = 0; k < 4; k++) {
            arrays[which][k] = allocate(COUNT * sizeof(float));
            for (size_t i = 0; i < COUNT; i++)
                arrays[which][k][i] = (float)number(i * (size_t)(k + 3));
        }

    /* the loops; element i lies in row i / COLUMNS, and the gradient's columns lie one after the other, backwards */
    float **const want = arrays[0], **const got = arrays[1];
    char *const last = grad + (COUNT - 1) * itemsize;
    for (size_t i = 0; i < COUNT; i++) {
        const size_t at = COUNT - 1 - (i % COLUMNS * ROWS + i / COLUMNS);
        converter(gradient, FASTOPT_FLOAT32)(&dense[i], grad + at * itemsize, 1, 0.7, 1.5);
    }
    fastopt_call call = {.size = sizeof call, .buffers = {want[0], dense, want[1]}, .coefficients = &step};
    row->kernels[format_of("float32")][0](&call, 0, COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        want[2][i] = want[2][i] + 0.25f * (want[0][i] - want[2][i]);
        want[3][i] = want[3][i] + 0.5f * (want[0][i] - want[3][i]);
        want[0][i] = want[3][i];
    }

    const ptrdiff_t shape[] = {ROWS, COLUMNS}, stride = (ptrdiff_t)itemsize;
    const ptrdiff_t strides[] = {-stride, -stride * ROWS};
    fastopt_source_of(&source, last, itemsize, 2, shape, strides, 0);
    const fastopt_pass passes[] = {
        {.kernel = row_of(isa->auxiliary, "lerp")->kernels[format_of("float32")][0],
         .call = {.size = sizeof call, .buffers = {got[0], NULL, got[2]}, .coefficients = &weight}},
        {.kernel = row_of(isa->auxiliary, "lookahead")->kernels[format_of("float32")][0],
         .call = {.size = sizeof call, .buffers = {got[0], NULL, got[3]}, .coefficients = &alpha}},
        {.converter = converter(FASTOPT_FLOAT32, FASTOPT_BFLOAT16),
         .call = {.buffers = {got[0], NULL, copy}},
         .itemsizes = {4, 0, 2}},
    };
    fastopt_tensor tensor = {
        .kernel = row->kernels[place][0],
        .call = {.size = sizeof call, .buffers = {got[0], NULL, got[1]}, .coefficients = &step},
        .count = COUNT,
        .source = &source,
        .stage = converter(gradient, FASTOPT_FLOAT32),
        .stage_scale = 0.7,
        .stage_limit = 1.5,
        .passes = passes,
        .pass_count = 3,
        .zero_gradient = 1,
        .itemsizes = {4, (uint8_t)itemsize, 4},
    };
    run(&tensor, threads);
    for (int k = 0; k < 4; k++)
        check(!memcmp(want[k], got[k], COUNT * sizeof(float)), "a step");
    for (size_t i = 0; i < COUNT; i++)
        check(value_of(copy[i], FASTOPT_BFLOAT16) == (float)rounded(want[0][i], 8, -133, 0x1p128), "a copy");
    for (size_t i = 0; i < COUNT * itemsize; i++)
        check(!grad[i], "zeros");
    for (int k = 0; k < 8; k++)
        free(arrays[k / 4][k % 4]);
    free(grad);
    free(copy);
}

/* -- Clipping in place -- */

static void check_write_back(int storage, int is_strided, int threads)
{
    const size_t itemsize = storage == FASTOPT_FLOAT32 ? 4 : 2;
    char *const grad = allocate(2 * COUNT * itemsize), *const want = allocate(2 * COUNT * itemsize);
    const size_t step = is_strided ? 2 : 1;
    const ptrdiff_t shape[] = {COUNT}, strides[] = {2 * (ptrdiff_t)itemsize};
    fastopt_source source;

    for (size_t i = 0; i < 2 * COUNT; i++) {
        const float value = (float)number(i);
        converter(FASTOPT_FLOAT32, storage == FASTOPT_FLOAT32 ? FASTOPT_FLOAT32 : storage)(
            grad + i * itemsize, &value, 1, 1, (double)INFINITY);
    }
    memcpy(want, grad, 2 * COUNT * itemsize);
    for (size_t i = 0; i < COUNT; i++) {
        float value;
        char *const at = want + i * step * itemsize;
        converter(storage, FASTOPT_FLOAT32)(&value, at, 1, 0.3, 0.9);
        converter(FASTOPT_FLOAT32, storage)(at, &value, 1, 1, (double)INFINITY);
    }
    fastopt_source_of(&source, grad, itemsize, 1, shape, strides, 0);
    fastopt_tensor tensor = {
        .call = {.buffers = {NULL, grad}},
        .count = COUNT,
        .source = is_strided ? &source : NULL,
        .stage = converter(storage, FASTOPT_FLOAT32),
        .stage_scale = 0.3,
        .stage_limit = 0.9,
        .write_back = converter(FASTOPT_FLOAT32, storage),
        .itemsizes = {4, (uint8_t)itemsize, 4},
    };
    run(&tensor, threads);
    check(!memcmp(grad, want, 2 * COUNT * itemsize), "clipping in place");
    free(grad);
    free(want);
}

/* -- Sums -- */

static void check_sums(size_t count, int gradient, const char *format, int threads)
{
    const size_t blocks = (count + FASTOPT_SUM_BLOCK - 1) / FASTOPT_SUM_BLOCK;
    float *const values = allocate(count * sizeof *values);
    uint16_t *const half = allocate(count * sizeof *half);
    double *const sums = allocate(2 * blocks * sizeof *sums), *const largest = allocate(blocks * sizeof *largest);
    /* scale, limit and shrink; then grad_scale 1 */
    fastopt_coefficients clipped = {.scalars = {0.5, 1, 1, 1}}, plain = {.scalars = {1}};
    const int place = format_of(format);

    for (size_t i = 0; i < count; i++)
        values[i] = (float)number(i);
    if (gradient != FASTOPT_FLOAT32) {
        converter(FASTOPT_FLOAT32, gradient)(half, values, count, 1, (double)INFINITY);
        converter(gradient, FASTOPT_FLOAT32)(values, half, count, 1, (double)INFINITY);
    }
    fastopt_tensor tensor = {
        .kernel = row_of(isa->auxiliary, "clipped_norm")->sum_kernels[place][0],
        .call = {.size = sizeof tensor.call,
                 .buffers = {NULL, gradient == FASTOPT_FLOAT32 ? (void *)values : half},
                 .coefficients = &clipped,
                 .sums = sums},
        .count = count,
        .stage = gradient == FASTOPT_FLOAT32 ? NULL : converter(gradient, FASTOPT_FLOAT32),
        .stage_scale = 1,
        .stage_limit = (double)INFINITY,
        .itemsizes = {4, gradient == FASTOPT_FLOAT32 ? 4 : 2, 4},
        .sum_count = 2,
    };
    run(&tensor, threads);
    tensor.kernel = row_of(isa->auxiliary, "largest")->sum_kernels[place][0];
    tensor.call.coefficients = &plain;
    tensor.call.sums = largest;
    tensor.sum_count = 1;
    run(&tensor, threads);
    for (size_t block = 0; block < blocks; block++) {
        double lanes[2][16] = {0}, most = 0;
        for (size_t i = 0; i < FASTOPT_SUM_BLOCK && block * FASTOPT_SUM_BLOCK + i < count; i++) {
            const float g = values[block * FASTOPT_SUM_BLOCK + i], c = fminf(fmaxf(0.5f * g, -1), 1);
            lanes[0][i % 16] += (double)g * (double)g;
            lanes[1][i % 16] += (double)c * (double)c;
            most = fmax(most, fabs((double)g));
        }
        for (int k = 0; k < 2; k++) {
            for (int apart = 8; apart; apart /= 2)
                for (int lane = 0; lane < apart; lane++)
                    lanes[k][lane] += lanes[k][lane + apart];
            check(lanes[k][0] == sums[2 * block + (size_t)k], "a sum");
        }
        check(largest[block] == most, "the largest");
    }
    free(values);
    free(half);
    free(sums);
    free(largest);
}

/* -- Matrices that are updated row by row, with sums of their rows and columns -- */

enum { MATRIX_ROWS = 50, STRIP_ROWS = 64 };

static double lanes_added_up(const float *values, size_t count)
{
    double lanes[16] = {0};
    for (size_t i = 0; i < count; i++)
        lanes[i % 16] += (double)values[i] * (double)values[i];
    for (int apart = 8; apart; apart /= 2)
        for (int lane = 0; lane < apart; lane++)
            lanes[lane] += lanes[lane + apart];
    return lanes[0];
}

static void check_rows(int gradient, const char *format, int threads)
{
    const size_t itemsize = gradient == FASTOPT_FLOAT32 ? 4 : 2, strips = (ROWS + STRIP_ROWS - 1) / STRIP_ROWS;
    const int place = format_of(format);
    char *const grad = allocate(COUNT * itemsize);
    float *const dense = allocate(COUNT * sizeof *dense), *const column = allocate(COUNT * sizeof *column);
    float *const want = allocate(COUNT * sizeof *want), *const got = allocate(COUNT * sizeof *got);
    double *const sums = allocate(ROWS * sizeof *sums), *const factors = allocate(2 * ROWS * sizeof *factors);
    const fastopt_optimizer *const row = row_of(isa->optimizers, "adafactor"), *const norm = row_of(isa->auxiliary, "norm");
    fastopt_coefficients plain = {.scalars = {1, 0, 1}}; /* grad_scale, weight_decay and decay */
    fastopt_coefficients step = {.scalars = {0.5, 1e-6, 0.99, 1, 0, 1}}; /* weight, eps and keep come first */
    fastopt_source source;

    for (size_t i = 0; i < COUNT; i++) { /* the gradient lies backwards */
        const float value = (float)number(i + 7);
        char *const at = grad + (COUNT - 1 - i) * itemsize;
        converter(FASTOPT_FLOAT32, gradient)(at, &value, 1, 1, (double)INFINITY);
        converter(gradient, FASTOPT_FLOAT32)(&dense[i], at, 1, 1, (double)INFINITY);
        want[i] = got[i] = (float)number(3 * i);
        column[i] = 1 + (float)(i % 5);
    }
    for (size_t k = 0; k < 2 * ROWS; k++)
        factors[k] = 0.1 * (double)(k + 1);
    const ptrdiff_t shape[] = {ROWS, COLUMNS}, stride = -(ptrdiff_t)itemsize, strides[] = {COLUMNS * stride, stride};
    fastopt_source_of(&source, grad + (COUNT - 1) * itemsize, itemsize, 2, shape, strides, 0);

    fastopt_rows rows = {.elements = COLUMNS, .matrix_rows = MATRIX_ROWS, .strip_rows = STRIP_ROWS};
    double *const columns = allocate(strips * fastopt_strip_size(&rows) * sizeof *columns);
    fastopt_tensor tensor = {
        .kernel = norm->sum_kernels[place][0],
        .call = {.size = sizeof tensor.call, .coefficients = &plain, .sums = sums},
        .count = COUNT,
        .source = &source,
        .stage = gradient == FASTOPT_FLOAT32 ? NULL : converter(gradient, FASTOPT_FLOAT32),
        .stage_scale = 1,
        .stage_limit = (double)INFINITY,
        .itemsizes = {4, (uint8_t)itemsize, 4},
        .sum_count = 1,
        .rows = &rows,
    };
    rows.column_kernel = norm->column_kernels[place][0];
    rows.columns = columns;
    if (threads)
        run(&tensor, threads);
    for (size_t k = 0; threads && k < ROWS; k++)
        check(sums[k] == lanes_added_up(dense + k * COLUMNS, COLUMNS), "the sum of a row");
    for (size_t strip = 0; threads && strip < strips; strip++) {
        const size_t first = strip * STRIP_ROWS, end = first + STRIP_ROWS < ROWS ? first + STRIP_ROWS : ROWS;
        for (size_t j = 0; j < COLUMNS; j++)
            for (size_t k = first; k < end;) {
                const size_t matrix = k / MATRIX_ROWS, place_of = matrix - first / MATRIX_ROWS;
                double total = 0;
                for (; k < end && k / MATRIX_ROWS == matrix; k++)
                    total += (double)dense[k * COLUMNS + j] * (double)dense[k * COLUMNS + j];
                check(total == columns[strip * fastopt_strip_size(&rows) + place_of * COLUMNS + j], "a column's sum");
            }
    }

    for (size_t k = 0; k < ROWS; k++) {
        const fastopt_call call = {
            .size = sizeof call,
            .buffers = {want + k * COLUMNS, dense + k * COLUMNS, NULL, column + k / MATRIX_ROWS * COLUMNS},
            .coefficients = &step,
            .factors = factors + 2 * k,
        };
        row->kernels[format_of("float32")][0](&call, 0, COLUMNS);
    }
    rows.columns = NULL;
    rows.factors = factors;
    rows.factor_count = 2;
    tensor.kernel = row->kernels[place][0];
    tensor.call.buffers[0] = got;
    tensor.call.buffers[3] = column;
    tensor.call.coefficients = &step;
    tensor.first_work = 3;
    tensor.sum_count = 0;
    run(&tensor, threads);
    check(!memcmp(want, got, COUNT * sizeof *want), "a step row by row");
    free(grad);
    free(dense);
    free(column);
    free(want);
    free(got);
    free(sums);
    free(factors);
    free(columns);
}

int main(int count, char **arguments)
{
    static const size_t counts[] = {0, 1, 15, 16, 17, 4095, 4096, 4097, 16383, 16384, 16385, 65537};
    table = fastopt_get_table(FASTOPT_ABI_VERSION, sizeof(fastopt_call));
    if (!table)
        return 2;
    for (isa = table->isas; isa->name; isa++) {
        if (count > 1 && strcmp(isa->name, arguments[1]))
            continue;
        check_converters();
        check_shares();
        for (int threads = 0; threads <= MOST_THREADS; threads++) {
            check_step(FASTOPT_FLOAT32, "float32", threads);
            check_step(FASTOPT_FLOAT64, "float32", threads); /* rounded on its way */
            check_step(FASTOPT_FLOAT16, "float32_float16_float32", threads);
            check_step(FASTOPT_BFLOAT16, "float32_bfloat16_float32", threads);
            check_rows(FASTOPT_FLOAT32, "float32", threads);
            check_rows(FASTOPT_BFLOAT16, "float32_bfloat16_float32", threads);
            for (int k = 0; k < 6; k++)
                check_write_back((const int[]){FASTOPT_FLOAT32, FASTOPT_FLOAT16, FASTOPT_BFLOAT16}[k / 2], k % 2,
                                 threads);
            for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
                check_sums(counts[k], FASTOPT_FLOAT32, "float32", threads);
                check_sums(counts[k], FASTOPT_BFLOAT16, "bfloat16_bfloat16_bfloat16", threads);
            }
        }
    }
    if (!failures)
        printf("tasks: right\n");
    return failures != 0;
}
