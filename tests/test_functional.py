"""Values and derivatives of `conv_transpose` and `conv`, by every lowering, against the oracle.

Errors are counted in units of accumulated rounding: a sum of products `x w` may be off by
`C * eps * sum |x| |w|`, where the oracle computes that last sum from absolute values. It holds for
every element by itself, so a wrong small number is not excused by large neighbours, and a number
that is a sum of nothing must be exactly zero.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracle
import upconv
from cases import CASES, Case, by_name, draw, random_cases

LOWERINGS = ("auto", "input_dilation", "subpixel", "matmul", "lax")

# Sums of up to 6,000 terms in any order and blocking stay below 2 units; one that lost an operand,
# or carried bfloat16 where it should not, is off by thousands.
C = 4.0
# In 16 bits every term is rounded at most twice: as a product and in the result.
C_SHORT = 2.0


def eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)


def assert_rounding(got: Any, want: np.ndarray, scale: np.ndarray, unit: float) -> None:
    """Every element within `unit` of its own sum of absolute values."""
    got = np.asarray(got).astype(np.float64)
    assert got.shape == want.shape
    error = np.abs(got - want)
    worst = np.max(error / np.maximum(scale * unit, 1e-300), initial=0.0)
    assert worst <= 1.0, f"{worst:.3g} times what rounding explains"


def layer(case: Case, lowering: str, **rest: Any) -> Callable[..., jax.Array]:
    return partial(upconv.conv_transpose, **case.layer, lowering=lowering, **rest)


def convolution(case: Case, lowering: str, **rest: Any) -> Callable[..., jax.Array]:
    return partial(upconv.conv, **case.convolution, lowering=lowering, **rest)


def with_gradients(f: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    """`f(a, b)` and its two gradients along a cotangent, compiled as one."""

    @jax.jit
    def run(a: jax.Array, b: jax.Array, ct: jax.Array) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(f, a, b)
        return out, *pull(ct)

    return run


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv_transpose(case: Case, lowering: str, rng: np.random.Generator) -> None:
    x, w, ct = draw(rng, case.x_shape, case.kernel_shape, case.y_shape)
    y, gx, gw = with_gradients(layer(case, lowering))(x, w, ct)
    unit = C * eps(jnp.float32)
    assert_rounding(y, case.scatter(x, w), case.scatter(abs(x), abs(w)), unit)
    assert_rounding(gx, case.gather(ct, w), case.gather(abs(ct), abs(w)), unit)
    assert_rounding(gw, case.correlate(x, ct), case.correlate(abs(x), abs(ct)), unit)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv(case: Case, lowering: str, rng: np.random.Generator) -> None:
    w, y = draw(rng, case.kernel_shape, case.y_shape)
    x = oracle.conv(y, w, **case.convolution)
    size = x.shape[len(case.batch) : -1]
    (ct,) = draw(rng, x.shape)
    got, gy, gw = with_gradients(convolution(case, lowering))(y, w, ct)
    unit, sizes = C * eps(jnp.float32), {"output_size": case.output}
    back = partial(oracle.conv_transpose, **case.convolution, **sizes)
    kernel = partial(oracle.correlate_kernel, kernel_size=case.kernel_size, **case.convolution)
    forth = partial(oracle.conv, **case.convolution, input_size=size)
    assert_rounding(got, x, forth(abs(y), abs(w)), unit)
    assert_rounding(gy, back(ct, w), back(abs(ct), abs(w)), unit)
    assert_rounding(gw, kernel(ct, y), kernel(abs(ct), abs(y)), unit)


# UPCONV_FUZZ is how many random cases, UPCONV_FUZZ_SEED which: ask for more, and for others.
FUZZ = random_cases(
    int(os.environ.get("UPCONV_FUZZ_SEED", 3)), int(os.environ.get("UPCONV_FUZZ", 25))
)


@pytest.mark.parametrize(
    ("case", "lowering"),
    [(case, LOWERINGS[i % len(LOWERINGS)]) for i, case in enumerate(FUZZ)],
    ids=str,
)
def test_random(case: Case, lowering: str, rng: np.random.Generator) -> None:
    test_conv_transpose(case, lowering, rng)
    test_conv(case, lowering, rng)


# One or two of everything, where a test costs more than a compilation.
FEW = by_name(
    "1d_circular_odd",
    "1d_dilation_gcd2",
    "1d_k2_s3_same",
    "2d_groups",
    "2d_k4_s2_same",
    "2d_op_same",
    "2d_pairs",
    "2d_unequal_valid",
    "3d_dilation",
)


def half_square(f: Callable[..., jax.Array], u: np.ndarray) -> Callable[..., jax.Array]:
    """`sum(u f^2) / 2`: the simplest loss whose Hessian mixes both arguments."""
    return lambda a, b: jnp.sum(u * f(a, b) ** 2) / 2


def second_orders(loss: Callable[..., jax.Array]) -> dict[str, Callable[..., Any]]:
    """The Hessian of `loss` times a direction, in two ways."""
    gradient = jax.grad(loss, argnums=(0, 1))

    def forward_over_reverse(a: Any, b: Any, da: Any, db: Any) -> Any:
        return jax.jvp(gradient, (a, b), (da, db))[1]

    def reverse_over_reverse(a: Any, b: Any, da: Any, db: Any) -> Any:
        def slope(a: Any, b: Any) -> jax.Array:
            ga, gb = gradient(a, b)
            return jnp.vdot(ga, da) + jnp.vdot(gb, db)

        return jax.grad(slope, argnums=(0, 1))(a, b)

    return {"forward": forward_over_reverse, "reverse": reverse_over_reverse}


def assert_tiny_error(got: Any, want: np.ndarray) -> None:
    """Float64 through and through: no element off by more than rounding of the largest."""
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13 * np.abs(want).max())


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("case", FEW, ids=str)
def test_second_order(case: Case, lowering: str, rng: np.random.Generator) -> None:
    shapes = case.x_shape, case.kernel_shape, case.y_shape
    x, w, u = draw(rng, *shapes, dtype=np.float64)
    dx, dw, _ = draw(rng, *shapes, dtype=np.float64)
    y, dy = case.scatter(x, w), case.scatter(dx, w) + case.scatter(x, dw)
    hx = case.gather(u * dy, w) + case.gather(u * y, dw)
    hw = case.correlate(x, u * dy) + case.correlate(dx, u * y)
    with jax.enable_x64(True):
        ways = second_orders(half_square(layer(case, lowering), u))
        got = jax.jit(lambda *args: {name: way(*args) for name, way in ways.items()})(x, w, dx, dw)
    for name in ways:
        assert_tiny_error(got[name][0], hx)
        assert_tiny_error(got[name][1], hw)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("case", FEW, ids=str)
def test_second_order_of_conv(case: Case, lowering: str, rng: np.random.Generator) -> None:
    w, dw, y, dy = draw(rng, *[case.kernel_shape] * 2, *[case.y_shape] * 2, dtype=np.float64)
    forth = partial(oracle.conv, **case.convolution)
    back = partial(oracle.conv_transpose, **case.convolution, output_size=case.output)
    kernel = partial(oracle.correlate_kernel, kernel_size=case.kernel_size, **case.convolution)
    x = forth(y, w)
    dx = forth(dy, w) + forth(y, dw)
    (u,) = draw(rng, x.shape, dtype=np.float64)
    hy = back(u * dx, w) + back(u * x, dw)
    hw = kernel(u * dx, y) + kernel(u * x, dy)
    with jax.enable_x64(True):
        ways = second_orders(half_square(convolution(case, lowering), u))
        got = jax.jit(lambda *args: {name: way(*args) for name, way in ways.items()})(y, w, dy, dw)
    for name in ways:
        assert_tiny_error(got[name][0], hy)
        assert_tiny_error(got[name][1], hw)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("case", FEW, ids=str)
def test_float64(case: Case, lowering: str, rng: np.random.Generator) -> None:
    x, w, ct = draw(rng, case.x_shape, case.kernel_shape, case.y_shape, dtype=np.float64)
    with jax.enable_x64(True):
        y, gx, gw = with_gradients(layer(case, lowering))(x, w, ct)
    unit = C * eps(np.float64)
    assert_rounding(y, case.scatter(x, w), case.scatter(abs(x), abs(w)), unit)
    assert_rounding(gx, case.gather(ct, w), case.gather(abs(ct), abs(w)), unit)
    assert_rounding(gw, case.correlate(x, ct), case.correlate(abs(x), abs(ct)), unit)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda d: d.__name__)
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("case", by_name("1d_circular_odd", "2d_k5_s2_same", "2d_groups"), ids=str)
def test_16_bits(case: Case, lowering: str, dtype: Any, rng: np.random.Generator) -> None:
    x, w, ct = draw(rng, case.x_shape, case.kernel_shape, case.y_shape, dtype=dtype)
    y, gx, gw = with_gradients(layer(case, lowering))(x, w, ct)
    assert y.dtype == gx.dtype == gw.dtype == dtype
    unit = C_SHORT * eps(dtype)
    assert_rounding(y, case.scatter(x, w), case.scatter(abs(x), abs(w)), unit)
    assert_rounding(gx, case.gather(ct, w), case.gather(abs(ct), abs(w)), unit)
    assert_rounding(gw, case.correlate(x, ct), case.correlate(abs(x), abs(ct)), unit)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_overlaps_do_not_accumulate_in_bfloat16(lowering: str) -> None:
    # 64 taps of 1 land on one pixel beside one of 256: added one by one in bfloat16, they vanish.
    x = np.ones((1, 65, 1), jnp.bfloat16)
    w = np.ones((65, 1, 1), jnp.bfloat16)
    w[0] = 256
    y = jax.jit(partial(upconv.conv_transpose, lowering=lowering))(x, w)
    assert y[0, 64, 0] == 320


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("case", by_name("1d_circular_odd", "2d_groups", "3d_pads"), ids=str)
def test_integers(case: Case, lowering: str, rng: np.random.Generator) -> None:
    x = rng.integers(-100, 100, case.x_shape, np.int32)
    w = rng.integers(-100, 100, case.kernel_shape, np.int32)
    y = jax.jit(layer(case, lowering))(x, w)
    assert y.dtype == np.int32
    assert np.array_equal(y, case.scatter(x, w))


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_narrow_integers_into_wide(lowering: str, rng: np.random.Generator) -> None:
    (case,) = by_name("2d_k4_s2_same")
    x = rng.integers(-100, 100, case.x_shape, np.int8)
    w = rng.integers(-100, 100, case.kernel_shape, np.int8)
    y = layer(case, lowering, preferred_element_type=jnp.int32)(x, w)
    assert y.dtype == np.int32
    assert np.array_equal(y, case.scatter(x, w))


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize(
    ("x_dtype", "w_dtype", "preferred", "y_dtype"),
    [
        (jnp.bfloat16, jnp.float32, None, jnp.float32),
        (jnp.float32, jnp.bfloat16, None, jnp.float32),
        (jnp.float16, jnp.bfloat16, None, jnp.float32),
        (jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32),
        (jnp.float32, jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
    ],
    ids=lambda d: getattr(d, "__name__", str(d)),
)
def test_mixed_dtypes(
    x_dtype: Any,
    w_dtype: Any,
    preferred: Any,
    y_dtype: Any,
    lowering: str,
    rng: np.random.Generator,
) -> None:
    """The result is what was asked for or promoted to; a gradient has its operand's dtype."""
    (case,) = by_name("2d_k4_s2_same")
    (x,), (w,) = draw(rng, case.x_shape, dtype=x_dtype), draw(rng, case.kernel_shape, dtype=w_dtype)
    (ct,) = draw(rng, case.y_shape, dtype=y_dtype)
    y, gx, gw = with_gradients(layer(case, lowering, preferred_element_type=preferred))(x, w, ct)
    assert (y.dtype, gx.dtype, gw.dtype) == (y_dtype, x_dtype, w_dtype)
    for got, want, scale in (
        (y, case.scatter(x, w), case.scatter(abs(x), abs(w))),
        (gx, case.gather(ct, w), case.gather(abs(ct), abs(w))),
        (gw, case.correlate(x, ct), case.correlate(abs(x), abs(ct))),
    ):
        assert_rounding(got, want, scale, C * eps(jnp.float32) + eps(got.dtype))
    back = with_gradients(convolution(case, lowering, preferred_element_type=preferred))
    z, gy, gw = back(ct.astype(x_dtype), w, x.astype(y_dtype))
    assert (z.dtype, gy.dtype, gw.dtype) == (y_dtype, x_dtype, w_dtype)


