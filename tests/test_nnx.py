"""The nnx layers: arguments, variables, rules, losses, and nnx's own habits."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict

import oracle
import upconv.linen
from checks import normal
from side_by_side import error
from upconv import initializers
from upconv.constraints import MaxNorm, NonNeg
from upconv.nnx import (
    Conv1DTranspose,
    Conv2DTranspose,
    Conv3DTranspose,
    ConvTranspose,
    Loss,
    NonTrainable,
    losses,
    rules,
)
from upconv.regularizers import L1, L2
from upconv.rules import Rule
from upconv.transforms import penalty, with_rules

LAYERS = {1: Conv1DTranspose, 2: Conv2DTranspose, 3: Conv3DTranspose}
LINEN = {1: upconv.linen.Conv1DTranspose, 2: upconv.linen.Conv2DTranspose,
         3: upconv.linen.Conv3DTranspose}  # fmt: skip
DECLARED = Rule(L2(0.1), MaxNorm(0.5))


def layer(in_features: int = 3, filters: int = 6, **arguments: Any) -> Conv2DTranspose:
    return Conv2DTranspose(in_features, filters, (3, 2), 2, rngs=nnx.Rngs(3), **arguments)


def images(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(normal(rng, *(shape or (2, 5, 4, 3))))


def kernel(module: Any) -> np.ndarray:
    return np.asarray(module.kernel[...])


# ------------------------------------------------------------------ the same layer as linen's


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_values(rank: int, data_format: str, rng: np.random.Generator) -> None:
    """Against the oracle, and against linen with the same parameters."""
    kernel_size, strides = (3, 2, 4)[:rank], (2, 3, 1)[:rank]
    x = rng.normal(size=(2, 3, *(5, 4, 3)[:rank], 4))
    first = data_format == "channels_first"
    inputs = jnp.asarray(np.moveaxis(x, -1, -1 - rank) if first else x, jnp.float32)
    arguments = (6, kernel_size, strides, "SAME", data_format.upper(), "tanh")
    options = {"groups": 2, "bias_initializer": None}
    module = LAYERS[rank](4, *arguments, **options, rngs=nnx.Rngs(0))
    assert module.kernel.shape == (*kernel_size, 3, 4)
    assert module.bias.shape == (6,)
    out = module(inputs)
    assert module.compute_output_shape(inputs.shape) == out.shape
    full = oracle.conv_transpose(x, kernel(module), strides=strides, padding="same", groups=2)
    got = np.moveaxis(out, -1 - rank, -1) if first else out
    np.testing.assert_allclose(got, np.tanh(full + module.bias[...]), atol=1e-5)
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    peer = LINEN[rank](*arguments, **options)
    np.testing.assert_array_equal(out, peer.apply({"params": params}, inputs))


@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": "valid", "output_padding": 1},
        {"padding": "same_lower", "dilation_rate": (1, 3)},
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
    assert module.bias is None
    out = module(x)
    expected = oracle.conv_transpose(x, kernel(module), strides=2, **arguments)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert module.compute_output_shape(x.shape) == out.shape


def test_arguments_are_those_of_linen() -> None:
    skipped = {"self", "in_features", "kernel_metadata", "bias_metadata", "rngs", "name", "parent"}
    for rank, cls in LAYERS.items():
        ours = inspect.signature(cls.__init__).parameters
        theirs = inspect.signature(LINEN[rank]).parameters
        assert list(ours)[:2] == ["self", "in_features"]
        names = [name for name in ours if name not in skipped]
        assert names == [name for name in theirs if name not in skipped]
        later = names[names.index("trainable") + 1 :]
        assert {ours[name].kind for name in later} == {inspect.Parameter.KEYWORD_ONLY}
        for name in ours.keys() - skipped:
            default = ours[name].default
            if name == "bias_initializer":
                np.testing.assert_array_equal(default(None, (2,)), np.zeros(2))
            else:
                assert default == theirs[name].default, name


@pytest.mark.parametrize(
    ("x", "dtype", "param_dtype", "expected"),
    [
        (jnp.float32, None, jnp.float32, jnp.float32),
        (jnp.bfloat16, None, jnp.float32, jnp.float32),
        (jnp.bfloat16, None, jnp.bfloat16, jnp.bfloat16),
        (jnp.float32, "float16", "float32", jnp.float16),
        (jnp.int32, None, jnp.float32, jnp.float32),
    ],
)
def test_dtypes(
    x: Any, dtype: Any, param_dtype: Any, expected: Any, rng: np.random.Generator
) -> None:
    module = layer(dtype=dtype, param_dtype=param_dtype, activity_regularizer=L2(1.0))
    assert module(images(rng).astype(x)).dtype == expected
    assert {p.dtype for p in jax.tree.leaves(nnx.state(module, nnx.Param))} == {
        jnp.dtype(param_dtype)
    }
    assert losses(module).dtype == jnp.float32


def test_initializers() -> None:
    """None draws glorot uniform, which knows the groups; without a word the bias is zeros."""
    module = layer(64, 96, groups=8, bias_initializer=None)
    limit = np.sqrt(6 / ((64 / 8 + 96 / 8) * 3 * 2))
    np.testing.assert_allclose(np.abs(kernel(module)).max(), limit, rtol=1e-2)
    np.testing.assert_allclose(np.abs(module.bias[...]).max(), np.sqrt(3 / 96), rtol=5e-2)
    np.testing.assert_array_equal(layer().bias[...], np.zeros(6))
    chosen = layer(64, 96, kernel_initializer=initializers.he_normal(strides=2))
    assert kernel(chosen).std() > 1.3 * np.sqrt(6 / ((64 + 96) * 3 * 2)) / np.sqrt(3)
    other = Conv2DTranspose(3, 6, (3, 2), 2, rngs=nnx.Rngs(4))
    assert not np.allclose(kernel(layer()), kernel(other))


def test_config_has_one_spelling() -> None:
    a = Conv2DTranspose(3, np.int64(4), [3, 3], [2, 2], "SAME", "Channels_Last", rngs=nnx.Rngs(0))
    b = Conv2DTranspose(3, 4, 3, 2, "same", rngs=nnx.Rngs(0))
    assert a.config.strides == (2, 2)
    assert nnx.graphdef(a) == nnx.graphdef(b)


# ------------------------------------------------------------------ variables and rules


def test_activation_must_not_be_a_module() -> None:
    """Its variables would be out of sight: neither trained nor kept."""
    with pytest.raises(TypeError, match=r"activation must be a function: .*, got PReLU"):
        layer(activation=nnx.PReLU())


def test_variables_carry_metadata() -> None:
    module = layer(
        kernel_regularizer=L2(1.0),
        kernel_metadata={"note": "k"},
        bias_metadata={"note": "b"},
    )
    assert type(module.kernel) is type(module.bias) is nnx.Param
    assert (module.kernel.note, module.bias.note) == ("k", "b")
    assert rules(module) == {"kernel": Rule(L2(1.0))}


def test_trainable_false_hides_the_parameters_from_optimizers(rng: np.random.Generator) -> None:
    frozen = layer(trainable=False, kernel_regularizer=L2(1.0), kernel_metadata={"note": "k"})
    assert not jax.tree.leaves(nnx.state(frozen, nnx.Param))
    assert set(nnx.to_pure_dict(nnx.state(frozen, NonTrainable))) == {"kernel", "bias"}
    assert frozen.kernel.note == "k"
    assert rules(frozen) == rules(frozen, nnx.Variable) == {}
    x = images(rng)
    np.testing.assert_array_equal(frozen(x), layer()(x))
    grads = nnx.grad(lambda module: module(x).sum())(frozen)
    assert not jax.tree.leaves(grads)


class Decoder(nnx.Module):
    """Nested, in a list, shared, and frozen layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = Conv2DTranspose(
            3, 4, 3, 2, "same", kernel_regularizer=L2(0.1), kernel_constraint=MaxNorm(0.5),
            activity_regularizer=L1(0.2), rngs=rngs,
        )  # fmt: skip
        self.rest = nnx.List([
            Conv2DTranspose(4, 4, 3, 1, "same", bias_constraint=NonNeg(), rngs=rngs),
            Conv2DTranspose(4, 4, 3, 1, "same", trainable=False, kernel_regularizer=L2(1.0),
                            activity_regularizer=L2(0.3), rngs=rngs),
        ])  # fmt: skip
        self.shared = self.first
        self.head = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.first(x))
        for up in self.rest:
            x = up(x)
        return self.head(x)


