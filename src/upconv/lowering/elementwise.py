"""The maps of narrow groups, as products of numbers and their sums.

XLA:CPU has only naive loops for convolutions of groups, and multiplies matrices of a few rows and
columns number by number. Here groups come last, side by side in a vector, and every number of a
vector is multiplied by one of another; no window is made.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from upconv.auto import cpu
from upconv.geometry import Geometry, cdiv, dilated, windows
from upconv.lowering.axes import box, merge_first, merge_last, move, pad, split_groups
from upconv.lowering.calls import kept_apart
from upconv.lowering.loops import repeat
from upconv.lowering.numerics import Numerics, accumulator
from upconv.lowering.parts import Parts, in_parts
from upconv.lowering.products import overlap_add

# Taps that reach beyond an image, up to which each looks where it ends; for more it is padded once.
# C of 1x64x64x64, 4x4 / 2, where twelve do: 0.35. But of 4x56x56x64, 3x3 / 2, where five do: 3.
FEW_EDGES = 8


class _Moves(NamedTuple):
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


def conv_transpose(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T as an overlap-add of the products of every pixel by the whole kernel."""
    total = accumulator(num.dtype)
    x, w = (_groups_last(a.astype(total), g.groups) for a in (x, w))
    compute = functools.partial(_overlap_add, g=g)
    alone = x.shape[-2] == w.shape[-3] == 1  # nothing has moved, and nothing is moved back
    y = compute(x, w) if alone else kept_apart(compute)(x, w)
    return merge_last(move(y, 1, -1)).astype(num.dtype)


def _groups_last(a: jax.Array, groups: int) -> jax.Array:
    """`(..., groups * channels)` to `(..., channels, groups)`."""
    return move(split_groups(a, groups), -1, -2)


def _overlap_add(x: jax.Array, w: jax.Array, g: Geometry) -> jax.Array:
    """`(N, *n, ci, groups)` and `(*k, co, ci, groups)` to `(N, co, *output, groups)`.

    Filters are taken for images: next to groups they would keep XLA:CPU from using vectors.
    """
    r = g.rank
    w = move(w, r, 0)
    sizes = (x.shape[0], w.shape[0], *g.input_size, *g.kernel_size, g.groups)
    last = len(sizes) - 1
    terms = []
    for channel in range(x.shape[-2]):
        a, b = (lax.index_in_dim(c, channel, -2, keepdims=False) for c in (x, w))
        a = lax.broadcast_in_dim(a, sizes, (0, *range(2, r + 2), last))
        b = lax.broadcast_in_dim(b, sizes, (1, *range(r + 2, last), last))
        terms.append(lax.mul(a, b))
    y = overlap_add(merge_first(functools.reduce(lax.add, terms)), g)
    return y.reshape(*sizes[:2], *y.shape[1:])


def convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    num: Numerics,
    *,
    padding: Sequence[tuple[int, int]],
    strides: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    groups: int = 1,
) -> jax.Array:
    """A convolution of `(N, *space, groups * in)` by `(*window, in, groups * out)`."""
    rank, total = lhs.ndim - 2, accumulator(num.dtype)
    a, w = (_groups_last(b.astype(total), groups) for b in (lhs, rhs))
    space, (*window, channels, _, _) = lhs.shape[1:-1], w.shape
    strides, dilation = strides or (1,) * rank, rhs_dilation or (1,) * rank
    axes = [
        _Moves(-lo, s, windows(n + lo + hi, dilated(k, d), s), d)
        for n, (lo, hi), s, d, k in zip(space, padding, strides, dilation, window, strict=True)
    ]
    inside = math.prod(map(_Moves.inside, axes, window, space))
    few = math.prod(window) <= min(inside + FEW_EDGES, cpu.MANY_TERMS)
    if channels > 1 or not few or max(strides) == 1:  # 4x56x56x64, 3x3 / 1: 0.3.
        a = pad(a, [(0, 0, 0), *((lo, hi, 0) for lo, hi in padding), (0, 0, 0), (0, 0, 0)])
        axes = [axis._replace(first=0) for axis in axes]
    compute = functools.partial(_sum_of_taps, axes=axes)
    # Apart, or groups are put last again for every term.
    y = compute(a, w) if channels == 1 else kept_apart(compute)(a, w)
    return merge_last(move(y, -1, -2)).astype(num.dtype)


def _sum_of_taps(a: jax.Array, w: jax.Array, axes: Sequence[_Moves]) -> jax.Array:
    """The products of what each tap of `(*window, in, out, groups)` meets, summed up."""
    *window, channels, out, groups = w.shape
    if math.prod(window) * channels > cpu.MANY_TERMS and max(window) > 1:
        return _tap_by_tap(a, w, axes)
    sizes = (a.shape[0], *(axis.size for axis in axes), out, groups)
    every = range(len(sizes))
    # (1, out, groups) of each tap and channel
    weights = iter(lax.split(w.reshape(-1, out, groups), (1,) * (math.prod(window) * channels)))
    terms = []
    for firsts in itertools.product(*map(_Moves.firsts, axes, window)):
        met = _pixels_met(a, firsts, axes)
        for of_channel in lax.split(met, (1,) * channels, met.ndim - 2):
            factor = lax.broadcast_in_dim(of_channel, sizes, every)
            weight = lax.broadcast_in_dim(next(weights), sizes, (0, *every[-2:]))
            terms.append(lax.mul(factor, weight))
    return functools.reduce(lax.add, terms)


