"""The task `denoise`: removes noise; compared with non-local means and total variation.

The noise is white and Gaussian, of known strength; the noisy image is not clipped. Pictures in
colour are restored one channel after another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cached_property

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

import config as configs
import photos
import restoration
from restoration import Pair
from supervised import State
from upconv import initializers
from upconv.linen import Conv2DTranspose
from upconv.rules import Constraint, Regularizer


@dataclasses.dataclass(frozen=True)
class Data(restoration.Data):
    """The photographs."""

    sigma: float = 25.0
    """The standard deviation of the noise, where white is 255."""
    crop: int = 64
    """Height and width of the crops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        configs.require(0 < self.sigma < float("inf"), "data.sigma", "positive", self.sigma)


@dataclasses.dataclass(frozen=True)
class Model(restoration.Model):
    """A U-Net."""

    features: tuple[int, ...] = (24, 48, 96)
    """Channels, from the full size to the smallest; every size is half the one before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        good = len(self.features) > 1 and min(self.features) > 0
        configs.require(good, "model.features", "two or more positive integers", self.features)


@dataclasses.dataclass(frozen=True)
class Config(restoration.Config):
    """Denoising of photographs."""

    data: Data = Data()
    model: Model = Model()


class UNet(nn.Module):
    """Maps images to images of the same shape, by way of smaller ones.

    Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation",
    arXiv:1505.04597. Here the layers estimate the noise, which is subtracted from the image: Zhang
    et al., "Beyond a Gaussian Denoiser", arXiv:1608.03981.

    Attributes:
      features: channels, from the full size to the smallest.
      kernel_regularizer, kernel_constraint: for the transposed convolutions `up1`, `up2`, ..., of
        which `up1` leads to the full size.
      dtype: of the activations.
    """

    features: tuple[int, ...]
    kernel_regularizer: Regularizer | None = None
    kernel_constraint: Constraint | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps `(n, height, width, channels)` to the same shape, in float32."""
        x = self.twice(self.features[0], images - 0.5)
        passed = []
        for filters in self.features[1:]:
            passed.append(x)
            x = self.twice(filters, nn.Dense(filters, dtype=self.dtype)(space_to_depth(x)))
        for level, filters in reversed(list(enumerate(self.features[:-1], start=1))):
            x = Conv2DTranspose(
                filters,
                2,
                strides=2,
                kernel_regularizer=self.kernel_regularizer,
                kernel_constraint=self.kernel_constraint,
                dtype=self.dtype,
                name=f"up{level}",
            )(x)
            x = self.twice(filters, jnp.concatenate([passed.pop(), x], axis=-1))
        # Zero at first: a random guess of the noise would only have to be unlearned.
        zeros = nn.initializers.zeros
        noise = nn.Conv(
            images.shape[-1], (3, 3), dtype=self.dtype, kernel_init=zeros, name="noise"
        )(x)
        return images.astype(jnp.float32) - noise.astype(jnp.float32)

    def twice(self, filters: int, x: jax.Array) -> jax.Array:
        """Two convolutions, written as transposed ones of stride 1, whose gradients are fast."""
        for _ in range(2):
            layer = Conv2DTranspose(
                filters,
                3,
                padding="same",
                kernel_initializer=initializers.he_normal(),
                dtype=self.dtype,
            )
            x = nn.relu(layer(x))
        return x

    @property
    def grid(self) -> int:
        """What height and width must be divisible by."""
        return 2 ** (len(self.features) - 1)

    @property
    def reach(self) -> int:
        """How far from a pixel the model looks, at most."""
        # Two steps of 2**i on the way down and two on the way up (at the bottom, two in all), one
        # more at the end, and any pixel of each block that the halvings join.
        levels = len(self.features)
        return 1 + sum(4 * 2**i for i in range(levels - 1)) + 2 * self.grid + self.grid - 1


