"""Rules carried out by optax: regularizers join the loss or the gradient, constraints the update.

All functions here take rules by parameter path (`upconv.linen.rules` and `upconv.nnx.rules` collect
them from a model, or write them by hand for any other), and all of them act on any pytree of
parameters. They hold no state and work under `jax.jit`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from upconv.errors import noted, shown
from upconv.records import at_least_float32
from upconv.rules import Constraint, Rule, Rules, named_leaves, total

__all__ = ["add_regularization", "penalty", "project", "with_rules"]

_NO_PARAMS = (
    "This transformation needs the parameters: call update(updates, state, params), "
    "not update(updates, state)."
)


def penalty(params: optax.Params, rules: Rules) -> jax.Array:
    r"""The sum of all regularizers, :math:`\sum_p R_p(\theta_p)`, to be added to the loss.

    Either add this to the loss or `add_regularization` to the optimizer, not both.

    Args:
      params: a pytree of parameters.
      rules: by parameter path, the keys joined by `/`.

    Returns:
      A scalar, float32 at least; 0 if no rule has a regularizer.

    Raises:
      TypeError: if `rules` is not a mapping from strings to `Rule`.
      ValueError: if a rule matches no parameter, or a regularizer does not return a scalar.

    >>> params = {"up": {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]])}}
    >>> float(penalty(params, {"up/kernel": Rule(regularizer=jnp.sum)}))
    10.0
    """
    rules = _checked(rules)
    _check_matches(rules, params)
    return total(
        _regularizer_value(path, rules[path], param)
        for path, param in named_leaves(params, _is_hole)
        if path in rules and not _is_hole(param)
    )


def add_regularization(rules: Rules) -> optax.GradientTransformation:
    r"""Adds the gradient of the regularizers: :math:`u_p \leftarrow u_p + \nabla R_p(\theta_p)`.

    At the head of a chain this is the same as adding `penalty` to the loss, so the penalty's
    gradient passes through momentum and Adam, as in TensorFlow. For decoupled weight decay put it
    where `optax.add_decayed_weights` goes: behind `optax.scale_by_adam()`, but before
    `optax.scale_by_learning_rate(...)`. Behind a whole optimizer such as `optax.adam`, which has
    turned the sign already, it would make weights grow.

    Args:
      rules: by parameter path, the keys joined by `/`.

    Returns:
      A gradient transformation without state. Updates keep their dtypes.

    Raises:
      TypeError: if `rules` is not a mapping from strings to `Rule`.
      ValueError: (from `init` and `update`) if a rule matches no parameter, nor what is masked, or
        cannot be applied to it, `params` is not given, updates do not have their structure and
        shapes, or a regularizer does not return a scalar.

    >>> transform = add_regularization({"kernel": Rule(regularizer=lambda w: jnp.sum(w**2))})
    >>> params = {"kernel": jnp.array([1.0, -2.0])}
    >>> updates = {"kernel": jnp.array([10.0, 10.0])}
    >>> transform.update(updates, transform.init(params), params)[0]["kernel"].tolist()
    [12.0, 6.0]
    """

    def regularize(path: str, rule: Rule, update: jax.Array, param: jax.Array) -> jax.Array:
        if rule.regularizer is None:
            return update
        slope = jax.grad(partial(_regularizer_value, path, rule))(at_least_float32(param))
        return (at_least_float32(update) + slope).astype(update.dtype)

    return _per_parameter(rules, "regularizer", regularize)


def project(rules: Rules) -> optax.GradientTransformation:
    r"""Projects what the parameters will be: :math:`u_p \leftarrow P_p(\theta_p + u_p) - \theta_p`.

    After `optax.apply_updates` every constrained parameter is one that its constraint allows, up to
    the rounding of that addition. It must be the last of a chain: it undoes nothing that follows.
    This is the projected gradient method, and what Keras does after each step.

    Args:
      rules: by parameter path, the keys joined by `/`. Leave out what the optimizer freezes: a
        parameter that its constraint forbids is moved, whatever its update was.

    Returns:
      A gradient transformation without state. Updates of constrained parameters have the
      parameter's precision at least.

    Raises:
      TypeError: if `rules` is not a mapping from strings to `Rule`.
      ValueError: (from `init` and `update`) if a rule matches no parameter, nor what is masked, or
        cannot be applied to it, `params` is not given, updates do not have their structure and
        shapes, or a constraint changes shape or dtype.

    >>> optimizer = optax.chain(optax.sgd(1.0), project({"kernel": Rule(constraint=jax.nn.relu)}))
    >>> params = {"kernel": jnp.array([1.0, 2.0])}
    >>> gradients = {"kernel": jnp.array([0.5, 4.0])}
    >>> updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].tolist()
    [0.5, 0.0]
    """

    def constrain(path: str, rule: Rule, update: jax.Array, param: jax.Array) -> jax.Array:
        if rule.constraint is None:
            return update
        with jax.numpy_dtype_promotion("standard"):  # whatever the parameters are held to
            dtype = jnp.promote_types(update.dtype, param.dtype)
        param = at_least_float32(param)
        wanted = param + at_least_float32(update)
        allowed = _constrained(path, rule, rule.constraint, wanted)
        return (allowed - param).astype(dtype)

    return _per_parameter(rules, "constraint", constrain)


def with_rules(
    optimizer: optax.GradientTransformation, rules: Rules
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that also regularizes and constrains.

    It is the chain of `add_regularization`, the optimizer and `project`, in this order.

    Wrap the result, not the optimizer, in what skips steps or keeps weights of its own:
    `optax.MultiSteps(with_rules(...), n)`, `optax.lookahead(with_rules(...), ...)`. Averages of
    weights, such as `lookahead`'s slow ones, keep a constraint if it is convex (a unit norm is not)
    and they started within it. Transformations that start from other weights than given, or scale
    the step afterwards (`optax.contrib.schedule_free`, `mechanize`,
    `optax.chain(with_rules(...), optax.scale(c))`), keep none. What may leave updates as they are,
    such as `optax.apply_if_finite`, needs gradients of the parameters' dtype.

    Where only some parameters are trained, `optax.multi_transform` and `optax.masked` go within:
    `with_rules(optax.multi_transform(...), rules)`. The other way round the rules of what is masked
    are not carried out, nor are they checked. `optax.flatten`, which hides the paths, goes within,
    too. A strength that changes is a rule's function, made anew at each step:
    `optax.inject_hyperparams(lambda rate, l2: with_rules(optax.sgd(rate), {path:
    Rule(lambda w: l2 * jnp.sum(w**2))}))(rate=0.1, l2=schedule)`.

    A line search (`optax.lbfgs`, `scale_by_backtracking_linesearch`) has to see the loss that it
    descends: put `penalty` into `value_fn` and declare no regularizer here. With a constraint,
    compute value and gradient at every step by `jax.value_and_grad`, not by
    `optax.value_and_grad_from_state`, which returns those from before the projection.

    Args:
      optimizer: any optax optimizer.
      rules: by parameter path, the keys joined by `/`; without those of parameters that the
        optimizer freezes, which `project` would move.

    Returns:
      The optimizer to use instead.

    Raises:
      TypeError: if `optimizer` is not an optax transformation, or `rules` not a mapping from
        strings to `Rule`.
      ValueError: (from `init` and `update`) as the two transformations raise it.

    >>> rules = {"kernel": Rule(regularizer=jnp.sum, constraint=jax.nn.relu)}
    >>> optimizer = with_rules(optax.sgd(1.0), rules)
    >>> params = {"kernel": jnp.array([1.0, 5.0])}
    >>> gradients = {"kernel": jnp.array([0.5, 1.0])}
    >>> updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    >>> optax.apply_updates(params, updates)["kernel"].tolist()
    [0.0, 3.0]
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        wrapper = "wrappers such as optax.MultiSteps go round with_rules"
        hint = "call it first" if callable(optimizer) else wrapper
        raise TypeError(
            f"optimizer must be an optax.GradientTransformation, got {shown(optimizer)}; {hint}"
        )
    return optax.chain(add_regularization(rules), optimizer, project(rules))


def _per_parameter(
    rules: Rules, kind: str, act: Callable[[str, Rule, jax.Array, jax.Array], jax.Array]
) -> optax.GradientTransformation:
    """A stateless transformation that maps `act` over the parameters that have a rule.

    `kind` is the attribute of a rule that `act` carries out.
    """
    rules = _checked(rules)

    def init(params: optax.Params) -> optax.EmptyState:
        # optax.tree.map_params calls this with a placeholder that holds no parameters.
        if jax.tree.leaves(params):
            _check_matches(rules, params)
        # A rule that does not fit its parameter fails here, and not within the first step.
        for path, param in named_leaves(params, _is_hole):
            if not _is_hole(param) and path in rules:
                try:
                    jax.eval_shape(partial(act, path, rules[path]), param, param)
                except (TypeError, ValueError) as error:
                    raise ValueError(
                        f"{getattr(rules[path], kind)!r} cannot be applied to {path!r}, whose "
                        f"shape is {jnp.shape(param)}: {error}"
                    ) from error
        return optax.EmptyState()

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        if params is None:
            raise ValueError(_NO_PARAMS)
        _check_matches(rules, params)

        def act_on(path: str, update: Any, param: Any) -> Any:
            if path not in rules or _is_hole(update) or _is_hole(param):
                return update
            update, param = jnp.asarray(update), jnp.asarray(param)
            if update.shape != param.shape:
                raise ValueError(
                    f"updates must have the shapes of params, got {update.shape} for {path!r}, "
                    f"which has {param.shape}"
                )
            return act(path, rules[path], update, param)

        structure = jax.tree.structure(updates, is_leaf=_is_hole)
        paths = jax.tree.unflatten(structure, [path for path, _ in named_leaves(updates, _is_hole)])
        with noted("updates must have the structure of params"):
            jax.tree.map(lambda *_: None, paths, params)
        return jax.tree.map(act_on, paths, updates, params), state

    return optax.GradientTransformation(init, update)


def _regularizer_value(path: str, rule: Rule, param: jax.Array) -> jax.Array:
    """The regularizer's scalar, summed over the slices of a stacked parameter."""
    regularizer = rule.regularizer
    if regularizer is None:
        return jnp.zeros((), jnp.float32)

    def value(x: jax.Array) -> jax.Array:
        with noted(f"in the regularizer of {path!r}"):
            result = at_least_float32(regularizer(x))
        if result.shape != ():
            raise ValueError(
                f"the regularizer of {path!r} must return a scalar, got shape {result.shape} "
                f"from {regularizer!r}"
            )
        return result

    return jnp.sum(_per_slice(value, path, rule, at_least_float32(param), keep=False))


