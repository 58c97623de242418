"""How each map is computed, and which way is taken where.

The maps are those of `upconv.bilinear`: T, from ``x`` and ``w`` to ``y``; C, from ``y`` and
``w`` to ``x``; G, from ``x`` and ``y`` to ``w``.  Every way of computing one is a plain
function of two arrays, a `Geometry` and `Numerics`; none is ever differentiated.

Two habits of XLA:CPU shape the code, both seen in optimized HLO (jaxlib 0.10.2 and 0.12.0).
Its fast convolution takes operands in one order only, ``b01f_01io->b01f``; a convolution in
any other order is rewritten at top level but left to a naive loop, up to 90 times slower,
inside ``scan`` and ``while``: so operands are put in that order here.  And every loop that it
generates, be it a mere transpose or reversal, costs about 30 ms of compilation, a ``pad``
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
      target: ``"cpu"`` where one CPU computes the map, which is known when it is lowered.
    """

    lowering: str
    precision: Any
    dtype: Any
    target: str = "default"


Way = Callable[[jax.Array, jax.Array, Geometry, Numerics], jax.Array]


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
    """A convolution of ``(N, *space, in)`` by ``(*window, in // groups, out)``.

    ``stretched`` puts zeros between the rows of image and window, and takes every other row: the
    same sums.  XLA:CPU has two kernels for two dimensions, YNNPACK's and Eigen's, and only
    Eigen's takes zeros between rows; it is for float32 and narrower.
    """
    rank = lhs.ndim - 2
    image = (0, rank + 1, *range(1, rank + 1))
    options.setdefault("window_strides", (1,) * rank)
    if rank == 2 and jnp.issubdtype(lhs.dtype, jnp.floating) and lhs.dtype.itemsize <= 4:
        stretched |= num.target == "cpu" and _takes_one_core(lhs, rhs, padding, **options)
        if stretched:
            (lo, hi), columns = padding
            padding = [(2 * lo, 2 * hi), columns]
            for name in ("window_strides", "lhs_dilation", "rhs_dilation"):
                step, other = options.get(name, (1, 1))
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


ONE_CORE = jaxlib.version.__version_info__ < (0, 12)
WORTH_STRETCHING = 16  # channels, of the input


def _takes_one_core(
    lhs: jax.Array,
    rhs: jax.Array,
    padding: Sequence[tuple[Size, Size]],
    *,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    feature_group_count: int = 1,
    **_: Any,
) -> bool:
    """Whether XLA:CPU gives a convolution to a kernel that leaves cores idle.

    YNNPACK's did before jaxlib 0.12, mostly.  It is taken where the output is not larger than the
    input.  Stretched, 0.4 of the time on 32x64x64x64, 4x4 at stride 2, and 0.6 on 2x64x64x128, 3x3
    at stride 1; more than 1 for one image and for a few channels.
    """
    if not all(isinstance(n, int) for n in lhs.shape):
        return False
    smaller = all(
        lo + hi <= d * (k - 1)
        for (lo, hi), d, k in zip(padding, rhs_dilation, rhs.shape, strict=False)
    )
    plain = feature_group_count == 1 and tuple(lhs_dilation) == (1, 1)
    worth = lhs.shape[0] > 1 and lhs.shape[-1] >= WORTH_STRETCHING
    return ONE_CORE and plain and smaller and worth


def _swapped(w: jax.Array, g: Geometry) -> jax.Array:
    """A kernel ``(*k, co, groups * ci)`` as T convolves by it: ``(*k, ci, groups * co)``."""
    w = jnp.moveaxis(_split_groups(w, g), -1, -3)
    w = jnp.swapaxes(w, -1, -2)
    return w.reshape(*w.shape[:-2], w.shape[-2] * w.shape[-1])


