"""Which way each map takes on a single NVIDIA GPU.

A layer is written `batch x size x channels -> filters, kernel / stride`, and two figures after it
are the time that the way taken needs there, in float32 and in bfloat16, relative to the way that
would be taken without the rule: 0.4 is two and a half times as fast. Figures after "but" are of
layers to which the rule does not apply, and show why. They are sums of the times of kernels on an
H100, with jaxlib 0.11.2 and its default precision, which takes float32 for TF32.

cuDNN's convolutions are the fastest where they are large and whole; they take 5 to 20 us for
however little, want channels in multiples of 8, and have no kernels for integers.
"""

from __future__ import annotations

import jax.numpy as jnp

from upconv.auto.problem import PRODUCTS, Problem, Ways

# ------------------------------------------------------------------ limits

# Up to how many numbers T makes products, where strides keep them from being added up often. They
# then stay in a cache of 50 MiB.
PRODUCTS_OF_T = 7 << 20

# The same at stride 1, where cuDNN's kernels are at their best.
PRODUCTS_AT_STRIDE_1 = 3 << 19

# Up to how many numbers C and G gather as windows.
WINDOWS_OF_C, WINDOWS_OF_G = 5 << 18, 2 << 20

# The same where cuDNN's kernels are not at their best.
WINDOWS_OF_MISFITS = 6 << 20

# What cuDNN wants channels to be multiples of.
ALIGNED = 8

# From how many terms on a sum is long, and up to how many of them cuDNN leaves each to too few
# threads.
LONG_SUM, FEW_SUMS = 5000, 1 << 17

# The overlap up to which windows hold few more numbers than what they are gathered from.
OVERLAP = 4

# Channels of a group, fewer than which are too few for cuDNN's kernels, and pixels of all images
# that are, as where `vmap` makes a group of each example.
NARROW, FEW_PIXELS = 8, 1024

# Filters that are too few for cuDNN's kernel of T, if the phases of a stride are not put together.
FEW_FILTERS = 32

# ------------------------------------------------------------------ rules


def ways(a: Problem) -> Ways:
    """The way that each map takes."""
    if jnp.issubdtype(a.dtype, jnp.integer):
        return PRODUCTS  # cuDNN's convolutions of integers are for inference
    if a.g.groups > 1 and min(a.filters, a.channels) < NARROW and a.overlap <= OVERLAP:
        # 128 groups of 8x32x32x1 -> 1, 4x4 / 2: T 0.15, 0.15; C 0.35, 0.2; G 0.75, 0.45. 21 groups
        # of 16x16x1 -> 1, 32x32 / 16: 0.01, 0.01; 0.02, 0.01; 0.65, 0.55. But 128 groups of
        # 8x56x56x1 -> 1, 3x3: 2.7, 2.5; 3.9, 3.7; 11, 9. 16 groups of 8x28x28x8 -> 8, 3x3 / 2: 1.1,
        # 1.3; 2.2, 2.2; 1.4, 2.8.
        return PRODUCTS
    return Ways(_conv_transpose(a), _conv(a), _correlate_kernel(a))


def _is_ragged(a: Problem) -> bool:
    return a.filters % ALIGNED > 0 or a.channels % ALIGNED > 0


