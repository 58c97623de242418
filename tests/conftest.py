"""How the tests are compiled, and fixtures that those of the core share."""

from __future__ import annotations

import os
import zlib
from importlib.metadata import version

import numpy as np
import pytest

# Compiling is what most tests spend their time on, and without LLVM's optimizations it takes a
# third of it. What is set already stays: `XLA_FLAGS= make test` compiles as users do.
QUICK = "--xla_backend_optimization_level=0"
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 12):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", QUICK)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers of the test's own: the same in every run, whatever runs beside it."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))
