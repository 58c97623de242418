"""Initializers that know how a transposed convolution sums.

The kernel is `(*kernel_size, filters // groups, c_in)`. A stride spreads the taps of the kernel
over the output: one output pixel sums at most `c_in / groups * prod(ceil(kernel_size / strides))`
products, and one input pixel takes part in `filters / groups * prod(kernel_size)`. These are the
fans here. For `strides=1` they are those of `jax.nn.initializers` with `in_axis=-1, out_axis=-2`.

Every function gives an initializer `(key, shape, dtype=float32) -> array`, as Flax has them: a
frozen dataclass, so that layers that hold one can be hashed, compared and pickled.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "Initializer",
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

Initializer = Callable[..., jax.Array]

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
      `(fan_in, fan_out)`. TensorFlow and Keras swap the two for this layer, and know no strides.

    Raises:
      ValueError: for a scalar shape, strides of the wrong number or below 1, or groups that do not
        divide `c_in`.

    >>> compute_fans((5, 5, 64, 128))
    (3200, 1600)
    >>> compute_fans((5, 5, 64, 128), strides=2)
    (1152, 1600)
    """
    if len(shape) == 1:
        return shape[0], shape[0]
    if not shape:
        raise ValueError("shape must have at least one axis, got ()")
    *kernel_size, filters_per_group, c_in = shape
    if groups < 1 or c_in % groups:
        raise ValueError(f"groups must divide the {c_in} input channels, got {groups}")
    taps = math.prod(
        -(-k // s) for k, s in zip(kernel_size, _per_axis(strides, len(kernel_size)), strict=True)
    )
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
      The initializer. It raises ValueError where `compute_fans` does.

    >>> kernel = glorot_uniform()(jax.random.key(0), (4, 4, 2, 4))
    >>> bool(abs(kernel).max() <= (6 / 96) ** 0.5)
    True
    """
    return _VarianceScaling(1.0, "fan_avg", "uniform", _hashable(strides), groups)


def glorot_normal(*, strides: int | Sequence[int] = 1, groups: int = 1) -> Initializer:
    """Truncated normal with variance `2 / (fan_in + fan_out)`; see `glorot_uniform`.

    >>> glorot_normal(strides=2)(jax.random.key(0), (4, 4, 2, 4)).shape
    (4, 4, 2, 4)
    """
    return _VarianceScaling(1.0, "fan_avg", "normal", _hashable(strides), groups)


def he_uniform(*, strides: int | Sequence[int] = 1, groups: int = 1) -> Initializer:
    """Uniform with variance `2 / fan_in`.

    It keeps the variance of activations through rectified layers. He et al., "Delving Deep into
    Rectifiers", arXiv:1502.01852. TensorFlow's divides by the other fan.

    Args:
      strides: of the layer, an integer or one per spatial axis.
      groups: of the layer.

    Returns:
      The initializer. It raises ValueError where `compute_fans` does.

    >>> he_uniform(strides=2)(jax.random.key(0), (4, 4, 2, 4)).shape
    (4, 4, 2, 4)
    """
    return _VarianceScaling(2.0, "fan_in", "uniform", _hashable(strides), groups)


def he_normal(*, strides: int | Sequence[int] = 1, groups: int = 1) -> Initializer:
    """Truncated normal with variance `2 / fan_in`; see `he_uniform`.

    >>> he_normal(strides=2)(jax.random.key(0), (4, 4, 2, 4)).shape
    (4, 4, 2, 4)
    """
    return _VarianceScaling(2.0, "fan_in", "normal", _hashable(strides), groups)


def lecun_uniform(*, strides: int | Sequence[int] = 1, groups: int = 1) -> Initializer:
    """Uniform with variance `1 / fan_in`.

    It keeps the variance of activations through linear layers. LeCun et al., "Efficient BackProp",
    1998. TensorFlow's divides by the other fan.

    Args:
      strides: of the layer, an integer or one per spatial axis.
      groups: of the layer.

    Returns:
      The initializer. It raises ValueError where `compute_fans` does.

    >>> lecun_uniform(strides=2)(jax.random.key(0), (4, 4, 2, 4)).shape
    (4, 4, 2, 4)
    """
    return _VarianceScaling(1.0, "fan_in", "uniform", _hashable(strides), groups)


def lecun_normal(*, strides: int | Sequence[int] = 1, groups: int = 1) -> Initializer:
    """Truncated normal with variance `1 / fan_in`; see `lecun_uniform`.

    >>> lecun_normal(strides=2)(jax.random.key(0), (4, 4, 2, 4)).shape
    (4, 4, 2, 4)
    """
    return _VarianceScaling(1.0, "fan_in", "normal", _hashable(strides), groups)


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
      The initializer; it uses no randomness. It raises ValueError if the kernel is shorter than
      `2 * strides - 1`, or if filters and channels are not equally many.

    >>> bilinear(2)(jax.random.key(0), (4, 1, 1)).ravel().tolist()
    [0.25, 0.75, 0.75, 0.25]
    """
    return _Bilinear(_hashable(strides), groups)


def icnr(strides: int | Sequence[int], initializer: Initializer | None = None) -> Initializer:
    """Repeats every tap `strides` times, so that the new layer upsamples to nearest neighbours.

    The output of the layer is then constant on blocks of `strides` pixels and has no checkerboard
    artifacts to begin with. Aitken et al., "Checkerboard artifact free sub-pixel convolution",
    arXiv:1707.02937.

    Args:
      strides: of the layer, an integer or one per spatial axis.
      initializer: draws the kernel of `kernel_size / strides` taps; `he_normal()` by default.

    Returns:
      The initializer. It raises ValueError if the kernel size is no multiple of the strides.

    >>> kernel = icnr(2)(jax.random.key(0), (4, 3, 5))
    >>> bool((kernel[0] == kernel[1]).all()), bool((kernel[1] == kernel[2]).any())
    (True, False)
    """
    return _ICNR(_hashable(strides), he_normal() if initializer is None else initializer)


@dataclass(frozen=True)
class _VarianceScaling:
    """Independent draws with variance `scale` over the fan, or over the mean of both fans."""

    scale: float
    mode: Literal["fan_in", "fan_avg"]
    distribution: Literal["normal", "uniform"]
    strides: int | tuple[int, ...]
    groups: int

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        fan_in, fan_out = compute_fans(shape, strides=self.strides, groups=self.groups)
        fan = fan_in if self.mode == "fan_in" else (fan_in + fan_out) / 2
        stddev = math.sqrt(self.scale / fan)
        if self.distribution == "uniform":
            limit = math.sqrt(3) * stddev
            return jax.random.uniform(key, shape, dtype, -limit, limit)
        draws = jax.random.truncated_normal(key, -2, 2, shape, dtype)
        return draws * jnp.asarray(stddev / _TRUNCATED_STDDEV, dtype)


@dataclass(frozen=True)
class _Bilinear:
    strides: int | tuple[int, ...]
    groups: int

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        *kernel_size, filters_per_group, c_in = shape
        filters = filters_per_group * self.groups
        if filters != c_in:
            raise ValueError(
                f"bilinear needs as many filters as channels, got {filters} and {c_in}"
            )
        # Within its group, filter f belongs to channel f.
        kernel = np.tile(np.eye(filters_per_group), self.groups)
        strides = _per_axis(self.strides, len(kernel_size))
        for size, stride in zip(reversed(kernel_size), reversed(strides), strict=True):
            kernel = np.multiply.outer(_tent(size, stride), kernel)
        return jnp.asarray(kernel, dtype)


@dataclass(frozen=True)
class _ICNR:
    strides: int | tuple[int, ...]
    initializer: Initializer = field(default_factory=he_normal)

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        *kernel_size, filters_per_group, c_in = shape
        strides = _per_axis(self.strides, len(kernel_size))
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


def _tent(size: int, stride: int) -> np.ndarray:
    """Linear interpolation's weights, sampled at `size` points about the centre."""
    if size < 2 * stride - 1:
        raise ValueError(
            f"bilinear needs a kernel size of at least {2 * stride - 1} = 2 * stride - 1, "
            f"got {size}"
        )
    distance = np.abs(np.arange(size) - (size - 1) / 2)
    return np.maximum(1 - distance / stride, 0)


def _per_axis(strides: int | Sequence[int], rank: int) -> tuple[int, ...]:
    strides = (strides,) * rank if isinstance(strides, int) else tuple(strides)
    if len(strides) != rank or min(strides) < 1:
        raise ValueError(f"strides must be positive, one or {rank} of them, got {strides}")
    return strides


def _hashable(strides: int | Sequence[int]) -> int | tuple[int, ...]:
    if isinstance(strides, Sequence):
        return tuple(operator.index(stride) for stride in strides)
    return operator.index(strides)
