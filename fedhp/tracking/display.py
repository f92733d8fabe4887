"""The live display, drawn from a `Progress` for a terminal of a given size."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import ConsoleDimensions, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedhp.records.wording import budget as said_budget
from fedhp.records.wording import duration, percent
from fedhp.sizes import format_size
from fedhp.tracking.progress import Progress

_WIDE = 112
_LONGEST_NAME = 16
_COLOURS = {"running": "cyan", "finished": "green", "failed": "red", "interrupted": "yellow"}
_PARTIAL = " ▏▎▍▌▋▊▉"


def render(progress: Progress, size: ConsoleDimensions) -> RenderableType:
    """Draws the run; events are shown as far as the height allows."""
    classes = _class_table(progress, wide=size.width >= _WIDE)
    parts: list[RenderableType] = [_header(progress), Text(), _bar(progress)]
    parts += [_accuracy(progress), _model(progress), classes]
    # The frame takes 2 lines, what stands above the table 5, the table 4 beside its rows; and 1 the cursor.
    room = size.height - 12 - len(progress.plan.devices)
    if room > 0:
        parts += [_event(text) for text in progress.events[-room:]]
    colour = _COLOURS[progress.status]
    name = progress.plan.scenario.name
    title = Text.assemble((" fedhp ", f"bold {colour}"), (f"{name} ", "bold"))
    panel = Panel(
        Group(*parts),
        title=title,
        title_align="left",
        subtitle=Text(f" {progress.status} ", style=colour),
        subtitle_align="right",
        border_style=colour,
        box=box.ROUNDED,
        padding=(0, 1),
    )
    # The cursor waits on a line of its own: the ^C that a terminal echoes would wrap the last, and shift all.
    return Group(panel, Text()) if progress.status == "running" else panel


def _header(progress: Progress) -> Text:
    plan = progress.plan
    return Text.assemble(
        (plan.scenario.model.target or plan.scenario.model.name, "bold"),
        (" on ", "dim"),
        (f"{plan.scenario.data.name}", "bold"),
        (f" · {plan.params_full:,} parameters, ", "dim"),
        (f"{format_size(plan.training_bytes_full)} to train · ", "dim"),
        (f"{sum(plan.devices.values())} clients", "dim"),
        no_wrap=True,
        overflow="ellipsis",
    )


def _bar(progress: Progress) -> Table:
    rounds = progress.plan.scenario.rounds
    left = progress.seconds_left()
    row = Table.grid(padding=(0, 1), expand=True)
    for ratio in (None, 1, None):
        row.add_column(ratio=ratio, no_wrap=True)
    times = Text(duration(progress.elapsed()))
    if left is not None:
        times.append(f" · {duration(left)} left", style="dim")
    row.add_row(
        Text(f"round {progress.round}/{rounds}", style="bold"),
        ProgressBar(total=rounds, completed=progress.round, complete_style="cyan"),
        times,
    )
    return row


def _accuracy(progress: Progress) -> Text:
    if progress.last is None:
        return Text("evaluating the model before training …", style="dim")
    return Text.assemble(
        ("accuracy ", "dim"),
        (f"{percent(progress.last.accuracy):>6}", "bold green"),
        (f", best {percent(progress.best_accuracy)}  ", "dim"),
        (progress.accuracies.sparkline(), "green"),
        no_wrap=True,
    )


def _model(progress: Progress) -> Text:
    last = progress.last
    if last is None:
        return Text()
    return Text.assemble(
        ("model    ", "dim"),
        (f"{last.compression:5.2f}\N{MULTIPLICATION SIGN}", "bold magenta"),
        (" smaller: ", "dim"),
        f"{last.params:,}",
        (" parameters, ", "dim"),
        format_size(last.training_bytes),
        (" to train", "dim"),
        no_wrap=True,
        overflow="ellipsis",
    )


def _class_table(progress: Progress, wide: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0), pad_edge=False)
    longest = max(len(name) for name in progress.plan.devices)
    table.add_column(
        "class", no_wrap=True, overflow="ellipsis", ratio=1, min_width=min(longest, _LONGEST_NAME)
    )
    columns = ["clients", "budget", "predicted", "measured"] if wide else ["clients", "budget"]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("peak / budget", no_wrap=True)
    for name in ("batch", "accuracy", "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, clients in progress.plan.devices.items():
        seen = progress.classes.get(name)
        figures = seen.figures if seen else {}
        budget = progress.plan.budgets[name]
        cells = [Text(name, style="bold"), Text(str(clients)), Text(said_budget(budget))]
        if wide:
            cells += [_size(figures.get("memory_predicted_bytes"))]
            cells += [_size(figures.get("memory_measured_bytes"))]
        cells += [_gauge(figures.get("memory_measured_bytes"), budget, 20 if wide else 12)]
        cells += [_batch(figures), Text(percent(figures.get("accuracy")))]
        cells += [_failed(progress.failures.get(name, 0))]
        table.add_row(*cells)
    return table


def _size(num_bytes: int | None) -> Text:
    return Text("-" if num_bytes is None else format_size(num_bytes))


def _gauge(peak: int | None, budget: int | None, width: int) -> Text:
    """Draws a peak as a bar against its budget, in eighths of a character."""
    if peak is None:
        return Text("-", style="dim")
    if budget is None:
        return Text(format_size(peak))
    share = peak / budget
    colour = "red" if share > 1 else "yellow" if share > 0.9 else "green"
    eighths = round(min(share, 1.0) * width * 8)
    bar = "█" * (eighths // 8) + (_PARTIAL[eighths % 8] if eighths % 8 else "")
    return Text.assemble((f"{bar:<{width}}", f"{colour} on grey23"), (f"{share:>5.0%}", colour))


def _batch(figures: Mapping[str, Any]) -> Text:
    low, high = figures.get("batch_size_first"), figures.get("batch_size_last")
    if low is None:
        return Text("-")
    return Text(f"{low}" if low == high else f"{low}-{high}")


def _failed(count: int) -> Text:
    return Text(str(count), style="red" if count else "dim")


def _event(text: str) -> Text:
    return Text(f"! {text}", style="yellow", no_wrap=True, overflow="ellipsis")
