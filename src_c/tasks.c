/* One step of many tensors, cut into tasks, and one thread's share of them.
 *
 * A thread has the same part of the tasks in every step, because it finds that in its caches, and two threads'
 * caches may lie far apart. A thread that has finished its own tasks takes tasks from the others, so that one
 * that lost its core for a while delays the step by a task at most. */

#define _GNU_SOURCE /* sched_setaffinity */

#include "tasks.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* -- Cutting -- */

enum { CACHE_LINE = 64 };

size_t fastopt_most_chunks(const fastopt_work *work)
{
    size_t most = 2 * work->tensor_count + 2;
    for (size_t i = 0; i < work->tensor_count; i++)
        most += work->tensors[i]->count / (FASTOPT_TASK / 2) + 1;
    return most;
}

/* How many elements the end of a chunk lies behind the last place where a tensor may be cut. Large tensors are
 * cut where the parameter meets a cache line, so that only their first chunk pays for vectors that straddle two
 * lines: NumPy aligns to 16 bytes. */
static size_t beyond_cut(const fastopt_tensor *tensor, size_t end, int for_sums)
{
    if (for_sums)
        return (tensor->rows ? end % tensor->rows->elements : end) % FASTOPT_SUM_BLOCK;
    const size_t itemsize = tensor->itemsizes[0];
    return ((uintptr_t)tensor->call.buffers[0] + end * itemsize) % CACHE_LINE / itemsize;
}

size_t fastopt_strip_size(const fastopt_rows *rows)
{
    const size_t most_matrices = (rows->strip_rows + rows->matrix_rows - 2) / rows->matrix_rows + 1;
    return most_matrices * rows->elements;
}

void fastopt_cut(fastopt_work *work, int for_sums)
{
    size_t chunks = 0, filled = 0; /* elements in the task that is being made */
    work->task_count = 0;
    work->order_team = 0;
    work->tasks[0] = 0;
    for (size_t i = 0; i < work->tensor_count; i++) {
        fastopt_tensor *const tensor = work->tensors[i];
        size_t position = 0;
        while (position < tensor->count) {
            const size_t rest = tensor->count - position;
            size_t take = rest;
            if (tensor->rows && tensor->rows->columns) {
                const size_t strip = tensor->rows->strip_rows * tensor->rows->elements;
                take = filled ? 0 : rest < strip ? rest : strip;
            } else if (take > FASTOPT_TASK - filled) {
                take = FASTOPT_TASK - filled;
                const size_t beyond = beyond_cut(tensor, position + take, for_sums);
                take = take > beyond ? take - beyond : 0;
            }
            if (take) {
                work->chunks[chunks++] = (fastopt_chunk){tensor, position, position + take};
                position += take;
                filled += take;
            }
            if (take < rest || filled >= FASTOPT_TASK - CACHE_LINE) {
                work->tasks[++work->task_count] = chunks;
                filled = 0;
            }
        }
    }
    if (filled)
        work->tasks[++work->task_count] = chunks;
}

/* -- Gradients in another layout -- */

void fastopt_source_of(fastopt_source *source, const void *data, size_t itemsize, int ndim,
                       const ptrdiff_t *shape, const ptrdiff_t *strides, int fortran)
{
    source->data = data;
    source->itemsize = itemsize;
    source->ndim = 0;
    for (int k = 0; k < ndim; k++) {
        const int axis = fortran ? ndim - 1 - k : k;
        const int last = source->ndim - 1;
        if (shape[axis] == 1)
            continue;
        if (last >= 0 && source->strides[last] == strides[axis] * shape[axis]) {
            source->shape[last] *= (size_t)shape[axis]; /* walked as one with the axis before */
            source->strides[last] = strides[axis];
            continue;
        }
        source->shape[source->ndim] = (size_t)shape[axis];
        source->strides[source->ndim] = strides[axis];
        source->ndim++;
    }
}

typedef enum { GATHER, SCATTER, CLEAR } motion;

