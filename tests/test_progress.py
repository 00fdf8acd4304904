"""What the terminal shows."""

import io

import pytest
from rich.console import Console

from ladi.progress import eval_table, frames_table, short, texts_table
from ladi.quickstart import live_table


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (950, "950"),
        (9500, "9.5k"),
        (999_499, "999k"),
        (999_999, "1M"),
        (1_340_200, "1.34M"),
        (2e12, "2e+03B"),
    ],
)
def test_counts_are_short(number, text):
    assert short(number) == text


def record(label, split="test"):
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    return {
        "label": label,
        "split": split,
        "pass@k": {"1": estimate, "64": estimate},
        "distinct_valid": estimate,
        "tokens_processed": 1234,
        "wall_s": 3.2,
        "latent_use": None,
        "not_judged": {"timed_out": 0, "failed": 0},
    }


def shown(table, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_the_table_of_evaluations_fits_80_columns_uncut():
    text = shown(eval_table([record("LaDiR"), record("AR")]))
    assert "…" not in text
    assert "50.0 [40.0," in text
    assert "1.23k" in text


def test_brackets_in_names_and_texts_are_shown_as_they_are():
    label, text = "RL [/INST] [seed 1]", "x[i] or list[int] [/INST]"
    assert label in shown(eval_table([record(label)], title="[b] of [red]"), 120)
    assert text in shown(texts_table([text]), 120)
    table = shown(frames_table("[19] [/x]", [1.0], [["[a, b]"]]), 120)
    assert "[a, b]" in table
    assert "[19] [/x]" in table


def test_the_split_is_named_where_there_are_several():
    assert "LaDiR, test" not in shown(eval_table([record("LaDiR")]))
    assert "LaDiR, test_unseen" in shown(eval_table([record("AR"), record("LaDiR", "test_unseen")]), 120)


def test_texts_without_a_verdict_are_told_below_the_table():
    judged, not_judged = record("AR"), record("LaDiR") | {"not_judged": {"timed_out": 1200, "failed": 3}}
    assert "verdict" not in shown(eval_table([judged]))
    text = " ".join(shown(eval_table([judged, not_judged]), 160).split())
    assert "LaDiR: counted as wrong without a verdict: 1,200 texts whose judging reached its time limit, 3" in text


def test_the_live_table_shows_start_and_now_of_each_method():
    console = Console(file=io.StringIO(), width=100)
    with live_table(console, 20) as row:
        for step in range(1, 21):
            metrics = {"reward/mean": 0.1 if step <= 10 else 0.9, "time/step_s": 2.0}
            row("GRPO", step, metrics)
    text = console.file.getvalue()
    assert "GRPO 20/20: reward 0.900" in text
    assert "0.1 -> 0.9" in text
