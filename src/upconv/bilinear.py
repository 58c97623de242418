"""The three maps, closed under differentiation and batching.

With `x`: input, `w`: kernel, `y`: output of one transposed convolution,

=====================  ===========  ====  =====================  =====================
map                    from         to    transposed in its 1st  in its 2nd argument
=====================  ===========  ====  =====================  =====================
T `conv_transpose`     x, w         y     C(ct, w)               G(x, ct)
C `conv`               y, w         x     T(ct, w)               G(ct, y)
G `correlate_kernel`   x, y         w     C(y, ct)               T(x, ct)
=====================  ===========  ====  =====================  =====================

Each is linear in both arguments, so every derivative of any order is one of the three, and
none is ever derived from another's lowering: that is what keeps gradients fast.

Arrays are channels last: `x` is `(N, *input_size, groups * ci)`, `y` is
`(N, *output_size, groups * co)`, `w` is `(*kernel_size, co, groups * ci)`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla
from jax.sharding import AbstractMesh, PartitionSpec

from upconv import auto, lowering
from upconv.geometry import Geometry
from upconv.lowering.axes import merge, merge_last, move, split_groups
from upconv.lowering.calls import kept_apart
from upconv.lowering.numerics import Numerics


def conv_transpose(x: jax.Array, w: jax.Array, geometry: Geometry, numerics: Numerics) -> jax.Array:
    """T: the transposed convolution of `x` by `w`."""
    return _bind(conv_transpose_p, x, w, geometry, numerics)


def conv(y: jax.Array, w: jax.Array, geometry: Geometry, numerics: Numerics) -> jax.Array:
    """C: the strided convolution that T transposes."""
    return _bind(conv_p, y, w, geometry, numerics)


def correlate_kernel(
    x: jax.Array, y: jax.Array, geometry: Geometry, numerics: Numerics
) -> jax.Array:
    """G: the correlation of `x` with `y`, T's kernel gradient."""
    return _bind(correlate_kernel_p, x, y, geometry, numerics)


conv_transpose_p = Primitive("upconv_conv_transpose")
conv_p = Primitive("upconv_conv")
correlate_kernel_p = Primitive("upconv_correlate_kernel")


def _bind(
    p: Primitive, lhs: jax.Array, rhs: jax.Array, geometry: Geometry, numerics: Numerics
) -> jax.Array:
    # Inside shard_map both operands must vary over the same mesh axes; the transpose of this
    # step is the sum over devices that a replicated operand's gradient needs.
    vary = _vma(lhs) | _vma(rhs)
    lhs, rhs = _vary(lhs, vary), _vary(rhs, vary)
    return p.bind(lhs, rhs, geometry=geometry, numerics=numerics)


def _vma(x: Any) -> frozenset[str]:
    """The mesh axes over which `x` varies, within `shard_map`."""
    return jax.typeof(x).manual_axis_type.varying


def _vary(x: Any, axes: frozenset[str]) -> Any:
    missing = tuple(sorted(axes - _vma(x)))
    return lax.pcast(x, missing, to="varying") if missing else x


# ------------------------------------------------------------------ roles of the axes

# Each map pairs two of the three operands and gives the third.
OPERANDS = {
    conv_transpose_p: ("x", "w", "y"),
    conv_p: ("y", "w", "x"),
    correlate_kernel_p: ("x", "y", "w"),
}

# With the channels of x, y and w split into (groups, channels of one group), the axis of every
# role in every operand. Each map is one contraction: a role that both arguments hold and the
# result lacks is summed over, and `group` is shared by all three.
ROLES = ("batch", "in", "out", "group")
AXES = {
    "x": {"batch": 0, "group": -2, "in": -1},
    "y": {"batch": 0, "group": -2, "out": -1},
    "w": {"out": -3, "group": -2, "in": -1},
}


