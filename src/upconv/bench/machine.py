"""The machine that measures: where it computes, and what its numbers depend on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping
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
        **_cpu(_cpu_info()),
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


def _cpu_info() -> dict[str, str]:
    # Of the first core, where the system tells (Linux).
    info = Path("/proc/cpuinfo")
    first, _, _ = (info.read_text() if info.exists() else "").partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _cpu(info: Mapping[str, str]) -> dict[str, str | None]:
    # Clouds cut names to "AMD EPYC", whose generations differ in family, model and vectors.
    flags = info.get("flags", "").split()
    return {
        "cpu": info.get("model name", platform.processor()),
        "cpu_family": info.get("cpu family"),
        "cpu_model": info.get("model"),
        "vectors": next((name for name in ("avx512f", "avx2", "avx") if name in flags), None),
    }
