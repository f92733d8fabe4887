"""Every key of a scenario, given what no scenario can hold: each is refused by name, in one line."""

import dataclasses
import json
import re
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from typer.testing import CliRunner

from fedhp.aggregation.options import StrategyConfig
from fedhp.bounds import MOST_PARAMETERS, Bounds, one_line, shown
from fedhp.choices import OneOf, check_values
from fedhp.cli import app
from fedhp.errors import FedhpError, ScenarioError
from fedhp.fleet.devices import DeviceClassConfig, FleetConfig
from fedhp.model.options import ModelConfig
from fedhp.model.zoo import architecture
from fedhp.references import resolve
from fedhp.scenario.arrived import from_json
from fedhp.scenario.loading import load_scenario
from fedhp.scenario.schema import KEYS as SCHEMA
from fedhp.scenario.schema import Scenario
from fedhp.sizes import parse_size


def leaves(schema: type, prefix: str = "") -> dict[str, Any]:
    """The keys of a schema that hold one value, by their types."""
    found = {}
    for name, kind in get_type_hints(schema).items():
        key = f"{prefix}{name}"
        if get_origin(kind) is list:
            key, kind = f"{key}[]", get_args(kind)[0]
        found |= leaves(kind, f"{key}.") if dataclasses.is_dataclass(kind) else {key: kind}
    return found


KEYS = leaves(Scenario)
NUMBERS = [key for key, kind in KEYS.items() if kind in (int, float, float | None)]
# Whose sections refuse them unless another key makes them matter.
BASE = load_scenario("quickstart", ["strategy.optimizer.name=fedadam", "model.floor=1"])
ZERO_MEANS_SOMETHING = {
    "seed",
    "model.time_steps",
    "data.max_train",
    "data.local_test",
    "train.momentum",
    "train.weight_decay",
    "train.proximal_mu",
    "train.clip_norm",
    "train.label_smoothing",
    "train.dropfilter.rate",
    "prune.start",
    "prune.blend",
    "prune.marginal",
    "prune.regrow",
    "strategy.optimizer.momentum",
    "strategy.optimizer.beta_2",
    "strategy.fedtiny.candidates",
    "strategy.fedtiny.every",
    "strategy.robust.clip",
    "strategy.shared_from",
    "strategy.robust.cap",
    "server.clients_per_round",
    "server.min_devices",
    "server.patience_seconds",
    "server.max_times_median",
    "server.checkpoint",
    "simulation.num_workers",
    "simulation.gpus_per_worker",
}
MINUS_ONE_MEANS_SOMETHING = {"simulation.num_workers"}


def nested(key: str, value: Any) -> dict[str, Any]:
    """A dotted key and its value as YAML would nest them."""
    name, _, rest = key.partition(".")
    below = nested(rest, value) if rest else value
    return {name.removesuffix("[]"): [below] if name.endswith("[]") else below}


def given(key: str, value: Any, part: Any = BASE) -> Any:
    """The scenario with a value as Python sets it, past files, command line and OmegaConf."""
    name, _, rest = key.partition(".")
    before = getattr(part, name.removesuffix("[]"))
    if name.endswith("[]"):
        return dataclasses.replace(part, **{name[:-2]: [given(rest, value, before[0]) if rest else value]})
    return dataclasses.replace(part, **{name: given(rest, value, before) if rest else value})


def refusal(call, *arguments) -> str:
    with pytest.raises(ScenarioError) as caught:
        call(*arguments)
    said = str(caught.value)
    assert said.isprintable(), said
    assert len(said) < 600, said
    return said


@pytest.mark.parametrize("value", [10**21, 10**400, -(10**400), float("inf"), float("-inf"), 1e300])
@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_a_bound(key, value):
    if KEYS[key] is int and isinstance(value, float):
        value = int(1e300)
    assert key.rpartition(".")[2].removesuffix("[]") in refusal(given, key, value)


@pytest.mark.parametrize("key", [key for key in NUMBERS if KEYS[key] is not int])
def test_what_is_no_number_is_refused_of_every_key(key):
    assert key.rpartition(".")[2].removesuffix("[]") in refusal(given, key, float("nan"))


@pytest.mark.parametrize("key", NUMBERS)
def test_zero_and_less_are_taken_only_where_they_mean_something(key):
    if key in ZERO_MEANS_SOMETHING:
        given(key, 0)
    else:
        refusal(given, key, 0)
    if key in MINUS_ONE_MEANS_SOMETHING:
        given(key, -1)
    else:
        refusal(given, key, -1)


FORGED = ["a\nb", "a\x1b[31mb", "a\N{RIGHT-TO-LEFT OVERRIDE}b", "x" * 20_000]
STANDING_FOR = ["???", "${oc.env:HOME}", "${seed}"]


