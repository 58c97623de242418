"""The task `gan`: generates digits from noise, by a DCGAN (arXiv:1511.06434) in Flax nnx."""

from __future__ import annotations

import dataclasses
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import DTypeLike

import config as configs
import digits
import pictures
from digits import Digits
from frechet import Critic
from task import DEVICES, Batch, Figures, fitting, in_pieces, mean
from upconv import transforms
from upconv.nnx import Conv2DTranspose, rules
from upconv.rules import Constraint, Regularizer

ROWS, COLUMNS = 6, 16  # of the picture


@dataclasses.dataclass(frozen=True)
class Model(configs.Declarations):
    """The generator and the discriminator."""

    latent: int = 64
    """How many standard normal numbers an image is generated from."""
    features: tuple[int, int] = (64, 32)
    """Channels of the generator at 7 x 7 and 14 x 14 pixels, the smallest image first; in reverse,
    the discriminator's."""
    kernel_size: int = 4
    """Size of the kernels of transposed and plain convolutions."""
    averaging: float = 0.99
    """The generator that is judged is an exponential average over the steps, with this decay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        configs.require(self.latent > 0, "model.latent", "positive", self.latent)
        configs.require(
            min(self.features) > 0, "model.features", "two positive integers", self.features
        )
        configs.require(self.kernel_size > 0, "model.kernel_size", "positive", self.kernel_size)
        configs.require(
            0 <= self.averaging < 1, "model.averaging", "from 0 to below 1", self.averaging
        )


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Adam for each of the two, with learning rates that fall to 0 along a cosine."""

    generator: float = 1e-3
    """The generator's learning rate at the first step."""
    discriminator: float = 4e-4
    """The discriminator's learning rate at the first step."""
    momentum: float = 0.5
    """Adam's first decay rate."""

    def __post_init__(self) -> None:
        for key in ("generator", "discriminator"):
            rate = getattr(self, key)
            configs.require(0 < rate < float("inf"), f"optimizer.{key}", "positive", rate)
        good = 0 <= self.momentum < 1
        configs.require(good, "optimizer.momentum", "from 0 to below 1", self.momentum)


@dataclasses.dataclass(frozen=True)
class Config(configs.Config):
    """A GAN of digits."""

    data: Digits = Digits()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()


