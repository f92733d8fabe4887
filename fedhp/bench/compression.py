"""What compression after training costs in accuracy, and what it leaves of a pruned network's bytes."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from torch import nn

from fedhp.api import train
from fedhp.compression.figures import float_bits
from fedhp.compression.methods import compressed, parsed
from fedhp.exports.compressing import scores_of
from fedhp.exports.loaded import load_trained
from fedhp.exports.network import network_inputs
from fedhp.exports.samples import RawData, raw_data
from fedhp.exports.trained import Trained
from fedhp.model.inference import to_plain_module
from fedhp.records.result import RunResult
from fedhp.threads import torch_threads

METHODS = (
    *("obc:0.5", "nm:2:4", "obc:2:4", "obq:8", "obq:4", "ternary", "smartdeal"),
    *("obc:0.5,obq:4", "obc:0.5,ternary"),
)
FITTED, ALL = 4096, 10**6


def run_compression(
    scenarios: Sequence[str] = ("fashion_mnist", "cifar10"),
    seeds: Sequence[int] = (0, 1, 2),
    methods: Sequence[str] = METHODS,
    say: Callable[[str], None] = print,
    **overrides: Any,
) -> dict[str, Any]:
    """Trains each scenario on one device as it stands, pruning it, and compresses what comes of it.

    Args:
        scenarios: Names or paths.
        seeds: Seeds.
        methods: As `parsed` takes them.
        say: Is told what is measured.
        overrides: Scenario values by dotted key.

    Returns:
        ``runs``: of each scenario, seed and method, accuracies on all held-out samples before and after, and
        KiB; ``rows``: the mean and the deviation over seeds of what accuracy became, in points.
    """
    for method in methods:
        parsed(method)
    runs = []
    for scenario in scenarios:
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                say(f"{scenario}, seed {seed}")
                run = train(scenario, Path(folder) / "run", **overrides, seed=seed)
                trained = load_trained(run.folder)
                for one in _measured(run, trained, methods):
                    say(f"  {one['method']}: {one['accuracy_before']:.2f} % -> {one['accuracy']:.2f} %")
                    runs.append({"scenario": scenario, "seed": seed, **one})
    return {"runs": runs, "rows": list(_summaries(runs))}


def _measured(run: RunResult, trained: Trained, methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    raw = raw_data(run.config.data, run.config.seed, None, ALL, 0, FITTED)
    network = to_plain_module(trained.arch, trained.state).eval()
    inputs = network_inputs(trained, raw.compression)
    with torch_threads(1):
        before = _accuracy(trained, network, raw)
        for method in methods:
            done = compressed(network, inputs, parsed(method))
            yield {
                "method": method,
                "epochs": run.config.train.epochs,
                "parameters_before_training": run.summary["params_full"],
                "parameters": run.summary["params_final"],
                "accuracy_before": before,
                "accuracy": _accuracy(trained, done.network, raw),
                "KiB_before": round(float_bits(network) / 8192, 2),
                "KiB": round(done.packed_bits / 8192, 2),
                "zeros": sum(layer.zeros for layer in done.layers),
            }


def _accuracy(trained: Trained, network: nn.Module, raw: RawData) -> float:
    """Returns the share of all held-out samples that a network gets right, in per cent."""
    scores = scores_of(network, network_inputs(trained, raw.held_out))
    return round(float(100 * np.mean(scores.argmax(1) == raw.labels)), 2)


def _summaries(runs: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for scenario, method in dict.fromkeys((run["scenario"], run["method"]) for run in runs):
        own = [run for run in runs if (run["scenario"], run["method"]) == (scenario, method)]
        points = [run["accuracy"] - run["accuracy_before"] for run in own]
        yield {
            "scenario": scenario,
            "method": method,
            "before_%": round(mean(run["accuracy_before"] for run in own), 2),
            "after_%": round(mean(run["accuracy"] for run in own), 2),
            "points": round(mean(points), 2),
            "±": round(stdev(points), 2) if len(points) > 1 else 0.0,
            "KiB_before": round(mean(run["KiB_before"] for run in own), 1),
            "KiB": round(mean(run["KiB"] for run in own), 1),
        }
