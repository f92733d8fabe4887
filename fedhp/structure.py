"""Which units of a model live, and how to slice anything by them.

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
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class AxisRef:
    """One tensor axis that a group indexes; each unit owns ``span`` consecutive entries of the axis.

    A span above 1 arises where feature maps are flattened: after a 7x7 map, a channel owns 49 inputs.
    """

    group: str
    span: int = 1


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

    def num_units(self) -> int:
        """Returns the number of kept units over all groups."""
        return sum(self.counts.values())

    def positions(self, sub: "Structure", group: str) -> Indices:
        """Returns where the units of ``sub`` sit among the kept units of this structure."""
        return np.flatnonzero(sub.masks[group][self.kept(group)])

    def to_bits(self) -> dict[str, NDArray[np.uint8]]:
        """Packs each mask into bytes, most significant bit first, as ``numpy.packbits`` does."""
        return {group: np.packbits(mask) for group, mask in self.masks.items()}

    @classmethod
    def from_bits(cls, bits: Mapping[str, NDArray[np.uint8]], widths: Mapping[str, int]) -> "Structure":
        """Unpacks `to_bits`.

        Raises:
            ValueError: If a group is missing or unknown, its bytes are of the wrong number, or a bit
                beyond the group's width is set.
        """
        if set(bits) != set(widths):
            raise ValueError(f"expected the groups {sorted(widths)}, got {sorted(bits)}")
        return cls({group: _unpack(group, bits[group], width) for group, width in widths.items()})


def _unpack(group: str, packed: NDArray[np.uint8], width: int) -> Mask:
    if packed.dtype != np.uint8 or packed.shape != (-(-width // 8),):
        raise ValueError(
            f"group '{group}': expected {-(-width // 8)} bytes for {width} units, "
            f"got {packed.dtype} of shape {packed.shape}"
        )
    unpacked = np.unpackbits(packed)
    if unpacked[width:].any():
        raise ValueError(f"group '{group}': a bit beyond its {width} units is set")
    return unpacked[:width].astype(np.bool_)


@dataclass(frozen=True, eq=False)
class Layout:
    """How a model is wired: the only place that knows, so that nothing else asks for layer names.

    Compared and hashed by identity, so that what is derived from it can be cached.

    Attributes:
        widths: Per group, the number of units of the full model.
        shapes: Per parameter, its shape in the full model.
        axes: Per parameter, one entry per axis: the `AxisRef` that indexes it, or None where the axis is
            fixed (classes, kernel sizes, the channels of an image).
        floors: Per group, the number of units below which it is never cut.
    """

    widths: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, tuple[AxisRef | None, ...]]
    floors: Mapping[str, int]

    def __post_init__(self) -> None:
        for name, shape in self.shapes.items():
            for size, axis in zip(shape, self.axes[name], strict=True):
                assert axis is None or size == self.widths[axis.group] * axis.span, name
        for group, width in self.widths.items():
            assert 1 <= self.floors[group] <= width, group

    def full(self) -> Structure:
        """Returns the structure of the full model."""
        return Structure.full(self.widths)

    def smallest(self) -> dict[str, int]:
        """Returns the unit counts of the smallest structure: every group at its floor."""
        return dict(self.floors)

    def shape(self, name: str, counts: Mapping[str, int]) -> tuple[int, ...]:
        """Returns a parameter's compact shape when each group keeps ``counts[group]`` units."""
        return tuple(
            size if axis is None else counts[axis.group] * axis.span
            for size, axis in zip(self.shapes[name], self.axes[name], strict=True)
        )

    def num_parameters(self, counts: Mapping[str, int]) -> int:
        """Returns the number of parameters (scalars) when each group keeps ``counts[group]`` units."""
        return sum(math.prod(self.shape(name, counts)) for name in self.shapes)

    def indices(self, name: str, within: Structure, sub: Structure) -> tuple[tuple[int, Indices], ...]:
        """Returns, for a parameter compact under ``within``, what to take to make it compact under ``sub``.

        Returns:
            Pairs of an axis and the positions to take along it; axes that stay whole are left out.
        """
        takes = []
        for axis, ref in enumerate(self.axes[name]):
            if ref is None or within.counts[ref.group] == sub.counts[ref.group]:
                continue
            takes.append((axis, _spread(within.positions(sub, ref.group), ref.span)))
        return tuple(takes)

    def slice(
        self, weights: Mapping[str, NDArray[Any]], within: Structure, sub: Structure
    ) -> dict[str, NDArray[Any]]:
        """Cuts arrays that are compact under ``within`` down to ``sub``, which it must contain.

        Arrays in which nothing is cut are returned as they are, not copied.
        """
        assert within.contains(sub)
        out = {}
        for name, array in weights.items():
            for axis, take in self.indices(name, within, sub):
                array = array.take(take, axis=axis)
            out[name] = array
        return out


def _spread(units: Indices, span: int) -> Indices:
    """Maps units to the entries that they own along an axis."""
    if span == 1:
        return units
    return (units[:, None] * span + np.arange(span)).ravel()
