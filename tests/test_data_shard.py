"""What one client or device trains and tests on."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fedhp.data import (
    DataConfig,
    Normalisation,
    Shard,
    client_shard,
    device_shard,
    open_dataset,
    partition_rows,
    test_shard,
)
from fedhp.errors import DataError
from fedhp.seeds import generator

test_shard.__test__ = False  # a function of the product, not a test
pytestmark = pytest.mark.usefixtures("own_cache")


HALF = Normalisation((0.5,), (0.5,))


def test_uint8_batch_by_hand():
    """Rows [2, 0] of the shard are rows [1, 3] of the data: values 51 = 0.2 and 255 = 1.

    With mean 0.5 and deviation 0.25: (0.2 - 0.5) / 0.25 = -1.2 and (1 - 0.5) / 0.25 = 2.
    """
    images = np.array([0, 51, 102, 255], np.uint8).reshape(4, 1, 1, 1)
    labels, rows = np.array([5, 6, 7, 8]), np.array([3, 2, 1])
    shard = Shard(images, labels, rows, num_classes=9, mean=0.5, std=0.25)
    x, y = shard.batch(np.array([2, 0]))
    torch.testing.assert_close(x, torch.tensor([-1.2, 2.0]).reshape(2, 1, 1, 1))
    torch.testing.assert_close(y, torch.tensor([6, 8]))
    assert (len(shard), shard.raw_itemsize, shard.input_shape) == (3, 1, (1, 1, 1))


def test_float_batch_leaves_the_data_alone():
    """(3 - 1) / 2 = 1; asking twice gives the same, so nothing was changed in place."""
    images = np.full((2, 1, 1, 1), 3, np.float32)
    shard = Shard(images, np.array([0, 1]), np.array([1]), num_classes=2, mean=1, std=2)
    assert shard.batch(np.array([0]))[0].item() == shard.batch(np.array([0]))[0].item() == 1
    assert images[1].item() == 3
    assert shard.raw_itemsize == 4


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_picked_entries_are_those_of_the_flattened_sample(dtype):
    """Sample n holds 10n to 10n + 5; of samples 2 and 0, entries 1, 4 and 5; mean 1, deviation 2."""
    images = (10 * np.arange(3)[:, None] + np.arange(6)).astype(dtype).reshape(3, 1, 2, 3)
    scale = 255 if dtype == np.uint8 else 1
    shard = Shard(images, np.array([7, 8, 9]), np.arange(3), num_classes=10, mean=1 / scale, std=2 / scale)
    x, y = shard.batch(np.array([2, 0]), np.array([1, 4, 5]))
    torch.testing.assert_close(x, torch.tensor([[20.0, 23, 24], [0, 3, 4]]) / 2)
    assert y.tolist() == [9, 7]
    assert torch.equal(x, shard.batch(np.array([2, 0]), np.array([1, 4, 5]), whole=True)[0])


def test_position_outside_the_shard_is_no_other_clients_row():
    images = np.zeros((4, 1, 1, 1), np.uint8)
    shard = Shard(images, np.zeros(4, np.int64), np.array([0, 1]), num_classes=1, mean=0, std=1)
    with pytest.raises(IndexError):
        shard.batch(np.array([2]))


@pytest.mark.parametrize(("dtype", "raw_bytes"), [(np.uint8, 1), (np.float32, 0)])
def test_torch_sees_every_byte_of_a_batch(dtype, raw_bytes):
    """8 samples of 3 x 4 x 4 = 48 values: 384 bytes as uint8, 1536 as float32, 64 of labels.

    The 8 bytes in which torch holds a Python number while it subtracts or divides are left out.
    """
    images = np.ones((20, 3, 4, 4), dtype)
    shard = Shard(images, np.zeros(20, np.int64), np.arange(20), num_classes=1, mean=0, std=1)
    with torch.profiler.profile(profile_memory=True) as profile:
        batch = shard.batch(np.arange(8))
    allocated = sum(
        event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 16
    )
    assert allocated == 384 * raw_bytes + 4 * 384 + 8 * 8
    assert batch[0].shape == (8, 3, 4, 4)


def test_client_and_test_shards(mnist, tmp_path):
    config = mnist("iid")
    dataset = open_dataset(config)
    shard = client_shard(config, 5, 0, 3)
    rows = partition_rows(config, 5, 0)[3]
    x, y = shard.batch(np.arange(len(shard)))
    np.testing.assert_array_equal(y, dataset.train_labels[rows])
    expected = (dataset.train_images[rows].astype(np.float64) / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(x, expected, atol=1e-5)
    held_out = test_shard(config)
    assert len(held_out) == 20
    np.testing.assert_array_equal(held_out.batch(np.array([13]))[1], [3])
    for client in (-1, 5):
        with pytest.raises(DataError, match="no client"):
            client_shard(config, 5, 0, client)


def small_shard(size: int) -> Shard:
    """Rows 1, 3, 5, ... of images whose only pixel is their row's number."""
    images = np.arange(2 * size, dtype=np.float32).reshape(-1, 1, 1, 1)
    rows = np.arange(1, 2 * size, 2)
    return Shard(images, np.arange(2 * size) % 3, rows, num_classes=3, mean=0.0, std=1.0)


def values_of(shard: Shard) -> list[float]:
    return shard.batch(np.arange(len(shard)))[0].flatten().tolist()


