"""Properties that hold for every argument, on cases that hypothesis draws over all of them.

The same few cases in every run of the tests; `make fuzz` draws more, and others:

    make fuzz FUZZ=1000 SEED=7     # 1000 cases of every property

A case that shows a bug is printed so that it can be put into the table of `cases.py`, where every
lowering is held to it from then on.

Compiling is what a case costs, so each is one program.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

import oracle
import upconv
from cases import Case, draw
from checks import (
    AS_IF_LARGE,
    C_SHORT,
    OF_CUDA,
    OF_CUDA_AS_IF_LARGE,
    Adjoint,
    C,
    Function,
    Limits,
    assert_maps,
    assert_rounding,
    convolution,
    curvature,
    eps,
    layer,
    limited,
    second_orders,
    with_gradients,
)
from upconv import geometry
from upconv.auto import cpu
from upconv.lowering import convolution as xla_convolution
from upconv.lowering import strips

COUNT = int(os.environ.get("UPCONV_FUZZ", "10"))
SEED = int(os.environ.get("UPCONV_FUZZ_SEED", "0"))

# The compiled programs of so many cases may lie in JAX's caches.
CACHED = 200
drawn = 0


def forall(count: int = COUNT, **strategies: st.SearchStrategy) -> Callable[[Function], Function]:
    """Tests a property on `count` cases: the same for the same SEED, others for each property."""
    settings = hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )

    def wrap(test: Function) -> Function:
        def once(**arguments: Any) -> None:
            global drawn
            drawn += 1
            if drawn % CACHED == 0:
                jax.clear_caches()
            test(**arguments)

        once.__name__ = once.__qualname__ = test.__name__
        once.__doc__ = test.__doc__
        own = hypothesis.seed(zlib.crc32(f"{SEED} {test.__name__}".encode()))
        return own(settings(given(**strategies)(once)))

    return wrap


# ------------------------------------------------------------------ what is drawn

PADDINGS = ("valid", "same", "same_lower", "causal", "circular", "int", "ints", "pairs")
LONGEST = 40  # of an output; what is larger is slow and no different


@st.composite
def layers(draw: st.DrawFn, full: bool = False) -> dict[str, Any]:
    """The arguments of a case that its output's size does not depend on, or has not been told."""
    rank = draw(st.sampled_from([1, 2, 2, 3]))

    def ints(low: int, high: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * rank))

    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 8]))
    kind = "ints" if full else draw(st.sampled_from(PADDINGS))
    padding: Any = {
        "int": lambda: draw(st.integers(0, 2)),
        "ints": lambda: (0,) * rank if full else ints(0, 3),
        "pairs": lambda: tuple(zip(ints(-2, 4), ints(-2, 4), strict=True)),
    }.get(kind, lambda: kind)()
    return {
        "name": "drawn",
        "spatial": ints(1, 6 if rank < 3 else 3),
        "kernel_size": ints(1, 6 if rank < 3 else 3),
        "c_in": groups * draw(st.sampled_from([1, 2, 3, 4, 8])),
        "c_out": groups * draw(st.sampled_from([1, 2, 3, 4, 8])),
        "batch": draw(st.sampled_from([(2,), (), (1,), (3,), (7,), (2, 3), (0,), (2, 0)])),
        "strides": draw(st.one_of(st.integers(1, 4), st.just(None))) or ints(1, 4),
        "padding": padding,
        "dilation_rate": draw(st.sampled_from([1, 1, None])) or ints(1, 3),
        "groups": groups,
    }


