"""Regularizers and constraints against the same of Keras 3 and of the legacy Keras, live."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upconv import constraints, initializers, regularizers

pytestmark = pytest.mark.parity

SHAPE = (3, 2, 4, 5)
REGULARIZERS = [
    ("L1", ()),
    ("L1", (0.3,)),
    ("L2", ()),
    ("L2", (0.7,)),
    ("L1L2", (0.3, 0.7)),
    ("L1L2", (0.3,)),
    ("Orthogonal", ()),
    ("Orthogonal", (0.4,)),
    ("Orthogonal", (0.4, "columns")),
]
CONSTRAINTS: list[tuple[str, dict[str, Any]]] = [
    ("MaxNorm", {}),
    ("MaxNorm", {"max_value": 0.7, "axis": 1}),
    ("MaxNorm", {"max_value": 1.3, "axis": [0, 1, 3]}),
    ("NonNeg", {}),
    ("UnitNorm", {}),
    ("UnitNorm", {"axis": [0, 1, 3]}),
    ("MinMaxNorm", {}),
    ("MinMaxNorm", {"min_value": 2.0, "max_value": 3.0, "rate": 0.3, "axis": -1}),
    ("MinMaxNorm", {"min_value": 1.0, "max_value": 1.5, "axis": [0, 1, 3]}),
]


@pytest.fixture(params=["keras", "tf_keras"])
def peer(request: pytest.FixtureRequest) -> ModuleType:
    return request.getfixturevalue(request.param)


def value_and_slope(tf: ModuleType, function: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Both from the peer, by its own differentiation."""
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        value = function(variable)
    return np.asarray(value), np.asarray(tape.gradient(value, variable))


def sample(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal numbers, some of them zero."""
    return (rng.normal(size=shape) * (rng.random(shape) < 0.9)).astype(np.float32)


@pytest.mark.parametrize(("name", "arguments"), REGULARIZERS, ids=str)
def test_regularizers(
    name: str, arguments: tuple[Any, ...], peer: ModuleType, tf: ModuleType, rng: Any
) -> None:
    """Values and gradients, at zeros too."""
    theirs = "OrthogonalRegularizer" if name == "Orthogonal" else name
    x = sample(rng, 6, 7) if name == "Orthogonal" else sample(rng, *SHAPE)
    value, slope = value_and_slope(tf, getattr(peer.regularizers, theirs)(*arguments), x)
    ours = getattr(regularizers, name)(*arguments)
    np.testing.assert_allclose(ours(x), value, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(ours)(jnp.asarray(x)), slope, rtol=1e-4, atol=1e-7)


def test_orthogonal_takes_a_kernel_as_one_row_per_filter(
    peer: ModuleType, tf: ModuleType, rng: Any
) -> None:
    x = sample(rng, *SHAPE)
    rows = np.moveaxis(x, 2, 0).reshape(4, -1)
    value, _ = value_and_slope(tf, peer.regularizers.OrthogonalRegularizer(0.4), rows)
    np.testing.assert_allclose(regularizers.Orthogonal(0.4)(x), value, rtol=1e-5)


def test_l1l2_without_factors_is_nothing(peer: ModuleType, tf: ModuleType, rng: Any) -> None:
    x = sample(rng, *SHAPE)
    assert float(peer.regularizers.L1L2()(tf.constant(x))) == 0
    assert regularizers.L1L2()(x) == 0


@pytest.mark.parametrize(("name", "arguments"), CONSTRAINTS, ids=str)
def test_constraints(
    name: str, arguments: dict[str, Any], peer: ModuleType, tf: ModuleType, rng: Any
) -> None:
    x = sample(rng, *SHAPE)
    x[:, 1] = 0  # whole slices of zeros
    theirs = getattr(peer.constraints, name)(**arguments)(tf.constant(x))
    ours = getattr(constraints, name)(**arguments)(x)
    np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-6, atol=1e-7)


def test_epsilon_is_that_of_keras(peer: ModuleType, tf: ModuleType) -> None:
    """Where the norm is as small as the number that it is added to, that number shows."""
    x = np.float32([[3e-7], [4e-7]])
    theirs = peer.constraints.UnitNorm()(tf.constant(x))
    np.testing.assert_allclose(constraints.UnitNorm()(x), np.asarray(theirs), rtol=1e-5)


def test_defaults(peer: ModuleType) -> None:
    for module, theirs, names in (
        (regularizers, peer.regularizers, ("L1", "L2", "L1L2")),
        (constraints, peer.constraints, ("MaxNorm", "UnitNorm", "MinMaxNorm")),
    ):
        for name in names:
            ours = getattr(module, name)()
            for field, value in getattr(theirs, name)().get_config().items():
                np.testing.assert_allclose(getattr(ours, field), value, rtol=1e-6)


@pytest.mark.parametrize("shape", [(5, 4, 48, 32), (3, 48, 32), (48,)])
def test_fans(shape: tuple[int, ...], peer: ModuleType) -> None:
    """The peers read `(*kernel_size, filters, c_in)` as in and out; glorot does not mind."""
    limit = np.sqrt(6 / sum(initializers.compute_fans(shape)))
    theirs = np.asarray(peer.initializers.GlorotUniform(seed=1)(shape))
    ours = initializers.glorot_uniform()(jax.random.key(1), shape)
    for draws in (theirs, ours):
        assert 0.9 * limit < np.abs(draws).max() <= limit * (1 + 1e-6)
