"""Everything public, and the properties that all of it must have.

A row says how a public name is used on arrays, and which properties have no meaning for it and why.
What has no row, or a row for nothing, fails.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx as flax_nnx
from jax import export
from jax.test_util import check_grads

import upconv
from checks import loss, near, normal, numerics_of
from upconv import (
    activations,
    constraints,
    initializers,
    lax,
    layer,
    linen,
    nnx,
    regularizers,
    rules,
    transforms,
)

Function = Callable[..., Any]

# ------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Row:
    """One public name.

    Attributes:
      use: for a dtype, a function and the arrays to call it with.
      value: a value of it that is pickled, compared and hashed.
      symbolic: the shapes of the arrays with symbols for what may be unknown when exporting.
      without: properties without meaning, and why.
      wide: whether it computes in float32 what it is given in 16 bits.
    """

    use: Callable[[Any], tuple[Function, tuple[Any, ...]]] | None = None
    value: Callable[[], Any] | None = None
    symbolic: tuple[str | None, ...] = ()
    without: dict[str, str] = field(default_factory=dict)
    wide: bool = False


OF_ARRAYS = (
    "jit",
    "vmap",
    "grad",
    "bfloat16",
    "strict_promotion",
    "debug_nans",
    "no_leaks",
    "export",
    "no_images",
)
OF_VALUES = ("pickle", "hash")
PROPERTIES = (*OF_ARRAYS, *OF_VALUES, "doctest")


def no_arrays(why: str) -> dict[str, str]:
    return dict.fromkeys(OF_ARRAYS, why)


def no_value(why: str) -> dict[str, str]:
    return dict.fromkeys(OF_VALUES, why)


FUNCTION = no_value("a function of a module: it is found by its name")
FACTORY = no_value("what it returns has a row of its own")
TYPE = Row(without=dict.fromkeys(PROPERTIES, "a name for types"))
STATIC = "it computes with static integers"


def seeded(dtype: Any, *shape: int, seed: int = 0) -> jax.Array:
    """A normal array that its shape and the seed decide."""
    return jnp.asarray(normal(np.random.default_rng((seed, *shape)), *shape, dtype=dtype))


def convolution(f: Function) -> Callable[[Any], tuple[Function, tuple[Any, ...]]]:
    return lambda dtype: (f, (seeded(dtype, 2, 4, 3, 3), seeded(dtype, 3, 2, 3, 3)))


def elementwise(f: Function) -> Row:
    return Row(
        use=lambda dtype: (f, (seeded(dtype, 2, 4, 3),)), value=lambda: f, symbolic=("n, m, 3",)
    )


def penalty_of(f: Function) -> Row:
    return Row(
        use=lambda dtype: (f, (seeded(dtype, 4, 3, 2),)),
        value=lambda: f,
        symbolic=("n, 3, 2",),
        wide=True,
    )


ORTHOGONAL = penalty_of(regularizers.Orthogonal(0.1))


def projection(f: Function) -> Row:
    return Row(
        use=lambda dtype: (f, (seeded(dtype, 4, 3, 2),)),
        value=lambda: f,
        symbolic=("n, 3, 2",),
    )


def drawing(initializer: Any, **without: str) -> Row:
    return Row(
        use=lambda dtype: (
            lambda key: initializer(key, (4, 4, 2, 2), dtype),
            (jax.random.key(3),),
        ),
        value=lambda: initializer,
        without={
            "grad": "a key has no gradient",
            "export": "the shapes of parameters are known",
            "no_images": "parameters are not empty",
            **without,
        },
    )


def images(rank: int, dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Input, kernel and bias of the layers below."""
    space, kernel_size = (4, 3, 2)[:rank], (3, 2, 2)[:rank]
    return seeded(dtype, 2, *space, 3), seeded(dtype, *kernel_size, 4, 3), seeded(dtype, 4)


