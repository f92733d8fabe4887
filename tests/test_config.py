"""Scenarios: found, inherited, overridden, checked, and written back."""

import dataclasses
import json
import re

import numpy as np
import pytest

from fedhp.aggregation.options import UNCOVERED
from fedhp.aggregation.reconcile import MEANS
from fedhp.data.config import SOURCE_NAMES
from fedhp.data.dataset import open_dataset
from fedhp.data.sources import SOURCES
from fedhp.errors import DataError, ScenarioError
from fedhp.model.networks.layers import NORMS_1D, NORMS_2D
from fedhp.model.options import NORMS, USUAL_WIDTHS
from fedhp.model.zoo import MODELS
from fedhp.pruning.criteria import CRITERIA
from fedhp.pruning.options import CRITERION_NAMES, REGULARIZER_NAMES
from fedhp.pruning.regularizers import REGULARIZERS
from fedhp.scenario.arrived import from_json
from fedhp.scenario.loading import load_scenario, shipped_scenarios
from fedhp.scenario.schema import Scenario

SHIPPED = ["fashion_mnist_cnn_fleet", "fashion_mnist_fleet", "mnist_fleet", "quickstart"]


def written(folder, name="mine.yaml", text="rounds: 7\n"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("names", "registry"),
    [
        (CRITERION_NAMES, CRITERIA),
        (REGULARIZER_NAMES, REGULARIZERS),
        (SOURCE_NAMES, SOURCES),
        (USUAL_WIDTHS, MODELS),
        (NORMS, NORMS_1D),
        (NORMS, NORMS_2D),
        ((*UNCOVERED, "zero_filled"), MEANS),
    ],
)
def test_the_names_that_a_scenario_takes_are_those_of_the_registries(names, registry):
    assert tuple(names) == tuple(registry)


def test_the_scenarios_that_ship_include_those_the_readme_speaks_of():
    assert set(SHIPPED) <= set(shipped_scenarios())


@pytest.mark.parametrize("name", sorted(shipped_scenarios()))
def test_every_shipped_scenario_loads_under_its_own_name_and_says_what_it_is(name):
    scenario = load_scenario(name)
    assert scenario.name == name
    assert scenario.description


@pytest.mark.parametrize("name", sorted(shipped_scenarios()))
def test_json_and_yaml_come_back_equal(name, tmp_path):
    scenario = load_scenario(name, ["seed=3", "train.learning_rate=1e-3", "fleet.num_clients=21"])
    assert from_json(scenario.to_json()) == scenario
    assert load_scenario(written(tmp_path, text=scenario.to_yaml())) == scenario


def test_texts_that_yaml_could_misread_come_back_equal(tmp_path):
    texts = {"name": "012", "description": "yes: 'no' # null\n${nothing"[:17]}
    scenario = dataclasses.replace(load_scenario("quickstart"), **texts)
    assert load_scenario(written(tmp_path, text=scenario.to_yaml())) == scenario
    assert from_json(scenario.to_json()) == scenario


def test_a_child_takes_what_it_does_not_say_from_its_parent():
    parent, child = load_scenario("fashion_mnist_fleet"), load_scenario("mnist_fleet")
    assert child.data.name == "mnist"
    assert child.data.partition == parent.data.partition
    assert child.fleet == parent.fleet


def test_a_users_file_extends_one_beside_it_and_that_one_a_shipped_one(tmp_path):
    written(tmp_path, "parent.yaml", "extends: quickstart\nseed: 5\nrounds: 3\ntrain: {momentum: 0.5}\n")
    child = load_scenario(written(tmp_path, "child.yaml", "extends: parent.yaml\nrounds: 9\n"))
    shipped = load_scenario("quickstart")
    assert (child.seed, child.rounds, child.train.momentum) == (5, 9, 0.5)
    assert child.fleet == shipped.fleet
    assert child.train.local_epochs == shipped.train.local_epochs


def test_scenarios_that_extend_each_other_are_refused(tmp_path):
    written(tmp_path, "a.yaml", "extends: b.yaml\n")
    written(tmp_path, "b.yaml", "extends: a.yaml\n")
    with pytest.raises(ScenarioError, match="circle"):
        load_scenario(tmp_path / "a.yaml")


