"""The simulated grid: order, sharing, state, failures, and Ray's coming and going."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedhp.errors import FedhpError, MissingExtraError
from fedhp.scenario.schema import SimulationConfig
from fedhp.simulation.answering import Lost
from fedhp.simulation.batch import Batch, Span
from fedhp.simulation.grid import SimulatedGrid
from fedhp.simulation.identity import RUN_ID, SERVER_NODE_ID, acting_as
from fedhp.simulation.nursery import AVAILABLE, open_nursery
from fedhp.simulation.opening import load_app, open_grid
from fedhp.simulation.pool import Pool
from fedhp.simulation.processes import ProcessCrew
from fedhp.simulation.signals import keeping_handlers
from fedhp.simulation.tasks import Cohort, Job, MessageTask
from fedhp.simulation.worker import Report
from fedhp.simulation.workers import Workers

HERE = Path(__file__).parent
APP, TOGETHER = "simulated_app:app", "simulated_app:together"
NUM_NODES = 32


def order(do: str = "", nodes: Sequence[int] = (), seconds: float = 0.0) -> RecordDict:
    return RecordDict({"order": ConfigRecord({"do": do, "nodes": list(nodes), "seconds": seconds})})


def to(content: RecordDict, nodes: Sequence[int]) -> list[Message]:
    return [Message(content, node, "train") for node in nodes]


def ask(grid: Grid, content: RecordDict, nodes: Sequence[int] | None = None) -> list[Message]:
    return list(grid.send_and_receive(to(content, list(nodes or grid.get_node_ids()))))


def seen(replies: Sequence[Message], key: str) -> list[int]:
    return [reply.content["seen"][key] for reply in replies]  # type: ignore[index]


def reasons(replies: Sequence[Message]) -> dict[int, str | None]:
    failed = (reply for reply in replies if reply.has_error())
    return {reply.metadata.src_node_id: reply.error.reason for reply in failed}


def config(num_workers: int, address: str = "") -> SimulationConfig:
    return SimulationConfig(num_workers=num_workers, address=address)


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """Lets the app beside this file be imported by name, here and in the workers."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(HERE))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def cluster(importable: None) -> Iterator[None]:
    """One local Ray for all tests here; starting it takes seconds."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def notes() -> list[str]:
    return []


@pytest.fixture(scope="module")
def workers(cluster: None, notes: list[str]) -> Iterator[Grid]:
    with open_grid(config(2), APP, NUM_NODES, 60.0, notes.append, cohort_app=TOGETHER) as grid:
        yield grid


@pytest.fixture(scope="module")
def process_notes() -> list[str]:
    return []


@pytest.fixture(scope="module")
def processes(importable: None, process_notes: list[str]) -> Iterator[Grid]:
    """Workers without Ray; a Ray that this process had joined already would be taken instead."""
    if not AVAILABLE:
        pytest.skip("workers are Ray's here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedhp.simulation.opening.runs_in_processes", lambda _: True)
        opened = open_grid(config(2), APP, NUM_NODES, 60.0, process_notes.append, cohort_app=TOGETHER)
        with opened as grid:
            patch.undo()
            yield grid


@pytest.fixture(scope="module", params=["processes", "workers"])
def pooled(request: pytest.FixtureRequest) -> tuple[Grid, list[str]]:
    """A grid of two workers, and the notes on them."""
    notes = {"processes": "process_notes", "workers": "notes"}[request.param]
    return request.getfixturevalue(request.param), request.getfixturevalue(notes)


@pytest.fixture(scope="module")
def local() -> Iterator[Grid]:
    with open_grid(config(0), APP, NUM_NODES, 60.0, cohort_app=TOGETHER) as grid:
        yield grid


@pytest.fixture(params=["local", "processes", "workers"])
def grid(request: pytest.FixtureRequest) -> Grid:
    return request.getfixturevalue(request.param)


def test_replies_come_in_the_order_of_the_messages_and_name_them(grid: Grid) -> None:
    nodes = [9, 3, 30, 1, 17, 4]
    messages = to(order("sleep", nodes=[9], seconds=0.3), nodes)

    replies = list(grid.send_and_receive(messages))

    assert seen(replies, "node") == nodes
    assert [reply.metadata.src_node_id for reply in replies] == nodes
    ids = [message.metadata.message_id for message in messages]
    assert len(set(ids)) == len(nodes)
    assert "" not in ids
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids


def test_node_i_holds_partition_i_minus_1(grid: Grid) -> None:
    assert list(grid.get_node_ids()) == list(range(1, NUM_NODES + 1))
    assert [node.node_id for node in grid.get_nodes()] == list(range(1, NUM_NODES + 1))

    replies = ask(grid, order(), [1, 32])

    assert seen(replies, "partition") == [0, 31]
    assert seen(replies, "partitions") == [NUM_NODES, NUM_NODES]
    assert seen(replies, "run") == [RUN_ID, RUN_ID]


def test_one_worker_two_workers_and_none_answer_alike(
    cluster: None, processes: Grid, workers: Grid, local: Grid
) -> None:
    content = order("raise", nodes=[5, 20])
    with open_grid(config(1), APP, NUM_NODES, 60.0) as single:
        grids = (single, processes, workers, local)
        answers = [[_plain(reply) for reply in ask(g, content)] for g in grids]

    assert len(answers[0]) == NUM_NODES
    assert all(one == answers[0] for one in answers)


def _plain(reply: Message) -> tuple[object, ...]:
    who = (reply.metadata.src_node_id, reply.metadata.dst_node_id, reply.metadata.message_type)
    if reply.has_error():
        return (*who, reply.error.code, reply.error.reason)
    shown = dict(reply.content["seen"])
    return (*who, {key: shown[key] for key in ("node", "partition", "visits", "spoilt")})


def test_a_shared_payload_is_stored_once(workers: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    stored: list[object] = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda value: (stored.append(value), put(value))[1])
    first, second = order(), order()

    messages = [Message(first if node % 2 else second, node, "train") for node in workers.get_node_ids()]
    replies = list(workers.send_and_receive(messages))

    assert seen(replies, "node") == list(range(1, NUM_NODES + 1))
    assert [id(value) for value in stored] == [id(first), id(second)]


def test_state_lasts_over_rounds_and_only_where_there_is_some(grid: Grid) -> None:
    ask(grid, order("count", nodes=[2, 3]))
    assert seen(ask(grid, order("count", nodes=[2])), "visits")[:4] == [0, 2, 1, 0]

    assert seen(ask(grid, order("forget", nodes=[2])), "visits")[:4] == [0, 0, 1, 0]
    ask(grid, order("forget", nodes=[3]))
    assert grid._states == {}  # type: ignore[attr-defined]


def test_a_nodes_second_message_sees_what_its_first_one_left(grid: Grid) -> None:
    replies = ask(grid, order("count", nodes=[8]), [8, 7, 8, 8])

    assert seen(replies, "node") == [8, 7, 8, 8]
    assert seen(replies, "visits") == [1, 0, 2, 3]
    ask(grid, order("forget", nodes=[8]))


def test_a_client_that_raises_is_named_and_keeps_its_old_state(grid: Grid) -> None:
    replies = ask(grid, order("raise", nodes=[4, 6]))

    assert reasons(replies) == dict.fromkeys([4, 6], "data: ShardError: labels are missing")
    assert sum(reply.has_content() for reply in replies) == NUM_NODES - 2
    assert seen(ask(grid, order(), [4]), "spoilt") == [0]


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        ("garbage", "reply: client returned a int, not a flwr.app.Message"),
        ("stranger", "reply: client returned a message that does not reply to the one it got"),
        ("exit", "client: SystemExit: enough"),
    ],
)
def test_what_is_no_answer_fails_alone(grid: Grid, do: str, reason: str) -> None:
    replies = ask(grid, order(do, nodes=[11]))

    assert list(reasons(replies)) == [11]
    assert (reasons(replies)[11] or "").startswith(reason)


def test_a_node_that_is_not_there_fails_alone(grid: Grid) -> None:
    replies = list(grid.send_and_receive(to(order(), [1, NUM_NODES + 1, 2])))

    assert reasons(replies) == {33: "node: no node 33, this simulation has 1 to 32"}
    assert [reply.has_content() for reply in replies] == [True, False, True]


def test_pushed_messages_are_answered_when_pulled(grid: Grid) -> None:
    ids = list(grid.push_messages(to(order(), [5, 6])))

    assert seen(list(grid.pull_messages([*ids, "unknown"])), "node") == [5, 6]
    assert list(grid.pull_messages(ids)) == []


def test_create_message_writes_as_the_server(grid: Grid) -> None:
    message = grid.create_message(order(), "train", 3, "7")

    assert (message.metadata.run_id, message.metadata.src_node_id) == (RUN_ID, SERVER_NODE_ID)
    assert (message.metadata.dst_node_id, message.metadata.group_id) == (3, "7")
    assert grid.run.run_id == RUN_ID


def test_a_slow_client_fails_after_the_fact_without_workers(local: Grid) -> None:
    messages = to(order("sleep", nodes=[2], seconds=0.2), [1, 2, 3])

    replies = list(local.send_and_receive(messages, timeout=0.1))

    assert reasons(replies) == {2: "timeout: client took longer than 0.1 s"}


def test_a_stuck_client_is_cut_off_and_only_it_fails(pooled: tuple[Grid, list[str]]) -> None:
    workers, notes = pooled
    notes.clear()
    messages = to(order("sleep", nodes=[7], seconds=600.0), list(workers.get_node_ids()))

    replies = list(workers.send_and_receive(messages, timeout=1.0))

    assert reasons(replies) == {7: "timeout: client took longer than 1 s"}
    assert [reply.metadata.src_node_id for reply in replies] == list(range(1, NUM_NODES + 1))
    assert "a worker took longer than 1 s at client 6 and was replaced" in notes


def test_slow_clients_under_the_limit_are_not_cut_off(pooled: tuple[Grid, list[str]]) -> None:
    """Four clients of 0.6 s share a chunk; together they pass the limit of 2 s, none does alone."""
    workers, _ = pooled
    messages = to(order("sleep", nodes=[1, 2, 3, 4], seconds=0.6), list(workers.get_node_ids()))

    assert reasons(list(workers.send_and_receive(messages, timeout=2.0))) == {}


def test_a_client_that_kills_its_worker_twice_fails_alone(pooled: tuple[Grid, list[str]]) -> None:
    workers, notes = pooled
    notes.clear()

    replies = ask(workers, order("die", nodes=[12]))

    assert reasons(replies) == {12: "worker: the process died while the client ran"}
    assert len([note for note in notes if note.startswith("a worker died")]) == 2
    assert reasons(ask(workers, order())) == {}


def test_what_a_worker_died_over_waits_for_a_lane_of_its_own() -> None:
    """Five messages in a worker's hands when it died: none of them goes out behind or before another."""
    batch = Batch(tasks([1, 2, 3, 4, 5]), num_workers=1)
    span = batch.next()
    assert span is not None
    batch.again_one_by_one(Span(span.start, span.stop), strikes=1)
    assert batch.next(suspects=False) is None
    assert batch.next(suspects=True) == Span(0, 1, 1)


