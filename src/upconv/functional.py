"""`conv_transpose` and `conv`: arguments checked, arrays laid out, handed to the maps."""

from __future__ import annotations

import dataclasses
import math
import operator
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from upconv import bilinear, geometry, lowering
from upconv.geometry import Geometry, Padding, Size
from upconv.lowering.axes import pad
from upconv.lowering.numerics import Numerics, accumulator


def conv_transpose(
    x: jax.typing.ArrayLike,
    kernel: jax.typing.ArrayLike,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    output_padding: int | Sequence[int] | None = None,
    output_size: Size | Sequence[Size] | None = None,
    dilation_rate: int | Sequence[int] = 1,
    groups: int = 1,
    data_format: str = "channels_last",
    lowering: str = "auto",
    precision: jax.lax.PrecisionLike = None,
    preferred_element_type: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """Transposed convolution: the adjoint of `conv` with the same kernel.

    `<conv(y, kernel), x> = <y, conv_transpose(x, kernel)>`, as in Keras, TensorFlow and
    PyTorch: every input pixel adds the kernel, multiplied by its value, to the output, `strides`
    pixels after its neighbour does. Every derivative, of any order, is again one of three maps:
    this one, `conv`, and the correlation of `x` with `y` that gives a kernel. Each is computed
    directly.

    Args:
      x: `(*batch, *spatial, c_in)`, or `(*batch, c_in, *spatial)` for `channels_first`, with zero
        or more batch axes.
      kernel: `(*kernel_size, c_out // groups, c_in)`; its rank less 2 is the number of
        spatial axes, 1 to 3.
      strides: output pixels per input pixel, for all axes or one per spatial axis.
      padding: what to crop from the full output, in which every product has its place; `n` input
        pixels and a kernel that spans `K` make `(n - 1) * stride + K`. `"valid"` crops nothing,
        `"same"` leaves `n * stride` pixels and crops the smaller half in front, `"same_lower"` the
        larger half, and `"causal"` all at the end; `"circular"` adds to either end what `"same"`
        would crop at the other. All of them add zeros at the end where the full output has less
        than `n * stride` pixels. Or how many pixels to crop: an integer, or an integer or
        `(lo, hi)` pair for each spatial axis.
      output_padding: how many pixels longer the output is than with 0; less than
        `max(stride, dilation)`. With explicit padding and `"valid"` they come at the end. With
        `"same"` and `"same_lower"` the output has
        `(n - 1) * stride + K - 2 * (K // 2) + output_padding` pixels, as in Keras, instead of
        `n * stride`. `"causal"` and `"circular"` take none.
      output_size: the output's spatial size, instead of `output_padding`; symbolic where that of
        `x` is.
      dilation_rate: output pixels from one kernel tap to the next.
      groups: number of channel groups that do not mix.
      data_format: `"channels_last"` or `"channels_first"`.
      lowering: how it is computed; finite results agree to rounding. `"auto"` chooses by platform
        and static shape. `"input_dilation"` and `"subpixel"` fix how the transposed convolution is
        computed and leave its gradients to `"auto"`; `"matmul"` uses matrix products for both.
        `"lax"` is JAX's own convolution, differentiated by JAX: for tools that read jaxprs, and
        slow on CPU.
      precision: as in `jax.lax.conv_general_dilated`.
      preferred_element_type: dtype of the result; by default the operands' common dtype.

    Returns:
      An array in the layout of `x`, its spatial size as `output_shape` gives it.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a shape or an option does not fit; the message names the argument.

    >>> import jax
    >>> x, kernel = jax.numpy.ones((2, 7, 5, 3)), jax.numpy.ones((5, 4, 8, 3))
    >>> conv_transpose(x, kernel, strides=2, padding="same").shape
    (2, 14, 10, 8)
    """
    x, kernel = as_array("x", x), as_array("kernel", kernel)
    rank, last = _rank(kernel), _channels_last(data_format)
    padding = geometry.canonical_padding(padding, rank)
    spatial, channels = _spatial_and_channels("x", x, rank, last)
    groups = _check_groups(groups, channels, "channels of x")
    if channels != kernel.shape[-1]:
        raise ValueError(
            f"kernel must be (*kernel_size, c_out // groups, c_in): its last axis must match the "
            f"{channels} channels of x, got kernel {kernel.shape} and x {x.shape}"
        )
    g = geometry.transposed(
        spatial,
        kernel.shape[:-2],
        strides=strides,
        padding=padding,
        output_padding=output_padding,
        output_size=output_size,
        dilation_rate=dilation_rate,
        groups=groups,
    )
    numerics = _numerics(x, kernel, lowering, precision, preferred_element_type)
    batch, x = _flatten(x, rank, last)
    if padding == "circular":
        y = _wrap(_conv_transpose(x, kernel, _uncropped(g), numerics), g)
    else:
        y = _conv_transpose(x, kernel, g, numerics)
    return _unflatten(y, batch, last)


def conv(
    y: jax.typing.ArrayLike,
    kernel: jax.typing.ArrayLike,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    dilation_rate: int | Sequence[int] = 1,
    groups: int = 1,
    data_format: str = "channels_last",
    lowering: str = "auto",
    precision: jax.lax.PrecisionLike = None,
    preferred_element_type: jax.typing.DTypeLike | None = None,
) -> jax.Array:
    """Strided convolution: the map that `conv_transpose` transposes, and its adjoint.

    Args:
      y: `(*batch, *spatial, c_out)`, or `(*batch, c_out, *spatial)` for `channels_first`.
      kernel: `(*kernel_size, c_out // groups, c_in)`, as for `conv_transpose`: this map goes
        from `c_out` channels to `c_in`.
      strides, padding, dilation_rate, groups, data_format: as for `conv_transpose`; `padding`
        is what is added to `y`. So `"causal"` adds to the *end* of `y`, as the adjoint of a causal
        `conv_transpose` must; Keras's causal convolution adds to the front.
      lowering, precision, preferred_element_type: as for `conv_transpose`.

    Returns:
      An array of `c_in` channels in the layout of `y`. Pixels at the end of `y` that no
      window reaches are not used.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a shape or an option does not fit; the message names the argument.

    >>> import jax
    >>> y, kernel = jax.numpy.ones((2, 14, 10, 8)), jax.numpy.ones((5, 4, 8, 3))
    >>> conv(y, kernel, strides=2, padding="same").shape
    (2, 7, 5, 3)
    """
    y, kernel = as_array("y", y), as_array("kernel", kernel)
    rank, last = _rank(kernel), _channels_last(data_format)
    padding = geometry.canonical_padding(padding, rank)
    spatial, channels = _spatial_and_channels("y", y, rank, last)
    groups = _check_groups(groups, kernel.shape[-1], "channels on the last axis of the kernel")
    if channels != kernel.shape[-2] * groups:
        raise ValueError(
            f"kernel must be (*kernel_size, c_out // groups, c_in): its last axis but one times "
            f"groups = {groups} must match the {channels} channels of y, "
            f"got kernel {kernel.shape} and y {y.shape}"
        )
    g = geometry.strided(
        spatial,
        kernel.shape[:-2],
        strides=strides,
        padding=padding,
        dilation_rate=dilation_rate,
        groups=groups,
    )
    numerics = _numerics(y, kernel, lowering, precision, preferred_element_type)
    batch, y = _flatten(y, rank, last)
    if padding == "circular":
        y, g = _unwrap(y, g), _uncropped(g)
    return _unflatten(_conv(y, kernel, g, numerics), batch, last)


def output_shape(
    input_shape: Sequence[Size],
    filters: int,
    kernel_size: int | Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "valid",
    output_padding: int | Sequence[int] | None = None,
    output_size: Size | Sequence[Size] | None = None,
    dilation_rate: int | Sequence[int] = 1,
    groups: int = 1,
    data_format: str = "channels_last",
) -> tuple[Size, ...]:
    """The shape that `conv_transpose` gives, without computing it.

    Args:
      input_shape: shape of the input, batch axes and channels included; sizes may be symbolic
        dimensions of `jax.export`, and batch axes of unknown size `None`.
      filters: channels of the output, `c_out`.
      kernel_size: one integer per spatial axis; an integer takes `input_shape` to have one
        batch axis.
      strides, padding, output_padding, output_size, dilation_rate, groups, data_format: as for
        `conv_transpose`.

    Returns:
      One size for each axis of the input; batch axes keep theirs, symbolic or `None` as it may be.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument does not fit; the message names it.

    >>> output_shape((32, 7, 7, 64), 16, 4, strides=2, padding="same")
    (32, 14, 14, 16)
    """
    shape = _check_shape(input_shape)
    rank = len(kernel_size) if geometry.is_sequence(kernel_size) else len(shape) - 2
    if not 1 <= rank <= 3 or len(shape) < rank + 1:
        raise ValueError(
            "input_shape must be (*batch, *spatial, channels) or (*batch, channels, *spatial) "
            "with 1 to 3 spatial axes, those of kernel_size (one batch axis, if that is an "
            f"integer), got {shape} and kernel_size {kernel_size!r}"
        )
    kernel_size = geometry.per_axis("kernel_size", kernel_size, rank)
    last = _channels_last(data_format)
    batch, spatial, channels = _split(shape, rank, last)
    if None in (*spatial, channels):
        raise TypeError(f"input_shape must be known but for its batch axes, got {shape}")
    if isinstance(channels, int) and channels < 1:
        raise ValueError(f"input_shape must have at least one channel, got {shape}")
    groups = _check_groups(groups, channels, "input channels")
    filters = geometry.integer("filters", filters, minimum=1)
    if filters % groups != 0:
        raise ValueError(f"groups must divide filters = {filters}, got {groups}")
    g = geometry.transposed(
        spatial,
        kernel_size,
        strides=strides,
        padding=padding,
        output_padding=output_padding,
        output_size=output_size,
        dilation_rate=dilation_rate,
        groups=groups,
    )
    out = g.output_size
    return (*batch, *out, filters) if last else (*batch, filters, *out)


def add_bias(y: jax.Array, bias: jax.typing.ArrayLike, channel_axis: int) -> jax.Array:
    """`y + bias`, one number for each channel.

    The bias gets the rank of `y`, since `jax_numpy_rank_promotion` may forbid promotion. One of 16
    bits is repeated in 32, so that its gradient is summed in 32: XLA:CPU sums in what it is given,
    and a sum of bfloat16 grows no more after 256 equal terms.
    """
    bias = jnp.asarray(bias)
    shape = [1] * y.ndim
    shape[channel_axis] = -1
    wide = bias.reshape(shape).astype(accumulator(bias.dtype))
    return y + jnp.broadcast_to(wide, y.shape).astype(bias.dtype)


# ------------------------------------------------------------------ which maps


def _conv_transpose(x: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    if num.lowering != lowering.REFERENCE:
        return bilinear.conv_transpose(x, w, g, num)
    front, g = _without_front(g)
    return _pad_front(lowering.conv_transpose(x, w, g, num), front)


def _conv(y: jax.Array, w: jax.Array, g: Geometry, num: Numerics) -> jax.Array:
    if num.lowering != lowering.REFERENCE:
        return bilinear.conv(y, w, g, num)
    front, g = _without_front(g)
    return lowering.conv(_pad_front(y, [-n for n in front]), w, g, num)


def _numerics(x: jax.Array, kernel: jax.Array, name: str, precision: Any, dtype: Any) -> Numerics:
    if precision is None:  # now: when the maps are lowered, its context may have ended
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return Numerics(
        check_lowering(name), check_precision(precision), _result_dtype(dtype, x, kernel)
    )


# ------------------------------------------------------------------ zeros in front


def _without_front(g: Geometry) -> tuple[tuple[int, ...], Geometry]:
    """Splits off the zeros that a negative crop puts before the full output.

    Returns how many there are on each axis, and the geometry without them. XLA:CPU before jaxlib
    0.12 reads beyond an image that is cropped in front and padded behind (openxla/xla#48713). The
    lowerings avoid that in their own convolutions, but not in those that JAX derives from them.
    """
    front = tuple(
        min(-lo, out - 1) if isinstance(lo, int) and lo < 0 else 0
        for lo, out in zip(g.crop, g.output_size, strict=True)
    )
    return front, dataclasses.replace(
        g,
        crop=tuple(lo + n for lo, n in zip(g.crop, front, strict=True)),
        output_size=tuple(out - n for out, n in zip(g.output_size, front, strict=True)),
    )


def _pad_front(a: jax.Array, front: Sequence[int]) -> jax.Array:
    """Puts zeros in front of the spatial axes; a negative number crops instead."""
    return pad(a, [(0, 0, 0), *((n, 0, 0) for n in front), (0, 0, 0)])


# ------------------------------------------------------------------ circular padding


def _uncropped(g: Geometry) -> Geometry:
    return dataclasses.replace(g, crop=(0,) * g.rank, output_size=g.full_size)


def _wrap(full: jax.Array, g: Geometry) -> jax.Array:
    """Add what hangs over the end to the start: pixel `i` to `i - lo` modulo `n s`."""
    for axis, (size, lo) in enumerate(zip(g.output_size, g.crop, strict=True), start=1):
        turns = geometry.cdiv(full.shape[axis], size)
        end = [(0, 0)] * full.ndim
        end[axis] = (0, turns * size - full.shape[axis])
        full = jnp.pad(full, end)
        full = full.reshape(*full.shape[:axis], turns, size, *full.shape[axis + 1 :])
        full = full.sum(axis, dtype=full.dtype)
        full = jnp.roll(full, -lo, axis)
    return full


def _unwrap(y: jax.Array, g: Geometry) -> jax.Array:
    """The transpose of `_wrap`: repeat `y` periodically to the full length."""
    for axis, (full, lo) in enumerate(zip(g.full_size, g.crop, strict=True), start=1):
        size = y.shape[axis]
        # A symbolic length is taken to be no shorter than the overhang; the slice checks it.
        turns = 2 if is_symbolic_dim(size) else geometry.cdiv(full, size)
        y = jnp.concatenate([jnp.roll(y, lo, axis)] * turns, axis)
        y = jax.lax.slice_in_dim(y, 0, full, axis=axis)
    return y


# ------------------------------------------------------------------ layout


def _split(
    shape: tuple[Size, ...], rank: int, last: bool
) -> tuple[tuple[Size, ...], tuple[Size, ...], Size]:
    """Batch axes, spatial axes, channels."""
    batch, rest = shape[: -rank - 1], shape[-rank - 1 :]
    return (batch, rest[:-1], rest[-1]) if last else (batch, rest[1:], rest[0])


def _flatten(a: jax.Array, rank: int, last: bool) -> tuple[tuple[Size, ...], jax.Array]:
    """The batch axes, and the array as `(N, *spatial, channels)`."""
    batch = a.shape[: -rank - 1]
    a = a.reshape(math.prod(batch), *a.shape[len(batch) :])
    return batch, a if last else jnp.moveaxis(a, 1, -1)


def _unflatten(a: jax.Array, batch: tuple[Size, ...], last: bool) -> jax.Array:
    a = a if last else jnp.moveaxis(a, -1, 1)
    return a.reshape(*batch, *a.shape[1:])


# ------------------------------------------------------------------ checks


def check_array(name: str, a: Any) -> None:
    """Raises a TypeError for what is no array, such as a list or a mere shape."""
    shape_alone = isinstance(a, jax.ShapeDtypeStruct)
    if shape_alone or not hasattr(a, "shape") or not hasattr(a, "dtype"):
        hint = "; jax.eval_shape takes it" if shape_alone else ""
        raise TypeError(f"{name} must be an array, got {type(a).__name__}{hint}")


def check_lowering(name: Any) -> str:
    """The name, which must be one of `upconv.lowering.LOWERINGS`."""
    if not isinstance(name, str):
        raise TypeError(f"lowering must be a string, got {name!r}")
    if name not in lowering.LOWERINGS:
        raise ValueError(f"lowering must be one of {lowering.LOWERINGS}, got {name!r}")
    return name


def as_array(name: str, a: Any) -> jax.Array:
    """A JAX array of what is an array of numbers; raises a TypeError if it is not."""
    check_array(name, a)
    if getattr(a.dtype, "kind", None) not in ("O", "S", "U"):  # which JAX cannot hold
        a = jnp.asarray(a)
    if not jnp.issubdtype(a.dtype, jnp.number):
        raise TypeError(f"{name} must hold numbers, got dtype {a.dtype}")
    return a


def _channels_last(data_format: str) -> bool:
    return geometry.canonical_data_format(data_format) == "channels_last"


def _rank(kernel: jax.Array) -> int:
    """The number of spatial axes of a kernel that is one."""
    if not 3 <= kernel.ndim <= 5:
        raise ValueError(
            "kernel must be (*kernel_size, c_out // groups, c_in) with 1 to 3 spatial axes, "
            f"got shape {kernel.shape}"
        )
    if 0 in kernel.shape:
        raise ValueError(f"kernel must not be empty, got shape {kernel.shape}")
    return kernel.ndim - 2


def _spatial_and_channels(
    name: str, a: jax.Array, rank: int, last: bool
) -> tuple[tuple[Size, ...], Size]:
    """The sizes of an input that has a kernel's axes."""
    if a.ndim < rank + 1:
        order = "(*batch, *spatial, channels)" if last else "(*batch, channels, *spatial)"
        raise ValueError(
            f"{name} must be {order} with the {rank} spatial axes of the kernel, "
            f"got shape {a.shape}"
        )
    _, spatial, channels = _split(a.shape, rank, last)
    return spatial, channels


def _check_shape(shape: Any) -> tuple[Size, ...]:
    if not geometry.is_sequence(shape):
        raise TypeError(f"input_shape must be a sequence of sizes, got {shape!r}")
    try:
        sizes = tuple(n if n is None or is_symbolic_dim(n) else operator.index(n) for n in shape)
    except TypeError:
        raise TypeError(
            f"input_shape must hold integers or symbolic dimensions, got {shape!r}"
        ) from None
    if any(isinstance(n, int) and n < 0 for n in sizes):
        raise ValueError(
            "input_shape must hold no negative sizes (None is for batch axes of unknown size), "
            f"got {shape!r}"
        )
    return sizes


def check_precision(precision: Any) -> Any:
    """A precision that is hashable, as `jax.lax.conv_general_dilated` takes it."""
    presets = jax.lax.DotAlgorithmPreset
    if precision is None or isinstance(precision, presets | jax.lax.DotAlgorithm):
        return precision
    pair = tuple(precision) if isinstance(precision, tuple | list) else (precision,) * 2
    try:
        lhs, rhs = (jax.lax.Precision(p.lower() if isinstance(p, str) else p) for p in pair)
    except (TypeError, ValueError):  # unhashable, or an unknown name
        if isinstance(precision, str) and precision in presets.__members__:
            return presets[precision]
        raise ValueError(
            "precision must be None, a jax.lax.Precision or its name, a pair of these, "
            f"or a jax.lax.DotAlgorithmPreset or its name, got {precision!r}"
        ) from None
    return lhs, rhs


def _result_dtype(dtype: Any, x: jax.Array, kernel: jax.Array) -> Any:
    """The dtype of the result."""
    common = jnp.result_type(x, kernel)
    if dtype is None:
        return common
    try:
        wanted = jnp.dtype(dtype)
    except TypeError:
        raise TypeError(f"preferred_element_type must be a dtype, got {dtype!r}") from None
    # Of whatever width JAX has them; dtypes are equal to these, too.
    by_default = any(dtype is kind for kind in (int, float, complex))
    dtype = jax.dtypes.canonicalize_dtype(wanted)
    if dtype != wanted and not by_default:
        warnings.warn(
            f"preferred_element_type {wanted} needs jax_enable_x64; it is truncated to {dtype}",
            stacklevel=4,
        )
    kinds = (jnp.complexfloating, jnp.inexact, jnp.number)
    if any(jnp.issubdtype(common, k) and not jnp.issubdtype(dtype, k) for k in kinds):
        raise ValueError(
            f"preferred_element_type must be of the kind of {common} or a wider one, from integer "
            f"over floating to complex, got {dtype}"
        )
    return dtype


def _check_groups(groups: int, channels: Size, what: str) -> int:
    groups = geometry.integer("groups", groups, minimum=1)
    if channels % groups != 0:
        raise ValueError(f"groups must divide the {channels} {what}, got {groups}")
    return groups
