#!/usr/bin/env bash
# ai-edge-quantizer 0.10.0 (with litert-torch 0.10.0, ai-edge-litert 2.3.0): static int8 ranges are a moving
# average of the extremes of single calibration samples, not their extremes. Of samples of which every other one
# reaches 10 and the rest 1, the range ends near the middle, and outputs of 10 are clipped, without a word.
# The package's own min_max_update, given to its Calibrator, keeps the whole range.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 litert-torch==0.10.0 ai-edge-quantizer==0.10.0 ai-edge-litert==2.3.0
cd "$place"
"$place/venv/bin/python" - <<'END'
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer.calibrator import Calibrator
from ai_edge_quantizer.quantizer import Quantizer
from ai_edge_quantizer.recipe import static_wi8_ai8
from ai_edge_quantizer.recipe_manager import RecipeManager
from ai_edge_quantizer.utils.qsv_utils import min_max_update
import litert_torch

layer = torch.nn.Linear(4, 4, bias=False)
with torch.no_grad():
    layer.weight.copy_(torch.eye(4))
litert_torch.convert(layer.eval(), (torch.ones(1, 4),)).export("plain.tflite")
content = open("plain.tflite", "rb").read()
((signature, told),) = Interpreter(model_content=content).get_signature_list().items()
samples = [{told["inputs"][0]: np.full((1, 4), size, np.float32)} for size in [1, 10] * 50]


def answer(**options):
    """What the int8 network makes of four tens."""
    recipe = RecipeManager()
    recipe.load_quantization_recipe(static_wi8_ai8())
    calibrator = Calibrator(content, num_threads=1, **options)
    calibrator.calibrate({signature: samples}, recipe)
    model = Quantizer(content, static_wi8_ai8()).quantize(calibrator.get_model_qsvs()).quantized_model
    runs = Interpreter(model_content=bytes(model))
    runs.allocate_tensors()
    (given,), (found,) = runs.get_input_details(), runs.get_output_details()
    scale, zero = given["quantization"]
    runs.set_tensor(given["index"], np.clip(np.rint(np.full((1, 4), 10) / scale + zero), -128, 127).astype(np.int8))
    runs.invoke()
    scale, zero = found["quantization"]
    return float((runs.get_tensor(found["index"]).astype(float) - zero).max() * scale)


usual, whole = answer(), answer(qsv_update_func=min_max_update)
print(f"of 10, the int8 network makes {usual:.2f} by default, and {whole:.2f} with min_max_update")
assert 4 < usual < 7, usual
assert 9.8 < whole < 10.2, whole
END
