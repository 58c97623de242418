"""The autoencoder and the configs: what they refuse, that it learns, that constraints hold."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Optional

import jax
import numpy as np
import pytest
from PIL import Image

import autoencoder
import config as configs
import digits
import pictures
import train
from upconv import constraints, regularizers

pytestmark = pytest.mark.program

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "configs" / "digits_autoencoder.toml"
# Small enough to compile and train in seconds.
SMALL = {
    "model.latent": "8",
    "model.features": ("4", "8"),
    "data.heldout": "500",
    "train.batch-size": "32",
}


def arguments(path: Path, **overrides: Any) -> list[str]:
    """What would be typed, with `section__key` for `--section.key`."""
    options = SMALL | {name.replace("__", "."): value for name, value in overrides.items()}
    typed = [str(path)]
    for name, value in options.items():
        typed += [f"--{name}", *(value if isinstance(value, tuple) else (str(value),))]
    return typed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run in which the constraint has work to do."""
    run = tmp_path_factory.mktemp("run")
    overrides = {
        "train__steps": 120,
        "train__log-every": 30,
        "train__evaluate-every": 60,
        "optimizer__learning-rate": 0.02,
        "model__kernel-constraint": "MaxNorm(max_value=1.5, axis=(0, 1, 3))",
    }
    assert train.main(arguments(DIGITS, run=run, **overrides)) == 0
    return run