def layer_arguments(rank: int) -> dict[str, Any]:
    return {
        "filters": 4,
        "kernel_size": (3, 2, 2)[:rank],
        "strides": 2,
        "padding": "same",
        "activation": "softplus",
        "kernel_regularizer": regularizers.L2(0.1),
        "kernel_constraint": constraints.MaxNorm(0.5),
        "bias_initializer": None,
    }


SYMBOLIC = ("n, h, 3", "n, h, w, 3", "n, h, w, d, 3")


def linen_layer(cls: Any, rank: int, **arguments: Any) -> Row:
    module = cls(**arguments)

    def apply(x: Any, kernel: Any, bias: Any) -> Any:
        return module.apply({"params": {"kernel": kernel, "bias": bias}}, x)

    return Row(
        use=lambda dtype: (apply, images(rank, dtype)),
        value=lambda: module,
        symbolic=(SYMBOLIC[rank - 1], None, None),
    )


def nnx_layer(cls: Any, rank: int, **arguments: Any) -> Row:
    module = cls(3, **arguments, rngs=flax_nnx.Rngs(0))

    def apply(x: Any, kernel: Any, bias: Any) -> Any:
        filled = flax_nnx.clone(module)
        filled.kernel, filled.bias = flax_nnx.Param(kernel), flax_nnx.Param(bias)
        return filled(x)

    return Row(
        use=lambda dtype: (apply, images(rank, dtype)),
        value=lambda: module,
        symbolic=(SYMBOLIC[rank - 1], None, None),
        without={"hash": "an nnx module is mutable: it is hashed and compared by identity"},
    )


def drop_in(rank: int) -> dict[str, Any]:
    """The initializers that are Flax's defaults are closures, which cannot be pickled."""
    return {
        "kernel_size": (3, 2, 2)[:rank],
        "strides": (2,) * rank,
        "transpose_kernel": True,
        "kernel_init": initializers.VarianceScaling(),
        "bias_init": jax.nn.initializers.zeros,
    }


RULES = {"kernel": rules.Rule(regularizers.L2(0.1), constraints.MaxNorm(0.5))}


def transformation(make: Callable[[], optax.GradientTransformation]) -> Row:
    def update(gradient: Any, param: Any) -> Any:
        optimizer, params = make(), {"kernel": param}
        return optimizer.update({"kernel": gradient}, optimizer.init(params), params)[0]

    return Row(
        use=lambda dtype: (update, (seeded(dtype, 4, 3, 2), seeded(dtype, 4, 3, 2, seed=1))),
        symbolic=("n, 3, 2", "n, 3, 2"),
        without=FACTORY
        | no_value("a pair of functions, as all of optax's")
        | {"no_images": "parameters are not empty"},
    )


def variable_type(cls: Any) -> Row:
    return Row(
        value=lambda: cls(jnp.arange(3.0)),
        without=no_arrays("it holds an array, and computes nothing")
        | {"hash": "a variable is mutable: it is hashed by identity"}
        | {"doctest": "a marker for nnx's filters; the layers' doctests show it"},
    )


PEERS = ("flax", "keras", "nnx", "torch")