/* Elements that lie `stride` bytes apart, from or to others side by side; itemsize and what are constants wherever
 * this is inlined. */
static inline __attribute__((always_inline)) void move_items(
    motion what, char *apart, ptrdiff_t stride, char *dense, size_t count, size_t itemsize)
{
    for (size_t i = 0; i < count; i++) { /* they may be unaligned */
        char *const item = apart + (ptrdiff_t)i * stride;
        if (what == GATHER)
            memcpy(dense + i * itemsize, item, itemsize);
        else if (what == SCATTER)
            memcpy(item, dense + i * itemsize, itemsize);
        else
            memset(item, 0, itemsize);
    }
}

static inline __attribute__((always_inline)) void move_run(
    motion what, char *apart, ptrdiff_t stride, char *dense, size_t count, size_t itemsize)
{
    if (stride == (ptrdiff_t)itemsize) {
        if (what == GATHER)
            memcpy(dense, apart, count * itemsize);
        else if (what == SCATTER)
            memcpy(apart, dense, count * itemsize);
        else
            memset(apart, 0, count * itemsize);
    } else if (itemsize == 2)
        move_items(what, apart, stride, dense, count, 2);
    else if (itemsize == 4)
        move_items(what, apart, stride, dense, count, 4);
    else
        move_items(what, apart, stride, dense, count, 8);
}

/* Walks the elements begin <= i < end, numbered in the parameter's memory order. */
static inline __attribute__((always_inline)) void move_elements(
    motion what, const fastopt_source *source, size_t begin, size_t end, char *dense)
{
    const int last = source->ndim - 1;
    size_t index[FASTOPT_MAX_AXES];
    char *apart = (char *)source->data; /* read-only but where the caller asks for writes */

    if (last < 0) { /* one element */
        move_run(what, apart, (ptrdiff_t)source->itemsize, dense, end - begin, source->itemsize);
        return;
    }
    for (size_t rest = begin, k = source->ndim; k-- > 0; rest /= source->shape[k]) {
        index[k] = rest % source->shape[k];
        apart += (ptrdiff_t)index[k] * source->strides[k];
    }
    while (begin < end) {
        size_t run = source->shape[last] - index[last];
        if (run > end - begin)
            run = end - begin;
        move_run(what, apart, source->strides[last], dense, run, source->itemsize);
        if (what != CLEAR)
            dense += run * source->itemsize;
        begin += run;
        apart += (ptrdiff_t)run * source->strides[last];
        index[last] += run;
        for (int k = last; k > 0 && index[k] == source->shape[k]; k--) {
            apart += source->strides[k - 1] - (ptrdiff_t)source->shape[k] * source->strides[k];
            index[k] = 0;
            index[k - 1]++;
        }
    }
}

static void gather(const fastopt_source *source, size_t begin, size_t end, char *to)
{
    move_elements(GATHER, source, begin, end, to);
}

static void scatter(const fastopt_source *source, size_t begin, size_t end, const char *from)
{
    move_elements(SCATTER, source, begin, end, (char *)from);
}

static void clear(const fastopt_source *source, size_t begin, size_t end)
{
    move_elements(CLEAR, source, begin, end, NULL);
}

/* -- Gradients that a kernel does not read where they lie -- */

enum { SCRATCH_ALIGNMENT = 64 };

/* Elements that are staged at once. In sum mode those that are added up to one number. */
static size_t stage_of(const fastopt_tensor *tensor)
{
    return tensor->sum_count ? FASTOPT_SUM_BLOCK : FASTOPT_STAGE;
}

static size_t staged_itemsize(const fastopt_tensor *tensor)
{
    return tensor->itemsizes[0] == 8 ? 8 : 4;
}

static int is_staged(const fastopt_tensor *tensor)
{
    return (tensor->kernel || tensor->write_back) && (tensor->source || tensor->stage);
}

