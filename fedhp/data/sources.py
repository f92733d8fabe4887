"""The data sets that fedhp knows by name, and the user's own."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.choices import file_meant
from fedhp.data.checks import checked_images
from fedhp.data.files import read_cifar10, read_idx
from fedhp.data.hub import Hub, read_hub
from fedhp.data.labels import checked_labels, checked_owners, names_in
from fedhp.data.npz import read_npz
from fedhp.errors import DataError, require

Arrays = Mapping[str, NDArray[Any]]

NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(frozen=True)
class Located:
    """A source found on this machine.

    Attributes:
        identity: What it is; with the state of its files, the key under which it is prepared.
        files: The files that it reads; none where it needs none.
        read: Given a layout, one of `LAYOUTS`, returns ``train_images``, ``train_labels``, ``test_images``,
            ``test_labels``, ``num_classes`` (one number), ``label_names`` (none where classes have only
            numbers), ``axis`` (that of a sample whose entries have scales of their own) and, where rows have
            owners, ``client_train`` and ``owner_names``; all checked, not normalised.
    """

    identity: str
    files: tuple[Path, ...]
    read: Callable[[str], Arrays]

    @property
    def said(self) -> str:
        """Names it in errors."""
        return str(self.files[0]) if len(self.files) == 1 else self.identity


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        locate: Finds it below a root folder; empty when the user gave none.
        normalisation: Mean and standard deviation of all values, with uint8 scaled to 0 .. 1, where they are
            known beforehand; None where the training rows have to be measured.
        label_names: The classes' names, where they are known beforehand.
        input_shape: Channels, height and width of a sample, where they are known beforehand.
        num_classes: The number of classes; where the shape is not known, it is not either.
    """

    locate: Callable[[str], Located]
    normalisation: tuple[float, float] | None = None
    label_names: tuple[str, ...] = ()
    input_shape: tuple[int, int, int] | None = None
    num_classes: int = 10


def _gathered(raw: Arrays, place: str, num_classes: int | None = None, layout: str = "auto") -> Arrays:
    """Returns the checked form of `NPZ_KEYS` and, where it is there, ``client_train``."""
    images, axis = checked_images(raw["x_train"], f"{place}: x_train", layout)
    test_images, _ = checked_images(raw["x_test"], f"{place}: x_test", layout)
    bytes_in = [array.dtype == np.uint8 for array in (images, test_images)]  # which count as 0 to 1
    if images.shape[1:] != test_images.shape[1:] or any(bytes_in) != all(bytes_in):
        raise DataError(
            f"{place}: x_train and x_test must agree in shape and type, got {images.shape[1:]} of "
            f"{images.dtype} and {test_images.shape[1:]} of {test_images.dtype}"
        )
    names = names_in(raw["y_train"], f"{place}: y_train")
    labels = checked_labels(raw["y_train"], len(images), num_classes, f"{place}: y_train", names)
    known = num_classes or int(labels.max()) + 1
    arrays: dict[str, NDArray[Any]] = {
        "train_images": images,
        "train_labels": labels,
        "test_images": test_images,
        "test_labels": checked_labels(raw["y_test"], len(test_images), known, f"{place}: y_test", names),
        "num_classes": np.array([known]),
        "label_names": np.array(names, str),
        "axis": np.array([axis]),
    }
    if "client_train" in raw:
        place = f"{place}: client_train"
        arrays["client_train"], owners = checked_owners(raw["client_train"], len(images), place)
        arrays["owner_names"] = np.array(owners, str)
    return arrays


