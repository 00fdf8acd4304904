"""Marked answers, and what is equal to what."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ladi.tasks.answers import MAX_TEXT, NO_ANSWER, compare, marked_answer, verify_answers
from ladi.tasks.base import Verdict
from ladi.tasks.math_pool import MathPool


@pytest.fixture(scope="module")
def pool():
    pool = MathPool(num_workers=2, time_limit_s=30.0)
    yield pool
    pool.close()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3+4=7\n#### 7", "7"),
        ("#### 7\nThat is all.", "7"),
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\\\boxed{3}", "3"),
        (r"\fbox{3}", "3"),
        (r"$\boxed 3$", "3"),
        ("<answer>\n x + 1\n</answer> is it", "x + 1"),
        (r"<answer>It is \boxed{9}.</answer>", "9"),
        ("<answer>1</answer> no, #### 2", "2"),
        (r"\boxed{5}, hence" + "\n####", "5"),
        ("#### 1" + " " * MAX_TEXT, None),
        ("The answer is 42.", None),
        ("3+4=7", None),
        (r"\boxed{1", None),
        ("<answer>1", None),
        (r"\boxed{}", None),
        ("####", None),
        ("", None),
    ],
)
def test_the_answer_that_is_marked_last_is_found(text, answer):
    assert marked_answer(text) == answer


@pytest.mark.timeout(10)
@pytest.mark.parametrize("piece", [r"\boxed{", "{", "<answer>", "####", r"\boxed{}", "\\"])
def test_finding_it_takes_time_linear_in_the_text(piece):
    marked_answer(piece * MAX_TEXT)


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("1200", "$1,200.0", True),
        ("10,\\!080", "10080", True),
        ("0.5", "1/2", True),
        ("0.5", r"\frac{1}{2}", True),
        (r"-\frac{1}{2}", "-.5", True),
        (r"\frac{-1}{2}", r"-\dfrac{1}{2}", True),
        ("25", "25%", True),
        (r"25\%", "0.25", True),
        ("25%", "0.5", False),
        ("18", r"\$18.00", True),
        ("18", "-18", False),
        ("-5", "\u22125", True),
        (r"\frac{1}{3}", "0.333333", False),
        ("1,2", "12", None),
        ("3,5,7", "357", None),
        ("1/0", "1", None),
        ("7", "seven", None),
        ("2516_8", "2516_{8}", True),
        ("2516_8", "2516_7", False),
        (r"\text{Evelyn}", "evelyn", True),
        ("Paris", "Pairs", False),
        ("no", "on", False),
        ("Yes", "YES", True),
        (r"\text{cat}", "act", False),
        ("x", "y", None),
        ("18", "18 dollars", True),
        ("18", r"\$18 \text{ dollars per day}.", True),
        ("18", "19 hrs", False),
        ("8", r"8\text{ million}", False),
        ("8,000,000", "8 million dollars", True),
        ("24", "2 dozen", True),
        ("8", r"8 \text{ or nine}", False),
        ("8", "8 and a half", False),
        ("64", "8 squared", False),
        ("60", "60 percent", True),
        ("0.6", r"60 \text{ percent}", True),
        ("60", "0.6 percent", False),
        ("8", "8 cm", None),
        ("3", "3 x", None),
        (r"2\pi", "2 feet", None),
    ],
)
def test_plain_numbers_and_words_are_compared_exactly_without_mathematics(gold, answer, same):
    assert compare(gold, answer) is same


EQUAL = [
    (r"\frac{1}{2}", r"\frac{2}{4} \cdot 1"),
    (r"\frac{1}{2}", r"2^{-1}"),
    ("x^2-1", "(x-1)(x+1)"),
    (r"11\sqrt2", r"11 \cdot \sqrt{2}"),
    ("1,-2", "-2, 1"),
    (r"\{1,2,3\}", r"\{3,1,2\}"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty) \cup (-\infty,2)"),
    (r"x \in [-2,7]", "[-2,7]"),
    ("x=5", "5"),
    ("5", "x=5"),
    ("5", r"5\text{ cm}"),
    (r"106^\circ", "106"),
    ("y = 2x + 3", "2x + 3 = y"),
    (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{pmatrix} 0.2 \\ -3.6 \end{pmatrix}"),
    (r"\text{(C)}", "C"),
]
DIFFERENT = [
    (r"\frac{1}{2}", r"\frac{1}{3} \cdot 1"),
    ("x^2-1", "x^2+1"),
    ("p - q", "q - p"),
    ("1,-2", "1,-2,3"),
    ("(1,2,3)", "(3,2,1)"),
    ("(15,-29)", "(-29,15)"),
    ("(1,2)", "[1,2]"),
    ("(3,4]", "[3,4)"),
    ("7", "6, 7"),
    ("7", r"6 \text{ or } 7"),
    ("7", "I think it is 7"),
    ("7", r"x \ge 7"),
    ("x=5", "y=5"),
    ("12:00", "1:00"),
    (r"\text{(C)}", "B"),
    (r"\pm 2021", "2021"),
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    ("5", r"\text{answer: } 5 + 3"),
    (r"\frac{2}{0}", r"\frac{3}{0}"),
    ("1, 2, \\ldots, n", "1, 3, 5, \\ldots, 2n-1"),
    # two bare equations, which math-verify reads as their last number, 0, outside of a box
    ("3*x-1*y+13=0", "3x + 4y + 14=0"),
    ("x+y=0", "x-y=0"),
    ("5x - 7y + 11z + 4 = 0", "1=2"),
]


def judge(golds, answers, pool):
    return [v.correct for v in verify_answers(golds, [rf"\boxed{{{answer}}}" for answer in answers], pool)]


def test_equivalent_forms_are_correct(pool):
    golds, answers = zip(*EQUAL, strict=True)
    assert [pair for pair, ok in zip(EQUAL, judge(golds, answers, pool), strict=True) if not ok] == []


def test_different_answers_are_wrong(pool):
    golds, answers = zip(*DIFFERENT, strict=True)
    assert [pair for pair, ok in zip(DIFFERENT, judge(golds, answers, pool), strict=True) if ok] == []


@pytest.mark.parametrize("text", ["3*x-1*y+13=0", "3x + 4y + 14=0", "so 3 + 4 = 7", "7", "The answer is 7.", ""])
def test_free_text_is_wrong_whatever_numbers_it_ends_with(text):
    for gold in ("7", "0", text):
        assert verify_answers([gold], [text])[0] == Verdict(correct=False, reason=NO_ANSWER)


def test_the_last_number_of_a_marked_sentence_does_not_win(pool):
    assert judge(["7", "7", "7"], ["so it is 7", "3 and 7", r"\text{I say } 7"], pool) == [False] * 3


def test_a_verdict_says_why_and_names_one_solution(pool):
    texts = [r"\boxed{x+x}", "#### 2x", r"\boxed{x+1}", r"\boxed{" + "x" * 600 + "}"]
    verdicts = verify_answers(["2x"] * 4, texts, pool)
    assert [v.reason for v in verdicts] == ["ok", "ok", "wrong answer", "answer too long"]
    assert verdicts[0].canonical == verdicts[1].canonical == "2x"


PIECES = list("$%/0.,(]|^_=<x!e{}\\ \n\0\ud800\u0663")
PIECES += [r"\boxed{", "<answer>", "</answer>", "#### ", "-1", r"\frac", r"\sqrt", r"\text{", r"\pm"]


@settings(max_examples=300, deadline=None)
@given(st.text(), st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_no_text_makes_the_comparison_raise(free, marked):
    for text in (free, marked):
        assert compare("1/2", marked_answer(text) or text) in (True, False, None)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=12), max_size=12))
def test_no_text_makes_the_verifier_raise(pool, answers):
    texts = [rf"\boxed{{{answer}}}" for answer in answers] + [f"<answer>{answer}</answer>" for answer in answers]
    verdicts = verify_answers([r"x+\frac{1}{2}"] * len(texts), texts, pool)
    assert all(isinstance(verdict, Verdict) and verdict.reason for verdict in verdicts)
