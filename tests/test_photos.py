"""Photographs, their crops and tiles, and how restorations are measured."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import photos

pytestmark = pytest.mark.program

RNG = np.random.default_rng(0)


def test_no_photograph_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    training = photos.training(list(photos.TRAINING))
    for image in [*training, *photos.heldout().values()]:
        assert image.dtype == np.float32
        assert image.ndim == 3
        assert image.shape[-1] in (1, 3)
        assert min(image.shape[:2]) > 200
        assert image.min() >= 0
        assert 0.5 < image.max() <= 1


def test_the_heldout_photographs_are_none_to_train_on() -> None:
    def thumbnail(image: np.ndarray) -> np.ndarray:
        return photos.resize(photos.luminance(image), 16, 16)

    training = [thumbnail(image) for image in photos.training(list(photos.TRAINING))]
    for image in photos.heldout().values():
        assert image.shape == (427, 640, 3)
        small = thumbnail(image).ravel()
        assert all(np.corrcoef(small, other.ravel())[0, 1] < 0.9 for other in training)


def test_unknown_photographs_are_named() -> None:
    with pytest.raises(ValueError, match=r"astronaut.*got 'china', 'lena'"):
        photos.training(["camera", "china", "lena"])
    with pytest.raises(ValueError, match="got none"):
        photos.training([])


def test_bytes_and_floats_are_inverse() -> None:
    image = RNG.integers(0, 256, (5, 6, 3), np.uint8)
    np.testing.assert_array_equal(photos.as_bytes(photos.as_float(image)), image)
    grey = image[..., 0]
    assert photos.as_float(grey).shape == (5, 6, 1)
    np.testing.assert_array_equal(photos.as_bytes(photos.as_float(grey)), grey)


def test_luminance_is_pillows() -> None:
    image = RNG.integers(0, 256, (20, 30, 3), np.uint8)
    expected = np.asarray(Image.fromarray(image).convert("YCbCr"))[..., :1]
    np.testing.assert_allclose(255 * photos.luminance(photos.as_float(image)), expected, atol=1.01)
    grey = RNG.random((4, 5, 1))
    assert photos.luminance(grey) is grey


@pytest.mark.parametrize("size", [(10, 10), (7, 31), (60, 90)], ids=str)
def test_resizing_is_pillows_for_each_channel(size: tuple[int, int]) -> None:
    image = RNG.integers(90, 160, (20, 30, 3), np.uint8)  # nothing overshoots what a byte holds
    expected = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
    ours = photos.as_bytes(photos.resize(photos.as_float(image), *size))
    assert np.abs(ours.astype(int) - np.asarray(expected)).max() <= 1


def test_what_is_shrunk_fits_into_a_file_of_8_bits() -> None:
    image = RNG.random((12, 18, 3)).astype(np.float32)
    small = photos.shrink(image, 3)
    assert small.shape == (4, 6, 3)
    assert small.dtype == np.float32
    np.testing.assert_array_equal(photos.as_float(photos.as_bytes(small)), small)
    assert np.abs(small - photos.resize(image, 4, 6)).max() <= 0.5 / 255 + 1e-6


def test_trimming_leaves_the_largest_multiple() -> None:
    image = RNG.random((11, 12, 1))
    np.testing.assert_array_equal(photos.trim(image, 3), image[:9])
    np.testing.assert_array_equal(photos.trim(image, 5), image[:10, :10])


def test_quality_is_what_scikit_image_says_of_clipped_pixels() -> None:
    truth = photos.heldout()["china"][:50, 300:380]
    image = (truth + 0.2 * RNG.standard_normal(truth.shape)).astype(np.float32)
    clipped = np.clip(image, 0, 1)
    expected = peak_signal_noise_ratio(truth, clipped, data_range=1)
    assert photos.psnr(truth, image) == pytest.approx(expected, rel=1e-6)
    # The window of Wang et al. is 11 pixels wide.
    per_channel = [
        structural_similarity(
            truth[..., c].astype(float),
            clipped[..., c].astype(float),
            data_range=1,
            gaussian_weights=True,
            win_size=11,
            use_sample_covariance=False,
        )
        for c in range(3)
    ]
    assert photos.ssim(truth, image) == pytest.approx(np.mean(per_channel), rel=1e-6)


def coded(height: int, width: int, scale: int = 1) -> np.ndarray:
    """An image whose every pixel is another number, each `scale` times as high and wide."""
    numbers = np.arange(height * width, dtype=np.float32).reshape(height, width, 1)
    return numbers.repeat(scale, axis=0).repeat(scale, axis=1)


def turns(image: np.ndarray) -> list[np.ndarray]:
    """The eight ways in which a square can lie."""
    flips = image, image.swapaxes(0, 1)
    return [np.rot90(flip, times) for flip in flips for times in range(4)]


def test_crops_are_windows_turned_in_every_way() -> None:
    height, width, size = 7, 9, 3
    image = coded(height, width)
    (drawn,) = photos.crops(np.random.default_rng(1), [[image]], 4000, size)
    assert drawn.shape == (4000, size, size, 1)
    counts = np.zeros((height - size + 1, width - size + 1, 8), int)
    for crop in drawn:
        top, left = divmod(int(crop.min()), width)  # the first pixel has the least number
        window = image[top : top + size, left : left + size]
        (turn,) = [i for i, turned in enumerate(turns(window)) if np.array_equal(turned, crop)]
        counts[top, left, turn] += 1
    # Each of the 5 * 7 places about 114 times, each turn about 500 times.
    assert counts.sum(axis=2).min() > 60
    assert counts.sum(axis=2).max() < 180
    assert counts.sum(axis=(0, 1)).min() > 400


def test_crops_of_large_images_are_drawn_more_often() -> None:
    images = [[np.zeros((4, 4, 1))], [np.ones((10, 8, 1))]]  # with 2 * 2 and 8 * 6 places
    (drawn,) = photos.crops(np.random.default_rng(0), images, 2000, 3)
    assert drawn.mean() == pytest.approx(48 / 52, abs=0.02)


def test_views_are_cropped_at_the_same_place_and_turned_alike() -> None:
    views = [[coded(8, 11), coded(8, 11, scale=3), -coded(8, 11)] for _ in range(2)]
    small, large, other = photos.crops(np.random.default_rng(2), views, 50, 4)
    np.testing.assert_array_equal(large, small.repeat(3, axis=1).repeat(3, axis=2))
    np.testing.assert_array_equal(other, -small)


def test_crops_depend_on_the_generator_alone() -> None:
    images = [[coded(20, 20)]]
    first, second, other = (
        photos.crops(np.random.default_rng(seed), images, 5, 4)[0] for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def blur(tiles: np.ndarray) -> np.ndarray:
    """The mean over 5 x 5 pixels, wrapped round the border: wrong there."""
    for axis in (1, 2):
        tiles = sum(np.roll(tiles, shift, axis) for shift in range(-2, 3)) / 5
    return tiles


SIZES = [(1, 1), (3, 40), (16, 16), (17, 33), (50, 31)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles_have_no_seams(size: tuple[int, int]) -> None:
    image = RNG.random((*size, 2))
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="symmetric")
    expected = blur(padded[None])[0, 2:-2, 2:-2]
    shapes = set()

    def apply(tiles: np.ndarray) -> np.ndarray:
        shapes.add(tiles.shape)
        return blur(tiles)

    result = photos.tiled(apply, image, tile=20, margin=2)
    np.testing.assert_allclose(result, expected, rtol=1e-12)
    assert shapes == {(1, 20, 20, 2)}


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles_may_grow(size: tuple[int, int]) -> None:
    image = RNG.random((*size, 1))
    grown = photos.tiled(
        lambda tiles: tiles.repeat(3, axis=1).repeat(3, axis=2), image, tile=12, margin=2, scale=3
    )
    np.testing.assert_array_equal(grown, image.repeat(3, axis=0).repeat(3, axis=1))


def test_a_sheet_has_its_images_in_place() -> None:
    red = np.broadcast_to(np.array([1.0, 0, 0]), (4, 5, 3))
    grey = np.full((4, 6, 1), 0.4)
    sheet = photos.sheet([[red, grey], [red, grey]], gap=2)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (10, 13, 3)
    for top in (0, 6):
        np.testing.assert_array_equal(sheet[top : top + 4, :5], photos.as_bytes(red))
        np.testing.assert_array_equal(sheet[top : top + 4, 7:], np.full((4, 6, 3), 102))
    assert (sheet[:, 5:7] == 255).all()
    assert (sheet[4:6] == 255).all()
