"""A file of the user's own, as arrays."""

import numpy as np
import pytest
from data_files import npz_config

from fedhp.data import DataConfig, Normalisation, device_shard, open_dataset, test_shard
from fedhp.data.normalisation import measure
from fedhp.errors import DataError

test_shard.__test__ = False  # a function of the product, not a test
pytestmark = pytest.mark.usefixtures("own_cache")


def assert_scale(found: Normalisation, mean: float, std: float, rel: float = 1e-6) -> None:
    assert (found.mean, found.std) == (pytest.approx([mean], rel=rel), pytest.approx([std], rel=rel))


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
