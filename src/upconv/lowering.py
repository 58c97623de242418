"""How each map is computed, and which way is taken where.

The maps are those of `upconv.bilinear`: T, from `x` and `w` to `y`; C, from `y` and
`w` to `x`; G, from `x` and `y` to `w`. Every way of computing one is a plain
function of two arrays, a `Geometry` and `Numerics`; none is ever differentiated.

Two habits of XLA:CPU shape the code, both seen in optimized HLO (jaxlib 0.10.2 and 0.12.0).
Its fast convolution takes operands in one order only, `b01f_01io->b01f`; a convolution in
any other order is rewritten at top level but left to a naive loop, up to 100 times slower,
inside `scan` and `while`: so operands are put in that order here. And every loop that it
generates, be it a mere transpose or reversal, costs 20 to 30 ms of compilation, a `pad`
100 ms, where a convolution or a matrix product costs 2 ms: so padding is left to the
convolutions, and data moves in one step or not at all.
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
import jaxlib
import numpy as np
from jax import lax

from upconv.geometry import Geometry, Size


class Numerics(NamedTuple):
    """How a map is computed, beside its geometry: hashable, static.

    Attributes:
      lowering: a name out of `LOWERINGS`.
      precision: as in `jax.lax.conv_general_dilated`.
      dtype: of the result; both operands are promoted to a common dtype.
      target: `"cpu"` where one CPU computes the map, which is known when it is lowered.
    """

    lowering: str
    precision: Any
    dtype: Any
    target: str = "default"


Way = Callable[[jax.Array, jax.Array, Geometry, Numerics], jax.Array]
Convolve = Callable[..., jax.Array]


# ------------------------------------------------------------------ convolutions


def _convolve(
    lhs: jax.Array,
    rhs: jax.Array,
    num: Numerics,
    *,
    padding: Sequence[tuple[Size, Size]],
    stretched: bool = False,
    **options: Any,
) -> jax.Array:
    """A convolution of `(N, *space, in)` by `(*window, in // groups, out)`.

    `stretched` puts zeros between the rows of image and window, and takes every other row: the
    same sums. XLA:CPU has two kernels for two dimensions, YNNPACK's and Eigen's, and only
    Eigen's takes zeros between rows; it is for float32 and narrower.
    """
    rank = lhs.ndim - 2
    image = (0, rank + 1, *range(1, rank + 1))
    for name in ("window_strides", "lhs_dilation", "rhs_dilation"):
        options.setdefault(name, (1,) * rank)
    lhs, padding, options["lhs_dilation"] = _prepared(lhs, padding, options["lhs_dilation"])
    if num.target == "cpu" and rank < 3 and _is_exchanged(lhs, rhs, **options):
        lhs = _padded_apart(lhs, padding)
        padding, stretched = [(0, 0)] * rank, True
        if rank == 1:  # as a row, for only rows are stretched
            options |= {k: (1, *v) for k, v in options.items() if k != "feature_group_count"}
            row = lax.expand_dims(lhs, (1,)), lax.expand_dims(rhs, (0,))
            return lax.squeeze(
                _convolve(*row, num, padding=[(0, 0)] * 2, stretched=True, **options), (1,)
            )
    if rank == 2 and jnp.issubdtype(lhs.dtype, jnp.floating) and lhs.dtype.itemsize <= 4:
        stretched |= num.target == "cpu" and _takes_one_core(lhs, rhs, padding, **options)
        if stretched:
            (lo, hi), columns = padding
            padding = [(2 * lo, 2 * hi), columns]
            for name in ("window_strides", "lhs_dilation", "rhs_dilation"):
                step, other = options[name]
                options[name] = (2 * step, other)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        padding=padding,
        dimension_numbers=lax.ConvDimensionNumbers(image, (rank + 1, rank, *range(rank)), image),
        precision=num.precision,
        preferred_element_type=num.dtype,
        **options,
    )


def _prepared(
    a: jax.Array, padding: Sequence[tuple[Size, Size]], dilation: Sequence[int]
) -> tuple[jax.Array, Sequence[tuple[int, int]], Sequence[int]]:
    """An image, its padding and its dilation, less what is not to be left to a convolution.

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


