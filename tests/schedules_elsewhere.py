"""Stores the numbers of optax's and the Hugging Face trainer's schedules, for tests/test_schedules.py.

    pip install optax==0.2.8 jax==0.10.2 transformers==5.24.0 torch
    python tests/schedules_elsewhere.py optax trainer

Each line of schedules_elsewhere.json is one schedule: the library's call, ours as docs/schedules.md has it, and
the numbers at some steps. A library that is not named keeps its lines.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

STORE = Path(__file__).with_suffix(".json")
LAST = 1000
"""The last step of which a number is stored."""

COSINE = ("cosine_decay_schedule(0.2, 400)", "cosine(0.2, 400)")
"""A schedule that is joined with others: optax's, ours."""


def steps(*joins: int) -> list[int]:
    """The first steps, every fiftieth, and those around the joins."""
    near = {join + offset for join in joins for offset in (-1, 0, 1)}
    return sorted(step for step in {*range(4), *range(0, LAST, 50), LAST, *near} if 0 <= step <= LAST)


def optax_lines() -> Iterator[dict[str, object]]:
    import jax
    import optax

    jax.config.update("jax_enable_x64", True)

    def line(call: str, ours: str, *joins: int) -> dict[str, object]:
        schedule = eval(call, {"optax": optax, **vars(optax)})
        at = steps(*joins)
        values = [float(schedule(jax.numpy.asarray(step, jax.numpy.float64))) for step in at]
        return {"library": "optax", "call": call, "ours": ours, "steps": at, "values": values}

    for v in (0.1, 1e-3, 1.0, 3.0, 0.0):
        yield line(f"constant_schedule({v})", f"constant({v})")
    for v, e, n in [(0.1, 0.0, 100), (0.0, 0.1, 1000), (1e-3, 1e-5, 333), (1.0, 2.0, 7), (0.5, 0.5, 900)]:
        yield line(f"linear_schedule({v}, {e}, {n})", f"linear({v}, {n}, {e})", n)
    for v, e, p, n in [
        (0.1, 0.0, 2.0, 100),
        (0.0, 0.1, 0.5, 1000),
        (1e-3, 1e-5, 3.0, 333),
        (1.0, 2.0, 1.5, 7),
        (0.5, 0.1, 0.9, 900),
    ]:
        yield line(f"polynomial_schedule({v}, {e}, {p}, {n})", f"polynomial({v}, {n}, {p}, {e})", n)
    for v, e, n, b in [(0.1, 0.0, 100, 50), (0.2, 0.1, 300, 1)]:
        yield line(
            f"polynomial_schedule({v}, {e}, 2.0, {n}, transition_begin={b})",
            f"sequential([constant({v}), polynomial({v}, {n}, 2.0, {e})], [{b}])",
            b,
            b + n,
        )
    for v, n, a, x in [
        (0.1, 1000, 0.0, 1.0),
        (0.1, 500, 0.1, 1.0),
        (1e-3, 333, 0.01, 2.0),
        (1.0, 7, 0.5, 0.5),
        (2.0, 900, 0.0, 1.5),
    ]:
        yield line(f"cosine_decay_schedule({v}, {n}, {a}, {x})", f"cosine({v}, {n}, {v} * {a}, {x})", n)
    for v, n, r, e in [(0.1, 100, 0.5, None), (0.1, 1, 0.99, 1e-3), (1e-3, 30, 1.1, 1.0), (1.0, 250, 0.1, 0.05)]:
        options = "" if e is None else f", end_value={e}"
        ours = "" if e is None else f", end={e}"
        yield line(f"exponential_decay({v}, {n}, {r}{options})", f"exponential({v}, {r}, {n}{ours})")
        yield line(f"exponential_decay({v}, {n}, {r}, staircase=True{options})", f"step({v}, {n}, {r}{ours})", n)
    yield line(
        "exponential_decay(0.1, 20, 0.9, transition_begin=100)",
        "sequential([constant(0.1), exponential(0.1, 0.9, 20)], [100])",
        100,
    )
    for v, m, f in [
        (0.1, (100, 500), (0.5, 0.1)),
        (1.0, (1, 2), (0.3, 3.0)),
        (0.2, (333, 999), (0.0, 1.0)),
        (1e-3, (10, 900), (1.5, 0.9)),
        (3.0, (250, 750), (0.1, 0.1)),
    ]:
        call = f"{v}, {{{m[0]}: {f[0]}, {m[1]}: {f[1]}}})"
        numbers = f"{v}, {v} * {f[0]}, {v} * {f[0]} * {f[1]}".split(", ")
        yield line(
            f"piecewise_constant_schedule({call}",
            f"sequential([{', '.join(f'constant({n})' for n in numbers)}], {[*m]})",
            *m,
        )
        for shape, name in [("linear", "linear"), ("cosine", "cosine")]:
            yield line(
                f"piecewise_interpolate_schedule('{shape}', {call}",
                f"sequential([{name}({numbers[0]}, {m[0]}, {numbers[1]}), "
                f"{name}({numbers[1]}, {m[1] - m[0]}, {numbers[2]})], [{m[0]}])",
                *m,
            )
    for n, peak, pct, div, final in [
        (1000, 0.1, 0.3, 25.0, 1e4),
        (500, 1.0, 0.5, 10.0, 100.0),
        (333, 1e-3, 0.1, 2.0, 2.0),
        (900, 0.3, 0.77, 25.0, 1e4),
        (20, 0.1, 0.3, 25.0, 1e4),
    ]:
        p, q = int(pct * n), int(min(0.9, pct + 0.2) * n)
        yield line(
            f"cosine_onecycle_schedule({n}, {peak}, {pct}, {div}, {final})",
            f"sequential([cosine({peak} / {div}, {p}, {peak}), "
            f"cosine({peak}, {n - p}, {peak} / ({div} * {final}))], [{p}])",
            p,
            n,
        )
        yield line(
            f"linear_onecycle_schedule({n}, {peak}, {pct}, {min(0.9, pct + 0.2)}, {div}, {final})",
            f"sequential([linear({peak} / {div}, {p}, {peak}), linear({peak}, {q - p}, {peak} / {div}), "
            f"linear({peak} / {div}, {n - q}, {peak} / ({div} * {final}))], [{p}, {q}])",
            p,
            q,
            n,
        )
    for i, peak, w, n, e in [
        (0.0, 0.1, 100, 1000, 0.0),
        (0.01, 0.1, 50, 500, 0.001),
        (0.0, 1e-3, 1, 333, 1e-5),
        (0.2, 0.1, 300, 700, 0.0),
        (0.0, 1.0, 10, 20, 0.5),
    ]:
        yield line(f"warmup_constant_schedule({i}, {peak}, {w})", f"warmup(constant({peak}), {w}, {i})", w)
        yield line(
            f"warmup_cosine_decay_schedule({i}, {peak}, {w}, {n}, {e})",
            f"warmup(cosine({peak}, {n - w}, {e}), {w}, {i})",
            w,
            n,
        )
        yield line(
            f"warmup_exponential_decay_schedule({i}, {peak}, {w}, {n}, 0.3)",
            f"warmup(exponential({peak}, 0.3, {n}), {w}, {i})",
            w,
        )

    def cycle(i: float, peak: float, w: int, n: int, e: float) -> str:
        return f"dict(init_value={i}, peak_value={peak}, warmup_steps={w}, decay_steps={n}, end_value={e})"

    for first, second in [
        ((0.0, 0.1, 20, 200, 0.01), (0.01, 0.05, 50, 600, 0.0)),
        ((0.01, 1.0, 1, 50, 0.0), (0.0, 0.5, 1, 100, 0.0)),
        ((0.0, 1e-3, 100, 500, 1e-5), (1e-5, 1e-3, 100, 500, 1e-5)),
        ((0.5, 0.5, 10, 333, 0.1), (0.1, 2.0, 333, 666, 0.2)),
        ((0.0, 3.0, 7, 19, 0.3), (0.3, 1.0, 400, 987, 0.0)),
    ]:
        join = first[3]
        ours = [f"warmup(cosine({peak}, {n - w}, {e}), {w}, {i})" for i, peak, w, n, e in (first, second)]
        yield line(
            f"sgdr_schedule([{cycle(*first)}, {cycle(*second)}])",
            f"sequential([{', '.join(ours)}], [{join}])",
            first[2],
            join,
            join + second[2],
            join + second[3],
        )
    for parts, at in [
        ([("linear_schedule(0.0, 0.1, 50)", "linear(0.0, 50, 0.1)"), COSINE], [70]),
        ([COSINE, ("constant_schedule(0.3)", "constant(0.3)")], [1]),
        ([COSINE, COSINE, COSINE], [333, 800]),
        ([("exponential_decay(1.0, 90, 0.5)", "exponential(1.0, 0.5, 90)"), COSINE], [999]),
        ([("polynomial_schedule(0.1, 0.5, 2.0, 20)", "polynomial(0.1, 20, 2.0, 0.5)"), COSINE, COSINE], [20, 21]),
    ]:
        theirs, ours = ([part[k] for part in parts] for k in (0, 1))
        yield line(f"join_schedules([{', '.join(theirs)}], {at})", f"sequential([{', '.join(ours)}], {at})", *at)


