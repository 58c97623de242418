"""The pairs of `docs/migrating.md`, run as they stand there, and what it says of other defaults."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import upconv
import upconv.linen
from checks import normal
from side_by_side import Call, compare, error
from upconv.interop import from_keras, to_keras

pytestmark = pytest.mark.parity

PAGE = Path(__file__).parents[2] / "docs" / "migrating.md"
WEIGHTS = [np.ones((4, 2, 3), np.float32), np.zeros(2, np.float32)]
OPTIONAL = {"tensorflow", "keras", "torch", "haiku", "equinox", "onnx"}


class Pair(NamedTuple):
    """Code that leaves a `y`, and others that should leave the same, on `x` of that shape."""

    name: str
    shape: tuple[int, ...]
    before: str
    after: list[str]


def pairs(page: str) -> Iterator[Pair]:
    """Every block of Python is half of a pair: there is nothing that is shown and not run."""
    found: Pair | None = None
    heading, counter = "", 0
    pattern = re.compile(r"^## ([^\n]*)$|^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
    for title, block in pattern.findall(page):
        if title:
            heading, counter = title.lower().replace(" ", "-"), 0
            continue
        first, code = block.split("\n", 1)
        if before := re.fullmatch(r"# before, x: \(([\d, ]+)\)", first):
            if found is not None:
                yield found
            counter += 1
            shape = tuple(map(int, before[1].split(",")))
            found = Pair(f"{heading}-{counter}", shape, code, [])
        else:
            assert first == "# after", f"{heading}: {first}"
            assert found is not None, heading
            found.after.append(code)
    assert found is not None
    yield found


PAIRS = list(pairs(PAGE.read_text()))


def run(code: str, names: dict[str, Any]) -> np.ndarray:
    """What the code leaves as `y`."""
    exec(compile(code, str(PAGE), "exec"), names)
    y = names.pop("y")
    return np.asarray(y.detach() if hasattr(y, "detach") else y)


@pytest.mark.parametrize("pair", PAIRS, ids=[pair.name for pair in PAIRS])
def test_pair(
    pair: Pair,
    import_peer: Callable[[str], ModuleType],
    measured: Any,
    rng: np.random.Generator,
) -> None:
    for root in re.findall(r"^(?:import|from) (\w+)", pair.before, re.MULTILINE):
        if root in OPTIONAL:
            import_peer(root)
    names: dict[str, Any] = {"x": normal(rng, *pair.shape)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's own deprecations
        theirs = run(pair.before, names)
    assert pair.after
    for code in pair.after:
        measured("docs/migrating.md", error(pair.name, run(code, dict(names)), theirs))


def test_every_library_has_a_pair() -> None:
    sections = {pair.name.rsplit("-", 1)[0] for pair in PAIRS}
    libraries = {
        "tensorflow-and-keras", "pytorch", "flax", "jax.lax", "haiku", "equinox", "onnx",
    }  # fmt: skip
    assert sections == libraries


# ------------------------------------------------------------------ what it says of paddings


class Axis(NamedTuple):
    """One axis of a layer without dilation's companions: sizes, pads, and arrays."""

    n: int
    k: int
    s: int
    d: int
    lo: int
    hi: int
    more: int
    x: np.ndarray
    w: np.ndarray  # (k, 2, 3), as ours

    @property
    def span(self) -> int:
        return self.d * (self.k - 1) + 1

    def ours(self, **options: Any) -> Callable[..., jax.Array]:
        options = {"strides": self.s, "dilation_rate": self.d} | options
        return lambda x, w: upconv.conv_transpose(x, w, **options)

    def flax(self, transposed: bool = False, **options: Any) -> Callable[..., jax.Array]:
        layer = nn.ConvTranspose(
            2,
            (self.k,),
            strides=(self.s,),
            kernel_dilation=(self.d,),
            use_bias=False,
            transpose_kernel=transposed,
            **options,
        )

        def apply(x: jax.Array, w: jax.Array) -> jax.Array:
            kernel = w if transposed else jnp.flip(w, 0).swapaxes(1, 2)
            return layer.apply({"params": {"kernel": kernel}}, x)

        return apply

    def haiku(self, **options: Any) -> Callable[..., jax.Array]:
        import haiku as hk

        model = hk.without_apply_rng(
            hk.transform(
                lambda x: hk.Conv1DTranspose(2, self.k, self.s, with_bias=False, **options)(x)
            )
        )
        return lambda x, w: model.apply({"conv1_d_transpose": {"w": jnp.flip(w, 0)}}, x)

    def equinox(self, **options: Any) -> Callable[..., jax.Array]:
        import equinox as eqx

        options = {"stride": self.s, "dilation": self.d, "use_bias": False} | options
        layer = eqx.nn.ConvTranspose1d(3, 2, self.k, **options, key=jax.random.key(0))

        def apply(x: jax.Array, w: jax.Array) -> jax.Array:
            weight = jnp.flip(w, 0).transpose(1, 2, 0)
            return eqx.tree_at(lambda layer: layer.weight, layer, weight)(x.T).T

        return apply


