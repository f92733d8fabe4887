"""What a device is told of itself: its memory, and what of a model fits."""

import json
import os
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from typer.testing import CliRunner

from fedhp.cli import app
from fedhp.costs.machine import Room, own_memory, room
from fedhp.deployment import check
from fedhp.threads import threads_of_a_process, torch_threads

MIB = 2**20

pytestmark = pytest.mark.usefixtures("own_cache")


def files(root, contents):
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def of_group(root, contents):
    """Returns what is left by control groups below a made-up root, on a machine with 512 MiB available."""
    files(root / "proc", {"meminfo": f"MemTotal: 1048576 kB\nMemAvailable: {512 * 1024} kB\n"})
    files(root, contents)
    return room(root / "proc", root / "groups")


def test_the_tightest_control_group_counts(tmp_path):
    """100 MiB, of which the parent's children use 90 and could give 10 back, against 80 - 10 in its own."""
    found = of_group(
        tmp_path,
        {
            "proc/self/cgroup": "0::/outer/inner\n",
            "groups/outer/memory.max": f"{100 * MIB}\n",
            "groups/outer/memory.current": f"{90 * MIB}\n",
            "groups/outer/memory.stat": f"anon {80 * MIB}\ninactive_file {10 * MIB}\n",
            "groups/outer/inner/memory.max": f"{80 * MIB}\n",
            "groups/outer/inner/memory.current": f"{10 * MIB}\n",
            "groups/memory.max": "max\n",
        },
    )
    assert found == Room(100 * MIB, 20 * MIB, 512 * MIB)
    assert found.bytes == 20 * MIB


def test_control_groups_of_version_1(tmp_path):
    found = of_group(
        tmp_path,
        {
            "proc/self/cgroup": "9:name=systemd:/\n7:cpu,cpuacct:/box\n4:hugetlb,memory:/box\n0::/\n",
            "groups/memory/box/memory.limit_in_bytes": f"{600 * MIB}\n",
            "groups/memory/box/memory.usage_in_bytes": f"{20 * MIB}\n",
            "groups/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "groups/memory/memory.usage_in_bytes": f"{900 * MIB}\n",
        },
    )
    assert found == Room(600 * MIB, 580 * MIB, 512 * MIB)
    assert found.bytes == 512 * MIB


def test_a_process_has_limits_of_its_own(tmp_path):
    """Of 90 MiB of data 30 are taken, of 200 of addresses 190."""
    limits = (
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        f"Max data size             {90 * MIB}             unlimited            bytes     \n"
        "Max stack size            8388608              unlimited            bytes     \n"
    )
    files(tmp_path, {"proc/self/status": f"VmSize: {190 * 1024} kB\nVmData: {30 * 1024} kB\n"})
    found = of_group(tmp_path, {"proc/self/limits": limits})
    assert (found.own, found.bytes) == (60 * MIB, 60 * MIB)
    addresses = f"Max address space         {200 * MIB}            {300 * MIB}            bytes     \n"
    assert of_group(tmp_path, {"proc/self/limits": limits + addresses}).own == 10 * MIB


def test_without_groups_and_without_linux(tmp_path):
    assert of_group(tmp_path, {}) == Room(None, None, 512 * MIB)
    assert room(tmp_path / "nowhere", tmp_path / "nowhere") == Room(None, None, None)
    assert own_memory(proc=tmp_path) is None


@pytest.mark.skipif(not psutil.LINUX, reason="only Linux tells")
def test_a_process_knows_what_it_takes():
    assert own_memory() == pytest.approx(psutil.Process().memory_full_info().pss, rel=0.02)


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """The command sets them for its process, which is this one here."""
    for name in threads_of_a_process(1):
        monkeypatch.setenv(name, "1")


