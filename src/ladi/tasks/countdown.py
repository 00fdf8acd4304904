"""Countdown: reach a target from given numbers with + - * /, using every number once.

    question   19,35,44:60
    steps      44-19=25 | 35+25=60
    answer     44-19=25,35+25=60

Intermediates are positive integers; the larger operand is written first. A tenth of the targets is held out of
training (`test_unseen`), and a small hashed share of all puzzles, as multisets of inputs with their target, is
reserved for `validation` and `test`, so that no test puzzle can occur in training.
"""

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

from ladi.tasks.base import Problem, Verdict, index_random, stable_uniform

MAX_TEXT = 200
"""Longest answer text that is parsed, characters."""
MAX_TRIES = 1_000_000
"""Random puzzles made for one of a split; the usual settings need hundreds."""
MAX_REPEATS = 1000
"""Puzzles of a split, drawn one after the other without a new one among them, after which it counts as used up."""
STEP = re.compile(r" *([0-9]{1,9}) *([-+*/]) *([0-9]{1,9}) *= *([0-9]{1,9}) *", re.ASCII)
SPLITS = ("train", "validation", "test", "test_unseen")


def apply(a: int, op: str, b: int) -> int | None:
    """`a op b`, or None unless it is a positive integer."""
    if op == "+":
        result = a + b
    elif op == "-":
        result = a - b
    elif op == "*":
        result = a * b
    else:
        result = a // b if b and a % b == 0 else 0
    return result if result > 0 else None


def canonical_step(a: int, op: str, b: int, result: int) -> str:
    """The step with the larger operand of + and * first."""
    if op in "+*" and a < b:
        a, b = b, a
    return f"{a}{op}{b}={result}"


def verify(numbers: Sequence[int], target: int, text: str) -> Verdict:
    """The verdict on comma-separated steps such as `44-19=25,35+25=60`; never raises, never evaluates text.

    Every step must be exact with positive integers, every input must be used exactly once, every intermediate must be
    used before the end, and the last result must be the target. `canonical` ignores the order of the steps and of
    the operands of + and *.
    """
    if len(text) > MAX_TEXT:
        return Verdict(correct=False, reason="text too long")
    parts = text.split(",")
    if len(parts) != len(numbers) - 1:
        return Verdict(correct=False, reason="wrong number of steps")
    available, steps, last = Counter(numbers), [], 0
    for part in parts:
        match = STEP.fullmatch(part)
        if match is None:
            return Verdict(correct=False, reason="not a step")
        a, op, b, last = int(match[1]), match[2], int(match[3]), int(match[4])
        if any(len(group) > 1 and group[0] == "0" for group in match.group(1, 3, 4)):
            return Verdict(correct=False, reason="leading zero")
        for operand in (a, b):
            if available[operand] <= 0:
                return Verdict(correct=False, reason="number not available")
            available[operand] -= 1
        if apply(a, op, b) != last:
            return Verdict(correct=False, reason="wrong arithmetic")
        available[last] += 1
        steps.append(canonical_step(a, op, b, last))
    if last != target:
        return Verdict(correct=False, reason="wrong target")
    return Verdict(correct=True, reason="ok", canonical=",".join(sorted(steps)))


