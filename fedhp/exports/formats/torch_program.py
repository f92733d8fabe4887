"""A program of ``torch.export``: what runs it needs PyTorch, and not fedhp."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedhp.exports.formats.format import FLOAT32, Format, Opened

if TYPE_CHECKING:
    from torch import nn


class TorchProgram(Format):
    """``.pt2``."""

    name, suffix, extra = "torch", ".pt2", ""
    runtime = "torch"
    runs_by = "'fedhp[torch]'"
    packages = ("torch",)
    channels_last = False
    dtypes = (FLOAT32,)

    def check(self) -> None:
        """PyTorch is there, or this would not be."""

    def write(self, network: "nn.Module", example: NDArray[Any], path: Path) -> None:
        """See `Format`."""
        import torch

        program = torch.export.export(network, (torch.from_numpy(example),))
        content = io.BytesIO()  # a path would have to end in .pt2, and native code would write it
        torch.export.save(program, content)
        path.write_bytes(content.getvalue())

    def loaded(self, path: Path, threads: int = 1) -> Opened:
        """See `Format`. Threads are the process's own."""
        import torch

        with path.open("rb") as file:
            program = torch.export.load(file)
        module, taken = program.module(), program.example_inputs
        assert taken is not None
        ((example,), _) = taken

        def run(sample: NDArray[Any]) -> NDArray[np.float32]:
            with torch.no_grad():
                return module(torch.from_numpy(sample)).numpy()

        return Opened(run, tuple(example.shape), str(example.dtype).removeprefix("torch."))
