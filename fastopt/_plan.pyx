# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""One step: take the gradients, prepare what the kernels need, run them.

A `Plan` belongs to one optimizer. It is built in seven layers: a `Model` has the parameters and groups and makes all
changes of them (_model.pxi); a `Selection` takes the gradients of a call (_selection.pxi); a `Handover` takes parameters
that come with the call (_handover.pxi); a `Following` has what is written after the parameters (_followers.pxi);
`Preparing` works out all that the step needs (_preparing.pxi); `Stepping` makes it; a `Plan` also makes steps on a few
rows (_row_step.pxi). A step checks all that it needs before the first write; from then on no Python code runs, so that an
exception, an interrupt or a signal handler finds a step that was made or was not made.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_CheckExact, PyDict_GetItem, PyDict_Next
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.pycapsule cimport PyCapsule_GetPointer
from cpython.ref cimport Py_INCREF, PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_Check
cimport cython
from cython.parallel cimport prange
from libc.math cimport INFINITY, isfinite, ldexp, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, qsort
from libc.string cimport memchr, memcmp, memcpy, memset, strcmp

cimport numpy as cnp

cdef extern from "Python.h":
    ctypedef struct PyListObject:
        PyObject **ob_item

import math
import sys

import numpy as np

from fastopt import arrays, options, orphans, reference, rows as rows_checks, step_options, storage
from fastopt.algorithm import Algorithm
from fastopt._kernels import COMMON_SCALARS, FORMATS, OPENMP, TABLE, openmp_places

from fastopt._kernels cimport (
    FASTOPT_FLOAT32, FASTOPT_MAX_BUFFERS, FASTOPT_MAX_FACTORS, FASTOPT_MAX_SUMS, FASTOPT_STORAGES, FASTOPT_SUM_BLOCK,
    FASTOPT_SUM_LANES, fastopt_call, fastopt_coefficients,
    fastopt_converter, fastopt_format, fastopt_isa, fastopt_kernel, fastopt_optimizer, flushes_denormal, forks, selected, table,
)
from fastopt._turns cimport Turns

cnp.import_array()

include "_room.pxi"
include "_exchange.pxi"
include "_work.pxi"
include "_intervals.pxi"
include "_by_rows.pxi"
include "_tensor.pxi"
include "_change.pxi"
include "_orphans.pxi"
include "_sums.pxi"
include "_norms.pxi"
include "_function.pxi"
include "_model.pxi"
include "_selection.pxi"
include "_handover.pxi"
include "_followers.pxi"
include "_rows.pxi"
include "_preparing.pxi"


cdef cnp.ndarray ZERO = np.zeros(())
cdef frozenset IMMUTABLE = frozenset({float, int, bool, type(None)})


