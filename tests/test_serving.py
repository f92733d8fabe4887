"""A server's folder and a device's options: keys, certificates, what Flower's commands are told and say."""

import base64
import contextlib
import hashlib
import itertools
import json
import logging
import os
import shlex
import shutil
import socket
import sqlite3
import ssl
import stat
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import typer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from flwr.cli.app import app as flwr_app
from flwr.common.config import parse_config_args
from test_architecture import ROW_OF, ROWS
from typer.testing import CliRunner

from fedhp.cli import app
from fedhp.deployment import authority, device, flower, serve_command, server, starting, supervisor
from fedhp.deployment.bundle import make_bundle
from fedhp.deployment.device import DeviceOptions, Heard, supernode_words
from fedhp.deployment.executor import Executor
from fedhp.deployment.folder import ServerFolder, add_device, make_folder
from fedhp.deployment.keys import name_of, read_public
from fedhp.deployment.link import obstacle
from fedhp.deployment.said import Said
from fedhp.deployment.server import Address, check_address, register, serving_address
from fedhp.errors import DeploymentError, ScenarioError
from fedhp.federation import flower_version
from fedhp.federation.device import Device
from fedhp.federation.run_config import written
from fedhp.files.locks import NAME, locked
from fedhp.fleet.devices import DeviceProfile
from fedhp.run.devices_file import DevicesFile

ROOT = Path(__file__).parent.parent


def served(tmp_path: Path, *devices: str, hosts: tuple[str, ...] = ("server.example",)) -> ServerFolder:
    return make_folder(tmp_path / "fleet", hosts, devices)[0]


def refused(*arguments: str) -> str:
    """Runs a command that must be refused, and returns its one line."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def contents(folder: ServerFolder) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}


def test_a_folder_is_closed_to_others_and_keeps_what_it_has(tmp_path):
    before = contents(served(tmp_path, "door"))
    folder = served(tmp_path, "door", "window")
    after = contents(folder)
    assert before == {path: after[path] for path in before}
    new = {path.relative_to(folder.device("window")).as_posix() for path in after if path not in before}
    assert new == {"ca.crt", "key", "key.pub"}
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in folder.root.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    private = {path.relative_to(folder.root).as_posix() for path, mode in modes.items() if mode == 0o600}
    assert private == {"authority/ca.key", "server/server.key", "devices/door/key", "devices/window/key"}


def test_ssh_reads_the_devices_keys(tmp_path):
    """OpenSSH itself, where it is installed: a key's public half is the one beside it, with its name."""
    place = served(tmp_path, "door").device("door")
    assert name_of(place / "key.pub") == "door"
    try:
        said = subprocess.run(
            ["ssh-keygen", "-y", "-f", place / "key"], capture_output=True, text=True, check=True
        )
    except FileNotFoundError:
        pytest.skip("no ssh-keygen")
    assert said.stdout.split()[:2] == (place / "key.pub").read_text().split()[:2]


def greet(context: ssl.SSLContext, link: socket.socket) -> None:
    """Answers a client's greeting, as far as that goes."""
    with contextlib.suppress(OSError), link:
        secured = context.wrap_socket(link, server_side=True, do_handshake_on_connect=False)
        with secured:
            secured.do_handshake()


def shaken(folder: ServerFolder, ca: Path, host: str) -> None:
    """Has Python's own TLS, at its strictest, greet the server's certificate under a name."""
    key, certificate = folder.server
    server, client = (
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH),
        ssl.create_default_context(cafile=ca),
    )
    server.load_cert_chain(certificate, key)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    near, far = socket.socketpair()

    def answer() -> None:
        greet(server, far)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        with client.wrap_socket(near, server_hostname=host):
            pass
    finally:
        near.close()
        thread.join()


def test_the_server_is_known_by_its_names_and_by_its_own_authority(tmp_path):
    folder = served(tmp_path, hosts=("server.example", "192.0.2.7"))
    for host in ("server.example", "192.0.2.7", "localhost", "127.0.0.1", "::1", socket.gethostname()):
        shaken(folder, folder.authority[1], host)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shaken(folder, folder.authority[1], "another.example")
    other = make_folder(tmp_path / "other", (), ())[0]
    with pytest.raises(ssl.SSLCertVerificationError, match=r"unable to get local issuer|self-signed"):
        shaken(folder, other.authority[1], "localhost")


def test_a_renewed_certificate_is_signed_by_the_same_authority(tmp_path):
    folder = served(tmp_path)
    before = folder.authority[1].read_bytes()
    result = CliRunner().invoke(app, ["serve", "renew", str(folder.root), "--host", "new.example"])
    assert result.exit_code == 0, result.output
    assert folder.authority[1].read_bytes() == before
    for host in ("new.example", "server.example", "localhost"):
        assert host in result.stdout
        shaken(folder, folder.authority[1], host)


@pytest.mark.parametrize(
    "host", ["a b", "https://server.example", "server.example:8000", "192.0.2.0/24", "-x", ""]
)
def test_a_certificate_is_for_names_and_addresses(tmp_path, host):
    assert "is neither a name nor an address" in refused(
        "serve", "init", str(tmp_path / "f"), f"--host={host}"
    )


