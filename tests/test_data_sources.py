"""Where data is found and read from: files, scikit-learn, the Hugging Face hub."""

import gzip
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
from data_files import npz_arrays, write_idx, write_mnist

from fedhp.data import DataConfig, PartitionConfig, open_dataset
from fedhp.errors import DataError, MissingExtraError, ScenarioError

pytestmark = pytest.mark.usefixtures("own_cache")


REAL_DATA = os.environ.get("FEDHP_DATA", "")


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
