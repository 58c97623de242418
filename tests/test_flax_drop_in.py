"""Both `ConvTranspose` drop-ins beside those of the installed Flax, on every field.

Every layer is drawn once and built four times: ours and Flax's, in linen and in nnx, with the same
parameters.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization

import upconv.linen
import upconv.nnx
from checks import normal
from side_by_side import Call, compare, error, is_refused, pair_of_pads

# So many layers are compared, in parts of so many that are compiled together.
PARTS, AT_ONCE = 12, 25

LINEN = (upconv.linen.ConvTranspose, nn.ConvTranspose)
NNX = (upconv.nnx.ConvTranspose, nnx.ConvTranspose)


class Drawn(NamedTuple):
    """One layer, its inputs and parameters, and what the generator did to get them."""

    fields: dict[str, Any]
    features: int
    inputs: np.ndarray
    params: dict[str, np.ndarray]
    kinds: tuple[str, ...]

    def call(self, name: str) -> Call:
        pairs = {
            "linen": (self.in_linen(LINEN[0]), self.in_linen(LINEN[1])),
            "nnx": (self.in_nnx(NNX[0]), self.in_nnx(NNX[1])),
        }
        name = f"{name} {self.inputs.shape} {self.fields}"
        return Call(name, pairs, (self.params, self.inputs))

    def in_linen(self, cls: Any) -> Callable[..., jax.Array]:
        module = cls(self.features, **self.fields)
        shapes = jax.eval_shape(module.init, jax.random.key(0), self.inputs)["params"]
        assert jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), *(
            shapes, self.params
        )) == dict.fromkeys(self.params, True)  # fmt: skip
        return lambda params, inputs: module.apply({"params": params}, inputs)

    def in_nnx(self, cls: Any) -> Callable[..., jax.Array]:
        given = {
            f"{name}_init": lambda key, shape, dtype, value=value: value.reshape(shape)
            for name, value in self.params.items()
        }
        c_in = self.inputs.shape[-1]
        module = cls(c_in, self.features, **self.fields, **given, rngs=nnx.Rngs(0))
        graph, params, rest = nnx.split(module, nnx.Param, ...)

        def apply(pure: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
            state = jax.tree.map(lambda x: x, params)
            nnx.replace_by_pure_dict(state, pure)
            return nnx.merge(graph, state, rest)(inputs)

        return apply


def draw(rng: np.random.Generator) -> Drawn:
    def ints(low: int, high: int) -> tuple[int, ...]:
        values = tuple(int(i) for i in rng.integers(low, high + 1, size=rank))
        return values if rng.random() < 0.7 else values[:1] * rank

    def spelled(values: tuple[int, ...]) -> Any:
        """One for each axis, or an integer for all axes."""
        alike = len(set(values)) == 1 and rng.random() < 0.7
        return values[0] if alike else [values, list(values)][rng.integers(2)]

    rank = int(rng.choice([1, 1, 1, 1, 2, 2, 2, 3]))
    small = 5 if rank < 3 else 3
    kernel_size, strides, dilation = ints(1, small), ints(1, 4), ints(1, 3)
    transposed = bool(rng.integers(2))
    c_in, features = (int(i) for i in rng.permutation(4)[:2] + 1)
    batch = [(), (3,), (2, 1, 2), (2,), (1,)][rng.integers(5)]
    kinds = [f"{rank}d", f"{len(batch)} batch axes"]
    fields: dict[str, Any] = {
        "kernel_size": kernel_size[0] if rank == 1 and rng.integers(2) else kernel_size,
        "transpose_kernel": transposed,
        "use_bias": bool(rng.random() < 0.7),
    }
    if rng.random() < 0.8:
        fields["strides"] = spelled(strides)
    if rng.random() < 0.3:
        fields["kernel_dilation"] = spelled(dilation)
    else:
        dilation = (1,) * rank
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    pads = tuple(pair_of_pads(rng, r) for r in reach)
    # Integers are symmetric pads; none equals the reach, for the reasons of `pair_of_pads`.
    lows = tuple(p + (p == r) for p, r in zip(ints(1, 4), reach, strict=True))
    low = next(int(p) for p in rng.permutation(9) if p not in (0, *reach))
    paddings = ["SAME", "VALID", "CIRCULAR", "CIRCULAR", pads, list(pads), lows, low, None]
    padding = paddings[rng.integers(len(paddings))]
    if padding is not None:
        fields["padding"] = padding
    kinds.append(padding if isinstance(padding, str) else type(padding).__name__)
    shape = (*kernel_size, *((features, c_in) if transposed else (c_in, features)))
    if rng.random() < 0.3:
        fields["mask"] = rng.integers(0, 2, size=shape).astype(np.float32)
    kinds += list(fields)
    params = {"kernel": normal(rng, *shape)}
    if fields["use_bias"]:
        params["bias"] = normal(rng, features)
    return Drawn(fields, features, normal(rng, *batch, *ints(1, small), c_in), params, tuple(kinds))


@functools.cache
def drawn(part: int) -> list[Drawn]:
    """A part of the layers, all of whose outputs are not empty."""
    rng, found = np.random.default_rng([2, part]), []
    while len(found) < AT_ONCE:
        case = draw(rng)
        module = nn.ConvTranspose(case.features, **case.fields)
        if not is_refused(module.apply, {"params": case.params}, case.inputs):
            found.append(case)
    return found


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.many
def test_random_layers(part: int) -> None:
    """Values, and gradients in the inputs and every parameter."""
    compare((case.call(f"{part}.{i}") for i, case in enumerate(drawn(part))), seed=part)


def test_the_random_layers_reach_every_kind() -> None:
    cases = [case for part in range(PARTS) for case in drawn(part)]
    count = Counter(kind for case in cases for kind in case.kinds)
    often = ("1d", "2d", "SAME", "VALID", "CIRCULAR", "strides", "kernel_dilation", "mask")
    assert all(count[kind] > 20 for kind in often), count
    seldom = ("3d", "tuple", "list", "int", "NoneType", "0 batch axes", "3 batch axes")
    assert all(count[kind] > 12 for kind in seldom), count
    assert 100 < sum(case.fields["transpose_kernel"] for case in cases) < 200


def test_circular_odd_and_even() -> None:
    """Whatever hangs over, once or several times round, falls where Flax has it fall."""
    rng = np.random.default_rng(5)
    calls = []
    for n, k, s, d in [(4, 3, 2, 1), (4, 4, 2, 1), (2, 9, 2, 1), (1, 5, 3, 2), (5, 2, 3, 1)]:
        for transposed in (False, True):
            fields = {"kernel_size": k, "strides": s, "kernel_dilation": d, "padding": "CIRCULAR"}
            fields["transpose_kernel"] = transposed
            shape = (k, 4, 3) if transposed else (k, 3, 4)
            params = {"kernel": normal(rng, *shape), "bias": normal(rng, 4)}
            calls.append(Drawn(fields, 4, normal(rng, 2, n, 3), params, ()).call("circular"))
    compare(calls)


# ------------------------------------------------------------------ fields


def test_the_fields_are_those_of_linen() -> None:
    ours, theirs = (
        {f.name: f for f in dataclasses.fields(c) if f.name not in ("name", "parent")}
        for c in LINEN
    )
    assert list(ours) == list(theirs)
    initializers = ("kernel_init", "bias_init")  # functions without equality: see the tests below
    for name in set(ours).difference(initializers):
        assert ours[name].default == theirs[name].default, name


def test_the_arguments_are_those_of_nnx() -> None:
    ours, theirs = (inspect.signature(c.__init__).parameters for c in NNX)
    assert [(p.name, p.kind) for p in ours.values()] == [(p.name, p.kind) for p in theirs.values()]
    for name in set(ours).difference(("kernel_init", "bias_init")):
        assert ours[name].default == theirs[name].default, name


ARGUMENTS = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "strides": (2, 1), "transpose_kernel": True, "param_dtype": "bfloat16"},
    {"kernel_size": (3, 2), "bias_init": nn.initializers.normal(), "use_bias": True},
    {"kernel_size": (2, 3, 1), "kernel_init": nn.initializers.he_normal(), "use_bias": False},
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_initial_values(arguments: dict[str, Any]) -> None:
    """The same key gives the same parameters, bit by bit, under the same names."""
    size = arguments["kernel_size"]
    x = jnp.ones((2, *(4,) * (len(size) if isinstance(size, tuple) else 1), 3))

    class Model(nn.Module):
        layer: Any

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return self.layer(5, **arguments)(nn.Dense(3)(self.layer(3, **arguments)(x)))

    ours, theirs = (Model(cls).init(jax.random.key(7), x) for cls in LINEN)
    assert sorted(theirs["params"]) == ["ConvTranspose_0", "ConvTranspose_1", "Dense_0"]
    assert error("linen", ours, theirs, 0) == 0

    def model(cls: Any) -> nnx.Module:
        rngs = nnx.Rngs(7)
        return nnx.List([cls(3, 5, **arguments, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)])

    ours, theirs = (nnx.to_pure_dict(nnx.state(model(cls))) for cls in NNX)
    assert error("nnx", ours, theirs, 0) == 0


def test_attributes_are_those_of_nnx() -> None:
    mask = jnp.ones((3, 2, 3, 4))
    layers = [
        cls(3, 4, (3, 2), (2, 1), padding="VALID", mask=mask, precision="high",
            kernel_metadata={"note": "k"}, bias_metadata={"note": "b"}, rngs=nnx.Rngs(0))
        for cls in NNX
    ]  # fmt: skip
    ours, theirs = (
        {k: v for k, v in vars(layer).items() if not k.startswith("_")} for layer in layers
    )
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"mask", "kernel", "bias", "promote_dtype"}:
        assert ours[name] == theirs[name], name
    assert ours["promote_dtype"] is theirs["promote_dtype"]
    for name in ("kernel", "bias"):
        assert type(ours[name]) is type(theirs[name])
        assert ours[name].get_metadata() == theirs[name].get_metadata()


@pytest.mark.parametrize(
    ("inputs", "fields", "expected"),
    [
        ("bfloat16", {}, "float32"),
        ("bfloat16", {"param_dtype": jnp.bfloat16}, "bfloat16"),
        ("float32", {"dtype": jnp.bfloat16}, "bfloat16"),
        ("int32", {}, "float32"),
        ("float32", {"dtype": jnp.bfloat16, "preferred_element_type": jnp.float32}, "float32"),
        ("float16", {"param_dtype": jnp.float16, "precision": "highest"}, "float16"),
    ],
)
def test_dtypes(inputs: str, fields: dict[str, Any], expected: str) -> None:
    rng = np.random.default_rng(3)
    x = (normal(rng, 2, 5, 3) * 4).astype(inputs)
    fields = {"kernel_size": 3, "strides": 2, "bias_init": nn.initializers.ones, **fields}
    layers = [cls(4, **fields) for cls in LINEN]
    variables = layers[1].init(jax.random.key(0), x)
    tolerance = 2 * float(jnp.finfo(expected).eps)
    if "dtype" in fields:
        tolerance = max(tolerance, 1e-6)
    ours, theirs = (layer.apply(variables, x) for layer in layers)
    assert theirs.dtype == expected
    error("linen", ours, theirs, tolerance)
    ours, theirs = (cls(3, 4, **fields, rngs=nnx.Rngs(0))(x) for cls in NNX)
    assert theirs.dtype == expected
    error("nnx", ours, theirs, tolerance)


def test_promote_dtype() -> None:
    """It is called as Flax calls it, and what it gives is what is used."""
    seen: list[Any] = []

    def in_linen(inputs: Any, kernel: Any, bias: Any, *, dtype: Any) -> Any:
        seen.append((inputs.dtype, kernel.dtype, bias.dtype, dtype))
        return inputs * 2, kernel * 3, bias + 1

    def in_nnx(arrays: Any, *, dtype: Any) -> Any:
        return in_linen(*arrays, dtype=dtype)

    x = jnp.linspace(-1.0, 1.0, 24).reshape(2, 4, 3)
    layers = [cls(4, 3, promote_dtype=in_linen, dtype=jnp.float16) for cls in LINEN]
    variables = layers[1].init(jax.random.key(0), x)
    error("linen", *(layer.apply(variables, x) for layer in layers))
    layers = [
        cls(3, 4, 3, promote_dtype=in_nnx, dtype=jnp.float16, rngs=nnx.Rngs(0)) for cls in NNX
    ]
    error("nnx", *(layer(x) for layer in layers))
    assert set(seen) == {(*(jnp.dtype("float32"),) * 3, jnp.float16)}


# ------------------------------------------------------------------ changing the import


def test_a_checkpoint_of_linen_loads_unchanged() -> None:
    """Bytes that Flax wrote of a model, into the same model with the other layer."""

    class Decoder(nn.Module):
        layer: Any

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.relu(self.layer(6, (4, 4), (2, 2))(x))
            return self.layer(3, (3, 3), padding="CIRCULAR", transpose_kernel=True, name="last")(x)

    x = jnp.asarray(normal(np.random.default_rng(0), 2, 4, 3, 5))
    ours, theirs = (Decoder(cls) for cls in LINEN)
    saved = serialization.to_bytes(theirs.init(jax.random.key(1), x))
    template = jax.tree.map(jnp.zeros_like, ours.init(jax.random.key(2), x))
    variables = serialization.from_bytes(template, saved)
    error("restored", ours.apply(variables, x), theirs.apply(variables, x))


def test_a_checkpoint_of_nnx_loads_unchanged() -> None:
    def decoder(cls: Any, seed: int) -> nnx.Module:
        rngs = nnx.Rngs(seed)
        last = cls(6, 3, (3, 3), padding="CIRCULAR", transpose_kernel=True, rngs=rngs)
        return nnx.Sequential(cls(5, 6, (4, 4), (2, 2), rngs=rngs), nnx.relu, last)

    x = jnp.asarray(normal(np.random.default_rng(0), 2, 4, 3, 5))
    ours, theirs = (decoder(cls, seed) for seed, cls in enumerate(NNX))
    saved = serialization.msgpack_serialize(
        serialization.to_state_dict(nnx.to_pure_dict(nnx.state(theirs)))
    )
    state = nnx.state(ours)
    template = nnx.to_pure_dict(state)
    restored = serialization.from_state_dict(template, serialization.msgpack_restore(saved))
    nnx.replace_by_pure_dict(state, restored)
    nnx.update(ours, state)
    error("restored", ours(x), theirs(x))


def test_one_training_step_is_the_same() -> None:
    """Under jit, through the layers and Flax's optimizer."""
    import optax

    rng = np.random.default_rng(1)
    x, y = normal(rng, 2, 4, 3), normal(rng, 2, 8, 4)

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> None:
        grads = nnx.grad(lambda model: ((model(x) - y) ** 2).mean())(model)
        optimizer.update(model, grads)

    states = []
    for cls in NNX:
        model = cls(3, 4, 5, 2, mask=jnp.tril(jnp.ones((5, 3, 4))), rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
        before = np.asarray(model.kernel[...])
        for _ in range(2):
            step(model, optimizer, x, y)
        assert np.abs(model.kernel[...] - before).max() > 1e-2
        states.append(nnx.to_pure_dict(nnx.state(model)))
    error("trained", *states)


def test_attributes_may_be_replaced() -> None:
    """Those that nnx reads when it is called."""
    x = jnp.ones((2, 5, 4, 3))
    for cls in NNX:
        model = cls(3, 4, (3, 3), 2, mask=jnp.ones((3, 3, 3, 4)), rngs=nnx.Rngs(0))
        model.mask = jnp.zeros((3, 3, 1, 4))
        with pytest.raises(ValueError):
            model(x)
        model.mask = jnp.zeros((3, 3, 3, 4))
        model.bias[...] = jnp.ones(4)
        assert (model(x) == 1).all()
        model.use_bias = False
        assert (model(x) == 0).all()


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel_size": (3, 3, 3, 3)}, "kernel_size must have 1 to 3 spatial axes"),
        ({"kernel_size": ()}, "kernel_size must have 1 to 3 spatial axes"),
        ({"kernel_size": (3, 0)}, r"kernel_size\[1\] must be at least 1, got 0"),
        ({"strides": (2,)}, "strides must be an integer or 2 integers"),
        ({"kernel_dilation": (0, 1)}, r"kernel_dilation\[0\] must be at least 1"),
        ({"padding": "CAUSAL", "strides": 2}, "padding must be .*'CIRCULAR'.*got 'CAUSAL'"),
        ({"padding": "circular"}, "padding must be 'SAME'.*got 'circular'"),
        ({"padding": (1, 2, 3)}, "padding must have 2 entries"),
        ({"mask": np.ones((3, 3, 4, 3))}, r"mask must have the kernel's shape \(3, 3, 3, 4\)"),
    ],
    ids=str,
)
def test_errors(fields: dict[str, Any], message: str) -> None:
    fields = {"kernel_size": (3, 3), **fields}
    x = jnp.ones((2, 5, 4, 3))
    with pytest.raises(ValueError, match=message):
        upconv.linen.ConvTranspose(4, **fields).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=message):
        upconv.nnx.ConvTranspose(3, 4, **fields, rngs=nnx.Rngs(0))(x)


