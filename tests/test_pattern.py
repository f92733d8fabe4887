"""Patterns of weights in training: masks against brute force, training against plain loops, what is kept."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, random_shard, small_recipe, small_task, watched
from torch import nn
from typer.testing import CliRunner

import fedhp
from fedhp.cli import app
from fedhp.compression.layers import input_runs
from fedhp.compression.n_of_m import has_pattern, largest_of_runs
from fedhp.errors import ExportError, ScenarioError
from fedhp.exports.exporting import export
from fedhp.model.building import initial_state, to_module
from fedhp.model.inference import to_plain_module
from fedhp.model.options import ModelConfig
from fedhp.model.zoo import architecture
from fedhp.pruning.options import PatternConfig, PruneConfig
from fedhp.run.setup import prepare
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.recipes import recipe_of
from fedhp.seeds import generator
from fedhp.training.n_of_m import Combinations, Largest, combinations_left, masked
from fedhp.training.options import TrainConfig
from fedhp.training.trainer import train_locally

LAYERS = {
    "dense": nn.Linear(11, 5),
    "images": nn.Conv2d(10, 3, 3),
    "windows": nn.Conv1d(7, 4, 5),
    "groups": nn.Conv2d(12, 4, 3, groups=2),
    "few inputs": nn.Conv2d(1, 4, 3),
}
PATTERNS = {"nm:2:4": (2, 4), "nm:4:8": (4, 8)}
TRAIN = TrainConfig(local_epochs=4, batch_size=10, learning_rate=0.1, lr_schedule="constant", device="cpu")


def drawn(layer: nn.Module, seed: int = 0) -> torch.Tensor:
    return torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(seed))


def runs_of(weights: torch.Tensor, m: int):
    """Yields each run of inputs of each output and place, as one finds them by hand."""
    flat = weights.detach().reshape(*weights.shape[:2], -1)
    for output, place in itertools.product(range(flat.shape[0]), range(flat.shape[2])):
        for first in range(0, flat.shape[1], m):
            yield flat[output, first : first + m, place]


def assert_kept(weights: torch.Tensor, n: int, m: int) -> None:
    """Holds that of each run as many are kept as may be."""
    for run in runs_of(weights, m):
        assert int((run != 0).sum()) == min(n, len(run))


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_largest_are_those_of_an_export_and_of_all_subsets_the_best(layer, pattern):
    n, m = pattern
    weights, dense = drawn(layer), drawn(layer)
    masked(weights, Largest(n, m), 1)
    kept = largest_of_runs(dense.flatten(1).numpy(), input_runs(layer, m), n)
    np.testing.assert_array_equal(weights.flatten(1) != 0, kept)
    for run, whole in zip(runs_of(weights, m), runs_of(dense, m), strict=True):
        best = max(sum(abs(x) for x in some) for some in itertools.combinations(whole, min(n, len(whole))))
        assert float(run.abs().sum()) == pytest.approx(float(best))


def test_of_equals_the_first_are_kept():
    weights = torch.tensor([[1.0, -1.0, 1.0, 1.0, 0.0, 0.0]])
    assert Largest(2, 4).factors(weights, slice(0, 1), 1).tolist() == [[1, 1, 0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("pattern", "share", "number"),
    [
        ((2, 4), 0.0, 6),  # all C(4, 2)
        ((2, 4), 0.2, 4),  # 1 + ceil(5 * 0.8^3 = 2.56)
        ((2, 4), 0.5, 2),  # 1 + ceil(5 / 8)
        ((2, 4), 1.0, 1),
        ((4, 8), 0.0, 70),  # all C(8, 4)
        ((4, 8), 0.5, 10),  # 1 + ceil(69 / 8 = 8.625)
        ((4, 8), 0.9, 2),  # 1 + ceil(0.069)
        ((4, 8), 1.5, 1),
    ],
)
def test_combinations_fall_along_the_cubic(pattern, share, number):
    assert combinations_left(*pattern, share) == number


def test_scores_are_the_credits_of_those_in_a_combination_and_the_lowest_go_for_good():
    """A score is 1/3 and two credits: of 01 0.3 in all, of 02 0.2, 03 -0.1, 12 0.1, 13 -0.2, 23 -0.3.

    All six have sums of 1.4, 1, 0.9 and 0.3 over the weights 0 to 3, by 01 02 03, 01 12 13, 02 12 23 and
    03 13 23; then with three, 01 02 12, weight 3 is in none, and others have 2/3 and 0.5, 0.4 and 0.3.
    """
    credit = torch.tensor([[0.2, 0.1, 0.0, -0.3]])
    weights = torch.ones(1, 4)
    chosen, rows = Combinations(2, 4, weights, credit), slice(0, 1)
    sums = torch.tensor([1.0 + 0.3 + 0.2 - 0.1, 1.0 + 0.3 + 0.1 - 0.2, 1.0 + 0.2 + 0.1 - 0.3, 1.0 - 0.6])
    torch.testing.assert_close(chosen.factors(weights, rows, 6)[0], sums / 1.4)
    sums = torch.tensor([2 / 3 + 0.5, 2 / 3 + 0.4, 2 / 3 + 0.3, 0.0])
    torch.testing.assert_close(chosen.factors(weights, rows, 3)[0], sums / sums.max())
    credit[0, 3] = 9.0  # too late for those that are gone
    assert chosen.factors(weights, rows, 1).tolist() == [[1, 1, 0, 0]]


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_all_factors_are_one_at_first_and_the_pattern_holds_in_the_end(layer, pattern):
    n, m = pattern
    weights, dense = drawn(layer), drawn(layer)
    credit = drawn(layer, 1) * 0.01
    most = combinations_left(n, m, 0.0)
    masked(weights, Combinations(n, m, weights, torch.zeros_like(credit)), most)
    torch.testing.assert_close(weights, dense)
    masked(weights, Combinations(n, m, weights, credit), 1)
    assert_kept(weights, n, m)
    best = largest_of_runs((credit + 1).flatten(1).numpy(), input_runs(layer, m), n)
    np.testing.assert_array_equal(weights.flatten(1) != 0, best)


# --- in training -----------------------------------------------------------------------------

SMALL = architecture(ModelConfig("mlp", [9], prune_inputs=False), (1, 2, 5), 3)
SHARD = random_shard((1, 2, 5), 3, 30)
DENSE = PruneConfig(target_compression=1.0, end=0.25)


def by_a_plain_loop(recipe, choose) -> dict[str, torch.Tensor]:
    """Trains as a script would, with masks as functions of the weights and the gradients of masked weights.

    Of 12 steps masks are chosen after those from the 3rd on, and after the 9th for good.

    Args:
        recipe: The training.
        choose: Is given the number of the step, the name of a weight, the dense weight and the gradient of
            the masked one, and returns factors.
    """
    module = to_module(SMALL, initial_state(SMALL, recipe.seed))
    weights = {name: p for name, p in module.named_parameters() if p.dim() > 1}
    factors = {name: torch.ones_like(weight) for name, weight in weights.items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    order, step = generator(recipe.seed, "batches", 1, 5), 0
    for _ in range(4):
        rows = order.permutation(30)
        for first in (0, 10, 20):
            images, labels = SHARD.batch(rows[first : first + 10])
            now = {
                name: (weight.detach() * factors[name]).requires_grad_() for name, weight in weights.items()
            }
            logits = torch.func.functional_call(module, now, images)
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, labels).backward()
            for name, weight in weights.items():
                weight.grad = now[name].grad * (factors[name] if step >= 9 else 1)
            before = {name: weight.detach().clone() for name, weight in weights.items()}
            optimizer.step()
            step += 1
            for name, weight in weights.items():
                if 3 <= step <= 9:
                    factors[name] = choose(step, name, before[name], weight.detach(), now[name].grad)
                if step == 9:
                    weight.data *= factors[name]
                    optimizer.state[weight]["momentum_buffer"] *= factors[name]
    return {name: (p * factors.get(name, 1)).detach() for name, p in module.named_parameters()}


def test_training_by_magnitude_is_a_plain_loops():
    recipe = small_recipe(SMALL, TRAIN, replace(DENSE, pattern=PatternConfig("nm:2:4", end=0.75)))
    update = train_locally(recipe, small_task(recipe, SHARD), SHARD)

    def largest(step, name, before, weight, grad):
        runs = np.arange(weight.shape[1]) // 4
        return torch.from_numpy(largest_of_runs(weight.numpy(), runs, 2)).float()

    for name, weight in by_a_plain_loop(recipe, largest).items():
        np.testing.assert_allclose(update.state.weights[name], weight, atol=1e-5)


def test_learned_combinations_are_those_of_a_plain_loop_with_a_score_for_each():
    """Scores are parameters of their own here, moved by SGD along what autograd says of weighted masks."""
    recipe = small_recipe(SMALL, TRAIN, replace(DENSE, pattern=PatternConfig("nm:2:4", "learned", 0.75)))
    update = train_locally(recipe, small_task(recipe, SHARD), SHARD)
    pairs = [*itertools.combinations(range(4), 2)]
    scores: dict = {}

    def learned(step, name, before, weight, grad):
        out = torch.zeros_like(weight)
        for row, first in itertools.product(range(len(weight)), range(0, weight.shape[1], 4)):
            width = min(4, weight.shape[1] - first)
            inside = [pair for pair in pairs if max(pair) < width] if width > 1 else [(0,)]
            own = scores.setdefault((name, row, first), {pair: torch.tensor(1 / 3) for pair in inside})
            if step > 3:
                values = {pair: own[pair].clone().requires_grad_() for pair in own}
                at = [
                    sum((s for pair, s in values.items() if j in pair), torch.zeros(())) for j in range(width)
                ]
                products = [before[row, first + j] * at[j] * grad[row, first + j] for j in range(width)]
                sum(products).backward()
                for pair in own:
                    own[pair] = own[pair] - 0.1 * values[pair].grad
            number = combinations_left(2, 4, (step - 3) / 6)
            for pair in sorted(own, key=lambda pair: -own[pair])[number:]:
                del own[pair]
            sums = [sum(float(s) for pair, s in own.items() if j in pair) for j in range(width)]
            out[row, first : first + width] = torch.tensor(sums) / max(sums)
        return out

    for name, weight in by_a_plain_loop(recipe, learned).items():
        np.testing.assert_allclose(update.state.weights[name], weight, atol=1e-5)


class Detached(nn.Module):
    """Trains its last layer alone, on features that stay as they were drawn."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, samples):
        return self.head(self.features(samples.flatten(1)).relu().detach())


