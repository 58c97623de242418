"""Layers exchanged with other libraries: numbers against Flax live, and nothing lost unseen.

Keras and PyTorch live are in `parity`; here are their configs and weights, which need neither.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import flax.linen as flax_linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx

from checks import normal
from exchange import LAYERS, assert_close, assert_same_bits, draw_layer, integers, run
from upconv import activations, conv_transpose, initializers, interop, linen, nnx
from upconv.constraints import MaxNorm, MinMaxNorm, NonNeg, UnitNorm
from upconv.layer import Layer
from upconv.regularizers import L1, L1L2, L2, Orthogonal

TO = {"Keras": interop.to_keras, "PyTorch": interop.to_torch, "Flax": interop.to_flax}
FROM = {"Keras": interop.from_keras, "PyTorch": interop.from_torch, "Flax": interop.from_flax}
ONLY = {"Keras": {}, "PyTorch": {"data_format": "channels_first"}, "Flax": {}}


def variables_of(module: Any, c_in: int = 6, dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    kernel = normal(rng, *module.kernel_size, module.filters // module.groups, c_in)
    arrays = {"kernel": jnp.asarray(kernel, dtype)}
    if module.use_bias:
        arrays["bias"] = jnp.asarray(normal(rng, module.filters), dtype)
    return {"params" if module.trainable else "non_trainable": arrays}


# ------------------------------------------------------------------ Flax, live


def draw_flax(rng: np.random.Generator, rank: int) -> dict[str, Any]:
    """Arguments of Flax's layer, which leave something of an image of 4 or more pixels."""
    kernel_size = integers(rng, 2, 6, rank)
    dilation = integers(rng, 1, 3, rank) if rng.random() < 0.3 else None
    kind = ["SAME", "VALID", "CIRCULAR", "int", "ints", "pairs"][rng.integers(6)]
    span = [(k - 1) * d for k, d in zip(kernel_size, dilation or (1,) * rank, strict=True)]
    padding = {
        "int": int(rng.integers(max(span) // 2, max(span) + 1)),
        "ints": [int(rng.integers(k // 2, k + 1)) for k in span],
        "pairs": [(int(rng.integers(-1, k + 2)), k) for k in span],
    }.get(kind, kind)
    return {
        "kernel_size": kernel_size,
        "strides": integers(rng, 1, 4, rank) if rng.random() < 0.8 else None,
        "padding": padding,
        "kernel_dilation": dilation,
        "use_bias": bool(rng.random() < 0.7),
        "transpose_kernel": bool(rng.random() < 0.5) and kind != "CIRCULAR",
    }


# 3-D takes its time.
RANKS = (1, 2, 1, 2, 3)


@pytest.mark.parametrize("case", range(15))
def test_flax_linen_both_ways(case: int, rng: np.random.Generator) -> None:
    """Values and gradients; the weights that go back are those that came, bit by bit."""
    rank = RANKS[case % 5]
    arguments = draw_flax(rng, rank)
    spatial = integers(rng, 4, 7, rank) if rank < 3 else (4, 4, 5)
    theirs = flax_linen.ConvTranspose(4, name="up", **arguments)
    x = normal(rng, 2, *spatial, 6)
    variables = theirs.init(jax.random.key(case), x)
    if arguments["use_bias"]:
        variables["params"]["bias"] = jnp.asarray(normal(rng, 4))
    ct = normal(rng, *jax.eval_shape(theirs.apply, variables, x).shape)
    y, slopes, dx = run(theirs, variables, x, ct)

    module, ours = interop.from_flax(theirs, variables)
    assert module.name == "up"
    got, got_slopes, got_dx = run(module, ours, x, ct)
    transpose = arguments["transpose_kernel"]
    back = interop.to_flax(module, {"params": got_slopes}, transpose_kernel=transpose)
    for a, b in [(got, y), (got_dx, dx), *((back[1]["params"][n], slopes[n]) for n in slopes)]:
        assert_close(a, b)

    config, weights = interop.to_flax(module, ours, transpose_kernel=transpose)
    jax.tree.map(assert_same_bits, weights, dict(variables))
    rebuilt = flax_linen.ConvTranspose(**config)
    assert_close(rebuilt.apply(weights, x), y)
    again, arrays = interop.from_flax(config, weights)
    assert interop.to_flax(again, arrays, transpose_kernel=transpose)[0] == config
    jax.tree.map(assert_same_bits, arrays, ours)


@pytest.mark.parametrize("case", range(5))
def test_our_layers_as_flax_linen(case: int, rng: np.random.Generator) -> None:
    module, variables, x = draw_layer(rng, RANKS[case])
    config, weights = interop.to_flax(module, variables, transpose_kernel=case % 2 == 0)
    theirs = flax_linen.ConvTranspose(**config)
    ct = normal(rng, *module.compute_output_shape(x.shape))
    for a, b in zip(
        run(theirs, weights, x, ct)[::2], run(module, variables, x, ct)[::2], strict=True
    ):
        assert_close(a, b)
    back, arrays = interop.from_flax(theirs, weights)
    jax.tree.map(assert_same_bits, arrays, variables)
    assert_close(back.apply(arrays, x), module.apply(variables, x))


@pytest.mark.parametrize("transpose", [False, True])
def test_flax_nnx_both_ways(transpose: bool, rng: np.random.Generator) -> None:
    arguments = {"kernel_size": (5, 3), "strides": (2, 3), "transpose_kernel": transpose}
    theirs = flax_nnx.ConvTranspose(6, 4, **arguments, rngs=flax_nnx.Rngs(0))
    theirs.bias.set_value(jnp.asarray(normal(rng, 4)))
    x = normal(rng, 2, 5, 4, 6)
    module, variables = interop.from_flax(theirs)
    assert_close(module.apply(variables, x), theirs(x))
    config, weights = interop.to_flax(module, variables, api="nnx", transpose_kernel=transpose)
    assert_same_bits(weights["kernel"], theirs.kernel[...])
    assert_same_bits(weights["bias"], theirs.bias[...])
    rebuilt = flax_nnx.ConvTranspose(**config, rngs=flax_nnx.Rngs(1))
    flax_nnx.update(rebuilt, weights)
    np.testing.assert_array_equal(rebuilt(x), theirs(x))
    again, _ = interop.from_flax(config, weights)
    assert dataclasses.replace(again, parent=None) == dataclasses.replace(module, parent=None)


def test_our_own_drop_ins_are_flax_too(rng: np.random.Generator) -> None:
    x = normal(rng, 2, 5, 4, 6)
    layer = linen.ConvTranspose(4, (3, 2), strides=(2, 2))
    variables = layer.init(jax.random.key(0), x)
    module, ours = interop.from_flax(layer, variables)
    assert_close(module.apply(ours, x), layer.apply(variables, x))
    stateful = nnx.ConvTranspose(6, 4, (3, 2), padding=1, rngs=flax_nnx.Rngs(0))
    module, ours = interop.from_flax(stateful)
    assert_close(module.apply(ours, x), stateful(x))


@pytest.mark.parametrize("transpose", [False, True])
def test_same_lower_of_flax_goes_without_strides(transpose: bool, rng: Any) -> None:
    layer = flax_linen.ConvTranspose(4, (4, 3), padding="SAME_LOWER", transpose_kernel=transpose)
    x = normal(rng, 2, 5, 4, 6)
    variables = layer.init(jax.random.key(0), x)
    module, ours = interop.from_flax(layer, variables)
    assert_close(module.apply(ours, x), layer.apply(variables, x))
    with pytest.raises(ValueError, match=r"jax\.lax go without strides, got 'SAME_LOWER' with st"):
        interop.from_flax(layer.clone(strides=2), variables)


def test_a_kernel_size_of_flax_may_be_an_array() -> None:
    kernel = np.ones((3, 2, 4, 6), np.float32)
    config = {"features": 4, "kernel_size": np.array([3, 2]), "transpose_kernel": True}
    module, _ = interop.from_flax(config | {"use_bias": False}, {"kernel": kernel})
    assert module.kernel_size == (3, 2)


def test_a_partitioned_flax_kernel_is_taken_out_of_its_box(rng: np.random.Generator) -> None:
    init = flax_linen.with_partitioning(flax_linen.initializers.lecun_normal(), (None, None, None))
    layer = flax_linen.ConvTranspose(4, (3,), kernel_init=init)
    x = normal(rng, 2, 5, 6)
    variables = layer.init(jax.random.key(0), x)
    module, ours = interop.from_flax(layer, variables)
    assert_close(module.apply(ours, x), layer.apply(variables, x))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_circular_is_converted_where_it_is_the_same(k: int, transpose: bool, rng: Any) -> None:
    module = linen.Conv1DTranspose(4, k, 2, "circular")
    variables, x = variables_of(module), normal(rng, 2, 5, 6)
    if transpose and k > 2 and k % 2:
        with pytest.raises(ValueError, match="padding='CIRCULAR' with transpose_kernel=True"):
            interop.to_flax(module, variables, transpose_kernel=transpose)
        return
    config, weights = interop.to_flax(module, variables, transpose_kernel=transpose)
    assert config["padding"] == "CIRCULAR"
    theirs = flax_linen.ConvTranspose(**config)
    assert_close(theirs.apply(weights, x), module.apply(variables, x))


# ------------------------------------------------------------------ pairs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("peer", TO)
def test_pairs_come_back(peer: str, rank: int, dtype: str) -> None:
    """The same bits and the same layer, without the other library."""
    arguments = {"param_dtype": dtype, "strides": 2, "use_bias": rank != 2, **ONLY[peer]}
    module = LAYERS[rank](4, (4, 6, 2)[:rank], padding="same", **arguments)
    variables = variables_of(module, dtype=dtype)
    pair = TO[peer](module, variables)
    back, arrays = FROM[peer](*pair)
    assert arrays.keys() == variables.keys()
    jax.tree.map(assert_same_bits, arrays, variables)
    assert TO[peer](back, arrays)[0] == pair[0]
    for name in ("filters", "kernel_size", "strides", "use_bias", "data_format", "param_dtype"):
        assert getattr(back, name) == getattr(module, name)
    x = jnp.ones(back.rank * (3,) + (6,) if peer != "PyTorch" else (6,) + back.rank * (3,), dtype)
    np.testing.assert_array_equal(back.apply(arrays, x), module.apply(variables, x))


def test_without_torch_the_weights_are_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    module = linen.Conv1DTranspose(4, 4, 2, "same", "channels_first")
    variables = variables_of(module)
    config, weights = interop.to_torch(module, variables)
    assert config["dtype"] == "float32"
    assert all(isinstance(value, np.ndarray) for value in weights.values())
    kernel = np.asarray(variables["params"]["kernel"])
    np.testing.assert_array_equal(weights["weight"], kernel.transpose(2, 1, 0))
    jax.tree.map(assert_same_bits, interop.from_torch(config, weights)[1], variables)


def test_no_other_library_is_imported() -> None:
    script = "import sys, upconv.interop; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "upconv" in loaded
    assert not loaded & {"torch", "tensorflow", "keras", "tf_keras", "onnx"}


KERAS_OBJECTS: dict[str, list[Any]] = {
    "activation": [
        *("relu", "soft_sign", "silu", "hard_sigmoid", "log_softmax"),
        *(activations.GELU(), activations.LeakyReLU(0.1), activations.Exponential()),
    ],
    "kernel_initializer": [
        initializers.glorot_uniform(),
        initializers.VarianceScaling(2.0, "fan_out"),
        initializers.VarianceScaling(3.0, "fan_in", "normal"),
        initializers.Orthogonal(0.5),
        initializers.TruncatedNormal(0.1, 0.2),
    ],
    "bias_initializer": [
        jax.nn.initializers.ones,
        initializers.Constant(0.5),
        initializers.Normal(0.1, 0.2),
        initializers.Uniform(0.1, 0.2),
    ],
    "kernel_regularizer": [L1(0.1), L2(0.2), L1L2(0.1, 0.2)],
    "activity_regularizer": [L2(0.2)],
    "kernel_constraint": [MaxNorm(1.0, (0, 1, 3)), NonNeg()],
    "bias_constraint": [UnitNorm(0), MinMaxNorm(0.1, 2.0, 0.5, 0)],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}-{i}")
        for name, values in KERAS_OBJECTS.items()
        for i, value in enumerate(values)
    ],
)
def test_what_keras_has_too_comes_back_equal(name: str, value: Any) -> None:
    module = linen.Conv2DTranspose(4, 3, **{name: value})
    back, _ = interop.from_keras(*interop.to_keras(module, variables_of(module)))
    assert getattr(back, name) == value


def test_keras_fans_are_swapped() -> None:
    """Keras's He initializer divides by the filters of this layer, not by its channels."""
    config = {"filters": 64, "kernel_size": 3, "kernel_initializer": "he_normal"}
    weights = [np.ones((3, 64, 8), np.float32), np.ones(64, np.float32)]
    module, _ = interop.from_keras(config, weights)
    draws = module.kernel_initializer(jax.random.key(0), (3, 64, 8))
    assert abs(float(jnp.std(draws)) / np.sqrt(2 / (3 * 64)) - 1) < 0.05


def test_a_uniform_initializer_of_tensorflow_1_ends_at_one() -> None:
    """Its config holds no upper bound, which Keras's own always do."""
    spec = {"class_name": "RandomUniform", "config": {"minval": 0, "maxval": None, "seed": None}}
    config = {"filters": 2, "kernel_size": 3, "use_bias": False, "kernel_initializer": spec}
    module, _ = interop.from_keras(config, [np.ones((3, 2, 4), np.float32)])
    assert module.kernel_initializer == initializers.Uniform(0.0, 1.0)


def test_an_activation_without_a_hash_is_refused_by_name() -> None:
    @dataclasses.dataclass
    class Scaled:
        factor: float

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.factor * x

    module = linen.Conv1DTranspose(4, 3, activation=Scaled(2.0))
    with pytest.raises(ValueError, match=r"activation=.*Scaled.* is not in Keras"):
        interop.to_keras(module, variables_of(module))


def swoosh(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(x)


def written(name: str) -> dict[str, Any]:
    """How Keras writes a function that is not its own."""
    return {
        "module": "builtins",
        "class_name": "function",
        "config": name,
        "registered_name": "function",
    }


def test_custom_objects_of_keras() -> None:
    module = linen.Conv1DTranspose(4, 3, activation=swoosh, kernel_constraint=swoosh)
    custom = {"swoosh": swoosh}
    pair = interop.to_keras(module, variables_of(module), custom_objects=custom)
    assert pair[0]["activation"] == pair[0]["kernel_constraint"] == written("swoosh")
    back, _ = interop.from_keras(*pair, custom_objects=custom)
    assert back.activation is back.kernel_constraint is swoosh
    with pytest.raises(ValueError, match=r"activation=.*swoosh.* is none of Keras's own .*\['swoo"):
        interop.from_keras(*pair)
    with pytest.raises(ValueError, match=r"kernel_constraint=.*'swoosh'.* is none of Keras's own"):
        interop.from_keras(*pair, drop=("activation",))
    back, _ = interop.from_keras(*pair, drop=("activation", "kernel_constraint"))
    assert back.activation is back.kernel_constraint is None


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Serves as an activation, a regularizer, a constraint and an initializer alike."""

    factor: float = 1.0

    def __call__(self, x: Any, *_: Any) -> Any:
        return self.factor * x


class FromConfig(Scaled):
    @classmethod
    def from_config(cls, config: dict[str, float]) -> FromConfig:
        return cls(config["half"] * 2)

    def get_config(self) -> dict[str, float]:
        return {"half": self.factor / 2}


@pytest.mark.parametrize("cls", [Scaled, FromConfig])
@pytest.mark.parametrize("key", ["Scaled", "my>Scaled"])
@pytest.mark.parametrize("name", KERAS_OBJECTS)
def test_custom_classes_keep_their_config(name: str, key: str, cls: type) -> None:
    """A class stands for its objects; one object is known by its name alone."""
    module = linen.Conv1DTranspose(4, 3, **{name: cls(0.5)})
    config, weights = interop.to_keras(module, variables_of(module), custom_objects={key: cls})
    held = {"half": 0.25} if cls is FromConfig else {"factor": 0.5}
    said = {"module": None, "class_name": "Scaled", "config": held, "registered_name": key}
    assert config[name] == said
    for known in {key, "Scaled"}:
        back, _ = interop.from_keras(config, weights, custom_objects={known: cls})
        assert getattr(back, name) == cls(0.5)
    message = rf"custom_objects\['{key}'\] must be a class, .*0\.[25]+.* of {name}, got .*=0\.5"
    with pytest.raises(ValueError, match=message):
        interop.from_keras(config, weights, custom_objects={key: cls(0.5)})
    with pytest.raises(ValueError, match=rf"{name} has arguments that L2 does not take: .*keyword"):
        interop.from_keras(config, weights, custom_objects={key: L2})
    with pytest.raises(ValueError, match=rf"{name}=.* is none of Keras's own that are known here"):
        interop.from_keras(config, weights)

    one = {key: getattr(module, name)}
    config, weights = interop.to_keras(module, variables_of(module), custom_objects=one)
    assert config[name] == written(key)
    assert getattr(interop.from_keras(config, weights, custom_objects=one)[0], name) is one[key]


def test_custom_objects_are_by_name() -> None:
    module = linen.Conv1DTranspose(4, 3)
    variables = variables_of(module)
    pair = interop.to_keras(module, variables)
    for custom in ([swoosh], []):
        with pytest.raises(
            TypeError, match=r"custom_objects must be a dictionary, got builtins\.l"
        ):
            interop.from_keras(*pair, custom_objects=custom)
        with pytest.raises(
            TypeError, match=r"custom_objects must be a dictionary, got builtins\.l"
        ):
            interop.to_keras(module, variables, custom_objects=custom)


def test_a_custom_class_must_tell_its_config() -> None:
    class Mute:
        def __call__(self, x: Any) -> Any:
            return x

    module = linen.Conv1DTranspose(4, 3, bias_constraint=Mute())
    with pytest.raises(ValueError, match=r"bias_constraint must have a get_config or be a datacl"):
        interop.to_keras(module, variables_of(module), custom_objects={"Mute": Mute})


class Anything:
    def __init__(self, **arguments: Any) -> None:
        pass

    def __call__(self, x: Any, *rest: Any) -> Any:
        return x


# Objects of others that have the names of Keras's own, as Keras writes them.
FOREIGN: list[tuple[str, dict[str, Any]]] = [
    ("activation", written("gelu")),
    ("activation", {"module": "user", "class_name": "function", "config": "relu"}),
    ("activation", {"module": "jaxlib._jax", "class_name": "PjitFunction", "config": "relu"}),
    ("activation", {"module": None, "class_name": "LeakyReLU", "config": {"alpha": 1.0}}),
    ("kernel_regularizer", written("l2")),
    ("kernel_regularizer", {"module": "user", "class_name": "L1", "config": {"l1": 1.0}}),
    (
        "bias_regularizer",
        {"module": "keras", "class_name": "L1", "config": {}, "registered_name": "my>L1"},
    ),
    ("activity_regularizer", {"class_name": "L1", "config": {}, "registered_name": "my>L1"}),
    ("kernel_constraint", {"module": None, "class_name": "NonNeg", "config": {}}),
    ("bias_constraint", written("non_neg")),
    ("kernel_initializer", written("zeros")),
    ("bias_initializer", {"module": "keras_cv", "class_name": "Ones", "config": None}),
]


@pytest.mark.parametrize(("name", "value"), FOREIGN)
def test_an_object_of_others_is_not_taken_for_keras(name: str, value: Any) -> None:
    config = {"filters": 4, "kernel_size": 3, "use_bias": False, name: value}
    weights = [np.ones((3, 4, 6), np.float32)]
    with pytest.raises(ValueError, match=rf"^{name}=.* is none of Keras's own that are known here"):
        interop.from_keras(config, weights)
    key = value["config"] if isinstance(value["config"], str) else value["class_name"]
    back, _ = interop.from_keras(config, weights, custom_objects={key: Anything})
    assert isinstance(getattr(back, name), Anything)


@pytest.mark.parametrize("name", ["MaxNorm", "UnitNorm", "MinMaxNorm"])
def test_the_norm_of_a_whole_parameter_is_over_all_its_axes(name: str) -> None:
    spec = {"module": "keras.constraints", "class_name": name, "config": {"axis": None}}
    config = {"filters": 4, "kernel_size": (3, 2), "kernel_constraint": spec}
    config["bias_constraint"] = spec
    weights = [np.ones((3, 2, 4, 6), np.float32), np.ones(4, np.float32)]
    module, variables = interop.from_keras(config, weights)
    assert module.kernel_constraint.axis == (0, 1, 2, 3)
    assert module.bias_constraint.axis == (0,)
    back, _ = interop.to_keras(module, variables)
    assert back["kernel_constraint"]["config"]["axis"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kernel_regularizer", NonNeg()),
        ("bias_regularizer", activations.GELU()),
        ("kernel_constraint", L2(0.1)),
        ("bias_constraint", Orthogonal(0.1)),
        ("activity_regularizer", UnitNorm()),
        ("kernel_initializer", Anything()),
        ("bias_initializer", Anything()),
    ],
)
def test_an_object_of_another_kind_is_not_written(name: str, value: Any) -> None:
    module = linen.Conv1DTranspose(4, 3, **{name: value})
    with pytest.raises(ValueError, match=rf"^{name}=.* is not in Keras; name it in custom_objects"):
        interop.to_keras(module, variables_of(module))


def test_the_legacy_keras_has_other_activations() -> None:
    module = linen.Conv1DTranspose(4, 3, activation=activations.LeakyReLU(0.1))
    config, weights = interop.to_keras(module, variables_of(module), api="tf_keras")
    assert config["activation"]["config"] == {"alpha": 0.1, "dtype": "float32"}
    assert interop.from_keras(config, weights)[0].activation == module.activation
    for name in ("hard_sigmoid", "celu"):
        module = linen.Conv1DTranspose(4, 3, activation=name)
        assert interop.to_keras(module, variables_of(module))[0]["activation"] == name
        with pytest.raises(ValueError, match=rf"activation=.*{name}.* is not in the legacy Keras"):
            interop.to_keras(module, variables_of(module), api="tf_keras")
    with pytest.raises(ValueError, match="api must be 'keras' or 'tf_keras', got 'tf'"):
        interop.to_keras(module, variables_of(module), api="tf")


# ------------------------------------------------------------------ nothing is lost unseen

# A value other than the default for each argument of a layer.
PROBES: dict[str, Any] = {
    "filters": 8,
    "kernel_size": (4,),
    "strides": (2,),
    "padding": ((1, 1),),
    "data_format": "channels_first",
    "activation": "relu",
    "use_bias": False,
    "kernel_initializer": initializers.bilinear(2),
    "bias_initializer": initializers.Constant(1.0),
    "kernel_regularizer": Orthogonal(0.1),
    "bias_regularizer": L1(0.1),
    "activity_regularizer": L2(0.1),
    "kernel_constraint": NonNeg(),
    "bias_constraint": UnitNorm(0),
    "trainable": False,
    "output_padding": (1,),
    "dilation_rate": (3,),
    "groups": 2,
    "dtype": jnp.float16,
    "param_dtype": jnp.dtype("bfloat16"),
    "precision": "highest",
    "lowering": "matmul",
}
# What does not go along, as the documentation says.
NOT_CARRIED = {
    "Keras": {"lowering"},
    "PyTorch": {"lowering", "kernel_initializer", "bias_initializer"},
    "Flax": {"lowering", "kernel_initializer", "bias_initializer"},
}
CROPS = {"padding", "output_padding"}


@pytest.mark.parametrize("peer", TO)
@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Layer) if f.name != "rank"])
def test_an_argument_comes_back_or_is_refused_by_name(name: str, peer: str) -> None:
    arguments = {"filters": 4, "kernel_size": 3, **ONLY[peer], name: PROBES[name]}
    if name == "data_format" and peer == "PyTorch":
        arguments[name] = "channels_last"
    if name in ("output_padding", "kernel_initializer"):
        arguments["strides"] = 2
    module = linen.Conv1DTranspose(**arguments)
    variables = variables_of(module, dtype=module.param_dtype)
    if name in NOT_CARRIED[peer]:
        TO[peer](module, variables)
        return
    refused = ""
    try:
        pair = TO[peer](module, variables)
    except ValueError as error:
        refused = str(error)
    if refused:
        assert refused.startswith((f"{name}=", f"{name} "))
        if f"drop=({name!r},)" in refused:
            TO[peer](module, variables, drop=(name,))
        else:
            with pytest.raises(ValueError, match="drop may only name"):
                TO[peer](module, variables, drop=(name,))
        return
    back, arrays = FROM[peer](*pair)
    jax.tree.map(assert_same_bits, arrays, variables)
    if name in CROPS:
        x = jnp.ones((4, 6) if peer != "PyTorch" else (6, 4))
        np.testing.assert_allclose(back.apply(arrays, x), module.apply(variables, x), rtol=1e-5)
    else:
        assert getattr(back, name) == getattr(module, name)


@pytest.mark.parametrize(
    ("peer", "arguments", "message"),
    [
        ("Keras", {"padding": "circular"}, "padding='circular' is not in Keras"),
        ("Keras", {"padding": ((1, 0),)}, r"padding=\(\(1, 0\),\) .*neither 'valid' nor 'same'"),
        (
            "Keras",
            {"padding": "same", "output_padding": 0, "kernel_size": 4},
            "padding='same' with",
        ),
        ("Keras", {"strides": 2, "dilation_rate": 2}, "dilation_rate goes only with strides=1"),
        ("Keras", {"groups": 2}, "groups must be 1 for Keras, got 2$"),
        (
            "Keras",
            {"activation": "gelu"},
            r"activation='gelu' is not in Keras.* is GELU\(approximate=False\) .*custom_objects",
        ),
        (
            "Keras",
            {"kernel_initializer": jax.nn.initializers.he_normal()},
            r"kernel_initializer=.* is not in Keras; upconv\.initializers has .*he_normal\(\) for",
        ),
        ("Keras", {"activation": jnp.sin}, "activation=.* is not in Keras"),
        ("Keras", {"dtype": jnp.float64}, "dtype=float64 with parameters of float32"),
        (
            "Keras",
            {"kernel_initializer": initializers.he_normal(strides=2), "strides": 2},
            "kernel_initializer=VarianceScaling.* is not in Keras",
        ),
        ("PyTorch", {"padding": "circular"}, "padding='circular' is not in PyTorch"),
        ("PyTorch", {"padding": "same", "strides": 2}, "padding='same' crops .*both ends alike"),
        ("PyTorch", {"padding": ((0, 1),)}, "padding=.* crops .*both ends alike"),
        ("PyTorch", {"padding": ((1, 0),)}, "padding=.* crops .*below max.stride, dilation"),
        ("PyTorch", {"padding": ((-1, -1),)}, "padding=.* crops .*both ends alike"),
        ("PyTorch", {"data_format": "channels_last"}, "data_format must be 'channels_first' for P"),
        ("PyTorch", {"dtype": jnp.float16}, "dtype=float16 must be that of the parameters"),
        ("Flax", {"data_format": "channels_first"}, "data_format must be 'channels_last' for Fl"),
        ("Flax", {"groups": 2}, "groups must be 1 for Flax, got 2"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value)[:7],
)
def test_what_a_peer_has_not(peer: str, arguments: dict[str, Any], message: str) -> None:
    with jax.enable_x64(True):
        module = linen.Conv1DTranspose(
            **{"filters": 4, "kernel_size": 3, **ONLY[peer], **arguments}
        )
    with pytest.raises(ValueError, match=message):
        TO[peer](module, variables_of(module))


# ------------------------------------------------------------------ what does not fit

KERNEL, BIAS = np.ones((3, 4, 6), np.float32), np.ones(4, np.float32)
KERAS = {"filters": 4, "kernel_size": 3}
TORCH = {"in_channels": 6, "out_channels": 4, "kernel_size": 3}
STATE = {"weight": KERNEL.transpose(2, 1, 0), "bias": BIAS}
FLAX = {"features": 4, "kernel_size": 3, "transpose_kernel": True}
PARAMS = {"params": {"kernel": KERNEL, "bias": BIAS}}


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("Keras", ({"filters": 4}, [KERNEL, BIAS]), r"layer lacks \['kernel_size'\]"),
        ("Keras", (KERAS | {"rate": 1}, [KERNEL, BIAS]), r"layer has unknown keys \['rate'\]; kno"),
        ("Keras", (KERAS, [KERNEL]), "weights must be kernel and bias, as use_bias is True, got 1"),
        ("Keras", (KERAS | {"filters": 5}, [KERNEL, BIAS]), r"weights\[0\] must have the shape"),
        ("Keras", (KERAS, [KERNEL, BIAS[:3]]), r"bias must have the shape \(4,\), got \(3,\)"),
        ("Keras", (KERAS | {"dtype": "int8_x"}, [KERNEL, BIAS]), "dtype must be the name of"),
        (
            "Keras",
            (KERAS | {"dtype": "float16"}, [KERNEL, BIAS]),
            "weights must be float16 as dtype",
        ),
        (
            "Keras",
            (KERAS | {"activation": 3}, [KERNEL, BIAS]),
            "activation must be a name or a dict",
        ),
        (
            "Keras",
            (KERAS | {"groups": 4}, [KERNEL, BIAS]),
            "groups must divide the 6 input channels",
        ),
        (
            "Keras",
            (KERAS | {"kernel_regularizer": {"class_name": "L3"}}, [KERNEL, BIAS]),
            "kernel_regularizer=.*L3.* is none of Keras's own that are known here",
        ),
        (
            "Keras",
            (KERAS | {"kernel_initializer": "identity"}, [KERNEL, BIAS]),
            r"kernel_initializer='identity' is none of .* custom_objects\['identity'\], or the def",
        ),
        (
            "Keras",
            (
                KERAS
                | {
                    "bias_initializer": {
                        "class_name": "VarianceScaling",
                        "config": {"input_axes": [0], "output_axes": [1]},
                    }
                },
                [KERNEL, BIAS],
            ),
            r"bias_initializer has unknown keys \['input_axes', 'output_axes'\]; known are dist",
        ),
        (
            "Keras",
            (
                KERAS | {"bias_initializer": {"class_name": "Constant", "config": {"value": [1]}}},
                [KERNEL, BIAS],
            ),
            r"bias_initializer has arguments that Constant does not take: value .*drop=\('bias_in",
        ),
        (
            "Keras",
            (
                KERAS | {"kernel_constraint": {"class_name": "NonNeg", "config": [1]}},
                [KERNEL, BIAS],
            ),
            "kernel_constraint must be a name or a dictionary with a class_name",
        ),
        (
            "Keras",
            (
                KERAS | {"dtype": {"module": "user", "class_name": "P", "config": {"name": "f4"}}},
                [KERNEL, BIAS],
            ),
            "dtype must be the name of a dtype or a policy of Keras's own, got",
        ),
        ("PyTorch", ({"in_channels": 6}, STATE), r"layer lacks \['kernel_size', 'out_channels'\]"),
        (
            "PyTorch",
            (TORCH | {"rate": 1}, STATE),
            r"layer has unknown keys \['rate'\]; known are bia",
        ),
        (
            "PyTorch",
            (TORCH | {"strides": 2, "pad": 1}, STATE),
            r"keys \['pad', 'strides'\]; did you mean 'padding' and 'stride'\?$",
        ),
        ("PyTorch", (TORCH | {"in_channels": 5}, STATE), r"weight must have the shape \(5, 4, 3\)"),
        ("PyTorch", (TORCH, {"weight": STATE["weight"]}), r"weights lacks \['bias'\]"),
        ("PyTorch", (TORCH | {"bias": False}, STATE), r"weights has unknown keys \['bias'\]; ex"),
        ("PyTorch", (TORCH | {"padding_mode": "circular"}, STATE), "padding_mode must be 'zeros'"),
        ("PyTorch", (TORCH | {"padding": -1}, STATE), "padding must be at least 0, got -1"),
        (
            "PyTorch",
            (TORCH | {"output_padding": 1}, STATE),
            "output_padding must be at least 0 and",
        ),
        ("PyTorch", (TORCH | {"dtype": "float16"}, STATE), "weight must be float16 as dtype says"),
        ("PyTorch", (TORCH | {"dtype": np.float16}, STATE), "weight must be float16 as dtype says"),
        (
            "PyTorch",
            (TORCH | {"dtype": "float1"}, STATE),
            "dtype must be a dtype or the name of one",
        ),
        (
            "PyTorch",
            (TORCH | {"out_channels": 9, "groups": 2, "bias": False}, {"weight": STATE["weight"]}),
            "groups must divide out_channels=9, got 2",
        ),
        ("Flax", (FLAX,), "variables must be given"),
        (
            "Flax",
            (FLAX | {"mask": jnp.ones((3, 6, 4))}, PARAMS),
            r"mask is not in this package's layer, got an array of shape \(3, 6, 4\)",
        ),
        (
            "Flax",
            (FLAX | {"preferred_element_type": jnp.float32}, PARAMS),
            "preferred_element_type is not in this package's layer",
        ),
        ("Flax", (FLAX | {"features": 5}, PARAMS), r"kernel must have the shape \(3, 5, 6\)"),
        ("Flax", (FLAX | {"padding": "CAUSAL"}, PARAMS), "padding must be 'SAME', 'VALID', 'CIRC"),
        (
            "Flax",
            (FLAX | {"rate": 1}, PARAMS),
            r"layer has unknown keys \['rate'\]; known are bias",
        ),
        (
            "Flax",
            (FLAX | {"in_features": 5}, PARAMS),
            r"kernel must have the shape \(3, 4, 5\) of .*in_features=5 .*, got \(3, 4, 6\)",
        ),
        (
            "Flax",
            (FLAX | {"param_dtype": jnp.bfloat16}, PARAMS),
            "kernel must be bfloat16 as param_dtype says, got float32",
        ),
        ("Flax", (FLAX | {"promote_dtype": jnp.sin}, PARAMS), "promote_dtype must be Flax's own"),
        ("Flax", (FLAX, {"params": {"kernel": KERNEL}}), r"variables lacks \['bias'\]"),
        (
            "Flax",
            (FLAX, {"params": {"up": PARAMS["params"], "down": {}}}),
            r"has unknown keys \['down', 'up'\]; expected kernel and bias: give those of this la",
        ),
        (
            "PyTorch",
            (TORCH, {f"up.{name}": value for name, value in STATE.items()}),
            "expected weight and bias: give those of this layer alone",
        ),
        ("Keras", (KERAS, [KERNEL, BIAS.astype("i4")]), r"weights\[1\] must have a floating-point"),
        (
            "Keras",
            (KERAS | {"activation": {"value": ("4wEA", None, None)}}, [KERNEL, BIAS]),
            r"activation is a lambda, which Keras stores as bytecode; .*drop=\('activation',\) and",
        ),
        (
            "Keras",
            (
                KERAS | {"kernel_regularizer": {"class_name": "__lambda__", "config": {}}},
                [KERNEL, BIAS],
            ),
            "kernel_regularizer is a lambda, which Keras stores",
        ),
        (
            "Flax",
            (FLAX | {"padding": "CIRCULAR", "strides": 2}, PARAMS),
            "padding='CIRCULAR' with transpose_kernel=True",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 8 else "",
)
def test_configs_and_weights_that_do_not_fit(source: str, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FROM[source](*arguments)


@pytest.mark.parametrize("peer", TO)
def test_what_is_no_layer(peer: str) -> None:
    with pytest.raises(TypeError, match=r"layer must be .*, got builtins\.object"):
        FROM[peer](object(), *[PARAMS] * (peer == "Flax"))
    stateful = nnx.Conv1DTranspose(3, 4, 3, rngs=flax_nnx.Rngs(0))
    for module in (stateful, linen.ConvTranspose(4, (3,))):
        with pytest.raises(
            TypeError, match=r"module must be a Conv1D.* upconv\.linen.*from_nnx the"
        ):
            TO[peer](module, {})


@pytest.mark.parametrize("peer", TO)
def test_variables_that_are_not_the_layers(peer: str) -> None:
    module = linen.Conv1DTranspose(4, 3, **ONLY[peer])
    good = PARAMS["params"]
    for variables, message in [
        (good, "variables must have 'params', got"),
        ({"params": {"kernel": KERNEL}}, r"variables lacks \['bias'\]"),
        ({"params": good | {"scale": BIAS}}, r"variables has unknown keys \['scale'\]"),
        ({"params": good | {"kernel": KERNEL[:2]}}, r"kernel must have the shape \(3, 4, 6\)"),
        ({"params": good | {"bias": BIAS[:2]}}, r"bias must have the shape \(4,\), got \(2,\)"),
        ({"params": good | {"bias": BIAS.astype("f2")}}, "kernel and bias must have one dtype"),
    ]:
        with pytest.raises(ValueError, match=message):
            TO[peer](module, variables)
    with pytest.raises(ValueError, match=r"drop may only name .*, got \['filters'\]"):
        TO[peer](module, PARAMS, drop=["filters"])
    with pytest.raises(TypeError, match="drop must be a sequence of names, got 'activation'"):
        TO[peer](module, PARAMS, drop="activation")


@pytest.mark.parametrize("trace", [jax.jit, lambda f: lambda x: jax.eval_shape(f, x)])
@pytest.mark.parametrize("peer", TO)
def test_a_conversion_under_a_trace_is_refused(peer: str, trace: Any) -> None:
    module = linen.Conv1DTranspose(4, 3, **ONLY[peer])
    config, _ = TO[peer](module, PARAMS)
    message = "(kernel|weight).* must be a concrete array, got one that JAX traces"
    with pytest.raises(TypeError, match=message):
        trace(lambda variables: TO[peer](module, variables)[1])(PARAMS)
    with pytest.raises(TypeError, match=message):
        trace(lambda kernel: FROM[peer](config, traced(peer, kernel))[1])(KERNEL)


def traced(peer: str, kernel: Any) -> Any:
    """The weights of that library, as far as they are looked at."""
    if peer == "Keras":
        return [kernel, BIAS]
    return {"weight" if peer == "PyTorch" else "kernel": kernel, "bias": BIAS}


@pytest.mark.parametrize("source", ["PyTorch", "Keras", "Flax"])
def test_keys_must_be_strings(source: str) -> None:
    with pytest.raises(TypeError, match="layer must have strings for keys, got 3"):
        FROM[source]({3: 4, "filters": 4}, PARAMS if source == "Flax" else [KERNEL])


@pytest.mark.parametrize("inner", ["float32", "mixed_float16", "bfloat16"])
def test_a_leaky_relu_of_another_dtype_is_refused(inner: str) -> None:
    """It is a layer in Keras, which casts."""
    record = {"module": "keras.layers", "class_name": "LeakyReLU", "config": {"dtype": inner}}
    config = KERAS | {"dtype": "mixed_bfloat16", "activation": record}
    if inner == "bfloat16":
        module, variables = interop.from_keras(config, [KERNEL, BIAS])
        back, _ = interop.to_keras(module, variables)
        assert back["activation"]["config"]["dtype"] == "bfloat16"
        return
    cast = inner.removeprefix("mixed_")
    message = rf"activation must compute in the layer's bfloat16, got .* casts to {cast}; .*'bfloat"
    with pytest.raises(ValueError, match=message):
        interop.from_keras(config, [KERNEL, BIAS])
    assert interop.from_keras(config, [KERNEL, BIAS], drop=["activation"])[0].activation is None


def test_a_dtype_that_jax_would_round_is_refused() -> None:
    weights = [KERNEL.astype(np.float64), BIAS.astype(np.float64)]
    with pytest.raises(ValueError, match="kernel must have a dtype that JAX keeps, got float64"):
        interop.from_keras(KERAS, weights)
    with jax.enable_x64(True):
        module, variables = interop.from_keras(KERAS, weights)
        assert_same_bits(variables["params"]["kernel"], weights[0])
        assert module.param_dtype == jnp.float64


# ------------------------------------------------------------------ nnx


@pytest.mark.parametrize("trainable", [True, False])
def test_nnx_both_ways(trainable: bool, rng: np.random.Generator) -> None:
    arguments = {"activity_regularizer": L2(0.1), "kernel_constraint": NonNeg(), "groups": 2}
    module, variables, x = draw_layer(rng, 2, trainable=trainable, use_bias=True, **arguments)
    variables = {"params" if trainable else "non_trainable": variables["params"]}
    layer = interop.to_nnx(module, variables)
    assert type(layer) is nnx.Conv2DTranspose
    np.testing.assert_array_equal(layer(x), module.apply(variables, x))
    assert float(nnx.losses(layer)) > 0
    assert len(jax.tree.leaves(flax_nnx.state(layer, flax_nnx.Param))) == 2 * trainable
    assert list(nnx.rules(layer)) == (["kernel"] if trainable else [])
    back, arrays = interop.from_nnx(layer)
    jax.tree.map(assert_same_bits, arrays, variables)
    assert back == module
    with pytest.raises(TypeError, match=r"layer must be a Conv.* upconv\.nnx, got upconv\.linen"):
        interop.from_nnx(module)


def test_stacked_nnx_layers_are_refused() -> None:
    @flax_nnx.vmap(in_axes=0, out_axes=0)
    def stacked(key: jax.Array) -> nnx.Conv2DTranspose:
        return nnx.Conv2DTranspose(3, 4, 5, rngs=flax_nnx.Rngs(key))

    layer = stacked(jax.random.split(jax.random.key(0), 2))
    message = r"kernel must have the shape \(5, 5, 4, 3\), got \(2, 5, 5, 4, 3\)"
    with pytest.raises(ValueError, match=message):
        interop.from_nnx(layer)


# ------------------------------------------------------------------ ONNX


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID", "shape"])
@pytest.mark.parametrize("case", range(6))
def test_onnx_crops_by_its_own_formula(auto_pad: str, case: int, rng: np.random.Generator) -> None:
    """Against the full output, cropped or extended by hand."""
    rank, groups = case % 2 + 1, case % 3 // 2 + 1
    n, k, s = integers(rng, 2, 6, rank), integers(rng, 1, 5, rank), integers(rng, 1, 4, rank)
    d = integers(rng, 1, 3, rank)
    extra = tuple(int(rng.integers(max(a, b))) for a, b in zip(s, d, strict=True))
    w, b = normal(rng, 6, 2, *k), normal(rng, 2 * groups)
    x = normal(rng, 3, 6, *n)
    full = [(a - 1) * t + e * (c - 1) + 1 for a, t, e, c in zip(n, s, d, k, strict=True)]
    attributes: dict[str, Any] = {"strides": s, "dilations": d, "group": groups}
    attributes |= {"output_padding": extra, "kernel_shape": list(k)}
    if auto_pad == "shape":
        out = [max(f + e - int(rng.integers(-2, 4)), 1) for f, e in zip(full, extra, strict=True)]
        attributes["output_shape"] = out
        total = [f + e - o for f, e, o in zip(full, extra, out, strict=True)]
        start = [t - t // 2 if t > 0 else 0 for t in total]
    elif auto_pad.startswith("SAME"):
        attributes["auto_pad"] = auto_pad.encode()
        out = [a * t for a, t in zip(n, s, strict=True)]
        total = [f + e - o for f, e, o in zip(full, extra, out, strict=True)]
        start = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
    else:
        pads = [0] * 2 * rank
        if auto_pad == "NOTSET":
            pads = attributes["pads"] = [int(p) for p in rng.integers(0, 2, 2 * rank)]
        start = pads[:rank]
        ends = zip(full, extra, start, pads[rank:], strict=True)
        out = [f + e - lo - hi for f, e, lo, hi in ends]
    if min(out) < 1:
        pytest.skip("nothing is left of the output")
    kernel = np.moveaxis(w, (0, 1), (-1, -2))
    options = {"strides": s, "dilation_rate": d, "groups": groups, "data_format": "channels_first"}
    whole = conv_transpose(x, kernel, padding=0, **options)
    wide = np.pad(np.asarray(whole), [(0, 0), (0, 0), *[(9, 99)] * rank])
    window = tuple(slice(9 + lo, 9 + lo + o) for lo, o in zip(start, out, strict=True))
    expected = wide[(slice(None), slice(None), *window)] + b.reshape(-1, *[1] * rank)
    module, variables = interop.from_onnx(attributes, [w, b], x.shape)
    assert_close(module.apply(variables, x), expected)


def test_onnx_nodes_are_read_by_their_fields() -> None:
    """A protocol buffer has an empty field for each type that an attribute has not."""
    fields = {"i": 0, "s": b"", "ints": [], "ref_attr_name": ""}
    node = SimpleNamespace(
        op_type="ConvTranspose",
        domain="ai.onnx",
        input=["X", "W"],
        attribute=[
            SimpleNamespace(**fields | {"name": "group", "type": 2, "i": 2}),
            SimpleNamespace(**fields | {"name": "auto_pad", "type": 3, "s": b"SAME_LOWER"}),
            SimpleNamespace(**fields | {"name": "strides", "type": 7, "ints": [2, 3]}),
        ],
    )
    module, _ = interop.from_onnx(node, [np.ones((6, 2, 3, 4), np.float32)])
    assert (module.filters, module.groups, module.strides) == (4, 2, (2, 3))
    assert module.compute_output_shape((1, 6, 5, 4)) == (1, 4, 10, 12)
    assert not module.use_bias
    node.input.append("")  # an input that is left out
    weights = [np.ones((6, 2, 3, 4), np.float32), np.ones(4, np.float32)]
    with pytest.raises(ValueError, match=r"the node's inputs after X, \['W'\], got 2 arrays"):
        interop.from_onnx(node, weights)
    node.input[2] = "B"
    with pytest.raises(ValueError, match=r"the node's inputs after X, \['W', 'B'\], got 1 arrays"):
        interop.from_onnx(node, weights[:1])
    assert interop.from_onnx(node, weights)[0].use_bias
    for field, value, message in [
        ("ref_attr_name", "step", "strides must stand in the node, got a reference to 'step' of t"),
        ("type", 6, "strides must be an integer, integers or a string, got the type 6"),
        ("name", "step", r"lacks: \['step'\]"),
    ]:
        attribute = SimpleNamespace(**vars(node.attribute[2]) | {field: value})
        broken = SimpleNamespace(**vars(node) | {"attribute": [attribute]})
        with pytest.raises(ValueError, match=message):
            interop.from_onnx(broken, weights)
    node.domain = "com.microsoft"
    message = "ConvTranspose of ONNX's own, got 'ConvTranspose' of the domain 'com.microsoft'"
    with pytest.raises(ValueError, match=message):
        interop.from_onnx(node, weights)
    node.op_type, node.domain = "Conv", ""
    with pytest.raises(ValueError, match=r"be a ConvTranspose of ONNX's own, got 'Conv'$"):
        interop.from_onnx(node, weights)


@pytest.mark.parametrize(
    ("attributes", "weights", "message"),
    [
        ({"stride": [2]}, [KERNEL], r"ConvTranspose lacks: \['stride'\]; did you mean 'strides'\?"),
        (
            {"rate": 2},
            [KERNEL],
            r"lacks: \['rate'\]; known are auto_pad, dilations, group, kernel_sh",
        ),
        ({}, [], r"weights must be \[W\] or \[W, B\], got 0 arrays"),
        ({}, [KERNEL[0]], "W must have 1 to 3 spatial axes"),
        ({"kernel_shape": [4]}, [KERNEL], r"kernel_shape must be that of W, \(6,\), got \(4,\)"),
        ({"auto_pad": "SAME"}, [KERNEL], "auto_pad must be NOTSET, SAME_UPPER, .* got 'SAME'"),
        ({"auto_pad": "VALID", "pads": [1, 1]}, [KERNEL], "pads and auto_pad exclude each other"),
        ({"pads": [1]}, [KERNEL], r"pads must be a start and an end per axis, 2 int.* got \(1,\)"),
        ({}, [KERNEL.astype("i4")], "W must have a floating-point dtype, got int32"),
        ({}, [KERNEL, BIAS.astype("f2")], "W and B must have one dtype, got float32 and float16"),
        (
            {"output_shape": [9]},
            [KERNEL],
            "input_shape must be .* as output_shape is given, got None",
        ),
        ({"group": 2}, [KERNEL], "groups must divide the 3 input channels, got 2"),
        ({"group": 0}, [KERNEL], "^group must be at least 1, got 0"),
        (
            {},
            [np.ones((1, 7, 5), "f4"), KERNEL],
            r"B must have the shape \(7,\), got \(3, 4, 6\): weights are W and B, without X",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_onnx_attributes_that_do_not_fit(attributes: Any, weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interop.from_onnx(attributes, weights)


def test_onnx_output_shape_is_for_the_channels_of_the_kernel() -> None:
    attributes, weights = {"output_shape": [9]}, [KERNEL]
    for c_in in (3, None):
        interop.from_onnx(attributes, weights, (1, c_in, 4))
    with pytest.raises(ValueError, match=r"input_shape must be \(batch, 3, \*spatial\) .*, 4, 4\)"):
        interop.from_onnx(attributes, weights, (1, 4, 4))
    with pytest.raises(TypeError, match=r"input_shape\[2\] must be an integer, got None"):
        interop.from_onnx(attributes, weights, (None, 3, None))


def test_onnx_output_shape_overrides_pads() -> None:
    """As the standard says; the reference evaluator uses the pads."""
    attributes, weights = {"output_shape": [4], "strides": [2]}, [KERNEL]
    plain, _ = interop.from_onnx(attributes, weights, (1, 3, 4))
    padded, _ = interop.from_onnx(attributes | {"pads": [3, 0]}, weights, (1, 3, 4))
    assert padded == plain


def test_what_holds_no_numbers_is_refused_by_name() -> None:
    for weights, name in [([object()], "W"), ([KERNEL, {"B": BIAS}], "B")]:
        with pytest.raises(TypeError, match=rf"{name} must be an array of numbers, got builtins\."):
            interop.from_onnx({}, weights)
    for given in ({"W": KERNEL}, KERNEL, "W"):
        with pytest.raises(TypeError, match="weights must be a list of arrays, got "):
            interop.from_onnx({}, given)
        with pytest.raises(TypeError, match="weights must be a list of arrays, got "):
            interop.from_keras(KERAS, given)


def test_onnx_takes_nodes_and_dictionaries() -> None:
    with pytest.raises(TypeError, match=r"node must be an onnx\.NodeProto or a dictionary"):
        interop.from_onnx([], [KERNEL])
