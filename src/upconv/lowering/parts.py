"""Equal parts of images and rows, over which products of numbers are summed side by side."""

from __future__ import annotations

from typing import NamedTuple

from upconv.geometry import cdiv
from upconv.lowering import strips


class Parts(NamedTuple):
    """Equal parts of images and rows, no more than `strips.IMAGES`."""

    images: int  # of each part
    rows: int
    corners: list[tuple[int, int]]  # the first image and row of each
    ends: list[tuple[int, int, int]]  # what fills up the last


def in_parts(images: int, rows: int) -> Parts:
    """As many images and rows, cut."""
    part, of_images = _equal(images, strips.IMAGES)
    height, of_rows = _equal(rows, strips.IMAGES // of_images)
    corners = [(i * part, j * height) for i in range(of_images) for j in range(of_rows)]
    ends = [(0, part * of_images - images, 0), (0, height * of_rows - rows, 0)]
    return Parts(part, height, corners, ends)


def _equal(n: int, most: int) -> tuple[int, int]:
    """The size of a part, and how many of them hold `n`: no more than `most`."""
    size = max(cdiv(n, most), 1)
    return size, max(cdiv(n, size), 1)