def test_a_scenario_that_extends_itself_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match="circle"):
        load_scenario(written(tmp_path, "a.yaml", "extends: a.yaml\n"))


def test_a_parent_that_does_not_exist_is_refused_by_name(tmp_path):
    with pytest.raises(ScenarioError, match="grandmother"):
        load_scenario(written(tmp_path, text="extends: grandmother\n"))


def test_values_win_over_the_dotlist_and_it_over_the_file(tmp_path):
    path = written(tmp_path, text="rounds: 7\nseed: 7\ntrain: {batch_size: 7, momentum: 0.7}\n")
    dotlist = ["seed=8", "rounds=8", "train.batch_size=8"]
    scenario = load_scenario(path, dotlist, {"rounds": 9, "train.batch_size": 9})
    assert (scenario.rounds, scenario.seed, scenario.train.batch_size) == (9, 8, 9)
    assert scenario.train.momentum == 0.7


@pytest.mark.parametrize("network", ["name: conv1d", "target: 'my_net:build'"])
def test_another_network_has_its_own_widths(network, tmp_path):
    """An MLP's hidden layers say nothing of it; where widths are given, wherever, they hold."""
    key, value = (part.strip(" '") for part in network.split(": "))
    override = f"model.{key}={value}"
    assert load_scenario("quickstart").model.widths == [128, 64]
    assert load_scenario("quickstart", [override]).model.widths == []
    assert load_scenario("quickstart", values={"model": {key: value}}).model.widths == []
    child = written(tmp_path, text=f"extends: quickstart\nmodel: {{{network}}}\n")
    assert load_scenario(child).model.widths == []
    assert load_scenario(child, ["model.widths=[8]"]).model.widths == [8]
    assert load_scenario("quickstart", ["model.widths=[8]", override]).model.widths == [8]
    assert load_scenario("quickstart", ["model.widths=[8]"], {f"model.{key}": value}).model.widths == [8]


def test_a_network_that_ships_takes_the_place_of_ones_own_where_it_is_named_later(tmp_path):
    """A target wins over the name beside it, so that it must go, or the name would have no effect."""
    own = tmp_path / "own.yaml"
    own.write_text("extends: quickstart\nmodel: {target: 'nets:build', widths: [8]}\n", encoding="utf-8")
    chosen = load_scenario(own, ["model.name=cnn"]).model
    assert (chosen.name, chosen.target, chosen.widths) == ("cnn", "", [])
    child = tmp_path / "child.yaml"
    child.write_text("extends: own.yaml\nmodel: {name: mlp}\n", encoding="utf-8")
    assert load_scenario(child).model.target == ""
    assert load_scenario(own, ["model.floor=1"]).model.target == "nets:build"
    assert load_scenario(own, ["model.name=cnn", "model.target=nets:other"]).model.target == "nets:other"
    shown = tmp_path / "shown.yaml"
    shown.write_text(load_scenario(own).to_yaml(), encoding="utf-8")
    assert load_scenario(shown).model.target == "nets:build"


def test_the_same_network_said_again_keeps_its_widths():
    assert load_scenario("quickstart", ["model.name=mlp", "model.floor=1"]).model.widths == [128, 64]


def test_nested_and_dotted_values_mean_the_same():
    nested = load_scenario("quickstart", values={"data": {"partition": {"alpha": 2.0}}})
    assert nested == load_scenario("quickstart", values={"data.partition.alpha": 2.0})
    assert nested == load_scenario("quickstart", ["data.partition.alpha=2.0"])


def test_values_may_be_numpys():
    """Sweeps loop over ``np.arange``, whose numbers are no Python numbers."""
    numpys = {
        "rounds": np.int64(2),
        "train": {"learning_rate": np.linspace(0, 1, 3)[1]},
        "train.masked_loss": np.bool_(True),
        "model.widths": np.array([8, 4]),
        "strategy": {"name": "heterofl", "levels": [np.float32(0.5), 1.0]},
        "fleet.classes": [{"name": np.str_("phone"), "share": np.int32(1)}],
    }
    plain = {
        "rounds": 2,
        "train": {"learning_rate": 0.5},
        "train.masked_loss": True,
        "model.widths": [8, 4],
        "strategy": {"name": "heterofl", "levels": [0.5, 1.0]},
        "fleet.classes": [{"name": "phone", "share": 1}],
    }
    assert load_scenario("quickstart", values=numpys) == load_scenario("quickstart", values=plain)


