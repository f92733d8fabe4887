"""What is wrong with a server's or a device's files and words is said in one line."""

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
import traceback
import zlib
from concurrent import futures
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy
from cryptography.hazmat.primitives import serialization
from sqlalchemy.exc import OperationalError
from test_serving import contents, flwr_that, refused, running, served, shaken
from typer.testing import CliRunner

from fedhp.cli import app
from fedhp.deployment import authority, beforehand, flower, registering, server, starting
from fedhp.deployment.device import DeviceOptions
from fedhp.deployment.folder import ServerFolder, add_device, make_folder
from fedhp.deployment.registering import known_nodes
from fedhp.deployment.server import register
from fedhp.errors import DataError, DeploymentError
from fedhp.files.locks import locked


def done(*words: str) -> str:
    """Runs a command that must succeed, and returns what it says."""
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.output


JUNK = b"\xff\xfe\x00\x80"


@pytest.mark.parametrize(
    ("file", "words", "said"),
    [
        (
            "devices/door/key.pub",
            "device run --superlink h:1 --partition-id 0 --keys {door}",
            "is no public key",
        ),
        ("devices/door/key.pub", "device key {door} door", "is no public key"),
        (
            "devices/door/key.pub",
            "serve add-device {fleet} new --public-key {door}/key.pub",
            "is no public key",
        ),
        (
            "devices/door/key",
            "device run --superlink h:1 --partition-id 0 --keys {door}",
            "is no private key",
        ),
        (
            "devices/door/ca.crt",
            "device run --superlink h:1 --partition-id 0 --keys {door}",
            "is no certificate",
        ),
        ("authority/ca.key", "serve renew {fleet}", "is no key of an authority"),
        ("authority/ca.crt", "serve renew {fleet}", "is no certificate"),
        (
            "server/server.crt",
            "serve start {fleet} --port 1024",
            "'fedhp serve renew {fleet}' makes a new one",
        ),
        ("registered.json", "serve remove-device {fleet} door", "remove it, and 'fedhp serve start"),
    ],
)
def test_a_file_that_is_damaged_is_named(tmp_path, file, words, said):
    folder = served(tmp_path, "door")
    places = {"fleet": folder.root, "door": folder.device("door")}
    (folder.root / file).write_bytes(JUNK)
    line = refused(*words.format(**places).split())
    assert f"{folder.root / file} is " in line
    assert said.format(**places) in line


def test_a_key_with_a_passphrase_is_refused_and_asks_for_nothing(tmp_path):
    folder = served(tmp_path)
    for key, words in ((folder.authority[0], ["renew"]), (folder.server[0], ["start", "--port=1024"])):
        plain = serialization.load_pem_private_key(key.read_bytes(), None)
        kind, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        key.write_bytes(plain.private_bytes(kind, form, serialization.BestAvailableEncryption(b"secret")))
        assert str(folder.root) in refused("serve", words[0], str(folder.root), *words[1:])


def test_a_private_key_anywhere_in_the_folder_is_closed_to_others(tmp_path):
    folder = served(tmp_path, "door")
    for key in (folder.authority[0], folder.server[0], folder.device("door") / "key"):
        os.chmod(key, 0o644)
        assert f"chmod 600 {key}" in refused("serve", "start", str(folder.root), "--port=1024")
        os.chmod(key, 0o600)
    assert folder.check() == []
    for kept_elsewhere in (folder.authority[0], folder.device("door") / "key"):
        kept_elsewhere.unlink()
    assert folder.check() == []


class Killed(BaseException):
    pass


def writes(folder: Path, monkeypatch) -> list[Path]:
    """Returns the files that are put in place while a server's folder is made, in order."""
    placed, replace = list[Path](), Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: placed.append(target) or replace(self, target))
    make_folder(folder, (), ["door"])
    monkeypatch.undo()
    return placed


