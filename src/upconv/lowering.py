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
import numpy as np
from jax import lax

from upconv.geometry import Geometry, Size


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


Way = Callable[[jax.Array, jax.Array, Geometry, Numerics], jax.Array]


# ------------------------------------------------------------------ convolutions


def _convolve(
    lhs: jax.Array, rhs: jax.Array, num: Numerics, *, padding: Any, **options: Any
) -> jax.Array:
    """A convolution of ``(N, *space, in)`` by ``(*window, in // groups, out)``."""
    rank = lhs.ndim - 2
    image = (0, rank + 1, *range(1, rank + 1))
    options.setdefault("window_strides", (1,) * rank)
    return lax.conv_general_dilated(
        lhs,
        rhs,
        padding=padding,
        dimension_numbers=lax.ConvDimensionNumbers(image, (rank + 1, rank, *range(rank)), image),
        precision=num.precision,
        preferred_element_type=num.dtype,
        **options,
    )


def _swapped(w: jax.Array, g: Geometry) -> jax.Array:
    """A kernel ``(*k, co, groups * ci)`` as T convolves by it: ``(*k, ci, groups * co)``."""
    w = jnp.moveaxis(_split_groups(w, g), -1, -3)
    w = jnp.swapaxes(w, -1, -2)
    return w.reshape(*w.shape[:-2], w.shape[-2] * w.shape[-1])


