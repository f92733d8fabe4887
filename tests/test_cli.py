"""The command line: what it prints, and that refused input ends in one readable error and exit code 2."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

import fedhp
from fedhp.cli import app
from fedhp.comparison.command import DEFAULT
from fedhp.errors import MissingExtraError, RecordError, ScenarioError
from fedhp.records import load_run
from fedhp.scenario.loading import load_scenario, shipped_scenarios
from fedhp.terminal import readable_errors

ROOT = Path(__file__).parent.parent
FAST = ["rounds=1", "fleet.num_clients=4", "data.max_train=200", "simulation.num_workers=0"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEDHP_DATA", raising=False)


def cli(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def refused(*arguments: str) -> str:
    """Runs a command that must be refused and returns its one error, which may span lines."""
    result = cli(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.output
    return result.stderr


def test_help_names_every_command_and_run_shows_examples():
    assert all(name in cli("--help").output for name in ("run", "show", "scenarios"))
    text = cli("run", "--help").output
    assert "fedhp run quickstart" in text
    assert "--out" in text
    assert "A scenario's name or YAML file" in text  # which click and typer lose where they do not fit


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "--rounds", "3"], "'--rounds'. Keys of the scenario go without dashes: rounds=VALUE"),
        (["run", "quickstart", "--rounds=3"], "rounds=VALUE"),
        (
            ["train", "--learning-rate", "1"],
            "train.learning_rate=VALUE or strategy.optimizer.learning_rate=VALUE",
        ),
        (["reproduce", "dynhp", "--target-compression", "5"], "prune.target_compression=VALUE"),
        (["run", "--data.name=npz"], "data.name=VALUE"),
        (["compare", "--seed", "5"], "Did you mean '--seeds'?"),
        (["run", "--nothing"], "No such option '--nothing'"),
        (["bench", "step", "--rounds", "3"], "No such option '--rounds'"),
    ],
)
def test_a_key_in_the_place_of_an_option_is_answered_with_how_it_is_written(arguments, told, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = cli(*arguments)
    assert result.exit_code == 2
    assert told in result.stderr
    assert ("without dashes" in result.stderr) == ("=VALUE" in told)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["run", "data.name=npz", "data.root=fashon.npz"], "'fashion.npz'"),
        (["run", "data.name=npz", "data.root=nowhere/fashon.npz"], ""),
        (["init", "fashon.npz"], "'fashion.npz'"),
        (["run", "my_fleat.yaml"], "'my_fleet.yaml'"),
        (["show", "quickstrat.yaml"], "'quickstart'"),
        (["show", "my_fleat"], "'my_fleet.yaml'"),
        (["run", "model.target=my_net_of_test:build"], "'my_nets_of_test'"),
        (["run", "model.target=my_nets_of_test.smal:build"], "'small'"),
        (["run", "model.target=my_nets_of_test.small:biuld"], "'build'"),
        (["run", "model.target=elsewhere.small:build"], ""),
        (["run", "strategy.name=strategies.dense:Dens"], "'Dense'"),
    ],
)
def test_a_mistyped_file_module_or_attribute_is_answered_with_the_nearest(
    arguments, meant, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "my_nets_of_test"
    package.mkdir()
    (package / "small.py").write_text("def build(num_classes): ...")
    for name in ("fashion.npz", "other.npz", "my_fleet.yaml", "my_nets_of_test/__init__.py"):
        (tmp_path / name).touch()
    result = cli(*arguments)
    assert result.exit_code == 2
    found = result.stderr.strip()
    assert found.endswith(f"Did you mean {meant}?") if meant else "Did you mean" not in found


@pytest.mark.parametrize(
    "words", [("run",), ("train",), ("show",), ("run", "quickstart"), ("compare", "quickstart")]
)
def test_a_scenario_behind_overrides_is_answered_with_the_order(words):
    result = cli(*words, "rounds=3", "table.yaml")
    assert result.exit_code == 2
    assert "'table.yaml' is no override" in result.stderr
    assert "a scenario comes first, before all overrides" in result.stderr


def test_the_defaults_of_a_comparison_are_shown_whole(monkeypatch):
    """Whoever changes the list copies it from there, on a terminal of the usual 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    shown = cli("compare", "--help").output
    assert "…" not in shown
    assert all(name in shown for name in DEFAULT.split(","))


