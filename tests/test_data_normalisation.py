"""Every feature and every channel is brought to its own mean 0 and deviation 1, whoever holds the samples."""

import re

import numpy as np
import pytest
from own_data import own, values, write_npz

import fedhp
from fedhp.data import (
    DataConfig,
    Normalisation,
    Shard,
    data_notes,
    device_shard,
    open_dataset,
    test_shard,
    train_shard,
)
from fedhp.errors import DataError, ScenarioError

test_shard.__test__ = False  # a function of the product, not a test

SCALES = np.array([1e-3, 1.0, 40.0, 1e5])
OFFSETS = np.array([0.0, -3.0, 1e4, 1e5])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDHP_CACHE", str(tmp_path / "cache"))


def whole(shard: Shard) -> np.ndarray:
    return shard.batch(np.arange(len(shard)))[0].numpy()


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


def standard(x: np.ndarray, axes: tuple[int, ...] = (0,)) -> np.ndarray:
    """Returns what NumPy makes of samples in double precision."""
    x = x.astype(np.float64)
    return (x - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True)


def test_features_of_unlike_scale_have_a_mean_and_a_deviation_each(tmp_path):
    """The same for training rows, held-out rows, and rows that a device brings."""
    x = normal(200, 4) * SCALES + OFFSETS
    config = own(tmp_path, x)
    dataset = open_dataset(config)
    np.testing.assert_allclose(dataset.mean, x.mean(0).reshape(1, 1, 4), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, x.std(0).reshape(1, 1, 4), rtol=1e-9)
    device = device_shard(config.root, normalisation=dataset.normalisation)
    for shard in (train_shard(config), test_shard(config), device):
        np.testing.assert_allclose(whole(shard)[:, 0, 0], standard(x), atol=1e-6)
    assert device.spread == pytest.approx(1)