@pytest.mark.parametrize("fields", [{"strides": (2, 0)}, {"kernel_dilation": (1, 2, 1)}], ids=str)
def test_a_layer_of_nnx_is_not_made_of_bad_strides(fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(ValueError, match=rf"{name}.* must be"):
        upconv.nnx.ConvTranspose(3, 4, (3, 3), **fields, rngs=nnx.Rngs(0))


def test_strides_may_be_an_array(rng: np.random.Generator) -> None:
    x = jnp.asarray(normal(rng, 2, 5, 4, 3))
    given, plain = (
        upconv.nnx.ConvTranspose(3, 4, (3, 3), strides, rngs=nnx.Rngs(0))
        for strides in (np.array([2, 3]), (2, 3))
    )
    y = nnx.jit(lambda layer, x: layer(x))(given, x)
    np.testing.assert_allclose(y, plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("number", [0, 3.0, True])
def test_numbers_of_channels(number: Any) -> None:
    x, rngs = jnp.ones((2, 5, 4, 3)), nnx.Rngs(0)
    with pytest.raises((TypeError, ValueError), match=f"features must be .*got {number}"):
        upconv.linen.ConvTranspose(number, (3, 3)).init(jax.random.key(0), x)
    with pytest.raises((TypeError, ValueError), match=f"out_features must be .*got {number}"):
        upconv.nnx.ConvTranspose(3, number, (3, 3), rngs=rngs)
    with pytest.raises((TypeError, ValueError), match=f"in_features must be .*got {number}"):
        upconv.nnx.ConvTranspose(number, 4, (3, 3), rngs=rngs)


@pytest.mark.parametrize("rank", [2, 3])
def test_inputs_with_fewer_axes_than_the_kernel(rank: int) -> None:
    x = jnp.ones((5, 3))
    with pytest.raises(ValueError, match=f"inputs must be .*with the {rank} spatial axes"):
        upconv.linen.ConvTranspose(4, (3,) * rank).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=f"inputs must be .*with the {rank} spatial axes"):
        upconv.nnx.ConvTranspose(3, 4, (3,) * rank, rngs=nnx.Rngs(0))(x)


@pytest.mark.parametrize("inputs", [None, 1.0, "x", np.float32(1)], ids=str)
def test_inputs_that_are_no_images(inputs: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="inputs must be"):
        upconv.linen.ConvTranspose(4, (3, 3)).init(jax.random.key(0), inputs)
    with pytest.raises((TypeError, ValueError), match="inputs must be"):
        upconv.nnx.ConvTranspose(3, 4, (3, 3), rngs=nnx.Rngs(0))(inputs)