RANGES = [
    (Bounds(at_least=1), [1, 2.5], [0, 0.99], "at least 1"),
    (Bounds(at_least=0), [0, 10**9], [-0.1], "0 or more"),
    (Bounds(above=0), [1e-9], [0, -1], "above 0"),
    (Bounds(at_least=0, below=1), [0, 0.99], [1, -0.1], "from 0 to below 1"),
    (Bounds(at_least=0, at_most=1), [0, 1], [1.01, -0.1], "from 0 to 1"),
    (Bounds(above=0, at_most=1), [0.01, 1], [0, 1.01], "above 0 and at most 1"),
    (Bounds(above=0, below=1), [0.5], [0, 1], "above 0 and below 1"),
    (Bounds(at_least=1, or_zero=True), [0, 1], [0.5, -1], "at least 1, or 0"),
]


@pytest.mark.parametrize(("bounds", "inside", "outside", "said"), RANGES, ids=[row[-1] for row in RANGES])
def test_a_range_holds_what_it_says(bounds, inside, outside, said):
    """The ends of each by hand: at_least and at_most are inside, above and below are not."""
    assert str(bounds) == said
    assert [bounds.amiss(value) for value in inside] == [None] * len(inside)
    for value in outside:
        assert f"{said}, got {value}" in bounds.amiss(value)
    for value in (float("nan"), float("inf"), float("-inf")):
        assert bounds.amiss(value)


@dataclasses.dataclass
class Part:
    size: Annotated[int, Bounds(at_least=1, largest=9, hint="2 is usual")] = 1
    rate: Annotated[float | None, Bounds(above=0)] = None
    sizes: Annotated[list[int], Bounds(at_least=1)] = dataclasses.field(default_factory=list)
    shape: Annotated[str, OneOf(lambda: ["round", "square"], "or draw your own")] = "round"
    free: str = ""


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": 0}, "part.size must be at least 1, got 0; 2 is usual"),
        ({"size": 10}, "part.size must be at most 9, got 10"),
        ({"rate": float("inf")}, "part.rate must be finite and above 0, got inf"),
        ({"sizes": [3, 0]}, "part.sizes[1] must be at least 1, got 0"),
        ({"shape": "rond"}, "part.shape must be one of round, square, got 'rond'; or draw your own. "
         "Did you mean 'round'?"),
    ],
)  # fmt: skip
def test_a_part_is_held_to_what_its_fields_declare(values, said):
    check_values(Part(), "part.")
    assert refusal(check_values, Part(**values), "part.") == said


def test_every_number_of_the_schema_declares_its_bounds():
    """And so does a part that is made by itself, of which no scenario is read."""
    declared = {key: one.bounds for key, one in SCHEMA.items() if key in NUMBERS}
    assert len(declared) == len(NUMBERS)
    assert all(isinstance(bounds, Bounds) for bounds in declared.values())
    assert refusal(StrategyConfig, "dense", 0.5, 2, "keep", [0.5, 2]) == (
        "strategy.levels[1] must be above 0 and at most 1, got 2"
    )


@pytest.mark.parametrize("text", FORGED + STANDING_FOR)
@pytest.mark.parametrize("key", KEYS)
def test_no_key_takes_what_forges_lines_or_stands_for_something_else(key, text):
    """As a device would be sent it, whatever the key's type: a text of several lines only as description."""
    if (key, text) == ("description", "a\nb"):
        pytest.skip("descriptions may have several lines")
    refusal(from_json.__wrapped__, json.dumps(nested(key, text)))


@pytest.mark.parametrize("digit", ["\N{FULLWIDTH DIGIT FIVE}", "\N{ARABIC-INDIC DIGIT FIVE}"])
@pytest.mark.parametrize("key", NUMBERS)
def test_digits_of_other_scripts_are_no_numbers(key, digit):
    assert int(digit) == 5  # as Python, and OmegaConf with it, has them
    said = refusal(from_json.__wrapped__, json.dumps(nested(key, digit)))
    assert key.rpartition(".")[2].removesuffix("[]") in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rounds=???", "overrides: rounds is '???', which stands for a value that is still to be given"),
        (
            "seed=${oc.env:HOME}",
            "overrides: seed must be a value itself, and no interpolation such as",
        ),
        ("rounds=" + "9" * 21, "overrides: rounds must be at most 999999, got 999999999999999999999"),
        ("rounds=" + "9" * 400, "overrides: rounds must be at most 999999, got one of more than 30 digits"),
        ("rounds=" + "9" * 5000, "cannot be read: "),  # more than Python reads
        ("train.learning_rate=" + "9" * 400, "must be at most 1000000000, got one of more than 30 digits"),
        ("model.widths=[1000000000000]", "model.widths[0] must be at most 16777216, got 1000000000000"),
        (f"model.widths=[{','.join(['1'] * 1001)}]", "model.widths must be a list of at most 1000 entries"),
        ("simulation.threads_per_worker=100000", "simulation.threads_per_worker must be at most 256"),
        ("memory.budget=" + "9" * 300, "memory.budget has more than 30 digits"),
        ("memory.budget=" + "9" * 150 + "GiB", "of 65536.00 GiB at most"),
        ("memory.budget=70000GiB", "'70000GiB' is not a memory size"),
        ("fleet.classes=[{memory: 99999999999GB}]", "is not a memory size"),
        ("fleet.classes=[{}]", "fleet.classes[0] is empty; it must be a section of the keys name, share"),
        ("fleet.classes=[[{}]]", "fleet.classes"),
        ("fleet.classes=[{name: a}, {name: ' '}]", "a class must have a name that is not empty"),
        ("model.prune_inputs=7", "model.prune_inputs must be true or false, got 7"),
        ("x" * 5000 + "=1", "there is no key 'xxxxx"),
    ],
)
def test_what_was_given_and_what_is_taken_are_said(override, said):
    assert said in refusal(load_scenario, "quickstart", [override])


