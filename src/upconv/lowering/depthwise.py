"""G of depthwise layers, whose groups have one channel and one filter each."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator

import jax
import jax.numpy as jnp
from jax import lax

from upconv.geometry import Geometry, dilated
from upconv.lowering import strips
from upconv.lowering.axes import box, pad
from upconv.lowering.calls import kept_apart
from upconv.lowering.loops import repeat
from upconv.lowering.numerics import Numerics, accumulator
from upconv.lowering.parts import in_parts
from upconv.lowering.phases import split_phases, whole_strides

# Strides that a kernel spans, beyond which one of an axis is taken after another. 4x28x28x96, 7x7,
# which spans 49: 0.8, and 0.4 s to compile instead of 2.
MANY_SHIFTS = 32


def correlate_kernel(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G in two steps: sums over a few images and rows, and then over what is left.

    XLA:CPU takes a sum over all pixels at once number by number, or writes the products first.
    Here all taps that a stride holds are taken together, which reads `y` in one run.
    """
    r, total = g.rank, accumulator(num.dtype)
    w = _of_strides(x.astype(total), y.astype(total), g, num._replace(dtype=total))
    # (*shifts, *strides, C) to (*kernel, 1, C)
    w = w.transpose(*itertools.chain.from_iterable((a, r + a) for a in range(r)), 2 * r)
    w = w.reshape(*map(operator.mul, w.shape[: 2 * r : 2], g.strides), 1, w.shape[-1])
    apart = [1 if s == 1 else d for s, d in zip(g.strides, g.dilation_rate, strict=True)]
    stops = map(dilated, g.kernel_size, apart)
    return lax.slice(w, (0,) * w.ndim, (*stops, *w.shape[r:]), (*apart, 1, 1)).astype(num.dtype)


def _of_strides(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G of all strides that a kernel spans: `(*shifts, *strides, C)`."""
    shifts = _shifts(g)
    if math.prod(map(len, shifts)) > MANY_SHIFTS:
        return _shift_by_shift(x, y, g, num)
    # Apart, or XLA:CPU makes one sum of the two. 1x16x16x16x32, 4x4x4 / 2: 0.15.
    sums = kept_apart(functools.partial(strips.in_strips, _sums_of_strides, g=g, num=num))(x, y)
    w = lax.reduce_sum(sums, [1, *range(2, 2 * g.rank + 2, 2)])
    return w.reshape(*map(len, shifts), *w.shape[1:])


def _shift_by_shift(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """The same, one stride of the axis that has most after another."""
    shifts, r = _shifts(g), g.rank
    a = max(range(r), key=lambda a: len(shifts[a]))
    s, out = g.strides[a], g.input_size[a] * g.strides[a]
    one = g.with_axis(a, kernel_size=s, dilation_rate=1, crop=0, output_size=out)
    ends = [(0, 0, 0)] * y.ndim
    ends[1 + a] = (*g.stride_pads[a], 0)
    y = pad(y, ends)

    def put(i: jax.Array, w: jax.Array) -> jax.Array:
        start = lax.mul(i, jnp.int32(shifts[a].step * s))
        met = lax.dynamic_slice_in_dim(y, start, out, 1 + a, allow_negative_indices=False)
        part = _of_strides(x, met, one, num)
        return lax.dynamic_update_slice_in_dim(w, part, i, a, allow_negative_indices=False)

    shape = (*map(len, shifts), *g.strides, x.shape[-1])
    return repeat(len(shifts[a]), put, jnp.zeros(shape, x.dtype))


def _sums_of_strides(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """Products of `(N, *n, C)` and `(N, *output, C)`, summed over equal parts of images and rows.

    What a kernel meets in one of the strides that it spans is taken together:
    `(shifts, images, rows, stride, ..., C)`, of one part.
    """
    del num  # operands have the dtype of the sum
    parts = in_parts(*x.shape[:2])
    none = [(0, 0, 0)] * g.rank
    x = pad(x, [*parts.ends, *none])
    y = pad(y, [parts.ends[0], (0, 0, 0), *none])
    g = dataclasses.replace(g, input_size=x.shape[1:-1])
    y = split_phases(y, [whole_strides(g, axis) for axis in range(g.rank)], g)
    # Without a barrier XLA:CPU slices again for some of the products. 8x64x64x64, 4x4 / 2: 0.4.
    x, y = lax.optimization_barrier((x, y))
    sizes = zip((parts.rows, *g.input_size[1:]), g.strides, strict=True)
    shape = (parts.images, *itertools.chain.from_iterable(sizes), x.shape[-1])
    axes = (0, *range(1, 2 * g.rank + 1, 2), 2 * g.rank + 1)
    factors = [
        lax.broadcast_in_dim(box(x, corner, (parts.images, parts.rows)), shape, axes)
        for corner in parts.corners
    ]
    sums = []
    for first, *rest in itertools.product(*_shifts(g)):
        start = (0, *itertools.chain.from_iterable((i, 0) for i in rest), 0)
        terms = [
            lax.mul(factor, box(y, (i, first + j, *start), shape))
            for (i, j), factor in zip(parts.corners, factors, strict=True)
        ]
        sums.append(lax.expand_dims(functools.reduce(lax.add, terms), (0,)))
    return lax.concatenate(sums, 0)


def _shifts(g: Geometry) -> list[range]:
    """The strides that a window spans, along each axis; at stride 1 only those that hold a tap."""
    axes = zip(g.phase_taps, g.strides, g.dilation_rate, strict=True)
    return [range(0, q, d if s == 1 else 1) for q, s, d in axes]