def test_a_dotlist_holds_lists():
    assert load_scenario("quickstart", ["model.widths=[10,20,30]"]).model.widths == [10, 20, 30]


def test_a_value_that_no_file_could_hold_is_refused_by_key():
    with pytest.raises(ScenarioError, match="seed"):
        load_scenario("quickstart", values={"seed": object()})


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("trian.learning_rate=0.1", ["trian", "train"]),
        ("train.lerning_rate=0.1", ["lerning_rate", "learning_rate"]),
        ("round=3", ["round", "rounds"]),
        ("data.partition.alfa=1", ["alfa", "alpha"]),
        ("learning_rate=0.1", ["Did you mean train.learning_rate or strategy.optimizer.learning_rate?"]),
        ("batchsize=3", ["Did you mean train.batch_size?"]),
        ("foo=1", ["no key 'foo'. Keys are: name, description, seed, rounds, "]),  # no letters of model.floor
        ("sed=1", ["Did you mean seed?"]),
        ("prune.target=3", ["Did you mean prune.target_compression or prune.target_latency?"]),  # not start
        ("target=3", ["Did you mean model.target or prune.target_compression or prune.target_latency?"]),
        ("train.batch=3", ["Did you mean train.batch_size?"]),  # beside it, not memory.batch_policy
        ("fleet.classes=[{shar: 1}]", ["'fleet.classes[].shar'", "fleet.classes[].share?"]),
        ("lr=0.1", ["'lr'", "Keys are: name, description, seed", ", train, "]),
        ("train.lr=0.1", ["'train.lr'", "Keys are: train.", "train.learning_rate"]),
    ],
)
def test_a_typo_names_the_nearest_key(override, names):
    """Those beside it before those of other sections, and what is begun before what is spelt alike."""
    with pytest.raises(ScenarioError) as caught:
        load_scenario("quickstart", [override])
    assert all(name in str(caught.value) for name in names)
    assert "overrides" in str(caught.value)


WHOLE = "an integer, written without point or exponent"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rounds=many", f"rounds must be {WHOLE}, got 'many'"),
        ("rounds=", f"rounds must be {WHOLE}, got nothing"),
        ("rounds=1e1", f"rounds must be {WHOLE}, got 10.0"),
        ("rounds=None", f"rounds must be {WHOLE}, got 'None'"),
        ("train.batch_size=[1]", f"train.batch_size must be {WHOLE}, got [1]"),
        ("train.learning_rate=fast", "train.learning_rate must be a number, got 'fast'"),
        ("model.prune_inputs=maybe", "model.prune_inputs must be true or false, got 'maybe'"),
        ("name=", "name must be a text ('' is the empty one), got nothing"),
        ("model.widths=[8,x]", f"model.widths[1] must be {WHOLE}, got 'x'"),
        ("model.widths=", "model.widths must be a list, such as model.widths=[64,32], got nothing"),
        ("fleet.classes=[1]", "fleet.classes[0] must be a section of the keys name, share, "
         "memory, clock, got 1"),
        ("fleet.classes=[{share: a}]", "fleet.classes[].share must be a number, got 'a'"),
        ("memory=2MiB", "memory must be a section of the keys batch_policy, max_batch, lr_scaling, budget, "
         "got '2MiB'"),
        ("fleet=", "fleet must be a section of the keys num_clients, classes, got nothing"),
        ("data.partition=iid", "data.partition must be a section of the keys name, alpha, "
         "shards_per_client, classes_per_client, min_samples, got 'iid'"),
    ],
)  # fmt: skip
def test_an_ill_typed_value_is_told_by_key_and_what_it_must_be(override, said):
    with pytest.raises(ScenarioError) as caught:
        load_scenario("quickstart", [override])
    assert str(caught.value) == f"overrides: {said}"


