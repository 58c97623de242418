"""What a training run is told: dataclasses, filled from a TOML file and from the command line."""

from __future__ import annotations

import ast
import dataclasses
import tomllib
import typing
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any

import tyro

from upconv import constraints, regularizers


class ConfigError(ValueError):
    """A config that means nothing; the message names the file and the key."""


def _require(condition: bool, key: str, expected: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"{key}: must be {expected}, got {value!r}")


def declared(text: str | None, module: ModuleType) -> Any:
    """The object that `Name(key=value, ...)` describes, `Name` being a class of `module`.

    >>> declared("MaxNorm(max_value=1.5, axis=(0, 1, 3))", constraints)
    MaxNorm(max_value=1.5, axis=(0, 1, 3))
    """
    if text is None:
        return None
    names = [name for name in module.__all__ if isinstance(getattr(module, name), type)]
    expected = f"expected NAME(KEY=VALUE, ...) with NAME one of {', '.join(names)}; got {text!r}"
    try:
        match ast.parse(text, mode="eval").body:
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in names:
                positional = [ast.literal_eval(value) for value in args]
                named = {str(k.arg): ast.literal_eval(k.value) for k in keywords}
            case _:
                raise ValueError(expected)
    except (SyntaxError, ValueError):
        raise ValueError(expected) from None
    return getattr(module, name)(*positional, **named)


@dataclasses.dataclass(frozen=True)
class Data:
    """The images."""

    heldout: int = 1000
    """How many of the 5,000 digits training never sees."""
    shift: int = 1
    """Training images are moved by up to this many pixels, at random."""

    def __post_init__(self) -> None:
        _require(self.heldout > 0, "data.heldout", "positive", self.heldout)
        _require(self.shift >= 0, "data.shift", "0 or more", self.shift)


@dataclasses.dataclass(frozen=True)
class Model:
    """The autoencoder."""

    latent: int = 32
    """Numbers in the code of an image."""
    features: tuple[int, ...] = (24, 48)
    """Channels of the encoder; the decoder's are the same in reverse."""
    kernel_size: int = 4
    """Of the decoder's transposed convolutions."""
    kernel_regularizer: str | None = None
    """For their kernels; a class of upconv.regularizers with its arguments."""
    kernel_constraint: str | None = None
    """For their kernels; a class of upconv.constraints with its arguments."""

    def __post_init__(self) -> None:
        _require(self.latent > 0, "model.latent", "positive", self.latent)
        good = bool(self.features) and min(self.features) > 0
        _require(good, "model.features", "one or more positive integers", self.features)
        _require(self.kernel_size > 0, "model.kernel_size", "positive", self.kernel_size)
        for key, module in (
            ("kernel_regularizer", regularizers),
            ("kernel_constraint", constraints),
        ):
            try:
                declared(getattr(self, key), module)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"model.{key}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Adam, its learning rate falling to 0 along a cosine."""

    learning_rate: float = 4e-3
    """At the first step."""

    def __post_init__(self) -> None:
        good = 0 < self.learning_rate < float("inf")
        _require(good, "optimizer.learning_rate", "positive", self.learning_rate)


@dataclasses.dataclass(frozen=True)
class Train:
    """The loop."""

    steps: int = 2000
    """Updates of the parameters."""
    batch_size: int = 100
    """Images per step."""
    log_every: int = 100
    """Steps from one line of metrics to the next."""
    seed: int = 0
    """Of the parameters, the batches and the split."""

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "log_every"):
            _require(getattr(self, key) > 0, f"train.{key}", "positive", getattr(self, key))
        _require(self.seed >= 0, "train.seed", "0 or more", self.seed)


@dataclasses.dataclass(frozen=True)
class Config:
    """A training run."""

    run: str | None = None
    """The folder to write to; runs/NAME for configs/NAME.toml if left out."""
    data: Data = Data()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()


def from_command_line(argv: Sequence[str], description: str) -> Config:
    """The config that the first argument names, with the overrides that follow it.

    Raises:
      ConfigError: if the file cannot be read or means nothing.
      SystemExit: with status 2 if an override means nothing, with 0 after `--help`.
    """
    if not argv:
        raise ConfigError("name a config, such as configs/digits_autoencoder.toml; see --help")
    named = not argv[0].startswith("-")
    default = load(Path(argv[0])) if named else Config(run="runs/NAME")
    return tyro.cli(
        Config,
        prog=f"train.py {argv[0] if named else 'CONFIG'}",
        description=description,
        default=default,
        args=argv[1:] if named else ["--help"],
        config=(tyro.conf.FlagConversionOff,),
    )


def load(path: Path) -> Config:
    """The config in a TOML file; what the file leaves out keeps its default.

    Raises:
      ConfigError: naming the file, and the key if it is at fault.
    """
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
        config = _typed(Config, table, "")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if config.run is None:
        config = dataclasses.replace(config, run=str(Path("runs") / path.stem))
    return config


def _typed(annotation: Any, value: Any, key: str) -> Any:
    """What TOML holds as the type that a dataclass asks for."""
    if dataclasses.is_dataclass(annotation):
        return _section(annotation, value, key)
    match annotation, value:
        case (kind, _) if isinstance(kind, UnionType):
            return _typed(next(a for a in typing.get_args(kind) if a is not type(None)), value, key)
        case (kind, list()) if typing.get_origin(kind) is tuple:
            item = typing.get_args(kind)[0]
            return tuple(_typed(item, v, f"{key}[{i}]") for i, v in enumerate(value))
        case (kind, _) if kind is float and type(value) is int:
            return float(value)
        case (kind, _) if type(value) is kind:
            return value
    expected = getattr(annotation, "__name__", "value")
    expected = "array" if typing.get_origin(annotation) is tuple else expected
    raise ConfigError(f"{key}: expected {expected}, got {type(value).__name__} {value!r}")


def _section(section: Any, table: Any, key: str) -> Any:
    if not isinstance(table, dict):
        raise ConfigError(f"{key}: expected a table, got {type(table).__name__} {table!r}")
    annotations = typing.get_type_hints(section)
    prefix = f"{key}." if key else ""
    for name in table:
        if name not in annotations:
            raise ConfigError(f"{prefix}{name}: no such key; known are {', '.join(annotations)}")
    return section(**{n: _typed(annotations[n], v, prefix + n) for n, v in table.items()})
