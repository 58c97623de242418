"""Initializers that know how a transposed convolution sums.

The kernel is `(*kernel_size, filters // groups, c_in)`. A stride spreads the taps of the kernel
over the output: one output pixel sums at most `c_in / groups * prod(ceil(kernel_size / strides))`
products, and one input pixel takes part in `filters / groups * prod(kernel_size)`. These are the
fans here. For `strides=1` they are those of `jax.nn.initializers` with `in_axis=-1, out_axis=-2`.

Every initializer is called as Flax's are, `(key, shape, dtype=float32) -> array`, and is a frozen
dataclass, so that layers that hold one can be hashed, compared, pickled and written to a config.
The functions give those that are used most, with fans that know the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from upconv import geometry
from upconv.records import store_number

__all__ = [
    "ICNR",
    "Bilinear",
    "Constant",
    "Initializer",
    "Normal",
    "Orthogonal",
    "TruncatedNormal",
    "Uniform",
    "VarianceScaling",
    "bilinear",
    "compute_fans",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "icnr",
    "lecun_normal",
    "lecun_uniform",
]

Initializer = Callable[..., Any]  # to an array, or to one in a box of Flax's

# The standard deviation of a standard normal variable truncated to [-2, 2].
_TRUNCATED_STDDEV = 0.87962566103423978


def compute_fans(
    shape: Sequence[int], *, strides: int | Sequence[int] = 1, groups: int = 1
) -> tuple[int, int]:
    """The number of products that one output pixel sums, and that one input pixel takes part in.

    Args:
      shape: `(*kernel_size, filters // groups, c_in)`, or `(filters,)` for a bias, whose fans are
        both `filters` as in TensorFlow.
      strides: an integer, or one per spatial axis.
      groups: the number of groups.

    Returns:
      `(fan_in, fan_out)`. TensorFlow and Keras swap the two for this layer, and ignore its strides.

    Raises:
      TypeError: if the shape is no sequence, or strides or groups are not integers.
      ValueError: for a scalar or empty shape, strides of the wrong number or below 1, or groups
        that do not divide `c_in`.

    >>> compute_fans((5, 5, 64, 128))
    (3200, 1600)
    >>> compute_fans((5, 5, 64, 128), strides=2)
    (1152, 1600)
    """
    if not geometry.is_sequence(shape):
        raise TypeError(f"shape must be a sequence of sizes, got {shape!r}")
    if any(n < 1 for n in shape):
        raise ValueError(f"shape must hold sizes above 0, as others have no fans, got {shape}")
    if len(shape) == 1:
        return shape[0], shape[0]
    if not shape:
        raise ValueError("shape must have at least one axis, got ()")
    *kernel_size, filters_per_group, c_in = shape
    groups = geometry.integer("groups", groups, minimum=1)
    if c_in % groups:
        raise ValueError(f"groups must divide the {c_in} input channels, got {groups}")
    strides = geometry.per_axis("strides", strides, len(kernel_size))
    taps = math.prod(geometry.cdiv(k, s) for k, s in zip(kernel_size, strides, strict=True))
    return c_in // groups * taps, filters_per_group * math.prod(kernel_size)


def glorot_uniform(*, strides: int | Sequence[int] = 1, groups: int = 1) -> Initializer:
    """Uniform with variance `2 / (fan_in + fan_out)`.

    For `strides=1` and `groups=1` this is the distribution that TensorFlow and Keras draw the
    kernel and, on request, the bias from: the layers' default. Glorot and Bengio,
    "Understanding the difficulty of training deep feedforward neural networks", 2010.

    Args:
      strides: of the layer, an integer or one per spatial axis.
      groups: of the layer.

    Returns:
      The initializer.

    Raises:
      TypeError: if strides or groups are not integers.
      ValueError: (when called) where `compute_fans` does.

    >>> kernel = glorot_uniform()(jax.random.key(0), (4, 4, 2, 4))
    >>> bool(abs(kernel).max() <= (6 / 96) ** 0.5)
    True
    """
    return VarianceScaling(1.0, "fan_avg", "uniform", strides, groups)


def glorot_normal(*, strides: int | Sequence[int] = 1, groups: int = 1) -> Initializer:
    """Truncated normal with variance `2 / (fan_in + fan_out)`; see `glorot_uniform`.

    >>> glorot_normal(strides=2)(jax.random.key(0), (4, 4, 2, 4)).shape
    (4, 4, 2, 4)
    """
    return VarianceScaling(1.0, "fan_avg", "truncated_normal", strides, groups)


def he_uniform(*, strides: int | Sequence[int] = 1, groups: int = 1) -> Initializer:
    """Uniform with variance `2 / fan_in`.

    It keeps the variance of activations through rectified layers whose kernel the stride divides;
    of others it keeps less, 0.69 for 5x5 and 0.56 for 3x3 at stride 2, since the fan counts the
    pixels that sum most. He et al., "Delving Deep into Rectifiers", arXiv:1502.01852. TensorFlow's
    divides by the other fan.

    Args:
      strides: of the layer, an integer or one per spatial axis.
      groups: of the layer.

    Returns:
      The initializer.

    Raises:
      TypeError: if strides or groups are not integers.
      ValueError: (when called) where `compute_fans` does.

    >>> he_uniform(strides=2)(jax.random.key(0), (4, 4, 2, 4)).shape
    (4, 4, 2, 4)
    """
    return VarianceScaling(2.0, "fan_in", "uniform", strides, groups)


def he_normal(*, strides: int | Sequence[int] = 1, groups: int = 1) -> Initializer:
    """Truncated normal with variance `2 / fan_in`; see `he_uniform`.

    >>> he_normal(strides=2)(jax.random.key(0), (4, 4, 2, 4)).shape
    (4, 4, 2, 4)
    """
    return VarianceScaling(2.0, "fan_in", "truncated_normal", strides, groups)


def lecun_uniform(*, strides: int | Sequence[int] = 1, groups: int = 1) -> Initializer:
    """Uniform with variance `1 / fan_in`.

    It keeps the variance of activations through linear layers whose kernel the stride divides; of
    others it keeps less, 0.69 for 5x5 and 0.56 for 3x3 at stride 2, since the fan counts the pixels
    that sum most. LeCun et al., "Efficient BackProp", 1998. TensorFlow's divides by the other fan.

    Args:
      strides: of the layer, an integer or one per spatial axis.
      groups: of the layer.

    Returns:
      The initializer.

    Raises:
      TypeError: if strides or groups are not integers.
      ValueError: (when called) where `compute_fans` does.

    >>> lecun_uniform(strides=2)(jax.random.key(0), (4, 4, 2, 4)).shape
    (4, 4, 2, 4)
    """
    return VarianceScaling(1.0, "fan_in", "uniform", strides, groups)


def lecun_normal(*, strides: int | Sequence[int] = 1, groups: int = 1) -> Initializer:
    """Truncated normal with variance `1 / fan_in`; see `lecun_uniform`.

    >>> lecun_normal(strides=2)(jax.random.key(0), (4, 4, 2, 4)).shape
    (4, 4, 2, 4)
    """
    return VarianceScaling(1.0, "fan_in", "truncated_normal", strides, groups)


def bilinear(strides: int | Sequence[int], *, groups: int = 1) -> Initializer:
    """The kernel with which the layer upsamples each channel bilinearly (linearly in 1-D).

    A tent of half-width `strides` at the centre of the kernel, for as many filters as channels. It
    reproduces linear functions exactly, away from the border. With `padding="same"` and a kernel of
    `2 * strides - strides % 2` the pixels lie as those of `jax.image.resize(..., "bilinear")`.
    Long et al., "Fully Convolutional Networks for Semantic Segmentation", arXiv:1411.4038.

    Args:
      strides: of the layer, an integer or one per spatial axis.
      groups: of the layer.

    Returns:
      The initializer; it uses no randomness.

    Raises:
      TypeError: if strides or groups are not integers.
      ValueError: (when called) if the kernel is shorter than `2 * strides - 1`, or if filters and
        channels are not equally many.

    >>> bilinear(2)(jax.random.key(0), (4, 1, 1)).ravel().tolist()
    [0.25, 0.75, 0.75, 0.25]
    """
    return Bilinear(strides, groups)


def icnr(
    strides: int | Sequence[int], initializer: Initializer | None = None, *, groups: int = 1
) -> Initializer:
    """Repeats every tap `strides` times, so that a new layer upsamples by nearest neighbours.

    The output of the layer is then constant on blocks of `strides` pixels and has no checkerboard
    artifacts to begin with. Under `padding="same"` the blocks lie on the input's pixels if
    `(kernel_size - strides) // 2` is a multiple of `strides`; else they are shifted, and cut at the
    border. Aitken et al., "Checkerboard artifact free sub-pixel convolution", arXiv:1707.02937.

    Args:
      strides: of the layer, an integer or one per spatial axis.
      initializer: draws the kernel of `kernel_size / strides` taps, as of a layer without strides;
        `he_normal(groups=groups)` by default.
      groups: of the layer, for that default.

    Returns:
      The initializer.

    Raises:
      TypeError: if strides or groups are not integers.
      ValueError: (when called) if the kernel size is no multiple of the strides.

    >>> kernel = icnr(2)(jax.random.key(0), (4, 3, 5))
    >>> bool((kernel[0] == kernel[1]).all()), bool((kernel[1] == kernel[2]).any())
    (True, False)
    """
    return ICNR(strides, he_normal(groups=groups) if initializer is None else initializer)


Mode = Literal["fan_in", "fan_out", "fan_avg"]
Distribution = Literal["uniform", "normal", "truncated_normal"]


@dataclass(frozen=True)
class VarianceScaling:
    """Independent draws with variance `scale` over a fan, or over the mean of both.

    Args:
      scale: what the fan divides, positive.
      mode: `"fan_in"`, `"fan_out"` or `"fan_avg"`; see `compute_fans`.
      distribution: `"uniform"`, `"normal"` or `"truncated_normal"`, which has no draws beyond two
        standard deviations of the normal distribution that is truncated.
      strides: of the layer, an integer or one per spatial axis.
      groups: of the layer.

    Raises:
      TypeError: if the scale is not a real number, or strides or groups are not integers.
      ValueError: if the scale is not positive, or for another mode or distribution; for a call,
        where `compute_fans` does.

    >>> VarianceScaling(2.0, "fan_out")(jax.random.key(0), (4, 4, 2, 4)).shape
    (4, 4, 2, 4)
    """

    scale: float = 1.0
    mode: Mode = "fan_in"
    distribution: Distribution = "truncated_normal"
    strides: int | Sequence[int] = 1
    groups: int = 1

    def __post_init__(self) -> None:
        store_number(self, "scale")
        if self.scale <= 0:
            raise ValueError(f"scale must be positive, got {self.scale}")
        for name, allowed in (("mode", get_args(Mode)), ("distribution", get_args(Distribution))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        _store_strides_and_groups(self)

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        """Draws an array."""
        fan_in, fan_out = compute_fans(shape, strides=self.strides, groups=self.groups)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        stddev = math.sqrt(self.scale / fan)
        if self.distribution == "uniform":
            limit = math.sqrt(3) * stddev
            return jax.random.uniform(key, shape, dtype, -limit, limit)
        if self.distribution == "normal":
            return jax.random.normal(key, shape, dtype) * jnp.asarray(stddev, dtype)
        draws = jax.random.truncated_normal(key, -2, 2, shape, dtype)
        return draws * jnp.asarray(stddev / _TRUNCATED_STDDEV, dtype)


@dataclass(frozen=True)
class Constant:
    """The same number everywhere.

    Args:
      value: the number, finite.

    Raises:
      TypeError: if it is not a real number.
      ValueError: if it is not finite.

    >>> Constant(0.5)(jax.random.key(0), (2,)).tolist()
    [0.5, 0.5]
    """

    value: float = 0.0

    def __post_init__(self) -> None:
        store_number(self, "value")

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        """Makes an array; uses no randomness."""
        return jnp.full(shape, self.value, dtype)


@dataclass(frozen=True)
class Normal:
    """Independent normal draws.

    In Keras's order: `jax.nn.initializers.normal(0.02)` is `Normal(stddev=0.02)`.

    Args:
      mean: of the distribution.
      stddev: its standard deviation.

    Raises:
      TypeError: if a number is not real.
      ValueError: if one is not finite, or `stddev` is negative.

    >>> Normal(stddev=0.02)(jax.random.key(0), (3, 2)).shape
    (3, 2)
    """

    mean: float = 0.0
    stddev: float = 0.05

    def __post_init__(self) -> None:
        store_number(self, "mean")
        store_number(self, "stddev", nonnegative=True)

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        """Draws an array."""
        draws = jax.random.normal(key, shape, dtype)
        return draws * jnp.asarray(self.stddev, dtype) + jnp.asarray(self.mean, dtype)


@dataclass(frozen=True)
class TruncatedNormal:
    """Independent draws from a normal distribution, without what is beyond two standard deviations.

    `stddev` is that of the distribution before it is truncated, as in Keras.

    Args:
      mean: of the distribution.
      stddev: its standard deviation before it is truncated.

    Raises:
      TypeError: if a number is not real.
      ValueError: if one is not finite, or `stddev` is negative.

    >>> bool(abs(TruncatedNormal(stddev=0.5)(jax.random.key(0), (99,))).max() <= 1)
    True
    """

    mean: float = 0.0
    stddev: float = 0.05

    def __post_init__(self) -> None:
        store_number(self, "mean")
        store_number(self, "stddev", nonnegative=True)

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        """Draws an array."""
        draws = jax.random.truncated_normal(key, -2, 2, shape, dtype)
        return draws * jnp.asarray(self.stddev, dtype) + jnp.asarray(self.mean, dtype)


@dataclass(frozen=True)
class Uniform:
    """Independent draws from `minval` up to `maxval`.

    Both ends, as in Keras: `jax.nn.initializers.uniform(0.05)` is `Uniform(0, 0.05)`.

    Args:
      minval: the smallest number drawn.
      maxval: what all numbers drawn stay below.

    Raises:
      TypeError: if a number is not real.
      ValueError: if one is not finite, or `minval` is above `maxval`.

    >>> draws = Uniform(1.0, 3.0)(jax.random.key(0), (99,))
    >>> bool(1 <= draws.min()), bool(draws.max() <= 3)
    (True, True)
    """

    minval: float = -0.05
    maxval: float = 0.05

    def __post_init__(self) -> None:
        store_number(self, "minval")
        store_number(self, "maxval")
        if self.minval > self.maxval:
            raise ValueError(
                f"minval must not be above maxval, got {self.minval} and {self.maxval}"
            )

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        """Draws an array."""
        return jax.random.uniform(key, shape, dtype, self.minval, self.maxval)


@dataclass(frozen=True)
class Orthogonal:
    """`gain` times a random orthogonal matrix, whose columns are the last axis.

    Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks", arXiv:1312.6120.

    Called with a shape of at least two axes.

    Args:
      gain: what the matrix is multiplied by.

    Raises:
      TypeError: if a number is not real.
      ValueError: if one is not finite; for a call with a shape of fewer than two axes.

    >>> columns = Orthogonal()(jax.random.key(0), (3, 4, 2)).reshape(-1, 2)
    >>> bool(jnp.allclose(columns.T @ columns, jnp.eye(2), atol=1e-5))
    True
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        store_number(self, "gain")

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        """Draws an array."""
        # LAPACK has no routines for 16 bits.
        with jax.numpy_dtype_promotion("standard"):
            wide = jnp.promote_types(dtype, jnp.float32)
        return jax.nn.initializers.orthogonal(self.gain)(key, shape, wide).astype(dtype)