cdef class Stepping(Preparing):
    """The steps of one optimizer."""

    cdef tuple asked  # the arguments of the last step that had any, as `items_of` gives them; None: they can be edited
    cdef Clipping clipping  # what was made of them

    # -- A call --

    def step(self, optimizer, grads, dict asked={}):
        """One update of every parameter that has a gradient; see `fastopt.Optimizer.step`."""
        return self.call(optimizer, False, None, grads, asked)

    def update(self, optimizer, params, grads, dict asked={}):
        """One update of the parameters of this call; see `fastopt.Optimizer.update`."""
        return self.call(optimizer, True, params, grads, asked)

    cdef object call(self, optimizer, bint is_handed_over, object params, object grads, dict asked):
        cdef Clipping clipping = None
        cdef double grad_scale = 1.0
        if asked:
            clipping = self.clipping_of(asked)
            grad_scale = clipping.grad_scale
            if clipping.does_nothing():
                clipping = None
        self.turns.enter()
        try:
            self.refuse_while_applied()
            param_groups = optimizer.param_groups
            self.take_edits(optimizer, param_groups)
            if not is_handed_over:
                self.look_for_orphans()
            self.make_step(optimizer, param_groups, is_handed_over, params, grads, grad_scale, clipping)
            return self.norms.total if clipping is not None and clipping.needs_norm else None
        finally:
            self.turns.leave()

    cdef Clipping clipping_of(self, dict asked):
        """The arguments of a step, checked: most loops pass the same objects in every step."""
        cdef Clipping clipping
        if self.asked is not None and is_group_unchanged(asked, self.asked):
            return self.clipping
        clipping = Clipping(**asked)
        self.asked, self.clipping = None, clipping
        if all([type(value) in IMMUTABLE for value in asked.values()]):
            self.asked = items_of(asked)
        return clipping

    def move(self, optimizer, object params):
        """Makes the changes of `optimizer._change_of_move`, as a step that no parameter has a gradient in.

        params: a list or dict of them, where they are handed over, else None."""
        cdef Change change = None
        cdef Py_ssize_t i
        cdef int team, isa = selected()
        cdef bint is_made = False
        self.refuse_while_applied()
        try:
            if params is None:
                self.select(self.tensors)
            else:
                _, change = self.take_params_or_join(optimizer, params, PyDict_CheckExact(params))
            for i in range(len(self.selected)):
                self.has_gradient[i] = False
            change = optimizer._change_of_move(self.selected, Change() if change is None else change)
            self.refuse_read_only(without_gradient=True)
            param_groups = optimizer.param_groups
            team = self.prepare(param_groups, isa, 1.0, change, None, follows=False)
            self.start_followers()
            is_made = True
            self.write(param_groups, change, isa, team, None)
            self.work.end()
        finally:
            self.is_assigned = False
            if params is not None:
                self.let_go(not is_made)
            elif self.bound is not None:
                self.take_bound()

    cdef int look_for_orphans(self) except -1:
        """In steps 1, 2, 4, 8, … : what is looked at ever more seldom costs nothing."""
        cdef Tensor tensor
        if self.calls & (self.calls + 1) or not self.keeps_params or self.is_function:
            return 0
        found = orphans_of(self.tensors)
        if found:
            orphans.warn_of_orphans([tensor.label for tensor in found])
            for tensor in found:
                tensor.is_known_orphan = True
        return 0

    cdef int make_step(
        self, optimizer, object param_groups, bint is_handed_over, object params, object grads, double grad_scale,
        Clipping clipping,
    ) except -1:
        cdef Change change = None
        cdef tuple to_keep = None
        cdef int team, isa = selected()
        cdef bint is_made = False
        cdef bint is_mean = grads is None and self.bound is None
        if clipping is not None and clipping.zero_grads and type(grads) is not list:
            arrays.refuse_file("gradients", grads)
            if is_mean and self.accumulated is not None:
                step_options.refuse_zeros_of_a_mean()
        try:
            if is_handed_over:
                given, change = self.take_handed_over(optimizer, params, grads)
                if self.keeps_params:
                    to_keep = self.prepare_to_keep(given, change)
            else:
                change = self.take_own(optimizer, grads)
            team = self.prepare(param_groups, isa, grad_scale, change, clipping)
            is_made = True
            self.write(param_groups, change, isa, team, clipping)
            if to_keep is not None:
                self.keep_params(param_groups, to_keep)
            if grads is not None:
                self.unbind()
            if is_mean:
                self.accumulated = None
            self.work.end()
        finally:
            if clipping is not None:
                self.forget(clipping)  # also after an exception
            if is_handed_over:
                self.let_go(change is not None and not is_made)
            elif self.bound is None:
                self.release()
            if not is_made and grads is not None and self.bound is not None:
                self.release()
                self.take_bound()
        return 0

    # -- Making it --

    cdef int write(self, object param_groups, Change change, int isa, int team, Clipping clipping) except -1:
        """Makes the prepared step. No Python code runs in here, but for the twins'."""
        cdef size_t i, place = 0, n = len(self.selected)
        cdef PyObject **items = (<PyListObject *>self.selected).ob_item  # no references are counted: it is every step
        if clipping is not None and clipping.skip_nonfinite and not self.norms.is_finite:
            self.skip(isa, team, change, clipping)
            return 0
        if change is not None:
            self._commit(param_groups, change)
        for i in range(n):
            if self.has_gradient[i]:
                (<Tensor>items[i]).steps += 1
        if self.needs_factors and self.factors.n_numbers:
            for place in range(<size_t>len(self.stepping)):
                memcpy(
                    (<Tensor>self.stepping[place]).numbers, &self.factors.numbers[place * self.factors.n_numbers],
                    self.factors.n_numbers * sizeof(double),
                )
        if self.needs_factors:
            for tensor in self.stepping:
                if (<Tensor>tensor).by_rows is not None:
                    (<Tensor>tensor).by_rows.commit()
        for i in range(<size_t>self.shared_count):
            self.shared[i].steps += 1
        if self.follows:
            self.count_followed()
        if table().isas[isa].name == NULL:
            self.run_twins(None if change is None else change.moves, clipping)
        else:
            self.work.run(team)
        self.zero_originals(clipping)
        return 0

    cdef int zero_originals(self, Clipping clipping) except -1:
        """Writes zeros into the user's own gradients where the step has used copies of them."""
        cdef Tensor tensor
        if self.has_rounded and clipping is not None and clipping.zero_grads:
            for tensor in self.stepping:
                if tensor.original is not None:
                    cnp.PyArray_CopyInto(tensor.original, ZERO)
        return 0

    cdef int skip(self, int isa, int team, Change change, Clipping clipping) except -1:
        """Writes zeros into the gradients, if they were asked for: a skipped step does nothing else."""
        cdef Tensor tensor
        cdef Move move
        for move in change.moves if change is not None else ():
            move.c.kernel, move.c.pass_count = NULL, 0
        self.write_nothing()
        self.is_assigned = False  # what follows holds for this call alone
        for tensor in self.stepping:
            tensor.c.kernel = NULL
            if table().isas[isa].name == NULL and clipping.zero_grads:
                tensor.gradient[...] = 0
        if table().isas[isa].name != NULL and clipping.zero_grads:
            self.work.run(team)
        self.zero_originals(clipping)
        return 0

    cdef void forget(self, Clipping clipping) noexcept:
        """Ends what held for one call alone."""
        cdef size_t i, n = len(self.selected)
        cdef PyObject **items = (<PyListObject *>self.selected).ob_item
        if clipping.zero_grads:
            for i in range(n):
                (<Tensor>items[i]).c.zero_gradient = False
        self.stepping = None

    cdef int run_twins(self, list moves, Clipping clipping) except -1:
        """The same as the kernels do, by the NumPy twins, tensor by tensor."""
        cdef Tensor tensor
        cdef Move move
        cdef Py_ssize_t i
        cdef bint flushes = flushes_denormal()
        cdef uint64_t mode = fastopt_flush_subnormals() if flushes else 0
        try:
            for i in range(len(self.selected)):
                tensor = <Tensor>self.selected[i]
                if self.has_gradient[i] and tensor.by_rows is not None:
                    self.run_twins_of_rows(tensor)
                    if clipping is not None and clipping.zero_grads:
                        tensor.gradient[...] = 0
                elif self.has_gradient[i]:
                    scalars, states, grad = self.twin_arguments(tensor, tensor.gradient)
                    if clipping is not None and clipping.zero_grads:
                        grad = grad.copy()
                        tensor.gradient[...] = 0
                    storage.update(
                        self.algorithm, tensor.now, grad, states, scalars,
                        tensor.c.call.coefficients.random_key, tensor.c.call.first_element, self.factors.of(tensor),
                    )
            for move in moves or ():
                tensor = move.tensor
                storage.update(
                    move.algorithm, tensor.now, tensor.states[move.letter], [None],
                    scalars_of(&move.coefficients, move.algorithm), move.coefficients.random_key,
                    tensor.c.call.first_element,
                )
            if self.follows:
                for tensor in self.selected:
                    self.run_twins_of_followers(tensor)
        finally:
            if flushes:
                fastopt_set_floating_mode(mode)
        return 0

    cdef int run_twins_of_rows(self, Tensor tensor) except -1:
        """The same, row by row."""
        cdef uint64_t key = tensor.c.call.coefficients.random_key
        for arguments in self.twins_of_rows(tensor, &tensor.c, tensor.by_rows.count, tensor.gradient):
            p, grad, states, scalars, factors, first_element = arguments
            storage.update(self.algorithm, p, grad, states, scalars, key, first_element, factors)
        return 0


cdef list scalars_of(const fastopt_coefficients *coefficients, algorithm):
    return [coefficients.scalars[k] for k in range(len(TABLE[algorithm.formula]["scalars"]))]


include "_row_step.pxi"