def test_an_init_that_was_killed_goes_on(tmp_path, monkeypatch):
    """Killed as each file is about to get its name: what is there stays, what is missing comes."""
    names = [path.relative_to(tmp_path / "a") for path in writes(tmp_path / "a", monkeypatch)]
    assert {"ca.key", "ca.crt", "server.key", "server.crt", "key", "key.pub"} == {name.name for name in names}
    for place in names:
        shutil.rmtree(tmp_path / "fleet", ignore_errors=True)
        with monkeypatch.context() as patched:
            replace = Path.replace

            def kill(self, target, last=place, replace=replace):
                if target == tmp_path / "fleet" / last:
                    raise Killed
                return replace(self, target)

            patched.setattr(Path, "replace", kill)
            patched.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # nor does a kill tidy up
            with pytest.raises(Killed):
                served(tmp_path, "door")
        before = contents(ServerFolder(tmp_path / "fleet"))
        folder = served(tmp_path, "door")
        assert folder.devices() == ["door"]
        shaken(folder, folder.device("door") / "ca.crt", "server.example")
        kept = {
            path: text for path, text in contents(folder).items() if path in before and path.name[0] != "."
        }
        assert {path: before[path] for path in kept if path.parent.name != "server"}.items() <= kept.items()
        assert DeviceOptions("h:1", folder.device("door"), partition_id=0).check() is None


@pytest.mark.parametrize("there", ["authority/ca.key", "authority/other", "photos"])
def test_only_what_an_init_begins_with_is_taken_for_one(tmp_path, there):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).mkdir()
    (tmp_path / "devices").mkdir()
    assert "holds something else" in refused("serve", "init", str(tmp_path))


def test_a_folder_that_is_a_file_is_said(tmp_path):
    (tmp_path / "file").touch()
    for words in (["serve", "init", "{}"], ["device", "key", "{}", "door"]):
        for place in (tmp_path / "file", tmp_path / "file" / "below"):
            said = refused(*(word.format(place) for word in words))
            assert re.search(rf"error: {place} cannot be a folder: .*; give another", said)


def test_what_is_refused_leaves_nothing(tmp_path):
    assert "a device's name has" in refused("device", "key", str(tmp_path / "new"), "../x")
    assert not (tmp_path / "new").exists()
    assert "2 devices, 2 of them new" in done("serve", "init", str(tmp_path / "fleet"), "--devices=c,c,d")


def test_an_authority_that_has_expired_signs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(authority, "_AUTHORITY_DAYS", 0)
    with pytest.raises(DeploymentError, match=r"expired on .*make a new folder"):
        served(tmp_path)


def test_a_damaged_certificate_is_renewed_for_what_is_given(tmp_path, caplog):
    folder = served(tmp_path)
    folder.server[1].write_bytes(folder.server[1].read_bytes()[:100])
    assert "it is for new.example, " in done("serve", "renew", str(folder.root), "--host=new.example")
    assert "give each --host that it was for" in caplog.text
    shaken(folder, folder.authority[1], "new.example")


@pytest.mark.parametrize("host", ["a" * 64, "a." * 126 + "bc", "x" * 300])
def test_a_host_has_a_name_that_dns_can_hold(tmp_path, host):
    assert "is neither a name nor an address" in refused(
        "serve", "init", str(tmp_path / "f"), f"--host={host}"
    )
    assert authority.is_host("a" * 63)
    assert authority.is_host("::1")


def test_this_machines_name_need_be_none(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "h" * 64)
    assert "h" * 64 not in authority.hosts_of(served(tmp_path).server[1])


@pytest.mark.parametrize(
    "superlink",
    ["127.0.0.1:" + "1" * 5000, "h:\uff18\uff17", "h h:1", "h\n:1", "[]:1", "h:0", "h:65536", "h:-1"],
)
def test_a_server_has_a_host_and_a_port(superlink):
    said = refused("device", "run", f"--superlink={superlink}", "--partition-id=0", "--insecure")
    assert "--superlink reads HOST:PORT" in said
    assert len(said) < 250


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"name": "n" * 65}, "--name: expected a name of 1 to 64 characters, got 65"),
        ({"partition_id": 10**20}, "--partition-id: from 0 to 2**63 - 1"),
        ({"methods": "mine:One, ..;"}, "--methods: expected MODULE:NAME, got '..;'"),
        ({"model_target": "a/b:c"}, "--model-target: expected MODULE:NAME"),
    ],
)
def test_what_each_query_would_be_declined_for_is_refused_at_once(told, said):
    with pytest.raises(DeploymentError, match=re.escape(said)):
        DeviceOptions(**{"superlink": "localhost:1", "partition_id": 0} | told).check()
    DeviceOptions(
        "localhost:1", partition_id=2**63 - 1, methods="mine.own:One, b:c", model_target="m:n"
    ).check()


