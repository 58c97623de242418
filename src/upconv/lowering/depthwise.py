"""Depthwise layers, whose groups have one channel and one filter each.

XLA:CPU has only naive loops for convolutions of groups; and as products of matrices such layers
first move windows, which are many times as large. Here channels, which are contiguous in memory,
are multiplied number by number, and no window is made.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from upconv.geometry import Geometry, cdiv, dilated, windows
from upconv.lowering import strips
from upconv.lowering.axes import pad
from upconv.lowering.calls import kept_apart
from upconv.lowering.loops import repeat
from upconv.lowering.numerics import Numerics, accumulator
from upconv.lowering.phases import Run, split_phases

# Terms of a sum for every pixel, up to which XLA:CPU's compiler uses vectors; of more, one tap of
# an axis is added after another. C of 1x32x32x64, 16x16 / 8: 0.35, and 0.2 s to compile instead of
# 1.
MANY_TERMS = 128

# Strides that a kernel spans, beyond which G takes one of an axis after another. 4x28x28x96, 7x7,
# which spans 49: 0.8, and 0.4 s to compile instead of 2.
MANY_SHIFTS = 32

# Taps that reach beyond an image, up to which each looks where it ends; for more it is padded once.
# C of 1x64x64x64, 4x4 / 2, where twelve do: 0.35. But of 4x56x56x64, 3x3 / 2, where five do: 3.
FEW_EDGES = 8


class _Axis(NamedTuple):
    """How a window moves: the first tap meets `size` pixels, `stride` apart, from `first` on."""

    first: int
    stride: int
    size: int
    dilation: int

    def firsts(self, taps: int) -> range:
        """The first pixel that each tap meets."""
        return range(self.first, self.first + taps * self.dilation, self.dilation)

    def inside(self, taps: int, n: int) -> int:
        """How many taps meet nothing beyond the image's `n` pixels."""
        last = n - 1 - (self.size - 1) * self.stride
        return sum(0 <= first <= last for first in self.firsts(taps))


def convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    num: Numerics,
    *,
    padding: Sequence[tuple[int, int]],
    strides: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    groups: int,
) -> jax.Array:
    """A convolution of `(N, *space, C)` by `(*window, 1, C)`, as a sum for every pixel."""
    del groups  # as many as channels
    rank, total = lhs.ndim - 2, accumulator(num.dtype)
    lhs, w = lhs.astype(total), lax.squeeze(rhs.astype(total), (rank,))
    space, window = lhs.shape[1:-1], w.shape[:-1]
    strides, dilation = strides or (1,) * rank, rhs_dilation or (1,) * rank
    axes = [
        _Axis(-lo, s, windows(n + lo + hi, dilated(k, d), s), d)
        for n, (lo, hi), s, d, k in zip(space, padding, strides, dilation, window, strict=True)
    ]
    inside = math.prod(map(_Axis.inside, axes, window, space))
    few = math.prod(window) <= min(inside + FEW_EDGES, MANY_TERMS)
    if not few or max(strides) == 1:  # 4x56x56x64, 3x3 / 1: 0.3.
        lhs = pad(lhs, [(0, 0, 0), *((lo, hi, 0) for lo, hi in padding), (0, 0, 0)])
        axes = [axis._replace(first=0) for axis in axes]
    return _sum_of_taps(lhs, w, axes).astype(num.dtype)


def _sum_of_taps(a: jax.Array, w: jax.Array, axes: Sequence[_Axis]) -> jax.Array:
    """The products of what each tap of `(*window, C)` meets, summed up."""
    *window, channels = w.shape
    if math.prod(window) > MANY_TERMS:
        return _tap_by_tap(a, w, axes)
    weights = w.reshape(-1, channels)
    terms = []
    for i, firsts in enumerate(itertools.product(*map(_Axis.firsts, axes, window))):
        met = _pixels_met(a, firsts, axes)
        weight = lax.index_in_dim(weights, i, keepdims=False)
        terms.append(lax.mul(met, lax.broadcast_in_dim(weight, met.shape, (met.ndim - 1,))))
    return functools.reduce(lax.add, terms)