EXPECTED = {"first/kernel": DECLARED, "rest/0/bias": Rule(None, NonNeg())}


def test_rules_of_a_model() -> None:
    assert rules(Decoder(nnx.Rngs(0))) == EXPECTED
    assert rules(nnx.eval_shape(lambda: Decoder(nnx.Rngs(0)))) == EXPECTED
    graph, state = nnx.split(Decoder(nnx.Rngs(0)))
    assert rules(nnx.merge(graph, state)) == EXPECTED
    assert rules(nnx.Linear(2, 3, rngs=nnx.Rngs(0))) == {}


def test_rules_stay_with_the_layer() -> None:
    """Whatever variables it is given: loaded, assigned, or of another type."""

    class Weight(nnx.Param):
        pass

    class Own(nnx.Variable):
        pass

    expected = {"kernel": DECLARED}
    module = layer(kernel_regularizer=L2(0.1), kernel_constraint=MaxNorm(0.5))
    for other in (layer(), layer(kernel_regularizer=L1(9.0))):
        nnx.update(module, nnx.state(other))
        assert rules(module) == expected
        module.kernel = other.kernel
        assert rules(module) == expected
    module.kernel = Weight(jnp.ones((3, 2, 6, 3)))
    assert rules(module) == expected
    assert rules(module, wrt=Weight) == expected
    module.kernel = Own(jnp.ones((3, 2, 6, 3)))
    assert rules(module) == {}
    assert rules(module, wrt=(nnx.Param, Own)) == expected


