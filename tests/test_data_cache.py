"""The cache trusts nobody else, survives kills, and says when it is damaged."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_files import npz_config

from fedhp.data import open_dataset
from fedhp.errors import DataError
from fedhp.files.cache import _temporary, _writable_folder, cache_folder, prepared

pytestmark = pytest.mark.usefixtures("own_cache")


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


def test_arrays_are_read_only_maps_of_one_file(tmp_path):
    dataset = open_dataset(npz_config(tmp_path))
    assert isinstance(dataset.train_images.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        dataset.train_images[0] = 0


def test_changed_file_is_prepared_again(tmp_path):
    first = open_dataset(npz_config(tmp_path))
    folder = tmp_path / "other"
    folder.mkdir()
    config = npz_config(folder, x_train=np.ones((12, 3), np.float32))
    second = open_dataset(config)
    assert first.key != second.key
    assert (second.mean == 1).all()


def _prepare_slowly(cache: str, barrier, value: int, answers) -> None:
    os.environ["FEDHP_CACHE"] = cache

    def prepare() -> dict[str, np.ndarray]:
        barrier.wait(60)  # both processes have found the cache empty
        return {"a": np.full(5, value)}

    answers.put(prepared("race", "key", prepare)["a"].tolist())


def test_racing_processes_agree(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    cache = str(tmp_path / "cache")
    workers = [
        context.Process(target=_prepare_slowly, args=(cache, barrier, value, answers)) for value in (1, 2)
    ]
    for worker in workers:
        worker.start()
    got = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert got[0] == got[1]
    assert got[0] in ([1] * 5, [2] * 5)
    assert [path.name for path in (tmp_path / "cache" / "race").iterdir()] == ["key"]


def test_failed_preparation_leaves_nothing_behind():
    with pytest.raises(RuntimeError):
        prepared("kind", "key", lambda: (_ for _ in ()).throw(RuntimeError()))
    assert prepared("kind", "key", lambda: {"a": np.ones(2)})["a"].tolist() == [1, 1]


def test_damaged_cache_names_the_folder_to_delete():
    prepared("kind", "key", lambda: {"a": np.ones(1000)})
    file = cache_folder() / "kind" / "key" / "a.npy"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match="delete that folder"):
        prepared("kind", "key", dict)


def test_cache_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDHP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="set FEDHP_CACHE"):
        cache_folder()


def test_cache_falls_back_to_the_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delenv("FEDHP_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cache_folder().parent == tmp_path
