"""Markdown tables of results, and how numbers are written."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ladi.report.data import SETTINGS, Estimate, Evaluation, read_evaluation, read_run
from ladi.report.differences import differences
from ladi.report.groups import by_seed, mean_estimate, setting

PASS_KS = (1, 4, 10, 16, 20, 32, 64, 100, 128)
"""Columns of the Markdown table, where an evaluation has them."""


def percent(estimate: Estimate | None) -> str:
    """A fraction as `55.0 [53.0, 57.0]`, in percent; `-` for none."""
    if estimate is None:
        return "-"
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def count(estimate: Estimate | None) -> str:
    """A mean count as `3.42 [3.31, 3.52]`; `-` for none."""
    if estimate is None:
        return "-"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def duration(seconds: float | None) -> str:
    """`12.3 s`, `4 min 05 s` or `1 h 02 min`; `-` for none."""
    if seconds is None:
        return "-"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def plain(value: object) -> str:
    """A setting as text; `-` for none."""
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def cell(text: str) -> str:
    """Text that cannot break out of a GitHub table cell."""
    text = " ".join(text.split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def code(text: str | None) -> str:
    """Text as inline code in a table cell; `-` for none."""
    return f"`{' '.join(text.split()).replace('`', chr(39)).replace('|', chr(92) + '|')}`" if text else "-"


def results_table(paths: Sequence[Path]) -> str:
    """A GitHub table, one row per evaluation, and below it what made each row; `paths` are run folders or eval/*.json.

    pass@k is in percent, `distinct` a mean count, each as `value [low, high]`. Sampler settings have a column where
    they differ between rows.
    """
    evaluations = read_evaluations(paths)
    varied = [name for name in SETTINGS if len({setting(e, name) for e in evaluations} - {None}) > 1]
    ks = [k for k in PASS_KS if any(k in e.pass_at for e in evaluations)]
    titles = ["model", "split", "questions x samples", *(name.replace("num_", "").replace("_", " ") for name in varied)]
    titles += [*(f"pass@{k} (%)" for k in ks), "distinct"]
    rows = [titles, ["---"] * len(titles), *(result_row(e, varied, ks) for e in evaluations)]
    return markdown(rows) + "\n\n" + sources(evaluations)


def seeds_table(paths: Sequence[Path]) -> str:
    """As `results_table`, but evaluations that differ in their seed alone share a row.

    A cell is `value [low, high]`, each the mean over seeds of the evaluations' own, and behind it, for several seeds,
    `(lowest to highest)` value.
    """
    evaluations = read_evaluations(paths)
    ks = [k for k in PASS_KS if any(k in e.pass_at for e in evaluations)]
    titles = ["model", "split", "questions x samples", "seeds", *(f"pass@{k} (%)" for k in ks), "distinct"]
    rows = [titles, ["---"] * len(titles)]
    for members in by_seed(evaluations):
        first = members[0]
        row = [cell(first.label), cell(f"{first.task} {first.split}"), f"{first.num_questions} x {first.num_samples}"]
        row.append(", ".join(plain(e.seed) for e in members))
        row += [spread([e.pass_at.get(k) for e in members], percent, 100.0, 1) for k in ks]
        rows.append([*row, spread([e.distinct_valid for e in members], count, 1.0, 2)])
    return markdown(rows) + "\n\n" + sources(evaluations)


def differences_table(paths: Sequence[Path], against: str) -> str:
    """A GitHub table of every other model's differences from the one labelled `against`, on the same questions: of
    pass@k in points, of distinct solutions as a mean count, each as `value [low, high]`.

    Raises:
        ValueError: as `differences`.
    """
    found = differences(read_evaluations(paths), against)
    ks = [k for k in PASS_KS if any(k in d.pass_at for d in found)]
    titles = [f"less {cell(against)}", *(f"pass@{k} (points)" for k in ks), "distinct"]
    rows = [titles, ["---"] * len(titles)]
    for d in found:
        cells = [signed(d.pass_at.get(k), 100.0, 1) for k in ks]
        rows.append([cell(d.label), *cells, signed(d.num_distinct, 1.0, 2) if d.num_distinct else "-"])
    return markdown(rows)


def signed(estimate: Estimate | None, scale: float, digits: int) -> str:
    """A difference as `+1.5 [-0.3, +3.2]`; `-` for none."""
    if estimate is None:
        return "-"
    value, low, high = (f"{scale * x:+.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def spread(estimates: Sequence[Estimate | None], write: Callable[[Estimate], str], scale: float, digits: int) -> str:
    """Estimates of several seeds as `57.4 [55.0, 59.8] (56.1 to 58.8)`; `-` where one is missing."""
    found = [estimate for estimate in estimates if estimate is not None]
    if len(found) < len(estimates):
        return "-"
    written = write(mean_estimate(found))
    values = [scale * e.value for e in found]
    return written if len(found) == 1 else f"{written} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def read_evaluations(paths: Sequence[Path]) -> list[Evaluation]:
    """Those of run folders and eval/*.json files, in order."""
    return [
        evaluation
        for path in paths
        for evaluation in ([read_evaluation(path)] if path.is_file() else read_run(path, path.name).evaluations)
    ]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first two being titles and rules, as a GitHub table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def sources(evaluations: Sequence[Evaluation]) -> str:
    """What made each row, folded away."""
    lines = "\n".join(source_line(e) for e in evaluations)
    summary = "<summary>Command, seed, commit and machine of each row</summary>"
    return f"<details>{summary}\n\n{lines}\n\n</details>"


def result_row(evaluation: Evaluation, varied: Sequence[str], ks: Sequence[int]) -> list[str]:
    return [
        cell(evaluation.label),
        cell(f"{evaluation.task} {evaluation.split}"),
        f"{evaluation.num_questions} x {evaluation.num_samples}",
        *(plain(setting(evaluation, name)) for name in varied),
        *(percent(evaluation.pass_at.get(k)) for k in ks),
        count(evaluation.distinct_valid),
    ]


def source_line(evaluation: Evaluation) -> str:
    """What made a row, as an item of a list."""
    parts = [f"seed {plain(evaluation.seed)}", f"commit {code(evaluation.commit)}", cell(plain(evaluation.machine))]
    if evaluation.not_judged:
        parts.append(f"{evaluation.not_judged:,} texts counted as wrong without a verdict")
    return f"- {cell(evaluation.label)}: {code(evaluation.command)}, {', '.join(parts)}, {duration(evaluation.wall_s)}"


def numbers_table(result: Mapping[str, Any], source: Mapping[str, str]) -> str:
    """A GitHub table of measured numbers, `{name: value}` or `{row: {name: value}}`, and below it what made them; `-`
    where a row has no such number.
    """
    nested = {key: row if isinstance(row, Mapping) else {"value": row} for key, row in result.items()}
    names = list(dict.fromkeys(name for row in nested.values() for name in row))
    rows = [["", *(cell(name.replace("_", " ")) for name in names)], ["---"] * (len(names) + 1)]
    for key, row in nested.items():
        numbers = ["-" if name not in row else f"{row[name]:,.{'0f' if row[name] >= 1000 else '3g'}}" for name in names]
        rows.append([cell(key.replace("_", " ")), *numbers])
    return f"{markdown(rows)}\n\n{code(source['command'])}, commit {code(source['commit'])}, {cell(source['machine'])}"


def update_markdown(path: Path, marker: str, table: str) -> None:
    """Replace what stands between `<!-- results:MARKER -->` and `<!-- /results:MARKER -->` in a file.

    Raises:
        ValueError: if the pair of markers is not there exactly once.
    """
    start, end = f"<!-- results:{marker} -->", f"<!-- /results:{marker} -->"
    text = path.read_text(encoding="utf-8")
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"{path}: need exactly one '{start}' and after it one '{end}'")
    pattern = re.escape(start) + ".*" + re.escape(end)
    # A function, because a backslash in a replacement string would be read as a group reference.
    text = re.sub(pattern, lambda _: f"{start}\n\n{table}\n\n{end}", text, flags=re.DOTALL)
    path.write_text(text, encoding="utf-8")
