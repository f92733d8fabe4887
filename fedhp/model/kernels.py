"""What computes on an array: PyTorch, which is imported where there is a tensor of its, or NumPy."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from fedhp.data.arrays import made


def kernels_of(array: Any) -> Any:
    """Returns the module of kernels: `fedhp.model.torch_kernels` or `fedhp.model.numpy_kernels`."""
    return _kernels(type(array))


def namespace_of(array: Any) -> Any:
    """Returns the functions of the array API standard; what NumPy's make is told (`fedhp.data.arrays`)."""
    return _namespace(type(array))


@cache
def _kernels(kind: type) -> Any:
    if issubclass(kind, np.ndarray):
        from fedhp.model import numpy_kernels as kernels
    else:
        from fedhp.model import torch_kernels as kernels
    return kernels


@cache
def _namespace(kind: type) -> Any:
    if issubclass(kind, np.ndarray):
        return _Told()
    import array_api_compat.torch as namespace

    return namespace


class _Told:
    def __getattr__(self, name: str) -> Callable[..., Any]:
        return _told(name)


@cache
def _told(name: str) -> Callable[..., Any]:
    function = getattr(np, name)  # which from 2.0 on has the standard's names and needs no wrapper
    return lambda *args, **options: made(function(*args, **options))