def _is_exchanged(
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    lhs_dilation: Sequence[int],
    feature_group_count: int = 1,
    **_: Any,
) -> bool:
    """Whether XLA takes the window for the image, and the image for the window: the smaller one.

    XLA:CPU has only a naive loop for what comes of that, unless the image is padded beforehand,
    and stretched: C takes 0.02 of the time on 16x8x8x512 to 12 channels, 9x9.
    """
    image, window = lhs.shape[1:-1], rhs.shape[:-2]
    static = all(isinstance(n, int) for n in image)
    plain = feature_group_count == 1 and set(lhs_dilation) == {1}
    return static and plain and math.prod(window) > math.prod(image)


def _padded_apart(a: jax.Array, padding: Sequence[tuple[int, int]]) -> jax.Array:
    """Padded where XLA does not see that it could be left to the convolution."""
    ends = [(lo, hi, 0) for lo, hi in padding]
    a = _pad(lax.expand_dims(a, (0,)), [(0, 0, 0), (0, 0, 0), *ends, (0, 0, 0)])
    return lax.squeeze(a, (0,))


# Channels of the image, and products in a sum, from which stretching pays.
WORTH_STRETCHING = 16
LONG_SUM = 4096


def _takes_one_core(
    lhs: jax.Array,
    rhs: jax.Array,
    padding: Sequence[tuple[Size, Size]],
    *,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    feature_group_count: int = 1,
    **_: Any,
) -> bool:
    """Whether XLA:CPU gives a convolution to a kernel that leaves cores idle.

    YNNPACK's does, mostly, and it is taken where the output is not larger than the input.
    Stretched, C takes 0.4 of the time on 1x256x256x21, 32x32 at stride 16; 0.4 (jaxlib 0.12: 1.0)
    on 2x128x128x64, 2x2 at stride 2; 0.8 (0.4) on 32x8x8x256, 4x4 at stride 2. It takes 1.3
    (1.1) on 1x256x256x64, 4x4, and 1.7 (1.4) on 3 channels.
    """
    if not all(isinstance(n, int) for n in lhs.shape):
        return False
    smaller = all(
        lo + hi <= d * (k - 1)
        for (lo, hi), d, k in zip(padding, rhs_dilation, rhs.shape, strict=False)
    )
    plain = feature_group_count == 1 and tuple(lhs_dilation) == (1, 1)
    long = lhs.shape[0] > 1 or math.prod(rhs.shape[:-1]) >= LONG_SUM
    return plain and smaller and long and lhs.shape[-1] >= WORTH_STRETCHING


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
        feature_group_count=g.groups,
    )
    for axis in range(g.rank):
        if like_groups[axis]:
            y = lax.slice_in_dim(y, 0, g.output_size[axis], axis=1 + axis)
    return y


def _strided(
    y: jax.Array, w: jax.Array, g: Geometry, num: Numerics, convolve: Convolve = _convolve
) -> jax.Array:
    """C as what it is."""
    return convolve(
        y,
        w,
        num,
        window_strides=g.strides,
        padding=g.pads,
        rhs_dilation=g.dilation_rate,
        feature_group_count=g.groups,
    )


