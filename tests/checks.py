"""What the tests of values share: the functions of a case, their truth, and how close is right.

Errors are counted in units of accumulated rounding: a sum of products `x w` may be off by
`C * eps * sum |x| |w|`, where the oracle computes that last sum from absolute values. It holds for
every element by itself, so a wrong small number is not excused by large neighbours, and a number
that is a sum of nothing must be exactly zero.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import oracle
import upconv
from cases import Case, by_name
from upconv import auto
from upconv.auto import cpu, cuda
from upconv.lowering import convolution as xla_convolution
from upconv.lowering import depthwise, elementwise, phases, products, strips

# Sums of up to 6,000 terms in any order and blocking stay below 2 units; one that lost an operand,
# or was carried in bfloat16 where it should not, is off by thousands.
C = 4.0
# In 16 bits every term is rounded at most twice: as a product and in the result.
C_SHORT = 2.0

Limits = Mapping[ModuleType, Mapping[str, Any]]

# Limits at which "auto" takes for small shapes what it takes for large ones.
AS_IF_LARGE: Limits = {
    cpu: {
        "SMALL_PRODUCT": 0,
        "SMALL_IN_3D": 0,
        "MEMORY": 0,
        "FEW_FILTERS": 0,
        "NARROW": 4,
        "WIDE": 1,
        "SHORT_ROW": 2,
        "MOSTLY": 0.0,
        "PARALLEL_YNNPACK": False,
        "MANY_CHANNELS": 8,
        "MANY_PRODUCTS": 8,
        "MANY_MEET": 4,
        "PRODUCTS_OF_GROUPS": (0, 0, 0),
        "MANY_TERMS": 8,
    },
    xla_convolution: {"EIGEN_TAKES": 2, "EIGEN_GIVES": 2, "EIGEN_PRODUCTS": 4},
    strips: {"PIECE": 64, "IMAGES": 2},
    depthwise: {"MANY_SHIFTS": 3},
    elementwise: {"FEW_EDGES": 2},
    phases: {"UNROLLED": range(2, 100)},
    products: {"HALVED": range(2, 100)},
}
# The rules of a GPU, by which a CPU computes the same numbers.
OF_CUDA: Limits = {auto: {"RULES": dict.fromkeys(auto.RULES, cuda.ways)}}
OF_CUDA_AS_IF_LARGE: Limits = {
    **OF_CUDA,
    cuda: {
        "PRODUCTS_OF_T": 0,
        "PRODUCTS_AT_STRIDE_1": 0,
        "WINDOWS_OF_C": 0,
        "WINDOWS_OF_G": 0,
        "WINDOWS_OF_MISFITS": 0,
        "NARROW": 2,
        "FEW_FILTERS": 2,
    },
}

Function = Callable[..., Any]

(PLAIN,) = by_name("2d_unequal")


@contextlib.contextmanager
def limited(limits: Limits) -> Iterator[None]:
    """Has modules go by other limits than their own."""
    with contextlib.ExitStack() as stack:
        for module, values in limits.items():
            stack.enter_context(mock.patch.multiple(module, **values))
        yield


def eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)


def normal(rng: np.random.Generator, *shape: int, dtype: Any = jnp.float32) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32).astype(dtype)


def layer(case: Case = PLAIN, lowering: str = "auto", **rest: Any) -> Function:
    return partial(upconv.conv_transpose, **case.layer, lowering=lowering, **rest)


def convolution(case: Case = PLAIN, lowering: str = "auto", **rest: Any) -> Function:
    return partial(upconv.conv, **case.convolution, lowering=lowering, **rest)


def loss(f: Function) -> Function:
    """A number that depends on every output, and not linearly: its second derivatives are alive."""
    return lambda *args: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(f(*args)))


def numerics_of(f: Function, *args: Any) -> list[Any]:
    """What the maps in a function of arrays and in its gradients are told of their numerics."""
    gradient = jax.grad(loss(f), tuple(range(len(args))))
    eqns = jax.make_jaxpr(gradient)(*args).eqns
    return [eqn.params["numerics"] for eqn in eqns if "numerics" in eqn.params]


def with_gradients(f: Function) -> Function:
    """What `f` makes of its arguments, and its gradients in all of them along a cotangent."""

    def run(*args_and_ct: Any) -> list[Any]:
        *args, ct = args_and_ct
        out, pull = jax.vjp(f, *args)
        return [out, *pull(ct)]

    return run


def second_orders(loss: Function) -> list[Function]:
    """The Hessian of `loss` times a direction, by forward and by reverse over reverse."""
    gradient = jax.grad(loss, argnums=(0, 1))

    def forward(a: Any, b: Any, da: Any, db: Any) -> Any:
        return jax.jvp(gradient, (a, b), (da, db))[1]

    def reverse(a: Any, b: Any, da: Any, db: Any) -> Any:
        def slope(a: Any, b: Any) -> jax.Array:
            ga, gb = gradient(a, b)
            return jnp.vdot(ga, da) + jnp.vdot(gb, db)

        return jax.grad(slope, argnums=(0, 1))(a, b)

    return [forward, reverse]


class Adjoint:
    """`conv` on the output of a case: the same maps in other roles, with the size it takes."""

    def __init__(self, case: Case) -> None:
        sizes = {name: value for name, value in case.convolution.items() if name != "groups"}
        size = oracle.input_size_of(case.output, case.kernel_size, **sizes)
        self.case = case
        self.x_shape = (*case.batch, *size, case.c_in)

    def gather(self, y: Any, w: Any) -> np.ndarray:
        return oracle.conv(y, w, **self.case.convolution)

    def scatter(self, x: Any, w: Any) -> np.ndarray:
        return oracle.conv_transpose(x, w, **self.case.convolution, output_size=self.case.output)

    def correlate(self, x: Any, y: Any) -> np.ndarray:
        return oracle.correlate_kernel(x, y, self.case.kernel_size, **self.case.convolution)

    def maps(self, y: Any, w: Any, ct: Any) -> list[np.ndarray]:
        """The convolution of `y`, and its gradients in `y` and the kernel along `ct`."""
        return [self.gather(y, w), self.scatter(ct, w), self.correlate(ct, y)]


def curvature(
    truth: Case | Adjoint, a: Any, w: Any, da: Any, dw: Any, u: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The Hessian of `sum(u f(a, w)^2) / 2` times `(da, dw)`, where `f` is the truth's map."""
    f, _, _ = truth.maps(a, w, u)
    df = truth.maps(da, w, u)[0] + truth.maps(a, dw, u)[0]
    _, a_along_df, w_along_df = truth.maps(a, w, u * df)
    _, a_along_f, _ = truth.maps(a, dw, u * f)
    _, _, w_along_f = truth.maps(da, w, u * f)
    return a_along_df + a_along_f, w_along_df + w_along_f


