"""Pieces of HTML that the sections of the report share."""

import dataclasses
import html
from collections.abc import Sequence

from ladi.report import plots
from ladi.report.data import Estimate, Evaluation


@dataclasses.dataclass(frozen=True)
class Section:
    anchor: str
    title: str
    lead: str
    """HTML: one sentence on what to look at."""
    body: str

    def html(self) -> str:
        title = html.escape(self.title)
        return f"<section id='{self.anchor}'>\n<h2>{title}</h2>\n<p>{self.lead}</p>\n{self.body}\n</section>\n"


def figure(svg: str, caption: str = "") -> str:
    """A plot with its caption, which is HTML."""
    return f"<figure>{f'<figcaption>{caption}</figcaption>' if caption else ''}{svg}</figure>"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """An HTML table that scrolls sideways on a narrow page; titles and cells are HTML."""
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f"<div class='scroll'><table class='{kind}'><thead><tr>{head}</tr></thead><tbody>\n{body}\n"
        "</tbody></table></div>"
    )


def chip(index: int) -> str:
    """A short stroke in a series' colour and line style."""
    style = {"-": "solid", "--": "dashed", ":": "dotted"}[plots.linestyle_of(index)]
    return f"<i class='chip' style='border-top: 3px {style} {plots.css_color(plots.color_of(index))}'></i>"


def legend(evaluations: Sequence[Evaluation], index_of: dict[str, int]) -> str:
    labels = dict.fromkeys(evaluation.label for evaluation in evaluations)
    items = "".join(f"<li>{chip(index_of[label])}{html.escape(label)}</li>" for label in labels)
    return f"<ul class='legend'>{items}</ul>"


def interval(estimate: Estimate | None, scale: float, digits: int, note: str = "") -> str:
    """`55.0` and a note, with the interval in small print below."""
    if estimate is None:
        return "&ndash;"
    value, low, high = (f"{scale * x:.{digits}f}" for x in (estimate.value, estimate.low, estimate.high))
    beside = f"&nbsp;<small>{note}</small>" if note else ""
    return f"{value}{beside}<small class='range'>{low}&ndash;{high}</small>"


def code(text: str | None) -> str:
    return f"<code>{html.escape(text)}</code>" if text else "&ndash;"
