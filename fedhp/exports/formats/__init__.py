"""The formats that a network can be exported to, a file each."""

from fedhp.exports.formats.executorch_program import ExecuTorch
from fedhp.exports.formats.format import Format
from fedhp.exports.formats.litert_model import LiteRT
from fedhp.exports.formats.onnx_model import Onnx
from fedhp.exports.formats.torch_program import TorchProgram

FORMATS: dict[str, Format] = {one.name: one for one in (Onnx(), ExecuTorch(), LiteRT(), TorchProgram())}
