"""Data sets from the Hugging Face hub, by its own client, for who has no files of them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhp.errors import DataError, require

_SECONDS = 5.0


@dataclass(frozen=True)
class Hub:
    """Where the hub keeps a data set, and in which column the images are."""

    repository: str
    images: str = "image"


def read_hub(hub: Hub, looked: str, remedy: str) -> dict[str, NDArray[Any]]:
    """Returns ``x_train``, ``y_train``, ``x_test`` and ``y_test``, unchecked.

    Args:
        hub: What to load.
        looked: Where files were looked for before, for errors.
        remedy: What the user can do without the hub, for errors.

    Raises:
        DataError: If neither the hub nor what its client has loaded before gives the data.
        MissingExtraError: If its client is not installed.
    """
    purpose = f"loading '{hub.repository}' from the Hugging Face hub ({looked})"
    with require(purpose, "server", "datasets"):
        from datasets import config, load_dataset
    unreachable = None
    try:
        unreachable = _unreachable(config.HF_ENDPOINT)
        with _quiet(), _from_its_cache(config, only=unreachable is not None):
            return _arrays(load_dataset(hub.repository), hub.images)
    except Exception as error:  # the hub's client raises many kinds; offline or not, all mean no data
        cause = _one_line(error)
        if unreachable:
            cause = f"{_one_line(unreachable)}; and from what was loaded before: {cause}"
        raise DataError(
            f"{purpose} failed: {cause}. {remedy}, or run once where the hub can be reached"
        ) from None


def _one_line(error: Exception) -> str:
    return str(error).split("\n")[0].rstrip(".") or type(error).__name__


def _arrays(splits: Any, images: str) -> dict[str, NDArray[Any]]:
    raw: dict[str, NDArray[Any]] = {}
    for split in ("train", "test"):
        raw[f"x_{split}"] = np.stack([np.asarray(image) for image in splits[split][images]])
        raw[f"y_{split}"] = np.asarray(splits[split]["label"][:])
    return raw


def _unreachable(address: str) -> Exception | None:
    """Asks the hub for anything at all, and returns what came of it if not an answer."""
    from huggingface_hub import get_session

    try:
        get_session().head(address, timeout=_SECONDS)
    except Exception as error:  # of the HTTP library, which differs between the client's versions
        return error
    return None


@contextmanager
def _from_its_cache(config: Any, only: bool) -> Iterator[None]:
    """With ``only``, lets the hub's client look at nothing but what it has loaded before.

    On a hub that cannot be reached it would try six times, over half a minute, and tell each time.
    """
    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or only
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the client from telling, twice over, that it has found what it had loaded before."""
    logger = logging.getLogger("datasets")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
