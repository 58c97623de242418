"""The cases that every lowering must get right, by name; `test_properties.py` draws others.

Images are not square, channels are not equal, and most axes differ, so that a flip, a swap of axes
or a swap of channels shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import oracle

Ints = int | Sequence[int]


@dataclass(frozen=True)
class Case:
    """One layer on one shape of input, channels last. `None`: the argument is left out."""

    name: str
    spatial: tuple[int, ...]
    kernel_size: tuple[int, ...]
    c_in: int = 3
    c_out: int = 2
    batch: tuple[int, ...] = (2,)
    strides: Ints = 1
    padding: oracle.Padding = "valid"
    output_padding: Ints | None = None
    output_size: Ints | None = None
    dilation_rate: Ints = 1
    groups: int = 1

    @property
    def rank(self) -> int:
        return len(self.kernel_size)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (*self.batch, *self.spatial, self.c_in)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        return (*self.kernel_size, self.c_out // self.groups, self.c_in)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return (*self.batch, *self.output, self.c_out)

    @property
    def output(self) -> tuple[int, ...]:
        sizes = {k: v for k, v in self.layer.items() if k != "groups"}
        return oracle.output_size_of(self.spatial, self.kernel_size, **sizes)

    @property
    def layer(self) -> dict[str, Any]:
        """The arguments of `conv_transpose`."""
        layer = dict(self.convolution)
        if self.output_padding is not None:
            layer["output_padding"] = self.output_padding
        if self.output_size is not None:
            layer["output_size"] = self.output_size
        return layer

    @property
    def convolution(self) -> dict[str, Any]:
        """The arguments of `conv`, and of the oracle's adjoints."""
        return {
            "strides": self.strides,
            "padding": self.padding,
            "dilation_rate": self.dilation_rate,
            "groups": self.groups,
        }

    def scatter(self, x: ArrayLike, kernel: ArrayLike) -> np.ndarray:
        """The oracle's `conv_transpose`."""
        return oracle.conv_transpose(x, kernel, **self.layer)

    def gather(self, y: ArrayLike, kernel: ArrayLike) -> np.ndarray:
        """Its gradient in `x`, along `y`."""
        return oracle.conv(y, kernel, **self.convolution, input_size=self.spatial)

    def correlate(self, x: ArrayLike, y: ArrayLike) -> np.ndarray:
        """Its gradient in the kernel, along `y`."""
        return oracle.correlate_kernel(x, y, self.kernel_size, **self.convolution)

    def maps(self, x: ArrayLike, kernel: ArrayLike, ct: ArrayLike) -> list[np.ndarray]:
        """The output, and the gradients in `x` and the kernel along `ct`."""
        return [self.scatter(x, kernel), self.gather(ct, kernel), self.correlate(x, ct)]

    def __str__(self) -> str:
        return self.name


def draw(
    rng: np.random.Generator, *shapes: tuple[int, ...], dtype: Any = np.float32
) -> tuple[np.ndarray, ...]:
    """One normal array per shape."""
    return tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)


