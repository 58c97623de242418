"""The transposed convolution as plainly as NumPy allows, in float64: what the tests believe.

It imports nothing from `upconv` and nothing from JAX, and follows the definition word by word:
every input pixel adds its copy of the kernel into the *full* output, of length `F = (n-1)s + K`
with `K = d(k-1) + 1` per axis; the full output is then laid onto the output that the padding asks
for, by cropping, extending with zeros, or wrapping round.

`conv_transpose` is that scatter, `conv` its transpose (a gather) and `correlate_kernel` the
gradient in the kernel. Channels are last, any number of batch axes leads, and the kernel is
`(*kernel_size, c_out // groups, c_in)`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
Padding = str | int | Sequence[int | tuple[int, int]]


class Axis(NamedTuple):
    """One spatial axis: input length, taps, stride, dilation, output length and crop."""

    n: int
    k: int
    s: int
    d: int
    out: int
    start: int  # index of the full output that becomes output index 0
    wrap: bool = False  # indices that fall outside come back in at the other end

    @property
    def full(self) -> int:
        return (self.n - 1) * self.s + self.d * (self.k - 1) + 1

    def landing(self, f: int) -> int | None:
        """Where index `f` of the full output lands in the output, or None if it is cropped."""
        j = f - self.start
        if self.wrap:
            return j % self.out
        return j if 0 <= j < self.out else None


def per_axis(value: int | Sequence[int] | None, rank: int) -> list[Any]:
    if value is None or isinstance(value, int):
        return [value] * rank
    assert len(value) == rank
    return list(value)


def paddings(padding: Padding, rank: int) -> list[Any]:
    """One entry per axis: a lower-case policy, or the pair (lo, hi)."""
    if isinstance(padding, str):
        return [padding.lower()] * rank
    if isinstance(padding, int):
        return [(padding, padding)] * rank
    assert len(padding) == rank
    return [(p, p) if isinstance(p, int) else tuple(p) for p in padding]


def out_length(n: int, k: int, s: int, d: int, padding: Any, p: int | None) -> int:
    """The table of sizes, row by row."""
    reach = d * (k - 1) + 1
    full = (n - 1) * s + reach
    if padding == "valid":
        return (n - 1) * s + max(reach, s) if p is None else full + p
    if padding in ("same", "same_lower"):
        return n * s if p is None else (n - 1) * s + reach - 2 * (reach // 2) + p
    if padding in ("causal", "circular"):
        assert p is None
        return n * s
    lo, hi = padding
    return full - lo - hi + (p or 0)


def in_length(m: int, k: int, s: int, d: int, padding: Any) -> int:
    """How many positions the strided convolution takes on an axis of length `m`."""
    reach = d * (k - 1) + 1
    if padding == "valid":
        return (m - reach) // s + 1
    if padding in ("same", "same_lower", "causal"):
        return -(-m // s)
    if padding == "circular":
        assert m % s == 0
        return m // s
    lo, hi = padding
    return (m + lo + hi - reach) // s + 1


def out_start(n: int, k: int, s: int, d: int, padding: Any, out: int) -> int:
    """How much of the full output is cropped in front."""
    total = max((n - 1) * s + d * (k - 1) + 1 - out, 0)
    if padding in ("valid", "causal"):
        return 0
    if padding in ("same", "circular"):
        return total // 2
    if padding == "same_lower":
        return total - total // 2
    return padding[0]


def axes_of(
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    output_padding: int | Sequence[int] | None = None,
    output_size: int | Sequence[int] | None = None,
    dilation_rate: int | Sequence[int] = 1,
) -> list[Axis]:
    """The plan of every spatial axis of a transposed convolution."""
    rank = len(kernel_size)
    axes = []
    for n, k, s, d, pad, p, size in zip(
        input_size,
        kernel_size,
        per_axis(strides, rank),
        per_axis(dilation_rate, rank),
        paddings(padding, rank),
        per_axis(output_padding, rank),
        per_axis(output_size, rank),
        strict=True,
    ):
        out = out_length(n, k, s, d, pad, p) if size is None else size
        axes.append(Axis(n, k, s, d, out, out_start(n, k, s, d, pad, out), pad == "circular"))
    return axes


def output_size_of(
    input_size: Sequence[int], kernel_size: Sequence[int], **layer: Any
) -> tuple[int, ...]:
    """The spatial size of the transposed convolution's output."""
    return tuple(axis.out for axis in axes_of(input_size, kernel_size, **layer))


def input_size_of(
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    dilation_rate: int | Sequence[int] = 1,
) -> tuple[int, ...]:
    """The spatial size of the convolution's result on an image of `output_size`."""
    rank = len(kernel_size)
    rows = zip(
        output_size,
        kernel_size,
        per_axis(strides, rank),
        per_axis(dilation_rate, rank),
        paddings(padding, rank),
        strict=True,
    )
    return tuple(in_length(*row) for row in rows)


def _taps(axes: Sequence[Axis]) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
    """Every tap of the kernel, with the slice of the full output that all inputs reach by it."""
    for tap in itertools.product(*(range(axis.k) for axis in axes)):
        yield (
            tap,
            tuple(
                slice(t * axis.d, t * axis.d + (axis.n - 1) * axis.s + 1, axis.s)
                for t, axis in zip(tap, axes, strict=True)
            ),
        )


