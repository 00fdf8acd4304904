"""One self-contained HTML file from run folders: no scripts, no external resources."""

import html
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from ladi.report import plots, sections
from ladi.report.data import read_runs
from ladi.report.groups import by_task, curves, numbered, widened

STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
COLORS = STYLE[: STYLE.index("* {")]
"""The variables of the style sheet alone, for light and dark."""

Shown = Literal["pass_at_k", "coverage"]
"""What `write_figure` can draw."""


def build_report(run_dirs: Sequence[Path], out_path: Path, title: str = "ladi report") -> Path:
    """Write one HTML file about the runs and return its path; sections without data are left out.

    Raises:
        ValueError: for a missing folder, or a malformed file, with the file and the key.
    """
    runs = read_runs(run_dirs)
    evaluations = [evaluation for run in runs for evaluation in run.evaluations]
    index_of = numbered(evaluations)
    found = [
        sections.summary_section(evaluations, index_of),
        sections.pass_section(evaluations, index_of),
        sections.distinct_section(evaluations, index_of),
        sections.sweep_section(evaluations, index_of),
        sections.latent_section(evaluations, index_of),
        sections.methods_section(runs),
        sections.rl_section(runs, evaluations, index_of),
        sections.loss_section(runs),
        sections.reconstruction_section(runs),
        sections.pca_section(runs),
        sections.denoising_section(runs),
        sections.provenance_section(runs, evaluations),
    ]
    present = [section for section in found if section is not None]
    contents = "".join(f"<a href='#{s.anchor}'>{html.escape(s.title)}</a>" for s in present)
    names = ", ".join(f"<code>{html.escape(run.name)}</code>" for run in runs)
    page = (
        f"<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{html.escape(title)}</h1><p>Runs: {names}</p><nav>{contents}</nav></header>\n"
        f"<main>\n{''.join(section.html() for section in present)}</main>\n</body>\n</html>\n"
    )
    out_path.parent.mkdir(parents=True, exist_ok=True)
    out_path.write_text(page, encoding="utf-8")
    return out_path


def write_figure(run_dirs: Sequence[Path], path: Path, shows: Shown = "pass_at_k") -> Path:
    """Write one plot of the runs alone, as an SVG file with its own colours and legend, and return its path: pass@k, or
    the coverage of models that sample ever wider.

    Raises:
        ValueError: if no run has what is to be shown, or the runs have several tasks or splits.
    """
    evaluations = [evaluation for run in read_runs(run_dirs) for evaluation in run.evaluations]
    if shows == "coverage":
        groups = widened(evaluations)
        shown, wanted = [group[0] for _, group in groups], "of one label at several initial noises or temperatures"
        draw = partial(plots.coverage, groups)
    else:
        shown, wanted = curves(evaluations), "at several k"
        draw = partial(plots.pass_at_k, shown)
    if not shown:
        raise ValueError(f"no evaluation {wanted} in {', '.join(map(str, run_dirs))}; `ladi eval --json` writes them")
    if len(tasks := by_task(shown)) > 1:
        raise ValueError(f"one figure holds one task and split, these runs have {'; '.join(tasks)}; name fewer runs")
    head, _, body = draw(numbered(shown), "figure", has_legend=True).partition(">")
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head} {namespaces}><style>\n{COLORS}</style>{body}", encoding="utf-8")
    return path
