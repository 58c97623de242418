"""T as convolutions."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import jax
from jax import lax

from upconv.geometry import Geometry
from upconv.lowering.axes import merge_last, move, pad, swapped
from upconv.lowering.convolution import convolve
from upconv.lowering.numerics import Convolve, Numerics
from upconv.lowering.phases import Run, all_phases, each_phase, interleave, phases_to_channels


def input_dilation(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    """T as one convolution over the input with `stride - 1` zeros between its pixels."""
    padding = [(k - 1 - lo, k - 1 - hi) for k, (lo, hi) in zip(g.span, g.pads, strict=True)]
    # XLA:CPU takes a window of 2 without pads over pixels 2 apart for groups that it has merged
    # into space, and aborts where it then exchanges the operands (jaxlib 0.10.2 and 0.12.0).
    like_groups = [
        p == (0, 0) and k == s == 2 and d == 1
        for p, k, s, d in zip(padding, g.kernel_size, g.strides, g.dilation_rate, strict=True)
    ]
    y = convolve(
        x,
        lax.rev(swapped(w, g), range(g.rank)),
        num,
        padding=[(0, 1) if alike else p for alike, p in zip(like_groups, padding, strict=True)],
        lhs_dilation=g.strides,
        rhs_dilation=g.dilation_rate,
        groups=g.groups,
    )
    for axis in range(g.rank):
        if like_groups[axis]:
            y = lax.slice_in_dim(y, 0, g.output_size[axis], axis=1 + axis)
    return y


def subpixel(
    x: jax.Array,
    w: jax.Array,
    g: Geometry,
    num: Numerics,
    *,
    split: bool = False,
    convolve: Convolve = convolve,
) -> jax.Array:
    """T as stride-1 convolutions to the phases of the output, which are then interleaved.

    Pixel `i * s + r` of the full output, of phase `r`, sums the products of taps `j * s + r` with
    inputs `i - j`; only those `i` are computed that the crop leaves something of. With 5 taps at
    stride 2, phase 0 has taps 0, 2, 4 and phase 1 has taps 1, 3.

    Phases stand side by side as channels, `prod(s)` times as many: so they begin and end together,
    and zeros fill their taps up to the same number. If `split`, every phase has a convolution to
    itself instead, of no more than its own taps. Shi et al., arXiv:1609.07009.
    """
    runs = []
    for a, (s, d) in enumerate(zip(g.strides, g.dilation_rate, strict=True)):
        every = s == 1 or d == 1  # else a phase's taps are not every s-th
        runs.append(each_phase(g, a) if split and every else [all_phases(g, a)])
    parts = []
    for chosen in itertools.product(*map(enumerate, runs)):
        places, run = zip(*chosen, strict=True)
        part = w[tuple(slice(a.tap, None, a.every) for a in run)] if split else w
        if 0 in part.shape[: g.rank]:  # more phases than taps
            continue
        z = _phases_of_run(x, part, run, g, num, convolve)
        ends = [(i, len(of_axis) - 1 - i, 0) for i, of_axis in zip(places, runs, strict=True)]
        parts.append(pad(z, [*[(0, 0, 0)] * (g.rank + 1), *ends, (0, 0, 0)]))
    starts = [lo % of_axis[0].stride for lo, of_axis in zip(g.crop, runs, strict=True)]
    return interleave(parts, starts, g)


def _phases_of_run(
    x: jax.Array, w: jax.Array, run: Sequence[Run], g: Geometry, num: Numerics, convolve: Convolve
) -> jax.Array:
    """What `run` computes along each axis with its taps `w`: `(N, *pixels, *strides, C)`."""
    h = dataclasses.replace(g, kernel_size=w.shape[: g.rank], strides=tuple(a.stride for a in run))
    # At stride 1 the convolution puts taps apart; else zeros between them do.
    # T of 4x12x12x12x64 -> 64, 3x3x3, dilated: 0.2.
    apart = tuple(d if s == 1 else 1 for s, d in zip(h.strides, h.dilation_rate, strict=True))
    close = dataclasses.replace(
        h, dilation_rate=tuple(d // a for d, a in zip(h.dilation_rate, apart, strict=True))
    )
    z = convolve(
        x,
        phases_to_channels(swapped(w, close), close),
        num,
        rhs_dilation=apart,
        padding=list(map(Run.padding, run, g.input_size, h.phase_taps)),
        groups=g.groups,
    )
    z = z.reshape(*z.shape[:-1], g.groups, *h.strides, w.shape[-2])
    return merge_last(move(z, g.rank + 1, -2))
