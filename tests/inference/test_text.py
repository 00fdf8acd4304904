"""Texts of models are judged by their marks."""

import pytest

from ladi.inference.evaluate import judge
from ladi.inference.text import judged_text, sft_target
from ladi.tasks.arithmetic import Arithmetic
from ladi.tasks.base import Problem
from ladi.tasks.countdown import Countdown
from ladi.tasks.gsm8k import Gsm8k
from ladi.tasks.jsonl import Jsonl
from ladi.tasks.math import Math

PROBLEM = Problem(question="1/2?", steps=("One half is 0.5.", "So be it."), answer=r"\frac{1}{2}")


@pytest.mark.parametrize("task", [Gsm8k(), Math(), Jsonl()], ids=lambda task: task.name)
def test_what_models_are_taught_to_write_is_correct_and_unmarked_text_is_not(task):
    whole = [[sft_target(PROBLEM, task), "So it is 0.5.", r"So \boxed{0.5}."]]
    assert [v.correct for v in judge(task, [PROBLEM], whole, whole=True)[0]] == [True, False, True]
    heads = [[PROBLEM.answer, "0.5", "0.6", r"\boxed{0.5}"]]
    assert [v.correct for v in judge(task, [PROBLEM], heads, whole=False)[0]] == [True, True, False, True]


@pytest.mark.parametrize("task", [Countdown(), Arithmetic()], ids=lambda task: task.name)
def test_answers_without_marks_are_judged_to_the_character(task):
    problem = task.problem("test", 0)
    assert judged_text(problem.answer, task, whole=False) == problem.answer
    assert judged_text(sft_target(problem, task), task, whole=True) == problem.answer


def test_verdicts_keep_the_rows_of_their_texts():
    problems = [Problem(question=f"{i}?", steps=("x",), answer=str(i)) for i in range(3)]
    verdicts = judge(Gsm8k(), problems, [["0", "1"], ["1"], []], whole=False)
    assert [[v.correct for v in row] for row in verdicts] == [[True, False], [True], []]