@st.composite
def transposed(draw: st.DrawFn) -> Case:
    """A transposed convolution, with everything that `conv_transpose` can be told."""
    case = Case(**draw(layers()))
    sized = {k: v for k, v in case.layer.items() if k != "groups"}
    told: dict[str, Any] = {}
    if case.padding not in ("causal", "circular"):
        strides, dilation = (
            oracle.per_axis(value, case.rank) for value in (case.strides, case.dilation_rate)
        )
        below = [max(s, d) for s, d in zip(strides, dilation, strict=True)]
        extra = tuple(draw(st.integers(0, b - 1)) for b in below)
        kind = draw(st.sampled_from(["nothing", "output_padding", "output_size"]))
        if kind == "output_padding":
            told = {kind: extra}
        elif kind == "output_size" and case.padding in ("same", "same_lower"):
            # From what one pixel less than the stride leaves, up to the natural size.
            sizes = zip(case.spatial, strides, strict=True)
            told = {kind: tuple((n - 1) * s + draw(st.integers(1, s)) for n, s in sizes)}
        elif kind == "output_size":
            sizes = oracle.output_size_of(
                case.spatial, case.kernel_size, **sized, output_padding=extra
            )
            told = {kind: sizes}
    case = Case(**{**vars(case), **told})
    assume(all(1 <= m <= LONGEST for m in case.output))  # an empty output is an error
    return case


