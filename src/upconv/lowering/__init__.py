"""How each of the three maps is computed.

The maps are those of `upconv.bilinear`: T, from `x` and `w` to `y`; C, from `y` and `w` to `x`;
G, from `x` and `y` to `w`. Each has several *ways* of being computed, plain functions of two
arrays, a `Geometry` and `Numerics`, which agree to rounding. `upconv.auto` chooses among them. None
is ever differentiated, but for `lowering="lax"`, whose gradients JAX derives.

====================  ============================================================================
`r`                   number of spatial axes
`N`, `ci`, `co`       images; channels of `x` and of `y`, in one group
`n`, `k`, `s`, `K`    as in `upconv.geometry`: input, kernel, stride, length that the kernel spans
`q`, `m`              strides that a kernel spans, `ceil(K / s)`, and the full output, `n + q - 1`
to meet               a pixel of `x`, one of `y` and a tap meet where their product is in the sum
phase                 output pixels that are equal modulo the stride: they meet the same taps
plane                 what lies at one position of the first spatial axis
strip                 rows of `x`, and all rows of `y` that they meet
====================  ============================================================================

Two habits of XLA:CPU shape the code, both seen in optimized HLO (jaxlib 0.10.2 and 0.12.0).
Its fast convolution takes operands in one order only, `b01f_01io->b01f`; a convolution in any other
order is rewritten at top level but left to a naive loop, up to 100 times slower, inside `scan` and
`while`: so operands are put in that order here. And every loop that it generates, even for a
transpose or a reversal, costs 20 to 30 ms of compilation, a `pad` 100 ms, where a convolution or a
matrix product costs 2 ms: so padding is left to the convolutions, and data moves in one step or not
at all.

`transposed`, `windowed` and `filters` compute T, C and G by `convolution`, `products` all three by
products of matrices, `elementwise` those of narrow groups by products of numbers, and `depthwise` G
where a group has a single channel and filter. `groups` computes a map one group after another,
`strips` G of parts of images; `phases` and `axes` rearrange what they take and give, and `numerics`
says what they share.

A figure in a comment is the time with what is explained there, relative to the time without it:
0.4 is two and a half times as fast.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from upconv import auto
from upconv.auto.problem import CONVOLUTIONS, PRODUCTS
from upconv.geometry import Geometry
from upconv.lowering import depthwise, elementwise, filters, groups, products, transposed, windowed
from upconv.lowering.convolution import convolve_planes
from upconv.lowering.numerics import Numerics, Way

# ------------------------------------------------------------------ the maps


def conv_transpose(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T: `(N, *n, groups * ci)` and `(*k, co, groups * ci)` to `(N, *output, groups * co)`."""
    return _compute("conv_transpose", x, w, w.shape, g, num)


