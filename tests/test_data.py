"""Sources, the cache, partitions and shards, against files written here byte by byte."""

import gzip
import multiprocessing
import os
import socket
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fedhp.data import (
    DataConfig,
    Normalisation,
    PartitionConfig,
    Shard,
    client_shard,
    device_shard,
    label_counts,
    open_dataset,
    partition_rows,
    test_shard,
)
from fedhp.data.normalisation import measure
from fedhp.errors import DataError, MissingExtraError, ScenarioError
from fedhp.files.cache import cache_folder, prepared
from fedhp.seeds import generator

test_shard.__test__ = False  # a function of the product, not a test

HALF = Normalisation((0.5,), (0.5,))

REAL_DATA = os.environ.get("FEDHP_DATA", "")


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDHP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FEDHP_DATA", raising=False)


@pytest.fixture
def hub_address(monkeypatch, tmp_path):
    """Moves the hub to a loopback port that nothing listens on, and what came from it out of sight."""
    datasets = pytest.importorskip("datasets")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Whoever runs the tests may have switched the hub off, as CI does.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    return "127.0.0.1", port


@pytest.fixture
def hub(hub_address):
    """Lets something answer at the hub's address."""
    with HTTPServer(hub_address, BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield
        server.shutdown()
        thread.join()


def write_idx(path: Path, array: np.ndarray, magic: bytes | None = None) -> None:
    head = magic or bytes([0, 0, 8, array.ndim])
    content = head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, suffix: str = ".gz") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (60, 4, 5), np.uint8),
        "train-labels-idx1-ubyte": np.arange(60, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (20, 4, 5), np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(20, dtype=np.uint8) % 10,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        write_idx(folder / f"{name}{suffix}", array)
    return arrays


def npz_arrays(**changes) -> dict[str, np.ndarray]:
    arrays = {
        "x_train": np.arange(12 * 3, dtype=np.float32).reshape(12, 3),
        "y_train": np.arange(12) % 3,
        "x_test": np.zeros((6, 3), np.float32),
        "y_test": np.arange(6) % 3,
    }
    arrays.update(changes)
    return {name: array for name, array in arrays.items() if array is not None}


def assert_scale(found: Normalisation, mean: float, std: float, rel: float = 1e-6) -> None:
    assert (found.mean, found.std) == (pytest.approx([mean], rel=rel), pytest.approx([std], rel=rel))


def npz_config(path: Path, partition: PartitionConfig | None = None, **changes) -> DataConfig:
    np.savez(path / "data.npz", **npz_arrays(**changes))
    return DataConfig("npz", str(path), partition or PartitionConfig("iid", min_samples=1))


# --- configuration ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: PartitionConfig("dirichlett"), "iid, dirichlet, shards, pathological, natural"),
        (lambda: PartitionConfig(alpha=0), "alpha"),
        (lambda: PartitionConfig(alpha=float("nan")), "alpha"),
        (lambda: PartitionConfig(shards_per_client=0), "shards_per_client"),
        (lambda: PartitionConfig(classes_per_client=0), "classes_per_client"),
        (lambda: PartitionConfig(min_samples=0), "min_samples"),
        (lambda: DataConfig("imagenet"), "digits, mnist, fashion_mnist, cifar10, npz"),
        (lambda: DataConfig(max_train=-1), "max_train"),
    ],
)
def test_impossible_configuration_is_refused_by_name(make, named):
    with pytest.raises(ScenarioError, match=named):
        make()


def test_importing_the_package_is_light():
    heavy = "'datasets', 'flwr_datasets', 'sklearn', 'flwr', 'pandas'"
    code = f"import sys, fedhp.data; assert not {{{heavy}}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- sources ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("below", ["mnist", "."])
def test_idx_files_are_read_from_root_or_its_folder(tmp_path, suffix, below):
    arrays = write_mnist(tmp_path / below, suffix)
    dataset = open_dataset(DataConfig("mnist", str(tmp_path)))
    np.testing.assert_array_equal(dataset.train_images[:, 0], arrays["train-images-idx3-ubyte"], strict=True)
    np.testing.assert_array_equal(dataset.test_labels, arrays["t10k-labels-idx1-ubyte"])
    assert dataset.input_shape == (1, 4, 5)
    assert dataset.train_labels.dtype == np.int64
    assert (dataset.num_classes, dataset.mean, dataset.std) == (10, 0.1307, 0.3081)


