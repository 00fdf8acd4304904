"""The generators of reasoning-gym (arXiv:2505.24760): more than a hundred kinds of questions without end; an extra.

question   Now, how many legs there are in total if you have 2 dogs, 3 birds? ...
steps      (none)
answer     14

They give no chain of thought, gsm_symbolic excepted: `sft`, `grpo`, `dlr-warmup` and `dlr` learn from questions and
answers, and what learns latents from steps (`vae`, `reasoner`, `rollout`) refuses them.

Their own scorers are not used, because some evaluate what a model wrote. Here an answer is right if it is the
generator's, as a text, an exact number or words: choose generators whose questions have one right answer.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

from ladi.tasks.answers import marked_answer, quick_verdict
from ladi.tasks.base import Problem, Verdict, characters
from ladi.tasks.blocks import split_cot

SPLITS = ("train", "test")
MAX_SEED = 2**32
"""Seeds of numpy's generators, which some data sets use, are below."""


def parse(entry: Mapping[str, Any], where: str) -> Problem:
    """A problem from what a generator gives; an answer of several lines becomes one line.

    Raises:
        ValueError: if it gives no answer.
    """
    question, answer, metadata = entry["question"], entry["answer"], entry["metadata"]
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"{where}: the answer is {answer!r}; take a data set whose questions have one right answer")
    cot = metadata.get("answer_cot", "")
    steps = split_cot(cot.split("####")[0], "line")
    return Problem(question=question.strip(), steps=steps, answer=" ".join(answer.split()), meta={"metadata": metadata})


@lru_cache
def data_set(name: str, settings: str, size: int, seed: int) -> Any:
    """The data set of reasoning-gym: entry i has the seed `seed` + i.

    Raises:
        ValueError: if the package is missing, or has no such data set with such settings.
    """
    try:
        gym = import_module("reasoning_gym")
    except ImportError as error:
        raise ValueError(f"the task gym needs reasoning-gym ({error}); pip install 'ladi[gym]'") from error
    try:
        return gym.create_dataset(name, **json.loads(settings), size=size, seed=seed)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f"reasoning-gym makes no data set {name!r} with settings {settings} ({error}); its GALLERY.md lists both"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Gym:
    """The task `gym`."""

    dataset: str = "leg_counting"
    """Name of a data set of reasoning-gym."""
    settings: str = "{}"
    """Its settings, as a JSON object: '{"max_animals": 5}'."""
    size: int = 10_000
    """Problems of each split."""
    seed: int = 0
    """Splits and seeds share no seed of a generator; few settings may still make few questions, and the same ones."""

    name = "gym"
    step_separator = "\n"
    cot_in_answer = False
    needs_mark = True
    splits = SPLITS

    def __post_init__(self):
        try:
            settings = json.loads(self.settings)
        except json.JSONDecodeError as error:
            raise ValueError(f"settings must be a JSON object, got {self.settings!r} ({error})") from error
        if not isinstance(settings, dict) or {"seed", "size"} & settings.keys():
            raise ValueError(f"settings must be a JSON object without seed and size (fields here), got {self.settings}")
        if self.size < 1 or self.seed < 0 or self.first_seed("test") + self.size > MAX_SEED:
            raise ValueError(f"need size >= 1, seed >= 0 and (2 seed + 2) size <= 2^32, got {self.size}, {self.seed}")

    def first_seed(self, split: str) -> int:
        """The generator's seed of problem 0; problem i has the i-th after it."""
        return (2 * self.seed + SPLITS.index(split)) * self.size

    @property
    def alphabet(self) -> str:
        """Every character of the training texts."""
        return characters(self.problem("train", i) for i in range(self.size))

    def num_problems(self, split: str) -> int:
        """Problems of a split."""
        return self.size

    def problem(self, split: str, index: int) -> Problem:
        """Problem `index` of a split.

        Raises:
            ValueError: if the split is unknown or has no such problem, or the data set cannot be made.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; gym has train and test")
        if not 0 <= index < self.size:
            raise ValueError(
                f"gym {split} has {self.size} problems, so no problem {index}; raise size, or ask for fewer"
            )
        entry = data_set(self.dataset, self.settings, self.size, self.first_seed(split))[index]
        return parse(entry, f"{self.dataset}, {split} {index}")

    def verify(self, problem: Problem, text: str) -> Verdict:
        """Correct if the marked answer of the text is the generator's: text, number or words, no formulas."""
        wrong = Verdict(correct=False, reason="wrong answer")
        return quick_verdict(problem.answer, marked_answer(text)) or wrong
