"""Short runs of the tasks that restore photographs, for tests: tiny models, details held out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import config as configs
import photos
import train

CONFIGS = Path(__file__).parents[1] / "configs"
OPTIONS: dict[str, dict[str, Any]] = {
    "superres": {
        "model.features": 8,
        "model.shrunk": 4,
        "model.mappings": 1,
        "model.kernel-constraint": "MaxNorm(max_value=0.1, axis=(0, 1, 3))",
        "data.crop": 12,
    },
    "denoise": {
        "model.features": (4, 8),
        "model.kernel-constraint": "MaxNorm(max_value=0.5, axis=(0, 1, 3))",
        "data.crop": 16,
    },
}
COMMON = {
    "data.photos": ("chelsea", "camera"),
    "data.sizes": ("0.5",),
    "train.batch-size": 8,
    "train.log-every": 10,
    "train.evaluate-every": 100,
}


def arguments(task: str, **overrides: Any) -> list[str]:
    """What would be typed, with `section__key` for `--section.key`."""
    named = {name.replace("__", ".").replace("_", "-"): v for name, v in overrides.items()}
    typed = [str(CONFIGS / f"photos_{task}.toml")]
    for name, value in (COMMON | OPTIONS[task] | named).items():
        values = value if isinstance(value, tuple) else (value,)
        typed += [f"--{name}", *map(str, values)]
    return typed


def load(task: str, **overrides: Any) -> Any:
    """The config of such a run."""
    return configs.from_command_line(arguments(task, run="unused", **overrides), "")


@contextmanager
def details_held_out() -> Iterator[None]:
    """Within it the photographs held out are small: 48 x 60 pixels of them."""
    details = {"china": (100, 200), "flower": (200, 270)}
    small = {
        name: np.ascontiguousarray(image[top : top + 48, left : left + 60])
        for name, image in photos.heldout().items()
        for top, left in [details[name]]
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photos, "heldout", lambda: small)
        patch.setattr(photos, "DETAILS", {"china": (3, 6), "flower": (9, 0)})
        patch.setattr(photos, "DETAIL", 30)
        yield


def trained(task: str, run: Path, **overrides: Any) -> Path:
    """The folder of a run; within `details_held_out`."""
    assert train.main(arguments(task, run=run, **overrides)) == 0
    return run