def test_root_comes_from_the_environment(tmp_path, monkeypatch):
    write_mnist(tmp_path / "fashion-mnist")
    monkeypatch.setenv("FEDHP_DATA", str(tmp_path))
    assert len(open_dataset(DataConfig("fashion_mnist")).train_labels) == 60


def test_max_train_takes_distinct_rows_with_their_labels(tmp_path):
    arrays = write_mnist(tmp_path)
    dataset = open_dataset(DataConfig("mnist", str(tmp_path), max_train=7))
    rows = [
        int(np.flatnonzero((arrays["train-images-idx3-ubyte"] == image[0]).all((1, 2)))[0])
        for image in dataset.train_images
    ]
    assert len(set(rows)) == 7
    np.testing.assert_array_equal(dataset.train_labels, np.array(rows) % 10)
    assert len(dataset.test_labels) == 20
    more = open_dataset(DataConfig("mnist", str(tmp_path), max_train=8))
    taken = {image.tobytes() for image in dataset.train_images}
    assert taken < {image.tobytes() for image in more.train_images}


def _truncate_gzip(folder: Path) -> str:
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-20])
    return "train-images-idx3-ubyte.gz is truncated"


def _not_gzip(folder: Path) -> str:
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(b"<html>not found</html>")
    return "train-labels-idx1-ubyte.gz is truncated or damaged"


def _wrong_length(folder: Path) -> str:
    content = bytes([0, 0, 8, 1]) + struct.pack(">I", 60) + bytes(59)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content))
    return "60 bytes, and 59 follow"


def _wrong_magic(folder: Path) -> str:
    write_idx(folder / "train-images-idx3-ubyte.gz", np.zeros((60, 4, 5), np.uint8), b"\0\0\x0d\3")
    return "begin with 00000803, and begins with 00000d03"


def _empty_file(folder: Path) -> str:
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b""))
    return "begins with nothing"


def _other_count(folder: Path) -> str:
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.zeros(59, np.uint8))
    return r"y_train must hold one label per sample, shape \(60,\), got \(59,\)"


def _label_range(folder: Path) -> str:
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", np.full(20, 10, np.uint8))
    return "y_test must hold labels of 0 to 9, got 10 to 10"


def _no_images(folder: Path) -> str:
    write_idx(folder / "t10k-images-idx3-ubyte.gz", np.zeros((0, 4, 5), np.uint8))
    return "x_test must have shape .* not be empty"


def _one_missing(folder: Path) -> str:
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    return "only a part of mnist: t10k-labels-idx1-ubyte"


@pytest.mark.parametrize(
    "damage",
    [
        _truncate_gzip,
        _not_gzip,
        _wrong_length,
        _wrong_magic,
        _empty_file,
        _other_count,
        _label_range,
        _no_images,
        _one_missing,
    ],
)
def test_damaged_idx_files_are_refused(tmp_path, damage):
    folder = tmp_path / "mnist"
    write_mnist(folder)
    message = damage(folder)
    with pytest.raises(DataError, match=message):
        open_dataset(DataConfig("mnist", str(tmp_path)))
    assert not list((tmp_path / "cache").rglob("*.npy"))


