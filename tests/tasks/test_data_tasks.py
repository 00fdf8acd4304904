"""Users' own JSONL, GSM8K, and block splitting."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladi.inference.text import judged_text, sft_target
from ladi.tasks.blocks import split_cot
from ladi.tasks.gsm8k import Gsm8k
from ladi.tasks.jsonl import Jsonl
from ladi.tasks.published import published_rows

FIXTURES = Path(__file__).parents[1] / "fixtures"


def write(path: Path, *rows) -> Jsonl:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return Jsonl(path=path)


def test_steps_and_cot_rows_become_the_same_blocks(tmp_path):
    steps = write(
        tmp_path / "a.jsonl",
        *({"question": f"{i}?", "steps": ["A is 1.", "B is 2."], "answer": "2"} for i in range(40)),
    )
    cot = write(
        tmp_path / "b.jsonl", *({"question": f"{i}?", "cot": "A is 1. B is 2.", "answer": "2"} for i in range(40))
    )
    assert [steps.problem("train", i) for i in range(10)] == [cot.problem("train", i) for i in range(10)]


def test_splits_share_no_question_and_lose_none(tmp_path):
    task = write(tmp_path / "a.jsonl", *({"question": f"{i}?", "cot": "x", "answer": "2"} for i in range(200)))
    questions = [task.problem(s, i).question for s in task.splits for i in range(task.num_problems(s))]
    assert sorted(questions) == sorted(f"{i}?" for i in range(200))
    assert 5 <= task.num_problems("test") <= 20


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "need a JSON object, got list"),
        ({"question": "q", "cot": "c"}, "'answer' must be a text"),
        ({"question": " ", "cot": "c", "answer": "1"}, "'question' must be a text"),
        ({"question": "q", "answer": "1"}, "need either 'steps'"),
        ({"question": "q", "answer": "1", "cot": "c", "steps": ["c"]}, "need either 'steps'"),
        ({"question": "q", "answer": "1", "steps": "c"}, "'steps' must be a list"),
        ({"question": "q", "answer": "1", "steps": []}, "'steps' must be a list"),
        ({"question": "q", "answer": 1, "cot": "c"}, "'answer' must be a text"),
        ({"question": "q", "answer": "so #### 1", "cot": "c"}, "'answer' must be the answer alone"),
        ({"question": "half a \ud83d", "answer": "1", "cot": "c"}, "'question' must be a text"),
        ({"question": "q", "answer": "1", "steps": ["\ude00"]}, "'steps' must be a list"),
        ("[" * 100_000, "not JSON"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path, row, said):
    task = write(tmp_path / "bad.jsonl", {"question": "q", "cot": "c", "answer": "1"}, row)
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: ") as error:
        task.problem("train", 0)
    assert said in str(error.value)


def test_a_line_that_is_not_utf_8_is_named(tmp_path):
    task = write(tmp_path / "latin.jsonl", {"question": "q", "cot": "c", "answer": "1"})
    task.path.write_bytes(task.path.read_bytes() + b'\n{"question": "caf\xe9"}')
    with pytest.raises(ValueError, match=r"latin\.jsonl, line 2: not JSON .*0xe9"):
        task.problem("train", 0)


def test_line_ends_inside_a_text_do_not_end_its_row(tmp_path):
    rows = [{"question": f"{i}\u2028\x85?", "cot": "c", "answer": "1"} for i in range(40)]
    task = write(tmp_path / "a.jsonl", *(json.dumps(row, ensure_ascii=False) for row in rows))
    questions = [task.problem(s, i).question for s in task.splits for i in range(task.num_problems(s))]
    assert sorted(questions) == sorted(row["question"] for row in rows)


def test_missing_and_empty_files_are_said(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        Jsonl(path=tmp_path / "none.jsonl").problem("train", 0)
    with pytest.raises(ValueError, match="has no rows"):
        write(tmp_path / "empty.jsonl").problem("train", 0)


def test_an_answer_of_several_lines_is_right_where_it_is_written_as_trained(tmp_path):
    task = write(tmp_path / "my.jsonl", {"question": "q", "steps": ["s"], "answer": "x = 1\n y = 2"})
    (problem,) = (row for split in task.splits for row in task.read(split))
    assert problem.answer == "x = 1 y = 2"
    for text, whole in ((sft_target(problem, task), True), (problem.answer, False)):
        assert task.verify_many([problem], [judged_text(text, task, whole)])[0].correct


def test_own_answers_may_be_words_or_formulas(tmp_path):
    task = write(tmp_path / "a.jsonl", *({"question": f"{i}?", "cot": "x", "answer": "New  York"} for i in range(40)))
    problem = task.problem("train", 0)
    assert task.verify(problem, "It is <answer>new york</answer>").correct
    assert task.verify(problem, "x\n#### New York").canonical == "New York"
    assert not task.verify(problem, "#### York New").correct
    assert not task.verify(problem, "New York").correct


@pytest.mark.parametrize("keep_marks", [False, True])
def test_gsm8k_rows_keep_or_lose_their_calculator_marks(keep_marks):
    task = Gsm8k(path=str(FIXTURES), keep_marks=keep_marks)
    problem = task.problem("train", 0)
    assert problem.answer == "72"
    assert problem.steps[0] == f"Natalia sold 48/2 = {'<<48/2=24>>' * keep_marks}24 clips in May."
    assert len(problem.steps) == 2
    assert task.verify(problem, "... so 24 + 48 = 72\n#### 72").correct
    assert task.verify(problem, r"... so \boxed{$72.00}").correct
    assert not task.verify(problem, "#### 71").correct
    assert not task.verify(problem, "so 24 + 48 = 72").correct
    assert (task.num_problems("train"), task.num_problems("test")) == (8, 4)


GOOD = b'{"question": "1+1?", "answer": "1+1 = 2\\n#### 2"}\n\n'


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"{", "not JSON"),
        (b'"text"', "need a JSON object, got str"),
        (b'{"question": "caf\xe9", "answer": "#### 1"}', "not JSON .*0xe9"),
        (b'{"answer": "#### 1"}', "'question' must be a text that is not empty, got None"),
        (b'{"question": "1+1?", "answer": 2}', "'answer' must be a text that is not empty, got 2"),
        (
            b'{"question": "1+1?", "answer": "It is 2."}',
            "'answer' must end in #### and the final answer, got .*'It is 2.'.* leave",
        ),
        (b'{"question": "1+1?", "answer": "It is 2.\\n#### "}', "'answer' must end in #### and the final answer"),
    ],
)
def test_a_malformed_row_of_gsm8k_is_named_by_file_and_line(tmp_path, row, said):
    (tmp_path / "gsm8k_train.jsonl").write_bytes(GOOD + row)
    with pytest.raises(ValueError, match=rf"gsm8k_train\.jsonl, line 3: {said}"):
        Gsm8k(path=str(tmp_path)).problem("train", 0)


def test_published_files_without_rows_or_half_packed_are_named(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD))
    assert published_rows(str(path), "train") == [(f"{path}, line 1", json.loads(GOOD))]
    path.write_bytes(gzip.compress(GOOD)[:-12])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz is no whole gzip file .* fetch it again"):
        published_rows(str(path), "train")
    path.write_bytes(gzip.compress(b"\n"))
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz has no rows"):
        published_rows(str(path), "train")


def test_sentences_are_not_cut_at_decimals_or_abbreviations():
    assert split_cot("Half of 3.5 is 1.75. Add 1, e.g. by hand! Done", "sentence") == (
        "Half of 3.5 is 1.75.",
        "Add 1, e.g. by hand!",
        "Done",
    )
    assert split_cot("a. b\n\nc", "line") == ("a. b", "c")
    assert split_cot("def f(x):\r\n    return x \n", "line") == ("def f(x):", "    return x")


def test_sentences_may_end_in_formulas_quotations_and_brackets():
    assert split_cot('So $x = 3.$ He said "no." (Why?) Then \\[y = 4.\\] But $a.b$ stays.', "sentence") == (
        "So $x = 3.$",
        'He said "no."',
        "(Why?)",
        "Then \\[y = 4.\\]",
        "But $a.b$ stays.",
    )


@settings(max_examples=200, deadline=None)
@given(st.text(), st.sampled_from(["sentence", "line", "whole"]))
def test_blocks_joined_are_the_text_up_to_white_space(text, by):
    assert "".join("".join(split_cot(text, by)).split()) == "".join(text.split())
