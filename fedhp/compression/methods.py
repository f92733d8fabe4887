"""The methods by name, and what a text such as ``obc:0.5,ternary`` asks for."""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fedhp.compression.figures import Compressed
from fedhp.compression.n_of_m import n_of_m
from fedhp.compression.obc import obc, obc_n_of_m
from fedhp.compression.obq import obq
from fedhp.compression.smartdeal import smartdeal
from fedhp.compression.ternary import ternary
from fedhp.errors import ExportError

_Apply = Callable[[nn.Module, torch.Tensor], Compressed]

CHOICES = (
    "obc:SHARE such as obc:0.5, obc:N:M such as obc:2:4, nm:N:M such as nm:2:4, obq:BITS such as obq:4, "
    "ternary and smartdeal"
)
_MOST_RUN = 64
_PLAIN: dict[str, _Apply] = {"ternary": ternary, "smartdeal": smartdeal}


@dataclass(frozen=True)
class Step:
    """A method with its numbers.

    Attributes:
        said: As it was asked for.
        apply: Takes a network and calibration inputs.
        last: Whether it says how weights are written, so that no other may change them after it.
    """

    said: str
    apply: _Apply
    last: bool = False


def parsed(text: str) -> list[Step]:
    """Returns the methods of a text, with commas, in their order.

    Raises:
        ExportError: If one is not known, its numbers are not possible, or it comes after one that has to be
            the last.
    """
    steps = [_step(part.strip()) for part in text.split(",") if part.strip()]
    if not steps:
        raise ExportError(f"compress names no method; choose of {CHOICES}")
    for before, after in itertools.pairwise(steps):
        if before.last:
            raise ExportError(
                f"compress: '{after.said}' would change the weights that '{before.said}' wrote in few bits; "
                f"put '{before.said}' last"
            )
    return steps


def compressed(network: nn.Module, inputs: torch.Tensor, steps: Sequence[Step]) -> Compressed:
    """Applies methods in turn, each to what the one before it left.

    Args:
        network: Torch's own layers; it is left as it is.
        inputs: Calibration samples as it takes them.
        steps: At least one.

    Raises:
        ExportError: If there are no samples, or scores are not finite.
    """
    done = steps[0].apply(network, inputs)
    for step in steps[1:]:
        done = step.apply(done.network, inputs)
    return done


def _step(said: str) -> Step:
    name, _, numbers = said.partition(":")
    if name == "obc" and re.fullmatch(r"0?\.[0-9]+", numbers) and float(numbers) > 0:
        share = float(numbers)
        return Step(said, lambda network, inputs: obc(network, inputs, share))
    if name in ("obc", "nm") and (found := re.fullmatch("([0-9]{1,2}):([0-9]{1,2})", numbers)):
        n, m = map(int, found.groups())
        if 0 < n < m <= _MOST_RUN:
            method = obc_n_of_m if name == "obc" else n_of_m
            return Step(said, lambda network, inputs: method(network, inputs, n, m))
    if name == "obq" and re.fullmatch("[2-8]", numbers):
        bits = int(numbers)
        return Step(said, lambda network, inputs: obq(network, inputs, bits), last=True)
    if said in _PLAIN:
        return Step(said, _PLAIN[said], last=True)
    raise ExportError(
        f"compress: '{said}' is none of {CHOICES}; a share lies between 0 and 1, N is less than M and M at "
        f"most {_MOST_RUN}, bits are 2 to 8"
    )
