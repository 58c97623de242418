"""Which way each map takes on a single CPU.

A layer is written `batch x size x channels -> filters, kernel / stride`, and a figure after it is
the time that the way taken needs there, relative to the way that would be taken without the rule:
0.4 is two and a half times as fast. Figures after "but" are of layers to which the rule does not
apply, and show why. They were measured on two cores of an AMD EPYC (Zen 4 or 5) or of an Intel Xeon
with AVX-512, those of narrow groups, of groups by products or one by one, and of products of planes
on an EPYC (Zen 3) without it, with jaxlib 0.10.2, in float32 if nothing else is said.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import jaxlib

from upconv.auto.problem import PRODUCTS, Problem, Ways

# Since jaxlib 0.11 YNNPACK's kernel for convolutions of two dimensions uses all cores.
PARALLEL_YNNPACK = jaxlib.version.__version_info__ >= (0, 11)

# ------------------------------------------------------------------ limits

# A convolution to so few channels leaves most of a vector idle.
FEW_FILTERS = 4

# A convolution to no more channels than these leaves much of its last vector idle.
NARROW = 24

# Channels of `x`, up to which G makes rows of the phases of `y` instead; the second in 1-D.
SHORT_ROW, SHORT_ROW_1D = 16, 96

# Numbers of a window and channels of a pixel, up to which G takes windows that do not overlap.
SHORT_WINDOW, SHORT_PIXEL = 128, 64

# Numbers of a window up to which G of a few filters, but more than one, gathers windows.
FEW_GATHERED = 64

# Fewer pixels of `x` than these are too few for YNNPACK's kernel.
FEW_PIXELS = 1024

# The part of whole strides that a kernel should fill, if they are to be multiplied instead.
MOSTLY = 0.7

# So many channels fill a vector.
WIDE = 16

# The products of no more input channels than these are made faster than they are added up.
FEW_CHANNELS = 16

# C takes products where no more numbers than these come together in one column of a window.
COLUMN = 6

# From no more filters than these, C may gather the rows of a window as channels.
GATHERED = 12

# Up to no more channels than these, so may T at stride 1.
GATHERED_BY_T = 4

# Channels of `x`, from which products of few filters pay at stride 1, though YNNPACK's kernel uses
# all cores.
MANY_CHANNELS = 128

# Channels of `x` times rows of the kernel, for each row of the stride, that make up for gathering
# from more than `FEW_FILTERS`.
MANY_PRODUCTS = 128

# More convolutions than these, one for each phase, take long to compile.
MANY_PHASES = 9

# More products of a pixel than these, which have to be added up, take long to compile: 441 of
# 1x28x28x32 in 32 groups, 21x21, take 1.1 s, and 961 take 20. So do fewer, but those are fast: 343
# of 8x8x8x4 -> 4 in 2 groups, 7x7x7, take 0.7 s, and 0.15 of the time of a convolution.
MANY_PARTS = 350

# Beyond so many products that are added up, T of narrow groups is faster phase by phase.
MANY_MEET = 9

# One group after another is faster where so many products are added up, by T or by C; and from so
# many products of all groups for T, numbers in windows for C and for G.
ADDED_OF_GROUPS = 6
PRODUCTS_OF_GROUPS = 2 << 20, 1 << 20, 256 << 10

# Terms of a sum for every number of an array, up to which XLA:CPU's compiler uses vectors. A
# depthwise C of 4x1024x64 with 125 taps takes 5.5 times as long as one with 124.
MANY_TERMS = 124

# Taps of a narrow group, for each of its channels, beyond which those of each phase take long to
# compile: of 1x16x16x32 in 32 groups, 32x32 / 4, 3.6 s, for 0.2 of the time.
MANY_TAPS = 256

# Taps beyond which their sums take long to compile, 0.06 s each.
MANY_SUMS = 27

# So many groups fill a vector, or half of one with AVX-512. They are narrow if no more pairs of a
# channel and a filter are in one of them than these; than the last, from twice as many groups on.
MANY_GROUPS, FEW_PAIRS, FEW_PAIRS_OF_MORE = 8, 36, 64

# Products of so few bytes are worth their memory whatever the operands are; in three dimensions,
# where a pixel makes many of them, fewer.
SMALL_PRODUCT, SMALL_IN_3D = 16 << 20, 4 << 20

# Windows of bfloat16 of so few bytes are gathered faster than a convolution computes in float32.
SMALL_WINDOWS = 8 << 20

# Temporaries of so many bytes are fresh memory at every call, and touching their pages costs more
# than computing them.
FRESH = 32 << 20

# Products and results that T may make for each number of its operands and of their gradients.
MEMORY = 4

# ------------------------------------------------------------------ rules


def ways(a: Problem) -> Ways:
    """The way that each map takes."""
    found = _fastest(a)
    added = found.conv_transpose in ("matmul", "plane_products", "elementwise")
    if added and a.overlap > MANY_PARTS:
        way = "one_by_one" if a.g.groups > 1 else "planes" if a.g.rank == 3 else "subpixel"
        return found._replace(conv_transpose=way)
    return found


def _fastest(a: Problem) -> Ways:
    """The ways, however long they take to compile."""
    if jnp.issubdtype(a.dtype, jnp.integer):
        return PRODUCTS  # XLA:CPU has only naive loops for the convolutions: 0.1 for int32
    if a.g.groups > 1:
        return _of_groups(a)
    if set(a.g.kernel_size) == set(a.g.strides) == {1}:
        return PRODUCTS  # of pixels by channels, as they are
    return Ways(_conv_transpose(a), _conv(a), _correlate_kernel(a))


def _of_groups(a: Problem) -> Ways:
    """Other ways than convolutions of groups, for which XLA:CPU has only naive loops."""
    if a.filters == a.channels == 1:
        # Windows would be moved before they are multiplied. 8x64x64x64, 4x4 / 2: C 0.1, G 0.03;
        # 4x28x28x96, 7x7: T 0.03, C 0.02, G 0.05; 4x128x128x3, 4x4 / 2: C and G 0.3.
        return Ways(_elementwise_transpose(a), "elementwise", "depthwise")
    # 382 layers (of C 346, of G 457) of 2 to 32 groups of 1 to 32 channels and filters, a third
    # dilated, a quarter with jaxlib 0.12: what is taken needs 1.10, 1.07 and 1.07 of the better
    # one's time, as geometric means; products would 1.3, 1.7 and 1.8, one by one 1.18, 1.16, 1.09.
    # 8 groups of 32x32x256 -> 128, 3x3 / 2: 0.6, 0.45, 0.5, and 0.1 of the memory.
    added = a.overlap >= ADDED_OF_GROUPS
    t, c, g = (a.products >= many for many in PRODUCTS_OF_GROUPS)
    ways = ("one_by_one" if pays else "matmul" for pays in (added or t, added or c, g))
    return _of_narrow_groups(a, Ways(*ways))


def _of_narrow_groups(a: Problem, found: Ways) -> Ways:
    """The same, but products of numbers where matrices would have few rows and columns.

    88 layers of 8 to 64 groups with 2 to 36 pairs, drawn at random: C 0.26, T 0.4, as geometric
    means; 37 of 16 to 64 groups: G 0.43; 30 of these with 37 to 64 pairs: C and T 0.7, G 0.55. But
    T of 14 with four groups: 1.3, and G of 15 with eight: 1.0. 32 groups of 8x28x28x128 -> 128,
    3x3 / 2: T 0.25, C 0.2, G 0.6.
    """
    pairs, groups = a.channels * a.filters, a.g.groups
    more = groups >= 2 * MANY_GROUPS
    few = FEW_PAIRS_OF_MORE if more else FEW_PAIRS
    if groups < MANY_GROUPS or pairs > few:
        return found
    found = found._replace(conv="elementwise")
    way = _elementwise_transpose(a)
    # But 8 groups of 16x8x8x8x24 -> 24, 5x5x5 / 2: 6.5.
    added = a.overlap <= MANY_MEET and a.overlap * a.channels <= MANY_TERMS
    if way == "elementwise_phases" or added:
        found = found._replace(conv_transpose=way)
    if more and a.taps <= MANY_SUMS:
        found = found._replace(correlate_kernel="elementwise")
    return found


def _elementwise_transpose(a: Problem) -> str:
    """By phases at stride 1, where there is only one, and where many products meet."""
    g = a.g
    # Phases of dilated taps cannot be taken by themselves.
    spread = any(s > 1 and d > 1 for s, d in zip(g.strides, g.dilation_rate, strict=True))
    # But 8x56x56x32, 5x5 / 2, in 32 groups, where nine products meet: 1.7.
    phases = a.overlap > MANY_MEET and a.taps * a.channels <= MANY_TAPS and not spread
    return "elementwise_phases" if max(g.strides) == 1 or phases else "elementwise"


def _phases_are_more(a: Problem) -> bool:
    """Whether the phases of filters are twice as many as channels, or more."""
    return math.prod(a.g.strides) * a.filters >= 2 * a.channels


def _is_modest(a: Problem) -> bool:
    """Whether products and result are few beside T's operands and the gradients of those."""
    operands = a.pixels * a.channels + a.taps * a.filters * a.channels
    return _temporaries(a) <= MEMORY * 2 * operands


