"""Keras's activations where `jax.nn` has none, or another function of the same name.

A layer takes the name of any function in `jax.nn`, and any callable. These are frozen dataclasses:
hashable, comparable, printable, and written to a config by `upconv.serialization`.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from upconv.records import store_number

__all__ = ["GELU", "Exponential", "HardShrink", "LeakyReLU", "SoftShrink", "TanhShrink"]


@dataclass(frozen=True)
class LeakyReLU:
    """`x` where it is positive, `negative_slope * x` elsewhere.

    Keras's slope is 0.2 in the activation and 0.3 in the layer; that of `jax.nn` is 0.01.

    Args:
      negative_slope: what a negative `x` is multiplied by.

    Raises:
      TypeError: if it is not a real number.
      ValueError: if it is not finite.

    >>> LeakyReLU()(jnp.array([-5.0, 2.0])).tolist()
    [-1.0, 2.0]
    """

    negative_slope: float = 0.2

    def __post_init__(self) -> None:
        store_number(self, "negative_slope")

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Of any shape, elementwise."""
        return jax.nn.leaky_relu(x, self.negative_slope)


@dataclass(frozen=True)
class GELU:
    """`x` times the normal distribution's cumulative function at `x`, or nearly so.

    Keras's is exact unless `approximate`; `jax.nn.gelu` is the other way round.

    Args:
      approximate: whether to take the approximation of that function by `tanh`.

    Raises:
      TypeError: if it is neither `True` nor `False`.

    >>> GELU()(jnp.array([0.0, 1.0])).round(4).tolist()
    [0.0, 0.8413]
    """

    approximate: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.approximate, bool):
            raise TypeError(f"approximate must be True or False, got {self.approximate!r}")

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Of any shape, elementwise."""
        return jax.nn.gelu(x, self.approximate)


@dataclass(frozen=True)
class Exponential:
    """`exp(x)`.

    >>> Exponential()(jnp.array([0.0, 1.0])).round(4).tolist()
    [1.0, 2.7183]
    """

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Of any shape, elementwise."""
        return jnp.exp(x)


@dataclass(frozen=True)
class SoftShrink:
    """`x` moved towards 0 by `threshold`, and no further.

    Args:
      threshold: how far, not negative.

    Raises:
      TypeError: if it is not a real number.
      ValueError: if it is negative or not finite.

    >>> SoftShrink()(jnp.array([-2.0, 0.25, 1.0])).tolist()
    [-1.5, 0.0, 0.5]
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        store_number(self, "threshold", nonnegative=True)

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Of any shape, elementwise."""
        x = jnp.asarray(x)
        return x - jnp.clip(x, -self.threshold, self.threshold)


@dataclass(frozen=True)
class HardShrink:
    """`x` where its absolute value is above `threshold`, 0 elsewhere.

    Args:
      threshold: not negative.

    Raises:
      TypeError: if it is not a real number.
      ValueError: if it is negative or not finite.

    >>> HardShrink()(jnp.array([-2.0, 0.25, 1.0])).tolist()
    [-2.0, 0.0, 1.0]
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        store_number(self, "threshold", nonnegative=True)

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Of any shape, elementwise."""
        return jnp.where(jnp.abs(x) > self.threshold, x, 0)


@dataclass(frozen=True)
class TanhShrink:
    """`x - tanh(x)`.

    >>> TanhShrink()(jnp.array([0.0, 1.0])).round(4).tolist()
    [0.0, 0.2384]
    """

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Of any shape, elementwise."""
        x = jnp.asarray(x)
        return x - jnp.tanh(x)
