"""Turns arrays into pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Floats, clipped to [0, 1], as 8-bit pixels.

    >>> to_uint8(np.array([-0.1, 0.5, 2.0])).tolist()
    [0, 128, 255]
    """
    return np.round(255 * np.clip(image, 0.0, 1.0)).astype(np.uint8)


def sheet(rows: Sequence[Iterable[np.ndarray]], gap: int) -> np.ndarray:
    """Images in rows and columns, with white between them.

    Args:
      rows: images `(height, width, channels)`, nominally in [0, 1]; of one height in a row, and of
        one width in a column.
      gap: pixels between two of them.

    Returns:
      `(height, width, channels)`, uint8.

    >>> sheet([[np.zeros((4, 5, 1)), np.zeros((4, 6, 1))]] * 2, gap=1).shape
    (9, 12, 1)
    """
    before = (gap, 0), (gap, 0), (0, 0)
    padded = [[np.pad(image, before, constant_values=1.0) for image in row] for row in rows]
    together = np.concatenate([np.concatenate(row, axis=1) for row in padded])
    return to_uint8(together[gap:, gap:])


def grid(rows: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Rows of grey images, with white lines between and around them.

    Args:
      rows: each `(n, height, width, 1)`, the same `n` in each, nominally in [0, 1].
      gap: pixels between two images.

    Returns:
      `(height, width)`, uint8.

    >>> grid([np.zeros((3, 4, 5, 1)), np.ones((3, 4, 5, 1))], gap=1).shape
    (11, 19)
    """
    return np.pad(sheet(rows, gap)[..., 0], gap, constant_values=255)


def enlarged(picture: np.ndarray, times: int = 2) -> np.ndarray:
    """Makes a square of every pixel.

    >>> enlarged(np.zeros((3, 5), np.uint8)).shape
    (6, 10)
    """
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def no_format(path: Path, mode: str) -> str | None:
    """Why Pillow can write no picture with pixels of a mode under a file's name; None if it can.

    >>> no_format(Path("cat.xyz"), "L")
    'Pillow writes no files of this name; try .png'
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        return "Pillow writes no files of this name; try .png"
    try:
        Image.new(mode, (8, 8)).save(BytesIO(), kind)
    except OSError as error:
        return f"{error}; try .png"
    return None


def save(path: Path, picture: np.ndarray) -> None:
    """Writes a picture, `(height, width)` or `(height, width, 3)` and uint8, as PNG."""
    Image.fromarray(picture).save(path, optimize=True)
