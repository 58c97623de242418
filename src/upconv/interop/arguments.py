"""Checks of what a conversion is given, each of which names the argument that does not fit."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from upconv.errors import type_name

# What a layer declares of its parameters and outputs; only Keras's do, too.
RULES = (
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
)
# These cannot be dropped: without groups the kernel would have another shape.
_ESSENTIAL = {"groups"}


def check_only(
    peer: str,
    only: Mapping[str, Any],
    module: Any,
    drop: Collection[str],
    also: Collection[str] = (),
) -> None:
    """Raises a ValueError where our layer has what its peer lacks, unless that may be dropped.

    Args:
      peer: the name of the other library.
      only: arguments of ours that it lacks, and the value that its layers behave as.
      module: our layer.
      drop: the arguments that may be dropped.
      also: what `drop` may name beside these arguments.
    """
    check_drop(drop, {*(only.keys() - _ESSENTIAL), *also}, peer)
    for name, value in only.items():
        got = getattr(module, name)
        if got != value and name not in drop:
            hint = "" if name in _ESSENTIAL else f"; drop=({name!r},) leaves it out"
            raise ValueError(f"{name} must be {value!r} for {peer}, got {got!r}{hint}")


def check_drop(drop: Collection[str], allowed: Collection[str], peer: str) -> None:
    """Raises a ValueError if `drop` names anything but these arguments."""
    if isinstance(drop, str):
        raise TypeError(f"drop must be a sequence of names, got {drop!r}")
    unknown = set(drop) - set(allowed)
    if unknown:
        raise ValueError(
            f"drop may only name {', '.join(sorted(allowed))} with {peer}, got {sorted(unknown)}"
        )


def check_keys(
    name: str,
    value: Mapping[str, Any],
    known: Collection[str],
    required: Collection[str] = (),
    hint: str = "",
) -> None:
    """Raises a ValueError if the dictionary has an unknown key, or lacks a required one.

    Args:
      name: what the caller calls the dictionary.
      value: the dictionary.
      known: the keys that it may have.
      required: those that it must have.
      hint: ends the message, which otherwise ends with what may have been meant.
    """
    unknown, lacking = value.keys() - set(known), set(required) - value.keys()
    if unknown:
        raise ValueError(
            f"{name} has unknown keys {sorted(unknown)}{hint or meant(unknown, known)}"
        )
    if lacking:
        raise ValueError(f"{name} lacks {sorted(lacking)}, got {sorted(value)}{hint}")


def meant(unknown: Collection[str], known: Collection[str]) -> str:
    """The end of a message on unknown names: the known ones that are like them, or all of them."""
    near = [match for key in sorted(unknown) for match in difflib.get_close_matches(key, known, 1)]
    if near:
        return f"; did you mean {' and '.join(map(repr, dict.fromkeys(near)))}?"
    return f"; known are {', '.join(sorted(known)) or 'none'}"


def check_parameters(name: str, value: Mapping[str, Any], expected: Collection[str]) -> None:
    """Raises a ValueError if the dictionary does not hold just the parameters of one layer."""
    hint = f"; expected {' and '.join(expected)}: give those of this layer alone"
    check_keys(name, value, expected, required=expected, hint=hint)


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    """Returns `value`, the argument `name`; raises a TypeError if it maps anything but strings."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dictionary, got {type_name(value)}")
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"{name} must have strings for keys, got {key!r}")
    return value


def config_with_weights(layer: Any, getter: str) -> Mapping[str, Any]:
    """Returns `layer`, a config to which weights were given; raises an error for anything else.

    Args:
      layer: what was given.
      getter: the method by which layers of that library, which are no configs, return their own.
    """
    if hasattr(layer, getter):
        raise ValueError("weights must not be given with a layer, which has its own")
    return mapping("layer", layer)


def sequence(name: str, value: Any) -> Sequence[Any]:
    """Returns `value`, the argument `name`; raises a TypeError if it is no sequence."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise TypeError(f"{name} must be a list of arrays, got {type_name(value)}")
    return value