@pytest.mark.parametrize("by", ["magnitude", "learned"])
def test_a_layer_that_learns_nothing_has_the_pattern_of_its_first_weights(by, tmp_path):
    values = {
        **{"model.target": f"{__name__}:Detached", "model.prune_inputs": False, "data.max_train": 100},
        **{"prune.target_compression": 1, "prune.pattern.name": "nm:2:4", "prune.pattern.by": by},
        **{"train.epochs": 5},
    }
    run = fedhp.train("quickstart", tmp_path / "run", **values)
    first = initial_state(recipe_of(run.config, (1, 8, 8), 10).architecture, run.config.seed)
    drawn, found = (
        first.weights["features.weight"],
        fedhp.load_model(run.folder, target=Detached).features.weight,
    )
    assert_kept(found, 2, 4)
    kept = found.detach().numpy()
    np.testing.assert_array_equal(kept, np.where(kept != 0, drawn, 0))


CUT = PruneConfig(target_compression=2, start=0.0, end=0.4, cuts=4)
NETWORKS = {
    "mlp": architecture(ModelConfig("mlp", [24, 20]), (1, 6, 6), 5),
    "cnn": architecture(ModelConfig("cnn", [10, 13, 20]), (2, 8, 8), 4),
}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("by", ["magnitude", "learned"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("case", NETWORKS)
def test_the_pattern_holds_of_what_cuts_have_left_within_the_budget(case, pattern, by, optimizer):
    arch = NETWORKS[case]
    shard = random_shard(arch.input_shape, arch.num_classes, 40)
    train = replace(TRAIN, optimizer=optimizer, learning_rate=0.01, weight_decay=0.01)
    recipe = small_recipe(arch, train, replace(CUT, pattern=PatternConfig(pattern, by)))
    task = small_task(recipe, shard)
    budget = recipe.memory_model(1).training_bytes(arch.layout.widths, 10)
    update, run = watched(recipe, replace(task, profile=replace(task.profile, memory_bytes=budget)), shard)
    assert update.state.structure.num_units() < task.state.structure.num_units()
    for layer in to_plain_module(arch, update.state).modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            assert_kept(layer.weight, *PATTERNS[pattern])
    assert 0 < update.statistics.memory_measured_bytes <= update.statistics.memory_predicted_bytes <= budget
    kept = {key for state in run.optimizer.state.values() for key in state}
    assert not kept & {"dense", "credit"}


@pytest.mark.parametrize("case", ["resnet20", "conv1d", "cnn-1-conv"])
def test_other_networks_take_no_more_than_is_said(case):
    arch = ARCHITECTURES[case]
    shard = random_shard(arch.input_shape, arch.num_classes, 30)
    recipe = small_recipe(arch, TRAIN, replace(CUT, pattern=PatternConfig("nm:4:8", "learned")))
    update = train_locally(recipe, small_task(recipe, shard), shard)
    assert update.statistics.memory_measured_bytes <= update.statistics.memory_predicted_bytes
    assert has_pattern(to_plain_module(arch, update.state).eval(), torch.zeros(1, *arch.input_shape), 4, 8)


@pytest.mark.parametrize(
    ("values", "slots"),
    [
        ({}, 1),  # the weights without masks
        ({"end": 0.4}, 0),
        ({"by": "learned"}, 3),  # credits too, and 6 bytes for 4 weights
        ({"by": "learned", "name": "nm:4:8"}, 5),  # 70 bytes for 8 weights
    ],
)
def test_what_is_kept_for_each_weight_is_counted(values, slots):
    arch = NETWORKS["mlp"]
    plain, masks = (
        small_recipe(arch, TRAIN, prune)
        for prune in (CUT, replace(CUT, pattern=PatternConfig(**{"name": "nm:2:4", **values})))
    )
    full, without = (r.memory_model(1).training_bytes(arch.layout.widths, 10) for r in (masks, plain))
    assert full - without == slots * 4 * arch.layout.num_parameters(arch.layout.widths)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["prune.pattern.name=nm:3:4"], "prune.pattern.name must be one of none, nm:2:4, nm:4:8"),
        (["prune.pattern.name=2:4"], "write nm:2:4, as YAML reads 2:4 as a number"),
        (["prune.pattern.by=learned"], "prune.pattern.by has no effect without prune.pattern.name, such as"),
        (["prune.pattern.end=0.7"], "prune.pattern.end has no effect without prune.pattern.name, such as"),
        (["prune.pattern.name=nm:2:4", "prune.end=0.9"], "prune.pattern.end must not be below prune.end"),
        (
            ["prune.pattern.name=nm:2:4", "prune.pattern.by=learned", "prune.end=0.8"],
            "prune.pattern.by = learned takes the time from prune.end to prune.pattern.end, got 0.8 for both",
        ),
    ],
)
def test_what_cannot_be_is_said(values, said):
    with pytest.raises(ScenarioError, match=said):
        load_scenario("quickstart", values)


