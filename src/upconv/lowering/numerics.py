"""What a way is, and what its result depends on beside operands and geometry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from upconv.geometry import Geometry, Size


class Numerics(NamedTuple):
    """What a map's result depends on beside its operands and geometry: hashable, static.

    Attributes:
      lowering: a name out of `LOWERINGS`.
      precision: as in `jax.lax.conv_general_dilated`.
      dtype: of the result; both operands are promoted to a common dtype.
      platform: of the single device that computes the map, or `upconv.auto.PARTITIONED`; it is
        known only when the map is lowered.
    """

    lowering: str
    precision: Any
    dtype: Any
    platform: str | None = None


Way = Callable[[jax.Array, jax.Array, Geometry, Numerics], jax.Array]


class Convolve(Protocol):
    """A way of computing a convolution."""

    def __call__(
        self,
        lhs: jax.Array,
        rhs: jax.Array,
        num: Numerics,
        *,
        padding: Sequence[tuple[Size, Size]],
        strides: Sequence[int] | None = None,
        rhs_dilation: Sequence[int] | None = None,
        groups: int = 1,
    ) -> jax.Array:
        """That of `(N, *space, groups * in)` by `(*window, in, groups * out)`."""
        ...


def accumulator(dtype: Any) -> Any:
    """The dtype that sums of products are kept in: float32 for narrower floats."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return jnp.dtype(jnp.float32) if narrow else dtype
