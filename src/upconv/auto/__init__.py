"""Which way each map is computed by `lowering="auto"`.

`upconv.lowering` has several ways of computing each of the three maps T, C and G. Here one is
chosen, by platform, dtype and static shape; nothing is computed. There are rules for a single CPU
(`cpu`) and for a single NVIDIA GPU (`cuda`). Every rule stands beside the measurement that
justifies it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from upconv.auto import cpu, cuda
from upconv.auto.problem import CONVOLUTIONS, PRODUCTS, Problem, Ways
from upconv.geometry import Geometry, Size

# By the platform that a computation is lowered for.
RULES: dict[str, Callable[[Problem], Ways]] = {"cpu": cpu.ways, "cuda": cuda.ways}

# Stands for the platform where XLA's partitioner splits a map over several devices.
PARTITIONED = "partitioned"

# How many images a symbolic batch is taken to have. T of any 1x16x16x21 -> 21, 32x32 / 16, on CPU:
# 0.01; of any 2x64x64x128 -> 64, 3x3 / 2: 0.8.
USUAL_BATCH = 32

# The ways of G that do not cut the batch. In the loop of `one_by_one` a `backward_filter` would be
# naive.
UNCUT = ("backward_filter", "matmul")


def ways(
    g: Geometry, batch: Size, kernel_shape: Sequence[int], dtype: Any, platform: str | None
) -> Ways:
    """The way that each map takes.

    Args:
      g: the geometry.
      batch: `N`; if symbolic, taken for `USUAL_BATCH`.
      kernel_shape: `(*k, co, groups * ci)`.
      dtype: of the operands.
      platform: of the single device that computes the map, or `PARTITIONED`. Without rules there
        are plain convolutions, which XLA's partitioner splits by batch, channels and space, and
        which every platform has kernels for.
    """
    if not isinstance(g.groups, int):
        # `vmap` over a symbolic axis of both operands; of convolutions groups are a known number.
        return PRODUCTS
    if platform == PARTITIONED and g.groups > 1:
        # Of a mesh axis without a part in the batch, the partitioner multiplies this G by the size,
        # and where it splits channels it may abort (jaxlib 0.10.2 and 0.12.0.1).
        return CONVOLUTIONS._replace(correlate_kernel="matmul")
    static = all(isinstance(n, int) for n in (*g.output_size, *kernel_shape))
    if platform not in RULES or not static:
        return CONVOLUTIONS
    symbolic = not isinstance(batch, int)
    batch = USUAL_BATCH if symbolic else batch
    filters, channels = kernel_shape[-2:]
    found = RULES[platform](Problem(g, batch, filters, channels // g.groups, jnp.dtype(dtype)))
    if symbolic and found.correlate_kernel not in UNCUT:
        return found._replace(correlate_kernel="matmul" if g.groups > 1 else "backward_filter")
    return found