def _tap_by_tap(a: jax.Array, w: jax.Array, axes: Sequence[_Moves]) -> jax.Array:
    """The same within a padded image, one tap of the window's longest axis after another.

    C of 1x32x32x64 in 64 groups, 16x16 / 8: 0.35, and 0.2 s to compile instead of 1.
    """
    *window, _, out, groups = w.shape
    longest = window.index(max(window))
    axis = axes[longest]
    alone = [*axes]
    alone[longest] = _Moves(0, 1, axis.size, 1)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        met = lax.dynamic_slice_in_dim(
            a,
            lax.mul(i, jnp.int32(axis.dilation)),
            (axis.size - 1) * axis.stride + 1,
            1 + longest,
            allow_negative_indices=False,
        )
        met = lax.slice_in_dim(met, 0, None, axis.stride, 1 + longest)
        tap = lax.dynamic_slice_in_dim(w, i, 1, longest, allow_negative_indices=False)
        return lax.add(total, _sum_of_taps(met, tap, alone))

    sizes = (a.shape[0], *(axis.size for axis in axes), out, groups)
    return repeat(window[longest], add, jnp.zeros(sizes, a.dtype))


def _pixels_met(a: jax.Array, firsts: Sequence[int], axes: Sequence[_Moves]) -> jax.Array:
    """What a tap meets: pixels from `first` on; zeros outside the image."""
    starts, stops, ends = [], [], []
    for n, first, (_, s, size, _) in zip(a.shape[1:-2], firsts, axes, strict=True):
        start = min(max(cdiv(-first, s), 0), size)
        stop = min(max(cdiv(n - first, s), start), size)
        starts.append(first + start * s if start < stop else 0)
        stops.append(first + (stop - 1) * s + 1 if start < stop else 0)
        ends.append((start, size - stop, 0))
    batch, *_, channels, groups = a.shape
    met = lax.slice(
        a,
        (0, *starts, 0, 0),
        (batch, *stops, channels, groups),
        (1, *(axis.stride for axis in axes), 1, 1),
    )
    return pad(met, [(0, 0, 0), *ends, (0, 0, 0), (0, 0, 0)])


def correlate_kernel(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G tap by tap, in two steps: sums over a few images and rows, and then over what is left.

    XLA:CPU takes a sum over all pixels at once number by number, or writes the products first.
    """
    total = accumulator(num.dtype)
    x, y = (_groups_last(a.astype(total), g.groups) for a in (x, y))
    parts = in_parts(*x.shape[:2])
    rest = [(0, 0, 0)] * (g.rank + 1)
    x = pad(x, [*parts.ends, *rest])
    g = dataclasses.replace(g, input_size=x.shape[1:-2])
    axes = [
        _Moves(0, s, n, d) for s, n, d in zip(g.strides, g.input_size, g.dilation_rate, strict=True)
    ]
    y = pad(y, [parts.ends[0], *((lo, hi, 0) for lo, hi in g.pads), (0, 0, 0), (0, 0, 0)])
    # A call to each tap, after which its sums are forgotten. 8x28x28x128 -> 128, 3x3 / 2, in 32
    # groups: 0.65.
    taps = [
        kept_apart(functools.partial(_of_tap, firsts=firsts, axes=axes, parts=parts))(x, y)
        for firsts in itertools.product(*map(_Moves.firsts, axes, g.kernel_size))
    ]
    w = jnp.stack(taps).reshape(*g.kernel_size, *taps[0].shape)
    return merge_last(move(w, -1, -2)).astype(num.dtype)


def _of_tap(
    x: jax.Array, y: jax.Array, firsts: Sequence[int], axes: Sequence[_Moves], parts: Parts
) -> jax.Array:
    """G of one tap: `(co, ci, groups)`."""
    # Apart, or XLA:CPU makes one sum of the two.
    sums = kept_apart(functools.partial(_sums_of_tap, firsts=firsts, axes=axes, parts=parts))(x, y)
    return lax.reduce_sum(sums, range(sums.ndim - 3))


def _sums_of_tap(
    x: jax.Array, y: jax.Array, firsts: Sequence[int], axes: Sequence[_Moves], parts: Parts
) -> jax.Array:
    """Products of `x` and what a tap meets of `y`, summed over equal parts of images and rows.

    `(images, rows, ..., co, ci, groups)`, of one part.
    """
    size, met = (parts.images, parts.rows), _pixels_met(y, firsts, axes)
    shape = (*size, *x.shape[2:-2], y.shape[-2], *x.shape[-2:])
    *pixels, of_filters, of_channels, last = range(len(shape))
    terms = [
        lax.mul(
            lax.broadcast_in_dim(box(x, corner, size), shape, (*pixels, of_channels, last)),
            lax.broadcast_in_dim(box(met, corner, size), shape, (*pixels, of_filters, last)),
        )
        for corner in parts.corners
    ]
    return functools.reduce(lax.add, terms)
