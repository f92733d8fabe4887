"""Exact steps of the Optimal Brain Surgeon on one row of weights: what is fixed, the others make up for.

The error of a row is that of its products with the calibration inputs X, ``|w X - v X|^2``, or
``(w - v) H (w - v)^T / 2`` with the Hessian ``H = 2 X X^T`` (Frantar & Alistarh, "Optimal Brain Compression",
2022, section 3).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedhp.compression.layers import Matrix

# Takes the free weights, the diagonal of their inverse Hessian, and their places in the row; returns which of
# them is next, -1 for none, and its value.
Choice = Callable[[Matrix, Matrix, NDArray[np.intp]], tuple[int, float]]

# Of the Hessian's mean diagonal, added to it: directions in which no calibration sample lies are held.
DAMPENING = 1e-2

# Eliminations that are kept as vectors before they are multiplied out together, which is many times faster.
_TOGETHER = 32


def dampened(hessian: Matrix) -> Matrix:
    """Returns a Hessian that has an inverse: more on its diagonal by `DAMPENING` of its mean."""
    more = DAMPENING * float(hessian.diagonal().mean()) or 1.0
    return hessian + more * np.eye(len(hessian))


def fixed_in_turn(
    row: Matrix,
    hessian: Matrix,
    number: int,
    choose: Choice,
) -> tuple[NDArray[np.intp], Matrix, Matrix]:
    """Fixes weights of a row in turn, each time moving all that are free to where the error is least.

    A weight p that goes from w_p to v_p costs ``(w_p - v_p)^2 / (2 [H^-1]_pp)``, and moves the free ones by
    ``-(w_p - v_p) / [H^-1]_pp`` times column p of the inverse Hessian of the free ones, from which p is then
    eliminated (equations 3 and 4 and lemma 1). Takes about
    n^3 steps.

    Args:
        row: The weights (n,), at which the error is 0.
        hessian: H (n, n), which has an inverse.
        number: How many are fixed.
        choose: Says which is next.

    Returns:
        The places in the order in which they were fixed, what each added to the error, and the row.
    """
    row, left = row.copy(), _Free(row, hessian)
    order, losses = [], []
    while len(order) < number:
        at, value = choose(left.weights, left.diagonal, left.places)
        if at < 0:
            break
        place, loss = left.fix(at, value)
        order.append(place)
        losses.append(loss)
        row[place] = value
    row[left.places] = left.weights
    return np.array(order, np.intp), np.array(losses), row


class _Free:
    """The weights of a row that are free, and their inverse Hessian.

    Attributes:
        places: Of each in the row.
        weights: As they are now.
        diagonal: Of their inverse Hessian.
    """

    def __init__(self, row: Matrix, hessian: Matrix) -> None:
        self.places, self.weights = np.arange(len(row)), row
        self._inverse: Matrix = np.linalg.inv(hessian).astype(np.float64)
        self.diagonal = self._inverse.diagonal().copy()
        self._taken = np.zeros((_TOGETHER, len(row)))  # the inverse is `_inverse` less their outer products
        self._number, self._among = 0, self.places  # where each stands in `_inverse`

    def fix(self, at: int, value: float) -> tuple[int, float]:
        """Gives one a value for good; returns its place in the row, and what that adds to the error."""
        at_inverse, pivot = self._among[at], self.diagonal[at]
        taken = self._taken[: self._number]
        column = (self._inverse[at_inverse] - taken[:, at_inverse] @ taken) / np.sqrt(pivot)
        gap, place = self.weights[at] - value, int(self.places[at])
        own = column[self._among]
        self.weights = np.delete(self.weights - gap / np.sqrt(pivot) * own, at)
        self.diagonal = np.delete(self.diagonal - own**2, at)
        self.places, self._among = np.delete(self.places, at), np.delete(self._among, at)
        self._taken[self._number] = column
        self._number += 1
        if self._number == _TOGETHER:
            self._multiply_out()
        return place, float(gap**2 / (2 * pivot))

    def _multiply_out(self) -> None:
        taken = self._taken[:, self._among]
        self._inverse = self._inverse[np.ix_(self._among, self._among)] - taken.T @ taken
        self._among, self._number = np.arange(len(self._among)), 0
        self._taken = np.zeros((_TOGETHER, len(self._among)))


def restricted(rows: Matrix, hessian: Matrix, kept: NDArray[np.bool_]) -> Matrix:
    """Returns rows of which some weights are 0 and the others where the error is least.

    Least squares in closed form: ``v_S = w_S + H_SS^-1 H_SP w_P`` for the kept S and the others P.

    Args:
        rows: Weights (rows, n), at which the error is 0.
        hessian: H (n, n), which has an inverse.
        kept: Which may be other than 0, of the same shape.
    """
    found = np.where(kept, rows, 0.0)
    for row, new, keep in zip(rows, found, kept, strict=True):
        if not keep.all():
            system = hessian[np.ix_(keep, keep)]
            new[keep] += np.linalg.solve(system, hessian[np.ix_(keep, ~keep)] @ row[~keep])
    return found
