"""How long a step takes on this machine, beside plain NumPy, numba and torch: ``python -m fastopt bench``.

A case is one optimizer on arrays of given shapes. A candidate is one way to compute its step: fastopt, NumPy,
numba, torch. Each candidate is first verified against the NumPy twin, the same formula in plain NumPy that ships
with fastopt. Then all candidates run in turn, round after round in one process, so that a disturbance of the
machine slows all of them alike. The repository's bench/ measures more, with these same parts:

==============  ====================================================================
cases.py        cases: shapes, and arrays with fixed contents
candidates.py   the ways to compute a step
tape.py         makes loops and calls with ``out=`` of the NumPy twin
verify.py       compares a candidate's first steps with the NumPy twin
timing.py       times candidates in turn
report.py       runs the short benchmark and prints its tables
internals.py    everything that benchmarks use of fastopt beside its public functions
==============  ====================================================================
"""