def test_a_server_certificate_that_was_lost_is_made_again(tmp_path):
    folder = served(tmp_path)
    for lost in folder.server:
        lost.unlink()
        shaken(served(tmp_path), folder.authority[1], "server.example")


def test_a_certificate_that_no_one_would_accept_is_refused_at_once(tmp_path, monkeypatch):
    folder = served(tmp_path)
    start = ["serve", "start", str(folder.root), "--port", "1024"]
    assert f"fedhp serve renew {folder.root} --host 127.0.0.2" in refused(*start, "--host", "127.0.0.2")
    other = make_folder(tmp_path / "other", (), ())[0]
    shutil.copy(other.server[0], folder.server[0])
    assert "would not be accepted for 127.0.0.1: KEY_VALUES_MISMATCH" in refused(*start)


def test_registrations_that_are_damaged_are_made_anew_by_what_is_said(tmp_path):
    folder = served(tmp_path)
    folder.database.touch()
    for damaged in ('{"door": 12', "[]", '{"door": "x"}'):
        (folder.root / "registered.json").write_text(damaged)
        with pytest.raises(DeploymentError, match=r"registered\.json is damaged; remove it"):
            folder.registered()


def test_one_key_is_one_devices(tmp_path):
    folder = served(tmp_path, "door")
    with pytest.raises(DeploymentError, match="is the key of device 'door'"):
        add_device(folder, "window", folder.device("door") / "key.pub")
    assert folder.devices() == ["door"]
    assert not folder.device("window").exists()


def test_keys_are_registered_before_any_superlink_runs(tmp_path, caplog):
    """In Flower's own database: what was lost is found there, what was removed does not come back."""
    folder = served(tmp_path, "door", "window")
    assert register(folder) == ["door", "window"]
    with contextlib.closing(sqlite3.connect(folder.database)) as database:
        known = dict(database.execute("SELECT public_key, node_id FROM node"))
        database.execute(
            "UPDATE node SET status = 'unregistered' WHERE public_key = ?", [pem(folder, "window")]
        )
        database.commit()
    door = folder.registered()["door"]
    assert known[pem(folder, "door")] % 2**64 == door
    (folder.root / "registered.json").unlink()
    add_device(folder, "gate")
    assert register(folder) == ["door", "gate"]
    assert folder.registered()["door"] == door
    assert "device 'window' has a key that was registered before" in caplog.text


def pem(folder: ServerFolder, name: str) -> bytes:
    key = read_public(folder.device(name) / "key.pub")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def test_a_database_that_flower_does_not_open_is_named(tmp_path):
    folder = served(tmp_path, "door")
    folder.database.write_text("something else")
    start = refused("serve", "start", str(folder.root), "--host=127.0.0.1", "--port=1024")
    assert f"no device can be registered in {folder.database}: " in start
    assert "file is not a database; install the Flower that made it, or remove it" in start
    assert folder.database.read_text() == "something else"


@contextlib.contextmanager
def running(folder: ServerFolder, monkeypatch, answers):
    """A server that answers what is asked of Flower's command; yields what was asked."""
    words = []
    monkeypatch.setattr(flower, "asked", lambda home, *said: words.append(said) or answers(said))
    (folder.root / "serving.json").write_text('{"host": "127.0.0.1", "port": 1, "insecure": false}')
    with locked(folder.root / ".lock"):
        yield words


def test_a_device_is_removed_for_good(tmp_path, monkeypatch):
    folder = served(tmp_path, "door", "window")
    remove = ["serve", "remove-device", str(folder.root)]
    folder.keep_registered({"door": 7})
    assert "does not run" in refused(*remove, "door")
    assert "has no device 'gate'" in refused(*remove, "gate")
    assert CliRunner().invoke(app, [*remove, "window"]).exit_code == 0  # never registered
    with running(folder, monkeypatch, lambda _: {}) as words:
        shutil.rmtree(folder.device("door"))
        assert CliRunner().invoke(app, [*remove, "door"]).exit_code == 0
    assert words == [("supernode", "unregister", "7")]
    assert (folder.devices(), folder.registered()) == ([], {})


def test_a_key_that_was_removed_does_not_come_back(tmp_path, monkeypatch):
    assert CliRunner().invoke(app, ["device", "key", str(tmp_path / "own"), "door"]).exit_code == 0
    folder, key = served(tmp_path), str(tmp_path / "own" / "key.pub")
    add = ["serve", "add-device", str(folder.root), "door", "--public-key", key]
    with running(folder, monkeypatch, lambda _: {}):
        monkeypatch.setattr(server, "registered_nodes", lambda *_: {})
        result = CliRunner().invoke(app, add)
        assert result.exit_code == 2
        assert f"{key} was registered here before" in result.stderr
    assert folder.devices() == []
    with running(folder, monkeypatch, lambda _: {}):
        monkeypatch.setattr(server, "registered_nodes", lambda *_: {"door": 7})
        assert f"copy to door: {folder.device('door') / 'ca.crt'}" in CliRunner().invoke(app, add).stdout