def _constrained(path: str, rule: Rule, constraint: Constraint, param: jax.Array) -> jax.Array:
    """The parameter after its constraint, which acts on each slice of a stacked one."""

    def allowed(x: jax.Array) -> jax.Array:
        with noted(f"in the constraint of {path!r}, {constraint!r}"):
            result = jnp.asarray(constraint(x))
        if (result.shape, result.dtype) != (x.shape, x.dtype):
            raise ValueError(
                f"the constraint of {path!r} must keep shape and dtype, got {result.dtype}"
                f"{list(result.shape)} for {x.dtype}{list(x.shape)} from {constraint!r}"
            )
        return result

    return _per_slice(allowed, path, rule, param, keep=True)


def _per_slice(
    f: Callable[[jax.Array], jax.Array], path: str, rule: Rule, param: jax.Array, *, keep: bool
) -> jax.Array:
    """`f` of each slice of a stacked parameter, stacked as it was if that is to be kept."""
    # An axis is counted among those that the axes after it have left.
    for taken, axis in enumerate(reversed(rule.stacked_axes)):
        rank = param.ndim - taken
        if not -rank <= axis < rank:
            raise ValueError(
                f"stacked_axes={rule.stacked_axes} of the rule for {path!r} must be axes of the "
                f"parameter, got one of shape {param.shape}"
            )
    if rule.ndim is not None and param.ndim != rule.ndim + len(rule.stacked_axes):
        raise ValueError(
            f"the rule for {path!r} must get a parameter of ndim={rule.ndim} axes, and those of "
            f"stacked_axes={rule.stacked_axes}, got one of shape {param.shape}: map the optimizer "
            "over layers that are stacked, too, or name the axes that stack them in stacked_axes"
        )
    for axis in rule.stacked_axes:
        f = jax.vmap(f, in_axes=axis, out_axes=axis if keep else 0)
    return f(param)