def test_a_feature_that_never_changes_is_divided_by_1(tmp_path):
    """The mean of 0.1, added up, is not 0.1 to the last bit, and must not count as a deviation."""
    x = np.stack([np.full(30, 0.1), np.arange(30.0)], axis=1)
    config = own(tmp_path, x, x_test=np.array([[0.1, 0.0], [2.1, 0.0]]), y_test=np.array([0, 1]))
    assert open_dataset(config).normalisation.std[0] == 1
    np.testing.assert_allclose(whole(test_shard(config))[:, 0, 0, 0], [0, 2], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("last", [True, False])
def test_channels_of_images_have_a_mean_and_a_deviation_each(tmp_path, dtype, last):
    """Red around 200 and blue around 10: bytes count as 0 to 1, which changes nothing once normalised."""
    x = np.clip(normal(50, 3, 6, 7) * [[[30]], [[8]], [[2]]] + [[[200]], [[90]], [[10]]], 0, 255).astype(
        dtype
    )
    config = own(tmp_path, x.transpose(0, 2, 3, 1) if last else x)
    shard, expected = train_shard(config), standard(x, (0, 2, 3))
    np.testing.assert_allclose(whole(shard), expected, atol=2e-5)
    assert open_dataset(config).mean.shape == (3, 1, 1)
    assert shard.raw_itemsize == x.dtype.itemsize
    picked = np.array([0, 5, 41, 42, 83, 84, 125])  # of each channel's 42 entries, the first and the last too
    rows = np.array([7, 3])
    found = shard.batch(rows, picked)[0]
    np.testing.assert_array_equal(found, whole(shard)[rows].reshape(2, -1)[:, picked])
    only_green = shard.batch(rows, np.array([50, 60]))[0]
    np.testing.assert_array_equal(only_green, whole(shard)[rows].reshape(2, -1)[:, [50, 60]])


def test_sensors_of_windows_have_a_mean_and_a_deviation_each(tmp_path):
    """(rows, channels, time): gravity and turning rates, say, of any order of magnitude."""
    x = normal(60, 4, 32) * SCALES[:, None] + OFFSETS[:, None]
    config = own(tmp_path, x)
    np.testing.assert_allclose(whole(train_shard(config))[:, 0], standard(x, (0, 2)), atol=1e-6)
    assert open_dataset(config).mean.shape == (1, 4, 1)


@pytest.mark.parametrize(
    ("shape", "layout", "reduced"),
    [
        ((60, 9, 8), "auto", (0, 1, 2)),  # an image
        ((60, 9, 8), "channels_first", (0, 2)),  # told that they are windows
        ((60, 16), "channels_first", (0, 1)),  # windows of one sensor
        ((60, 1, 4, 16), "auto", (0, 1, 3)),  # windows with an axis more
        ((60, 1, 4, 16), "channels_first", (0, 1, 2, 3)),  # told that it is an image
    ],
)
def test_what_shares_a_scale_follows_from_axes_and_layout(tmp_path, shape, layout, reduced):
    x = (
        normal(*shape)
        + np.arange(shape[-1])
        + 3 * np.arange(shape[1])[(slice(None), *[None] * (len(shape) - 2))]
    )
    found = whole(train_shard(own(tmp_path, x, layout=layout)))
    np.testing.assert_allclose(found.reshape(shape), standard(x, reduced), atol=1e-5)


def test_narrow_images_of_bytes_are_images(tmp_path):
    """A line of text, 8 high: its rows have no scales of their own."""
    x = np.random.default_rng(0).integers(0, 256, (20, 8, 40), np.uint8)
    assert open_dataset(own(tmp_path, x)).mean.shape == (1, 1, 1)


@pytest.mark.parametrize("shape", [(60, 32, 4), (60, 4, 32), (60, 6, 5, 3)])
def test_a_layout_is_applied_wherever_samples_come_from(tmp_path, shape):
    """Channels last, told so, is the same data as channels first, told so."""
    x = normal(*shape) * 2 + np.arange(shape[-1])
    last, first = own(tmp_path / "last", x, layout="channels_last"), np.moveaxis(x, -1, 1)
    other = own(tmp_path / "first", first, layout="channels_first")
    np.testing.assert_array_equal(whole(train_shard(last)), whole(train_shard(other)))
    scale = open_dataset(last).normalisation
    device = device_shard(last.root, normalisation=scale, layout="channels_last")
    np.testing.assert_array_equal(whole(device), whole(train_shard(last)))


@pytest.mark.parametrize("offset", [3e7, 1e8, 1.6e9, -1e12])
def test_an_offset_that_single_precision_cannot_hold_is_taken_off_first(tmp_path, offset):
    """At 3e7 neighbouring float32 are 2 apart, where these values deviate by 1."""
    x = normal(200, 6) + offset
    config = own(tmp_path, x)
    np.testing.assert_allclose(whole(train_shard(config))[:, 0, 0], standard(x), atol=1e-3)
    assert list(data_notes(open_dataset(config))) == []
    device = device_shard(config.root, normalisation=open_dataset(config).normalisation)
    np.testing.assert_allclose(whole(device)[:, 0, 0], standard(x), atol=1e-3)


@pytest.mark.parametrize("kind", ["u2", "i2", "<i4", "i8", ">i8", ">f8", "f2", "f4", "bool", "i1", "u8"])
def test_numbers_of_any_kind_are_taken_as_they_are(tmp_path, kind):
    """Sensors of 12 bits give 0 to 4095; kinds that cannot hold as much, what they hold."""
    x = np.random.default_rng(0).integers(
        0, 100 if kind == "i1" else 2 if kind == "bool" else 4096, (40, 8, 8)
    )
    x = np.asfortranarray(x.astype(kind))
    expected = standard(x, (0, 1, 2))
    np.testing.assert_allclose(whole(train_shard(own(tmp_path, x)))[:, 0], expected, atol=1e-5)


def test_features_of_unlike_scale_are_learned(tmp_path):
    """One feature of four tells three classes apart, and the others, noise, are up to 1e8 times as wide."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 600)
    x = rng.normal(size=(600, 4)) * [1e5, 1.0, 40.0, 1e3]
    x[:, 1] = y + 0.1 * x[:, 1]
    run = fedhp.simulate(
        "quickstart",
        tmp_path / "run",
        show=False,
        rounds=6,
        **values(own(tmp_path, x, y)),
        **{"fleet.num_clients": 4, "simulation.num_workers": 0, "prune.target_compression": 1},
    )
    assert run.summary["final_accuracy"] > 0.9


def test_a_value_beyond_what_can_be_said_of_it_is_refused(tmp_path):
    """3e38 itself is a number of single precision, but not 3e38 over a deviation of about a third."""
    x = np.random.default_rng(0).random((20, 6, 6))
    far = x.copy()
    far[3, 0, 0] = 3e38
    with pytest.raises(DataError, match=r"data\.npz: x_test holds a value that is 1e\+39 deviations from"):
        open_dataset(own(tmp_path, x, x_test=far))
    file = write_npz(tmp_path / "device.npz", far)
    with pytest.raises(
        DataError, match=r"device\.npz: x_train holds a value that is 1\.2e\+39 deviations from"
    ):
        device_shard(str(file), normalisation=Normalisation((0.0,), (0.25,)))


def scale_of(num: int) -> Normalisation:
    return Normalisation((0.0,) * num, (2.0,) * num, 2)


def test_a_device_is_refused_where_its_middle_feature_is_off_and_told_of_its_oddest(tmp_path):
    """Deviations of 2 times 1, 1 and 30 beside 2: units of one feature differ. Two of three are a mistake."""
    x = np.tile([[-1.0], [1.0]], (10, 3))
    odd = write_npz(tmp_path / "odd.npz", x * [2, 2, 60])
    assert device_shard(str(odd), normalisation=scale_of(3)).spread == pytest.approx(30)
    wrong = write_npz(tmp_path / "wrong.npz", x * [2, 40, 60])
    with pytest.raises(
        DataError, match=r"another scale .* deviation, in the middle one of its 3 .* 40, and .* 2 "
    ):
        device_shard(str(wrong), normalisation=scale_of(3))


def test_a_sensor_that_rests_at_a_device_says_nothing_of_its_scale(tmp_path):
    x = np.tile([[-1.0], [1.0]], (10, 3)) * [2, 0, 0]
    assert device_shard(str(write_npz(tmp_path / "a.npz", x)), normalisation=scale_of(3)).spread == 1


def test_nothing_is_narrower_than_what_the_server_saw_no_deviation_of(tmp_path):
    """It divides by 1 there, in the values' own units: 0.001 of a kilometre is a metre."""
    x = np.tile([[-1.0], [1.0]], (10, 2)) * [2, 0.001]
    scale = Normalisation((0.0, 0.0), (2.0, 1.0), 2)
    assert device_shard(str(write_npz(tmp_path / "a.npz", x)), normalisation=scale).spread == 1


@pytest.mark.parametrize(
    ("shape", "noted"),
    [
        ((20, 128, 9), r"\(128, 9\) look .* \(rows, time, channels\), and .* data.layout=channels_last"),
        ((20, 187, 1), r"\(187, 1\) look .* \(rows, time, channels\)"),
        ((20, 1, 128, 9), r"\(128, 9\) look .* \(rows, time, channels\)"),
        ((20, 64, 1, 9), r"\(64, 1, 9\) look .* \(rows, height, width, channels\)"),
        ((20, 16, 16, 13), r"\(16, 16, 13\) look .* \(rows, height, width, channels\)"),
        ((20, 9, 128), ""),
        ((20, 28, 28), ""),
        ((20, 30, 28), ""),
        ((20, 40), ""),
        ((20, 3, 16, 16), ""),
        ((20, 16, 16, 3), ""),
        ((20, 3, 24, 8), ""),
    ],
)
def test_samples_that_look_stored_channels_last_are_noted_until_a_layout_is_given(tmp_path, shape, noted):
    found = list(data_notes(open_dataset(own(tmp_path, normal(*shape)))))
    assert len(found) == bool(noted)
    assert all(re.match(f"samples of shape {noted}", note) for note in found)
    told = own(tmp_path, normal(*shape), layout="channels_first")
    assert list(data_notes(open_dataset(told))) == []


def test_a_layout_is_for_data_of_ones_own():
    with pytest.raises(ScenarioError, match=r"data\.layout is for data of your own"):
        DataConfig("digits", layout="channels_last")
    with pytest.raises(ScenarioError, match=r"data\.layout.*auto, channels_first, channels_last"):
        DataConfig("npz", layout="hwc")