def test_training_reduces_the_loss(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [30, 60, 90, 120]
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    split = digits.load(heldout=500, seed=0)
    mean_image_error = np.mean((split.train.mean(axis=0) - split.heldout) ** 2)
    assert ["heldout_error" in line for line in lines] == [False, True, False, True]
    assert lines[-1]["heldout_error"] < 0.85 * mean_image_error
    assert lines[-1]["penalty"] > 0


def test_the_summary_repeats_the_last_metrics_and_compares_with_pca(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert {key: summary[key] for key in last} == last
    assert summary["ratio"] == pytest.approx(summary["heldout_error"] / summary["pca_error"])
    split = digits.load(heldout=500, seed=0)
    expected = pca_error_by_svd(split, components=8)
    assert summary["pca_error"] == pytest.approx(expected, rel=1e-3)


def pca_error_by_svd(split: digits.Split, components: int) -> float:
    """What the right singular vectors of least weight hold is what PCA loses."""
    train_rows = split.train.reshape(len(split.train), -1).astype(np.float64)
    mean = train_rows.mean(axis=0)
    lost = np.linalg.svd(train_rows - mean, full_matrices=False)[2][components:]
    rows = split.heldout.reshape(len(split.heldout), -1) - mean
    return float(np.mean(np.sum((rows @ lost.T) ** 2, axis=1)) / rows.shape[1])


def test_the_constraint_holds_and_had_work_to_do(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    checks = {check["path"]: check for check in summary["constraints"]}
    assert set(checks) == {"decoder/up1/kernel", "decoder/up2/kernel"}
    assert all(check["satisfied"] for check in checks.values())
    assert any(" 0 of" not in check["detail"] for check in checks.values())


def test_the_picture_shows_the_heldout_digits_above_reconstructions(trained: Path) -> None:
    split = digits.load(heldout=500, seed=0)
    with Image.open(trained / "reconstructions.png") as image:
        pixels = np.asarray(image).astype(np.float32)[::2, ::2] / 255.0
    originals = split.heldout[: autoencoder.COLUMNS, ..., 0]
    height, gap = 28, 2
    for column, original in enumerate(originals):
        left = gap + column * (28 + gap)
        top, middle, bottom = (pixels[y : y + height, left : left + 28] for y in (2, 32, 62))
        np.testing.assert_allclose(top, original, atol=1 / 255)
        assert 0 < np.mean((middle - original) ** 2) < 0.15
        assert 0 < np.mean((bottom - original) ** 2) < 0.15


@pytest.mark.long
def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    def losses(name: str) -> list[float]:
        run = tmp_path / name
        options = {"train__steps": 4, "train__log-every": 1, "train__seed": 3}
        assert train.main(arguments(DIGITS, run=run, **options)) == 0
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    assert losses("second") == losses("first")


BAD_FILES = [
    ("[train]\nstep = 3", "train.step"),
    ("[trian]\nsteps = 3", "trian"),
    ("[train]\nsteps = '3'", "train.steps"),
    ("[train]\nsteps = true", "train.steps"),
    ("[train]\nsteps = 3.0", "train.steps"),
    ("[train]\nsteps = 0", "train.steps"),
    ("[train]\nseed = -1", "train.seed"),
    ("[train]\nseed = 9223372036854775808", "train.seed: must be from 0 to below 2**63"),
    ("train = 3", "train"),
    ("run = 'here'", "run: is of one run; give it as --run"),
    ("overwrite = true", "overwrite: is of one run; give it as --overwrite"),
    ("resume = false", "resume: is of one run; give it as --resume"),
    ("[model]\nfeatures = 8", "model.features"),
    ("[model]\nfeatures = [8, '4']", "model.features[1]"),
    ("[model]\nfeatures = []", "model.features"),
    ("[model]\nfeatures = [4, 4, 4]", "model.features"),
    ("[model]\nkernel_constraint = 'MaxNrom(2.0)'", "model.kernel_constraint"),
    ("[model]\nkernel_constraint = 'MaxNorm'", "model.kernel_constraint"),
    ("[model]\nkernel_constraint = 'MaxNorm(nrm=2.0)'", "model.kernel_constraint"),
    ("[model]\nkernel_constraint = 'MaxNorm(-2.0)'", "model.kernel_constraint"),
    ("[model]\nkernel_constraint = 'MaxNorm(open(\"x\"))'", "model.kernel_constraint"),
    ("[model]\nkernel_constraint = 'L2(1e-3)'", "model.kernel_constraint"),
    (
        "[model]\nkernel_constraint = 'MaxNorm(axis=(0, 1, 7))'",
        "axis=(0, 1, 7)) cannot be applied to 'decoder/up1/kernel', whose shape is (4, 4, 24, 48)",
    ),
    ("[model]\nkernel_constraint = 'MaxNorm(axis=(0, -4))'", "model.kernel_constraint"),
    ("[model]\nkernel_regularizer = 'MaxNorm(2.0)'", "model.kernel_regularizer"),
    ("[optimizer]\nlearning_rate = nan", "optimizer.learning_rate"),
    ("[optimizer]\nlearning_rate = false", "optimizer.learning_rate"),
    ("[data]\nheldout = 1001", "data.heldout"),
    ("[data]\nheldout = 5000", "data.heldout"),
    ("[data]\nshift = -1", "data.shift"),
    ("[data]\nshift = 28", "data.shift: must be from 0 to 27, got 28"),
    ("steps = \nrun = 3", "line 2"),
    ("\ud800", "utf-8"),
    ("task = 'autoencodr'", "task: expected one of autoencoder, gan"),
    ("task = 3", "task"),
    ("task = 'gan'\n[model]\nfeatures = [8, 4, 2]", "model.features: expected array of 2 entries"),
    ("task = 'gan'\n[model]\nfeatures = [1]", "model.features: expected array of 2 entries"),
    ("task = 'gan'\n[model]\nfeatures = [8, '4']", "model.features[1]: expected int"),
    ("[train]\ncompute_dtype = 'float16'", "train.compute_dtype"),
    ("[train]\ntensorboard = 1", "train.tensorboard"),
    ("[train]\nevaluate_every = 0", "train.evaluate_every"),
    ("[train]\nbatch_size = 0", "train.batch_size"),
]


@pytest.mark.parametrize(("text", "key"), BAD_FILES, ids=[repr(text) for text, _ in BAD_FILES])
def test_a_bad_config_is_refused_by_file_and_key(
    text: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.toml"
    if not text.startswith("task"):
        text = f"task = 'autoencoder'\n{text}"
    path.write_bytes(text.encode(errors="surrogatepass"))
    assert train.main([str(path)]) == 2
    message = capsys.readouterr().err
    assert str(path) in message
    assert key in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    "override",
    [
        ["--train.step", "3"],
        ["--train.steps", "three"],
        ["train.steps=3"],
    ],
    ids=" ".join,
)
def test_an_override_that_cannot_be_read_is_refused_by_name(
    override: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        train.main([str(DIGITS), *override])
    assert stop.value.code == 2
    assert override[0].removeprefix("--").split(".")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["--train.steps", "0"], "train.steps: must be positive, got 0"),
        (["--run", ""], "run: must be the name of a folder, got ''"),
        (["--data.heldout", "0"], "data.heldout: must be positive, got 0"),
        (["--model.kernel-constraint", "MaxNrom(2.0)"], "model.kernel_constraint: expected NAME"),
        # These only the data tell.
        (
            ["--data.heldout", "1001"],
            "data.heldout: must be a multiple of 10 (one per class) from 10 to 4990, got 1001",
        ),
        (["--model.features=4", "4", "4"], "model.features: 3 halvings need"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_override_that_means_nothing_is_refused_as_what_it_is(
    override: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its key alone, once: the config's file is not at fault."""
    assert train.main([str(DIGITS), *override]) == 2
    assert capsys.readouterr().err.startswith(f"train.py: {message}")


def test_a_file_is_at_fault_whatever_else_is_overridden(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("task = 'autoencoder'\n[data]\nheldout = 5000")
    assert train.main([str(path), "--data.shift", "2", "--run", "data.heldout"]) == 2
    assert capsys.readouterr().err.startswith(f"train.py: {path}: data.heldout: must be")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"NUM_PROCESSES": "abc"}, "JAX_NUM_PROCESSES: must be an integer, got 'abc'"),
        (
            {"NUM_PROCESSES": "2", "PROCESS_ID": "1.0"},
            "JAX_PROCESS_ID: must be an integer, got '1.0'",
        ),
        (
            {"NUM_PROCESSES": "2", "PROCESS_ID": "2"},
            "JAX_COORDINATOR_ADDRESS: cannot join the processes at 127.0.0.1:1: 2 is one too many",
        ),
        (
            {"COORDINATOR_ADDRESS": "127.0.0.1"},
            "JAX_COORDINATOR_ADDRESS: must be HOST:PORT, got '127.0.0.1'",
        ),
    ],
    ids=str,
)
def test_hosts_that_cannot_be_joined_are_refused(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in {"COORDINATOR_ADDRESS": "127.0.0.1:1", **variables}.items():
        monkeypatch.setenv(f"JAX_{name}", value)

    def initialize(num_processes: int, process_id: int) -> None:
        assert num_processes == process_id == 2
        raise ValueError("2 is one too many")  # the real one asks first whether JAX is in use

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    assert train.main([str(DIGITS)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"train.py: {message}")
    assert error.count("\n") == 1


def test_options_come_after_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--train.steps", "2", str(DIGITS)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("train.py: name a config before the options, got '--train.step")


@pytest.mark.parametrize("argv", [[], ["no/such.toml"]], ids=["none", "missing"])
def test_a_missing_config_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(argv) == 2
    assert (argv or ["configs/digits_autoencoder.toml"])[0] in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], [str(DIGITS), "--help"]], ids=["bare", "config"])
def test_help_lists_the_keys(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        train.main(argv)
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    config = configs.Config if argv == ["--help"] else autoencoder.Config
    for section in dataclasses.fields(config):
        assert (f"--{section.name}" in shown) == (section.name != "task")
    assert "`train.py CONFIG --help` lists all keys of that config" in " ".join(shown.split())
    assert re.search(r"--run STR +The folder to write to", shown)  # `None` is no folder


def test_overrides_replace_what_the_file_says() -> None:
    overrides = ["--train.steps", "7", "--model.features", "3", "5", "--optimizer.learning-rate=1"]
    config = configs.from_command_line([str(DIGITS), *overrides], description="")
    loaded = configs.load(DIGITS)
    assert isinstance(config, autoencoder.Config)
    assert isinstance(loaded, autoencoder.Config)
    assert (config.train.steps, config.model.features) == (7, (3, 5))
    assert config.optimizer.learning_rate == 1.0
    assert config.model.kernel_constraint == loaded.model.kernel_constraint
    assert config.run == str(Path("runs") / "digits_autoencoder")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.stem)
def test_every_config_loads_and_says_how_to_run_it(path: Path) -> None:
    configs.load(path)
    first = path.read_text().splitlines()[0]
    assert first == f"# python examples/train.py {path.relative_to(ROOT)}"


@dataclasses.dataclass(frozen=True)
class Kinds(configs.Config):
    """Every kind of annotation, and some that say too little."""

    optional: Optional[float] = None  # noqa: UP045
    name: tuple[int, ...] | None = None
    choice: Literal["a", 1, True] = "a"
    either: int | float = 0
    several: int | str | None = None
    items: list[int] = dataclasses.field(default_factory=list)
    table: dict[str, int] = dataclasses.field(default_factory=dict)
    anything: Any = None
    bare: tuple = ()


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "TASKS", ("kinds",))
    monkeypatch.setitem(sys.modules, "kinds", SimpleNamespace(Config=Kinds))


