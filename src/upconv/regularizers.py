"""Penalties on a parameter or an activation, with the numbers of Keras.

Each is a frozen dataclass that is called with an array and gives a scalar: hashable, comparable,
printable, and safe to keep in a Flax module. Any other callable with that signature serves as well.
Sums are taken in float32 at least, and gradients are finite at zero, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from upconv.records import at_least_float32, real, store_number

__all__ = ["L1", "L1L2", "L2", "Orthogonal"]

Mode = Literal["rows", "columns"]

# TensorFlow's l2_normalize divides by no less than the root of this.
_SMALLEST_SQUARED_NORM = 1e-12


@dataclass(frozen=True)
class L1:
    """`l1 * sum(|x|)`, with gradient 0 at 0.

    Args:
      l1: the factor, finite and not negative.

    Called with a real array of any shape, it returns a scalar of the array's dtype, or float32
    if that is more precise.

    Raises:
      TypeError: if the factor is not a real number; for a call with a complex array.
      ValueError: if it is negative or not finite.

    >>> float(L1(0.5)(jnp.array([-3.0, 1.0])))
    2.0
    """

    l1: float = 0.01

    def __post_init__(self) -> None:
        store_number(self, "l1", nonnegative=True)

    def __call__(self, x: ArrayLike) -> jax.Array:
        """The penalty on `x`, a scalar."""
        return self.l1 * jnp.sum(_absolute(at_least_float32(real(self, x))))


@dataclass(frozen=True)
class L2:
    """`l2 * sum(x ** 2)`, as in Keras: no factor of 1/2.

    Args:
      l2: the factor, finite and not negative.

    Called with a real array of any shape, it returns a scalar of the array's dtype, or float32
    if that is more precise.

    Raises:
      TypeError: if the factor is not a real number; for a call with a complex array.
      ValueError: if it is negative or not finite.

    >>> float(L2(0.5)(jnp.array([-3.0, 1.0])))
    5.0
    """

    l2: float = 0.01

    def __post_init__(self) -> None:
        store_number(self, "l2", nonnegative=True)

    def __call__(self, x: ArrayLike) -> jax.Array:
        """The penalty on `x`, a scalar."""
        return self.l2 * jnp.sum(jnp.square(at_least_float32(real(self, x))))


@dataclass(frozen=True)
class L1L2:
    """`l1 * sum(|x|) + l2 * sum(x ** 2)`, without a sum whose factor is 0.

    As in Keras both factors are 0 unless they are given.

    Args:
      l1: the factor of the first sum, finite and not negative.
      l2: the factor of the second.

    Called with a real array of any shape, it returns a scalar of the array's dtype, or float32
    if that is more precise.

    Raises:
      TypeError: if a factor is not a real number; for a call with a complex array.
      ValueError: if one is negative or not finite.

    >>> float(L1L2(l1=0.5, l2=0.25)(jnp.array([-3.0, 1.0])))
    4.5
    """

    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        store_number(self, "l1", nonnegative=True)
        store_number(self, "l2", nonnegative=True)

    def __call__(self, x: ArrayLike) -> jax.Array:
        """The penalty on `x`, a scalar."""
        x = at_least_float32(real(self, x))
        penalty = jnp.zeros((), x.dtype)
        if self.l1:
            penalty += L1(self.l1)(x)
        if self.l2:
            penalty += L2(self.l2)(x)
        return penalty


@dataclass(frozen=True)
class Orthogonal:
    """`factor` times the mean of `|cos|` over all pairs of filters: 0 if they are orthogonal.

    A kernel of shape `(*kernel_size, filters, c_in)` is read as a matrix with one row per filter.
    A matrix has its first axis as rows, so for matrices this is Keras's `OrthogonalRegularizer`.
    Fewer than two rows make no pair and cost nothing (Keras divides by zero there).

    Args:
      factor: the factor, finite and not negative.
      mode: `"rows"` compares the filters, `"columns"` the columns of that matrix.

    Called with a real array of rank 2 or more, it returns a scalar of the array's dtype, or float32
    if that is more precise.

    Raises:
      TypeError: if the factor is not a real number; for a call with a complex array.
      ValueError: if it is negative or not finite, for another mode, or for a call with an array of
        rank below 2.

    >>> float(Orthogonal(0.5)(jnp.array([[3.0, 4.0], [3.0, 4.0]])))
    0.5
    >>> float(Orthogonal(0.5)(jnp.array([[3.0, 4.0], [-4.0, 3.0]])))
    0.0
    """

    factor: float = 0.01
    mode: Mode = "rows"

    def __post_init__(self) -> None:
        store_number(self, "factor", nonnegative=True)
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {get_args(Mode)}, got {self.mode!r}")

    def __call__(self, x: ArrayLike) -> jax.Array:
        """The penalty on `x`, a scalar."""
        x = _replicated(at_least_float32(real(self, x)))
        if x.ndim < 2:
            raise ValueError(
                f"Orthogonal takes an array of rank 2 or more, got one of shape {x.shape}"
            )
        rows = jnp.moveaxis(x, -2, 0).reshape(x.shape[-2], -1)
        if self.mode == "columns":
            rows = rows.T
        squared_norms = jnp.sum(jnp.square(rows), axis=1, keepdims=True)
        rows = rows * jax.lax.rsqrt(jnp.maximum(squared_norms, _SMALLEST_SQUARED_NORM))
        cosines = jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
        # Each pair stands above the diagonal once.
        pairs = max(math.comb(len(rows), 2), 1)
        return self.factor * jnp.sum(jnp.triu(_absolute(cosines), k=1)) / pairs


def _replicated(x: jax.Array) -> jax.Array:
    """Puts what is sharded explicitly on every device, for every filter meets every other."""
    sharding = jax.typeof(x).sharding
    if all(axis is None for axis in sharding.spec):
        return x
    return jax.sharding.reshard(x, sharding.update(spec=PartitionSpec(*[None] * x.ndim)))


def _absolute(x: jax.Array) -> jax.Array:
    # The gradient of jnp.abs at 0 is 1; TensorFlow's, and this one's, is 0.
    return x * jnp.sign(x)
