"""Depthwise layers, whose groups have one channel and one filter each.

XLA:CPU has only naive loops for convolutions of groups; and as products of matrices such layers
first move windows, which are many times as large. Here channels, which are contiguous in memory,
are multiplied number by number, and no window is made.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Sequence

import jax
from jax import lax

from upconv.geometry import Geometry, cdiv, dilated, windows
from upconv.lowering import strips
from upconv.lowering.axes import pad
from upconv.lowering.numerics import Numerics, accumulator
from upconv.lowering.phases import Run, split_phases


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
    strides, dilation = strides or (1,) * rank, rhs_dilation or (1,) * rank
    lhs, weights = lhs.astype(total), rhs.astype(total).reshape(-1, rhs.shape[-1])
    axes = list(zip(lhs.shape[1:-1], padding, dilation, rhs.shape[:-2], strict=True))
    sizes = [
        windows(n + lo + hi, dilated(k, d), s)
        for (n, (lo, hi), d, k), s in zip(axes, strides, strict=True)
    ]
    if max(strides) == 1:  # Padded once. 4x56x56x64, 3x3: 0.3. But at stride 2: 2.5.
        lhs = pad(lhs, [(0, 0, 0), *((lo, hi, 0) for lo, hi in padding), (0, 0, 0)])
        axes = [(n + lo + hi, (0, 0), d, k) for n, (lo, hi), d, k in axes]
    terms = []
    for i, tap in enumerate(itertools.product(*map(range, rhs.shape[:-2]))):
        firsts = [t * d - lo for t, (_, (lo, _), d, _) in zip(tap, axes, strict=True)]
        met = _pixels_met(lhs, firsts, strides, sizes)
        weight = lax.index_in_dim(weights, i, keepdims=False)
        terms.append(lax.mul(met, lax.broadcast_in_dim(weight, met.shape, (met.ndim - 1,))))
    return functools.reduce(lax.add, terms).astype(num.dtype)


def _pixels_met(
    a: jax.Array, firsts: Sequence[int], strides: Sequence[int], sizes: Sequence[int]
) -> jax.Array:
    """Along each axis `size` pixels, a stride apart, from `first` on; zeros outside the image."""
    starts, stops, ends = [], [], []
    for n, first, s, size in zip(a.shape[1:-1], firsts, strides, sizes, strict=True):
        start = min(max(cdiv(-first, s), 0), size)
        stop = min(max(cdiv(n - first, s), start), size)
        starts.append(first + start * s if start < stop else 0)
        stops.append(first + (stop - 1) * s + 1 if start < stop else 0)
        ends.append((start, size - stop, 0))
    batch, *_, channels = a.shape
    met = lax.slice(a, (0, *starts, 0), (batch, *stops, channels), (1, *strides, 1))
    return pad(met, [(0, 0, 0), *ends, (0, 0, 0)])


def correlate_kernel(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G in two steps: sums over a few images and rows, and then over what is left.

    XLA:CPU takes a sum over all pixels at once number by number, or writes the products first.
    """
    r, total = g.rank, accumulator(num.dtype)
    sums = strips.in_strips(_sums, x.astype(total), y.astype(total), g, num._replace(dtype=total))
    w = lax.reduce_sum(sums, [1, *range(2, 2 * r + 2, 2)])
    # (shifts, *strides, C) to (*kernel, 1, C)
    w = w.reshape(*map(len, _shifts(g)), *w.shape[1:])
    w = w.transpose(*itertools.chain.from_iterable((a, r + a) for a in range(r)), 2 * r)
    w = w.reshape(*map(operator.mul, w.shape[: 2 * r : 2], g.strides), 1, w.shape[-1])
    apart = [1 if s == 1 else d for s, d in zip(g.strides, g.dilation_rate, strict=True)]
    stops = [(k - 1) * d + 1 for k, d in zip(g.kernel_size, apart, strict=True)]
    return lax.slice(w, (0,) * w.ndim, (*stops, *w.shape[r:]), (*apart, 1, 1)).astype(num.dtype)


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