def trainer_lines() -> Iterator[dict[str, object]]:
    import torch
    import transformers
    from transformers import optimization

    def factors(optimizer: torch.optim.Optimizer, name: str, **options: object) -> Callable[[int], float]:
        schedule = optimization.get_scheduler(name, optimizer, **options)
        rate: Callable[[int], float] = schedule.lr_lambdas[0]
        return rate

    def line(name: str, lr: float, n: int, w: int, ours: str, **options: object) -> dict[str, object]:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
        rate = factors(
            optimizer, name, num_warmup_steps=w, num_training_steps=n, scheduler_specific_kwargs=dict(options)
        )
        # nobody makes the steps after the last one
        at = [step for step in steps(w, n) if step < n or name == "linear"]
        call = f"{name}, lr={lr}, num_warmup_steps={w}, num_training_steps={n}, {options}"
        return {
            "library": "trainer",
            "call": call,
            "ours": ours,
            "steps": at,
            "values": [lr * float(rate(step)) for step in at],
        }

    print("transformers", transformers.__version__)
    runs = [(0.1, 1000, 100), (1e-3, 500, 50), (5e-5, 333, 7), (1.0, 900, 300), (2.0, 20, 3)]
    for lr, n, w in runs:
        yield line("constant", lr, n, w, f"constant({lr})")
        yield line("constant_with_warmup", lr, n, w, f"warmup({lr}, {w})")
        yield line("linear", lr, n, w, f"warmup(linear({lr}, {n - w}), {w})")
        yield line("inverse_sqrt", lr, n, w, f"warmup(inverse_sqrt({lr}, timescale={w}), {w})")
        yield line("inverse_sqrt", lr, n, w, f"warmup(inverse_sqrt({lr}, timescale={n}), {w})", timescale=n)
    for (lr, n, w), cycles in zip(runs, (0.5, 1.0, 1.5, 0.25, 3.0), strict=True):
        yield line("cosine", lr, n, w, f"warmup(cosine({lr}, {n - w}, cycles={cycles}), {w})", num_cycles=cycles)
    for (lr, n, w), least in zip(runs, (0.01, 1e-4, 1e-5, 0.5, 0.0), strict=True):
        yield line(
            "cosine_with_min_lr", lr, n, w, f"warmup(cosine({lr}, {n - w}, end={least}), {w})", min_lr=least
        )
        yield line(
            "cosine_warmup_with_min_lr",
            lr,
            n,
            w,
            f"warmup(cosine({lr}, {n - w}, end={least}), {w - 1}, start={lr} / {w})",
            min_lr=least,
        )
    for (lr, n, w), cycles in zip(runs, (1, 2, 3, 4, 7), strict=True):
        yield line(
            "cosine_with_restarts",
            lr,
            n,
            w,
            f"warmup(sequential([cosine_warm_restarts({lr}, {n - w} / {cycles}), constant(0.0)], [{n - w}]), {w})",
            num_cycles=cycles,
        )
    for (lr, n, w), end, power in zip(runs, (1e-7, 0.0, 1e-6, 0.1, 1.0), (1.0, 2.0, 0.5, 3.0, 1.0), strict=True):
        yield line(
            "polynomial",
            lr,
            n,
            w,
            f"warmup(polynomial({lr}, {n - w}, {power}, end={end}), {w})",
            lr_end=end,
            power=power,
        )
    shapes = ("linear", "cosine", "1-sqrt", "linear", "cosine")
    decays = ("cosine", "1-sqrt", "linear", "linear", "1-sqrt")
    for (lr, n, w), up, down, ratio in zip(runs, shapes, decays, (0.0, 0.1, 0.25, 0.5, 0.0), strict=True):
        d = n // 5
        yield line(
            "warmup_stable_decay",
            lr,
            n,
            w,
            f"warmup_stable_decay({lr}, {n}, {w}, {d}, start={lr} * {ratio}, end={lr} * {ratio}, "
            f"warmup_type={up!r}, decay_type={down!r})",
            num_decay_steps=d,
            warmup_type=up,
            decay_type=down,
            min_lr_ratio=ratio,
        )


def main() -> None:
    makers = {"optax": optax_lines, "trainer": trainer_lines}
    lines = [line for line in json.loads(STORE.read_text())] if STORE.exists() else []
    for library in sys.argv[1:]:
        lines = [line for line in lines if line["library"] != library] + list(makers[library]())
    lines.sort(key=lambda line: line["library"])
    STORE.write_text("[\n" + ",\n".join(map(json.dumps, lines)) + "\n]\n")


if __name__ == "__main__":
    main()