size_t fastopt_scratch_size(const fastopt_work *work)
{
    size_t largest = 0;
    for (size_t i = 0; i < work->tensor_count; i++) {
        const fastopt_tensor *tensor = work->tensors[i];
        size_t size = 0;
        if (is_staged(tensor)) {
            size += tensor->source ? tensor->source->itemsize : 0;
            size += tensor->stage ? staged_itemsize(tensor) : 0;
            size *= stage_of(tensor);
        }
        if (size > largest)
            largest = size;
    }
    return largest ? largest + SCRATCH_ALIGNMENT : 0;
}

size_t fastopt_itemsize(const fastopt_tensor *tensor, int buffer)
{
    if (tensor->first_work && buffer >= tensor->first_work)
        return staged_itemsize(tensor);
    return tensor->itemsizes[buffer < 2 ? buffer : 2];
}

/* The kernel, on buffers that begin with element `begin`, as the gradient does. */
static void call_at(const fastopt_tensor *tensor, size_t begin, size_t end, char *gradient)
{
    fastopt_call call = tensor->call;
    for (int k = 0; k < FASTOPT_MAX_BUFFERS; k++)
        if (call.buffers[k])
            call.buffers[k] = (char *)call.buffers[k] + begin * fastopt_itemsize(tensor, k);
    call.buffers[1] = gradient;
    call.first_element += begin;
    if (call.sums)
        call.sums += begin / FASTOPT_SUM_BLOCK * tensor->sum_count;
    tensor->kernel(&call, 0, end - begin);
}

/* What changes `count` elements of a staged gradient, which begins with element `begin` of the tensor. */
static void call_before(const fastopt_tensor *tensor, size_t begin, size_t count, char *gradient)
{
    fastopt_call call = tensor->before->call;
    call.buffers[0] = (char *)tensor->call.buffers[0] + begin * tensor->itemsizes[0];
    call.buffers[2] = gradient;
    tensor->before->kernel(&call, 0, count);
}

static void run_staged(const fastopt_tensor *tensor, size_t begin, size_t chunk_end, char *scratch)
{
    const fastopt_source *const source = tensor->source;
    const size_t itemsize = source ? source->itemsize : tensor->itemsizes[1];
    const int writes_back = tensor->write_back && !tensor->sum_count;
    char *const gathered = scratch + -(uintptr_t)scratch % SCRATCH_ALIGNMENT;
    char *const staged = gathered + (source ? stage_of(tensor) * itemsize : 0);

    for (size_t end; begin < chunk_end; begin = end) {
        const size_t rest = chunk_end - begin, count = rest < stage_of(tensor) ? rest : stage_of(tensor);
        char *gradient = gathered;
        end = begin + count;
        if (source)
            gather(source, tensor->source_begin + begin, tensor->source_begin + end, gathered);
        else
            gradient = (char *)tensor->call.buffers[1] + begin * itemsize;
        if (tensor->stage) {
            char *const found = gradient;
            gradient = staged;
            tensor->stage(staged, found, count, tensor->stage_scale, tensor->stage_limit);
            if (writes_back) {
                tensor->write_back(found, staged, count, 1, (double)INFINITY);
                if (source)
                    scatter(source, tensor->source_begin + begin, tensor->source_begin + end, found);
            }
        }
        if (tensor->before)
            call_before(tensor, begin, count, gradient);
        if (tensor->kernel)
            call_at(tensor, begin, end, gradient);
    }
}

/* -- The floating-point mode -- */

#if defined(__x86_64__)
enum { FLUSH = 0x8040, STATUS = 0x3f }; /* of MXCSR: flush to zero and denormals are zero; what has happened */

uint64_t fastopt_get_floating_mode(void)
{
    uint32_t mode;
    __asm__ volatile("stmxcsr %0" : "=m"(mode));
    return mode;
}

