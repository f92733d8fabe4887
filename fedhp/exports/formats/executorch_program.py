"""ExecuTorch with XNNPACK: phones, boards and microprocessors."""

# pyright: reportMissingImports=false

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedhp.errors import require
from fedhp.exports.formats.format import DTYPES, Format, Opened

if TYPE_CHECKING:
    from torch import nn

# By their numbers in ExecuTorch.
_DTYPES = {0: "uint8", 6: "float32"}


class ExecuTorch(Format):
    """``.pte``."""

    name, suffix, extra = "executorch", ".pte", "executorch"
    runtime = "executorch.runtime"
    runs_by = "'fedhp[executorch]'"
    packages = ("executorch", "torchao", "torch")
    channels_last = False
    dtypes = DTYPES

    def check(self) -> None:
        """See `Format`."""
        with require("the format 'executorch'", self.extra):
            import executorch.exir
            import executorch.runtime

            del executorch

    def write(self, network: "nn.Module", example: NDArray[Any], path: Path) -> None:
        """See `Format`."""
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        _lower(network, example, path, XnnpackPartitioner())

    def write_int8(
        self, network: "nn.Module", calibration: Sequence[NDArray[Any]], path: Path, dynamic: bool
    ) -> list[str]:
        """See `Format`. Weights per output channel."""
        import torch
        from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        scheme = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
        quantizer = XNNPACKQuantizer()
        quantizer = (
            quantizer.set_module_type(torch.nn.Linear, scheme) if dynamic else quantizer.set_global(scheme)
        )
        example = calibration[0]
        program = torch.export.export(network, (torch.from_numpy(example),)).module()
        prepared = prepare_pt2e(program, quantizer)
        for sample in calibration:
            prepared(torch.from_numpy(sample))
        converted = convert_pt2e(prepared)
        dynamic_first = [
            XnnpackPartitioner(config_precisions=ConfigPrecisionType.DYNAMIC_QUANT, per_op_mode=True)
        ]
        _lower(converted, example, path, *(dynamic_first if dynamic else ()), XnnpackPartitioner())
        return _left_float(converted)

    def loaded(self, path: Path, threads: int = 1) -> Opened:
        """See `Format`. Threads are the process's own: those of the file that was loaded last."""
        import torch
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        if portable_lib._threadpool_get_thread_count() != threads:  # as many as cores, unless told
            portable_lib._unsafe_reset_threadpool(threads)

        # Kept with what runs: a method of a program that has gone reads freed memory.
        program = Runtime.get().load_program(path.read_bytes())
        method = program.load_method("forward")
        assert method is not None

        def run(sample: NDArray[Any]) -> NDArray[np.float32]:
            assert program is not None
            (scores,) = method.execute([torch.from_numpy(sample)])
            return scores.numpy().copy()  # the next call writes to the same place

        taken = method.metadata.input_tensor_meta(0)
        return Opened(run, tuple(taken.sizes()), _DTYPES[taken.dtype()])


def _lower(network: Any, example: NDArray[Any], path: Path, *partitioners: Any) -> None:
    import torch
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(network, (torch.from_numpy(example),))
    lowered = to_edge_transform_and_lower(program, partitioner=list(partitioners))
    path.write_bytes(lowered.to_executorch().buffer)


def _left_float(converted: Any) -> list[str]:
    """Returns the dense layers and convolutions whose weight is no dequantised one."""
    weighted = ("linear", "conv1d", "conv2d")
    return [
        f"{node.target.__name__.partition('.')[0]} {node.args[1]}"
        for node in converted.graph.nodes
        if node.op == "call_function"
        and getattr(node.target, "__name__", "").partition(".")[0] in weighted
        and "dequantize" not in str(node.args[1])
    ]
