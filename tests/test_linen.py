"""The linen layers: arguments, variables, losses, and the rules that a model's layers declare."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

import oracle
from upconv import initializers
from upconv.constraints import MaxNorm, NonNeg
from upconv.linen import (
    Conv1DTranspose,
    Conv2DTranspose,
    Conv3DTranspose,
    ConvTranspose,
    losses,
    rules,
)
from upconv.regularizers import L1, L2
from upconv.rules import Rule, named_leaves
from upconv.transforms import penalty, with_rules

LAYERS = {1: Conv1DTranspose, 2: Conv2DTranspose, 3: Conv3DTranspose}
SPATIAL = (5, 4, 3)

# Of tf.layers.Conv2DTranspose, in its order; the parity tests read the same from the real class.
SEED_ARGUMENTS = [
    "filters", "kernel_size", "strides", "padding", "data_format", "activation", "use_bias",
    "kernel_initializer", "bias_initializer", "kernel_regularizer", "bias_regularizer",
    "activity_regularizer", "kernel_constraint", "bias_constraint", "trainable",
]  # fmt: skip
OUR_ARGUMENTS = [
    "output_padding", "dilation_rate", "groups", "dtype", "param_dtype", "precision", "lowering",
]  # fmt: skip

KEY = jax.random.key(3)
DECLARED = Rule(L2(0.1), MaxNorm(0.5))


def images(rng: np.random.Generator, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape or (2, 5, 4, 3)), dtype)


def layer(filters: int = 6, **arguments: Any) -> Conv2DTranspose:
    return Conv2DTranspose(filters, (3, 2), 2, **arguments)


# ------------------------------------------------------------------ values


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_ranks_need_no_promotion(data_format: str, rng: np.random.Generator) -> None:
    """As those of Flax do not: code that forbids it goes on."""
    x = images(rng, 2, 5, 4, 5)
    makers = [
        lambda: layer(data_format=data_format, bias_initializer=None),
        lambda: ConvTranspose(6, (3, 2), (2, 2), bias_init=nn.initializers.normal()),
    ]
    for make in makers:
        variables = make().init(KEY, x)
        want = make().apply(variables, x)
        with jax.numpy_rank_promotion("raise"):
            np.testing.assert_array_equal(make().apply(variables, x), want)


def test_interceptors_see_the_call_alone(rng: np.random.Generator) -> None:
    """Whose arguments are arrays, as those of Flax's layers are."""
    seen = []

    def see(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        seen.append(context.method_name)
        return call(*jax.tree.map(jnp.asarray, args), **kwargs)

    x, module = images(rng), layer(activity_regularizer=L2(0.1), kernel_regularizer=L2(0.1))
    variables = module.init(KEY, x)
    with nn.intercept_methods(see):
        module.apply(variables, x, mutable=["losses"])
    assert seen == ["__call__"]


def test_the_shape_of_a_bound_layer_is_that_of_a_call(rng: np.random.Generator) -> None:
    x, module = images(rng), layer()
    bound = module.bind(module.init(KEY, x))
    assert bound.compute_output_shape(x.shape) == bound(x).shape
    with pytest.raises(ValueError, match="inputs must have 3 channels on axis -1"):
        bound.compute_output_shape((2, 5, 4, 4))
    stack = nn.vmap(
        Conv2DTranspose, variable_axes={"params": -1}, split_rngs={"params": True}, in_axes=None,
        axis_size=7,
    )(6, (3, 2), 2)  # fmt: skip
    bound = stack.bind(stack.init(KEY, x))
    assert bound(x).shape == (7, *bound.compute_output_shape(x.shape))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_values(
    rank: int, data_format: str, batch: tuple[int, ...], rng: np.random.Generator
) -> None:
    """Against the oracle: kernel, bias, activation, layout, any number of batch axes."""
    kernel_size, strides = (3, 2, 4)[:rank], (2, 3, 1)[:rank]
    x = rng.normal(size=(*batch, *SPATIAL[:rank], 4))
    first = data_format == "channels_first"
    inputs = jnp.asarray(np.moveaxis(x, -1, -1 - rank) if first else x, jnp.float32)
    module = LAYERS[rank](
        6, kernel_size, strides, "SAME", data_format.upper(), jnp.tanh, groups=2,
        bias_initializer=None,
    )  # fmt: skip
    variables = module.init(KEY, inputs)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    assert kernel.shape == (*kernel_size, 3, 4)
    assert bias.shape == (6,)
    expected = np.tanh(
        oracle.conv_transpose(x, kernel, strides=strides, padding="same", groups=2) + bias
    )
    got = module.apply(variables, inputs)
    got = np.moveaxis(got, -1 - rank, -1) if first else got
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": "valid", "output_padding": 1},
        {"padding": "same", "dilation_rate": (1, 3)},
        {"padding": ((1, 0), (0, 1)), "output_padding": (1, 0)},
        {"padding": "circular"},
    ],
    ids=str,
)
def test_our_arguments_reach_the_convolution(
    arguments: dict[str, Any], rng: np.random.Generator
) -> None:
    x = images(rng)
    module = layer(use_bias=False, **arguments)
    variables = module.init(KEY, x)
    expected = oracle.conv_transpose(x, variables["params"]["kernel"], strides=2, **arguments)
    out = module.apply(variables, x)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert module.compute_output_shape(x.shape) == out.shape