void fastopt_set_floating_mode(uint64_t mode)
{
    const uint32_t low = (uint32_t)mode;
    __asm__ volatile("ldmxcsr %0" : : "m"(low));
}
#elif defined(__aarch64__)
enum { FLUSH = 1 << 24, STATUS = 0 }; /* of FPCR: flush to zero */

uint64_t fastopt_get_floating_mode(void)
{
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}

void fastopt_set_floating_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else /* a processor whose mode is not known here: threads compute in the mode that they were made with */
enum { FLUSH = 0, STATUS = 0 };

uint64_t fastopt_get_floating_mode(void) { return 0; }
void fastopt_set_floating_mode(uint64_t mode) { (void)mode; }
#endif

uint64_t fastopt_flush_subnormals(void)
{
    const uint64_t before = fastopt_get_floating_mode();
    fastopt_set_floating_mode(before | FLUSH);
    return before;
}

/* -- Running -- */

/* The passes that follow the update, while the elements lie in the core's cache. */
static void run_passes(const fastopt_tensor *tensor, size_t begin, size_t end)
{
    for (int k = 0; k < tensor->pass_count; k++) {
        const fastopt_pass *const pass = &tensor->passes[k];
        void *const *const buffers = pass->call.buffers;
        if (pass->kernel)
            pass->kernel(&pass->call, begin, end);
        else
            pass->converter((char *)buffers[2] + begin * pass->itemsizes[2],
                            (const char *)buffers[0] + begin * pass->itemsizes[0], end - begin, 1, (double)INFINITY);
    }
    if (tensor->zero_gradient) {
        const fastopt_source *const where = tensor->zeros ? tensor->zeros : tensor->source;
        const size_t itemsize = tensor->itemsizes[1];
        if (where)
            clear(where, begin, end);
        else
            memset((char *)tensor->call.buffers[1] + begin * itemsize, 0, (end - begin) * itemsize);
    }
}

static void run_update(const fastopt_tensor *tensor, size_t begin, size_t end, char *scratch)
{
    if (is_staged(tensor))
        run_staged(tensor, begin, end, scratch);
    else if (tensor->kernel)
        tensor->kernel(&tensor->call, begin, end);
}

enum { AHEAD = 4 }; /* rows: as long as it takes to fetch one */

/* Asks for the memory of a row: rows lie anywhere, so that the processor does not foresee the next one. */
static inline void prefetch_row(const fastopt_tensor *tensor, int64_t number)
{
    enum { MOST = 8 * CACHE_LINE };
    for (int b = 0; b < FASTOPT_MAX_BUFFERS; b++)
        if (b != 1 && tensor->call.buffers[b]) {
            const size_t size = tensor->rows->elements * fastopt_itemsize(tensor, b);
            const char *const row = (const char *)tensor->call.buffers[b] + (size_t)number * size;
            for (size_t at = 0; at < size && at < MOST; at += CACHE_LINE)
                __builtin_prefetch(row + at, 1);
        }
}

/* Adds up the columns of a row, the number `k`, of a strip that begins with the element `strip_begin`. */
static void add_columns(const fastopt_tensor *row, const fastopt_rows *rows, size_t k, size_t strip_begin, char *scratch)
{
    const size_t first_row = strip_begin / rows->elements, strip = first_row / rows->strip_rows;
    const size_t matrix = k / rows->matrix_rows - first_row / rows->matrix_rows;
    fastopt_tensor columns = *row;
    columns.kernel = rows->column_kernel;
    columns.sum_count = FASTOPT_SUM_BLOCK;
    columns.call.sums = rows->columns + strip * fastopt_strip_size(rows) + matrix * rows->elements;
    run_update(&columns, 0, rows->elements, scratch);
}