def _role_sizes(operand: str, shape: tuple[Any, ...], groups: int) -> dict[str, Any]:
    """Sizes of the roles that an operand holds."""
    sizes = (*shape[:-1], groups, shape[-1] // groups)
    return {role: sizes[axis] for role, axis in AXES[operand].items()}


def _shape(operand: str, sizes: dict[str, Any], geometry: Geometry) -> tuple[Any, ...]:
    space = {"x": geometry.input_size, "y": geometry.output_size, "w": geometry.kernel_size}
    if operand == "w":
        return (*space["w"], sizes["out"], sizes["group"] * sizes["in"])
    channel = sizes["in" if operand == "x" else "out"]
    return (sizes["batch"], *space[operand], sizes["group"] * channel)


# ------------------------------------------------------------------ abstract evaluation


def _abstract_eval(
    p: Primitive, lhs: Any, rhs: Any, *, geometry: Geometry, numerics: Numerics
) -> ShapedArray:
    first, second, result = OPERANDS[p]
    sizes = _role_sizes(first, lhs.shape, geometry.groups)
    sizes |= _role_sizes(second, rhs.shape, geometry.groups)
    shape = _shape(result, sizes, geometry)
    roles = ("batch", "in", "out") if geometry.groups == 1 else ("batch", "in")
    spec = _result_spec(roles, result, len(shape), (first, lhs), (second, rhs))
    placed = rhs if lhs.sharding.mesh.empty else lhs  # one of them may be on no mesh
    return lhs.update(
        shape=shape,
        dtype=numerics.dtype,
        weak_type=False,
        sharding=placed.sharding.update(spec=spec),
    )


def _result_spec(
    roles: tuple[str, ...], result: str, ndim: int, *operands: tuple[str, Any]
) -> PartitionSpec:
    """Explicit sharding: the result keeps what its operands say of the batch and of channels.

    Of two that are split over the same mesh axis, it keeps the first. With groups it keeps nothing
    of filters, which `y` has for all groups on one axis, and `w` for one.
    """
    spec: list[Any] = [None] * ndim
    used: set[str] = set()
    for role in roles:
        if role in AXES[result]:
            for operand, aval in operands:
                if role in AXES[operand]:
                    over = aval.sharding.spec[_flat_axis(operand, role)]
                    names = set(over) if isinstance(over, tuple) else {over} - {None}
                    if used.isdisjoint(names):
                        spec[_flat_axis(result, role)] = over
                        used |= names
    return PartitionSpec(*spec)


def _flat_axis(operand: str, role: str) -> int:
    """The axis of a role where groups and their channels are merged."""
    axis = AXES[operand][role]
    return axis + 1 if axis < -1 else axis


# ------------------------------------------------------------------ batching


def _batch(
    p: Primitive, args: tuple[Any, Any], dims: tuple[Any, Any], *, geometry: Geometry, **params: Any
) -> tuple[jax.Array, int]:
    """Fold the mapped axis into the role that the mapped operands and the result share.

    One mapped operand shares exactly one role with the result that the other lacks; where both
    are mapped, all three share the groups.
    """
    *names, result = OPERANDS[p]
    holders = {result, *(name for name, dim in zip(names, dims, strict=True) if dim is not None)}
    (role,) = (r for r in ROLES if {o for o in AXES if r in AXES[o]} == holders)
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    if size == 0:  # groups and channels could not be told apart again
        one = [_without(a, d) for a, d in zip(args, dims, strict=True)]
        out = jax.eval_shape(functools.partial(p.bind, geometry=geometry, **params), *one)
        return jnp.zeros((0, *out.shape), out.dtype), 0
    lhs, rhs = (
        a if d is None else _fold(name, role, jnp.moveaxis(a, d, 0), geometry.groups)
        for name, a, d in zip(names, args, dims, strict=True)
    )
    groups = geometry.groups * size if role == "group" else geometry.groups
    out = _bind(p, lhs, rhs, geometry=dataclasses.replace(geometry, groups=groups), **params)
    return _unfold(result, role, out, size, geometry.groups), 0


def _without(a: jax.Array, axis: int | None) -> jax.ShapeDtypeStruct:
    """What is left of `a` when one axis is mapped over."""
    shape = list(a.shape)
    if axis is not None:
        del shape[axis]
    return jax.ShapeDtypeStruct(shape, a.dtype)


def _fold(operand: str, role: str, a: jax.Array, groups: int) -> jax.Array:
    """Merge the leading axis of `a` into the axis of a role, as its slower part."""
    a = split_groups(a, groups)
    axis = AXES[operand][role] % (a.ndim - 1)
    return merge_last(merge(move(a, 0, axis), axis))


def _unfold(operand: str, role: str, a: jax.Array, size: Any, groups: int) -> jax.Array:
    """The inverse of `_fold`."""
    a = split_groups(a, groups * size if role == "group" else groups)
    axis = AXES[operand][role] % a.ndim
    a = a.reshape(*a.shape[:axis], size, a.shape[axis] // size, *a.shape[axis + 1 :])
    return merge_last(move(a, axis, 0))


# ------------------------------------------------------------------ lowering


COMPUTE = {
    conv_transpose_p: lowering.conv_transpose,
    conv_p: lowering.conv,
    correlate_kernel_p: lowering.correlate_kernel,
}


def _lower(
    p: Primitive,
    platform: str | None,
    ctx: Any,
    lhs: Any,
    rhs: Any,
    *,
    geometry: Geometry,
    numerics: Numerics,
) -> Any:
    numerics = numerics._replace(platform=auto.PARTITIONED if _is_partitioned(ctx) else platform)
    compute = functools.partial(COMPUTE[p], g=geometry, num=numerics)
    # XLA:CPU considers the interleaving of pixels cheap, and repeats it in every fusion that reads
    # the result: a training step then holds the output three times, and temporaries of 32 MiB and
    # more are fresh memory at every call. Behind a call there is one output.
    fun = kept_apart(compute) if numerics.platform == "cpu" else compute
    ctx = ctx.replace(
        avals_in=tuple(map(_plain, ctx.avals_in)), avals_out=tuple(map(_plain, ctx.avals_out))
    )
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())), _dtypes_kept(ctx):
        return mlir.lower_fun(fun, multiple_results=False)(ctx, lhs, rhs)


