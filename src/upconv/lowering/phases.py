"""What a stride makes of kernels and outputs: phases, side by side or interleaved."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax import lax

from upconv.geometry import Geometry, Size, cdiv
from upconv.lowering.axes import pad


class Run(NamedTuple):
    """What one convolution computes along an axis: pixels `[first, stop)` of some phases."""

    tap: int  # the first tap that it takes
    every: int  # the distance to the next
    stride: int  # how many phases stand side by side
    first: Size
    stop: Size

    def padding(self, n: Size, taps: int) -> tuple[Size, Size]:
        """Of `n` inputs, for the convolution by `taps` of a phase that computes it."""
        return taps - 1 - self.first, self.stop - n


def all_phases(g: Geometry, axis: int) -> Run:
    """All phases of an axis together."""
    lo, out, s = g.crop[axis], g.output_size[axis], g.strides[axis]
    return Run(0, 1, s, lo // s, cdiv(lo + out, s))


def whole_strides(g: Geometry, axis: int) -> Run:
    """All phases of an axis together, of all strides that it spans before cropping."""
    return Run(0, 1, g.strides[axis], 0, g.full_strides[axis])


def each_phase(g: Geometry, axis: int) -> list[Run]:
    """The phases of an axis, each apart, in the order of the output."""
    lo, out, s = g.crop[axis], g.output_size[axis], g.strides[axis]
    phases = (divmod(lo + j, s) for j in range(s))
    return [Run(r, s, 1, first, first + cdiv(out, s)) for first, r in phases]


def phases_to_channels(w: jax.Array, g: Geometry) -> jax.Array:
    """`(*k, ci, groups * co)`, flipped, as `(*taps, ci, groups * prod(strides) * co)`.

    At stride 1 the taps must be side by side.
    """
    r, taps = g.rank, g.phase_taps
    if set(g.strides) == {1}:
        return lax.rev(w, range(r))
    ci, out = w.shape[-2:]
    w = split_strides(w, 0, g)
    w = w.reshape(*w.shape[: 2 * r], ci, g.groups, out // g.groups)
    w = lax.rev(w, range(0, 2 * r, 2))
    w = w.transpose(*range(0, 2 * r, 2), 2 * r, 2 * r + 1, *range(1, 2 * r, 2), 2 * r + 2)
    return w.reshape(*taps, ci, out * math.prod(g.strides))


def split_strides(a: jax.Array, axis: int, g: Geometry) -> jax.Array:
    """Axes of the kernel, from `axis` on, each as `(taps, stride)`; zeros fill them up."""
    rest = a.shape[axis + g.rank :]
    a = fill_strides(a, axis, g)
    split = itertools.chain.from_iterable(zip(g.phase_taps, g.strides, strict=True))
    return a.reshape(*a.shape[:axis], *split, *rest)


def fill_strides(a: jax.Array, axis: int, g: Geometry) -> jax.Array:
    """Axes of the kernel, from `axis` on, dilated and filled up with zeros to whole strides."""
    fill = [
        (0, q * s - k, d - 1)
        for q, s, k, d in zip(g.phase_taps, g.strides, g.span, g.dilation_rate, strict=True)
    ]
    rest = a.ndim - axis - g.rank
    return pad(a, [*[(0, 0, 0)] * axis, *fill, *[(0, 0, 0)] * rest])


def split_phases(y: jax.Array, runs: Sequence[Run], g: Geometry) -> jax.Array:
    """`(N, *output, C)` as `(N, pixels, stride, ..., C)`; zeros where there is no output."""
    ends = [
        (lo - a.first * a.stride, a.stop * a.stride - lo - out, 0)
        for lo, a, out in zip(g.crop, runs, g.output_size, strict=True)
    ]
    split = itertools.chain.from_iterable((a.stop - a.first, a.stride) for a in runs)
    return pad(y, [(0, 0, 0), *ends, (0, 0, 0)]).reshape(y.shape[0], *split, y.shape[-1])


# Numbers of channels for which LLVM unrolls a loop that copies them, one number at a time. A loop
# that sums two halves, each filled up with zeros, remains one of vectors: 0.4 to 0.8, and 20 ms
# less to compile. But of bfloat16, whose `kind` is not "f": up to 2.
UNROLLED = range(64, 80)


def interleave(parts: Sequence[jax.Array], starts: Sequence[Size], g: Geometry) -> jax.Array:
    """The sum of `parts`, each `(N, *m, *s, ...)`, as `(N, *(m * s), ...)`, and cropped."""
    r = g.rank
    if len(parts) == 1 and parts[0].shape[-1] in UNROLLED and parts[0].dtype.kind == "f":
        parts = _in_two(parts[0], g)
    z = functools.reduce(lax.add, parts)
    order = itertools.chain.from_iterable((1 + a, 1 + r + a) for a in range(r))
    y = z.transpose(0, *order, *range(1 + 2 * r, z.ndim))
    y = y.reshape(z.shape[0], *map(operator.mul, z.shape[1:], g.strides), *z.shape[1 + 2 * r :])
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
        parts.append(pad(lax.slice_in_dim(z, start, stop, axis=axis), ends))
    return parts


def _crop(y: jax.Array, starts: Sequence[Size], g: Geometry) -> jax.Array:
    """The output, which begins at `starts`; zeros where `y` has ended."""
    window = [
        (-lo, lo + out - m, 0)
        for lo, out, m in zip(starts, g.output_size, y.shape[1:], strict=False)
    ]
    return pad(y, [(0, 0, 0), *window, *[(0, 0, 0)] * (y.ndim - 1 - g.rank)])
