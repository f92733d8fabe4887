"""Which of several models suits a fleet best: its devices are asked, before the first round.

A new network's running statistics are no samples' yet. So devices take those of each candidate, as they do of
any new model; what comes back makes the fleet's, with which they judge it: FedTiny's adaptive batch
normalisation selection (Huang et al. 2022, arXiv 2212.01977).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedhp.aggregation.fedtiny import least
from fedhp.aggregation.proportion import Proportion
from fedhp.aggregation.statistics_mean import statistics_mean
from fedhp.errors import FedhpError
from fedhp.federation import wire
from fedhp.federation.asking import Payloads, ask
from fedhp.federation.device import Device
from fedhp.federation.judging import JUDGE, unpack_judgement
from fedhp.federation.questions import content_of
from fedhp.federation.replies import Sent, in_order
from fedhp.federation.rules import Rules
from fedhp.federation.running_statistics import opened
from fedhp.model.state import ModelState
from fedhp.records.rows import ClientReport

_notes = logging.getLogger("fedhp.notes")


@dataclass
class Cost:
    """What being asked costs a device, in bytes: of messages down and up, and its measured peak of memory."""

    down: int = 0
    up: int = 0
    memory: int = 0

    def added(self, row: ClientReport) -> ClientReport:
        """Returns the device's row of a round with what this adds to it."""
        row = replace(row, bytes_down=row.bytes_down + self.down, bytes_up=row.bytes_up + self.up)
        if row.statistics is None:
            return row
        most = max(row.statistics.memory_measured_bytes, self.memory)
        return replace(row, statistics=replace(row.statistics, memory_measured_bytes=most))


class Selection:
    """Asks devices about candidates, one after another.

    Whoever fails once is asked no more, and counts for nothing: candidates are judged by the same devices.

    Args:
        rules: The strategy's.
        devices: Who is asked.
        grid: Where they are.
        timeout: Seconds to wait for each answer.

    Attributes:
        costs: By device's number, what it costs.
    """

    def __init__(self, rules: Rules, devices: Sequence[Device], grid: Grid, timeout: float) -> None:
        self._rules, self._grid, self._timeout = rules, grid, timeout
        self._examples = {one: rules.claims.held(one, one.profile.num_examples, 1.0) for one in devices}
        self._failures = list[str]()
        self.costs = {one.client: Cost() for one in devices}

    def chosen(self, candidates: Sequence[ModelState]) -> ModelState:
        """Returns the best candidate, with the fleet's running statistics; the first where nobody answers."""
        models, losses = list[ModelState](), dict[Device, list[float]]()
        for model in candidates:
            models.append(self._with_statistics(model))
            for device, loss in self._judged(models[-1]).items():
                losses.setdefault(device, []).append(loss)
        told = [device for device in self._examples if len(losses.get(device, ())) == len(models)]
        if self._failures:
            _notes.warning(
                "%d of %d devices do not say which weights suit them; %s",
                *(len(self.costs) - len(told), len(self.costs), self._failures[0]),
            )
        if not told:
            return candidates[0]
        factor = self._rules.scenario.server.max_times_median
        return models[least([losses[one] for one in told], [self._examples[one] for one in told], factor)]

    def _with_statistics(self, model: ModelState) -> ModelState:
        """Returns a model with the mean running statistics over the devices' examples."""
        rules, layout = self._rules, self._rules.layout
        old = {name: model.weights[name] for name in sorted(layout.buffers)}
        mean, examples, clients = statistics_mean(rules.robust, old), 0, 0
        answers = (opened(layout, model, *one) for one in self._answers(MessageType.EVALUATE, model))
        proportion = Proportion(rules.scenario.server.max_times_median)
        for one, flaw, times in proportion.judged(answers, lambda one: one.changes):
            device = one.sent.device
            if flaw or one.moments is None:
                self._fail(device, f"reply: {flaw}" if flaw else one.failure)
                continue
            self._count(device, one.num_bytes, one.moments.memory_measured_bytes)
            mean.add(one.moments.weights, rules.robust.shares(times)[0], self._examples[device])
            examples, clients = examples + self._examples[device], clients + 1
        return replace(model, weights={**model.weights, **mean.over(examples, clients)}) if clients else model

    def _judged(self, model: ModelState) -> Mapping[Device, float]:
        losses = dict[Device, float]()
        for sent, reply in list(self._answers(JUDGE, model)):
            try:
                if reply is None:
                    raise FedhpError("timeout: no reply arrived in time")
                content = content_of(reply)
                judgement = unpack_judgement(content)
            except FedhpError as error:
                self._fail(sent.device, str(error))
                continue
            self._count(sent.device, wire.update_bytes(content), judgement.memory_measured_bytes)
            losses[sent.device] = judgement.loss
        return losses

    def _answers(self, kind: str, model: ModelState) -> Iterator[tuple[Sent, Message | None]]:
        rules = self._rules
        payloads = Payloads(rules.brief, rules.layout, model, rules.server.round + 1)
        parts = ((device, model.structure) for device in self._examples)
        asked = ask(kind, payloads, parts, rules.scenario.server.timeout_seconds)
        for sent in asked.sent.values():
            self.costs[sent.device.client].down += sent.num_bytes
        replies = self._grid.send_and_receive(asked.messages, timeout=self._timeout)
        return in_order(asked.sent, replies)

    def _count(self, device: Device, num_bytes: int, memory: int) -> None:
        cost = self.costs[device.client]
        cost.up, cost.memory = cost.up + num_bytes, max(cost.memory, memory)

    def _fail(self, device: Device, why: str) -> None:
        self._failures.append(f"client {device.client}: {why}")
        del self._examples[device]