def _input_dilation(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T as one convolution over the input with ``stride - 1`` zeros between its pixels."""
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


def _strided(y: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """C as what it is."""
    return _convolve(
        y,
        w,
        num,
        window_strides=g.strides,
        padding=g.pads,
        rhs_dilation=g.dilation_rate,
        feature_group_count=g.groups,
    )


def _backward_filter(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G as the convolution of ``y`` by ``x``, with batch and channels exchanged.

    In these dimension numbers XLA:GPU recognizes it and gives it to cuDNN's backward filter.
    """
    swapped = (g.rank + 1, 0, *range(1, g.rank + 1))
    kernel = (g.rank, g.rank + 1, *range(g.rank))
    return lax.conv_general_dilated(
        y,
        x,
        window_strides=g.dilation_rate,
        padding=g.pads,
        rhs_dilation=g.strides,
        dimension_numbers=lax.ConvDimensionNumbers(swapped, swapped, kernel),
        batch_group_count=g.groups,
        precision=num.precision,
        preferred_element_type=num.dtype,
    )


def _flat_filter(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G as `_backward_filter`, with the last spatial axis of ``y`` and its channels in one.

    The output's last axis is then ``k * co`` long instead of ``k``, which is what a matrix
    product's rows are cut from; nothing but the batch axis moves.  That axis is what every pixel
    of the window is summed over: a small batch is cut into strips of rows, each with all of ``y``
    that it meets, and a large one is taken in pieces.  Strips take 0.6 of the time on 2x64x64x128
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
    x = lax.pad(x, jnp.zeros((), x.dtype), ends)
    x = x.reshape(x.shape[0] * strips, rows, *x.shape[2:])
    if pieces > 1:
        return _sum_of_pieces(pieces, x, y, strip, met, num)
    y = _take_rows(y, met)
    return _flat_filter_at_once(x, y.reshape(x.shape[0], *y.shape[2:]), strip, num)


def _cut(images: int, size: int, g: Geometry) -> tuple[int, int]:
    """Rows of ``x`` in a strip, and in how many pieces ``y`` of so many bytes is taken."""
    n = g.input_size[0]
    pieces = -(-size // PIECE) if size >= 4 * PIECE else 1
    # Of rows that two strips meet there are to be fewer than of others.
    rows = max(-(-n * images // (IMAGES * pieces)), 2 * _phase_taps(g)[0])
    strips = -(-n // rows)
    if strips * images < IMAGES // 2 or 2 * images > IMAGES * pieces:
        rows, strips = n, 1
    return rows, next((p for p in range(pieces, 1, -1) if images * strips % p == 0), 1)


def _strip(g: Geometry, rows: int) -> tuple[Geometry, np.ndarray]:
    """The geometry of a strip, and the rows of ``y`` that each meets: ``(strips, rows met)``."""
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
    """G of strips ``x``, a piece of them after another, each taking what it meets of ``y``."""
    met = np.where(met < 0, y.shape[1], met)  # not counted from the end
    images = np.arange(y.shape[0])[:, None, None]
    place = jnp.stack(jnp.broadcast_arrays(images, met), -1).reshape(x.shape[0], -1, 2)
    wide = num._replace(dtype=_accumulator(num.dtype))

    def add(w: jax.Array, piece: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, place = piece
        part = y.at[place[..., 0], place[..., 1]].get(mode="fill", fill_value=0)
        return w + _flat_filter_at_once(x, part, strip, wide), None

    zero = jnp.zeros((*strip.kernel_size, y.shape[-1], x.shape[-1]), wide.dtype)
    x, place = (a.reshape(pieces, -1, *a.shape[1:]) for a in (x, place))
    w, _ = lax.scan(add, zero, (x, place))
    return w.astype(num.dtype)


def _flat_filter_at_once(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """`_flat_filter` as one convolution."""
    co = y.shape[-1]
    lo, hi = g.pads[-1]
    w = _convolve(
        jnp.moveaxis(y.reshape(*y.shape[:-2], y.shape[-2] * co), 0, -1)[None],
        jnp.moveaxis(x, 0, -2),
        num,
        padding=[*g.pads[:-1], (lo * co, hi * co)],
        stretched=x.shape[0] >= IMAGES // 2,
        window_strides=g.dilation_rate,
        rhs_dilation=(*g.strides[:-1], g.strides[-1] * co),
    )
    return w.reshape(*g.kernel_size, co, x.shape[-1])


# Images from which on nothing is won by more of them in one sum.
IMAGES = 16

# Bytes of ``y`` in a piece; less than four pieces are one.
PIECE = 4 << 20


def _take_rows(y: jax.Array, row: np.ndarray) -> jax.Array:
    """``(N, rows, ...)`` to ``(N, *row.shape, ...)``; zeros for rows outside of the image."""
    lo, hi = max(0, -row.min()), max(0, row.max() + 1 - y.shape[1])
    rest = y.shape[2:]
    y = lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), (lo, hi, 0), *[(0, 0, 0)] * len(rest)])
    y = lax.gather(
        y,
        (row + lo).reshape(-1, 1),
        lax.GatherDimensionNumbers((0, *range(2, y.ndim)), (1,), (1,)),
        (y.shape[0], 1, *rest),
        mode="promise_in_bounds",  # a check would cost more compilation than all the rest
    )
    return y.reshape(y.shape[0], *row.shape, *rest)


# ------------------------------------------------------------------ subpixel


def _subpixel(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T as a stride-1 convolution to ``prod(strides)`` times the channels, then interleaved.

    Full output ``m * s + r`` takes tap ``q * s + r`` at input ``m - q``; of the ``m`` only those
    are computed that the crop leaves.  Shi et al., arXiv:1609.07009.
    """
    first = [lo // s for lo, s in zip(g.crop, g.strides, strict=True)]
    ends = map(operator.add, g.crop, g.output_size)
    last = [-(-end // s) for end, s in zip(ends, g.strides, strict=True)]
    z = _convolve(
        x,
        _phases_to_channels(_swapped(w, g), g),
        num,
        padding=[
            (q - 1 - a, b - n)
            for q, a, b, n in zip(_phase_taps(g), first, last, g.input_size, strict=True)
        ],
        feature_group_count=g.groups,
    )
    z = z.reshape(*z.shape[:-1], g.groups, *g.strides, w.shape[-2])
    z = _merge_last(jnp.moveaxis(z, g.rank + 1, -2))
    return _interleave(
        z, [lo - a * s for lo, a, s in zip(g.crop, first, g.strides, strict=True)], g
    )


def _phases(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T as one convolution for each phase, which has that phase's taps alone; then interleaved."""
    if max(g.dilation_rate) > 1:  # a phase's taps are not every so many
        return _subpixel(x, w, g, num)
    taps = _phase_taps(g)

    def from_axis(axis: int, part: jax.Array) -> jax.Array:
        """Of every phase of this axis and those after it: ``(N, *space, C)``, with phases."""
        if axis < g.rank:
            each = [
                from_axis(
                    axis + 1, part[(slice(None),) * axis + (slice(r, None, g.strides[axis]),)]
                )
                for r in range(g.strides[axis])
            ]
            return jnp.stack(each, axis + 2)
        if not part.size:  # more phases than taps
            part = jnp.zeros((1,) * g.rank + w.shape[g.rank :], w.dtype)
        return _convolve(
            x,
            lax.rev(_swapped(part, g), range(g.rank)),
            num,
            padding=[(k - 1, q - 1) for k, q in zip(part.shape, taps, strict=False)],
            feature_group_count=g.groups,
        )

    y = from_axis(0, w)
    space = [m * s for m, s in zip(y.shape[1:-1:2], g.strides, strict=True)]
    y = y.reshape(y.shape[0], *space, y.shape[-1])
    return _crop(y, g.crop, g)


def _phase_taps(g: Geometry) -> list[int]:
    """How many taps a phase of the stride has at most: how many strides the kernel spans."""
    return [-(-k // s) for k, s in zip(g.span, g.strides, strict=True)]


def _phases_to_channels(w: jax.Array, g: Geometry) -> jax.Array:
    """``(*k, ci, groups * co)``, flipped, as ``(*taps, ci, groups * prod(strides) * co)``."""
    r, taps = g.rank, _phase_taps(g)
    ci, out = w.shape[-2:]
    fill = [
        (0, q * s - k, d - 1)
        for q, s, k, d in zip(taps, g.strides, g.span, g.dilation_rate, strict=True)
    ]
    w = lax.pad(w, jnp.zeros((), w.dtype), [*fill, (0, 0, 0), (0, 0, 0)])
    split = itertools.chain.from_iterable(zip(taps, g.strides, strict=True))
    w = w.reshape(*split, ci, g.groups, out // g.groups)
    w = lax.rev(w, range(0, 2 * r, 2))
    w = w.transpose(*range(0, 2 * r, 2), 2 * r, 2 * r + 1, *range(1, 2 * r, 2), 2 * r + 2)
    return w.reshape(*taps, ci, out * math.prod(g.strides))


def _interleave(z: jax.Array, starts: Sequence[Size], g: Geometry) -> jax.Array:
    """``(N, *m, *strides, C)`` to space, and of that the output, from ``starts``."""
    r = g.rank
    order = itertools.chain.from_iterable((1 + a, 1 + r + a) for a in range(r))
    space = [m * s for m, s in zip(z.shape[1:], g.strides, strict=False)]
    y = z.transpose(0, *order, 1 + 2 * r).reshape(z.shape[0], *space, z.shape[-1])
    return _crop(y, starts, g)


def _crop(y: jax.Array, starts: Sequence[Size], g: Geometry) -> jax.Array:
    """The output, which begins at ``starts``; zero beyond the end."""
    window = [
        (-lo, lo + out - m, 0)
        for lo, out, m in zip(starts, g.output_size, y.shape[1:], strict=False)
    ]
    return lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *window, (0, 0, 0)])


# ------------------------------------------------------------------ matrix products


def _matmul(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T as one matrix product, every input pixel by the whole kernel, then overlap-add."""
    r = g.rank
    # (N, *n, g, ci) by (*k, co, g, ci) to (g, N, *n, *k, co)
    p = _dot(
        _split_groups(x, g),
        _split_groups(w, g),
        contract=((r + 2,), (r + 2,)),
        batch=((r + 1,), (r + 1,)),
        num=num._replace(dtype=_accumulator(num.dtype)),
    )
    return _overlap_add(_merge_last(jnp.moveaxis(p, 0, -2)), g).astype(num.dtype)


def _matmul_strided(y: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """C as one matrix product of windows and kernel."""
    r = g.rank
    # (N, *n, *k, g, co) by (*k, co, g, ci) to (g, N, *n, ci)
    x = _dot(
        _split_groups(_windows(y, g), g),
        _split_groups(w, g),
        contract=((*range(r + 1, 2 * r + 1), 2 * r + 2), tuple(range(r + 1))),
        batch=((2 * r + 1,), (r + 1,)),
        num=num,
    )
    return _merge_last(jnp.moveaxis(x, 0, -2))


def _matmul_kernel_grad(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G as one matrix product of windows and inputs."""
    r = g.rank
    pixels = tuple(range(r + 1))
    # (N, *n, *k, g, co) by (N, *n, g, ci) to (g, *k, co, ci)
    w = _dot(
        _split_groups(_windows(y, g), g),
        _split_groups(x, g),
        contract=(pixels, pixels),
        batch=((2 * r + 1,), (r + 1,)),
        num=num,
    )
    return _merge_last(jnp.moveaxis(w, 0, -2))


def _dot(a: jax.Array, b: jax.Array, contract: Any, batch: Any, num: Numerics) -> jax.Array:
    return lax.dot_general(
        a, b, (contract, batch), precision=num.precision, preferred_element_type=num.dtype
    )


def _windows(y: jax.Array, g: Geometry) -> jax.Array:
    """What every input pixel's kernel meets in ``y``: ``(N, *output, C)`` to ``(N, *n, *k, C)``."""
    for a, (n, s, q) in enumerate(zip(g.input_size, g.strides, _phase_taps(g), strict=True)):
        axis, size = 1 + a, (n + q - 1) * s
        ends = [(0, 0, 0)] * y.ndim
        ends[axis] = (g.crop[a], size - g.crop[a] - y.shape[axis], 0)
        y = lax.pad(y, jnp.zeros((), y.dtype), ends)
        y = y.reshape(*y.shape[:axis], n + q - 1, s, *y.shape[axis + 1 :])
        y = jnp.concatenate([lax.slice_in_dim(y, i, i + n, axis=axis) for i in range(q)], axis + 1)
        y = lax.slice_in_dim(y, 0, g.span[a], g.dilation_rate[a], axis=axis + 1)
        y = jnp.moveaxis(y, axis + 1, -2)
    return y


def _overlap_add(p: jax.Array, g: Geometry) -> jax.Array:
    """The transpose of `_windows`: ``(N, *n, *k, C)`` to ``(N, *output, C)``."""
    r, taps = g.rank, _phase_taps(g)
    zero = jnp.zeros((), p.dtype)
    fill = [
        (0, q * s - k, d - 1)
        for q, s, k, d in zip(taps, g.strides, g.span, g.dilation_rate, strict=True)
    ]
    p = lax.pad(p, zero, [*[(0, 0, 0)] * (r + 1), *fill, (0, 0, 0)])
    parts = []
    for shift in itertools.product(*map(range, taps)):
        part = p
        for a, (i, s) in enumerate(zip(shift, g.strides, strict=True)):
            part = lax.slice_in_dim(part, i * s, (i + 1) * s, axis=1 + r + a)
        ends = [(i, q - 1 - i, 0) for i, q in zip(shift, taps, strict=True)]
        parts.append(lax.pad(part, zero, [(0, 0, 0), *ends, *[(0, 0, 0)] * (r + 1)]))
    return _interleave(functools.reduce(operator.add, parts), g.crop, g)


# ------------------------------------------------------------------ planes


def _planes(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T in three dimensions as T in two: each phase of depth joins the batch.

    The planes of ``x`` that meet one plane of ``y`` are channels of it.
    """
    depth, plane = _without_depth(g)
    (k,), (s,), (d,), (lo,), (out,) = (
        depth.kernel_size, depth.strides, depth.dilation_rate, depth.crop, depth.output_size
    )  # fmt: skip
    planes = -(-out // s)
    phases = []
    for first in range(s):  # planes first, first + s, ... of the output
        taps = [t for t in range(k) if (first + lo - t * d) % s == 0]
        if not taps:
            shape = (x.shape[0], planes, *plane.output_size, w.shape[-2])
            phases.append(jnp.zeros(shape, num.dtype))
            continue
        met = np.array([(first + lo - t * d) // s for t in taps])
        part = _take_rows(x, np.arange(planes)[:, None] + met)
        y = _subpixel(
            _depth_to_batch(_merge_last(jnp.moveaxis(part, 2, -2))),
            jnp.concatenate([w[t] for t in taps], -1),
            plane,
            num,
        )
        phases.append(y.reshape(x.shape[0], planes, *y.shape[1:]))
    y = jnp.stack(phases, 2)
    y = y.reshape(y.shape[0], planes * s, *y.shape[3:])
    return lax.slice_in_dim(y, 0, out, axis=1)


def _planes_strided(y: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """C as in `_planes`."""
    depth, plane = _without_depth(g)
    x = _strided(_depth_windows(y, depth), _depth_to_filters(w), plane, num)
    return x.reshape(-1, *depth.input_size, *x.shape[1:])


def _planes_kernel_grad(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G as in `_planes`."""
    depth, plane = _without_depth(g)
    w = _flat_filter(_depth_to_batch(x), _depth_windows(y, depth), plane, num)
    w = w.reshape(*plane.kernel_size, *depth.kernel_size, y.shape[-1], x.shape[-1])
    return jnp.moveaxis(w, -3, 0)


def _without_depth(g: Geometry) -> tuple[Geometry, Geometry]:
    """The geometry of the first spatial axis, and of the others."""
    axes = [f.name for f in dataclasses.fields(g) if f.name != "groups"]
    first = {name: getattr(g, name)[:1] for name in axes}
    rest = {name: getattr(g, name)[1:] for name in axes}
    return dataclasses.replace(g, **first), dataclasses.replace(g, **rest)


def _depth_to_batch(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def _depth_to_filters(w: jax.Array) -> jax.Array:
    w = jnp.moveaxis(w, 0, -3)
    return w.reshape(*w.shape[:-3], w.shape[-3] * w.shape[-2], w.shape[-1])


def _depth_windows(y: jax.Array, depth: Geometry) -> jax.Array:
    """Every output plane that an input plane meets, as its channels."""
    (n,), (k,), (s,), (d,) = (
        depth.input_size,
        depth.kernel_size,
        depth.strides,
        depth.dilation_rate,
    )
    y = _take_rows(y, np.arange(n)[:, None] * s + np.arange(k) * d - depth.crop[0])
    return _merge_last(_depth_to_batch(jnp.moveaxis(y, 2, -2)))


# ------------------------------------------------------------------ axes


def _split_groups(a: jax.Array, g: Geometry) -> jax.Array:
    """The last axis as ``(groups, channels of one group)``."""
    return a.reshape(*a.shape[:-1], g.groups, a.shape[-1] // g.groups)


def _merge_last(a: jax.Array) -> jax.Array:
    """The last two axes as one."""
    return a.reshape(*a.shape[:-2], a.shape[-2] * a.shape[-1])


def _accumulator(dtype: Any) -> Any:
    """Sums of products of 16 bits are kept in 32."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if narrow else dtype


# ------------------------------------------------------------------ which way is taken where

TRANSPOSE: dict[str, Way] = {
    "input_dilation": _input_dilation,
    "subpixel": _subpixel,
    "phases": _phases,
    "matmul": _matmul,
    "planes": _planes,
}
STRIDED: dict[str, Way] = {
    "strided": _strided,
    "matmul": _matmul_strided,
    "planes": _planes_strided,
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
PLANES = Ways("planes", "planes", "planes")
NAMED = {
    "input_dilation": CONVOLUTIONS,
    "subpixel": CONVOLUTIONS._replace(transpose="subpixel"),
    "matmul": PRODUCTS,
    "lax": CONVOLUTIONS,
}
REFERENCE = "lax"  # the convolutions themselves, and what JAX derives from them
LOWERINGS = ("auto", *NAMED)

# More convolutions than these take long to compile.
MANY_PHASES = 9

# Products up to this size stay in the cache between the product and its overlap-add.  From
# 32 MiB on a buffer is fresh memory at every call, and touching its pages costs more than
# computing it.
SMALL_PRODUCT = 16 << 20


def ways(g: Geometry, batch: Size, filters: int, dtype: Any, target: str) -> Ways:
    """What ``lowering="auto"`` takes, by static shape and target.

    Args:
      g: the geometry.
      batch: ``N``.
      filters: ``co``, output channels of one group.
      dtype: of the operands.
      target: as `Numerics` has it.  Anything but ``"cpu"`` gets plain convolutions, which XLA's
        partitioner splits by batch, channels and space, and which GPU and TPU have kernels for.

    Ratios are of times on two cores of an AMD EPYC (Zen 5), jaxlib 0.10.2, float32.
    """
    if target != "cpu" or not all(isinstance(n, int) for n in (batch, *g.output_size)):
        return CONVOLUTIONS
    if g.groups > 1 or jnp.issubdtype(dtype, jnp.integer):
        # XLA:CPU has only naive loops for these: 60 times slower for the kernel gradient of 8
        # groups, 10 times for int32.
        return PRODUCTS
    if g.rank == 3:
        # Nor has it a fast convolution of three dimensions: T takes 0.45 of the subpixel way, C
        # 0.35 and G a tenth of the convolutions on 12x12x12x64 to 32, 3x3x3 at stride 2.
        return PLANES
    if all(k <= s for k, s in zip(g.span, g.strides, strict=True)):
        # Nothing overlaps: each map is one matrix product of rearranged pixels.  1.5 to 2 times
        # on 2x64x64x128 to 64, 2x2 at stride 2.
        return PRODUCTS
    if all(s == 1 for s in g.strides):
        return Ways("input_dilation", "strided", "flat_filter")
    product = batch * math.prod((*g.input_size, *g.kernel_size, filters)) * dtype.itemsize
    if dtype == jnp.float64 or max(g.dilation_rate) > 1 or product <= SMALL_PRODUCT:
        # 12 times for float64; 2.4 times at dilation 2; 2 times on 32x4x4x512 to 256 channels
        # and on 96x96x56 to 1, where the other ways compute what the crop then removes.
        return Ways("matmul", "strided", "flat_filter")
    whole = all(k % s == 0 for k, s in zip(g.kernel_size, g.strides, strict=True))
    if not whole and math.prod(g.strides) <= MANY_PHASES:
        # Merging phases fills up the kernel to a multiple of the stride: 0.7 of the time on
        # 2x64x64x128 to 64 channels, 3x3 at stride 2; 0.85 on 32x16x16x128 to 64, 5x5.
        return Ways("phases", "strided", "flat_filter")
    return Ways("subpixel", "strided", "flat_filter")


# ------------------------------------------------------------------ the maps


def transpose(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T."""
    return _compute("transpose", TRANSPOSE, x, w, g, num, x.shape[0], w.shape[-2])


def strided(y: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """C."""
    return _compute("strided", STRIDED, y, w, g, num, y.shape[0], w.shape[-2])


def kernel_grad(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G."""
    filters = y.shape[-1] // g.groups
    return _compute("kernel_grad", KERNEL_GRAD, x, y, g, num, x.shape[0], filters)


def _compute(
    name: str,
    table: dict[str, Way],
    a: jax.Array,
    b: jax.Array,
    g: Geometry,
    num: Numerics,
    batch: Size,
    filters: int,
) -> jax.Array:
    """A map of operands in their common dtype; only the result is narrowed, where it is to be."""
    with jax.numpy_dtype_promotion("standard"):  # strictness is for the arguments
        dtype = jnp.promote_types(a.dtype, b.dtype)
        wide = num._replace(dtype=jnp.promote_types(num.dtype, dtype))
    taken = NAMED.get(num.lowering) or ways(g, batch, filters, dtype, num.target)
    way = table[getattr(taken, name)]
    return way(a.astype(dtype), b.astype(dtype), g, wide).astype(num.dtype)