TABLE: dict[str, Row] = {
    "upconv.conv_transpose": Row(
        use=convolution(partial(upconv.conv_transpose, strides=(2, 3), padding="same")),
        symbolic=("n, h, w, 3", None),
        without=FUNCTION,
    ),
    "upconv.conv": Row(
        use=convolution(partial(upconv.conv, strides=(2, 1), padding="same")),
        symbolic=("n, 2*h, w, 3", None),
        without=FUNCTION,
    ),
    "upconv.output_shape": Row(without=no_arrays(STATIC) | FUNCTION),
    "upconv.penalty": Row(
        use=lambda dtype: (
            lambda w: upconv.penalty({"kernel": w}, RULES),
            (seeded(dtype, 4, 3, 2),),
        ),
        symbolic=("n, 3, 2",),
        without=FUNCTION,
        wide=True,
    ),
    # activations
    "upconv.activations.Exponential": elementwise(activations.Exponential()),
    "upconv.activations.GELU": elementwise(activations.GELU()),
    "upconv.activations.HardShrink": elementwise(activations.HardShrink()),
    "upconv.activations.LeakyReLU": elementwise(activations.LeakyReLU(0.3)),
    "upconv.activations.SoftShrink": elementwise(activations.SoftShrink()),
    "upconv.activations.TanhShrink": elementwise(activations.TanhShrink()),
    # regularizers and constraints
    "upconv.regularizers.L1": penalty_of(regularizers.L1(0.1)),
    "upconv.regularizers.L1L2": penalty_of(regularizers.L1L2(0.1, 0.2)),
    "upconv.regularizers.L2": penalty_of(regularizers.L2(0.1)),
    "upconv.regularizers.Orthogonal": Row(
        use=ORTHOGONAL.use, value=ORTHOGONAL.value, wide=True, symbolic=("n, 3, m",)
    ),
    "upconv.constraints.MaxNorm": projection(constraints.MaxNorm(0.5)),
    "upconv.constraints.MinMaxNorm": projection(constraints.MinMaxNorm(0.5, 1.5, rate=0.5)),
    "upconv.constraints.NonNeg": projection(constraints.NonNeg()),
    "upconv.constraints.UnitNorm": projection(constraints.UnitNorm(axis=(1, 2))),
    # initializers
    "upconv.initializers.Bilinear": drawing(initializers.Bilinear(2), doctest="bilinear has one"),
    "upconv.initializers.Constant": drawing(initializers.Constant(0.5)),
    "upconv.initializers.ICNR": drawing(initializers.ICNR(2), doctest="icnr has one"),
    "upconv.initializers.Initializer": TYPE,
    "upconv.initializers.Normal": drawing(initializers.Normal(0.1)),
    "upconv.initializers.Orthogonal": drawing(initializers.Orthogonal()),
    "upconv.initializers.TruncatedNormal": drawing(initializers.TruncatedNormal(0.1)),
    "upconv.initializers.Uniform": drawing(initializers.Uniform(-0.1, 0.1)),
    "upconv.initializers.VarianceScaling": drawing(initializers.VarianceScaling()),
    "upconv.initializers.bilinear": drawing(initializers.bilinear(2)),
    "upconv.initializers.compute_fans": Row(without=no_arrays(STATIC) | FUNCTION),
    "upconv.initializers.glorot_normal": drawing(initializers.glorot_normal()),
    "upconv.initializers.glorot_uniform": drawing(initializers.glorot_uniform()),
    "upconv.initializers.he_normal": drawing(initializers.he_normal(strides=2)),
    "upconv.initializers.he_uniform": drawing(initializers.he_uniform(strides=2)),
    "upconv.initializers.icnr": drawing(initializers.icnr(2)),
    "upconv.initializers.lecun_normal": drawing(initializers.lecun_normal(groups=2)),
    "upconv.initializers.lecun_uniform": drawing(initializers.lecun_uniform(groups=2)),
    # jax.lax's and Flax's
    "upconv.lax.conv_transpose": Row(
        use=convolution(lambda x, w: lax.conv_transpose(x, w, (2, 3), "SAME")),
        symbolic=("n, h, w, 3", None),
        without=FUNCTION,
    ),
    # layers
    "upconv.layer.Activation": TYPE,
    "upconv.layer.Ints": TYPE,
    "upconv.layer.Layer": Row(
        use=lambda dtype: (layer.Layer(2, **layer_arguments(2)), images(2, dtype)),
        value=lambda: layer.Layer(2, **layer_arguments(2)),
        symbolic=("n, h, w, 3", None, None),
    ),
    "upconv.layer.Parameter": Row(
        value=lambda: layer.Layer(2, **layer_arguments(2)).parameters(3)["kernel"],
        without=no_arrays("a record") | {"doctest": "a record; that of Layer.parameters shows it"},
    ),
    "upconv.linen.Conv1DTranspose": linen_layer(linen.Conv1DTranspose, 1, **layer_arguments(1)),
    "upconv.linen.Conv2DTranspose": linen_layer(linen.Conv2DTranspose, 2, **layer_arguments(2)),
    "upconv.linen.Conv3DTranspose": linen_layer(linen.Conv3DTranspose, 3, **layer_arguments(3)),
    "upconv.linen.ConvTranspose": linen_layer(linen.ConvTranspose, 2, features=4, **drop_in(2)),
    "upconv.linen.losses": Row(
        use=lambda dtype: (
            lambda a: linen.losses({"losses": {"up": {"activity": a}}}),
            (seeded(dtype, 4),),
        ),
        symbolic=("n",),
        without=FUNCTION,
        wide=True,
    ),
    "upconv.linen.rules": Row(without=no_arrays("it collects what is declared") | FUNCTION),
    "upconv.nnx.Conv1DTranspose": nnx_layer(nnx.Conv1DTranspose, 1, **layer_arguments(1)),
    "upconv.nnx.Conv2DTranspose": nnx_layer(nnx.Conv2DTranspose, 2, **layer_arguments(2)),
    "upconv.nnx.Conv3DTranspose": nnx_layer(nnx.Conv3DTranspose, 3, **layer_arguments(3)),
    "upconv.nnx.ConvTranspose": nnx_layer(nnx.ConvTranspose, 2, out_features=4, **drop_in(2)),
    "upconv.nnx.Loss": variable_type(nnx.Loss),
    "upconv.nnx.NonTrainable": variable_type(nnx.NonTrainable),
    "upconv.nnx.losses": Row(
        use=lambda dtype: (
            lambda a: nnx.losses(flax_nnx.Dict(up=nnx.Loss(a))),
            (seeded(dtype, 4),),
        ),
        symbolic=("n",),
        without=FUNCTION,
        wide=True,
    ),
    "upconv.nnx.rules": Row(without=no_arrays("it collects what is declared") | FUNCTION),
    # rules
    "upconv.rules.Constraint": TYPE,
    "upconv.rules.Regularizer": TYPE,
    "upconv.rules.Rule": Row(
        value=lambda: RULES["kernel"], without=no_arrays("it declares, and computes nothing")
    ),
    "upconv.rules.Rules": TYPE,
    "upconv.rules.named_leaves": Row(
        without=no_arrays("it gives what it is given, with names") | FUNCTION
    ),
    "upconv.transforms.add_regularization": transformation(
        lambda: transforms.add_regularization(RULES)
    ),
    "upconv.transforms.project": transformation(lambda: transforms.project(RULES)),
    "upconv.transforms.with_rules": transformation(
        lambda: transforms.with_rules(optax.sgd(0.1), RULES)
    ),
    # others' layers and files
    **{
        f"upconv.interop.{way}_{library}": Row(
            without=no_arrays("it is given another library's layer, or gives one") | FUNCTION
        )
        for way, library in [("from", "onnx"), *itertools.product(("from", "to"), PEERS)]
    },
    "upconv.serialization.VERSION": Row(without=dict.fromkeys(PROPERTIES, "a number")),
    "upconv.serialization.from_config": Row(without=no_arrays("of names and numbers") | FUNCTION),
    "upconv.serialization.to_config": Row(without=no_arrays("of names and numbers") | FUNCTION),
}


