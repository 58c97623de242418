"""Penalties: values against NumPy in float64, gradients against their formulas, bad arguments."""

from __future__ import annotations

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upconv.regularizers import L1, L1L2, L2, Orthogonal

SHAPE = (3, 2, 4, 5)  # a kernel: 3 by 2 taps, 4 filters, 5 channels
ALL = [L1(0.3), L2(0.7), L1L2(0.3, 0.7), Orthogonal(0.4), Orthogonal(0.4, "columns")]


def absolute_cosines(rows: np.ndarray) -> list[float]:
    """Of every pair of rows, one by one."""
    units = [row / np.linalg.norm(row) for row in rows]
    return [abs(u @ v) for i, u in enumerate(units) for v in units[:i]]


def filter_rows(w: np.ndarray) -> np.ndarray:
    return np.stack([w[..., f, :].ravel() for f in range(w.shape[-2])])


def test_a_factor_of_zero_leaves_its_sum_out() -> None:
    """As in Keras; zero times infinity would be no number."""
    x = jnp.array([jnp.inf, 1.0])
    assert L1L2(0.5, 0.0)(x) == jnp.inf
    assert L1L2(0.0, 0.5)(x) == jnp.inf
    assert L1L2()(x) == 0


def test_values(rng: np.random.Generator) -> None:
    w = rng.normal(size=SHAPE)
    x = jnp.asarray(w, jnp.float32)
    l1, l2 = np.abs(w).sum(), (w * w).sum()
    np.testing.assert_allclose(L1(0.3)(x), 0.3 * l1, rtol=1e-6)
    np.testing.assert_allclose(L2(0.7)(x), 0.7 * l2, rtol=1e-6)
    np.testing.assert_allclose(L1L2(0.3, 0.7)(x), 0.3 * l1 + 0.7 * l2, rtol=1e-6)
    rows = filter_rows(w)
    np.testing.assert_allclose(Orthogonal(0.4)(x), 0.4 * np.mean(absolute_cosines(rows)), rtol=1e-5)
    np.testing.assert_allclose(
        Orthogonal(0.4, "columns")(x), 0.4 * np.mean(absolute_cosines(rows.T)), rtol=1e-5
    )


def test_defaults_are_those_of_keras() -> None:
    assert (L1().l1, L2().l2, Orthogonal().factor, Orthogonal().mode) == (0.01, 0.01, 0.01, "rows")
    assert (L1L2().l1, L1L2().l2) == (0.0, 0.0)


def test_orthogonal_filters_cost_nothing(rng: np.random.Generator) -> None:
    rows = np.linalg.qr(rng.normal(size=(30, 4)))[0].T
    kernel = jnp.asarray(np.moveaxis(rows.reshape(4, 3, 2, 5), 0, -2), jnp.float32)
    assert Orthogonal(1.0)(kernel) < 1e-6
    assert Orthogonal(1.0)(kernel.swapaxes(-1, -2)) > 1e-2  # rows are filters, not channels


def test_one_filter_makes_no_pair(rng: np.random.Generator) -> None:
    w = jnp.asarray(rng.normal(size=(3, 2, 1, 5)), jnp.float32)
    value, slope = jax.value_and_grad(Orthogonal(1.0))(w)
    assert value == 0
    np.testing.assert_array_equal(slope, np.zeros_like(w))


def test_gradients(rng: np.random.Generator) -> None:
    x = jnp.asarray(rng.normal(size=SHAPE), jnp.float32)
    np.testing.assert_allclose(jax.grad(L1(0.3))(x), 0.3 * np.sign(x), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(L2(0.7))(x), 1.4 * np.asarray(x), rtol=1e-6)


@pytest.mark.parametrize("regularizer", ALL, ids=str)
def test_gradients_agree_with_finite_differences(
    regularizer: Any, rng: np.random.Generator
) -> None:
    with jax.enable_x64(True):
        x, direction = (jnp.asarray(rng.normal(size=SHAPE)) for _ in range(2))
        step = 1e-6
        rise = regularizer(x + step * direction) - regularizer(x - step * direction)
        slope = jnp.vdot(jax.grad(regularizer)(x), direction)
        np.testing.assert_allclose(slope, rise / (2 * step), rtol=1e-6)
        _, forward = jax.jvp(regularizer, (x,), (direction,))
        np.testing.assert_allclose(slope, forward, rtol=1e-12)


@pytest.mark.parametrize("regularizer", ALL, ids=str)
def test_gradient_at_zero_is_zero(regularizer: Any, rng: np.random.Generator) -> None:
    zeros = jnp.zeros(SHAPE)
    np.testing.assert_array_equal(jax.grad(regularizer)(zeros), zeros)
    # One filter of zeros among others: finite everywhere.
    w = jnp.asarray(rng.normal(size=SHAPE), jnp.float32).at[..., 1, :].set(0)
    assert np.isfinite(jax.grad(regularizer)(w)).all()


def test_sums_are_not_taken_in_half_precision() -> None:
    x = jnp.full((4096, 2), 0.1, jnp.bfloat16)
    assert L1(1.0)(x).dtype == L2(1.0)(x).dtype == Orthogonal()(x).dtype == jnp.float32
    np.testing.assert_allclose(L1(1.0)(x), 8192 * float(jnp.bfloat16(0.1)), rtol=1e-5)
    big = jnp.full((2, 3), 300.0, jnp.float16)  # its square is not a float16
    np.testing.assert_allclose(L2(1.0)(big), 6 * 300.0**2, rtol=1e-6)


@pytest.mark.parametrize("regularizer", ALL, ids=str)
def test_is_a_value(regularizer: Any) -> None:
    copy = pickle.loads(pickle.dumps(regularizer))
    assert copy == regularizer
    assert hash(copy) == hash(regularizer)
    assert eval(repr(regularizer)) == regularizer


def test_numpy_numbers_are_stored_as_floats() -> None:
    assert L1(np.float32(0.5)) == L1(0.5)
    assert type(L2(1).l2) is float


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: L1("0.1"), TypeError, "l1 must be a real number, got '0.1'"),
        (lambda: L1(True), TypeError, "l1 must be a real number, got True"),
        (
            lambda: L1(jnp.float32(0.1)),
            TypeError,
            "l1 must be a real number, got .*; of what JAX computes, write a function",
        ),
        (lambda: L1L2(l2=None), TypeError, "l2 must be a real number, got None"),
        (lambda: L2(-0.1), ValueError, "l2 must be finite and not negative, got -0.1"),
        (lambda: L1(float("nan")), ValueError, "l1 must be finite and not negative, got nan"),
        (lambda: Orthogonal(float("inf")), ValueError, "factor must be finite .*, got inf"),
        (lambda: Orthogonal(mode="diagonal"), ValueError, "mode must be one of .*'diagonal'"),
        (lambda: Orthogonal()(jnp.zeros(3)), ValueError, r"rank 2 or more, .*shape \(3,\)"),
    ],
)
def test_bad_arguments(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()
