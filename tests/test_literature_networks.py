"""The networks of the literature: their published sizes, HeteroFL's scaler, and its static batch norm."""

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES, random_shard, small_recipe, small_task
from torch import nn
from torch.nn import functional

import fedhp
from fedhp.aggregation.submodels import at_level
from fedhp.data import train_shard
from fedhp.errors import ScenarioError
from fedhp.model.building import initial_state, to_module
from fedhp.model.inference import to_whole_module
from fedhp.model.options import ModelConfig
from fedhp.model.scaler import Scaler, unscaled
from fedhp.model.state import ModelState
from fedhp.model.zoo import architecture
from fedhp.training.options import TrainConfig
from fedhp.training.trainer import train_locally

MNIST = (1, 28, 28)
PART = ARCHITECTURES["heterofl_cnn"]
# HeteroFL's sizes of its CNN for MNIST, by the channels of the first layer.
PUBLISHED = {4: 6_594, 8: 25_274, 16: 98_922, 32: 391_370, 64: 1_556_874}


def size(name: str, widths: list[int]) -> int:
    layout = architecture(ModelConfig(name, widths), MNIST, 10).layout
    return layout.num_parameters(layout.widths)


# --- sizes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", PUBLISHED)
def test_heterofls_network_has_the_published_numbers_of_parameters(first):
    """Of the narrowest, 4-8-16-32: convolutions with bias 36 + 4, 288 + 8, 1,152 + 16 and 4,608 + 32, scales
    and offsets 2 * (4 + 8 + 16 + 32), and the head 320 + 10: 40 + 296 + 1,168 + 4,640 + 120 + 330 = 6,594.
    """
    assert size("heterofl_cnn", [first * 2**n for n in range(4)]) == PUBLISHED[first]


def test_its_parts_have_the_sizes_of_its_levels():
    """By level, of the widest network; and the published mean of d and e, (25,274 + 6,594) / 2 = 15,934."""
    layout = architecture(ModelConfig("heterofl_cnn"), MNIST, 10).layout
    sizes = [layout.num_parameters(at_level(layout, level)) for level in (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16)]
    assert sizes == sorted(PUBLISHED.values(), reverse=True)
    assert sum(sizes[-2:]) / 2 == 15_934


def test_the_cnn_of_fedavgs_paper_has_its_number_of_parameters():
    """25 * 32 + 32 + 25 * 32 * 64 + 64 + 7 * 7 * 64 * 512 + 512 + 512 * 10 + 10 = 1,663,370."""
    assert size("fedavg_cnn", []) == 1_663_370


def test_the_lenet_has_its_number_of_parameters():
    """Sides 28, 24, 12, 8, 4: 25 * 6 + 6 + 25 * 6 * 16 + 16 + 16 * 16 * 120 + 120 + 120 * 84 + 84 + 850."""
    assert size("lenet5", []) == 44_426


@pytest.mark.parametrize(
    ("name", "widths", "shape", "said"),
    [
        ("lenet5", [], (1, 8, 8), "'lenet5' halves the image 2 times, which inputs of shape"),
        (
            "lenet5",
            [6, 120],
            MNIST,
            "'lenet5' takes images .* at least three widths .* then two dense layers",
        ),
        ("fedavg_cnn", [], (1, 1, 9), "'fedavg_cnn' takes images"),
        ("heterofl_cnn", [4, 8], MNIST, "'heterofl_cnn' takes samples of three axes and 4 widths"),
    ],
)
def test_what_they_cannot_take_is_refused(name, widths, shape, said):
    with pytest.raises(ScenarioError, match=said):
        architecture(ModelConfig(name, widths), shape, 10)


# --- the scaler ------------------------------------------------------------------------------


def test_a_scaler_divides_by_the_share_of_the_channels_that_are_left_and_in_training_alone():
    """Of 4 channels 2 are left: 3 / (2 / 4) = 6; of 4 all four: 3."""
    scaler = Scaler(4)
    assert (scaler(torch.full((1, 2, 1, 1), 3.0)) == 6).all()
    assert (scaler(torch.full((1, 4, 1, 1), 3.0)) == 3).all()
    with unscaled(scaler):
        assert (scaler(torch.full((1, 2, 1, 1), 3.0)) == 3).all()
    assert scaler.training
    assert (scaler.eval()(torch.full((1, 2, 1, 1), 3.0)) == 3).all()


