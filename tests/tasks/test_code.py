"""HumanEval and MBPP, judged in the sandbox; with LADI_DATA, a folder of published files, every reference solution."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest

from ladi.tasks import code, verify_all
from ladi.tasks.base import asked, overlap
from ladi.tasks.code import Code, program_code, unfenced
from ladi.tasks.published import published_rows
from ladi.tasks.sandbox import Limits, Sandbox, shared_sandbox

FIXTURES = Path(__file__).parents[1] / "fixtures"
PATIENT = Limits(wall_s=60.0, cpu_s=60)
HUMANEVAL = Code(
    benchmark="humaneval", path=str(FIXTURES / "humaneval.jsonl"), limits=PATIENT, num_workers=2, allow_unsafe_exec=True
)
MBPP = Code(path=str(FIXTURES / "mbpp.jsonl"), limits=PATIENT, num_workers=2, allow_unsafe_exec=True)
published = pytest.mark.skipif("LADI_DATA" not in os.environ, reason="LADI_DATA names no folder of published data")


@pytest.fixture(scope="module", autouse=True)
def end_servers():
    yield
    shared_sandbox().close()


CLOSE = HUMANEVAL.problem("test", 0)
SOLUTION = """    for i, a in enumerate(numbers):
        for b in numbers[i + 1:]:
            if abs(a - b) < threshold:
                return True
    return False
"""
WHOLE = "def has_close_elements(numbers, threshold):\n" + SOLUTION


def test_humaneval_has_a_test_split_whose_question_begins_a_program():
    assert HUMANEVAL.splits == ("test",)
    assert HUMANEVAL.num_problems("test") == 3
    assert CLOSE.question.startswith("from typing import List\n\n\ndef has_close_elements(")
    assert CLOSE.steps[0] == "    for idx, elem in enumerate(numbers):"
    assert CLOSE.steps[-1] == "    return False"
    assert "\n".join(CLOSE.steps) == CLOSE.answer.replace("\n\n", "\n")
    assert CLOSE.meta["task_id"] == "HumanEval/0"
    assert set(CLOSE.question + CLOSE.answer) <= set(HUMANEVAL.alphabet)


def test_mbpp_has_its_published_splits():
    ids = {split: [p.meta["task_id"] for p in MBPP.problems(split)] for split in MBPP.splits}
    assert ids == {"train": [601, 927], "validation": [511, 533], "test": [11], "prompt": [2]}
    problem = MBPP.problem("test", 0)
    assert problem.question.startswith("Write a python function to remove first and last occurrence")
    assert problem.question == f"{asked(problem)}\nThe program has to pass these tests:\n{problem.meta['tests']}\n"
    assert "\r" not in problem.answer
    assert MBPP.problem("train", 0).meta["names"] == ("max_chain_length", "Pair")
    assert set(MBPP.problem("train", 1).meta["names"]) == {"max_height", "root", "root1", "root2"}


@pytest.mark.parametrize("task", [HUMANEVAL, MBPP], ids=["humaneval", "mbpp"])
def test_reference_solutions_are_correct_and_those_of_other_problems_wrong(task):
    problems = [problem for split in task.splits for problem in task.problems(split)]
    answers = [problem.answer for problem in problems]
    assert [v.reason for v in verify_all(task, problems, answers)] == ["ok"] * len(problems)
    assert not any(v.correct for v in verify_all(task, problems, answers[1:] + answers[:1]))


@pytest.mark.parametrize(
    "text",
    [
        SOLUTION,
        WHOLE,
        f"```python\n{WHOLE}```",
        f"This works.\n\n```python\n{WHOLE}```\nIt prints:\n```\nTrue\n```",
        f"First try it:\n```py\nprint(1)\n```\nNow:\n```python\n{WHOLE}\n```\n",
        f"```\n{WHOLE}",
        CLOSE.question + SOLUTION,
        "import math\n\n" + WHOLE,
    ],
)
def test_a_text_is_a_completion_or_a_program_bare_or_fenced(text):
    verdict = HUMANEVAL.verify(CLOSE, text)
    assert verdict.correct, verdict


def test_wrong_texts_are_wrong_and_say_why():
    texts = {
        SOLUTION.replace("<", ">"): "AssertionError",
        "    return numbers == threshold": "AssertionError",
        "    raise SystemExit(0)": "exit 0",
        "I cannot do this.": "SyntaxError",
        "": "AssertionError",
        "```python\n```": "AssertionError",
        "\n\nimport os\nos._exit(0)": "exit 0",
    }
    verdicts = HUMANEVAL.verify_many([CLOSE] * len(texts), list(texts))
    assert not any(verdict.correct or verdict.canonical for verdict in verdicts)
    for verdict, reason in zip(verdicts, texts.values(), strict=True):
        assert verdict.reason.startswith(reason), (verdict, reason)


def test_programs_that_differ_in_layout_alone_are_one_solution():
    texts = [WHOLE, f"# Compare all\n{WHOLE}".replace("    ", "  "), SOLUTION.replace("(a - b)", "((a) - b)")]
    texts += [WHOLE.replace("numbers[i + 1:]", "numbers[1 + i:]")]
    verdicts = HUMANEVAL.verify_many([CLOSE] * len(texts), texts)
    assert all(verdict.correct for verdict in verdicts)
    assert verdicts[0].canonical == verdicts[1].canonical != verdicts[3].canonical
    assert '"""' not in verdicts[2].canonical


