/* One step of many tensors: cut into tasks, shared between threads. Knows nothing of Python or OpenMP: the
 * caller makes the threads and calls fastopt_run_part in each.
 *
 *   work.tensors = …; work.tensor_count = …;
 *   allocate work.chunks, work.tasks and work.order for fastopt_most_chunks(&work), then fastopt_cut(&work, for_sums)
 *   before each step: set the tensors' kernels and calls
 *   fastopt_run_all(&work), or: team = fastopt_divide(&work, team), and fastopt_run_part(&work, 0 … team - 1)
 */
#ifndef FASTOPT_TASKS_H
#define FASTOPT_TASKS_H

#include "fastopt.h"

enum {
    FASTOPT_TASK = 16384, /* elements: enough that taking a task costs nothing, few enough that threads end together */
    /* elements that one loop after the other takes at once, where gradients are gathered or converted before the kernel or
     * passes follow it: few, so that all of them read memory in turn and it is always busy */
    FASTOPT_STAGE = 512,
    FASTOPT_MAX_AXES = 64
};

/* A gradient that does not lie in memory as its parameter does. Axes are in the parameter's memory order,
 * slowest first; neighbouring ones that can be walked as one are one. Strides are in bytes. */
typedef struct {
    const char *data; /* element 0 */
    size_t itemsize;
    int ndim;
    size_t shape[FASTOPT_MAX_AXES];
    ptrdiff_t strides[FASTOPT_MAX_AXES];
} fastopt_source;

/* Describes a gradient whose shape and strides come in index order, as in a Py_buffer. fortran: whether the
 * parameter lies in Fortran order. The data need not be aligned. */
void fastopt_source_of(fastopt_source *source, const void *data, size_t itemsize, int ndim,
                       const ptrdiff_t *shape, const ptrdiff_t *strides, int fortran);

/* One pass before or after the update of a tensor, on elements that lie in the core's cache. */
typedef struct {
    fastopt_kernel kernel;       /* of auxiliary.def; NULL: the parameter is copied to buffers[2] by `converter` */
    fastopt_converter converter;
    fastopt_call call;           /* of the whole tensor; buffers[1] is not read */
    uint8_t itemsizes[3];        /* bytes of an element of buffers[0], of nothing, and of buffers[2] */
} fastopt_pass;

/* The rows of a parameter that a step changes: of the others nothing is read or written. Each lies in memory in one
 * piece, and is a tensor of its own: it may have FACTORS of its own, and in sum mode its blocks are counted from its
 * first element. */
typedef struct {
    const int64_t *numbers; /* of the rows, each once; NULL: all of them */
    size_t elements;        /* of a row */
    const double *factors;  /* NULL, or factor_count FACTORS for each of these rows */
    int factor_count;
    size_t matrix_rows;     /* 0, or so many rows are a matrix, all of whose rows have the same COLUMNS */
    /* NULL, or in sum mode the kernel that adds up numbers of each column, and the room for its sums. A strip of rows is
     * one task, and has sums of its own: for each matrix in which it lies, `elements` of them. */
    fastopt_kernel column_kernel;
    double *columns;
    size_t strip_rows;
    /* NULL, or for each of these rows the place in `missed` of the first step that it has missed. It makes up for that
     * one and all behind it, with a gradient of `zeros`, before the step itself. */
    const size_t *first_missed;
    const fastopt_coefficients *missed;
    size_t missed_count;
    const void *zeros; /* as many bytes as a row of the gradient has */
} fastopt_rows;

/* One tensor of one step. All that is not set is 0.
 *
 * A task first puts its part of the gradient into the thread's scratch memory, where `source` or `stage` asks for
 * that; then it calls the kernel; then it makes the passes; then it writes zeros into the gradient. In sum mode
 * (sum_count is not 0) it ends with the kernel. */
typedef struct {
    fastopt_kernel kernel; /* NULL: no update */
    fastopt_call call;     /* buffers[1] may be NULL where there is a source */
    size_t count;          /* elements */
    const fastopt_source *source; /* NULL, or where the gradient lies if not in buffers[1] in the parameter's order */
    /* NULL, or what converts the gradient to what the kernel takes: to float64 where itemsizes[0] is 8, else to
     * float32. It also multiplies by stage_scale and clips to ±stage_limit. */
    fastopt_converter stage;
    double stage_scale, stage_limit;
    const fastopt_pass *before; /* NULL, or what changes the staged gradient, its buffers[2], before the kernel */
    fastopt_converter write_back; /* NULL, or what puts the staged gradient back where it came from */
    const fastopt_pass *passes;
    int pass_count;
    uint8_t zero_gradient; /* whether zeros are written into the gradient, or instead of it into `zeros` */
    const fastopt_source *zeros;
    uint8_t itemsizes[3];  /* bytes of an element of parameter, gradient (before `stage`) and states */
    uint8_t first_work;    /* 0, or the first of the buffers whose elements have the type of the arithmetic */
    uint16_t sum_count;    /* in sum mode, how many numbers FASTOPT_SUM_BLOCK elements are added up to; else 0 */
    /* NULL, or the rows to change: then `count` is that of the elements of these rows, which lie side by side in the
     * gradient, while the other buffers are the whole parameter's. Rows that have numbers have no source and no pass. */
    const fastopt_rows *rows;
    size_t source_begin;   /* the number, in `source`, of element 0 */
} fastopt_tensor;

