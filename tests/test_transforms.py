"""Rules carried out by optax: against the formulas, and inside optax's own wrappers."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze

from checks import normal
from upconv.constraints import MaxNorm, NonNeg
from upconv.regularizers import L1, L1L2, L2
from upconv.rules import Rule, named_leaves
from upconv.transforms import add_regularization, penalty, project, with_rules

Params = dict[str, Any]

RULES = {
    "encoder/kernel": Rule(L2(0.3)),
    "decoder/up/kernel": Rule(L1L2(0.2, 0.1), MaxNorm(0.8)),
    "decoder/up/bias": Rule(constraint=NonNeg()),
}


@pytest.fixture
def params(rng: np.random.Generator) -> Params:
    params = {
        "encoder": {"kernel": normal(rng, 3, 2), "bias": normal(rng, 2)},
        "decoder": {"up": {"kernel": normal(rng, 2, 3, 4, 5), "bias": normal(rng, 4)}},
    }
    return jax.tree.map(jnp.asarray, params)


@pytest.fixture
def gradients(params: Params, rng: np.random.Generator) -> Params:
    return jax.tree.map(lambda p: jnp.asarray(normal(rng, *p.shape)), params)


def one_step(optimizer: Any, gradients: Any, params: Any) -> Any:
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    return optax.apply_updates(params, updates)


def assert_trees_close(a: Any, b: Any, **tolerance: float) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **(tolerance or {"rtol": 1e-6}))


def assert_obeys(params: Params) -> None:
    """The constraints of RULES hold, up to rounding."""
    norms = np.linalg.norm(np.asarray(params["decoder"]["up"]["kernel"], np.float64), axis=0)
    assert norms.max() <= 0.8 * (1 + 1e-6)
    assert np.min(params["decoder"]["up"]["bias"]) >= 0


def test_penalty_is_the_sum_over_parameters(params: Params) -> None:
    up = np.asarray(params["decoder"]["up"]["kernel"], np.float64)
    encoder = np.asarray(params["encoder"]["kernel"], np.float64)
    expected = 0.3 * (encoder**2).sum() + 0.2 * np.abs(up).sum() + 0.1 * (up**2).sum()
    np.testing.assert_allclose(penalty(params, RULES), expected, rtol=1e-6)
    assert penalty(params, {}) == 0
    assert penalty(params, {}).dtype == jnp.float32


def test_add_regularization_is_the_gradient_of_the_penalty(
    params: Params, gradients: Params
) -> None:
    transform = add_regularization(RULES)
    updates, _ = transform.update(gradients, transform.init(params), params)
    slopes = jax.grad(penalty)(params, RULES)
    assert_trees_close(updates, jax.tree.map(jnp.add, gradients, slopes))
    np.testing.assert_array_equal(updates["encoder"]["bias"], gradients["encoder"]["bias"])


def test_projection_is_the_constraint_of_the_sum(params: Params, gradients: Params) -> None:
    after = one_step(project(RULES), gradients, params)
    free = jax.tree.map(jnp.add, params, gradients)
    up, up_free = after["decoder"]["up"], free["decoder"]["up"]
    np.testing.assert_allclose(up["kernel"], MaxNorm(0.8)(up_free["kernel"]), atol=1e-6)
    np.testing.assert_allclose(up["bias"], np.maximum(up_free["bias"], 0), atol=1e-6)
    assert not np.allclose(up["kernel"], up_free["kernel"])
    assert not np.allclose(up["bias"], up_free["bias"])
    assert_trees_close(after["encoder"], free["encoder"], rtol=0)
    assert_obeys(after)


def test_with_rules_is_the_loss_with_penalty_and_then_the_constraint(
    params: Params, gradients: Params
) -> None:
    """Twelve steps of Adam on a loss whose gradient is known."""

    def loss(p: Params, regularized: bool) -> jax.Array:
        fit = sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), p, gradients)))
        return fit + penalty(p, RULES) if regularized else fit

    def project_by_hand(p: Params) -> Params:
        up = p["decoder"]["up"]
        up = {"kernel": MaxNorm(0.8)(up["kernel"]), "bias": NonNeg()(up["bias"])}
        return {**p, "decoder": {"up": up}}

    ours, by_hand = with_rules(optax.adam(0.1), RULES), optax.adam(0.1)
    p, q = params, params
    p_state, q_state = ours.init(p), by_hand.init(q)
    for _ in range(12):
        updates, p_state = ours.update(jax.grad(loss)(p, False), p_state, p)
        p = optax.apply_updates(p, updates)
        updates, q_state = by_hand.update(jax.grad(loss)(q, True), q_state, q)
        q = project_by_hand(optax.apply_updates(q, updates))
    assert_trees_close(p, q, atol=1e-5)
    assert_obeys(p)


def test_project_must_be_last_to_hold(params: Params, gradients: Params) -> None:
    """What its docstring says: a transformation behind it may leave what is allowed."""
    early = optax.chain(project(RULES), optax.scale(3.0))
    with pytest.raises(AssertionError):
        assert_obeys(one_step(early, gradients, params))
    assert_obeys(one_step(optax.chain(optax.scale(3.0), project(RULES)), gradients, params))


@pytest.mark.parametrize("axes", [(0,), (2,), (-1,), (0, 0), (2, 1), (1, -1)])
def test_stacked_rules_act_on_each_slice(axes: tuple[int, ...], rng: np.random.Generator) -> None:
    """Stack by hand, one layer transformation after another, and compare slice by slice."""
    layers = normal(rng, *(3, 2)[: len(axes)], 4, 5)  # layers in front
    flat = layers.reshape(-1, 4, 5)
    rule = Rule(lambda w: jnp.sum(w**2) ** 2, MaxNorm(0.9))  # of the sum, not of the parts

    def stack(x: jax.Array) -> jax.Array:
        # The innermost transformation stacks first.
        if len(axes) == 1:
            return jnp.stack(list(x), axes[0])
        return jnp.stack([jnp.stack(list(row), axes[0]) for row in x], axes[1])

    rules = {"w": Rule(rule.regularizer, rule.constraint, axes)}
    params = {"w": stack(layers)}
    np.testing.assert_allclose(
        penalty(params, rules), sum(rule.regularizer(w) for w in flat), rtol=1e-5
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    projected = jnp.stack([MaxNorm(0.9)(w) for w in flat]).reshape(layers.shape)
    np.testing.assert_allclose(
        one_step(project(rules), zeros, params)["w"], stack(projected), atol=1e-6
    )
    slopes, _ = add_regularization(rules).update(zeros, optax.EmptyState(), params)
    by_hand = jnp.stack([jax.grad(rule.regularizer)(w) for w in flat]).reshape(layers.shape)
    np.testing.assert_allclose(slopes["w"], stack(by_hand), rtol=1e-5)


def test_behind_adam_a_penalty_is_decoupled_decay(rng: np.random.Generator) -> None:
    """As its docstring says: where `optax.add_decayed_weights` goes."""
    params, gradients = ({"w": normal(rng, 4, 5)} for _ in range(2))

    def optimizer(decay: optax.GradientTransformation) -> optax.GradientTransformation:
        return optax.chain(optax.scale_by_adam(), decay, optax.scale_by_learning_rate(0.1))

    ours = optimizer(add_regularization({"w": Rule(L2(0.3))}))
    theirs = optimizer(optax.add_decayed_weights(0.6))  # half the gradient of a square
    assert_trees_close(one_step(ours, gradients, params), one_step(theirs, gradients, params))


def test_a_rule_that_knows_its_axes_takes_no_others(rng: np.random.Generator) -> None:
    """Such as those of layers that were stacked without Flax."""
    axis = (0, 1)
    kernel, stack = normal(rng, 4, 5, 3), normal(rng, 7, 4, 5, 3)
    rule = Rule(L2(0.1), MaxNorm(0.5, axis=axis), ndim=3)
    message = r"'w' must get a parameter of ndim=3 .* stacked_axes=\(\), got one of shape \(7, 4"
    optimizer = with_rules(optax.sgd(1.0), {"w": rule})
    with pytest.raises(ValueError, match=message):
        penalty({"w": stack}, {"w": rule})
    with pytest.raises(ValueError, match=message):
        optimizer.init({"w": stack})
    with pytest.raises(ValueError, match=message):
        optimizer.update({"w": stack}, optimizer.init({"w": kernel}), {"w": stack})

    each = np.stack([MaxNorm(0.5, axis=axis)(0.8 * w - 1) for w in stack])
    named = with_rules(optax.sgd(1.0), {"w": dataclasses.replace(rule, stacked_axes=(0,))})
    params = {"w": stack}
    slopes = {"w": jnp.ones_like(stack)}
    np.testing.assert_allclose(one_step(named, slopes, params)["w"], each, rtol=1e-5, atol=1e-6)
    mapped = jax.vmap(lambda g, p: one_step(optimizer, g, p))(slopes, params)
    np.testing.assert_allclose(mapped["w"], each, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------ precision


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision(dtype: Any, rng: np.random.Generator) -> None:
    params = {"w": normal(rng, 64, 8, dtype=dtype), "b": normal(rng, 64, dtype=dtype)}
    gradients = jax.tree.map(lambda p: normal(rng, *p.shape, dtype=dtype), params)
    rules = {"w": Rule(L2(0.1), MaxNorm(2.0)), "b": Rule(constraint=NonNeg())}
    transform = with_rules(optax.identity(), rules)
    updates, _ = transform.update(gradients, transform.init(params), params)
    assert all(u.dtype == dtype for u in jax.tree.leaves(updates))
    after = optax.apply_updates(params, updates)
    assert np.min(after["b"]) >= 0
    norms = np.linalg.norm(np.asarray(after["w"], np.float64), axis=0)
    assert norms.max() <= 2.0 * (1 + float(jnp.finfo(dtype).eps))
    # All is computed in float32, and rounded once.
    for transform in (add_regularization(rules), project(rules)):
        short, _ = transform.update(gradients, optax.EmptyState(), params)
        widened = jax.tree.map(lambda x: x.astype(jnp.float32), (gradients, params))
        long, _ = transform.update(widened[0], optax.EmptyState(), widened[1])
        assert_trees_close(short, jax.tree.map(lambda u: u.astype(dtype), long), rtol=0)


def test_nonnegative_holds_exactly(rng: np.random.Generator) -> None:
    """No rounding can take `p + (max(p + u, 0) - p)` below zero."""
    rules = {"w": Rule(constraint=NonNeg())}
    scale = 10.0 ** jnp.asarray(rng.integers(-20, 20, size=20_000), jnp.float32)
    params = {"w": normal(rng, 20_000) * scale}
    gradients = {"w": normal(rng, 20_000)}
    assert np.min(one_step(project(rules), gradients, params)["w"]) >= 0


# ------------------------------------------------------------------ inside optax


def test_jit(params: Params, gradients: Params) -> None:
    optimizer = with_rules(optax.adam(0.5), RULES)
    eager = one_step(optimizer, gradients, params)
    jitted = jax.jit(lambda g, p: one_step(optimizer, g, p))(gradients, params)
    assert_trees_close(eager, jitted, rtol=1e-5, atol=1e-6)


def test_scan_over_steps(params: Params, gradients: Params) -> None:
    """The state keeps its types, so that steps can be scanned."""
    optimizer = with_rules(optax.sgd(0.5, momentum=0.9), RULES)

    def step(carry: Any, _: None) -> Any:
        p, state = carry
        updates, state = optimizer.update(gradients, state, p)
        return (optax.apply_updates(p, updates), state), None

    (after, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=3)
    assert_obeys(after)


def test_frozen_dict(params: Params, gradients: Params) -> None:
    frozen = one_step(with_rules(optax.sgd(0.5), RULES), freeze(gradients), freeze(params))
    assert_trees_close(
        frozen, freeze(one_step(with_rules(optax.sgd(0.5), RULES), gradients, params))
    )


def test_boxed_parameters_are_called_the_same(params: Params, gradients: Params) -> None:
    def box(tree: Params) -> Any:
        return jax.tree.map(lambda x: nn.Partitioned(x, (None,) * x.ndim), tree)

    boxed = one_step(with_rules(optax.sgd(0.5), RULES), box(gradients), box(params))
    plain = one_step(with_rules(optax.sgd(0.5), RULES), gradients, params)
    assert_trees_close(nn.meta.unbox(boxed), plain)


@pytest.mark.parametrize("whole", [True, False])
def test_masked(whole: bool, params: Params, gradients: Params) -> None:
    """Masked leaves, and masked subtrees, are left to others."""
    encoder = False if whole else {"kernel": False, "bias": True}
    mask = {"encoder": encoder, "decoder": {"up": {"kernel": True, "bias": True}}}
    after = one_step(optax.masked(with_rules(optax.scale(-1.0), RULES), mask), gradients, params)
    assert_obeys(after)
    untouched = params["encoder"]["kernel"] + gradients["encoder"]["kernel"]
    np.testing.assert_array_equal(after["encoder"]["kernel"], untouched)


def test_multi_transform(params: Params, gradients: Params) -> None:
    optimizer = optax.multi_transform(
        {"rules": with_rules(optax.sgd(1.0), RULES), "plain": optax.sgd(1.0)},
        {"encoder": "plain", "decoder": "rules"},
    )
    after = one_step(optimizer, gradients, params)
    assert_obeys(after)
    expected = jax.tree.map(jnp.subtract, params["encoder"], gradients["encoder"])
    assert_trees_close(after["encoder"], expected)


@pytest.mark.parametrize(
    "within",
    [
        lambda sgd: optax.multi_transform({"a": sgd, "b": sgd}, {"encoder": "a", "decoder": "b"}),
        lambda sgd: optax.masked(sgd, {"encoder": True, "decoder": True}),
        optax.flatten,
    ],
    ids=["multi_transform", "masked", "flatten"],
)
def test_wrappers_that_change_the_tree_go_within(
    within: Any, params: Params, gradients: Params
) -> None:
    sgd = optax.sgd(0.1)
    got = one_step(with_rules(within(sgd), RULES), gradients, params)
    assert_trees_close(got, one_step(with_rules(sgd, RULES), gradients, params))


def test_a_strength_on_a_schedule(params: Params, gradients: Params) -> None:
    """As the docstring of `with_rules` writes it."""

    def optimizer(rate: Any, l2: Any) -> Any:
        rules = {"encoder/kernel": Rule(lambda w: l2 * jnp.sum(w**2))}
        return with_rules(optax.sgd(rate), rules)

    strengths = [0.1, 0.3, 0.5]
    scheduled = optax.inject_hyperparams(optimizer)(
        rate=0.1, l2=lambda step: jnp.asarray(strengths)[step]
    )
    state, at = scheduled.init(params), params
    for strength in strengths:
        updates, state = jax.jit(scheduled.update)(gradients, state, at)
        want = one_step(optimizer(0.1, strength), gradients, at)
        at = optax.apply_updates(at, updates)
        assert_trees_close(at, want)


def test_none_leaves_are_left_alone(params: Params, gradients: Params) -> None:
    rules = {"decoder/up/kernel": RULES["decoder/up/kernel"], "encoder/kernel": Rule(L1(1.0))}
    without = ({**tree, "encoder": {"kernel": None, "bias": None}} for tree in (gradients, params))
    after = one_step(with_rules(optax.identity(), rules), *without)
    assert after["encoder"] == {"kernel": None, "bias": None}
    full = one_step(with_rules(optax.identity(), rules), gradients, params)
    assert_trees_close(after["decoder"], full["decoder"])


@pytest.mark.parametrize("hole", [None, optax.MaskedNode()])
def test_holes_have_no_penalty(hole: Any, params: Params) -> None:
    """One parameter, a part of the tree, or all of it."""
    full = float(penalty(params, RULES))
    encoder = float(penalty(params, {"encoder/kernel": RULES["encoder/kernel"]}))
    without = {**params, "encoder": {**params["encoder"], "kernel": hole}}
    np.testing.assert_allclose(penalty(without, RULES), full - encoder, rtol=1e-6)
    np.testing.assert_allclose(
        penalty({**params, "encoder": hole}, RULES), full - encoder, rtol=1e-6
    )
    assert penalty(hole, RULES) == 0


def test_a_regularizer_is_given_float32_at_least() -> None:
    seen = []

    def regularizer(kernel: jax.Array) -> jax.Array:
        seen.append(kernel.dtype)
        return jnp.sum(kernel)

    params = {"kernel": jnp.ones((3, 2), jnp.bfloat16)}
    assert penalty(params, {"kernel": Rule(regularizer)}) == 6
    assert seen == [jnp.float32]


@pytest.mark.parametrize("outside", [True, False])
def test_multi_steps(outside: bool, params: Params, gradients: Params) -> None:
    """Accumulated gradients step once, and the step is regularized and projected once."""
    inner = optax.sgd(1.0)
    if outside:
        optimizer = with_rules(optax.MultiSteps(inner, 2).gradient_transformation(), RULES)
    else:
        optimizer = optax.MultiSteps(with_rules(inner, RULES), 2)
    params = one_step(project(RULES), jax.tree.map(jnp.zeros_like, params), params)
    state, p = optimizer.init(params), params
    for scale in (0.5, 1.5):
        updates, state = optimizer.update(
            jax.tree.map(lambda g, s=scale: s * g, gradients), state, p
        )
        before, p = p, optax.apply_updates(p, updates)
        if scale == 0.5:
            assert_trees_close(p, before, atol=1e-6)
    assert_trees_close(p, one_step(with_rules(inner, RULES), gradients, params), atol=1e-5)
    assert_obeys(p)


def test_apply_if_finite(params: Params, gradients: Params) -> None:
    """It needs updates of the same types on both branches, in bfloat16 too."""
    params, gradients = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, gradients))
    optimizer = optax.apply_if_finite(with_rules(optax.sgd(1.0), RULES), 5)
    after = one_step(optimizer, gradients, params)
    assert np.min(after["decoder"]["up"]["bias"]) >= 0
    nans = jax.tree.map(lambda g: g * np.nan, gradients)
    assert_trees_close(one_step(optimizer, nans, params), params, rtol=0)


def test_map_over_optimizer_state(params: Params) -> None:
    """optax finds what is a copy of the parameters by calling init with none at all."""
    optimizer = with_rules(optax.adam(0.1), RULES)
    doubled = optax.tree.map_params(optimizer, lambda x: x + 2, optimizer.init(params))
    moments = [x for x in jax.tree.leaves(doubled) if np.ndim(x)]
    assert len(moments) == 2 * len(jax.tree.leaves(params))
    assert all((m == 2).all() for m in moments)


# ------------------------------------------------------------------ errors


def calls(rules: Any, params: Params) -> list[Any]:
    """Every way in which rules meet parameters."""
    add, proj = add_regularization(rules), project(rules)
    return [
        lambda: penalty(params, rules),
        lambda: add.init(params),
        lambda: add.update(params, optax.EmptyState(), params),
        lambda: proj.init(params),
        lambda: proj.update(params, optax.EmptyState(), params),
        lambda: with_rules(optax.sgd(1.0), rules).init(params),
        lambda: jax.jit(with_rules(optax.sgd(1.0), rules).init)(params),
    ]


def test_a_rule_without_a_parameter_is_an_error(params: Params) -> None:
    match = "no parameter matches the rule for 'decoder/up/kernl'; .*'decoder/up/kernel'"
    for call in calls({"decoder/up/kernl": Rule()}, params):
        with pytest.raises(ValueError, match=match):
            call()


def test_a_rule_for_a_whole_layer_is_an_error(params: Params) -> None:
    with pytest.raises(ValueError, match="no parameter matches the rule for 'decoder/up'"):
        penalty(params, {"decoder/up": Rule()})


def test_a_rule_beside_a_mask_is_an_error(params: Params, gradients: Params) -> None:
    """Only what is under the mask is excused."""
    optimizer = optax.masked(
        with_rules(optax.sgd(1.0), {"decodr/kernel": Rule()}),
        {
            "encoder": False,
            "decoder": True,
        },
    )
    with pytest.raises(ValueError, match="decodr/kernel"):
        optimizer.init(params)


def test_an_empty_tree_has_no_near_matches() -> None:
    with pytest.raises(ValueError, match=r"'a'; .* none, as the tree is empty"):
        penalty({}, {"a": Rule()})


@pytest.mark.parametrize("transform", [add_regularization, project])
def test_update_needs_the_parameters(transform: Any, params: Params, gradients: Params) -> None:
    transform = transform(RULES)
    with pytest.raises(ValueError, match="needs the parameters"):
        transform.update(gradients, transform.init(params))


def test_a_regularizer_must_return_a_scalar(params: Params) -> None:
    rules = {"encoder/kernel": Rule(regularizer=jnp.abs)}
    match = r"regularizer of 'encoder/kernel' must return a scalar, got shape \(3, 2\)"
    for call in (
        lambda: penalty(params, rules),
        lambda: one_step(add_regularization(rules), params, params),
        lambda: jax.jit(lambda p: penalty(p, rules))(params),
    ):
        with pytest.raises(ValueError, match=match):
            call()


@pytest.mark.parametrize(
    ("constraint", "match"),
    [
        (lambda w: w[:-1], r"got float32\[2, 2\] for float32\[3, 2\]"),
        (lambda w: w.astype(jnp.bfloat16), r"got bfloat16\[3, 2\] for float32\[3, 2\]"),
    ],
)
def test_a_constraint_must_keep_shape_and_dtype(
    constraint: Any, match: str, params: Params
) -> None:
    with pytest.raises(ValueError, match=f"of 'encoder/kernel' must keep shape and dtype, {match}"):
        one_step(project({"encoder/kernel": Rule(constraint=constraint)}), params, params)


@pytest.mark.parametrize(
    ("rules", "match"),
    [
        ([("encoder/kernel", Rule())], "rules must be a mapping"),
        ({"encoder/kernel": L2(0.1)}, "rules must map strings to .*, got 'encoder/kernel': L2"),
        ({("encoder", "kernel"): Rule()}, r"rules must map strings to .*\('encoder', 'kernel'\)"),
    ],
)
def test_rules_of_a_wrong_type(rules: Any, match: str, params: Params) -> None:
    for call in (
        lambda: penalty(params, rules),
        lambda: add_regularization(rules),
        lambda: project(rules),
        lambda: with_rules(optax.sgd(1.0), rules),
    ):
        with pytest.raises(TypeError, match=match):
            call()


def test_rules_are_copied(params: Params, gradients: Params) -> None:
    rules = dict(RULES)
    optimizer = with_rules(optax.sgd(1.0), rules)
    rules.clear()
    assert_obeys(one_step(optimizer, gradients, params))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"regularizer": 0.1}, "regularizer must be callable or None, got 0.1"),
        ({"constraint": "max_norm"}, "constraint must be callable or None, got 'max_norm'"),
        ({"stacked_axes": 0}, "stacked_axes must be a tuple of integers, got 0"),
        ({"stacked_axes": [0]}, r"stacked_axes must be a tuple of integers, got \[0\]"),
        ({"stacked_axes": (0.0,)}, r"stacked_axes must be a tuple of integers, got \(0.0,\)"),
        ({"stacked_axes": (True,)}, r"stacked_axes must be a tuple of integers, got \(True,\)"),
        ({"ndim": 2.0}, "ndim must be an integer or None, got 2.0"),
    ],
)
def test_bad_rules(fields: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        Rule(**fields)


def test_paths_of_sequences(rng: np.random.Generator) -> None:
    params = {"blocks": [{"kernel": normal(rng, 2)}, {"kernel": normal(rng, 3)}]}
    paths = [path for path, _ in named_leaves(params)]
    assert paths == ["blocks/0/kernel", "blocks/1/kernel"]


class Attention(NamedTuple):
    """Not a box: one of its parameters is called as what boxes hold."""

    key: Any
    value: Any


def test_constraints_hold_after_updates_of_less_precision(rng: np.random.Generator) -> None:
    """Rounded to 16 bits, a large update would miss what the constraint allows."""
    params = {"w": jnp.asarray(normal(rng, 40, 30)), "b": jnp.asarray(normal(rng, 30))}
    rules = {"w": Rule(None, MaxNorm(1.0)), "b": Rule(None, NonNeg())}
    updates = jax.tree.map(lambda p: jnp.asarray(100 * normal(rng, *p.shape), jnp.bfloat16), params)
    for promotion in ("standard", "strict"):
        with jax.numpy_dtype_promotion(promotion):
            projected, _ = project(rules).update(updates, optax.EmptyState(), params)
        assert projected["w"].dtype == jnp.float32
        after = optax.apply_updates(params, projected)
        assert np.linalg.norm(np.asarray(after["w"], np.float64), axis=0).max() <= 1 + 1e-3
        assert after["b"].min() >= 0


def test_errors_within_rules_say_whose_they_are() -> None:
    params = {"up": {"bias": jnp.ones(3)}}
    axis = MaxNorm(axis=1)  # of a bias
    for rule, what in ((Rule(None, axis), "constraint"), (Rule(axis), "regularizer")):
        optimizer = with_rules(optax.sgd(0.1), {"up/bias": rule})
        unchecked = with_rules(optax.sgd(0.1), {}).init(params)
        cannot = (
            r"^MaxNorm\(.*\) cannot be applied to 'up/bias', whose shape is \(3,\): axis .* 1 for"
        )
        with pytest.raises(ValueError, match=cannot):
            optimizer.init(params)
        with pytest.raises(ValueError, match=r"axis must name .*, got 1 for \(3,\)") as info:
            optimizer.update(params, unchecked, params)
        assert any(f"in the {what} of 'up/bias'" in note for note in info.value.__notes__)


def test_updates_that_do_not_fit() -> None:
    """They are broadcast to nothing, and none is left out."""
    params = {"up": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    optimizer = with_rules(optax.sgd(0.1), {"up/kernel": Rule(L2(0.1), NonNeg())})
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"updates .*, got \(3,\) for 'up/kernel', .* \(2, 3\)"):
        optimizer.update({"up": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}}, state, params)
    with pytest.raises(ValueError, match=r"(?i)structure|arity|children") as info:
        optimizer.update({"up": {"kernel": jnp.ones((2, 3))}}, state, params)
    assert "updates must have the structure of params" in info.value.__notes__


@pytest.mark.parametrize(
    "around",
    [
        lambda optimizer: optax.MultiSteps(optimizer, 2),
        lambda optimizer: optax.lookahead(optimizer, sync_period=3, slow_step_size=0.5),
    ],
    ids=["multi_steps", "lookahead"],
)
def test_wrappers_that_skip_steps_or_keep_weights_go_round(around: Any) -> None:
    """As the docstring of `with_rules` says. The gradient is that of `(w + 1) ** 2`."""
    optimizer = around(with_rules(optax.sgd(0.1), {"w": Rule(L2(0.1), NonNeg())}))
    lookahead = not isinstance(optimizer, optax.MultiSteps)
    params: Any = {"w": jnp.ones(3)}
    params = optax.LookaheadParams.init_synced(params) if lookahead else params
    state = optimizer.init(params)
    for _ in range(12):
        w = (params.fast if lookahead else params)["w"]
        updates, state = optimizer.update({"w": 2 * (w + 1)}, state, params)
        params = optax.apply_updates(params, updates)
    w = (params.slow if lookahead else params)["w"]
    assert 0 <= w.min() <= w.max() < 0.5


def test_wrappers_are_told_where_they_belong() -> None:
    with pytest.raises(TypeError, match=r"optax\.MultiSteps go round with_rules"):
        with_rules(optax.MultiSteps(optax.sgd(0.1), 2), {})


def test_a_parameter_may_be_called_value(rng: np.random.Generator) -> None:
    params = {"attention": Attention(normal(rng, 2), normal(rng, 3))}
    rules = {"attention/value": Rule(jnp.sum, jnp.zeros_like)}
    np.testing.assert_allclose(penalty(params, rules), params["attention"].value.sum(), rtol=1e-6)
    optimizer = project(rules)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert (updates["attention"].key == params["attention"].key).all()
    np.testing.assert_allclose(updates["attention"].value, -params["attention"].value, rtol=1e-6)
    with pytest.raises(ValueError, match="no parameter matches the rule for 'attention'"):
        penalty(params, {"attention": Rule(jnp.sum)})


def test_regularizers_are_held_to_what_the_caller_is() -> None:
    """Only the sum of their penalties is promoted."""
    rules = {"a": Rule(lambda w: jnp.sum(w) + jnp.ones((), jnp.bfloat16))}
    with jax.numpy_dtype_promotion("strict"), pytest.raises(jax.dtypes.TypePromotionError):
        penalty({"a": jnp.ones(2)}, rules)


def test_penalty_of_many_dtypes_under_strict_promotion(rng: np.random.Generator) -> None:
    rules = {"a": Rule(jnp.sum), "b": Rule(jnp.sum)}
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        params = {"a": jnp.ones(2, jnp.float64), "b": jnp.ones(3, jnp.bfloat16)}
        assert float(penalty(params, rules)) == 5
