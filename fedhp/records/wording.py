"""The sentences in which a run is told, the same in the event log, the terminal and plain logs."""

import re

from fedhp.bounds import one_line
from fedhp.records.plan import RunPlan
from fedhp.records.rows import ClientReport, RoundReport
from fedhp.records.summary import Summary
from fedhp.sizes import format_size


def percent(share: float | None) -> str:
    """Writes a share such as 0.874 as ``87.4%``; a dash where there is none."""
    return "-" if share is None else f"{100 * share:.1f}%"


def duration(seconds: float) -> str:
    """Writes a duration as ``h:mm:ss``."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def rounds(number: int) -> str:
    """Writes a number of rounds, such as ``1 round``."""
    return f"{number} round" if number == 1 else f"{number} rounds"


def devices(plan: RunPlan) -> str:
    """Says how many clients of which classes there are, and with which budgets."""
    return ", ".join(f"{n} {name} ({budget(plan.budgets[name])})" for name, n in plan.devices.items())


def budget(num_bytes: int | None) -> str:
    """Writes a budget."""
    return "no limit" if num_bytes is None else format_size(num_bytes)


def start(plan: RunPlan) -> str:
    """Tells the start of a run."""
    scenario = plan.scenario
    return (
        f"start: scenario {scenario.name}, seed {scenario.seed}, {rounds(scenario.rounds)}; "
        f"{devices(plan)}; full model {scenario.model.said} of {plan.params_full} parameters, "
        f"{format_size(plan.training_bytes_full)} to train"
    )


_ACCURACY = ": accuracy "
_ROUND = re.compile(rf"round (\d+){_ACCURACY}")


def round_line(report: RoundReport) -> str:
    """Tells a round."""
    return (
        f"round {report.round}{_ACCURACY}{percent(report.accuracy)}, loss {report.loss:.4f}, "
        f"compression {report.compression:.2f}, {report.params} parameters, "
        f"replies {len(report.clients) - len(report.failures)}, failures {len(report.failures)}"
    )


def round_told(line: str) -> int | None:
    """Returns the round that a `round_line` tells of; None of any other line."""
    told = _ROUND.match(line)
    return int(told[1]) if told else None


def failure(row: ClientReport) -> str:
    """Tells a client's failure: round, client, stage and cause."""
    stage, colon, cause = row.failure.partition(": ")
    where = f" in {stage}: {cause}" if colon else f": {row.failure}"
    return one_line(f"round {row.round}: client {row.client} ({row.device_class}) failed{where}")


JOINED, BACK, LEFT = "has joined", "is back", "has left"
_GONE_ON, _LEFT_OUT, _GIVES_WAY = "goes on ", " is left out: ", " gives way to node "
_ATTENDANCE = re.compile(
    rf"{_GONE_ON}.*|(client|node) \d+.*({_LEFT_OUT}.*|{_GIVES_WAY}.*| {JOINED}| {BACK}| {LEFT})"
)


def left_out(who: object, why: object) -> str:
    """Tells that a device, or a node that may be one, does not take part."""
    return f"{who}{_LEFT_OUT}{why}"


def gives_way(who: object, node: int, to: int) -> str:
    """Tells that a device of one node had the number of another, which is back."""
    return f"{who} of node {node}{_GIVES_WAY}{to}, which was it before"


def goes_on(told: int, rounds: int) -> str:
    """Tells that a run goes on which was cut short, of which so many rounds were held, round 0 included."""
    if told <= rounds:
        return f"{_GONE_ON}at round {told} of {rounds}"
    return f"{_GONE_ON}to its end: all {rounds} rounds are held"


def is_attendance(note: str) -> bool:
    """Says whether a note tells of a device that came, went or was left out, or of a run that went on."""
    return _ATTENDANCE.fullmatch(note) is not None


def finish(summary: Summary) -> str:
    """Tells the end of a run."""
    received, own = summary.local_accuracy_global, summary.local_accuracy_personal
    local = f"on the clients' own samples {percent(received)} as received and {percent(own)} as trained, "
    return (
        f"{summary.status}: {rounds(summary.rounds)} in {duration(summary.seconds)}, "
        f"accuracy {percent(summary.final_accuracy)} (best {percent(summary.best_accuracy)}), "
        f"{'' if received is None else local}"
        f"compression {summary.compression:.2f}, {summary.params_final} parameters, "
        f"failures {summary.failures}, budget violations {summary.budget_violations}"
    )
