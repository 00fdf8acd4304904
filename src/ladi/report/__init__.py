"""Run folders -> one HTML file, and Markdown tables of results (imports no torch).

data.py reads and checks what a run left behind, plots.py draws it, page.py writes the HTML file,
tables.py the Markdown.
"""

from ladi.report.page import Shown, build_report, write_figure
from ladi.report.tables import differences_table, numbers_table, results_table, seeds_table, update_markdown

__all__ = [
    "Shown",
    "build_report",
    "differences_table",
    "numbers_table",
    "results_table",
    "seeds_table",
    "update_markdown",
    "write_figure",
]
