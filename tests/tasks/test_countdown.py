from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladi.tasks.base import Verdict
from ladi.tasks.countdown import Countdown, held_out_targets, solve, verify

TASK = Countdown(max_input=50)


def key(problem):
    return (*sorted(problem.meta["numbers"]), problem.meta["target"])


@settings(max_examples=400, deadline=None)
@given(st.text(), st.lists(st.integers(), max_size=6), st.integers())
def test_no_text_makes_the_verifier_raise(text, numbers, target):
    assert isinstance(verify(numbers, target, text), Verdict)


@settings(max_examples=600, deadline=None)
@given(st.text(alphabet="0123456789+-*/=, \u0663\u00b2", max_size=40))
def test_no_nearly_right_text_makes_it_raise_or_pass_wrongly(text):
    verdict = verify((4, 6, 2), 12, text)
    if verdict.correct:
        assert verdict.canonical in solve((4, 6, 2), 12)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("44-19=25,35+25=60", "ok"),
        ("44 - 19 = 25, 25+35=60", "ok"),
        ("44-19=25,35+25=61", "wrong arithmetic"),
        ("44-19=25", "wrong number of steps"),
        ("44-19=25,35+25=60,", "wrong number of steps"),
        ("44-19=25,44+16=60", "number not available"),
        ("19-19=0,35+25=60", "number not available"),
        ("19-44=25,35+25=60", "wrong arithmetic"),
        ("44-19=25,35-25=10", "wrong target"),
        ("44-19=025,35+25=60", "leading zero"),
        ("44-19=25,35+25=\u0666\u0660", "not a step"),
        ("44-19=25,35+25=6\u00b2", "not a step"),
        ("44-19=25,__import__('os')", "not a step"),
        ("44-19=25,35**25=60", "not a step"),
        ("9" * 10 + "-1=1,35+25=60", "not a step"),
        ("1" * 201, "text too long"),
        ("", "wrong number of steps"),
    ],
)
def test_verdicts_name_their_reason(text, reason):
    assert verify((19, 35, 44), 60, text).reason == reason


def test_an_unused_intermediate_is_not_a_solution():
    assert not verify((2, 3, 5, 5), 10, "2+3=5,5+5=10,5+5=10").correct


def test_swapped_operands_and_reordered_steps_are_one_solution():
    first = verify((2, 3, 4, 6), 29, "2+3=5,4*6=24,5+24=29")
    second = verify((2, 3, 4, 6), 29, "6*4=24,3+2=5,24+5=29")
    assert first.correct
    assert first.canonical == second.canonical


def test_brute_force_over_all_texts_agrees_with_solve():
    numbers, target = (2, 3, 7), 13
    found = set()
    for a, b, c in permutations(numbers):
        for first, second in product("+-*/", repeat=2):
            for x in range(1, 60):
                for text in (
                    f"{a}{first}{b}={x},{x}{second}{c}={target}",
                    f"{a}{first}{b}={x},{c}{second}{x}={target}",
                ):
                    verdict = verify(numbers, target, text)
                    if verdict.correct:
                        found.add(verdict.canonical)
    assert found == solve(numbers, target)
    assert found


@pytest.mark.parametrize("size", [3, 4, 5])
@pytest.mark.parametrize("split", ["train", "validation", "test", "test_unseen"])
def test_worked_solutions_are_correct_and_in_their_split(size, split):
    task = Countdown(size=size)
    for i in range(25):
        problem = task.problem(split, i)
        assert len(problem.steps) == size - 1
        assert task.verify(problem, problem.answer).correct
        assert ",".join(problem.steps) == problem.answer
        assert task.split_of(problem.meta["numbers"], problem.meta["target"]) == split
        assert 10 <= problem.meta["target"] <= 100
        assert all(1 <= n <= 100 for n in problem.meta["numbers"])


def test_problems_of_size_three_are_solvable_as_brute_force_says():
    for i in range(30):
        problem = TASK.problem("train", i)
        solutions = solve(problem.meta["numbers"], problem.meta["target"])
        assert TASK.verify(problem, problem.answer).canonical in solutions


def test_no_test_puzzle_occurs_in_training():
    train = {key(TASK.problem("train", i)) for i in range(20_000)}
    for split in ("validation", "test", "test_unseen"):
        assert not train & {key(TASK.problem(split, i)) for i in range(200)}


def test_test_puzzles_are_all_different():
    keys = [key(TASK.problem("test", i)) for i in range(300)]
    assert len(set(keys)) == len(keys)


def test_a_tenth_of_the_targets_is_held_out_whatever_the_seed():
    assert len(held_out_targets(10, 100, 0)) == 9
    assert Countdown(seed=1).held_out() == Countdown(seed=2).held_out()
    seen = {TASK.problem("train", i).meta["target"] for i in range(3000)}
    assert not seen & TASK.held_out()
    assert {TASK.problem("test_unseen", i).meta["target"] for i in range(100)} <= TASK.held_out()


def test_problems_depend_on_split_index_and_seed_alone():
    assert TASK.problem("train", 12_345) == Countdown(max_input=50).problem("train", 12_345)
    assert TASK.problem("test", 50) == TASK.problem("test", 50)
    assert Countdown(seed=1).problem("train", 0) != Countdown(seed=2).problem("train", 0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"size": 1}, "size"), ({"min_target": 50, "max_target": 20}, "min_target"), ({"reserved": 0.0}, "reserved")],
)
def test_bad_settings_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Countdown(**fields)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        TASK.problem("dev", 0)
