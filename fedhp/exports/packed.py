"""What compression came to: sizes, and accuracies before and after."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedhp.compression.figures import LayerFigures
from fedhp.sizes import format_size


@dataclass(frozen=True)
class Patterned:
    """What a network takes that was trained to have a pattern of zeros.

    Attributes:
        pattern: The scenario's ``prune.pattern.name``.
        layers: Its dense layers and convolutions.
        packed_bits: What the whole network takes, packed as its weights allow; files hold floats.
        bits_before: The same in float32.
    """

    pattern: str
    layers: Sequence[LayerFigures]
    packed_bits: int
    bits_before: int

    @property
    def said(self) -> str:
        """What it came to, in a line."""
        return f"trained with prune.pattern.name = {self.pattern}: {_sizes(self)}"

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        return {**asdict(self), "said": self.said}


@dataclass(frozen=True)
class Compression:
    """What became of a network between its training and its files.

    Attributes:
        methods: As they were asked for, in their order.
        num_samples: Training samples by which weights were fitted.
        layers: Its dense layers and convolutions.
        packed_bits: What the whole network takes, packed as its weights allow; files hold floats.
        bits_before: The same in float32.
        num_held_out: Held-out samples on which accuracies were found, those that files are verified on.
        accuracy_before: The share of them that the trained network got right.
        accuracy: The same of the compressed one.
    """

    methods: str
    num_samples: int
    layers: Sequence[LayerFigures]
    packed_bits: int
    bits_before: int
    num_held_out: int
    accuracy_before: float
    accuracy: float

    @property
    def said(self) -> str:
        """What it came to, in a line."""
        return (
            f"compressed by {self.methods} on {self.num_samples:,} training samples: {_sizes(self)}; "
            f"accuracy on {self.num_held_out:,} held-out samples {self.accuracy:.1%}, of the trained network "
            f"{self.accuracy_before:.1%}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        return asdict(self)


def _sizes(of: Compression | Patterned) -> str:
    weights, zeros = (sum(getattr(layer, key) for layer in of.layers) for key in ("weights", "zeros"))
    packed, before = (format_size(-(-bits // 8)) for bits in (of.packed_bits, of.bits_before))
    return (
        f"{packed} when packed (counted; the files hold all weights, as floats or int8), where float32 takes "
        f"{before}; {zeros / weights:.1%} of the weights are 0"
    )
