"""The layers beside PyTorch's `conv_transpose1d`, `2d` and `3d`, live."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import upconv.linen
from checks import normal
from side_by_side import error, in_one_program

pytestmark = pytest.mark.parity

# So many layers are compared, in parts of so many that are compiled together.
PARTS, AT_ONCE = 12, 25
RANKS = (1, 2, 1, 2, 3, 1, 2, 1)


DEFAULT = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}


class Drawn(NamedTuple):
    """One call of PyTorch's function, with what its keyword arguments are."""

    rank: int
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    arguments: dict[str, Any]

    @property
    def kinds(self) -> tuple[str, ...]:
        changes = [k for k, v in self.arguments.items() if np.any(np.array(v) != DEFAULT[k])]
        batch = "batch" if self.x.ndim > self.rank + 1 else "no batch"
        return (f"{self.rank}d", batch, "no bias" if self.bias is None else "bias", *changes)

    def theirs(self, torch: ModuleType, ct: np.ndarray) -> Any:
        """The output, and gradients by kernel, bias and input in our layout."""
        args = [self.x, self.weight] + [self.bias] * (self.bias is not None)
        tensors = [torch.tensor(a, requires_grad=True) for a in args]
        function = getattr(torch.nn.functional, f"conv_transpose{self.rank}d")
        y = function(*tensors, **self.arguments)
        y.backward(torch.tensor(ct))
        x, weight, *bias = (t.grad.numpy() for t in tensors)
        return [y.detach().numpy(), {"kernel": to_kernel(weight)} | named(bias), x]

    def ours(self) -> tuple[Callable[..., jax.Array], tuple[Any, ...]]:
        """The layer, and what it is called with."""
        cls = getattr(upconv.linen, f"Conv{self.rank}DTranspose")
        names = {"stride": "strides", "dilation": "dilation_rate"}
        arguments = {names.get(name, name): value for name, value in self.arguments.items()}
        groups = self.arguments.get("groups", 1)
        layer = cls(
            self.weight.shape[1] * groups,
            self.weight.shape[2:],
            data_format="channels_first",
            use_bias=self.bias is not None,
            **{"padding": 0, **arguments},
        )
        biases = [] if self.bias is None else [self.bias]
        params = {"kernel": to_kernel(self.weight)} | named(biases)
        return lambda params, x: layer.apply({"params": params}, x), (params, self.x)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """By PyTorch's documentation."""

        given = {k: np.array(v) for k, v in {**DEFAULT, **self.arguments}.items()}
        n, k = (np.array(a.shape[-self.rank :]) for a in (self.x, self.weight))
        out = (n - 1) * given["stride"] - 2 * given["padding"]
        out += given["dilation"] * (k - 1) + given["output_padding"] + 1
        filters = self.weight.shape[1] * int(given["groups"])
        return (*self.x.shape[: -self.rank - 1], filters, *out.tolist())


def to_kernel(weight: np.ndarray) -> np.ndarray:
    """From `(c_in, c_out // groups, *kernel_size)`."""
    return np.moveaxis(weight, (1, 0), (-2, -1))


def named(bias: list[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(("bias",), bias, strict=False))


def draw(rng: np.random.Generator, rank: int) -> Drawn:
    def ints(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(i) for i in rng.integers(low, high + 1, size=rank))

    def spelled(values: tuple[int, ...]) -> Any:
        return values[0] if len(set(values)) == 1 else values

    small = 5 if rank < 3 else 3
    batch = [(), (1,), (2,), (3,)][rng.integers(4)]
    strides = ints(1, 4) if rng.random() < 0.8 else (1,) * rank
    dilation = ints(1, 3) if rng.random() < 0.6 else (1,) * rank
    groups = int(rng.choice([1, 2, 3]))
    c_in, c_out = (int(i) * groups for i in rng.permutation(4)[:2] + 2)
    arguments: dict[str, Any] = {
        "stride": spelled(strides),
        "padding": spelled(ints(0, int(rng.choice([1, 2, 4])))),
        "output_padding": tuple(
            int(rng.integers(max(s, d))) for s, d in zip(strides, dilation, strict=True)
        ),
        "dilation": spelled(dilation),
        "groups": groups,
    }
    kept = {name: value for name, value in arguments.items() if rng.random() < 0.9}
    # Output padding is below stride or dilation: not without either.
    if not {"stride", "dilation"} <= kept.keys():
        kept.pop("output_padding", None)
    return Drawn(
        rank,
        normal(rng, *batch, c_in, *ints(1, small)),
        normal(rng, c_in, c_out // groups, *ints(1, small)),
        normal(rng, c_out * kept.get("groups", 1) // groups) if rng.random() < 0.7 else None,
        kept,
    )


@functools.cache
def drawn(part: int) -> list[Drawn]:
    """A part of the calls, all of which leave something of the output."""
    rng, found = np.random.default_rng([7, part]), []
    while len(found) < AT_ONCE:
        case = draw(rng, RANKS[len(found) % len(RANKS)])
        if min(case.output_shape) > 0:
            found.append(case)
    return found


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.many
def test_random_layers(part: int, torch: ModuleType, measured: Any) -> None:
    """Values, and gradients by kernel, bias and input."""
    cases, rng = drawn(part), np.random.default_rng(part)
    functions, args = zip(*(case.ours() for case in cases), strict=True)
    cts = [normal(rng, *case.output_shape) for case in cases]
    results = in_one_program([[f] for f in functions], args, cts)
    for i, (case, (ours,), ct) in enumerate(zip(cases, results, cts, strict=True)):
        name = f"{part}.{i} {case.x.shape} {case.weight.shape} {case.arguments}"
        measured("PyTorch's conv_transpose", error(name, ours, case.theirs(torch, ct)))


def test_the_random_layers_reach_every_kind() -> None:
    cases = [case for part in range(PARTS) for case in drawn(part)]
    count = Counter(kind for case in cases for kind in case.kinds)
    often = ("1d", "2d", "3d", "batch", "no batch", "bias", "no bias")
    arguments = ("stride", "padding", "output_padding", "dilation", "groups")
    assert all(count[kind] > 30 for kind in (*often, *arguments)), count
    together = [case for case in cases if set(arguments) <= set(case.kinds)]
    assert len(together) > 20