def _fits(a: Problem) -> bool:
    """Whether products and result are modest, and too small to be `FRESH` memory."""
    return _is_modest(a) and _temporaries(a) * _itemsize(a) < FRESH


def _is_small(a: Problem) -> bool:
    """Whether the products are worth their memory."""
    return a.products * _itemsize(a) <= SMALL_PRODUCT or _fits(a)


def _temporaries(a: Problem) -> int:
    """What T by a product of matrices makes: products, and their sums."""
    return a.products + a.batch * math.prod(a.g.output_size) * a.filters


def _of_phase(a: Problem) -> int:
    """What T of volumes by products makes for a phase of depth: products, and their sums."""
    sums = _temporaries(a) - a.products
    return a.products // a.g.kernel_size[0] + sums // a.g.strides[0]


def _itemsize(a: Problem) -> int:
    """Bytes of a product, which has 32 bits where operands have 16."""
    return max(a.dtype.itemsize, 4)


def _conv_transpose(a: Problem) -> str:
    g = a.g
    if a.overlap == 1:
        # No two products meet. 2x64x64x128 -> 64, 2x2 / 2: 0.65. 64x1x1x100 -> 512, 4x4: 0.2, where
        # a convolution would multiply mostly padding.
        return "matmul"
    if max(g.strides) == 1:
        return _transpose_at_stride_1(a)
    if g.rank == 3:
        return _transpose_in_3d(a)
    if a.dtype == jnp.float64 or max(g.dilation_rate) > 1:
        return "matmul"  # 0.08 for float64; 0.4 at dilation 2
    many_meet = min(g.phase_taps) > 2 and a.filters > 1
    if _is_small(a) and (a.channels > FEW_CHANNELS or not many_meet):
        # 32x4x4x512 -> 256, 4x4 / 2 and 96x96x56 -> 1, 9x9 / 3: 0.5, where the other ways compute
        # what the crop then removes. 2x64x64x128 -> 64, 3x3 / 2: 0.9, and a third less to compile.
        # 32x32x16 -> 1, 6x6 / 2: 0.2. But 64x64x16 -> 4, 9x9 / 2: 2.
        return "matmul"
    # Phases side by side fill the kernel up to whole strides.
    # 32x16x16x128 -> 64, 5x5 / 2: 0.75. But 16x64x64x8 -> 4, 7x7 / 2: 6.
    whole = all(k % s == 0 for k, s in zip(g.kernel_size, g.strides, strict=True))
    ragged = not whole and a.filters >= WIDE
    # And they begin and end together, with pixels that are then cropped: for 8x8, a quarter more.
    # 128x4x4x1024 -> 512, 4x4 / 2: 0.6; 128x8x8x256 -> 128: 0.9. But 512x8x8x16 -> 16: 1.55, and
    # 128x8x8x64 -> 64, 6x6 / 2: 1.15; with jaxlib 0.12 256x7x7x64 -> 32, 4x4 / 2: 1.25.
    small = 4 * math.prod(g.full_strides) >= 5 * math.prod(g.input_size)
    small &= max(g.phase_taps) <= 2 and a.filters >= 4 * WIDE
    few = math.prod(g.strides) <= MANY_PHASES
    apart = (ragged or small) and a.channels >= 2 * WIDE and few
    return "phases" if apart else "subpixel"