def test_a_single_worker_comes_back_from_everything(cluster: None) -> None:
    with open_grid(config(1), APP, 9, 60.0) as grid:
        messages = to(order("die", nodes=[2]), [1, 2, 3]) + to(order("sleep", [5], 600.0), [4, 5, 6])
        replies = list(grid.send_and_receive(messages, timeout=1.0))

    assert reasons(replies) == {
        2: "worker: the process died while the client ran",
        5: "timeout: client took longer than 1 s",
    }


def test_a_client_a_little_over_the_limit_fails_whatever_the_chunk(grid: Grid) -> None:
    messages = to(order("sleep", nodes=[9], seconds=0.4), list(grid.get_node_ids()))

    replies = list(grid.send_and_receive(messages, timeout=0.3))

    assert reasons(replies) == {9: "timeout: client took longer than 0.3 s"}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_stock_fedavg_runs_on_the_grid(cluster: None, num_workers: int) -> None:
    """Nodes 1 to 4 return their ids, with equal weights: the mean is 10 / 4 = 2.5."""
    with open_grid(config(num_workers), "simulated_app:averaged", 4, 60.0) as grid:
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=4)
        start = ArrayRecord({"w": Array(np.zeros(1))})
        result = strategy.start(grid, start, num_rounds=1)

    assert result.arrays["w"].numpy() == [2.5]


