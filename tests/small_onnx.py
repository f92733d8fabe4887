"""Small ONNX files, made by hand."""

from pathlib import Path

import numpy as np
import pytest


def dense(path: Path, units: int) -> Path:
    """Writes one dense layer without a bias, of six inputs, for batches of any size."""
    onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    weights = onnx.numpy_helper.from_array(np.zeros((6, units), np.float32), "weights")
    layer = helper.make_node("MatMul", ["sample", "weights"], ["scores"])
    takes, gives = (
        helper.make_tensor_value_info(name, number, ["batch", size])
        for name, size in (("sample", 6), ("scores", units))
    )
    graph = helper.make_graph([layer], "dense", [takes], [gives], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path
