"""Trains what a config describes.

    python examples/train.py configs/digits_autoencoder.toml [--SECTION.KEY VALUE ...]

`train.py CONFIG --help` lists all keys of that config; without CONFIG, those that every task has.

It writes to the folder `run`, which must be new, empty, or that of an earlier run: config.json,
metrics.jsonl (a line per `train.log_every` steps; the log has them, too, unless it is a terminal
with a bar), pictures of held-out samples, checkpoints, and at the end summary.json. Ctrl-C or
SIGTERM stops it after a last checkpoint, from which `--resume` goes on to the same numbers as if
nothing had happened, on as many devices of the same kind and with the same `train.steps`: with
others, the learning rate goes on along another cosine. During start-up the signals stop it before
anything is written. The batch is split over all devices. Set JAX_COORDINATOR_ADDRESS to train on
several hosts, and also JAX_NUM_PROCESSES and JAX_PROCESS_ID unless JAX can infer them from a
cluster's own variables.

Exit status: 2 for a config, folder or checkpoint that cannot be used, 1 if the loss is no longer
finite, 128 plus the signal's number after a signal.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import config as configs
from checkpoint import CheckpointError, Checkpoints
from folder import claimed
from reporting import MetricsError, Reporter
from task import DEVICES, Batch, State, Task, build

MAY_DIFFER = {
    "run",
    "resume",
    "overwrite",
    "train.steps",
    "train.log_every",
    "train.evaluate_every",
    "train.checkpoint_every",
    "train.tensorboard",
}
"""Keys of the config that may change on resuming: how long to go on, and what to report."""


class DivergedError(RuntimeError):
    """The loss or a parameter is no longer finite."""


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, and returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        with signals() as received:
            config = configs.from_command_line(argv, description=__doc__ or "")
        if received:
            return not_begun(received[0])
        # Without handlers: while JAX waits for the other processes, no Python runs that could heed
        # a signal; and once they are there, JAX puts its own handler in the place of SIGTERM's.
        join_hosts()
        with signals() as received:
            return train(config, build_named(argv, config), received)
    except (configs.ConfigError, CheckpointError, MetricsError) as error:
        return fail(2, error)
    except DivergedError as error:
        return fail(1, error)


def fail(status: int, message: object) -> int:
    """Says why, and returns the exit status."""
    print(f"train.py: {message}", file=sys.stderr)
    return status


def not_begun(number: int) -> int:
    """Says that a signal has stopped the program in time, and returns the exit status."""
    print(f"{signal.Signals(number).name}: stopped before the first step; nothing was written")
    return 128 + number


def join_hosts() -> None:
    """Joins the processes that the environment describes, if any, into one run.

    Raises:
      ConfigError: if it describes none that can be joined.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is None or jax.distributed.is_initialized():
        return
    good = re.fullmatch(r".+:\d+", address) is not None
    configs.require(good, "JAX_COORDINATOR_ADDRESS", "HOST:PORT", address)
    count, index = integer("JAX_NUM_PROCESSES"), integer("JAX_PROCESS_ID")
    try:
        jax.distributed.initialize(num_processes=count, process_id=index)
    except ValueError as error:
        raise configs.ConfigError(
            f"cannot join the processes at {address}: {error}", key="JAX_COORDINATOR_ADDRESS"
        ) from error


def integer(name: str) -> int | None:
    """The integer that a variable of the environment holds, or None if it is not set."""
    text = os.environ.get(name)
    try:
        return None if text is None else int(text)
    except ValueError as error:
        raise configs.ConfigError(f"must be an integer, got {text!r}", key=name) from error


