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

A figure in a comment is the time with what is explained there, relative to the time without it:
0.4 is two and a half times as fast.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from upconv import auto
from upconv.auto import cpu
from upconv.geometry import Geometry, Size


class Numerics(NamedTuple):
    """What a map's result depends on beside its operands and geometry: hashable, static.

    Attributes:
      lowering: a name out of `LOWERINGS`.
      precision: as in `jax.lax.conv_general_dilated`.
      dtype: of the result; both operands are promoted to a common dtype.
      platform: of the single device that computes the map, which is known only when it is lowered;
        None where several do.
    """

    lowering: str
    precision: Any
    dtype: Any
    platform: str | None = None


Way = Callable[[jax.Array, jax.Array, Geometry, Numerics], jax.Array]
Convolve = Callable[..., jax.Array]


# ------------------------------------------------------------------ convolutions


class _Window(NamedTuple):
    """How a convolution's window moves: an entry per spatial axis, but for `groups`."""

    padding: Sequence[tuple[Size, Size]]
    strides: Sequence[int]
    lhs_dilation: Sequence[int]
    rhs_dilation: Sequence[int]
    groups: int

    def stretched(self) -> _Window:
        """The same sums with a zero row after every row of image and window, in two dimensions."""
        (lo, hi), columns = self.padding

        def rows_apart(steps: Sequence[int]) -> tuple[int, int]:
            return 2 * steps[0], steps[1]

        return self._replace(
            padding=((2 * lo, 2 * hi), columns),
            strides=rows_apart(self.strides),
            lhs_dilation=rows_apart(self.lhs_dilation),
            rhs_dilation=rows_apart(self.rhs_dilation),
        )


def _convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    num: Numerics,
    *,
    padding: Sequence[tuple[Size, Size]],
    strides: Sequence[int] | None = None,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    groups: int = 1,
    stretched: bool = False,
) -> jax.Array:
    """A convolution of `(N, *space, in)` by `(*window, in // groups, out)`.

    XLA:CPU has two kernels for two dimensions, YNNPACK's and Eigen's. Where Eigen's is the faster
    one, or `stretched` says so, a zero row is put after every row of image and window: the same
    sums, but only Eigen's kernel takes them.
    """
    rank = lhs.ndim - 2
    ones = (1,) * rank
    lhs, padding, lhs_dilation = _prepared(lhs, padding, lhs_dilation or ones)
    window = _Window(padding, strides or ones, lhs_dilation, rhs_dilation or ones, groups)
    if num.platform == "cpu" and rank < 3 and _is_exchanged(lhs, rhs, window):
        lhs, window, stretched = _padded_apart(lhs, window), _without_padding(window), True
        if rank == 1:
            return _convolve_as_row(lhs, rhs, num, window)
    takes_it = num.platform == "cpu" and rank == 2 and _is_for_eigen(lhs.dtype)
    if takes_it and (stretched or _is_faster_by_eigen(lhs, rhs, window)):
        window = window.stretched()
    image = (0, rank + 1, *range(1, rank + 1))
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides=window.strides,
        padding=window.padding,
        lhs_dilation=window.lhs_dilation,
        rhs_dilation=window.rhs_dilation,
        dimension_numbers=lax.ConvDimensionNumbers(image, (rank + 1, rank, *range(rank)), image),
        feature_group_count=window.groups,
        precision=num.precision,
        preferred_element_type=num.dtype,
    )


def _convolve_as_row(lhs: jax.Array, rhs: jax.Array, num: Numerics, window: _Window) -> jax.Array:
    """One dimension as a row of two, which alone can be stretched."""
    return lax.squeeze(
        _convolve(
            lax.expand_dims(lhs, (1,)),
            lax.expand_dims(rhs, (0,)),
            num,
            padding=((0, 0), *window.padding),
            strides=(1, *window.strides),
            lhs_dilation=(1, *window.lhs_dilation),
            rhs_dilation=(1, *window.rhs_dilation),
            groups=window.groups,
            stretched=True,
        ),
        (1,),
    )


def _prepared(
    a: jax.Array, padding: Sequence[tuple[Size, Size]], dilation: Sequence[int]
) -> tuple[jax.Array, Sequence[tuple[int, int]], Sequence[int]]:
    """An image, its padding and its dilation, after what must not be left to a convolution.

    A convolution takes no symbolic padding; and XLA:CPU before jaxlib 0.12 reads beyond an image
    that is cropped in front and padded behind (openxla/xla#48713).
    """
    if not all(isinstance(n, int) for n in itertools.chain.from_iterable(padding)):
        ends = [(lo, hi, d - 1) for (lo, hi), d in zip(padding, dilation, strict=True)]
        padding, dilation = [(0, 0)] * len(padding), (1,) * len(padding)
    elif set(dilation) == {1} and any(lo < 0 for lo, _ in padding):
        front = [min(max(-lo, 0), n) for (lo, _), n in zip(padding, a.shape[1:-1], strict=True)]
        ends = [(-n, 0, 0) for n in front]
        padding = [(lo + n, hi) for (lo, hi), n in zip(padding, front, strict=True)]
    else:
        return a, padding, dilation
    return _pad(a, [(0, 0, 0), *ends, (0, 0, 0)]), padding, dilation


def _is_exchanged(lhs: jax.Array, rhs: jax.Array, window: _Window) -> bool:
    """Whether XLA exchanges image and window, as it does where the window has more pixels.

    XLA:CPU has only a naive loop for what comes of that, unless the image is padded beforehand
    and stretched. C of 16x8x8x512 -> 12, 9x9: 0.02.
    """
    static = all(isinstance(n, int) for n in lhs.shape[1:-1])
    plain = window.groups == 1 and set(window.lhs_dilation) == {1}
    return static and plain and math.prod(rhs.shape[:-2]) > math.prod(lhs.shape[1:-1])


