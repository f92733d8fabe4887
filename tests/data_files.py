"""Small data sets as files: the formats that are read, and damage to them."""

import gzip
import struct
from pathlib import Path

import numpy as np

from fedhp.data import DataConfig, PartitionConfig


def write_idx(path: Path, array: np.ndarray, magic: bytes | None = None) -> None:
    head = magic or bytes([0, 0, 8, array.ndim])
    content = head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, suffix: str = ".gz") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (60, 4, 5), np.uint8),
        "train-labels-idx1-ubyte": np.arange(60, dtype=np.uint8) % 10,
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (20, 4, 5), np.uint8),
        "t10k-labels-idx1-ubyte": np.arange(20, dtype=np.uint8) % 10,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        write_idx(folder / f"{name}{suffix}", array)
    return arrays


def npz_arrays(**changes) -> dict[str, np.ndarray]:
    arrays = {
        "x_train": np.arange(12 * 3, dtype=np.float32).reshape(12, 3),
        "y_train": np.arange(12) % 3,
        "x_test": np.zeros((6, 3), np.float32),
        "y_test": np.arange(6) % 3,
    }
    arrays.update(changes)
    return {name: array for name, array in arrays.items() if array is not None}


def npz_config(path: Path, partition: PartitionConfig | None = None, **changes) -> DataConfig:
    np.savez(path / "data.npz", **npz_arrays(**changes))
    return DataConfig("npz", str(path), partition or PartitionConfig("iid", min_samples=1))