def test_a_reader_that_goes_away_leaves_the_grid_usable(pooled: tuple[Grid, list[str]]) -> None:
    workers, _ = pooled
    stream = iter(workers.send_and_receive(to(order("sleep", [1, 2, 3], 30.0), [4, 1, 2, 3])))
    assert next(stream).metadata.src_node_id == 4
    stream.close()

    assert seen(ask(workers, order()), "node") == list(range(1, NUM_NODES + 1))


# Cohorts


def cohorts(content: RecordDict, *sizes: int) -> list[Cohort]:
    nodes = iter(range(1, NUM_NODES + 1))
    return [Cohort(content, tuple(next(nodes) for _ in range(size))) for size in sizes]


def test_a_cohort_is_answered_whole_and_in_order(grid: SimulatedGrid) -> None:
    """The app answers with the partition ids of the nodes that it is called with."""
    sizes = [3, 1, 7, 2, 2, 9, 1, 1, 5]
    answers = list(grid.ask_together(cohorts(order(), *sizes)))
    assert [len(one.partitions) for one in answers] == sizes
    assert [partition for one in answers for partition in one.partitions] == list(range(31))


def test_what_a_cohorts_app_does_not_foresee_is_lost_for_that_cohort_alone(grid: SimulatedGrid) -> None:
    one, other, last = grid.ask_together(cohorts(order("raise", nodes=[4]), 2, 4, 2))
    assert other == Lost("data: ShardError: labels are missing")
    assert (one.partitions, last.partitions) == ([0, 1], [6, 7])