def _transpose_at_stride_1(a: Problem) -> str:
    # To 4 filters and fewer: 0.2. 64 channels to 6: 0.4, to 16: 0.7. But 128 to 64: 1.1, and 32 to
    # 32: 1.5.
    few = a.filters <= FEW_FILTERS
    fewer = 3 * a.filters <= a.channels
    if PARALLEL_YNNPACK:
        # 16x56x56x32 -> 4, 5x5: 1.75; 32x16x16x96 -> 32, 4x4: 1.5. But 2x14x14x96 -> 24, 5x5: 0.6,
        # 16x64x64x3 -> 3, 5x5: 0.45, and 8x128x128x1 -> 1, 3x3: 0.06.
        fast = a.g.output_size == a.g.input_size and a.channels > FEW_FILTERS
        few &= not fast or a.taps * a.filters <= 2 * a.channels
        fewer &= a.channels >= MANY_CHANNELS or a.pixels < FEW_PIXELS
    # A convolution multiplies the padding. From 4x4 to 7x7 pixels: 0.35; from 7x7 to 9x9: 0.7. But
    # of 8 channels, from 14x14 to 18x18: 3.
    grows = 2 * math.prod(a.g.output_size) >= 3 * math.prod(a.g.input_size)
    grows &= a.channels > FEW_CHANNELS
    # XLA:CPU multiplies matrices of bfloat16 where the CPU can, but has no convolutions of it.
    # 128 channels to 64: 0.6.
    short = a.dtype == jnp.bfloat16
    if (few and _is_modest(a)) or (_is_small(a) and (few or fewer or grows or short)):
        return "matmul"
    # Rows as channels, where those are too few to fill a vector. 16x64x64x1 -> 8, 7x7: 0.35;
    # 16x64x64x3 -> 16, 3x3: 0.7, and -> 32: 0.35. But with jaxlib 0.12 -> 32: 1.3, and 6 -> 8, 5x5:
    # 0.9 to 1.
    most = WIDE if PARALLEL_YNNPACK else 2 * WIDE
    rows = a.g.rank == 2 and a.channels <= GATHERED_BY_T and a.filters <= most
    return "planes" if a.g.rank == 3 or rows else "input_dilation"