@dataclass(frozen=True)
class Bilinear:
    """The initializer that `bilinear` gives: see there for its arguments and errors."""

    strides: int | Sequence[int]
    groups: int = 1

    def __post_init__(self) -> None:
        _store_strides_and_groups(self)

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        """Makes a kernel."""
        kernel_size, filters_per_group, c_in = _kernel_shape("bilinear", shape)
        filters = filters_per_group * self.groups
        if filters != c_in:
            raise ValueError(
                f"bilinear needs as many filters as channels, got {filters} and {c_in}"
            )
        # Within its group, filter f belongs to channel f.
        kernel = np.tile(np.eye(filters_per_group), self.groups)
        strides = geometry.per_axis("strides", self.strides, len(kernel_size))
        for size, stride in zip(reversed(kernel_size), reversed(strides), strict=True):
            kernel = np.multiply.outer(_tent(size, stride), kernel)
        return jnp.asarray(kernel, dtype)


@dataclass(frozen=True)
class ICNR:
    """The initializer that `icnr` gives: every tap repeated `strides` times.

    Args:
      strides: of the layer, an integer or one per spatial axis.
      initializer: draws the kernel of `kernel_size / strides` taps.

    Raises:
      TypeError: if the strides are not integers, or the initializer cannot be called.
      ValueError: (when called) if the kernel size is no multiple of the strides.

    >>> ICNR(2, Constant(0.5))(jax.random.key(0), (4, 3, 5)).shape
    (4, 3, 5)
    """

    strides: int | Sequence[int]
    initializer: Initializer = field(default_factory=he_normal)

    def __post_init__(self) -> None:
        _store_strides(self)
        if not callable(self.initializer):
            raise TypeError(f"initializer must be callable, got {self.initializer!r}")

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        """Makes a kernel."""
        kernel_size, filters_per_group, c_in = _kernel_shape("icnr", shape)
        strides = geometry.per_axis("strides", self.strides, len(kernel_size))
        if any(k % s for k, s in zip(kernel_size, strides, strict=True)):
            raise ValueError(
                f"icnr needs a kernel size that is a multiple of the strides, got {kernel_size} "
                f"and {list(strides)}"
            )
        coarse = (k // s for k, s in zip(kernel_size, strides, strict=True))
        kernel = self.initializer(key, (*coarse, filters_per_group, c_in), dtype)
        for axis, stride in enumerate(strides):
            kernel = jnp.repeat(kernel, stride, axis)
        return kernel


def _kernel_shape(name: str, shape: Sequence[int]) -> tuple[list[int], int, int]:
    """The kernel's size, its filters in a group, and its channels."""
    if len(shape) < 3:
        raise ValueError(
            f"{name} is for kernels, (*kernel_size, filters // groups, c_in), got the shape {shape}"
        )
    *kernel_size, filters_per_group, c_in = shape
    return kernel_size, filters_per_group, c_in


def _tent(size: int, stride: int) -> np.ndarray:
    """Linear interpolation's weights, sampled at `size` points about the centre."""
    if size < 2 * stride - 1:
        raise ValueError(
            f"bilinear needs a kernel size of at least {2 * stride - 1} = 2 * stride - 1, "
            f"got {size}"
        )
    distance = np.abs(np.arange(size) - (size - 1) / 2)
    return np.maximum(1 - distance / stride, 0)


def check_strides(name: str, initializer: Any, strides: tuple[int, ...]) -> None:
    """Raises a ValueError for an initializer that was told of other strides than a layer has."""
    if isinstance(initializer, VarianceScaling | Bilinear | ICNR):
        told = geometry.per_axis(f"strides of {name}", initializer.strides, len(strides))
        if initializer.strides != 1 and told != strides:
            raise ValueError(
                f"{name} must be for the layer's strides {strides}, got {initializer!r}"
            )


def _store_strides(record: Any) -> None:
    """Checks the strides of a frozen record and stores them as an integer or a tuple of them."""
    value = record.strides
    if geometry.is_sequence(value):
        value = geometry.per_axis("strides", value, len(value))
    else:
        value = geometry.integer("strides", value, minimum=1)
    object.__setattr__(record, "strides", value)


def _store_strides_and_groups(record: Any) -> None:
    _store_strides(record)
    groups = geometry.integer("groups", record.groups, minimum=1)
    object.__setattr__(record, "groups", groups)