def test_a_cohort_that_kills_its_worker_twice_is_lost_alone(pooled: tuple[SimulatedGrid, list[str]]) -> None:
    workers, notes = pooled
    notes.clear()
    one, other, last = workers.ask_together(cohorts(order("die", nodes=[4]), 2, 4, 2))
    assert other == Lost("worker: the process died while the client ran")
    assert (one.partitions, last.partitions) == ([0, 1], [6, 7])
    assert "a worker died at 4 of the clients 2 to 5 and was replaced" in notes


@pytest.mark.skipif(not AVAILABLE, reason="workers are Ray's here")
def test_a_worker_that_dies_as_it_packs_an_answer_costs_nobody_else_theirs() -> None:
    """Whoever is next in its hands is not held to have had a part in it."""
    with open_nursery(APP, 1) as nursery, acting_as(SERVER_NODE_ID):
        pool = Pool(ProcessCrew(nursery, (APP, "", NUM_NODES, 1)), 1, print, largest_chunk=1)
        asked = [MessageTask(message) for message in to(order("die packing", nodes=[1]), [1, 2, 3, 4])]
        replies = [answer.reply for answer in pool.run(asked, 60.0)]
        pool.close()
    assert reasons(replies) == {1: "worker: the process died while the client ran"}


def test_a_cohort_may_take_as_long_as_each_of_its_clients_may(
    pooled: tuple[SimulatedGrid, list[str]],
) -> None:
    """Four clients may take 0.4 s each, and a slice of a second more: 2 s are enough, 600 s are not."""
    workers, _ = pooled
    asked = cohorts(order("sleep", nodes=[3, 5], seconds=2.0), 2, 4, 2)
    assert [type(one) is Lost for one in workers.ask_together(asked, timeout=0.4)] == [False, False, False]
    asked = cohorts(order("sleep", nodes=[3], seconds=600.0), 2, 4, 2)
    one, other, last = workers.ask_together(asked, timeout=0.1)
    assert other == Lost("timeout: client took longer than 0.1 s")
    assert (one.partitions, last.partitions) == ([0, 1], [6, 7])