# ------------------------------------------------------------------ is everything in it?


def public() -> dict[str, Any]:
    """Everything in `__all__` of every module but the benchmark, by its name; once."""
    modules = sorted(module.name for module in pkgutil.iter_modules(upconv.__path__))
    found: dict[str, Any] = {}
    for name in ["__init__", *modules]:
        if name == "bench":
            continue
        path = "upconv" if name == "__init__" else f"upconv.{name}"
        module = importlib.import_module(path)
        for entry in getattr(module, "__all__", ()):
            thing = getattr(module, entry)
            if not any(thing is known for known in found.values()) or not callable(thing):
                found[f"{path}.{entry}"] = thing
    return found


PUBLIC = public()


def test_everything_public_is_in_the_table() -> None:
    missing, extra = PUBLIC.keys() - TABLE.keys(), TABLE.keys() - PUBLIC.keys()
    assert not missing, f"give these a row in TABLE: {sorted(missing)}"
    assert not extra, f"TABLE has rows for what is not public: {sorted(extra)}"


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_row_is_whole(name: str) -> None:
    """It has what the properties need, or says why not."""
    row = TABLE[name]
    assert set(row.without) <= set(PROPERTIES)
    assert all(row.without.values())
    assert (row.use is None) == all(p in row.without for p in OF_ARRAYS)
    assert (row.value is None) == all(p in row.without for p in OF_VALUES)
    assert bool(row.symbolic) == ("export" not in row.without)


