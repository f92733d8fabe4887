"""What a scenario says of the network."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fedhp.bounds import WIDEST, Bounds
from fedhp.choices import STABLE, OneOf, check_values
from fedhp.errors import ScenarioError

NORMS = ("batch", "group")
# Whose layers are as many more: it bounds what a network is traced by.
MOST_TIME_STEPS = 100

# Of the networks in `fedhp.model.zoo.MODELS`.
USUAL_WIDTHS: Mapping[str, tuple[int, ...]] = {
    "mlp": (300, 100),
    "cnn": (16, 32, 128),
    "vgg11": (64, 128, 256, 256, 512, 512, 512, 512),
    "resnet20": (16, 32, 64),
    "conv1d": (32, 64, 64),
    "lenet5": (6, 16, 120, 84),
    "fedavg_cnn": (32, 64, 512),
    "heterofl_cnn": (64, 128, 256, 512),
    "spiking_mlp": (300, 100),
    "spiking_cnn": (16, 32, 128),
}

# Of spiking networks where none are asked for: more gain nothing on digits, see docs/methods.md.
USUAL_TIME_STEPS = 4


@dataclass(frozen=True)
class ModelConfig:
    """Which network, and how wide.

    Attributes:
        name: ``mlp``: dense layers with ReLU; ``cnn``: 3x3 convolutions, each with ReLU and 2x2 max-pooling,
            then one hidden dense layer; ``vgg11``: eight 3x3 convolutions with normalisation; ``resnet20``:
            three stages of three residual blocks; ``conv1d``: convolutions over time, for windows of sensor
            readings stored as ``(samples, channels, time)``. Of the literature: ``lenet5``:
            two 5x5 convolutions without padding, each with ReLU and pooling, then two hidden dense layers;
            ``fedavg_cnn``: as ``cnn`` with 5x5 convolutions (McMahan et al. 2017); ``heterofl_cnn``: four 3x3
            convolutions with [scalers](#normalisation) and normalisation (Diao et al. 2021). ``spiking_mlp``
            and ``spiking_cnn``: as ``mlp`` and ``cnn``, with leaky integrate-and-fire neurons in the place of
            ReLU; they need the extra ``spiking``, see [spiking networks](methods.md#spiking-networks).
        widths: Units per group of the full model, from the input to the output; none takes the model's usual
            ones. ``mlp`` (300, 100): its hidden layers; ``cnn`` (16, 32, 128): the channels of its
            convolutions and then the dense layer, two or more in all; ``vgg11`` (64, 128, 256, 256, 512, 512,
            512, 512): the channels of its convolutions; ``resnet20`` (16, 32, 64): the channels of its
            stages; ``conv1d`` (32, 64, 64): the channels of its convolutions; ``lenet5`` (6, 16, 120, 84),
            ``fedavg_cnn`` (32, 64, 512): as ``cnn``; ``heterofl_cnn`` (64, 128, 256, 512): the channels of
            its convolutions; ``spiking_mlp`` and ``spiking_cnn`` as ``mlp`` and ``cnn``.
        floor: Units that every group keeps at least, at most the smallest width. With group normalisation a
            unit is [several channels](#normalisation).
        prune_inputs: Whether the entries of a sample (its pixels) are units too, which can be cut. Of ``mlp``
            and ``spiking_mlp`` only: a convolution reads whole images.
        norm: Normalisation of ``vgg11``, ``resnet20``, ``conv1d`` and ``heterofl_cnn``. ``batch``: over the
            batch, with statistics of all clients' samples together; ``group``: over groups of four channels
            of each sample, which are cut as a whole. See [normalisation](#normalisation).
        time_steps: How often ``spiking_mlp`` and ``spiking_cnn`` are shown a sample, whose activations of all
            steps a training step holds; 0 takes the usual 4.
        target: A network of your own instead of ``model.name``, as ``package.module:build``. A ``model.name``
            that overrides or a file give later, alone, takes its place. See [your own
            network](#your-own-network).
    """

    name: Annotated[str, OneOf(USUAL_WIDTHS), STABLE] = "mlp"
    widths: Annotated[list[int], Bounds(at_least=1, largest=WIDEST), STABLE] = field(default_factory=list)
    floor: Annotated[int, Bounds(at_least=1, largest=WIDEST)] = 2
    prune_inputs: bool = True
    norm: Annotated[str, OneOf(NORMS)] = "batch"
    time_steps: Annotated[int, Bounds(at_least=0, largest=MOST_TIME_STEPS, hint="0 takes the usual 4")] = 0
    target: str = ""

    def __post_init__(self) -> None:
        check_values(self, "model.")
        if self.floor > min(self.widths, default=self.floor):
            raise ScenarioError(
                f"model.floor must be at most the smallest width, {min(self.widths)}, got {self.floor}"
            )
        if self.time_steps and not self.is_spiking:
            raise ScenarioError(
                f"model.time_steps = {self.time_steps} has no effect with {self.target or self.name}, which "
                f"is shown a sample once; leave it out, or choose spiking_mlp or spiking_cnn"
            )

    @property
    def is_spiking(self) -> bool:
        """Whether the network's activations are spikes."""
        return not self.target and self.name.startswith("spiking")

    @property
    def said(self) -> str:
        """The model's name, or the user's own, and its widths as far as they are known, for people."""
        widths = self.widths or ([] if self.target else USUAL_WIDTHS[self.name])
        return f"{self.target or self.name} {'-'.join(map(str, widths))}".rstrip()