@pytest.mark.usefixtures("kinds")
@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optional", None, None),
        ("optional", 2, 2.0),
        ("name", [1, 2], (1, 2)),
        ("name", None, None),
        ("choice", "a", "a"),
        ("choice", 1, 1),
        ("choice", True, True),
    ],
)
def test_a_value_may_be_optional_or_one_of_some(key: str, value: Any, expected: Any) -> None:
    found = getattr(configs.from_table({"task": "kinds", key: value}), key)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.usefixtures("kinds")
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optional", "a", "optional: expected float, got str 'a'"),
        ("name", [1, "2"], r"name\[1\]: expected int, got str '2'"),
        ("choice", 1.0, "choice: expected one of 'a', 1, True, got float 1.0"),
        ("choice", False, "choice: expected one of 'a', 1, True, got bool False"),
    ],
)
def test_a_value_that_is_none_of_them_is_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(configs.ConfigError, match=f"^{message}"):
        configs.from_table({"task": "kinds", key: value})


@pytest.mark.usefixtures("kinds")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("items", [1]),
        ("table", {"a": 1}),
        ("anything", 1),
        ("bare", [1]),
        ("either", 1),
        ("several", None),
    ],
)
def test_an_annotation_that_cannot_be_checked_is_refused(key: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{key}: unsupported annotation"):
        configs.from_table({"task": "kinds", key: value})


def test_a_file_may_begin_with_the_mark_of_its_encoding(tmp_path: Path) -> None:
    path = tmp_path / "marked.toml"
    path.write_text("task = 'autoencoder'\n", encoding="utf-8-sig")
    assert configs.load(path).task == "autoencoder"


@pytest.mark.parametrize(
    "text", ["L2(l2=1, l2=2)", "L2(**{'l2': 3})", "L2(1, **{})", "L2(l2=nan)", "L2(l2=2 * 3)"]
)
def test_arguments_that_say_two_things_or_are_no_literals_are_refused(text: str) -> None:
    rule = r"expected NAME\(KEY=VALUE, \.\.\.\) .* and each VALUE a Python literal; got "
    with pytest.raises(ValueError, match=rule):
        configs.declared(text, regularizers)


def test_the_map_of_the_folder_has_every_file_once() -> None:
    text = (ROOT / "examples" / "README.md").read_text()
    found = sorted(re.findall(r"\[`(\w+\.py)`\]\(\1\)", text))
    assert found == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def test_declared_objects_are_those_of_the_library() -> None:
    config = configs.load(DIGITS)
    assert isinstance(config, autoencoder.Config)
    assert config.model.constraint() == constraints.MaxNorm(1.5, axis=(0, 1, 3))
    assert configs.declared("L1L2(l1=0.5, l2=2)", regularizers) == regularizers.L1L2(0.5, 2)
    assert configs.declared("NonNeg()", constraints) == constraints.NonNeg()
    assert configs.declared(None, constraints) is None


def test_the_split_is_of_whole_classes_disjoint_and_decided_by_the_seed() -> None:
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.repeat([2, 3, 5], [7, 9, 8]))
    # Every image tells which one it is.
    images = np.arange(24, dtype=np.float32).reshape(24, 1, 1, 1)
    split = digits.split_by_class(images, labels, heldout=6, seed=0)
    held, kept = split.heldout.ravel().astype(int), split.train.ravel().astype(int)
    assert sorted([*held, *kept]) == list(range(24))
    assert sorted(labels[held]) == [2, 2, 3, 3, 5, 5]
    again = digits.split_by_class(images, labels, heldout=6, seed=0)
    np.testing.assert_array_equal(again.heldout, split.heldout)
    np.testing.assert_array_equal(again.train, split.train)
    other = digits.split_by_class(images, labels, heldout=6, seed=1)
    assert not np.array_equal(other.heldout, split.heldout)