def combine(values: tuple[int, ...], i: int, j: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every step that values i and j allow, larger operand first, with the values that are left after it."""
    a, b = max(values[i], values[j]), min(values[i], values[j])
    rest = tuple(value for k, value in enumerate(values) if k not in (i, j))
    for op in "+-*/":
        result = apply(a, op, b)
        if result is not None:
            yield f"{a}{op}{b}={result}", (*rest, result)


def solve(numbers: Sequence[int], target: int) -> set[str]:
    """Canonical forms of all solutions, by brute force."""
    found: set[str] = set()

    def search(values: tuple[int, ...], steps: tuple[str, ...]) -> None:
        if len(values) == 1:
            if values[0] == target:
                found.add(",".join(sorted(steps)))
            return
        for i, j in combinations(range(len(values)), 2):
            for step, left in combine(values, i, j):
                search(left, (*steps, step))

    search(tuple(numbers), ())
    return found


@lru_cache
def held_out_targets(low: int, high: int, seed: int) -> frozenset[int]:
    """A tenth of the targets low..high, chosen once by seed, that training never sees."""
    targets = range(low, high + 1)
    return frozenset(index_random("held out targets", seed).sample(targets, max(1, len(targets) // 10)))


class DistinctPuzzles:
    """The draws of a split without those that repeat an earlier puzzle, made as far as they are asked for."""

    def __init__(self, task: "Countdown", split: str):
        self.task, self.split = task, split
        self.problems: list[Problem] = []
        self.seen: set[tuple[int, ...]] = set()
        self.num_drawn = 0

    def __getitem__(self, index: int) -> Problem:
        """The puzzle of that index.

        Raises:
            ValueError: if the split seems to have no more different ones.
        """
        num_repeats = 0
        while len(self.problems) <= index:
            problem = self.task.draw(self.split, self.num_drawn)
            self.num_drawn += 1
            key = (*sorted(problem.meta["numbers"]), problem.meta["target"])
            if key not in self.seen:
                self.seen.add(key)
                self.problems.append(problem)
                num_repeats = 0
            elif (num_repeats := num_repeats + 1) == MAX_REPEATS:
                raise ValueError(
                    f"the split {self.split!r} has {len(self.problems)} different puzzles of {self.task.size} numbers "
                    f"up to {self.task.max_input}, so no puzzle {index}; ask for fewer, or raise max_input or size"
                )
        return self.problems[index]


@lru_cache
def distinct_puzzles(task: "Countdown", split: str) -> DistinctPuzzles:
    """The one list of a task's split in this process."""
    return DistinctPuzzles(task, split)


@dataclass(frozen=True, kw_only=True)
class Countdown:
    """The task `countdown`: puzzles by index, each with one worked solution."""

    size: int = 3
    """Numbers in a puzzle."""
    max_input: int = 100
    """Inputs are uniform in 1..max_input."""
    min_target: int = 10
    max_target: int = 100
    max_intermediate: int = 9999
    holdout_seed: int = 0
    """Chooses the held-out targets and reserved puzzles; all runs that are compared must share it."""
    reserved: float = 0.05
    """Share of puzzles with seen targets kept out of training, half for validation and half for test."""
    seed: int = 0

    def __post_init__(self):
        if not 2 <= self.size <= 6:
            raise ValueError(f"size must be 2 to 6 numbers, got {self.size}")
        if not 1 <= self.min_target < self.max_target:
            raise ValueError(f"need 1 <= min_target < max_target, got {self.min_target} and {self.max_target}")
        if self.max_input < 2:
            raise ValueError(f"max_input must be at least 2, got {self.max_input}")
        most = min(self.max_input**self.size, self.max_intermediate)
        if most < self.min_target:
            raise ValueError(
                f"{self.size} numbers up to {self.max_input} with results up to {self.max_intermediate}: the greatest "
                f"target is {most}, below min_target ({self.min_target}); lower that, or raise one of the others"
            )
        if not 0 < self.reserved < 1:
            raise ValueError(f"reserved is a share between 0 and 1, got {self.reserved}")

    name = "countdown"
    alphabet = "0123456789+-*/=,:"
    step_separator = ","
    cot_in_answer = True
    needs_mark = False
    splits = SPLITS

    def num_problems(self, split: str) -> None:
        """None: every split is endless."""

    def held_out(self) -> frozenset[int]:
        """The targets that only `test_unseen` has."""
        return held_out_targets(self.min_target, self.max_target, self.holdout_seed)

    def split_of(self, numbers: Sequence[int], target: int) -> str:
        """The one split that a puzzle belongs to, whatever the order of its numbers."""
        if target in self.held_out():
            return "test_unseen"
        u = stable_uniform("puzzle", self.holdout_seed, *sorted(numbers), target)
        if u >= self.reserved:
            return "train"
        return "validation" if u < self.reserved / 2 else "test"

    def problem(self, split: str, index: int) -> Problem:
        """Puzzle `index` of a split.

        Inputs are uniform; random pairs are combined by a random operation until one number is left; what misses the
        target range or belongs to another split is drawn again. Puzzles of the splits other than `train` are all
        different.

        Raises:
            ValueError: if the split is unknown, empty, or has no more different puzzles.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; countdown has {', '.join(SPLITS)}")
        return self.draw(split, index) if split == "train" else distinct_puzzles(self, split)[index]

    def draw(self, split: str, index: int) -> Problem:
        """Draw `index` of a split; two draws may give one puzzle.

        Raises:
            ValueError: if no puzzle of the split is found.
        """
        rng = index_random("countdown", self.size, self.max_input, self.seed, split, index)
        for _ in range(MAX_TRIES):
            numbers = [rng.randint(1, self.max_input) for _ in range(self.size)]
            steps = self._combine_all(numbers, rng)
            if steps is None:
                continue
            target = int(steps[-1].split("=")[1])
            if self.split_of(numbers, target) == split:
                question = ",".join(map(str, numbers)) + f":{target}"
                meta = {"numbers": tuple(numbers), "target": target}
                return Problem(question=question, steps=tuple(steps), answer=",".join(steps), meta=meta)
        raise ValueError(
            f"none of {MAX_TRIES:,} puzzles of {self.size} numbers up to {self.max_input} with a target from "
            f"{self.min_target} to {self.max_target} belongs to the split {split!r}; widen the targets, or raise "
            "max_input, size or (for validation and test) reserved"
        )

    def _combine_all(self, numbers: list[int], rng: random.Random) -> list[str] | None:
        """Random steps down to one number within the target range, or None."""
        values, steps = list(numbers), []
        while len(values) > 1:
            a = values.pop(rng.randrange(len(values)))
            b = values.pop(rng.randrange(len(values)))
            a, b = max(a, b), min(a, b)
            op = rng.choice("+-*/")
            result = apply(a, op, b)
            if result is None or result > self.max_intermediate:
                return None
            steps.append(f"{a}{op}{b}={result}")
            values.append(result)
        return steps if self.min_target <= values[0] <= self.max_target else None

    def verify(self, problem: Problem, text: str) -> Verdict:
        """The verdict of `ladi.tasks.countdown.verify` on a problem's numbers and target."""
        return verify(problem.meta["numbers"], problem.meta["target"], text)