CASES = (
    # Kernels below, at and above the stride, odd and even, in one dimension.
    Case("1d_plain", (5,), (3,), c_in=3, c_out=4),
    Case("1d_k1_s1", (4,), (1,)),
    Case("1d_k1_s3", (4,), (1,), strides=3),
    Case("1d_k2_s3_valid", (4,), (2,), strides=3),
    Case("1d_k2_s3_same", (4,), (2,), strides=3, padding="same"),
    Case("1d_k3_s3_same", (4,), (3,), strides=3, padding="SAME"),
    Case("1d_k4_s3_same", (4,), (4,), strides=3, padding="same"),
    Case("1d_k16_s8_same", (9,), (16,), strides=8, padding="same", c_in=5, c_out=3),
    Case("1d_k7_s2_same_lower", (6,), (7,), strides=2, padding="same_lower"),
    Case("1d_k5_s2_same", (6,), (5,), strides=2, padding="same"),
    Case("1d_one_pixel", (1,), (4,), strides=2, padding="same"),
    Case("1d_int", (5,), (4,), strides=2, padding=1),
    Case("1d_pair", (5,), (4,), strides=2, padding=((2, 1),)),
    Case("1d_wide_crop", (7,), (2,), strides=2, padding=((3, 4),)),
    # More is cropped in front than the first pixel reaches (found by `make fuzz`).
    Case("1d_crop_beyond_reach", (2,), (4,), c_in=4, c_out=1, strides=2, padding=((4, 0),)),
    Case("1d_crop_and_extend", (4,), (1,), c_in=4, c_out=1, padding=((2, -2),)),
    Case("1d_crop_all_and_extend", (2,), (2,), strides=2, padding=((6, -4),)),
    Case("1d_negative_pads", (3,), (4,), strides=2, padding=((-2, -1),)),
    Case("1d_causal", (5,), (5,), strides=2, padding="causal"),
    Case("1d_causal_s1", (6,), (3,), padding="causal", c_in=2, c_out=5),
    Case("1d_causal_k_below_s", (5,), (2,), strides=3, padding="causal"),
    Case("1d_causal_dilated", (5,), (3,), strides=2, padding="causal", dilation_rate=3),
    Case("1d_circular", (5,), (4,), strides=2, padding="circular"),
    Case("1d_circular_odd", (4,), (5,), strides=2, padding="circular"),
    Case("1d_circular_s1", (6,), (3,), padding="circular"),
    Case("1d_circular_k_below_s", (4,), (2,), strides=3, padding="circular"),
    Case("1d_circular_wraps_twice", (2,), (9,), strides=2, padding="circular"),
    Case("1d_circular_one_pixel", (1,), (5,), strides=3, padding="circular"),
    Case("1d_dilation_coprime", (5,), (3,), strides=2, padding="same", dilation_rate=3),
    Case("1d_dilation_gcd2", (5,), (3,), strides=2, padding="same", dilation_rate=2),
    Case("1d_dilation_gcd2_of_4", (4,), (4,), strides=4, padding="valid", dilation_rate=6),
    Case("1d_dilation_k1", (4,), (1,), strides=2, padding="same", dilation_rate=4),
    Case("1d_op_dilation", (4,), (3,), strides=2, padding=2, dilation_rate=5, output_padding=4),
    Case("1d_far_apart", (6,), (3,), padding="same", dilation_rate=20, c_in=4, c_out=6, groups=2),
    Case("1d_groups_depthwise", (5,), (3,), strides=2, padding="same", c_in=4, c_out=4, groups=4),
    Case("1d_groups_depthwise_even", (5,), (4,), strides=2, padding="same", c_in=3, c_out=3,
         groups=3),
    Case("1d_groups_narrow", (19,), (4,), padding="same", c_in=48, c_out=16, groups=16,
         batch=(11,)),
    Case("1d_no_batch", (5,), (4,), strides=2, padding="same", batch=()),
    Case("1d_many", (48,), (4,), strides=2, padding="same", c_in=9, c_out=17, batch=(12,)),
    # Two dimensions.
    Case("2d_plain", (4, 3), (3, 2), c_in=3, c_out=5),
    Case("2d_k3_s2_same", (4, 3), (3, 3), strides=2, padding="same"),
    Case("2d_k4_s2_same", (3, 5), (4, 4), strides=2, padding="same", c_in=5, c_out=3),
    Case("2d_k5_s2_same", (3, 4), (5, 5), strides=2, padding="same"),
    Case("2d_k5_s1_same", (5, 4), (5, 3), padding="same"),
    Case("2d_k2_s2_valid", (3, 4), (2, 2), strides=2, c_in=4, c_out=3),
    Case("2d_k3_s2_valid", (3, 4), (3, 3), strides=2),
    Case("2d_k2_s3_valid", (2, 3), (2, 1), strides=3),
    Case("2d_k9_s3_one_filter", (4, 5), (9, 9), strides=3, padding="same", c_in=6, c_out=1),
    Case("2d_one_channel_in", (3, 4), (4, 3), strides=2, padding="same", c_in=1, c_out=4),
    Case("2d_unequal", (4, 3), (5, 2), strides=(2, 3), padding="same"),
    Case("2d_unequal_valid", (3, 4), (2, 5), strides=(3, 1)),
    Case("2d_unequal_lower", (3, 4), (4, 5), strides=(1, 2), padding="same_lower"),
    Case("2d_one_pixel", (1, 1), (4, 3), strides=2),
    Case("2d_one_pixel_same", (1, 1), (5, 3), strides=(2, 3), padding="same"),
    Case("2d_one_row", (1, 6), (3, 4), strides=2, padding="same"),
    Case("2d_many_filters", (3, 4), (4, 4), strides=2, padding="same", c_in=2, c_out=40),
    Case("2d_many_channels", (3, 4), (3, 4), strides=2, padding="same", c_in=40, c_out=2),
    Case("2d_ints", (4, 5), (4, 3), strides=2, padding=(2, 1)),
    Case("2d_pairs", (4, 5), (5, 4), strides=(2, 3), padding=((2, 1), (0, 3))),
    Case("2d_mixed_pads", (4, 5), (5, 4), strides=(3, 2), padding=(1, (0, 2))),
    Case("2d_negative_pads", (4, 3), (3, 2), strides=(2, 3), padding=((-1, 2), (1, -2)),
         output_padding=(1, 0)),
    # Here `conv` crops in front and pads behind, at which some XLA:CPU reads beyond the image
    # (openxla/xla#48713).
    Case("2d_crop_and_pad", (4, 5), (3, 4), strides=(2, 1), padding=((-1, -1), (-1, 1))),
    Case("2d_wide_crop", (5, 6), (2, 3), padding=((0, 1), (3, 1)), c_in=4),
    Case("2d_torch", (3, 4), (3, 3), strides=2, padding=1, output_padding=1),
    Case("2d_op_valid", (3, 4), (3, 2), strides=(2, 3), output_padding=(1, 2)),
    Case("2d_op_valid_zero", (3, 4), (2, 1), strides=3, output_padding=0),
    Case("2d_op_same", (3, 4), (3, 4), strides=(3, 2), padding="same", output_padding=(2, 1)),
    Case("2d_op_same_zero", (3, 4), (4, 3), strides=2, padding="same", output_padding=0),
    Case("2d_op_lower", (3, 4), (4, 5), strides=(2, 3), padding="same_lower",
         output_padding=(1, 0)),
    Case("2d_op_outlasts", (3, 2), (1, 2), strides=(4, 3), padding=((0, 0), (1, 0)),
         output_padding=(3, 2)),
    Case("2d_size_same", (3, 4), (5, 4), strides=2, padding="same", output_size=(5, 7)),
    Case("2d_size_lower", (3, 4), (4, 5), strides=(3, 2), padding="same_lower", output_size=(8, 7)),
    Case("2d_size_valid", (3, 4), (3, 2), strides=(3, 2), output_size=(11, 9)),
    Case("2d_size_pairs", (3, 4), (3, 4), strides=(2, 3), padding=((1, 0), (2, 1)),
         output_size=(7, 12)),
    Case("2d_causal", (3, 4), (4, 3), strides=(2, 1), padding="causal"),
    Case("2d_circular", (3, 4), (4, 3), strides=(2, 1), padding="circular"),
    Case("2d_circular_groups", (3, 2), (5, 4), strides=2, padding="circular", c_in=4,
         c_out=6, groups=2),
    Case("2d_dilation", (4, 3), (3, 2), padding="same", dilation_rate=(2, 3)),
    Case("2d_dilation_filters", (5, 4), (3, 2), padding="same", dilation_rate=(2, 3), c_in=2,
         c_out=9),
    Case("2d_dilation_strides", (3, 4), (3, 2), strides=(3, 2), padding="same",
         dilation_rate=(2, 3)),
    Case("2d_dilation_gcd", (3, 4), (3, 2), strides=(4, 2), dilation_rate=(2, 4)),
    Case("2d_dilation_pads", (4, 3), (2, 3), strides=2, padding=((1, 0), (2, 3)), dilation_rate=2),
    Case("2d_dilation_k1", (3, 4), (1, 3), strides=(2, 1), padding="same", dilation_rate=(5, 1)),
    Case("2d_groups", (3, 4), (4, 3), strides=2, padding="same", c_in=4, c_out=6, groups=2),
    Case("2d_groups_depthwise", (3, 4), (4, 4), strides=2, padding="same", c_in=3,
         c_out=3, groups=3),
    Case("2d_groups_depthwise_dilation", (6, 4), (2, 3), padding=(1, (0, 3)), dilation_rate=(3, 2),
         c_in=4, c_out=4, groups=4, batch=(1,)),
    Case("2d_groups_depthwise_cropped", (4, 3), (2, 3), strides=(3, 1), padding=((-1, 2), (3, -2)),
         c_in=3, c_out=3, groups=3),
    Case("2d_groups_depthwise_mixed", (4, 5), (5, 5), strides=(2, 1), padding="same",
         dilation_rate=(1, 2), c_in=3, c_out=3, groups=3),
    Case("2d_groups_multiplier", (3, 4), (3, 4), strides=2, c_in=3, c_out=6, groups=3),
    Case("2d_groups_narrow", (3, 4), (4, 3), strides=2, padding="same", c_in=18, c_out=27, groups=9,
         batch=(3,)),
    Case("2d_groups_narrow_cropped", (5, 3), (3, 3), strides=(1, 2), padding=((-1, 1), (2, -1)),
         dilation_rate=(2, 1), c_in=32, c_out=16, groups=16, batch=(1,)),
    Case("2d_groups_narrow_large", (4, 3), (7, 7), strides=2, padding="same", c_in=16, c_out=8,
         groups=8),
    Case("2d_groups_dilation", (3, 4), (3, 2), strides=2, padding=1, dilation_rate=2,
         c_in=6, c_out=2, groups=2),
    Case("2d_groups_k_below_s", (3, 4), (2, 1), strides=(2, 3), c_in=2, c_out=4, groups=2),
    Case("2d_groups_long", (3, 4), (11, 2), strides=(1, 2), padding="same", c_in=4,
         c_out=6, groups=2),
    Case("2d_no_batch", (3, 4), (3, 4), strides=2, padding="same", batch=()),
    Case("2d_two_batch_axes", (3, 4), (3, 4), strides=2, padding="same", batch=(2, 3)),
    Case("2d_three_batch_axes", (2, 3), (2, 3), strides=2, padding="circular", batch=(2, 1, 3)),
    # Large enough for whatever a lowering does in blocks.
    Case("2d_batch12", (24, 20), (4, 4), strides=2, padding="same", c_in=6, c_out=5, batch=(12,)),
    Case("2d_batch7", (24, 20), (5, 4), strides=(2, 3), padding="same", c_in=5, c_out=9,
         batch=(7,)),
    Case("2d_batch16", (8, 6), (3, 3), strides=2, padding="same", c_in=33, c_out=18, batch=(16,)),
    # Three dimensions.
    Case("3d_plain", (2, 3, 2), (2, 1, 3)),
    Case("3d_k3_s2_same", (2, 3, 4), (3, 3, 3), strides=2, padding="same"),
    Case("3d_k2_s2_valid", (2, 1, 3), (2, 2, 2), strides=2),
    Case("3d_unequal", (3, 2, 2), (1, 4, 3), strides=(2, 3, 1), padding="same", batch=(3,)),
    Case("3d_pads", (2, 3, 2), (3, 2, 4), strides=(1, 2, 3), padding=((1, 0), 1, (2, 0)),
         output_padding=(0, 1, 2)),
    Case("3d_k_below_s", (2, 3, 2), (1, 2, 2), strides=(2, 3, 2), padding="same_lower"),
    Case("3d_size", (2, 3, 2), (4, 3, 2), strides=(3, 2, 1), output_size=(8, 8, 3), c_out=1),
    Case("3d_one_pixel", (1, 1, 1), (3, 4, 5), strides=(2, 3, 4), padding=((1, 0), (-1, 2), 2)),
    Case("3d_dilation", (2, 2, 3), (2, 3, 2), strides=(2, 1, 2), padding="same",
         dilation_rate=(3, 2, 2)),
    Case("3d_dilation_in_depth", (3, 2, 2), (4, 2, 1), strides=(3, 2, 1), padding=((1, 2), 1, 0),
         dilation_rate=(2, 1, 1)),
    Case("3d_phase_without_taps", (3, 2, 2), (3, 1, 2), strides=(2, 1, 2), dilation_rate=(2, 1, 1)),
    Case("3d_circular", (2, 3, 2), (3, 2, 4), strides=(2, 1, 2), padding="circular", batch=()),
    Case("3d_groups_depthwise", (2, 3, 2), (3, 2, 4), strides=(2, 1, 2), padding="same",
         dilation_rate=(2, 1, 1), c_in=2, c_out=2, groups=2),
    Case("3d_groups_narrow", (2, 4, 2), (3, 2, 3), strides=(2, 1, 2), c_in=16, c_out=32, groups=16),
    Case("3d_causal_groups", (2, 3, 2), (3, 2, 1), strides=(2, 1, 2), padding="causal",
         c_in=2, c_out=4, groups=2),
)  # fmt: skip


def by_name(*names: str) -> list[Case]:
    """Cases of the table, in the order asked for."""
    table = {case.name: case for case in CASES}
    return [table[name] for name in names]
