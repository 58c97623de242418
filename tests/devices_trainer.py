"""Each config's step on eight devices that XLA makes of one processor, and on one.

A program of its own, run by `test_distributed.py`: how many devices there are is settled when JAX
starts. It prints, as JSON, the losses of a few steps on both, and what is gathered in the step.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import config as configs  # noqa: E402
import task  # noqa: E402
import train  # noqa: E402

# Small enough to compile twice in seconds.
SMALL = {
    "digits_autoencoder": ["--model.features", "4", "8", "--model.latent", "4"],
    "digits_gan": ["--model.features", "8", "4", "--model.latent", "4"],
    "photos_denoise": ["--model.features", "4", "8", "--data.crop", "16"],
    "photos_superres": ["--model.features", "8", "--model.shrunk", "4", "--data.crop", "8"],
}
STEPS = 3


def losses(config: Any, made: Any, state: Any, devices: list[Any]) -> tuple[list[float], str]:
    """The losses of a few steps, and the compiled program's text."""
    mesh = Mesh(np.array(devices), (task.DEVICES,))
    state = jax.device_put(state, NamedSharding(mesh, P()))
    batch = train.draw(config, made, mesh, 1)
    compiled = train.make_step(made, mesh).lower(state, batch).compile()
    values = []
    for number in range(1, STEPS + 1):
        state, metrics = compiled(state, train.draw(config, made, mesh, number))
        values.append(float(metrics["loss"]))
    return values, compiled.as_text()


def main() -> None:
    assert jax.device_count() == 8
    results = {}
    for name, options in SMALL.items():
        path = str(ROOT / "configs" / f"{name}.toml")
        config = configs.from_command_line([path, *options, "--train.batch-size", "16"], "")
        made = task.build(config)
        state = jax.tree.map(np.asarray, jax.jit(made.init)(jax.random.key(0)))
        eight, text = losses(config, made, state, jax.devices())
        one, _ = losses(config, made, state, jax.devices()[:1])
        results[name] = {
            "eight": eight,
            "one": one,
            "collectives": sorted(set(re.findall(r"\b(all-\w+|collective-\w+)(?=[-(])", text))),
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