def test_a_text_that_repeats_the_signature_keeps_what_stands_before_it():
    poly = HUMANEVAL.problem("test", 1)
    assert poly.meta["names"] == ("find_zero",)
    program = program_code(poly, "def find_zero(xs: list):\n" + poly.answer)
    assert program.count("def find_zero") == 1
    assert "def poly" in program
    assert HUMANEVAL.verify(poly, program).correct


def test_the_block_that_defines_what_is_asked_for_is_taken():
    wanted = re.compile("def f")
    text = "```\nx\n```\n  ```python\n  def f(): pass\n  ```\n```\ndef f(): return\n```"
    assert unfenced(text, wanted) == "  def f(): pass\n"
    assert unfenced("```\nx\n```\n```\ny\n```", wanted) == "x\n"
    assert unfenced("no block, `def f`", wanted) == "no block, `def f`"


def test_equal_programs_run_once(monkeypatch):
    ran = []

    class Counting(Sandbox):
        def run_many(self, programs, limits, num_workers, allow_unsafe=False):
            ran.extend(programs)
            return super().run_many(programs, limits, num_workers, allow_unsafe)

    box = Counting()
    monkeypatch.setattr(code, "shared_sandbox", lambda: box)
    verdicts = HUMANEVAL.verify_many([CLOSE] * 4, [SOLUTION, "    return True", SOLUTION, "    return True"])
    assert [v.correct for v in verdicts] == [True, False, True, False]
    assert len(ran) == 2
    box.close()


def test_without_namespaces_it_is_refused_unless_it_is_allowed(monkeypatch):
    box = Sandbox("rlimits")
    monkeypatch.setattr(code, "shared_sandbox", lambda: box)
    with pytest.raises(
        ValueError, match=r"--data\.task\.allow-unsafe-exec to train, --task\.allow-unsafe-exec to evaluate"
    ):
        Code(benchmark="humaneval", path=HUMANEVAL.path).verify(CLOSE, SOLUTION)
    assert HUMANEVAL.verify(CLOSE, SOLUTION).correct
    box.close()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "def f():\n"}, "line 1: not as humaneval is published"),
        (
            {"task_id": 20, "text": "t", "code": "def f(:", "test_setup_code": "", "test_list": []},
            "line 1: not as mbpp",
        ),
        ({"task_id": 20, "text": "t", "code": None, "test_setup_code": "", "test_list": []}, "line 1: not as mbpp"),
        ({"task_id": 20, "text": "t", "code": "x = 1", "test_setup_code": "", "test_list": ["f()"]}, "use nothing"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, row, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=said):
        Code(benchmark="humaneval" if "prompt" in row else "mbpp", path=str(path)).problem("test", 0)


def test_what_does_not_exist_is_said():
    with pytest.raises(ValueError, match="unknown split 'train'; humaneval has test"):
        HUMANEVAL.problem("train", 0)
    with pytest.raises(ValueError, match="humaneval test has 3 problems, so no problem 3"):
        HUMANEVAL.problem("test", 3)


def test_a_compressed_file_and_a_hub_name_are_read(tmp_path, monkeypatch):
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress((FIXTURES / "humaneval.jsonl").read_bytes()))
    assert Code(benchmark="humaneval", path=str(path)).problem("test", 0) == CLOSE
    with pytest.raises(ValueError, match="no file"):
        Code(path=str(tmp_path / "none.jsonl.gz")).problem("test", 0)
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        file = FIXTURES / ("mbpp.jsonl" if "mbpp" in name else "humaneval.jsonl")
        return [row for _, row in published_rows(str(file), split)]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    code.read.cache_clear()
    assert Code(benchmark="humaneval").num_problems("test") == 3
    assert Code().num_problems("train") == 2
    assert asked == [
        ("openai/openai_humaneval", "openai_humaneval", "test"),
        ("google-research-datasets/mbpp", "full", "train"),
    ]
    code.read.cache_clear()


@published
@pytest.mark.parametrize(
    ("benchmark", "file", "size"), [("humaneval", "HumanEval.jsonl.gz", 164), ("mbpp", "mbpp.jsonl", 974)]
)
def test_every_published_solution_is_correct(benchmark, file, size):
    path = str(Path(os.environ["LADI_DATA"]) / file)
    task = Code(benchmark=benchmark, path=path, limits=PATIENT, num_workers=2, allow_unsafe_exec=True)
    problems = [problem for split in task.splits for problem in task.problems(split)]
    verdicts = verify_all(task, problems, [problem.answer for problem in problems])
    assert [(p.meta["task_id"], v.reason) for p, v in zip(problems, verdicts, strict=True) if not v.correct] == []
    assert len(verdicts) == size
    others = problems[1:] + problems[:1]
    assert not any(v.correct for v in verify_all(task, problems, [problem.answer for problem in others]))
    if benchmark == "mbpp":
        texts = {split: [asked(problem) for problem in task.problems(split)] for split in task.splits}
        counts = {split: overlap(texts["train"], texts[split]) for split in task.splits[1:]}
        assert counts == {"validation": 0, "test": 3, "prompt": 0}  # 216, 217 and 248, under other names