/* The elements begin <= i < end of a tensor's rows: each row is a tensor of its own. */
static void run_rows(const fastopt_tensor *tensor, size_t begin, size_t end, char *scratch)
{
    const fastopt_rows *const rows = tensor->rows;
    const size_t elements = rows->elements, blocks = (elements + FASTOPT_SUM_BLOCK - 1) / FASTOPT_SUM_BLOCK;
    const size_t chunk_begin = begin;
    fastopt_tensor row = *tensor;
    row.rows = NULL;
    for (size_t k = begin / elements; begin < end; k++) {
        const size_t before = k * elements, rest = end - before;
        const size_t row_begin = begin - before, row_end = rest < elements ? rest : elements;
        const size_t skipped = (rows->numbers ? (size_t)rows->numbers[k] : k) * elements;
        const size_t skipped_columns = rows->matrix_rows ? k / rows->matrix_rows * elements : skipped;
        if (rows->numbers && before + AHEAD * elements < end)
            prefetch_row(tensor, rows->numbers[k + AHEAD]);
        for (int b = 0; b < FASTOPT_MAX_BUFFERS; b++)
            if (tensor->call.buffers[b]) {
                const int is_column = tensor->first_work && b >= tensor->first_work;
                row.call.buffers[b] = (char *)tensor->call.buffers[b]
                                      + (is_column ? skipped_columns : skipped) * fastopt_itemsize(tensor, b);
            }
        row.call.first_element = tensor->call.first_element + skipped;
        row.source_begin = skipped;
        if (rows->factors)
            row.call.factors = rows->factors + k * (size_t)rows->factor_count;
        if (tensor->sum_count)
            row.call.sums = tensor->call.sums + k * blocks * tensor->sum_count;
        if (rows->first_missed) {
            row.call.buffers[1] = (void *)rows->zeros;
            for (size_t m = rows->first_missed[k]; m < rows->missed_count; m++) {
                row.call.coefficients = &rows->missed[m];
                run_update(&row, row_begin, row_end, scratch);
            }
            row.call.coefficients = tensor->call.coefficients;
        }
        row.call.buffers[1] = (char *)tensor->call.buffers[1] + before * tensor->itemsizes[1];
        run_update(&row, row_begin, row_end, scratch);
        if (rows->columns)
            add_columns(&row, rows, k, chunk_begin, scratch);
        begin = before + row_end;
    }
}

static __attribute__((noinline)) void run_with_extras(
    const fastopt_tensor *tensor, size_t begin, size_t end, char *scratch)
{
    const size_t step = tensor->rows || tensor->sum_count ? end - begin : FASTOPT_STAGE;
    for (size_t stop; begin < end; begin = stop) {
        stop = end - begin < step ? end : begin + step;
        if (tensor->rows)
            run_rows(tensor, begin, stop, scratch);
        else
            run_update(tensor, begin, stop, scratch);
        if (!tensor->sum_count)
            run_passes(tensor, begin, stop);
    }
}

static inline void run_elements(const fastopt_tensor *tensor, size_t begin, size_t end, char *scratch)
{
    /* one branch, because it counts where a model has many small tensors */
    const uintptr_t extras = (uintptr_t)tensor->source | (uintptr_t)tensor->stage | (uintptr_t)tensor->pass_count
                             | (uintptr_t)tensor->rows | tensor->zero_gradient | !tensor->kernel;
    if (extras)
        run_with_extras(tensor, begin, end, scratch);
    else
        tensor->kernel(&tensor->call, begin, end);
}

static void run_task(const fastopt_work *work, size_t task, char *scratch)
{
    const fastopt_chunk *chunk = work->chunks + work->tasks[task];
    const fastopt_chunk *const end = work->chunks + work->tasks[task + 1];
    for (; chunk < end; chunk++)
        run_elements(chunk->tensor, chunk->begin, chunk->end, scratch);
}

static void run_tensor(const fastopt_tensor *tensor, char *scratch)
{
    for (size_t begin = 0; begin < tensor->count; begin += FASTOPT_TASK) {
        const size_t rest = tensor->count - begin;
        run_elements(tensor, begin, begin + (rest < FASTOPT_TASK ? rest : FASTOPT_TASK), scratch);
    }
}

