"""What the rules go by, and what they give."""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any, NamedTuple

from upconv.geometry import Geometry


class Ways(NamedTuple):
    """One way for each map, by its name in `upconv.lowering.WAYS`."""

    conv_transpose: str
    conv: str
    correlate_kernel: str


CONVOLUTIONS = Ways("input_dilation", "strided", "backward_filter")
PRODUCTS = Ways("matmul", "matmul", "matmul")


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is to be computed: the sizes of a layer, whose maps the rules give ways for.

    Attributes:
      g: the geometry.
      batch: `N`.
      filters: `co`, of one group.
      channels: `ci`, of one group.
      dtype: of the operands.
    """

    g: Geometry
    batch: int
    filters: int
    channels: int
    dtype: Any

    @property
    def filled(self) -> float:
        """The taps of a kernel, as a part of what it has when zeros fill it up to whole strides."""
        whole = map(operator.mul, self.g.phase_taps, self.g.strides)
        return self.taps / math.prod(whole)

    @property
    def pixels(self) -> int:
        """Of all images of `x`."""
        return self.batch * math.prod(self.g.input_size)

    @property
    def taps(self) -> int:
        """Of the kernel."""
        return math.prod(self.g.kernel_size)

    @property
    def overlap(self) -> int:
        """The strides that a kernel has taps in: a pixel of the output lies in no more windows."""
        return math.prod(self.g.met_strides)

    @property
    def products(self) -> int:
        """How many numbers T by a product of matrices makes, before it adds them up.

        As many are in the windows that C and G by a product gather.
        """
        return self.pixels * self.taps * self.filters * self.g.groups

    @property
    def kernel_is_larger(self) -> bool:
        """Whether a kernel spans more pixels than an input has."""
        return math.prod(self.g.span) > math.prod(self.g.input_size)