def space_to_depth(x: jax.Array) -> jax.Array:
    """Turns blocks of 2 x 2 pixels into pixels with four times as many channels.

    A dense layer on it is the 2 x 2 convolution of stride 2, whose own gradient XLA computes slowly
    on CPU.

    >>> space_to_depth(jnp.zeros((1, 4, 6, 3))).shape
    (1, 2, 3, 12)
    """
    count, height, width, channels = x.shape
    blocks = x.reshape(count, height // 2, 2, width // 2, 2, channels)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(count, height // 2, width // 2, -1)


def build(config: Config) -> Denoise:
    """The task, with its photographs loaded."""
    return Denoise(config)


class Denoise(restoration.Restoration):
    """Makes noisy photographs clean; see `task.Task`."""

    config: Config

    def __init__(self, config: Config) -> None:
        model = UNet(
            config.model.features,
            kernel_regularizer=config.model.regularizer(),
            kernel_constraint=config.model.constraint(),
            dtype=config.train.compute_dtype,
        )
        super().__init__(config, model, channels=1, reach=model.reach, grid=model.grid)

    @property
    def sigma(self) -> float:
        """The standard deviation of the noise, where white is 1."""
        return self.config.data.sigma / 255

    def examples(self, image: np.ndarray) -> list[np.ndarray]:
        """The luminance."""
        return [photos.luminance(image)]

    def pairs(self, rng: np.random.Generator, crops: list[np.ndarray]) -> Pair:
        """Crops, and the same with noise, which is new in every step."""
        (good,) = crops
        return Pair(self.noisy(rng, good), good)

    def noisy(self, rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
        """Adds noise to images, independent for all pixels and channels."""
        return images + np.float32(self.sigma) * rng.standard_normal(images.shape, np.float32)

    @cached_property
    def heldout(self) -> Mapping[str, Pair]:
        """The luminance of scikit-learn's photographs, with the same noise in every run."""
        rng = np.random.default_rng(0)
        good = {name: photos.luminance(image) for name, image in photos.heldout().items()}
        return {name: Pair(self.noisy(rng, image), image) for name, image in good.items()}

    @cached_property
    def rivals(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """For each photograph the best that non-local means and total variation can do."""
        methods = {"nl_means": nl_means, "total_variation": total_variation}
        return {
            key: {
                name: max(method(pair.bad, self.sigma), key=lambda i: photos.psnr(pair.good, i))
                for name, pair in self.heldout.items()
            }
            for key, method in methods.items()
        }

    def shown(self, state: State, name: str) -> list[np.ndarray]:
        """The noisy photograph, the better rival, the model, the truth."""
        bad, good = self.heldout[name]
        rivals = [images[name] for images in self.rivals.values()]
        best = max(rivals, key=lambda image: photos.psnr(good, image))
        return [bad, best, self.restore(state, bad), good]

    def predict(self, state: State, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A picture as it is, and denoised."""
        channels = np.split(image, image.shape[-1], axis=-1)
        return image, np.concatenate([self.restore(state, channel) for channel in channels], -1)


def nl_means(image: np.ndarray, sigma: float) -> Iterator[np.ndarray]:
    """Non-local means, told the strength of the noise, with each of its sensible parameters.

    Buades et al., "A non-local algorithm for image denoising", 2005.
    """
    for fast, patch, strength in NL_MEANS:
        restored = denoise_nl_means(
            image[..., 0],
            patch_size=patch,
            patch_distance=6,
            h=strength * sigma,
            sigma=sigma,
            fast_mode=fast,
        )
        yield restored[..., None]


def total_variation(image: np.ndarray, sigma: float) -> Iterator[np.ndarray]:
    """Total variation, with each of its sensible weights.

    Chambolle, "An algorithm for total variation minimization and applications", 2004.
    """
    for weight in np.linspace(0.4, 1.0, 7) * sigma:
        restored = denoise_tv_chambolle(image[..., 0], weight=weight, eps=1e-5, max_num_iter=200)
        yield restored[..., None]


NL_MEANS = [
    *((True, patch, strength) for patch in (3, 5, 7) for strength in (0.4, 0.5, 0.6, 0.7)),
    *((False, patch, 0.8) for patch in (5, 7)),
]
"""For non-local means: whether it is fast, the size of its patches, and h divided by sigma."""
