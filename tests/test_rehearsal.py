"""Rehearsals: what sizes tell of a storage's channels against one more step for every group."""

import json
import math
from dataclasses import astuple
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import ARCHITECTURES
from torch import nn

from fedhp.costs import playing_tensors, rehearsal
from fedhp.costs.forms import forms_by_size, telling_counts
from fedhp.costs.ledger import PLAIN, Step
from fedhp.costs.rehearsal import rehearse
from fedhp.model.architecture import Architecture
from fedhp.model.axes import AxisRef
from fedhp.model.layout import Layout
from fedhp.model.options import ModelConfig
from fedhp.model.zoo import architecture


class Joined(nn.Module):
    """Maps that are concatenated again and again, as in a DenseNet, with a constant one among them."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.grow = nn.ModuleList(nn.Conv2d(8 + 4 * n, 4, 3, padding=1) for n in range(3))
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(20 * 4, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x, self.stem(x).relu()], 1)
        for layer in self.grow:
            x = torch.cat([x, self.norm(layer(x)).relu()], 1)
        return self.head(nn.functional.max_pool2d(x, 3).flatten(1))


JOINED = architecture(ModelConfig(target=f"{__name__}:Joined", floor=1), (2, 6, 6), 3)
CASES = ("mlp-1-hidden", "cnn-2-convs", "resnet20-group", "conv1d")
NETWORKS = {**{case: ARCHITECTURES[case] for case in CASES}, "joined": JOINED}
STEPS = {
    "plain": PLAIN,
    "masked": Step(masked=True),
    "smoothed": Step(smooth=True),
    "watched": Step(noisy=True, tapped=True),
}


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch):
    monkeypatch.setattr(rehearsal, "_SHORT_SECONDS", math.inf)


def rehearsed(arch: Architecture, step: Step) -> list:
    return list(astuple(rehearse(partial(playing_tensors.play, arch, step), arch.layout, step)))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("case", NETWORKS)
def test_few_steps_tell_what_one_more_for_every_group_tells(case, step, monkeypatch):
    few = rehearsed(NETWORKS[case], STEPS[step])
    monkeypatch.setattr(rehearsal, "forms_by_size", lambda *_: None)
    many = rehearsed(NETWORKS[case], STEPS[step])
    assert few[3:5] == many[3:5]
    for one, other in zip(few[:3] + few[5:], many[:3] + many[5:], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("case", ["mlp-1-hidden", "resnet20-group"])
def test_few_steps_do_however_many_groups_there_are(case, monkeypatch):
    """Seven at most; four where groups are wide enough to be told apart by three."""
    played = []
    play = playing_tensors.play
    monkeypatch.setattr(playing_tensors, "play", lambda *given: played.append(0) or play(*given))
    rehearsed(NETWORKS[case], PLAIN)
    assert (
        len(played) == 4 if case == "mlp-1-hidden" else len(played) <= 7 < len(NETWORKS[case].layout.widths)
    )


def other_numbers(folder: Path, name: str) -> None:
    np.save(folder / f"{name}.npy", np.load(folder / f"{name}.npy") ^ 1)


def another_type(folder: Path, name: str) -> None:
    np.save(folder / f"{name}.npy", np.load(folder / f"{name}.npy").view(np.float64))


def another_shape(folder: Path, name: str) -> None:
    np.save(folder / f"{name}.npy", np.load(folder / f"{name}.npy")[..., None])


def no_whole_file(folder: Path, name: str) -> None:
    kept = folder / f"{name}.npy"
    kept.write_bytes(kept.read_bytes()[:-8])


def no_file(folder: Path, name: str) -> None:
    """And whoever wrote the folder had none."""
    (folder / f"{name}.npy").unlink()
    sizes = {path.stem: path.stat().st_size for path in folder.glob("*.npy")}
    (folder / "contents.json").write_text(json.dumps(sizes))


FLAWS = (other_numbers, another_type, another_shape, no_whole_file, no_file)


@pytest.mark.parametrize("name", ["forms", "grows", "seal"])
@pytest.mark.parametrize("flaw", [*FLAWS, None])
def test_what_one_process_was_told_others_need_not_ask(name, flaw, monkeypatch, tmp_path):
    """One step says which network it is; what is kept of it is relied on where it is what was told of it."""
    monkeypatch.setenv("FEDHP_CACHE", str(tmp_path))
    monkeypatch.setattr(rehearsal, "_SHORT_SECONDS", 0.0)
    played = []
    play = playing_tensors.play
    monkeypatch.setattr(playing_tensors, "play", lambda *given: played.append(0) or play(*given))
    first = rehearsed(JOINED, PLAIN)
    (kept,) = tmp_path.glob("rehearsals/*")
    if flaw:
        flaw(kept, name)
    again = rehearsed(JOINED, PLAIN)
    num_steps = len(telling_counts(JOINED.layout)) + 1
    assert len(played) == num_steps + (num_steps if flaw else 1)
    assert first[3:5] == again[3:5]
    for one, other in zip(first[:3] + first[5:], again[:3] + again[5:], strict=True):
        np.testing.assert_array_equal(one, other)
    rehearsed(JOINED, Step(masked=True))
    assert len(list(tmp_path.glob("rehearsals/*"))) == 2


def test_what_was_told_of_another_network_is_not_taken(monkeypatch, tmp_path):
    """Its folder lies under this one's name."""
    monkeypatch.setenv("FEDHP_CACHE", str(tmp_path))
    monkeypatch.setattr(rehearsal, "_SHORT_SECONDS", 0.0)
    first = rehearsed(JOINED, PLAIN)
    (joined,) = tmp_path.glob("rehearsals/*")
    joined.rename(tmp_path / "elsewhere")
    rehearsed(NETWORKS["conv1d"], PLAIN)
    (other,) = tmp_path.glob("rehearsals/*")
    other.rename(joined)
    for one, another in zip(first, rehearsed(JOINED, PLAIN), strict=True):
        np.testing.assert_array_equal(one, another)