def test_no_error_speaks_of_the_classes_behind_the_keys():
    """Every key of the schema, given what it cannot be, and a key beside each that does not exist."""
    scenario = load_scenario("quickstart").to_dict()
    sections = [key for key, value in scenario.items() if isinstance(value, dict)]
    wrong = [f"{key}=[x]" for key in scenario] + [f"{key}={{zzz: 1}}" for key in sections]
    wrong += [f"{key}.{name}=[[x]]" for key in sections for name in scenario[key]]
    for override in wrong:
        with pytest.raises(ScenarioError) as caught:
            load_scenario("quickstart", [override])
        assert not re.search(r"Config|Scenario|subclass|convert|Optional", str(caught.value)), override


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("model.name=mpl", "mlp"),
        ("data.name=mnits", "mnist"),
        ("data.partition.name=dirchlet", "dirichlet"),
        ("train.optimizer=adm", "adam"),
        ("prune.criterion=tailor", "taylor"),
        ("memory.batch_policy=filled", "fill"),
        ("tracking.wandb.mode=ofline", "offline"),
    ],
)
def test_a_typo_in_a_name_is_answered_with_the_nearest(override, meant):
    with pytest.raises(ScenarioError, match=f"Did you mean '{meant}'"):
        load_scenario("quickstart", [override])


def test_a_name_that_is_near_none_is_answered_without_a_guess():
    with pytest.raises(ScenarioError) as caught:
        load_scenario("quickstart", ["model.name=transformer"])
    known = "mlp, cnn, vgg11, resnet20, conv1d, lenet5, fedavg_cnn, heterofl_cnn, spiking_mlp, spiking_cnn"
    assert str(caught.value) == f"model.name must be one of {known}, got 'transformer'"


@pytest.mark.parametrize("key", ["model.widths", "fleet.classes"])
def test_a_list_that_is_none_is_refused_with_one_that_is(key):
    with pytest.raises(ScenarioError, match=rf"{key} must be a list, such as {key}=\[") as caught:
        load_scenario("quickstart", [f"{key}=64"])
    example = str(caught.value).rpartition("such as ")[2].removesuffix(", got 64")
    assert load_scenario("quickstart", ["model.floor=1", example])


def test_extends_as_an_override_is_told_where_it_belongs():
    with pytest.raises(ScenarioError, match="extends belongs into a scenario file"):
        load_scenario("quickstart", ["extends=mnist_fleet"])


@pytest.mark.parametrize(
    ("text", "line"), [("rounds: [1\n", 2), ("seed: 1\na: b: c\n", 2), ("seed: 1\n\nname: 'a\n", 4)]
)
def test_a_file_that_is_no_yaml_is_refused_in_one_line_with_its_number(tmp_path, text, line):
    with pytest.raises(ScenarioError) as caught:
        load_scenario(written(tmp_path, text=text))
    assert f"mine.yaml cannot be read as YAML: line {line}: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["my table.npz", "my table.csv"])