@pytest.mark.parametrize(
    ("name", "function"), [("relu", jax.nn.relu), ("softplus", jax.nn.softplus)]
)
def test_activation_by_name(name: str, function: Callable, rng: np.random.Generator) -> None:
    x = images(rng)
    variables = layer().init(KEY, x)
    np.testing.assert_array_equal(
        layer(activation=name).apply(variables, x), function(layer().apply(variables, x))
    )


@pytest.mark.parametrize(
    ("x", "dtype", "param_dtype", "expected"),
    [
        (jnp.float32, None, jnp.float32, jnp.float32),
        (jnp.bfloat16, None, jnp.float32, jnp.float32),
        (jnp.bfloat16, None, jnp.bfloat16, jnp.bfloat16),
        (jnp.float32, jnp.bfloat16, jnp.float32, jnp.bfloat16),
        (jnp.int32, None, jnp.float32, jnp.float32),
        (jnp.float32, "float16", "float32", jnp.float16),
    ],
)
def test_dtypes(
    x: Any, dtype: Any, param_dtype: Any, expected: Any, rng: np.random.Generator
) -> None:
    inputs = images(rng, dtype=x)
    out, variables = layer(dtype=dtype, param_dtype=param_dtype).init_with_output(KEY, inputs)
    assert out.dtype == expected
    assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype(param_dtype)}


def test_initializers(rng: np.random.Generator) -> None:
    """None draws glorot uniform, for kernel and bias; without a word the bias is zeros."""
    x = images(rng, 1, 4, 4, 64)
    params = layer(96, bias_initializer=None).init(KEY, x)["params"]
    limit = np.sqrt(6 / ((64 + 96) * 3 * 2))
    np.testing.assert_allclose(np.abs(params["kernel"]).max(), limit, rtol=1e-2)
    np.testing.assert_allclose(np.abs(params["bias"]).max(), np.sqrt(3 / 96), rtol=5e-2)
    np.testing.assert_array_equal(layer().init(KEY, x)["params"]["bias"], np.zeros(6))
    chosen = layer(kernel_initializer=initializers.he_normal(strides=2))
    assert chosen.init(KEY, x)["params"]["kernel"].std() > 1.3 * limit / np.sqrt(3)


def test_default_initializer_knows_the_groups(rng: np.random.Generator) -> None:
    params = layer(96, groups=8).init(KEY, images(rng, 1, 4, 4, 64))["params"]
    limit = np.sqrt(6 / ((64 / 8 + 96 / 8) * 3 * 2))
    np.testing.assert_allclose(np.abs(params["kernel"]).max(), limit, rtol=1e-2)


