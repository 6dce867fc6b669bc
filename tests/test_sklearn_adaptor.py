"""fastopt.sklearn: scikit-learn's networks with fastopt's optimizers."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pytest
import table

import fastopt

pytest.importorskip("sklearn")

from sklearn import base, datasets, model_selection, neural_network
from sklearn.utils import estimator_checks

import fastopt.sklearn as adaptor

SAME_AS_THEIRS = {
    # what scikit-learn's own optimizers compute, and ours with the same formula
    "adam": (fastopt.Adam, {"lr": 1e-3, "eps": 0.0, "eps_hat": 1e-8}),
    "sgd": (fastopt.SGD, {"lr": 1e-3, "momentum": 0.9, "nesterov": True, "lr_in_momentum": True}),
}
both_kinds = pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])


def data(name: str) -> tuple[Any, Any]:
    if name == "MLPClassifier":
        images, labels = datasets.load_digits(return_X_y=True)
        return images[:400] / 16, labels[:400]
    x, y = datasets.load_diabetes(return_X_y=True)
    return x, (y - y.mean()) / y.std()


def trained(cls: Any, **options: Any) -> Any:
    x, y = data(cls.__name__)
    return cls(hidden_layer_sizes=(16,), max_iter=8, random_state=0, tol=0.0, **options).fit(x, y)


def weights(estimator: Any) -> list[bytes]:
    return [array.tobytes() for array in (*estimator.coefs_, *estimator.intercepts_)]


@both_kinds
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("solver", SAME_AS_THEIRS)
def test_the_losses_are_those_of_scikit_learns_own_optimizers(name: str, solver: str) -> None:
    optimizer, options = SAME_AS_THEIRS[solver]
    theirs = trained(getattr(neural_network, name), solver=solver, learning_rate_init=1e-3)
    ours = trained(getattr(adaptor, name), optimizer=optimizer, optimizer_options=options)
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-12)
    for a, b in zip(ours.coefs_, theirs.coefs_, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


FITTING = [cls for cls in table.OPTIMIZERS if not hasattr(cls, "eval")]


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@table.cases("cls", FITTING, [fastopt.SGD, fastopt.LAMB, fastopt.NAdam], ids=lambda cls: cls.__name__)
def test_every_optimizer_trains(cls: Any) -> None:
    found = trained(adaptor.MLPClassifier, optimizer=cls)
    assert len(found.loss_curve_) == 8
    assert np.isfinite(found.loss_curve_).all()
    assert found.loss_curve_[-1] < found.loss_curve_[0]


@pytest.mark.parametrize(
    "cls", [cls for cls in table.OPTIMIZERS if cls not in FITTING], ids=lambda cls: cls.__name__
)
def test_an_optimizer_whose_result_is_an_average_is_refused(cls: Any) -> None:
    with pytest.raises(TypeError, match=r"is what its eval\(\) gives, .* take another class"):
        trained(adaptor.MLPClassifier, optimizer=cls)


@both_kinds
def test_parameters_are_those_of_scikit_learn_but_for_its_optimizers(name: str) -> None:
    theirs = inspect.signature(getattr(neural_network, name)).parameters
    ours = getattr(adaptor, name)().get_params()
    assert ours.keys() == theirs.keys() - adaptor.THEIRS.keys() | {"optimizer", "optimizer_options"}
    assert adaptor.THEIRS.keys() - {"power_t", "max_fun"} <= theirs.keys()
    for option in adaptor.THEIRS:
        with pytest.raises(TypeError, match=rf"^{option}: an option of scikit-learn's own optimizers; use "):
            getattr(adaptor, name)(**{option: 1})
    with pytest.raises(TypeError, match="no_such"):
        getattr(adaptor, name)(no_such=1)


@both_kinds
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_clones_copies_and_pickles_train_with_the_same_bits(name: str) -> None:
    options = {"optimizer": fastopt.AdamW, "optimizer_options": {"lr": fastopt.schedules.cosine(1e-2, 30)}}
    first = trained(getattr(adaptor, name), **options)
    x, y = data(name)
    for same in (base.clone(first), pickle.loads(pickle.dumps(base.clone(first))), copy.deepcopy(first)):
        assert weights(same.fit(x, y)) == weights(first)
    went_on = pickle.loads(pickle.dumps(first)).partial_fit(x, y)
    assert weights(first.partial_fit(x, y)) == weights(went_on), "the state is in the pickle"
    assert first._optimizer.optimizer.state[0]["step"] == went_on._optimizer.optimizer.state[0]["step"] > 8


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_warm_start_goes_on_from_the_weights() -> None:
    x, y = data("MLPClassifier")
    found = adaptor.MLPClassifier((16,), max_iter=3, random_state=0, warm_start=True).fit(x, y)
    before = found.loss_
    found.fit(x, y)
    assert found.loss_ < before
    assert len(found.loss_curve_) == 6


def test_early_stopping_puts_the_best_weights_back() -> None:
    x, y = data("MLPClassifier")
    options = {"optimizer_options": {"lr": 0.3}, "early_stopping": True, "n_iter_no_change": 2, "tol": 0.0}
    found = adaptor.MLPClassifier((16,), random_state=0, **options).fit(x, y)
    assert found.best_validation_score_ == max(found.validation_scores_)
    assert all(a is b for a, b in zip(found.coefs_, found._best_coefs, strict=True))
    assert len(found.loss_curve_) < 200


def test_weights_that_were_replaced_are_those_that_are_trained() -> None:
    x, y = data("MLPClassifier")
    found = adaptor.MLPClassifier((16,), random_state=0).partial_fit(x, y, classes=range(10))
    best = [array.copy() for array in found.coefs_]
    found.partial_fit(x, y)
    found.coefs_ = best
    before = weights(found)
    found.partial_fit(x, y)
    assert all(a is b for a, b in zip(found.coefs_, best, strict=True))
    assert all(a != b for a, b in zip(weights(found), before, strict=True))


@both_kinds
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scikit_learns_own_checks(name: str) -> None:
    estimator_checks.check_estimator(getattr(adaptor, name)(max_iter=100))


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_grid_search() -> None:
    x, y = data("MLPClassifier")
    grid = {"optimizer": [fastopt.Adam, fastopt.Lion], "optimizer_options": [{"lr": 1e-3}, {"lr": 1e-6}]}
    search = model_selection.GridSearchCV(adaptor.MLPClassifier((16,), max_iter=20, random_state=0), grid, cv=2)
    search.fit(x, y)
    assert search.best_params_["optimizer_options"] == {"lr": 1e-3}
    assert len({*search.cv_results_["mean_test_score"]}) > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, r"optimizer: expected a class such as fastopt.Adam, got 'adam'"),
        ({"optimizer_options": 1e-3}, r"optimizer_options: expected a dict such as \{'lr': 1e-3\}, got 0.001"),
        ({"optimizer_options": {"learning_rate": 1e-3}}, r"learning_rate.*lr"),
    ],
)
def test_wrong_optimizers_are_refused(options: Any, message: str) -> None:
    x, y = data("MLPClassifier")
    with pytest.raises((TypeError, ValueError), match=message):
        adaptor.MLPClassifier((4,), **options).fit(x, y)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_float32_stays_float32() -> None:
    x, y = data("MLPClassifier")
    found = adaptor.MLPClassifier((4,), max_iter=2, random_state=0).fit(x.astype(np.float32), y)
    assert {array.dtype for array in found.coefs_} == {np.dtype(np.float32)}
