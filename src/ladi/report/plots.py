"""Plots as inline SVG that take their colours and fonts from the page around them (so dark mode works)."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from ladi.report.data import Estimate, Evaluation, Pca

# Matplotlib draws with these stand-ins; `to_svg` turns each into a CSS variable that page.py defines.
INK, MUTED, GRID, GOOD, BAD = "#0f00a0", "#0f00a1", "#0f00a2", "#0f00a3", "#0f00a4"
SERIES = tuple(f"#0f00{i:02x}" for i in range(8))
LINESTYLES = ("-", "--", ":")

WIDTH, HEIGHT = 5.6, 3.3
"""Inches of a normal plot; the page scales it to its column."""
SMALL = (3.2, 2.0)
MAX_POINTS = 400
"""A training curve is thinned to at most twice as many points, to keep the file small."""
SMOOTHING_WINDOWS = 30
"""The smoothed curve averages over 1 / this share of the run."""

RC: Any = {  # Any: matplotlib spells out every allowed key in the type
    "svg.fonttype": "none",
    "svg.hashsalt": "ladi",
    "text.parse_math": False,  # labels are text, not TeX
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def color_of(index: int) -> str:
    return SERIES[index % len(SERIES)]


def linestyle_of(index: int) -> str:
    """Tells apart the series that share a colour."""
    return LINESTYLES[index // len(SERIES) % len(LINESTYLES)]


def css_color(color: str) -> str:
    """The CSS variable behind a stand-in: `#0f0003` -> `var(--c-03)`."""
    return f"var(--c-{color[-2:]})"


def new_axes(size: tuple[float, float] = (WIDTH, HEIGHT)) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def to_svg(figure: Figure, plot_id: str, title: str) -> str:
    """The figure as an <svg> element; ids carry `plot_id`, so that many can stand in one page."""
    buffer = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{plot_id}-", svg)
    svg = re.sub(r"#0f00([0-9a-f]{2})", r"var(--c-\1)", svg)
    svg = re.sub(r"(font: [0-9.]+px) [^;\"]*", r"\1 var(--font)", svg)
    svg = re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1 role='img'>", svg)
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace("'", "&#39;")
    return svg.replace("<svg ", f"<svg aria-label='{label}' ", 1)


def draw_interval(axes: Axes, x: float, estimate: Estimate, color: str, scale: float = 1.0) -> None:
    axes.plot([x, x], [scale * estimate.low, scale * estimate.high], color=color, linewidth=1.2)


def log_axis(axes: Axes, values: Sequence[float]) -> None:
    """A log2 x axis with a tick at each value, or at about eight of them."""
    every = -(-len(values) // 8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(values[::every]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def log_ticks(low: float, high: float) -> list[float]:
    """Round values between two positive ones: powers of ten, with 2 and 5 between where those are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if high / low > 300:
        return [10.0**decade for decade in decades][:: max(1, len(decades) // 4)]
    return [lead * 10.0**decade for decade in decades for lead in (1, 2, 5)]


def pass_at_k(
    evaluations: Sequence[Evaluation], index_of: dict[str, int], plot_id: str, has_legend: bool = False
) -> str:
    """pass@k against k, one line per evaluation with its interval as a band."""
    with mpl.rc_context(RC):
        figure, axes = new_axes()
        for evaluation in evaluations:
            index, ks = index_of[evaluation.label], list(evaluation.pass_at)
            estimates = evaluation.pass_at.values()
            low, high = [100 * e.low for e in estimates], [100 * e.high for e in estimates]
            axes.fill_between(ks, low, high, color=color_of(index), alpha=0.15, linewidth=0)
            values = [100 * e.value for e in estimates]
            style = {"color": color_of(index), "marker": "o", "markersize": 3.5, "label": evaluation.label}
            axes.plot(ks, values, linestyle_of(index), **style)
        log_axis(axes, sorted({float(k) for evaluation in evaluations for k in evaluation.pass_at}))
        lowest = min(100 * e.low for evaluation in evaluations for e in evaluation.pass_at.values())
        axes.set_ylim(bottom=max(0.0, 10 * math.floor(lowest / 10)), top=min(101.0, axes.get_ylim()[1]))
        axes.set(xlabel="k, samples per question", ylabel="pass@k (%)")
        if has_legend:
            axes.legend(loc="lower right", frameon=False)
        return to_svg(figure, plot_id, "pass@k against the number of samples")


def distinct_bars(evaluations: Sequence[Evaluation], index_of: dict[str, int], plot_id: str) -> str:
    """Distinct valid solutions per question, one bar per evaluation under its label."""
    rows = [(e.label, e.distinct_valid) for e in evaluations if e.distinct_valid is not None]
    with mpl.rc_context(RC):
        figure, axes = new_axes((WIDTH, 0.7 + 0.52 * len(rows)))
        reach = max(estimate.high for _, estimate in rows)
        for row, (label, estimate) in enumerate(rows):
            color = color_of(index_of[label])
            axes.barh(row, estimate.value, height=0.34, color=color)
            axes.plot([estimate.low, estimate.high], [row, row], color=INK, linewidth=1.2)
            axes.text(0, row - 0.26, label if len(label) < 60 else label[:57] + "...", va="bottom")
            axes.text(max(estimate.high, estimate.value) + 0.015 * reach, row, f"{estimate.value:.2f}", va="center")
        axes.set_xlim(0, 1.1 * reach or 1)
        axes.set_ylim(len(rows) - 0.6, -0.75)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("distinct valid solutions per question")
        return to_svg(figure, plot_id, "distinct valid solutions per question")


def largest_common_k(evaluations: Sequence[Evaluation]) -> int:
    """The largest k at which all were evaluated; 1 where there is none."""
    return max(set.intersection(*({*e.pass_at} for e in evaluations)), default=1)


def sweep(
    groups: Sequence[Sequence[Evaluation]], setting: str, xlabel: str, index_of: dict[str, int], plot_id: str
) -> str:
    """pass@1 (solid) and pass@k of the largest common k (dashed) against one sampler setting."""
    largest = largest_common_k([e for group in groups for e in group])
    with mpl.rc_context(RC):
        figure, axes = new_axes()
        for group in groups:
            color = color_of(index_of[group[0].label])
            for k, style in {largest: "--", 1: "-"}.items():
                points = [(getattr(e, setting), e.pass_at[k]) for e in group if k in e.pass_at]
                values = [100 * estimate.value for _, estimate in points]
                face = color if k == 1 else "none"
                axes.plot([x for x, _ in points], values, style, color=color, linewidth=1.8 if k == 1 else 1.2)
                axes.plot([x for x, _ in points], values, "o", color=color, markerfacecolor=face, markersize=4)
                for x, estimate in points:
                    draw_interval(axes, x, estimate, color, scale=100.0)
        if setting == "num_steps":
            log_axis(axes, sorted({e.num_steps for group in groups for e in group if e.num_steps is not None}))
        axes.set_ylim(bottom=0, top=min(103.0, axes.get_ylim()[1]))
        ylabel = f"solved (%): pass@1, dashed pass@{largest}" if largest > 1 else "pass@1 (%)"
        axes.set(xlabel=xlabel, ylabel=ylabel)
        return to_svg(figure, plot_id, f"accuracy against {xlabel}")


def coverage(
    groups: Sequence[tuple[str, Sequence[Evaluation]]],
    index_of: dict[str, int],
    plot_id: str,
    has_legend: bool = False,
) -> str:
    """pass@k of the largest common k against pass@1, one line per model through the values, written beside the points,
    of the setting that makes it sample wider.
    """
    k = largest_common_k([e for _, group in groups for e in group])
    with mpl.rc_context(RC):
        figure, axes = new_axes()
        for name, group in groups:
            index = index_of[group[0].label]
            members = [e for e in group if {1, k} <= {*e.pass_at}]
            x, y = ([100 * e.pass_at[at].value for e in members] for at in (1, k))
            style = {"color": color_of(index), "marker": "o", "markersize": 4.5, "label": group[0].label}
            axes.plot(x, y, linestyle_of(index), **style)
            for e, at_one, at_k in zip(members, x, y, strict=True):
                one, many = e.pass_at[1], e.pass_at[k]
                thin = {"color": color_of(index), "linewidth": 0.8, "alpha": 0.5}
                axes.plot([100 * one.low, 100 * one.high], [at_k, at_k], **thin)
                axes.plot([at_one, at_one], [100 * many.low, 100 * many.high], **thin)
                if name:
                    text, place = f"{getattr(e, name):g}", (at_one, at_k)
                    axes.annotate(text, place, (5, 4), textcoords="offset points", fontsize=8)
        axes.set(xlabel="pass@1 (%)", ylabel=f"pass@{k} (%)")
        if has_legend:
            axes.legend(loc="lower left", frameon=False)
        return to_svg(figure, plot_id, f"pass@{k} against pass@1, sampled ever wider")


def latent_use(evaluations: Sequence[Evaluation], index_of: dict[str, int], plot_id: str) -> str:
    """pass@1 when the latents are replaced, bars grouped by what replaces them."""
    used = [(evaluation.label, evaluation.latent_use) for evaluation in evaluations if evaluation.latent_use]
    conditions = list(dict.fromkeys(name for _, by_name in used for name in by_name))
    width = 0.8 / len(used)
    with mpl.rc_context(RC):
        figure, axes = new_axes()
        for i, (label, by_name) in enumerate(used):
            for place, name in enumerate(conditions):
                if name not in by_name:
                    continue
                x, estimate = place + (i - (len(used) - 1) / 2) * width, by_name[name]
                axes.bar(x, 100 * estimate.value, 0.9 * width, color=color_of(index_of[label]))
                draw_interval(axes, x, estimate, INK, scale=100.0)
                if len(used) * len(conditions) <= 12:
                    top = 100 * max(estimate.high, estimate.value)
                    axes.annotate(f"{100 * estimate.value:.0f}", (x, top), (0, 2), textcoords="offset points",
                                  ha="center", fontsize=9)  # fmt: skip
        axes.grid(visible=False, axis="x")
        axes.set_xticks(range(len(conditions)), conditions)
        axes.tick_params(axis="x", length=0)
        axes.set(xlabel="latents the text decoder sees", ylabel="pass@1 (%)")
        return to_svg(figure, plot_id, "pass@1 with latents intact or replaced")


def smoothed(
    points: Sequence[tuple[int, float]], windows: int = SMOOTHING_WINDOWS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, finite values and their running mean over 1 / `windows` of them, thinned to about MAX_POINTS."""
    steps, values = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    window = max(1, len(values) // windows)
    kernel = np.ones(window)
    weight = np.convolve(np.ones_like(values), kernel, mode="same")  # fewer neighbours at the ends
    smooth = np.convolve(values, kernel, mode="same") / weight
    stride = max(1, len(values) // MAX_POINTS)
    return steps[::stride], values[::stride], smooth[::stride]


def loss_curve(
    points: Sequence[tuple[int, float]], held_out: Sequence[tuple[int, float]], name: str, plot_id: str
) -> str:
    """A faint raw curve and its running mean, on a log axis if all values are positive; dots on held-out problems."""
    steps, values, smooth = smoothed(points)
    with mpl.rc_context(RC | {"font.size": 9}):
        figure, axes = new_axes(SMALL)
        axes.plot(steps, values, color=SERIES[0], alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth, color=SERIES[0], linewidth=1.5)
        if held_out:
            axes.plot(*zip(*held_out, strict=True), "o-", color=SERIES[1], linewidth=1, markersize=3)
        shown = [*values, *(value for _, value in held_out)]
        if shown and min(shown) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(FixedLocator(log_ticks(min(shown), max(shown))))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("step")
        return to_svg(figure, plot_id, f"{name} against training step")


def reconstruction(shares: Mapping[int, Mapping[float, float]], plot_id: str) -> str:
    """Share of blocks that VAEs decode exactly against the noise on their latents; keys are the runs' colours."""
    with mpl.rc_context(RC):
        figure, axes = new_axes()
        for index, share in shares.items():
            values = [100 * value for value in share.values()]
            axes.plot(list(share), values, linestyle_of(index), color=color_of(index), marker="o", markersize=3.5)
        axes.set_ylim(0, 101)
        axes.set(xlabel="noise on the latents (standard deviations)", ylabel="blocks decoded exactly (%)")
        return to_svg(figure, plot_id, "blocks decoded exactly against the noise on their latents")


def metric_curves(curves: Mapping[int, Sequence[tuple[int, float]]], name: str, plot_id: str) -> str:
    """One metric of several runs; keys are the runs' colours."""
    with mpl.rc_context(RC | {"font.size": 9}):
        figure, axes = new_axes(SMALL)
        for index, points in curves.items():
            steps, values, smooth = smoothed(points, windows=8)  # rewards of an update are noisy
            color, style = color_of(index), linestyle_of(index)
            axes.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
            axes.plot(steps, smooth, style, color=color, linewidth=1.5)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel("update")
        return to_svg(figure, plot_id, f"{name} against update")


def metric_paths(paths: Mapping[int, Sequence[tuple[float, float]]], labels: tuple[str, str], plot_id: str) -> str:
    """Runs moving in the plane of two metrics, smoothed, from their start (hollow) to their end (filled)."""
    with mpl.rc_context(RC):
        figure, axes = new_axes()
        for index, points in paths.items():
            x, y = (smoothed(list(enumerate(values)), windows=4)[2] for values in zip(*points, strict=True))
            color = color_of(index)
            axes.plot(x, y, linestyle_of(index), color=color)
            axes.plot(x[0], y[0], "o", markersize=6, color=color, markerfacecolor="none")
            axes.plot(x[-1], y[-1], "o", markersize=6, color=color)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        return to_svg(figure, plot_id, f"{labels[1]} against {labels[0]} in training")


def pca_paths(pca: Pca, plot_id: str) -> str:
    """Latents of one question moving from noise (hollow) to data (filled), coloured by the verdict."""
    xy = np.array(pca.xy, dtype=float)  # (times, trajectories, 2)
    with mpl.rc_context(RC):
        figure, axes = new_axes((WIDTH, 4.4))
        alpha = max(0.25, min(0.9, 8 / max(1, xy.shape[1])))
        for path, correct in zip(xy.transpose(1, 0, 2), pca.correct, strict=True):
            color = GOOD if correct else BAD
            axes.plot(path[:, 0], path[:, 1], color=color, linewidth=0.9, alpha=alpha)
            axes.plot(*path[0], "o", markersize=3.5, color=color, markerfacecolor="none", alpha=alpha)
            axes.plot(*path[-1], "o" if correct else "X", markersize=5.5, color=color, markeredgewidth=0)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set(xlabel="first principal component", ylabel="second principal component")
        return to_svg(figure, plot_id, "latents moving from noise to data")