/* Bytes of an element of a buffer. */
size_t fastopt_itemsize(const fastopt_tensor *tensor, int buffer);

/* The part of a tensor that lies in one task. */
typedef struct {
    fastopt_tensor *tensor;
    size_t begin, end;
} fastopt_chunk;

/* The tasks of one thread: work.order[first …], of which those before `next` were taken. */
typedef struct {
    size_t first, next, end;
    char apart[104]; /* two cache lines, so that threads do not wait for each other's writes */
} fastopt_part;

typedef struct {
    fastopt_tensor *const *tensors;
    size_t tensor_count;
    fastopt_chunk *chunks;     /* room for fastopt_most_chunks() */
    size_t *tasks;             /* room for one more; task k is chunks[tasks[k]] up to chunks[tasks[k + 1]] */
    size_t task_count;
    size_t *order;             /* room for fastopt_most_chunks(): the tasks of the first thread, of the second, … */
    int order_team;            /* the team for which they are in order; 0: for none */
    fastopt_part *parts;       /* room for the largest team; one thread needs none */
    int team;
    char *scratch;             /* room for fastopt_scratch_size() times the team; NULL if that is 0 */
    size_t scratch_size;       /* bytes a thread */
    int flush_subnormals;      /* whether numbers below the normal ones are taken for zero */
    uint64_t floating_mode;    /* the caller's, in which all threads compute */
} fastopt_work;

/* How many blocks of sums a tensor has. */
static inline size_t fastopt_blocks_of(const fastopt_tensor *tensor)
{
    const size_t elements = tensor->rows ? tensor->rows->elements : tensor->count;
    const size_t blocks = (elements + FASTOPT_SUM_BLOCK - 1) / FASTOPT_SUM_BLOCK;
    return tensor->rows && elements ? tensor->count / elements * blocks : blocks;
}

/* How many numbers a strip of rows has for its columns. */
size_t fastopt_strip_size(const fastopt_rows *rows);

/* The most chunks that the tensors' counts can be cut into, whatever their addresses. */
size_t fastopt_most_chunks(const fastopt_work *work);

/* Cuts the tensors into tasks. for_sums: at multiples of FASTOPT_SUM_BLOCK elements, as sum mode needs it;
 * else where the parameter meets a cache line. Depends on counts, itemsizes and the parameters' addresses. */
void fastopt_cut(fastopt_work *work, int for_sums);

/* Bytes of scratch memory that a thread needs: 0 where no gradient is gathered or converted. */
size_t fastopt_scratch_size(const fastopt_work *work);

/* Gives each thread of a team its tasks, and records the calling thread's floating-point mode. Returns the
 * number of threads that there are tasks for, at most `team`. To be called before every run by a team. */
int fastopt_divide(fastopt_work *work, int team);

/* One thread's share: its own tasks, then those that other threads have not begun. Several numbers may be run
 * by one thread, one after the other. */
void fastopt_run_part(fastopt_work *work, int own);

/* One tensor on the calling thread, in its own floating-point mode, but no sums of rows; with 64 KiB of the stack for a gradient that is
 * gathered or converted. */
void fastopt_run_tensor(const fastopt_tensor *tensor);

/* All tasks on the calling thread. */
void fastopt_run_all(fastopt_work *work);

/* The processor's floating-point mode: rounding, and whether subnormal numbers are flushed to zero. */
uint64_t fastopt_get_floating_mode(void);
void fastopt_set_floating_mode(uint64_t mode);
uint64_t fastopt_flush_subnormals(void); /* until the mode that it returns is set again */

/* How many of n threads can be made at this moment, all alive at once, with the stacks that OpenMP would give
 * them. libgomp ends the process when it cannot make a thread, so ask first. places: NULL, or the CPUs of each
 * place to which OpenMP binds threads, each preceded by their number, and a 0 at the end: where the process may
 * no longer run on the CPUs of a place, no thread can be made. */
int fastopt_threads_can_start(int n, const int *places);

#endif