def write_cifar10(folder: Path, num_records: int = 2) -> None:
    """Writes the six files with few records: the format has no header, and so the set no fixed length.

    Record r of file f has label f, and is r in red, 10 + f in green and 20 in blue, but for one pixel: the
    second of the first row is 99 in red.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        records = [
            bytes([number]) + bytes([r, 99] + [r] * 1022) + bytes([10 + number] * 1024) + bytes([20] * 1024)
            for r in range(num_records)
        ]
        (folder / f"{name}.bin").write_bytes(b"".join(records))


@pytest.mark.parametrize("below", ["cifar10/cifar-10-batches-bin", "cifar10", "cifar-10-batches-bin", "."])
def test_cifar10_is_read_from_its_binary_version_rather_than_the_subset(tmp_path, below):
    write_cifar10(tmp_path / below)
    (tmp_path / "cifar10").mkdir(exist_ok=True)
    np.savez(tmp_path / "cifar10" / "cifar10_small.npz", nothing=np.zeros(1))
    dataset = open_dataset(DataConfig("cifar10", str(tmp_path)))
    assert dataset.train_labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert dataset.test_labels.tolist() == [5, 5]
    assert dataset.train_images.shape == (10, 3, 32, 32)
    red, green, blue = dataset.train_images[7]  # file 3, record 1
    assert red[0].tolist() == [1, 99] + [1] * 30
    assert set(red[1:].flat) == {1}
    assert (set(green.flat), set(blue.flat)) == ({13}, {20})
    assert (dataset.num_classes, dataset.mean, dataset.std) == (10, 0.4734, 0.2516)


def test_a_complete_set_is_found_behind_a_part_of_one(tmp_path):
    write_cifar10(tmp_path / "cifar10", num_records=1)
    (tmp_path / "cifar10" / "test_batch.bin").unlink()
    write_cifar10(tmp_path)
    assert len(open_dataset(DataConfig("cifar10", str(tmp_path))).train_labels) == 10
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    write_mnist(tmp_path)
    assert len(open_dataset(DataConfig("mnist", str(tmp_path))).test_labels) == 20


def _cut(file: Path, num_bytes: int) -> None:
    file.write_bytes(file.read_bytes()[:-num_bytes])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "data_batch_3.bin").unlink(), "only a part of cifar10: data_batch_3.bin is missing"),
        (lambda f: (f / "test_batch.bin").unlink(), "only a part of cifar10: test_batch.bin is missing"),
        (lambda f: _cut(f / "data_batch_2.bin", 1), r"data_batch_2\.bin should hold records of 3073 bytes"),
        (lambda f: _cut(f / "test_batch.bin", 3073), r"test_batch\.bin is truncated: it holds 1 records"),
        (lambda f: (f / "data_batch_5.bin").write_bytes(b""), r"data_batch_5\.bin should .* holds 0 bytes"),
        (lambda f: (f / "data_batch_1.bin").write_bytes(bytes([10]) * 6146), "labels of 0 to 9, got 1 to 10"),
    ],
)
def test_damaged_cifar10_is_refused_even_with_the_subset_beside_it(tmp_path, damage, message):
    write_cifar10(tmp_path)
    np.savez(tmp_path / "cifar10_small.npz", **npz_arrays())
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        open_dataset(DataConfig("cifar10", str(tmp_path)))


@pytest.mark.parametrize("below", ["cifar-10-batches-py", "cifar10/cifar-10-batches-py", "cifar10"])
def test_pickled_cifar10_is_refused_unread_and_the_binary_version_named(tmp_path, below):
    """An empty file: nobody has looked into it. Beside a version that can be read, it does no harm."""
    (tmp_path / below).mkdir(parents=True)
    (tmp_path / below / "data_batch_1").touch()
    with pytest.raises(DataError, match=r"data_batch_1 is of .* pickled.*cifar-10-binary\.tar\.gz"):
        open_dataset(DataConfig("cifar10", str(tmp_path)))
    write_cifar10(tmp_path / "cifar10")
    assert len(open_dataset(DataConfig("cifar10", str(tmp_path))).test_labels) == 2


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_missing_files_and_no_hub_say_what_was_looked_for(tmp_path, monkeypatch, name):
    datasets = pytest.importorskip("datasets")

    def offline(repository: str) -> None:
        raise ConnectionError(f"cannot reach {repository}\nmany more lines")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError) as error:
        open_dataset(DataConfig(name, str(tmp_path)))
    message = str(error.value)
    assert str(tmp_path) in message
    assert "cannot reach" in message
    assert "FEDHP_DATA" in message
    assert "\n" not in message


@pytest.mark.parametrize("reachable", [True, False])
def test_hub_images_become_arrays(tmp_path, monkeypatch, request, reachable):
    """Where the hub cannot be reached, its client is asked for what it has loaded before, and only that."""
    datasets = pytest.importorskip("datasets")
    request.getfixturevalue("hub" if reachable else "hub_address")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    images = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), np.uint8)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"img": list(images), "label": [i % 10 for i in range(12)]}
    split = datasets.Dataset.from_dict(columns, features=features)
    asked = []

    def load(repository: str) -> dict:
        asked.append((repository, datasets.config.HF_HUB_OFFLINE))
        return {"train": split, "test": split}

    monkeypatch.setattr(datasets, "load_dataset", load)
    dataset = open_dataset(DataConfig("cifar10", str(tmp_path)))
    assert asked == [("uoft-cs/cifar10", not reachable)]
    assert datasets.config.HF_HUB_OFFLINE is False
    np.testing.assert_array_equal(dataset.train_images, images.transpose(0, 3, 1, 2))


@pytest.mark.usefixtures("hub_address")
def test_a_hub_that_cannot_be_reached_is_refused_with_the_cause(tmp_path, caplog):
    """The hub's own client is asked here, which would warn of each of six tries."""
    message = r"'ylecun/mnist' from the .* failed: .*refused.*; and from what was loaded before: .*ylecun"
    with pytest.raises(DataError, match=message):
        open_dataset(DataConfig("mnist", str(tmp_path)))
    assert not caplog.records