def _is_hole(node: Any) -> bool:
    """Whether a parameter, or a whole subtree, was left out of a tree by masking."""
    return node is None or isinstance(node, optax.MaskedNode)


def _checked(rules: Rules) -> dict[str, Rule]:
    """A copy, so that what the caller does to the mapping later changes nothing."""
    if not isinstance(rules, Mapping):
        raise TypeError(f"rules must be a mapping from parameter paths to Rule, got {shown(rules)}")
    for path, rule in rules.items():
        if not isinstance(path, str) or not isinstance(rule, Rule):
            raise TypeError(
                f"rules must map strings to upconv.rules.Rule, got {path!r}: {shown(rule)}"
            )
    return dict(rules)


def _check_matches(rules: Rules, params: optax.Params) -> None:
    """Raises for a rule whose parameter is not in the tree, nor in a part that was masked."""
    named = named_leaves(params, _is_hole)
    holes = {path for path, leaf in named if _is_hole(leaf)}
    present = [path for path, leaf in named if not _is_hole(leaf)]
    for path in sorted(rules.keys() - set(present)):
        keys = path.split("/")
        if holes.isdisjoint("/".join(keys[:n]) for n in range(len(keys) + 1)):
            if present == [""]:
                raise ValueError(
                    f"no parameter matches the rule for {path!r}: the parameters are one array"
                )
            near = difflib.get_close_matches(path, present) or sorted(present)[:3]
            raise ValueError(
                f"no parameter matches the rule for {path!r}; the nearest parameters are "
                f"{', '.join(map(repr, near)) or 'none, as the tree is empty'}"
            )