def _conv_transpose(a: Problem) -> str:
    grouped = a.g.groups > 1
    if max(a.g.strides) == 1:
        # 16x56x56x64 -> 3, 3x3: 0.25, 0.3. 16x56x56x128 -> 8, 5x5: 0.55, 0.55.
        # 4x1024x256 -> 48, 7: 0.7, 0.85. But 4x32x32x64 -> 64, 3x3, dilated: 1.1, 1.25;
        # 2x64x64x128 -> 64, 3x3: 1.4, 1.4.
        few = 2 * a.taps * a.filters <= 5 * a.channels
        few |= a.products <= PRODUCTS_AT_STRIDE_1
        return "matmul" if few else _by_planes(a, "input_dilation")
    if a.products <= PRODUCTS_OF_T * (2 if grouped else 1):
        # 32x4x4x512 -> 256, 4x4 / 2: 0.55, 0.55. 32x32x32x64 -> 3, 4x4 / 2: 0.25, 0.3.
        # 1x96x96x56 -> 1, 9x9 / 3: 0.3, 0.15. 2x64x64x128 -> 64, 3x3 / 2: 0.8, 0.75.
        # 12x12x12x64 -> 32, 3x3x3 / 2: 0.6, 0.6. 2 groups of 16x28x28x64 -> 32, 4x4 / 2: 0.25, 0.4.
        # But 32x16x16x128 -> 64, 4x4 / 2: 1.25, 1.25; 8 groups of 2x64x64x16 -> 16: 1.4, 2.
        return "matmul"
    few = a.filters <= FEW_FILTERS or a.kernel_is_larger or max(a.g.dilation_rate) > 1
    if few and not grouped and a.g.rank < 3:
        # 256x32x32x64 -> 3, 4x4 / 2: 0.3, 0.4. 8x96x96x64 -> 16, 7x7 / 3: 0.65, 0.6.
        # 4x96x96x128 -> 32, 3x3 / 2: 0.8. 8x56x56x64 -> 64, 3x3 / 2, dilated: 0.5, 0.55. XLA
        # exchanges a kernel and an image that is smaller, and then has no fast kernel.
        # 8x16x16x21 -> 21, 32x32 / 16: 0.01, 0.02. But 256x16x16x128 -> 64, 4x4 / 2: 1.15, 1.2.
        return "subpixel"
    return _by_planes(a, "input_dilation")  # 8x12x12x12x64 -> 32, 3x3x3 / 2: 0.55, 0.5


def _conv(a: Problem) -> str:
    sums = a.pixels * a.channels * a.g.groups
    long = a.taps * a.filters >= LONG_SUM and sums <= FEW_SUMS and a.overlap <= OVERLAP
    misfit = _is_ragged(a) or (a.g.groups > 1 and a.pixels <= FEW_PIXELS)
    if a.products <= (WINDOWS_OF_MISFITS if misfit else WINDOWS_OF_C) or long:
        # 1x96x96x56 -> 1, 9x9 / 3: 0.75, 0.65. 4x56x56x256 -> 12, 3x3 / 3: 0.85, 0.4.
        # 16x16x21 -> 21, 32x32 / 16: 0.05, 0.1. 2x16x16x64 -> 64: 0.15, 0.4. 64 groups of
        # 16x16x64 -> 32, 3x3 / 2: 0.3, 0.25. But 2x64x64x128 -> 64, 2x2 / 2: 1.5, 1.1;
        # 16x56x56x64 -> 3, 7x7: 1.4, 0.7; 16x7x7x1024 -> 512, 4x4 / 2: 1.55, 1.
        return "matmul"
    return _by_planes(a, "strided")  # 12x12x12x64 -> 32, 3x3x3 / 2: 0.55, 0.5


def _correlate_kernel(a: Problem) -> str:
    misfit = _is_ragged(a) or a.g.groups > 1 or a.g.rank == 3
    most = WINDOWS_OF_MISFITS if misfit else WINDOWS_OF_G
    if a.products <= most or max(a.g.dilation_rate) > 1:
        # 1x96x96x56 -> 1, 9x9 / 3: 0.45, 0.45. 1x96x96x64 -> 24, 3x3 / 2: 0.55, 0.8.
        # 16x16x21 -> 21, 32x32 / 16: 0.7, 0.15. 4x16x16x16x16 -> 24, 2x2x2 / 2: 0.3, 0.3.
        # 64 groups of 16x16x64 -> 32, 3x3 / 2: 0.3, 0.3. Dilated, of which cuDNN has only slow
        # kernels: 4x32x32x64 -> 64, 3x3 / 2: 0.04, 0.02. But 4x14x14x96 -> 128, 5x5 / 2: 1, 1.75;
        # 32x8x8x256 -> 128, 4x4 / 2: 1.1, 2; 8x12x12x12x64 -> 32, 3x3x3 / 2: 1, 1.05.
        return "matmul"
    return "backward_filter"


def _by_planes(a: Problem, way: str) -> str:
    """The way, or that of two dimensions, for which XLA has cuDNN's kernels keep channels last."""
    return "planes" if a.g.rank == 3 and a.g.groups == 1 else way
