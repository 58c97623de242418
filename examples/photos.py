"""Photographs to train on and to hold out, crops of them, and how restorations are measured.

The photographs come with scikit-image and scikit-learn; none is downloaded. Images are float32,
`(height, width, channels)`, nominally in [0, 1], unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import skimage.data
from PIL import Image
from skimage.metrics import structural_similarity
from sklearn.datasets import load_sample_images

import pictures

# All photographs in scikit-image's own wheel, whether taken on the ground or through a telescope or
# microscope. The other images of `skimage.data` are drawn, scanned, tiny, or would be downloaded.
TRAINING: dict[str, Callable[[], np.ndarray]] = {
    "astronaut": skimage.data.astronaut,
    "brick": skimage.data.brick,
    "camera": skimage.data.camera,
    "chelsea": skimage.data.chelsea,
    "coffee": skimage.data.coffee,
    "coins": skimage.data.coins,
    "grass": skimage.data.grass,
    "gravel": skimage.data.gravel,
    "hubble_deep_field": skimage.data.hubble_deep_field,
    "immunohistochemistry": skimage.data.immunohistochemistry,
    "moon": skimage.data.moon,
    "motorcycle": lambda: skimage.data.stereo_motorcycle()[0],
    "retina": skimage.data.retina,
    "rocket": skimage.data.rocket,
}

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601: what JPEG, and Pillow's YCbCr, take for the luminance of red, green and blue."""

DETAILS = {"china": (60, 140), "flower": (130, 215)}
"""Top and left of what pictures show of the held-out photographs."""
DETAIL = 180
"""Its height and width."""


def training(names: Sequence[str]) -> list[np.ndarray]:
    """Photographs of scikit-image, grey or in colour, as floats.

    Raises:
      ValueError: for a name that is not in `TRAINING`, or for no names.
    """
    if not names or (unknown := [name for name in names if name not in TRAINING]):
        got = ", ".join(map(repr, unknown)) if names else "none"
        raise ValueError(f"must be one or more of {', '.join(TRAINING)}; got {got}")
    return [as_float(TRAINING[name]()) for name in names]


def heldout() -> dict[str, np.ndarray]:
    """The two photographs of scikit-learn, in colour, 427 x 640, as floats."""
    china, flower = load_sample_images().images
    return {"china": as_float(china), "flower": as_float(flower)}


def as_float(image: np.ndarray) -> np.ndarray:
    """8-bit pixels as floats, with an axis for the channels.

    >>> as_float(np.array([[0, 255]], np.uint8)).tolist()
    [[[0.0], [1.0]]]
    """
    image = image if image.ndim == 3 else image[..., None]
    return image.astype(np.float32) / np.float32(255)


