"""Layers as plain JSON, and back.

`to_config` writes the arguments of a layer, not its parameters, as a dictionary that `json.dumps`
takes. Its `"version"` is that of the format: what one release writes, every later one can read.

Regularizers, constraints, initializers and activations are written by name if they are this
package's, or functions of `jax.nn`, `jax.nn.initializers` or `jax.numpy`. Others are written by
names that you give them, the same in both directions::

    config = to_config(layer, custom_objects={"swoosh": swoosh})
    layer = from_config(config, custom_objects={"swoosh": swoosh})

Reading a config imports nothing and runs no code that it names.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx as flax_nnx

from upconv import activations, constraints, initializers, linen, nnx, regularizers
from upconv.layer import FIELDS

__all__ = ["VERSION", "from_config", "to_config"]

VERSION = 1

CustomObjects = Mapping[str, Any]

_NAMES = ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")
_LAYERS: dict[str, Any] = {
    f"{api.__name__}.{name}": getattr(api, name) for api in (linen, nnx) for name in _NAMES
}
_DTYPES = ("dtype", "param_dtype")

# The dataclasses, which are written as their class and fields.
_RECORDS: dict[str, Any] = {
    f"{module.__name__.removeprefix('upconv.')}.{name}": getattr(module, name)
    for module in (activations, constraints, initializers, regularizers)
    for name in module.__all__
    if dataclasses.is_dataclass(getattr(module, name))
}
# The modules of the functions that are written by name.
_FUNCTIONS = {
    "jax.nn": jax.nn,
    "jax.nn.initializers": jax.nn.initializers,
    "jax.numpy": jnp,
}
_ENUMS: dict[str, Any] = {
    "Precision": jax.lax.Precision,
    "DotAlgorithmPreset": jax.lax.DotAlgorithmPreset,
}


def to_config(layer: Any, *, custom_objects: CustomObjects | None = None) -> dict[str, Any]:
    """Describes a layer by a dictionary of strings, numbers, lists and dictionaries.

    Args:
      layer: a `Conv1DTranspose`, `Conv2DTranspose` or `Conv3DTranspose` of `upconv.linen` or
        `upconv.nnx`. The metadata of an nnx layer's variables is not written.
      custom_objects: names for callables that are not this package's or JAX's: for the very
        objects, not for what equals them.

    Returns:
      A new dictionary with `"version"`, `"class"` and an entry for every argument.

    Raises:
      TypeError: for anything but such a layer.
      ValueError: for a callable that has no name. The message names the argument.

    >>> from upconv.regularizers import L2
    >>> config = to_config(linen.Conv2DTranspose(4, 5, strides=2, kernel_regularizer=L2(0.1)))
    >>> config["class"], config["strides"], config["kernel_regularizer"]
    ('upconv.linen.Conv2DTranspose', [2, 2], {'class': 'regularizers.L2', 'l2': 0.1})
    """
    kind = next((name for name, cls in _LAYERS.items() if type(layer) is cls), None)
    if kind is None:
        raise TypeError(
            f"layer must be one of {', '.join(_LAYERS)}, got {type(layer).__module__}."
            f"{type(layer).__qualname__}"
        )
    custom = _checked(custom_objects)
    config: dict[str, Any] = {"version": VERSION, "class": kind}
    if kind.startswith("upconv.nnx"):
        config["in_features"] = layer.in_features
        layer = layer.config
    else:
        config["name"] = layer.name
    for name in FIELDS:
        value = getattr(layer, name)
        if name in _DTYPES:
            config[name] = None if value is None else jnp.dtype(value).name
        else:
            config[name] = _encode(name, value, custom)
    return config


def from_config(
    config: Mapping[str, Any],
    *,
    rngs: flax_nnx.Rngs | None = None,
    custom_objects: CustomObjects | None = None,
) -> Any:
    """Makes the layer that `to_config` described.

    Args:
      config: a dictionary. Arguments that it lacks have their defaults.
      rngs: for a layer of `upconv.nnx`, and for no other: what its initial values are drawn with.
      custom_objects: callables by the names that `to_config` was given for them.

    Returns:
      A layer of the class that the config names. One of `upconv.linen` equals the layer that was
      described; one of `upconv.nnx` has a `config` that equals its, and values of its own.

    Raises:
      TypeError: if `config` is no mapping or has keys that are no strings, or an argument in it
        has the wrong type.
      ValueError: if the version is missing or unknown; if the class, a key or a name is unknown; if
        an argument is missing or out of range; if `rngs` are missing or not needed. The message
        names the key.

    >>> layer = linen.Conv1DTranspose(4, 5, activation=activations.LeakyReLU(0.3))
    >>> from_config(to_config(layer)) == layer
    True
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a dictionary, got {config!r}")
    for key in config:
        if not isinstance(key, str):
            raise TypeError(f"config must have strings for keys, got {key!r}")
    if "version" not in config:
        raise ValueError(f"config must have a 'version', got the keys {sorted(config)}")
    if type(config["version"]) is not int or config["version"] != VERSION:
        raise ValueError(f"version must be {VERSION}, got {config['version']!r}")
    kind = config.get("class")
    cls = _LAYERS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ValueError(f"class must be one of {', '.join(_LAYERS)}, got {kind!r}")
    if not isinstance(config.get("name"), str | None):
        raise TypeError(f"name must be a string or None, got {config['name']!r}")
    stateful = issubclass(cls, flax_nnx.Module)
    required = {"filters", "kernel_size", *(["in_features"] if stateful else [])}
    given = {name: value for name, value in config.items() if name not in ("version", "class")}
    unknown = given.keys() - {*FIELDS, "in_features" if stateful else "name"}
    if unknown:
        raise ValueError(f"config has unknown keys {sorted(unknown)} for {config['class']}")
    if required - given.keys():
        raise ValueError(f"config lacks the keys {sorted(required - given.keys())}")
    if stateful != (rngs is not None):
        raise ValueError(
            f"rngs must be given for a layer of upconv.nnx and for no other, got rngs={rngs!r} "
            f"for {config['class']}"
        )
    custom = _checked(custom_objects)
    arguments = {name: _decode(name, value, custom) for name, value in given.items()}
    for name in _DTYPES:
        if isinstance(arguments.get(name), str):
            arguments[name] = _dtype(name, arguments[name])
    return cls(**arguments, **({"rngs": rngs} if stateful else {}))


