"""Layers against those of Keras 3, on its TensorFlow backend; regularizers and constraints too.

The latter also against those of the legacy Keras.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import upconv.linen
from checks import normal
from side_by_side import error, in_one_program
from upconv import constraints, initializers, regularizers

pytestmark = pytest.mark.parity

SHAPE = (3, 2, 4, 5)
REGULARIZERS = [
    ("L1", ()),
    ("L1", (0.3,)),
    ("L2", ()),
    ("L2", (0.7,)),
    ("L1L2", (0.3, 0.7)),
    ("L1L2", (0.3,)),
    ("Orthogonal", ()),
    ("Orthogonal", (0.4,)),
    ("Orthogonal", (0.4, "columns")),
]
CONSTRAINTS: list[tuple[str, dict[str, Any]]] = [
    ("MaxNorm", {}),
    ("MaxNorm", {"max_value": 0.7, "axis": 1}),
    ("MaxNorm", {"max_value": 1.3, "axis": [0, 1, 3]}),
    ("NonNeg", {}),
    ("UnitNorm", {}),
    ("UnitNorm", {"axis": [0, 1, 3]}),
    ("MinMaxNorm", {}),
    ("MinMaxNorm", {"min_value": 2.0, "max_value": 3.0, "rate": 0.3, "axis": -1}),
    ("MinMaxNorm", {"min_value": 1.0, "max_value": 1.5, "axis": [0, 1, 3]}),
]


@pytest.fixture(params=["keras", "tf_keras"])
def peer(request: pytest.FixtureRequest) -> ModuleType:
    return request.getfixturevalue(request.param)


def value_and_slope(tf: ModuleType, function: Any, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """Both from the peer, by its own differentiation."""
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        value = function(variable)
    return np.asarray(value), np.asarray(tape.gradient(value, variable))


def sample(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal numbers, some of them zero."""
    return (rng.normal(size=shape) * (rng.random(shape) < 0.9)).astype(np.float32)


@pytest.mark.parametrize(("name", "arguments"), REGULARIZERS, ids=str)
def test_regularizers(
    name: str, arguments: tuple[Any, ...], peer: ModuleType, tf: ModuleType, rng: Any
) -> None:
    """Values and gradients, at zeros too."""
    theirs = "OrthogonalRegularizer" if name == "Orthogonal" else name
    x = sample(rng, 6, 7) if name == "Orthogonal" else sample(rng, *SHAPE)
    value, slope = value_and_slope(tf, getattr(peer.regularizers, theirs)(*arguments), x)
    ours = getattr(regularizers, name)(*arguments)
    np.testing.assert_allclose(ours(x), value, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(ours)(jnp.asarray(x)), slope, rtol=1e-4, atol=1e-7)


def test_orthogonal_takes_a_kernel_as_one_row_per_filter(
    peer: ModuleType, tf: ModuleType, rng: Any
) -> None:
    x = sample(rng, *SHAPE)
    rows = np.moveaxis(x, 2, 0).reshape(4, -1)
    value, _ = value_and_slope(tf, peer.regularizers.OrthogonalRegularizer(0.4), rows)
    np.testing.assert_allclose(regularizers.Orthogonal(0.4)(x), value, rtol=1e-5)


def test_l1l2_without_factors_is_nothing(peer: ModuleType, tf: ModuleType, rng: Any) -> None:
    x = sample(rng, *SHAPE)
    assert float(peer.regularizers.L1L2()(tf.constant(x))) == 0
    assert regularizers.L1L2()(x) == 0


@pytest.mark.parametrize(("name", "arguments"), CONSTRAINTS, ids=str)
def test_constraints(
    name: str, arguments: dict[str, Any], peer: ModuleType, tf: ModuleType, rng: Any
) -> None:
    x = sample(rng, *SHAPE)
    x[:, 1] = 0  # whole slices of zeros
    theirs = getattr(peer.constraints, name)(**arguments)(tf.constant(x))
    ours = getattr(constraints, name)(**arguments)(x)
    np.testing.assert_allclose(ours, np.asarray(theirs), rtol=1e-6, atol=1e-7)


