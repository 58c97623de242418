"""How each map is computed, and which way is taken where.

The maps are those of `upconv.bilinear`: T, from ``x`` and ``w`` to ``y``; C, from ``y`` and
``w`` to ``x``; G, from ``x`` and ``y`` to ``w``.  Every way of computing one is a plain
function of two arrays, a `Geometry` and `Numerics`; none is ever differentiated.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from upconv.geometry import Geometry


class Numerics(NamedTuple):
    """How a map is computed, beside its geometry: hashable, static.

    Attributes:
      lowering: a name out of `LOWERINGS`.
      precision: as in `jax.lax.conv_general_dilated`.
      dtype: of the result; both operands are promoted to a common dtype.
    """

    lowering: str
    precision: Any
    dtype: Any


Map = Callable[[jax.Array, jax.Array, Geometry, Numerics], jax.Array]


# ------------------------------------------------------------------ convolutions


def _specs(rank: int, kernel_in: int, kernel_out: int) -> lax.ConvDimensionNumbers:
    """Channels last, and a kernel of two channel axes behind its spatial ones."""
    image = (0, rank + 1, *range(1, rank + 1))
    return lax.ConvDimensionNumbers(image, (kernel_out, kernel_in, *range(rank)), image)


def _by_output_channel(w: jax.Array, groups: int) -> jax.Array:
    """``(*k, co, groups * ci)`` as ``(*k, groups * co, ci)``, the layout of XLA's groups."""
    if groups == 1:
        return w
    w = w.reshape(*w.shape[:-1], groups, w.shape[-1] // groups)
    w = jnp.swapaxes(w, -3, -2)
    return w.reshape(*w.shape[:-3], w.shape[-3] * w.shape[-2], w.shape[-1])


def _input_dilation(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T as one convolution over the input with ``stride - 1`` zeros between its pixels."""
    pads = [(k - 1 - lo, k - 1 - hi) for k, (lo, hi) in zip(g.span, g.pads, strict=True)]
    return lax.conv_general_dilated(
        x,
        lax.rev(_by_output_channel(w, g.groups), range(g.rank)),
        window_strides=(1,) * g.rank,
        padding=pads,
        lhs_dilation=g.strides,
        rhs_dilation=g.dilation_rate,
        dimension_numbers=_specs(g.rank, kernel_in=g.rank + 1, kernel_out=g.rank),
        feature_group_count=g.groups,
        precision=num.precision,
        preferred_element_type=num.dtype,
    )


def _strided(y: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """C as what it is."""
    return lax.conv_general_dilated(
        y,
        w,
        window_strides=g.strides,
        padding=g.pads,
        rhs_dilation=g.dilation_rate,
        dimension_numbers=_specs(g.rank, kernel_in=g.rank, kernel_out=g.rank + 1),
        feature_group_count=g.groups,
        precision=num.precision,
        preferred_element_type=num.dtype,
    )


def _backward_filter(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G as the convolution of ``y`` by ``x``, with batch and channels exchanged."""
    swapped = (g.rank + 1, 0, *range(1, g.rank + 1))
    return lax.conv_general_dilated(
        y,
        x,
        window_strides=g.dilation_rate,
        padding=g.pads,
        rhs_dilation=g.strides,
        dimension_numbers=lax.ConvDimensionNumbers(
            swapped, swapped, (g.rank, g.rank + 1, *range(g.rank))
        ),
        batch_group_count=g.groups,
        precision=num.precision,
        preferred_element_type=num.dtype,
    )


# ------------------------------------------------------------------ subpixel


def _subpixel(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T as a stride-1 convolution to ``prod(strides)`` times the channels, then interleaved.

    Output ``m * s + r`` takes its taps from kernel position ``q * s + r`` at input ``m - q``.
    """
    taps = [-(-k // s) for k, s in zip(g.span, g.strides, strict=True)]
    first = [lo // s for lo, s in zip(g.crop, g.strides, strict=True)]
    last = [
        -(-(lo + out) // s) for lo, out, s in zip(g.crop, g.output_size, g.strides, strict=True)
    ]
    z = lax.conv_general_dilated(
        x,
        lax.rev(_phases_to_channels(_by_output_channel(w, g.groups), taps, g), range(g.rank)),
        window_strides=(1,) * g.rank,
        padding=[(t - 1 - a, b - n) for t, a, b, n in zip(taps, first, last, g.input_size, strict=True)],
        dimension_numbers=_specs(g.rank, kernel_in=g.rank + 1, kernel_out=g.rank),
        feature_group_count=g.groups,
        precision=num.precision,
        preferred_element_type=num.dtype,
    )
    y = _interleave(z, g)
    starts = [lo - a * s for lo, a, s in zip(g.crop, first, g.strides, strict=True)]
    return _window(y, starts, g.output_size)


def _phases_to_channels(w: jax.Array, taps: list[int], g: Geometry) -> jax.Array:
    """The kernel at every phase of the stride: ``(*taps, groups * prod(strides) * co, ci)``."""
    zero = jnp.zeros((), w.dtype)
    stuffed = [
        (0, t * s - k, d - 1)
        for t, s, k, d in zip(taps, g.strides, g.span, g.dilation_rate, strict=True)
    ]
    w = lax.pad(w, zero, [*stuffed, (0, 0, 0), (0, 0, 0)])
    out, ci = w.shape[-2:]
    split = itertools.chain.from_iterable(zip(taps, g.strides, strict=True))
    w = w.reshape(*split, g.groups, out // g.groups, ci)
    r = g.rank
    w = w.transpose(*range(0, 2 * r, 2), 2 * r, *range(1, 2 * r, 2), 2 * r + 1, 2 * r + 2)
    return w.reshape(*taps, out * math.prod(g.strides), ci)


def _interleave(z: jax.Array, g: Geometry) -> jax.Array:
    """Channels ``(groups, *strides, co)`` to space."""
    batch, *space, channels = z.shape
    r, co = g.rank, channels // (g.groups * math.prod(g.strides))
    z = z.reshape(batch, *space, g.groups, *g.strides, co)
    order = itertools.chain.from_iterable((1 + a, 2 + r + a) for a in range(r))
    z = z.transpose(0, *order, 1 + r, 2 + 2 * r)
    space = [m * s for m, s in zip(space, g.strides, strict=True)]
    return z.reshape(batch, *space, g.groups * co)


def _window(a: jax.Array, starts: Any, sizes: Any) -> jax.Array:
    """The window of ``a``'s spatial axes from ``starts``, zero where there is no ``a``."""
    config = [
        (-lo, lo + size - n, 0) for lo, size, n in zip(starts, sizes, a.shape[1:], strict=False)
    ]
    return lax.pad(a, jnp.zeros((), a.dtype), [(0, 0, 0), *config, (0, 0, 0)])


# ------------------------------------------------------------------ matrix products


def _matmul(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T as one matrix product, every input pixel by the whole kernel, then overlap-add."""
    acc = _accumulator(num.dtype)

    def block(x: jax.Array) -> jax.Array:
        # (N, *n, g, ci) by (*k, co, g, ci)
        r = g.rank
        p = _dot(
            _split_groups(x, g), _split_groups(w, g), contract=((r + 2,), (r + 2,)),
            batch=((r + 1,), (r + 1,)), num=num._replace(dtype=acc),
        )  # (g, N, *n, *k, co)
        p = jnp.moveaxis(p, 0, -2)
        p = p.reshape(*p.shape[:-2], -1)
        for axis in range(r):
            p = _overlap_add(p, axis, g)
        return p.astype(num.dtype)

    return _map_batch(block, x, _blocks(x.shape[0], g, w.shape))


def _matmul_strided(y: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """C as one matrix product of windows and kernel."""

    def block(y: jax.Array) -> jax.Array:
        # (N, *n, *k, g, co) by (*k, co, g, ci)
        r = g.rank
        p = _split_groups(_windows(y, g), g)
        taps = tuple(range(r + 1, 2 * r + 1))
        x = _dot(
            p, _split_groups(w, g), contract=((*taps, 2 * r + 2), (*range(r), r)),
            batch=((2 * r + 1,), (r + 1,)), num=num,
        )  # (g, N, *n, ci)
        x = jnp.moveaxis(x, 0, -2)
        return x.reshape(*x.shape[:-2], -1)

    return _map_batch(block, y, _blocks(y.shape[0], g, w.shape))


def _matmul_kernel_grad(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G as one matrix product of inputs and windows."""
    r = g.rank
    co = y.shape[-1] // g.groups
    acc = _accumulator(num.dtype)

    def block(x: jax.Array, y: jax.Array) -> jax.Array:
        # (N, *n, g, ci) by (N, *n, *k, g, co)
        xt = lax.optimization_barrier(jnp.moveaxis(_split_groups(x, g), (-2, -1), (0, 1)))
        p = _split_groups(_windows(y, g), g)
        space = tuple(range(r + 1))
        return _dot(
            xt, p, contract=(tuple(a + 2 for a in space), space), batch=((0,), (2 * r + 1,)),
            num=num._replace(dtype=acc),
        )  # (g, ci, *k, co)

    blocks = _blocks(x.shape[0], g, (*g.kernel_size, co, x.shape[-1]))
    if blocks == 1:
        dw = block(x, y)
    else:
        xs, ys = _cut(x, blocks), _cut(y, blocks)
        zero = jnp.zeros((g.groups, x.shape[-1] // g.groups, *g.kernel_size, co), acc)
        dw, _ = lax.scan(lambda acc, xy: (acc + block(*xy), None), zero, (xs, ys))
    dw = lax.optimization_barrier(dw)
    dw = jnp.moveaxis(dw, (0, 1), (-2, -1))  # (*k, co, g, ci)
    return dw.reshape(*dw.shape[:-2], -1).astype(num.dtype)


def _accumulator(dtype: Any) -> Any:
    """Sums of products in 16 bits are kept in 32."""
    return jnp.promote_types(dtype, jnp.float32) if jnp.finfo(dtype).bits < 32 else dtype


def _split_groups(a: jax.Array, g: Geometry) -> jax.Array:
    return a.reshape(*a.shape[:-1], g.groups, a.shape[-1] // g.groups)


def _dot(a: jax.Array, b: jax.Array, contract: Any, batch: Any, num: Numerics) -> jax.Array:
    return lax.dot_general(
        a, b, (contract, batch), precision=num.precision, preferred_element_type=num.dtype
    )


def _phases(g: Geometry, axis: int) -> int:
    """How many strides the kernel spans."""
    return -(-g.span[axis] // g.strides[axis])


def _windows(y: jax.Array, g: Geometry) -> jax.Array:
    """What every input pixel's kernel meets in ``y``: ``(N, *output, C)`` to ``(N, *n, *k, C)``."""
    for a in range(g.rank):
        n, s, q = g.input_size[a], g.strides[a], _phases(g, a)
        axis, m = 1 + a, n + q - 1
        y = _fit(y, axis, g.crop[a], m * s)
        y = y.reshape(*y.shape[:axis], m, s, *y.shape[axis + 1 :])
        y = jnp.concatenate(
            [lax.slice_in_dim(y, i, i + n, axis=axis) for i in range(q)], axis + 1
        )
        y = lax.slice_in_dim(y, 0, g.span[a], g.dilation_rate[a], axis=axis + 1)
        y = jnp.moveaxis(y, axis + 1, -2)
    return y


def _overlap_add(p: jax.Array, a: int, g: Geometry) -> jax.Array:
    """The transpose of `_windows` on one axis, earlier axes being done."""
    n, s, q, axis = g.input_size[a], g.strides[a], _phases(g, a), 1 + a
    p = jnp.moveaxis(p, a - g.rank - 1, axis + 1)
    zero = jnp.zeros((), p.dtype)
    stuff = [(0, 0, 0)] * p.ndim
    stuff[axis + 1] = (0, q * s - g.span[a], g.dilation_rate[a] - 1)
    p = lax.pad(p, zero, stuff)
    total = None
    for i in range(q):
        t = lax.slice_in_dim(p, i * s, (i + 1) * s, axis=axis + 1)
        shift = [(0, 0, 0)] * p.ndim
        shift[axis] = (i, q - 1 - i, 0)
        t = lax.pad(t, zero, shift)
        total = t if total is None else total + t
    total = total.reshape(*p.shape[:axis], (n + q - 1) * s, *p.shape[axis + 2 :])
    return _fit(total, axis, -g.crop[a], g.output_size[a])


def _fit(a: jax.Array, axis: int, start: Any, size: Any) -> jax.Array:
    """Shift ``a`` by ``start`` along ``axis`` and cut or extend it by zeros to ``size``."""
    config = [(0, 0, 0)] * a.ndim
    config[axis] = (start, size - start - a.shape[axis], 0)
    return lax.pad(a, jnp.zeros((), a.dtype), config)


# ------------------------------------------------------------------ blocks of the batch

BLOCK_BYTES = 4 << 20


def _blocks(batch: Any, g: Geometry, kernel: Any) -> int:
    """Into how many parts to cut the batch so that a part's windows stay in the cache."""
    if not isinstance(batch, int):
        return 1
    each = 4 * math.prod(g.input_size) * math.prod(kernel[:-1]) * g.groups
    return max(1, min(batch, math.ceil(batch * each / BLOCK_BYTES)))


def _cut(a: jax.Array, blocks: int) -> jax.Array:
    size = -(-a.shape[0] // blocks)
    a = lax.pad(a, jnp.zeros((), a.dtype), [(0, blocks * size - a.shape[0], 0), *[(0, 0, 0)] * (a.ndim - 1)])
    return a.reshape(blocks, size, *a.shape[1:])


def _map_batch(f: Callable[[jax.Array], jax.Array], a: jax.Array, blocks: int) -> jax.Array:
    if blocks == 1:
        return f(a)
    out = lax.map(f, _cut(a, blocks))
    out = out.reshape(-1, *out.shape[2:])
    return lax.slice_in_dim(out, 0, a.shape[0])


# ------------------------------------------------------------------ which way is taken where

TRANSPOSE: dict[str, Map] = {
    "input_dilation": _input_dilation, "subpixel": _subpixel, "matmul": _matmul,
}
STRIDED: dict[str, Map] = {"strided": _strided, "matmul": _matmul_strided}
KERNEL_GRAD: dict[str, Map] = {"backward_filter": _backward_filter, "matmul": _matmul_kernel_grad}
LOWERINGS = ("auto", "input_dilation", "subpixel", "matmul", "lax")
REFERENCE = "lax"
PLATFORMS = ("cpu",)


def compute(kind, lhs, rhs, g, num, platform, partitioned):
    name = "matmul" if num.lowering == "auto" else num.lowering
    dtype = jnp.promote_types(lhs.dtype, rhs.dtype)
    lhs, rhs = lhs.astype(dtype), rhs.astype(dtype)
    if kind == "xw":
        return TRANSPOSE[name](lhs, rhs, g, num)
    if kind == "yw":
        return STRIDED.get(name, _strided)(lhs, rhs, g, num)
    return KERNEL_GRAD.get(name, _backward_filter)(lhs, rhs, g, num)


def reference(x, w, g, num):
    dtype = jnp.promote_types(x.dtype, w.dtype)
    return _input_dilation(x.astype(dtype), w.astype(dtype), g, num)


def reference_strided(y, w, g, num):
    dtype = jnp.promote_types(y.dtype, w.dtype)
    return _strided(y.astype(dtype), w.astype(dtype), g, num)