@pytest.mark.parametrize("num_groups", [1, 2, 6, 30, 120])
def test_counts_tell_every_stretch_of_an_axis_from_every_other_and_from_what_never_grows(num_groups):
    """Of a layer that takes all groups joined, behind three channels that stay: any of them in a row."""
    names = [f"g{n}" for n in range(num_groups)]
    widths = dict.fromkeys(names, 16)
    axis = (AxisRef(None, 3), *map(AxisRef, names))
    layout = Layout(widths, {"w": (5, 3 + 16 * num_groups)}, {"w": (None, axis)}, dict.fromkeys(names, 1))
    stretches = [(i, j) for i in range(num_groups + 1) for j in range(i + 1, num_groups + 2)][::num_groups]
    wanted = np.zeros((len(stretches) + 1, 1 + num_groups), np.int64)
    wanted[-1, 0] = 56
    for row, (start, stop) in enumerate(stretches):
        wanted[row, start:stop] = 8
        wanted[row, 0] *= 3
    counts = telling_counts(layout)
    assert all(3 <= count <= 16 or num_groups > 16 for one in counts for count in one.values())
    forms = forms_by_size(layout, counts, np.stack([wanted @ [1, *one.values()] for one in counts], axis=1))
    assert forms is not None
    np.testing.assert_array_equal(forms, wanted)


def test_sizes_tell_channels_by_hand():
    """Groups a and b, joined behind three channels that stay; 5 places of 4 bytes for two samples are 40."""
    a, b, three = AxisRef("a"), AxisRef("b", 2), AxisRef(None, 3)
    layout = Layout({"a": 4, "b": 6}, {"w": (9, 19)}, {"w": (None, (three, a, b))}, {"a": 1, "b": 1})
    counts = telling_counts(layout)
    columns = [[9, 40 * c["a"], 40 * (3 + c["a"]), 40 * (c["a"] + 2 * c["b"])] for c in counts]
    forms = forms_by_size(layout, counts, np.array(columns).T)
    assert forms is not None
    assert forms.tolist() == [[9, 0, 0], [0, 40, 0], [120, 40, 0], [0, 40, 80]]
    product = np.array([[c["a"] * c["b"] for c in counts]])
    assert forms_by_size(layout, counts, product) is None
