"""The programs in examples/: their reader of data, their network, and a short run of each."""

import gzip
import importlib
import struct
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import fastopt

for needed in ("matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(needed)
threadpool_limits = pytest.importorskip("threadpoolctl").threadpool_limits

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def examples_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python puts the folder of a script it runs on the path; so do we."""
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture(autouse=True)
def one_thread_for_products() -> Iterator[None]:
    """Tests run beside each other: threads of the BLAS that wait for work would hold up the others."""
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture
def mnist() -> ModuleType:
    return importlib.import_module("mnist")


@pytest.fixture
def train_mlp() -> ModuleType:
    return importlib.import_module("train_mlp")


def idx(values: np.ndarray) -> bytes:
    """An array of bytes as the content of an IDX file."""
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    """A tiny data set of 4 x 5 pixels: file names and what they hold."""
    rng = np.random.default_rng(0)

    def images(count: int) -> np.ndarray:
        return rng.integers(0, 256, (count, 4, 5), np.uint8)

    def labels(count: int) -> np.ndarray:
        return rng.integers(0, 10, count, np.uint8)

    return {
        "train-images-idx3-ubyte": images(150),
        "train-labels-idx1-ubyte": labels(150),
        "t10k-images-idx3-ubyte": images(30),
        "t10k-labels-idx1-ubyte": labels(30),
    }


@pytest.fixture
def folder(tmp_path: Path, arrays: dict[str, np.ndarray]) -> Path:
    for name, values in arrays.items():
        (tmp_path / name).write_bytes(idx(values))
    return tmp_path


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_are_read(folder: Path, arrays: dict[str, np.ndarray], mnist: ModuleType, zipped: bool) -> None:
    if zipped:
        for file in list(folder.iterdir()):
            file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    data = mnist.load(folder)
    for part, images, labels in [
        ("train", data.train_images, data.train_labels),
        ("t10k", data.test_images, data.test_labels),
    ]:
        pixels = arrays[f"{part}-images-idx3-ubyte"]
        assert images.dtype == np.float32
        np.testing.assert_array_equal(images, pixels.reshape(-1, 20) / np.float32(255))
        np.testing.assert_array_equal(labels, arrays[f"{part}-labels-idx1-ubyte"])


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
GOOD_IMAGES = idx(np.zeros((150, 4, 5), np.uint8))
ZIPPED = gzip.compress(GOOD_IMAGES, mtime=0)  # the time would be in the names of the tests


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (IMAGES, None, "is missing"),
        (IMAGES, b"", "begins with"),
        (IMAGES, idx(np.zeros(150, np.uint8)), "begins with the bytes '00 00 08 01'"),
        (IMAGES, ZIPPED, "begins with the bytes '1f 8b"),
        (IMAGES, GOOD_IMAGES[:10], "ends within its header"),
        (IMAGES, GOOD_IMAGES[:-1], "holds 2,999 values where its header announces 150 x 4 x 5"),
        (IMAGES, GOOD_IMAGES + b"\0", "holds 3,001 values"),
        (IMAGES, idx(np.zeros((0, 4, 5), np.uint8)), "holds no pixels"),
        (IMAGES, idx(np.zeros((150, 5, 5), np.uint8)), "25 pixels and the test images 20"),
        (IMAGES + ".gz", GOOD_IMAGES, "is no gzip file"),
        (IMAGES + ".gz", ZIPPED[:-9], "is cut short or damaged"),
        (IMAGES + ".gz", ZIPPED[:10] + b"\xff" * 50, "is cut short or damaged"),
        (LABELS, idx(np.zeros(149, np.uint8)), "has 149 labels for the 150 images"),
        (LABELS, idx(np.full(150, 10, np.uint8)), "has the label 10, beyond 9"),
    ],
)
def test_a_bad_file_is_named_in_one_line(
    folder: Path,
    train_mlp: ModuleType,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    complaint: str,
) -> None:
    (folder / name.removesuffix(".gz")).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(SystemExit) as exit:
        train_mlp.main(["--data", str(folder), "--output", str(folder)])
    message = exit.value.code
    assert isinstance(message, str)  # which Python prints, with an exit code of 1
    assert complaint in message
    assert str(folder) in message
    assert "\n" not in message


def test_a_folder_that_is_none_is_named(tmp_path: Path, mnist: ModuleType) -> None:
    with pytest.raises(mnist.DataError, match="is not a folder"):
        mnist.load(tmp_path / "nowhere")
    with pytest.raises(mnist.DataError, match="train-images-idx3-ubyte is missing"):
        mnist.load(tmp_path)


def test_the_digits_are_split_the_same_way_every_time(mnist: ModuleType) -> None:
    data, again = mnist.digits(), mnist.digits()
    assert len(data.train_images) + len(data.test_images) == 1797
    assert data.train_images.dtype == np.float32
    assert (data.train_images.min(), data.train_images.max()) == (0, 1)
    for ours, theirs in zip(data, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("sizes", [(6, 10), (6, 200, 10), (6, 8, 7, 10)])
def test_the_gradient_is_that_of_the_loss(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    network = importlib.import_module("network").Network(sizes, rng, np.float64)
    for bias in [name for name in network.params if name[0] == "b"]:
        network.params[bias][...] = rng.normal(size=network.params[bias].shape)
    images, labels = rng.random((5, 6)), rng.integers(0, 10, 5)
    _, grads = network.backward(images, labels)
    assert grads.keys() == network.params.keys()
    h = 1e-6
    for name, param in network.params.items():
        # Every direction would take long: a few random ones miss no term.
        for _ in range(5):
            direction = rng.normal(size=param.shape)
            direction /= np.linalg.norm(direction)
            start = param.copy()
            losses = []
            for sign in (1, -1):
                param[...] = start + sign * h * direction
                losses.append(network.backward(images, labels)[0])
            param[...] = start
            slope = (losses[0] - losses[1]) / (2 * h)
            assert (grads[name] * direction).sum() == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_training_prints_its_table_and_draws_the_curves(
    folder: Path, train_mlp: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    train_mlp.main(["--data", str(folder), "--epochs", "1", "--output", str(folder / "new")])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(train_mlp.CLASSICS)
    for row, name in zip(rows[2:], train_mlp.CLASSICS, strict=True):
        assert name in row
        assert "| yes |" in " ".join(row.split())
    assert (folder / "new" / "train_mlp.png").stat().st_size > 0


def test_training_leaves_the_instruction_set_as_it_was(
    folder: Path, train_mlp: ModuleType, mnist: ModuleType
) -> None:
    before = fastopt.get_isa()

    def fail() -> None:
        raise KeyboardInterrupt

    fastopt.set_isa("baseline")
    try:
        with pytest.raises(KeyboardInterrupt):
            train_mlp.train(train_mlp.CLASSICS["Adam"], mnist.load(folder), 1, 1, fail)
        assert fastopt.get_isa() == "baseline"
    finally:
        fastopt.set_isa(before)


def test_states_of_16_bits_learn_as_others_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bfloat16 = importlib.import_module("bfloat16")
    bfloat16.main(["--epochs", "2", "--seeds", "2", "--output", str(tmp_path)])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row[1].strip() for row in rows[2:]] == [*bfloat16.ARMS]
    losses = [float(row[2]) for row in rows[2:]]
    assert max(losses[:3]) < 1.05 * min(losses[:3])
    assert (tmp_path / "bfloat16.png").stat().st_size > 0


def test_the_paths_agree_with_numpy_and_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = importlib.import_module("paths")
    paths.main(["--output", str(tmp_path)])
    assert "agree in every bit of every point: yes" in capsys.readouterr().out
    for picture in ("paths_sin.png", "paths_2d.png"):
        assert (tmp_path / picture).stat().st_size > 0


@pytest.mark.parametrize("script", ["train_mlp", "bfloat16", "paths"])
def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path, script: str) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit, match="file") as exit:
        importlib.import_module(script).main(["--output", str(file)])
    assert isinstance(exit.value.code, str)


PROGRAMS = sorted(path.stem for path in (EXAMPLES / "programs").glob("*.py") if path.stem != "comparison")


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_train_as_with_their_own_optimizer(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "autograd_gradients":
        pytest.importorskip("autograd")
    monkeypatch.syspath_prepend(EXAMPLES / "programs")
    program, comparison = importlib.import_module(name), importlib.import_module("comparison")
    losses = comparison.compare(program.train, epochs=12)
    np.testing.assert_allclose(losses["fastopt"], losses["own"], rtol=1e-6)
    assert losses["fastopt"][-1] < 0.5 * losses["fastopt"][0]
    assert "times as long" in capsys.readouterr().out


def test_weights_are_replaced_during_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "programs")
    program = importlib.import_module("sklearn_weights")
    replaced = []
    copies = program.copies
    monkeypatch.setattr(program, "copies", lambda classifier: replaced.append(1) or copies(classifier))
    losses = [loss for loss, _ in zip(program.train("fastopt"), range(20), strict=False)]
    better = sum(loss < min(losses[:k], default=np.inf) for k, loss in enumerate(losses))
    assert len(replaced) > 1 + better  # also after an epoch that was not better
