#!/usr/bin/env bash
# safetensors 0.8.0's NumPy half writes other values than it was given where an array lies in Fortran order,
# as NumPy's w[:, kept] does: what was saved comes back with the right shape and its entries shuffled, without
# a word. safetensors 0.7.0 wrote them right. A copy by numpy.ascontiguousarray is written right by both.
# Seen with NumPy 2.4.6 on Python 3.11, Linux x86_64. Fails if either version does otherwise.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

round_trip() {
    python3 -m venv "$folder/$1"
    "$folder/$1/bin/pip" install --quiet --disable-pip-version-check "safetensors==$1" numpy==2.4.6
    "$folder/$1/bin/python" - <<'PYTHON'
import numpy as np
from safetensors.numpy import load, save

weights = np.arange(12, dtype=np.float32).reshape(3, 4)
columns = weights[:, [0, 2]]
copied = np.ascontiguousarray(columns)
back = load(save({"columns": columns, "copied": copied}))
print("right" if np.array_equal(back["columns"], columns) else f"wrong {back['columns'].tolist()}")
assert np.array_equal(back["copied"], columns)
PYTHON
}

old=$(round_trip 0.7.0) new=$(round_trip 0.8.0)
echo "safetensors 0.7.0: $old"
echo "safetensors 0.8.0: $new"
test "$old" = "right"
test "$new" = "wrong [[0.0, 4.0], [8.0, 2.0], [6.0, 10.0]]"
