"""G as convolutions. Only `backward_filter` takes groups."""

from __future__ import annotations

import itertools
import math
import operator

import jax
import numpy as np
from jax import lax

from upconv.geometry import Geometry
from upconv.lowering import strips
from upconv.lowering.axes import merge_first, merge_last, move, take_rows
from upconv.lowering.convolution import convolve, prepared
from upconv.lowering.numerics import Numerics
from upconv.lowering.phases import Run, all_phases, split_phases


def backward_filter(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G as the convolution of `y` by `x`, with batch and channels exchanged.

    In these dimension numbers XLA:GPU recognizes it and gives it to cuDNN's backward filter.
    """
    swapped = (g.rank + 1, 0, *range(1, g.rank + 1))
    kernel = (g.rank, g.rank + 1, *range(g.rank))
    y, padding, _ = prepared(y, g.pads, (1,) * g.rank)
    return lax.conv_general_dilated(
        y,
        x,
        window_strides=g.dilation_rate,
        padding=padding,
        rhs_dilation=g.strides,
        dimension_numbers=lax.ConvDimensionNumbers(swapped, swapped, kernel),
        batch_group_count=g.groups,
        precision=num.precision,
        preferred_element_type=num.dtype,
    )


def flat_filter(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G as `backward_filter`, with the last spatial axis of `y` and its channels merged.

    The output's last axis is then `k * co` long instead of `k`, and the rows of a matrix product
    are cut from it; nothing but the batch axis moves. The kernel of XLA sums over images first, for
    every pixel of the window: so a small batch is cut into more images, strips of rows, and a large
    one is taken in pieces. Strips: 0.6 on 2x64x64x128 -> 64, 3x3 / 2. Pieces: 0.65 on
    128x16x16x128 -> 64, 4x4 / 2.
    """
    return strips.in_strips(_flat_filter_at_once, x, y, g, num)


def _flat_filter_at_once(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """`flat_filter` as one convolution."""
    images_last = move(merge_last(y), 0, -1)
    w = _correlate(x, lax.expand_dims(images_last, (0,)), y.shape[-1], g, num)
    return w.reshape(*g.kernel_size, *w.shape[-2:])


def _correlate(x: jax.Array, y: jax.Array, co: int, g: Geometry, num: Numerics) -> jax.Array:
    """`(N, *n, ci)` and `(M, *output, N)` to `(M, *k, co, ci)`: G for `M` taps of another axis.

    The last spatial axis of the second holds its channels too. Where it is dilated, taps and
    channels are not one run of it, and the channels become images.

    The sum is taken from the last image to the first, because a transpose that reverses nothing
    goes to another emitter of XLA:CPU, which takes twice as long to compile.
    """
    apart = g.dilation_rate[-1] > 1
    padding, strides = list(g.pads), list(g.strides)
    if apart:
        y = y.reshape(*y.shape[:-2], g.output_size[-1], co, y.shape[-1])
        y = merge_first(move(y, -2, 1))
    else:
        padding[-1] = tuple(n * co for n in padding[-1])
        strides[-1] *= co
    w = convolve(
        lax.rev(y, (y.ndim - 1,)),
        lax.rev(move(x, 0, -2), (x.ndim - 2,)),
        num,
        padding=padding,
        stretched=x.shape[0] >= strips.IMAGES,
        strides=g.dilation_rate,
        rhs_dilation=strides,
    )
    if apart:
        return move(w.reshape(-1, co, *w.shape[1:]), 1, -2)
    return w.reshape(*w.shape[:-2], g.span[-1], co, w.shape[-1])


def phase_filter(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G with `x` as the image and the phases of `y`, side by side as channels, as the window.

    In `flat_filter` the rows of a matrix product have as many numbers as `x` has channels, here as
    many as the phases. A small batch is cut into strips here, too: 0.35 on
    1x128x128x3 -> 96, 5x5 / 1.

    The window moves from tap to tap, which must be in one phase: at stride 1 or without dilation.
    """
    return strips.in_strips(_phase_filter_at_once, x, y, g, num, in_pieces=False)


def _phase_filter_at_once(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """`phase_filter` as one convolution."""
    r = g.rank
    runs = [all_phases(g, axis) for axis in range(r)]
    y = split_phases(y, runs, g)
    # (N, pixels, stride, ..., co) to (*pixels, N, *strides, co)
    y = y.transpose(*range(1, 2 * r, 2), 0, *range(2, 2 * r + 1, 2), 2 * r + 1)
    w = convolve(
        x.transpose(r + 1, *range(1, r + 1), 0),
        y.reshape(*y.shape[: r + 1], math.prod(y.shape[r + 1 :])),
        num,
        padding=list(map(Run.padding, runs, g.input_size, g.phase_taps)),
        strides=g.dilation_rate,
    )
    # (ci, *taps reversed, *strides and co) to (taps, stride, ..., co, ci)
    w = lax.rev(w, range(1, r + 1)).reshape(*w.shape[: r + 1], *y.shape[r + 1 :])
    order = itertools.chain.from_iterable((1 + a, 1 + r + a) for a in range(r))
    w = w.transpose(*order, 2 * r + 1, 0)
    w = w.reshape(*map(operator.mul, w.shape[: 2 * r : 2], g.strides), *w.shape[2 * r :])
    return lax.slice(w, (0,) * w.ndim, (*g.kernel_size, *w.shape[r:]))


def plane_filter(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G with one spatial axis less: the images of a tap are the planes that it meets."""
    (n, *_), (k, *_), (s, *_), (d, *_), (lo, *_) = (
        g.input_size, g.kernel_size, g.strides, g.dilation_rate, g.crop
    )  # fmt: skip
    planes = take_rows(merge_last(y), np.arange(k)[:, None] * d + np.arange(n) * s - lo)
    # (N, k, n, ...) to (k, ..., N * n)
    planes = merge_last(planes.transpose(1, *range(3, planes.ndim), 0, 2))
    w = _correlate(merge_first(x), planes, y.shape[-1], g.plane, num)
    return w.reshape(*g.kernel_size, y.shape[-1], x.shape[-1])