def test_cohorts_share_a_payload_that_is_stored_once(
    workers: SimulatedGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    stored: list[object] = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda value: (stored.append(value), put(value))[1])
    content = order()
    assert len(list(workers.ask_together(cohorts(content, 3, 3, 3)))) == 3
    assert [id(value) for value in stored] == [id(content)]


def test_a_cohorts_app_that_cannot_be_called_is_refused() -> None:
    with (
        pytest.raises(FedhpError, match="'simulated_app:NO_APP' must name a function, found a int"),
        open_grid(config(0), APP, 1, 60.0, cohort_app="simulated_app:NO_APP"),
    ):
        pass


def test_large_replies_do_not_change_the_order_of_small_ones() -> None:
    """A worker that hands back 1 of the 4 messages of a span leaves 3, which go out first again."""
    batch = Batch(tasks(range(1, 33)), num_workers=4)  # 32 // (4 * 2) = 4 messages, then 28 // 8 = 3
    first, second = batch.next(), batch.next()
    assert (first, second) == (Span(0, 4), Span(4, 7))

    done, rest = Span(0, 4).split(1)
    batch.finish(done, "answers")
    batch.again(rest)

    assert batch.next() == Span(1, 4)
    assert batch.ready() == (Span(0, 1), "answers")
    assert batch.ready() is None


def test_nobody_runs_too_far_ahead_of_the_reader() -> None:
    """600 messages, 2 workers: spans of 600 // 4, at most 64; 4 may be out; reading lets one more go."""
    batch = Batch(tasks(range(1, 601)), num_workers=2)
    spans = [batch.next() for _ in range(5)]
    assert spans == [Span(0, 64), Span(64, 128), Span(128, 192), Span(192, 256), None]

    batch.read(None)
    assert batch.next() == Span(256, 320)


@pytest.mark.parametrize(("message_bytes", "chunk"), [(0, 64), (40_000, 64), (2**20, 8), (2**24, 1)])
def test_a_worker_gets_no_more_than_it_answers_in_a_slice(message_bytes: int, chunk: int) -> None:
    """Slices end at 8 MiB; beyond it, the answers of who runs ahead would pile up in Ray's store."""
    from fedhp.simulation.pool import largest_chunk

    assert largest_chunk(message_bytes) == chunk


def test_chunks_of_large_messages_bound_what_waits_for_the_reader() -> None:
    """600 messages, 2 workers, 8 a chunk: 2 chunks per worker are 32 messages ahead, not 256."""
    batch = Batch(tasks(range(1, 601)), 2, largest_chunk=8)
    spans = [batch.next() for _ in range(5)]
    assert spans == [Span(0, 8), Span(8, 16), Span(16, 24), Span(24, 32), None]


def test_spans_shrink_so_that_the_load_levels() -> None:
    """20 messages, 2 workers: 20 // 4 = 5, 15 // 4 = 3, 12 // 4 = 3, 9 // 4 = 2, 7 // 4 = 1, and so on."""
    batch = Batch(tasks(range(1, 21)), num_workers=2)
    sizes = [span.num_tasks for span in iter(batch.next, None)]
    assert sizes == [5, 3, 3, 2, 1, 1, 1, 1, 1, 1, 1]