def test_no_command_shows_the_help():
    result = cli()
    assert "Usage" in result.output
    assert result.exit_code in (0, 2)


def test_scenarios_lists_all_that_ship_by_their_whole_names(monkeypatch):
    """A name is there to be copied: it must not be cut on a terminal of the usual 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    result = cli("scenarios")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in shipped_scenarios())
    assert len(result.stdout.splitlines()) <= 4 * len(shipped_scenarios())


def test_scenarios_says_by_which_command_each_is_run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    lines = [line.strip() for line in cli("scenarios").stdout.splitlines()]
    assert "fedhp run quickstart: 40 rounds" in lines
    assert "fedhp train cifar10: 12 epochs" in lines


@pytest.mark.parametrize("width", ["40", "80"])
def test_strategies_lists_each_with_its_paper_and_its_options(width, monkeypatch):
    """Whole words, in any terminal: an option is there to be copied."""
    monkeypatch.setenv("COLUMNS", width)
    text = cli("strategies").stdout
    assert not {"`", "…"} & set(text)
    assert max(map(len, text.splitlines())) <= int(width)
    told = " ".join(text.split())
    feddst = told.partition(" feddst ")[2].partition(" zero_filled ")[0]
    assert feddst.endswith(
        "paper: Bibikar et al. 2022, arXiv 2112.09824 options: strategy.min_votes=2 strategy.uncovered=keep"
    )
    assert "options" not in told.partition(" exclusive ")[2].partition(" smallest ")[0]
    assert "strategy.optimizer.learning_rate=null" in told


def test_every_option_of_a_strategy_is_listed_with_a_value_that_loads(monkeypatch):
    """Each is given as it is listed: defaults, which change nothing."""
    monkeypatch.setenv("COLUMNS", "500")
    listed = [word for word in cli("strategies").stdout.split() if word.startswith("strategy.")]
    assert load_scenario("quickstart", listed) == load_scenario("quickstart")
    assert len(set(listed)) == 6 + 4 + 5


def test_show_prints_yaml_that_loads_as_what_would_run(tmp_path):
    result = cli("show", "mnist_fleet", "rounds=3")
    assert result.exit_code == 0
    file = tmp_path / "shown.yaml"
    file.write_text(result.stdout, encoding="utf-8")
    assert load_scenario(file) == load_scenario("mnist_fleet", ["rounds=3"])


def test_show_without_a_scenario_is_the_quickstart():
    assert yaml.safe_load(cli("show").stdout)["name"] == "quickstart"
    assert yaml.safe_load(cli("show", "rounds=3", "seed=4").stdout)["rounds"] == 3


def test_a_scenario_comes_first_and_the_error_says_so_readably():
    assert "key=value" in refused("show", "rounds=3", "quickstart")


def test_run_writes_a_record(tmp_path):
    result = cli("run", "quickstart", *FAST, "--out", "record")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "record" / "summary.json").is_file()
    assert load_scenario(tmp_path / "record" / "config.yaml").rounds == 1


def test_options_may_stand_before_or_after_the_overrides(tmp_path):
    assert cli("run", "--out", "one", *FAST).exit_code == 0
    assert cli("run", *FAST, "--out", "two").exit_code == 0
    first = load_scenario(tmp_path / "one" / "config.yaml")
    assert first == load_scenario(tmp_path / "two" / "config.yaml")


def test_run_takes_a_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: quickstart\nname: mine\n", encoding="utf-8")
    assert cli("run", "mine.yaml", *FAST, "--out", "record").exit_code == 0
    assert load_scenario(tmp_path / "record" / "config.yaml").name == "mine"


def test_a_typo_is_refused_and_the_nearest_key_named():
    line = refused("run", "quickstart", "trian.batch_size=3")
    assert "trian" in line
    assert "train" in line


@pytest.mark.parametrize(
    ("words", "meant"), [(["rn"], "run"), (["reproduce", "dynph"], "dynhp"), (["bench", "memry"], "memory")]
)
def test_a_mistyped_command_is_asked_about_once(words, meant):
    result = cli(*words)
    assert result.exit_code == 2
    assert result.stderr.count("Did you mean") == 1
    assert f"'{meant}'" in result.stderr


def test_an_unknown_scenario_is_refused_and_the_known_ones_listed():
    assert "fashion_mnist_fleet" in refused("run", "quikstart")
    assert "fashion_mnist_fleet" in refused("show", "quikstart")


def test_bad_yaml_is_refused_by_its_path(tmp_path):
    (tmp_path / "bad.yaml").write_text("rounds: [1\n", encoding="utf-8")
    assert "bad.yaml" in refused("run", "bad.yaml")


def test_a_budget_too_small_names_class_need_and_budget():
    line = refused("run", "fleet.classes=[{name: mote, memory: 512B}]")
    assert "'mote'" in line
    assert "takes" in line
    assert "512 bytes" in line


def test_what_stops_a_run_is_said_once(caplog):
    """By the command; what the run itself logs is on the same terminal."""
    fleet = ["strategy.name=exclusive", "fleet.classes=[{name: mote, memory: 1KiB}]"]
    message = refused("run", *FAST, *fleet)
    assert "no device of the fleet can take part" in message
    assert "no device" not in caplog.text


DIVERGING = ("train.learning_rate=1000", "train.clip_norm=0")  # quickstart's clipping keeps even that finite


def test_a_run_in_which_every_client_fails_says_why_and_what_to_do():
    line = refused("run", *FAST, *DIVERGING)
    assert "all clients failed in round 1" in line
    assert "lower train.learning_rate" in line


def test_a_run_that_failed_has_a_report(tmp_path):
    """Its failures are in there; before the first round there is nothing to report, and nothing is said."""
    message = refused("run", *FAST, *DIVERGING, "--out", "record")
    status = load_run(tmp_path / "record").summary["status"]
    page = (tmp_path / "record" / "report.html").read_text(encoding="utf-8")
    assert (status, "lower train.learning_rate" in page, "report" in message) == ("failed", True, False)
    refused("run", *FAST, "strategy.name=exclusive", "fleet.classes=[{memory: 1KiB}]", "--out", "none")
    assert not (tmp_path / "none").exists()


def test_a_network_that_does_not_take_the_data_is_refused_in_one_line(tmp_path, monkeypatch, capfd):
    """On the digits, of 8x8 = 64 features; torch's own traceback goes to the process's standard error."""
    lines = [
        "from torch import nn",
        "",
        "def build():",
        "    return nn.Sequential(nn.Flatten(), nn.Linear(100, 10))",
    ]
    (tmp_path / "wrong_net.py").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    message = refused("train", "model.target=wrong_net:build")
    assert len(message.splitlines()) == 1
    assert "layer '1' (Linear) cannot take a batch of shape (2, 64), with its in_features=100" in message
    assert capfd.readouterr().err == ""


def test_data_that_is_not_there_is_refused_by_path():
    assert "nowhere" in refused("run", "data.name=npz", "data.root=nowhere")


def test_half_a_data_set_is_refused_by_the_missing_files(tmp_path):
    """With a file there the rest is not looked for elsewhere, so that no test asks the network."""
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").touch()
    message = refused("run", "mnist_fleet", f"data.root={tmp_path}")
    assert "train-images-idx3-ubyte" in message
    assert "train-labels-idx1-ubyte" not in message


def test_an_existing_record_is_refused_and_left_alone(tmp_path):
    (tmp_path / "record").mkdir()
    (tmp_path / "record" / "precious").write_text("data", encoding="utf-8")
    assert "record" in refused("run", *FAST, "--out", "record")
    assert (tmp_path / "record" / "precious").read_text(encoding="utf-8") == "data"


@pytest.mark.parametrize("verb", [["run"], ["train"], ["reproduce", "dynhp", "--quick"]])
@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("file", "Not a directory"),
        ("file/below", "Not a directory"),
        ("locked/below", "Permission denied"),
        ("x" * 300, "File name too long"),
    ],
)
def test_where_nothing_can_be_written_is_refused_before_data_is_looked_for(
    tmp_path, monkeypatch, verb, out, reason
):
    """The data set is none; root, who may write anywhere, is told of the locked folder what others are."""
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "locked").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and access(path, mode))
    message = refused(*verb, "data.name=npz", "data.root=nowhere.npz", "--out", out)
    assert f"{out} cannot be written to: " in message.replace("\n", "")
    assert reason in message
    assert "choose another --out" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "locked"]


def test_debug_shows_the_traceback():
    result = cli("run", "quikstart", "--debug")
    assert "Traceback" in result.output
    assert result.exit_code == 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_debug_shows_where_a_method_of_ones_own_has_failed(num_workers, tmp_path):
    (tmp_path / "own_method.py").write_text(
        "from fedhp.training.method import Method\n\n\nclass Fails(Method):\n    def end(self, run):\n"
        "        {}[run.task.client]  # here\n"
    )
    command = [sys.executable, "-m", "fedhp", "run", "quickstart", "--debug", "rounds=1", "--out", "run"]
    command += [f"simulation.num_workers={num_workers}", "train.methods=[own_method:Fails]"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "{}[run.task.client]  # here" in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    "error",
    [
        ScenarioError("prune.marginal must be in [0, 1), got [red]"),
        RecordError("no record at [/tmp/x] or [bold]"),
        MissingExtraError("simulation", "ray", "sim"),
        ScenarioError("model.target = nets:loop: the forward pass cannot be traced"),
    ],
)
def test_an_error_is_printed_as_it_is(error, capsys):
    """To rich, square brackets are markup and ':loop:' is a picture: 'fedhp[sim]' must not become 'fedhp'."""
    with pytest.raises(typer.Exit) as caught, readable_errors(debug=False):
        raise error
    assert caught.value.exit_code == 2
    assert str(error) in capsys.readouterr().err


@pytest.mark.parametrize("number", [0, 10**11])
@pytest.mark.parametrize(
    "command",
    ["compare quickstart --seeds", "reproduce dynhp --seeds", "bench fleet --seeds", "bench engine --nodes"],
)
def test_numbers_on_the_command_line_have_bounds_too(command, number):
    """All runs of so many seeds are listed before the first one begins, which would take for ever."""
    result = cli(*command.split(), str(number))
    assert result.exit_code == 2
    assert f"{number} is not in the range 1<=x<=" in " ".join(result.output.replace("│", " ").split())


def test_memory_that_cannot_be_had_is_one_line_whoever_asks_for_it(capsys):
    """A tensor of 1 EB, which no machine has: torch's error of that is no MemoryError."""
    with pytest.raises(typer.Exit) as caught, readable_errors(debug=False):
        torch.empty(2**58)
    assert caught.value.exit_code == 2
    assert "not enough memory" in capsys.readouterr().err