def test_the_digits_are_what_the_examples_expect() -> None:
    split = digits.load(heldout=1000)
    assert split.train.shape == (4000, 28, 28, 1)
    assert split.heldout.shape == (1000, 28, 28, 1)
    assert split.train.dtype == split.heldout.dtype == np.float32
    assert (split.train.min(), split.train.max()) == (0.0, 1.0)


def test_samples_are_shifted_images(rng: np.random.Generator) -> None:
    images = np.asarray(rng.uniform(0.1, 1.0, size=(3, 5, 4, 2)), np.float32)
    batch = digits.sample(np.random.default_rng(0), images, 64, shift=1)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    possible = {
        padded[n, y : y + 5, x : x + 4].tobytes(): (n, y, x)
        for n in range(3)
        for y in range(3)
        for x in range(3)
    }
    drawn = {possible[image.tobytes()] for image in batch}  # a KeyError if it is none of them
    assert len(drawn) > 15
    still = digits.sample(np.random.default_rng(0), images, 8)
    assert {image.tobytes() for image in still} <= {image.tobytes() for image in images}


def test_the_grid_keeps_every_image_in_its_place(rng: np.random.Generator) -> None:
    rows = [rng.uniform(-0.2, 1.2, size=(3, 4, 5, 1)) for _ in range(2)]
    picture = pictures.grid(rows, gap=2)
    assert picture.shape == (2 + 2 * (4 + 2), 2 + 3 * (5 + 2))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            shown = picture[2 + 6 * y : 6 + 6 * y, 2 + 7 * x : 7 + 7 * x]
            expected = np.round(255 * np.clip(image[..., 0], 0, 1))
            np.testing.assert_array_equal(shown, expected)
    assert (picture[:2] == 255).all()
    assert (picture[:, -2:] == 255).all()