def test_without_bias(rng: np.random.Generator) -> None:
    assert set(layer(use_bias=False).init(KEY, images(rng))["params"]) == {"kernel"}


# ------------------------------------------------------------------ a module like any other


def test_arguments_are_those_of_the_seed() -> None:
    for cls in LAYERS.values():
        parameters = inspect.signature(cls).parameters
        assert list(parameters)[: len(SEED_ARGUMENTS)] == SEED_ARGUMENTS
        assert set(parameters) == {*SEED_ARGUMENTS, *OUR_ARGUMENTS, "name", "parent"}


@pytest.mark.parametrize("cls", [*LAYERS.values(), type("Sub", (Conv2DTranspose,), {})])
def test_ours_are_keyword_only(cls: Any) -> None:
    positional = (4, 3, 1, "valid", "channels_last", None, True, None, None)
    nones = (None,) * 5
    assert cls(*positional, *nones, False).trainable is False
    with pytest.raises(TypeError):
        cls(*positional, *nones, False, 1)


def test_fields_have_one_spelling() -> None:
    a = Conv2DTranspose(np.int64(4), [3, 3], [2, 2], "SAME", "Channels_Last", dilation_rate=[1, 1])
    b = Conv2DTranspose(4, 3, 2, "same", dilation_rate=1)
    assert a == b
    assert hash(a) == hash(b)
    assert (b.kernel_size, b.strides, b.dilation_rate) == ((3, 3), (2, 2), (1, 1))
    assert layer(padding=[1, (0, 2)]).padding == ((1, 1), (0, 2))


def test_copies(rng: np.random.Generator) -> None:
    module = layer(kernel_constraint=MaxNorm(axis=[0, 1, 3]), output_padding=[0, 1], name="up")
    assert module.clone() == module
    copy = pickle.loads(pickle.dumps(module))
    assert copy == module
    x = images(rng)
    np.testing.assert_array_equal(
        copy.init_with_output(KEY, x)[0], module.init_with_output(KEY, x)[0]
    )
    assert module.copy(filters=8).filters == 8
    with pytest.raises(ValueError, match="filters must be at least 1, got 0"):
        module.copy(filters=0)


def test_subclass(rng: np.random.Generator) -> None:
    class Scaled(Conv2DTranspose):
        """Another field, another call."""

        scale: float = 3.0

        def __call__(self, inputs: jax.Array) -> jax.Array:
            return self.scale * super().__call__(inputs)

    x = images(rng)
    variables = layer().init(KEY, x)
    np.testing.assert_allclose(
        Scaled(6, (3, 2), 2).apply(variables, x), 3.0 * layer().apply(variables, x)
    )


def test_trainable_false_hides_the_parameters_from_optimizers(rng: np.random.Generator) -> None:
    x = images(rng)
    frozen = layer(trainable=False, kernel_regularizer=L2(1.0))
    variables = frozen.init(KEY, x)
    assert set(variables) == {"non_trainable"}
    kernel, bias = variables["non_trainable"]["kernel"], variables["non_trainable"]["bias"]
    assert kernel.shape == (3, 2, 6, 3)
    assert kernel.std() > 0
    same = {"params": {"kernel": kernel, "bias": bias}}
    np.testing.assert_array_equal(frozen.apply(variables, x), layer().apply(same, x))
    assert (
        frozen.init(jax.random.key(4), x)["non_trainable"]["kernel"].ravel()[0] != kernel.ravel()[0]
    )


@pytest.mark.parametrize("name", ["kernel", "bias"])
def test_frozen_parameters_keep_their_shapes(name: str, rng: np.random.Generator) -> None:
    """As Flax sees to it where they are parameters: a bias of one number would be broadcast."""
    x = images(rng)
    frozen = layer(trainable=False)
    held = dict(frozen.init(KEY, x)["non_trainable"])
    held[name] = held[name][:1]
    with pytest.raises(ValueError, match=rf"the {name} of '' must have the shape \(.*got \(1,"):
        frozen.apply({"non_trainable": held}, x)