@pytest.mark.parametrize(
    ("connected", "given", "told"),
    [
        (3, [], ["fleet.num_clients=3"]),
        (2, [], ["fleet.num_clients=3", "server.min_devices=2"]),
        (0, [], ["fleet.num_clients=3", "server.min_devices=1"]),
        (1, ["server.min_replies=2"], ["fleet.num_clients=3", "server.min_devices=2"]),
        (1, ["server.min_devices=3"], ["fleet.num_clients=3"]),
        (1, ["server.min_devices=0"], ["fleet.num_clients=3"]),
        (1, ["fleet.num_clients=2"], []),
        (1, ["fleet={num_clients: 2}"], []),
    ],
)
def test_a_run_waits_for_no_device_that_is_away(tmp_path, monkeypatch, connected, given, told):
    folder = served(tmp_path)
    folder.keep_registered({"door": 1, "window": 2, "gate": 3})
    nodes = [
        {"node-id": str(number), "status": "online" if number <= connected else "offline", "offline-at": ""}
        for number in (1, 2, 3)
    ]
    sent = []
    monkeypatch.setattr(starting, "_followed", lambda folder, config, record: sent.append(config))
    with running(folder, monkeypatch, lambda _: {"nodes": nodes}):
        starting.run_on_devices(folder, "quickstart", given, None)
    assert shlex.split(sent[0]["overrides"]) == [*given, *told]


def test_a_scenario_of_a_larger_fleet_runs_on_those_that_are_registered(tmp_path, monkeypatch, caplog):
    folder, mine = served(tmp_path), tmp_path / "mine.yaml"
    mine.write_text(
        "extends: quickstart\nserver: {clients_per_round: 12, min_replies: 4, min_devices: 5}\n"
        "fleet: {num_clients: 20}\n"
    )
    folder.keep_registered({"door": 1, "window": 2, "gate": 3})
    sent = []
    monkeypatch.setattr(starting, "_followed", lambda folder, config, record: sent.append(config))
    caplog.set_level(logging.INFO, "fedhp")
    with running(folder, monkeypatch, lambda _: {"nodes": []}):
        starting.run_on_devices(folder, str(mine), ["server.min_replies=2"], None)
        with pytest.raises(ScenarioError, match=r"clients_per_round = 7 exceeds fleet\.num_clients = 3"):
            starting.run_on_devices(folder, str(mine), ["server.clients_per_round=7"], None)
    assert shlex.split(sent[0]["overrides"]) == [
        "server.min_replies=2",
        "fleet.num_clients=3",
        "server.clients_per_round=3",
        "server.min_devices=3",
    ]
    assert "server.clients_per_round=3 server.min_devices=3, as no more are" in caplog.messages


def flwr_that(does: str, folder: ServerFolder, monkeypatch) -> None:
    """Puts a command in the place of Flower's."""
    command = folder.root / "flwr"
    command.write_text(f"#!/bin/sh\n{does}\n")
    command.chmod(0o700)
    monkeypatch.setattr(flower, "command", lambda name: str(command))


@pytest.mark.parametrize("keeps", [False, True])
def test_a_run_that_does_not_finish_goes_on_by_a_command_where_it_left_what_it_takes(
    tmp_path, monkeypatch, keeps
):
    folder, record = served(tmp_path), tmp_path / "run"
    flwr_that("exit 0", folder, monkeypatch)
    monkeypatch.setattr(starting, "can_go_on", lambda place: keeps and place == record)
    with running(folder, monkeypatch, lambda _: {"nodes": []}):
        said = refused("serve", "run", str(folder.root), "rounds=1", "--out", str(record))
    assert f"the run has not finished: {folder.root}/superlink.log says what happened" in said
    assert (f"'fedhp serve run {folder.root} --resume {record}' goes on" in said) == keeps
    assert "--resume" not in said or keeps


def test_a_server_that_ends_while_its_run_is_shown_is_noticed(tmp_path, monkeypatch):
    """Flower's command would wait for more of a server that was killed."""
    folder = served(tmp_path)
    flwr_that("exec sleep 600", folder, monkeypatch)
    monkeypatch.setattr(starting, "_LOOK_SECONDS", 0.01)
    looks = iter([True, True, False])
    monkeypatch.setattr(starting, "is_serving", lambda _: next(looks))
    with running(folder, monkeypatch, lambda _: {"nodes": []}):
        said = refused("serve", "run", str(folder.root), "rounds=1")
    assert "the server has ended, and the run with it: 'fedhp serve start" in said
    assert "--resume" not in said