def test_rules_need_no_hash() -> None:
    @dataclasses.dataclass
    class Penalty:
        factor: float = 0.5

        def __call__(self, w: jax.Array) -> jax.Array:
            return self.factor * w.sum()

    assert rules(layer(kernel_regularizer=Penalty())) == {"kernel": Rule(Penalty())}


def test_states_of_layers_with_other_rules_are_of_one_structure() -> None:
    """As a moving average of the parameters needs it."""
    states = [
        nnx.state(layer(kernel_regularizer=regularizer), nnx.Param)
        for regularizer in (None, L1(0.3), lambda w: w.sum())
    ]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 3, *states)
    np.testing.assert_allclose(mean["kernel"][...], kernel(layer()), rtol=1e-6)


def test_rules_of_what_is_trained() -> None:
    """As `nnx.Optimizer` takes it, which knows no other parameter."""
    model = Decoder(nnx.Rngs(0))
    wrt = nnx.All(nnx.Param, nnx.PathContains("rest"))
    assert rules(model, wrt) == {"rest/0/bias": Rule(None, NonNeg())}
    nnx.Optimizer(model, with_rules(optax.adam(1e-3), rules(model, wrt)), wrt=wrt)
    assert rules(model, nnx.PathContains("nowhere")) == {}


def test_rules_of_layers_that_share_a_kernel() -> None:
    model = nnx.List([layer(kernel_regularizer=L2(0.1), kernel_constraint=MaxNorm(0.5)), layer()])
    model[1].kernel = model[0].kernel
    assert rules(model) == {"0/kernel": DECLARED}
    model.append(layer(kernel_regularizer=L2(0.2)))
    model[2].kernel = model[0].kernel
    with pytest.raises(ValueError, match="that share the parameter '0/kernel' must declare"):
        rules(model)


