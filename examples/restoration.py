"""What super-resolution and denoising share: a model that is shown bad images beside good ones."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import config as configs
import photos
from config import ConfigError, require
from task import Figures, mean
from upconv import linen, transforms


@dataclasses.dataclass(frozen=True)
class Data:
    """The photographs that training draws its crops from; a base for sections `data`."""

    photos: tuple[str, ...] = ("astronaut", "chelsea", "coffee", "motorcycle", "rocket")
    """Names of functions in skimage.data, of those whose photographs its wheel holds."""
    sizes: tuple[float, ...] = (1.0,)
    """Every photograph is there in each of these sizes, 1.0 being its own."""
    crop: int = 32
    """Height and width of the crops, in pixels of what the model is shown."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.photos if name not in photos.TRAINING]
        known = ", ".join(photos.TRAINING)
        require(not unknown, "data.photos", f"some of {known}", ", ".join(unknown))
        require(bool(self.photos), "data.photos", "one name or more", self.photos)
        good = bool(self.sizes) and all(0 < size <= 1 for size in self.sizes)
        require(good, "data.sizes", "one or more numbers above 0, none above 1", self.sizes)
        require(self.crop > 0, "data.crop", "positive", self.crop)


@dataclasses.dataclass(frozen=True)
class Model(configs.Declarations):
    """How pictures are restored; a base for sections `model`."""

    self_ensemble: bool = False
    """Restore pictures in all eight orientations, and take the mean: better, 8 times slower."""


@dataclasses.dataclass(frozen=True)
class Optimizer(configs.Optimizer):
    """Adam, its learning rate falling to 0 along a cosine."""

    learning_rate: float = 2e-3
    """At the first step."""


@dataclasses.dataclass(frozen=True)
class Config(configs.Config):
    """A base for the tasks' own."""

    data: Data = Data()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()


class State(NamedTuple):
    """What a step changes."""

    params: Any
    opt_state: optax.OptState


class Pair(NamedTuple):
    """What the model is shown, and what it should make of it."""

    bad: np.ndarray
    good: np.ndarray


