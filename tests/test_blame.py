"""Which layers hold the operator that a converter could not take."""

import numpy as np
import pytest
import torch
from torch import nn

import fedhp
from fedhp.exports.blame import layers_with
from fedhp.exports.formats import FORMATS


class Odd(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.special.i1e(values)


@pytest.mark.parametrize(
    ("said", "layers"),
    [
        ("No function found for <OpOverload(op='prims.bessel_i1e')>", ["1 (Odd)"]),
        ("no lowering of aten::special_i1e", ["1 (Odd)"]),
        ("aten.relu is unknown", ["2 (ReLU)", "3.0 (ReLU)"]),
        ("aten.rel is unknown", []),
        ("something else", []),
    ],
)
def test_the_layers_are_those_whose_forward_pass_calls_the_operator(said, layers):
    network = nn.Sequential(nn.Linear(4, 5), Odd(), nn.ReLU(), nn.Sequential(nn.ReLU())).eval()
    assert layers_with(network, np.zeros((1, 4), np.float32), said) == layers


def test_what_a_format_cannot_take_is_told_by_operator_and_layer(tmp_path, monkeypatch):
    def refuse(self, network, example, path):
        raise RuntimeError("no lowering of aten.relu")

    monkeypatch.setattr(type(FORMATS["onnx"]), "write", refuse)
    monkeypatch.setattr(type(FORMATS["onnx"]), "check", lambda self: None)
    run = fedhp.train("quickstart", tmp_path / "run", **{"train.epochs": 1, "data.max_train": 60})
    done = fedhp.export(run.folder, ["onnx", "torch"], ["float32", "int8"])
    assert [one.name for one in done.files] == ["model.pt2"]
    layers = "relu_fc1 (ReLU), relu_fc2 (ReLU)"
    said = f"cannot take this network: no lowering of aten.relu; it is in {layers}"
    assert said in done.failures["onnx float32"]
    assert "without its file in float32" in done.failures["onnx int8"]
    assert not [path.name for path in done.folder.iterdir() if path.suffix == ".onnx"]
