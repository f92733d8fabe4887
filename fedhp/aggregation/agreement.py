"""Whether an update points where the others' point: a change of the right size may be the wrong way round."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedhp.aggregation.options import RobustConfig
from fedhp.aggregation.robust import middle
from fedhp.aggregation.spread import spread
from fedhp.model.layout import Layout
from fedhp.model.state import ModelState

_MEDIAN = RobustConfig("median")


def agreements(layout: Layout, state: ModelState, moved: Sequence[ModelState]) -> NDArray[np.float64]:
    """Returns the cosine of each client's change with the median of all clients' changes.

    The median is taken of each entry over those that hold it, so that fewer than half of them cannot turn it
    round; the cosine over the entries that the client holds. Of trained weights alone: running statistics
    follow the data, not a gradient. Cao et al. 2021 (arXiv 2012.13995) hold clients' directions against that
    of the server's own data, which a server here has none of to train on.

    Args:
        layout: The model's wiring.
        state: The global model that clients were sent, or parts of it.
        moved: What each made of it; its structure is contained in the global one.

    Returns:
        Of shape ``(clients,)``, within -1 and 1; 0 where either does not move.
    """
    products, own, common = np.zeros((3, len(moved)))
    for name in layout.trained:
        old = np.atleast_1d(state.weights[name])
        for some, rows in spread(layout, state.structure, name, old.shape, moved):
            changes = rows - old[some]
            usual = middle(changes, np.zeros_like(old[some]), _MEDIAN)
            held = ~np.isnan(changes)
            changes = np.where(held, changes, 0).astype(np.float64)
            axes = tuple(range(1, changes.ndim))
            products += np.sum(changes * usual, axis=axes)
            own += np.sum(changes**2, axis=axes)
            common += np.sum(held * np.square(usual, dtype=np.float64), axis=axes)
    lengths = np.sqrt(own * common)
    return np.divide(products, lengths, out=np.zeros(len(moved)), where=lengths > 0)