class Generator(nnx.Module):
    """Maps codes `(n, latent)` to images `(n, 28, 28, 1)` in [0, 1]."""

    def __init__(
        self,
        latent: int,
        features: tuple[int, int],
        kernel_size: int,
        kernel_regularizer: Regularizer | None,
        kernel_constraint: Constraint | None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        first, second = features
        up: Any = {
            "kernel_size": kernel_size,
            "strides": 2,
            "padding": "same",
            "kernel_regularizer": kernel_regularizer,
            "kernel_constraint": kernel_constraint,
            "dtype": dtype,
            "rngs": rngs,
        }
        # Over the whole batch, wherever it is: the devices share their means and variances.
        norm: Any = {"axis_name": DEVICES, "momentum": 0.9, "dtype": dtype, "rngs": rngs}
        self.first = first
        self.dense = nnx.Linear(latent, 7 * 7 * first, dtype=dtype, rngs=rngs)
        self.norm1 = nnx.BatchNorm(first, **norm)
        self.up1 = Conv2DTranspose(first, second, **up)
        self.norm2 = nnx.BatchNorm(second, **norm)
        self.up2 = Conv2DTranspose(second, 1, **up)

    def __call__(self, codes: jax.Array) -> jax.Array:
        """Generates images."""
        x = self.dense(codes).reshape(-1, 7, 7, self.first)
        x = self.up1(nnx.relu(self.norm1(x)))
        x = self.up2(nnx.relu(self.norm2(x)))
        return nnx.sigmoid(x.astype(jnp.float32))


class Discriminator(nnx.Module):
    """Maps images `(n, 28, 28, 1)` to logits `(n,)` of being real; works only within a step."""

    def __init__(
        self, features: tuple[int, int], kernel_size: int, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        second, first = features
        kernel = (kernel_size, kernel_size)
        self.conv1 = nnx.Conv(1, first, kernel, strides=2, dtype=dtype, rngs=rngs)
        self.conv2 = nnx.Conv(first, second, kernel, strides=2, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(7 * 7 * second, 1, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Judges images, which it normalizes over the batch."""
        x = nnx.leaky_relu(self.conv1(images), 0.2)
        x = nnx.leaky_relu(normalized(self.conv2(x)), 0.2)
        return self.head(x.reshape(len(x), -1))[:, 0].astype(jnp.float32)


def normalized(x: jax.Array) -> jax.Array:
    """Brings every channel to mean 0 and variance 1 over a batch and the devices that share it."""
    wide = x.astype(jnp.float32)
    average = jax.lax.pmean(wide.mean(axis=(0, 1, 2)), DEVICES)
    variance = jax.lax.pmean(jnp.square(wide - average).mean(axis=(0, 1, 2)), DEVICES)
    return ((wide - average) * jax.lax.rsqrt(variance + 1e-5)).astype(x.dtype)


class State(NamedTuple):
    """What a step changes: nnx states of parameters, and of the statistics of the generator."""

    generator: Any
    statistics: Any
    averaged: Any
    discriminator: Any
    generator_opt: optax.OptState
    discriminator_opt: optax.OptState


def build(config: Config) -> GAN:
    """The task, with its digits split as the config says."""
    return GAN(config, digits.load(config.data.heldout, config.train.seed))


class GAN:
    """Generates digits from noise; see `task.Task`."""

    def __init__(self, config: Config, split: digits.Split) -> None:
        self.config = config
        self.split = split
        generator, discriminator = nnx.eval_shape(lambda: self.models(jax.random.key(0)))
        self.rules = fitting(rules(generator), nnx.state(generator, nnx.Param))
        self.g_graph, self.d_graph = nnx.graphdef(generator), nnx.graphdef(discriminator)
        self.g_optimizer = transforms.with_rules(self.adam(config.optimizer.generator), self.rules)
        self.d_optimizer = self.adam(config.optimizer.discriminator)
        self.generate = jax.jit(self.generated)
        self.about = [f"{len(split.train)} images to train on, {len(split.heldout)} held out"]

    def adam(self, rate: float) -> optax.GradientTransformation:
        """Adam, with a rate that falls along the cosine."""
        schedule = optax.cosine_decay_schedule(rate, self.config.train.steps)
        return optax.adam(schedule, b1=self.config.optimizer.momentum)

    def models(self, key: jax.Array) -> tuple[Generator, Discriminator]:
        """Generator and discriminator, with fresh parameters."""
        model, dtype = self.config.model, self.config.train.compute_dtype
        rngs = nnx.Rngs(key)
        generator = Generator(
            model.latent,
            model.features,
            model.kernel_size,
            model.regularizer(),
            model.constraint(),
            dtype,
            rngs,
        )
        return generator, Discriminator(model.features, model.kernel_size, dtype, rngs)

    def init(self, key: jax.Array) -> State:
        """Fresh parameters, and both optimizers' moments."""
        generator, discriminator = self.models(key)
        params, statistics = nnx.state(generator, nnx.Param, nnx.BatchStat)
        judging = nnx.state(discriminator)
        return State(
            generator=params,
            statistics=statistics,
            averaged=(params, statistics),
            discriminator=judging,
            generator_opt=self.g_optimizer.init(params),
            discriminator_opt=self.d_optimizer.init(judging),
        )

    def batch(self, rng: np.random.Generator) -> Batch:
        """Training images, shifted at random, and as many codes."""
        count = self.config.train.batch_size
        images = digits.sample(rng, self.split.train, count, self.config.data.shift)
        codes = rng.standard_normal((count, self.config.model.latent), dtype=np.float32)
        return {"images": images, "codes": codes}

    def step(self, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        """One update of both, each against what the other was before."""

        def generated(params: Any) -> tuple[jax.Array, Any]:
            generator = nnx.merge(self.g_graph, params, state.statistics, copy=True)
            return generator(batch["codes"]), nnx.state(generator, nnx.BatchStat)

        def judged(params: Any, images: jax.Array) -> jax.Array:
            return nnx.merge(self.d_graph, params)(images)

        def discriminator_loss(params: Any, fake: jax.Array) -> jax.Array:
            # Apart, since images that are normalized together tell too much about each other.
            real, false = judged(params, batch["images"]), judged(params, fake)
            return mean(nnx.softplus(-real)) + mean(nnx.softplus(false))

        def generator_loss(fake: jax.Array) -> jax.Array:
            return mean(nnx.softplus(-judged(state.discriminator, fake)))

        fake, pull, statistics = jax.vjp(generated, state.generator, has_aux=True)
        d_loss, d_gradient = jax.value_and_grad(discriminator_loss)(state.discriminator, fake)
        updates, discriminator_opt = self.d_optimizer.update(
            d_gradient, state.discriminator_opt, state.discriminator
        )
        discriminator = optax.apply_updates(state.discriminator, updates)

        loss, image_gradient = jax.value_and_grad(generator_loss)(fake)
        (g_gradient,) = pull(image_gradient)
        updates, generator_opt = self.g_optimizer.update(
            g_gradient, state.generator_opt, state.generator
        )
        generator = optax.apply_updates(state.generator, updates)
        averaged = optax.incremental_update(
            (generator, statistics), state.averaged, 1 - self.config.model.averaging
        )
        new = State(
            generator, statistics, averaged, discriminator, generator_opt, discriminator_opt
        )
        return new, {"loss": loss, "discriminator_loss": d_loss}

    def params(self, state: State) -> Any:
        """The generator's parameters, which are those under constraints."""
        return state.generator

    def evaluate(self, state: State) -> Figures:
        """The Fréchet distance, and its ratio to the untrained generator's."""
        distance = self.critic.distance(self.samples(state, len(self.split.heldout)))
        return {
            "frechet": distance,
            "ratio": distance / self.untrained,
            "penalty": float(transforms.penalty(state.generator, self.rules)),
        }

    def pictures(self, state: State) -> dict[str, np.ndarray]:
        """Generated digits, always from the same codes."""
        images = self.samples(state, ROWS * COLUMNS)
        rows = list(images.reshape(ROWS, COLUMNS, *images.shape[1:]))
        return {"samples": pictures.enlarged(pictures.grid(rows))}

    def baselines(self) -> Figures:
        """The distances of other images, and how good the classifier behind them is."""
        return {
            "untrained_frechet": self.untrained,
            "heldout_frechet": self.critic.heldout,
            "classifier_accuracy": self.critic.accuracy,
        }

    @cached_property
    def critic(self) -> Critic:
        """What judges the images; trained when it is first asked for, as the seed decides."""
        return Critic(self.split, self.config.train.seed)

    @cached_property
    def untrained(self) -> float:
        """The distance of the digits of a generator before its first step."""
        state = jax.jit(self.init)(jax.random.key(self.config.train.seed))
        return self.critic.distance(self.samples(state, len(self.split.heldout)))

    def samples(self, state: State, count: int) -> np.ndarray:
        """Generated images, from the same codes at every call."""
        rng = np.random.default_rng(self.config.train.seed)
        codes = rng.standard_normal((count, self.config.model.latent), dtype=np.float32)
        return in_pieces(partial(self.generate, state.averaged), codes)

    def generated(self, averaged: Any, codes: jax.Array) -> jax.Array:
        """Images by the averaged generator, with the statistics that it has learned."""
        generator = nnx.merge(self.g_graph, *averaged)
        return nnx.view(generator, use_running_average=True)(codes)
