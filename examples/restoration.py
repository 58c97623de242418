"""What super-resolution and denoising share: a model that is shown bad images beside good ones."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import config as configs
import photos
from supervised import State, Supervised
from task import Figures, mean
from upconv import transforms


@dataclasses.dataclass(frozen=True)
class Data:
    """The photographs that training draws its crops from; a base class for `data` sections."""

    photos: tuple[str, ...] = ("astronaut", "chelsea", "coffee", "motorcycle", "rocket")
    """Names of functions in skimage.data whose photographs come with its wheel."""
    sizes: tuple[float, ...] = (1.0,)
    """Every photograph is used in each of these sizes; 1.0 is its own."""
    crop: int = 32
    """Height and width of the crops, in pixels of what the model is shown."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.photos if name not in photos.TRAINING]
        known = ", ".join(photos.TRAINING)
        configs.require(not unknown, "data.photos", f"some of {known}", ", ".join(unknown))
        configs.require(bool(self.photos), "data.photos", "one name or more", self.photos)
        good = bool(self.sizes) and all(0 < size <= 1 for size in self.sizes)
        configs.require(good, "data.sizes", "one or more numbers above 0, none above 1", self.sizes)
        configs.require(self.crop > 0, "data.crop", "positive", self.crop)


@dataclasses.dataclass(frozen=True)
class Model(configs.Declarations):
    """How pictures are restored; a base class for `model` sections."""

    self_ensemble: bool = False
    """Restore pictures in all eight orientations, and take the mean: better, but 8 times slower."""


@dataclasses.dataclass(frozen=True)
class Config(configs.Config):
    """A base class for the configs of the tasks."""

    data: Data = Data()
    model: Model = Model()
    optimizer: configs.Optimizer = configs.Optimizer()


class Pair(NamedTuple):
    """What the model is shown, and what it should make of it."""

    bad: np.ndarray
    good: np.ndarray


class Restoration(Supervised):
    """A `task.Task`, except for what the images are and how they are measured.

    Args:
      config: the run's.
      model: maps images of `channels` channels to better ones, `scale` times as large.
      channels: how many the images have.
      scale: how much larger the model makes images; 1 if it keeps their size.
      reach: how far from a pixel the model looks, in pixels of what it is shown.
      grid: what the height and the width of the model's inputs must be divisible by.
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
        self.config, self.scale = config, scale
        # Tile and margin are multiples of the grid, so that all tiles see it in the same place.
        self.margin = -(-reach // grid) * grid
        self.tile = 2 * self.margin + -(-self.TILE // grid) * grid
        configs.require(
            config.data.crop % grid == 0, "data.crop", f"divisible by {grid}", config.data.crop
        )
        self.views = self.load()
        self.about = self.describe()
        example = np.zeros((1, config.data.crop, config.data.crop, channels), np.float32)
        super().__init__(model, example, config.optimizer, config.train.steps)
        self.apply = jax.jit(self.outputs)

    @abstractmethod
    def examples(self, image: np.ndarray) -> list[np.ndarray]:
        """The views of a photograph to take crops of; the first is what the model is shown."""

    @abstractmethod
    def pairs(self, rng: np.random.Generator, crops: list[np.ndarray]) -> Pair:
        """A batch, made of crops of the views."""

    @property
    @abstractmethod
    def heldout(self) -> Mapping[str, Pair]:
        """The photographs that the figures are about, whole and by name."""

    @property
    @abstractmethod
    def rivals(self) -> Mapping[str, Mapping[str, np.ndarray]]:
        """What others make of the held-out photographs, by method and name."""

    @abstractmethod
    def shown(self, state: State, name: str) -> list[np.ndarray]:
        """A held-out photograph without the model, with it, and as it should be."""

    @abstractmethod
    def predict(self, state: State, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A picture of any size, grey or in colour, without the model and with it."""

    def load(self) -> list[list[np.ndarray]]:
        """The views of all photographs, in all sizes."""
        data = self.config.data
        sized = [
            (image, [round(size * length) for length in image.shape[:2]])
            for image in photos.training(data.photos)
            for size in data.sizes
        ]
        smallest = min(length for _, lengths in sized for length in lengths)
        expected = "large enough to leave pixels of every photograph"
        configs.require(smallest > 0, "data.sizes", expected, data.sizes)
        if data.crop > smallest // self.scale:
            raise configs.ConfigError(
                f"the smallest photograph leaves {smallest // self.scale} pixels, got {data.crop}",
                key="data.crop",
            )
        return [self.examples(photos.resize(image, *lengths)) for image, lengths in sized]

    def describe(self) -> list[str]:
        """How much there is to train on."""
        pixels = sum(view[0].shape[0] * view[0].shape[1] for view in self.views)
        names = ", ".join(self.config.data.photos)
        return [f"{pixels:,} pixels of {names}; held out: {', '.join(self.heldout)}"]

    def batch(self, rng: np.random.Generator) -> Pair:
        """Crops, turned and mirrored."""
        count, size = self.config.train.batch_size, self.config.data.crop
        return self.pairs(rng, photos.crops(rng, self.views, count, size))

    def inputs(self, batch: Pair) -> np.ndarray:
        """The bad images."""
        return batch.bad

    def loss(self, outputs: jax.Array, batch: Pair) -> jax.Array:
        """The squared error, which is what PSNR measures."""
        return mean(jnp.square(outputs - batch.good))

    def restore(self, state: State, image: np.ndarray) -> np.ndarray:
        """What the model makes of an image of any size, `(height, width, channels)`.

        If the config says so, by a self-ensemble: Lim et al., "Enhanced Deep Residual Networks for
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
        return {"penalty": penalty, **with_means(ours), **with_means(gains, "_gain")}

    def baselines(self) -> Figures:
        """The rivals' PSNR and SSIM."""
        figures: Figures = {}
        for rival, images in self.rivals.items():
            found = with_means(self.quality(images))
            figures |= {f"{rival}_{key}": value for key, value in found.items()}
        return figures

    def pictures(self, state: State) -> dict[str, np.ndarray]:
        """A row of details for every held-out photograph; see `shown`."""
        rows = [
            [photos.detail(name, image) for image in self.shown(state, name)]
            for name in self.heldout
        ]
        return {"restored": photos.sheet(rows)}

    def quality(self, images: Mapping[str, np.ndarray]) -> dict[str, Figures]:
        """PSNR and SSIM by photograph."""
        measures = {"psnr": photos.psnr, "ssim": photos.ssim}
        return {
            key: {name: measure(pair.good, images[name]) for name, pair in self.heldout.items()}
            for key, measure in measures.items()
        }


def with_means(quality: Mapping[str, Figures], suffix: str = "") -> Figures:
    """Figures by measure and photograph under one name each, after the mean of each measure.

    >>> with_means({"psnr": {"china": 27.0, "flower": 33.0}}, "_gain")
    {'psnr_gain': 30.0, 'psnr_gain_china': 27.0, 'psnr_gain_flower': 33.0}
    """
    figures: Figures = {}
    for measure, values in quality.items():
        figures[measure + suffix] = float(np.mean(list(values.values())))
        figures |= {f"{measure}{suffix}_{name}": value for name, value in values.items()}
    return figures