def _tap_by_tap(a: jax.Array, w: jax.Array, axes: Sequence[_Axis]) -> jax.Array:
    """The same within a padded image, one tap of the window's longest axis after another."""
    *window, channels = w.shape
    longest = window.index(max(window))
    axis = axes[longest]
    alone = [*axes]
    alone[longest] = _Axis(0, 1, axis.size, 1)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        met = lax.dynamic_slice_in_dim(
            a,
            lax.add(lax.mul(i, jnp.int32(axis.dilation)), jnp.int32(axis.first)),
            (axis.size - 1) * axis.stride + 1,
            1 + longest,
            allow_negative_indices=False,
        )
        met = lax.slice_in_dim(met, 0, None, axis.stride, 1 + longest)
        tap = lax.dynamic_slice_in_dim(w, i, 1, longest, allow_negative_indices=False)
        return lax.add(total, _sum_of_taps(met, tap, alone))

    sizes = (a.shape[0], *(axis.size for axis in axes), channels)
    return repeat(window[longest], add, jnp.zeros(sizes, a.dtype))


def _pixels_met(a: jax.Array, firsts: Sequence[int], axes: Sequence[_Axis]) -> jax.Array:
    """What a tap meets: pixels from `first` on; zeros outside the image."""
    starts, stops, ends = [], [], []
    for n, first, (_, s, size, _) in zip(a.shape[1:-1], firsts, axes, strict=True):
        start = min(max(cdiv(-first, s), 0), size)
        stop = min(max(cdiv(n - first, s), start), size)
        starts.append(first + start * s if start < stop else 0)
        stops.append(first + (stop - 1) * s + 1 if start < stop else 0)
        ends.append((start, size - stop, 0))
    batch, *_, channels = a.shape
    met = lax.slice(
        a, (0, *starts, 0), (batch, *stops, channels), (1, *(x.stride for x in axes), 1)
    )
    return pad(met, [(0, 0, 0), *ends, (0, 0, 0)])