def test_data_in_the_place_of_a_scenario_is_pointed_to_what_writes_one(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(ScenarioError) as caught:
        load_scenario(name)
    assert str(caught.value) == f"{name} is data, not a scenario: fedhp init '{name}' writes one"


def test_a_scenario_that_wants_a_file_of_ones_own_says_how_to_give_it(monkeypatch):
    monkeypatch.delenv("FEDHP_DATA", raising=False)
    with pytest.raises(DataError, match=r"file of yours: data\.root=FILE\.npz, .*docs/scenarios\.md"):
        open_dataset(load_scenario("har_fleet").data)


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("rounds=0", "rounds must be at least 1"),
        ("data.name=mnits", r"data\.name must be one of .*mnist.*'mnits'"),
        ("data.max_train=-1", r"data\.max_train"),
        ("data.local_test=1", r"^data\.local_test must be from 0 to below 1, got 1\.0; .*a share"),
        ("data.local_test=-0.1", r"data\.local_test"),
        ("data.local_test=.nan", r"data\.local_test"),
        ("data.partition.name=even", r"data\.partition\.name must be one of .*dirichlet"),
        ("data.partition.alpha=0", r"data\.partition\.alpha"),
        ("data.partition.min_samples=0", r"data\.partition\.min_samples"),
        ("model.name=resnet", r"model\.name must be one of mlp, cnn"),
        ("model.widths=[8,0]", r"model\.widths"),
        ("model.floor=65", r"model\.floor"),
        ("fleet.num_clients=0", r"fleet\.num_clients"),
        ("fleet.classes=[]", r"fleet\.classes must be one or more, .*; got none"),
        ("fleet.classes=[{name: a},{name: a}]", r"fleet\.classes"),
        ("fleet.classes=[{name: a, share: 0}]", r"class 'a': share"),
        ("fleet.classes=[{name: a, memory: much}]", r"fleet class 'a': 'much' is not a memory size"),
        ("memory.budget=10XB", r"memory\.budget: '10XB' is not a memory size"),
        ("fleet.classes=[{name: a, memory: 0KiB}]", r"'0KiB' is not a memory size"),
        ("fleet.classes=[{name: a, memory: 4XiB}]", r"'4XiB' is not a memory size.* GB, KiB, MiB, GiB\)"),
        ("train.optimizer=lion", r"train\.optimizer must be one of .*sgd"),
        ("train.learning_rate=0", r"train\.learning_rate"),
        ("train.momentum=1", r"^train\.momentum must be from 0 to below 1, got 1\.0$"),
        ("train.batch_size=0", r"^train\.batch_size must be at least 1, got 0$"),
        ("train.weight_decay=-1", r"^train\.weight_decay must be finite and 0 or more, got -1\.0$"),
        ("train.methods=[fedprox]", r"^train\.methods\[0\] must be a reference, such as .*, got 'fedprox'$"),
        ("train.methods=['a:B',[x]]", r"^train\.methods\[1\] must be a reference"),
        ("train.proximal_mu=-1", r"^train\.proximal_mu must be finite and 0 or more, got -1\.0$"),
        ("train.local_epochs=0", r"train\.local_epochs"),
        ("train.lr_schedule=stairs", r"train\.lr_schedule"),
        ("train.device=tpu", r"train\.device"),
        ("prune.criterion=magnitud", r"prune\.criterion must be one of .*taylor"),
        ("prune.regularizer=lasso", r"prune\.regularizer must be one of none, group_lasso, .*halo"),
        ("prune.regularizer_strength=0", r"prune\.regularizer_strength must be finite and above 0"),
        ("prune.target_compression=0.5", r"prune\.target_compression"),
        ("prune.target_compression=inf", r"prune\.target_compression must be finite and at least 1, got inf"),
        ("prune.start=0.7", r"prune\.start"),
        ("prune.cuts=0", r"prune\.cuts"),
        ("prune.marginal=1", r"prune\.marginal"),
        ("memory.batch_policy=grow", r"memory\.batch_policy must be one of fixed, fill"),
        ("memory.max_batch=0", r"memory\.max_batch"),
        ("memory.lr_scaling=cubic", r"memory\.lr_scaling"),
        ("strategy.quorum=0", r"strategy\.quorum"),
        ("server.clients_per_round=-1", r"server\.clients_per_round"),
        ("server.min_replies=0", r"server\.min_replies"),
        ("server.timeout_seconds=0", r"server\.timeout_seconds"),
        ("simulation.num_workers=-2", r"simulation\.num_workers"),
        ("simulation.gpus_per_worker=-1", r"simulation\.gpus_per_worker"),
        ("simulation.threads_per_worker=0", r"simulation\.threads_per_worker"),
        ("simulation.stack=0", r"simulation\.stack must be auto or a whole number from 1 to 999999, got '0'"),
        (
            "simulation.stack=-4",
            r"simulation\.stack must be auto or a whole number from 1 to 999999, got '-4'",
        ),
        ("simulation.stack=2.5", r"simulation\.stack must be .* got '2\.5'"),
        ("simulation.stack=many", r"simulation\.stack must be .* got 'many'"),
        ("simulation.stack=''", r"simulation\.stack must be .* got ''"),
        ("tracking.wandb.mode=on", r"tracking\.wandb\.mode must be one of none"),
        # Across sections.
        ("server.clients_per_round=21", r"clients_per_round = 21 exceeds fleet\.num_clients = 20"),
        ("server.min_replies=21", r"min_replies = 21 exceeds"),
    ],
)
def test_a_value_out_of_its_range_names_its_key(override, match):
    with pytest.raises(ScenarioError, match=match):
        load_scenario("quickstart", [override])


