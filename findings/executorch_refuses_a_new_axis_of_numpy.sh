#!/usr/bin/env bash
# executorch 1.5.1 with torch 2.13.0: an example input made by numpy's array[:, None], whose new axis has the
# stride 0, is exported by torch.export and then refused by to_executorch ("0 in strides is not supported"),
# though the axis has one entry, and NumPy and PyTorch both call the array contiguous. A slice array[n:n+1]
# of the same values is taken.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 executorch==1.5.1
cd "$place"
"$place/venv/bin/python" - <<'END' 2> /dev/null
import numpy as np
import torch
from executorch.exir import to_edge_transform_and_lower

array = np.ones((2, 4), np.float32)
layer = torch.nn.Linear(4, 3).eval()


def outcome(example):
    """What becomes of a program that was traced with an example."""
    given = torch.from_numpy(example)
    program = torch.export.export(layer, (given,))
    try:
        to_edge_transform_and_lower(program).to_executorch()
    except Exception as error:
        return str(error), given
    return "written", given


refused, given = outcome(array[:, None][0])
assert given.shape == (1, 4) and given.stride()[0] == 0 and given.is_contiguous()
taken, _ = outcome(array[0:1])
print(f"new axis: {refused}\nslice: {taken}")
assert "0 in strides is not supported" in refused
assert taken == "written"
END
