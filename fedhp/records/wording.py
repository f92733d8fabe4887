"""The sentences in which a run is told, the same in the event log, the terminal and plain logs."""

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


def round_line(report: RoundReport) -> str:
    """Tells a round."""
    return (
        f"round {report.round}: accuracy {percent(report.accuracy)}, loss {report.loss:.4f}, "
        f"compression {report.compression:.2f}, {report.params} parameters, "
        f"replies {len(report.clients) - len(report.failures)}, failures {len(report.failures)}"
    )


def failure(row: ClientReport) -> str:
    """Tells a client's failure: round, client, stage and cause."""
    stage, colon, cause = row.failure.partition(": ")
    where = f" in {stage}: {cause}" if colon else f": {row.failure}"
    return one_line(f"round {row.round}: client {row.client} ({row.device_class}) failed{where}")


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