def test_who_stops_looking_at_a_run_is_told_that_it_goes_on(tmp_path, monkeypatch, caplog):
    """And how it is watched and stopped: by commands that Flower has."""
    folder, record = served(tmp_path), tmp_path / "run"
    flwr_that("exec sleep 600", folder, monkeypatch)

    def interrupted(_: ServerFolder) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(starting, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(starting, "is_serving", interrupted)
    with running(folder, monkeypatch, lambda _: {"nodes": []}):
        result = CliRunner().invoke(app, ["serve", "run", str(folder.root), "rounds=1", f"--out={record}"])
    assert result.exit_code == 130
    begins = f"  FLWR_HOME={folder.flower_home} {folder.root / 'flwr'} "
    said = [one.removeprefix(begins) for one in caplog.messages if one.startswith(begins)]
    assert said == ["list fleet  tells its ID", "log ID fleet  shows it again", "stop ID fleet  stops it"]
    assert {one.split()[0] for one in said} <= set(typer.main.get_group(flwr_app).commands)
    assert f"  fedhp report {record}  reports on it, once it is over" in caplog.messages


def test_a_run_at_which_another_process_works_is_not_sent(tmp_path, monkeypatch):
    folder, record, sent = served(tmp_path), tmp_path / "run", []
    record.mkdir()
    monkeypatch.setattr(starting, "serving_address", lambda _: None)
    monkeypatch.setattr(starting, "kept_in", lambda _: SimpleNamespace(simulated=False))
    monkeypatch.setattr(starting, "resumed", lambda *_: None)
    monkeypatch.setattr(starting, "_followed", lambda *told: sent.append(told) or record)
    resume = ["serve", "run", str(folder.root), f"--resume={record}"]
    with locked(record / NAME):
        assert f"another process is at work on the run record {record}; wait" in refused(*resume)
    assert not sent
    assert CliRunner().invoke(app, resume).exit_code == 0
    assert len(sent) == 1


def test_a_run_goes_on_by_flowers_command_wherever_that_is(tmp_path, monkeypatch):
    """Without an activated environment, and without what Flower asks of the network."""
    begun = []
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.delenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", raising=False)
    monkeypatch.setattr(starting, "kept_in", lambda _: SimpleNamespace(simulated=False))
    monkeypatch.setattr(starting, "resumed", lambda *_: None)
    monkeypatch.setattr(starting, "has_finished", lambda _: True)
    monkeypatch.setattr(starting.subprocess, "run", lambda words, env, check: begun.append((words, env)))
    starting.resume_under_flower(tmp_path, "far", ["simulation.num_workers=1"])
    (((command, *words), surroundings),) = begun
    assert Path(command).is_file()
    assert words[:4] == ["run", ".", "far", "--stream"]
    assert surroundings["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


def test_a_run_leaves_another_runs_record_alone(tmp_path, monkeypatch):
    """A finished one would be taken for this run's, although Flower's log says that this was refused."""
    folder, record = served(tmp_path), tmp_path / "record"
    record.mkdir()
    (record / "summary.json").write_text('{"status": "finished"}')
    with running(folder, monkeypatch, lambda _: {"nodes": []}):
        assert f"{record} exists already and nothing is overwritten" in refused(
            "serve", "run", str(folder.root), "--out", str(record)
        )
    assert folder.last_run() is None
    assert [path.name for path in record.iterdir()] == ["summary.json"]


def test_what_a_server_lacks_is_said_before_anything_else(tmp_path, monkeypatch):
    monkeypatch.setattr(serve_command, "find_spec", lambda name: None if name == "pandas" else name)
    assert "'pandas'" in (said := refused("serve", "run", str(tmp_path / "nowhere")))
    assert "fedhp[server]" in said
    assert (
        "warning: devices can connect, but a run" in CliRunner().invoke(app, ["serve", "start", "x"]).stderr
    )


def test_a_server_that_was_killed_does_not_run(tmp_path):
    folder = served(tmp_path)
    (folder.root / "serving.json").write_text('{"host": "127.0.0.1", "port": 1, "insecure": false}')
    assert "does not run" in refused("serve", "devices", str(folder.root))
    with locked(folder.root / ".lock"):
        assert serving_address(folder).port == 1


def test_what_a_server_refuses_to_start_with(tmp_path, monkeypatch):
    folder = served(tmp_path, "door")
    start = ["serve", "start", str(folder.root), "--host", "127.0.0.1"]
    os.chmod(folder.server[0], 0o640)
    assert f"chmod 600 {folder.server[0]}" in refused(*start)
    os.chmod(folder.server[0], 0o600)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in refused(
            *start, "--port", str(port)
        )
    monkeypatch.setattr(authority, "_SERVER_DAYS", 0)  # ended when it began, an hour ago
    assert CliRunner().invoke(app, ["serve", "renew", str(folder.root)]).exit_code == 0
    assert "expired on " in (said := refused(*start))
    assert f"fedhp serve renew {folder.root}" in said
    folder.server[1].unlink()
    assert f"no file {folder.server[1]}" in refused(*start)
    assert "is no server's folder" in refused("serve", "start", str(tmp_path / "nowhere"))
    assert "does not run" in refused("serve", "run", str(folder.root))
    assert "does not run" in refused("serve", "devices", str(folder.root))


@pytest.mark.parametrize("installed", ["1.40.9", "1.43.0", "2.41.0"])
def test_another_flower_is_refused_by_name_at_both_ends(tmp_path, monkeypatch, installed):
    folder = served(tmp_path, "door")
    monkeypatch.setattr(flower_version, "version", {"flwr": installed, "fedhp": "1.0"}.get)
    ends = (
        ["serve", "start", str(folder.root), "--host=127.0.0.1"],
        ["device", "run", "--superlink=localhost:1", "--partition-id=0", f"--keys={folder.device('door')}"],
    )
    for words in ends:
        assert f"Flower {installed} is installed here, and fedhp 1.0 takes 1.41 and 1.42; " in refused(*words)
    assert not folder.database.exists()


def test_without_encryption_it_listens_on_the_loopback_only():
    with pytest.raises(DeploymentError, match="for the loopback only"):
        check_address(Address("0.0.0.0", 1, insecure=True))


def test_an_interface_that_is_asked_for_is_never_another(tmp_path):
    folder = served(tmp_path)
    start = ["serve", "start", str(folder.root), "--port", "1024"]
    assert "not for 0.0.0.0" in refused(*start, "--insecure", "--host", "0.0.0.0")
    for host in ("192.0.2.1", "nowhere.invalid"):
        assert "give an address of this machine as --host" in refused(*start, "--host", host)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "photo.png").touch()
    assert "holds something else" in refused("serve", "init", str(tmp_path))
    assert "give the one that 'fedhp serve init' made" in refused("serve", "start", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


@pytest.mark.parametrize("name", ["", "../door", "-door", "a b", "a/b", "x" * 65])
def test_a_device_has_a_name_that_is_a_folder_and_no_option(tmp_path, name):
    with pytest.raises(DeploymentError, match="a device's name has"):
        add_device(served(tmp_path), name)


def test_a_device_brings_a_key_of_its_own(tmp_path):
    assert CliRunner().invoke(app, ["device", "key", str(tmp_path / "own"), "door"]).exit_code == 0
    folder = served(tmp_path)
    place = add_device(folder, "door", tmp_path / "own" / "key.pub")
    assert sorted(path.name for path in place.iterdir()) == ["ca.crt", "key.pub"]
    assert (place / "key.pub").read_text() == (tmp_path / "own" / "key.pub").read_text()
    with pytest.raises(DeploymentError, match="device 'door' has a key"):
        add_device(folder, "door")
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    line = other.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (tmp_path / "modern.pub").write_bytes(line)
    with pytest.raises(DeploymentError, match="of a kind that Flower does not take"):
        add_device(folder, "window", tmp_path / "modern.pub")


def test_flower_reads_what_a_device_is_told():
    told = {
        "partition-id": 3,
        "data-path": '/my data/it\'s "here"\\',
        "name": "größe=1 [x] #",
        "memory-budget": "2MiB",
        "methods": "a:b,c:d",
        "superlink": "a\x00b\x1b\x7f\x85\u2028\ud7ff\ue000\uffff",
        "data": "/data/😀\U0010ffff",
    }
    assert parse_config_args([written(told)]) == told
    assert parse_config_args([written({"overrides": 'description=\'two words\' a="\\""'})]) == {
        "overrides": 'description=\'two words\' a="\\""'
    }


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(DeploymentError, match=r"data-path is '/data/\\udcff', which is no text in UTF-8"):
        written({"data-path": os.fsdecode(b"/data/\xff")})


def test_a_device_starts_flowers_supernode(tmp_path):
    keys = served(tmp_path, "door").device("door")
    options = DeviceOptions("server.example:8000", keys, tmp_path, 1, "2MiB", "off", threads=4)
    options.check()
    command, *words = supernode_words(options, 9099)
    assert Path(command).name == "flower-supernode"
    assert words == [
        *("--superlink", "server.example:8000", "--port", "9099"),
        *("--root-certificates", f"{keys}/ca.crt", "--auth-supernode-private-key", f"{keys}/key"),
        *(
            "--node-config",
            f'partition-id=1 data-path="{tmp_path}" memory-budget="2MiB" memory-reserve="off" name="door" '
            "threads=4",
        ),
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"superlink": "server.example"}, "--superlink reads HOST:PORT"),
        ({"superlink": "https://server.example:8000"}, "--superlink reads HOST:PORT"),
        ({"data": None}, "a device needs --data"),
        ({"data": "nowhere.npz"}, "no file or folder nowhere.npz"),
        ({"budget": "much"}, "--budget: 'much' is not a memory size"),
        ({"reserve": "none"}, "--reserve: 'none' is not a memory size"),
        ({"name": " "}, "--name: expected a name"),
        ({"threads": "0"}, "--threads: from 1 to"),
        ({"keys": "nowhere"}, "no file nowhere/key: --keys is the folder of one device"),
    ],
)
def test_what_a_device_is_refused_for(tmp_path, changed, said):
    keys = served(tmp_path, "door").device("door")
    given = {"superlink": "localhost:1", "data": str(tmp_path), "keys": str(keys)} | changed
    words = [f"--{key}={value}" for key, value in given.items() if value is not None]
    assert said in refused("device", "run", *words)


