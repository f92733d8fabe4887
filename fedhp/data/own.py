"""A device's own samples as they lie there: ``.npz``, images in folders, idx files, a table in CSV."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedhp.choices import file_meant
from fedhp.data.checks import checked_images
from fedhp.data.files import read_idx
from fedhp.data.labels import checked_labels, names_in
from fedhp.data.npz import read_npz
from fedhp.errors import DataError, require

if TYPE_CHECKING:
    from PIL.Image import Image

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by the channels that a model takes
_IDX_IMAGES, _IDX_LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_LABEL_COLUMNS = ("label", "class", "target", "y")


class Samples(NamedTuple):
    """Samples and labels as they were found, and what they are called in errors."""

    images: NDArray[np.generic]
    labels: NDArray[np.generic]
    images_place: str
    labels_place: str


@dataclass(frozen=True)
class OwnData:
    """A device's samples, found and not read yet.

    Attributes:
        files: All that they are read from.
        read: Returns them; of images, given the number of channels that the model takes, if that is known.
    """

    files: Sequence[Path]
    read: Callable[[int | None], Samples]


def find_own(path: Path) -> OwnData:
    """Finds a device's samples by what lies at a path.

    Raises:
        DataError: If nothing of a known kind lies there.
    """
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        suffixes = (".npz", ".csv")
        raise DataError(
            f"no file {path}; it should be an .npz file with x_train and y_train, a folder of images or idx "
            f"files, or a CSV file{file_meant(path, suffixes)}"
        )
    if path.suffix == ".csv":
        return OwnData([path], lambda channels: _read_table(path))
    if _IDX_IMAGES in path.name:
        return _idx(path)
    return OwnData([path], lambda channels: _read_npz(path))


def check_own(path: Path) -> None:
    """Reads a device's samples, whatever scenario they may be for.

    Raises:
        FedhpError: If they would fit none.
    """
    own = find_own(path).read(1)  # in grey, images of any kind are of one shape
    images, _ = checked_images(own.images, own.images_place)
    names = names_in(own.labels, own.labels_place)
    counted = own.labels.dtype.kind in "biu"
    classes = int(own.labels.max(initial=0)) + 1 if counted else None
    checked_labels(own.labels, len(images), classes, own.labels_place, names)


def _in_folder(folder: Path) -> OwnData:
    pairs = [path for path in sorted(folder.iterdir()) if _IDX_IMAGES in path.name]
    training = [path for path in pairs if not path.name.startswith(("t10k", "test"))]
    if training:
        return _idx(training[0])
    if (folder / "data.npz").is_file():
        return OwnData([folder / "data.npz"], lambda channels: _read_npz(folder / "data.npz"))
    images = [path for path in sorted(folder.glob("*/*")) if path.suffix.lower() in _IMAGES]
    if not images:
        raise DataError(
            f"{folder} holds no samples: it should have a folder of images ({', '.join(_IMAGES)}) for each "
            f"class, train-{_IDX_IMAGES} and train-{_IDX_LABELS} (or .gz), or data.npz"
        )
    return OwnData(images, lambda channels: _read_images(folder, images, channels))


def _read_npz(path: Path) -> Samples:
    raw = read_npz(path, ("x_train", "y_train"))
    return Samples(raw["x_train"], raw["y_train"], f"{path}: x_train", f"{path}: y_train")


def _idx(images: Path) -> OwnData:
    labels = images.with_name(images.name.replace(_IDX_IMAGES, _IDX_LABELS))
    beside = [labels, labels.with_suffix("") if labels.suffix == ".gz" else Path(f"{labels}.gz")]
    found = next((path for path in beside if path.is_file()), None)
    if found is None:
        raise DataError(f"{images} has no labels: {labels.name} is missing beside it")
    place = str(images), str(found)
    return OwnData([images, found], lambda channels: Samples(read_idx(images, 3), read_idx(found, 1), *place))


def _read_images(folder: Path, files: Sequence[Path], channels: int | None) -> Samples:
    """Reads images of one size, each labelled by its folder's name: a class's number, or its name."""
    with require(f"{folder}, a folder of images,", "images", "pillow"):
        from PIL import Image
    images: list[NDArray[np.uint8]] = []
    for file in files:
        try:
            with Image.open(file) as image:
                images.append(_pixels(image, channels))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{file} is no image that can be read: {error}") from None
        if images[-1].shape != images[0].shape:
            raise DataError(
                f"{file} is an image of shape {images[-1].shape} (height, width, channels), and {files[0]} "
                f"of {images[0].shape}; bring all to the size that the model takes"
            )
    names = [file.parent.name for file in files]
    numbered = all(name.isdecimal() for name in names)
    labels = np.array([int(name) for name in names] if numbered else names)
    stacked = np.stack(images).transpose(0, 3, 1, 2)
    return Samples(stacked, labels, f"{folder}: images", f"{folder}: names of its folders")


def _pixels(image: "Image", channels: int | None) -> NDArray[np.uint8]:
    if image.mode.startswith(("I", "F")):  # which Pillow clips to 8 bits, and so to black and white
        raise ValueError(f"its pixels have more than 8 bits (mode {image.mode}); save it with 8, or as .npz")
    mode = _MODES.get(channels or (1 if image.mode in ("1", "L") else 3), "RGB")
    pixels = np.asarray(image.convert(mode), np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _read_table(path: Path) -> Samples:
    """Reads a row of features per sample, and its label: in a column of that name, or the last."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = [(number, row) for number, row in enumerate(csv.reader(lines), 1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file that can be read: {error}") from None
    if not rows:
        raise DataError(f"{path} must have a row of numbers and a label for each sample, and not be empty")
    head = rows[0][1]
    names = [cell.strip().lower() for cell in head]
    # A table's columns may be named by numbers, beside that of its labels.
    named = len(rows) > 1 and (
        any(name in _LABEL_COLUMNS for name in names) or not any(map(_is_number, names))
    )
    names = names if named else []
    column = next((names.index(name) for name in _LABEL_COLUMNS if name in names), len(head) - 1)
    features, labels = [], []
    for number, row in rows[1:] if named else rows:
        if len(row) != len(head) or len(row) < 2:
            wanted = f"{path}, line {number}: expected {max(len(head), 2)} columns, got {len(row)}"
            raise DataError(wanted + _separated(row[0]))
        labels.append(row[column].strip())
        features.append(list(_numbers(path, number, [*row[:column], *row[column + 1 :]])))
    whole = all(_is_whole(label) for label in labels)
    found = np.array([int(float(label)) for label in labels] if whole else labels)
    return Samples(np.array(features, np.float32), found, f"{path}: features", f"{path}: labels")


def _numbers(path: Path, line: int, cells: Sequence[str]) -> Iterator[float]:
    for cell in cells:
        if not _is_number(cell):
            raise DataError(f"{path}, line {line}: expected a number, got {cell[:40]!r}{_separated(cell)}")
        yield float(cell)


def _separated(cell: str) -> str:
    """Says what is amiss where a cell holds several, by what other programs and countries separate them."""
    mark = next((mark for mark in (";", "\t", " ") if mark in cell.strip()), None)
    if mark is None or (mark == " " and not all(map(_is_number, cell.split()))):
        return ""
    return f"; cells are separated by {mark!r} there, and must be by commas, with points in numbers"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell  # Python's own way to write 1_000


def _is_whole(cell: str) -> bool:
    return _is_number(cell) and float(cell).is_integer()
