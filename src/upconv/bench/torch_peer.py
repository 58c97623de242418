"""PyTorch's layer, in either memory format."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from upconv.bench import machine
from upconv.bench.layers import Data, LayerSpec
from upconv.bench.task import Task


@functools.cache
def _import_torch() -> Any:
    import torch

    torch.set_num_threads(machine.cores())
    torch.backends.cudnn.benchmark = True
    return torch


def obstacle() -> str | None:
    """Why PyTorch cannot take part although it is installed, or None."""
    without = machine.on_gpu() and not _import_torch().cuda.is_available()
    return "it has no GPU" if without else None


def crop(layer: LayerSpec) -> tuple[list[int], list[int]]:
    """PyTorch's `padding` and `output_padding` for our output shape.

    PyTorch crops both ends alike, and extends the end by `output_padding`: of an odd total the
    larger half is cropped at the start, so its output is one pixel off ours.
    """
    totals = [lo + hi for lo, hi in layer.geometry.pads]
    padding = [max(total + 1, 0) // 2 for total in totals]
    return padding, [2 * lo - total for lo, total in zip(padding, totals, strict=True)]


def aligned(layer: LayerSpec) -> bool:
    """Whether PyTorch crops what we crop, rather than one pixel more at the start of an axis."""
    padding, _ = crop(layer)
    return tuple(padding) == layer.geometry.crop


def task(layer: LayerSpec, data: Data, dtype: str, *, channels_last: bool = False) -> Task:
    """PyTorch's task, run eagerly."""
    torch = _import_torch()
    memory_format = _memory_format(layer.rank, channels_last)

    def tensor(a: np.ndarray, *axes: int) -> Any:
        a = np.moveaxis(a, axes, (0, 1))
        t = torch.tensor(np.ascontiguousarray(a), dtype=getattr(torch, dtype))
        return t.to("cuda" if machine.on_gpu() else "cpu", memory_format=memory_format)

    x, dx = (tensor(a, 0, -1) for a in (data.x, data.dx))
    kernel, dkernel = (tensor(a, -1, -2) for a in (data.kernel, data.dkernel))
    for operand in (x, kernel):
        operand.requires_grad_()
    function = getattr(torch.nn.functional, f"conv_transpose{layer.rank}d")
    padding, extra = crop(layer)

    def apply(x: Any, kernel: Any) -> Any:
        return function(
            x, kernel, None, layer.stride, padding, output_padding=extra, groups=layer.groups
        )

    calls = _calls(apply, (x, kernel), (dx, dkernel))
    return Task(calls, _wait, 1, aligned=aligned(layer))


def _memory_format(rank: int, channels_last: bool) -> Any:
    torch = _import_torch()
    if channels_last:
        return {2: torch.channels_last, 3: torch.channels_last_3d}[rank]
    return torch.contiguous_format


def _calls(
    apply: Callable[[Any, Any], Any], operands: tuple[Any, Any], tangents: tuple[Any, Any]
) -> dict[str, Callable[[], Any]]:
    torch = _import_torch()
    (x, kernel), (dx, dkernel) = operands, tangents

    def step() -> Any:
        loss = apply(x, kernel).square().sum()
        return loss.detach(), torch.autograd.grad(loss, operands)

    def hvp() -> Any:
        # The gradient of the loss's slope along the tangents: seven maps, as ours takes. Backwards
        # twice, and forwards over backwards, take nine, since nothing drops the gradients that
        # nobody asks for. PyTorch's own forward mode takes seven, but crashed with torch 2.14.
        slope = 2 * (apply(x, kernel) * (apply(dx, kernel) + apply(x, dkernel))).sum()
        return torch.autograd.grad(slope, operands)

    forward = functools.partial(torch.no_grad()(apply), *operands)
    return {"forward": forward, "step": step, "hvp": hvp}


def _wait(result: Any) -> None:
    if machine.on_gpu():
        _import_torch().cuda.synchronize()