def cropped(a: Axis) -> tuple[tuple[int, int], ...]:
    """What is cropped where `(lo, hi)` is added to the dilated input."""
    return ((a.span - 1 - a.lo, a.span - 1 - a.hi),)


Functions = tuple[Callable[..., jax.Array], Callable[..., jax.Array]]
STATEMENTS: dict[str, Callable[[Axis], Functions]] = {
    "flax SAME": lambda a: (a.ours(padding="same"), a.flax(padding="SAME")),
    "flax VALID": lambda a: (a.ours(padding="valid"), a.flax(padding="VALID")),
    "flax CIRCULAR": lambda a: (a.ours(padding="circular"), a.flax(padding="CIRCULAR")),
    "flax pads": lambda a: (a.ours(padding=cropped(a)), a.flax(padding=((a.lo, a.hi),))),
    "flax transposed": lambda a: (a.ours(padding="same"), a.flax(True, padding="SAME")),
    "haiku SAME": lambda a: (a.ours(padding="same"), a.haiku()),
    "haiku VALID": lambda a: (a.ours(padding="valid"), a.haiku(padding="VALID")),
    "haiku pads": lambda a: (a.ours(padding=cropped(a)), a.haiku(padding=((a.lo, a.hi),))),
    "equinox pads": lambda a: (
        a.ours(padding=((a.lo, a.hi),), output_padding=a.more),
        a.equinox(padding=((a.lo, a.hi),), output_padding=a.more),
    ),
    "equinox integer": lambda a: (a.ours(padding=a.lo), a.equinox(padding=a.lo)),
    "equinox VALID": lambda a: (a.ours(padding=0), a.equinox(padding="VALID")),
    "equinox SAME": lambda a: (a.ours(padding="same"), a.equinox(padding="SAME")),
    "equinox SAME_LOWER": lambda a: (
        a.ours(padding="same_lower"),
        a.equinox(padding="SAME_LOWER"),
    ),
    "equinox SAME, output_padding": lambda a: (
        a.ours(padding="same", output_size=a.n * a.s - a.more),
        a.equinox(padding="SAME", output_padding=a.more),
    ),
}


@pytest.mark.parametrize("name", STATEMENTS)
@pytest.mark.many
def test_paddings(
    name: str, import_peer: Callable[[str], ModuleType], rng: np.random.Generator
) -> None:
    """Values and gradients of a dozen layers with one axis."""
    library = name.split()[0]
    if library in OPTIONAL:
        import_peer(library)
    calls = []
    for _ in range(12):
        n, k, s, d, lo, hi = (int(i) for i in rng.integers((3, 1, 1, 1, 0, 0), (7, 6, 4, 3, 2, 2)))
        d = 1 if library == "haiku" else d
        x, w = normal(rng, n, 3), normal(rng, k, 2, 3)
        axis = Axis(n, k, s, d, lo, hi, int(rng.integers(s)), x, w)
        calls.append(Call(str(axis[:7]), {name: STATEMENTS[name](axis)}, (x, w)))
    compare(calls)


