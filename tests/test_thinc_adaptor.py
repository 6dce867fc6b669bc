"""fastopt.thinc: thinc's optimizers with fastopt's update, in thinc and in spaCy."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from own_process import in_a_new_process

import fastopt

pytest.importorskip("thinc")

from thinc.api import SGD, Adam, Config, Linear, Model, Relu, chain, fix_random_seed, registry

import fastopt.thinc as adaptor

TWINS = {Adam: adaptor.Adam, SGD: adaptor.SGD}
"""thinc's classes, and those that take their place."""

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no clipping": {"grad_clip": 0.0},
    "tight clipping": {"grad_clip": 1e-3},
    "no averages": {"use_averages": False},
    "decay": {"L2": 0.1},
    "L2 in the gradient": {"L2": 0.1, "L2_is_weight_decay": False},
    "L2 in the gradient, no clipping": {"L2": 0.1, "L2_is_weight_decay": False, "grad_clip": 0.0},
}
OF_ADAM: dict[str, dict[str, Any]] = {"betas": {"beta1": 0.5, "beta2": 0.8}, "eps": {"eps": 1e-2}}
LR = 0.01
ROUNDING = 1e-3 * LR
"""thinc works out 1 - beta2 in float32, which is right to 5e-5."""

by_key = Model.finish_update


def whole(model: Any, optimizer: Any) -> None:
    optimizer.finish_update(model)


def a_model() -> tuple[Any, Any, Any]:
    fix_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(16, n)).astype(np.float32) for n in (20, 5))
    model: Any = chain(Relu(12, dropout=0.0), Linear(5))
    model.initialize(x, y)
    return model, x, y


def one_step(model: Any, optimizer: Any, x: Any, y: Any, finish: Callable[[Any, Any], None] = by_key) -> float:
    guesses, backward = model.begin_update(x)
    backward((guesses - y) / len(x))
    finish(model, optimizer)
    optimizer.step_schedules()
    return float(((guesses - y) ** 2).mean())


def arrays_of(model: Any) -> list[Any]:
    return [node.get_param(name) for node in model.walk() for name in node.param_names]


def gradients_of(model: Any) -> list[Any]:
    return [node.get_grad(name) for node in model.walk() for name in node.param_names]


def trained(optimizer: Any, finish: Callable[[Any, Any], None] = by_key, steps: int = 20) -> tuple[list[Any], Any]:
    model, x, y = a_model()
    losses = [one_step(model, optimizer, x, y, finish) for _ in range(steps)]
    return losses, arrays_of(model)


