"""The layers that are measured, by their sizes, and random operands for them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from upconv import functional, geometry

TIMES = "×"  # noqa: RUF001


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """The sizes of a transposed convolution without bias, with one stride for all spatial axes.

    >>> LAYERS["dcgan1"].output_shape, LAYERS["dcgan1"].kernel_shape
    ((32, 8, 8, 256), (4, 4, 256, 512))
    """

    name: str
    input_shape: tuple[int, ...]  # channels last
    filters: int
    kernel_size: tuple[int, ...]
    stride: int
    padding: str = "same"
    groups: int = 1

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel_size)

    @property
    def strides(self) -> tuple[int, ...]:
        """The stride of each axis."""
        return (self.stride,) * self.rank

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """`(*kernel_size, c_out // groups, c_in)`."""
        return (*self.kernel_size, self.filters // self.groups, self.input_shape[-1])

    @property
    def geometry(self) -> geometry.Geometry:
        """Its sizes and crops."""
        return geometry.transposed(
            self.input_shape[1:-1],
            self.kernel_size,
            strides=self.stride,
            padding=self.padding,
            groups=self.groups,
        )

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape that every peer must give, channels last."""
        return functional.output_shape(
            self.input_shape,
            self.filters,
            self.kernel_size,
            strides=self.stride,
            padding=self.padding,
        )

    @property
    def tiny(self) -> LayerSpec:
        """The same window on a tiny input, for `--quick`."""
        batch, *space, channels = self.input_shape
        groups = min(self.groups, 2)
        ci, co = min(channels // self.groups, 4), min(self.filters // self.groups, 3)
        return dataclasses.replace(
            self,
            input_shape=(min(batch, 2), *(min(n, 5) for n in space), groups * ci),
            filters=groups * co,
            groups=groups,
        )

    def __str__(self) -> str:
        size, window = (TIMES.join(map(str, s)) for s in (self.input_shape, self.kernel_size))
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        return f"{size} → {self.filters}{groups}, {window} / {self.stride}"


def _by_name(*layers: LayerSpec) -> dict[str, LayerSpec]:
    return {layer.name: layer for layer in layers}


# Those that the goals were set for.
LAYERS = _by_name(
    LayerSpec("dcgan1", (32, 4, 4, 512), 256, (4, 4), 2),
    LayerSpec("dcgan2", (32, 8, 8, 256), 128, (4, 4), 2),
    LayerSpec("dcgan3", (32, 16, 16, 128), 64, (4, 4), 2),
    LayerSpec("dcgan4", (32, 32, 32, 64), 3, (4, 4), 2),
    LayerSpec("odd5x5", (32, 16, 16, 128), 64, (5, 5), 2),
    LayerSpec("unet2x2", (2, 64, 64, 128), 64, (2, 2), 2, "valid"),
    LayerSpec("unet3x3", (2, 64, 64, 128), 64, (3, 3), 2),
    LayerSpec("fsrcnn", (1, 96, 96, 56), 1, (9, 9), 3),
    LayerSpec("fcn", (1, 16, 16, 21), 21, (32, 32), 16),
    LayerSpec("stride1", (2, 64, 64, 128), 64, (3, 3), 1),
    LayerSpec("large", (1, 128, 128, 64), 64, (4, 4), 2),
    LayerSpec("conv1d", (4, 256, 256), 128, (16,), 8),
    LayerSpec("conv3d", (1, 12, 12, 12, 64), 32, (3, 3, 3), 2),
)

# Layers of groups: depthwise, as a detector (DLA), a segmenter (FCN-8s) and a vocoder (BigVGAN)
# upsample, in three dimensions and at stride 1; and of few and many groups.
GROUPED = _by_name(
    LayerSpec("dla2", (4, 64, 64, 64), 64, (4, 4), 2, groups=64),
    LayerSpec("dla8", (1, 32, 32, 64), 64, (16, 16), 8, groups=64),
    LayerSpec("fcn8s", (1, 64, 64, 21), 21, (16, 16), 8, groups=21),
    LayerSpec("bigvgan", (4, 4096, 96), 96, (12,), 2, groups=96),
    LayerSpec("depth3d", (1, 16, 16, 16, 32), 32, (4, 4, 4), 2, groups=32),
    LayerSpec("depth1", (4, 28, 28, 96), 96, (7, 7), 1, groups=96),
    LayerSpec("two", (32, 8, 8, 256), 128, (4, 4), 2, groups=2),
    LayerSpec("eight", (8, 32, 32, 128), 64, (4, 4), 2, groups=8),
    LayerSpec("many", (8, 28, 28, 128), 128, (3, 3), 2, groups=32),
    LayerSpec("four1d", (4, 256, 256), 128, (16,), 8, groups=4),
    LayerSpec("four3d", (1, 12, 12, 12, 64), 32, (3, 3, 3), 2, groups=4),
)


class Data(NamedTuple):
    """Operands, and the tangents that the Hessian is applied to; all standard normal."""

    x: np.ndarray
    kernel: np.ndarray
    dx: np.ndarray
    dkernel: np.ndarray


def random_data(layer: LayerSpec) -> Data:
    """The same numbers for every peer, in our layout."""
    rng = np.random.default_rng(0)
    shapes = (layer.input_shape, layer.kernel_shape) * 2
    return Data(*(rng.standard_normal(shape, np.float32) for shape in shapes))