def _blocks(y: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """C by blocks of a stride each, which do not overlap, then the sum of every window's.

    Filters that meet a block with different taps stand side by side: `prod(taps)` times as
    many, where few leave vectors idle.
    """
    r, taps = g.rank, _phase_taps(g)
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
        stretched=num.target == "cpu",
        window_strides=g.strides,
        feature_group_count=g.groups,
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


def _flat_filter(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G as `_backward_filter`, with the last spatial axis of `y` and its channels in one.

    The output's last axis is then `k * co` long instead of `k`, which is what a matrix
    product's rows are cut from; nothing but the batch axis moves. That axis is what every pixel
    of the window is summed over: a small batch is cut into strips of rows, each with all of `y`
    that it meets, and a large one is taken in pieces. Strips take 0.6 of the time on 2x64x64x128
    to 64 channels, 3x3 at stride 2; pieces 0.65 on 128x16x16x128 to 64, 4x4.
    """
    if g.groups > 1 or g.dilation_rate[-1] > 1:  # the taps are not one run of that axis
        return _backward_filter(x, y, g, num)
    rows, pieces = _cut(x.shape[0], y.nbytes, g)
    if rows == g.input_size[0] and pieces == 1:
        return _flat_filter_at_once(x, y, g, num)
    strip, met = _strip(g, rows)
    strips = met.shape[0]
    ends = [(0, 0, 0), (0, rows * strips - g.input_size[0], 0), *[(0, 0, 0)] * g.rank]
    x = _pad(x, ends)
    x = x.reshape(x.shape[0] * strips, rows, *x.shape[2:])
    if pieces > 1:
        return _sum_of_pieces(pieces, x, y, strip, met, num)
    y = _take_rows(y, met)
    return _flat_filter_at_once(x, y.reshape(x.shape[0], *y.shape[2:]), strip, num)


def _cut(images: int, size: int, g: Geometry) -> tuple[int, int]:
    """Rows of `x` in a strip, and in how many pieces `y` of so many bytes is taken."""
    n = g.input_size[0]
    taps = _phase_taps(g)[0]
    # Of rows that two strips meet there are to be fewer than of others, or else no more.
    allowed = (2 * taps, taps) if SLOW_ALONE else (2 * taps,)
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


def _sum_of_pieces(
    pieces: int, x: jax.Array, y: jax.Array, strip: Geometry, met: np.ndarray, num: Numerics
) -> jax.Array:
    """G of strips `x`, a piece of them after another, each taking what it meets of `y`.

    A `while` of its own: inside a call that XLA does not inline, `scan` makes more of them.
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
    """`(N, *n, ci)` with `(M, *output, N)`, channels in its last spatial axis, to G's result.

    `(M, *k, co, ci)`, that is; `M` are the taps of another axis. The sum is taken from the
    last image to the first: a transpose that reverses nothing goes to another emitter of XLA:CPU,
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
        window_strides=(*strides, 1),
        rhs_dilation=(*g.strides[:-1], g.strides[-1] * co),
    )
    w = w.reshape(*w.shape[:-2], g.span[-1], co, w.shape[-1])
    return w if d == 1 else lax.slice_in_dim(w, 0, None, d, axis=-3)


# Images, or strips of them, that one sum is to have: on 2x64x64x128 to 64, 3x3 at stride 2, it
# takes 2.5 times as long with 4 strips, which stretching does not help, and 1.3 with 16.
IMAGES = 8

# Whether one image alone is slow enough to be cut where half of what strips meet is met twice, as
# since jaxlib 0.12: 0.2 of the time on 16x16x21 to 21 channels, 32x32 at stride 16; 0.8 before,
# for twice the memory.
SLOW_ALONE = jaxlib.version.__version_info__ >= (0, 12)

# Bytes of `y` in a piece; less than four pieces are one.
PIECE = 4 << 20


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

    Full output `m * s + r`, of phase `r`, takes tap `q * s + r` at input `m - q`; of the
    `m` only those are computed that the crop leaves. Phases stand side by side as channels,
    `prod(strides)` times as many: they begin and end together, and zeros fill up their taps to
    the same number. Only those of the first `split` axes have a convolution each, of their own
    taps. Shi et al., arXiv:1609.07009.
    """
    if max(g.dilation_rate[:split], default=1) > 1:  # a phase's taps are not every so many
        split = 0
    runs = [_runs(g, axis, apart=axis < split) for axis in range(g.rank)]
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
                for q, a, n in zip(_phase_taps(h), run, g.input_size, strict=True)
            ],
            feature_group_count=g.groups,
        )
        z = z.reshape(*z.shape[:-1], g.groups, *h.strides, w.shape[-2])
        z = _merge_last(_move(z, g.rank + 1, -2))
        ends = [(i, len(of_axis) - 1 - i, 0) for i, of_axis in zip(places, runs, strict=True)]
        parts.append(_pad(z, [*[(0, 0, 0)] * (g.rank + 1), *ends, (0, 0, 0)]))
    starts = [lo % of_axis[0].stride for lo, of_axis in zip(g.crop, runs, strict=True)]
    return _interleave(parts, starts, g)


class _Run(NamedTuple):
    """What one convolution computes along an axis: outputs `[first, stop)` of some phases."""

    tap: int  # the first of its taps, which are every so many
    every: int
    stride: int  # how many phases stand side by side
    first: Size
    stop: Size


