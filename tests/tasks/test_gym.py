"""The task gym, on a stand-in for reasoning-gym whose scorer fails, and on the package where it is installed."""

import sys
from random import Random
from types import SimpleNamespace

import pytest

from ladi.inference.text import blocks_of, judged_text, sft_target
from ladi.tasks import gym
from ladi.tasks.base import Problem
from ladi.tasks.gym import Gym
from ladi.train.data import DataConfig


class Sums:
    """Sums of two numbers below `most`, made as reasoning-gym makes its entries."""

    def __init__(self, most: int = 1000, *, size: int, seed: int):
        assert most > 1, "most must be above 1"
        self.most, self.size, self.seed = most, size, seed

    def __getitem__(self, index: int) -> dict:
        rng = Random(self.seed + index)
        a, b = rng.randrange(self.most), rng.randrange(self.most)
        return {"question": f"{a} + {b}?\n", "answer": str(a + b), "metadata": {"terms": (a, b)}}

    def score_answer(self, answer, entry):
        raise AssertionError("a generator's scorer was called")


class Worked(Sums):
    def __getitem__(self, index: int) -> dict:
        entry = super().__getitem__(index)
        cot = f"First.\nSecond: {entry['answer']}.\n#### {entry['answer']}"
        return {**entry, "metadata": {"answer_cot": cot}}


class Open(Sums):
    def __getitem__(self, index: int) -> dict:
        return {**super().__getitem__(index), "answer": None}


MADE = {"sums": Sums, "worked": Worked, "open": Open}


@pytest.fixture
def package(monkeypatch):
    """Stands in for reasoning-gym."""

    def create_dataset(name, **settings):
        if name not in MADE:
            raise ValueError(f"Dataset '{name}' not registered")
        return MADE[name](**settings)

    monkeypatch.setitem(sys.modules, "reasoning_gym", SimpleNamespace(create_dataset=create_dataset))
    gym.data_set.cache_clear()
    yield
    gym.data_set.cache_clear()


@pytest.mark.usefixtures("package")
def test_entries_become_problems_without_steps():
    problem = Gym(dataset="sums", settings='{"most": 10}').problem("train", 3)
    a, b = problem.meta["metadata"]["terms"]
    assert problem == Problem(question=f"{a} + {b}?", steps=(), answer=str(a + b), meta=problem.meta)
    assert max(a, b) < 10


@pytest.mark.usefixtures("package")
def test_no_two_splits_or_seeds_share_a_seed_of_the_generator():
    tasks = [Gym(dataset="sums", size=50, seed=seed) for seed in range(4)]
    used = [task.first_seed(split) + i for task in tasks for split in task.splits for i in range(task.size)]
    assert len(set(used)) == len(used)
    questions = [task.problem(s, i).question for task in tasks for s in task.splits for i in range(task.size)]
    assert len(set(questions)) > 0.99 * len(questions)


@pytest.mark.usefixtures("package")
def test_a_problem_depends_on_its_index_alone():
    there = [Gym(dataset="sums", size=9).problem("test", i) for i in range(9)]
    gym.data_set.cache_clear()
    assert [Gym(dataset="sums", size=9).problem("test", i) for i in reversed(range(9))] == there[::-1]


@pytest.mark.usefixtures("package")
def test_latents_are_learned_only_where_a_worked_solution_is_given(capsys):
    problem = Gym(dataset="worked").problem("train", 0)
    assert [b.text for b in blocks_of(problem, "step", "\n")] == ["First.", f"Second: {problem.answer}."]
    assert sft_target(problem, Gym()) == f"First.\nSecond: {problem.answer}.\n#### {problem.answer}"
    with pytest.raises(ValueError, match=r"latents are learned from steps.*grpo.* need no steps"):
        blocks_of(Gym(dataset="sums").problem("train", 0), "step", "\n")
    DataConfig(task=Gym(dataset="sums", size=20), num_train=20).check()
    assert "of 20 test questions also occur in training" in capsys.readouterr().out


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("dataset", ["sums", "worked"])
def test_what_sft_and_text_heads_are_taught_is_right(dataset):
    task = Gym(dataset=dataset, size=20)
    for problem in (task.problem("train", i) for i in range(20)):
        assert task.verify(problem, judged_text(sft_target(problem, task), task, whole=True)).correct
        assert task.verify(problem, judged_text(problem.answer, task, whole=False)).correct
        assert set(sft_target(problem, task)) <= set(task.alphabet) | set("\n# ")


