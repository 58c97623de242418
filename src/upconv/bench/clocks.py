"""Clocks: functions that make a call and return how many seconds it took."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import jax
from jax.profiler import ProfileData

from upconv.bench import machine

Call: TypeAlias = Callable[[], Any]
Wait: TypeAlias = Callable[[Any], Any]
Clock: TypeAlias = Callable[[], float]

# Calls that a profile holds.
PROFILED = 10


def clock(call: Call, wait: Wait) -> Clock:
    """The clock of this machine: that of kernels on a GPU, elsewhere that of the wall.

    On a GPU the layers take less time than a launch. Where a launch overlaps with earlier work, as
    in a model, it costs nothing.
    """
    return functools.partial(kernel_time if machine.on_gpu() else wall_time, call, wait)


def wall_time(call: Call, wait: Wait) -> float:
    """Until the result of a call is there."""
    start = time.perf_counter()
    wait(call())
    return time.perf_counter() - start


def kernel_time(call: Call, wait: Wait) -> float:
    """That a GPU computes and copies for one of `PROFILED` calls, whatever library makes them.

    Raises:
      RuntimeError: if it did nothing.
    """
    options = jax.profiler.ProfileOptions()
    options.host_tracer_level = options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for result in [call() for _ in range(PROFILED)]:
                wait(result)
        (file,) = Path(folder).rglob("*.xplane.pb")
        seconds = busy_time(ProfileData.from_file(str(file)))
    if seconds == 0.0:
        raise RuntimeError("the profile of the calls has no kernel of a GPU")
    return seconds / PROFILED


def busy_time(profile: ProfileData) -> float:
    """Seconds of all that ran in the streams of GPUs."""
    return 1e-9 * sum(
        event.duration_ns
        for plane in profile.planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    )
