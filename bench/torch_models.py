"""Whole training iterations of torch models with torch's Adam in three forms, and with fastopt's.

    python bench/torch_models.py

An iteration is zero_grad, forward, backward and step. All compute the same losses but for rounding in float32, which is
checked first. They run in turn, round after round in one process; each figure is the median of five such runs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from networks import CLASSES, HIDDEN, PIXELS, batches, compared, images, name_of, seconds_of

import fastopt.torch
from fastopt.benchmark.internals import Step

FORTY = "40 layers of 16"
WIDTHS = {
    **{name_of(hidden): (PIXELS, *hidden, CLASSES) for hidden in [*HIDDEN, (1024, 1024)]},
    FORTY: (16,) * 40 + (CLASSES,),
}
OPTIMIZERS: dict[str, Any] = {
    "torch": torch.optim.Adam,
    "torch foreach": lambda params: torch.optim.Adam(params, foreach=True),
    "torch fused": lambda params: torch.optim.Adam(params, fused=True),
    "fastopt": fastopt.torch.Adam,
}


def iterations(network: str) -> dict[str, Step]:
    """One step of each on the same batches, after five steps of each were found to have the same losses."""

    def iteration(make: Any) -> Any:
        torch.manual_seed(0)
        layers: list[Any] = []
        for inputs, outputs in zip(WIDTHS[network], WIDTHS[network][1:], strict=False):
            layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers[:-1])
        optimizer = make(model.parameters())
        data = batches(partial(images, pixels=WIDTHS[network][0]))

        def step() -> float:
            x, labels = map(torch.from_numpy, next(data))
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), labels)
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            optimizer.step()
            return float(loss.detach())

        return step

    found = {name: iteration(make) for name, make in OPTIMIZERS.items()}
    losses = {name: [step() for _ in range(5)] for name, step in found.items()}
    for name, values in losses.items():
        np.testing.assert_allclose(values, losses["torch"], rtol=1e-4, err_msg=name)
    return found


def main(argv: list[str] | None = None) -> None:
    seconds = seconds_of(__doc__, argv)
    print(f"{torch.get_num_threads()} threads of torch's, {fastopt.get_isa()}\n")
    print("| network | form | torch, µs | fastopt, µs | times |\n|---|---|---|---|---|")
    for network in WIDTHS:
        steps = iterations(network)
        for name in [*OPTIMIZERS][:-1]:
            pair = {name: steps[name], "fastopt": steps["fastopt"]}
            print(f"| {network} | {name} | {compared(pair, seconds)} |", flush=True)


if __name__ == "__main__":
    main()
