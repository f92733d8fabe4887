"""Replies in the order of clients, each held against its question."""

import logging

import pytest
from factories import altered, reply, same_bits, trained
from fleets import answers, asked, enlisted, in_place_of_the_node
from flwr.app import Message, MessageType, RecordDict

from fedhp.federation.replies import Sent, in_order

pytestmark = pytest.mark.usefixtures("as_the_server")


def test_in_order_yields_as_soon_as_the_order_allows_and_holds_only_early_replies():
    """Replies of clients 1, 0, 3, 2 (nodes run the other way): nothing, then 0 and 1, nothing, 2 and 3."""
    strategy = enlisted()
    messages = asked(strategy)
    replies = {1000 - m.metadata.dst_node_id: reply(m, "no") for m in messages}
    read: list[int] = []

    def arriving():
        for client in (1, 0, 3, 2):
            read.append(client)
            yield replies[client]

    stream = in_order(strategy._asked.sent, arriving())
    seen = []
    for sent, _ in stream:
        seen.append((sent.device.client, list(read)))
    assert seen == [
        (0, [1, 0]),
        (1, [1, 0]),
        (2, [1, 0, 3, 2]),
        (3, [1, 0, 3, 2]),
        (4, [1, 0, 3, 2]),
    ]


def test_in_order_gives_a_device_without_reply_none_and_the_later_ones_theirs():
    strategy = enlisted()
    messages = asked(strategy)
    replies = [reply(m, "no") for m in messages if m.metadata.dst_node_id != 1000]
    got = [(sent.device.client, answer is None) for sent, answer in in_order(strategy._asked.sent, replies)]
    assert got == [(0, True), (1, False), (2, False), (3, False), (4, False)]


def test_in_order_drops_strangers_and_second_replies_and_notes_them(caplog):
    strategy = enlisted(budgets=(None, None))
    messages = asked(strategy)
    first, second = (reply(m, "no") for m in messages)
    stranger = reply(Message(RecordDict(), 77, MessageType.TRAIN), "who?")
    with caplog.at_level(logging.WARNING, "fedhp.notes"):
        # Node 999's second one while it waits, node 1000's after it was yielded.
        got = list(in_order(strategy._asked.sent, [stranger, second, second, first, first]))
    assert [answer for _, answer in got] == [first, second]
    assert caplog.messages == [
        "dropped a reply from node 77: the node was not asked",
        "dropped a second reply from client 1 (node 999)",
        "dropped a second reply from client 0 (node 1000)",
    ]


@pytest.mark.parametrize(
    ("flaw", "said"),
    [
        ({"reply_to_message_id": "0:999"}, "client 1 (node 999): it answers no question of this round"),
        ({"reply_to_message_id": ""}, "client 1 (node 999): it answers no question of this round"),
        ({"src_node_id": 1000}, "client 0 (node 1000): it answers what node 999 was asked"),
        ({"src_node_id": 77}, "node 77: it answers what node 999 was asked"),
        ({"src_node_id": 0}, "node 0: it answers what node 999 was asked"),
        ({"group_id": "2"}, "client 1 (node 999): its group id is '2', expected '1'"),
        ({"message_type": "query"}, "client 1 (node 999): its message type is 'query', expected 'train'"),
        ({"run_id": 7}, "client 1 (node 999): it belongs to run 7, not to 1"),
    ],
)
def test_a_reply_that_does_not_answer_what_its_sender_was_asked_is_dropped_and_named(caplog, flaw, said):
    """Node 0 is the server, which answers for a node that is gone, but with an error only."""
    strategy = enlisted(budgets=(None, None))
    first, second = asked(strategy)
    right, wrong = (reply(m, trained(strategy.layout, m, 20)) for m in (first, second))
    strategy.aggregate_train(1, [altered(wrong, **flaw), right])
    assert [row.status for row in strategy.outcome.rows] == ["ok", "failed"]
    assert strategy.outcome.rows[1].failure.startswith("timeout: ")
    assert caplog.messages == [f"dropped a reply from {said}"]


def test_a_misattributed_reply_does_not_keep_the_right_one_out():
    strategy, alone = enlisted(budgets=(None, None)), enlisted(budgets=(None, None))
    messages = asked(strategy)
    right = answers(strategy, messages)
    forged = altered(reply(messages[1], trained(strategy.layout, messages[1], 50)), src_node_id=1000)
    strategy.aggregate_train(1, [forged, *right])
    asked(alone)
    alone.aggregate_train(1, right)
    assert same_bits(strategy.state, alone.state)


def test_a_message_with_neither_content_nor_error_is_a_failure_like_another():
    strategy = enlisted(budgets=(None, None))
    messages = asked(strategy)
    empty, right = answers(strategy, messages)
    empty.__dict__["_content"] = None
    strategy.aggregate_train(1, [empty, right])
    assert [row.status for row in strategy.outcome.rows] == ["failed", "ok"]
    assert strategy.outcome.rows[0].failure == "reply: holds neither content nor an error"


def test_an_answer_in_place_of_a_node_is_taken_for_that_nodes(caplog):
    strategy = enlisted(budgets=(None, None))
    first, second = asked(strategy)
    answer = reply(second, trained(strategy.layout, second, 5))
    strategy.aggregate_train(1, [in_place_of_the_node(first), answer])
    assert [(row.client, row.status, row.failure) for row in strategy.outcome.rows] == [
        (0, "failed", "no heartbeat"),
        (1, "ok", ""),
    ]
    assert not caplog.messages


def test_sent_says_what_went_down():
    """The full model of 115 parameters: 4 bytes per parameter and score, one per group, and headers.

    The groups are 4 inputs, 8 and 6 neurons; the arrays six weights, three structures and three scores.
    """
    strategy = enlisted()
    asked(strategy)
    sent = strategy._asked.sent[1000]
    assert isinstance(sent, Sent)
    assert sent.num_parameters == 115
    assert sent.num_bytes == 4 * (115 + 18) + 3 + 12 * 128
