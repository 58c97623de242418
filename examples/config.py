"""The settings of a training run: dataclasses, filled from a TOML file and the command line."""

from __future__ import annotations

import ast
import dataclasses
import json
import tomllib
import typing
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, Union

import tyro

from upconv import constraints, regularizers

TASKS = ("autoencoder", "gan", "superres", "denoise")


class ConfigError(Exception):
    """A config that makes no sense; the message names the key, and the file that it is in.

    Attributes:
      key: the key that is at fault, with which the message begins; None if no single key is.
    """

    # Were it a ValueError, tyro would catch it and put words of its own around the message.

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message if key is None else f"{key}: {message}")
        self.key = key


def require(condition: bool, key: str, expected: str, value: object) -> None:
    """Raises a ConfigError that names the key unless the condition holds."""
    if not condition:
        raise ConfigError(f"must be {expected}, got {value!r}", key=key)


def declared(text: str | None, module: ModuleType) -> Any:
    """The object that `Name(key=value, ...)` describes, `Name` being a class of `module`.

    >>> declared("MaxNorm(max_value=1.5, axis=(0, 1, 3))", constraints)
    MaxNorm(max_value=1.5, axis=(0, 1, 3))
    """
    if text is None:
        return None
    names = [name for name in module.__all__ if isinstance(getattr(module, name), type)]
    expected = (
        f"expected NAME(KEY=VALUE, ...) with NAME one of {', '.join(names)} and each VALUE a "
        f"Python literal; got {text!r}"
    )
    try:
        match ast.parse(text, mode="eval").body:
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in names:
                positional = [ast.literal_eval(value) for value in args]
                named = {k.arg: ast.literal_eval(k.value) for k in keywords if k.arg is not None}
            case _:
                raise ValueError(expected)
    except (SyntaxError, ValueError):
        raise ValueError(expected) from None
    if len(named) < len(keywords):  # one is named twice, or `**` unpacks a dictionary
        raise ValueError(expected)
    return getattr(module, name)(*positional, **named)


@dataclasses.dataclass(frozen=True)
class Declarations:
    """What a model's layers declare; a base class for `model` sections."""

    kernel_regularizer: str | None = None
    """For the transposed convolutions' kernels: a class of upconv.regularizers with arguments."""
    kernel_constraint: str | None = None
    """For the same kernels: a class of upconv.constraints with arguments."""

    def __post_init__(self) -> None:
        for key in ("regularizer", "constraint"):
            try:
                getattr(self, key)()
            except (TypeError, ValueError) as error:
                raise ConfigError(str(error), key=f"model.kernel_{key}") from error

    def regularizer(self) -> Any:
        """The regularizer that is named, or None."""
        return declared(self.kernel_regularizer, regularizers)

    def constraint(self) -> Any:
        """The constraint that is named, or None."""
        return declared(self.kernel_constraint, constraints)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Adam, with a learning rate that falls to 0 along a cosine."""

    learning_rate: float = 1e-3
    """The learning rate at the first step."""

    def __post_init__(self) -> None:
        good = 0 < self.learning_rate < float("inf")
        require(good, "optimizer.learning_rate", "positive", self.learning_rate)


@dataclasses.dataclass(frozen=True)
class Train:
    """The training loop."""

    steps: int = 2000
    """How many times the parameters are updated; learning rates fall to 0 over as many steps."""
    batch_size: int = 100
    """Examples per step, all devices taken together."""
    log_every: int = 100
    """Steps from one line of metrics to the next; each has the means since the line before."""
    evaluate_every: int = 500
    """Steps from one evaluation, with pictures, to the next; it also writes a line of metrics."""
    checkpoint_every: int = 500
    """Steps from one checkpoint to the next; the last two are kept."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of activations; parameters and the optimizer's state are float32."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard; needs the extra `tensorboard`."""
    seed: int = 0
    """Decides the initial parameters, the batches and any random split of the data."""

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "log_every", "evaluate_every", "checkpoint_every"):
            require(getattr(self, key) > 0, f"train.{key}", "positive", getattr(self, key))
        # JAX takes no larger ones.
        require(0 <= self.seed < 2**63, "train.seed", "from 0 to below 2**63", self.seed)


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings that a training run has whatever its task."""

    task: tyro.conf.Suppress[str]
    """The module that says what is trained."""
    run: str = "runs"
    """The folder to write to; by default runs/NAME for configs/NAME.toml."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue from the last checkpoint in that folder; `train.steps` may differ, see there."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Start afresh even if the folder holds a run, and delete what that run wrote."""
    train: Train = Train()

    def __post_init__(self) -> None:
        require(self.run != "", "run", "the name of a folder", self.run)


