"""Which of NumPy's arrays live while a device without PyTorch computes: as `fedhp.costs.live_tensors`."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, Self

from numpy.typing import NDArray

from fedhp.costs.watching import Peak, Watch
from fedhp.data.arrays import telling


class ArrayWatch(Watch):
    """Sees every array that is `fedhp.data.arrays.made`, once."""

    def __enter__(self) -> Self:
        self._told = ExitStack()
        self._told.enter_context(telling(self._see))
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        self._told.close()
        self._close()

    def _storage(self, array: NDArray[Any]) -> tuple[int, Any, int]:
        owner = array if array.base is None else array.base
        return id(owner), owner, owner.nbytes


class LiveArrays(ArrayWatch, Peak):
    """Counts the bytes of the arrays alive while it is active, and remembers the peak.

    Args:
        existing: Arrays that live already and count, such as parameters and momenta.
    """

    def __init__(self, existing: Iterable[NDArray[Any]]) -> None:
        super().__init__()
        for array in existing:
            self._see(array)