def test_circular_of_a_transposed_kernel_is_a_pixel_further_in_flax() -> None:
    for k, s in [(2, 2), (3, 2), (4, 2), (5, 2), (2, 3), (1, 4), (4, 1), (3, 1)]:
        rng = np.random.default_rng(k)
        x, w = normal(rng, 4, 3), normal(rng, k, 2, 3)
        axis = Axis(4, k, s, 1, 0, 0, 0, x, w)
        theirs = axis.flax(True, padding="CIRCULAR")(x, w)
        further = k > s and (k - s) % 2
        error(f"{k} {s}", jnp.roll(axis.ours(padding="circular")(x, w), -further, 0), theirs)


def test_what_it_says_of_pytorch(torch: ModuleType, rng: np.random.Generator) -> None:
    def theirs(x: np.ndarray, w: np.ndarray, **options: Any) -> np.ndarray:
        weight = torch.from_numpy(w.transpose(2, 1, 0).copy())
        y = torch.nn.functional.conv_transpose1d(torch.from_numpy(x.T.copy()), weight, **options)
        return y.numpy().T

    def ours(x: np.ndarray, w: np.ndarray, **options: Any) -> np.ndarray:
        return np.asarray(upconv.conv_transpose(x, w, **options))

    x, w4, w5 = normal(rng, 6, 3), normal(rng, 4, 2, 3), normal(rng, 5, 2, 3)
    same = {"strides": 2, "padding": "same"}
    error("4", ours(x, w4, **same), theirs(x, w4, stride=2, padding=1))
    later = theirs(x, w5, stride=2, padding=2, output_padding=1)
    assert later.shape == (12, 2)
    error("5", ours(x, w5, **same)[1:], later[:-1])
    # A stride larger than the dilated kernel: zeros at the end.
    for dilation, span in [(1, 4), (2, 7)]:
        y = ours(x, w4, strides=9, dilation_rate=dilation)
        error("valid", y[: span - 9], theirs(x, w4, stride=9, dilation=dilation))
        assert not y[span - 9 :].any()
    y = ours(x, w4, strides=6, dilation_rate=2)
    error("valid, dilated", y, theirs(x, w4, stride=6, dilation=2))


def test_what_it_says_of_activations(rng: np.random.Generator) -> None:
    x, kernel, bias = normal(rng, 2, 5, 3), normal(rng, 4, 2, 3), normal(rng, 2)
    linear = upconv.linen.Conv1DTranspose(2, 4)
    y = linear.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    for name, ours, keras in [
        ("gelu", jax.nn.gelu, lambda y: jax.nn.gelu(y, approximate=False)),
        ("leaky_relu", lambda y: jnp.where(y > 0, y, 0.01 * y), lambda y: jnp.maximum(y, 0.2 * y)),
    ]:
        named = upconv.linen.Conv1DTranspose(2, 4, activation=name)
        error(name, named.apply({"params": {"kernel": kernel, "bias": bias}}, x), ours(y))
        config = {"filters": 2, "kernel_size": 4, "activation": name}
        layer, variables = from_keras(config, [kernel, bias])
        error(name, layer.apply(variables, x), keras(y))


def test_activations_that_are_not_converted(import_peer: Callable[[str], ModuleType]) -> None:
    keras, tf = import_peer("keras"), import_peer("tensorflow")
    layers = keras.layers
    for activation in (
        *("sparsemax", "threshold", tf.nn.crelu, layers.ReLU(), layers.ELU(), layers.PReLU()),
        *(layers.Softmax(), layers.Activation("relu")),
    ):
        theirs = layers.Conv1DTranspose(2, 4, activation=activation)
        theirs.build((None, 5, 3))
        with pytest.raises(
            ValueError, match=r"activation=.* is none of Keras's own that are known"
        ):
            from_keras(theirs)
        module, _ = from_keras(theirs, drop=("activation",))
        assert module.clone(activation="relu").activation == "relu"
    for name in ("exponential", "hard_shrink", "soft_shrink", "tanh_shrink"):
        ours, _ = from_keras({"filters": 2, "kernel_size": 4, "activation": name}, WEIGHTS)
        assert type(ours.activation).__name__ == name.title().replace("_", "")
        assert not hasattr(jax.nn, name)


