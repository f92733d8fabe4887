"""A device's training in a process of its own, and one that takes memory beside it; run as a script.

Either says something in a line of JSON once it is ready, and goes on when it hears a line.
"""

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

MIB = 2**20


def say(**words: Any) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def take() -> None:
    """Takes a mebibyte for each line that it hears."""
    say(ready=True)
    kept = [b"1" * MIB for _ in sys.stdin]
    say(taken=len(kept))


def train(runtime: str, reserve: int, batch: int, epochs: int, limit: int) -> None:
    """Trains; a reserve of 0 is nobody's watch, a limit one of data beyond what the process has."""
    import numpy as np

    from fedhp.costs import machine
    from fedhp.costs.memory_watch import MemoryWatch
    from fedhp.costs.this_process import ThisProcess
    from fedhp.data import Shard
    from fedhp.errors import FedhpError
    from fedhp.fleet.devices import DeviceProfile
    from fedhp.model.options import ModelConfig
    from fedhp.model.state import ModelState
    from fedhp.model.zoo import architecture
    from fedhp.pruning.options import PruneConfig
    from fedhp.training.batches import MemoryConfig
    from fedhp.training.memory_guard import MemoryGuard
    from fedhp.training.method import ClientRun, Method
    from fedhp.training.method_names import PRUNING
    from fedhp.training.methods import methods_for
    from fedhp.training.options import TrainConfig
    from fedhp.training.recipe import Recipe
    from fedhp.training.trainer import train_locally
    from fedhp.training.update import RoundTask

    arch, stream = architecture(ModelConfig("mlp", [400, 200]), (1, 40, 40), 10), np.random.default_rng(0)
    images, labels = stream.integers(0, 256, (8192, 1, 40, 40), np.uint8), np.arange(8192) % 10
    shard = Shard(images, labels, np.arange(8192), num_classes=10, mean=0.4, std=0.2)
    full = arch.layout.full()
    shapes = {name: arch.layout.shape(name, full.counts) for name in arch.layout.shapes}
    start = {name: (0.02 * stream.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
    config = TrainConfig(local_epochs=epochs, batch_size=batch, learning_rate=0.01, device="cpu")
    prune = PruneConfig(target_compression=2, start=0.5)

    class Told(Method):
        """Says it of every 2,048 samples."""

        on_arrays = True
        num_samples = 0

        def after_step(self, run: ClientRun) -> None:
            before, self.num_samples = self.num_samples, self.num_samples + run.steps.batch
            if self.num_samples // 2048 > before // 2048:
                say(trained=self.num_samples)

    methods = (*methods_for(PRUNING), Told)
    recipe = Recipe(arch, config, prune, MemoryConfig(), 1, 3, methods, runtime_name=runtime)
    task = RoundTask(1, 0, DeviceProfile("device", None, len(shard)), ModelState(start, full))
    say(predicted=recipe.memory_model(1).training_bytes(full.counts, batch))
    sys.stdin.readline()
    if limit:
        allowed = limit * MIB + machine._numbers(Path("/proc/self/status"), 1024)["VmData:"]
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    guard = MemoryGuard(MemoryWatch(ThisProcess(), reserve * MIB)) if reserve else None
    try:
        update = train_locally(recipe, task, shard, guard=guard)
    except FedhpError as error:
        return say(declined=str(error))
    finite = all(np.isfinite(array).all() for array in update.state.weights.values())
    return say(finite=bool(finite), units=dict(update.state.structure.counts), **asdict(update.statistics))


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "take":
        take()
    else:
        train(words[0], *map(int, words[1:]))
