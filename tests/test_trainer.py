"""The trainer: what it keeps, what it goes on from, when it stops, and what it refuses."""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

import checkpoint
import config as configs
import folder
import task
import toy
import train
from upconv import constraints
from upconv.rules import Rule

pytestmark = pytest.mark.program

CONFIG = """\
task = "toy"
[train]
steps = 24
batch_size = 8
log_every = 5
evaluate_every = 10
checkpoint_every = 6
"""


@pytest.fixture(autouse=True)
def toy_is_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "TASKS", (*configs.TASKS, "toy"))
    monkeypatch.setitem(sys.modules, "toy", toy)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "toy.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def whole(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "TASKS", ("toy",))
        patch.setitem(sys.modules, "toy", toy)
        assert train.main([str(path), "--run", str(run)]) == 0
    return run


def lines(run: Path) -> list[dict[str, float]]:
    """The metrics, less the time that they took."""
    parsed = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in parsed]


def saved(run: Path, **config: Any) -> Any:
    """The state in the newest checkpoint, as numpy arrays."""
    init = toy.build(toy.Config("toy", **config)).init
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.eval_shape(jax.jit(init, out_shardings=here), jax.random.key(0))
    saved = checkpoint.Checkpoints(run, read_only=True)
    return jax.tree.map(np.asarray, saved.restore(like))


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def write(root: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def summary(run: Path) -> dict[str, Any]:
    """What has come out of a run, less the time and the config."""
    parsed = json.loads((run / "summary.json").read_text())
    return {key: value for key, value in parsed.items() if key not in ("seconds", "config")}


def assert_same_run(run: Path, whole: Path) -> None:
    """Bit by bit, but for the time."""
    assert lines(run) == lines(whole)
    jax.tree.map(np.testing.assert_array_equal, saved(run), saved(whole))
    assert summary(run) == summary(whole)
    pictures = sorted(p.name for p in (whole / "pictures").iterdir())
    assert sorted(p.name for p in (run / "pictures").iterdir()) == pictures
    for name in pictures:
        assert (run / "pictures" / name).read_bytes() == (whole / "pictures" / name).read_bytes()


def test_a_run_leaves_what_it_promises(whole: Path) -> None:
    assert [line["step"] for line in lines(whole)] == [5, 10, 15, 20, 24]
    assert ["error" in line for line in lines(whole)] == [False, True, False, True, True]
    assert lines(whole)[-1]["loss"] < 0.65 * lines(whole)[0]["loss"]
    names = {p.name for p in (whole / "pictures").iterdir()}
    assert names == {f"kernel-{step:06d}.png" for step in (10, 20, 24)}
    with Image.open(whole / "kernel.png") as image:
        assert image.size == (3, 3)
    assert {p.name for p in (whole / "checkpoints").iterdir()} == {"18", "24"}
    found = summary(whole)
    assert {k: v for k, v in found.items() if k in lines(whole)[-1]} == lines(whole)[-1]
    assert found["zero_error"] > found["error"]
    (check,) = found["constraints"]
    assert check["satisfied"]
    assert " 0 of" not in check["detail"]


def test_the_means_are_of_the_steps_since_the_line_before(path: Path, tmp_path: Path) -> None:
    assert train.main([str(path), "--run", str(tmp_path), "--train.log-every", "1"]) == 0
    losses = [line["loss"] for line in lines(tmp_path)]
    again = tmp_path / "again"
    assert train.main([str(path), "--run", str(again), "--train.log-every", "9"]) == 0
    steps = [0, 9, 10, 18, 20, 24]
    for line, first, last in zip(lines(again), steps, steps[1:], strict=False):
        assert line["step"] == last
        assert line["loss"] == pytest.approx(np.mean(losses[first:last]), rel=1e-12)


def interrupt(monkeypatch: pytest.MonkeyPatch, number: int, *, at: int) -> None:
    """Send a signal while the batch of a step is drawn."""
    draw = train.draw

    def interrupted(config: Any, task: Any, mesh: Any, step: int) -> Any:
        if step == at:
            signal.raise_signal(number)
        return draw(config, task, mesh, step)

    monkeypatch.setattr(train, "draw", interrupted)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_resuming_changes_no_bit(
    name: str, path: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    number = signal.Signals[name]
    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        interrupt(patch, number, at=15)
        assert train.main([str(path), "--run", str(tmp_path)]) == 128 + number
    assert signal.getsignal(number) is handler
    assert f"{name}: stopped and saved after step 14" in capsys.readouterr().out
    assert not (tmp_path / "summary.json").exists()
    assert train.main([str(path), "--run", str(tmp_path), "--resume"]) == 0
    assert "going on after step 14" in capsys.readouterr().out
    assert_same_run(tmp_path, whole)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT does what it does at a terminal: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    "moment", [(configs, "from_command_line"), (train, "build")], ids=["config", "task"]
)
def test_a_signal_during_start_up_changes_nothing(
    moment: tuple[Any, str], path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    module, name = moment
    function = getattr(module, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, interrupted)
    before = contents(whole)
    status = train.main([str(path), "--run", str(whole), "--overwrite"])
    assert status == 128 + signal.SIGINT
    assert contents(whole) == before
    assert capsys.readouterr().out == "SIGINT: stopped before the first step; nothing was written\n"


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_signal_does_what_it_always_did(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = train.draw

    def impatient(*args: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return draw(*args)

    monkeypatch.setattr(train, "draw", impatient)
    with pytest.raises(KeyboardInterrupt):
        train.main([str(path), "--run", str(tmp_path)])


def start(path: Path, run: Path, *options: str, kill: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", toy.__file__, str(path), "--run", str(run), *options]
    return subprocess.run(
        command,
        env={**os.environ, "KILL": kill, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )  # fmt: skip


def test_killed_between_and_during_checkpoints_it_goes_on_to_the_same_bits(
    path: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # Between: two lines after the checkpoint of step 6 come again. During: that of step 12 is lost.
    for kill, options in (("batch:12", []), ("save:12", ["--resume"])):
        done = start(path, run, *options, kill=kill)
        assert done.returncode == -signal.SIGKILL, done.stderr
        complete = {p.name for p in (run / "checkpoints").iterdir() if p.name.isdecimal()}
        assert complete == {"6"}
        assert lines(run)[-1]["step"] == 10
    assert {p.name for p in (run / "checkpoints").iterdir()} > {"6"}  # what was left half-written
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "lo')  # killed while a line was written
    done = start(path, run, "--resume")
    assert done.returncode == 0, done.stderr
    assert "going on after step 6" in done.stdout
    assert_same_run(run, whole)


def test_killed_during_the_first_checkpoint_there_is_nothing_to_keep(
    path: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert start(path, run, kill="save:6").returncode == -signal.SIGKILL
    (left,) = (run / "checkpoints").iterdir()
    assert not left.name.isdecimal()
    argv = [str(path), "--run", str(run)]
    assert "no checkpoint there" in refuses([*argv, "--resume"], run, capsys)
    assert "holds the results of a run" in refuses(argv, run, capsys)  # the line of step 5
    assert train.main([*argv, "--overwrite"]) == 0
    assert_same_run(run, whole)


@pytest.mark.parametrize("left", ["summary.json", "metrics.jsonl"])
def test_results_without_checkpoints_are_not_overwritten_unless_told(
    left: str, path: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in (folder.MARK, left):
        shutil.copy(whole / name, run)
    argv = [str(path), "--run", str(run)]
    message = refuses(argv, run, capsys)
    assert f"{run} holds the results of a run, but no checkpoint to go on from" in message
    assert "--overwrite" in message
    assert train.main([*argv, "--overwrite", "--train.steps", "3"]) == 0


def test_resuming_where_nothing_can_be_written_is_refused(
    path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    temporary = folder.TemporaryFile

    def denied(**where: Path) -> Any:  # what permissions do to everyone but root
        if where["dir"] == whole / "checkpoints":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return temporary(**where)

    monkeypatch.setattr(folder, "TemporaryFile", denied)
    message = refuses([str(path), "--run", str(whole), "--resume"], whole, capsys)
    assert message == f"train.py: run: {whole} cannot be used as a folder: Permission denied\n"


def test_resuming_what_is_finished_repeats_the_summary(
    path: Path, whole: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "summary.json").unlink()
    assert train.main([str(path), "--run", str(run), "--resume"]) == 0
    assert_same_run(run, whole)


@pytest.mark.parametrize("text", [b"garbage", b"[1, 2]", b"{}", b'{"step": "5"}', b"\xff"], ids=str)
def test_a_line_that_is_none_of_metrics_is_refused(
    text: bytes, path: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    file = run / "metrics.jsonl"
    first, *rest = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([first, text + b"\n", *rest]))
    message = refuses([str(path), "--run", str(run), "--resume"], run, capsys)
    assert f"{file}: line 2 must hold metrics as JSON, `step` among them, got " in message


@pytest.mark.parametrize("left", [0, 4])
def test_the_last_line_is_written_again_if_it_is_missing(
    left: int, path: Path, whole: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    file = run / "metrics.jsonl"
    kept = file.read_bytes().splitlines(keepends=True)[:left]
    file.write_bytes(b"".join(kept)) if left else file.unlink()
    assert train.main([str(path), "--run", str(run), "--resume"]) == 0
    assert lines(run) == [*lines(whole)[:left], lines(whole)[-1]]
    assert summary(run) == summary(whole)


@pytest.mark.parametrize("every", [5, 7], ids=["a line was written", "no line was written"])
def test_a_step_that_becomes_the_last_is_evaluated(
    every: int, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after step 15, which is not the last of 24, and resumed with no more than 15."""
    options = ["--train.log-every", str(every)]
    expected, run = tmp_path / "expected", tmp_path / "run"
    argv = [str(path), *options, "--run"]
    assert train.main([*argv, str(expected), "--train.steps", "15"]) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, signal.SIGTERM, at=16)
        assert train.main([*argv, str(run)]) == 128 + signal.SIGTERM
    assert "error" not in lines(run)[-1]
    assert train.main([*argv, str(run), "--resume", "--train.steps", "15"]) == 0
    assert lines(run)[-1]["step"] == 15
    assert_same_run(run, expected)


def test_figures_may_not_take_the_place_of_metrics(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy.Toy, "evaluate", lambda self, state: {"loss": 0.0})
    with pytest.raises(ValueError, match=r"other names than \['loss'\]"):
        train.main([str(path), "--run", str(tmp_path)])


def test_figures_may_be_scalars_of_any_library(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And of any value, though JSON has only finite numbers."""
    figures = {"norm": jax.numpy.float32(0.5), "none": np.float32("nan"), "count": np.int64(3)}
    monkeypatch.setattr(toy.Toy, "evaluate", lambda self, state: figures)
    monkeypatch.setattr(toy.Toy, "baselines", lambda self: {"zero": np.mean(np.float32(3))})
    argv = [str(path), "--run", str(tmp_path), "--train.steps", "2"]
    assert train.main(argv) == 0
    for text in ((tmp_path / "metrics.jsonl").read_text(), (tmp_path / "summary.json").read_text()):
        found = json.loads(text, parse_constant=pytest.fail)
        assert {key: found[key] for key in figures} == {"norm": 0.5, "none": None, "count": 3.0}
    assert found["zero"] == 3.0
    assert "  none: nan\n" in capsys.readouterr().out
    monkeypatch.setattr(toy.Toy, "evaluate", lambda self, state: {"norm": np.ones(2)})
    with pytest.raises(TypeError, match=r"evaluate\(\) must return .* array.* for 'norm'"):
        train.main([*argv, "--overwrite"])


def test_the_log_has_words_as_they_are_and_the_metrics(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    about = ["crops [small, large]", "[/tmp] :cat: [bold]"]  # rich would read these in its way
    init = toy.Toy.__init__

    def talking(self: Any, config: Any) -> None:
        init(self, config)
        self.about = about

    monkeypatch.setattr(toy.Toy, "__init__", talking)
    run = tmp_path / "r[lr=3]"
    assert train.main([str(path), "--run", str(run)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == about
    assert f"picture: {run / 'kernel.png'}" in told
    for line in (run / "metrics.jsonl").read_text().splitlines():
        assert line in told


def test_pictures_are_made_once_for_each_evaluation(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may take minutes."""
    made: list[Any] = []
    draw = toy.Toy.pictures
    monkeypatch.setattr(toy.Toy, "pictures", lambda *args: made.append(args) or draw(*args))
    assert train.main([str(path), "--run", str(tmp_path)]) == 0
    assert len(made) == 3
    last = tmp_path / "pictures" / "kernel-000024.png"
    assert (tmp_path / "kernel.png").read_bytes() == last.read_bytes()


def test_more_steps_may_be_taken_on_resuming(
    path: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    options = ["--run", str(run), "--resume", "--train.steps"]
    assert train.main([str(path), *options, "30"]) == 0
    told = (
        "train.steps was 24 and is 30: schedules, such as the learning rate's, now end at step 30"
    )
    assert told in capsys.readouterr().out
    assert train.main([str(path), *options, "30"]) == 0
    assert "schedules" not in capsys.readouterr().out
    assert lines(run)[:5] == lines(whole)
    assert [line["step"] for line in lines(run)] == [5, 10, 15, 20, 24, 25, 30]
    assert train.main([str(path), *options, "20"]) == 2


def test_saving_in_the_background_sees_the_state_of_its_step(tmp_path: Path) -> None:
    """Later steps are given the state's buffers; none may be written over before it is saved."""
    big = jax.numpy.arange(2.0**20)
    with_one = jax.jit(lambda x: x + 1, donate_argnums=0)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    for step in range(3):
        expected = np.array(big)
        checkpoints.save(step, {"x": big}, {})
        for _ in range(5):
            big = with_one(big)
        restored = checkpoints.restore({"x": jax.ShapeDtypeStruct(big.shape, big.dtype)})
        np.testing.assert_array_equal(restored["x"], expected)
    checkpoints.close()


def test_a_loss_that_is_no_number_stops_and_leaves_the_last_good_checkpoint(
    path: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    draw = train.draw

    def spoilt(config: Any, task: Any, mesh: Any, step: int) -> Any:
        return draw(config, task, mesh, step) * (np.nan if step == 15 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(train, "draw", spoilt)
        assert train.main([str(path), "--run", str(tmp_path)]) == 1
    message = capsys.readouterr().err.strip()
    assert message == "train.py: loss became nan at step 15; lower the learning rate"
    assert not (tmp_path / "summary.json").exists()
    assert train.main([str(path), "--run", str(tmp_path), "--resume"]) == 0
    assert "going on after step 12" in capsys.readouterr().out
    assert_same_run(tmp_path, whole)


def test_a_state_that_is_not_finite_is_never_saved(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = train.draw

    def spoilt(config: Any, task: Any, mesh: Any, step: int) -> Any:
        # The loss is finite, the square of its gradient is not: Adam keeps it.
        return draw(config, task, mesh, step) * (1e15 if step == 12 else 1)

    monkeypatch.setattr(train, "draw", spoilt)
    assert train.main([str(path), "--run", str(tmp_path)]) == 1
    assert "not finite after step 12" in capsys.readouterr().err
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"6"}


def refuses(argv: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a run which changes nothing says."""
    before = contents(run) if run.exists() else None
    capsys.readouterr()
    assert train.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert (contents(run) if run.exists() else None) == before
    return err


def test_a_folder_with_checkpoints_is_not_overwritten_unless_told(
    path: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    argv = [str(path), "--run", str(run)]
    message = refuses(argv, run, capsys)
    assert str(run) in message
    assert "--resume" in message
    assert "--overwrite" in message
    refuses([*argv, "--resume", "--overwrite"], run, capsys)
    assert train.main([*argv, "--overwrite", "--train.steps", "3"]) == 0
    assert [line["step"] for line in lines(run)] == [3]
    assert {p.name for p in (run / "pictures").iterdir()} == {"kernel-000003.png"}


FOREIGN = {
    "notes.txt": "mine",
    "holiday.png": "mine",
    "pictures/holiday.png": "mine",
    "pictures/holiday.jpg": "mine",
    "tensorboard/others/events.out.tfevents.1": "mine",
    "checkpoints/5-best/weights": "mine",
}


@pytest.mark.parametrize("options", [[], ["--overwrite"], ["--resume"]], ids=str)
@pytest.mark.parametrize("mark", [None, "{}", "[]", "{", '{"task": "ner", "train": {}}'])
def test_a_folder_of_others_is_refused(
    mark: str | None, options: list[str], path: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write(tmp_path, FOREIGN | {"summary.json": "{}", "metrics.jsonl": ""})
    if mark is not None:
        (tmp_path / folder.MARK).write_text(mark)
    message = refuses([str(path), "--run", str(tmp_path), *options], tmp_path, capsys)
    if options == ["--resume"]:
        assert "no checkpoint there" in message
    else:
        assert "run: must be a new folder, an empty one, or that of an earlier run" in message
        assert str(tmp_path) in message


def test_a_folder_of_links_is_refused(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What they lead to is not the run's, whatever it is called there."""
    write(tmp_path, {"mine/kernel-000003.png": "mine"})
    run = tmp_path / "run"
    run.mkdir()
    (run / "pictures").symlink_to(tmp_path / "mine")
    for options in ([], ["--overwrite"]):
        message = refuses([str(path), "--run", str(run), *options], tmp_path, capsys)
        assert "run: must be a new folder" in message


def test_overwriting_deletes_only_what_a_run_wrote(path: Path, whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    left = [
        *("checkpoints/30.orbax-checkpoint-tmp/x", "tensorboard/events.out.tfevents.1.host"),
        *("samples.png", "pictures/samples-000020.png"),  # of another task
    ]
    write(run, FOREIGN | dict.fromkeys(left, "") | {"metrics.new": ""})
    assert train.main([str(path), "--run", str(run), "--overwrite", "--train.steps", "3"]) == 0
    kept = contents(run)
    assert {name: kept[name].decode() for name in FOREIGN} == FOREIGN
    new = {name for name in kept if not name.startswith("checkpoints/3/")} - FOREIGN.keys()
    assert new == {
        *("config.json", "metrics.jsonl", "summary.json"),
        *("kernel.png", "pictures/kernel-000003.png"),
    }


def test_a_folder_is_a_run_from_its_first_moment(
    path: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before there was a checkpoint, it may be started again."""
    argv = [str(path), "--run", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(train, "begin", lambda *args: sys.exit(3))
        with pytest.raises(SystemExit):
            train.main(argv)
    assert configs.from_table(json.loads((tmp_path / folder.MARK).read_text())).task == "toy"
    assert train.main(argv) == 0
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("file", [], "Not a directory"),
        ("file", ["--overwrite"], "Not a directory"),
        ("file/new", [], "Not a directory"),
        (256 * "x", [], "File name too long"),
        (256 * "x", ["--resume"], "File name too long"),
        ("run", [], "File exists"),  # `checkpoints` does
    ],
)
def test_what_cannot_be_a_folder_is_refused(
    name: str, options: list[str], why: str, path: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / folder.MARK).write_text('{"task": "toy", "train": {}}')
    for file in ("file", "run/checkpoints"):
        (tmp_path / file).write_text("kept")
    run = tmp_path / name
    message = refuses([str(path), "--run", str(run), *options], tmp_path, capsys)
    assert message == f"train.py: run: {run} cannot be used as a folder: {why}\n"


def test_resuming_from_nothing_is_refused(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in (tmp_path / "none", tmp_path):
        message = refuses([str(path), "--run", str(run), "--resume"], run, capsys)
        assert str(run) in message
        (tmp_path / "checkpoints").mkdir(exist_ok=True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--train.seed", "3"], "train.seed is 0 there and 3 here"),
        (["--model.filters", "3"], "model.filters is 2 there and 3 here"),
        (["--train.steps", "20"], "train.steps"),
    ],
    ids=["seed", "model", "steps"],
)
def test_another_config_is_refused(
    options: list[str], told: str, path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refuses([str(path), "--run", str(whole), "--resume", *options], whole, capsys)
    assert told in message


def test_another_task_is_refused(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Path(__file__).parents[1] / "configs" / "digits_autoencoder.toml"
    message = refuses([str(other), "--run", str(whole), "--resume"], whole, capsys)
    assert message.endswith("of another config: task is 'toy' there and 'autoencoder' here\n")


def test_a_key_that_only_one_config_has_is_said_to_be_absent(path: Path, tmp_path: Path) -> None:
    """As when the task has since got one more."""
    config = configs.load(path)
    saved = configs.to_table(config)
    del saved["model"]["filters"]
    saved["model"]["depth"] = None
    different = "model.depth is None there and not here, model.filters is not there and 2 here"
    with pytest.raises(checkpoint.CheckpointError, match=f"{different}$"):
        train.check_same(saved, config, tmp_path)


def test_a_state_of_other_shape_is_refused(whole: Path) -> None:
    """As when the code of a model has changed under the same config."""
    different = r"24: of another model: \S+ is float32\[\S+\] there and float32\[\S+\] here"
    with pytest.raises(checkpoint.CheckpointError, match=str(whole)) as refused:
        saved(whole, model=toy.Model(filters=3))
    assert re.search(different, str(refused.value))


def about_files(run: Path) -> Iterator[Path]:
    yield from (p for p in (run / "checkpoints/24/about").iterdir() if "format" in p.read_text())


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"format": checkpoint.FORMAT + 1}, "its format is 3, this trainer's is 2"),
        ({"format": checkpoint.FORMAT - 1}, "its format is 1, this trainer's is 2"),
        ({"format": "1"}, "not a checkpoint of this trainer"),
        ([], "not a checkpoint of this trainer"),
    ],
    ids=["newer", "older", "string", "list"],
)
def test_another_format_is_refused(
    written: Any, told: str, path: Path, whole: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = shutil.copytree(whole, tmp_path / "run")
    (file,) = about_files(run)
    file.write_text(json.dumps(written))
    message = refuses([str(path), "--run", str(run), "--resume"], run, capsys)
    assert told in message
    assert str(run) in message


# What orbax leaves when it gives up is collected at some later time.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_truncated_checkpoint_is_refused(
    path: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever of its files is cut off; a file that is not needed may be."""
    needed = set()
    for name in contents(whole / "checkpoints" / "24"):
        run = shutil.copytree(whole, tmp_path / "run")
        file = run / "checkpoints" / "24" / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        argv = [str(path), "--run", str(run), "--resume"]
        before = contents(run)
        status = train.main(argv)
        message = capsys.readouterr().err
        if status:
            assert (status, message.count("\n")) == (2, 1), (name, message)
            assert contents(run) == before
            needed.add(name)
        else:
            assert_same_run(run, whole)
        shutil.rmtree(run)
    gc.collect()
    assert any("ocdbt" in name for name in needed)
    assert any(name.startswith("about") for name in needed)


def test_a_batch_that_the_devices_cannot_share_is_refused(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    message = refuses([str(path), "--run", str(tmp_path / "run")], tmp_path, capsys)
    assert "train.batch_size: must be divisible by the number of devices, 3, got 8" in message
    assert str(path) in message


def test_a_loss_that_differs_between_devices_is_refused_when_traced(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task, "mean", jax.numpy.mean)
    with pytest.raises(ValueError, match="devices"):
        train.main([str(path), "--run", str(tmp_path)])


def test_tensorboard_has_the_metrics(path: Path, tmp_path: Path, whole: Path) -> None:
    pytest.importorskip("tensorboardX")
    argv = [str(path), "--run", str(tmp_path), "--train.tensorboard"]
    assert train.main(argv) == 0
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert all(name.encode() in events.read_bytes() for name in lines(whole)[-1] if name != "step")


def test_tensorboard_that_is_not_installed_is_named(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    argv = [str(path), "--run", str(tmp_path / "run"), "--train.tensorboard"]
    message = refuses(argv, tmp_path, capsys)
    assert "train.tensorboard: needs the extra `tensorboard`" in message


def test_a_violated_constraint_is_reported() -> None:
    kernel = np.full((2, 2, 3, 4), 1.0, np.float32)  # every filter of norm 4
    state = toy.State({"up": {"kernel": kernel}}, None)
    made = toy.build(toy.Config("toy"))
    made.rules = {"up/kernel": Rule(constraint=constraints.MaxNorm(3.9, axis=(0, 1, 3)))}
    (check,) = task.constraint_report(made, state)
    assert not check["satisfied"]
    made.rules = {"up/kernel": Rule(constraint=constraints.MaxNorm(4.1, axis=(0, 1, 3)))}
    (check,) = task.constraint_report(made, state)
    assert check["satisfied"]
    assert "0 of 3" in check["detail"]


def test_each_slice_of_a_stacked_kernel_is_under_its_constraint_by_itself() -> None:
    """`nn.scan` stacks first along axis 2, then along axis 0 of what that gives."""
    rng = np.random.default_rng(0)
    constraint = constraints.MaxNorm(1.0, axis=(0, 1))
    slices = [np.asarray(constraint(9 * rng.normal(size=(3, 2, 4)))) for _ in range(10)]
    stacked = np.stack([np.stack(slices[:5], axis=2), np.stack(slices[5:], axis=2)])
    check = report_of(constraint, stacked, stacked_axes=(2, 0))
    assert check["satisfied"] is True
    assert check["detail"].endswith("40 of 40 at the bound")
    stacked[1, :, :, 3] *= 1.1
    check = report_of(constraint, stacked, stacked_axes=(2, 0))
    assert check["satisfied"] is False
    assert "largest norm 1.1000" in check["detail"]


def test_the_rule_at_fault_is_named_by_its_parameter() -> None:
    rules = {"up/bias": Rule(constraint=constraints.MaxNorm(1.0, axis=3))}
    with pytest.raises(configs.ConfigError, match=r"^model\.bias_constraint: MaxNorm\(.*up/bias"):
        task.fitting(rules, {"up": {"bias": np.zeros(2)}})


def report_of(constraint: Any, kernel: np.ndarray, **stacked: Any) -> dict[str, Any]:
    made = toy.build(toy.Config("toy"))
    made.rules = {"up/kernel": Rule(constraint=constraint, **stacked)}
    (check,) = task.constraint_report(made, toy.State({"up": {"kernel": kernel}}, None))
    return check


def test_a_constraint_that_goes_part_of_the_way_is_not_called_violated() -> None:
    kernel = np.full((2, 2, 3, 4), 1.0, np.float32)  # every filter of norm 4
    whole = constraints.MinMaxNorm(0.5, 1.0, axis=(0, 1, 3))
    half = constraints.MinMaxNorm(0.5, 1.0, rate=0.5, axis=(0, 1, 3))
    assert report_of(whole, kernel)["satisfied"] is False
    assert report_of(half, kernel)["satisfied"] is None
    assert report_of(half, np.asarray(half(kernel)))["satisfied"] is None
    assert report_of(half, np.asarray(whole(kernel)))["satisfied"] is True


def test_the_log_says_of_such_a_constraint_what_it_does(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    half = constraints.MinMaxNorm(0.1, 0.2, rate=0.5, axis=(0, 1, 3))
    monkeypatch.setattr(toy, "constraints", SimpleNamespace(MaxNorm=lambda *_, **__: half))
    assert train.main([str(path), "--run", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "VIOLATED" not in out
    assert "rate=0.5, axis=(0, 1, 3)) goes only part of the way each time: applying" in out
    (check,) = json.loads((tmp_path / "summary.json").read_text())["constraints"]
    assert check["satisfied"] is None
