"""What an import loads beside what was asked for, and how long it takes."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[1] / "src"
# All that can be used in a program: the bench loads what it compares with.
PARTS = sorted(m.name for m in pkgutil.iter_modules([str(SOURCE / "upconv")]) if m.name != "bench")
# What upconv is compared with, and converts from and to.
PEERS = {"torch", "tensorflow", "tf_keras", "keras", "equinox", "haiku", "onnx"}

SCRIPT = """
import json, sys, time
times = [time.process_time()]
{first}
times.append(time.process_time())
before = list(sys.modules)
{then}
times.append(time.process_time())
print(json.dumps([before, list(sys.modules), times]))
"""


class Import(NamedTuple):
    """Names of modules before and after it; the processor time of what came before it, and its."""

    before: set[str]
    after: set[str]
    seconds_before: float
    seconds: float


def run(then: str, *, first: str = "") -> Import:
    """An import in a fresh interpreter, where nothing is measured or traced."""
    environment = {"PYTHONPATH": str(SOURCE), "PATH": "", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT.format(first=first, then=then)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after, (start, between, end) = json.loads(done.stdout)
    return Import(set(before), set(after), between - start, end - between)


def packages(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules}


def test_the_functions_need_jax_alone() -> None:
    found = packages(run("import upconv").after)
    assert "jax" in found
    assert not found & {"flax", "optax", *PEERS}


def test_no_part_loads_a_peer() -> None:
    modules = run("\n".join(f"import upconv.{name}" for name in PARTS)).after
    assert {"upconv.linen", "upconv.nnx", "upconv.transforms"} <= modules
    assert not packages(modules) & PEERS


def test_nnx_does_without_linen() -> None:
    modules = run("import upconv.nnx").after
    assert {"flax.nnx", "upconv.nnx"} <= modules
    assert "upconv.linen" not in modules


def linen() -> Import:
    return run("import upconv, upconv.linen", first="import jax, flax.linen")


def test_linen_adds_no_package_to_jax_and_flax() -> None:
    """Neither nnx nor optax."""
    before, after, *_ = linen()
    assert {"flax.linen", "upconv.linen"} <= after
    assert not {name for name in after if name.startswith(("flax.nnx", "upconv.nnx"))}
    assert packages(after - before) - sys.stdlib_module_names <= {"upconv", "jax"}


@pytest.mark.slow
def test_linen_adds_little_to_the_time_of_jax_and_flax() -> None:
    """A tenth of theirs in the same process, which is as slow on a busy machine; best of four."""
    assert min(found.seconds / found.seconds_before for found in (linen() for _ in range(4))) < 0.1
