"""The machine that measures: where it computes, and what its numbers depend on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax


def on_gpu() -> bool:
    """Whether JAX, and so every peer, computes on a GPU."""
    return jax.default_backend() == "gpu"


def cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def environment(packages: Iterable[str]) -> dict[str, Any]:
    """What the numbers depend on, and nothing that tells whose machine it is.

    Args:
      packages: those whose versions are wanted.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in sorted(packages)},
        "device": jax.devices()[0].device_kind,
        "cpu": _cpu_model(),
        "cores": cores(),
    }


def _version(package: str) -> str | None:
    # TensorFlow is published as several distributions.
    for name in (package, f"{package}_cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
