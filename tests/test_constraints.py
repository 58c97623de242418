"""Projections: values against NumPy in float64, what they leave alone, gradients, bad arguments."""

from __future__ import annotations

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upconv.constraints import MaxNorm, MinMaxNorm, NonNeg, UnitNorm

SHAPE = (3, 2, 4, 5)
PER_FILTER = (0, 1, 3)
ALL = [
    MaxNorm(1.5),
    MaxNorm(1.5, PER_FILTER),
    NonNeg(),
    UnitNorm(),
    UnitNorm(PER_FILTER),
    MinMaxNorm(2.0, 3.0),
    MinMaxNorm(2.0, 3.0, 0.25, PER_FILTER),
]
EPSILON = 1e-7


def norms(w: Any, axis: int | tuple[int, ...]) -> np.ndarray:
    return np.sqrt((np.asarray(w, np.float64) ** 2).sum(axis, keepdims=True))


@pytest.mark.parametrize("axis", [0, -1, (0, 1, 3), [1, 2]])
def test_values(axis: Any, rng: np.random.Generator) -> None:
    w = rng.normal(size=SHAPE).astype(np.float32)
    n = norms(w, tuple(np.atleast_1d(axis)))
    low, high = np.quantile(n, [0.3, 0.7])  # so that some norms are within, some without
    expected = {
        MaxNorm(high, axis): np.minimum(n, high),
        UnitNorm(axis): 1.0,
        MinMaxNorm(low, high, axis=axis): np.clip(n, low, high),
        MinMaxNorm(low, high, 0.3, axis): 0.3 * np.clip(n, low, high) + 0.7 * n,
    }
    for constraint, desired in expected.items():
        np.testing.assert_allclose(constraint(w), w * (desired / (n + EPSILON)), rtol=2e-6)
    np.testing.assert_array_equal(NonNeg()(w), np.where(w > 0, w, 0))


def test_defaults_are_those_of_keras() -> None:
    assert MaxNorm() == MaxNorm(2.0, 0)
    assert UnitNorm() == UnitNorm(0)
    assert MinMaxNorm() == MinMaxNorm(0.0, 1.0, 1.0, 0)


def test_small_norms_stay(rng: np.random.Generator) -> None:
    w = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    np.testing.assert_allclose(MaxNorm(1e3)(w), w, rtol=1e-5)
    assert (norms(MaxNorm(0.5, PER_FILTER)(w), PER_FILTER) <= 0.5 * (1 + 1e-6)).all()


def test_norms_near_epsilon_show_it() -> None:
    w = np.float32([3e-7, 4e-7])
    np.testing.assert_allclose(UnitNorm()(w), w / (5e-7 + EPSILON), rtol=1e-5)


@pytest.mark.parametrize("constraint", ALL, ids=str)
def test_zero_stays_zero_and_has_finite_slopes(constraint: Any, rng: np.random.Generator) -> None:
    zeros = jnp.zeros(SHAPE)
    np.testing.assert_array_equal(constraint(zeros), zeros)
    # A slice of zeros along either choice of axes, among others that are not.
    w = jnp.asarray(rng.normal(size=SHAPE), jnp.float32).at[..., 1, :].set(0)
    for x in (zeros, w):
        _, pull = jax.vjp(constraint, x)
        assert np.isfinite(pull(jnp.ones(SHAPE))[0]).all()
        assert np.isfinite(jax.jvp(constraint, (x,), (jnp.ones(SHAPE),))[1]).all()


@pytest.mark.parametrize("constraint", ALL, ids=str)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_keeps_the_dtype_and_computes_in_float32(
    constraint: Any, dtype: Any, rng: np.random.Generator
) -> None:
    w = jnp.asarray(400 * rng.normal(size=SHAPE), dtype)  # squares exceed float16
    out = constraint(w)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out, constraint(w.astype(jnp.float32)).astype(dtype))


@pytest.mark.parametrize("constraint", ALL, ids=str)
def test_is_a_value(constraint: Any) -> None:
    copy = pickle.loads(pickle.dumps(constraint))
    assert copy == constraint
    assert hash(copy) == hash(constraint)
    assert eval(repr(constraint)) == constraint


@pytest.mark.parametrize(
    "constraint",
    [MaxNorm(2.0, (0, 1, 3)), UnitNorm((0, 1, 3)), MinMaxNorm(0.5, 2.0, 1.0, (0, 1, 3))],
)
def test_a_nan_spoils_its_filter_and_no_other(constraint: Any, rng: np.random.Generator) -> None:
    """As in Keras: what shares a norm with it would otherwise go on with wrong numbers."""
    w = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    out = np.asarray(constraint(w.at[1, 0, 2, 3].set(jnp.nan)))
    assert np.isnan(out[:, :, 2]).all()
    rest = [0, 1, 3]
    np.testing.assert_array_equal(out[:, :, rest], constraint(w)[:, :, rest])


def test_lists_of_axes_are_stored_as_tuples() -> None:
    assert MaxNorm(axis=[0, 1, 3]) == MaxNorm(axis=(0, 1, 3)) == MaxNorm(axis=np.array([0, 1, 3]))
    assert UnitNorm(np.int64(1)) == UnitNorm(1)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: MaxNorm("2"), TypeError, "max_value must be a real number, got '2'"),
        (lambda: MaxNorm(-1.0), ValueError, "max_value must be finite and not negative, got -1.0"),
        (lambda: MaxNorm(float("inf")), ValueError, "max_value must be finite .*, got inf"),
        (lambda: MaxNorm(axis="0"), TypeError, "axis must be an integer or a sequence .*, got '0'"),
        (lambda: MaxNorm(axis=b"ab"), TypeError, "axis must be an integer .*, got b'ab'"),
        (lambda: MaxNorm(axis=True), TypeError, "axis must be an integer .*, got True"),
        (lambda: UnitNorm(1.5), TypeError, "axis must be an integer .*, got 1.5"),
        (lambda: UnitNorm((0, 1.5)), TypeError, r"axis must be an integer .*, got \(0, 1.5\)"),
        (lambda: UnitNorm((0, 0)), ValueError, r"axis must name .* none twice, got \(0, 0\)"),
        (lambda: UnitNorm(()), ValueError, r"axis must name at least one .*, got \(\)"),
        (lambda: MinMaxNorm(2.0, 1.0), ValueError, "min_value must not be above max_value"),
        (lambda: MinMaxNorm(rate=1.5), ValueError, "rate must be from 0 to 1, got 1.5"),
        (lambda: MinMaxNorm(rate=-0.5), ValueError, "rate must be finite and not negative"),
        (lambda: UnitNorm(4)(jnp.zeros(SHAPE)), ValueError, "axis must name axes .*, got 4"),
    ],
)
def test_bad_arguments(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()
