"""Super-resolution and denoising: the models, the batches, the figures, and that they learn."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

import config as configs
import denoise
import photo_runs
import photos
import superres
import train
from task import build, constraint_report

pytestmark = pytest.mark.program

RNG = np.random.default_rng(0)
TASKS = ("superres", "denoise")
MODELS: dict[str, Any] = {
    "superres": superres.FSRCNN(8, 4, 2, 3),
    "superres deeper": superres.FSRCNN(6, 3, 5, 2),
    "superres flat": superres.FSRCNN(6, 3, 0, 4),
    "denoise": denoise.UNet((4, 6)),
    "denoise deeper": denoise.UNet((3, 4, 5)),
}


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with photo_runs.details_held_out():
        yield


@pytest.fixture(scope="module", params=TASKS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run in which the constraint has work to do."""
    run = tmp_path_factory.mktemp("run")
    options = {"train__steps": 800, "train__log_every": 200, "train__evaluate_every": 400}
    return photo_runs.trained(request.param, run, **options)


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def lively(model: Any, example: np.ndarray) -> Any:
    """Parameters none of which is 0."""
    params = model.init(jax.random.key(0), example)
    leaves, tree = jax.tree.flatten(params)
    noise = [0.3 * jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(tree, noise)


@pytest.mark.long
def test_training_makes_the_figures_better(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [200, 400, 600, 800]
    evaluated = [line for line in lines if "psnr" in line]
    assert [line["step"] for line in evaluated] == [400, 800]
    task: Any = build(configs.from_table(summary(trained)["config"]))
    start = task.evaluate(task.init(jax.random.key(0)))
    assert evaluated[-1]["psnr"] > start["psnr"]
    assert evaluated[-1]["penalty"] > 0


def test_the_constraints_hold_and_have_work_to_do(trained: Path) -> None:
    checks = summary(trained)["constraints"]
    task: Any = build(configs.from_table(summary(trained)["config"]))
    assert [check["path"] for check in checks] == list(task.rules)
    assert all(check["satisfied"] for check in checks)
    # Without it the kernels would be larger: at the start, or where training has taken them.
    before = constraint_report(task, task.init(jax.random.key(0)))
    for check, first in zip(checks, before, strict=True):
        assert " 0 of" not in check["detail"] or not first["satisfied"]


def test_the_gain_is_over_the_best_rival(trained: Path) -> None:
    figures = summary(trained)
    rivals = {"superres": ["bicubic"], "denoise": ["nl_means", "total_variation"]}
    for measure in ("psnr", "ssim"):
        gains = []
        for name in ("china", "flower"):
            best = max(
                figures[f"{rival}_{measure}_{name}"] for rival in rivals[figures["config"]["task"]]
            )
            gains.append(figures[f"{measure}_{name}"] - best)
            assert figures[f"{measure}_gain_{name}"] == pytest.approx(gains[-1], abs=1e-9)
        assert figures[f"{measure}_gain"] == pytest.approx(np.mean(gains), abs=1e-9)
        means = [figures[f"{measure}_{name}"] for name in ("china", "flower")]
        assert figures[measure] == pytest.approx(np.mean(means), abs=1e-9)


def test_the_picture_shows_the_truth_last(trained: Path) -> None:
    task = summary(trained)["config"]["task"]
    with Image.open(trained / "restored.png") as image:
        picture = np.asarray(image)
    columns = {"superres": 3, "denoise": 4}[task]
    assert picture.shape == (30 + 4 + 30, columns * 34 - 4, 3)
    for row, (name, truth) in enumerate(photos.heldout().items()):
        shown = [picture[34 * row :, 34 * i :][:30, :30] for i in range(columns)]
        if task == "denoise":
            truth = photos.as_color(photos.luminance(truth))
        expected = photos.as_bytes(photos.detail(name, truth))
        np.testing.assert_array_equal(shown[-1], expected)
        errors = [np.mean((s.astype(float) - expected) ** 2) for s in shown[:-1]]
        assert all(0 < error < 4000 for error in errors)
    assert len(list((trained / "pictures").iterdir())) == 2


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.long
def test_mixed_precision_keeps_float32_parameters(name: str, tmp_path: Path) -> None:
    options = {"train__compute-dtype": "bfloat16", "train__steps": 20}
    run = photo_runs.trained(name, tmp_path, **options)
    task: Any = build(photo_runs.load(name, **options))
    state = task.init(jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(task.outputs)(state.params, task.example))
    assert "bf16" in text
    assert summary(run)["psnr"] > 15


@pytest.mark.parametrize("name", MODELS)
def test_a_model_looks_no_farther_than_it_says(name: str) -> None:
    model = MODELS[name]
    superresolves = isinstance(model, superres.FSRCNN)
    grid, scale = (1, model.scale) if superresolves else (model.grid, 1)
    size = -(-(2 * model.reach + 5) // grid) * grid
    example = RNG.random((1, size, size, 1 if superresolves else 3)).astype(np.float32)
    params = lively(model, example)

    @jax.jit
    def sees(i: jax.Array) -> jax.Array:
        def pixel(image: jax.Array) -> jax.Array:
            return model.apply(params, image)[0, i, i].sum()

        return jnp.abs(jax.grad(pixel)(jnp.asarray(example))).sum((0, 3))

    # From every place in a block of the halvings, or within an enlarged pixel.
    farthest = 0
    middle = size // 2 // grid * grid
    for i in range(scale * middle, scale * (middle + grid)):
        rows, columns = np.nonzero(np.asarray(sees(i)))
        centre = i // scale
        farthest = max(farthest, np.abs(rows - centre).max(), np.abs(columns - centre).max())
    assert farthest <= model.reach
    least = model.reach if superresolves else 0.6 * model.reach  # margins cost time
    assert farthest >= least


@pytest.mark.parametrize("name", TASKS)
def test_large_images_are_restored_in_tiles_without_seams(name: str) -> None:
    config = photo_runs.load(name)
    single = dataclasses.replace(config.model, self_ensemble=False)
    task: Any = build(dataclasses.replace(config, model=single))
    state = task.init(jax.random.key(0))
    state = state._replace(params=lively(task.model, task.example)["params"])
    height, width = 2 * task.tile, task.tile + 8
    image = RNG.random((height, width, task.example.shape[-1])).astype(np.float32)
    margin = task.margin
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    whole = np.asarray(task.outputs(state.params, padded[None]))[0]
    inner = slice(task.scale * margin, -task.scale * margin)
    restored = task.restore(state, image)
    np.testing.assert_allclose(restored, whole[inner, inner], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_a_self_ensemble_is_the_mean_over_all_orientations(name: str) -> None:
    config = photo_runs.load(name)
    better = dataclasses.replace(config.model, self_ensemble=not config.model.self_ensemble)
    tasks: Any = [build(dataclasses.replace(config, model=m)) for m in (config.model, better)]
    single, ensemble = sorted(tasks, key=lambda task: task.config.model.self_ensemble)
    state: Any = single.init(jax.random.key(0))
    state = state._replace(params=lively(single.model, single.example)["params"])
    channels = single.example.shape[-1]
    image = RNG.random((20, 13, channels)).astype(np.float32)
    ways: list[Any] = [
        lambda i, turn=turn, mirror=mirror: np.rot90(i[::mirror], turn)
        for turn in range(4)
        for mirror in (1, -1)
    ]
    backs: list[Any] = [
        lambda i, turn=turn, mirror=mirror: np.rot90(i, 4 - turn)[::mirror]
        for turn in range(4)
        for mirror in (1, -1)
    ]
    views = [b(single.restore(state, w(image))) for w, b in zip(ways, backs, strict=True)]
    restored = ensemble.restore(state, image)
    np.testing.assert_allclose(restored, sum(views) / 8, rtol=1e-5, atol=1e-5)
    assert not np.allclose(restored, views[0], atol=1e-3)


@pytest.mark.parametrize("name", TASKS)
def test_batches_depend_on_the_generator_alone(name: str) -> None:
    task: Any = build(photo_runs.load(name))
    first, again, other = (task.batch(np.random.default_rng([0, i])) for i in (1, 1, 2))
    for ours, same, different in zip(first, again, other, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, same)
        assert not np.array_equal(ours, different)


class TestSuperres:
    def test_the_last_layer_is_a_transposed_convolution_of_9_x_9_and_stride_3(self) -> None:
        config: Any = configs.load(photo_runs.CONFIGS / "photos_superres.toml")
        task = superres.build(config)
        params = jax.eval_shape(task.init, jax.random.key(0)).params
        assert params["up"]["kernel"].shape == (9, 9, 1, 56)
        assert list(task.rules) == ["up/kernel"]
        jaxpr = str(jax.make_jaxpr(task.outputs)(params, task.example))
        assert "conv_transpose" in jaxpr

    def test_without_its_last_layer_the_model_is_pillows_bicubic(self) -> None:
        task = superres.build(photo_runs.load("superres"))
        params = jax.tree.map(lambda x: x, task.init(jax.random.key(0)).params)
        params["up"] = jax.tree.map(jnp.zeros_like, params["up"])
        image = RNG.random((10, 13, 1)).astype(np.float32)
        ours = task.outputs(params, image[None])[0]
        np.testing.assert_allclose(ours, photos.resize(image, 30, 39), atol=1e-5)

    def test_small_crops_are_the_large_ones_shrunk(self) -> None:
        task = superres.build(photo_runs.load("superres"))
        batch = task.batch(np.random.default_rng(0))
        assert batch.bad.shape == (8, 12, 12, 1)
        assert batch.good.shape == (8, 36, 36, 1)
        for bad, good in zip(*batch, strict=True):
            inner = photos.resize(good, 12, 12)[3:-3, 3:-3]
            np.testing.assert_allclose(bad[3:-3, 3:-3], inner, atol=1 / 255)

    def test_figures_are_of_the_luminance(self) -> None:
        task = superres.build(photo_runs.load("superres"))
        china = Image.fromarray(photos.as_bytes(photos.heldout()["china"]))
        small = china.resize((20, 16), Image.Resampling.BICUBIC)
        large = small.resize((60, 48), Image.Resampling.BICUBIC)
        luma, truth = (np.asarray(image.convert("YCbCr"))[..., 0] for image in (large, china))
        expected = peak_signal_noise_ratio(truth, luma)
        assert task.baselines()["bicubic_psnr_china"] == pytest.approx(expected, abs=0.03)

    def test_colours_keep_the_chroma_of_bicubic_interpolation(self) -> None:
        task = superres.build(photo_runs.load("superres"))
        state = task.init(jax.random.key(0))
        image = RNG.random((7, 9, 3)).astype(np.float32)
        before, after = task.predict(state, image)
        np.testing.assert_allclose(before, photos.resize(image, 21, 27))
        luma = task.restore(state, photos.luminance(image))
        np.testing.assert_allclose(photos.luminance(after), luma, atol=1e-5)
        for one, other in ((0, 1), (1, 2)):
            np.testing.assert_allclose(
                after[..., one] - after[..., other],
                before[..., one] - before[..., other],
                atol=1e-5,
            )


class TestDenoise:
    def test_the_net_upsamples_by_transposed_convolutions_of_2_x_2_and_stride_2(self) -> None:
        config: Any = configs.load(photo_runs.CONFIGS / "photos_denoise.toml")
        task = denoise.build(config)
        params = jax.eval_shape(task.init, jax.random.key(0)).params
        shapes = {n: p["kernel"].shape for n, p in params.items() if n.startswith("up")}
        *features, smallest = config.model.features
        wide = [*features[1:], smallest]
        expected = {
            f"up{i}": (2, 2, f, w) for i, (f, w) in enumerate(zip(features, wide, strict=True), 1)
        }
        assert shapes == expected
        assert set(task.rules) == {f"{name}/kernel" for name in expected}

    def test_space_to_depth_makes_a_strided_convolution_of_a_1_x_1_one(self) -> None:
        x = RNG.random((2, 6, 8, 3)).astype(np.float32)
        kernel = RNG.random((2, 2, 3, 5)).astype(np.float32)
        expected = jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        ours = denoise.space_to_depth(jnp.asarray(x)) @ kernel.reshape(12, 5)
        np.testing.assert_allclose(ours, expected, rtol=1e-5)

    def test_noise_is_fresh_and_as_strong_as_the_config_says(self) -> None:
        config = photo_runs.load("denoise", data__sigma=40, data__photos=("chelsea", "coffee"))
        task = denoise.build(config)
        rng = np.random.default_rng(0)
        noise = np.concatenate([np.subtract(*task.batch(rng)) for _ in range(20)])
        assert 255 * noise.std() == pytest.approx(40, rel=0.01)
        assert abs(noise.mean()) < 0.002
        assert not np.array_equal(noise[0], noise[8])

    def test_rivals_are_far_better_than_nothing(self) -> None:
        task = denoise.build(photo_runs.load("denoise"))
        noisy = {name: pair.bad for name, pair in task.heldout.items()}
        nothing = task.quality(noisy)["psnr"]
        for images in task.rivals.values():
            for name, value in task.quality(images)["psnr"].items():
                assert value > nothing[name] + 1

    def test_pictures_are_restored_channel_by_channel(self) -> None:
        task = denoise.build(photo_runs.load("denoise"))
        state = task.init(jax.random.key(0))
        state = state._replace(params=lively(task.model, task.example)["params"])
        image = RNG.random((9, 14, 3)).astype(np.float32)
        before, after = task.predict(state, image)
        assert before is image
        for i in range(3):
            _, alone = task.predict(state, image[..., i : i + 1])
            np.testing.assert_allclose(after[..., i : i + 1], alone, rtol=1e-5, atol=1e-6)


BAD = [
    (
        "superres",
        {"data__photos": ["camera", "lena"]},
        "data.photos: must be some of .* got 'lena'",
    ),
    (
        "superres",
        {"data__crop": 100},
        "data.crop: the smallest photograph leaves 50 pixels, got 100",
    ),
    ("superres", {"data__crop": 0}, "data.crop: must be positive"),
    ("superres", {"data__scale": 1}, "data.scale: must be 2 or more"),
    ("superres", {"data__sizes": [0.5, 1.5]}, "data.sizes: must be one or more numbers"),
    ("superres", {"data__sizes": [0.5, 1e-9]}, "data.sizes: must be large enough to leave pixels"),
    ("superres", {"data__sizes": [0.005]}, "data.crop: the smallest photograph leaves 0 pixels"),
    ("superres", {"model__mappings": -1}, "model.mappings: must be 0 or more"),
    ("superres", {"model__features": 0}, "model.features: must be positive"),
    ("denoise", {"data__sigma": 0}, "data.sigma: must be positive"),
    ("denoise", {"data__crop": 15}, "data.crop: must be divisible by 2, got 15"),
    ("denoise", {"model__features": [4]}, "model.features: must be two or more"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD, ids=[str(b[1]) for b in BAD])
def test_what_makes_no_sense_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    table = configs.to_table(photo_runs.load(name))
    for key, value in options.items():
        section, name_in_section = key.split("__")
        table[section][name_in_section] = value
    with pytest.raises(configs.ConfigError, match=message):
        build(configs.from_table(table))


def test_the_trainer_says_which_file_is_at_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("task = 'denoise'\n[data]\ncrop = 15")
    assert train.main([str(path), "--run", str(tmp_path)]) == 2
    assert f"{path}: data.crop" in capsys.readouterr().err
    assert train.main(photo_runs.arguments("denoise", run=tmp_path, data__crop=15)) == 2
    assert capsys.readouterr().err.startswith("train.py: data.crop")