def _padded_apart(a: jax.Array, window: _Window) -> jax.Array:
    """An image, padded where XLA does not see that the convolution could pad it."""
    ends = [(lo, hi, 0) for lo, hi in window.padding]
    a = _pad(lax.expand_dims(a, (0,)), [(0, 0, 0), (0, 0, 0), *ends, (0, 0, 0)])
    return lax.squeeze(a, (0,))


def _is_for_eigen(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize <= 4


def _without_padding(window: _Window) -> _Window:
    return window._replace(padding=((0, 0),) * len(window.padding))


# Channels that a convolution takes and gives, from which Eigen's kernel is the faster one.
EIGEN_TAKES, EIGEN_GIVES = (16, 48) if cpu.PARALLEL_YNNPACK else (8, 16)

# Products of a pixel by a tap, from which it is. T of 16x96x96x8 -> 16, 5x5: 1.5.
EIGEN_PRODUCTS = 16 * 16

# Pixels of an output up to which it is, where YNNPACK's kernel uses all cores.
EIGEN_PIXELS = 32 * 32

# Numbers of an image alone from which YNNPACK's kernel has always used all cores.
LARGE_ALONE = 4 << 20


def _is_faster_by_eigen(lhs: jax.Array, rhs: jax.Array, window: _Window) -> bool:
    """Whether XLA:CPU would take YNNPACK's kernel, but Eigen's is faster.

    YNNPACK's is taken where the output is not larger than the input. Before jaxlib 0.11 it mostly
    leaves cores idle, but does better where few channels are given. C of 16x32x32x32 -> 96, 3x3:
    0.5 by Eigen's kernel; of 64x32x32x8 -> 64, 3x3 / 2: 0.6. But of 4x64x64x32 -> 4, 3x3: 3, and of
    1x256x256x64 -> 64, 4x4 / 2: 1.1. With jaxlib 0.12, of 32x8x8x256 -> 512, 4x4 / 2: 0.9, and 0.4
    on the Xeon. But of 2x64x64x128 -> 64, 3x3: 1.15, and of 32x28x28x48 -> 3, 5x5: 4.
    """
    if not all(isinstance(n, int) for n in lhs.shape):
        return False
    axes = list(zip(lhs.shape[1:], window.padding, window.rhs_dilation, rhs.shape, strict=False))
    smaller = all(lo + hi <= d * (k - 1) for _, (lo, hi), d, k in axes)
    plain = window.groups == 1 and tuple(window.lhs_dilation) == (1, 1)
    takes, gives = lhs.shape[-1], rhs.shape[-1]
    many = takes >= EIGEN_TAKES and gives >= EIGEN_GIVES and takes * gives >= EIGEN_PRODUCTS
    if not (plain and smaller and many):
        return False
    if not cpu.PARALLEL_YNNPACK:
        return lhs.shape[0] > 1 or lhs.size < LARGE_ALONE
    pixels = math.prod(
        (n + lo + hi - d * (k - 1) - 1) // s + 1
        for (n, (lo, hi), d, k), s in zip(axes, window.strides, strict=True)
    )
    return lhs.shape[0] > 1 and pixels <= EIGEN_PIXELS


def _swapped(w: jax.Array, g: Geometry) -> jax.Array:
    """A kernel `(*k, co, groups * ci)` as T convolves by it: `(*k, ci, groups * co)`."""
    r = g.rank
    w = _split_groups(w, g).transpose(*range(r), r + 2, r + 1, r)
    return _merge_last(w)


def _input_dilation(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T as one convolution over the input with `stride - 1` zeros between its pixels."""
    padding = [(k - 1 - lo, k - 1 - hi) for k, (lo, hi) in zip(g.span, g.pads, strict=True)]
    # XLA:CPU takes a window of 2 without pads over pixels 2 apart for groups that it has merged
    # into space, and aborts where it then exchanges the operands (jaxlib 0.10.2 and 0.12.0).
    like_groups = [
        p == (0, 0) and k == s == 2 and d == 1
        for p, k, s, d in zip(padding, g.kernel_size, g.strides, g.dilation_rate, strict=True)
    ]
    y = _convolve(
        x,
        lax.rev(_swapped(w, g), range(g.rank)),
        num,
        padding=[(0, 1) if p else pad for p, pad in zip(like_groups, padding, strict=True)],
        lhs_dilation=g.strides,
        rhs_dilation=g.dilation_rate,
        groups=g.groups,
    )
    for axis in range(g.rank):
        if like_groups[axis]:
            y = lax.slice_in_dim(y, 0, g.output_size[axis], axis=1 + axis)
    return y


def _strided(
    y: jax.Array, w: jax.Array, g: Geometry, num: Numerics, convolve: Convolve = _convolve
) -> jax.Array:
    """C as one strided convolution."""
    return convolve(
        y,
        w,
        num,
        strides=g.strides,
        padding=g.pads,
        rhs_dilation=g.dilation_rate,
        groups=g.groups,
    )


def _blocks(y: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """C by blocks of a stride each, which do not overlap.

    A convolution gives for every block what each of the windows that it lies in takes from it, side
    by side: `prod(q)` times as many channels, where few would leave vectors idle. Each window is
    then the sum of what its blocks give it.
    """
    r, taps = g.rank, g.phase_taps
    w = _split_groups(_split_strides(w, 0, g), g)
    # (taps, stride, ..., co, groups, ci) to (*strides, co, groups, *taps, ci)
    w = w.transpose(*range(1, 2 * r, 2), 2 * r, 2 * r + 1, *range(0, 2 * r, 2), 2 * r + 2)
    m = [n + q - 1 for n, q in zip(g.input_size, taps, strict=True)]
    z = _convolve(
        y,
        w.reshape(*w.shape[: r + 1], math.prod(w.shape[r + 1 :])),
        num._replace(dtype=_accumulator(num.dtype)),
        padding=[
            (lo, size * s - lo - out)
            for lo, size, s, out in zip(g.crop, m, g.strides, g.output_size, strict=True)
        ],
        strides=g.strides,
        groups=g.groups,
        stretched=True,
    )
    z = z.reshape(*z.shape[:-1], *w.shape[r + 1 :])
    parts = []
    for shift in itertools.product(*map(range, taps)):
        stops = map(operator.add, shift, g.input_size)
        ends = map(operator.add, shift, (1,) * r)
        part = lax.slice(
            z,
            (0, *shift, 0, *shift, 0),
            (z.shape[0], *stops, g.groups, *ends, z.shape[-1]),
        )
        parts.append(part.reshape(*part.shape[: r + 1], g.groups * part.shape[-1]))
    return functools.reduce(lax.add, parts).astype(num.dtype)


def _backward_filter(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G as the convolution of `y` by `x`, with batch and channels exchanged.

    In these dimension numbers XLA:GPU recognizes it and gives it to cuDNN's backward filter.
    """
    swapped = (g.rank + 1, 0, *range(1, g.rank + 1))
    kernel = (g.rank, g.rank + 1, *range(g.rank))
    y, padding, _ = _prepared(y, g.pads, (1,) * g.rank)
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


# How many images, or strips of them, one sum should have. With 4 strips, which stretching does not
# help, 2x64x64x128 -> 64, 3x3 / 2 takes 2.5 times as long, and with 16 of them 1.3.
IMAGES = 8

# Bytes of `y` in a piece; what would make fewer than four pieces is not cut.
PIECE = 4 << 20


def _flat_filter(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G as `_backward_filter`, with the last spatial axis of `y` and its channels merged.

    The output's last axis is then `k * co` long instead of `k`, and the rows of a matrix product
    are cut from it; nothing but the batch axis moves. The kernel of XLA sums over images first, for
    every pixel of the window: so a small batch is cut into more images, strips of rows, and a large
    one is taken in pieces. Strips: 0.6 on 2x64x64x128 -> 64, 3x3 / 2. Pieces: 0.65 on
    128x16x16x128 -> 64, 4x4 / 2.
    """
    if g.groups > 1 or g.dilation_rate[-1] > 1:  # the taps are not one run of the merged axis
        return _backward_filter(x, y, g, num)
    rows, pieces = _cut(x.shape[0], y.nbytes, g)
    if rows == g.input_size[0] and pieces == 1:
        return _flat_filter_at_once(x, y, g, num)
    strip, met = _strip(g, rows)
    x = _strips_of_input(x, strip, met)
    if pieces > 1:
        return _sum_of_pieces(pieces, x, y, strip, met, num)
    return _flat_filter_at_once(x, _strips_of_output(y, met), strip, num)


def _cut(images: int, size: int, g: Geometry) -> tuple[int, int]:
    """How many rows of `x` a strip has, and in how many pieces `y`, of `size` bytes, is taken."""
    n = g.input_size[0]
    taps = g.phase_taps[0]
    # Neighbouring strips both meet `taps - 1` strides of rows: fewer than half of a strip's, or,
    # where an image alone is slow, fewer than all. 16x16x21 -> 21, 32x32 / 16, with jaxlib 0.12:
    # 0.4; with 0.10.2 it was 0.8, for twice the memory.
    allowed = (2 * taps, taps) if cpu.PARALLEL_YNNPACK else (2 * taps,)
    enough = [r for r in allowed if r < n and images * -(-n // r) >= IMAGES]
    least = enough[0] if enough else n
    pieces = -(-size // PIECE) if size >= 4 * PIECE else 1
    pieces = min(pieces, max(images * -(-n // least) // IMAGES, 1))
    rows = max(-(-n // -(-IMAGES * pieces // max(images, 1))), least)
    strips = -(-n // rows)
    return rows, next((p for p in range(pieces, 1, -1) if images * strips % p == 0), 1)


def _strip(g: Geometry, rows: int) -> tuple[Geometry, np.ndarray]:
    """The geometry of a strip, and the rows of `y` that each meets: `(strips, rows met)`."""
    strips, s = -(-g.input_size[0] // rows), g.strides[0]
    met = (rows - 1) * s + g.span[0]
    strip = dataclasses.replace(
        g,
        input_size=(rows, *g.input_size[1:]),
        crop=(0, *g.crop[1:]),
        output_size=(met, *g.output_size[1:]),
    )
    return strip, np.arange(strips)[:, None] * rows * s + np.arange(met) - g.crop[0]


def _strips_of_input(x: jax.Array, strip: Geometry, met: np.ndarray) -> jax.Array:
    """The strips of `x`, as images; zeros fill up the last."""
    strips, (rows, *_) = met.shape[0], strip.input_size
    x = _pad(x, [(0, 0, 0), (0, rows * strips - x.shape[1], 0), *[(0, 0, 0)] * strip.rank])
    return x.reshape(x.shape[0] * strips, rows, *x.shape[2:])


def _strips_of_output(y: jax.Array, met: np.ndarray) -> jax.Array:
    """What the strips meet of `y`, as images."""
    return _merge_first(_take_rows(y, met))


def _sum_of_pieces(
    pieces: int, x: jax.Array, y: jax.Array, strip: Geometry, met: np.ndarray, num: Numerics
) -> jax.Array:
    """G of strips of `x`, one piece of them after another, each with what it meets of `y`.

    By `while_loop`, because `scan` makes further calls inside a call that XLA does not inline.
    """
    height = y.shape[1]
    inside = np.clip(met, 0, height - 1)
    row = np.arange(y.shape[0])[:, None, None] * height + inside
    there = np.broadcast_to(met == inside, row.shape)
    y = _merge_first(y)
    of_rows = lax.GatherDimensionNumbers((2, *range(3, y.ndim + 1)), (0,), (0,))
    stacks = [
        a.reshape(pieces, -1, *a.shape[rest:])
        for a, rest in ((x, 1), (jnp.asarray(row, np.int32), 2), (jnp.asarray(there), 2))
    ]
    wide = num._replace(dtype=_accumulator(num.dtype))

    def add(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, w = state
        x, row, there = (_take_piece(stack, i) for stack in stacks)
        part = lax.gather(
            y,
            lax.expand_dims(row, (2,)),
            of_rows,
            (1, *y.shape[1:]),
            mode="promise_in_bounds",  # a check would be a loop of its own
        )
        there = lax.broadcast_in_dim(there, part.shape, (0, 1))
        part = lax.select(there, part, jnp.zeros_like(part))
        return lax.add(i, jnp.int32(1)), lax.add(w, _flat_filter_at_once(x, part, strip, wide))

    zero = jnp.zeros((*strip.kernel_size, y.shape[-1], x.shape[-1]), wide.dtype)
    start = (jnp.int32(0), zero)
    _, w = lax.while_loop(lambda state: lax.lt(state[0], jnp.int32(pieces)), add, start)
    return w.astype(num.dtype)


def _take_piece(a: jax.Array, i: jax.Array) -> jax.Array:
    start = (i, *[jnp.int32(0)] * (a.ndim - 1))
    piece = lax.dynamic_slice(a, start, (1, *a.shape[1:]), allow_negative_indices=False)
    return lax.squeeze(piece, (0,))


def _flat_filter_at_once(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """`_flat_filter` as one convolution."""
    images_last = _move(_merge_last(y), 0, -1)
    w = _correlate(x, lax.expand_dims(images_last, (0,)), y.shape[-1], g, num)
    return w.reshape(*g.kernel_size, *w.shape[-2:])


def _correlate(x: jax.Array, y: jax.Array, co: int, g: Geometry, num: Numerics) -> jax.Array:
    """`(N, *n, ci)` and `(M, *output, N)` to `(M, *k, co, ci)`: G for `M` taps of another axis.

    The last spatial axis of the second holds its channels too. The sum is taken from the last image
    to the first, because a transpose that reverses nothing goes to another emitter of XLA:CPU,
    which takes twice as long to compile.
    """
    lo, hi = g.pads[-1]
    *strides, d = g.dilation_rate
    w = _convolve(
        lax.rev(y, (y.ndim - 1,)),
        lax.rev(_move(x, 0, -2), (x.ndim - 2,)),
        num,
        padding=[*g.pads[:-1], (lo * co, hi * co)],
        stretched=x.shape[0] >= IMAGES,
        strides=(*strides, 1),
        rhs_dilation=(*g.strides[:-1], g.strides[-1] * co),
    )
    w = w.reshape(*w.shape[:-2], g.span[-1], co, w.shape[-1])
    return w if d == 1 else lax.slice_in_dim(w, 0, None, d, axis=-3)


def _phase_filter(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G with `x` as the image and the phases of `y`, side by side as channels, as the window.

    In `_flat_filter` the rows of a matrix product have as many numbers as `x` has channels, here as
    many as the phases. A small batch is cut into strips here, too: 0.35 on
    1x128x128x3 -> 96, 5x5 / 1.
    """
    rows, _ = _cut(x.shape[0], 0, g)
    if rows < g.input_size[0]:
        g, met = _strip(g, rows)
        x, y = _strips_of_input(x, g, met), _strips_of_output(y, met)
    r, taps = g.rank, g.phase_taps
    runs = [_run(g, axis) for axis in range(r)]
    y = _split_phases(y, runs, g)
    # (N, pixels, stride, ..., co) to (*pixels, N, *strides, co)
    y = y.transpose(*range(1, 2 * r, 2), 0, *range(2, 2 * r + 1, 2), 2 * r + 1)
    w = _convolve(
        x.transpose(r + 1, *range(1, r + 1), 0),
        y.reshape(*y.shape[: r + 1], math.prod(y.shape[r + 1 :])),
        num,
        padding=[
            (q - 1 - a.first, a.stop - n) for q, a, n in zip(taps, runs, g.input_size, strict=True)
        ],
    )
    # (ci, *taps reversed, *strides and co) to (taps, stride, ..., co, ci)
    w = lax.rev(w, range(1, r + 1)).reshape(*w.shape[: r + 1], *y.shape[r + 1 :])
    order = itertools.chain.from_iterable((1 + a, 1 + r + a) for a in range(r))
    w = w.transpose(*order, 2 * r + 1, 0)
    w = w.reshape(*map(operator.mul, taps, g.strides), *w.shape[2 * r :])
    return lax.slice(w, (0,) * w.ndim, (*g.span, *w.shape[r:]), (*g.dilation_rate, 1, 1))


def _split_phases(y: jax.Array, runs: Sequence[_Run], g: Geometry) -> jax.Array:
    """`(N, *output, C)` as `(N, pixels, stride, ..., C)`; zeros where there is no output."""
    ends = [
        (lo - a.first * a.stride, a.stop * a.stride - lo - out, 0)
        for lo, a, out in zip(g.crop, runs, g.output_size, strict=True)
    ]
    split = itertools.chain.from_iterable((a.stop - a.first, a.stride) for a in runs)
    return _pad(y, [(0, 0, 0), *ends, (0, 0, 0)]).reshape(y.shape[0], *split, y.shape[-1])


def _take_rows(y: jax.Array, row: np.ndarray) -> jax.Array:
    """`(N, rows, ...)` to `(N, *row.shape, ...)`; zeros for rows outside of the image."""
    if np.array_equal(row.ravel(), np.arange(y.shape[1])):  # as they are
        return y.reshape(y.shape[0], *row.shape, *y.shape[2:])
    lo, hi = max(0, -row.min()), max(0, row.max() + 1 - y.shape[1])
    rest = y.shape[2:]
    y = _pad(y, [(0, 0, 0), (lo, hi, 0), *[(0, 0, 0)] * len(rest)])
    y = lax.gather(
        y,
        (row + lo).reshape(-1, 1),
        lax.GatherDimensionNumbers((0, *range(2, y.ndim)), (1,), (1,)),
        (y.shape[0], 1, *rest),
        mode="promise_in_bounds",  # a check would cost more compilation than all the rest
    )
    return y.reshape(y.shape[0], *row.shape, *rest)


# ------------------------------------------------------------------ subpixel


def _subpixel(
    x: jax.Array,
    w: jax.Array,
    g: Geometry,
    num: Numerics,
    *,
    split: int = 0,
    convolve: Convolve = _convolve,
) -> jax.Array:
    """T as stride-1 convolutions to the phases of the output, which are then interleaved.

    Pixel `i * s + r` of the full output, of phase `r`, sums the products of taps `j * s + r` with
    inputs `i - j`; only those `i` are computed that the crop leaves something of. With 5 taps at
    stride 2, phase 0 has taps 0, 2, 4 and phase 1 has taps 1, 3.

    Phases stand side by side as channels, `prod(s)` times as many: so they begin and end together,
    and zeros fill their taps up to the same number. Only along the first `split` axes does every
    phase have a convolution to itself, of no more than its own taps. Shi et al., arXiv:1609.07009.
    """
    if max(g.dilation_rate[:split], default=1) > 1:  # a phase's taps are not every s-th one
        split = 0
    runs = [_runs(g, axis) if axis < split else [_run(g, axis)] for axis in range(g.rank)]
    parts = []
    for chosen in itertools.product(*map(enumerate, runs)):
        places, run = zip(*chosen, strict=True)
        part = w[tuple(slice(a.tap, None, a.every) for a in run)] if split else w
        if 0 in part.shape[: g.rank]:  # more phases than taps
            continue
        h = dataclasses.replace(
            g, kernel_size=part.shape[: g.rank], strides=tuple(a.stride for a in run)
        )
        z = convolve(
            x,
            _phases_to_channels(_swapped(part, h), h),
            num,
            padding=[
                (q - 1 - a.first, a.stop - n)
                for q, a, n in zip(h.phase_taps, run, g.input_size, strict=True)
            ],
            groups=g.groups,
        )
        z = z.reshape(*z.shape[:-1], g.groups, *h.strides, w.shape[-2])
        z = _merge_last(_move(z, g.rank + 1, -2))
        ends = [(i, len(of_axis) - 1 - i, 0) for i, of_axis in zip(places, runs, strict=True)]
        parts.append(_pad(z, [*[(0, 0, 0)] * (g.rank + 1), *ends, (0, 0, 0)]))
    starts = [lo % of_axis[0].stride for lo, of_axis in zip(g.crop, runs, strict=True)]
    return _interleave(parts, starts, g)


class _Run(NamedTuple):
    """What one convolution computes along an axis: pixels `[first, stop)` of some phases."""

    tap: int  # the first tap that it takes
    every: int  # the distance to the next
    stride: int  # how many phases stand side by side
    first: Size
    stop: Size


def _run(g: Geometry, axis: int) -> _Run:
    """All phases of an axis together."""
    lo, out, s = g.crop[axis], g.output_size[axis], g.strides[axis]
    return _Run(0, 1, s, lo // s, -(-(lo + out) // s))


def _runs(g: Geometry, axis: int) -> list[_Run]:
    """The phases of an axis, each apart, in the order of the output."""
    lo, out, s = g.crop[axis], g.output_size[axis], g.strides[axis]
    phases = (divmod(lo + j, s) for j in range(s))
    return [_Run(r, s, 1, first, first + -(-out // s)) for first, r in phases]


def _phases_to_channels(w: jax.Array, g: Geometry) -> jax.Array:
    """`(*k, ci, groups * co)`, flipped, as `(*taps, ci, groups * prod(strides) * co)`."""
    r, taps = g.rank, g.phase_taps
    if set(g.strides) == {1}:
        return lax.rev(_fill_strides(w, 0, g), range(r))
    ci, out = w.shape[-2:]
    w = _split_strides(w, 0, g)
    w = w.reshape(*w.shape[: 2 * r], ci, g.groups, out // g.groups)
    w = lax.rev(w, range(0, 2 * r, 2))
    w = w.transpose(*range(0, 2 * r, 2), 2 * r, 2 * r + 1, *range(1, 2 * r, 2), 2 * r + 2)
    return w.reshape(*taps, ci, out * math.prod(g.strides))


def _split_strides(a: jax.Array, axis: int, g: Geometry) -> jax.Array:
    """Axes of the kernel, from `axis` on, each as `(taps, stride)`; zeros fill them up."""
    rest = a.shape[axis + g.rank :]
    a = _fill_strides(a, axis, g)
    split = itertools.chain.from_iterable(zip(g.phase_taps, g.strides, strict=True))
    return a.reshape(*a.shape[:axis], *split, *rest)


def _fill_strides(a: jax.Array, axis: int, g: Geometry) -> jax.Array:
    """Axes of the kernel, from `axis` on, dilated and filled up with zeros to whole strides."""
    fill = [
        (0, q * s - k, d - 1)
        for q, s, k, d in zip(g.phase_taps, g.strides, g.span, g.dilation_rate, strict=True)
    ]
    rest = a.ndim - axis - g.rank
    return _pad(a, [*[(0, 0, 0)] * axis, *fill, *[(0, 0, 0)] * rest])


# Numbers of channels for which LLVM unrolls a loop that copies them, one number at a time. A loop
# that sums two halves, each filled up with zeros, remains one of vectors: 0.4 to 0.8, and 20 ms
# less to compile. But of bfloat16, whose `kind` is not "f": up to 2.
UNROLLED = range(64, 80)


def _interleave(parts: Sequence[jax.Array], starts: Sequence[Size], g: Geometry) -> jax.Array:
    """The sum of `parts`, each `(N, *m, *s, C)`, rearranged to `(N, *(m * s), C)` and cropped."""
    r = g.rank
    if len(parts) == 1 and parts[0].shape[-1] in UNROLLED and parts[0].dtype.kind == "f":
        parts = _in_two(parts[0], g)
    z = functools.reduce(lax.add, parts)
    order = itertools.chain.from_iterable((1 + a, 1 + r + a) for a in range(r))
    space = [m * s for m, s in zip(z.shape[1:], g.strides, strict=False)]
    y = z.transpose(0, *order, 1 + 2 * r).reshape(z.shape[0], *space, z.shape[-1])
    return _crop(y, starts, g)


def _in_two(z: jax.Array, g: Geometry) -> list[jax.Array]:
    """Two parts that sum to `z`: the first phase of an axis, and its others, zeros elsewhere."""
    axis = next((1 + g.rank + a for a, s in enumerate(g.strides) if s > 1), None)
    if axis is None:
        return [z]
    parts = []
    for start, stop in ((0, 1), (1, z.shape[axis])):
        ends = [(0, 0, 0)] * z.ndim
        ends[axis] = (start, z.shape[axis] - stop, 0)
        parts.append(_pad(lax.slice_in_dim(z, start, stop, axis=axis), ends))
    return parts


def _crop(y: jax.Array, starts: Sequence[Size], g: Geometry) -> jax.Array:
    """The output, which begins at `starts`; zeros where `y` has ended."""
    window = [
        (-lo, lo + out - m, 0)
        for lo, out, m in zip(starts, g.output_size, y.shape[1:], strict=False)
    ]
    return _pad(y, [(0, 0, 0), *window, (0, 0, 0)])


# ------------------------------------------------------------------ matrix products


def _matmul(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T as one matrix product, of every input pixel by the whole kernel, and an overlap-add."""
    r = g.rank
    # (N, *n, ci) by (*k, co, ci) to (N, *n, *k, co)
    p = _product(x, w, (r + 1,), (r + 1,), g, num)
    return _overlap_add(p, g).astype(num.dtype)


def _matmul_strided(y: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """C as one matrix product of windows and kernel."""
    r = g.rank
    # (N, *n, *k, co) by (*k, co, ci) to (N, *n, ci)
    x = _product(_windows(y, g), w, range(r + 1, 2 * r + 2), range(r + 1), g, num)
    return x.astype(num.dtype)


def _matmul_kernel_grad(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G as one matrix product of windows and inputs."""
    pixels = range(g.rank + 1)
    # (N, *n, *k, co) by (N, *n, ci) to (*k, co, ci)
    return _product(_windows(y, g), x, pixels, pixels, g, num).astype(num.dtype)


def _product(
    a: jax.Array,
    b: jax.Array,
    a_sum: Sequence[int],
    b_sum: Sequence[int],
    g: Geometry,
    num: Numerics,
) -> jax.Array:
    """The axes left of `a`, then those of `b`, after a sum over the first or last axes of each.

    Groups, which the last axes hold, are each taken by themselves. Operands become matrices because
    XLA:CPU multiplies those in place, even transposed, and first moves whatever has more axes:
    96x96x56 by 9x9x1: 0.3; 32x4x4x512 by 4x4x256: 0.85. Results of 16 bits are given in 32, because
    only so does XLA:CPU (jaxlib 0.10.2) use a CPU's instructions for bfloat16, which are twice as
    fast as those for float32.
    """
    dot = functools.partial(
        lax.dot_general,
        precision=_precision_of_products(num),
        preferred_element_type=_accumulator(num.dtype),
    )
    if g.groups == 1:
        (a, a_axis, a_kept), (b, b_axis, b_kept) = _matrix(a, a_sum), _matrix(b, b_sum)
        return dot(a, b, (((a_axis,), (b_axis,)), ((), ()))).reshape(*a_kept, *b_kept)
    a_axes, b_axes = (
        [axis + (axis == operand.ndim - 1) for axis in summed]
        for operand, summed in ((a, a_sum), (b, b_sum))
    )
    axes = ((a_axes, b_axes), ((a.ndim - 1,), (b.ndim - 1,)))
    p = dot(_split_groups(a, g), _split_groups(b, g), axes)
    return _merge_last(_move(p, 0, -2))


def _precision_of_products(num: Numerics) -> Any:
    """Less the presets of algorithms that products on CPU refuse, and convolutions ignore."""
    presets = lax.DotAlgorithmPreset | lax.DotAlgorithm
    return None if num.platform == "cpu" and isinstance(num.precision, presets) else num.precision


def _matrix(a: jax.Array, summed: Sequence[int]) -> tuple[jax.Array, int, tuple[Size, ...]]:
    """`a` with two axes, which of the two is summed over, and the axes that the other merges."""
    first = 0 in summed
    rows = len(summed) if first else a.ndim - len(summed)
    matrix = a.reshape(math.prod(a.shape[:rows]), math.prod(a.shape[rows:]))
    return matrix, 1 - first, a.shape[rows:] if first else a.shape[:rows]


def _windows(y: jax.Array, g: Geometry) -> jax.Array:
    """What the kernel of every input pixel meets: `(N, *output, C)` to `(N, *n, *k, C)`."""
    for a, (n, s, q) in enumerate(zip(g.input_size, g.strides, g.phase_taps, strict=True)):
        axis, size = 1 + a, (n + q - 1) * s
        ends = [(0, 0, 0)] * y.ndim
        ends[axis] = (g.crop[a], size - g.crop[a] - y.shape[axis], 0)
        y = _pad(y, ends)
        y = y.reshape(*y.shape[:axis], n + q - 1, s, *y.shape[axis + 1 :])
        y = jnp.concatenate([lax.slice_in_dim(y, i, i + n, axis=axis) for i in range(q)], axis + 1)
        y = lax.slice_in_dim(y, 0, g.span[a], g.dilation_rate[a], axis=axis + 1)
        y = _move(y, axis + 1, -2)
    return y


def _overlap_add(p: jax.Array, g: Geometry) -> jax.Array:
    """The transpose of `_windows`: `(N, *n, *k, C)` to `(N, *output, C)`."""
    r = g.rank
    parts = []
    for shift in itertools.product(*map(range, g.phase_taps)):
        # The taps that lie in this stride of the kernel, and where in it.
        first = [-(-i * s // d) for i, s, d in zip(shift, g.strides, g.dilation_rate, strict=True)]
        stop = [
            min(-(-(i + 1) * s // d), k)
            for i, s, d, k in zip(shift, g.strides, g.dilation_rate, g.kernel_size, strict=True)
        ]
        if not all(map(operator.lt, first, stop)):
            continue
        whole = (0,) * (r + 1), p.shape[: r + 1]
        part = lax.slice(p, (*whole[0], *first, 0), (*whole[1], *stop, p.shape[-1]))
        ends = [(i, q - 1 - i, 0) for i, q in zip(shift, g.phase_taps, strict=True)]
        fill = [
            (a * d - i * s, (i + 1) * s - 1 - (b - 1) * d, d - 1)
            for i, a, b, s, d in zip(shift, first, stop, g.strides, g.dilation_rate, strict=True)
        ]
        parts.append(_pad(part, [(0, 0, 0), *ends, *fill, (0, 0, 0)]))
    return _interleave(parts, g.crop, g)


# ------------------------------------------------------------------ planes


def _convolve_planes(
    lhs: jax.Array,
    rhs: jax.Array,
    num: Numerics,
    *,
    padding: Sequence[tuple[int, int]],
    strides: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    groups: int = 1,
) -> jax.Array:
    """`_convolve` of one group with one spatial axis less.

    The planes that a window meets become the channels of one: those of a volume, or the rows of an
    image.
    """
    s, *strides = strides or (1,) * (lhs.ndim - 2)
    d, *dilation = rhs_dilation or (1,) * (lhs.ndim - 2)
    (lo, hi), *padding = padding
    k = rhs.shape[0]
    n = (lhs.shape[1] + lo + hi - d * (k - 1) - 1) // s + 1
    planes = _take_rows(lhs, np.arange(n)[:, None] * s + np.arange(k) * d - lo)
    z = _convolve(
        _merge_first(_merge_last(_move(planes, 2, -2))),
        _merge(_move(rhs, 0, -3), -3),
        num,
        padding=padding,
        strides=strides,
        rhs_dilation=dilation,
    )
    return z.reshape(lhs.shape[0], n, *z.shape[1:])


def _planes_kernel_grad(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G with one spatial axis less: the images of a tap are the planes that it meets."""
    (n, *_), (k, *_), (s, *_), (d, *_), (lo, *_) = (
        g.input_size, g.kernel_size, g.strides, g.dilation_rate, g.crop
    )  # fmt: skip
    axes = [f.name for f in dataclasses.fields(g) if f.name != "groups"]
    plane = dataclasses.replace(g, **{name: getattr(g, name)[1:] for name in axes})
    planes = _take_rows(_merge_last(y), np.arange(k)[:, None] * d + np.arange(n) * s - lo)
    # (N, k, n, ...) to (k, ..., N * n)
    planes = _merge_last(planes.transpose(1, *range(3, planes.ndim), 0, 2))
    w = _correlate(_merge_first(x), planes, y.shape[-1], plane, num)
    return w.reshape(*g.kernel_size, y.shape[-1], x.shape[-1])


# ------------------------------------------------------------------ axes


def _split_groups(a: jax.Array, g: Geometry) -> jax.Array:
    """The last axis as `(groups, channels of one group)`."""
    return a.reshape(*a.shape[:-1], g.groups, a.shape[-1] // g.groups)


def _merge(a: jax.Array, axis: int) -> jax.Array:
    """Merges an axis and the next."""
    axis %= a.ndim
    return a.reshape(*a.shape[:axis], a.shape[axis] * a.shape[axis + 1], *a.shape[axis + 2 :])


_merge_first = functools.partial(_merge, axis=0)
_merge_last = functools.partial(_merge, axis=-2)


def _move(a: jax.Array, source: int, destination: int) -> jax.Array:
    """`jnp.moveaxis`, which would be traced as a function of its own, at ten times the cost."""
    order = list(range(a.ndim))
    order.insert(destination % a.ndim, order.pop(source % a.ndim))
    return a.transpose(order)


def _pad(a: jax.Array, ends: Sequence[tuple[Size, Size, int]]) -> jax.Array:
    """`lax.pad` with zeros, where there is anything to pad or crop."""
    if all(isinstance(n, int) and n == 0 for n in itertools.chain.from_iterable(ends)):
        return a
    return lax.pad(a, jnp.zeros((), a.dtype), ends)


def _accumulator(dtype: Any) -> Any:
    """The dtype that sums of products are kept in: 32 bits for those of 16."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if narrow else dtype


# ------------------------------------------------------------------ the ways, by name

TRANSPOSE: dict[str, Way] = {
    "input_dilation": _input_dilation,
    "subpixel": _subpixel,
    "phases": functools.partial(_subpixel, split=3),
    "matmul": _matmul,
    "planes": functools.partial(_subpixel, convolve=_convolve_planes),
    "plane_phases": functools.partial(_subpixel, split=1, convolve=_convolve_planes),
}
STRIDED: dict[str, Way] = {
    "strided": _strided,
    "blocks": _blocks,
    "matmul": _matmul_strided,
    "planes": functools.partial(_strided, convolve=_convolve_planes),
}
KERNEL_GRAD: dict[str, Way] = {
    "backward_filter": _backward_filter,
    "flat_filter": _flat_filter,
    "phase_filter": _phase_filter,
    "matmul": _matmul_kernel_grad,
    "planes": _planes_kernel_grad,
}
WAYS = {"transpose": TRANSPOSE, "strided": STRIDED, "kernel_grad": KERNEL_GRAD}

# What a name fixes; the other maps go as with `"auto"`.
NAMED: dict[str, dict[str, str]] = {
    "input_dilation": {"transpose": "input_dilation"},
    "subpixel": {"transpose": "subpixel"},
    "matmul": auto.PRODUCTS._asdict(),
    "lax": auto.CONVOLUTIONS._asdict(),
}
REFERENCE = "lax"  # the convolutions themselves, and what JAX derives from them
LOWERINGS = ("auto", *NAMED)

# ------------------------------------------------------------------ the maps


def transpose(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T: `(N, *n, groups * ci)` and `(*k, co, groups * ci)` to `(N, *output, groups * co)`."""
    return _compute("transpose", x, w, w.shape, g, num)


def strided(y: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """C: `(N, *output, groups * co)` and `(*k, co, groups * ci)` to `(N, *n, groups * ci)`."""
    return _compute("strided", y, w, w.shape, g, num)


def kernel_grad(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G: `(N, *n, groups * ci)` and `(N, *output, groups * co)` to `(*k, co, groups * ci)`."""
    kernel_shape = (*g.kernel_size, y.shape[-1] // g.groups, x.shape[-1])
    return _compute("kernel_grad", x, y, kernel_shape, g, num)


def _compute(
    name: str,
    a: jax.Array,
    b: jax.Array,
    kernel_shape: Sequence[int],
    g: Geometry,
    num: Numerics,
) -> jax.Array:
    """A map of operands in their common dtype; only the result is narrowed, where it is to be."""
    with jax.numpy_dtype_promotion("standard"):  # strictness is for the arguments
        dtype = jnp.promote_types(a.dtype, b.dtype)
        wide = num._replace(dtype=_wider(num.dtype, dtype))
    way = NAMED.get(num.lowering, {}).get(name)
    if way is None:
        way = getattr(auto.ways(g, a.shape[0], kernel_shape, dtype, num.platform), name)
    if _kind(wide.dtype) != _kind(dtype):  # only within a kind can a result be wider
        dtype = wide.dtype
    if num.platform == "cuda" and jnp.issubdtype(wide.dtype, jnp.integer):
        # Products of int8 whose sums were to be int32 came out doubled (jaxlib 0.11.2).
        dtype = wide.dtype if wide.dtype.itemsize >= 4 else jnp.dtype(jnp.int32)
        wide = wide._replace(dtype=dtype)
    result = WAYS[name][way](a.astype(dtype), b.astype(dtype), g, wide)
    if jnp.iscomplexobj(result) and not jnp.issubdtype(num.dtype, jnp.complexfloating):
        result = lax.real(result)  # the gradient of a real operand
    return result.astype(num.dtype)


def _wider(a: Any, b: Any) -> Any:
    """What both dtypes promote to; of floating-point ones that do not, the one of more bits."""
    try:
        return jnp.promote_types(a, b)
    except jax.dtypes.TypePromotionError:  # the formats of 8 bits promote to no other
        return max(a, b, key=lambda dtype: jnp.finfo(dtype).bits)


def _kind(dtype: Any) -> Any:
    kinds = (jnp.complexfloating, jnp.floating, jnp.integer)
    return next(kind for kind in kinds if jnp.issubdtype(dtype, kind))
