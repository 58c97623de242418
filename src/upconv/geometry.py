"""Sizes: how long a transposed convolution's output is, and where it is cropped.

Everything here is integer arithmetic on static shapes, per spatial axis, with

====  ==========================================================================
n     input length
k     kernel length; with dilation `d` it spans `K = d * (k - 1) + 1`
s     stride
F     full output length, `(n - 1) * s + K`: every product has its place
lo    how much of the full output is cropped at the start
====  ==========================================================================

so that `y[i * s + t * d - lo] += w[t] * x[i]` wherever that index exists.
A length may be a symbolic dimension of `jax.export`, and so may the number of groups that `vmap`
makes of one; kernels, strides and dilations are integers. The relations are those of Dumoulin and
Visin, *A guide to convolution arithmetic for deep learning* (arXiv:1603.07285), section 4.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeGuard

Size: TypeAlias = Any  # an int, or a symbolic dimension
Pads: TypeAlias = tuple[tuple[int, int], ...]
Padding: TypeAlias = str | int | Sequence[int | Sequence[int]]

PADDINGS = ("valid", "same", "same_lower", "causal", "circular")
DATA_FORMATS = ("channels_last", "channels_first")


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The static shape that a transposed convolution, its transpose and its kernel gradient share.

    Every field but `groups` has one entry per spatial axis.

    Attributes:
      input_size: lengths of the transposed convolution's input, `n`.
      kernel_size: `k`.
      strides: `s`.
      dilation_rate: `d`.
      crop: `lo`; negative where zeros come before the full output.
      output_size: lengths of the transposed convolution's output; where it outlasts the
        full output the rest is zero.
      groups: number of channel groups.

    >>> g = Geometry((7,), (5,), (2,), (1,), (1,), (14,))
    >>> g.full_size, g.pads
    ((17,), ((1, 2),))
    """

    input_size: tuple[Size, ...]
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation_rate: tuple[int, ...]
    crop: tuple[Size, ...]
    output_size: tuple[Size, ...]
    groups: Size = 1

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel_size)

    def with_axis(self, axis: int, **values: Size) -> Geometry:
        """The same but for one spatial axis, of which fields get these values."""
        changed: dict[str, Any] = {}
        for name, value in values.items():
            field = getattr(self, name)
            changed[name] = (*field[:axis], value, *field[axis + 1 :])
        return dataclasses.replace(self, **changed)

    @property
    def plane(self) -> Geometry:
        """Of one spatial axis less, without the first."""
        axes = [field.name for field in dataclasses.fields(self) if field.name != "groups"]
        return dataclasses.replace(self, **{name: getattr(self, name)[1:] for name in axes})

    @property
    def span(self) -> tuple[int, ...]:
        """`K`: the length that the dilated kernel covers."""
        return tuple(map(dilated, self.kernel_size, self.dilation_rate))

    @property
    def phase_taps(self) -> tuple[int, ...]:
        """How many taps a phase of the stride has at most: how many strides `K` spans."""
        return tuple(cdiv(k, s) for k, s in zip(self.span, self.strides, strict=True))

    @property
    def full_strides(self) -> tuple[Size, ...]:
        """`m`: how many strides the output spans before cropping, `n + q - 1`."""
        return tuple(n + q - 1 for n, q in zip(self.input_size, self.phase_taps, strict=True))

    @property
    def met_strides(self) -> tuple[int, ...]:
        """In how many of the strides that a kernel spans it has taps."""
        return tuple(map(min, self.kernel_size, self.phase_taps))

    @property
    def full_size(self) -> tuple[Size, ...]:
        """`F`: the length of the output before cropping."""
        return tuple(map(full_length, self.input_size, self.span, self.strides))

    @property
    def stride_pads(self) -> tuple[tuple[Size, Size], ...]:
        """Per axis, what fills the output up to `m` whole strides."""
        return tuple(
            (lo, m * s - lo - out)
            for lo, m, s, out in zip(
                self.crop, self.full_strides, self.strides, self.output_size, strict=True
            )
        )

    @property
    def pads(self) -> tuple[tuple[Size, Size], ...]:
        """Per axis, the ends cropped from the full output: what the strided convolution pads."""
        return tuple(
            (lo, full - lo - out)
            for lo, full, out in zip(self.crop, self.full_size, self.output_size, strict=True)
        )


