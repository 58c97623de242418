"""Restores a picture with a model that train.py has trained: enlarges it, or removes its noise.

    python examples/predict.py runs/photos_superres PICTURE
    python examples/predict.py runs/photos_denoise PICTURE [--add-noise]

It writes PICTURE_superres.png or PICTURE_denoise.png beside the picture, and `..._strip.png`, which
shows the middle of the picture before and after the model. Pictures may have any size, be grey or
in colour, and have transparent parts.

Exit status: 2, after a message of one line, for anything that cannot be used.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro
from jax.sharding import SingleDeviceSharding
from PIL import Image, ImageOps, UnidentifiedImageError

import config as configs
import photos
import pictures
import restoration
from checkpoint import CheckpointError, Checkpoints
from denoise import Denoise
from restoration import Restoration
from supervised import State
from task import build

STRIP = 480
"""Height and width, at most, of what the strip shows twice."""


class PictureError(ValueError):
    """A picture that cannot be read or written; the message names its file."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the command line asks for."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of the run whose newest checkpoint is to be used."""
    picture: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
    """The picture's file, in any format that Pillow reads."""
    output: Path | None = None
    """The file to write instead, in any format that Pillow writes."""
    add_noise: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """First add the noise that the model was trained for, to see it removed again."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace files that exist."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
      pixels: `(height, width, 1 or 3)`, as `photos` has them.
      alpha: `(height, width, 1)`, how opaque it is; None if it is opaque everywhere.
      profile: the ICC profile of its file, if there is one; it may be of another colour space.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    profile: bytes | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Restores a picture, and returns the exit status."""
    arguments = tyro.cli(Arguments, prog="predict.py", description=__doc__, args=argv)
    try:
        predict(arguments)
    except (CheckpointError, configs.ConfigError, PictureError) as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 2
    return 0


def predict(arguments: Arguments) -> None:
    """Restores the picture that the arguments name, and says where the results are."""
    picture = read(arguments.picture)
    task, state = restored(arguments.run)
    output = arguments.output or arguments.picture.with_name(
        f"{arguments.picture.stem}_{task.config.task}.png"
    )
    strip = output.with_name(f"{output.stem}_strip.png")
    for path, mode in ((output, as_image(picture).mode), (strip, "RGB")):
        check_writable(path, mode, overwrite=arguments.overwrite)

    pixels = picture.pixels
    if arguments.add_noise:
        if not isinstance(task, Denoise):
            raise configs.ConfigError(
                f"--add-noise: the task of {arguments.run} is {task.config.task}"
            )
        pixels = task.noisy(np.random.default_rng(0), pixels)
    before, after = task.predict(state, pixels)
    write(output, dataclasses.replace(picture, pixels=after))
    write(strip, Picture(photos.sheet([[middle(before), middle(after)]]) / 255))

    height, width, _ = after.shape
    print(f"{output}: {width} x {height}\n{strip}: before and after")
    if arguments.add_noise:
        noisy, clean = (photos.psnr(picture.pixels, image) for image in (before, after))
        print(f"PSNR: {noisy:.2f} dB with noise, {clean:.2f} dB without")


def restored(run: Path) -> tuple[Restoration, State]:
    """The task of a run, and its newest state.

    Raises:
      CheckpointError: if there is none, it cannot be used, or its task restores no pictures.
      ConfigError: if this version's tasks can do nothing with its config.
    """
    with closing(Checkpoints(run, read_only=True)) as checkpoints:
        about = checkpoints.about()
        try:
            config = configs.from_table(about["config"])
            if not isinstance(config, restoration.Config):
                raise CheckpointError(
                    f"{run}: its task, {config.task}, is none that restores pictures"
                )
            task: Any = build(config)
        except configs.ConfigError as error:
            raise configs.ConfigError(f"{run}: its config no longer fits: {error}") from error
        # Wherever it was trained, here it is on one device.
        here = SingleDeviceSharding(jax.devices()[0])
        init = jax.jit(task.init, out_shardings=here)
        return task, checkpoints.restore(jax.eval_shape(init, jax.random.key(0)))


def read(path: Path) -> Picture:
    """The picture in a file, the right way up; the first if there are several.

    Raises:
      PictureError: if it cannot be read.
    """
    try:
        with Image.open(path) as opened:
            image, kind = ImageOps.exif_transpose(opened), opened.format
    except UnidentifiedImageError as error:
        raise PictureError(f"{path}: not a picture") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise PictureError(f"{path}: {why}") from error
    profile = image.info.get("icc_profile")
    # 16 bits of grey. Those of a PGM file Pillow brings to the same range in 32 bits.
    if image.mode.startswith("I;16") or (image.mode, kind) == ("I", "PPM"):
        return Picture(np.asarray(image, np.float32)[..., None] / 65535, profile=profile)
    if image.mode in ("I", "F"):
        numbers = "floats" if image.mode == "F" else "32-bit integers"
        raise PictureError(f"{path}: its pixels are {numbers}, of which no one knows what is white")
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = photos.as_float(np.asarray(image.convert("RGBA"))[..., 3])
    pixels = photos.as_float(np.asarray(image.convert("L" if grey else "RGB")))
    return Picture(pixels, None if np.all(alpha == 1) else alpha, profile)


def as_image(picture: Picture) -> Image.Image:
    """A picture with 8 bits per channel, and its alpha, enlarged if need be."""
    pixels = picture.pixels
    if picture.alpha is not None:
        alpha = photos.resize(picture.alpha, *pixels.shape[:2])
        pixels = np.concatenate([photos.as_color(pixels), alpha], axis=-1)
    return Image.fromarray(photos.as_bytes(pixels))


def write(path: Path, picture: Picture) -> None:
    """Writes a picture as `as_image` has it.

    Raises:
      PictureError: if that is impossible.
    """
    image = as_image(picture)
    space = b"GRAY" if image.mode == "L" else b"RGB "
    # An ICC profile names at byte 16 the colour space that it is about. Of another, such as the
    # CMYK that a picture was read from, it would only mislead.
    profile = picture.profile if (picture.profile or b"")[16:20] == space else None
    try:
        image.save(path, icc_profile=profile)
    except OSError as error:
        raise PictureError(f"{path}: {error.strerror or error}") from error


def check_writable(path: Path, mode: str, *, overwrite: bool) -> None:
    """Raises a PictureError for a file that must not, or cannot, be written with such pixels."""
    if reason := pictures.no_format(path, mode):
        raise PictureError(f"{path}: {reason}")
    if not path.parent.is_dir():
        raise PictureError(f"{path}: there is no folder {path.parent}")
    if path.exists() and not overwrite:
        raise PictureError(f"{path}: exists already; replace it with --overwrite")


def middle(image: np.ndarray) -> np.ndarray:
    """The middle of an image, at most `STRIP` pixels high and wide."""
    height, width, _ = image.shape
    top, left = max(height - STRIP, 0) // 2, max(width - STRIP, 0) // 2
    return image[top : top + STRIP, left : left + STRIP]


if __name__ == "__main__":
    sys.exit(main())
