/* Tells ThreadSanitizer what libgomp does, to be preloaded: a region's threads begin after all that came
 * before it; none passes a barrier before all have come to it; what comes after the region begins when all
 * have ended. libgomp waits by system calls of its own, which the sanitizer does not see. Between these
 * nothing is ordered: there a race is a race. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#define LIBGOMP(function) ((__typeof__(function) *)dlsym(RTLD_NEXT, #function))

struct region {
    void (*run)(void *);
    void *data;
    char begin, barrier, end;
};

static _Thread_local struct region *current;

static void run(void *region)
{
    struct region *outer = current;
    current = region;
    __tsan_acquire(&current->begin);
    current->run(current->data);
    __tsan_release(&current->end);
    current = outer;
}

/* What gcc makes of a region, and of the end of a loop whose last index is kept. */
void GOMP_parallel(void (*)(void *), void *data, unsigned threads, unsigned flags);
void GOMP_barrier(void);

void GOMP_parallel(void (*body)(void *), void *data, unsigned threads, unsigned flags)
{
    struct region region = {.run = body, .data = data};
    __tsan_release(&region.begin);
    LIBGOMP(GOMP_parallel)(run, &region, threads, flags);
    __tsan_acquire(&region.end);
}

void GOMP_barrier(void)
{
    __tsan_release(&current->barrier);
    LIBGOMP(GOMP_barrier)();
    __tsan_acquire(&current->barrier);
}