def build_named(argv: Sequence[str], config: configs.Config) -> Task:
    """The task of the config on the command line; errors say where the fault is: see `located`."""
    try:
        size, devices = config.train.batch_size, jax.device_count()
        expected = f"divisible by the number of devices, {devices}"
        configs.require(size % devices == 0, "train.batch_size", expected, size)
        if config.train.tensorboard:
            import_module("tensorboardX")
        return build(config)
    except ModuleNotFoundError as error:
        if error.name != "tensorboardX":
            raise
        missing = configs.ConfigError("needs the extra `tensorboard`", key="train.tensorboard")
        raise located(missing, argv) from error
    except configs.ConfigError as error:
        raise located(error, argv) from error


def located(error: configs.ConfigError, argv: Sequence[str]) -> configs.ConfigError:
    """The error behind the name of the config's file, unless an option gave the key at fault.

    >>> argv = ["digits.toml", "--train.batch-size=3"]
    >>> located(configs.ConfigError("too few", key="train.batch_size"), argv)
    ConfigError('train.batch_size: too few')
    >>> located(configs.ConfigError("too many", key="data.heldout"), argv)
    ConfigError('digits.toml: data.heldout: too many')
    """
    path, *options = argv
    given = {option.partition("=")[0].replace("-", "_") for option in options}
    return configs.ConfigError(str(error) if f"__{error.key}" in given else f"{path}: {error}")


def train(config: configs.Config, task: Task, received: list[int]) -> int:
    """Trains, writes the run's files, and returns the exit status: 0, or that of a signal.

    Args:
      config: the run's.
      task: what is trained.
      received: the signals that `signals` has collected so far, and will collect.
    """
    if stop := agreed(received, 1, 0):
        return not_begun(stop)
    settings, run = config.train, claimed(config)
    mesh = Mesh(np.array(jax.devices()), (DEVICES,))
    step = make_step(task, mesh)
    with closing(Checkpoints(run)) as checkpoints:
        state, meter, planned = begin(config, task, mesh, checkpoints)
        started = time.perf_counter() - meter.seconds
        with closing(Reporter(config, task, run, meter.step)) as report:
            report.start(here(state), planned)
            if meter.step == settings.steps:  # nothing is left to do but what comes last
                report.line(meter.line(), here(state))
            batch = draw(config, task, mesh, meter.step + 1)
            while meter.step < settings.steps:
                state, metrics = step(state, batch)
                batch = draw(config, task, mesh, meter.step + 2)  # while the devices compute
                meter.add(jax.device_get(metrics), time.perf_counter() - started)
                report.progress(meter.step)

                last = meter.step == settings.steps
                evaluates = last or meter.step % settings.evaluate_every == 0
                stop = agreed(received, settings.log_every, meter.step)
                if evaluates or meter.step % settings.log_every == 0:
                    report.line(meter.line(), here(state) if evaluates else None)
                if last or stop or meter.step % settings.checkpoint_every == 0:
                    save(checkpoints, config, meter, state)
                if stop and not last:
                    report.stopped(stop, meter.step)
                    return 128 + stop
            report.summary(here(state))
    return 0


@dataclasses.dataclass
class Meter:
    """How far a run has come, the sums of its metrics since they were last written, and that line.

    It goes into every checkpoint.
    """

    step: int = 0
    seconds: float = 0.0
    count: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    means: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, metrics: Mapping[str, Any], seconds: float) -> None:
        """Counts a step, which ended so many seconds after the first one began.

        Raises:
          DivergedError: if one of its metrics is not finite.
        """
        self.step, self.seconds, self.count = self.step + 1, seconds, self.count + 1
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise DivergedError(
                    f"{name} became {value} at step {self.step}; lower the learning rate"
                )
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def line(self) -> dict[str, float]:
        """A line of metrics, with their means since the line before; the same until a step more."""
        if self.count:
            self.means = {name: total / self.count for name, total in self.sums.items()}
            self.count, self.sums = 0, {}
        return {"step": self.step, "seconds": round(self.seconds, 3), **self.means}