static __attribute__((noinline)) void run_tensor_on_the_stack(const fastopt_tensor *tensor)
{
    char scratch[2 * FASTOPT_SUM_BLOCK * 8 + SCRATCH_ALIGNMENT];
    run_tensor(tensor, scratch);
}

void fastopt_run_tensor(const fastopt_tensor *tensor)
{
    if (is_staged(tensor))
        run_tensor_on_the_stack(tensor);
    else
        run_tensor(tensor, NULL);
}

/* Makes the calling thread compute in a mode; returns the one that it had. */
static uint64_t enter_mode(const fastopt_work *work, uint64_t mode)
{
    const uint64_t before = fastopt_get_floating_mode();
    const uint64_t wanted = (mode | (work->flush_subnormals ? FLUSH : 0)) & ~(uint64_t)STATUS;
    if ((before & ~(uint64_t)STATUS) != wanted)
        fastopt_set_floating_mode(wanted);
    return before;
}

static void leave_mode(uint64_t before)
{
    if ((fastopt_get_floating_mode() ^ before) & ~(uint64_t)STATUS)
        fastopt_set_floating_mode(before);
}

static const fastopt_tensor *tensor_of(const fastopt_work *work, size_t task)
{
    return work->chunks[work->tasks[task]].tensor;
}

static int is_large(const fastopt_tensor *tensor, size_t team)
{
    return tensor->count >= 4 * team * FASTOPT_TASK;
}

/* How many tasks are divided as one, of those from `first` on: a large tensor, or the small ones before the next large
 * one. Each small one divided would be slower: a core fetches what lies behind a thread's part of the memory, too. */
static size_t tasks_to_divide(const fastopt_work *work, size_t first, size_t team)
{
    const fastopt_tensor *const tensor = tensor_of(work, first);
    size_t end = first + 1;
    for (; end < work->task_count; end++) {
        const fastopt_tensor *const next = tensor_of(work, end);
        if (next != tensor && (is_large(tensor, team) || is_large(next, team)))
            break;
    }
    return end - first;
}

/* Divides every large tensor between the threads, as the matrix products before and after a step divide it: so a core
 * finds much of what they left in its own cache, which it reads many times as fast as one that lies far away. */
static void order_tasks(fastopt_work *work, size_t team)
{
    size_t ordered = 0;
    for (size_t k = 0; k < team; k++) {
        work->parts[k].first = ordered;
        for (size_t first = 0, count; first < work->task_count; first += count) {
            const size_t shift = first % team; /* what does not come out even goes to each thread in turn */
            count = tasks_to_divide(work, first, team);
            const size_t end = ((k + 1) * count + shift) / team;
            for (size_t i = (k * count + shift) / team; i < end; i++)
                work->order[ordered++] = first + i;
        }
        work->parts[k].end = ordered;
    }
    work->order_team = (int)team;
}

int fastopt_divide(fastopt_work *work, int team)
{
    if ((size_t)team > work->task_count)
        team = (int)work->task_count;
    if (work->order_team != team)
        order_tasks(work, (size_t)team);
    for (int k = 0; k < team; k++)
        work->parts[k].next = work->parts[k].first;
    work->floating_mode = fastopt_get_floating_mode();
    return work->team = team;
}

void fastopt_run_part(fastopt_work *work, int own)
{
    char *const scratch = work->scratch ? work->scratch + (size_t)own * work->scratch_size : NULL;
    const uint64_t before = enter_mode(work, work->floating_mode);
    for (int k = 0; k < work->team; k++) {
        fastopt_part *const part = &work->parts[(own + k) % work->team];
        /* Looked at first: threads that all write to a part in which nothing is left wait for each other. */
        while (__atomic_load_n(&part->next, __ATOMIC_RELAXED) < part->end) {
            const size_t taken = __atomic_fetch_add(&part->next, 1, __ATOMIC_RELAXED);
            if (taken < part->end)
                run_task(work, work->order[taken], scratch);
        }
    }
    leave_mode(before);
}