@pytest.mark.parametrize(
    ("gold", "text", "correct"),
    [
        ("1200", "so #### 1,200.0", True),
        ("1200", "so 1200", False),
        ("0.333333", "#### 1/3", False),
        ("True", "<answer>true</answer>", True),
        ("abc", "<answer>cab</answer>", False),  # to math-verify both are products of letters
        ("1 2\n3 4", "<answer>1 2\n3 4</answer>", True),
        ("1 2\n3 4", "<answer>1 2\n4 3</answer>", False),
        ("14", "<answer>__import__('os').abort() or 14</answer>", False),
        ("14", "<answer>10 + 4</answer>", False),
    ],
)
def test_answers_are_compared_as_texts_numbers_and_words(gold, text, correct):
    entry = {"question": "q", "answer": gold, "metadata": {}}
    assert Gym().verify(gym.parse(entry, "here"), text).correct == correct


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("fields", "split", "index", "said"),
    [
        ({"dataset": "nothing"}, "train", 0, "no data set 'nothing'.*not registered"),
        ({"settings": '{"least": 1}'}, "train", 0, "unexpected keyword argument 'least'"),
        ({"settings": '{"most": 1}'}, "train", 0, "most must be above 1"),
        ({}, "validation", 0, "unknown split 'validation'; gym has train and test"),
        ({"size": 5}, "train", 5, "gym train has 5 problems, so no problem 5; raise size"),
        ({"dataset": "open"}, "test", 2, "open, test 2: the answer is None; take a data set"),
    ],
)
def test_what_cannot_be_made_is_said(fields, split, index, said):
    with pytest.raises(ValueError, match=said):
        Gym(**{"dataset": "sums", **fields}).problem(split, index)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"settings": "most=3"}, "must be a JSON object, got 'most=3'"),
        ({"settings": "[3]"}, "must be a JSON object without seed and size"),
        ({"settings": '{"seed": 3}'}, "without seed and size"),
        ({"size": 0}, "need size >= 1"),
        ({"size": 2**31, "seed": 1}, r"\(2 seed \+ 2\) size <= 2\^32"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Gym(**fields)


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    gym.data_set.cache_clear()
    with pytest.raises(ValueError, match=r"needs reasoning-gym .*; pip install 'ladi\[gym\]'"):
        Gym().problem("train", 0)


INSTALLED = {
    "leg_counting": {"max_animals": 4},
    "gsm_symbolic": {},
    "spell_backward": {},
    "base_conversion": {},
    "rotate_matrix": {},
    "pool_matrix": {},
}


@pytest.mark.parametrize("dataset", INSTALLED)
def test_generators_of_the_package_give_what_the_task_needs(dataset):
    pytest.importorskip("reasoning_gym")
    task = Gym(dataset=dataset, settings=str(INSTALLED[dataset]).replace("'", '"'), size=30)
    problems = {split: [task.problem(split, i) for i in range(30)] for split in task.splits}
    gym.data_set.cache_clear()
    for split, made in problems.items():
        assert [task.problem(split, i) for i in reversed(range(30))] == made[::-1]
        assert all(task.verify(problem, sft_target(problem, task)).correct for problem in made)
        assert all(bool(problem.steps) == (dataset == "gsm_symbolic") for problem in made)
    questions = [{problem.question for problem in made} for made in problems.values()]
    assert not questions[0] & questions[1]