def tasks(nodes: Sequence[int]) -> list[MessageTask]:
    with acting_as(SERVER_NODE_ID):
        return [MessageTask(message) for message in to(order(), nodes)]


def test_a_gpu_is_seen_by_nobody_who_reserves_none(processes: Grid) -> None:
    assert set(seen(ask(processes, order()), "gpus-are-hidden")) == {1}


class FailingCrew:
    """Starts workers, by number, up to the one that fails."""

    def __init__(self, last: int, ready: bool = True) -> None:
        self.last, self.ready = last, ready
        self.there: list[int] = []

    def start(self) -> int:
        if len(self.there) == self.last:
            raise FedhpError("no room")
        self.there.append(len(self.there))
        return self.there[-1]

    def await_ready(self, workers: Sequence[int]) -> None:
        if not self.ready:
            raise FedhpError("no app")

    def end(self, worker: int) -> None:
        self.there.remove(worker)


@pytest.mark.parametrize(("crew", "said"), [(FailingCrew(2), "room"), (FailingCrew(3, False), "app")])
def test_workers_that_do_not_all_start_are_ended(crew: FailingCrew, said: str) -> None:
    with pytest.raises(FedhpError, match=f"no {said}"):
        Workers(crew, 3)  # type: ignore[arg-type]
    assert crew.there == []


class ScriptedCrew(FailingCrew):
    """Has every job done in the same time, and counts how many chunks a worker has in hand at most."""

    def __init__(self, seconds: float) -> None:
        super().__init__(last=2)
        self.seconds, self.most = seconds, 0
        self.hands: dict[int, int] = {0: 0, 1: 0}

    def put(self, content: RecordDict) -> RecordDict:
        return content

    def send(self, worker: int, jobs: list[Job], *_: object) -> tuple[tuple[int, int], list[int]]:
        self.hands[worker] += 1
        self.most = max(self.most, self.hands[worker])
        return (worker, len(jobs)), [worker] * len(jobs)

    def wait(self, reports: Sequence[tuple[int, int]], seconds: float) -> Sequence[tuple[int, int]]:
        return reports

    def get(self, report: tuple[int, int]) -> Report:
        self.hands[report[0]] -= 1
        return Report(report[1], self.seconds)


@pytest.mark.parametrize(("seconds", "most"), [(0.001, 2), (0.1, 1)])
def test_only_quick_work_is_handed_on_ahead(seconds: float, most: int) -> None:
    """What takes long is for whoever is free first: a worker that held it already would be waited for."""
    crew = ScriptedCrew(seconds)
    answers = list(Pool(crew, 2, print).run(tasks(range(1, 33)), 60.0))  # type: ignore[arg-type]
    assert (len(answers), crew.most) == (32, most)


@pytest.mark.skipif(not AVAILABLE, reason="workers are Ray's here")
def test_where_the_process_that_starts_workers_is_gone_a_worker_that_dies_ends_the_run() -> None:
    """It is said once, whatever is to be ended after it."""
    with open_nursery(APP, 1) as nursery:
        workers = Workers(ProcessCrew(nursery, (APP, "", 1, 1)), 1)
        nursery._process.kill()
        nursery._process.wait()
        with pytest.raises(FedhpError, match="the process that starts workers is gone"):
            workers.replace(workers.lanes[0])
        workers.close()