def _dtypes_kept(ctx: Any) -> AbstractContextManager[Any]:
    """Where 64 bits are allowed, though the context that the map was traced in has ended."""
    dtypes = {aval.dtype for aval in (*ctx.avals_in, *ctx.avals_out)}
    lost = any(jax.dtypes.canonicalize_dtype(dtype) != dtype for dtype in dtypes)
    return jax.enable_x64(True) if lost else nullcontext()


def _plain(aval: ShapedArray) -> ShapedArray:
    """Without shardings and varying axes, which end here: inside, the partitioner decides."""
    return ShapedArray(aval.shape, aval.dtype)


def _is_partitioned(ctx: Any) -> bool:
    """Whether XLA's partitioner will split this computation over several devices."""
    axes = ctx.module_context.axis_context
    if isinstance(axes, mlir.SPMDAxisContext):  # within shard_map
        return any(n > 1 for name, n in axes.mesh.shape.items() if name not in axes.manual_axes)
    return getattr(axes, "num_devices", 1) not in (None, 1)


# ------------------------------------------------------------------ registration


def _register(p: Primitive) -> None:
    p.def_impl(functools.partial(xla.apply_primitive, p))
    p.def_abstract_eval(functools.partial(_abstract_eval, p))
    ad.defbilinear(p, _transpose_rule(p, 0), _transpose_rule(p, 1))
    batching.primitive_batchers[p] = functools.partial(_batch, p)
    for platform in (None, *auto.RULES):
        mlir.register_lowering(p, functools.partial(_lower, p, platform), platform=platform)


def _transpose_rule(p: Primitive, unknown: int) -> Callable[..., jax.Array]:
    """The cotangent of one argument: the map to it, from the result's and the other argument."""
    *names, result = OPERANDS[p]
    q = next(q for q, (*_, to) in OPERANDS.items() if to == names[unknown])

    def rule(ct: Any, *args: Any, geometry: Geometry, numerics: Numerics) -> jax.Array:
        known = {result: ct, names[1 - unknown]: args[1 - unknown]}
        lhs, rhs = (known[name] for name in OPERANDS[q][:2])
        aval = args[unknown].aval
        out = _bind(q, lhs, rhs, geometry, numerics._replace(dtype=aval.dtype))
        # Explicit sharding: a map's result is sharded as its operands are, a gradient as the
        # argument that it belongs to.
        if aval.sharding.mesh.empty or jax.typeof(out).sharding == aval.sharding:
            return out
        return jax.sharding.reshard(out, aval.sharding)

    return rule


for _p in OPERANDS:
    _register(_p)
