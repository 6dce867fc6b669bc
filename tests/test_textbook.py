"""The textbook's experiments: the network that they share, and a short run of each."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

for needed in ("matplotlib", "sklearn"):
    pytest.importorskip(needed)

FOLDER = Path(__file__).parent.parent / "examples" / "textbook"
EXPERIMENTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python puts the folder of a script it runs on the path; so do we."""
    monkeypatch.syspath_prepend(FOLDER)


@pytest.fixture
def common() -> ModuleType:
    return importlib.import_module("common")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_runs_and_draws_its_picture(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    importlib.import_module(name).main(["--short", "--output", str(tmp_path)])
    (picture,) = tmp_path.iterdir()
    assert picture.name == f"textbook-{name.replace('_', '-')}.png"
    assert str(picture) in capsys.readouterr().out


def test_every_picture_is_on_the_page() -> None:
    docs = FOLDER.parent.parent / "docs"
    page = (docs / "textbook.md").read_text()
    for name in EXPERIMENTS:
        picture = f"textbook-{name.replace('_', '-')}.png"
        assert f"]({picture})" in page
        assert f"](../examples/textbook/{name}.py)" in page
        assert (docs / picture).exists()


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit, match="file") as exit:
        importlib.import_module("ravine").main(["--short", "--output", str(file)])
    assert isinstance(exit.value.code, str)


@pytest.mark.parametrize("activation", ["sigmoid", "relu", "leaky relu"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_gradient_is_that_of_the_loss(common: ModuleType, activation: str, dropout: float) -> None:
    rng = np.random.default_rng(0)
    network = common.Network((6, 8, 7, 10), rng, activation)
    for name, value in network.params.items():
        network.params[name] = value.astype(np.float64) + rng.normal(0, 0.1, value.shape)
    data = common.Data(rng.random((5, 6)), rng.integers(0, 10, 5))
    # the same generator draws the same masks
    _, grads = network.gradients(data, dropout, np.random.default_rng(1))
    h = 1e-6
    for name, param in network.params.items():
        direction = rng.normal(size=param.shape)
        losses = []
        for sign in (1, -1):
            network.params[name] = param + sign * h * direction
            losses.append(network.gradients(data, dropout, np.random.default_rng(1))[0])
        network.params[name] = param
        slope = (losses[0] - losses[1]) / (2 * h)
        assert (grads[name] * direction).sum() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_an_epoch_sees_every_sample_once(common: ModuleType) -> None:
    rng = np.random.default_rng(0)
    data = common.Data(rng.random((10, 4), np.float32), rng.integers(0, 10, 10))
    seen: list[float] = []

    class Counting(common.Network):  # type: ignore[misc,name-defined]
        def gradients(self, batch: object, *options: object) -> object:
            seen.extend(batch.images[:, 0])  # type: ignore[attr-defined]
            return super().gradients(batch, *options)

    import fastopt

    network = Counting((4, 10), rng)
    steps = common.training(network, fastopt.SGD(network.params), data, 4, rng)
    ends = list(common.each_epoch(steps, 3))
    assert [now.epochs for now in ends] == [1, 2, 3]
    assert len(seen) == 30
    for epoch in range(3):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == sorted(data.images[:, 0])