def dilated(k: int, d: int) -> int:
    """The length that `k` taps cover, `d` apart."""
    return d * (k - 1) + 1


def cdiv(a: Size, b: Size) -> Size:
    """`a / b`, rounded up."""
    return -(-a // b)


def full_length(n: Size, span: int, s: int) -> Size:
    """The length at which every product of `n` inputs and `span` taps has its place."""
    return (n - 1) * s + span


def windows(n: Size, span: int, s: int) -> Size:
    """How many windows that cover `span` fit into a length `n`, a stride apart."""
    return (n - span) // s + 1


# ------------------------------------------------------------------ arguments, made canonical


def integer(name: str, value: Any, *, minimum: int | None = None, rule: str = "an integer") -> int:
    """`value` as an int, or an error that names it and the rule."""
    try:
        if isinstance(value, bool):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        # Arrays have an __index__, too; it raises unless they hold one integer.
        what = f"{value!r} ({type(value).__name__})"
        raise TypeError(f"{name} must be {rule}, got {what}") from None
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return value


def per_axis(
    name: str,
    value: Any,
    rank: int,
    *,
    minimum: int | None = 1,
    entry: Callable[..., int] = integer,
) -> tuple[int, ...]:
    """One integer per spatial axis, from an integer for all or a sequence of `rank` integers.

    Each is made canonical by `entry`, which is called as `integer` is.

    Raises:
      TypeError: if `value` is neither, or holds anything but integers.
      ValueError: if the sequence has another length, or an entry is below `minimum`.

    >>> per_axis("strides", 2, rank=3)
    (2, 2, 2)
    """
    if not is_sequence(value):
        rule = "an integer, or one per spatial axis"
        return (entry(name, value, minimum=minimum, rule=rule),) * rank
    if len(value) != rank:
        raise ValueError(
            f"{name} must be an integer or {_count(rank, 'integer')}, one per spatial axis, "
            f"got {value!r}"
        )
    return tuple(entry(f"{name}[{i}]", v, minimum=minimum) for i, v in enumerate(value))


def canonical_padding(padding: Any, rank: int) -> str | Pads:
    """A padding's name in lower case, or one `(lo, hi)` pair per spatial axis.

    An integer crops both ends alike, for all axes or per axis; a pair stands in a sequence
    with one entry per axis. A negative number extends the output by zeros instead.

    Raises:
      TypeError: if `padding` is no string, integer or sequence of integers and pairs.
      ValueError: if the name is unknown or a sequence has another length.

    >>> canonical_padding("SAME", rank=2)
    'same'
    >>> canonical_padding((1, (0, 2)), rank=2)
    ((1, 1), (0, 2))
    """
    rule = (
        f"one of {', '.join(PADDINGS)}, an integer or one integer or (lo, hi) pair per spatial axis"
    )
    if isinstance(padding, str):
        if padding.lower() not in PADDINGS:
            raise ValueError(f"padding must be {rule}, got {padding!r}")
        return padding.lower()
    if not is_sequence(padding):
        return ((integer("padding", padding, rule=rule),) * 2,) * rank
    if len(padding) != rank:
        raise ValueError(
            f"padding must have {_count(rank, 'entry', 'entries')}, one integer or (lo, hi) pair "
            f"per spatial axis, got {padding!r}"
        )
    return tuple(_pair(f"padding[{i}]", p) for i, p in enumerate(padding))


def canonical_data_format(data_format: Any) -> str:
    """`"channels_last"` or `"channels_first"`, from either in upper or lower case.

    >>> canonical_data_format("Channels_First")
    'channels_first'
    """
    if not isinstance(data_format, str):
        raise TypeError(f"data_format must be a string, got {data_format!r}")
    if data_format.lower() not in DATA_FORMATS:
        raise ValueError(f"data_format must be one of {DATA_FORMATS}, got {data_format!r}")
    return data_format.lower()


def _pair(name: str, value: Any) -> tuple[int, int]:
    if not is_sequence(value):
        return (integer(name, value),) * 2
    if len(value) != 2:
        raise ValueError(f"{name} must be an integer or a (lo, hi) pair, got {value!r}")
    lo, hi = value
    return integer(f"{name}[0]", lo), integer(f"{name}[1]", hi)


def is_sequence(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether `value` holds entries, as lists and arrays do; a string is one value."""
    listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return listed or (getattr(value, "ndim", 0) > 0 and hasattr(value, "__iter__"))


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


# ------------------------------------------------------------------ one axis


@dataclasses.dataclass(frozen=True)
class _PaddedAxis:
    """One spatial axis, and the rules of each padding on it."""

    index: int
    k: int
    s: int
    d: int
    padding: str | tuple[int, int]

    @property
    def span(self) -> int:
        return dilated(self.k, self.d)

    def least(self, n: Size) -> Size:
        """The output length at `output_padding = 0`."""
        if isinstance(self.padding, tuple):
            return full_length(n, self.span, self.s) - sum(self.padding)
        if self.padding == "valid":
            return full_length(n, self.span, self.s)
        return full_length(n, self.span, self.s) - 2 * (self.span // 2)

    def natural(self, n: Size) -> Size:
        """The output length when neither output_padding nor output_size is given."""
        if isinstance(self.padding, tuple):
            return self.least(n)
        if self.padding == "valid":
            return (n - 1) * self.s + max(self.span, self.s)
        return n * self.s

    def from_output_padding(self, n: Size, p: int) -> Size:
        if self.padding in ("causal", "circular"):
            raise ValueError(
                f"output_padding does not go with padding={self.padding!r}, "
                f"whose output is always input * stride; got {p}"
            )
        limit = max(self.s, self.d)
        if not 0 <= p < limit:
            raise ValueError(
                f"output_padding must be at least 0 and below max(stride, dilation) = {limit} "
                f"on spatial axis {self.index}, got {p}"
            )
        return self.least(n) + p

    def from_output_size(self, n: Size, out: Size) -> Size:
        if self.padding in ("causal", "circular"):
            low, most = n * self.s, 0
        else:
            low, most = self.least(n), max(self.s, self.d) - 1
            if self.padding in ("same", "same_lower"):
                most = max(most, n * self.s - low)
        axis = (
            f"on spatial axis {self.index} (input {n}, kernel {self.k}, stride {self.s}, "
            f"dilation {self.d}, padding {self.padding!r}), got {out}"
        )
        more = out - low
        if not isinstance(more, int):
            raise ValueError(f"output_size must be {low} and a known number of pixels {axis}")
        if not 0 <= more <= most:
            raise ValueError(f"output_size must be from {low} to {low + most} {axis}")
        return out

    def crop(self, n: Size, out: Size) -> Size:
        if isinstance(self.padding, tuple):
            return self.padding[0]
        if self.padding in ("valid", "causal"):
            return 0
        total = max(full_length(n, self.span, self.s) - out, 0)
        return total - total // 2 if self.padding == "same_lower" else total // 2

    def strided(self, m: Size) -> Size:
        """The output length of the strided convolution of `m` pixels."""
        if isinstance(self.padding, tuple):
            return windows(m + sum(self.padding), self.span, self.s)
        if self.padding == "valid":
            return windows(m, self.span, self.s)
        if self.padding == "circular" and m % self.s != 0:
            raise ValueError(
                f"circular padding needs a length that the stride {self.s} divides "
                f"on spatial axis {self.index}, got {m}"
            )
        return cdiv(m, self.s)


# ------------------------------------------------------------------ all axes


def transposed(
    input_size: Sequence[Size],
    kernel_size: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    output_padding: int | Sequence[int] | None = None,
    output_size: Size | Sequence[Size] | None = None,
    dilation_rate: int | Sequence[int] = 1,
    groups: int = 1,
) -> Geometry:
    """The geometry of a transposed convolution, from the size of its input.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of range, or the output would be empty.

    >>> transposed((7, 5), (5, 4), strides=(2, 3), padding="same").output_size
    (14, 15)
    >>> transposed((7,), (3,), strides=2, padding=1, output_padding=1).output_size
    (14,)
    """
    axes = _axes(kernel_size, strides, padding, dilation_rate)
    rank = len(axes)
    if output_padding is not None and output_size is not None:
        raise ValueError(
            "output_size and output_padding exclude each other, "
            f"got output_size={output_size!r} and output_padding={output_padding!r}"
        )
    _non_empty("the input", input_size)
    output: list[Size]
    if output_padding is not None:
        p = per_axis("output_padding", output_padding, rank, minimum=0)
        output = [a.from_output_padding(n, q) for a, n, q in zip(axes, input_size, p, strict=True)]
    elif output_size is not None:
        symbolic = tuple({type(n) for n in input_size} - {int})

        def size(name: str, value: Any, **rules: Any) -> Size:
            return value if isinstance(value, symbolic) else integer(name, value, **rules)

        out = per_axis("output_size", output_size, rank, entry=size)
        output = [a.from_output_size(n, o) for a, n, o in zip(axes, input_size, out, strict=True)]
    else:
        output = [a.natural(n) for a, n in zip(axes, input_size, strict=True)]
    _non_empty("the output", output, f": padding {padding!r} leaves nothing of it")
    return _geometry(axes, input_size, output, groups)


def strided(
    input_size: Sequence[Size],
    kernel_size: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    dilation_rate: int | Sequence[int] = 1,
    groups: int = 1,
) -> Geometry:
    """The geometry of a strided convolution, from the size of *its* input.

    It is that of the transposed convolution back to this size.

    >>> strided((14, 15), (5, 4), strides=(2, 3), padding="same").input_size
    (7, 5)
    """
    axes = _axes(kernel_size, strides, padding, dilation_rate)
    _non_empty("the input", input_size)
    output = [a.strided(m) for a, m in zip(axes, input_size, strict=True)]
    _non_empty("the output", output, ": the kernel is longer than the padded input")
    return _geometry(axes, output, input_size, groups)


def _axes(kernel_size: Any, strides: Any, padding: Any, dilation_rate: Any) -> list[_PaddedAxis]:
    rank = len(kernel_size)
    kernel_size = per_axis("kernel_size", kernel_size, rank)
    padding = canonical_padding(padding, rank)
    return [
        _PaddedAxis(i, *axis)
        for i, axis in enumerate(
            zip(
                kernel_size,
                per_axis("strides", strides, rank),
                per_axis("dilation_rate", dilation_rate, rank),
                (padding,) * rank if isinstance(padding, str) else padding,
                strict=True,
            )
        )
    ]


def _geometry(
    axes: Sequence[_PaddedAxis], inputs: Sequence[Size], outputs: Sequence[Size], groups: int
) -> Geometry:
    def each(field: str) -> tuple[int, ...]:
        return tuple(getattr(axis, field) for axis in axes)

    return Geometry(
        input_size=tuple(inputs),
        kernel_size=each("k"),
        strides=each("s"),
        dilation_rate=each("d"),
        crop=tuple(a.crop(n, m) for a, n, m in zip(axes, inputs, outputs, strict=True)),
        output_size=tuple(outputs),
        groups=groups,
    )


def _non_empty(what: str, size: Sequence[Size], why: str = "") -> None:
    # A symbolic dimension is at least 1 by its own declaration; comparing may be inconclusive.
    for i, n in enumerate(size):
        if isinstance(n, int) and n < 1:
            raise ValueError(
                f"{what} must have at least one pixel on every spatial axis, "
                f"got {n} on spatial axis {i}{why}"
            )
