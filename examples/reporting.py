"""What a run shows and writes: the log, the progress bar, metrics, pictures and the summary."""

from __future__ import annotations

import json
import math
import shutil
import signal
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import config as configs
import pictures
from task import Figures, State, Task, constraint_report

VERDICTS = {True: "satisfied", False: "VIOLATED", None: "goes only part of the way each time"}
"""How the log says what `constraint_report` has found."""


class MetricsError(RuntimeError):
    """A file of metrics that a run cannot go on with; the message names it."""


class Reporter:
    """Shows and writes what a run reports; of several processes only the first does.

    Args:
      config: the run's.
      task: what is trained.
      run: the folder to write to.
      after: the step that the run goes on from. Lines that will be written again are dropped: of
        later steps, written before it was interrupted, and of that step if it is the last.

    Raises:
      MetricsError: if the lines up to that step cannot be read.
    """

    def __init__(self, config: configs.Config, task: Task, run: Path, after: int) -> None:
        self.config, self.task, self.run, self.after = config, task, run, after
        self.leads = jax.process_index() == 0
        # As it is: of `run[1]`, rich would take the brackets for markup.
        self.console = Console(
            markup=False, emoji=False, highlight=False, soft_wrap=True, quiet=not self.leads
        )
        self.bar = progress_bar(self.console)
        self.row = self.bar.add_task(
            "training", total=config.train.steps, completed=after, rate="compiling", note=""
        )
        self.metrics = run / "metrics.jsonl"
        self.latest: dict[str, Any] = {}
        self.tensorboard = None
        kept = min(after, config.train.steps - 1)
        if self.leads:
            write_lines(self.metrics, read_lines(self.metrics, kept))
        if self.leads and config.train.tensorboard:
            writer = import_module("tensorboardX").SummaryWriter
            self.tensorboard = writer(str(run / "tensorboard"), purge_step=kept + 1)

    def start(self, state: State, planned: int) -> None:
        """Says what is about to happen, how many steps were planned before, and shows the bar."""
        count = sum(leaf.size for leaf in jax.tree.leaves(self.task.params(state)))
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        self.console.print(*self.task.about, sep="\n")
        self.console.print(f"{count:,} parameters, {self.config.train.steps} steps on {devices}")
        for path, rule in self.task.rules.items():
            self.console.print(f"  {path}: {rule.regularizer}, {rule.constraint}")
        if self.after:
            self.console.print(f"going on after step {self.after}")
        if planned != (steps := self.config.train.steps):
            self.console.print(
                f"train.steps was {planned} and is {steps}: schedules, such as the learning "
                f"rate's, now end at step {steps}"
            )
        self.bar.start()

    def progress(self, step: int) -> None:
        """Moves the bar."""
        speed = self.bar.tasks[0].speed
        rate = f"{speed:.1f} steps/s" if speed else "compiling"
        self.bar.update(self.row, completed=step, rate=rate)

    def line(self, line: dict[str, Any], state: State | None) -> None:
        """Writes a line of metrics; if a state is given, its figures and pictures too."""
        if not self.leads:
            return
        if state is not None:
            line = joined(line, numbers(self.task.evaluate(state), "evaluate"))
            self.draw(state, line["step"])
        with self.metrics.open("a") as file:
            file.write(as_json(line) + "\n")
        self.latest = line
        self.show(line)

    def draw(self, state: State, step: int) -> None:
        """Writes the pictures of a step."""
        for name, picture in self.task.pictures(state).items():
            folder = self.run / "pictures"
            folder.mkdir(exist_ok=True)
            pictures.save(folder / f"{name}-{step:06d}.png", picture)

    def show(self, line: dict[str, Any]) -> None:
        """Shows a line of metrics where one looks while the run goes on."""
        if self.tensorboard is not None:
            for name, value in line.items():
                self.tensorboard.add_scalar(name, value, line["step"])
            self.tensorboard.flush()
        self.bar.update(self.row, note=f"loss {line['loss']:.5g}")
        if not self.console.is_terminal:  # where the bar is shown only once it stops
            self.console.print(as_json(line))

    def stopped(self, number: int, step: int) -> None:
        """Says what a signal has led to."""
        name = signal.Signals(number).name
        self.console.print(f"{name}: stopped and saved after step {step}; go on with --resume")

    def summary(self, state: State) -> None:
        """Writes what has come out of the run, and shows it."""
        if not self.leads:
            return
        self.bar.stop()
        summary = {
            **self.latest,
            **numbers(self.task.baselines(), "baselines"),
            "constraints": constraint_report(self.task, state),
            "config": configs.to_table(self.config),
        }
        self.console.print(f"{summary['step']} steps in {summary['seconds']:.0f} s")
        for name, value in summary.items():
            if isinstance(value, float) and name != "seconds":
                self.console.print(f"  {name}: {value:.5g}")
        for check in summary["constraints"]:
            verdict = VERDICTS[check["satisfied"]]
            self.console.print(
                f"  {check['path']}: {check['constraint']} {verdict}: {check['detail']}"
            )
        for drawn in sorted(self.run.glob(f"pictures/*-{summary['step']:06d}.png")):
            path = self.run / f"{drawn.stem.rpartition('-')[0]}.png"
            shutil.copyfile(drawn, path)
            self.console.print(f"picture: {path}")
        (self.run / "summary.json").write_text(as_json(summary, indent=2) + "\n")

    def close(self) -> None:
        """Takes the bar away."""
        self.bar.stop()
        if self.tensorboard is not None:
            self.tensorboard.close()