def test_a_device_refuses_a_key_that_others_can_read(tmp_path):
    keys = served(tmp_path, "door").device("door")
    os.chmod(keys / "key", 0o644)
    said = refused("device", "run", "--superlink=localhost:1", "--partition-id=0", f"--keys={keys}")
    assert f"chmod 600 {keys / 'key'}" in said


def test_a_device_refuses_keys_that_flower_would_end_with(tmp_path):
    keys = served(tmp_path, "door").device("door")
    start = ["device", "run", "--superlink=localhost:1", "--partition-id=0", f"--keys={keys}"]
    (keys / "key").write_text("junk")
    assert f"{keys / 'key'} is no private key that Flower takes" in refused(*start)
    shutil.copy(tmp_path / "fleet" / "server" / "server.key", keys / "key")  # on the curve, in another form
    assert f"{keys / 'key'} is no private key that Flower takes" in refused(*start)
    (keys / "ca.crt").unlink()
    assert f"no file {keys / 'ca.crt'}: --keys is the folder of one device" in refused(*start)


@pytest.mark.parametrize("host", ["192.0.2.1", "server.example", "[2001:db8::1]"])
def test_a_device_goes_without_encryption_to_the_loopback_only(host):
    said = refused("device", "run", f"--superlink={host}:1", "--insecure", "--partition-id=0")
    assert f"--insecure is for a server on the loopback only, not for {host.strip('[]')}" in said