def close(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    """Trees of arrays that agree to within rounding of their largest element."""
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    for g, w in zip(got, want, strict=True):
        assert np.size(w) == 0 or np.abs(w).max() > 1e-3, "compares with nothing"
        near(g, w, tolerance)


def near(got: Any, want: Any, tolerance: float) -> None:
    """Arrays that do; where all of one is below 1e-3, the errors may be of that."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max(initial=1e-3))


def assert_rounding(got: Any, want: np.ndarray, scale: np.ndarray, unit: float) -> None:
    """Every element within `unit` of its own sum of absolute values."""
    # Below the smallest normal number there are no `eps` left to count in.
    floor = 2 * float(jnp.finfo(got.dtype).smallest_subnormal)
    got = np.asarray(got).astype(np.float64)
    assert got.shape == want.shape
    error = np.abs(got - want)
    worst = np.max(error / (scale * unit + floor), initial=0.0)
    assert worst <= 1.0, f"{worst:.3g} times what rounding explains"


def assert_maps(
    got: list[jax.Array], truth: Case | Adjoint, operands: tuple[Any, ...], unit: float
) -> None:
    """A map and both its gradients, each within `unit` of the truth."""
    a, w, ct = operands
    scales = truth.maps(abs(a), abs(w), abs(ct))
    for result, want, scale in zip(got, truth.maps(a, w, ct), scales, strict=True):
        assert_rounding(result, want, scale, unit)