def correlate_kernel(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G in two steps: sums over a few images and rows, and then over what is left.

    XLA:CPU takes a sum over all pixels at once number by number, or writes the products first.
    """
    r, total = g.rank, accumulator(num.dtype)
    w = _of_strides(x.astype(total), y.astype(total), g, num._replace(dtype=total))
    # (*shifts, *strides, C) to (*kernel, 1, C)
    w = w.transpose(*itertools.chain.from_iterable((a, r + a) for a in range(r)), 2 * r)
    w = w.reshape(*map(operator.mul, w.shape[: 2 * r : 2], g.strides), 1, w.shape[-1])
    apart = [1 if s == 1 else d for s, d in zip(g.strides, g.dilation_rate, strict=True)]
    stops = [(k - 1) * d + 1 for k, d in zip(g.kernel_size, apart, strict=True)]
    return lax.slice(w, (0,) * w.ndim, (*stops, *w.shape[r:]), (*apart, 1, 1)).astype(num.dtype)


def _of_strides(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G of all strides that a kernel spans: `(*shifts, *strides, C)`."""
    shifts = _shifts(g)
    if math.prod(map(len, shifts)) > MANY_SHIFTS:
        return _shift_by_shift(x, y, g, num)
    # Apart, or XLA:CPU makes one sum of the two. 1x16x16x16x32, 4x4x4 / 2: 0.15.
    sums = kept_apart(functools.partial(strips.in_strips, _sums, g=g, num=num))(x, y)
    w = lax.reduce_sum(sums, [1, *range(2, 2 * g.rank + 2, 2)])
    return w.reshape(*map(len, shifts), *w.shape[1:])


def _shift_by_shift(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """The same, one stride of the axis that has most after another."""
    shifts, r = _shifts(g), g.rank
    a = max(range(r), key=lambda a: len(shifts[a]))
    s, out = g.strides[a], g.input_size[a] * g.strides[a]
    one = dataclasses.replace(
        g,
        kernel_size=_put(g.kernel_size, a, s),
        dilation_rate=_put(g.dilation_rate, a, 1),
        crop=_put(g.crop, a, 0),
        output_size=_put(g.output_size, a, out),
    )
    ends = [(0, 0, 0)] * y.ndim
    ends[1 + a] = (g.crop[a], g.full_strides[a] * s - g.crop[a] - y.shape[1 + a], 0)
    y = pad(y, ends)

    def put(i: jax.Array, w: jax.Array) -> jax.Array:
        start = lax.mul(i, jnp.int32(shifts[a].step * s))
        met = lax.dynamic_slice_in_dim(y, start, out, 1 + a, allow_negative_indices=False)
        part = _of_strides(x, met, one, num)
        return lax.dynamic_update_slice_in_dim(w, part, i, a, allow_negative_indices=False)

    shape = (*map(len, shifts), *g.strides, x.shape[-1])
    return repeat(len(shifts[a]), put, jnp.zeros(shape, x.dtype))


def _put(values: Sequence[Any], i: int, value: Any) -> tuple[Any, ...]:
    return (*values[:i], value, *values[i + 1 :])


def _sums(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """Products of `(N, *n, C)` and `(N, *output, C)`, summed over equal parts of images and rows.

    What a kernel meets in one of the strides that it spans is taken together:
    `(shifts, images, rows, stride, ..., C)`, of one part.
    """
    del num  # operands have the dtype of the sum
    images, of_images = _parts(x.shape[0], strips.IMAGES)
    rows, of_rows = _parts(x.shape[1], strips.IMAGES // of_images)
    more_images, more_rows = images * of_images - x.shape[0], rows * of_rows - x.shape[1]
    none = [(0, 0, 0)] * g.rank
    x = pad(x, [(0, more_images, 0), (0, more_rows, 0), *none])
    y = pad(y, [(0, more_images, 0), (0, 0, 0), *none])
    g = dataclasses.replace(g, input_size=x.shape[1:-1])
    runs = [Run(0, 1, s, 0, m) for s, m in zip(g.strides, g.full_strides, strict=True)]
    # Without a barrier XLA:CPU slices again for some of the products. 8x64x64x64, 4x4 / 2: 0.4.
    x, y = lax.optimization_barrier((x, split_phases(y, runs, g)))
    sizes = zip((rows, *g.input_size[1:]), g.strides, strict=True)
    shape = (images, *itertools.chain.from_iterable(sizes), x.shape[-1])
    axes = (0, *range(1, 2 * g.rank + 1, 2), 2 * g.rank + 1)
    corners = [(i * images, j * rows) for i in range(of_images) for j in range(of_rows)]
    factors = [
        lax.broadcast_in_dim(
            _box(x, (i, j, *[0] * g.rank), (images, rows, *x.shape[2:])), shape, axes
        )
        for i, j in corners
    ]
    sums = []
    for first, *rest in itertools.product(*_shifts(g)):
        start = (0, *itertools.chain.from_iterable((i, 0) for i in rest), 0)
        terms = [
            lax.mul(factor, _box(y, (i, first + j, *start), shape))
            for (i, j), factor in zip(corners, factors, strict=True)
        ]
        sums.append(lax.expand_dims(functools.reduce(lax.add, terms), (0,)))
    return lax.concatenate(sums, 0)


def _parts(n: int, most: int) -> tuple[int, int]:
    """The size of a part, and how many of them hold `n`: no more than `most`."""
    size = max(cdiv(n, most), 1)
    return size, max(cdiv(n, size), 1)


def _box(a: jax.Array, start: Sequence[int], shape: Sequence[int]) -> jax.Array:
    return lax.slice(a, start, tuple(map(operator.add, start, shape)))


def _shifts(g: Geometry) -> list[range]:
    """The strides that a window spans, along each axis; at stride 1 only those that hold a tap."""
    axes = zip(g.phase_taps, g.strides, g.dilation_rate, strict=True)
    return [range(0, q, d if s == 1 else 1) for q, s, d in axes]