def test_a_folder_has_the_key_of_one_device(tmp_path):
    own = tmp_path / "own"
    for _ in range(2):
        assert CliRunner().invoke(app, ["device", "key", str(own), "door"]).exit_code == 0
    assert f"{own} holds a key of door" in refused("device", "key", str(own), "gate")
    (own / "key.pub").unlink()
    assert f"{own} holds a key of another device" in refused("device", "key", str(own), "door")


def test_a_number_of_devices_is_of_all_of_them(tmp_path):
    init = ["serve", "init", str(tmp_path / "fleet"), "--devices"]
    for given, there in (
        ("door,device-1", ["device-1", "door"]),
        ("2", ["device-1", "door"]),
        ("4", ["device-0", "device-1", "device-2", "door"]),
        ("0", ["device-0", "device-1", "device-2", "door"]),
    ):
        assert CliRunner().invoke(app, [*init, given]).exit_code == 0
        assert ServerFolder(tmp_path / "fleet").devices() == there


@pytest.fixture
def tls_server(tmp_path):
    """A server that shakes hands, with a certificate that the test may make anew first."""
    folder = served(tmp_path)
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                link, _ = listening.accept()
            except OSError:
                return
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(folder.server[1], folder.server[0])
            greet(context, link)

    threading.Thread(target=serve, daemon=True).start()
    yield folder, f"127.0.0.1:{listening.getsockname()[1]}"
    listening.close()


def answer_plainly(listening: socket.socket) -> None:
    with listening.accept()[0] as link:
        link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def test_a_device_says_what_is_between_it_and_its_server(tmp_path, tls_server, monkeypatch):
    folder, address = tls_server
    ca = folder.authority[1]
    assert obstacle(address, ca) == ""
    assert "it speaks with encryption only" in obstacle(address, None)
    other = make_folder(tmp_path / "other", (), ())[0]
    assert "its certificate is not accepted" in obstacle(address, other.authority[1])
    monkeypatch.setattr(authority, "_SERVER_DAYS", 0)
    assert CliRunner().invoke(app, ["serve", "renew", str(folder.root)]).exit_code == 0
    assert obstacle(address, ca) == "its certificate is not accepted: certificate has expired"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert "Connection refused" in obstacle(f"127.0.0.1:{closed.getsockname()[1]}", ca)
    with socket.create_server(("127.0.0.1", 0)) as plain:
        answering = threading.Thread(target=answer_plainly, args=[plain])
        answering.start()
        said = obstacle(f"127.0.0.1:{plain.getsockname()[1]}", ca)
        answering.join()
    assert said == "it speaks without encryption, and this device does not"


def test_a_server_names_whom_it_refuses_once(tmp_path, caplog):
    """Lines as Flower 1.42 writes them, but for the time."""
    folder, other = served(tmp_path, "door"), make_folder(tmp_path / "other", (), ["thief"])[0]
    refusal = (
        "ERROR : [/v1/fleet/activate-node][ApiError:2004] Attempted to register SuperNode with public key: "
    )
    heard = Said(folder, lambda: None)
    for _ in range(3):
        heard(f"{refusal}{pem(folder, 'door')}, exception: SuperNode with node ID 7 could not be activated.")
        heard(f"{refusal}{pem(other, 'thief')}, exception: No SuperNode found with the given public key.")
        heard(f"{refusal}b'junk', exception: No SuperNode found with the given public key.")
        heard("ERROR : [/v1/fleet/register-node][ApiError:2001] Attempted to register SuperNode")
    door, thief, junk, without = (record.getMessage() for record in caplog.records)
    assert door.startswith("device 'door' was refused: it is still counted as connected")
    blob = base64.b64decode((other.device("thief") / "key.pub").read_text().split()[1])
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")  # what OpenSSH shows
    assert thief.startswith(f"a device was refused: its key is not registered here, SHA256:{digest} (")
    assert junk == "a device was refused: its key is not registered here"
    assert without == "a device was refused: it came without a key"


def test_a_file_that_is_damaged_meanwhile_ends_no_server(tmp_path, caplog):
    """Or whoever reaches the port with a key of their own could end every run."""
    folder, caught = served(tmp_path, "door", "window"), []
    caplog.set_level(logging.INFO, "fedhp")
    window = pem(folder, "window")
    (folder.device("door") / "key.pub").write_bytes(b"\xff\xfe")
    (folder.root / "registered.json").write_bytes(b"\xff\xfe")
    heard = Said(folder, lambda: caught.append("listens"))
    refusal = "[/v1/fleet/activate-node][ApiError:2004] Attempted to register SuperNode with public key: "
    for _ in range(2):
        heard(f"ERROR : {refusal}{window}, exception: SuperNode with node ID 7 could not be activated.")
        heard("INFO : [Fleet.ActivateNode] Activated node_id=7")
    heard("INFO : Uvicorn running on https://a:1 (Press CTRL+C to quit)")
    refused_one, damaged = (record.getMessage() for record in caplog.records)
    assert refused_one.startswith("device 'window' was refused")
    assert f"{folder.root / 'registered.json'} is damaged" in damaged
    assert caught == ["listens"]


def test_a_device_tells_once_what_its_supernode_says(caplog):
    """Lines as Flower 1.41 writes them, but for the colours."""
    lines = """\
INFO :      Starting Flower SuperNode
ERROR :     SSL/TLS handshake error detected.
WARNING :   Connection attempt failed, retrying in 0.79 seconds
WARNING :   Connection attempt failed, retrying in 1.87 seconds
ERROR :     Exit Code: 305
Failed to initialize the connection to the SuperLink.
[code: 2004] Failed to activate SuperNode.
INFO :      SuperNode ID: 12089936989296872151
INFO :      fedhp round 1: door, budget 2.0 MiB; units fc1 34
INFO :      Receiving: train message (ID: 1)
WARNING :   fedhp: refused to train: no file mine.npz
ERROR :     Failed to send message 1: no link
INFO:     Shutting down"""
    caplog.set_level(logging.INFO, "fedhp")
    starter = Mock(spec=Executor)
    heard = Heard("here:1", None, starter, obstacle=lambda *_: "it is not reached: Connection refused")
    for line in lines.splitlines():
        heard(line)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "no link to here:1: it is not reached: Connection refused; trying again",
        said[1],
        "connected to here:1, as node 12089936989296872151",
        "fedhp round 1: door, budget 2.0 MiB; units fc1 34",
        "fedhp: refused to train: no file mine.npz",
        "SuperNode: ERROR :     Failed to send message 1: no link",
    ]
    assert [call[0] for call in starter.method_calls] == ["wake", "give_up"]
    assert said[1].startswith("refused by here:1 (code 2004): the server does not know this device's key")


def test_the_command_that_a_device_tells_is_the_one_that_runs(monkeypatch, caplog):
    starts = []
    monkeypatch.setattr(device, "keep_going", lambda begin, *_: starts.extend([begin(), begin()]))
    caplog.set_level(logging.INFO, "fedhp")
    device.run_device(DeviceOptions("localhost:1", partition_id=0))
    told = shlex.split(next(one for one in caplog.messages if one.startswith("flower-supernode ")))
    first, second = ([Path(words[0]).name, *words[1:]] for words in starts)
    assert first[: len(told)] == told
    port = told.index("--port") + 1
    assert second[port] != told[port]


def test_a_process_that_ends_starts_again_with_its_status_told(output, caplog):
    heard: list[str] = []

    def hear(line: str) -> None:
        heard.append(line)
        if len(heard) == 4:
            raise KeyboardInterrupt

    words = [sys.executable, "-c", "print('\\x1b[92mhere\\x1b[0m'); raise SystemExit(0)"]
    with pytest.raises(KeyboardInterrupt):
        supervisor.keep_going(lambda: words, os.environ, hear, output, (0.01, 0.02))
    assert heard == ["here"] * 4
    said = [record.getMessage().partition(" ended with ")[2] for record in caplog.records]
    assert said == [f"exit status 0; it starts again in {wait} s" for wait in (0.01, 0.02, 0.02)]


@pytest.fixture
def output():
    with contextlib.closing(supervisor.Output()) as pipe:
        yield pipe


def test_a_process_ends_with_who_started_it(output):
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(7)); print('up'); time.sleep(60)"
    )
    with supervisor.running([sys.executable, "-u", "-c", script], os.environ, output) as process:
        assert next(filter(None, output.said(process))) == ["up"]
    assert process.returncode == 7


def test_a_process_is_heard_to_its_end_although_its_child_holds_the_pipe(output):
    script = "import subprocess, sys; subprocess.Popen(['sleep', '30']); print('over')"
    with supervisor.running([sys.executable, "-c", script], os.environ, output) as process:
        assert list(itertools.chain.from_iterable(output.said(process))) == ["over"]
        os.killpg(process.pid, 9)


def test_systemd_takes_the_units(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "device",
        "unit",
        "--superlink",
        "localhost:8000",
        "--partition-id=1",
        "--name",
        '50% "of" $HOME',
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert (
        r'device run --superlink localhost:8000 --partition-id=1 --name "50%% \"of\" $$HOME"' in result.stdout
    )
    assert "Restart=always\nRestartSec=30\n" in result.stdout
    assert "RestartPrevent" not in result.stdout  # a full disk is refused by the status of a wrong option
    (tmp_path / "fedhp-device.service").write_text(result.stdout)
    server = CliRunner().invoke(app, ["serve", "unit", "fleet", "--port", "8001"])
    (tmp_path / "fedhp-server.service").write_text(server.stdout)
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd")
    for name in ("server", "device"):
        unit = tmp_path / f"fedhp-{name}.service"
        said = subprocess.run(
            ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
        )
        assert unit.name not in said.stderr, said.stderr


def test_a_unit_is_refused_for_what_its_command_would_be():
    result = CliRunner().invoke(app, ["device", "unit", "--keys", "door"])
    assert result.exit_code == 2
    assert "--superlink" in result.stderr
    assert "device unit --help" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("serve unit nowhere", "nowhere is no server's folder"),
        ("serve unit {fleet} --host 192.0.2.1", "cannot listen at 192.0.2.1:8000"),
        ("serve unit {fleet} --host 0.0.0.0 --insecure", "--insecure is for the loopback only"),
        ("device unit --superlink localhost:1 --partition-id 0", "give either --keys"),
        ("device unit --superlink server.example --partition-id 0 --insecure", "--superlink reads HOST:PORT"),
        (
            "device unit --superlink localhost:1 --data {empty} --insecure",
            "--data: {empty}",
        ),
        (
            "device unit --superlink localhost:1 --data here.npz --keys door",
            "--data: no file or folder here.npz",
        ),
        ("device unit --superlink localhost:1 --partition-id 0 --insecure", ""),
    ],
)
def test_a_unit_tells_what_its_service_lacks_as_yet(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    places = {"fleet": served(tmp_path, "door").root, "empty": tmp_path / "empty.csv"}
    places["empty"].touch()
    result = CliRunner().invoke(app, words.format(**places).split())
    said = said.format(**places)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("[Unit]")
    assert "PrivateTmp=no" in result.stdout or not tmp_path.is_relative_to("/tmp")
    assert (f"it would not start: {said}" in result.stderr) == bool(said)


def test_the_bundle_is_the_app_of_the_checkout(tmp_path):
    """With all that a run takes, at the wheel's places, and the keys that a run may be given."""
    bundle = make_bundle(tmp_path / "app")
    made, own = (tomllib.loads((place / "pyproject.toml").read_text())["tool"] for place in (bundle, ROOT))
    assert made["flwr"]["app"]["config"] == own["flwr"]["app"]["config"]
    packages = {path.name for path in (bundle / "fedhp").iterdir()}
    assert {"clients", "strategies", "scenarios", "federation", "errors.py"} <= packages
    above_apps = {room for row in ROWS[ROW_OF["strategies"] :] for room in row}
    rooms = {path.name for path in (ROOT / "fedhp").iterdir() if path.is_dir()}
    assert {"bench", "deployment", "twins"} <= above_apps & rooms
    assert not above_apps & rooms & packages
    for place in made["flwr"]["app"]["components"].values():
        module = place.partition(":")[0].replace(".", "/")
        assert (bundle / f"{module}.py").is_file()
    assert not [path for path in bundle.rglob("*") if path.suffix == ".pyc"]


def test_a_run_tells_which_node_failed_last_with_what(tmp_path):
    devices = [Device(2**63, 0, DeviceProfile("door", 1024, 5)), Device(7, 1, DeviceProfile("gate", None, 5))]
    file = DevicesFile(tmp_path, lambda: devices)
    failed = [SimpleNamespace(client=0, failure="client: DataError: no file mine.npz")]
    file.on_past(SimpleNamespace(round=2, failures=failed))
    devices.pop()
    file.on_round(SimpleNamespace(round=3, failures=[]), None)
    assert json.loads((tmp_path / "devices.json").read_text()) == {
        str(2**63): {
            "client": 0,
            "device_class": "door",
            "memory_bytes": 1024,
            "last_failure": "round 2: client: DataError: no file mine.npz",
        }
    }


@pytest.mark.parametrize("resumed", [False, True])
def test_a_device_that_is_away_is_not_forgotten_until_another_has_its_number(tmp_path, resumed):
    devices = [Device(7, 0, DeviceProfile("door", 1024, 5)), Device(8, 1, DeviceProfile("gate", None, 5))]
    file = DevicesFile(tmp_path, lambda: devices)
    failed = SimpleNamespace(round=3, failures=[SimpleNamespace(client=1, failure="Node Unavailable")])
    file.on_start(None)
    file.on_round(failed, None)
    devices.pop()
    if resumed:
        file = DevicesFile(tmp_path, lambda: devices)
        file.on_start(None)
        file.on_past(failed)
    file.on_round(SimpleNamespace(round=4, failures=[]), None)

    def told() -> dict:
        return json.loads((tmp_path / "devices.json").read_text())

    assert {node: row["client"] for node, row in told().items()} == {"7": 0, "8": 1}
    assert told()["8"]["device_class"] == "gate"
    assert told()["8"]["last_failure"] == "round 3: Node Unavailable"
    devices.append(Device(9, 1, DeviceProfile("gate", None, 5)))
    file.on_round(SimpleNamespace(round=5, failures=[]), None)
    assert {node: row["client"] for node, row in told().items()} == {"7": 0, "9": 1}


def test_devices_of_a_damaged_file_are_those_that_are_there(tmp_path):
    (tmp_path / "devices.json").write_text('{"7": [], "8": 1}')
    DevicesFile(tmp_path, lambda: [Device(9, 1, DeviceProfile("gate", None, 5))]).on_start(None)
    assert set(json.loads((tmp_path / "devices.json").read_text())) == {"9"}