@pytest.mark.usefixtures("hub")
def test_another_number_of_rows_is_not_fetched_again(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    split = {"image": np.zeros((12, 4, 5), np.uint8), "label": np.arange(12) % 10}
    asked = []

    def load(repository: str) -> dict:
        asked.append(repository)
        return {"train": split, "test": split}

    monkeypatch.setattr(datasets, "load_dataset", load)
    configs = [DataConfig("mnist", str(tmp_path), max_train=number) for number in (3, 4, 0)]
    assert [len(open_dataset(config).train_labels) for config in configs] == [3, 4, 12]
    assert asked == ["ylecun/mnist"]


@pytest.mark.usefixtures("hub_address")
def test_what_the_hub_has_loaded_before_is_read_without_a_word(tmp_path, capfd, caplog):
    """Written as the hub's client keeps it; by itself it would tell, twice, where it has found that."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    columns = {"image": list(np.zeros((12, 4, 5), np.uint8)), "label": [i % 10 for i in range(12)]}
    rows = datasets.Dataset.from_dict(columns, features=features)
    folder = tmp_path / "hub" / "ylecun___mnist" / "mnist" / "0.0.0" / "0123"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        path = str(folder / f"mnist-{split}.arrow")
        with datasets.arrow_writer.ArrowWriter(path=path, features=features) as writer:
            writer.write_table(rows.data.table)
            writer.finalize()
    info = datasets.DatasetInfo(
        features=features,
        dataset_name="mnist",
        config_name="mnist",
        version="0.0.0",
        splits=datasets.splits.SplitDict(
            {name: datasets.SplitInfo(name, num_examples=12) for name in ("train", "test")}
        ),
    )
    info.write_to_directory(str(folder))
    assert len(open_dataset(DataConfig("mnist", str(tmp_path))).test_labels) == 12
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"fedhp\[server\]"):
        open_dataset(DataConfig("digits"))


def test_digits_are_split_by_class():
    """1797 rows, 80 to 20: 1437 and 360; each class keeps its share to within one row."""
    pytest.importorskip("sklearn")
    dataset = open_dataset(DataConfig("digits"))
    assert dataset.train_images.shape == (1437, 1, 8, 8)
    assert dataset.test_images.shape == (360, 1, 8, 8)
    assert dataset.train_images.dtype == np.uint8
    train, test = np.bincount(dataset.train_labels), np.bincount(dataset.test_labels)
    assert np.abs(train - 0.8 * (train + test)).max() <= 1
    scaled = dataset.train_images / 255
    assert scaled.mean() == pytest.approx(dataset.mean, abs=1e-4)
    assert scaled.std() == pytest.approx(dataset.std, abs=1e-4)


@pytest.mark.skipif(not REAL_DATA, reason="FEDHP_DATA names no folder of data sets")
@pytest.mark.parametrize(
    ("name", "folder", "shape"),
    [
        ("mnist", "mnist", (60000, 1, 28, 28)),
        ("fashion_mnist", "fashion-mnist", (60000, 1, 28, 28)),
        ("cifar10", "cifar10", (10000, 3, 32, 32)),
    ],
)
def test_published_files(name, folder, shape):
    if not (Path(REAL_DATA) / folder).is_dir():
        pytest.skip(f"FEDHP_DATA has no folder {folder}")
    dataset = open_dataset(DataConfig(name, REAL_DATA))
    assert dataset.train_images.shape == shape
    assert (np.bincount(dataset.train_labels, minlength=10) >= 1000).all()
    sample = dataset.train_images[:5000] / 255
    assert sample.mean() == pytest.approx(dataset.mean, abs=0.01)
    assert sample.std() == pytest.approx(dataset.std, abs=0.01)


# --- the user's own file -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ((12, 7), (12, 1, 1, 7)),
        ((12, 6, 5), (12, 1, 6, 5)),
        ((12, 6, 5, 3), (12, 3, 6, 5)),
        ((12, 3, 6, 5), (12, 3, 6, 5)),
        ((12, 3, 6, 4), (12, 3, 6, 4)),
        ((12, 6, 5, 8), (12, 6, 5, 8)),
    ],
)
def test_npz_layouts(tmp_path, given, stored):
    x = np.random.default_rng(0).integers(0, 256, given, np.uint8)
    config = npz_config(tmp_path, x_train=x, x_test=x[:6])
    dataset = open_dataset(config)
    assert dataset.train_images.shape == stored
    if given == (12, 6, 5, 3):
        np.testing.assert_array_equal(dataset.train_images[4, 2], x[4, :, :, 2])


def test_npz_by_file_name_and_in_double_precision(tmp_path):
    npz_config(tmp_path, x_train=np.ones((12, 3)), x_test=np.ones((6, 3)))
    dataset = open_dataset(DataConfig("npz", str(tmp_path / "data.npz")))
    assert dataset.train_images.dtype == np.float32
    assert dataset.num_classes == 3
    assert dataset.normalisation == Normalisation(
        (1.0,) * 3, (1.0,) * 3, 2
    )  # all equal: nothing to divide by


def test_npz_is_normalised_by_its_training_rows():
    """Values 0, 51, 102, 153 are 0, 0.2, 0.4, 0.6: mean 0.3, variance (0.09 + 0.01) / 2."""
    images = np.array([0, 51, 102, 153], np.uint8).reshape(4, 1, 1, 1)
    for given in (images, (images / 255).astype(np.float32)):
        assert_scale(measure(given, None), 0.3, 0.05**0.5)
    assert_scale(measure(images.astype(np.float32), None), 76.5, 255 * 0.05**0.5)


def test_more_values_than_a_slice_are_measured_as_one(monkeypatch):
    monkeypatch.setattr("fedhp.data.normalisation._SLICE", 28)
    values = 1000 + np.random.default_rng(0).standard_normal((25, 1, 2, 2)).astype(np.float32)
    wanted = values.astype(np.float64)
    assert_scale(measure(values, None), wanted.mean(), wanted.std(), rel=1e-12)


def test_bytes_and_floats_of_any_range_train_alike(tmp_path):
    """The same images in three forms, and samples that a device brings in the server's form."""
    x = np.random.default_rng(0).integers(0, 200, (12, 6, 5), np.uint8)
    forms = {"bytes": x, "floats": x.astype(np.float32), "shares": (x / 255).astype(np.float32)}
    server, device = {}, {}
    for name, form in forms.items():
        folder = tmp_path / name
        folder.mkdir()
        config = npz_config(folder, x_train=form, x_test=form[:6])
        dataset = open_dataset(config)
        server[name] = test_shard(config).batch(np.arange(6))[0]
        own = device_shard(str(folder / "data.npz"), normalisation=dataset.normalisation)
        device[name] = own.batch(np.arange(6))[0]
    expected = (x[:6] - x.mean()) / x.std()
    for name in forms:
        np.testing.assert_allclose(server[name][:, 0], expected, atol=1e-5)
        np.testing.assert_array_equal(server[name], device[name])


@pytest.mark.parametrize("max_train", [0, 5])
def test_rows_that_are_left_out_still_count_for_the_scale(tmp_path, max_train):
    npz_config(tmp_path)
    dataset = open_dataset(DataConfig("npz", str(tmp_path), max_train=max_train))
    # Of three features, in twelve rows: 0, 3, ..., 33 and the same plus 1 and 2.
    assert dataset.normalisation.mean == (16.5, 17.5, 18.5)
    assert dataset.normalisation.std == pytest.approx([3 * np.arange(12).std()] * 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "lacks y_test"),
        ({"y_train": np.arange(12) - 1}, "y_train must hold labels of 0 or more, got -1 to 10"),
        ({"y_test": np.full(6, 3)}, "y_test must hold labels of 0 to 2, got 3 to 3"),
        ({"y_train": np.zeros(12)}, "integers .* got float64"),
        ({"y_train": np.zeros((12, 1), int)}, r"shape \(12,\), got \(12, 1\)"),
        ({"x_train": np.full((12, 3), np.nan)}, "NaN"),
        ({"x_test": np.full((6, 3), np.inf, np.float32)}, "x_test holds NaN, infinite"),
        ({"x_train": np.full((12, 3), 1e300)}, "not finite as float32"),
        ({"x_train": np.zeros((12, 3), complex)}, r"got complex128; .*stack\(\[x.real, x.imag\], axis=1\)"),
        ({"x_train": np.full((12, 3), "1")}, r"hold numbers, got <U1; .*\.astype\(float\)"),
        ({"x_train": np.zeros((12, 3), "M8[s]")}, r"got datetime64\[s\]; .*\.astype\('int64'\)"),
        ({"x_train": np.zeros(12, [("a", "f8"), ("b", "f8")])}, "structured_to_unstructured"),
        ({"x_train": np.zeros((12, 2, 1, 4, 4))}, r"must have shape .* got \(12, 2, 1, 4, 4\)"),
        ({"x_train": np.zeros((0, 3), np.float32), "y_train": np.zeros(0, int)}, "not be empty"),
        ({"x_train": np.zeros(12, np.float32)}, r"must have shape .* got \(12,\); .*reshape\(-1, 1\)"),
        ({"x_test": np.zeros((6, 4), np.float32)}, "must agree in shape and type"),
        ({"x_test": np.zeros((6, 3), np.uint8)}, "must agree in shape and type"),
        ({"x_train": np.array([None] * 12)}, r"Python objects, .* take \.astype\(str\) of names"),
        ({"client_train": np.zeros(11, int)}, "client_train must name each training row's owner"),
        ({"client_train": np.zeros(12)}, "by an integer or a text"),
    ],
)
def test_unusable_npz_is_refused(tmp_path, changes, message):
    config = npz_config(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as error:
        open_dataset(config)
    assert "data.npz" in str(error.value)


def _labels(num_classes: int, **at_row: int) -> np.ndarray:
    """Ten thousand labels that count 0, 1, 2, ..., but for some rows."""
    labels = np.arange(10_000) % num_classes
    for row, label in at_row.items():
        labels[int(row.removeprefix("row"))] = label
    return labels


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (_labels(10, row7=1_000_000, row9=1_000_000), r"11 distinct .* them 1000000 \(row 7\), where"),
        (_labels(10, row7=1000), r"them 1000 \(row 7\), where labels below 1000 are taken"),
        (_labels(200, row7=2010), r"201 distinct .* them 2010 \(row 7\), where labels below 2010 are taken"),
        (
            _labels(10, row4=7000, row3=6000, row2=8000, row1=9000),
            r"14 distinct .* them 6000 \(row 3\), 7000 \(row 4\), 8000 \(row 2\) and 1 more, where",
        ),
        (np.full(10_000, 2**64 - 1, np.uint64), r"them 18446744073709551615 \(row 0\), where"),
    ],
)
def test_labels_far_from_dense_are_refused_with_their_rows(tmp_path, labels, said):
    """A model would have an output for each label up to the highest."""
    x_train, x_test = np.zeros((10_000, 1), np.uint8), np.zeros((6, 1), np.uint8)
    config = npz_config(tmp_path, x_train=x_train, y_train=labels, x_test=x_test)
    with pytest.raises(
        DataError, match=f"y_train must .*{said}.* renumber the classes in y_train and y_test"
    ):
        open_dataset(config)


