"""The task `superres`: enlarges photographs; compared with bicubic interpolation.

Only the luminance is restored, as is usual: the eye sees little of the rest. The model is shown
photographs that were shrunk by Pillow's bicubic filter and rounded to 8 bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

import config as configs
import photos
import restoration
from restoration import Pair
from supervised import State
from upconv.initializers import icnr
from upconv.linen import Conv2DTranspose
from upconv.rules import Constraint, Regularizer


@dataclasses.dataclass(frozen=True)
class Data(restoration.Data):
    """The photographs."""

    crop: int = 24
    """Height and width of the crops, in pixels of the small photographs."""
    scale: int = 3
    """How many times as large the photographs become."""

    def __post_init__(self) -> None:
        super().__post_init__()
        configs.require(self.scale > 1, "data.scale", "2 or more", self.scale)


@dataclasses.dataclass(frozen=True)
class Model(restoration.Model):
    """FSRCNN."""

    features: int = 56
    """Channels of the first convolution and of what is upsampled; the paper's d."""
    shrunk: int = 12
    """Channels in between; the paper's s."""
    mappings: int = 4
    """Convolutions in between; the paper's m."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("features", "shrunk"):
            configs.require(getattr(self, key) > 0, f"model.{key}", "positive", getattr(self, key))
        configs.require(self.mappings >= 0, "model.mappings", "0 or more", self.mappings)


@dataclasses.dataclass(frozen=True)
class Config(restoration.Config):
    """Super-resolution of photographs."""

    data: Data = Data()
    model: Model = Model()


class FSRCNN(nn.Module):
    """Fast super-resolution: all but the last layer work on the small image.

    Dong et al., "Accelerating the Super-Resolution Convolutional Neural Network", arXiv:1608.00367.
    Here the layers add to a bicubic interpolation, so that training begins where that ends; the
    last one starts near 0 and without checkerboard artifacts, by `icnr`.

    Attributes:
      features, shrunk, mappings: the paper's d, s, m.
      scale: how many times as large images become.
      kernel_regularizer, kernel_constraint: for the transposed convolution `up`.
      dtype: of the activations.
    """

    features: int
    shrunk: int
    mappings: int
    scale: int
    kernel_regularizer: Regularizer | None = None
    kernel_constraint: Constraint | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps `(n, height, width, 1)` to `(n, scale * height, scale * width, 1)`, in float32."""
        count, height, width, _ = images.shape
        x = images - 0.5
        for filters, size in [
            (self.features, 5),
            (self.shrunk, 1),
            *[(self.shrunk, 3)] * self.mappings,
            (self.features, 1),
        ]:
            initializer = nn.initializers.he_normal()
            x = nn.Conv(filters, (size, size), dtype=self.dtype, kernel_init=initializer)(x)
            x = nn.PReLU()(x)
        detail = Conv2DTranspose(
            1,
            3 * self.scale,
            strides=self.scale,
            padding="same",
            kernel_initializer=icnr(self.scale, nn.initializers.normal(1e-3)),
            kernel_regularizer=self.kernel_regularizer,
            kernel_constraint=self.kernel_constraint,
            dtype=self.dtype,
            name="up",
        )(x)
        shape = (count, self.scale * height, self.scale * width, 1)
        smooth = jax.image.resize(images.astype(jnp.float32), shape, "cubic")
        return smooth + detail.astype(jnp.float32)

    @property
    def reach(self) -> int:
        """How far from a pixel the model looks, in pixels of the small image."""
        # Two by the 5 x 5 and one by each 3 x 3; one by the last, whose kernel has the width of
        # three small pixels. The bicubic interpolation looks 2 far, which is less.
        return 2 + self.mappings + 1


def build(config: Config) -> Superres:
    """The task, with its photographs loaded."""
    return Superres(config)


class Superres(restoration.Restoration):
    """Makes small photographs large; see `task.Task`."""

    config: Config

    def __init__(self, config: Config) -> None:
        model = FSRCNN(
            config.model.features,
            config.model.shrunk,
            config.model.mappings,
            config.data.scale,
            kernel_regularizer=config.model.regularizer(),
            kernel_constraint=config.model.constraint(),
            dtype=config.train.compute_dtype,
        )
        super().__init__(config, model, channels=1, scale=config.data.scale, reach=model.reach)

    def examples(self, image: np.ndarray) -> list[np.ndarray]:
        """The luminance, shrunk and as it is."""
        return list(self.pair(image))

    def pair(self, image: np.ndarray) -> Pair:
        """The luminance of a photograph, shrunk and whole."""
        scale = self.config.data.scale
        good = photos.trim(image, scale)
        return Pair(photos.luminance(photos.shrink(good, scale)), photos.luminance(good))

    def pairs(self, rng: np.random.Generator, crops: list[np.ndarray]) -> Pair:
        """Small crops beside large ones."""
        return Pair(*crops)

    @cached_property
    def heldout(self) -> Mapping[str, Pair]:
        """The luminance of scikit-learn's photographs."""
        return {name: self.pair(image) for name, image in photos.heldout().items()}

    @cached_property
    def rivals(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """Bicubic interpolation."""
        return {"bicubic": {name: self.enlarge(pair.bad) for name, pair in self.heldout.items()}}

    def shown(self, state: State, name: str) -> list[np.ndarray]:
        """In colour: bicubic interpolation, the model, the truth."""
        scale = self.config.data.scale
        good = photos.trim(photos.heldout()[name], scale)
        return [*self.predict(state, photos.shrink(good, scale)), good]

    def predict(self, state: State, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A picture enlarged by bicubic interpolation, and with the luminance that the model gives.

        What is added to red, green and blue alike is added to the luma, their weighted mean.
        """
        before = self.enlarge(image)
        luma = self.restore(state, photos.luminance(image))
        return before, before + luma - photos.luminance(before)

    def enlarge(self, image: np.ndarray) -> np.ndarray:
        """An image enlarged by bicubic interpolation."""
        scale, (height, width, _) = self.config.data.scale, image.shape
        return photos.resize(image, scale * height, scale * width)
