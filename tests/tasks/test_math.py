"""MATH and MATH-500, and data sets of the hub; with LADI_DATA, a folder of published files, every gold solution."""

import json
import os
import sys
from pathlib import Path

import pytest

from ladi.tasks import verify_all
from ladi.tasks.answers import marked_answer
from ladi.tasks.base import overlap
from ladi.tasks.gsm8k import Gsm8k
from ladi.tasks.math import Math, solution_steps
from ladi.tasks.math_pool import shared_pool
from ladi.tasks.published import published_rows

FIXTURE = Path(__file__).parents[1] / "fixtures" / "math500_test.jsonl"
TASK = Math(train_path=str(FIXTURE), test_path=str(FIXTURE))
published = pytest.mark.skipif("LADI_DATA" not in os.environ, reason="LADI_DATA names no folder of published data")


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_rows_become_problems_with_sentences_as_steps():
    assert TASK.num_problems("test") == 7
    problem = TASK.problem("test", 0)
    assert problem.answer == r"\left( 3, \frac{\pi}{2} \right)"
    assert problem.meta == {"subject": "Precalculus", "level": 2, "unique_id": "test/precalculus/807.json"}
    assert problem.steps[0] == r"We have that $r = \sqrt{0^2 + 3^2} = 3.$"
    assert len(problem.steps) == 3
    assert "asy" not in "".join(problem.steps)
    assert set("".join(problem.steps)) <= set(TASK.alphabet)


def test_a_formula_of_several_lines_stays_in_its_sentence():
    solution = "We have\n\\begin{align*}\nx &= 1 \\\\\n&= 2.\n\\end{align*}Then\n\n$y = 3.$  So \\[z = 4.\\] Done."
    assert solution_steps(solution) == (
        r"We have \begin{align*} x &= 1 \\ &= 2. \end{align*}Then",
        "$y = 3.$",
        r"So \[z = 4.\]",
        "Done.",
    )


def test_published_solutions_are_correct_and_those_of_other_problems_wrong():
    problems = TASK.problems("test")
    solutions = [row["solution"] for row in rows(FIXTURE)]
    assert all(v.correct for v in verify_all(TASK, problems, solutions))
    assert not any(v.correct for v in verify_all(TASK, problems, solutions[1:] + solutions[:1]))


def test_equivalent_forms_are_one_solution():
    problem = TASK.problem("test", 0)
    verdicts = [TASK.verify(problem, rf"\boxed{{{form}}}") for form in (r"(3, \pi/2)", r"(\sqrt{9}, 0.5\pi)")]
    assert [v.correct for v in verdicts] == [True, True]
    assert verdicts[0].canonical == verdicts[1].canonical


def test_the_answer_may_be_missing_where_the_solution_boxes_it(tmp_path):
    row = {"problem": "1+1?", "solution": r"It is $\boxed{2}$.", "level": "Level 5", "type": "Algebra"}
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row))
    problem = Math(train_path=str(path)).problem("train", 0)
    assert problem.answer == "2"
    assert problem.meta == {"subject": "Algebra", "level": 5, "unique_id": ""}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"problem": "1+1?"}', "line 1: 'solution' must be a text"),
        ('{"problem": "1+1?", "solution": "two"}', "line 1: there is no 'answer'"),
        ('{"problem": "1+1?", "solution": "two", "answer": 2}', "line 1: 'answer' must be a text"),
        ("{", "line 1: not JSON"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, text, said):
    path = tmp_path / "train.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        Math(train_path=str(path)).problem("train", 0)


def test_what_does_not_exist_is_said(tmp_path):
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        TASK.problem("dev", 0)
    with pytest.raises(ValueError, match="has 7 problems, so no problem 7"):
        TASK.problem("test", 7)
    with pytest.raises(ValueError, match="no file"):
        Math(train_path=str(tmp_path / "none.jsonl")).problem("train", 0)


def test_all_parts_of_a_hub_data_set_are_read(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return [{"part": config}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["algebra", "geometry"])
    assert published_rows("some/name", "train") == [
        ("some/name, row 1", {"part": "algebra"}),
        ("some/name, row 2", {"part": "geometry"}),
    ]
    assert published_rows("some/name", "test", ("main",)) == [("some/name, row 1", {"part": "main"})]
    assert asked[-1] == ("some/name", "main", "test")


def test_an_unreachable_hub_and_a_missing_package_name_the_remedy(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "get_dataset_config_names", unreachable)
    with pytest.raises(ValueError, match=r"cannot read .* \(no route\).* local JSONL file"):
        published_rows("some/name", "train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install datasets.* local JSONL file"):
        published_rows("some/name", "train")


def test_overlap_counts_test_questions_whatever_their_case_and_white_space():
    assert overlap(["What is 1?", "What is  2?", "3?"], ["what is 2?\n", "3?", "3?", "What is12?"]) == 3
    assert overlap([], ["3?"]) == 0


@published
def test_every_published_solution_of_gsm8k_is_correct():
    folder = Path(os.environ["LADI_DATA"])
    task = Gsm8k(path=str(folder))
    for split, size in (("train", 7473), ("test", 1319)):
        problems, texts = task.problems(split), [row["answer"] for row in rows(folder / f"gsm8k_{split}.jsonl")]
        assert sum(v.correct for v in verify_all(task, problems, texts)) == len(problems) == size
        others = verify_all(task, problems, texts[1:] + texts[:1])
        same = [p.answer == q.answer for p, q in zip(problems, problems[1:] + problems[:1], strict=True)]
        assert [v.correct for v in others] == same
    questions = [[p.question for p in task.problems(split)] for split in ("train", "test")]
    assert overlap(*questions) == 0


@published
def test_every_published_solution_of_math_500_is_correct_by_text_and_by_math_verify_alone():
    path = Path(os.environ["LADI_DATA"]) / "math500_test.jsonl"
    task = Math(test_path=str(path))
    problems, texts = task.problems("test"), [row["solution"] for row in rows(path)]
    assert sum(v.correct for v in verify_all(task, problems, texts)) == len(problems) == 500
    pairs = [(problem.answer, marked_answer(text) or "") for problem, text in zip(problems, texts, strict=True)]
    assert all(v.correct for v in shared_pool().verify_many(pairs))
    others = verify_all(task, problems, texts[1:] + texts[:1])
    right = [i for i, v in enumerate(others) if v.correct and pairs[i][0] != pairs[(i + 1) % 500][0]]
    assert [(pairs[i][0], pairs[i + 1][0]) for i in right] == [("5", "x=5")]