def begin(
    config: configs.Config, task: Task, mesh: Mesh, checkpoints: Checkpoints
) -> tuple[State, Meter, int]:
    """What to start from: the task's first state, or that of the newest checkpoint.

    Returns:
      The state, how far it has come, and how many steps there were to be when it was saved.

    Raises:
      CheckpointError: if the checkpoint is of another config, or cannot be read.
      ConfigError: if it has more steps than the config asks for.
    """
    whole = NamedSharding(mesh, P())
    init = jax.jit(task.init, out_shardings=whole)
    key = jax.random.key(config.train.seed)
    if not config.resume:
        return init(key), Meter(), config.train.steps
    about = checkpoints.about()
    check_same(about["config"], config, checkpoints.folder)
    like = jax.eval_shape(init, key)
    meter = Meter(**about["meter"])
    if meter.step > config.train.steps:
        raise configs.ConfigError(
            f"the checkpoint has {meter.step} steps already, got {config.train.steps}",
            key="train.steps",
        )
    return checkpoints.restore(like), meter, about["config"]["train"]["steps"]


def check_same(saved: dict[str, Any], config: configs.Config, folder: Path) -> None:
    """Raises a CheckpointError that names the keys in which the config is not as it was saved."""
    ours, theirs = dotted(configs.to_table(config)), dotted(saved)
    keys = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    # Every task has keys of its own, so that of another task many differ.
    keys = {"task"} if "task" in keys else keys - MAY_DIFFER
    if keys:
        different = [
            f"{key} is {theirs.get(key, 'not')} there and {ours.get(key, 'not')} here"
            for key in sorted(keys)
        ]
        raise CheckpointError(f"{folder}: of another config: {', '.join(different)}")


def dotted(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested tables as one table with dotted keys, and values as Python writes them.

    >>> dotted({"task": "gan", "train": {"steps": 3}})
    {'task': "'gan'", 'train.steps': '3'}
    """
    result: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            result |= dotted(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = repr(value)
    return result


def make_step(
    task: Task, mesh: Mesh
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
    """The task's step for a batch that is split over the mesh; the old state is donated to it.

    Every step is a call of its own, and not a part of a `lax.scan`: on CPU, XLA compiles the
    convolutions in a loop's body to something many times slower.
    """
    step = jax.shard_map(task.step, mesh=mesh, in_specs=(P(), P(DEVICES)), out_specs=P())
    return jax.jit(step, donate_argnums=0)


def draw(config: configs.Config, task: Task, mesh: Mesh, step: int) -> Batch:
    """The batch of a step, on the devices; the seed and the step alone decide it."""
    batch = task.batch(np.random.default_rng([config.train.seed, step]))
    split = NamedSharding(mesh, P(DEVICES))

    def place(array: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(array.shape, split, lambda index: array[index])

    return jax.tree.map(place, batch)


def here(state: State) -> State:
    """The state on this process's first device; it is the same on all."""
    return jax.tree.map(lambda array: array.addressable_data(0), state)


def save(checkpoints: Checkpoints, config: configs.Config, meter: Meter, state: State) -> None:
    """Saves what a resumed run needs.

    Raises:
      DivergedError: if the state is not finite; the previous checkpoint remains the last.
    """
    if not finite(here(state)):
        raise DivergedError(f"a parameter is not finite after step {meter.step}")
    about = {"meter": dataclasses.asdict(meter), "config": configs.to_table(config)}
    checkpoints.save(meter.step, state, about)


@jax.jit
def finite(state: State) -> jax.Array:
    """Whether all numbers of a state are finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM; the second of a kind has its usual effect."""
    received: list[int] = []

    def receive(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    before = {n: signal.signal(n, receive) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def agreed(received: list[int], every: int, step: int) -> int:
    """The signal to stop for, or 0; all processes agree on it, every so many steps."""
    number = received[0] if received else 0
    if jax.process_count() == 1:
        return number
    if step % every:
        return 0
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


if __name__ == "__main__":
    sys.exit(main())
