from itertools import combinations_with_replacement, permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ladi.tasks import countdown
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
    [
        ({"size": 1}, "size"),
        ({"min_target": 50, "max_target": 20}, "min_target"),
        ({"reserved": 0.0}, "reserved"),
        ({"size": 3, "max_input": 2}, r"the greatest target is 8, below min_target \(10\)"),
        ({"max_intermediate": 9}, r"the greatest target is 9, below min_target \(10\)"),
    ],
)
def test_bad_settings_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Countdown(**fields)


def test_the_greatest_target_that_settings_may_ask_for_is_reached():
    assert solve((2, 2, 2), 8)
    assert Countdown(size=3, max_input=2, min_target=8).max_input == 2


@pytest.mark.parametrize("split", ["validation", "test", "test_unseen"])
def test_a_split_that_runs_out_says_how_many_puzzles_it_had(monkeypatch, split):
    monkeypatch.setattr(countdown, "MAX_REPEATS", 200)
    task = Countdown(size=2, max_input=5, min_target=1, max_target=25, reserved=0.6)
    pairs = list(combinations_with_replacement(range(1, 6), 2))
    puzzles = {(*pair, t) for pair in pairs for t in range(1, 26) if solve(pair, t) and task.split_of(pair, t) == split}
    assert puzzles
    assert {key(task.problem(split, i)) for i in range(len(puzzles))} == puzzles
    with pytest.raises(ValueError, match=f"'{split}' has {len(puzzles)} different puzzles .*; ask for fewer"):
        task.problem(split, len(puzzles))


def test_a_split_without_puzzles_is_refused(monkeypatch):
    monkeypatch.setattr(countdown, "MAX_TRIES", 5000)
    task = Countdown(size=2, max_input=5, min_target=1, max_target=25, reserved=1e-9)
    with pytest.raises(ValueError, match="belongs to the split 'test'; widen the targets"):
        task.problem("test", 0)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        TASK.problem("dev", 0)