def pairs() -> Iterator[tuple[str, str]]:
    for name, row in sorted(TABLE.items()):
        for prop in PROPERTIES:
            if prop not in row.without:
                yield name, prop


@pytest.mark.parametrize(("name", "prop"), list(pairs()))
@pytest.mark.many
def test_property(name: str, prop: str) -> None:
    globals()[f"check_{prop}"](name, TABLE[name])


# ------------------------------------------------------------------ the properties


def used(row: Row, dtype: Any = jnp.float32) -> tuple[Function, tuple[Any, ...]]:
    assert row.use is not None
    return row.use(dtype)


def alike(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        near(g, w, 1e-5)


def gradient(f: Function, args: tuple[Any, ...]) -> Function:
    return jax.grad(loss(f), tuple(range(len(args))))


def is_key(a: jax.Array) -> bool:
    return jnp.issubdtype(a.dtype, jax.dtypes.prng_key)


def another(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Other values of the same types."""
    return tuple(jax.random.fold_in(a, 1) if is_key(a) else a[..., ::-1] * 2 for a in args)


def check_jit(name: str, row: Row) -> None:
    """Compiled, it is what it was, and it is compiled once."""
    f, args = used(row)
    traces = []

    @jax.jit
    def compiled(*args: Any) -> Any:
        traces.append(1)
        return f(*args)

    for given in (args, another(args)):
        alike(compiled(*given), f(*given))
    assert len(traces) == 1


def check_vmap(name: str, row: Row) -> None:
    f, args = used(row)
    every = [args, another(args), another(another(args))]
    stacked = [jnp.stack(column) for column in zip(*every, strict=True)]
    want = jax.tree.map(lambda *ys: jnp.stack(ys), *(f(*given) for given in every))
    alike(jax.vmap(f)(*stacked), want)


def check_grad(name: str, row: Row) -> None:
    """In both modes, against finite differences, in 64 bits."""
    with jax.enable_x64(True):
        f, args = used(row, jnp.float64)
        check_grads(f, args, order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5, eps=1e-5)


def check_bfloat16(name: str, row: Row) -> None:
    f, args = used(row, jnp.bfloat16)
    wide = tuple(a if is_key(a) else a.astype(jnp.float32) for a in args)
    got, want = f(*args), used(row)[0](*wide)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.dtype == (jnp.float32 if row.wide else jnp.bfloat16)
        assert g.shape == w.shape
        if not any(map(is_key, args)):  # which draws other numbers for another dtype
            near(g, w, 0.02)


def check_strict_promotion(name: str, row: Row) -> None:
    for dtype in (jnp.float32, jnp.bfloat16):
        f, args = used(row, dtype)
        with jax.numpy_dtype_promotion("strict"):
            jax.eval_shape(f, *args)
            if "grad" not in row.without:
                jax.eval_shape(gradient(f, args), *args)


def check_debug_nans(name: str, row: Row) -> None:
    """Nothing that is not a number on the way, and gradients that are numbers at zero, too."""
    f, args = used(row)
    zeros = args if "grad" in row.without else jax.tree.map(jnp.zeros_like, args)
    with jax.debug_nans(True):
        for given in (args, zeros):
            f(*given)
            if "grad" not in row.without:
                jax.jit(gradient(f, args))(*given)


def check_no_leaks(name: str, row: Row) -> None:
    f, args = used(row)
    with jax.checking_leaks():
        jax.eval_shape(jax.jit(f), *args)
        if "grad" not in row.without:
            jax.eval_shape(jax.jit(gradient(f, args)), *args)


def check_export(name: str, row: Row) -> None:
    """For sizes that are not known yet, and then for some."""
    f, args = used(row)
    scope = export.SymbolicScope()
    shapes = [
        jax.ShapeDtypeStruct(
            a.shape if spec is None else export.symbolic_shape(spec, scope=scope), a.dtype
        )
        for a, spec in zip(args, row.symbolic, strict=True)
    ]
    exported = export.export(jax.jit(f))(*shapes)
    alike(exported.call(*args), f(*args))
    symbols = {str(d) for s in shapes for d in s.shape if not isinstance(d, int)}
    assert symbols
    if ("n" in row.symbolic[0].split(", ")[0] and len(args) == 1) or row.symbolic[1:] == (None,):
        more = (jnp.concatenate([args[0]] * 2), *args[1:])
        alike(exported.call(*more), f(*more))


def check_no_images(name: str, row: Row) -> None:
    f, args = used(row)
    none = (args[0][:0], *args[1:])
    results = jax.tree.leaves(jax.jit(f)(*none))
    assert all(np.isfinite(r).all() for r in results)
    assert all(r.shape == () or r.shape[0] == 0 for r in results)
    gradients = jax.jit(gradient(f, none))(*none)
    assert all(np.isfinite(g).all() for g in gradients)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, flax_nnx.Module):
        states = jax.tree.map(np.array_equal, flax_nnx.state(a), flax_nnx.state(b))
        return flax_nnx.graphdef(a) == flax_nnx.graphdef(b) and all(jax.tree.leaves(states))
    if isinstance(a, flax_nnx.Variable):
        return type(a) is type(b) and np.array_equal(a[...], b[...])
    return a == b


def check_pickle(name: str, row: Row) -> None:
    assert row.value is not None
    value = row.value()
    copy = pickle.loads(pickle.dumps(value))
    assert copy is not value
    assert same(copy, value)


def check_hash(name: str, row: Row) -> None:
    """Equal values are one key, and static arguments of one program."""
    assert row.value is not None
    value = row.value()
    copy = pickle.loads(pickle.dumps(value))
    assert hash(copy) == hash(value)
    assert {value: 1}[copy] == 1
    assert value != object()


def check_doctest(name: str, row: Row) -> None:
    doc = inspect.getdoc(PUBLIC[name])
    assert doc is not None
    assert ">>>" in doc


# ------------------------------------------------------------------ what a layer tells its maps


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("lowering", ["auto", "subpixel", "matmul"])
def test_layers_tell_their_maps(lowering: str, dtype: Any) -> None:
    fields = {"precision": "high", "lowering": lowering, "dtype": dtype}
    of_linen = linen.Conv2DTranspose(4, 3, **fields)
    of_nnx = nnx.Conv2DTranspose(3, 4, 3, **fields, rngs=flax_nnx.Rngs(0))
    check_told(of_linen, of_nnx, lowering, dtype)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_layers_like_flaxs_tell_their_maps(dtype: Any) -> None:
    fields = {"precision": "high", "dtype": dtype}
    of_linen = linen.ConvTranspose(4, (3, 3), **fields)
    of_nnx = nnx.ConvTranspose(3, 4, (3, 3), **fields, rngs=flax_nnx.Rngs(0))
    check_told(of_linen, of_nnx, "auto", dtype)


def check_told(of_linen: Any, of_nnx: Any, lowering: str, dtype: Any) -> None:
    x = jnp.ones((2, 5, 4, 3))
    params = of_linen.init(jax.random.key(0), x)
    for apply in (lambda x: of_linen.apply(params, x), of_nnx):
        told = numerics_of(apply, x)
        assert len(told) == 2  # the map, and its gradient in the inputs
        assert {n.lowering for n in told} == {lowering}
        assert {n.precision for n in told} == {(jax.lax.Precision.HIGH,) * 2}
        assert {n.dtype for n in told} == {jnp.dtype(dtype or "float32")}
