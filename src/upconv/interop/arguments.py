"""Checks of what a conversion is given, each naming the argument that does not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_RULES = (
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
)
# What a library has one value of, which is then no argument there.
_ONLY: dict[str, dict[str, Any]] = {
    "Keras": {"groups": 1, "precision": None},
    "PyTorch": {
        "data_format": "channels_first",
        "activation": None,
        **dict.fromkeys(_RULES),
        "trainable": True,
        "precision": None,
    },
    "Flax": {
        "groups": 1,
        "data_format": "channels_last",
        "activation": None,
        **dict.fromkeys(_RULES),
        "trainable": True,
    },
}
# Without groups the kernel has another shape.
_ESSENTIAL = {"groups"}


def check_only(peer: str, module: Any, drop: Collection[str], also: Collection[str] = ()) -> None:
    """Raises where the layer has what the peer has not, unless it may be lost."""
    only = _ONLY[peer]
    check_drop(drop, {*(only.keys() - _ESSENTIAL), *also}, peer)
    for name, value in only.items():
        got = getattr(module, name)
        if got != value and name not in drop:
            hint = "" if name in _ESSENTIAL else f"; drop=({name!r},) leaves it out"
            raise ValueError(f"{name}={got!r} is not in {peer}, which has {value!r} alone{hint}")


def check_drop(drop: Collection[str], allowed: Collection[str], peer: str) -> None:
    """Raises where something else than these is to be dropped."""
    if isinstance(drop, str):
        raise TypeError(f"drop must be a sequence of names, got {drop!r}")
    unknown = set(drop) - set(allowed)
    if unknown:
        raise ValueError(
            f"drop may name {', '.join(sorted(allowed))} with {peer}, got {sorted(unknown)}"
        )


def check_keys(
    name: str, value: Mapping[str, Any], known: Collection[str], required: Collection[str] = ()
) -> None:
    """Raises where a key is unknown, or a required one is missing."""
    unknown, lacking = value.keys() - set(known), set(required) - value.keys()
    if unknown:
        raise ValueError(f"{name} has {sorted(unknown)}, which is unknown here")
    if lacking:
        raise ValueError(f"{name} lacks {sorted(lacking)}, got {sorted(value)}")


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    """The value, if it is a dictionary."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dictionary, got {type_name(value)}")
    return value


def type_name(value: Any) -> str:
    """The full name of its type."""
    return f"{type(value).__module__}.{type(value).__qualname__}"
