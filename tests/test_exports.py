"""Exported networks against the network in eager PyTorch, in every runtime that is installed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import HAS_SPIKING
from torch import nn
from typer.testing import CliRunner

import fedhp
from fedhp.cli import app
from fedhp.data import Normalisation
from fedhp.errors import ExportError, MissingExtraError
from fedhp.exports.card import _classes
from fedhp.exports.exporting import checked_formats, export
from fedhp.exports.formats import FORMATS
from fedhp.exports.formats.format import Format
from fedhp.exports.loaded import load_trained
from fedhp.exports.network import DeviceNetwork, raw_sample
from fedhp.exports.verifying import verified
from fedhp.sizes import format_size

LITTLE = {"train.epochs": 1, "data.max_train": 300, "prune.target_compression": 3}
NETWORKS = {
    "mlp": {},
    "cnn": {"model.name": "cnn", "model.widths": [6, 8, 16]},
    "conv1d": {"model.name": "conv1d", "model.widths": [8, 12, 16]},
    "resnet20": {"model.name": "resnet20", "model.widths": [6, 8, 12], "train.learning_rate": 0.01},
}
if HAS_SPIKING:
    NETWORKS["spiking_cnn"] = {
        "model.name": "spiking_cnn",
        "model.widths": [4, 6, 16],
        "model.time_steps": 3,
    }


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A little training of each network on the digits."""
    folder = tmp_path_factory.mktemp("records")
    return {
        name: fedhp.train("quickstart", folder / name, **{**LITTLE, **values}).folder
        for name, values in NETWORKS.items()
    }


def installed(name):
    try:
        checked_formats([name])
    except MissingExtraError:
        pytest.skip(f"{name} is not installed")
    return FORMATS[name]


