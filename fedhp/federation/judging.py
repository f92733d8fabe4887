"""A model's loss on a device's samples: the question, and what comes back."""

import numpy as np
from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fedhp.errors import WireError
from fedhp.federation.arrays import read_array, write_array
from fedhp.federation.checks import check_names, check_number
from fedhp.federation.fields import read_field
from fedhp.training.update import Judgement

JUDGE = "evaluate.judge"  # Flower's type of such messages

_LOSS, _METRICS, _MEASURED = "loss", "metrics", "memory-measured-bytes"
_FLOAT = np.dtype(np.float64)


def pack_judgement(judgement: Judgement) -> RecordDict:
    """Packs a client's answer; the loss as an array, whose bytes count as those of any."""
    loss = ArrayRecord({_LOSS: write_array(np.array([judgement.loss], _FLOAT))})
    metrics = MetricRecord({_MEASURED: judgement.memory_measured_bytes})
    return RecordDict({_LOSS: loss, _METRICS: metrics})


def unpack_judgement(content: RecordDict) -> Judgement:
    """Unpacks `pack_judgement`.

    Raises:
        WireError: If anything is missing, unknown, of another type, or no loss or size.
    """
    record, metrics = content.array_records.get(_LOSS), content.metric_records.get(_METRICS)
    if record is None or metrics is None:
        raise WireError(f"expected the records '{_LOSS}' and '{_METRICS}', got {sorted(content)}")
    check_names(record, [_LOSS])
    loss = float(read_array(_LOSS, record[_LOSS], (1,), _FLOAT)[0])
    measured = read_field(metrics, _MEASURED, int)
    check_number(_LOSS, loss)
    check_number(_MEASURED, measured)
    return Judgement(loss, measured)