@pytest.mark.parametrize("comment", ["c" * 200, "a\x1b[2Jb"])
def test_a_comment_that_is_no_name_asks_for_one(tmp_path, comment):
    keys = served(tmp_path, "door").device("door")
    (keys / "key.pub").write_text(f"{(keys / 'key.pub').read_text().strip()} {comment}\n")
    options = {"superlink": "localhost:1", "keys": keys, "partition_id": 0}
    with pytest.raises(
        DeploymentError, match=r"the comment of .*key\.pub, without a --name: expected a name"
    ):
        DeviceOptions(**options).check()
    DeviceOptions(**options, name="door").check()


@pytest.mark.parametrize("words", ["device unit --superlink s:1 --insecure --name", "serve unit --host h"])
def test_a_unit_has_no_lines_of_others(words):
    assert "no line ends and control characters" in refused(*words.split(), "x\nUser=evil")


def test_whatever_keeps_data_from_being_read_is_quoted(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    command = tmp_path / "python"
    for script, said in (
        (
            "echo 'Traceback ...' >&2; echo 'SyntaxError: broken file (7)' >&2; exit 1",
            r"\(exit status 1; Syntax",
        ),
        ("kill -9 $$", r"\(exit status -9\)"),
        ("exit 2", r"\(exit status 2\)"),
    ):
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o700)
        monkeypatch.setattr(beforehand.sys, "executable", str(command))
        with pytest.raises(DataError, match=f"^--data: {tmp_path / 'data'} cannot be read {said}"):
            beforehand.check_data(tmp_path / "data")


def test_a_device_without_an_entry_is_kept_out_too(tmp_path, monkeypatch):
    """registered.json is lost, and Flower's database still lets the key in."""
    folder = served(tmp_path, "door", "window")
    remove = ["serve", "remove-device", str(folder.root)]
    register(folder)
    nodes = folder.registered()
    (folder.root / "registered.json").write_text(json.dumps({"window": nodes["window"]}))
    add_device(folder, "gate")
    known = known_nodes(folder.database, {name: folder.device(name) / "key.pub" for name in ("door", "gate")})
    assert known == {"door": nodes["door"]}
    monkeypatch.setattr(
        server, "known_nodes", lambda database, keys: {k: known[k] for k in keys if k in known}
    )
    assert "does not run" in refused(*remove, "door")
    assert folder.devices() == ["door", "gate", "window"]
    done(*remove, "gate")  # whose key was never registered
    with running(folder, monkeypatch, lambda _: {}) as words:
        done(*remove, "door")
    assert words == [("supernode", "unregister", str(nodes["door"]))]
    assert (folder.devices(), folder.registered()) == (["window"], {"window": nodes["window"]})


def test_who_registers_at_the_same_time_loses_no_entry(tmp_path, monkeypatch):
    folder, asks = served(tmp_path, "door"), threading.Event()

    def numbered(database: Path, keys: dict[str, Path]) -> dict[str, int]:
        if not asks.is_set():  # the first one takes so long that the other could come in between
            asks.set()
            time.sleep(0.2)
        return {name: zlib.crc32(name.encode()) for name in keys}

    monkeypatch.setattr(server, "registered_nodes", numbered)
    with futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(register, folder)
        asks.wait()
        add_device(folder, "window")
        assert register(folder) == ["window"]
        assert first.result() == ["door"]
    assert sorted(folder.registered()) == ["door", "window"]


