"""What the terminal shows: progress of evaluations, and tables (rich). What models and users wrote is never markup."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


@contextmanager
def eval_progress(console: Console, label: str = "evaluating") -> Iterator[Callable[[int, int], None]]:
    """A callback (done, total) that moves a bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def percent(estimate: dict[str, float]) -> str:
    """A share and its 95 % interval, in percent."""
    return f"{100 * estimate['value']:.1f} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def short(number: int | float) -> str:
    """A count in at most five characters: 950, 9.5k, 1.34M."""
    for divisor, unit in ((1, ""), (1e3, "k"), (1e6, "M")):
        if number / divisor < 999.5:
            return f"{number / divisor:.3g}{unit}"
    return f"{number / 1e9:.3g}B"


def eval_table(records: Sequence[dict[str, Any]], title: str = "") -> Table:
    """One row per evaluation: pass@k in percent with 95 % intervals, distinct valid solutions, cost, latent use."""
    ks = [k for k in records[0]["pass@k"] if k in ("1", "10", "16", "100") or k == list(records[0]["pass@k"])[-1]]
    table = Table(title=escape(title) or None)
    splits = {record["split"] for record in records}
    for name in ("model", *(f"pass@{k} %" for k in ks), "distinct", "tokens", "time"):
        table.add_column(name)
    for record in records:
        distinct = record["distinct_valid"]
        table.add_row(
            Text(record["label"] if len(splits) == 1 else f"{record['label']}, {record['split']}"),
            *(percent(record["pass@k"][k]) for k in ks),
            f"{distinct['value']:.2f} [{distinct['low']:.2f}, {distinct['high']:.2f}]",
            short(record["tokens_processed"]),
            f"{record['wall_s']:.0f} s",
        )
    notes = [
        f"{record['label']}, pass@1 with latents "
        + ", ".join(f"{name} {percent(value)}" for name, value in record["latent_use"].items())
        for record in records
        if record["latent_use"]
    ]
    notes += [
        f"{record['label']}: counted as wrong without a verdict: {found['timed_out']:,} texts whose judging reached "
        f"its time limit, {found['failed']:,} where it failed"
        for record in records
        if any((found := record["not_judged"]).values())
    ]
    table.caption = escape("\n".join(notes)) or None
    return table


def texts_table(texts: Sequence[str]) -> Table:
    """One text per trajectory."""
    table = Table("trajectory", "answer")
    for i, text in enumerate(texts):
        table.add_row(str(i + 1), Text(text))
    return table


def frames_table(title: str, times: Sequence[float], texts: Sequence[Sequence[str]]) -> Table:
    """Blocks as text, one row per time; t = 1 is noise."""
    table = Table(title=escape(title))
    for name in ("t", *(f"block {k + 1}" for k in range(len(texts[0])))):
        table.add_column(name)
    for t, blocks in zip(times, texts, strict=True):
        table.add_row(f"{t:.2f}", *map(Text, blocks))
    return table