def test_a_file_and_values_of_python_are_held_to_the_same(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text('extends: quickstart\nname: "forged\\nfinished: 40 rounds"\n', encoding="utf-8")
    assert "without line ends" in refusal(load_scenario, mine)
    assert "without line ends" in refusal(load_scenario, "quickstart", [], {"name": "a\nb"})
    assert "rounds" in refusal(load_scenario, "quickstart", [], {"rounds": 10**4000})


def test_descriptions_may_have_several_lines_and_other_scripts():
    text = "Deux lignes :\nété, \N{CJK UNIFIED IDEOGRAPH-4E00}"
    assert given("description", text).description == text
    refusal(given, "description", "a\x1b[2Jb")


def test_a_network_beyond_the_bound_is_refused_before_it_takes_memory():
    """64 inputs, 10 classes, two layers of a million: 64e6 + 1e12 + 10e6 weights, and 2,000,010 biases."""
    config = ModelConfig(widths=[10**6, 10**6])
    with pytest.raises(ScenarioError, match=r"has 1,000,076,000,010 parameters, .* lower model\.widths"):
        architecture(config, (1, 8, 8), 10)
    assert MOST_PARAMETERS < 10**12


@pytest.mark.parametrize("command", ["run", "train", "show"])
@pytest.mark.parametrize(
    "override", ["memory.budget=" + "9" * 180, "rounds=" + "9" * 21, "name=" + "x" * 9000]
)
def test_the_commands_refuse_it_in_one_line(command, override):
    result = CliRunner().invoke(app, [command, "quickstart", override])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("error: ")


def test_a_number_for_a_text_is_its_digits():
    scenario = load_scenario("quickstart", ["memory.budget=4000000000", "name=20260131141500"])
    assert (scenario.memory.budget_bytes, scenario.name) == (4 * 10**9, "20260131141500")
    for key in ("name", "memory.budget"):
        refusal(load_scenario, "quickstart", [], {key: 10**5000})


def test_a_class_without_a_name_is_called_device_and_one_of_nothing_but_blanks_is_refused():
    assert FleetConfig(classes=[DeviceClassConfig(memory="4MiB")]).classes[0].name == "device"
    for name in ("", " ", "\t"):
        with pytest.raises(FedhpError, match="name that is not empty"):
            DeviceClassConfig(name)


def test_sizes_go_as_far_as_machines():
    """64 TiB are 65,536 GiB."""
    assert parse_size("65536GiB") == 64 * 2**40
    with pytest.raises(ScenarioError, match="65537GiB"):
        parse_size("65537GiB")
    assert parse_size("1B") == 1
    with pytest.raises(ScenarioError, match=r"0\.5"):
        parse_size("0.5")


def test_values_are_shown_on_one_short_line():
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown("x" * 10_000)) == 60
    assert shown(10**5000) == "one of more than 30 digits"
    assert one_line("a\n\x1b[31m  b") == "a [31m b"


@pytest.mark.parametrize("reference", [":", "a:", ":b", ".a:b", "..:b", "a..b:c"])
def test_what_is_no_reference_is_refused_as_one(reference):
    """One that begins with a dot is relative, and there is nothing that it could be relative to."""
    refusal(resolve, reference)


@pytest.mark.parametrize(
    ("file", "module"),
    [
        ("my_net.py", "my_net"),
        ("./my_net.py", "my_net"),
        ("nets/my_net.py", "nets.my_net"),
        ("../my_net.py", "my_net"),
    ],
)
def test_a_file_in_the_place_of_a_module_is_answered_with_the_module(file, module):
    with pytest.raises(ScenarioError, match=rf"write {re.escape(module)}:Net$"):
        architecture(ModelConfig(target=f"{file}:Net"), (1, 4), 2)