@pytest.mark.parametrize(
    ("size", "share", "num_held_out"), [(10, 0.2, 2), (14, 0.2, 2), (5, 0.2, 1), (10, 0.99, 9), (2, 0.5, 1)]
)
def test_held_out_rows_and_those_to_train_on_are_the_shard(size, share, num_held_out):
    whole = small_shard(size)
    train, held_out = whole.hold_out(share, generator(1, "test"))
    assert held_out is not None
    assert (len(train), len(held_out)) == (size - num_held_out, num_held_out)
    parts = values_of(train), values_of(held_out)
    assert [sorted(part) for part in parts] == list(parts)
    assert sorted(parts[0] + parts[1]) == values_of(whole) == list(range(1, 2 * size, 2))
    labels = held_out.batch(np.arange(num_held_out))[1]
    assert labels.tolist() == [value % 3 for value in parts[1]]


def test_what_is_held_out_is_a_draw():
    parts = [small_shard(50).hold_out(0.2, generator(seed, "test"))[1] for seed in (1, 1, 2)]
    one, again, other = (values_of(part) for part in parts if part is not None)
    assert one == again != other


@pytest.mark.parametrize(("size", "share"), [(4, 0.2), (1, 0.99), (10, 0.0)])
def test_a_shard_too_small_to_hold_out_a_row_stays_whole(size, share):
    whole = small_shard(size)
    train, held_out = whole.hold_out(share, generator(1, "test"))
    assert held_out is None
    assert values_of(train) == values_of(whole)


def test_classes_are_those_of_the_shards_rows():
    """Rows 1, 3 and 5 of the labels 0, 1, 2, 0, 1, 2."""
    assert small_shard(3).classes().tolist() == [0, 1, 2]
    assert small_shard(2).classes().tolist() == [0, 1]


def test_device_shard_is_scaled_like_the_scenarios_data(tmp_path):
    file = tmp_path / "mine.npz"
    np.savez(file, x_train=np.full((5, 2, 2), 255, np.uint8), y_train=np.arange(5))
    scale = Normalisation((0.1307,), (0.3081,))
    shard = device_shard(str(file), normalisation=scale, input_shape=(1, 2, 2), num_classes=10)
    assert (len(shard), shard.num_classes) == (5, 10)
    x, _ = shard.batch(np.array([0]))
    assert x[0, 0, 0, 0].item() == pytest.approx((1 - 0.1307) / 0.3081, rel=1e-5)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"input_shape": (1, 28, 28)}, r"\(1, 2, 2\) .* takes \(1, 28, 28\)"),
        ({"num_classes": 4}, "labels of 0 to 3, got 0 to 4"),
    ],
)
def test_device_data_that_does_not_fit_is_refused(tmp_path, expected, message):
    file = tmp_path / "mine.npz"
    np.savez(file, x_train=np.zeros((5, 2, 2), np.uint8), y_train=np.arange(5))
    with pytest.raises(DataError, match=message):
        device_shard(str(file), normalisation=HALF, **expected)


@pytest.mark.parametrize(("dtype", "std"), [(np.float32, 0.3), (np.uint8, 70.0)])
def test_device_data_of_another_scale_is_refused(tmp_path, dtype, std):
    """0 to 255 where the server has 0 to 1, and bytes (0 to 1, that is) where it has floats to 255."""
    file = tmp_path / "mine.npz"
    values = np.random.default_rng(0).integers(0, 256, (5, 2, 2)).astype(dtype)
    np.savez(file, x_train=values, y_train=np.arange(5))
    with pytest.raises(DataError, match=r"another scale .* bring the values to the server's"):
        device_shard(str(file), normalisation=Normalisation((0.5,), (std,)))


def digits_as(factor: float) -> np.ndarray:
    return (load_digits(return_X_y=True)[0] * (factor / 16)).astype(np.float32)


def test_digits_as_scikit_learn_has_them_are_refused_where_the_server_counts_from_0_to_1(tmp_path):
    """0 to 16, as ``load_digits`` returns them: 16 times as wide, and the server's model learns nothing."""
    file = tmp_path / "mine.npz"
    dataset = open_dataset(DataConfig())
    np.savez(file, x_train=digits_as(16), y_train=load_digits().target)
    with pytest.raises(DataError, match=r"another scale .* is 6.02, and the server's 0.376"):
        device_shard(str(file), normalisation=dataset.normalisation)
    np.savez(file, x_train=digits_as(1), y_train=load_digits().target)
    spread = device_shard(str(file), normalisation=dataset.normalisation).spread
    assert spread == pytest.approx(1, abs=1e-2)


def test_devices_of_a_single_digit_or_sample_or_of_equal_values_are_no_reason_to_refuse(tmp_path):
    """On the right scale: what a device sees may be all alike, or nearly."""
    digits, labels = digits_as(1), load_digits().target
    alike = digits[:5] * 0.02 + 0.5
    devices = [*(digits[labels == label] for label in range(10)), *np.split(digits[:50], 50), alike]
    for number, values in enumerate([*devices, np.zeros_like(digits[:5])]):
        file = tmp_path / f"{number}.npz"
        np.savez(file, x_train=values, y_train=np.zeros(len(values), int))
        device_shard(str(file), normalisation=Normalisation((0.3054,), (0.376,)))
    narrow = Normalisation((0.01,), (0.01,))
    assert device_shard(str(file), normalisation=narrow).spread == 1  # nothing to compare


def test_missing_device_data_is_refused(tmp_path):
    with pytest.raises(DataError, match="x_train and y_train"):
        device_shard(str(tmp_path / "none.npz"), normalisation=HALF)
