"""A device's own samples in what people have them in: images in folders, idx files, tables in CSV."""

import gzip
import struct

import numpy as np
import pytest

from fedhp.data import Normalisation, device_shard
from fedhp.data.own import find_own
from fedhp.errors import DataError

pytestmark = pytest.mark.usefixtures("own_cache")

SCALE = Normalisation((0.5,), (0.25,))


def opened(path, shape=None, classes=None, names=()):
    return device_shard(
        str(path), normalisation=SCALE, input_shape=shape, num_classes=classes, label_names=names
    )


def write_image(path, pixels):
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(pixels).save(path)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_images_are_labelled_by_their_folders(tmp_path):
    """Two grey ones of class 3 and one of class 12: folders are in the order of texts, '12' before '3'."""
    for number, name in enumerate(("3/a.png", "3/b.png", "12/a.png")):
        write_image(tmp_path / name, pixels(4, 5, seed=number))
    own = find_own(tmp_path).read(1)
    assert own.labels.tolist() == [12, 3, 3]
    np.testing.assert_array_equal(own.images[1, 0], pixels(4, 5, seed=0))
    assert opened(tmp_path, (1, 4, 5), 13).label_counts().tolist() == [0] * 3 + [2] + [0] * 8 + [1]


def test_images_come_in_the_channels_that_the_model_takes(tmp_path):
    """Of a pixel (r, g, b), grey is .299 r + .587 g + .114 b (ITU-R 601-2): 76 of pure red, to within 1."""
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    red[:2] = 10  # or all its values were alike
    write_image(tmp_path / "cat" / "a.png", red)
    write_image(tmp_path / "dog" / "a.png", red)
    grey = find_own(tmp_path).read(1)
    assert abs(int(grey.images[0, 0, 3, 0]) - 76) <= 1
    assert grey.labels.tolist() == ["cat", "dog"]
    np.testing.assert_array_equal(find_own(tmp_path).read(3).images[0], red.transpose(2, 0, 1))
    assert opened(tmp_path, (1, 4, 4), 2, ("dog", "cat")).label_counts().tolist() == [1, 1]


def test_an_image_that_would_be_read_wrongly_or_not_at_all_is_named(tmp_path):
    """Of 16 bits, which Pillow 13.0 clips to 8, so to black and white; and with a chunk that is none."""
    write_image(tmp_path / "deep" / "0" / "a.png", np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16))
    with pytest.raises(
        DataError, match=r"a\.png is no image .*more than 8 bits \(mode I;16\); save it with 8"
    ):
        find_own(tmp_path / "deep").read(1)
    file = tmp_path / "broken" / "0" / "b.png"
    write_image(file, pixels(8, 8))
    file.write_bytes(file.read_bytes().replace(b"IDAT", b"ID\x01T"))
    with pytest.raises(DataError, match=r"b\.png is no image that can be read"):
        find_own(tmp_path / "broken").read(1)


def write_idx(path, array, zipped=False):
    content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if zipped else content)


def test_idx_files_are_found_in_their_folder_or_by_name(tmp_path):
    images, labels = pixels(6, 3, 4), np.arange(6, dtype=np.uint8)
    write_idx(tmp_path / "t10k-images-idx3-ubyte", pixels(2, 3, 4, seed=1))
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    with pytest.raises(DataError, match="train-labels-idx1-ubyte is missing beside it"):
        opened(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", labels, zipped=True)
    for path in (tmp_path, tmp_path / "train-images-idx3-ubyte"):
        own = find_own(path).read(None)
        np.testing.assert_array_equal(own.images, images)
        assert own.labels.tolist() == labels.tolist()
        assert len(opened(path, (1, 3, 4), 6)) == 6


@pytest.mark.parametrize(
    "text",
    [
        "1,2.5,0\n-3,4e-1,2\n",
        "height,width,kind\n1,2.5,0\n\n-3,4e-1,2\n",
        "\ufefflabel,height,width\r\n0,1,2.5\r\n2,-3,.4\r\n",
        "0,1,label\n1,2.5,0\n-3,.4,2\n",
    ],
)
def test_a_table_has_a_row_a_sample(tmp_path, text):
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8", newline="")
    own = find_own(tmp_path / "mine.csv").read(None)
    assert own.labels.tolist() == [0, 2]
    np.testing.assert_allclose(own.images, [[1, 2.5], [-3, 0.4]], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("mine.csv", "1,2,0\n1,2\n", "line 2: expected 3 columns, got 2"),
        ("mine.csv", "1,2,0\n1,two,0\n", "line 2: expected a number, got 'two'"),
        ("mine.csv", "1,2,0\n1,2,7\n", "labels must hold labels of 0 to 2, got 0 to 7"),
        ("mine.csv", "a,b,kind\n1,2,cat\n", "'cat', which is no class that training knows"),
        ("mine.csv", "1,2,3,0\n", "holds samples of shape .1, 1, 3., and|the model takes"),
        ("mine.csv", "", "not be empty"),
        ("mine.csv", "\n\n", "must have a row of numbers and a label for each sample"),
        ("mine.csv", "1;2;0\n3;4;1\n", "expected 2 columns, got 1; cells are separated by ';' there"),
        ("mine.csv", "a\tb\tkind\n3\t4\t1\n", r"line 2: .*; cells are separated by '\\t' there"),
        ("mine.csv", "1.0 2.0 0\n", "cells are separated by ' ' there, and must be by commas"),
        ("mine.csv", "1,5;2,5;0\n", "expected a number, got '5;2'; cells are separated by ';'"),
        ("mine.csv", "1,2,0\n1,not here,0\n", "got 'not here'$"),
        ("mine.csv", "1,2_0,0\n", "expected a number, got '2_0'$"),
        ("mine.npy", None, "no file .*mine.npy; it should be an .npz file"),
        ("mine.txt", "1,2,0", "is no .npz file"),
    ],
)
def test_a_file_that_is_none_of_these_is_named(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        opened(tmp_path / name, (1, 1, 2), 3)


def test_as_many_values_in_another_shape_are_told_how_to_be_brought_into_it(tmp_path):
    (tmp_path / "mine.csv").write_text("0,.5,1,.25,0\n.5,0,.25,1,1\n")
    with pytest.raises(DataError, match=r"takes \(1, 2, 2\); give an \.npz file of .*reshape\(-1, 1, 2, 2\)"):
        opened(tmp_path / "mine.csv", (1, 2, 2), 2)
    np.savez(tmp_path / "mine.npz", x_train=np.eye(4).reshape(-1, 1, 2, 2), y_train=[0, 1, 0, 1])
    assert opened(tmp_path / "mine.npz", (1, 2, 2), 2).input_shape == (1, 2, 2)


def test_a_folder_that_fits_nothing_is_named(tmp_path):
    with pytest.raises(DataError, match="holds no samples"):
        opened(tmp_path)
    write_image(tmp_path / "0" / "a.png", pixels(4, 4))
    with pytest.raises(DataError, match=r"the model takes \(1, 8, 8\)"):
        opened(tmp_path, (1, 8, 8), 10)
    write_image(tmp_path / "0" / "b.png", pixels(4, 5))
    with pytest.raises(DataError, match=r"b\.png is an image of shape \(4, 5, 1\)"):
        opened(tmp_path, (1, 4, 4), 10)
    (tmp_path / "0" / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b\.png is no image that can be read"):
        opened(tmp_path, (1, 4, 4), 10)