def from_command_line(argv: Sequence[str], description: str) -> Config:
    """The config that the first argument names, with the overrides that follow it.

    Raises:
      ConfigError: if the file cannot be read, or if it or an override makes no sense.
      SystemExit: with status 2 if an override cannot be read, with 0 after `--help`.
    """
    if not argv:
        raise ConfigError("name a config, such as configs/digits_autoencoder.toml; see --help")
    first, *rest = argv
    helps = first in ("-h", "--help")
    if first.startswith("-") and not helps:
        raise ConfigError(f"name a config before the options, got {first!r} first; see --help")
    default = Config(task="", run="runs/NAME") if helps else load(Path(first))
    return tyro.cli(
        type(default),
        prog=f"train.py {'CONFIG' if helps else first}",
        description=description,
        default=default,
        args=["--help"] if helps else rest,
    )


def load(path: Path) -> Config:
    """The config in a TOML file; what the file leaves out keeps its default.

    `run`, `resume` and `overwrite` are for the command line alone.

    Raises:
      ConfigError: naming the file, and the key if it is at fault.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows may add a mark
        for key in sorted(table.keys() & {"run", "resume", "overwrite"}):
            raise ConfigError(f"is of one run; give it as --{key}", key=key)
        config = from_table(table)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return dataclasses.replace(config, run=str(Path("runs") / path.stem))


def from_table(table: dict[str, Any]) -> Config:
    """The config that a TOML file or a checkpoint holds as a table; its task decides the type.

    Raises:
      ConfigError: naming the key.
    """
    task = table.get("task")
    if task not in TASKS:
        given = f"got {task!r}" if "task" in table else "it is missing"
        raise ConfigError(f"expected one of {', '.join(TASKS)}; {given}", key="task")
    return _typed(import_module(task).Config, table, "")


def to_table(config: Config) -> dict[str, Any]:
    """The inverse of `from_table`; the table holds only what JSON can."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _typed(annotation: Any, value: Any, key: str) -> Any:
    """Converts what TOML holds to the type that a dataclass asks for.

    Raises:
      ConfigError: if it cannot be converted.
      TypeError: for an annotation that says nothing of what TOML can hold.
    """
    if dataclasses.is_dataclass(annotation):
        return _section(annotation, value, key)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (UnionType, Union) and len(arguments) == 2 and NoneType in arguments:
        (wanted,) = set(arguments) - {NoneType}
        return None if value is None else _typed(wanted, value, key)
    if origin is tuple and arguments:
        return _tuple(arguments, value, key)
    if origin is Literal:
        # By type, too: 1, 1.0 and True are equal.
        if any(type(value) is type(known) and value == known for known in arguments):
            return value
        raise _mismatch(f"one of {', '.join(map(repr, arguments))}", value, key)
    if annotation not in (bool, int, float, str):
        raise TypeError(f"{key}: unsupported annotation {annotation!r}")
    if annotation is float and type(value) is int:
        return float(value)
    if type(value) is annotation:
        return value
    raise _mismatch(annotation.__name__, value, key)


def _tuple(items: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    """An array as a tuple of these items."""
    if not isinstance(value, list):
        raise _mismatch("array", value, key)
    if items[-1] is Ellipsis:
        items = items[:1] * len(value)
    if len(items) != len(value):
        raise _mismatch(f"array of {len(items)} entries", value, key)
    pairs = enumerate(zip(items, value, strict=True))
    return tuple(_typed(item, v, f"{key}[{i}]") for i, (item, v) in pairs)


def _mismatch(expected: str, value: Any, key: str) -> ConfigError:
    return ConfigError(f"expected {expected}, got {type(value).__name__} {value!r}", key=key)


def _section(section: Any, table: Any, key: str) -> Any:
    if not isinstance(table, dict):
        raise ConfigError(f"expected a table, got {type(table).__name__} {table!r}", key=key)
    annotations = typing.get_type_hints(section)
    prefix = f"{key}." if key else ""
    for name in table:
        if name not in annotations:
            known = ", ".join(annotations)
            raise ConfigError(f"no such key; known are {known}", key=prefix + name)
    return section(**{n: _typed(annotations[n], v, prefix + n) for n, v in table.items()})