@pytest.mark.parametrize(
    ("labels", "num_classes"),
    [(_labels(10, row7=999), 1000), (_labels(200, row7=2009), 2010), (_labels(9_999), 9_999)],
)
def test_labels_with_few_gaps_are_taken(tmp_path, labels, num_classes):
    """Below 1000 whatever the gaps, and below ten times the distinct labels: 201 of them, in the second."""
    x_train, x_test = np.zeros((10_000, 1), np.uint8), np.zeros((6, 1), np.uint8)
    config = npz_config(tmp_path, x_train=x_train, y_train=labels, x_test=x_test)
    assert open_dataset(config).num_classes == num_classes


def test_missing_or_damaged_npz_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.root=FILE\.npz"):
        open_dataset(DataConfig("npz"))
    with pytest.raises(DataError, match=r"data\.root=FILE\.npz"):
        open_dataset(DataConfig("npz", str(tmp_path)))
    npz_config(tmp_path)
    file = tmp_path / "data.npz"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"is no \.npz file"):
        open_dataset(DataConfig("npz", str(tmp_path)))
    np.save(tmp_path / "bare.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"is no \.npz file"):
        open_dataset(DataConfig("npz", str(tmp_path / "bare.npy")))


# --- the cache ---------------------------------------------------------------------------------


def test_arrays_are_read_only_maps_of_one_file(tmp_path):
    dataset = open_dataset(npz_config(tmp_path))
    assert isinstance(dataset.train_images.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        dataset.train_images[0] = 0


def test_changed_file_is_prepared_again(tmp_path):
    first = open_dataset(npz_config(tmp_path))
    folder = tmp_path / "other"
    folder.mkdir()
    config = npz_config(folder, x_train=np.ones((12, 3), np.float32))
    second = open_dataset(config)
    assert first.key != second.key
    assert (second.mean == 1).all()


def _prepare_slowly(cache: str, barrier, value: int, answers) -> None:
    os.environ["FEDHP_CACHE"] = cache

    def prepare() -> dict[str, np.ndarray]:
        barrier.wait(60)  # both processes have found the cache empty
        return {"a": np.full(5, value)}

    answers.put(prepared("race", "key", prepare)["a"].tolist())


def test_racing_processes_agree(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    cache = str(tmp_path / "cache")
    workers = [
        context.Process(target=_prepare_slowly, args=(cache, barrier, value, answers)) for value in (1, 2)
    ]
    for worker in workers:
        worker.start()
    got = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert got[0] == got[1]
    assert got[0] in ([1] * 5, [2] * 5)
    assert [path.name for path in (tmp_path / "cache" / "race").iterdir()] == ["key"]


def test_failed_preparation_leaves_nothing_behind():
    with pytest.raises(RuntimeError):
        prepared("kind", "key", lambda: (_ for _ in ()).throw(RuntimeError()))
    assert prepared("kind", "key", lambda: {"a": np.ones(2)})["a"].tolist() == [1, 1]


def test_damaged_cache_names_the_folder_to_delete():
    prepared("kind", "key", lambda: {"a": np.ones(1000)})
    file = cache_folder() / "kind" / "key" / "a.npy"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match="delete that folder"):
        prepared("kind", "key", dict)


def test_cache_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDHP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="set FEDHP_CACHE"):
        cache_folder()


def test_cache_falls_back_to_the_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delenv("FEDHP_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_folder().parent == tmp_path


# --- partitions --------------------------------------------------------------------------------


@pytest.fixture
def mnist(tmp_path):
    """60 rows, 6 of each of 10 classes: row r has label r mod 10."""
    pytest.importorskip("flwr_datasets")
    write_mnist(tmp_path)

    def config(name: str, **values) -> DataConfig:
        partition = PartitionConfig(name, **{"min_samples": 1, **values})
        return DataConfig("mnist", str(tmp_path), partition)

    return config


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards", "pathological"])
def test_partitions_are_disjoint_whole_and_deterministic(mnist, name, monkeypatch, tmp_path):
    config = mnist(name, alpha=5.0)
    parts = partition_rows(config, 10, seed=1)
    assert len(parts) == 10
    assert sorted(np.concatenate(parts).tolist()) == list(range(60))
    assert all(part.dtype == np.intp and not part.flags.writeable for part in parts)
    other = partition_rows(config, 10, seed=2)
    assert [part.tolist() for part in other] != [part.tolist() for part in parts]
    monkeypatch.setenv("FEDHP_CACHE", str(tmp_path / "second"))
    again = partition_rows(config, 10, seed=1)
    assert [part.tolist() for part in again] == [part.tolist() for part in parts]


def test_prepared_partition_needs_no_partitioner(mnist, monkeypatch):
    config = mnist("dirichlet", alpha=5.0)
    expected = [part.tolist() for part in partition_rows(config, 4, 0)]
    from fedhp.data.partition import _divided

    _divided.cache_clear()
    for module in ("datasets", "flwr_datasets", "flwr_datasets.partitioner"):
        monkeypatch.setitem(sys.modules, module, None)
    assert [part.tolist() for part in partition_rows(config, 4, 0)] == expected
    with pytest.raises(MissingExtraError, match=r"fedhp\[server\]"):
        partition_rows(config, 4, 99)


@pytest.mark.parametrize(("name", "num_clients"), [("iid", 5), ("natural", 4)])
def test_parts_that_are_cut_here_are_those_of_flwr_datasets(tmp_path, name, num_clients):
    datasets, partitioner = pytest.importorskip("datasets"), pytest.importorskip("flwr_datasets.partitioner")
    owners = np.array([7, 3, 3, 9, 7, 3, 1, 9, 3, 7, 3, 9])
    parts = partition_rows(
        npz_config(tmp_path, PartitionConfig(name, min_samples=1), client_train=owners), num_clients, 3
    )
    order = generator(3, "partition", "order").permutation(12)
    theirs = {
        "iid": lambda: partitioner.IidPartitioner(num_clients),
        "natural": lambda: partitioner.NaturalIdPartitioner("owner"),
    }[name]()
    theirs.dataset = datasets.Dataset.from_dict({"row": order, "owner": owners[order]})
    expected = [theirs.load_partition(client)["row"][:] for client in range(num_clients)]
    assert [part.tolist() for part in parts] == expected


def test_iid_is_even_and_shards_hold_few_classes(mnist):
    assert {len(part) for part in partition_rows(mnist("iid"), 5, 0)} == {12}
    # 30 shards of 2 rows, 2 per client: at most 2 classes each, since 6 rows per class divide by 2.
    shards = partition_rows(mnist("shards"), 15, 0)
    assert all(len(part) == 4 and len(set(part % 10)) <= 2 for part in shards)


def test_pathological_clients_see_the_asked_number_of_classes(mnist):
    parts = partition_rows(mnist("pathological", classes_per_client=3), 10, 0)
    assert [len(set((part % 10).tolist())) for part in parts] == [3] * 10


def test_label_counts_count_each_clients_own_rows(tmp_path):
    """Rows go to owners 5 and 9 by turns, with the labels 0 and 0, and 1 and 2: three times each."""
    pytest.importorskip("flwr_datasets")
    labels = np.array([0, 1, 0, 2] * 3)
    owners = np.array([5, 9] * 6)
    partition = PartitionConfig("natural", min_samples=1)
    config = npz_config(tmp_path, partition, client_train=owners, y_train=labels)
    assert [own.tolist() for own in label_counts(config, 2, 0)] == [[6, 0, 0], [0, 3, 3]]


def test_natural_owners_in_sorted_order(tmp_path):
    pytest.importorskip("flwr_datasets")
    owners = np.array(["b", "c", "a"] * 4)
    config = npz_config(tmp_path, PartitionConfig("natural", min_samples=1), client_train=owners)
    parts = partition_rows(config, 3, 0)
    expected = [[2, 5, 8, 11], [0, 3, 6, 9], [1, 4, 7, 10]]
    assert [sorted(part.tolist()) for part in parts] == expected
    with pytest.raises(DataError, match=r"3 owners .* set fleet\.num_clients=3"):
        partition_rows(config, 4, 0)


@pytest.mark.parametrize(
    ("name", "values", "num_clients", "message"),
    [
        ("iid", {}, 61, "60 training rows cannot be divided among 61 clients"),
        ("iid", {"min_samples": 7}, 10, "at least 7 each: it takes at least 70 rows"),
        (
            "dirichlet",
            {"alpha": 0.01, "min_samples": 10},
            6,
            "each of ten draws left .* larger data.partition.alpha",
        ),
        ("shards", {"shards_per_client": 4}, 16, "it takes at least 64 rows"),
        ("pathological", {"classes_per_client": 11}, 2, "classes_per_client = 11 exceeds the 10 classes"),
        ("pathological", {"classes_per_client": 1, "min_samples": 4}, 11, "each: client 0 would get 3"),
        ("natural", {}, 3, "an .npz file with client_train"),
    ],
)
def test_impossible_partition_is_refused(mnist, name, values, num_clients, message):
    with pytest.raises(DataError, match=message):
        partition_rows(mnist(name, **values), num_clients, 0)


def test_partitioners_stay_silent(mnist, capfd):
    partition_rows(mnist("dirichlet", alpha=0.4, min_samples=3), 5, 0)
    assert capfd.readouterr() == ("", "")


# --- shards ------------------------------------------------------------------------------------


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