def conv(y: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """C: `(N, *output, groups * co)` and `(*k, co, groups * ci)` to `(N, *n, groups * ci)`."""
    return _compute("conv", y, w, w.shape, g, num)


def correlate_kernel(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G: `(N, *n, groups * ci)` and `(N, *output, groups * co)` to `(*k, co, groups * ci)`."""
    kernel_shape = (*g.kernel_size, y.shape[-1] // g.groups, x.shape[-1])
    return _compute("correlate_kernel", x, y, kernel_shape, g, num)


def _compute(
    name: str,
    a: jax.Array,
    b: jax.Array,
    kernel_shape: Sequence[int],
    g: Geometry,
    num: Numerics,
) -> jax.Array:
    """A map by the way that its operands' common dtype and its sizes call for, in `num.dtype`."""
    if num.lowering != REFERENCE:
        g = _without_idle_steps(g)
    with jax.numpy_dtype_promotion("standard"):  # strictness is for the arguments
        common = _wider(a.dtype, b.dtype)
        factor, total = _dtypes(common, num)
    way = NAMED[num.lowering].get(name)
    if way is None:
        way = getattr(auto.ways(g, a.shape[0], kernel_shape, common, num.platform), name)
    wide = num._replace(dtype=total)
    result = WAYS[name][way](a.astype(factor), b.astype(factor), g, wide)
    if jnp.iscomplexobj(result) and not jnp.issubdtype(num.dtype, jnp.complexfloating):
        result = lax.real(result)  # the gradient of a real operand
    return result.astype(num.dtype)


def _without_idle_steps(g: Geometry) -> Geometry:
    """The same map, of steps that lead nowhere: from a single pixel, and from a single tap.

    The stride of a single pixel becomes the kernel's length, so that no two products are taken to
    meet. A training step of 1x1x1x64 -> 21, 32x32: 0.02; of 64x1x1x100 -> 512, 4x4: 0.7.
    """
    strides = (
        max(s, span) if isinstance(n, int) and n == 1 else s
        for n, s, span in zip(g.input_size, g.strides, g.span, strict=True)
    )
    dilation = (d if k > 1 else 1 for k, d in zip(g.kernel_size, g.dilation_rate, strict=True))
    return dataclasses.replace(g, strides=tuple(strides), dilation_rate=tuple(dilation))


def _dtypes(common: Any, num: Numerics) -> tuple[Any, Any]:
    """What operands are computed in, and what their products are summed in."""
    total = _wider(num.dtype, common)
    if num.platform == "cuda" and jnp.issubdtype(total, jnp.integer):
        # Products of int8 whose sums were to be int32 came out doubled (jaxlib 0.11.2).
        total = total if total.itemsize >= 4 else jnp.dtype(jnp.int32)
        return total, total
    # XLA sums in more than it multiplies only within one kind of number; on CPU, of 8 bits or more.
    narrow = num.platform == "cpu" and jax.dtypes.itemsize_bits(common) < 8
    alike = _kind(common) == _kind(total)
    return (common if alike and not narrow else total), total


def _wider(a: Any, b: Any) -> Any:
    """What both dtypes promote to; of two that do not, the one of more bits."""
    try:
        return jnp.promote_types(a, b)
    except jax.dtypes.TypePromotionError:  # floats of 8 bits and integers of 4 promote to no other
        return max(a, b, key=jax.dtypes.itemsize_bits)


def _kind(dtype: Any) -> Any:
    kinds = (jnp.complexfloating, jnp.floating, jnp.integer)
    return next(kind for kind in kinds if jnp.issubdtype(dtype, kind))


# ------------------------------------------------------------------ the ways, by name

CONV_TRANSPOSE: dict[str, Way] = {
    "input_dilation": transposed.input_dilation,
    "subpixel": transposed.subpixel,
    "phases": functools.partial(transposed.subpixel, split=True),
    "matmul": products.conv_transpose,
    "planes": functools.partial(transposed.subpixel, convolve=convolve_planes),
    "plane_products": products.plane_products,
    "elementwise": elementwise.conv_transpose,
    "elementwise_phases": functools.partial(
        transposed.subpixel, split=True, convolve=elementwise.convolve
    ),
    "one_by_one": functools.partial(groups.one_by_one, conv_transpose),
}

CONV: dict[str, Way] = {
    "strided": windowed.strided,
    "blocks": windowed.blocks,
    "matmul": products.conv,
    "planes": functools.partial(windowed.strided, convolve=convolve_planes),
    "elementwise": functools.partial(windowed.strided, convolve=elementwise.convolve),
    "one_by_one": functools.partial(groups.one_by_one, conv),
}

CORRELATE_KERNEL: dict[str, Way] = {
    "backward_filter": filters.backward_filter,
    "flat_filter": filters.flat_filter,
    "phase_filter": filters.phase_filter,
    "matmul": products.correlate_kernel,
    "planes": filters.plane_filter,
    "elementwise": elementwise.correlate_kernel,
    "depthwise": depthwise.correlate_kernel,
    "one_by_one": functools.partial(groups.one_by_one, correlate_kernel),
}

WAYS = {"conv_transpose": CONV_TRANSPOSE, "conv": CONV, "correlate_kernel": CORRELATE_KERNEL}

# What each name of a lowering fixes; `upconv.auto` chooses the rest.
NAMED: dict[str, dict[str, str]] = {
    "auto": {},
    "input_dilation": {"conv_transpose": "input_dilation"},
    "subpixel": {"conv_transpose": "subpixel"},
    "matmul": PRODUCTS._asdict(),
    "lax": CONVOLUTIONS._asdict(),
}

REFERENCE = "lax"  # the convolutions themselves, and what JAX derives from them

LOWERINGS = tuple(NAMED)
