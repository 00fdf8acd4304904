import pytest

from ladi.tasks.arithmetic import Arithmetic

TASK = Arithmetic()


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_steps_lead_from_question_to_answer(split):
    for i in range(50):
        problem = TASK.problem(split, i)
        value = None
        for step in problem.steps:
            left, result = step.split("=")
            op = "-" if "-" in left else "+"
            a, b = map(int, left.split(op))
            assert value is None or a == value
            value = a - b if op == "-" else a + b
            assert value == int(result) >= 0
        assert str(value) == problem.answer


def test_only_the_answer_is_correct():
    problem = TASK.problem("train", 0)
    assert TASK.verify(problem, problem.answer).correct
    assert not TASK.verify(problem, problem.answer + "0").correct
    assert not TASK.verify(problem, "").correct


def test_no_test_question_occurs_in_training():
    train = {TASK.problem("train", i).question for i in range(20_000)}
    assert not train & {TASK.problem("test", i).question for i in range(300)}


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="max_steps"):
        Arithmetic(max_steps=1)
    with pytest.raises(ValueError, match="unknown split"):
        TASK.problem("dev", 0)