def _checked(custom_objects: Any) -> CustomObjects:
    if custom_objects is not None and not isinstance(custom_objects, Mapping):
        raise TypeError(f"custom_objects must map names to callables, got {custom_objects!r}")
    return custom_objects or {}


def _encode(name: str, value: Any, custom: CustomObjects) -> Any:
    """`value`, the argument `name`, as JSON types."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_encode(name, entry, custom) for entry in value]
    for key, known in custom.items():
        if known is value:
            return {"custom": key}
    for key, cls in _RECORDS.items():
        if type(value) is cls:
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            return {
                "class": key,
                **{n: _encode(f"{name}.{n}", v, custom) for n, v in fields.items()},
            }
    if isinstance(value, enum.Enum) and type(value).__name__ in _ENUMS:
        return {"enum": f"{type(value).__name__}.{value.name}"}
    called = getattr(value, "__name__", "")
    for path in _FUNCTIONS:
        if called and _function(f"{path}.{called}") is value:
            return {"function": f"{path}.{called}"}
    made = str(getattr(value, "__module__", "")).startswith("jax")
    made &= "initializer" in name
    hint = "; upconv.initializers has JAX's as objects, he_normal() for one" if made else ""
    raise ValueError(
        f"{name} must be an object of upconv's own, a function of {', '.join(_FUNCTIONS)}, or one "
        f"that custom_objects names, to be written to a config; got {value!r}{hint}"
    )


def _decode(name: str, value: Any, custom: CustomObjects) -> Any:
    """The inverse of `_encode`."""
    if isinstance(value, list | tuple):
        return tuple(_decode(name, entry, custom) for entry in value)
    if not isinstance(value, Mapping):
        return value
    lookups: dict[str, Callable[[str], Any]] = {
        "class": _RECORDS.get,
        "function": _function,
        "enum": _enum,
        "custom": custom.get,
    }
    kinds = [kind for kind in lookups if kind in value]
    if len(kinds) != 1:
        raise ValueError(f"{name} must have one of the keys {', '.join(lookups)}, got {value!r}")
    [kind] = kinds
    found = lookups[kind](str(value[kind]))
    if found is None:
        raise ValueError(f"{name} names the unknown {kind} {value[kind]!r}")
    rest = {str(key): entry for key, entry in value.items() if key != kind}
    fields = dataclasses.fields(found) if kind == "class" else ()
    unknown = rest.keys() - {f.name for f in fields}
    lacking = {f.name for f in fields if _required(f)} - rest.keys()
    if unknown:
        raise ValueError(f"{name} has unknown keys {sorted(unknown)}")
    if lacking:
        raise ValueError(f"{name} lacks the keys {sorted(lacking)}")
    if kind != "class":
        return found
    return found(**{key: _decode(f"{name}.{key}", v, custom) for key, v in rest.items()})


def _required(field: dataclasses.Field) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _function(path: str) -> Any:
    module, _, name = path.rpartition(".")
    found = getattr(_FUNCTIONS.get(module), name, None)
    # Not a class, nor what jax.numpy has of numpy's, such as save.
    own = str(getattr(found, "__module__", "")).startswith("jax") and not isinstance(found, type)
    return found if own and callable(found) and not name.startswith("_") else None


def _enum(path: str) -> Any:
    kind, _, name = path.partition(".")
    return getattr(_ENUMS.get(kind), "__members__", {}).get(name)


def _dtype(name: str, value: str) -> Any:
    try:
        return jnp.dtype(value)
    except TypeError:
        raise ValueError(f"{name} must be the name of a dtype, got {value!r}") from None
