"""The thirteen layers that are measured, by their sizes, and random operands for them."""

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
        """`(*kernel_size, c_out, c_in)`."""
        return (*self.kernel_size, self.filters, self.input_shape[-1])

    @property
    def geometry(self) -> geometry.Geometry:
        """Its sizes and crops."""
        return geometry.transposed(
            self.input_shape[1:-1],
            self.kernel_size,
            strides=self.stride,
            padding=self.padding,
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
        shape = (min(batch, 2), *(min(n, 5) for n in space), min(channels, 4))
        return dataclasses.replace(self, input_shape=shape, filters=min(self.filters, 3))

    def __str__(self) -> str:
        size, window = (TIMES.join(map(str, s)) for s in (self.input_shape, self.kernel_size))
        return f"{size} → {self.filters}, {window} / {self.stride}"


LAYERS = {
    layer.name: layer
    for layer in (
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
}


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