def digits():
    """The raw digits that nobody trained on, as scikit-learn has them in bytes, and their classes."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    values, classes = load_digits(return_X_y=True)
    images = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    _, images, _, classes = train_test_split(images, classes, test_size=0.2, random_state=0, stratify=classes)
    return images, classes


@pytest.mark.parametrize(
    ("name", "network"),
    [
        *((name, network) for name in ("onnx", "executorch", "litert") for network in NETWORKS),
        *(("torch", network) for network in NETWORKS if network not in ("cnn", "resnet20")),
    ],
)
def test_a_float_file_gives_eagers_scores_of_raw_samples(name, network, records, tmp_path):
    form = installed(name)
    done = export(records[network], [name], out=tmp_path / "out")
    assert not done.failures
    (file,) = done.files
    images, classes = digits()
    eager = fedhp.load_model(records[network], normalise=True)
    with torch.no_grad():
        wanted = eager(images).numpy()
    runs = form.opened(done.folder / file.name)
    given = images.transpose(0, 2, 3, 1) if form.channels_last else images
    found = np.concatenate([runs(np.ascontiguousarray(given[n : n + 1])) for n in range(len(given))])
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert file.agreement.num_samples == len(images)
    assert file.agreement.accuracy == pytest.approx((wanted.argmax(1) == classes).mean())
    assert file.num_bytes == (done.folder / file.name).stat().st_size


@pytest.mark.parametrize("dtype", ["int8", "int8_dynamic"])
@pytest.mark.parametrize("name", ["onnx", "executorch", "litert"])
def test_an_int8_file_holds_its_weights_in_bytes_and_answers_alike(name, dtype, records, tmp_path):
    installed(name)
    done = export(records["cnn"], [name], ["int8", dtype], tmp_path / "out")
    assert not done.failures
    assert done.files[0].dtype == "float32"
    narrow = next(file for file in done.files if file.dtype == dtype)
    assert narrow.agreement.agreement >= 0.97
    if dtype == "int8":
        assert not narrow.left_float
    else:
        assert all("onv" in layer or "ONV" in layer for layer in narrow.left_float)


@pytest.mark.parametrize("name", ["onnx", "executorch", "litert"])
def test_windows_of_numbers_go_in_as_float32_whatever_the_weights(name, tmp_path):
    installed(name)
    stream, labels = np.random.default_rng(0), np.arange(240) % 4
    windows = stream.normal(size=(240, 3, 32)).astype(np.float32)
    windows[np.arange(240), 0, labels] += 4
    file = tmp_path / "windows.npz"
    np.savez(file, x_train=windows, y_train=labels, x_test=windows[:60], y_test=labels[:60])
    data = {"data.name": "npz", "data.root": str(file)}
    run = fedhp.train("quickstart", tmp_path / "run", **{**LITTLE, **NETWORKS["conv1d"], **data})
    done = export(run.folder, [name], ["float32", "int8"], tmp_path / "out")
    assert not done.failures
    taken = json.loads((done.folder / "export.json").read_text())["files"]
    assert [one["input"]["dtype"] for one in taken] == ["float32", "float32"]
    assert all(one["input"]["shape"] == [1, 3, 32] for one in taken)


def test_an_onnx_file_has_whole_integers_for_picked_inputs_and_no_word_of_this_machine(records, tmp_path):
    installed("onnx")
    import onnx

    done = export(records["mlp"], ["onnx"], ["int8"], tmp_path / "out")
    for file in done.files:
        content = (done.folder / file.name).read_bytes()
        assert b"site-packages" not in content
        assert str(Path(fedhp.__file__).parent).encode() not in content
    model = onnx.load(done.folder / "model-int8.onnx")
    kinds = [t.data_type for t in model.graph.initializer if len(t.dims) == 2]
    assert len(kinds) == 3
    assert set(kinds) == {onnx.TensorProto.INT8}


def test_the_card_and_the_facts_say_what_it_is(records, tmp_path):
    out = tmp_path / "out"
    export(records["mlp"], ["torch"], out=out)
    facts = json.loads((out / "export.json").read_text())
    run = fedhp.load_run(records["mlp"])
    assert facts["network"]["accuracy"] == run.summary["final_accuracy"]
    assert facts["network"]["parameters"] == run.rounds["params"].iloc[-1]
    (file,) = facts["files"]
    assert file["input"] == {
        "shape": [1, 1, 8, 8],
        "axes": ["batch", "channels", "height", "width"],
        "dtype": "uint8",
    }
    assert file["output"] == {"shape": [1, 10], "axes": ["batch", "classes"], "dtype": "float32"}
    assert file["versions"]["torch"] == torch.__version__
    card = (out / "model_card.md").read_text()
    assert "| `model.pt2` | uint8, 1 batch x 1 channels x 8 height x 8 width | float32 |" in card
    assert file["sha256"] in card


def test_card_and_facts_call_what_goes_in_and_comes_out_as_the_file_does(records, tmp_path):
    installed("onnx")
    import onnxruntime

    out = tmp_path / "out"
    export(records["mlp"], ["onnx"], ["int8"], out)
    facts = json.loads((out / "export.json").read_text())
    for one in facts["files"]:
        session = onnxruntime.InferenceSession(out / one["name"])
        for told, (of_file,) in (
            (one["input"], session.get_inputs()),
            (one["output"], session.get_outputs()),
        ):
            assert (told["name"], told["shape"]) == (of_file.name, of_file.shape)
    assert (
        "In onnx files the input is called `sample`, the output `scores`."
        in (out / "model_card.md").read_text()
    )


def test_names_of_classes_are_no_markup_on_the_card():
    assert _classes(["<b>x</b>", "a_b|c", "plain"])[1] == (
        "Classes, from 0: \\<b\\>x\\</b\\>, a\\_b\\|c, plain (`labels.txt`)."
    )


def test_another_format_is_added_to_what_is_there_and_another_network_is_not(records, tmp_path):
    installed("onnx")
    out = tmp_path / "out"
    export(records["mlp"], ["torch"], out=out)
    export(records["mlp"], ["onnx"], out=out)
    assert [one["name"] for one in json.loads((out / "export.json").read_text())["files"]] == [
        "model.onnx",
        "model.pt2",
    ]
    before = (out / "model.pt2").read_bytes()
    with pytest.raises(ExportError, match="another network; choose another folder by --out"):
        export(records["cnn"], ["torch"], out=out)
    assert (out / "model.pt2").read_bytes() == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(ExportError, match="something else than an export"):
        export(records["mlp"], ["torch"], out=tmp_path / "full")


class Wrong(Format):
    """A format that writes another network than it is given."""

    name, suffix, extra, packages = "wrong", ".pt2", "", ("torch",)
    channels_last, dtypes = False, ("float32",)

    def write(self, network, example, path):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.01)
        FORMATS["torch"].write(network, example, path)

    def loaded(self, path, threads=1):
        return FORMATS["torch"].loaded(path)

    def check(self):
        pass


class Refuses(Wrong):
    """A format that cannot take any network."""

    name = "refuses"

    def write(self, network, example, path):
        path.write_bytes(b"half")
        try:
            raise NotImplementedError("no lowering of\n \x1b[96maten.cosh\x1b[0m")
        except NotImplementedError as error:
            raise RuntimeError("a step failed. Next steps: ask elsewhere") from error


def test_what_does_not_agree_is_named_and_not_left_behind_and_other_formats_go_on(
    records, tmp_path, monkeypatch
):
    monkeypatch.setitem(FORMATS, "wrong", Wrong())
    monkeypatch.setitem(FORMATS, "refuses", Refuses())
    told = []
    out = tmp_path / "out"
    done = export(
        records["mlp"], ["wrong", "refuses", "torch"], out=out, tell=lambda what, outcome: told.append(what)
    )
    assert told == ["wrong float32", "refuses float32", "torch float32"]
    assert "its scores differ from the network's by up to" in done.failures["wrong float32"]
    assert done.failures["refuses float32"].endswith("cannot take this network: no lowering of aten.cosh")
    assert [file.format for file in done.files] == ["torch"]
    assert {path.name for path in out.iterdir()} == {"model.pt2", "model_card.md", "export.json"}


def test_what_is_held_against_the_network():
    """Of two classes, three samples; the third is nearly even."""
    wanted = np.array([[1, 0], [0, 2], [1, 1.00001]], np.float32)
    labels, samples = np.array([0, 1, 0]), [np.full((1, 1), n) for n in range(3)]

    def held(scores, dtype="float32"):
        rows = np.array(scores, np.float32)
        return verified(lambda sample: rows[int(sample[0, 0])][None], samples, labels, wanted, dtype)

    same = held(wanted)
    assert (same.agreement, same.largest_difference, same.accuracy) == (1, 0, pytest.approx(2 / 3))
    assert held([[1, 0], [0, 2], [1.00002, 1]]).accuracy == 1  # nearly even is no other answer
    with pytest.raises(ExportError, match=r"by up to 0\.001"):
        held(wanted + np.array([[0, 0.001]], np.float32))
    with pytest.raises(ExportError, match=r"66\.7% of its answers"):
        held([[0, 1], [0, 2], [1, 1.1]], "int8")
    with pytest.raises(ExportError, match="not finite"):
        held([[1, 0], [0, 2], [np.nan, 1]])


@pytest.mark.parametrize(
    ("shape", "axis", "channels_last", "expected"),
    [
        ((3, 8, 9), 0, False, ((3, 8, 9), ("channels", "height", "width"))),
        ((3, 8, 9), 0, True, ((8, 9, 3), ("height", "width", "channels"))),
        ((1, 8, 8), 0, True, ((8, 8, 1), ("height", "width", "channels"))),
        ((1, 1, 20), 2, True, ((20,), ("features",))),
        ((1, 6, 40), 1, True, ((6, 40), ("channels", "time"))),
        ((1, 40, 6), 2, False, ((40, 6), ("time", "channels"))),
    ],
)
def test_what_a_raw_sample_is(shape, axis, channels_last, expected):
    numbers = (1.0,) * (shape[axis] if axis else 1)
    sample = raw_sample(shape, Normalisation(numbers, numbers, axis), np.dtype(np.float64), channels_last)
    assert (sample.shape, sample.axes) == expected
    assert sample.dtype == "float32"
    images = np.random.default_rng(0).normal(size=(4, *shape))
    arranged = sample.arranged(images)
    assert arranged.dtype == np.float32
    moved = images.transpose(0, 2, 3, 1) if len(expected[0]) == 3 and channels_last else images
    np.testing.assert_array_equal(arranged, moved.reshape(4, *expected[0]).astype(np.float32))


def test_values_around_a_large_one_keep_what_tells_them_apart(tmp_path):
    """Around 3,000,000, features that differ by tens: a mean in single precision would be off by some."""
    stream = np.random.default_rng(0)
    labels = np.arange(400) % 2
    values = 3e6 + 0.3 + 10 * stream.normal(size=(400, 6)) + 40 * labels[:, None]
    file, values = tmp_path / "far.npz", values.astype(np.float32)
    np.savez(file, x_train=values, y_train=labels, x_test=values[:100], y_test=labels[:100])
    run = fedhp.train(
        "quickstart",
        tmp_path / "run",
        **{"data.name": "npz", "data.root": str(file), "train.epochs": 1, "model.widths": [8]},
    )
    trained = load_trained(run.folder)
    sample = raw_sample(trained.arch.input_shape, trained.normalisation, np.dtype(np.float32), False)
    network = DeviceNetwork(trained, sample)
    raw = values[:100]
    eager = fedhp.load_model(run.folder, normalise=True)
    with torch.no_grad():
        np.testing.assert_allclose(network(torch.from_numpy(raw)), eager(raw.astype(np.float64)), atol=1e-4)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"to": ["coreml"]}, "there is no format 'coreml'; choose of onnx, executorch, litert, torch"),
        ({"dtypes": ["int4"]}, "there is no width 'int4'; choose of float32, int8, int8_dynamic"),
    ],
)
def test_what_there_is_not_is_refused(asked, said, records):
    with pytest.raises(ExportError, match=said):
        export(records["mlp"], **asked)


def test_layers_of_the_exported_network_are_torchs_own(records):
    trained = load_trained(records["resnet20"])
    sample = raw_sample(trained.arch.input_shape, trained.normalisation, np.dtype(np.uint8), False)
    network = DeviceNetwork(trained, sample)
    leaves = {type(module) for module in network.modules() if not [*module.children()]}
    assert nn.Conv2d in leaves
    for parameter in network.parameters():
        assert parameter.is_contiguous()


def test_the_report_of_a_run_shows_what_was_exported_beside_it(records, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(records["mlp"], run)
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    assert "On hardware" not in (run / "report.html").read_text()
    done = CliRunner().invoke(app, ["export", str(run), "--to", "torch"])
    assert done.exit_code == 0, done.output
    assert "100.0%" in done.output
    assert "verified on 360 of 360 held-out samples" in done.output  # a fifth of the 1,797 digits
    page = (run / "report.html").read_text()
    size = format_size((run / "export" / "model.pt2").stat().st_size)
    assert "<td class=text>export/model.pt2</td><td class=text>uint8, 1 x 1 x 8 x 8</td>" in page
    assert f"<td>{size}</td>" in page
    assert "when packed" not in page
    done = CliRunner().invoke(app, ["export", str(run), "--to", "torch", "--compress", "nm:2:4"])
    assert done.exit_code == 0, done.output
    bits = json.loads((run / "export-nm-2-4" / "export.json").read_text())["network"]["compression"][
        "packed_bits"
    ]
    page = (run / "report.html").read_text()
    assert "<th>when packed</th>" in page
    assert page.count(f"<td>{format_size(-(-bits // 8))}</td>") == 1
    shutil.rmtree(run / "export-nm-2-4")
    (run / "export" / "export.json").write_text("{")
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    assert "On hardware" not in (run / "report.html").read_text()


def test_a_refusal_is_a_line_and_exit_code_2(records, tmp_path):
    refused = CliRunner().invoke(app, ["export", str(tmp_path / "nothing")])
    assert refused.exit_code == 2
    assert "no run record at" in refused.output
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    refused = CliRunner().invoke(app, ["export", str(records["mlp"]), "--out", str(tmp_path / "full")])
    assert refused.exit_code == 2
    assert "holds something else than an export; choose another folder by --out" in refused.output