def test_epsilon_is_that_of_keras(peer: ModuleType, tf: ModuleType) -> None:
    """Where the norm is as small as the number that it is added to, that number shows."""
    x = np.float32([[3e-7], [4e-7]])
    theirs = peer.constraints.UnitNorm()(tf.constant(x))
    np.testing.assert_allclose(constraints.UnitNorm()(x), np.asarray(theirs), rtol=1e-5)


def test_defaults(peer: ModuleType) -> None:
    for module, theirs, names in (
        (regularizers, peer.regularizers, ("L1", "L2", "L1L2")),
        (constraints, peer.constraints, ("MaxNorm", "UnitNorm", "MinMaxNorm")),
    ):
        for name in names:
            ours = getattr(module, name)()
            for field, value in getattr(theirs, name)().get_config().items():
                np.testing.assert_allclose(getattr(ours, field), value, rtol=1e-6)


@pytest.mark.parametrize("shape", [(5, 4, 48, 32), (3, 48, 32), (48,)])
def test_fans(shape: tuple[int, ...], peer: ModuleType) -> None:
    """The peers read `(*kernel_size, filters, c_in)` as in and out; glorot does not mind."""
    limit = np.sqrt(6 / sum(initializers.compute_fans(shape)))
    theirs = np.asarray(peer.initializers.GlorotUniform(seed=1)(shape))
    ours = initializers.glorot_uniform()(jax.random.key(1), shape)
    for draws in (theirs, ours):
        assert 0.9 * limit < np.abs(draws).max() <= limit * (1 + 1e-6)


# ------------------------------------------------------------------ layers

# So many layers are compared, in parts of so many that are compiled together.
PARTS, AT_ONCE = 12, 25
RANKS = (1, 2, 1, 2, 3, 1, 2, 1)


