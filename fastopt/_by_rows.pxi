# Parameters that are updated row by row, each row with factors of its own. Included by _plan.pyx.

cdef enum:
    STRIP_ROWS = 64  # columns are added up over strips of at least so many rows
    STRIP_ELEMENTS = 65536  # and of at least so many elements


cdef int take_row_factors(fastopt_rows *rows, object factors, object found) except -1:
    """Writes what a hook of the algorithm has returned, for each factor one number, or one for each row, into an array
    (rows, factors), from which the kernels take it."""
    n = factors.shape[1]
    if len(found) != n:
        raise ValueError(f"prepare_rows must return {n} factors, got {len(found)}")
    for k in range(n):
        if found[k] is not None:
            factors[:, k] = np.ravel(found[k])
    rows.factors, rows.factor_count = <const double *>cnp.PyArray_DATA(<cnp.ndarray>factors), n
    return 0


@cython.final
cdef class ByRows:
    """The rows of one parameter: the states that `Algorithm.vectors` names, and the factors of each row in one step.

    A row goes along the last axis, and a matrix along the last two. pending: what the states become when the step has
    been made. columns: the row of the table's COLUMNS, by their letters.
    """

    cdef:
        readonly dict vectors
        dict pending, columns
        fastopt_rows rows
        cnp.ndarray factors  # of row i and factor k: factors[i, k]
        size_t count
        tuple row_shape, column_shape  # the parameter's, with 1 in the place of its columns, or of its rows

    def __init__(self, algorithm, object shape, dict vectors, bint is_wide):
        cdef Py_ssize_t n = len(TABLE[algorithm.formula]["factors"]), rank = len(shape)
        letters = TABLE[algorithm.formula]["columns"]
        self.vectors = {letter: np.zeros(size) for letter, size in vectors.items()}
        self.row_shape, self.column_shape = (*shape[: rank - 1], 1), (*shape[: rank - 2], 1, shape[rank - 1])
        self.count, self.rows.elements = math.prod(self.row_shape), shape[rank - 1]
        self.columns = {
            letter: np.ones(self.column_shape, np.float64 if is_wide else np.float32) for letter in letters
        }
        self.rows.matrix_rows = max(<size_t>1, <size_t>shape[rank - 2]) if letters else 0
        self.factors = np.empty((self.count, n))
        take_row_factors(&self.rows, self.factors, [1.0] * n)

    cdef void commit(self) noexcept:
        """Makes the states what the step made of them."""
        for letter, values in self.pending.items():
            memcpy(
                cnp.PyArray_DATA(<cnp.ndarray>self.vectors[letter]), cnp.PyArray_DATA(<cnp.ndarray>values),
                cnp.PyArray_NBYTES(<cnp.ndarray>values),
            )


cdef class ColumnSums:
    """The sums over the columns of a parameter's matrices: those of each strip of rows, then all strips in order."""

    cdef double *sums
    cdef size_t capacity

    def __dealloc__(self):
        free(self.sums)

    cdef int begin(self, fastopt_rows *rows, size_t row_count) except -1:
        cdef size_t strips, count
        rows.strip_rows = max(<size_t>STRIP_ROWS, STRIP_ELEMENTS // max(rows.elements, <size_t>1))
        rows.strip_rows = max(min(rows.strip_rows, row_count), <size_t>1)
        strips = (row_count + rows.strip_rows - 1) // rows.strip_rows
        count = strips * fastopt_strip_size(rows)
        grow(<void **>&self.sums, &self.capacity, count, sizeof(double))
        if count:
            memset(self.sums, 0, count * sizeof(double))
        rows.columns = self.sums
        return 0

    cdef object end(self, fastopt_rows *rows, size_t row_count, tuple shape):
        """The sums, in an array of a shape: for each matrix a row."""
        cdef cnp.ndarray found = np.zeros(shape)
        cdef double *totals = <double *>cnp.PyArray_DATA(found)
        cdef const double *part
        cdef size_t row, matrix, last, j, strip = 0
        for row in range(0, row_count, rows.strip_rows):
            last = min(row + rows.strip_rows, row_count) - 1
            part = self.sums + strip * fastopt_strip_size(rows)
            for matrix in range(row // rows.matrix_rows, last // rows.matrix_rows + 1):
                for j in range(rows.elements):
                    totals[matrix * rows.elements + j] += part[j]
                part += rows.elements
            strip += 1
        rows.columns = NULL
        return found
