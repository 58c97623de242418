"""The model of the task `autoencoder`, in Flax linen."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from upconv.linen import Conv2DTranspose
from upconv.rules import Constraint, Regularizer


class Encoder(nn.Module):
    """Maps images to codes; every convolution halves height and width."""

    features: tuple[int, ...]
    latent: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(n, height, width, channels)` to `(n, latent)`."""
        for channels in self.features:
            x = nn.gelu(nn.Conv(channels, (4, 4), strides=2, dtype=self.dtype)(x))
        return nn.Dense(self.latent, dtype=self.dtype)(x.reshape(len(x), -1))


class Decoder(nn.Module):
    """Maps codes to the logits of images; every transposed convolution doubles height and width.

    Attributes:
      image_shape: height, width and channels of the images.
      features: channels before each of the transposed convolutions `up1`, `up2`, ...
      kernel_size: of the transposed convolutions.
      kernel_regularizer: for their kernels.
      kernel_constraint: for their kernels.
      dtype: of the activations.
    """

    image_shape: tuple[int, int, int]
    features: tuple[int, ...]
    kernel_size: int
    kernel_regularizer: Regularizer | None = None
    kernel_constraint: Constraint | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, codes: jax.Array) -> jax.Array:
        """Maps `(n, latent)` to `(n, *image_shape)`."""
        height, width, channels = self.image_shape
        scale = 2 ** len(self.features)
        smallest = (height // scale, width // scale, self.features[0])
        x = nn.gelu(nn.Dense(math.prod(smallest), dtype=self.dtype)(codes)).reshape(-1, *smallest)
        for i, filters in enumerate((*self.features[1:], channels), start=1):
            x = Conv2DTranspose(
                filters,
                self.kernel_size,
                strides=2,
                padding="same",
                kernel_regularizer=self.kernel_regularizer,
                kernel_constraint=self.kernel_constraint,
                dtype=self.dtype,
                name=f"up{i}",
            )(x)
            x = nn.gelu(x) if i < len(self.features) else x
        return x


class EncoderDecoder(nn.Module):
    """Maps images to logits of images, through a code of `latent` numbers.

    Attributes:
      image_shape: height, width and channels; height and width are divisible by
        `2 ** len(features)`.
      latent: the length of the code.
      features: channels of the encoder, from the largest image to the smallest; the decoder's are
        the same in reverse.
      kernel_size: of the decoder's transposed convolutions.
      kernel_regularizer: for the kernels of the decoder's transposed convolutions.
      kernel_constraint: for the same kernels.
      dtype: of the activations.
    """

    image_shape: tuple[int, int, int]
    latent: int
    features: tuple[int, ...]
    kernel_size: int
    kernel_regularizer: Regularizer | None = None
    kernel_constraint: Constraint | None = None
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        """Makes the two halves."""
        self.encoder = Encoder(self.features, self.latent, self.dtype)
        self.decoder = Decoder(
            self.image_shape,
            self.features[::-1],
            self.kernel_size,
            self.kernel_regularizer,
            self.kernel_constraint,
            self.dtype,
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps `(n, *image_shape)` to the logits of as many images."""
        return self.decoder(self.encoder(images))