@pytest.mark.skipif(not AVAILABLE, reason="workers are Ray's here")
def test_a_line_on_which_nothing_moves_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is stopped, as one is whose client lets no other thread run: it takes nothing in."""
    monkeypatch.setattr("fedhp.simulation.nursery._PATIENCE_SECONDS", 0.2)
    with open_nursery(APP, 1) as nursery:
        workers = Workers(ProcessCrew(nursery, (APP, "", 1, 1)), 1)
        process = workers.lanes[0].worker.process
        os.kill(process, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            workers.lanes[0].worker.line.send(bytes(2**24))
        workers.close()
        assert not nursery._workers


def test_workers_keep_to_their_threads(pooled: tuple[Grid, list[str]]) -> None:
    workers, _ = pooled
    assert set(seen(ask(workers, order()), "threads")) == {1}


def test_torch_threads_are_set_for_the_life_of_a_local_grid() -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    with open_grid(SimulationConfig(num_workers=0, threads_per_worker=3), APP, 1, 1.0):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before


def test_flower_takes_the_identity_that_we_set() -> None:
    """Contract: TaskIdentity is internal to Flower; this fails when a new version moves it."""
    with acting_as(5):
        metadata = Message(RecordDict(), 9, "query").metadata
        with acting_as(6):
            inner = Message(RecordDict(), 9, "query").metadata
        again = Message(RecordDict(), 9, "query").metadata
    assert (metadata.run_id, metadata.src_node_id, metadata.dst_node_id) == (RUN_ID, 5, 9)
    assert (inner.src_node_id, again.src_node_id) == (6, 5)


def test_no_identity_is_left_behind() -> None:
    code = (
        "from flwr.app import Message, RecordDict\n"
        "from fedhp.simulation.identity import acting_as\n"
        "with acting_as(1): pass\n"
        "Message(RecordDict(), 1, 'train')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, env=_environment())
    assert ended.returncode == 1
    assert b"TaskIdentity.run_id is not set" in ended.stderr


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("simulated_app", "reads 'module:attribute'"),
        ("nowhere.client_app:app", "neither 'nowhere.client_app' nor 'fedhp.nowhere.client_app'"),
        ("simulated_app:missing", "'simulated_app' has no 'missing'"),
        ("simulated_app:train", "found a function"),
    ],
)
def test_an_app_that_is_not_there_is_refused(reference: str, reason: str) -> None:
    with pytest.raises(FedhpError, match=re.escape(reason)):
        load_app(reference)


def test_a_module_that_misses_its_own_import_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_app.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load_app("broken_app:app")


def test_an_installed_app_is_found_inside_fedhp() -> None:
    """In a wheel ``bench`` stands where ``clients`` does; it is no top-level module either."""
    from fedhp.bench.engine import app as engine_app

    assert load_app("bench.engine:app") is engine_app


def test_a_missing_app_is_named_by_the_workers_too(cluster: None) -> None:
    with pytest.raises(FedhpError, match="neither 'nowhere' nor"):  # noqa: SIM117
        with open_grid(config(1), "nowhere:app", 1, 60.0):
            pass


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"num_workers=0.*'fedhp\[sim\]'"):  # noqa: SIM117
        with open_grid(config(2, "local"), APP, 1, 60.0):
            pass


@pytest.mark.parametrize(
    "num_workers",
    [0, pytest.param(1, marks=pytest.mark.skipif(not AVAILABLE, reason="workers are Ray's here"))],
)
def test_where_nobody_asks_for_ray_it_is_not_imported(num_workers: int) -> None:
    code = (
        "import sys\n"
        "from fedhp.scenario.schema import SimulationConfig\n"
        "from fedhp.simulation.opening import open_grid\n"
        f"with open_grid(SimulationConfig(num_workers={num_workers}), '{APP}', 2, 1.0): pass\n"
        "assert 'ray' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=_environment(), cwd="/")


TWO_NODES = """
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message: Message, context: Context) -> Message:
    import ray
    where = ConfigRecord({"where": ray.get_runtime_context().get_node_id()})
    return Message(RecordDict({"where": where}), reply_to=message)

