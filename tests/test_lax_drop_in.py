"""`upconv.lax.conv_transpose` beside the installed `jax.lax.conv_transpose`, on every argument."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from checks import normal
from side_by_side import Call, compare, error, is_refused, pair_of_pads
from upconv.lax import conv_transpose

# So many calls are compared, in parts of so many that are compiled together.
PARTS, AT_ONCE = 10, 30


class Drawn(NamedTuple):
    """The arguments of one call, and what the generator did to get them."""

    lhs: np.ndarray
    rhs: np.ndarray
    arguments: dict[str, Any]
    kinds: tuple[str, ...]

    def call(self, name: str) -> Call:
        pair = both(**self.arguments)
        return Call(f"{name} {self.arguments}", {"lax": pair}, (self.lhs, self.rhs))


def both(**arguments: Any) -> tuple[Any, Any]:
    return partial(conv_transpose, **arguments), partial(lax.conv_transpose, **arguments)


def draw(rng: np.random.Generator) -> Drawn:
    def ints(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(low, high + 1, size=rank))

    rank = int(rng.choice([1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3]))
    n, k = ints(1, 5 if rank < 3 else 3), ints(1, 5 if rank < 3 else 3)
    strides = (1,) * rank if rng.random() < 0.3 else ints(1, 4)
    dilated = rng.random() < 0.4
    transposed, consistent = bool(rng.integers(2)), bool(rng.integers(2))
    c_in, c_out, batch = (int(i) for i in rng.permutation(4)[:3] + 1)

    kinds = [f"{rank}d"]
    dilation = ints(1, 3) if dilated else (1,) * rank
    pads = [pair_of_pads(rng, d * (size - 1)) for d, size in zip(dilation, k, strict=True)]
    paddings = ["SAME", "VALID", pads, pads]
    if strides == (1,) * rank and not consistent:
        paddings += ["same", "valid", "SAME_LOWER", "same_lower"]
    padding = paddings[rng.integers(len(paddings))]
    kinds.append(padding if isinstance(padding, str) else "pads")
    if padding is pads and any(pad < 0 for pair in pads for pad in pair):
        kinds.append("negative")
    kinds += ["transposed"] * transposed + ["consistent"] * consistent + ["dilated"] * dilated

    # Sizes by letter; as jax.lax has it, "O" are the inputs of a transposed kernel.
    letters = "HWD"[:rank] if rank < 3 else "HWDX"[1:]
    image = {"N": batch, "C": c_in, **dict(zip(letters, n, strict=True))}
    kernel = {"I": c_in, "O": c_out, **dict(zip(letters, k, strict=True))}
    if transposed:
        kernel |= {"I": c_out, "O": c_in}
    numbers: Any = None
    specs = [f"N{letters}C", f"{letters}IO", f"N{letters}C"]
    if rng.random() < 0.6:
        kinds.append("numbers")
        specs = ["".join(rng.permutation(list(spec))) for spec in specs]
        order = [specs[1].replace("I", "").replace("O", "").index(c) for c in letters]
        # Strides, pads and dilations follow the kernel's order of the spatial axes.
        numbers = tuple(specs)
    else:
        order = list(range(rank))
    lhs = normal(rng, *(image[c] for c in specs[0]))
    rhs = normal(rng, *(kernel[c] for c in specs[1]))

    def in_order(values: Any) -> Any:
        return [values[order.index(i)] for i in range(rank)]

    if numbers is not None and rng.random() < 0.4:
        kinds.append("ConvDimensionNumbers")
        numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, numbers)
    arguments = {
        "strides": in_order(strides),
        "padding": padding if isinstance(padding, str) else in_order(padding),
        "rhs_dilation": in_order(dilation) if dilated else None,
        "dimension_numbers": numbers,
        "transpose_kernel": transposed,
        "use_consistent_padding": consistent,
    }
    return Drawn(lhs, rhs, arguments, tuple(kinds))


@functools.cache
def drawn(part: int) -> list[Drawn]:
    """A part of the calls, all of which JAX can answer with an array that is not empty."""
    rng, found = np.random.default_rng([5, part]), []
    while len(found) < AT_ONCE:
        case = draw(rng)
        if not is_refused(partial(lax.conv_transpose, **case.arguments), *case[:2]):
            found.append(case)
    return found


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.many
def test_random_calls(part: int) -> None:
    """Values and both gradients."""
    compare((case.call(f"{part}.{i}") for i, case in enumerate(drawn(part))), seed=part)


def test_the_random_calls_reach_every_argument() -> None:
    count = Counter(kind for part in range(PARTS) for case in drawn(part) for kind in case.kinds)
    often = ("1d", "2d", "SAME", "VALID", "pads", "transposed", "consistent", "dilated", "numbers")
    assert all(count[kind] > 50 for kind in often), count
    seldom = ("3d", "negative", "ConvDimensionNumbers")
    assert all(count[kind] > 12 for kind in seldom), count
    assert all(count[kind] > 1 for kind in ("same", "valid", "SAME_LOWER", "same_lower")), count


def test_the_arguments_are_those_of_jax() -> None:
    ours, theirs = (inspect.signature(f).parameters for f in (conv_transpose, lax.conv_transpose))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


def test_all_by_position(rng: np.random.Generator) -> None:
    x, w = normal(rng, 2, 3, 5, 4), normal(rng, 6, 3, 3, 2)
    numbers = ("NCHW", "OIHW", "NHCW")
    rest = ((2, 3), "SAME", (1, 2), numbers, False, "highest", "float32", True)
    error("by position", conv_transpose(x, w, *rest), lax.conv_transpose(x, w, *rest))


@pytest.mark.parametrize(
    ("dtype", "preferred", "tolerance"),
    [
        ("bfloat16", None, 2**-7),
        ("bfloat16", "float32", 1e-5),
        ("float16", None, 2**-9),
        ("int8", "int32", 0),
        ("int8", "float32", 0),
        ("int32", None, 0),
        ("complex64", None, 1e-5),
    ],
)
def test_dtypes(dtype: str, preferred: str | None, tolerance: float) -> None:
    rng = np.random.default_rng(1)
    x, w = (normal(rng, *shape) * 4 for shape in ((2, 5, 3), (4, 3, 2)))
    if dtype == "complex64":
        x, w = x + 1j * x[::-1], w - 1j * w[::-1]
    arguments = {"strides": (2,), "padding": "SAME", "preferred_element_type": preferred}
    args = (x.astype(dtype), w.astype(dtype))
    functions = [partial(f, **arguments) for f in (conv_transpose, lax.conv_transpose)]
    error(dtype, *(f(*args) for f in functions), tolerance)
    if jnp.issubdtype(dtype, jnp.inexact):
        ct = jnp.ones((2, 10, 2), preferred or dtype)
        gradients = [jax.vjp(f, *args)[1](ct) for f in functions]
        error(f"gradients of {dtype}", *gradients, max(tolerance, float(jnp.finfo(dtype).eps)))


def test_other_dtypes_are_promoted(rng: np.random.Generator) -> None:
    """JAX takes operands of one dtype only."""
    x, w = normal(rng, 2, 5, 3, dtype=jnp.bfloat16), normal(rng, 4, 3, 2)
    expected = lax.conv_transpose(x.astype(np.float32), w, (2,), "VALID")
    error("promoted", conv_transpose(x, w, (2,), "VALID"), expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("precision", "told"),
    [
        ("high", (lax.Precision.HIGH,) * 2),
        (("default", "high"), (lax.Precision.DEFAULT, lax.Precision.HIGH)),
        ("BF16_BF16_F32", lax.DotAlgorithmPreset.BF16_BF16_F32),
        (lax.DotAlgorithmPreset.F32_F32_F32, lax.DotAlgorithmPreset.F32_F32_F32),
    ],
)
def test_gradients_are_left_to_the_maps(
    transposed: bool, precision: Any, told: Any, rng: np.random.Generator
) -> None:
    """And the precision reaches them: whatever `jax.lax` takes."""
    x, w = normal(rng, 2, 5, 3), normal(rng, 4, 3, 3)

    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        y = conv_transpose(x, w, (2,), "SAME", None, None, transposed, precision=precision)
        return (y**2).sum()

    eqns = jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, w).eqns
    maps = [eqn for eqn in eqns if eqn.primitive.name.startswith(("upconv_", "conv_"))]
    names = sorted(eqn.primitive.name for eqn in maps)
    assert names == ["upconv_conv", "upconv_conv_transpose", "upconv_correlate_kernel"]
    assert {eqn.params["numerics"].precision for eqn in maps} == {told}
    lax.conv_transpose(x, w, (2,), "SAME", precision=precision)


def test_transformations(rng: np.random.Generator) -> None:
    """Batched over both operands, and twice differentiated."""
    x, w = normal(rng, 3, 2, 4, 3), normal(rng, 3, 4, 3, 2)
    arguments = {"strides": (2,), "padding": [(2, 1)]}
    ours, theirs = both(**arguments)
    compare([Call("vmap", {"lax": (jax.vmap(ours), jax.vmap(theirs))}, (x, w))])

    def slope(f: Any, x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.grad(lambda x: (f(x, w, (2,), "SAME") ** 3).sum())(x)

    pair = partial(slope, conv_transpose), partial(slope, lax.conv_transpose)
    compare([Call("slope", {"lax": pair}, (x[0], w[0]))])


def test_symbolic_sizes(rng: np.random.Generator) -> None:
    (b, n) = export.symbolic_shape("b, n")
    w = normal(rng, 5, 3, 2)
    for padding in ("SAME", "VALID", [(3, 2)]):
        f = jax.jit(lambda x, padding=padding: conv_transpose(x, w, (2,), padding))
        shape = jax.ShapeDtypeStruct((b, n, 3), np.float32)
        exported = export.export(f)(shape)
        x = normal(rng, 3, 6, 3)
        error(str(padding), exported.call(x), lax.conv_transpose(x, w, (2,), padding))


def test_arrays_of_integers_are_sequences(rng: np.random.Generator) -> None:
    x, w = normal(rng, 2, 5, 4, 3), normal(rng, 3, 2, 3, 6)
    arguments = {
        "strides": np.array([2, 3]),
        "padding": np.array([[1, 2], [0, 1]]),
        "rhs_dilation": np.array([1, 2]),
    }
    error("arrays", conv_transpose(x, w, **arguments), lax.conv_transpose(x, w, **arguments))


X, W = jnp.ones((2, 5, 4, 3)), jnp.ones((3, 2, 3, 6))


@pytest.mark.parametrize(
    ("change", "exception", "message"),
    [
        ({"lhs": X[0]}, ValueError, r"lhs and rhs must have the same number of axes.*\(5, 4, 3\)"),
        ({"lhs": X[0, 0], "rhs": W[0, 0]}, ValueError, "1 to 3 spatial ones"),
        ({"lhs": X[None, None], "rhs": W[None, None]}, ValueError, "1 to 3 spatial ones"),
        ({"lhs": X[..., :2]}, ValueError, "rhs must have 2 input channels on axis 2, as lhs"),
        ({"transpose_kernel": True}, ValueError, "rhs must have 3 input channels on axis 3"),
        ({"strides": (2,)}, ValueError, r"strides must be .* one per spatial axis, got \(2,\)"),
        ({"strides": (2, 0)}, ValueError, r"strides\[1\] must be at least 1, got 0"),
        ({"strides": (2, 1.5)}, TypeError, r"strides\[1\] must be an integer, got 1.5"),
        ({"rhs_dilation": (1, 0)}, ValueError, r"rhs_dilation\[1\] must be at least 1"),
        ({"padding": "CIRCULAR"}, ValueError, "padding must be 'SAME', .*got 'CIRCULAR'"),
        ({"padding": "circular", "strides": (1, 1)}, ValueError, "padding must be 'SAME'"),
        ({"padding": "same"}, ValueError, "go without strides.*got 'same' with strides"),
        (
            {"padding": "same", "strides": (1, 1), "use_consistent_padding": True},
            ValueError,
            "without strides and use_consistent_padding, got 'same' with strides .* and use_cons",
        ),
        ({"padding": [(1, 2)]}, ValueError, "padding must have 2 entries"),
        ({"padding": None}, TypeError, "padding must be"),
        ({"padding": [(1, 2), (-9, 0)]}, ValueError, "padding must leave some of the output"),
        ({"dimension_numbers": ("NHWC", "HWIO")}, TypeError, "dimension_numbers"),
        ({"dimension_numbers": ("NHWC", "HWIO", "NHXC")}, TypeError, "dimension_numbers"),
        ({"precision": "best"}, ValueError, "precision must be"),
        ({"lhs": X > 0}, TypeError, "lhs must hold numbers, got dtype bool"),
        ({"lhs": np.asarray(X).astype(str)}, TypeError, "lhs must hold numbers, got dtype <U"),
        ({"rhs": W > 0}, TypeError, "rhs must hold numbers, got dtype bool"),
        (
            {"preferred_element_type": "int8"},
            ValueError,
            "preferred_element_type must be of the kind",
        ),
    ],
    ids=str,
)
def test_errors(change: dict[str, Any], exception: type[Exception], message: str) -> None:
    arguments = {"lhs": X, "rhs": W, "strides": (2, 2), "padding": "SAME", **change}
    with pytest.raises(exception, match=message):
        conv_transpose(**arguments)