@pytest.mark.parametrize("frees", [True, False])
def test_a_database_that_others_write_to_is_asked_again_and_never_to_be_removed(tmp_path, monkeypatch, frees):
    """By what SQLite and SQLAlchemy say of one that is."""
    folder, place = served(tmp_path, "door"), tmp_path / "busy.db"
    with closing(sqlite3.connect(place, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        engine = sqlalchemy.create_engine(f"sqlite:///{place}", connect_args={"timeout": 0})
        with pytest.raises(OperationalError) as busy, engine.connect() as one:
            one.execute(sqlalchemy.text("CREATE TABLE node (id)"))
    said = "".join(traceback.format_exception(busy.value))
    assert "https://sqlalche.me" in said.splitlines()[-1]
    answers = [subprocess.CompletedProcess([], 1, "", said)] * 2
    answers.append(subprocess.CompletedProcess([], 0, "[7]\n", ""))
    monkeypatch.setattr(registering.subprocess, "run", lambda *_, **__: answers.pop(0))
    monkeypatch.setattr(registering, "_ATTEMPTS", 3 if frees else 2)
    if frees:
        assert register(folder) == ["door"]
        return
    with pytest.raises(DeploymentError, match=r"database is locked: .* at work on it; ask again$"):
        register(folder)


def test_a_device_that_the_server_registers_first_is_let_in(tmp_path, monkeypatch):
    folder = served(tmp_path)

    def register_first(folder: ServerFolder) -> list[str]:
        folder.keep_registered({"door": 7})
        return register(folder)

    monkeypatch.setattr(server, "register", register_first)
    with running(folder, monkeypatch, lambda _: {}):
        assert "registered with the server that runs" in done("serve", "add-device", str(folder.root), "door")


def test_a_device_that_cannot_be_registered_is_not_kept(tmp_path, monkeypatch):
    folder = served(tmp_path)
    (folder.root / "registered.json").write_bytes(JUNK)
    with running(folder, monkeypatch, lambda _: {}):
        assert "registered.json is damaged" in refused("serve", "add-device", str(folder.root), "door")
        assert not folder.device("door").exists()


def test_a_second_server_changes_nothing_and_is_told_of_the_first(tmp_path, monkeypatch):
    folder = served(tmp_path)
    with running(folder, monkeypatch, lambda _: {}), socket.create_server(("127.0.0.1", 0)) as taken:
        before = contents(folder)
        port = str(taken.getsockname()[1])
        for words in (["--port", port], ["--insecure", "--port", "1024"]):
            start = refused("serve", "start", str(folder.root), "--host=127.0.0.1", *words)
            assert f"another process serves {folder.root}; end it first" in start
        assert contents(folder) == before
    assert "is no server's folder" in refused("serve", "start", str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_those_that_look_are_no_server_and_hinder_none(tmp_path, monkeypatch):
    """With what a server that was killed has left."""
    folder = served(tmp_path)
    (folder.root / "serving.json").write_text('{"host": "127.0.0.1", "port": 1, "insecure": false}')
    looks_now = threading.Event()

    @contextmanager
    def slowly(file: Path, wait: bool = True):
        with locked(file, wait) as is_ours:
            if file.name == ".lock":
                looks_now.set()
                time.sleep(0.1)
            yield is_ours

    monkeypatch.setattr(server, "locked", slowly)
    with futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.is_serving, folder)
        looks_now.wait()
        assert not server.is_serving(folder)
        assert not first.result()
        looks_now.clear()
        first = pool.submit(server.is_serving, folder)
        looks_now.wait()
        with server._alone(folder):
            assert not first.result()


@pytest.mark.parametrize("told", ["junk", "[]", "{}", '{"host": "h", "port": "x", "insecure": false}'])
def test_a_server_that_does_not_say_where_it_listens_is_named(tmp_path, monkeypatch, told):
    folder = served(tmp_path)
    with running(folder, monkeypatch, lambda _: {}):
        (folder.root / "serving.json").write_text(told)
        said = refused("serve", "devices", str(folder.root))
    assert "serving.json is damaged, or not where the server listens; end the server" in said


@pytest.mark.parametrize("told", ["junk", "[]", '{"7": 3}', '{"7": ["door"]}'])
def test_a_record_that_says_nothing_of_its_devices_hides_none(tmp_path, monkeypatch, told):
    folder, node = served(tmp_path), {"node-id": "7", "status": "online", "offline-at": ""}
    folder.keep_last_run(tmp_path)
    (tmp_path / "devices.json").write_text(told)
    with running(folder, monkeypatch, lambda _: {"nodes": [node]}):
        assert json.loads(done("serve", "devices", str(folder.root), "--json"))[0]["state"] == "connected"


def test_flowers_command_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    flwr_that("exec sleep 600", served(tmp_path), monkeypatch)
    monkeypatch.setattr(flower, "_PATIENCE_SECONDS", 0.2)
    with pytest.raises(DeploymentError, match=r"flwr supernode list: no answer within 0\.2 s"):
        flower.asked(tmp_path, "supernode", "list")


def test_a_simulations_run_goes_on_without_a_server(tmp_path, monkeypatch):
    folder = served(tmp_path)
    monkeypatch.setattr(starting, "serving_address", lambda _: None)
    monkeypatch.setattr(starting, "kept_in", lambda _: type("Kept", (), {"simulated": True}))
    said = refused("serve", "run", str(folder.root), f"--resume={tmp_path}")
    assert f"{tmp_path} is of a simulation, which 'fedhp resume {tmp_path}' goes on with" in said
    assert folder.last_run() is None
