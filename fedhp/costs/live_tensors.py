"""Which tensors live while operations run: the real peak of their bytes, independent of the memory model."""

import weakref
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class StorageWatch(TorchDispatchMode):
    """Sees every storage that an operation returns once, from its creation until it is freed.

    It is PyTorch's ``MemTracker`` without the attribution by module, which makes it cheap enough to watch a
    step of every client (about 10 microseconds per operation).
    """

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}
        self._num_seen = 0
        self._finalizers: list[weakref.finalize[..., Any]] = []

    @abstractmethod
    def _entered(self, entry: int, num_bytes: int) -> None:
        """Is told of a storage; entries count from 0."""

    @abstractmethod
    def _left(self, entry: int, num_bytes: int) -> None:
        """Is told that a storage was freed."""

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
        for finalizer in self._finalizers:
            finalizer.detach()

    def entry(self, tensor: torch.Tensor) -> int:
        """Returns the entry of a living tensor's storage."""
        return self._live[tensor.untyped_storage()._cdata]

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        entry, num_bytes = self._num_seen, storage.nbytes()
        self._live[key] = entry
        self._num_seen += 1
        self._entered(entry, num_bytes)
        self._finalizers.append(weakref.finalize(storage, self._forget, key, entry, num_bytes))

    def _forget(self, key: int, entry: int, num_bytes: int) -> None:
        del self._live[key]
        self._left(entry, num_bytes)


class LiveTensors(StorageWatch):
    """Counts the bytes of the tensors alive while it is active, and remembers the peak.

    Args:
        existing: Tensors that live already and count, such as parameters and optimiser state.

    Attributes:
        peak: The largest number of live bytes so far.
    """

    def __init__(self, existing: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.peak = self._bytes = 0
        for tensor in existing:
            self._see(tensor)

    def _entered(self, entry: int, num_bytes: int) -> None:
        self._bytes += num_bytes
        self.peak = max(self.peak, self._bytes)

    def _left(self, entry: int, num_bytes: int) -> None:
        self._bytes -= num_bytes
