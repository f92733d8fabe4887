"""The units that another run ended with, taken into a scenario."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from fedhp.errors import FedhpError, ScenarioError
from fedhp.model.layout import Layout
from fedhp.model.structure import Structure, is_structure
from fedhp.records.load import has_finished, load_state, recorded_scenario
from fedhp.scenario.schema import Scenario
from fedhp.training.method_names import DYNHP


def with_structure(scenario: Scenario, layout: Layout) -> Scenario:
    """Returns a scenario that says units themselves in place of the run that ended with them.

    So its record is whole without that of the other run, which may go.

    Args:
        scenario: The scenario.
        layout: Of its model.

    Raises:
        ScenarioError: If there is no such run, it was cut short or of another network, or units that are
            said themselves are none of this network.
    """
    said = scenario.strategy.structure
    if not said:
        return scenario
    if is_structure(said):
        _check(said, layout)
        return scenario
    return replace(scenario, strategy=replace(scenario.strategy, structure=_final(said, layout).to_text()))


def _check(said: str, layout: Layout) -> None:
    try:
        counts = Structure.from_text(said, layout.widths).counts
    except ValueError as error:
        raise ScenarioError(f"strategy.structure fits no network of this scenario: {error}") from None
    if few := [group for group, floor in layout.floors.items() if counts[group] < floor]:
        raise ScenarioError(f"strategy.structure leaves fewer units than model.floor of {', '.join(few)}")


def _final(folder: str, layout: Layout) -> Structure:
    try:
        finished = has_finished(path := os.path.expanduser(folder))
        state, told = load_state(path)
    except FedhpError as error:
        raise ScenarioError(f"strategy.structure takes the folder of a finished run: {error}") from None
    if not finished:
        raise ScenarioError(
            f"strategy.structure: the run at {folder} has not finished, and so has no final network; "
            f"'fedhp resume {folder}' goes on with it"
        )
    if key := recorded_scenario(Path(path)).leaves_out_weights:
        raise ScenarioError(
            f"strategy.structure: the run at {folder} has left out single weights ({key}), and so has all "
            f"units; give one of train.method = {DYNHP}"
        )
    if {name: tuple(shape) for name, shape in told["shapes"].items()} != dict(layout.shapes) or list(
        told["widths"].items()
    ) != list(layout.widths.items()):
        raise ScenarioError(
            f"strategy.structure: the run at {folder} is of another network, {_said(told['widths'])}; this "
            f"scenario's is {_said(layout.widths)}. Model and data must be the same"
        )
    return state.structure


def _said(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{group} {width}" for group, width in widths.items())
