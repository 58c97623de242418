"""examples/predict.py: a checkpoint and a picture make a better one, or one line of complaint."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import checkpoint
import photo_runs
import photos
import predict
import superres

pytestmark = pytest.mark.program

RNG = np.random.default_rng(0)
RUNS = ("superres", "denoise")
SCALE = {"superres": 3, "denoise": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of short runs, by task."""
    with photo_runs.details_held_out():
        return {
            task: photo_runs.trained(task, tmp_path_factory.mktemp(task), train__steps=30)
            for task in RUNS
        }


def picture(mode: str, width: int, height: int) -> Image.Image:
    """A piece of a photograph."""
    chelsea = Image.fromarray(photos.as_bytes(photos.training(["chelsea"])[0]))
    piece = chelsea.crop((120, 80, 120 + width, 80 + height))
    if mode == "I;16":
        return Image.fromarray(np.asarray(piece.convert("L")).astype(np.uint16) * 257)
    if mode in ("RGBA", "LA"):
        piece = piece.convert("RGB" if mode == "RGBA" else "L")
        piece.putalpha(Image.fromarray(RNG.integers(0, 256, (height, width), np.uint8)))
        return piece
    return piece.convert(mode)


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


@pytest.mark.parametrize("task", RUNS)
@pytest.mark.parametrize(
    ("mode", "size", "expected"),
    [
        ("RGB", (50, 41), "RGB"),
        ("L", (50, 41), "L"),
        ("P", (30, 20), "RGB"),
        ("RGBA", (30, 20), "RGBA"),
        ("LA", (30, 20), "RGBA"),
        ("I;16", (30, 20), "L"),
        ("1", (30, 20), "L"),
        ("RGB", (1, 1), "RGB"),
        ("RGB", (300, 7), "RGB"),
    ],
    ids=str,
)
@pytest.mark.many
def test_pictures_of_all_kinds(
    runs: dict[str, Path],
    task: str,
    mode: str,
    size: tuple[int, int],
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "cat.png"
    picture(mode, *size).save(path)
    assert predict.main([str(runs[task]), str(path)]) == 0
    result, strip = opened(tmp_path / f"cat_{task}.png"), opened(tmp_path / f"cat_{task}_strip.png")
    width, height = (SCALE[task] * length for length in size)
    assert result.size == (width, height)
    assert result.mode == expected
    shown_width, shown_height = min(width, predict.STRIP), min(height, predict.STRIP)
    assert strip.size == (2 * shown_width + 4, shown_height)
    assert f"cat_{task}.png: {width} x {height}" in capsys.readouterr().out

    colours = "L" if mode in ("L", "LA", "I;16") else "RGB"
    plain = picture(colours, *size).resize((width, height), Image.Resampling.BICUBIC)
    difference = np.asarray(result.convert(colours)).astype(float) - np.asarray(plain)
    if mode not in ("1", "P"):
        assert np.abs(difference).mean() < 12  # a photograph of the same thing


@pytest.mark.parametrize("task", RUNS)
def test_the_strip_shows_the_picture_without_the_model_and_with_it(
    runs: dict[str, Path], task: str, tmp_path: Path
) -> None:
    path = tmp_path / "cat.png"
    picture("RGB", 40, 30).save(path)
    assert predict.main([str(runs[task]), str(path), "--output", str(tmp_path / "out.png")]) == 0
    strip, result = (np.asarray(opened(tmp_path / n)) for n in ("out_strip.png", "out.png"))
    width = result.shape[1]
    np.testing.assert_array_equal(strip[:, width + 4 :], result)
    size = (SCALE[task] * 40, SCALE[task] * 30)
    plain = np.asarray(picture("RGB", 40, 30).resize(size, Image.Resampling.BICUBIC))
    assert np.abs(strip[:, :width].astype(int) - plain).max() <= 2
    assert not np.array_equal(strip[:, :width], result)


def test_added_noise_is_taken_away_again(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cat.png"
    picture("L", 60, 60).save(path)
    assert predict.main([str(runs["denoise"]), str(path), "--add-noise"]) == 0
    _, _, line = capsys.readouterr().out.splitlines()
    noisy, clean = (float(word) for word in line.split() if word[0].isdigit())
    assert noisy == pytest.approx(20.2, abs=0.4)  # sigma 25
    assert clean > noisy


def test_the_same_16_bits_in_any_file_are_the_same_picture(tmp_path: Path) -> None:
    image = picture("I;16", 20, 10)
    for name in ("cat.png", "cat.tiff", "cat.pgm"):
        image.save(tmp_path / name)
        np.testing.assert_array_equal(
            predict.read(tmp_path / name).pixels[..., 0],
            np.asarray(image).astype(np.float32) / 65535,
        )


def test_pictures_are_turned_as_the_camera_said(runs: dict[str, Path], tmp_path: Path) -> None:
    image = picture("RGB", 40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(tmp_path / "cat.png", exif=exif)
    assert predict.main([str(runs["denoise"]), str(tmp_path / "cat.png")]) == 0
    result = opened(tmp_path / "cat_denoise.png")
    assert result.size == (30, 40)
    turned = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).astype(float)
    assert np.abs(np.asarray(result) - turned).mean() < 12


def test_opacity_and_profile_are_kept(runs: dict[str, Path], tmp_path: Path) -> None:
    image = picture("RGBA", 20, 10)
    image.save(tmp_path / "cat.png", icc_profile=profile(b"RGB "))
    assert predict.main([str(runs["denoise"]), str(tmp_path / "cat.png")]) == 0
    result = opened(tmp_path / "cat_denoise.png")
    np.testing.assert_array_equal(np.asarray(result)[..., 3], np.asarray(image)[..., 3])
    assert result.info["icc_profile"] == profile(b"RGB ")


def profile(space: bytes) -> bytes:
    """As much of an ICC profile as says what it is about."""
    return 16 * b"-" + space + 108 * b"-"


@pytest.mark.parametrize(
    ("mode", "space", "kept"),
    [
        ("L", b"GRAY", True),
        ("L", b"RGB ", False),
        ("LA", b"GRAY", False),
        ("P", b"RGB ", True),
        ("CMYK", b"CMYK", False),
    ],
)
def test_a_profile_goes_where_its_colour_space_does(
    runs: dict[str, Path], mode: str, space: bytes, kept: bool, tmp_path: Path
) -> None:
    name = "cat.jpg" if mode == "CMYK" else "cat.png"
    picture(mode, 20, 10).save(tmp_path / name, icc_profile=profile(space))
    assert predict.main([str(runs["denoise"]), str(tmp_path / name)]) == 0
    found = opened(tmp_path / "cat_denoise.png").info.get("icc_profile")
    assert found == (profile(space) if kept else None)


def corrupt(folder: Path, runs: dict[str, Path]) -> list[str]:
    spoiled = folder / "spoiled"
    shutil.copytree(runs["denoise"], spoiled)
    for file in (spoiled / "checkpoints").glob("*/about/*"):
        file.write_text("{")
    return [str(spoiled), str(folder / "cat.png")]


def foreign(folder: Path, _: dict[str, Path]) -> list[str]:
    saved = checkpoint.Checkpoints(folder / "foreign")
    saved.save(1, {"x": np.zeros(1)}, {"config": {"task": "autoencoder"}})
    saved.close()
    return [str(folder / "foreign"), str(folder / "cat.png")]


def outgrown(folder: Path, _: dict[str, Path]) -> list[str]:
    saved = checkpoint.Checkpoints(folder / "outgrown")
    saved.save(1, {"x": np.zeros(1)}, {"config": {"task": "denoise", "data": {"noise": 1}}})
    saved.close()
    return [str(folder / "outgrown"), str(folder / "cat.png")]


def named(name: str, **options: str) -> Callable[[Path, dict[str, Path]], list[str]]:
    def arguments(folder: Path, runs: dict[str, Path]) -> list[str]:
        typed = [str(runs["superres"]), str(folder / name)]
        for key, value in options.items():
            typed += [f"--{key}", str(folder / value)]
        return typed

    return arguments


BAD: dict[str, tuple[Callable[[Path, dict[str, Path]], list[str]], str]] = {
    "no run": (lambda f, _: [str(f / "none"), str(f / "cat.png")], "none: no checkpoint there"),
    "no checkpoint": (lambda f, _: [str(f), str(f / "cat.png")], "no checkpoint there"),
    "spoiled checkpoint": (corrupt, "cannot be restored"),
    "another task": (foreign, "its task, autoencoder, is none that restores pictures"),
    "another version's config": (
        outgrown,
        "outgrown: its config no longer fits: data.noise: no such key",
    ),
    "no picture": (named("dog.png"), "dog.png: No such file"),
    "a folder": (named("."), "Is a directory"),
    "not a picture": (named("note.png"), "note.png: not a picture"),
    "half a picture": (named("half.png"), "half.png: "),
    "floats": (named("float.tiff"), "its pixels are floats"),
    "32-bit integers": (named("long.tiff"), "its pixels are 32-bit integers, of which no one"),
    "output exists": (named("cat.png", output="note.png"), "note.png: exists already"),
    "strip exists": (named("cat.png", output="old.png"), "old_strip.png: exists already"),
    "no folder": (named("cat.png", output="none/a.png"), "there is no folder"),
    "unknown format": (named("cat.png", output="a.xyz"), "a.xyz: Pillow writes no files"),
    "no alpha in JPEG": (named("clear.png", output="a.jpg"), "a.jpg: cannot write mode RGBA"),
    "noise for superres": (
        lambda f, runs: [str(runs["superres"]), str(f / "cat.png"), "--add-noise"],
        "--add-noise: the task of .* is superres",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_used_is_one_line(
    runs: dict[str, Path], case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("RGB", 40, 30).save(tmp_path / "cat.png")
    picture("RGBA", 40, 30).save(tmp_path / "clear.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(np.full((4, 4), 200, np.int32)).save(tmp_path / "long.tiff")
    data = (tmp_path / "cat.png").read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    for name in ("note.png", "old_strip.png"):
        (tmp_path / name).write_text("not a picture")
    arguments, message = BAD[case]
    typed = arguments(tmp_path, runs)
    before = set(tmp_path.iterdir())
    assert predict.main(typed) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("predict.py: ")
    assert re.search(message, captured.err)
    assert set(tmp_path.iterdir()) == before
    assert (tmp_path / "note.png").read_text() == "not a picture"


def test_a_file_that_cannot_have_alpha_is_refused_before_the_work(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture("RGBA", 40, 30).save(tmp_path / "cat.png")
    monkeypatch.setattr(superres.Superres, "predict", lambda *_: pytest.fail("too late"))
    typed = [str(runs["superres"]), str(tmp_path / "cat.png"), "--output"]
    assert predict.main([*typed, str(tmp_path / "a.jpg")]) == 2


def test_existing_files_are_replaced_on_request(runs: dict[str, Path], tmp_path: Path) -> None:
    picture("RGB", 8, 8).save(tmp_path / "cat.png")
    typed = [str(runs["denoise"]), str(tmp_path / "cat.png")]
    assert predict.main(typed) == 0
    assert predict.main(typed) == 2
    assert predict.main([*typed, "--overwrite"]) == 0
