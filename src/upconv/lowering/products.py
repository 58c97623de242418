"""All three maps as products of matrices."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from upconv.geometry import Geometry, Size, cdiv
from upconv.lowering.axes import merge_first, merge_last, move, pad, split_groups, take_rows
from upconv.lowering.calls import kept_apart
from upconv.lowering.numerics import Numerics, accumulator
from upconv.lowering.phases import interleave


def conv_transpose(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T as one matrix product, of every input pixel by the whole kernel, and an overlap-add."""
    r = g.rank
    # (N, *n, ci) by (*k, co, ci) to (N, *n, *k, co)
    p = _product(x, w, (r + 1,), (r + 1,), g, num)

    def added(p: jax.Array) -> jax.Array:
        return overlap_add(p, g).astype(num.dtype)

    if num.platform == "cpu" and _is_slow_to_compile(p, g):
        halves = p.reshape(*p.shape[:-1], 2, p.shape[-1] // 2)
        return merge_last(kept_apart(added)(halves))
    return added(p)


# Filters, of which LLVM takes long to compile a loop that adds up four products, each of which may
# lie beyond an edge: half of that is its strength reduction. In a loop over two halves of them,
# overlap-add of 32x4x4 -> 256, 4x4 / 2, compiles in 0.5. But of 64x4x4 -> 160: 1.6, 32x4x4 -> 640:
# 1.1; and of eight products, 8x4x4x4 -> 256, 4x4x4 / 2: 6.
HALVED = range(256, 513)


def _is_slow_to_compile(p: jax.Array, g: Geometry) -> bool:
    """Whether `overlap_add` of `(N, *n, *k, C)` is, unless channels are halved."""
    added = math.prod(g.met_strides)
    return added == 4 and p.shape[-1] in HALVED and p.shape[-1] % 2 == 0 and p.dtype.itemsize == 4


def plane_products(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T of one group as a product for each phase of the first axis, and overlap-adds of planes.

    The planes that meet one plane of `y` are the channels of one, so the product sums what meets
    along that axis: of every pixel it makes as many numbers as a plane of the kernel holds.
    """
    s, same, parts = g.strides[0], [(0, 0, 0)], []
    for i in range(s):
        first, phase = divmod(g.crop[0] + i, s)
        taps = np.array([t for t in range(g.kernel_size[0]) if t * g.dilation_rate[0] % s == phase])
        if taps.size:
            # Apart, the products of a phase are gone before the next are made.
            of_phase = functools.partial(_planes, first=first, taps=taps, g=g, num=num)
            part = kept_apart(of_phase)(x, w)
            parts.append(pad(part, [*same * (g.rank + 1), (i, s - 1 - i, 0), *same * g.rank]))
    apart = dataclasses.replace(g, strides=(s, *(1,) * (g.rank - 1)))
    return interleave(parts, (0,) * g.rank, apart)


def _planes(
    x: jax.Array, w: jax.Array, *, first: int, taps: np.ndarray, g: Geometry, num: Numerics
) -> jax.Array:
    """The planes of `y` that some taps meet: `(N, planes, *output of one, 1, ..., co)`."""
    s, d = g.strides[0], g.dilation_rate[0]
    pixels = np.arange(first, first + cdiv(g.output_size[0], s))
    met = take_rows(x, pixels[:, None] - taps * d // s)
    y = conv_transpose(
        merge_first(merge_last(move(met, 2, -2))),
        merge_last(move(w[taps[0] : taps[-1] + 1 : s // math.gcd(s, d)], 0, -2)),
        g.plane,
        num,
    )
    return y.reshape(x.shape[0], pixels.size, *y.shape[1:-1], *(1,) * g.rank, y.shape[-1])


def conv(y: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """C as one matrix product of windows and kernel."""
    r = g.rank
    # (N, *n, *k, co) by (*k, co, ci) to (N, *n, ci)
    x = _product(_windows(y, g), w, range(r + 1, 2 * r + 2), range(r + 1), g, num)
    return x.astype(num.dtype)


def correlate_kernel(x: jax.Array, y: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
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
        preferred_element_type=accumulator(num.dtype),
    )
    if g.groups == 1:
        (a, a_axis, a_kept), (b, b_axis, b_kept) = _matrix(a, a_sum), _matrix(b, b_sum)
        return dot(a, b, (((a_axis,), (b_axis,)), ((), ()))).reshape(*a_kept, *b_kept)
    # The groups' axis comes before that of their channels, which it pushes back.
    a_axes, b_axes = (
        [axis + 1 if axis == operand.ndim - 1 else axis for axis in summed]
        for operand, summed in ((a, a_sum), (b, b_sum))
    )
    axes = ((a_axes, b_axes), ((a.ndim - 1,), (b.ndim - 1,)))
    p = dot(split_groups(a, g.groups), split_groups(b, g.groups), axes)
    return merge_last(move(p, 0, -2))


def _precision_of_products(num: Numerics) -> Any:
    """Less the presets of algorithms that products on CPU refuse, and convolutions ignore."""
    presets = lax.DotAlgorithmPreset | lax.DotAlgorithm
    refused = num.platform == "cpu" and isinstance(num.precision, presets)
    return lax.Precision.DEFAULT if refused else num.precision  # None would be the context's again


def _matrix(a: jax.Array, summed: Sequence[int]) -> tuple[jax.Array, int, tuple[Size, ...]]:
    """`a` with two axes, which of the two is summed over, and the axes that the other merges."""
    axis = 0 if 0 in summed else 1
    rows = len(summed) if axis == 0 else a.ndim - len(summed)
    matrix = a.reshape(math.prod(a.shape[:rows]), math.prod(a.shape[rows:]))
    return matrix, axis, a.shape[rows:] if axis == 0 else a.shape[:rows]


# Strides that a kernel spans, beyond which its windows are gathered tap by tap. 1x28x28x32 in 32
# groups, 31x31: 0.6, and 1.1 s less to compile; 2x1000x16 in 16 groups, 3 taps 128 apart: 0.01, and
# 2.5 s less. But 2x14x14x64 in 64 groups, 7x7: 2 to 4.
MANY_STRIDES = 8


def _windows(y: jax.Array, g: Geometry) -> jax.Array:
    """What the kernel of every input pixel meets: `(N, *output, C)` to `(N, *n, *k, C)`."""
    for a in range(g.rank):
        static = isinstance(g.input_size[a], int) and isinstance(g.output_size[a], int)
        taken = _gathered if static and g.phase_taps[a] > MANY_STRIDES else _sliced
        y = move(taken(y, g, a), a + 2, -2)
    return y


def _gathered(y: jax.Array, g: Geometry, a: int) -> jax.Array:
    """The windows along one axis: `(..., output, ...)` to `(..., n, k, ...)`."""
    pixels = np.arange(g.input_size[a])[:, None] * g.strides[a] - g.crop[a]
    return take_rows(y, pixels + np.arange(g.kernel_size[a]) * g.dilation_rate[a], 1 + a)


def _sliced(y: jax.Array, g: Geometry, a: int) -> jax.Array:
    """The same, from slices of as many strides as there are input pixels."""
    axis, n, m, s = 1 + a, g.input_size[a], g.full_strides[a], g.strides[a]
    ends = [(0, 0, 0)] * y.ndim
    ends[axis] = (*g.stride_pads[a], 0)
    y = pad(y, ends)
    y = y.reshape(*y.shape[:axis], m, s, *y.shape[axis + 1 :])
    slices = [lax.slice_in_dim(y, i, i + n, axis=axis) for i in range(g.phase_taps[a])]
    y = jnp.concatenate(slices, axis + 1)
    return lax.slice_in_dim(y, 0, g.span[a], g.dilation_rate[a], axis=axis + 1)


class _Taps(NamedTuple):
    """The taps, from the first up to `stop`, that lie in one of the strides a kernel spans."""

    stride: int
    first: int
    stop: int


def _taps_by_stride(g: Geometry, a: int) -> list[_Taps]:
    """Those of one axis, for each stride in which there are any."""
    k, s, d = g.kernel_size[a], g.strides[a], g.dilation_rate[a]
    met = dict.fromkeys(t * d // s for t in range(k))
    return [_Taps(i, cdiv(i * s, d), min(cdiv((i + 1) * s, d), k)) for i in met]


def overlap_add(p: jax.Array, g: Geometry) -> jax.Array:
    """The transpose of `_windows`: `(N, *n, *k, ...)` to `(N, *output, ...)`."""
    terms = []
    for taps in itertools.product(*(_taps_by_stride(g, a) for a in range(g.rank))):
        starts, stops, ends = [0] * p.ndim, [*p.shape], [(0, 0, 0)] * p.ndim
        for a, (t, s, d) in enumerate(zip(taps, g.strides, g.dilation_rate, strict=True)):
            of_pixels, of_taps = 1 + a, 1 + g.rank + a
            starts[of_taps], stops[of_taps] = t.first, t.stop
            ends[of_pixels] = (t.stride, g.phase_taps[a] - 1 - t.stride, 0)
            after = (t.stride + 1) * s - 1 - (t.stop - 1) * d
            ends[of_taps] = (t.first * d - t.stride * s, after, d - 1)
        terms.append(pad(lax.slice(p, starts, stops), ends))
    return interleave(terms, g.crop, g)
