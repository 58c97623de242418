"""Arrays to pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def grid(rows: list[np.ndarray], gap: int = 2) -> np.ndarray:
    """Rows of grey images side by side, white lines between them.

    Args:
      rows: each `(n, height, width, 1)`, the same `n` in each, nominally in [0, 1].
      gap: pixels between two images.

    Returns:
      `(height, width)`, uint8.

    >>> grid([np.zeros((3, 4, 5, 1)), np.ones((3, 4, 5, 1))], gap=1).shape
    (11, 19)
    """
    images = np.stack(rows)[..., 0]
    padded = np.pad(images, ((0, 0), (0, 0), (gap, 0), (gap, 0)), constant_values=1.0)
    count_y, count_x, height, width = padded.shape
    picture = padded.transpose(0, 2, 1, 3).reshape(count_y * height, count_x * width)
    picture = np.pad(picture, ((0, gap), (0, gap)), constant_values=1.0)
    return np.round(255 * np.clip(picture, 0.0, 1.0)).astype(np.uint8)


def enlarged(picture: np.ndarray, times: int = 2) -> np.ndarray:
    """Every pixel as a square of them.

    >>> enlarged(np.zeros((3, 5), np.uint8)).shape
    (6, 10)
    """
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def save(path: Path, picture: np.ndarray) -> None:
    """Write a picture, `(height, width)` or `(height, width, 3)` and uint8, as PNG."""
    Image.fromarray(picture).save(path, optimize=True)
