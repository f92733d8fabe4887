#!/usr/bin/env bash
# torch-pruning 1.6.1: where a ratio leaves less than one channel of a layer, the layer keeps all of them, without
# a word. Of 16 channels a ratio of 0.9 leaves 1; one of 0.95 leaves 16, while a wider layer beside it is cut.
# So a larger ratio may give a larger network. Ranked over all layers, a layer all of whose channels are the least
# important is left whole too.
set -euo pipefail
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.13.0 torch-pruning==1.6.1 numpy
cd "$place"
"$place/venv/bin/python" - <<'END'
import torch
import torch_pruning as tp
from torch import nn


def left(ratio, **options):
    """The channels of both layers after pruning by a ratio."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3))
    with torch.no_grad():
        network[0].weight.mul_(options.pop("scale", 1.0))
    pruner = tp.pruner.BasePruner(
        network,
        torch.zeros(1, 4),
        importance=tp.importance.GroupMagnitudeImportance(p=2, group_reduction="first", normalizer=None),
        pruning_ratio=ratio,
        ignored_layers=[network[4]],
        **options,
    )
    pruner.step()
    return network[0].out_features, network[2].out_features


found = {ratio: left(ratio) for ratio in (0.9, 0.95)}
ranked = left(0.5, global_pruning=True, scale=1e-3)
print(f"(narrow, wide) layer of 16 and 64 channels, by ratio: {found}; ranked over all at 0.5: {ranked}")
assert found[0.9] == (1, 6), found
assert found[0.95] == (16, 3), found
assert ranked[0] == 16, ranked
END
echo "still so: layers that would lose all channels keep all"
