"""The folder of a run: whether it may be written to, and what may be deleted there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from tempfile import TemporaryFile

import jax
from jax.experimental import multihost_utils

import config as configs
from checkpoint import Checkpoints, exists

MARK = "config.json"
"""Holds the config that a run was started with; it tells the folder of a run from any other."""

FILES = re.compile(
    r"metrics\.(jsonl|new)|summary\.json|pictures/.+-\d{6,}\.png|tensorboard/events\.out\.tfevents\..+"
)
"""The files of a run that the next one in its folder must not find; and see `final_pictures`."""
CHECKPOINTS = re.compile(r"\d+(\.orbax-checkpoint-tmp.*)?")
"""The names of its checkpoints, which are folders, whether finished or not."""


def claimed(config: configs.Config) -> Path:
    """The run's folder, made if need be, and without the files of an earlier run unless it goes on.

    That another trainer is at work there at the same time is not noticed.

    Raises:
      ConfigError: if it is another's, holds a run that is neither to go on nor to be overwritten,
        or cannot be written to.
      CheckpointError: if it should have a checkpoint and has none.
    """
    run = Path(config.run)
    try:
        check(run, config)
        # Nothing is written before all processes have looked, lest one sees another's files.
        multihost_utils.sync_global_devices("looked")
        if not config.resume and jax.process_index() == 0:
            start_afresh(run, config)
    except OSError as error:
        why = error.strerror or error
        raise configs.ConfigError(f"{run} cannot be used as a folder: {why}", key="run") from error
    multihost_utils.sync_global_devices("claimed")
    return run


def check(run: Path, config: configs.Config) -> None:
    """Raises the errors of `claimed`, and changes nothing."""
    if config.resume and config.overwrite:
        raise configs.ConfigError("resume and overwrite: give one of them")
    if config.resume:
        Checkpoints(run, read_only=True).close()  # raises if there is nothing to go on from
        for folder in (run, run / "checkpoints"):
            TemporaryFile(dir=folder).close()  # raises if nothing can be written there
    elif not is_empty(run) and not is_run(run):
        raise configs.ConfigError(
            "must be a new folder, an empty one, or that of an earlier run; "
            f"got {run}, which has files, but no {MARK} of a run",
            key="run",
        )
    elif not config.overwrite and exists(run):
        raise configs.ConfigError(
            f"{run} holds the checkpoints of a run: go on with --resume, delete them with "
            "--overwrite, or name another folder with --run"
        )
    elif not config.overwrite and has_results(run):
        raise configs.ConfigError(
            f"{run} holds the results of a run, but no checkpoint to go on from: delete them with "
            "--overwrite, or name another folder with --run"
        )


def is_empty(folder: Path) -> bool:
    """Whether no file is in a folder, nor a link, be it because there is no such folder."""
    return all(path.is_dir() and not path.is_symlink() for path in folder.rglob("*"))


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run: not every config.json is one that this program wrote."""
    try:
        table = json.loads((folder / MARK).read_text())
    except (FileNotFoundError, ValueError):
        return False
    # The keys may since have changed, the task may not.
    return isinstance(table, dict) and table.get("task") in configs.TASKS and "train" in table


def has_results(run: Path) -> bool:
    """Whether there are metrics, or a summary."""
    metrics = run / "metrics.jsonl"
    return (run / "summary.json").exists() or (metrics.exists() and metrics.stat().st_size > 0)


def final_pictures(run: Path) -> list[Path]:
    """The pictures that a run has made last; each is also in `pictures`, with its step's number."""
    numbered = [re.fullmatch(r"(.+)-\d{6,}", path.stem) for path in run.glob("pictures/*.png")]
    return [run / f"{name}.png" for name in sorted({found[1] for found in numbered if found})]


def start_afresh(run: Path, config: configs.Config) -> None:
    """Deletes what an earlier run wrote, and nothing else; then marks the folder as a run's."""
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    for path in run.glob("checkpoints/*"):
        if CHECKPOINTS.fullmatch(path.name):
            shutil.rmtree(path)
    for path in final_pictures(run):
        path.unlink(missing_ok=True)
    for path in [*run.glob("*"), *run.glob("*/*")]:
        if FILES.fullmatch(path.relative_to(run).as_posix()):
            path.unlink()
    (run / MARK).write_text(json.dumps(configs.to_table(config), indent=2) + "\n")