@pytest.mark.parametrize("precision", ["highest", jax.lax.Precision.HIGH, "float32", None])
def test_precision(precision: Any, rng: np.random.Generator) -> None:
    (case,) = by_name("2d_k4_s2_same")
    x, w, ct = draw(rng, case.x_shape, case.kernel_shape, case.y_shape)
    unit = C * eps(jnp.float32)
    for lowering in LOWERINGS:
        f = with_gradients(layer(case, lowering, precision=precision))
        y, gx, gw = f(x, w, ct)
        assert_rounding(y, case.scatter(x, w), case.scatter(abs(x), abs(w)), unit)
        assert_rounding(gx, case.gather(ct, w), case.gather(abs(ct), abs(w)), unit)
        assert_rounding(gw, case.correlate(x, ct), case.correlate(abs(x), abs(ct)), unit)
        asked = "HIGHEST" if precision in ("highest", "float32") else "HIGH"
        # Whatever does the multiplying, in both directions, is told.
        text = f.lower(x, w, ct).as_text()
        heavy = [
            line
            for line in text.splitlines()
            if "stablehlo.convolution" in line or "dot_general" in line
        ]
        assert len(heavy) >= 3
        if precision is not None:
            assert all(asked in line for line in heavy)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize(
    "case",
    by_name("1d_k16_s8_same", "2d_groups", "2d_two_batch_axes", "3d_pads", "2d_no_batch"),
    ids=str,
)
def test_channels_first(case: Case, lowering: str, rng: np.random.Generator) -> None:
    x, w, ct = draw(rng, case.x_shape, case.kernel_shape, case.y_shape)
    first = partial(np.moveaxis, source=-1, destination=-1 - case.rank)
    last = partial(np.moveaxis, source=-1 - case.rank, destination=-1)
    unit = C * eps(jnp.float32)
    f = with_gradients(layer(case, lowering, data_format="channels_first"))
    y, gx, gw = f(first(x), w, first(ct))
    assert_rounding(last(y), case.scatter(x, w), case.scatter(abs(x), abs(w)), unit)
    assert_rounding(last(gx), case.gather(ct, w), case.gather(abs(ct), abs(w)), unit)
    assert_rounding(gw, case.correlate(x, ct), case.correlate(abs(x), abs(ct)), unit)
    back = jax.jit(convolution(case, lowering, data_format="Channels_First"))(first(ct), w)
    assert_rounding(
        last(back), oracle.conv(ct, w, **case.convolution),
        oracle.conv(abs(ct), abs(w), **case.convolution), unit,
    )  # fmt: skip


