"""Arrays that go folded: the same to the bit, and nothing else is taken for them."""

import numpy as np
import pytest
from factories import MemoryGrid, conv_layout, random_state, same_bits, update
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict

from clients.folding import unfold_and_fold
from fedhp.errors import WireError
from fedhp.federation import wire
from fedhp.federation.arrays import write_array
from fedhp.federation.folding import FoldingGrid, fold, is_folded, unfold
from fedhp.fleet.devices import DeviceProfile
from fedhp.simulation.identity import acting_as

LAYOUT = conv_layout(floor=2)
STATE = random_state(LAYOUT, LAYOUT.full())


def replied(state=STATE) -> RecordDict:
    return wire.pack_update(update(state, None, 20))


def unpacked(content: RecordDict):
    return wire.unpack_update(content, LAYOUT, 0, LAYOUT.full(), DeviceProfile("phone", 1 << 20, 50))


def test_what_was_folded_unfolds_to_the_same_bits():
    folded = fold(replied())
    assert is_folded(folded)
    assert not folded.array_records
    assert folded.metric_records == replied().metric_records
    back = unfold(folded)
    assert list(back["model"]) == list(replied()["model"])
    assert [one.data for one in back["model"].values()] == [one.data for one in replied()["model"].values()]
    assert same_bits(unpacked(back).state, STATE)
    assert wire.update_bytes(back) == wire.update_bytes(replied())


def test_large_arrays_go_in_chunks_as_flower_has_them():
    large = RecordDict({"model": ArrayRecord({"w": write_array(np.zeros(5 * 2**18 + 1, np.float32))})})
    assert not is_folded(fold(large))


@pytest.mark.parametrize(
    "forged",
    [
        {"names": "w"},
        {"names": []},
        {"names": [1, 2]},
        {"names": ["w", "w"], "sizes": [0, 0], "folded": b""},
        {"sizes": 1.5},
        {"sizes": [-1, 1]},
        {"sizes": [0.0]},
        {"sizes": [2**62]},
        {"folded": "text"},
        {"folded": b"\0"},
    ],
)
def test_what_is_folded_otherwise_is_refused(forged):
    content = fold(replied())
    content["model"] = ConfigRecord({**content["model"], **forged})
    with pytest.raises(WireError, match="no array record 'model'"):
        unpacked(unfold(content))


def test_a_forged_array_within_is_refused_by_its_name():
    content = fold(replied())
    data = bytearray(content["model"]["folded"])
    data[10] ^= 255
    content["model"]["folded"] = bytes(data)
    with pytest.raises(WireError, match="expected float32 of shape"):
        unpacked(unfold(content))


def test_devices_fold_what_they_answer_to_folded_questions_alone():
    """Many devices are sent one value, folded once, and what comes back is what they have made of it."""
    seen = []

    def device(message: Message) -> Message:
        seen.append(message.content)
        with acting_as(message.metadata.dst_node_id):
            reply = unfold_and_fold(message, Context(1, 1, {}, RecordDict(), {}), answer)
        assert is_folded(reply.content) == is_folded(seen[-1])
        return reply

    def answer(message: Message, _: Context) -> Message:
        return Message(RecordDict({"model": message.content["model"]}), reply_to=message)

    content = RecordDict({"model": wire.pack_state(STATE)})
    for grid, folds in (FoldingGrid(MemoryGrid(device)), True), (MemoryGrid(device), False):
        with acting_as(0):
            messages = [Message(content, node, MessageType.TRAIN) for node in (1, 2)]
        replies = list(grid.send_and_receive(messages))
        assert is_folded(seen[-2]) == folds
        assert all(same_bits(wire.unpack_state(one.content["model"], LAYOUT), STATE) for one in replies)
        assert not content.config_records