def checked(*arguments):
    result = CliRunner().invoke(app, ["device", "check", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments):
    result = CliRunner().invoke(app, ["device", "check", *arguments])
    assert result.exit_code == 2, result.output
    return result.stderr


def test_half_of_what_is_left_beside_flower_is_proposed(monkeypatch):
    """(1,164 - 140) / 2 = 512, and of that two digits."""
    monkeypatch.setattr(check, "room", lambda: Room(None, None, 1164 * MIB))
    assert checked("quickstart")["proposed_bytes"] == 510 * MIB
    monkeypatch.setattr(check, "room", lambda: Room(300 * MIB, 120 * MIB, 1164 * MIB))
    assert "120.0 MiB of memory are left" in refused("quickstart")
    assert checked("quickstart", "--budget", "40KiB")["budget_bytes"] == 40 * 1024


def test_what_fits_is_within_the_budget_and_grows_as_the_batch_shrinks():
    found = checked("quickstart", "--budget", "40KiB")
    sizes = [part["parameters"] for part in found["parts"]]
    assert [part["batch"] for part in found["parts"]] == [16, 4, 1]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    assert all(part["bytes"] <= 40 * 1024 for part in found["parts"])
    dense = checked("quickstart", "--budget", "1MiB")
    # 64 inputs, 128 and 64 units, 10 classes, with biases.
    assert dense["parts"][0]["parameters"] == 64 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10
    assert dense["samples_per_second"] > 0


def test_own_samples_are_held_against_the_scenario(tmp_path):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (90, 8, 8), np.uint8)
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=np.arange(90) % 10)
    found = checked("quickstart", "--budget", "40KiB", "--data", str(tmp_path / "mine.npz"))
    assert found["samples"] == f"90 of {tmp_path / 'mine.npz'}"
    np.savez(tmp_path / "more.npz", x_train=images, y_train=np.arange(90) % 11)
    assert "must hold labels of 0 to 9, got 0 to 10" in refused(
        "quickstart", "--data", str(tmp_path / "more.npz")
    )
    assert "the model takes (1, 28, 28)" in refused("mnist", "--data", str(tmp_path / "mine.npz"))
    assert "no file" in refused("mnist", "--data", str(tmp_path / "nowhere.npz"))
    assert "give some with --data" in refused("quickstart", "data.name=npz", "data.root=of-the-server.npz")
    own = checked(
        "quickstart", "data.name=npz", "data.root=of-the-server.npz", "--data", str(tmp_path / "more.npz")
    )
    assert own["parts"][0]["parameters"] == 64 * 128 + 128 + 128 * 64 + 64 + 64 * 11 + 11


@pytest.mark.parametrize(("runtime", "threads"), [("torch", 1), ("torch", 2), ("numpy", 2)])
def test_it_is_measured_as_the_device_would_train(runtime, threads, monkeypatch):
    """With what `run` is given: libraries read their variables when a process imports them, torch is told."""
    seen = []

    def train(recipe, *told):
        seen.append((recipe.runtime_name, os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"]))
        assert runtime == "numpy" or torch.get_num_threads() == threads
        with torch_threads(1):  # which is enough here, and faster beside other tests
            return train_locally(recipe, *told)

    before, train_locally = torch.get_num_threads(), check.train_locally
    monkeypatch.setattr(check, "train_locally", train)
    found = checked("quickstart", "--budget=40KiB", f"--runtime={runtime}", f"--threads={threads}")
    assert set(seen) == {(runtime, str(threads), str(threads))}
    assert (found["runtime"].split()[0].lower(), found["threads"]) == (
        runtime.replace("torch", "pytorch"),
        threads,
    )
    assert torch.get_num_threads() == before


def test_what_the_device_could_not_compute_with_is_refused():
    assert "--threads: from 1 to" in refused("quickstart", "--threads=0")
    assert "--runtime is one of torch, numpy, got 'tpu'" in refused("quickstart", "--runtime=tpu")


def test_the_disk_is_that_of_the_devices_files(tmp_path, monkeypatch):
    disks = {tmp_path: 3, tmp_path / "keys": 5}
    monkeypatch.setattr(check.shutil, "disk_usage", lambda place: SimpleNamespace(free=disks[place]))
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "not" / "made"))
    (tmp_path / "keys").mkdir()
    assert checked("quickstart", "--budget=40KiB")["disk_bytes"] == 3
    assert checked("quickstart", "--budget=40KiB", f"--keys={tmp_path / 'keys'}")["disk_bytes"] == 5


def test_a_budget_below_the_smallest_part_is_refused():
    assert "the smallest structure" in refused("quickstart", "--budget", "100B")


def test_the_table_shows_what_is_known():
    result = CliRunner().invoke(app, ["device", "check", "--budget", "40KiB"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for text in ("proposed budget", "trains with", "what fits into 40.0 KiB", "samples/s"):
        assert text in result.stdout


def test_no_row_is_shown_twice_and_rows_fit_a_narrow_terminal():
    """Into 1 KiB goes the smallest part, with less than 16 samples and less than 4: with the same number."""
    parts = checked("quickstart", "--budget", "1KiB")["parts"]
    assert len(parts) == 2
    assert parts[0] != parts[1]
    result = CliRunner().invoke(app, ["device", "check", "--budget", "1MiB"], env={"COLUMNS": "80"})
    assert "inputs 64, fc1 128, fc2 64" in result.stdout


def test_a_budget_of_which_the_model_leaves_most_is_told_with_what_would_do(monkeypatch):
    monkeypatch.setattr(check, "room", lambda: Room(None, None, 1234 * MIB))
    result = CliRunner().invoke(app, ["device", "check"], env={"COLUMNS": "200"})
    assert " MiB); all of this model trains with 217KiB" in result.stdout