def test_activation_may_be_a_module(rng: np.random.Generator) -> None:
    x = images(rng)
    module = layer(activation=nn.PReLU(negative_slope_init=0.3))
    variables = module.init(KEY, x)
    assert set(variables["params"]) == {"kernel", "bias", "activation"}
    plain = layer().apply(variables, x)
    np.testing.assert_allclose(
        module.apply(variables, x), np.where(plain > 0, plain, 0.3 * plain), rtol=1e-6
    )
    nested = nn.Sequential([module])
    np.testing.assert_array_equal(
        nested.apply({"params": {"layers_0": variables["params"]}}, x), module.apply(variables, x)
    )


def test_scope_name(rng: np.random.Generator) -> None:
    names = []

    class Decoder(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            up = layer(name="up1")
            x = up(x)
            names.append(up.scope_name)
            return x

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return Decoder(name="decoder")(x)

    Model().init(KEY, images(rng))
    assert names == ["decoder/up1"]
    with pytest.raises(ValueError, match="scope_name is not known before the layer is used"):
        layer().scope_name  # noqa: B018


def test_graph_is_deprecated() -> None:
    with pytest.warns(DeprecationWarning, match="graph is deprecated") as caught:
        assert layer().graph is None
    assert caught[0].filename == __file__  # whoever asked is told, not Flax


def test_compute_output_shape() -> None:
    assert layer().compute_output_shape((7, 5, 4, 3)) == (7, 11, 8, 6)
    assert layer(data_format="channels_first").compute_output_shape((3, 5, 4)) == (6, 11, 8)
    with pytest.raises(ValueError, match=r"input_shape must .* got \(5, 4\)"):
        layer().compute_output_shape((5, 4))


# ------------------------------------------------------------------ losses


def test_activity_regularization_is_divided_by_the_batch_size(rng: np.random.Generator) -> None:
    x = images(rng, 7, 5, 4, 3)
    module = layer(activation="relu", activity_regularizer=L2(0.3))
    variables = module.init(KEY, x)
    assert set(variables) == {"params"}  # init's variables can be passed on
    out, state = module.apply(variables, x, mutable=["losses"])
    np.testing.assert_allclose(losses(state), 0.3 * np.sum(np.square(out)) / 7, rtol=1e-5)
    batches = x.reshape(7, 1, 5, 4, 3)
    _, state = module.apply(variables, batches, mutable=["losses"])
    np.testing.assert_allclose(losses(state), 0.3 * np.sum(np.square(out)) / 7, rtol=1e-5)
    _, state = module.apply(variables, x[0], mutable=["losses"])
    np.testing.assert_allclose(losses(state), 0.3 * np.sum(np.square(out[0])), rtol=1e-5)


def test_losses_are_optional(rng: np.random.Generator) -> None:
    x = images(rng)
    module = layer(activity_regularizer=L2(0.3))
    assert isinstance(module.apply(module.init(KEY, x), x), jax.Array)
    assert losses({}) == 0
    assert losses({}).dtype == jnp.float32


def test_losses_add_up_over_layers_and_calls(rng: np.random.Generator) -> None:
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> list[jax.Array]:
            up = Conv2DTranspose(3, 3, activity_regularizer=L1(0.5))
            first = up(x)
            return [first, up(first), Conv2DTranspose(2, 2, activity_regularizer=L2(0.1))(first)]

    x = images(rng)
    variables = Twice().init(KEY, x)
    (a, b, c), state = Twice().apply(variables, x, mutable=["losses"])
    expected = 0.5 * (np.abs(a).sum() + np.abs(b).sum()) + 0.1 * np.square(c).sum()
    np.testing.assert_allclose(losses(state), expected / 2, rtol=1e-5)


def test_losses_of_scanned_layers(rng: np.random.Generator) -> None:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            x = Conv2DTranspose(3, 3, padding="same", activity_regularizer=L2(0.5))(x)
            return x, x

    blocks = nn.scan(
        Block, variable_axes={"params": 0, "losses": 0}, split_rngs={"params": True}, length=4
    )()
    x = images(rng)
    (_, every), state = blocks.apply(blocks.init(KEY, x, None), x, None, mutable=["losses"])
    np.testing.assert_allclose(losses(state), 0.5 * np.square(every).sum() / 2, rtol=1e-5)


# ------------------------------------------------------------------ rules


def declaring(filters: int = 3, **arguments: Any) -> Conv2DTranspose:
    """A layer whose kernel has DECLARED for its rule, and whose shape is that of its input."""
    return Conv2DTranspose(
        filters, 3, padding="same", kernel_regularizer=L2(0.1), kernel_constraint=MaxNorm(0.5),
        **arguments,
    )  # fmt: skip


def check(module: nn.Module, expected: dict[str, Rule], *args: Any, **kwargs: Any) -> None:
    """The rules are as expected, name parameters, and leave init as it was, before and after."""
    before = jax.eval_shape(lambda: module.init(KEY, *args, **kwargs))
    assert rules(module, *args, **kwargs) == expected
    variables = module.init(KEY, *args, **kwargs)
    assert jax.tree.structure(variables) == jax.tree.structure(before)
    paths = {"/".join(path) for path in flatten_dict(variables["params"])}
    assert set(expected) <= paths
    assert np.isfinite(penalty(variables["params"], expected))
    assert rules(module, *args, **kwargs) == expected


def test_rules_of_one_layer(rng: np.random.Generator) -> None:
    module = layer(
        kernel_regularizer=L2(0.1),
        kernel_constraint=MaxNorm(0.5),
        bias_regularizer=L1(0.2),
        bias_constraint=NonNeg(),
    )
    check(module, {"kernel": DECLARED, "bias": Rule(L1(0.2), NonNeg())}, images(rng))
    check(layer(kernel_constraint=NonNeg()), {"kernel": Rule(None, NonNeg())}, images(rng))
    check(layer(bias_regularizer=L1(0.2)), {"bias": Rule(L1(0.2))}, images(rng))
    check(layer(), {}, images(rng))


class Compact(nn.Module):
    """Layers of ours among others, twice nested."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(3, (3, 3))(x)
        x = declaring(name="up1")(x)
        return Tail(name="tail")(x)


class Tail(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return declaring(bias_constraint=NonNeg())(nn.Dense(3)(x))


class Setup(nn.Module):
    def setup(self) -> None:
        self.blocks = [declaring(), declaring(trainable=False)]
        self.head = Compact()

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


COMPACT = {
    "up1/kernel": DECLARED,
    "tail/Conv2DTranspose_0/kernel": DECLARED,
    "tail/Conv2DTranspose_0/bias": Rule(None, NonNeg()),
}


def test_rules_of_nested_modules(rng: np.random.Generator) -> None:
    check(Compact(), COMPACT, images(rng))


def test_rules_of_setup_and_frozen_layers(rng: np.random.Generator) -> None:
    nested = {f"head/{path}": rule for path, rule in COMPACT.items()}
    check(Setup(), {"blocks_0/kernel": DECLARED, **nested}, images(rng))


def test_rules_of_a_model_that_is_frozen_altogether(rng: np.random.Generator) -> None:
    assert rules(declaring(trainable=False), images(rng)) == {}


def test_rules_of_a_shared_layer(rng: np.random.Generator) -> None:
    class Shared(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            up = declaring(name="up")
            return up(up(x))

    check(Shared(), {"up/kernel": DECLARED}, images(rng))


def test_rules_of_sequential_layers(rng: np.random.Generator) -> None:
    module = nn.Sequential([nn.Dense(3), declaring(), nn.relu])
    check(module, {"layers_1/kernel": DECLARED}, images(rng))


class Block(nn.Module):
    """What scan takes: a carry, and nothing to scan over."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return declaring(name="up", use_bias=False)(x), None  # a bias has one axis only


def stacked(*axes: int) -> Rule:
    return Rule(DECLARED.regularizer, DECLARED.constraint, axes)


def test_layers_stacked_by_jax_are_not_taken_for_one(rng: np.random.Generator) -> None:
    """Flax does not know of them, so the rules do not say that they are stacked."""
    module, x = layer(kernel_constraint=MaxNorm(0.5)), images(rng)
    keys = jax.random.split(jax.random.key(0), 3)
    stack = jax.vmap(lambda key: module.init(key, x)["params"])(keys)
    optimizer = with_rules(optax.sgd(0.1), rules(module, x))
    with pytest.raises(ValueError, match="'kernel' must get a parameter of ndim=4"):
        optimizer.init(stack)
    jax.vmap(optimizer.init)(stack)


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_rules_of_scanned_layers(axis: int, rng: np.random.Generator) -> None:
    blocks = nn.scan(Block, {"params": axis}, split_rngs={"params": True}, length=4)()
    check(blocks, {"up/kernel": stacked(axis)}, images(rng), None)


def test_rules_of_a_scan_that_shares_its_parameters(rng: np.random.Generator) -> None:
    blocks = nn.scan(Block, variable_broadcast="params", split_rngs={"params": False}, length=4)()
    check(blocks, {"up/kernel": DECLARED}, images(rng), None)


def test_rules_of_scans_in_scans(rng: np.random.Generator) -> None:
    inner = nn.scan(Block, {"params": 1}, split_rngs={"params": True}, length=4)
    outer = nn.scan(inner, {"params": 0}, split_rngs={"params": True}, length=2)()
    check(outer, {"up/kernel": stacked(1, 0)}, images(rng), None)


def test_rules_of_a_scan_that_is_called_twice(rng: np.random.Generator) -> None:
    """Entering a scan again takes the axis off, leaving it puts it back."""

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            blocks = nn.scan(Block, {"params": 0}, split_rngs={"params": True}, length=4)(name="b")
            return blocks(blocks(x, None)[0], None)[0]

    check(Twice(), {"b/up/kernel": stacked(0)}, images(rng))


@pytest.mark.parametrize("axis", [0, 3, None])
def test_rules_of_mapped_layers(axis: int | None, rng: np.random.Generator) -> None:
    mapped = nn.vmap(
        Conv2DTranspose, variable_axes={"params": axis}, split_rngs={"params": axis is not None}
    )
    module = mapped(
        3, 3, padding="same", use_bias=False,
        kernel_regularizer=L2(0.1), kernel_constraint=MaxNorm(0.5),
    )  # fmt: skip
    expected = DECLARED if axis is None else stacked(axis)
    check(module, {"kernel": expected}, images(rng, 4, 2, 5, 4, 3))


def test_rules_of_a_mapped_scan(rng: np.random.Generator) -> None:
    scanned = nn.scan(Block, {"params": 0}, split_rngs={"params": True}, length=4)
    mapped = nn.vmap(
        scanned, in_axes=(0, None), variable_axes={"params": 2}, split_rngs={"params": True}
    )
    check(mapped(), {"up/kernel": stacked(0, 2)}, images(rng, 5, 2, 5, 4, 3), None)


def test_rules_of_rematerialized_layers(rng: np.random.Generator) -> None:
    check(nn.remat(Compact)(), COMPACT, images(rng))
    blocks = nn.scan(nn.remat(Block), {"params": 0}, split_rngs={"params": True}, length=4)()
    check(blocks, {"up/kernel": stacked(0)}, images(rng), None)


# One class, as nn.jit keeps what it has compiled for each.
Compiled = nn.jit(Compact)


@pytest.mark.parametrize("rules_first", [True, False])
def test_rules_of_compiled_layers(rules_first: bool, rng: np.random.Generator) -> None:
    """What nn.jit has cached for one is not used for the other, in either order."""
    module = Compiled()
    x = images(rng, 2, 5 + rules_first, 4, 3)  # a shape that nothing has been compiled for yet
    if rules_first:
        assert rules(module, x) == COMPACT
    variables = module.init(KEY, x)
    assert all(isinstance(leaf, jax.Array) for leaf in flatten_dict(variables).values())
    check(module, COMPACT, x)
    compiled = jax.jit(module.init)(KEY, x)
    assert jax.tree.structure(compiled) == jax.tree.structure(variables)


def test_rules_under_jit(rng: np.random.Generator) -> None:
    """An optimizer may be made inside a compiled training step."""
    x = images(rng)
    params = Compact().init(KEY, x)["params"]

    @jax.jit
    def step(params: Any, x: jax.Array) -> Any:
        optimizer = with_rules(optax.sgd(1.0), rules(Compact(), x))
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    norms = np.sqrt(np.square(step(params, x)["up1"]["kernel"]).sum(0))
    assert norms.max() <= 0.5 * (1 + 1e-6)


class Busy(nn.Module):
    """Needs more than inputs: a flag, a second stream of random numbers, statistics."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, *, scale: jax.Array | None = None) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train)(declaring(name="up")(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        noise = jax.random.normal(self.make_rng("noise"), x.shape) if train else 0.0
        return (x + noise) * (1.0 if scale is None else scale)

    def encode(self, x: jax.Array) -> jax.Array:
        return x

    @nn.compact
    def decode(self, x: jax.Array) -> jax.Array:
        return declaring(name="other")(x)


def test_rules_of_models_that_need_more_than_inputs(rng: np.random.Generator) -> None:
    x = images(rng)
    expected = {"up/kernel": DECLARED}
    assert rules(Busy(), x, True) == expected
    assert rules(Busy(), x, False, scale=jnp.float32(2.0)) == expected
    assert rules(Busy(), x, train=True, rngs={"params": KEY, "noise": KEY}) == expected
    assert rules(Busy(), x, method="decode") == {"other/kernel": DECLARED}
    assert rules(Busy(), x, method=Busy.decode) == {"other/kernel": DECLARED}


def test_rules_compute_nothing() -> None:
    """A kernel of 80 GB, on shapes alone."""
    shape = jax.ShapeDtypeStruct((2, 5, 4, 100_000), jnp.float32)
    module = Conv2DTranspose(100_000, (2, 1), kernel_constraint=MaxNorm(0.5))
    assert rules(module, shape) == {"kernel": Rule(None, MaxNorm(0.5))}


def test_rules_and_other_metadata(rng: np.random.Generator) -> None:
    """A kernel that its initializer has boxed for partitioning, alone and scanned."""
    kernel_init = nn.with_partitioning(initializers.he_normal(), (None, None, "filters", None))
    x = images(rng)
    module = declaring(kernel_initializer=kernel_init)
    assert rules(module, x) == {"kernel": DECLARED}
    params = module.init(KEY, x)["params"]
    assert isinstance(params["kernel"], nn.Partitioned)
    assert np.isfinite(penalty(params, rules(module, x)))
    assert module.apply({"params": params}, x).shape == (2, 5, 4, 3)

    class Part(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return declaring(kernel_initializer=kernel_init, name="up")(x), None

    scanned = nn.scan(
        Part, {"params": 0}, split_rngs={"params": True}, length=2,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )()  # fmt: skip
    assert rules(scanned, x, None) == {"up/kernel": stacked(0)}


def test_nothing_remains_after_a_failure(rng: np.random.Generator) -> None:
    class Fails(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            declaring()(x)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        rules(Fails(), images(rng))
    variables = declaring().init(KEY, images(rng))
    assert isinstance(variables["params"]["kernel"], jax.Array)


def test_rules_of_a_model_that_reads_the_parameters_itself(rng: np.random.Generator) -> None:
    class Reads(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            layer = declaring()
            return layer(x) * layer.variables["params"]["kernel"].mean()

    Reads().init(KEY, images(rng))
    with pytest.raises(ValueError, match=r"from Reads: .*\(AttributeError: .*mean.*\).* by hand"):
        rules(Reads(), images(rng))


def test_rules_within_a_norm_of_the_kernel(rng: np.random.Generator) -> None:
    model = nn.SpectralNorm(declaring())
    x = images(rng)
    params = model.init(KEY, x, update_stats=False)["params"]
    declared = rules(model, x, update_stats=False)
    assert declared
    assert declared.keys() <= {path for path, _ in named_leaves(params)}


def test_regularized_and_constrained_training(rng: np.random.Generator) -> None:
    """The whole way, through scanned layers: every slice obeys, and the loss falls."""
    blocks = nn.scan(Block, {"params": 0}, split_rngs={"params": True}, length=3)()
    x, target = images(rng), 3 * images(rng)
    declared = rules(blocks, x, None)
    optimizer = with_rules(optax.adam(0.05), declared)
    params = blocks.init(KEY, x, None)["params"]
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            return jnp.mean((blocks.apply({"params": params}, x, None)[0] - target) ** 2)

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    values = []
    for _ in range(20):
        params, state, value = step(params, state)
        values.append(float(value))
    assert values[-1] < 0.9 * values[0]
    norms = np.sqrt(np.square(params["up"]["kernel"]).sum(1))  # axis 0 of every slice
    assert 0.5 * (1 - 1e-3) < norms.max() <= 0.5 * (1 + 1e-6)


# ------------------------------------------------------------------ bad inputs
# Bad arguments are in test_bad_input.py.


@pytest.mark.parametrize(
    ("shape", "arguments", "match"),
    [
        ((4, 3), {}, r"inputs must have the layer's 2 .* got shape \(4, 3\)"),
        (
            (2, 0, 4, 3),
            {},
            "the input must have at least one pixel on every .* got 0 on spatial axis 0",
        ),
        ((2, 1, 1, 3), {"padding": 3}, "the output must have at least one pixel"),
        ((2, 5, 4, 3), {"groups": 2}, "groups must divide the 3 input channels, got 2"),
    ],
)
@pytest.mark.parametrize("trainable", [True, False])
def test_bad_inputs(shape: tuple[int, ...], arguments: Any, match: str, trainable: bool) -> None:
    with pytest.raises(ValueError, match=match):
        layer(trainable=trainable, **arguments).init(KEY, jnp.zeros(shape))


@pytest.mark.parametrize("trainable", [True, False])
def test_channels_must_be_those_of_the_kernel(trainable: bool, rng: np.random.Generator) -> None:
    module = layer(trainable=trainable)
    variables = module.init(KEY, images(rng))
    with pytest.raises(ValueError, match=r"inputs must have 3 channels on axis -1, .* got 4"):
        module.apply(variables, images(rng, 2, 5, 4, 4))


def test_nothing_is_traced_for_bad_input() -> None:
    """The initializer, the first thing that would compute, is never called."""

    def never(*_: Any) -> jax.Array:
        raise AssertionError

    with pytest.raises(ValueError, match="groups must divide the 3 input channels"):
        layer(groups=2, kernel_initializer=never).init(KEY, jnp.zeros((2, 5, 4, 3)))


def test_initializer_is_not_traced_when_the_layer_is_applied() -> None:
    calls = []

    def initializer(key: Any, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        calls.append(shape)
        return jax.random.normal(key, shape, dtype)

    layer = Conv2DTranspose(3, (2, 3), kernel_initializer=initializer, use_bias=False)
    x = jnp.zeros((2, 4, 5, 2))
    params = layer.init(jax.random.key(0), x)
    assert calls == [(2, 3, 3, 2)]
    layer.apply(params, x)
    assert len(calls) == 1