def _transpose_in_3d(a: Problem) -> str:
    if _fits(a) or a.products * _itemsize(a) <= SMALL_IN_3D:
        # 8x8x8x128 -> 64, 3x3x3 / 2: 0.55; 2x4x4x4x128 -> 64: 0.75; 32x4x4x4x24 -> 12: 0.45.
        return "matmul"
    # Zeros fill the kernel of a convolution up to whole strides. 12x12x12x64 -> 32, 3x3x3 / 2: 0.5;
    # 12x24x24x32 -> 32, 3x3x3 / 1x2x2: 0.75; 2x8x8x8x64 -> 64, 3x3x3 / 2, dilated by 2: 0.12; 20
    # layers of 3x3x3 / 2 to 5x5x5 / 3, drawn at random: 0.67, as geometric mean. But where they are
    # whole, 12x12x12x32 -> 32, 4x4x4 / 2: 1.2; and of FRESH memory, 2x16x16x12x32 -> 128: 1.35.
    pays = a.filled < 1 and _of_phase(a) * _itemsize(a) < FRESH
    return "plane_products" if pays and a.g.strides[0] <= MANY_PHASES else "planes"


def _conv(a: Problem) -> str:
    g = a.g
    if g.rank == 3:
        # 12x12x12x64 -> 32, 3x3x3 / 2: 0.4.
        return "matmul" if _is_sparse(a) else "planes"
    windows = a.products * a.dtype.itemsize
    if a.dtype == jnp.bfloat16 and windows <= SMALL_WINDOWS and a.filters >= WIDE:
        # 32x8x8x256 -> 128, 4x4 / 2: 0.8. But 2x64x64x128 -> 64, 3x3 / 2: 1.2, where the windows
        # take longer to gather than to multiply.
        return "matmul"
    if _blocks_pay(a):
        return "blocks"
    rows, stride = g.kernel_size[0], g.strides[0]
    if g.rank == 1 or rows == 1:
        return "strided"
    if rows * a.filters <= COLUMN:
        # 64x32x32x128 -> 1, 3x3 / 2: 0.2; from 0.4 to 1 of what the rule below would take.
        return "matmul"
    # From 4 filters and fewer, and from 12 where products are many: 0.5 to 0.8. But
    # 28x28x32 -> 6, 4x4 / 2: 1.5; and with jaxlib 0.12 16x16x16x48 -> 12, 7x7: 1.3.
    many = a.channels * rows >= MANY_PRODUCTS * stride and not PARALLEL_YNNPACK
    return "planes" if a.filters <= FEW_FILTERS or (a.filters <= GATHERED and many) else "strided"


def _is_sparse(a: Problem) -> bool:
    # Few filters, whose windows do not overlap. C of 2x28x28x28x24 -> 2, 2x2x2 / 2: 0.45; of
    # 4x7x7x7x512 -> 1, 3x3x3 / 4: 0.7. G: 0.35; 0.75. But C of 14x14x14x128 -> 12, 2x2x2 / 2: 1.4,
    # and 0.75 with jaxlib 0.12.
    return a.filters <= FEW_FILTERS and a.overlap == 1