def _runs(g: Geometry, axis: int, *, apart: bool) -> list[_Run]:
    """The phases of an axis together, or each apart, in the order of the output."""
    lo, out, s = g.crop[axis], g.output_size[axis], g.strides[axis]
    if not apart:
        return [_Run(0, 1, s, lo // s, -(-(lo + out) // s))]
    phases = (divmod(lo + j, s) for j in range(s))
    return [_Run(r, s, 1, first, first + -(-out // s)) for first, r in phases]


def _phase_taps(g: Geometry) -> list[int]:
    """How many taps a phase of the stride has at most: how many strides the kernel spans."""
    return [-(-k // s) for k, s in zip(g.span, g.strides, strict=True)]


def _phases_to_channels(w: jax.Array, g: Geometry) -> jax.Array:
    """`(*k, ci, groups * co)`, flipped, as `(*taps, ci, groups * prod(strides) * co)`."""
    r, taps = g.rank, _phase_taps(g)
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
    split = itertools.chain.from_iterable(zip(_phase_taps(g), g.strides, strict=True))
    return a.reshape(*a.shape[:axis], *split, *rest)


def _fill_strides(a: jax.Array, axis: int, g: Geometry) -> jax.Array:
    """Axes of the kernel, from `axis` on, dilated and filled up with zeros to whole strides."""
    fill = [
        (0, q * s - k, d - 1)
        for q, s, k, d in zip(_phase_taps(g), g.strides, g.span, g.dilation_rate, strict=True)
    ]
    rest = a.ndim - axis - g.rank
    return _pad(a, [*[(0, 0, 0)] * axis, *fill, *[(0, 0, 0)] * rest])


# Channels of which LLVM unrolls a loop that copies them, one number at a time; one that sums them
# stays a loop of vectors: 0.4 to 0.8 of the time for the floats of C (kind "f"; up to 2 for
# bfloat16), and 20 ms of compilation less.
UNROLLED = range(64, 80)


def _interleave(parts: Sequence[jax.Array], starts: Sequence[Size], g: Geometry) -> jax.Array:
    """The sum of `(N, *m, *strides, C)` to space, and of that the output, from `starts`."""
    r = g.rank
    if len(parts) == 1 and parts[0].shape[-1] in UNROLLED and parts[0].dtype.kind == "f":
        parts = _in_two(parts[0], g)
    z = functools.reduce(lax.add, parts)
    order = itertools.chain.from_iterable((1 + a, 1 + r + a) for a in range(r))
    space = [m * s for m, s in zip(z.shape[1:], g.strides, strict=False)]
    y = z.transpose(0, *order, 1 + 2 * r).reshape(z.shape[0], *space, z.shape[-1])
    return _crop(y, starts, g)


def _in_two(z: jax.Array, g: Geometry) -> list[jax.Array]:
    """The first phase of an axis, then its others, each filled up with zeros to all of them."""
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
    """The output, which begins at `starts`; zero beyond the end."""
    window = [
        (-lo, lo + out - m, 0)
        for lo, out, m in zip(starts, g.output_size, y.shape[1:], strict=False)
    ]
    return _pad(y, [(0, 0, 0), *window, (0, 0, 0)])


# ------------------------------------------------------------------ matrix products


def _matmul(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T as one matrix product, every input pixel by the whole kernel, then overlap-add."""
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
    """What is left of `a`, then of `b`, after a sum over the first or last axes of both.

    Sums of 16 bits are given in 32: only so does XLA:CPU (jaxlib 0.10.2) multiply bfloat16 by
    instructions of its own, twice as fast as float32 where a CPU has them.
    The last axes hold the groups, each of which is taken by itself. XLA:CPU multiplies matrices
    as they lie, either of them transposed, and moves whatever has more axes: as matrices the
    operands of 96x96x56 by 9x9x1 take 0.3 of the time, of 32x4x4x512 by 4x4x256 0.85.
    """
    dot = functools.partial(
        lax.dot_general,
        precision=num.precision,
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


def _matrix(a: jax.Array, summed: Sequence[int]) -> tuple[jax.Array, int, tuple[Size, ...]]:
    """`a` in two axes, that of the two which is summed over, and the sizes of the other."""
    first = 0 in summed
    rows = len(summed) if first else a.ndim - len(summed)
    matrix = a.reshape(math.prod(a.shape[:rows]), math.prod(a.shape[rows:]))
    return matrix, 1 - first, a.shape[rows:] if first else a.shape[:rows]


def _windows(y: jax.Array, g: Geometry) -> jax.Array:
    """What every input pixel's kernel meets in `y`: `(N, *output, C)` to `(N, *n, *k, C)`."""
    for a, (n, s, q) in enumerate(zip(g.input_size, g.strides, _phase_taps(g), strict=True)):
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
    for shift in itertools.product(*map(range, _phase_taps(g))):
        # The taps of an axis that lie in this stride of the kernel, and where.
        first = [-(-i * s // d) for i, s, d in zip(shift, g.strides, g.dilation_rate, strict=True)]
        stop = [
            min(-(-(i + 1) * s // d), k)
            for i, s, d, k in zip(shift, g.strides, g.dilation_rate, g.kernel_size, strict=True)
        ]
        if not all(map(operator.lt, first, stop)):
            continue
        whole = (0,) * (r + 1), p.shape[: r + 1]
        part = lax.slice(p, (*whole[0], *first, 0), (*whole[1], *stop, p.shape[-1]))
        ends = [(i, q - 1 - i, 0) for i, q in zip(shift, _phase_taps(g), strict=True)]
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
    window_strides: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    feature_group_count: int = 1,
) -> jax.Array:
    """`_convolve` of one group in one dimension less.

    The planes that a window meets at once, be they rows of an image, are channels of one plane.
    """
    s, *strides = window_strides or (1,) * (lhs.ndim - 2)
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
        window_strides=strides,
        rhs_dilation=dilation,
    )
    return z.reshape(lhs.shape[0], n, *z.shape[1:])


def _planes_kernel_grad(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G with the planes that a tap meets as images, and those of each tap by themselves."""
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
    """An axis and the next as one."""
    axis %= a.ndim
    return a.reshape(*a.shape[:axis], a.shape[axis] * a.shape[axis + 1], *a.shape[axis + 2 :])


_merge_first = functools.partial(_merge, axis=0)
_merge_last = functools.partial(_merge, axis=-2)


def _move(a: jax.Array, source: int, destination: int) -> jax.Array:
    """`jnp.moveaxis`, which is traced as a function of its own, at ten times the cost."""
    order = list(range(a.ndim))
    order.insert(destination % a.ndim, order.pop(source % a.ndim))
    return a.transpose(order)


def _pad(a: jax.Array, ends: Sequence[tuple[Size, Size, int]]) -> jax.Array:
    """With zeros, as by `lax.pad`, where there are any to put or take."""
    if all(isinstance(n, int) and n == 0 for n in itertools.chain.from_iterable(ends)):
        return a
    return lax.pad(a, jnp.zeros((), a.dtype), ends)


def _accumulator(dtype: Any) -> Any:
    """Sums of products of 16 bits are kept in 32."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if narrow else dtype


# ------------------------------------------------------------------ which way is taken where

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
    "matmul": _matmul_kernel_grad,
    "planes": _planes_kernel_grad,
}


class Ways(NamedTuple):
    """One way for each map, by its name in the map's table."""

    transpose: str
    strided: str
    kernel_grad: str


CONVOLUTIONS = Ways("input_dilation", "strided", "backward_filter")
PRODUCTS = Ways("matmul", "matmul", "matmul")
# What a name fixes; the other maps go as with `"auto"`.
NAMED: dict[str, dict[str, str]] = {
    "input_dilation": {"transpose": "input_dilation"},
    "subpixel": {"transpose": "subpixel"},
    "matmul": PRODUCTS._asdict(),
    "lax": CONVOLUTIONS._asdict(),
}
REFERENCE = "lax"  # the convolutions themselves, and what JAX derives from them
LOWERINGS = ("auto", *NAMED)

# More convolutions than these take long to compile.
MANY_PHASES = 9

# Filters so few that a convolution to them leaves most of a vector idle.
FEW_FILTERS = 4

# Channels up to which a convolution to them leaves much of its vectors idle.
NARROW = 24

# Channels that fill a vector.
WIDE = 16

# Channels of which many products are longer in adding up than in making.
FEW_CHANNELS = 16

# Products of a row of the kernel, for each row of the stride, that outweigh gathering it.
MANY_PRODUCTS = 128

# Bytes of products that are worth their memory whatever the operands are.
SMALL_PRODUCT = 16 << 20

# Bytes of windows of bfloat16 that are gathered faster than a convolution computes in float32.
SMALL_WINDOWS = 8 << 20

# Bytes from which temporaries are fresh memory at every call, and touching their pages costs more
# than computing them.
FRESH = 32 << 20

# Bytes of temporaries that a training step may take for each byte of operands and results.
MEMORY = 4


def ways(g: Geometry, batch: Size, kernel_shape: Sequence[int], dtype: Any, target: str) -> Ways:
    """What `lowering="auto"` takes, by static shape and target.

    Args:
      g: the geometry.
      batch: `N`.
      kernel_shape: `(*k, co, groups * ci)`.
      dtype: of the operands.
      target: as `Numerics` has it. Anything but `"cpu"` gets plain convolutions, which XLA's
        partitioner splits by batch, channels and space, and which GPU and TPU have kernels for.

    Ratios are of times on two cores of an AMD EPYC (Zen 5) or an Intel Xeon with AVX-512, jaxlib
    0.10.2, float32.
    """
    if target != "cpu" or not all(isinstance(n, int) for n in (batch, *g.output_size)):
        return CONVOLUTIONS
    if g.groups > 1 or jnp.issubdtype(dtype, jnp.integer):
        # XLA:CPU has only naive loops for these: 60 times slower for the kernel gradient of 8
        # groups, 10 times for int32.
        return PRODUCTS
    if set(g.kernel_size) == set(g.strides) == {1}:
        return PRODUCTS  # of pixels by channels, as they are
    return Ways(
        _way_of_transpose(g, batch, kernel_shape, dtype),
        _way_of_strided(g, batch, kernel_shape, dtype),
        _way_of_kernel_grad(g, kernel_shape[-2]),
    )


def _way_of_transpose(g: Geometry, batch: int, kernel_shape: Sequence[int], dtype: Any) -> str:
    filters, channels = kernel_shape[-2:]
    if all(n == 1 or k <= s for n, k, s in zip(g.input_size, g.span, g.strides, strict=True)):
        # Nothing overlaps.  1.5 times on 2x64x64x128 to 64, 2x2 at stride 2; 5 times on
        # 64x1x1x100 to 512, 4x4, where a convolution would multiply mostly padding.
        return "matmul"
    pixels = batch * math.prod(g.input_size)
    product = pixels * math.prod(g.kernel_size) * filters
    temporaries = product + batch * math.prod(g.output_size) * filters
    operands = pixels * channels + math.prod(kernel_shape)
    itemsize = jnp.dtype(_accumulator(dtype)).itemsize
    modest = temporaries <= MEMORY * 2 * operands
    fits = modest and temporaries * itemsize < FRESH
    flat = all(s == 1 for s in g.strides)
    small = product * itemsize <= SMALL_PRODUCT or fits
    if flat:
        # 0.2 of the time to 4 filters and fewer, 0.4 to 6 of 64 channels, 0.7 to 16 of 64; 1.1 to
        # 64 of 128 and 1.5 to 32 of 32. Of bfloat16 XLA:CPU has products, on CPUs that have them,
        # but no convolutions: 0.6 to 64 of 128. Where the output is much larger a convolution
        # multiplies padding: 0.35 from 4x4 to 7x7 pixels, 0.7 from 7x7 to 9x9.
        few = filters <= FEW_FILTERS and (small or modest)
        grows = 2 * math.prod(g.output_size) >= 3 * math.prod(g.input_size)
        if few or (small and (3 * filters <= channels or grows or dtype == jnp.bfloat16)):
            return "matmul"
        return "planes" if g.rank == 3 else "input_dilation"
    if g.rank == 3:
        if fits:
            # 0.55 of the next on 8x8x8x128 to 64, 3x3x3 at stride 2; 0.75 with 2 of 4x4x4.
            return "matmul"
        # 0.7 of the subpixel way on 12x12x12x64 to 32, 3x3x3 at stride 2, and 0.55 by phases of
        # planes, which do not fill up the kernel: they save little where nothing is to fill, and
        # take 20 ms more to compile.
        whole = g.kernel_size[0] % g.strides[0] == 0
        return "planes" if whole or g.strides[0] > MANY_PHASES else "plane_phases"
    if dtype == jnp.float64 or max(g.dilation_rate) > 1:
        return "matmul"  # 12 times for float64; 2.4 times at dilation 2
    long = min(_phase_taps(g)) > 2 and filters > 1
    if small and (channels > FEW_CHANNELS or not long):
        # 2 times on 32x4x4x512 to 256 channels and on 96x96x56 to 1, where the other ways compute
        # what the crop then removes; 1.1 times on 2x64x64x128 to 64, 3x3 at stride 2, and a third
        # less to compile. Of 16 channels and fewer, products of many taps are made faster than
        # they are added: 2 times on 64x64x16 to 4, 9x9 at stride 2, but 0.2 on 32x32x16 to 1, 6x6.
        return "matmul"
    whole = all(k % s == 0 for k, s in zip(g.kernel_size, g.strides, strict=True))
    wide = filters >= WIDE and channels >= 2 * WIDE
    if not whole and wide and math.prod(g.strides) <= MANY_PHASES:
        # Merging phases fills up the kernel to a multiple of the stride: 0.75 of the time on
        # 32x16x16x128 to 64, 5x5 at stride 2; 6 times on 16x64x64x8 to 4, 7x7.
        return "phases"
    return "subpixel"


def _way_of_strided(g: Geometry, batch: int, kernel_shape: Sequence[int], dtype: Any) -> str:
    if g.rank == 3:
        return "planes"  # 0.4 of the time of the convolution, on the same layer
    filters, channels = kernel_shape[-2:]
    windows = batch * math.prod((*g.input_size, *g.kernel_size, filters)) * dtype.itemsize
    if dtype == jnp.bfloat16 and windows <= SMALL_WINDOWS and filters >= WIDE:
        # 0.8 of the time on 32x8x8x256 to 128 channels, 4x4 at stride 2; 1.2 on 2x64x64x128 to 64,
        # 3x3, where the windows take longer to gather than to multiply.
        return "matmul"
    taps = _phase_taps(g)
    filled = math.prod(map(operator.mul, taps, g.strides))
    narrow = channels * filled <= NARROW * math.prod(g.kernel_size)
    if narrow and filters >= WIDE and math.prod(taps) > 1:
        # 0.6 of the time on 16x16x21 to 21 channels, 32x32 at stride 16; 0.35 on 32x32x3 and 0.7 on
        # 32x32x16 to 64, 4x4 at stride 2; 1.2 there with 16 channels and 3x3, which is filled up.
        return "blocks"
    rows, stride = g.kernel_size[0], g.strides[0]
    if g.rank == 1 or rows == 1:
        return "strided"
    if rows * filters <= 6:
        return "matmul"  # 0.4 to 1 of the next; on 64x32x32x128 to 1, 3x3 at stride 2, 0.2
    # Gathering the rows as channels takes 0.5 to 0.8 of the time from 4 channels and fewer, and
    # from 12 where their products outweigh it; 1.5 on 28x28x32 to 6, 4x4 at stride 2.
    heavy = channels * rows >= MANY_PRODUCTS * stride
    return "planes" if filters <= FEW_FILTERS or (filters <= 12 and heavy) else "strided"


def _way_of_kernel_grad(g: Geometry, filters: int) -> str:
    if g.rank == 3:
        # XLA:CPU has no fast convolution of three dimensions: a tenth of the time on
        # 12x12x12x64 to 32, 3x3x3 at stride 2.
        return "planes"
    # Windows that hardly overlap: 0.9 of the time on 32x32x32x64 to 3, 4x4 at stride 2; 1.6 on
    # 96x96x56 to 1, 9x9 at stride 3.
    if filters <= FEW_FILTERS and max(_phase_taps(g)) <= 2:
        return "matmul"
    return "flat_filter" if g.dilation_rate[-1] == 1 else "backward_filter"


# ------------------------------------------------------------------ the maps


def transpose(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T."""
    return _compute("transpose", TRANSPOSE, x, w, g, num, x.shape[0], w.shape)


def strided(y: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """C."""
    return _compute("strided", STRIDED, y, w, g, num, y.shape[0], w.shape)


def kernel_grad(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G."""
    kernel_shape = (*g.kernel_size, y.shape[-1] // g.groups, x.shape[-1])
    return _compute("kernel_grad", KERNEL_GRAD, x, y, g, num, x.shape[0], kernel_shape)


def _compute(
    name: str,
    table: dict[str, Way],
    a: jax.Array,
    b: jax.Array,
    g: Geometry,
    num: Numerics,
    batch: Size,
    kernel_shape: Sequence[int],
) -> jax.Array:
    """A map of operands in their common dtype; only the result is narrowed, where it is to be."""
    with jax.numpy_dtype_promotion("standard"):  # strictness is for the arguments
        dtype = jnp.promote_types(a.dtype, b.dtype)
        wide = num._replace(dtype=_wider(num.dtype, dtype))
    way = NAMED.get(num.lowering, {}).get(name)
    if way is None:
        way = getattr(ways(g, batch, kernel_shape, dtype, num.target), name)
    if _kind(wide.dtype) != _kind(dtype):  # only within a kind can a result be wider
        dtype = wide.dtype
    result = table[way](a.astype(dtype), b.astype(dtype), g, wide)
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
