"""Records that earlier versions wrote load, with the figures that they had.

``record_0_1.zip`` is what ``fedhp run`` of 0.1.0 left, but for its report::

    fedhp run quickstart rounds=3 simulation.num_workers=0 fleet.num_clients=4 server.clients_per_round=3 \\
        data.max_train=400 'model.widths=[16,8]' data.local_test=0.2
"""

import json
import shutil
from pathlib import Path

import pytest

from fedhp.records import load_run, load_state

pd = pytest.importorskip("pandas", reason="reading records needs the extra 'server'")


@pytest.fixture
def record(tmp_path: Path) -> Path:
    shutil.unpack_archive(Path(__file__).with_name("record_0_1.zip"), tmp_path / "record")
    return tmp_path / "record"


def test_the_tables_have_the_figures_that_they_had(record):
    """Down in round 2: three times 3,103 bytes. Held out by clients 0, 2 and 3: 20, 19 and 18 samples."""
    run = load_run(record)
    for name in ("rounds", "clients", "partition"):
        written, read = pd.read_parquet(record / f"{name}.parquet"), getattr(run, name)
        assert [column for column in read.columns if column in written.columns] == list(written.columns)
        assert read[written.columns].equals(written)
    assert [tuple(row) for row in run.clients.itertuples(index=False)][4][:17] == (
        *(2, 2, "camera", "ok", "", 76, 65536, 8312, 7920, 6953, 16, 16, 340, 209, 10, 3103, 2539),
    )
    figures = [
        "update_norm",
        "train_loss",
        "accuracy",
        "num_local_test",
        "local_accuracy_personal",
        "seconds",
    ]
    assert run.clients.loc[4, figures].tolist() == [
        *(0.4364393817910413, 2.235585463674445, 0.18421052631578946, 19, 3 / 19, 0.011019090998161118),
    ]
    row = run.rounds.iloc[2].dropna().to_dict()
    assert json.loads(row.pop("votes"))["fc2"] == [0.313043, 1, None, 0.686957, 1, 1, None, 1]
    assert json.loads(row.pop("structure")) == {"inputs": "b912a52d2ca5349d", "fc1": "005a", "fc2": "5d"}
    assert (
        row.items()
        >= {
            "round": 2,
            "accuracy": 0.18055555555555555,
            "loss": 2.2148623996310763,
            "local_accuracy_global": (20 * 0.25 + 18 * 1 / 18) / 57,
            "local_accuracy_personal": (20 * 0.25 + 3 + 18 * 2 / 18) / 57,
            "params": 209,
            "compression": 1266 / 209,
            "training_bytes": 6544,
            "num_replies": 3,
            "num_failures": 0,
            "budget_violations": 0,
            "bytes_down": 9309,
            "bytes_up": 7617,
            "seconds": 0.0631778930001019,
            "evaluation_seconds": 0.0011250310017203446,
        }.items()
    )


def test_its_summary_is_read_and_without_it_the_rounds_add_up_to_the_same(record):
    file = record / "summary.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    assert load_run(record).summary == written
    file.unlink()
    added_up = load_run(record).summary
    cause = added_up["cause"]
    assert cause.startswith("no end is on record")
    assert added_up == {**written, "status": "unfinished", "cause": cause, "versions": {}}


def test_its_model_loads(record):
    state, metadata = load_state(record)
    assert sum(array.size for array in state.weights.values()) == 209
    assert metadata["num_classes"] == 10