LAX_PADDINGS = {"valid": "VALID", "same": "SAME", "same_lower": "SAME_LOWER"}


def lax_has_it(case: Case) -> bool:
    """Whether `jax.lax` knows the padding, and sees as many positions as the layer has pixels."""
    if case.padding in ("circular", "causal"):
        return False
    sizes = {name: value for name, value in case.convolution.items() if name != "groups"}
    return oracle.input_size_of(case.output, case.kernel_size, **sizes) == case.spatial


@pytest.mark.parametrize("case", filter(lax_has_it, CASES), ids=str)
def test_it_transposes_the_convolution_of_lax(case: Case, rng: np.random.Generator) -> None:
    """`conv` is `lax.conv_general_dilated`, and `<conv(y, w), x> = <y, conv_transpose(x, w)>`."""
    x, y, w = draw(rng, case.x_shape, case.y_shape, case.kernel_shape)
    spec = ("NWC", "NHWC", "NDHWC")[case.rank - 1]
    theirs = jax.lax.conv_general_dilated(
        y.reshape(-1, *y.shape[len(case.batch) :]),
        w,
        oracle.per_axis(case.strides, case.rank),
        LAX_PADDINGS.get(str(case.padding).lower()) or oracle.paddings(case.padding, case.rank),
        rhs_dilation=oracle.per_axis(case.dilation_rate, case.rank),
        dimension_numbers=(spec, spec[1:-1] + "IO", spec),
        feature_group_count=case.groups,
    )
    down = np.asarray(theirs, np.float64).reshape(case.x_shape)
    up = np.asarray(upconv.conv_transpose(x, w, **case.layer), np.float64)
    scale = oracle.conv(abs(y), abs(w), **case.convolution)
    unit = 2 * C * eps(np.float32)
    assert_rounding(upconv.conv(y, w, **case.convolution), down, scale, unit)
    assert abs(np.vdot(down, x) - np.vdot(y, up)) <= unit * np.vdot(scale, abs(x))
