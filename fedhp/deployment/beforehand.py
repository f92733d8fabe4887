"""What a device's owner would learn from a failed round, told before the device takes part in any."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from fedhp.costs.machine import room
from fedhp.errors import DataError, FedhpError
from fedhp.sizes import format_size

_LEAST_BYTES = 400  # the quickstart's model, cut to one unit a layer, with one sample
_FOR_PARTITIONS = {"sklearn": "scikit-learn", "flwr_datasets": "flwr-datasets"}
_RUNTIMES = ("onnxruntime", "ai_edge_litert", "executorch")
_REFUSED = 2


def check_data(path: Path) -> None:
    """Reads a device's samples as far as no scenario has a say in it.

    In a process of its own: what waits for messages is to hold neither them nor NumPy.

    Raises:
        DataError: If they cannot be read, in any shape.
    """
    words = [sys.executable, "-m", "fedhp.deployment.beforehand", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    said = done.stderr.strip().splitlines()[-1:]  # libraries may warn before
    if done.returncode == _REFUSED and said:
        raise DataError(f"--data: {said[0]}")
    if done.returncode:  # a library fails in its own way, or the system ends it
        how = "; ".join([f"exit status {done.returncode}", *said])
        raise DataError(f"--data: {path} cannot be read ({how})")


def beyond_budget(num_bytes: int) -> Iterator[str]:
    """Tells of a budget that is beyond this machine, or holds nothing."""
    left = room().bytes
    if left is not None and num_bytes > left:
        given, there = format_size(num_bytes), format_size(left)
        yield f"--budget: {given} are more than the {there} of memory that are left here"
    if num_bytes < _LEAST_BYTES:
        yield f"--budget: {num_bytes} B hold the smallest part of no model that ships"


def beyond_partitions() -> Iterator[str]:
    """Tells where a part of a scenario's data may be asked for in vain."""
    if missing := [name for module, name in _FOR_PARTITIONS.items() if not _installed(module)]:
        yield (
            f"--partition-id: most scenarios' data needs {' and '.join(missing)}, not installed here: "
            f"pip install 'fedhp[server]'"
        )


def beyond_measuring() -> Iterator[str]:
    """Tells where there is no runtime for any file that a server may send."""
    if not any(map(_installed, _RUNTIMES)):
        yield "--measures: no runtime is installed here: pip install onnxruntime, or ai-edge-litert"


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # from whoever keeps it away
        return False


def main() -> None:
    """Reads what lies at a path, and says why it cannot."""
    from fedhp.data.own import check_own

    try:
        check_own(Path(sys.argv[1]))
    except (FedhpError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(_REFUSED)


if __name__ == "__main__":
    main()
