"""C as convolutions."""

from __future__ import annotations

import functools
import itertools
import math
import operator

import jax
from jax import lax

from upconv.geometry import Geometry
from upconv.lowering.axes import split_groups
from upconv.lowering.convolution import convolve
from upconv.lowering.numerics import Convolve, Numerics, accumulator
from upconv.lowering.phases import split_strides


def strided(
    y: jax.Array, w: jax.Array, g: Geometry, num: Numerics, convolve: Convolve = convolve
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


def blocks(y: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """C by blocks of a stride each, which do not overlap.

    A convolution gives for every block what each of the windows that it lies in takes from it, side
    by side: `prod(q)` times as many channels, where few would leave vectors idle. Each window is
    then the sum of what its blocks give it.
    """
    r, taps = g.rank, g.phase_taps
    w = split_groups(split_strides(w, 0, g), g.groups)
    # (taps, stride, ..., co, groups, ci) to (*strides, co, groups, *taps, ci)
    w = w.transpose(*range(1, 2 * r, 2), 2 * r, 2 * r + 1, *range(0, 2 * r, 2), 2 * r + 2)
    z = convolve(
        y,
        w.reshape(*w.shape[: r + 1], math.prod(w.shape[r + 1 :])),
        num._replace(dtype=accumulator(num.dtype)),
        padding=g.stride_pads,
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
