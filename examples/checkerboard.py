"""Shows the checkerboard of transposed convolutions, before and after training, and measures it.

    python examples/checkerboard.py            # writes docs/images/checkerboard.png
    python examples/checkerboard.py --help

Two layers of stride 2 enlarge a photograph from a quarter of its height and width, with three kinds
of kernels: of a size that the stride does not divide, of a size that it divides, and of the latter
size but initialized by `icnr`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from PIL import Image, ImageDraw, ImageFont

import photos
import pictures
from upconv.initializers import Initializer, he_normal, icnr
from upconv.linen import Conv2DTranspose

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "checkerboard.png"


@dataclass(frozen=True)
class Config:
    """What is drawn, and where it is written.

    Attributes:
      steps: how many Adam takes on the one photograph before the second row is drawn.
      learning_rate: of Adam.
      features: channels between the two layers.
      seed: of the initial parameters.
      picture: where the picture is written.
    """

    steps: int = 25
    learning_rate: float = 3e-3
    features: int = 32
    seed: int = 0
    picture: Path = PICTURE

    def __post_init__(self) -> None:
        # As ValueErrors, which tyro shows.
        for key in ("steps", "learning_rate", "features"):
            if not 0 < (value := getattr(self, key)) < float("inf"):
                raise ValueError(f"{key}: must be positive and finite, got {value!r}")
        if not 0 <= self.seed < 2**63:  # JAX takes no larger ones
            raise ValueError(f"seed: must be from 0 to below 2**63, got {self.seed!r}")
        if reason := pictures.no_format(self.picture, "L"):
            raise ValueError(f"picture: {self.picture}: {reason}")


@dataclass(frozen=True)
class Kind:
    """A kind of kernel: its size, on both axes, and how it is initialized."""

    label: str
    kernel_size: int
    initializer: Initializer


KINDS = (
    Kind("5x5", 5, he_normal(strides=2)),
    Kind("4x4", 4, he_normal(strides=2)),
    Kind("4x4, icnr", 4, icnr(2)),
)


class Enlarge(nn.Module):
    """Makes an image four times as high and wide."""

    kind: Kind
    features: int

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """Maps `(height, width, 1)` to `(4 * height, 4 * width, 1)`."""

        def up(filters: int, activation: str | None) -> Conv2DTranspose:
            return Conv2DTranspose(
                filters,
                self.kind.kernel_size,
                strides=2,
                padding="same",
                activation=activation,
                kernel_initializer=self.kind.initializer,
            )

        return up(1, None)(up(self.features, "relu")(image))


def photograph() -> np.ndarray:
    """A cat's face, `(192, 192, 1)`: pixels in [0, 1], less their mean."""
    (cat,) = photos.training(["chelsea"])
    face = photos.luminance(cat)[40:232, 110:302]
    return face - face.mean()


def trained(
    model: Enlarge, small: np.ndarray, large: np.ndarray, config: Config, steps: int
) -> np.ndarray:
    """What the model makes of the small photograph after some steps towards the large one."""
    params = model.init(jax.random.key(config.seed), small)
    optimizer = optax.adam(config.learning_rate)

    @jax.jit
    def step(params: Any, state: Any, small: Any, large: Any) -> tuple[Any, Any]:
        gradient = jax.grad(lambda p: jnp.mean((model.apply(p, small) - large) ** 2))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state, small, large)
    return np.asarray(model.apply(params, small))


def checkerboard(image: np.ndarray, border: int = 8) -> float:
    """The part of an image's energy near the frequencies of patterns of period 2.

    Those are half a cycle per pixel along either axis or both; near is within 1/16 cycle per pixel
    on both axes. Energy is that of the image less its mean, in a Hann window, without the border.

    Args:
      image: `(height, width, 1)`.
      border: how many pixels to leave out at each side.

    Returns:
      From 0 to 1; 1 for a checkerboard.

    >>> board = np.indices((64, 64)).sum(0) % 2.0
    >>> round(checkerboard(board[..., None]), 2)
    1.0
    """
    inner = image[border:-border, border:-border, 0].astype(np.float64)
    window = np.multiply.outer(np.hanning(inner.shape[0]), np.hanning(inner.shape[1]))
    inner = (inner - np.average(inner, weights=window)) * window
    energy = np.abs(np.fft.fft2(inner)) ** 2
    rows, columns = (np.abs(np.fft.fftfreq(n)) for n in inner.shape)
    near = {f: (np.abs(rows - f) <= 1 / 16, np.abs(columns - f) <= 1 / 16) for f in (0, 0.5)}
    found = sum(
        energy[np.ix_(near[f][0], near[g][1])].sum() for f, g in ((0, 0.5), (0.5, 0), (0.5, 0.5))
    )
    return float(found / energy.sum())


def measure(config: Config, steps: int) -> dict[str, tuple[np.ndarray, float]]:
    """For each kind of kernel, the image that it makes and its checkerboard."""
    large = photograph()
    small = photos.resize(large, *(n // 4 for n in large.shape[:2]))
    found = {}
    for kind in KINDS:
        image = trained(Enlarge(kind, config.features), small, large, config, steps)
        found[kind.label] = image, checkerboard(image)
    return found


# ------------------------------------------------------------------ the picture

SIDE, GAP, LINE = 104, 8, 20


def panel(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The middle of an image, twice as large, with the photograph's brightness and contrast."""
    middle = tuple(slice((n - SIDE) // 2, (n + SIDE) // 2) for n in like.shape[:2])
    part, wanted = image[middle][..., 0], like[middle][..., 0]
    # A layer that has not learned yet has a contrast of its own, and may show a negative.
    slope, offset = np.polyfit(part.ravel(), wanted.ravel(), 1)
    if abs(slope * part.std()) < 0.6 * wanted.std():
        slope = np.copysign(wanted.std() / part.std(), slope)
        offset = wanted.mean() - slope * part.mean()
    return pictures.enlarged(pictures.to_uint8(slope * part + offset + 0.5))


def picture(rows: dict[str, list[tuple[str, np.ndarray]]]) -> Image.Image:
    """Panels in labelled rows, each with its own label above it."""
    across = max(map(len, rows.values()))
    width = across * (2 * SIDE + GAP) + GAP
    height = len(rows) * (2 * SIDE + 2 * LINE + GAP) + GAP
    sheet = Image.new("L", (width, height), 255)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for row, (title, panels) in enumerate(rows.items()):
        y = GAP + row * (2 * SIDE + 2 * LINE + GAP)
        draw.text((GAP, y), title, fill=0, font=font)
        for column, (label, image) in enumerate(panels):
            x = GAP + column * (2 * SIDE + GAP)
            draw.text((x, y + LINE), label, fill=90, font=font)
            sheet.paste(Image.fromarray(image), (x, y + 2 * LINE))
    return sheet


def main(config: Config, say: Callable[[str], None] = print) -> None:
    """Measures the checkerboards, says how strong they are, and draws the picture."""
    config.picture.parent.mkdir(parents=True, exist_ok=True)
    large = photograph()
    rows = {}
    for steps in (0, config.steps):
        title = f"after {steps} steps" if steps else "at initialization"
        found = measure(config, steps) | {"photograph": (large, checkerboard(large))}
        for label, (_, energy) in found.items():
            say(f"{title:18} {label:12} {energy:9.3%} of the energy at period 2")
        rows[f"{title}: share of the energy at period 2"] = [
            (f"{label}: {100 * energy:#.2g}".rstrip(".") + " %", panel(image, large))
            for label, (image, energy) in found.items()
        ]
    picture(rows).save(config.picture, optimize=True)
    say(f"the picture is {config.picture}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
