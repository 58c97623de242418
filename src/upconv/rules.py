"""What a layer declares of one parameter, and how parameters are named.

Layers declare rules and `upconv.transforms` carries them out. Neither imports the other: a plain
dictionary from parameter path to `Rule` is all that passes between them.
"""

from __future__ import annotations

import collections
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["Constraint", "Regularizer", "Rule", "Rules", "named_leaves"]

Regularizer = Callable[[jax.Array], jax.Array]
Constraint = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class Rule:
    """The regularizer and the constraint of one parameter.

    Attributes:
      regularizer: maps the parameter to a scalar that is added to the loss, or `None`.
      constraint: maps the parameter to one of the same shape and dtype that is allowed, or `None`.
      stacked_axes: the axes along which a lifted transformation (`flax.linen.scan`, `vmap`) has
        stacked the parameters of several layers, innermost transformation first: what nested
        `jax.vmap`s take as `in_axes`. The rule holds for each layer's slice by itself.
      ndim: how many axes the parameter of one layer has, or `None` for any number. The rules that
        are collected from layers say so, lest parameters that `jax.vmap` has stacked without Flax
        be taken for those of one layer. It is left out of comparisons.

    Raises:
      TypeError: for a regularizer or constraint that cannot be called, or axes or a number of
        them that are not integers.

    >>> import jax.numpy as jnp
    >>> Rule(constraint=jnp.abs).regularizer is None
    True
    """

    regularizer: Regularizer | None = None
    constraint: Constraint | None = None
    stacked_axes: tuple[int, ...] = ()
    ndim: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("regularizer", "constraint"):
            check_callable(name, getattr(self, name))
        axes = self.stacked_axes
        if not isinstance(axes, tuple) or not all(type(axis) is int for axis in axes):
            raise TypeError(f"stacked_axes must be a tuple of integers, got {axes!r}")
        if self.ndim is not None and type(self.ndim) is not int:
            raise TypeError(f"ndim must be an integer or None, got {self.ndim!r}")


Rules = Mapping[str, Rule]


def check_callable(name: str, value: Any, takes: Sequence[str] = ()) -> None:
    """Raises a TypeError unless an argument is None, or a function or the like; no class is.

    Args:
      name: of the argument.
      value: what it is.
      takes: names for what the function will be called with, if it is to be seen that it can be.
    """
    if isinstance(value, type):
        raise TypeError(f"{name} must be an instance, got the class {value.__name__} itself")
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable or None, got {value!r}")
    if value is not None and takes and not _accepts(value, len(takes)):
        hint = "; call it first" if _accepts(value, 0) else ""
        raise TypeError(f"{name} must take ({', '.join(takes)}), got {value!r}{hint}")


def _accepts(function: Callable[..., Any], arguments: int) -> bool:
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins tell none
        return True
    try:
        signature.bind(*[None] * arguments)
    except TypeError:
        return False
    return True


def total(penalties: Iterable[jax.Array]) -> jax.Array:
    """The sum of scalars, in float32 at least; 0 of none."""
    result = jnp.zeros((), jnp.float32)
    for penalty in penalties:
        with jax.numpy_dtype_promotion("standard"):  # whatever the caller's arrays are held to
            result += penalty
    return result


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """The leaves of a tree by their paths as rules name them: the keys joined by `/`.

    A box round a parameter (`flax.linen.Partitioned`, `flax.nnx.Param`) holds it in the attribute
    `value`, which is no part of the parameter's name.

    Args:
      tree: any pytree.
      is_leaf: as in `jax.tree.leaves`.

    Returns:
      Pairs of a name, such as `decoder/up1/kernel`, and the leaf.

    >>> named_leaves({"decoder": {"up1": {"kernel": 0.0}}})
    [('decoder/up1/kernel', 0.0)]
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    # A box holds nothing else: where there is, the attribute is a parameter's own name.
    beneath = collections.Counter(path[:n] for path, _ in leaves for n in range(len(path)))

    def named(path: tuple[Any, ...]) -> tuple[Any, ...]:
        boxed = path[-1:] == (jax.tree_util.GetAttrKey("value"),) and beneath[path[:-1]] == 1
        return path[:-1] if boxed else path

    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    return [(name(named(path)), leaf) for path, leaf in leaves]
