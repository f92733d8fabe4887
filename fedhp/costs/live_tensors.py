"""Which tensors live while operations run: the real peak of their bytes, independent of the memory model."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from fedhp.costs.watching import Peak, Watch


class StorageWatch(Watch, TorchDispatchMode):
    """Sees every storage that an operation returns once.

    It is PyTorch's ``MemTracker`` without the attribution by module, which makes it cheap enough to watch a
    step of every client (about 10 microseconds per operation).
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise PyTorch loads its compiler, 70 MB in the server's process, to keep it away

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operation and sees what it returned."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_iter(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        return result

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        self._close()

    def _storage(self, array: torch.Tensor) -> tuple[int, Any, int]:
        storage = array.untyped_storage()
        return storage._cdata, storage, storage.nbytes()


class LiveTensors(StorageWatch, Peak):
    """Counts the bytes of the tensors alive while it is active, and remembers the peak.

    Args:
        existing: Tensors that live already and count, such as parameters and optimiser state.
    """

    def __init__(self, existing: Iterable[torch.Tensor]) -> None:
        super().__init__()
        for tensor in existing:
            self._see(tensor)