def test_min_replies_may_not_exceed_the_sample():
    with pytest.raises(ScenarioError, match="min_replies = 6"):
        load_scenario("quickstart", ["server.clients_per_round=5", "server.min_replies=6"])
    assert load_scenario("quickstart", ["server.clients_per_round=5", "server.min_replies=5"])


@pytest.mark.parametrize("key", ["train.learning_rate", "strategy.quorum", "server.timeout_seconds"])
def test_a_number_that_is_none_is_refused(key):
    with pytest.raises(ScenarioError):
        load_scenario("quickstart", [f"{key}=.nan"])


@pytest.mark.parametrize(
    "key", ["prune.target_compression", "prune.marginal", "train.weight_decay", "simulation.gpus_per_worker"]
)
def test_nan_is_refused_where_it_would_pass_a_comparison(key):
    with pytest.raises(ScenarioError, match=key.rpartition(".")[2]):
        load_scenario("quickstart", [f"{key}=.nan"])


@pytest.mark.parametrize("text", ["rounds: [1\n", "- a\n- b\n", "just a text\n", "\tx: 1\n"])
def test_a_file_that_is_no_mapping_is_refused_by_path(tmp_path, text):
    with pytest.raises(ScenarioError, match=r"mine\.yaml"):
        load_scenario(written(tmp_path, text=text))


def test_an_empty_file_is_the_defaults(tmp_path):
    assert load_scenario(written(tmp_path, text="")) == Scenario()


def test_an_unknown_scenario_lists_those_that_ship():
    with pytest.raises(ScenarioError) as caught:
        load_scenario("quikstart")
    assert all(name in str(caught.value) for name in ("quikstart", *SHIPPED))
    assert str(caught.value).endswith("Did you mean 'quickstart'?")


@pytest.mark.parametrize("override", ["rounds", "rounds 5", ""])
def test_an_override_without_an_equals_sign_is_refused(override):
    with pytest.raises(ScenarioError, match="key=value"):
        load_scenario("quickstart", [override])


@pytest.mark.parametrize(
    "override", ["fleet.classes.0.memory=1MiB", "fleet.classes[0].memory=1MiB", "model.widths.1=3"]
)
def test_a_key_into_a_list_is_refused_with_what_to_write(override):
    with pytest.raises(ScenarioError, match=r"a list is given as a whole, such as model\.widths="):
        load_scenario("quickstart", [override])
    key, value = override.split("=")
    with pytest.raises(ScenarioError):
        load_scenario("quickstart", values={key: value})


@pytest.mark.parametrize("override", ["model.widths=[1,2", "name=${nothing}", "name='a", "=3", "name=${"])
def test_an_override_that_cannot_be_read_is_refused(override):
    with pytest.raises(ScenarioError):
        load_scenario("quickstart", [override])


def test_labels_are_not_spread_over_classes_that_the_loss_leaves_out():
    with pytest.raises(
        ScenarioError, match=r"train\.label_smoothing = 0\.1 spreads labels over classes that .*one"
    ):
        load_scenario("quickstart", values={"train.label_smoothing": 0.1, "train.masked_loss": True})


def test_json_gives_numbers_the_type_of_their_keys():
    """A whole number stands for a fraction, and for a size as one writes it; nothing else for another."""
    values = {"fleet": {"classes": [{"memory": 2000000}]}, "train": {"learning_rate": 1}}
    found = from_json(json.dumps(values))
    assert (found.fleet.classes[0].memory, found.train.learning_rate) == ("2000000", 1.0)
    for key, wrong in (("batch_size", 8.0), ("masked_loss", "yes"), ("methods", 3)):
        with pytest.raises(ScenarioError, match=rf"train\.{key} must be "):
            from_json(json.dumps({"train": {key: wrong}}))


@pytest.mark.parametrize("text", ["{", "[]", "3", '"a"', '{"trian": 1}', '{"rounds": 0}', '{"name": "${"}'])
def test_json_that_is_no_scenario_is_refused(text):
    with pytest.raises(ScenarioError):
        from_json(text)