def numbers(figures: Figures, method: str) -> Figures:
    """Figures as floats, of whatever library's scalars a task's method has returned.

    Raises:
      TypeError: for one that is no number.

    >>> numbers({"norm": jax.numpy.float32(0.5), "count": 3}, "evaluate")
    {'norm': 0.5, 'count': 3.0}
    """
    floats = {}
    for name, value in figures.items():
        try:
            floats[name] = float(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{method}() must return a number for every figure, got {value!r} for {name!r}"
            ) from error
    return floats


def as_json(table: dict[str, Any], indent: int | None = None) -> str:
    """A table as JSON, which has no numbers that are not finite: they become null.

    >>> as_json({"step": 3, "error": float("nan")})
    '{"step": 3, "error": null}'
    """
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in table.items()
    }
    return json.dumps(finite, indent=indent)


def joined(line: dict[str, Any], figures: Figures) -> dict[str, Any]:
    """A line of metrics with more figures.

    Raises:
      ValueError: if one of them has the name of another.

    >>> joined({"step": 3, "loss": 0.5}, {"error": 0.1})
    {'step': 3, 'loss': 0.5, 'error': 0.1}
    """
    if twice := line.keys() & figures.keys():
        raise ValueError(f"evaluate() must return figures of other names than {sorted(twice)}")
    return line | figures


def read_lines(path: Path, last: int) -> list[dict[str, Any]]:
    """The lines of metrics up to a step; one that is incomplete is left out.

    Raises:
      MetricsError: for another line that is none of metrics.
    """
    *texts, _ = (path.read_bytes() if path.exists() else b"").split(b"\n")
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            if line["step"] <= last:
                lines.append(line)
        except (ValueError, TypeError, LookupError) as error:
            raise MetricsError(
                f"{path}: line {number} must hold metrics as JSON, `step` among them, "
                f"got {text.decode(errors='replace').strip()!r:.80}"
            ) from error
    return lines


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Replaces what the file holds by the lines, all at once."""
    new = path.with_suffix(".new")
    new.write_text("".join(json.dumps(line) + "\n" for line in lines))
    new.replace(path)


def progress_bar(console: Console) -> Progress:
    """A bar with the steps done, the rate, the time left, and a note."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )
