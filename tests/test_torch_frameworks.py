"""fastopt.torch inside skorch and Accelerate, which take a class or an object of torch's optimizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_process import in_a_new_process

pytest.importorskip("torch")

import torch

import fastopt.torch

X = np.random.default_rng(0).normal(size=(64, 5))
Y = X @ np.arange(5.0)[:, None]


class Network(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()

    def forward(self, x: Any) -> Any:
        return self.layers(x)


# -- skorch ----------------------------------------------------------------------------------------


def regressor(optimizer: Any, epochs: int = 10, **options: Any) -> Any:
    skorch = pytest.importorskip("skorch")
    torch.manual_seed(0)
    return skorch.NeuralNetRegressor(
        Network,
        optimizer=optimizer,
        optimizer__weight_decay=0.1,
        lr=0.05,
        max_epochs=epochs,
        batch_size=16,
        train_split=None,
        verbose=0,
        **options,
    )


def losses_of(net: Any) -> list[float]:
    return [float(loss) for loss in net.history[:, "train_loss"]]


def test_skorch_trains_as_with_torchs_class() -> None:
    pytest.importorskip("skorch")
    from skorch.callbacks import GradientNormClipping, LRScheduler

    def callbacks() -> list[Any]:
        schedule = LRScheduler(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=10)
        return [schedule, GradientNormClipping(1.0)]

    found = [regressor(cls, callbacks=callbacks()).fit(X, Y) for cls in (torch.optim.AdamW, fastopt.torch.AdamW)]
    theirs, ours = map(losses_of, found)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert ours[-1] < ours[0]
    without = losses_of(regressor(fastopt.torch.AdamW).fit(X, Y))
    assert without != ours


def skorch_losses_after(folder: str) -> list[float]:
    net = regressor(fastopt.torch.AdamW, epochs=5).initialize()
    net.load_params(f_params=f"{folder}/model.pt", f_optimizer=f"{folder}/optimizer.pt")
    return losses_of(net.partial_fit(X, Y))


def test_a_checkpoint_of_skorch_goes_on_in_a_new_process_with_the_same_bits(tmp_path: Path) -> None:
    whole = losses_of(regressor(fastopt.torch.AdamW).fit(X, Y))
    half = regressor(fastopt.torch.AdamW, epochs=5).fit(X, Y)
    half.save_params(f_params=tmp_path / "model.pt", f_optimizer=tmp_path / "optimizer.pt")
    assert in_a_new_process(skorch_losses_after, str(tmp_path), tmp_path) == whole[5:]


# -- Accelerate ------------------------------------------------------------------------------------


def accelerated(cls: Any, folder: str | None = None) -> tuple[Any, Any]:
    """An accelerator, and a function that makes so many steps and returns their losses."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    torch.manual_seed(0)
    model = Network()
    optimizer = cls(model.parameters(), lr=0.05, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    if folder is not None:
        accelerator.load_state(folder)
    x, y = torch.from_numpy(X), torch.from_numpy(Y)

    def steps(count: int) -> list[float]:
        losses = []
        for _ in range(count):
            with accelerator.accumulate(model):
                loss = torch.nn.functional.mse_loss(model(x), y)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    return accelerator, steps


def test_accelerate_trains_as_with_torchs_class() -> None:
    theirs, ours = (accelerated(cls)[1](20) for cls in (torch.optim.AdamW, fastopt.torch.AdamW))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert ours[-1] < ours[0]


def accelerate_losses_after(folder: str) -> list[float]:
    steps: list[float] = accelerated(fastopt.torch.AdamW, folder)[1](10)
    return steps


def test_a_checkpoint_of_accelerate_goes_on_in_a_new_process_with_the_same_bits(tmp_path: Path) -> None:
    accelerator, steps = accelerated(fastopt.torch.AdamW)
    steps(10)
    accelerator.save_state(str(tmp_path / "saved"))
    assert in_a_new_process(accelerate_losses_after, str(tmp_path / "saved"), tmp_path) == steps(10)
