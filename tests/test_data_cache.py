"""The cache trusts nobody else, survives kills, and says when it is damaged."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedhp.errors import DataError
from fedhp.files.cache import _temporary, _writable_folder, cache_folder, prepared


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """Leaves only the temporary folder, shared by all users, and returns where the cache would be there."""
    (tmp_path / "file").touch()
    monkeypatch.delenv("FEDHP_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    _writable_folder.cache_clear()
    yield tmp_path / f"fedhp-cache-{os.getuid()}"
    _writable_folder.cache_clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDHP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_folder_made_by_oneself_is_taken_again(shared):
    assert cache_folder() == shared
    assert shared.stat().st_mode & 0o777 == 0o700
    _writable_folder.cache_clear()
    assert cache_folder() == shared


def test_a_link_in_a_shared_folder_is_not_followed(shared, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    shared.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        DataError, match=r"fedhp-cache-\d+ is a link, .* set FEDHP_CACHE to a folder of your own"
    ):
        cache_folder()


def test_a_folder_that_others_may_write_to_is_refused(shared):
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(DataError, match="open to others"):
        cache_folder()


def test_another_users_folder_is_refused(shared, monkeypatch):
    """Seen by a user of another number, for whom it has that user's name."""
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    shared.with_name(f"fedhp-cache-{other}").mkdir(mode=0o700)
    with pytest.raises(DataError, match="another user's"):
        cache_folder()


def test_a_user_without_a_home_has_the_temporary_folder(shared, monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert cache_folder() == shared
    assert not Path("~").exists()


KILLED = """
import os, signal, sys
import numpy as np
from fedhp.files import cache
save = np.save
def killed(*args, **named):
    save(*args, **named)
    print("writing", flush=True)
    signal.pause()
np.save = killed
cache.prepared("kind", "key", lambda: {"a": np.ones(1000)})
"""


def test_a_killed_preparation_leaves_nothing_and_one_that_goes_on_stays(cache):
    """A preparation finds two folders half written: one by a process that was killed, one by this one."""
    command = [sys.executable, "-c", KILLED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "writing\n"
        killed.kill()
    with _temporary(cache / "kind") as mine:
        prepared("kind", "key", lambda: {"a": np.ones(3)})
        assert {path.name for path in (cache / "kind").iterdir()} == {mine.name, "key"}
    assert [path.name for path in (cache / "kind").iterdir()] == ["key"]


def zeroed(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def unbalanced(file: Path) -> None:
    """Leaves no bracket closed, which Python's reader of a header has a kind of error of its own for."""
    content = file.read_bytes()
    file.write_bytes(content.replace(b")", b"(").replace(b"}", b"{"))


@pytest.mark.parametrize("harm", [zeroed, Path.unlink, lambda file: file.write_bytes(b""), unbalanced])
@pytest.mark.parametrize("name", ["a.npy", "contents.json"])
@pytest.mark.usefixtures("cache")
def test_damage_names_the_folder_to_delete(harm, name):
    prepared("kind", "key", lambda: {"a": np.ones(1000), "b": np.ones(2)})
    folder = cache_folder() / "kind" / "key"
    harm(folder / name)
    with pytest.raises(
        DataError, match=rf"the prepared data in {folder} is damaged .* delete that folder"
    ) as error:
        prepared("kind", "key", dict)
    assert "\n" not in str(error.value)