def part_of_half() -> ModelState:
    """The first units of each group, half of them, rounded down: 2 of 4, 3 of 6, 2 of 5 and 3 of 7."""
    whole = initial_state(PART, 0)
    structure = PART.layout.full()
    for group, width in PART.layout.widths.items():
        structure = structure.without(group, list(range(width // 2, width)))
    return whole.cut(PART.layout, structure)


@pytest.mark.parametrize(("training", "factors"), [(True, (2, 2, 5 / 2, 7 / 3)), (False, (1, 1, 1, 1))])
def test_a_part_is_scaled_by_what_it_lacks_of_the_whole_network(training, factors):
    """Of 4, 6, 5 and 7 channels 2, 3, 2 and 3 are left."""
    module, seen = to_module(PART, part_of_half()).train(training), dict[str, torch.Tensor]()
    for name, layer in module.named_children():

        def note(_layer: nn.Module, _given: object, made: torch.Tensor, name: str = name) -> None:
            seen[name] = made.clone()

        layer.register_forward_hook(note)
    module(torch.randn(5, *PART.input_shape))
    for number, factor in enumerate(factors, 1):
        torch.testing.assert_close(seen[f"scaler{number}"], factor * seen[f"conv{number}"])


def test_a_finished_network_is_of_torchs_own_layers():
    module, plain = to_module(PART, part_of_half()).eval(), to_whole_module(PART, part_of_half()).eval()
    assert all(type(layer).__module__.startswith("torch.") for layer in plain.modules())
    samples = torch.randn(3, *PART.input_shape)
    assert torch.equal(module(samples), plain(samples))


# --- static batch normalisation --------------------------------------------------------------


def moments_by_hand(state: ModelState, samples: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean square, over samples and places, of what the first convolution makes of samples."""
    weight, bias = (torch.tensor(state.weights[f"conv1.{leaf}"]) for leaf in ("weight", "bias"))
    made = functional.conv2d(samples, weight, bias, padding=1).double()
    return made.mean((0, 2, 3)).numpy(), made.square().mean((0, 2, 3)).numpy()


def test_a_clients_statistics_are_those_of_its_final_network_without_scalers():
    """Of a part in two epochs at a high rate: none of its earlier weights, nor its factor of 2, is in them.

    Torch's running variance is that of a sample, of n places n / (n - 1) times their mean square deviation.
    """
    train = TrainConfig(local_epochs=2, batch_size=40, learning_rate=0.5, device="cpu")
    recipe, shard = small_recipe(PART, train), random_shard(PART.input_shape, PART.num_classes, 40)
    state = train_locally(recipe, small_task(recipe, shard, state=part_of_half()), shard).state
    mean, square = moments_by_hand(state, shard.batch(np.arange(40))[0])
    places = 40 * 9 * 8
    variance = (square - mean**2) * places / (places - 1)
    assert np.allclose(state.weights["norm1.running_mean"], mean, atol=1e-5)
    assert np.allclose(state.weights["norm1.running_square"], variance + mean**2, rtol=1e-4)
    before = part_of_half().weights["conv1.weight"]
    assert abs(state.weights["conv1.weight"] - before).max() > 0.01


def test_the_servers_are_taken_of_the_model_that_it_has_made(tmp_path):
    """Of the mean of the clients' weights, over the samples of all: other than the mean of theirs."""
    values = {
        "rounds": 2,
        "model.name": "heterofl_cnn",
        "model.widths": [3, 4, 4, 5],
        "strategy.name": "dense",
        "fleet.num_clients": 3,
        "data.max_train": 300,
        "train.batch_size": 100,
        "train.learning_rate": 0.2,
        "simulation.num_workers": 0,
    }
    run = fedhp.simulate("quickstart", tmp_path / "run", show=False, **values)
    module, shard = fedhp.load_model(run.folder), train_shard(run.config.data)
    weights = {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}
    samples, _ = shard.batch(np.arange(300))
    mean, _ = moments_by_hand(ModelState(weights, PART.layout.full()), samples)
    norm = module.get_submodule("norm1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert np.allclose(norm.running_mean.numpy(), mean, atol=1e-5)
