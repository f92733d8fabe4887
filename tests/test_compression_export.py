"""Compressed exports: what is written, what it is held against, and what is said of it."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fedhp
from fedhp.cli import app
from fedhp.errors import ExportError
from fedhp.exports.exporting import export
from fedhp.exports.samples import raw_data


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A little training on the digits."""
    folder = tmp_path_factory.mktemp("records") / "digits"
    values = {"train.epochs": 2, "data.max_train": 600, "prune.target_compression": 3}
    return fedhp.train("quickstart", folder, **values).folder


def accuracy_of_the_trained_network(record):
    config = fedhp.load_run(record).config
    raw = raw_data(config.data, config.seed, None, 1000, 1)
    with torch.no_grad():
        scores = fedhp.load_model(record, normalise=True)(raw.held_out)
    return float((scores.argmax(1).numpy() == raw.labels).mean())


def test_a_compressed_file_holds_the_zeros_and_the_facts_tell_of_both_networks(record):
    plain, done = export(record, ["torch"]), export(record, ["torch"], compress="obc:0.5")
    assert (plain.folder.name, done.folder.name) == ("export", "export-obc-0.5")
    assert plain.compression is None
    (file,) = done.files
    weights = [
        one.detach().numpy()
        for one in torch.export.load(done.folder / file.name).state_dict.values()
        if one.ndim == 2 and one.is_floating_point()
    ]
    assert sum((one == 0).sum() for one in weights) == pytest.approx(
        sum(one.size for one in weights) / 2, abs=3
    )
    facts = json.loads((done.folder / "export.json").read_text())
    told, agreement = facts["network"]["compression"], facts["files"][0]["agreement"]
    before = accuracy_of_the_trained_network(record)
    assert told["accuracy_before"] == agreement["accuracy_before"] == pytest.approx(before)
    assert agreement["accuracy"] == pytest.approx(told["accuracy"])
    assert agreement["agreement"] == 1  # with the compressed network
    biases = told["bits_before"] // 32 - sum(one.size for one in weights)
    masks = sum(one.size for one in weights)
    kept = sum(int((one != 0).sum()) for one in weights)
    assert told["packed_bits"] == masks + 32 * (kept + biases)
    assert told["said"] in (done.folder / "model_card.md").read_text()
    assert facts["network"]["accuracy"] == fedhp.load_run(record).summary["final_accuracy"]


def test_an_export_of_the_same_methods_is_added_to_and_of_others_is_refused(record, tmp_path):
    out = tmp_path / "out"
    export(record, ["torch"], out=out, compress="nm:2:4,ternary")
    export(record, ["torch"], out=out, compress="nm:2:4,ternary")
    for other in ("", "nm:2:4"):
        with pytest.raises(ExportError, match="another network"):
            export(record, ["torch"], out=out, compress=other)


def test_weights_are_fitted_to_training_samples_alone(record):
    config = fedhp.load_run(record).config
    raw = raw_data(config.data, config.seed, None, 1000, 10, 2048)
    rows = [{one.tobytes() for one in images} for images in (raw.compression, raw.held_out)]
    assert len(raw.compression) == 600  # all of them
    assert not rows[0] & rows[1]
    assert len(np.unique(raw.labels)) == 10


def test_the_command_says_what_is_packed_and_refuses_what_it_does_not_know(record, tmp_path):
    runner, arguments = CliRunner(), ["export", str(record), "--to", "torch", "--compress"]
    done = runner.invoke(app, [*arguments, "obq:4", "--out", str(tmp_path / "a")])
    assert done.exit_code == 0
    assert "when packed" in done.output
    refused = runner.invoke(app, [*arguments, "obq:44", "--out", str(tmp_path / "b")])
    assert refused.exit_code == 2
    assert "bits are 2 to 8" in " ".join(refused.output.split())
    assert not (tmp_path / "b").exists()


def test_a_folder_that_holds_something_else_is_refused_before_anything_is_compressed(
    record, tmp_path, monkeypatch
):
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr("fedhp.exports.exporting.compressed_network", None)
    with pytest.raises(ExportError, match="something else than an export"):
        fedhp.export(record, ["torch"], out=tmp_path, compress="ternary")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