@pytest.mark.parametrize(
    ("axes", "expected"), [((0,), (0,)), ((4,), (4,)), ((1,), (1,)), ((0, 0), (0, 1))], ids=str
)
def test_rules_of_stacked_layers(axes: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Each layer's slice has the rule, wherever nnx.vmap has put the axes."""

    def create(rngs: nnx.Rngs) -> Conv2DTranspose:
        return Conv2DTranspose(
            3, 6, (3, 2), kernel_regularizer=L2(0.1), kernel_constraint=MaxNorm(0.5), rngs=rngs
        )

    def stacked(make: Callable[[nnx.Rngs], Any], axis: int, size: int) -> Callable[..., Any]:
        if axis == 0:
            out_axes: Any = 0
        else:
            out_axes = nnx.StateAxes({nnx.PathContains("kernel"): axis, ...: 0})
        split = nnx.split_rngs(splits=size)
        return split(nnx.vmap(make, in_axes=(0,), out_axes=out_axes))

    make: Callable[..., Any] = create
    for axis, size in zip(axes, (7, 5), strict=False):
        make = stacked(make, axis, size)
    module = make(nnx.Rngs(0))
    shape = [3, 2, 6, 3]
    for axis, size in zip(axes, (7, 5), strict=False):
        shape.insert(axis, size)
    assert module.kernel.shape == tuple(shape)
    (rule,) = rules(module).values()
    assert rule == Rule(L2(0.1), MaxNorm(0.5), expected)
    assert module.compute_output_shape((2, 5, 4, 3)) == (2, 7, 5, 6)
    params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
    total = float(penalty(params, {"kernel": rule}))
    np.testing.assert_allclose(total, 0.1 * (kernel(module) ** 2).sum(), rtol=1e-5)


def test_a_kernel_of_another_shape_has_no_rule() -> None:
    module = layer(kernel_regularizer=L2(1.0))
    module.kernel = nnx.Param(jnp.ones((3, 2, 6, 4)))
    with pytest.raises(ValueError, match=r"'kernel' must have the shape \(3, 2, 6, 3\)"):
        rules(module)
    module.kernel = nnx.Param(jnp.ones((3, 2, 6)))
    with pytest.raises(ValueError, match=r"got \(3, 2, 6\)"):
        rules(module)


def test_initializers_in_boxes(rng: np.random.Generator) -> None:
    """`nnx.with_metadata`, of which `nnx.with_partitioning` is one, as in other layers of nnx."""
    boxed = nnx.with_metadata(initializers.he_normal(), role="upsampling")
    module, plain = (layer(kernel_initializer=init) for init in (boxed, initializers.he_normal()))
    assert module.kernel.get_metadata()["role"] == "upsampling"
    np.testing.assert_array_equal(kernel(module), kernel(plain))
    wrong = nnx.with_metadata(lambda key, shape, dtype: jnp.ones((2,), dtype), role="none")
    with pytest.raises(ValueError, match=r"kernel_initializer must return .* float32\[2\] from"):
        layer(kernel_initializer=wrong)
    with pytest.raises(ValueError, match=r"kernel_initializer must return .* float32\[\] from"):
        layer(kernel_initializer=lambda key, shape, dtype: 1.0)


def test_tabulate_with_its_gradients(rng: np.random.Generator) -> None:
    table = nnx.tabulate(layer(), images(rng), compute_flops=True, compute_vjp_flops=True)
    assert "Conv2DTranspose" in table


# ------------------------------------------------------------------ losses


def test_losses(rng: np.random.Generator) -> None:
    """Divided by the batch's size, of the last call, of all layers; also of frozen ones."""
    x = images(rng, 5, 6, 4, 3)
    model = Decoder(nnx.Rngs(0))
    assert float(losses(model)) == 0
    model(x)
    first = model.first(x)
    second = model.rest[1](model.rest[0](nnx.relu(first)))
    expected = (0.2 * jnp.abs(first).sum() + 0.3 * (second**2).sum()) / 5
    np.testing.assert_allclose(losses(model), expected, rtol=1e-5)
    model(x[:2])
    model(x)
    np.testing.assert_allclose(losses(model), expected, rtol=1e-5)
    assert losses(nnx.Linear(2, 3, rngs=nnx.Rngs(0))) == 0
    assert len(jax.tree.leaves(nnx.state(model, Loss))) == 2


def test_losses_reach_the_gradient(rng: np.random.Generator) -> None:
    x = images(rng)
    module = layer(activity_regularizer=L2(0.5), use_bias=False)

    def loss(module: Conv2DTranspose, weight: float) -> jax.Array:
        out = module(x)
        return out.sum() + weight * losses(module)

    def formula(w: jax.Array) -> jax.Array:
        out = upconv.conv_transpose(x, w, strides=2)
        return out.sum() + 3.0 * 0.5 * (out**2).sum() / 2

    grads = nnx.grad(loss)(module, 3.0)
    error("gradient", grads.kernel[...], jax.grad(formula)(module.kernel[...]))


# ------------------------------------------------------------------ habits of nnx


def test_jit_grad_optimizer_and_rules(rng: np.random.Generator) -> None:
    """A model trains; frozen layers stay, constraints hold, and jit compiles once."""
    model = Decoder(nnx.Rngs(0))
    declared = rules(model)
    optimizer = nnx.Optimizer(model, with_rules(optax.adam(0.05), declared), wrt=nnx.Param)
    x, y = images(rng), images(rng, 2, 10, 8, 1)
    traces = []

    @nnx.jit
    def step(model: Decoder, optimizer: nnx.Optimizer) -> jax.Array:
        traces.append(1)

        def loss(model: Decoder) -> jax.Array:
            return ((model(x) - y) ** 2).mean() + 0.01 * losses(model)

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    frozen = kernel(model.rest[1])
    values = [float(step(model, optimizer)) for _ in range(12)]
    assert values[-1] < 0.8 * values[0]
    assert len(traces) == 1
    np.testing.assert_array_equal(kernel(model.rest[1]), frozen)
    assert np.sqrt((kernel(model.first) ** 2).sum(0)).max() < 0.5 + 1e-5
    assert np.asarray(model.rest[0].bias[...]).min() >= 0
    assert model.first is model.shared


def test_split_merge_clone_and_pickle(rng: np.random.Generator) -> None:
    x = images(rng)
    module = layer(kernel_constraint=MaxNorm(axis=(0, 1, 3)), output_padding=[0, 1])
    out = module(x)
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    assert set(nnx.to_pure_dict(params)) == {"kernel", "bias"}
    pure = jax.jit(lambda params, x: nnx.merge(graph, params, rest)(x))
    np.testing.assert_allclose(pure(params, x), out, atol=1e-6)
    copies = [nnx.clone(module), pickle.loads(pickle.dumps(module))]
    for copy in copies:
        np.testing.assert_array_equal(copy(x), out)
        assert copy.config == module.config
        assert rules(copy) == rules(module)


def test_vmap_over_inputs_and_over_layers(rng: np.random.Generator) -> None:
    xs = images(rng, 3, 2, 5, 4, 3)
    module = layer()
    over_inputs = nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(module, xs)
    np.testing.assert_allclose(over_inputs, module(xs), atol=1e-6)

    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def create(rngs: nnx.Rngs) -> Conv2DTranspose:
        return Conv2DTranspose(3, 6, (3, 2), 2, activity_regularizer=L2(0.5), rngs=rngs)

    stack = create(nnx.Rngs(0))
    out = nnx.vmap(lambda m, x: m(x))(stack, xs)
    for i in range(3):
        expected = oracle.conv_transpose(xs[i], kernel(stack)[i], strides=2)
        np.testing.assert_allclose(out[i], expected, atol=1e-5)
    np.testing.assert_allclose(losses(stack), 0.5 * (out**2).sum() / 2, rtol=1e-5)


def test_scan_over_layers(rng: np.random.Generator) -> None:
    x = images(rng, 2, 4, 3, 5)

    @nnx.split_rngs(splits=4)
    @nnx.vmap
    def create(rngs: nnx.Rngs) -> Conv2DTranspose:
        return Conv2DTranspose(
            5, 5, 3, 1, "same", activation="tanh", activity_regularizer=L1(0.1),
            kernel_regularizer=L2(0.1), rngs=rngs,
        )  # fmt: skip

    stack = create(nnx.Rngs(0))

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def forward(module: Conv2DTranspose, x: jax.Array) -> jax.Array:
        return module(x)

    def loss(stack: Conv2DTranspose) -> jax.Array:
        return (forward(stack, x) ** 2).sum() + losses(stack)

    expected, activity = x, 0.0
    for w in kernel(stack):
        expected = np.tanh(oracle.conv_transpose(expected, w, padding="same"))
        activity += 0.1 * np.abs(expected).sum() / 2
    value, grads = nnx.value_and_grad(loss)(stack)
    np.testing.assert_allclose(value, (expected**2).sum() + activity, rtol=1e-5)
    np.testing.assert_allclose(losses(stack), activity, rtol=1e-5)
    assert all(np.abs(g).max() > 1e-3 for g in np.asarray(grads.kernel[...]))
    assert rules(stack) == {"kernel": Rule(L2(0.1), None, (0,))}


def test_layers_stacked_by_jax_are_known(rng: np.random.Generator) -> None:
    """By `nnx.rules`, which sees their shapes; the rules of one layer do not take them."""
    graph, params = nnx.split(layer(kernel_regularizer=L2(0.1)))
    stack = jax.tree.map(lambda a: jnp.stack([a, a, a]), params)
    (rule,) = rules(nnx.merge(graph, stack)).values()
    assert (rule.stacked_axes, rule.ndim) == ((0,), 4)
    with pytest.raises(ValueError, match="'kernel' must get a parameter of ndim=4"):
        penalty(stack, rules(nnx.merge(graph, params)))


@pytest.mark.parametrize("name", ["kernel", "bias"])
def test_a_parameter_of_another_shape_is_refused(name: str, rng: np.random.Generator) -> None:
    """A kernel of more taps, or a bias of one filter, would be computed with."""
    module = layer()
    shape = getattr(module, name).shape
    getattr(module, name).set_value(jnp.ones((1, *shape[1:])))
    with pytest.raises(
        ValueError, match=rf"the {name} of this .* must have the shape \({shape[0]}"
    ):
        module(images(rng))


def test_remat(rng: np.random.Generator) -> None:
    x = images(rng)
    module = layer()
    grads = nnx.grad(lambda m: (nnx.remat(lambda m, x: m(x))(m, x) ** 2).sum())(module)
    expected = nnx.grad(lambda m: (m(x) ** 2).sum())(module)
    error("remat", grads.kernel[...], expected.kernel[...])


@pytest.mark.parametrize("cls", [Conv1DTranspose, ConvTranspose])
def test_what_a_checkpoint_sees(cls: Any) -> None:
    module = cls(3, 4, 5, rngs=nnx.Rngs(0))
    leaves = flatten_dict(nnx.to_pure_dict(nnx.state(module)), sep="/")
    assert {path: leaf.shape for path, leaf in leaves.items()} == {
        "kernel": (5, 4, 3) if cls is Conv1DTranspose else (5, 3, 4),
        "bias": (4,),
    }


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "exception", "message"),
    [
        ({"in_features": 0}, ValueError, "in_features must be at least 1, got 0"),
        ({"in_features": 3.0}, TypeError, "in_features must be an integer, got 3.0"),
        ({"groups": 2}, ValueError, "groups must divide in_features, got groups=2, in_features=3"),
    ],
    ids=str,
)
def test_bad_arguments_of_nnx_alone(
    arguments: dict[str, Any], exception: type[Exception], message: str
) -> None:
    arguments = {"in_features": 3, "filters": 6, "kernel_size": 3, **arguments}
    with pytest.raises(exception, match=message):
        Conv2DTranspose(**arguments, rngs=nnx.Rngs(0))


def test_bad_inputs() -> None:
    with pytest.raises(
        ValueError, match=r"inputs must have 3 channels on axis -1, as the kernel of this Conv2DT"
    ):
        layer()(jnp.ones((2, 5, 4, 4)))
    with pytest.raises(ValueError, match=r"on axis -3"):
        layer(data_format="channels_first")(jnp.ones((2, 4, 5, 4)))
    with pytest.raises(ValueError, match=r"got shape \(4, 3\)"):
        layer()(jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="inputs must have 3 channels on axis -1"):
        layer().compute_output_shape((2, 5, 4, 4))