@pytest.mark.parametrize("cls", TWINS)
@pytest.mark.parametrize("name", [*OPTIONS, *OF_ADAM])
def test_a_training_is_that_of_thincs_own_class(cls: Any, name: str) -> None:
    if cls is SGD and name in OF_ADAM:
        return
    options = {**OPTIONS, **OF_ADAM}[name]
    theirs, ours, at_once = (c(LR, **options) for c in (cls, TWINS[cls], TWINS[cls]))
    losses, right = trained(theirs)
    found, arrays = trained(ours)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    for a, b in zip(arrays, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=ROUNDING)
    assert sorted(ours.nr_update.values()) == sorted(theirs.nr_update.values())
    if ours.averages is None:
        assert theirs.averages is None
    else:
        for a, b in zip(ours.averages.values(), theirs.averages.values(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=ROUNDING)
    if options:
        assert found != trained(TWINS[cls](LR))[0] or name == "no averages", "the option changes nothing"
    same, again = trained(at_once, whole)
    assert same == found, "one call for the whole model has the same bits"
    assert [a.tobytes() for a in again] == [a.tobytes() for a in arrays]


@pytest.mark.parametrize("finish", [by_key, whole])
def test_gradients_become_0(finish: Callable[[Any, Any], None]) -> None:
    model, x, y = a_model()
    one_step(model, adaptor.Adam(LR), x, y, finish)
    assert all(not gradient.any() for gradient in gradients_of(model))


@pytest.mark.parametrize("kind", [list, iter])
def test_schedules_are_thincs(kind: Any) -> None:
    rates, betas = [0.1, 0.01, 0.001], [0.9, 0.5, 0.1]
    found = [trained(cls(kind(rates), beta1=kind(betas)), steps=5)[0] for cls in (Adam, adaptor.Adam)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    constant = trained(adaptor.Adam(0.1), steps=5)[0]
    assert found[1][:2] == constant[:2] and found[1][2] != constant[2]


def test_attributes_take_effect_at_once() -> None:
    for name, value in {"learn_rate": 0.5, "b1": 0.1, "b2": 0.1, "eps": 1.0, "L2": 0.5, "grad_clip": 1e-6}.items():
        found = []
        for changed in False, True:
            (model, x, y), optimizer = a_model(), adaptor.Adam(LR)
            one_step(model, optimizer, x, y)
            if changed:
                setattr(optimizer, name, value)
            one_step(model, optimizer, x, y)
            found.append([a.tobytes() for a in arrays_of(model)])
        assert found[0] != found[1], name


@pytest.mark.parametrize(
    ("optimizer", "names"),
    [
        (adaptor.Adam(LR), ["use_radam"]),
        (adaptor.SGD(LR), ["use_radam", "b1", "b2", "eps"]),
        (adaptor.Optimizer("Lion", LR), ["use_radam", "b1", "b2", "eps", "L2", "L2_is_weight_decay"]),
    ],
)
def test_attributes_without_an_effect_cannot_be_changed(optimizer: Any, names: list[str]) -> None:
    for name in names:
        with pytest.raises(AttributeError, match=rf"{name}: .* optimizer.steps.param_groups"):
            setattr(optimizer, name, 0.123)
    again = pickle.loads(pickle.dumps(optimizer))
    assert again.learn_rate == LR and type(again.steps) is type(optimizer.steps)
    optimizer.learn_rate = again.learn_rate = 0.5
    assert again.steps.current("lr") == optimizer.steps.current("lr") == [0.5]


def test_a_call_for_one_key() -> None:
    for cls in TWINS:
        found = []
        for each in cls, TWINS[cls]:
            optimizer = each(LR, L2=0.1)
            weights, gradient = np.ones(5, np.float32), np.arange(5, dtype=np.float32)
            first = optimizer((3, "W"), weights, gradient, lr_scale=0.5)
            assert (
                np.shares_memory(first[0], weights) and np.shares_memory(first[1], gradient) and not gradient.any()
            )
            gradient[:] = 1
            optimizer((3, "W"), weights, gradient)
            found.append(weights)
            empty = np.zeros((0, 3), np.float32)
            optimizer((4, "W"), empty, empty)
            assert (4, "W") not in optimizer.nr_update
        np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


@pytest.mark.parametrize("name", ["Lion", "AdamW", "RAdam", "Adagrad", "Adan"])
def test_every_other_optimizer(name: str) -> None:
    options = {"weight_decay": 0.1}
    found, arrays = trained(adaptor.Optimizer(name, LR, options=options, grad_clip=0.0, use_averages=False))
    (model, x, y), cls = a_model(), getattr(fastopt, name)
    optimizer = cls(arrays_of(model), lr=LR, **options)
    losses = []
    for _ in found:
        guesses, backward = model.begin_update(x)
        backward((guesses - y) / len(x))
        losses.append(float(((guesses - y) ** 2).mean()))
        optimizer.step(gradients_of(model), zero_grads=True)
    assert losses == found
    assert [a.tobytes() for a in arrays] == [a.tobytes() for a in arrays_of(model)]


def test_a_config_makes_them() -> None:
    names = {
        "fastopt.Adam.v1": adaptor.Adam,
        "fastopt.SGD.v1": adaptor.SGD,
        "fastopt.Optimizer.v1": adaptor.Optimizer,
    }
    assert {each.name for each in metadata.entry_points(group="thinc_optimizers")} >= names.keys()
    text = """
        [adam]
        @optimizers = "fastopt.Adam.v1"
        beta1 = 0.8

        [adam.learn_rate]
        @schedules = "warmup_linear.v1"
        warmup_steps = 10
        total_steps = 100
        initial_rate = 0.1

        [sgd]
        @optimizers = "fastopt.SGD.v1"
        learn_rate = 0.25

        [lion]
        @optimizers = "fastopt.Optimizer.v1"
        name = "Lion"
        learn_rate = 0.5

        [lion.options]
        betas = [0.5, 0.25]
    """
    made = registry.resolve(Config().from_str("\n".join(line.strip() for line in text.splitlines())))
    assert type(made["adam"]) is adaptor.Adam and made["adam"].b1 == 0.8
    made["adam"].step_schedules()
    assert made["adam"].learn_rate == pytest.approx(0.01)
    assert type(made["sgd"]) is adaptor.SGD and made["sgd"].steps.current("lr") == [0.25]
    assert type(made["lion"].steps) is fastopt.Lion and made["lion"].steps.current("lr") == [0.5]
    assert made["lion"].steps.param_groups[0]["betas"] == (0.5, 0.25)


def resumed(saved: bytes) -> list[Any]:
    optimizer, model = pickle.loads(saved)
    _, x, y = a_model()
    losses = [one_step(model, optimizer, x, y) for _ in range(5)]
    return [losses, [a.tobytes() for a in arrays_of(model)], [a.tobytes() for a in optimizer.averages.values()]]


def test_a_pickled_training_goes_on_in_a_new_process_with_the_same_bits(tmp_path: Path) -> None:
    (model, x, y), optimizer = a_model(), adaptor.Adam(LR, L2=0.1)
    for _ in range(5):
        one_step(model, optimizer, x, y)
    saved = pickle.dumps((optimizer, model))
    right = resumed(pickle.dumps((copy.deepcopy(optimizer), model)))
    assert in_a_new_process(resumed, saved, tmp_path) == right


def test_refusals() -> None:
    grad = np.ones(3, np.float32)
    with pytest.raises(TypeError, match=r"'3 W': fastopt updates NumPy arrays, this is a list.*require_cpu"):
        adaptor.Adam(LR)((3, "W"), [1.0], grad)
    for name in "Adem", "Optimizer", "save", 3:
        with pytest.raises(ValueError, match="name: expected the name of an optimizer such as 'Adam'"):
            adaptor.Optimizer(name, LR)
    with pytest.raises(ValueError, match="thinc does not call; take another class"):
        adaptor.Optimizer("ScheduleFreeAdamW", LR)
    with pytest.raises(TypeError, match="weigth_decay"):
        adaptor.Optimizer("AdamW", LR, options={"weigth_decay": 0.1})
    with pytest.raises(TypeError, match="multiple values for keyword argument 'lr'"):
        adaptor.Optimizer("AdamW", LR, options={"lr": 0.1})
    weights, before = np.ones(3, np.float32), np.ones(3, np.float32)
    for options in {"L2": 200.0}, {"L2": 100.0, "beta1": 2.0}:
        optimizer = adaptor.Adam(LR, **options)
        with pytest.raises(ValueError, match=r"L2: times the learning rate it must be below 1|beta"):
            optimizer((3, "W"), weights, grad)
        assert (weights == before).all() and (grad == 1).all() and not optimizer.nr_update


# -- spaCy -----------------------------------------------------------------------------------------

TRAINING = """
[nlp]
lang = "en"
pipeline = ["tagger", "textcat"]

[components]

[components.tagger]
factory = "tagger"

[components.textcat]
factory = "textcat"

[corpora]

[corpora.train]
@readers = "fastopt_examples.v1"

[corpora.dev]
@readers = "fastopt_examples.v1"

[training]
seed = 0
max_steps = 30
eval_frequency = 10
dropout = 0.0

[training.optimizer]
@optimizers = "{optimizer}"
L2 = 0.01
grad_clip = 1.0
use_averages = {averages}
learn_rate = 0.01
"""

SENTENCES = [
    ("I like green eggs", ["N", "V", "J", "N"], "GOOD"),
    ("Eat blue ham", ["V", "J", "N"], "GOOD"),
    ("I hate cold eggs", ["N", "V", "J", "N"], "BAD"),
    ("Leave old ham", ["V", "J", "N"], "BAD"),
]


def spacy_losses(optimizer: str, averages: bool) -> tuple[list[Any], Any]:
    import spacy
    from spacy.training.example import Example
    from spacy.training.initialize import init_nlp
    from spacy.training.loop import train

    def reader() -> Any:
        def examples(nlp: Any) -> Any:
            for text, tags, label in SENTENCES:
                cats = {each: float(each == label) for each in ("GOOD", "BAD")}
                yield Example.from_dict(nlp.make_doc(text), {"tags": tags, "cats": cats})

        return examples

    spacy.registry.readers("fastopt_examples.v1", func=reader)
    losses: list[Any] = []

    def logger(nlp: Any, *_: Any) -> Any:
        def log(info: Any) -> None:
            if info:
                losses.append(dict(info["losses"]))

        return log, lambda: None

    spacy.registry.loggers("fastopt_losses.v1", func=lambda: logger)
    text = TRAINING.format(optimizer=optimizer, averages=str(averages).lower())
    config = Config().from_str(text + '\n[training.logger]\n@loggers = "fastopt_losses.v1"\n')
    nlp = init_nlp(spacy.util.load_model_from_config(config, auto_fill=True).config)
    train(nlp, None)
    return losses, nlp


@pytest.mark.parametrize("averages", [False, True])
def test_spacy_trains_a_tagger_and_a_text_classifier_from_a_config(averages: bool) -> None:
    pytest.importorskip("spacy")
    theirs, _ = spacy_losses("Adam.v1", averages)
    ours, nlp = spacy_losses("fastopt.Adam.v1", averages)
    assert len(ours) == len(theirs) >= 3
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys() == {"tagger", "textcat"}
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=1e-5)
    assert ours[-1]["tagger"] < ours[0]["tagger"] / 2
    assert [token.tag_ for token in nlp("I like green eggs")] == ["N", "V", "J", "N"]
