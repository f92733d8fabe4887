"""Files that hold more, less or other than they say: they are read, or one line says what is wrong."""

import io
import random
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy
from typer.testing import CliRunner

from fedhp.cli import app
from fedhp.data import DataConfig, open_dataset
from fedhp.data.npz import read_npz
from fedhp.errors import DataError

X, Y = np.arange(60.0).reshape(20, 3), np.arange(20) % 3


def member(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def lying(shape: tuple[int, ...], content: bytes = bytes(80), descr: str = "<f8") -> bytes:
    """Returns a ``.npy`` whose header announces another shape than its content has."""
    stream = io.BytesIO()
    npy.write_array_header_2_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + content


def write(path: Path, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    everything = {"x_train": member(X), "y_train": member(Y), **members}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in everything.items():
            archive.writestr(f"{name}.npy", content)
    return path


def read(path: Path) -> dict[str, np.ndarray]:
    return read_npz(path, ("x_train", "y_train"), ("client_train",))


@pytest.mark.parametrize(
    "extra",
    [
        member(np.array([None, {"a": 1}])),
        lying((2**40,)),
        b"only text",
        b"",
        member(np.zeros(5)),
    ],
)
def test_arrays_that_nobody_asks_for_are_not_looked_at(tmp_path, extra):
    found = read(write(tmp_path / "a.npz", notes=extra))
    assert found.keys() == {"x_train", "y_train"}
    np.testing.assert_array_equal(found["x_train"], X)


def test_arrays_that_may_be_there_are_read_where_they_are(tmp_path):
    found = read(write(tmp_path / "a.npz", client_train=member(Y)))
    np.testing.assert_array_equal(found["client_train"], Y)


@pytest.mark.parametrize("array", [np.asfortranarray(X), X.astype(">f4"), X[:, None].astype("f2"), X > 5])
def test_arrays_are_read_as_numpy_reads_them(tmp_path, array):
    found = read(write(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, x_train=member(array)))["x_train"]
    np.testing.assert_array_equal(found, array, strict=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (member(np.array([None])), r"holds Python objects, .*: take \.astype\(str\) of names"),
        (lying((2**40,)), "header says 8796093022.* bytes, and"),
        (lying((2**62, 2**62)), "header says .* bytes, and"),
        (lying((11,)), "header says .* bytes, and"),
        (lying((-3, -4)), "header says"),
        (lying((20, 3), descr="O"), "holds Python objects"),
        (b"only text, as of a readme", "magic string is not correct"),
        (b"", "expected 8 bytes"),
        (lying((20, 3))[:30], "its header is damaged"),
        (b"\x93NUMPY\x01\x00\x14\x00" + b"(" * 20, "its header is damaged"),
        (member(X).replace(b"'shape': (20", b"'shape': (2+"), "its header is damaged"),
    ],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_array_that_is_not_what_its_header_says_is_refused_in_a_line(tmp_path, content, said, compression):
    file = write(tmp_path / "a.npz", compression, x_train=content)
    with pytest.raises(DataError, match=rf"a\.npz: x_train cannot be read .*({said})") as error:
        read(file)
    assert "\n" not in str(error.value)


def test_nothing_is_allocated_for_what_cannot_be_there(tmp_path):
    """A header that says 800 MB, over 80 bytes."""
    file = write(tmp_path / "a.npz", x_train=lying((10**8,)))
    tracemalloc.start()
    with pytest.raises(DataError, match="header says 8000001"):
        read(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**6


def patched(file: Path, what: str) -> None:
    """Sets a field of every entry: in its local header (PK12), and in the central directory (PK34)."""
    offsets = {"flags": (6, 8), "method": (8, 10)}[what]
    value = {"flags": b"\x01\x00", "method": b"\x63\x00"}[what]
    content = bytearray(file.read_bytes())
    for mark, offset in zip((b"PK\x03\x04", b"PK\x01\x02"), offsets, strict=True):
        start = content.find(mark)
        while start >= 0:
            content[start + offset : start + offset + 2] = value
            start = content.find(mark, start + 4)
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("what", "said"), [("flags", r"\(it is encrypted\)"), ("method", r"compression \(method 99\)")]
)
def test_encrypted_and_unknown_compression_are_refused(tmp_path, what, said):
    file = write(tmp_path / "a.npz")
    patched(file, what)
    with pytest.raises(DataError, match=f"x_train cannot be read .*{said}"):
        read(file)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_numpy_does_not_write_is_refused(tmp_path, compression):
    with pytest.raises(DataError, match="is none that NumPy writes"):
        read(write(tmp_path / "a.npz", compression))


def test_whatever_bytes_are_damaged_one_line_says_so(tmp_path):
    """Seeded damage of a good file: it is read, or refused, and nothing else comes of it."""
    file = write(tmp_path / "a.npz", zipfile.ZIP_DEFLATED)
    good, draw = file.read_bytes(), random.Random(0)
    outcomes, lines = set(), []
    for _ in range(300):
        damaged = bytearray(good)
        for _ in range(draw.choice([1, 2, 20])):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        file.write_bytes(damaged[: draw.choice([len(good), draw.randrange(len(good))])])
        try:
            with warnings.catch_warnings(action="ignore"):
                read(file)
            outcomes.add("read")
        except DataError as error:
            lines.append(str(error))
            outcomes.add("refused")
    assert not any("\n" in line or " object at 0x" in line for line in lines)
    assert outcomes == {"read", "refused"}


def test_the_command_line_says_it_in_a_line(tmp_path):
    file = write(tmp_path / "a.npz", x_test=member(X), y_test=member(Y), x_train=lying((2**40,)))
    result = CliRunner().invoke(app, ["run", "quickstart", "data.name=npz", f"data.root={file}"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert "x_train cannot be read as a plain array" in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize("root", ["x" * 5000, "~nobody-of-this-name/data", "a\0b"])
@pytest.mark.parametrize("name", ["npz", "cifar10"])
def test_a_root_that_can_be_no_path_is_no_file(root, name):
    with pytest.raises(DataError, match="no file" if name == "npz" else "looked for in"):
        open_dataset(DataConfig(name, root))