if __name__ == "__main__":
    from ray.cluster_utils import Cluster
    from fedhp.scenario.schema import SimulationConfig
    from fedhp.simulation.opening import open_grid

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    try:
        config = SimulationConfig(num_workers=-1, address=cluster.address)
        with open_grid(config, "two_nodes:app", 20, 60.0) as grid:
            content = RecordDict({"c": ConfigRecord()})
            nodes = grid.get_node_ids()
            replies = list(grid.send_and_receive([Message(content, n, "train") for n in nodes]))
        assert [r.metadata.src_node_id for r in replies] == list(range(1, 21))
        print("nodes used:", len({r.content["where"]["where"] for r in replies}))
    finally:
        cluster.shutdown()
"""


def test_an_existing_cluster_of_two_nodes_is_used_whole(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    (tmp_path / "two_nodes.py").write_text(TWO_NODES)
    ended = subprocess.run(
        [sys.executable, "two_nodes.py"],
        cwd=tmp_path,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert "nodes used: 2" in ended.stdout


INTERRUPTED = f"""
import sys
import psutil
from flwr.app import ConfigRecord, Message, RecordDict
from fedhp.scenario.schema import SimulationConfig
from fedhp.simulation.opening import open_grid

order = ConfigRecord({{"do": "sleep", "nodes": [1, 2], "seconds": 600.0}})
with open_grid(SimulationConfig(num_workers=2, address=sys.argv[1]), "{APP}", 2, 600.0) as grid:
    replies = grid.send_and_receive(
        [Message(RecordDict({{"order": order}}), node, "train") for node in (1, 2)]
    )
    print(*(p.pid for p in psutil.Process().children(recursive=True)), flush=True)
    list(replies)
"""


def test_a_signal_waits_until_ray_has_started_and_keeps_its_handler() -> None:
    order = []
    before = signal.signal(signal.SIGTERM, lambda number, _: order.append(number))
    try:
        with keeping_handlers(hold=True):
            signal.raise_signal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, lambda *_: None)  # as Ray does
            order.append("started")
        assert order == ["started", signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert order[2:] == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_refused(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that was just free. Ray itself, which would try it for 100 seconds, is not asked."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.setattr(ray, "init", pytest.fail)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{free.getsockname()[1]}"
    from fedhp.simulation.cluster import join_ray

    expected = f"no Ray cluster .* '{address}': .*refused; start one by 'ray start"
    with pytest.raises(FedhpError, match=expected):
        join_ray(config(1, address), 1, 0)


def test_a_signal_need_not_wait_until_a_ray_elsewhere_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while Ray connects and has taken SIGTERM for itself, which is ours again afterwards."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from fedhp.simulation.cluster import join_ray

    def connect(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the signal waited")

    def ours(*_: object) -> None: ...

    monkeypatch.setattr(ray, "init", connect)
    before = signal.signal(signal.SIGTERM, ours)
    try:
        with pytest.raises(KeyboardInterrupt):
            join_ray(config(1, "auto"), 1, 0)
        assert signal.getsignal(signal.SIGTERM) == ours
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("how", "address"), [("SIGINT", "local"), ("SIGINT", ""), ("SIGKILL", "")])
def test_who_is_interrupted_or_killed_leaves_no_process_behind(
    how: str, address: str, tmp_path: Path
) -> None:
    if address or not AVAILABLE:
        pytest.importorskip("ray", reason="Ray is not installed")
    psutil = pytest.importorskip("psutil")
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, address],
        cwd=tmp_path,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    started = [int(pid) for pid in process.stdout.readline().split()]
    process.send_signal(signal.Signals[how])
    _, errors = process.communicate(timeout=60)

    assert len(started) >= 3, errors  # two workers and what started them, at the least
    assert how == "SIGKILL" or errors.rstrip().endswith("KeyboardInterrupt")
    left = [psutil.Process(pid) for pid in started if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(left, timeout=10)
    assert alive == []


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    return {**os.environ, "PYTHONPATH": path, "FLWR_TELEMETRY_ENABLED": "0"}