def test_an_output_padding_is_below_the_larger_of_stride_and_dilation() -> None:
    for strides, dilation in [(2, 1), (1, 3), (2, 3)]:
        most = max(strides, dilation)
        options = {"strides": strides, "dilation_rate": dilation}
        upconv.linen.Conv1DTranspose(2, 4, **options, output_padding=most - 1)
        with pytest.raises(ValueError, match="output_padding"):
            upconv.linen.Conv1DTranspose(2, 4, **options, output_padding=most)


def test_custom_objects_go_back_to_keras(import_peer: Callable[[str], ModuleType]) -> None:
    keras = import_peer("keras")
    layer, variables = from_keras({"filters": 2, "kernel_size": 4}, WEIGHTS)
    custom = {"swoosh": jnp.sin}
    config, _ = to_keras(layer.clone(activation=jnp.sin), variables, custom_objects=custom)
    with keras.saving.custom_object_scope({"swoosh": keras.ops.sin}):
        assert keras.layers.Conv1DTranspose(**config).activation is keras.ops.sin


def test_what_it_says_of_initial_values(import_peer: Callable[[str], ModuleType]) -> None:
    """Limits of uniform draws, deviations of others, for many numbers."""
    key, c_in, filters, size, groups = jax.random.key(0), 24, 32, (5, 3), 4
    torch, eqx, hk = (import_peer(name) for name in ("torch", "equinox", "haiku"))

    layer = torch.nn.ConvTranspose2d(c_in, filters, size, groups=groups)
    limit = 1 / np.sqrt(filters // groups * 15)
    ours = jax.nn.initializers.variance_scaling(
        1 / 3, "fan_in", "uniform", in_axis=-2, out_axis=-1
    )(key, (*size, filters // groups, c_in), jnp.float32)
    for array in (layer.weight.detach().numpy(), ours):
        np.testing.assert_allclose(np.abs(array).max(), limit, rtol=0.02)
    assert 0.8 * limit < np.abs(layer.bias.detach().numpy()).max() <= limit

    layer = eqx.nn.ConvTranspose2d(c_in, filters, size, groups=groups, key=key)
    limit = 1 / np.sqrt(c_in // groups * 15)
    np.testing.assert_allclose(np.abs(layer.weight).max(), limit, rtol=0.02)
    assert 0.8 * limit < np.abs(layer.bias).max() <= limit

    x = jnp.ones((1, 4, 4, c_in))
    model = hk.transform(lambda x: hk.Conv2DTranspose(filters, size)(x))
    kernel = model.init(key, x)["conv2_d_transpose"]["w"]
    sigma = 1 / np.sqrt(c_in * 15)
    assert 1.9 * sigma < np.abs(kernel).max() <= 2 * sigma
    np.testing.assert_allclose(np.std(kernel), 0.88 * sigma, rtol=0.03)
    kernel = nn.ConvTranspose(filters, size).init(key, x)["params"]["kernel"]
    np.testing.assert_allclose(np.std(kernel), sigma, rtol=0.03)
    layer = nn.ConvTranspose(filters, size, transpose_kernel=True)
    kernel = layer.init(key, x)["params"]["kernel"]
    np.testing.assert_allclose(np.std(kernel), 1 / np.sqrt(filters * 15), rtol=0.03)


@pytest.mark.parametrize("rank", [1, 3])
def test_initial_values_of_ours(rank: int) -> None:
    """Glorot uniform and zeros, as the page has it."""
    layer = getattr(upconv.linen, f"Conv{rank}DTranspose")(8, 3)
    params = layer.init(jax.random.key(0), jnp.ones((1, *(4,) * rank, 6)))["params"]
    limit = np.sqrt(6 / (3**rank * (6 + 8)))
    assert 0.9 * limit < np.abs(params["kernel"]).max() <= limit
    assert not params["bias"].any()
