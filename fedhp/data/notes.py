"""What stands out in data that can be trained on, and most likely is not what its owner meant."""

from collections.abc import Iterator

import numpy as np

from fedhp.data.dataset import Dataset
from fedhp.data.layout import looks_channels_last

_SHOWN = 10
_COARSE = 0.05  # of a deviation: a step from which on stored values tell noticeably less
_ODD = 8.0  # times that held-out values may spread as widely, or as narrowly, as the training values
_ROWS = 64


def data_notes(dataset: Dataset) -> Iterator[str]:
    """Yields what the user should know of the data: what it never shows, and what it always does."""
    labels = np.unique(dataset.train_labels)
    absent = np.setdiff1d(np.arange(dataset.num_classes), labels)
    if absent.size:
        num_tested = int(np.isin(dataset.test_labels, absent).sum())
        shown = ", ".join(map(str, absent[:_SHOWN])) + (", ..." if absent.size > _SHOWN else "")
        yield (
            f"no training sample has label {shown}, of 0 to {dataset.num_classes - 1}; {num_tested} of "
            f"{len(dataset.test_labels)} held-out samples have. The model has an output for each: number the "
            f"classes 0, 1, 2, ... without a gap (where labels count from 1, subtract 1)"
        )
    if len(labels) == 1:
        yield (
            f"all training samples have label {labels[0]}: the model learns to answer nothing else, and its "
            f"accuracy says nothing; train on samples of two classes or more"
        )
    yield from _odd_layout(dataset)
    if dataset.step > _COARSE:
        yield (
            f"training samples were rounded to steps of {dataset.step:.2g} of their deviation, when stored "
            f"or in double precision, in which they are read; that tells few apart: take their offset off, "
            f"or store them in double precision, before"
        )
    if not 1 / _ODD < dataset.test_spread < _ODD:
        yield (
            f"held-out samples spread {dataset.test_spread:.2g} times as widely as the training samples: if "
            f"they are on another scale, their accuracy says nothing; bring x_test to the scale of x_train"
        )
    if _all_equal(dataset):
        yield (
            "all training samples are equal in double precision, in which they are read: nothing in them "
            "tells classes apart; check how they were stored"
        )


def _odd_layout(dataset: Dataset) -> Iterator[str]:
    shape, axis = dataset.input_shape, dataset.normalisation.axis
    if dataset.layout == "auto" and looks_channels_last(shape, axis):
        stored = shape if shape[0] > 1 else shape[1:]
        kinds = "(rows, height, width, channels)" if shape[0] > 1 else "(rows, time, channels)"
        yield (
            f"samples of shape {stored} look as if stored as {kinds}, and the first of these axes is taken "
            f"for channels; set data.layout=channels_last, or channels_first where that is right"
        )


def _all_equal(dataset: Dataset) -> bool:
    """Compares some rows at a time: where samples differ, the first ones mostly tell."""
    images = dataset.train_images
    return all(
        bool((images[start : start + _ROWS] == images[0]).all()) for start in range(0, len(images), _ROWS)
    )