void fastopt_run_all(fastopt_work *work)
{
    const uint64_t before = enter_mode(work, fastopt_get_floating_mode());
    for (size_t task = 0; task < work->task_count; task++)
        run_task(work, task, work->scratch);
    leave_mode(before);
}

/* -- Threads that can be made -- */

/* Reads a size as libgomp does: a number, then perhaps one of B, K, M and G; K without. */
static int read_stack_size(const char *name, size_t *size)
{
    const char *text = getenv(name);
    char *end;
    int shift = 10;
    if (!text)
        return 0;
    errno = 0;
    const unsigned long value = strtoul(text, &end, 10);
    if (errno || end == text)
        return 0;
    while (isspace((unsigned char)*end))
        end++;
    if (*end) {
        const char *const units = "bkmg", *const unit = strchr(units, tolower((unsigned char)*end));
        if (!unit)
            return 0;
        shift = 10 * (int)(unit - units);
        for (end++; isspace((unsigned char)*end); end++)
            ;
    }
    if (*end || value > ULONG_MAX >> shift)
        return 0;
    *size = (size_t)value << shift;
    return 1;
}

typedef struct {
    pthread_mutex_t gate; /* closed until all threads have been made */
    const int *places;
    int can_bind;
} probe;

static void *wait_for_gate(void *of)
{
    probe *const all = of;
    pthread_mutex_lock(&all->gate);
    pthread_mutex_unlock(&all->gate);
    return NULL;
}

/* The first of the threads tries the places, as OpenMP's threads are bound when they are made. */
static void *try_places(void *of)
{
    probe *const all = of;
#ifdef __linux__
    for (const int *place = all->places; place && *place; place += 1 + *place) {
        int last = 0;
        for (int k = 1; k <= *place; k++)
            last = place[k] > last ? place[k] : last;
        cpu_set_t *const cpus = CPU_ALLOC((size_t)last + 1);
        if (!cpus) {
            all->can_bind = 0;
            break;
        }
        const size_t size = CPU_ALLOC_SIZE((size_t)last + 1);
        CPU_ZERO_S(size, cpus);
        for (int k = 1; k <= *place; k++)
            CPU_SET_S((size_t)place[k], size, cpus);
        if (sched_setaffinity(0, size, cpus))
            all->can_bind = 0;
        CPU_FREE(cpus);
    }
#endif
    return wait_for_gate(all);
}

int fastopt_threads_can_start(int n, const int *places)
{
    probe all_threads = {PTHREAD_MUTEX_INITIALIZER, places, 1};
    pthread_attr_t attributes;
    sigset_t all, before;
    size_t stack_size;
    int made = 0;
    pthread_t *const threads = n > 0 ? malloc((size_t)n * sizeof *threads) : NULL;

    if (!threads)
        return 0;
    if (pthread_attr_init(&attributes)) {
        free(threads);
        return 0;
    }
    if (read_stack_size("OMP_STACKSIZE", &stack_size) || read_stack_size("GOMP_STACKSIZE", &stack_size))
        pthread_attr_setstacksize(&attributes, stack_size); /* a size that it refuses is one that libgomp ignores */
    sigfillset(&all); /* no signal of the process is to be handled by one of these threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_mutex_lock(&all_threads.gate);
    while (made < n
           && !pthread_create(&threads[made], &attributes, made ? wait_for_gate : try_places, &all_threads))
        made++;
    /* OpenMP also takes memory for a team, and ends the process where there is none */
    void *volatile memory = malloc(4096 + 1024 * (size_t)n);
    const int enough = memory != NULL;
    free(memory);
    pthread_mutex_unlock(&all_threads.gate);
    for (int k = 0; k < made; k++)
        pthread_join(threads[k], NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_mutex_destroy(&all_threads.gate);
    pthread_attr_destroy(&attributes);
    free(threads);
    return enough && all_threads.can_bind ? made : 0;
}