class Restoration(ABC):
    """A `task.Task`, but for what the images are and how they are measured.

    Args:
      config: the run's.
      model: maps images of `channels` channels to better ones, `scale` times as large.
      channels: of the images.
      scale: 1 where the size stays.
      reach: how far from a pixel the model looks, in pixels of what it is shown.
      grid: what the height and the width that the model takes must be divisible by.
    """

    TILE = 128  # large enough for the margins to cost little, small enough for any memory

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        *,
        channels: int,
        scale: int = 1,
        reach: int,
        grid: int = 1,
    ) -> None:
        self.config, self.model, self.scale = config, model, scale
        # Tile and margin are multiples of the grid, so that all tiles see it in the same place.
        self.margin = -(-reach // grid) * grid
        self.tile = 2 * self.margin + -(-self.TILE // grid) * grid
        require(config.data.crop % grid == 0, "data.crop", f"divisible by {grid}", config.data.crop)
        self.views = self.load()
        self.about = self.describe()
        self.example = np.zeros((1, config.data.crop, config.data.crop, channels), np.float32)
        self.rules = linen.rules(model, self.example)
        rate = optax.cosine_decay_schedule(config.optimizer.learning_rate, config.train.steps)
        self.optimizer = transforms.with_rules(optax.adam(rate), self.rules)
        self.apply = jax.jit(self.outputs)

    @abstractmethod
    def examples(self, image: np.ndarray) -> list[np.ndarray]:
        """The views of a photograph that crops are taken of, what the model is shown first."""

    @abstractmethod
    def pairs(self, rng: np.random.Generator, crops: list[np.ndarray]) -> Pair:
        """A batch, of crops of the views."""

    @property
    @abstractmethod
    def heldout(self) -> Mapping[str, Pair]:
        """The whole photographs that figures are of, by name."""

    @property
    @abstractmethod
    def rivals(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """What others make of the held-out photographs, by method and name."""

    @abstractmethod
    def shown(self, state: State, name: str) -> list[np.ndarray]:
        """Of a held-out photograph: what there is without the model, with it, and the truth."""

    @abstractmethod
    def predict(self, state: State, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A picture of any size, grey or in colour, without the model and with it."""

    def load(self) -> list[list[np.ndarray]]:
        """The views of all photographs, in all sizes."""
        views = []
        for image in photos.training(self.config.data.photos):
            for size in self.config.data.sizes:
                height, width = (round(size * length) for length in image.shape[:2])
                views.append(self.examples(photos.resize(image, height, width)))
        smallest = min(min(view[0].shape[:2]) for view in views)
        if self.config.data.crop > smallest:
            raise ConfigError(
                f"data.crop: the smallest photograph leaves {smallest} pixels, "
                f"got {self.config.data.crop}"
            )
        return views

    def describe(self) -> list[str]:
        """How much there is to train on."""
        pixels = sum(view[0].shape[0] * view[0].shape[1] for view in self.views)
        names = ", ".join(self.config.data.photos)
        return [f"{pixels:,} pixels of {names}; held out: {', '.join(self.heldout)}"]

    def init(self, key: jax.Array) -> State:
        """Fresh parameters, and Adam's moments."""
        params = self.model.init(key, self.example)["params"]
        return State(params, self.optimizer.init(params))

    def batch(self, rng: np.random.Generator) -> Pair:
        """Crops, turned and mirrored."""
        count, size = self.config.train.batch_size, self.config.data.crop
        return self.pairs(rng, photos.crops(rng, self.views, count, size))

    def step(self, state: State, batch: Pair) -> tuple[State, dict[str, jax.Array]]:
        """One update of the parameters."""

        def loss_fn(params: Any) -> jax.Array:
            # The squared error is what PSNR measures.
            return mean(jnp.square(self.outputs(params, batch.bad) - batch.good))

        loss, gradients = jax.value_and_grad(loss_fn)(state.params)
        updates, opt_state = self.optimizer.update(gradients, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state), {"loss": loss}

    def params(self, state: State) -> Any:
        """The model's."""
        return state.params

    def outputs(self, params: Any, images: Any) -> jax.Array:
        """What the model makes of images that suit it, in float32."""
        outputs: Any = self.model.apply({"params": params}, images)
        return outputs.astype(jnp.float32)

    def restore(self, state: State, image: np.ndarray) -> np.ndarray:
        """What the model makes of an image of any size, `(height, width, channels)`.

        As a self-ensemble, if the config says so: Lim et al., "Enhanced Deep Residual Networks for
        Single Image Super-Resolution", arXiv:1707.02921.
        """

        def restored(image: np.ndarray) -> np.ndarray:
            return photos.tiled(
                lambda tile: np.asarray(self.apply(state.params, tile)),
                image,
                tile=self.tile,
                margin=self.margin,
                scale=self.scale,
            )

        turns = range(8) if self.config.model.self_ensemble else range(1)
        views = [photos.turned_back(restored(photos.turned(image, i)), i) for i in turns]
        return np.mean(views, axis=0)

    def evaluate(self, state: State) -> Figures:
        """PSNR and SSIM on held-out photographs, and how far above the best rival's they are."""
        restored = {name: self.restore(state, pair.bad) for name, pair in self.heldout.items()}
        rivals = [self.quality(images) for images in self.rivals.values()]
        ours = self.quality(restored)
        gains = {
            key: {
                name: value - max(rival[key][name] for rival in rivals)
                for name, value in of.items()
            }
            for key, of in ours.items()
        }
        penalty = float(transforms.penalty(state.params, self.rules))
        return {"penalty": penalty, **flat(ours), **flat(gains, "_gain")}

    def baselines(self) -> Figures:
        """The rivals' PSNR and SSIM."""
        figures: Figures = {}
        for rival, images in self.rivals.items():
            figures |= {f"{rival}_{k}": v for k, v in flat(self.quality(images)).items()}
        return figures

    def pictures(self, state: State) -> dict[str, np.ndarray]:
        """A detail of every held-out photograph per row: see `shown`."""
        rows = [
            [photos.detail(name, image) for image in self.shown(state, name)]
            for name in self.heldout
        ]
        return {"restored": photos.sheet(rows)}

    def quality(self, images: Mapping[str, np.ndarray]) -> dict[str, Figures]:
        """PSNR and SSIM by photograph."""
        return {
            measure.__name__: {
                name: measure(pair.good, images[name]) for name, pair in self.heldout.items()
            }
            for measure in (photos.psnr, photos.ssim)
        }


def flat(quality: Mapping[str, Figures], suffix: str = "") -> Figures:
    """Figures by measure and photograph, their mean first, under one name each.

    >>> flat({"psnr": {"china": 27.0, "flower": 33.0}}, "_gain")
    {'psnr_gain': 30.0, 'psnr_gain_china': 27.0, 'psnr_gain_flower': 33.0}
    """
    figures: Figures = {}
    for measure, values in quality.items():
        figures[measure + suffix] = float(np.mean(list(values.values())))
        figures |= {f"{measure}{suffix}_{name}": value for name, value in values.items()}
    return figures
