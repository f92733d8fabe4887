"""When a server moves single weights, and of which layers how many: FedTiny's (arXiv 2212.01977)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from fedhp.model.layout import Layout

# Of layers in a row, which move their weights in turn: FedTiny's own number.
_BLOCKS = 5


def falling(first: float, progress: float, end: float) -> float:
    """Returns a share that falls to 0 along a cosine (Evci et al. 2020, arXiv 1911.11134, section 3)."""
    return first / 2 * (1 + math.cos(math.pi * progress / end)) if progress < end else 0.0


@dataclass(frozen=True)
class Moves:
    """When how many single weights move elsewhere.

    Attributes:
        every: Rounds from one time to the next; 0 for never.
        drop: The share of a layer's weights, at first.
        end: Progress of the whole training from which on weights stay where they are.
    """

    every: int = 0
    drop: float = 0.0
    end: float = 1.0

    def after(
        self, layout: Layout, counts: Mapping[str, int], server_round: int, rounds: int
    ) -> dict[str, int]:
        """Returns how many weights move after a round: of the layers of a block, the last first, in turn.

        Args:
            layout: The wiring of a network that holds a part of its weights.
            counts: How many of each layer it holds.
            server_round: The round, from 1.
            rounds: Of the whole training.

        Returns:
            Per layer whose turn it is, a number above 0 that is neither more than it holds nor than it lacks.
        """
        if not self.every or server_round % self.every:
            return {}
        layers = [group for group in layout.widths if group in layout.singles]
        number = min(_BLOCKS, len(layers))
        ends = [len(layers) * place // number for place in range(number + 1)]
        blocks = [layers[start:end] for start, end in pairwise(ends)]
        share = falling(self.drop, server_round / rounds, self.end)
        turn = blocks[-1 - (server_round // self.every - 1) % number]
        moved = {one: min(int(share * counts[one]), layout.widths[one] - counts[one]) for one in turn}
        return {layer: count for layer, count in moved.items() if count}