def as_bytes(image: np.ndarray) -> np.ndarray:
    """Floats as 8-bit pixels, clipped; without the axis of a single channel.

    >>> as_bytes(np.array([[[-0.1], [0.5], [2.0]]])).tolist()
    [[0, 128, 255]]
    """
    pixels = pictures.to_uint8(image)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def luminance(image: np.ndarray) -> np.ndarray:
    """The luma of a colour image, `(height, width, 1)`; a grey one as it is.

    >>> luminance(np.ones((2, 3, 3), np.float32)).shape
    (2, 3, 1)
    """
    return image if image.shape[-1] == 1 else (image @ LUMA)[..., None]


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes by Pillow's bicubic filter (Keys, a = -0.5), with antialiasing if the image shrinks.

    >>> resize(np.ones((4, 6, 2), np.float32), 8, 3).shape
    (8, 3, 2)
    """
    channels = [
        Image.fromarray(channel).resize((width, height), Image.Resampling.BICUBIC)
        for channel in np.moveaxis(image.astype(np.float32), -1, 0)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def trim(image: np.ndarray, factor: int) -> np.ndarray:
    """Leaves out the last rows and columns, so that `factor` divides height and width."""
    height, width, _ = image.shape
    return image[: height - height % factor, : width - width % factor]


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """The image `factor` times smaller, as an 8-bit file would hold it.

    >>> shrink(np.ones((6, 9, 1), np.float32), 3).shape
    (2, 3, 1)
    """
    height, width, _ = image.shape
    return as_float(pictures.to_uint8(resize(image, height // factor, width // factor)))


def psnr(truth: np.ndarray, image: np.ndarray) -> float:
    """The peak signal-to-noise ratio in dB over all pixels; values outside [0, 1] are clipped.

    >>> psnr(np.zeros((4, 4, 1)), np.full((4, 4, 1), 0.1))
    20.0
    """
    error = np.clip(image, 0.0, 1.0).astype(np.float64) - truth
    return float(-10 * np.log10(np.mean(np.square(error))))


def ssim(truth: np.ndarray, image: np.ndarray) -> float:
    """The mean structural similarity, with the windows of Wang et al., 2004 (Gaussian, sigma 1.5).

    >>> round(ssim(np.eye(16)[..., None], np.eye(16)[..., None]), 6)
    1.0
    """
    value = structural_similarity(
        truth.astype(np.float64),
        np.clip(image, 0.0, 1.0).astype(np.float64),
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=-1,
    )
    return float(value)


def crops(
    rng: np.random.Generator, images: Sequence[Sequence[np.ndarray]], count: int, size: int
) -> list[np.ndarray]:
    """Draws square crops, each turned or mirrored in one of the eight ways a square allows.

    All places in all images are equally likely.

    Args:
      rng: decides everything.
      images: each a sequence of views of one thing, `(scale * height, scale * width, channels)`,
        with an integer scale of its own for each view and 1 for the first.
      count: how many crops.
      size: their height and width in the first view.

    Returns:
      For each view `(count, scale * size, scale * size, channels)`: the same places, turned alike.
    """
    rows, columns = np.array([views[0].shape[:2] for views in images]).T - size + 1
    places = rows * columns
    which = rng.choice(len(images), count, p=places / places.sum())
    tops, lefts = rng.integers(rows[which]), rng.integers(columns[which])
    turns = rng.integers(8, size=count)

    def crop(view: int, i: int, top: int, left: int, turn: int) -> np.ndarray:
        image = images[i][view]
        scale = image.shape[0] // images[i][0].shape[0]
        top, left, length = scale * top, scale * left, scale * size
        return turned(image[top : top + length, left : left + length], turn)

    drawn = list(zip(which, tops, lefts, turns, strict=True))
    return [np.stack([crop(view, *d) for d in drawn]) for view in range(len(images[0]))]


def turned(image: np.ndarray, turn: int) -> np.ndarray:
    """An image in one of the eight orientations that a square allows, 0 being its own.

    >>> image = np.arange(6).reshape(2, 3, 1)
    >>> turned(image, 1)[..., 0].tolist(), turned(image, 4)[..., 0].tolist()
    ([[2, 5], [1, 4], [0, 3]], [[2, 1, 0], [5, 4, 3]])
    """
    return np.rot90(image if turn < 4 else image[:, ::-1], turn)


def turned_back(image: np.ndarray, turn: int) -> np.ndarray:
    """Undoes `turned`.

    >>> image = np.arange(6).reshape(2, 3, 1)
    >>> all(np.array_equal(turned_back(turned(image, i), i), image) for i in range(8))
    True
    """
    back = np.rot90(image, -turn)
    return back if turn < 4 else back[:, ::-1]


def tiled(
    apply: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    *,
    tile: int,
    margin: int,
    scale: int = 1,
) -> np.ndarray:
    """What `apply` makes of an image of any size, tile by tile, without seams.

    The image is continued by its mirror image, and cut into overlapping tiles of one shape.

    Args:
      apply: maps `(1, tile, tile, channels)` to `(1, scale * tile, scale * tile, channels')`.
      image: `(height, width, channels)`.
      tile: height and width of the tiles.
      margin: how far a pixel sees, at least; what a tile's outermost `margin` pixels become is cut
        off. Where `apply` needs a grid, it must divide `tile - 2 * margin`.
      scale: how much larger `apply` makes an image.

    Returns:
      `(scale * height, scale * width, channels')`.
    """
    core = tile - 2 * margin
    height, width, _ = image.shape
    behind = [margin + -length % core for length in (height, width)]
    padded = np.pad(image, [*((margin, after) for after in behind), (0, 0)], mode="symmetric")
    inner = slice(scale * margin, scale * (margin + core))
    rows = [
        np.concatenate(
            [
                apply(padded[None, top : top + tile, left : left + tile])[0, inner, inner]
                for left in range(0, width, core)
            ],
            axis=1,
        )
        for top in range(0, height, core)
    ]
    return np.concatenate(rows)[: scale * height, : scale * width]


def sheet(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Grey and colour images in rows and columns, as `pictures.sheet`: `(height, width, 3)`, uint8.

    >>> sheet([[np.zeros((4, 5, 1)), np.zeros((4, 6, 3))]] * 2, gap=1).shape
    (9, 12, 3)
    """
    return pictures.sheet([[as_color(image) for image in row] for row in rows], gap)


def as_color(image: np.ndarray) -> np.ndarray:
    """A grey image with three equal channels; one in colour as it is.

    >>> as_color(np.zeros((2, 3, 1))).shape
    (2, 3, 3)
    """
    return np.broadcast_to(image, (*image.shape[:2], 3))


def detail(name: str, image: np.ndarray) -> np.ndarray:
    """The detail of a held-out photograph, or of a restoration, that pictures show."""
    top, left = DETAILS[name]
    return image[top : top + DETAIL, left : left + DETAIL]