def test_a_fleet_is_told_that_means_have_no_pattern():
    with pytest.raises(
        ScenarioError, match=r"prune.pattern.name = nm:4:8 is for 'fedhp train': .* --compress obc:4:8"
    ):
        prepare(load_scenario("quickstart", ["prune.pattern.name=nm:4:8"]))


def test_a_fleet_is_told_before_a_network_is_measured(monkeypatch, tmp_path):
    def measured(*_):
        raise AssertionError("a network was measured")

    monkeypatch.setattr("fedhp.api.with_widths", measured)
    with pytest.raises(ScenarioError, match="is for 'fedhp train'"):
        fedhp.simulate("quickstart", tmp_path / "run", show=False, **{"prune.pattern.name": "nm:2:4"})


def test_a_comparison_is_told_before_its_folder_is_made(tmp_path):
    words = ["compare", "quickstart", "prune.pattern.name=nm:2:4", "--out", str(tmp_path / "kept")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "--compress obc:2:4" in result.stderr
    assert not list(tmp_path.iterdir())


def test_what_networks_take_is_measured_of_a_training_with_a_pattern(monkeypatch, tmp_path):
    """`fedhp train` has a target in milliseconds too."""

    def asked(scenario, kind, runtime, again):
        raise ExportError(f"{scenario.prune.pattern.name} was to be measured in {runtime}")

    monkeypatch.setattr("fedhp.latency.look.look", asked)
    words = ["latency", "quickstart", "prune.pattern.name=nm:2:4", "--runtime", "torch"]
    assert "nm:2:4 was to be measured in torch" in CliRunner().invoke(app, words).stderr


def test_an_export_tells_the_pattern_and_its_packed_size(tmp_path):
    values = {
        "train.epochs": 2,
        "data.max_train": 300,
        "prune.target_compression": 3,
        "prune.pattern.name": "nm:2:4",
    }
    run = fedhp.train("quickstart", tmp_path / "run", **values)
    again = fedhp.train("quickstart", tmp_path / "again", **values)
    done = export(run.folder, ["torch"])
    program = torch.export.load(done.folder / "model.pt2")
    weights = [one for one in program.state_dict.values() if one.ndim == 2 and one.is_floating_point()]
    for one in weights:
        assert_kept(one, 2, 4)
    facts = json.loads((done.folder / "export.json").read_text())["network"]
    sizes, kept = (
        sum(map(int, some)) for some in ([w.numel() for w in weights], [(w != 0).sum() for w in weights])
    )
    told = facts["pattern"]
    assert told["packed_bits"] == sizes + 32 * (kept + facts["parameters"] - sizes)
    assert told["pattern"] == "nm:2:4"
    assert told["said"] in (done.folder / "model_card.md").read_text()
    assert facts["compression"] is None
    assert done.pattern is not None
    for name, value in fedhp.load_model(run.folder).state_dict().items():
        torch.testing.assert_close(value, fedhp.load_model(again.folder).state_dict()[name], rtol=0, atol=0)
