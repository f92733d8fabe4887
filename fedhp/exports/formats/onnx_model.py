"""ONNX, and ONNX Runtime."""

# pyright: reportMissingImports=false

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedhp.errors import require
from fedhp.exports.formats.format import DTYPES, Format, Opened

if TYPE_CHECKING:
    from torch import nn

_SAMPLE, _SCORES = "sample", "scores"
_DENSE = ("Gemm", "MatMul")
_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class Onnx(Format):
    """``.onnx``, of one file, without a word of the machine that wrote it."""

    name, suffix, extra = "onnx", ".onnx", "onnx"
    runtime = "onnxruntime"
    runs_by = "onnxruntime"
    packages = ("onnx", "onnxscript", "onnxruntime", "torch")
    channels_last = False
    dtypes = DTYPES
    names = (_SAMPLE, _SCORES)

    def check(self) -> None:
        """See `Format`."""
        with require("the format 'onnx'", self.extra):
            import onnx
            import onnxruntime
            import onnxscript  # which PyTorch's exporter imports, and names nowhere

            del onnx, onnxruntime, onnxscript

    def write(self, network: "nn.Module", example: NDArray[Any], path: Path) -> None:
        """See `Format`."""
        import torch

        program = torch.onnx.export(
            network,
            (torch.from_numpy(example),),
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=[_SAMPLE],
            output_names=[_SCORES],
        )
        assert program is not None
        _save(program.model_proto, path)

    def write_int8(
        self, network: "nn.Module", calibration: Sequence[NDArray[Any]], path: Path, dynamic: bool
    ) -> list[str]:
        """See `Format`. Weights per output channel; only what is pre-processed is found to be quantisable."""
        from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        with tempfile.TemporaryDirectory() as folder:
            plain, prepared, written = (Path(folder) / name for name in ("a.onnx", "b.onnx", "c.onnx"))
            self.write(network, calibration[0], plain)
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)
            weights = {"weight_type": QuantType.QInt8, "per_channel": True}
            if dynamic:
                quantize_dynamic(prepared, written, op_types_to_quantize=list(_DENSE), **weights)
            else:
                reader: Any = _Samples(calibration)
                quantize_static(prepared, written, reader, activation_type=QuantType.QUInt8, **weights)
            import onnx

            model = onnx.load(written)
        _save(model, path)
        return _left_float(model)

    def loaded(self, path: Path, threads: int = 1) -> Opened:
        """See `Format`. An axis that the file leaves open is taken as 1."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(path.read_bytes(), options, ["CPUExecutionProvider"])
        (sample_of,), scores_of = session.get_inputs(), session.get_outputs()[0].name
        shape = tuple(size if isinstance(size, int) else 1 for size in sample_of.shape)

        def run(sample: NDArray[Any]) -> NDArray[np.float32]:
            (scores,) = session.run([scores_of], {sample_of.name: sample})
            return np.asarray(scores)

        return Opened(run, shape, _DTYPES[sample_of.type])


class _Samples:
    """Hands on samples for calibration, as ONNX Runtime asks for them."""

    def __init__(self, samples: Sequence[NDArray[Any]]) -> None:
        self._left: Iterator[NDArray[Any]] = iter(samples)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Returns the next one, or nothing at the end."""
        sample = next(self._left, None)
        return None if sample is None else {_SAMPLE: sample}


def _save(model: Any, path: Path) -> None:
    """Writes a model without what the exporter noted beside it: source lines, and paths of this machine."""
    graph = model.graph
    for part in (
        model,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        del part.metadata_props[:]
        part.doc_string = ""
    path.write_bytes(model.SerializeToString())


def _left_float(model: Any) -> list[str]:
    """Returns the dense layers and convolutions that multiply by weights in single precision."""
    import onnx

    floats = {
        tensor.name: tuple(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1
    }
    return [
        f"{node.op_type} {'x'.join(map(str, floats[name]))}"
        for node in model.graph.node
        if node.op_type in (*_DENSE, "Conv")
        for name in node.input[1:2]
        if name in floats
    ]
