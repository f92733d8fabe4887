"""How good a run's last global model is on the data of every device, whether or not the device took part."""

from typing import Any

import pandas as pd

from fedhp.bounds import one_line
from fedhp.data.dataset import open_dataset
from fedhp.data.parts import client_shard, local_parts
from fedhp.data.shard import Shard
from fedhp.errors import RecordError
from fedhp.files.atomic import replace_text
from fedhp.fleet.devices import assign_classes
from fedhp.model.zoo import architecture
from fedhp.records.load import load_state
from fedhp.records.result import RunResult
from fedhp.report.series import Frame
from fedhp.scenario.schema import Scenario
from fedhp.training.evaluation import evaluate

_FILE = "devices.csv"
_COLUMNS: Any = {"client": int, "device_class": str, "samples": int, "right": int}


def write_devices(run: RunResult) -> None:
    """Writes beside a run's record what `devices` returns, so that a report need not evaluate again."""
    replace_text(run.folder / _FILE, _judged(run).to_csv(index=False))


def devices(run: RunResult) -> Frame:
    """Returns a row per device of the fleet: its class, and how many of its samples the model tells right.

    The model is the run's last global one, whole; the samples are those that the device holds out, and all of
    its own where the scenario holds none out (``data.local_test``). A device with too few samples to hold any
    out has none.

    Raises:
        DataError: If the run's data is not there any more.
        RecordError: If what is beside the record is damaged; or is missing, and the record names a network of
            its own, whose code would have to be imported.
    """
    path = run.folder / _FILE
    if not path.is_file():
        if run.config.model.target:
            raise RecordError(
                f"{path} is missing, and the record names a network of its own, whose code is not run to "
                f"make it anew; remove the record, and repeat the 'fedhp compare' that wrote it"
            )
        return _judged(run)
    try:
        return pd.read_csv(path, dtype=_COLUMNS, keep_default_na=False)[list(_COLUMNS)]
    except (OSError, ValueError, KeyError) as error:
        raise RecordError(
            f"{path} is damaged: {one_line(str(error))}; remove it, and it is made anew"
        ) from None


def _judged(run: RunResult) -> Frame:
    config = run.config
    dataset = open_dataset(config.data)
    arch = architecture(config.model, dataset.input_shape, dataset.num_classes)
    state, _ = load_state(run.folder)
    rows = []
    for client, kind in enumerate(assign_classes(config.fleet)):
        shard = _own_samples(config, client)
        number = 0 if shard is None else len(shard)
        right = 0 if shard is None else round(number * evaluate(arch, state, shard)[0])
        rows.append((client, kind.name, number, right))
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _own_samples(config: Scenario, client: int) -> Shard | None:
    shard = client_shard(config.data, config.fleet.num_clients, config.seed, client)
    if not config.data.local_test:
        return shard
    return local_parts(config.data, shard, config.seed, client)[1]