@st.composite
def strided(draw: st.DrawFn) -> Case:
    """A convolution of images of any size: the output of the case is the input of `conv`."""
    arguments = draw(layers())
    rank = len(arguments["kernel_size"])
    size = draw(st.tuples(*[st.integers(1, 14 if rank < 3 else 6)] * rank))
    if arguments["padding"] == "circular":
        strides = oracle.per_axis(arguments["strides"], rank)
        size = tuple(-(-m // s) * s for m, s in zip(size, strides, strict=True))
    case = Case(**{**arguments, "output_size": size})
    sizes = {k: v for k, v in case.convolution.items() if k != "groups"}
    taken = oracle.input_size_of(size, case.kernel_size, **sizes)
    assume(all(n >= 1 for n in taken))
    return Case(**{**vars(case), "spatial": taken})


# "auto" takes other ways for large shapes, which compile more slowly than they differ. XLA:CPU has
# two kernels for convolutions: YNNPACK's would have no part in them if all were stretched.
UNSTRETCHED: Limits = {
    cpu: {"PARALLEL_YNNPACK": True},
    xla_convolution: {"EIGEN_TAKES": xla_convolution.EIGEN_TAKES},
    strips: {"IMAGES": strips.IMAGES},
}
LIMITS = {
    "auto, as if large": AS_IF_LARGE,
    "auto, as if large, unstretched": {
        module: {**values, **UNSTRETCHED.get(module, {})} for module, values in AS_IF_LARGE.items()
    },
    "auto, by the rules of CUDA": OF_CUDA,
    "auto, by the rules of CUDA, as if large": OF_CUDA_AS_IF_LARGE,
}
LOWERINGS = ("auto", *LIMITS, "input_dilation", "subpixel", "matmul", "lax")
lowerings = st.sampled_from(LOWERINGS)
dtypes = st.sampled_from(["float32", "bfloat16", "float16", "float64"])
formats = st.sampled_from(["channels_last", "channels_first"])
numbers = st.builds(np.random.default_rng, st.integers(0, 2**32 - 1))


# ------------------------------------------------------------------ how it is run


def run(function: Function, *args: Any, lowering: str = "") -> Any:
    """`function` of the arguments as one program, in 64 bits where they are."""
    limits = LIMITS.get(lowering, {})
    wide = any(np.asarray(a).dtype.itemsize == 8 for a in args)
    with limited(limits), jax.enable_x64(wide):
        return jax.jit(function)(*args)


def named(lowering: str) -> str:
    return lowering.partition(",")[0]


def unit_of(dtype: str) -> float:
    return (C_SHORT if dtype in ("bfloat16", "float16") else C) * eps(dtype)


def first(a: Any, rank: int) -> Any:
    return np.moveaxis(a, -1, -1 - rank)


def last(a: Any, rank: int) -> Any:
    return np.moveaxis(a, -1 - rank, -1)


def whole(rng: np.random.Generator, *shapes: tuple[int, ...], high: int = 9) -> list[np.ndarray]:
    """Small integers as floats: sums of their products are exact in any order."""
    return [rng.integers(-high, high + 1, shape).astype(np.float32) for shape in shapes]


def assert_same(got: Any, want: Any) -> None:
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def xla_aborts(case: Case, lowering: str) -> bool:
    """Whether JAX's own gradient of `conv` may end the process.

    XLA:CPU fails a check on a window of 2 without pads over pixels 2 apart; of ours, such windows
    have a pad more.
    """
    sizes = {k: v for k, v in case.layer.items() if k != "groups"}
    axes = oracle.axes_of(case.spatial, case.kernel_size, **sizes)
    return lowering == "lax" and any(
        (a.k, a.s, a.d, a.start, a.full - a.start - a.out) == (2, 2, 1, 1, 1) for a in axes
    )


# ------------------------------------------------------------------ values and gradients


@forall(case=transposed(), lowering=lowerings, dtype=dtypes, data_format=formats, rng=numbers)
def test_conv_transpose(
    case: Case, lowering: str, dtype: str, data_format: str, rng: np.random.Generator
) -> None:
    """Value, both gradients, shape and dtype."""
    args = draw(rng, case.x_shape, case.kernel_shape, case.y_shape, dtype=jnp.dtype(dtype))
    f = layer(case, named(lowering), data_format=data_format)
    got = arranged(f, args, case.rank, data_format, lowering)
    assert {a.dtype for a in got} == {jnp.dtype(dtype)}
    assert_maps(got, case, args, unit_of(dtype))
    # The shape that it was said to have.
    x, y = (np.empty(a.shape) for a in (args[0], args[2]))
    if data_format == "channels_first":
        x, y = first(x, case.rank), first(y, case.rank)
    said = upconv.output_shape(
        x.shape, case.c_out, case.kernel_size, **case.layer, data_format=data_format
    )
    assert said == y.shape


@forall(case=strided(), lowering=lowerings, dtype=dtypes, data_format=formats, rng=numbers)
def test_conv(
    case: Case, lowering: str, dtype: str, data_format: str, rng: np.random.Generator
) -> None:
    assume(not xla_aborts(case, lowering))
    args = draw(rng, case.y_shape, case.kernel_shape, case.x_shape, dtype=jnp.dtype(dtype))
    f = convolution(case, named(lowering), data_format=data_format)
    got = arranged(f, args, case.rank, data_format, lowering)
    assert {a.dtype for a in got} == {jnp.dtype(dtype)}
    assert_maps(got, Adjoint(case), args, unit_of(dtype))


def arranged(
    f: Function, args: Sequence[np.ndarray], rank: int, data_format: str, lowering: str
) -> list[Any]:
    """`f` and its gradients in a data format, of arguments and with results channels last."""
    a, w, ct = args
    if data_format == "channels_last":
        return run(with_gradients(f), a, w, ct, lowering=lowering)
    out, ga, gw = run(with_gradients(f), first(a, rank), w, first(ct, rank), lowering=lowering)
    return [last(out, rank), last(ga, rank), gw]


@forall(case=strided(), mode=st.integers(0, 1), up=st.booleans(), lowering=lowerings, rng=numbers)
def test_second_order(
    case: Case, mode: int, up: bool, lowering: str, rng: np.random.Generator
) -> None:
    """Hessian-vector products, forward or reverse over reverse, of either function."""
    sized = case.padding not in ("causal", "circular")
    if up and not sized:  # which are not told their size
        case = Case(**{**vars(case), "output_size": None})
    assume(not xla_aborts(case, lowering))
    truth: Case | Adjoint = case if up else Adjoint(case)
    f = (layer if up else convolution)(case, named(lowering))
    a_shape, u_shape = (case.x_shape, case.y_shape) if up else (case.y_shape, case.x_shape)
    shapes = a_shape, case.kernel_shape
    *args, u = draw(rng, *shapes, *shapes, u_shape, dtype=np.float64)

    def loss(a: Any, w: Any) -> jax.Array:
        return jnp.sum(u * f(a, w) ** 2) / 2

    got = run(second_orders(loss)[mode], *args, lowering=lowering)
    want, scale = curvature(truth, *args, u), curvature(truth, *map(abs, args), abs(u))
    for result, *expected in zip(got, want, scale, strict=True):
        assert result.dtype == np.float64
        assert_rounding(result, *expected, 3 * C * eps(np.float64))


@forall(case=transposed(), lowering=lowerings, wide=st.booleans(), rng=numbers)
def test_integers(case: Case, lowering: str, wide: bool, rng: np.random.Generator) -> None:
    """Exact, and in as many bits as asked for."""
    low, high = (-128, 128) if wide else (-9, 10)
    dtype = np.int8 if wide else np.int32
    x = rng.integers(low, high, case.x_shape, dtype)
    w = rng.integers(low, high, case.kernel_shape, dtype)
    f = layer(case, named(lowering), preferred_element_type=np.int32 if wide else None)
    assert_same(run(f, x, w, lowering=lowering), case.scatter(x, w).astype(np.int32))


# ------------------------------------------------------------------ of each other


@forall(case=strided(), lowering=lowerings, rng=numbers)
def test_adjoint(case: Case, lowering: str, rng: np.random.Generator) -> None:
    """`<conv(y, w), x> = <y, conv_transpose(x, w)>`, whatever the oracle thinks of it."""
    if case.padding in ("causal", "circular"):  # which are not told their size
        case = Case(**{**vars(case), "output_size": None})
    x, w, y = draw(rng, case.x_shape, case.kernel_shape, case.y_shape, dtype=np.float64)

    def both(x: Any, w: Any, y: Any) -> Any:
        down, up = convolution(case, named(lowering)), layer(case, named(lowering))
        return jnp.vdot(down(y, w), x), jnp.vdot(y, up(x, w)), jnp.vdot(up(abs(x), abs(w)), abs(y))

    left, right, scale = map(float, run(both, x, w, y, lowering=lowering))
    assert abs(left - right) <= 2 * C * eps(np.float64) * scale


@forall(case=transposed(), names=st.permutations(LOWERINGS[1:]), rng=numbers)
def test_lowerings(case: Case, names: list[str], rng: np.random.Generator) -> None:
    """No lowering changes a result beyond rounding; of integers, it changes nothing at all."""
    args = whole(rng, case.x_shape, case.kernel_shape, case.y_shape)
    results = [
        run(with_gradients(layer(case, named(name))), *args, lowering=name) for name in names[:2]
    ]
    assert_same(*results)


@forall(case=transposed(), lowering=lowerings, rng=numbers)
def test_permutations(case: Case, lowering: str, rng: np.random.Generator) -> None:
    """Permuting images, channels in or channels out permutes the output, and no more.

    Channels stay in their groups, and the groups change places.
    """
    x, w = whole(rng, case.x_shape, case.kernel_shape)
    y = case.scatter(x, w).astype(np.float32)
    g, ci, co = case.groups, case.c_in // case.groups, case.c_out // case.groups
    groups, ins, outs = rng.permutation(g), rng.permutation(ci), rng.permutation(co)
    into = (groups[:, None] * ci + ins).ravel()
    out_of = (groups[:, None] * co + outs).ravel()
    x, y = x[..., into], y[..., out_of]
    w = w[..., outs, :][..., into]
    if case.batch:
        images = rng.permutation(case.batch[0])
        x, y = x[images], y[images]
    assert_same(run(layer(case, named(lowering)), x, w, lowering=lowering), y)


@forall(arguments=layers(full=True), lowering=lowerings, rng=numbers)
def test_shifts(arguments: dict[str, Any], lowering: str, rng: np.random.Generator) -> None:
    """An image moved by one pixel makes an output moved by one stride."""
    case = Case(**arguments)
    strides = oracle.per_axis(case.strides, case.rank)
    x, w = whole(rng, case.x_shape, case.kernel_shape)
    space = range(-1 - case.rank, -1)
    moved = np.pad(x, [(0, 0)] * len(case.batch) + [(1, 0)] * case.rank + [(0, 0)])
    ring = {**arguments, "padding": "circular"}

    def both(x: Any, w: Any, moved: Any) -> Any:
        plain = layer(case, named(lowering))
        round_ = layer(Case(**ring), named(lowering))
        return (plain(x, w), plain(moved, w)), (round_(x, w), round_(jnp.roll(x, 1, space), w))

    (y, further), (ring_y, ring_further) = run(both, x, w, moved, lowering=lowering)
    ends = [(0, 0)] * len(case.batch) + [(s, 0) for s in strides] + [(0, 0)]
    assert_same(further, np.pad(y, ends))
    assert_same(ring_further, np.roll(ring_y, strides, space))


@forall(case=transposed(), lowering=lowerings, rng=numbers)
def test_groups(case: Case, lowering: str, rng: np.random.Generator) -> None:
    """Groups are what each does by itself, concatenated."""
    args = whole(rng, case.x_shape, case.kernel_shape, case.y_shape)
    alone = Case(
        **{
            **vars(case),
            "groups": 1,
            "c_in": case.c_in // case.groups,
            "c_out": case.c_out // case.groups,
        }
    )
    parts = [np.split(a, case.groups, -1) for a in args]
    each = [alone.maps(*part) for part in zip(*parts, strict=True)]
    want = [np.concatenate(part, -1).astype(np.float32) for part in zip(*each, strict=True)]
    assert_same(run(with_gradients(layer(case, named(lowering))), *args, lowering=lowering), want)


@forall(
    case=transposed(),
    axes=st.sampled_from([(0, None), (None, 0), (0, 0), (-1, 1), (1, -2)]),
    size=st.integers(1, 3),
    lowering=lowerings,
    rng=numbers,
)
def test_vmap(case: Case, axes: Any, size: int, lowering: str, rng: np.random.Generator) -> None:
    """What a loop over the mapped axis makes, of value and gradients."""
    shapes = [case.x_shape, case.kernel_shape, case.y_shape]
    x, w, ct = ([*whole(rng, *[shape] * size)] for shape in shapes)
    each = [
        case.maps(x[i if axes[0] is not None else 0], w[i if axes[1] is not None else 0], ct[i])
        for i in range(size)
    ]
    want = [np.stack(part).astype(np.float32) for part in zip(*each, strict=True)]
    given = [
        a[0] if axis is None else np.stack(a, axis % (a[0].ndim + 1))
        for a, axis in zip((x, w), axes, strict=True)
    ]
    mapped = jax.vmap(with_gradients(layer(case, named(lowering))), (*axes, 0))
    assert_same(run(mapped, *given, np.stack(ct), lowering=lowering), want)


# ------------------------------------------------------------------ shapes, of which more are cheap


@forall(count=20 * COUNT, case=transposed())
def test_shapes(case: Case) -> None:
    """`output_shape` and the crops are those of the table of sizes, and `conv` leads back."""
    shape = upconv.output_shape(case.x_shape, case.c_out, case.kernel_size, **case.layer)
    assert shape == case.y_shape
    found = geometry.transposed(case.spatial, case.kernel_size, **case.layer)
    sizes = {name: value for name, value in case.layer.items() if name != "groups"}
    axes = oracle.axes_of(case.spatial, case.kernel_size, **sizes)
    assert found.full_size == tuple(axis.full for axis in axes)
    assert found.crop == tuple(axis.start for axis in axes)
    x, y, w = (
        jax.ShapeDtypeStruct(s, "float32") for s in (case.x_shape, case.y_shape, case.kernel_shape)
    )
    assert jax.eval_shape(layer(case, "auto"), x, w).shape == case.y_shape
    if case.output_padding is None and case.output_size is None:
        assert jax.eval_shape(convolution(case, "auto"), y, w).shape == case.x_shape


def test_the_same_cases_are_drawn_again() -> None:
    """Whoever reads of a failure can have it again, and properties do not share their cases."""

    def names(name: str) -> list[Case]:
        seen: list[Case] = []

        def test(case: Case) -> None:
            seen.append(case)

        test.__name__ = name
        forall(count=5, case=transposed())(test)()
        return seen

    assert names("one") == names("one")
    assert names("one") != names("another")