def _read_digits(layout: str) -> Arrays:
    with require("the data set 'digits'", "server", "scikit-learn"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    values, targets = load_digits(return_X_y=True)
    # Values are 0 .. 16; as uint8 a stored sample takes a quarter of the memory.
    images = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    x_train, x_test, y_train, y_test = train_test_split(
        images, targets, test_size=0.2, random_state=0, stratify=targets
    )
    split = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    raw = {key: np.asarray(array) for key, array in split.items()}
    return _gathered(raw, "digits", 10)


def _locate_digits(root: str) -> Located:
    return Located("digits", (), _read_digits)


_IDX_FILES = {
    "x_train": ("train-images-idx3-ubyte", 3),
    "y_train": ("train-labels-idx1-ubyte", 1),
    "x_test": ("t10k-images-idx3-ubyte", 3),
    "y_test": ("t10k-labels-idx1-ubyte", 1),
}


def _locate_idx(folder: str, hub: Hub, root: str) -> Located:
    names = [name for name, _ in _IDX_FILES.values()]
    if files := _complete_set(folder, _places(root, folder), names):
        found = dict(zip(_IDX_FILES, files, strict=True))
        return Located(folder, tuple(files), partial(_read_idx_set, found))
    return _on_hub(hub, folder, f"{', '.join(names)} (or .gz)", root)


def _read_idx_set(files: Mapping[str, Path], layout: str) -> Arrays:
    raw = {key: read_idx(path, _IDX_FILES[key][1]) for key, path in files.items()}
    return _gathered(raw, str(files["x_train"].parent), 10)


_CIFAR_FOLDER = "cifar-10-batches-bin"
_CIFAR_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
_CIFAR_SUBSET = "cifar10_small.npz"


def _locate_cifar10(root: str) -> Located:
    places = [place / below for place in _places(root, "cifar10") for below in (_CIFAR_FOLDER, "")]
    if files := _complete_set("cifar10", places, _CIFAR_FILES):
        return Located("cifar10", tuple(files), partial(_read_cifar10_set, files))
    for place in places:
        if os.path.isfile(file := place / _CIFAR_SUBSET):
            return Located("cifar10", (file,), partial(_read_npz_set, file, 10))
    _refuse_pickled_cifar10(places)
    names = f"{_CIFAR_FOLDER} (with {', '.join(_CIFAR_FILES)}) or {_CIFAR_SUBSET}"
    return _on_hub(Hub("uoft-cs/cifar10", images="img"), "cifar10", names, root)


def _refuse_pickled_cifar10(places: Sequence[Path]) -> None:
    for place in places:
        for file in (place / "cifar-10-batches-py" / "data_batch_1", place / "data_batch_1"):
            if os.path.isfile(file):
                raise DataError(
                    f"{file} is of CIFAR-10's python version, which is pickled: to read it is to run "
                    f"whatever code it holds, and so it is refused. Unpack the binary version, "
                    f"cifar-10-binary.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html, there instead"
                )


def _read_cifar10_set(files: Sequence[Path], layout: str) -> Arrays:
    batches = [read_cifar10(file) for file in files]
    lengths = [len(labels) for _, labels in batches]
    if min(lengths) < max(lengths):
        shortest = files[lengths.index(min(lengths))]
        raise DataError(
            f"{shortest} is truncated: it holds {min(lengths)} records, and another file of the set "
            f"{max(lengths)}. Fetch it again"
        )
    *train, (test_images, test_labels) = batches
    raw = {
        "x_train": np.concatenate([images for images, _ in train]),
        "y_train": np.concatenate([labels for _, labels in train]),
        "x_test": test_images,
        "y_test": test_labels,
    }
    return _gathered(raw, str(files[0].parent), 10)


def _locate_npz(root: str) -> Located:
    path = Path(os.path.expanduser(root))
    file = path / "data.npz" if os.path.isdir(path) else path
    if not root or not os.path.isfile(file):
        raise DataError(
            f"data.name 'npz': no file {file if root else 'given'}; the scenario wants an .npz file of "
            f"yours: data.root=FILE.npz, with {', '.join(NPZ_KEYS)}, or the folder that holds it as data.npz "
            f"(docs/scenarios.md tells how to make one){file_meant(path, ('.npz',)) if root else ''}"
        )
    return Located("npz", (file,), partial(_read_npz_set, file, None))


def _read_npz_set(file: Path, num_classes: int | None, layout: str) -> Arrays:
    return _gathered(read_npz(file, NPZ_KEYS, ("client_train",)), str(file), num_classes, layout)


def _places(root: str, folder: str) -> list[Path]:
    """Returns the folders to look in, the likeliest first."""
    whole = Path(os.path.expanduser(root))
    return [whole / folder, whole] if root else []


def _complete_set(label: str, places: Iterable[Path], names: Sequence[str]) -> list[Path] | None:
    """Returns the files, plain or gzipped, of the first place that has them all; None where none has any.

    Raises:
        DataError: If there are only parts of the set: whoever put them there would not expect a stand-in.
    """
    flaw = None
    for place in places:
        found = {name: _first_file(place, name) for name in names}
        files = [file for file in found.values() if file]
        if len(files) == len(names):
            return files
        if files and not flaw:
            missing = ", ".join(name for name, file in found.items() if not file)
            flaw = f"{place} holds only a part of {label}: {missing} is missing; put it beside the others"
    if flaw:
        raise DataError(flaw)
    return None


def _first_file(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if os.path.isfile(p)), None)


def _on_hub(hub: Hub, folder: str, names: str, root: str) -> Located:
    places = " and ".join(map(str, _places(root, folder)))
    looked = (
        f"{names} was looked for in {places}"
        if places
        else "no local folder was given (data.root or the environment variable FEDHP_DATA)"
    )
    remedy = f"Put {names} into a folder <root>/{folder} and set data.root or FEDHP_DATA to <root>"
    return Located(f"hub:{hub.repository}", (), partial(_read_hub_set, hub, looked, remedy))


def _read_hub_set(hub: Hub, looked: str, remedy: str, layout: str) -> Arrays:
    return _gathered(read_hub(hub, looked, remedy), hub.repository, 10)


_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

SOURCES: Mapping[str, Source] = {
    "digits": Source(_locate_digits, (0.3054, 0.3760), input_shape=(1, 8, 8)),
    "mnist": Source(
        partial(_locate_idx, "mnist", Hub("ylecun/mnist")), (0.1307, 0.3081), input_shape=(1, 28, 28)
    ),
    "fashion_mnist": Source(
        partial(_locate_idx, "fashion-mnist", Hub("zalando-datasets/fashion_mnist")),
        (0.2860, 0.3530),
        _FASHION,
        (1, 28, 28),
    ),
    "cifar10": Source(_locate_cifar10, (0.4734, 0.2516), _CIFAR, (3, 32, 32)),
    "npz": Source(_locate_npz),
}