def test_an_error_of_torch_that_is_not_of_memory_is_a_bug_and_shown_whole():
    with pytest.raises(RuntimeError, match="shape"), readable_errors(debug=False):
        torch.zeros(2).view(3)


def test_interrupting_exits_as_the_shell_expects():
    with pytest.raises(typer.Exit) as caught, readable_errors(debug=False):
        raise KeyboardInterrupt
    assert caught.value.exit_code == 130


STOPPABLE = """
import signal, sys, time
import typer
from fedhp.terminal import readable_errors, stop_cleanly

app = typer.Typer()

@app.command()
@readable_errors()
def work():
    try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        print("cleaning up", flush=True)
        time.sleep(0.5)
        print("closed", flush=True)

signal.signal(signal.SIGHUP, getattr(signal, sys.argv.pop()))
stop_cleanly()
app()
"""


def stopped(*signals: signal.Signals, hangups: str = "SIG_DFL") -> tuple[int, str, str]:
    """Sends signals to a process: the first at work, the others while it cleans up."""
    command = [sys.executable, "-c", STOPPABLE, hangups]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "at work\n"
        for one in signals:
            running.send_signal(one)
            time.sleep(0.1)
        out, errors = running.communicate(timeout=60)
    return running.returncode, out, errors


@pytest.mark.parametrize(
    ("signals", "code", "told"),
    [
        ([signal.SIGINT] * 3, 130, "interrupted\n"),
        ([signal.SIGTERM], 143, "interrupted by SIGTERM\n"),
        ([signal.SIGHUP, signal.SIGINT, signal.SIGTERM], 129, "interrupted by SIGHUP\n"),
    ],
)
def test_a_signal_stops_once_and_cleanly_however_many_follow(signals, code, told):
    """128 and the first signal's number, as shells have it: 2 for SIGINT, 15 for SIGTERM, 1 for SIGHUP."""
    assert stopped(*signals) == (code, "cleaning up\nclosed\n", told)