class Drawn(NamedTuple):
    """A layer's arguments, which are spelled alike in both libraries, and its arrays."""

    rank: int
    x: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray | None
    arguments: dict[str, Any]

    @property
    def weights(self) -> dict[str, np.ndarray]:
        return {"kernel": self.kernel} | ({} if self.bias is None else {"bias": self.bias})

    @property
    def kinds(self) -> tuple[str, ...]:
        given = {k: v for k, v in self.arguments.items() if np.any(np.array(v) != 1)}
        choices = (self.arguments["padding"].lower(), self.arguments.get("data_format"))
        return (f"{self.rank}d", "no bias" if self.bias is None else "bias", *given, *choices)

    def make(self, library: Any) -> Any:
        """The layer of `keras.layers` or `upconv.linen`."""
        cls = getattr(library, f"Conv{self.rank}DTranspose")
        size = self.kernel.shape[: self.rank]
        filters = self.kernel.shape[-2]
        return cls(filters, size, use_bias=self.bias is not None, **self.arguments)

    def theirs(self, tf: ModuleType, keras: ModuleType, ct: np.ndarray) -> Any:
        """The output, and gradients by weights and input."""
        layer = self.make(keras.layers)
        layer.build(self.x.shape)
        layer.set_weights(list(self.weights.values()))
        x = tf.Variable(self.x)
        with tf.GradientTape() as tape:
            y = layer(x)
        variables = [v.value for v in layer.trainable_variables]
        *slopes, dx = tape.gradient(y, [*variables, x], ct)
        slopes = dict(zip(self.weights, map(np.asarray, slopes), strict=True))
        return [np.asarray(y), slopes, np.asarray(dx)]

    def ours(self) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
        """The layer, and what it is called with."""
        layer = self.make(upconv.linen)
        return lambda params, x: layer.apply({"params": params}, x), (self.weights, self.x)

    @property
    def is_right(self) -> bool:
        """Whether Keras takes the layer and computes it rightly.

        `keras.ops.add` of the TensorFlow backend (3.15) adds the bias of a `channels_first` image
        along the last axis if that is as long as there are filters. Without AVX-512 the gradient
        by a kernel of one strided tap, which oneDNN computes, is now and then anything at all.
        """
        size = self.output_size
        first = self.arguments.get("data_format") == "channels_first"
        astray = first and self.bias is not None and size[-1:] == self.bias.shape
        one_tap = self.kernel.shape[: self.rank] == (1,) * self.rank
        random = one_tap and "strides" in self.arguments
        return min(size, default=0) > 0 and not astray and not random

    @property
    def output_size(self) -> tuple[int, ...]:
        """By TensorFlow's documentation, and Keras's where there is an output padding."""
        first = self.arguments.get("data_format") == "channels_first"
        size = self.x.shape[2:] if first else self.x.shape[1:-1]
        strides, dilation = (
            np.broadcast_to(self.arguments.get(name, 1), self.rank)
            for name in ("strides", "dilation_rate")
        )
        same = self.arguments["padding"].lower() == "same"
        more = self.arguments.get("output_padding")
        span = dilation * (np.array(self.kernel.shape[: self.rank]) - 1) + 1
        size = np.array(size)
        if more is not None:
            out = (size - 1) * strides + span - (span // 2 * 2 if same else 0) + np.array(more)
        else:
            out = size * strides if same else (size - 1) * strides + np.maximum(span, strides)
        # TensorFlow refuses an output that SAME would not take back to the size of the input.
        refused = same and (-(-out // strides) != size).any()
        return () if refused else tuple(out.tolist())


def draw(rng: np.random.Generator, rank: int) -> Drawn:
    def ints(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(low, high + 1, size=rank))

    def spelled(values: tuple[int, ...]) -> Any:
        return values[0] if len(set(values)) == 1 else values

    small = 5 if rank < 3 else 3
    c_in, filters, batch = (int(i) for i in rng.permutation(4)[:3] + 2)
    arguments: dict[str, Any] = {
        "padding": str(rng.choice(["valid", "same", "SAME"], p=[0.4, 0.4, 0.2]))
    }
    # Keras takes strides or a dilation rate, not both.
    strides = ints(1, 4) if rng.random() < 0.7 else (1,) * rank
    if set(strides) != {1}:
        arguments["strides"] = spelled(strides)
    else:
        arguments["dilation_rate"] = spelled(ints(1, 3))
    if rng.random() < 0.5:
        arguments["output_padding"] = tuple(int(rng.integers(s)) for s in strides)
    size = ints(1, small)
    shape = (batch, *size, c_in)
    if rng.random() < 0.4:
        arguments["data_format"] = "channels_first"
        shape = (batch, c_in, *size)
    elif rng.random() < 0.5:
        arguments["data_format"] = "channels_last"
    return Drawn(
        rank,
        normal(rng, *shape),
        normal(rng, *ints(1, small), filters, c_in),
        normal(rng, filters) if rng.random() < 0.7 else None,
        arguments,
    )


@functools.cache
def drawn(part: int) -> list[Drawn]:
    """A part of the layers, all of which Keras computes rightly."""
    rng, found = np.random.default_rng([3, part]), []
    while len(found) < AT_ONCE:
        case = draw(rng, RANKS[len(found) % len(RANKS)])
        if case.is_right:
            found.append(case)
    return found


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.many
def test_random_layers(part: int, tf: ModuleType, keras: ModuleType, measured: Any) -> None:
    """Values, and gradients by kernel, bias and input."""
    cases, rng = drawn(part), np.random.default_rng(part)
    functions, args = zip(*(case.ours() for case in cases), strict=True)
    cts = [normal(rng, *jax.eval_shape(f, *a).shape) for f, a in zip(functions, args, strict=True)]
    results = in_one_program([[f] for f in functions], args, cts)
    for i, (case, (ours,), ct) in enumerate(zip(cases, results, cts, strict=True)):
        name = f"{part}.{i} {case.x.shape} {case.kernel.shape} {case.arguments}"
        measured("Keras's ConvTranspose", error(name, ours, case.theirs(tf, keras, ct)))


def test_the_random_layers_reach_every_kind() -> None:
    cases = [case for part in range(PARTS) for case in drawn(part)]
    count = Counter(kind for case in cases for kind in case.kinds)
    arguments = ("strides", "dilation_rate", "output_padding")
    kinds = ("same", "valid", "channels_first", "channels_last", "bias", "no bias")
    assert all(count[kind] > 30 for kind in ("1d", "2d", "3d", *arguments, *kinds)), count
    for rank in (1, 2, 3):
        for kind in (*arguments, *kinds):
            assert any({kind, f"{rank}d"} <= set(case.kinds) for case in cases), (rank, kind)
    both = [case for case in cases if {"same", "output_padding"} <= set(case.kinds)]
    assert len(both) > 30
