"""LiteRT, once TensorFlow Lite: phones, boards, and microcontrollers by its small sister."""

# pyright: reportMissingImports=false

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedhp.errors import require
from fedhp.exports.formats.format import DTYPES, Format, Opened

if TYPE_CHECKING:
    from torch import nn

_DENSE, _NO_QUANTIZE = "FULLY_CONNECTED", "no_quantize"
# By their numbers in the format's schema.
_WEIGHTED = {3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 9: _DENSE}
_FLOAT32 = 0


class LiteRT(Format):
    """``.tflite``."""

    name, suffix, extra = "litert", ".tflite", "litert"
    runtime = "ai_edge_litert.interpreter"
    runs_by = "ai-edge-litert"
    packages = ("litert-torch", "ai-edge-litert", "ai-edge-quantizer", "torch")
    channels_last = True
    dtypes = DTYPES

    def check(self) -> None:
        """See `Format`."""
        with require("the format 'litert'", self.extra):
            import ai_edge_litert.interpreter
            import ai_edge_quantizer
            import litert_torch

            del ai_edge_litert, ai_edge_quantizer, litert_torch

    def write(self, network: "nn.Module", example: NDArray[Any], path: Path) -> None:
        """See `Format`."""
        import litert_torch
        import torch

        litert_torch.convert(network, (torch.from_numpy(example),)).export(str(path))

    def write_int8(
        self, network: "nn.Module", calibration: Sequence[NDArray[Any]], path: Path, dynamic: bool
    ) -> list[str]:
        """See `Format`. Weights per output channel, and activations over the whole range that they had.

        By default, AI Edge Quantizer averages the extremes of its samples, and so clips what lies beyond.
        """
        from ai_edge_quantizer.calibrator import Calibrator
        from ai_edge_quantizer.quantizer import Quantizer
        from ai_edge_quantizer.recipe import static_wi8_ai8
        from ai_edge_quantizer.recipe_manager import RecipeManager
        from ai_edge_quantizer.utils.qsv_utils import min_max_update

        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "plain.tflite"
            self.write(network, calibration[0], plain)
            content = plain.read_bytes()
        recipe = RecipeManager()
        if dynamic:
            recipe.add_dynamic_config(".*", _DENSE, num_bits=8)
        else:
            recipe.load_quantization_recipe(static_wi8_ai8())
            for end in ("INPUT", "OUTPUT"):  # samples and scores stay as they are
                recipe.add_quantization_config(".*", end, algorithm_key=_NO_QUANTIZE)
        quantizer, ranges = Quantizer(content, recipe.get_quantization_recipe()), None
        if not dynamic:
            calibrator = Calibrator(content, num_threads=1, qsv_update_func=min_max_update)
            ((signature, names),) = _signatures(content).items()
            samples = [{names[0]: sample} for sample in calibration]
            calibrator.calibrate({signature: samples}, recipe)
            ranges = calibrator.get_model_qsvs()
        written = bytes(quantizer.quantize(ranges).quantized_model)
        path.write_bytes(written)
        return _left_float(written)

    def loaded(self, path: Path, threads: int = 1) -> Opened:
        """See `Format`."""
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=path.read_bytes(), num_threads=threads)
        interpreter.allocate_tensors()
        (sample_of,), (scores_of,) = interpreter.get_input_details(), interpreter.get_output_details()

        def run(sample: NDArray[Any]) -> NDArray[np.float32]:
            interpreter.set_tensor(sample_of["index"], sample)
            interpreter.invoke()
            return interpreter.get_tensor(scores_of["index"])

        return Opened(run, tuple(map(int, sample_of["shape"])), np.dtype(sample_of["dtype"]).name)


def _signatures(content: bytes) -> Mapping[str, Sequence[str]]:
    """Returns the inputs' names of each signature."""
    from ai_edge_litert.interpreter import Interpreter

    found = Interpreter(model_content=content).get_signature_list()
    return {name: signature["inputs"] for name, signature in found.items()}


def _left_float(content: bytes) -> list[str]:
    """Returns the dense layers and convolutions whose weights are in single precision."""
    from ai_edge_quantizer.utils.tfl_flatbuffer_utils import read_model

    model = read_model(content)
    graph = model.subgraphs[0]
    left = []
    for operator in graph.operators:
        kind = model.operatorCodes[operator.opcodeIndex].builtinCode
        if kind in _WEIGHTED and graph.tensors[operator.inputs[1]].type == _FLOAT32:
            shape = "x".join(str(size) for size in graph.tensors[operator.inputs[1]].shape)
            left.append(f"{_WEIGHTED[kind]} {shape}")
    return left