def _groups(groups: int, c_in: int, c_out: int) -> Iterator[tuple[slice, slice]]:
    """The input channels and the output channels of every group."""
    assert c_in % groups == 0
    assert c_out % groups == 0
    i, o = c_in // groups, c_out // groups
    for g in range(groups):
        yield slice(g * i, (g + 1) * i), slice(g * o, (g + 1) * o)


def _land(full: Array, axes: Sequence[Axis]) -> Array:
    """Crop, extend or wrap the full output (N, *full, C) to the output (N, *out, C)."""
    for position, axis in enumerate(axes, start=1):
        source = np.moveaxis(full, position, 0)
        target = np.zeros((axis.out, *source.shape[1:]))
        for f in range(axis.full):
            j = axis.landing(f)
            if j is not None:
                target[j] += source[f]
        full = np.moveaxis(target, 0, position)
    return full


def _lift(y: Array, axes: Sequence[Axis]) -> Array:
    """The transpose of `_land`: what every index of the full output sees of the output."""
    for position, axis in enumerate(axes, start=1):
        source = np.moveaxis(y, position, 0)
        target = np.zeros((axis.full, *source.shape[1:]))
        for f in range(axis.full):
            j = axis.landing(f)
            if j is not None:
                target[f] = source[j]
        y = np.moveaxis(target, 0, position)
    return y


def _flat(array: ArrayLike, rank: int) -> tuple[Array, tuple[int, ...]]:
    """The array in float64 with its batch axes as one, and their lengths."""
    a = np.asarray(array, np.float64)
    batch = a.shape[: a.ndim - rank - 1]
    size = int(np.prod(batch, dtype=int))
    return a.reshape(size, *a.shape[len(batch) :]), batch


def conv_transpose(
    x: ArrayLike,
    kernel: ArrayLike,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    output_padding: int | Sequence[int] | None = None,
    output_size: int | Sequence[int] | None = None,
    dilation_rate: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """T: every pixel of `x` (*batch, *n, c_in) adds its copy of the kernel to the output."""
    w = np.asarray(kernel, np.float64)
    rank = w.ndim - 2
    images, batch = _flat(x, rank)
    axes = axes_of(
        images.shape[1:-1],
        w.shape[:rank],
        strides,
        padding,
        output_padding,
        output_size,
        dilation_rate,
    )
    c_out = w.shape[-2] * groups
    full = np.zeros((len(images), *(axis.full for axis in axes), c_out))
    for ins, outs in _groups(groups, images.shape[-1], c_out):
        for tap, window in _taps(axes):
            full[(slice(None), *window, outs)] += images[..., ins] @ w[(*tap, slice(None), ins)].T
    y = _land(full, axes)
    return y.reshape(*batch, *y.shape[1:])


def conv(
    y: ArrayLike,
    kernel: ArrayLike,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    dilation_rate: int | Sequence[int] = 1,
    groups: int = 1,
    input_size: Sequence[int] | None = None,
) -> Array:
    """C: every pixel of the result gathers what `conv_transpose` would have scattered from it.

    `input_size` is the spatial size of the result, where it is not the usual one (that is, where
    the transposed convolution had an output padding).
    """
    w = np.asarray(kernel, np.float64)
    rank = w.ndim - 2
    images, batch = _flat(y, rank)
    size = images.shape[1:-1]
    if input_size is None:
        input_size = input_size_of(size, w.shape[:rank], strides, padding, dilation_rate)
    axes = axes_of(input_size, w.shape[:rank], strides, padding, None, size, dilation_rate)
    full = _lift(images, axes)
    x = np.zeros((len(images), *input_size, w.shape[-1]))
    for ins, outs in _groups(groups, w.shape[-1], images.shape[-1]):
        for tap, window in _taps(axes):
            x[..., ins] += full[(slice(None), *window, outs)] @ w[(*tap, slice(None), ins)]
    return x.reshape(*batch, *x.shape[1:])


def correlate_kernel(
    x: ArrayLike,
    y: ArrayLike,
    kernel_size: Sequence[int],
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    dilation_rate: int | Sequence[int] = 1,
    groups: int = 1,
) -> Array:
    """G: the gradient of `<y, conv_transpose(x, kernel)>` in the kernel."""
    rank = len(kernel_size)
    inputs, _ = _flat(x, rank)
    outputs, _ = _flat(y, rank)
    axes = axes_of(
        inputs.shape[1:-1], kernel_size, strides, padding, None, outputs.shape[1:-1], dilation_rate
    )
    full = _lift(outputs, axes)
    c_in, c_out = inputs.shape[-1], outputs.shape[-1]
    w = np.zeros((*kernel_size, c_out // groups, c_in))
    every = list(range(rank + 1))  # the batch and all spatial axes
    for ins, outs in _groups(groups, c_in, c_out):
        for tap, window in _taps(axes):
            seen = full[(slice(None), *window, outs)]
            w[(*tap, slice(None), ins)] = np.tensordot(seen, inputs[..., ins], (every, every))
    return w