def _blocks_pay(a: Problem) -> bool:
    # 16x16x21 -> 21, 32x32 / 16: 0.6. 32x32x3 -> 64, 4x4 / 2: 0.35; 32x32x16 -> 64: 0.7. But the
    # last with 3x3, which is filled up: 1.2.
    g = a.g
    narrow = a.channels <= NARROW * a.filled
    # What a small block gives takes longer to add up than to compute. 16x28x28x8 -> 12,
    # 7x7 / 2: 0.2. But 4x64x64x24 -> 21, 7x7: 3.4.
    large = _phases_are_more(a) and math.prod(g.strides) * a.filters >= WIDE
    # Most blocks should be whole. 32x7x7x8 -> 48, 7x7: 1.8.
    full = math.prod(g.full_strides)
    whole = full <= 2 * math.prod(g.input_size)
    # Where YNNPACK's kernel uses all cores, it minds giving few channels only if it takes few, too.
    # 8x16x16x16 -> 64, 4x4 / 2, with jaxlib 0.12: 1.1; 64x14x14x8 -> 48, 5x5 / 2: 1.6.
    minds = a.filters <= NARROW or not PARALLEL_YNNPACK
    # 16x96x96x8 -> 16, 5x5: 2.6.
    given = math.prod(g.phase_taps) * a.channels
    little = a.batch * full * given * _itemsize(a) < FRESH
    return narrow and large and whole and minds and little and a.overlap > 1


def _gathering_pays(a: Problem) -> bool:
    """Whether G of few filters takes windows, which hardly overlap."""
    fresh = a.products * _itemsize(a) >= FRESH
    if fresh or a.filters > FEW_FILTERS or max(a.g.phase_taps) > 2:
        # 96x96x56 -> 1, 9x9 / 3: 1.6; 64x64x64x16 -> 3, 4x4 / 2: 2.9.
        return False
    # 32x32x32x64 -> 3, 4x4 / 2: 0.9; 64x32x32x64 -> 3: 0.55. But 8x32x32x64 -> 3, 6x6 / 3: 2.3, and
    # 8x64x64x16 -> 4, 3x3 / 2: 2.2, but 0.9 with jaxlib 0.12.
    few = a.taps * a.filters <= FEW_GATHERED and (a.filled == 1 or PARALLEL_YNNPACK)
    # 8x64x64x4 -> 4, 3x3 / 2: 6, and 4x4 / 2: 2.
    many = a.channels > SHORT_ROW // 2 or a.overlap == 1
    return a.filters == 1 or (few and many)


def _correlate_kernel(a: Problem) -> str:
    if a.g.rank == 3:
        # XLA:CPU has no fast convolution of three dimensions. 12x12x12x64 -> 32, 3x3x3 / 2: 0.1.
        return "matmul" if _is_sparse(a) else "planes"
    if _gathering_pays(a):
        return "matmul"
    if 2 * a.taps * a.filters <= a.channels:
        # Windows with few numbers. 16x96x96x256 -> 1, 3x3: 0.2. 64x16x16x256 -> 8, 3x3 / 2: 0.75.
        # But 2x56x56x256 -> 4, 5x5 / 2: 1.1.
        return "matmul"
    small = a.taps * a.filters <= SHORT_WINDOW and a.channels <= SHORT_PIXEL
    if PARALLEL_YNNPACK and a.overlap == 1 and small:
        # Windows that are `y` in another order, with jaxlib 0.12. 8x64x64x32 -> 16, 2x2 / 2: 0.65;
        # 4x64x64x16 -> 16: 0.4; 4x28x28x64 -> 8, 4x4 / 4: 0.7. But 8x16x16x128 -> 64, 2x2 / 2: 1.2,
        # and the first two with 0.10.2: 1.2, 1.1.
        return "matmul"
    short = a.channels <= (SHORT_ROW_1D if a.g.rank == 1 else SHORT_ROW)
    full = max(a.g.strides) == 1 or a.filled >= MOSTLY
    # At stride 1 or without dilation all taps lie in one phase.
    one_phase = all(s == 1 or d == 1 for s, d in zip(a.g.strides, a.g.dilation_rate, strict=True))
    if one_phase and short and _phases_are_more(a) and (full or 2 * a.channels <= SHORT_ROW):
        # The phases of filters are longer rows than channels. 1x128x128x3 -> 96, 5x5: 0.15.
        # 32x56x56x8 -> 8, 3x3 / 2: 0.2 to 0.45. In one dimension, 32x112x64 -> 96, 4 / 2: 0.6. But
        # 1x28x28x24 -> 64, 3x3: 2; and 1x64x64x16 -> 48, 3x3 / 2, which is filled up: 1.5.
        return "phase_filter"
    return "flat_filter"
