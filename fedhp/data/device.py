"""A real device's own data, on the scale of the server's."""

import math
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.data.checks import checked_images
from fedhp.data.dataset import stamps
from fedhp.data.labels import checked_labels
from fedhp.data.normalisation import Normalisation, spreads
from fedhp.data.own import find_own
from fedhp.data.shard import Shard
from fedhp.errors import DataError
from fedhp.files.cache import cache_folder, key_of, prepared

# How much wider, and how much narrower, a device's values may spread than the server's. No single image of
# what ships spreads twice as widely; but a device that always sees about the same may be right.
_MOST_WIDER = 8
_MOST_NARROWER = 100


def device_shard(
    path: str,
    *,
    normalisation: Normalisation,
    input_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    label_names: tuple[str, ...] = (),
    layout: str = "auto",
) -> Shard:
    """Opens a real device's own data.

    Args:
        path: An ``.npz`` file with ``x_train`` and ``y_train``, or what else `find_own` knows.
        normalisation: The server's. Not the device's own: a device that sees only dark images would tell the
            model that they are of the usual brightness.
        input_shape: The (C, H, W) that the model takes; None accepts any.
        num_classes: The number of classes that the model tells apart; None takes the highest
            label's.
        label_names: The names of the classes, for labels that are texts.
        layout: One of `LAYOUTS`, as of the server's data.

    Raises:
        DataError: If it is missing, damaged, or does not fit the model or the server's scale.
    """
    own = find_own(Path(path))
    seen = tuple(stamps(own.files))
    arrays = _arrays(path, seen, num_classes, label_names, normalisation, input_shape, layout, cache_folder())
    images, labels = arrays["images"], arrays["labels"]
    in_bytes = images.dtype == np.uint8
    return Shard(
        images,
        labels,
        np.arange(len(labels)),
        num_classes=num_classes or int(labels.max()) + 1,
        mean=normalisation.mean if in_bytes else 0.0,
        std=normalisation.std if in_bytes else 1.0,
        spread=_checked_spread(path, arrays["spreads"], normalisation),
    )


@lru_cache(maxsize=2)
def _arrays(
    path: str,
    seen: tuple[tuple[str, int, int], ...],
    num_classes: int | None,
    label_names: tuple[str, ...],
    normalisation: Normalisation,
    input_shape: tuple[int, ...] | None,
    layout: str,
    cache: Path,
) -> dict[str, NDArray[Any]]:
    def prepare() -> dict[str, NDArray[Any]]:
        own = find_own(Path(path)).read(input_shape[0] if input_shape else None)
        images, _ = checked_images(own.images, own.images_place, layout)
        _check_shape(own.images_place, images.shape[1:], input_shape)
        labels = checked_labels(own.labels, len(images), num_classes, own.labels_place, label_names)
        kept = normalisation.applied(images, own.images_place) if normalisation.is_stored(images) else images
        return {"images": kept, "labels": labels, "spreads": spreads(images, normalisation)}

    fits = [num_classes, label_names, asdict(normalisation), input_shape, layout]
    return prepared("devices", key_of({"device": seen, "fits": fits}), prepare)


def _check_shape(place: str, shape: tuple[int, ...], input_shape: tuple[int, ...] | None) -> None:
    if input_shape is not None and shape != tuple(input_shape):
        alike = math.prod(shape) == math.prod(input_shape)
        form = ", ".join(map(str, input_shape))
        remedy = f"give an .npz file of x_train.reshape(-1, {form})" if alike else "convert them"
        raise DataError(
            f"{place} holds samples of shape {shape} (channels, height, width), and the model takes "
            f"{tuple(input_shape)}; {remedy}, or choose the model for this data"
        )


def _checked_spread(path: str, ratios: NDArray[np.float64], normalisation: Normalisation) -> float:
    """Returns how widely values spread beside the server's, in the feature or channel that is farthest off.

    Refuses what must be on another scale: where the middle one is far off. A single one may be rare on the
    server, and usual here.
    """
    known = np.flatnonzero(~np.isnan(ratios))
    if not known.size:
        return 1.0
    ordered = known[np.argsort(ratios[known], kind="stable")]
    middle = ordered[len(ordered) // 2]
    if not 1 / _MOST_NARROWER < ratios[middle] < _MOST_WIDER:
        std = normalisation.std[middle]
        among = f", in the middle one of its {len(ratios)} entries," if len(ratios) > 1 else ""
        raise DataError(
            f"{path}: x_train is on another scale than the server's data: its standard deviation{among} is "
            f"{ratios[middle] * std:.3g}, and the server's {std:.3g} (with uint8 scaled to 0 .. 1); bring "
            f"the values to the server's scale"
        )
    return float(max(ratios[ordered[0]], ratios[ordered[-1]], key=lambda ratio: abs(math.log(ratio))))