DROPPED = """
import signal, time
import typer
from fedhp.terminal import readable_errors, stop_cleanly

class Dying:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

app = typer.Typer()

@app.command()
@readable_errors()
def work():
    Dying()
    time.sleep(60)

stop_cleanly()
app()
"""
# Comes again before Python is done with what it dropped, where it would be dropped too.
AT_ONCE = """
import _thread
start = _thread.start_new_thread

def at_once(function, arguments):
    _thread.start_new_thread = start
    function(*arguments)

_thread.start_new_thread = at_once
"""


@pytest.mark.parametrize("before", ["", AT_ONCE], ids=["later", "at once"])
def test_a_signal_that_comes_in_a_destructor_stops_all_the_same(before):
    """Python drops what a destructor raises, so that nobody would hear of the signal's exception."""
    command = [sys.executable, "-c", before + DROPPED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (143, "interrupted by SIGTERM\n")


@pytest.mark.parametrize("command", ["run", "train"])
def test_whoever_stops_the_report_is_told_that_the_record_is_whole(command, tmp_path, monkeypatch, caplog):
    def interrupted(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedhp.report.writing.report_on", interrupted)
    caplog.set_level("INFO", "fedhp")
    result = cli(command, *FAST, "train.epochs=1", "--out", "record")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
    assert caplog.messages[-1] == (
        "the record is whole, only its report is missing: 'fedhp report record' writes it"
    )
    assert load_run(tmp_path / "record").summary["status"] == "finished"


@pytest.mark.parametrize("name", ["report.html", "figures"])
def test_a_run_whose_report_cannot_be_written_ends_with_2_and_a_whole_record(name, tmp_path, monkeypatch):
    """Something else lies there by the end of the run, as a disk may be full by then."""

    def taken(run, folder):
        result = simulate(run, folder)
        place = folder / name
        place.write_text("mine") if name == "figures" else (place / "mine").mkdir(parents=True)
        return result

    simulate = fedhp.api.simulate
    monkeypatch.setattr("fedhp.api.simulate", taken)
    result = cli("run", *FAST, "--out", "record")
    assert result.exit_code == 2
    told = " ".join(result.stderr.split())
    assert told.startswith(
        "error: no report, which takes nothing from the record in record: the report cannot"
    )
    assert told.endswith("'fedhp report record' tries again")
    assert load_run(tmp_path / "record").summary["status"] == "finished"
    assert fedhp.load_model(tmp_path / "record") is not None


def test_the_cause_of_a_failed_run_is_told_though_its_report_fails_too(monkeypatch, caplog):
    def fails(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("clients.cohort_app.train_cohort", fails)
    monkeypatch.setattr("fedhp.report.writing.write_page", fails)
    result = cli("run", *FAST, "--out", "record")
    assert result.exit_code == 2
    assert "all clients failed in round 1" in " ".join(result.stderr.split())
    assert any(line.startswith("no report, ") and "disk full" in line for line in caplog.messages)


def test_whoever_stops_the_run_is_not_told_that_its_record_is_whole(monkeypatch, caplog):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("clients.cohort_app.train_cohort", interrupted)
    caplog.set_level("INFO", "fedhp")
    assert cli("run", *FAST, "--out", "record").exit_code == 130
    *_, where, how, on = caplog.messages
    assert where == "record: record"
    assert how == "'fedhp report record' reports on it as far as it came"
    assert on == "'fedhp resume record' goes on with it"
    assert cli("report", "record").exit_code == 0


def test_a_hangup_that_nohup_ignores_is_ignored():
    """The first of the two is: what is told is the second."""
    code, _, told = stopped(signal.SIGHUP, signal.SIGTERM, hangups="SIG_IGN")
    assert (code, told) == (143, "interrupted by SIGTERM\n")


def started_process(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts the command in a process of its own, outside the checkout, with its output in pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "fedhp", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.integration
@pytest.mark.parametrize(
    ("address", "least"),
    [("", 2), ("local", 3)],  # a worker and what it was born of; and Ray's two daemons and a worker
)
def test_an_impatient_ctrl_c_leaves_a_record_and_no_process(address, least, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    psutil = pytest.importorskip("psutil")
    small = ["rounds=5000", "fleet.num_clients=4", "data.max_train=200", "simulation.num_workers=1"]
    small += [f"simulation.address={address}"] if address else []
    with started_process(tmp_path, "run", *small, "--out", "record") as running:
        assert running.stdout is not None
        assert any(line.startswith("round 1: ") for line in running.stdout)
        started = psutil.Process(running.pid).children(recursive=True)
        for _ in range(3):
            running.send_signal(signal.SIGINT)
            time.sleep(0.1)
        output, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (130, "interrupted\n")
    assert len(started) >= least
    assert psutil.wait_procs(started, timeout=10)[1] == []
    *_, where, how, on = output.splitlines()
    assert (where, how) == ("record: record", "'fedhp report record' reports on it as far as it came")
    assert on == "'fedhp resume record' goes on with it"
    assert load_run(tmp_path / "record").summary["status"] == "interrupted"


def test_a_run_goes_on_quietly_when_nobody_reads_its_output_any_more(tmp_path):
    """As with ``| head -1``: what counts is the record."""
    with started_process(tmp_path, "run", *FAST, "rounds=3", "--out", "record") as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline().startswith("preparing")
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait(timeout=60) == 0
    assert load_run(tmp_path / "record").summary["status"] == "finished"


def process(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, outside the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "fedhp", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **environment},
        timeout=120,
        check=False,
    )


def test_a_run_tells_of_itself_and_nothing_else_does(tmp_path):
    """Flower has lines of its own for every round, on both outputs."""
    done = process(tmp_path, "run", *FAST, "rounds=2", "--out", "record")
    assert (done.returncode, done.stderr) == (0, "")
    begins = ["preparing", "start: ", *(f"round {number}: " for number in range(3))]
    begins += ["finished: ", "record: ", "report: "]
    lines = done.stdout.splitlines()
    assert [line[: len(begin)] for line, begin in zip(lines, begins, strict=True)] == begins


def test_data_that_is_nowhere_is_refused_in_one_line_and_no_retries(tmp_path):
    """Neither files nor a hub: nothing listens on the port. Its client tells of its retries if let."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    hub = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hub"), "NO_PROXY": "127.0.0.1"}
    done = process(tmp_path, "run", "mnist_fleet", **hub)
    assert done.returncode == 2
    assert done.stdout == "preparing 'mnist' for 100 clients\n"
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: loading 'ylecun/mnist' from the Hugging Face hub (no local folder")
    assert "train-images-idx3-ubyte" in line
    assert "FEDHP_DATA" in line


def test_the_module_is_the_command(tmp_path):
    """In a process of its own: exit code 2, one line, no traceback."""
    done = process(tmp_path, "run", "quickstart", "rounds=0")
    assert done.returncode == 2
    assert done.stderr.strip().startswith("error: rounds must be at least 1, got 0")
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_option_that_the_strategy_has_no_use_for_is_refused_before_anything_is_said(caplog):
    with caplog.at_level("INFO", "fedhp"):
        assert "strategy.quorum" in refused("run", "quickstart", "strategy.name=dense", "strategy.quorum=0.5")
    assert not caplog.messages
