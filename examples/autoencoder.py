"""The task `autoencoder`: encodes digits as a few numbers; compared with PCA by as many."""

from __future__ import annotations

import dataclasses
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
import optax

import config as configs
import digits
import encoder_decoder
import pictures
from digits import Digits
from supervised import State, Supervised
from task import Figures, in_pieces, mean
from upconv import transforms

COLUMNS = 16  # images in the picture


@dataclasses.dataclass(frozen=True)
class Model(configs.Declarations):
    """The autoencoder."""

    latent: int = 32
    """Numbers in the code of an image."""
    features: tuple[int, ...] = (24, 48)
    """Channels of the encoder, the largest image first; the decoder's are the same in reverse."""
    kernel_size: int = 4
    """Size of the kernels of the decoder's transposed convolutions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        configs.require(self.latent > 0, "model.latent", "positive", self.latent)
        good = bool(self.features) and min(self.features) > 0
        configs.require(good, "model.features", "one or more positive integers", self.features)
        configs.require(self.kernel_size > 0, "model.kernel_size", "positive", self.kernel_size)


@dataclasses.dataclass(frozen=True)
class Config(configs.Config):
    """An autoencoder of digits."""

    data: Digits = Digits()
    model: Model = Model()
    optimizer: configs.Optimizer = configs.Optimizer()


def build(config: Config) -> Autoencoder:
    """The task, with its digits split as the config says."""
    return Autoencoder(config, digits.load(config.data.heldout, config.train.seed))


class Autoencoder(Supervised):
    """Maps digits to codes and back; see `task.Task`."""

    def __init__(self, config: Config, split: digits.Split) -> None:
        self.config = config
        self.split = split
        model = build_model(config, split.train.shape[1:])
        super().__init__(model, split.train[:1], config.optimizer, config.train.steps)
        self.decode = jax.jit(lambda params, images: jax.nn.sigmoid(self.outputs(params, images)))
        self.about = [f"{len(split.train)} images to train on, {len(split.heldout)} held out"]

    def batch(self, rng: np.random.Generator) -> np.ndarray:
        """Training images, shifted at random."""
        count, shift = self.config.train.batch_size, self.config.data.shift
        return digits.sample(rng, self.split.train, count, shift)

    def loss(self, outputs: jax.Array, batch: jax.Array) -> jax.Array:
        """The cross entropy of pixels; the model's outputs are their logits."""
        # The squared error of a sigmoid has a plateau where everything is black; this has none.
        return mean(optax.sigmoid_binary_cross_entropy(outputs, batch))

    def evaluate(self, state: State) -> Figures:
        """The squared error on held-out images, and its ratio to PCA's."""
        error = squared_error(self.decoded(state.params, self.split.heldout), self.split.heldout)
        return {
            "penalty": float(transforms.penalty(state.params, self.rules)),
            "heldout_error": error,
            "ratio": error / self.baselines()["pca_error"],
        }

    def pictures(self, state: State) -> dict[str, np.ndarray]:
        """Held-out digits, and below them their reconstructions by the autoencoder and by PCA."""
        images = self.split.heldout[:COLUMNS]
        rows = [images, self.decoded(state.params, images), self.linear[:COLUMNS]]
        return {"reconstructions": pictures.enlarged(pictures.grid(rows))}

    def baselines(self) -> Figures:
        """PCA's squared error."""
        return {"pca_error": squared_error(self.linear, self.split.heldout)}

    @cached_property
    def linear(self) -> np.ndarray:
        """What PCA with as many numbers per image makes of the held-out images."""
        pca = digits.fit_pca(self.split.train, self.config.model.latent)
        return digits.reconstruct(pca, self.split.heldout)

    def decoded(self, params: Any, images: np.ndarray) -> np.ndarray:
        """What the model makes of images."""
        return in_pieces(partial(self.decode, params), images)


def build_model(config: Config, shape: tuple[int, ...]) -> encoder_decoder.EncoderDecoder:
    """The model for images of a shape `(height, width, channels)`."""
    height, width, channels = shape
    features = config.model.features
    scale = 2 ** len(features)
    if height % scale or width % scale:
        raise configs.ConfigError(
            f"{len(features)} halvings need images whose sides are divisible by {scale}, "
            f"these are {height} x {width}",
            key="model.features",
        )
    return encoder_decoder.EncoderDecoder(
        image_shape=(height, width, channels),
        latent=config.model.latent,
        features=features,
        kernel_size=config.model.kernel_size,
        kernel_regularizer=config.model.regularizer(),
        kernel_constraint=config.model.constraint(),
        dtype=config.train.compute_dtype,
    )


def squared_error(a: np.ndarray, b: np.ndarray) -> float:
    """The mean squared error over all pixels."""
    return float(np.mean(np.square(a - b)))
