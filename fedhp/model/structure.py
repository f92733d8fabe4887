"""Which units of a model live.

A *unit* is a neuron of a dense layer, a channel of a convolution or an input of a dense network; a *group* is
a set of units that live and die together in every tensor that they index. A `Layout` says, once per model,
which axis of which parameter a group indexes; a `Structure` says which units of each group are kept.
Everything is in the coordinates of the *full* model, whatever was cut before, which makes the intersection
of two structures a plain set operation.

Structures are held as one boolean mask per group rather than as lists of indices: intersection is ``&``,
containment is one comparison, the packed bits on the wire are one call, and no invalid value (unsorted,
repeated or out of range) can be expressed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Indices = NDArray[np.intp]

_UNITS = "units:"  # begins a structure written as a text


def is_structure(text: str) -> bool:
    """Says whether a text begins as those of `Structure.to_text` do."""
    return text.startswith(_UNITS)


@dataclass(frozen=True)
class Structure:
    """The kept units of every group, as boolean masks in full-model coordinates.

    Attributes:
        masks: Per group, a read-only mask of shape ``(width,)``; True where the unit is kept.
    """

    masks: Mapping[str, Mask]

    def __post_init__(self) -> None:
        masks = {}
        for group, mask in self.masks.items():
            frozen = np.array(mask, dtype=np.bool_)
            frozen.setflags(write=False)
            masks[group] = frozen
        object.__setattr__(self, "masks", MappingProxyType(masks))

    def __reduce__(self) -> tuple[Any, ...]:
        return Structure, (dict(self.masks),)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @classmethod
    def full(cls, widths: Mapping[str, int]) -> "Structure":
        """Returns the structure that keeps every unit."""
        return cls({group: np.ones(width, np.bool_) for group, width in widths.items()})

    @cached_property
    def digest(self) -> str:
        """A hexadecimal fingerprint of the kept units; equal exactly when the structures are."""
        text = hashlib.blake2b(digest_size=8)
        for group in sorted(self.masks):
            text.update(f"{group}:{len(self.masks[group])}:".encode())
            text.update(np.packbits(self.masks[group]).tobytes())
        return text.hexdigest()

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """The number of kept units per group."""
        return MappingProxyType({group: int(mask.sum()) for group, mask in self.masks.items()})

    @cached_property
    def _kept(self) -> dict[str, Indices]:
        return {group: np.flatnonzero(mask) for group, mask in self.masks.items()}

    def kept(self, group: str) -> Indices:
        """Returns the kept units of a group, strictly increasing, in full-model coordinates."""
        return self._kept[group]

    def intersect(self, other: "Structure") -> "Structure":
        """Returns the units that both structures keep."""
        return Structure({group: mask & other.masks[group] for group, mask in self.masks.items()})

    def contains(self, other: "Structure") -> bool:
        """Says whether every unit of the other structure is kept here."""
        return all(not np.any(other.masks[g] & ~mask) for g, mask in self.masks.items())

    def without(self, group: str, units: Sequence[int] | Indices) -> "Structure":
        """Returns the structure less the given units (full-model coordinates) of one group."""
        mask = self.masks[group].copy()
        mask[np.asarray(units, dtype=np.intp)] = False
        return Structure({**self.masks, group: mask})

    def distance(self, other: "Structure") -> float:
        """Returns the Jaccard distance of two structures of one model, as sets of kept units, 0 to 1.

        One minus the units that both keep per unit that either keeps (Levandowsky and Winter 1971, Distance
        between sets, Nature 234).
        """
        pairs = [(mask, other.masks[group]) for group, mask in self.masks.items()]
        both, either = sum((a & b).sum() for a, b in pairs), sum((a | b).sum() for a, b in pairs)
        return 1 - float(both / either)

    def num_units(self) -> int:
        """Returns the number of kept units over all groups."""
        return sum(self.counts.values())

    def positions(self, sub: "Structure", group: str) -> Indices:
        """Returns where the units of ``sub`` sit among the kept units of this structure."""
        return np.flatnonzero(sub.masks[group][self.kept(group)])

    def to_bits(self) -> dict[str, NDArray[np.uint8]]:
        """Packs each mask into bytes, most significant bit first, as ``numpy.packbits`` does."""
        return {group: np.packbits(mask) for group, mask in self.masks.items()}

    def to_text(self) -> str:
        """Writes `to_bits` as a text of one line: a hexadecimal number per group."""
        return _UNITS + ".".join(bits.tobytes().hex() for bits in self.to_bits().values())

    @classmethod
    def from_text(cls, text: str, widths: Mapping[str, int]) -> "Structure":
        """Reads `to_text`, of groups in this order.

        Raises:
            ValueError: As `from_bits`, or if it is no such text.
        """
        numbers = text.removeprefix(_UNITS).split(".")
        bits = [np.frombuffer(bytes.fromhex(number), np.uint8) for number in numbers]
        if not is_structure(text) or len(bits) != len(widths):
            raise ValueError(f"expected '{_UNITS}' and {len(widths)} groups, got {text[:40]!r}")
        return cls.from_bits(dict(zip(widths, bits, strict=True)), widths)

    @classmethod
    def from_bits(cls, bits: Mapping[str, NDArray[np.uint8]], widths: Mapping[str, int]) -> "Structure":
        """Unpacks `to_bits`.

        Raises:
            ValueError: If a group is missing or unknown, its bytes are of the wrong number, or a bit
                beyond the group's width is set.
        """
        if set(bits) != set(widths):
            raise ValueError(f"expected the groups {sorted(widths)}, got {sorted(bits)}")
        return cls({group: unpacked(group, bits[group], width) for group, width in widths.items()})


def unpacked(group: str, packed: NDArray[np.uint8], width: int) -> Mask:
    """Returns a group's mask from its packed bits.

    Raises:
        ValueError: If there are not as many bytes as it has, or a bit beyond its width is set.
    """
    if packed.dtype != np.uint8 or packed.shape != (-(-width // 8),):
        raise ValueError(
            f"group '{group}': expected {-(-width // 8)} bytes for {width} units, "
            f"got {packed.dtype} of shape {packed.shape}"
        )
    bits = np.unpackbits(packed)
    if bits[width:].any():
        raise ValueError(f"group '{group}': a bit beyond its {width} units is set")
    return bits[:width].astype(np.bool_)
