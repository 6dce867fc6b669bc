# Room that grows. Included by _plan.pyx.


cdef int grow(void **room, size_t *capacity, size_t count, size_t itemsize) except -1:
    """Makes room for at least so many items, more than were asked for, so that it seldom has to. The items stay."""
    cdef void *larger
    if count <= capacity[0]:
        return 0
    larger = calloc(2 * count, itemsize)
    if larger == NULL:
        raise MemoryError
    if room[0] != NULL:
        memcpy(larger, room[0], capacity[0] * itemsize)
        free(room[0])
    room[0], capacity[0] = larger, 2 * count
    return 0