def _input_dilation(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T as one convolution over the input with ``stride - 1`` zeros between its pixels."""
    return _convolve(
        x,
        lax.rev(_swapped(w, g), range(g.rank)),
        num,
        padding=[(k - 1 - lo, k - 1 - hi) for k, (lo, hi) in zip(g.span, g.pads, strict=True)],
        lhs_dilation=g.strides,
        rhs_dilation=g.dilation_rate,
        feature_group_count=g.groups,
    )


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
    product's rows are cut from; nothing but the batch axis moves.
    """
    if g.groups > 1 or g.dilation_rate[-1] > 1:  # the taps are not one run of that axis
        return _backward_filter(x, y, g, num)
    ci, co = x.shape[-1], y.shape[-1]
    lo, hi = g.pads[-1]
    wide = num._replace(dtype=_accumulator(num.dtype))

    def part(x: jax.Array, y: jax.Array) -> jax.Array:
        return _convolve(
            jnp.moveaxis(y, 0, -1)[None],
            jnp.moveaxis(x, 0, -2),
            wide,
            window_strides=g.dilation_rate,
            padding=[*g.pads[:-1], (lo * co, hi * co)],
            rhs_dilation=(*g.strides[:-1], g.strides[-1] * co),
        )

    y = y.reshape(*y.shape[:-2], y.shape[-2] * co)
    images = _images_at_once(x, y)
    if images == x.shape[0]:
        w = part(x, y)
    else:
        parts = [a.reshape(-1, images, *a.shape[1:]) for a in (x, y)]
        zero = jnp.zeros((1, *g.kernel_size[:-1], g.kernel_size[-1] * co, ci), wide.dtype)
        w, _ = lax.scan(lambda w, xy: (w + part(*xy), None), zero, parts)
    return w.reshape(*g.kernel_size, co, ci).astype(num.dtype)


def _images_at_once(x: jax.Array, y: jax.Array) -> Size:
    """How much of the batch one convolution of `_flat_filter` takes.

    Each of its output tiles reads all of ``x`` and much of ``y``; where these outgrow the cache,
    8 images at a time take 0.6 of the time on 32x16x16x128 to 64 channels, 4x4 stride 2.
    """
    batch = x.shape[0]
    if not isinstance(batch, int) or x.nbytes + y.nbytes < 10 << 20:
        return batch
    return next((n for n in (8, 7, 9, 6, 10, 12, 5) if batch % n == 0), batch)


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


def _row_phases(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T as one `_subpixel` for each phase of the first axis, which has that phase's taps alone."""
    if g.dilation_rate[0] > 1:  # a phase's taps are not every so many
        return _subpixel(x, w, g, num)
    s, m = g.strides[0], g.input_size[0] + _phase_taps(g)[0] - 1
    phases = []
    for r in range(s):
        part = w[r::s]
        if not part.shape[0]:
            part = jnp.zeros((1, *w.shape[1:]), w.dtype)
        phase = dataclasses.replace(
            g,
            kernel_size=part.shape[:-2],
            strides=(1, *g.strides[1:]),
            crop=(0, *g.crop[1:]),
            output_size=(m, *g.output_size[1:]),
        )
        phases.append(_subpixel(x, part, phase, num))
    y = jnp.stack(phases, 2)
    y = y.reshape(y.shape[0], m * s, *y.shape[3:])
    lo, out = g.crop[0], g.output_size[0]
    ends = [(0, 0, 0), (-lo, lo + out - m * s, 0), *[(0, 0, 0)] * g.rank]
    return lax.pad(y, jnp.zeros((), y.dtype), ends)


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
    """``(N, *m, *strides, C)`` to space, and of that the output: from ``starts``, zero beyond."""
    r = g.rank
    order = itertools.chain.from_iterable((1 + a, 1 + r + a) for a in range(r))
    space = [m * s for m, s in zip(z.shape[1:], g.strides, strict=False)]
    y = z.transpose(0, *order, 1 + 2 * r).reshape(z.shape[0], *space, z.shape[-1])
    window = [
        (-lo, lo + out - m, 0) for lo, out, m in zip(starts, g.output_size, space, strict=True)
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
    """T in three dimensions as T in two: depth joins the batch, the kernel's depth its filters."""
    depth, plane = _without_depth(g)
    p = transpose(
        _depth_to_batch(x), _depth_to_filters(w), plane, num._replace(lowering="subpixel")
    )
    p = p.reshape(-1, *depth.input_size, *plane.output_size, *depth.kernel_size, w.shape[-2])
    p = jnp.moveaxis(p, -2, 2)
    y = _overlap_add(p.reshape(*p.shape[:3], math.prod(p.shape[3:])), depth)
    return y.reshape(*y.shape[:2], *plane.output_size, w.shape[-2])


def _planes_kernel_grad(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """G as in `_planes`."""
    depth, plane = _without_depth(g)
    w = kernel_grad(
        _depth_to_batch(x), _depth_windows(y, depth), plane, num._replace(lowering="subpixel")
    )
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
    plane = np.arange(n)[:, None] * s + np.arange(k) * d - depth.crop[0]
    plane = np.where(plane < 0, y.shape[1], plane)  # no plane, rather than one from the end
    y = jnp.take(y, plane, axis=1, mode="fill", fill_value=0)
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
    "row_phases": _row_phases,
    "matmul": _matmul,
    "planes": _planes,
}
STRIDED: dict[str, Way] = {"strided": _strided, "matmul": _matmul_strided}
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
PLANES = Ways("planes", "strided", "planes")
NAMED = {
    "input_dilation": CONVOLUTIONS,
    "subpixel": Ways("subpixel", "strided", "flat_filter"),
    "matmul": PRODUCTS,
    "lax": CONVOLUTIONS,
}
REFERENCE = "lax"  # the convolutions themselves, and what JAX derives from them
LOWERINGS = ("auto", *NAMED)

# Products up to this size stay in the cache between the product and its overlap-add.  From
# 32 MiB on a buffer is fresh memory at every call, and touching its pages costs more than
# computing it.
SMALL_PRODUCT = 8 << 20


def ways(g: Geometry, batch: Size, filters: int, dtype: Any, target: str) -> Ways:
    """What ``lowering="auto"`` takes, by static shape and target.

    Args:
      g: the geometry.
      batch: ``N``.
      filters: ``co``, output channels of one group.
      dtype: of the operands.
      target: ``"cpu"`` where one CPU computes the map.  Anything else gets plain convolutions,
        which XLA's partitioner splits by batch, channels and space, and which GPU and TPU have
        kernels for.

    Ratios are of times on two cores of an AMD EPYC (Zen 5), jaxlib 0.10.2, float32.
    """
    if target != "cpu" or not all(isinstance(n, int) for n in (batch, *g.output_size)):
        return CONVOLUTIONS
    if g.groups > 1 or jnp.issubdtype(dtype, jnp.integer):
        # XLA:CPU has only naive loops for these: 60 times slower for the kernel gradient of 8
        # groups, 10 times for int32.
        return PRODUCTS
    if g.rank == 3:
        # Nor has it a fast convolution of three dimensions: T takes 0.7 of the subpixel way, G
        # a tenth of the convolution.  C's would take 0.6, but hold the windows twice with G's.
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
    if g.kernel_size[0] % g.strides[0] != 0:
        # Merging phases would fill up the kernel to a multiple of the stride on every axis: 0.75
        # of the time on 2x64x64x128 to 64, 3x3 at stride 2; 0.85 on 32x16x16x128 to 64, 5x5.
        return Ways("row_phases", "strided", "flat_filter")
    return Ways("subpixel", "strided", "flat_filter")


def _ways(g: Geometry, batch: Size, filters: int, num: Numerics, dtype: Any, target: str) -> Ways:
    if num.lowering in NAMED:
        return NAMED[num.lowering]
    return ways(g, batch, filters, dtype, target)


# ------------------------------------------------------------------ the maps


def transpose(
    x: jax.Array, w: jax.Array, g: Geometry, num: Numerics, target: str = "default"
) -> jax.Array:
    """T."""
    x, w = _promote(x, w)
    way = _ways(g, x.shape[0], w.shape[-2], num, x.dtype, target).transpose
    return _narrowed(TRANSPOSE[way], x, w, g, num)


def strided(
    y: jax.Array, w: jax.Array, g: Geometry, num: Numerics, target: str = "default"
) -> jax.Array:
    """C."""
    y, w = _promote(y, w)
    way = _ways(g, y.shape[0], w.shape[-2], num, y.dtype, target).strided
    return _narrowed(STRIDED[way], y, w, g, num)


def kernel_grad(
    x: jax.Array, y: jax.Array, g: Geometry, num: Numerics, target: str = "default"
) -> jax.Array:
    """G."""
    x, y = _promote(x, y)
    way = _ways(g, x.shape[0], y.shape[-1] // g.groups, num, x.dtype, target).kernel_grad
    return _narrowed(KERNEL_GRAD[way], x, y, g, num)


def _narrowed(way: Way, a: jax.Array, b: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """The result in ``num.dtype``, which may be narrower than the operands: computed in theirs."""
    wide = jnp.promote_types(num.dtype, a.dtype)
    return way(a, b, g, num._replace(dtype=wide)).astype(num.dtype)


def _promote(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    dtype = jnp.promote_types(a.dtype, b.dtype)
    return a.astype(dtype), b.astype(dtype)
