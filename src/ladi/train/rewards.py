"""What a sampled text is worth: the task's verifier, or the user's functions."""

import math
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ladi.inference.text import judged_text
from ladi.tasks import TaskConfig, verify_all
from ladi.tasks.base import Problem, Verdict

RewardFunction = Callable[..., Sequence[float]]
"""reward(questions, texts, **columns) -> one number per text; columns are `answer`, `steps` and the problem's meta: of
your own JSONL, its other columns, with None where a row lacks one."""


class RewardError(RuntimeError):
    """A reward function failed; the message names it and the sample, and training can be resumed."""

    def __init__(self, said: str):
        super().__init__(f"{said}. Fix it, then run the same command to go on from the last checkpoint")


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Where rewards come from."""

    functions: tuple[str, ...] = ()
    """`module:function` names of your own rewards, also of modules in the working folder; empty takes the task's
    verifier: 1 if correct, else 0."""
    weights: tuple[float, ...] = ()
    """One for each of `functions`; empty means 1 each. Functions passed from Python have 1."""
    time_limit: float = 60.0
    """Longest time for one call, seconds."""

    def __post_init__(self):
        if self.weights and len(self.weights) != len(self.functions):
            raise ValueError(f"reward.weights has {len(self.weights)} entries for {len(self.functions)} functions")
        if self.time_limit <= 0:
            raise ValueError(f"reward.time_limit must be positive, got {self.time_limit}")


def load_function(name: str) -> Any:
    """The function named `module:function`.

    Raises:
        ValueError: if there is none.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ValueError(f"reward function {name!r} cannot be loaded ({error}); name it as module:function") from error
    if not callable(function):
        raise ValueError(f"reward {name!r} is not a function")
    return function


def as_number(value: Any) -> float:
    """One number of Python, NumPy or torch as a float, True as 1; NaN for what is none, texts of digits included."""
    if isinstance(value, str | bytes) or not hasattr(value, "__float__") or getattr(value, "ndim", 0):
        return math.nan
    try:
        return float(value)
    except (ArithmeticError, RuntimeError, TypeError, ValueError):  # too large, or complex after all
        return math.nan


@dataclass(frozen=True)
class Scores:
    """Rewards and verdicts of S texts; verdicts are always the task's."""

    rewards: list[float]
    verdicts: list[Verdict]


class Rewards:
    """Scores texts; calls the user's functions under a time limit and refuses what is not a finite number."""

    def __init__(self, config: RewardConfig, task: TaskConfig, functions: Sequence[RewardFunction] = ()):
        self.config, self.task = config, task
        self.functions = [*map(load_function, config.functions), *functions]
        self.weights = (*(config.weights or (1.0,) * len(config.functions)), *(1.0,) * len(functions))

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str], whole: bool) -> Scores:
        """Scores of one text per problem; `whole` texts hold chain of thought and answer.

        Raises:
            RewardError: if a function raises, hangs past its limit, or returns anything but finite numbers.
        """
        verdicts = verify_all(self.task, problems, [judged_text(text, self.task, whole) for text in texts])
        if not self.functions:
            return Scores([float(verdict.correct) for verdict in verdicts], verdicts)
        totals = [0.0] * len(texts)
        for function, weight in zip(self.functions, self.weights, strict=True):
            for i, value in enumerate(self._call(function, problems, texts)):
                totals[i] += weight * value
        return Scores(totals, verdicts)

    def _call(self, function: RewardFunction, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        name = getattr(function, "__name__", str(function))
        columns: dict[str, list[Any]] = {"answer": [p.answer for p in problems], "steps": [p.steps for p in problems]}
        for key in dict.fromkeys(key for p in problems for key in p.meta):
            columns[key] = [p.meta.get(key) for p in problems]  # rows of a file may lack some
        result: list[Any] = []
        failure: list[BaseException] = []

        def target() -> None:
            try:
                result.extend(function([p.question for p in problems], list(texts), **columns))
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=target, daemon=True)  # daemon: a call that hangs does not keep the process
        thread.start()
        thread.join(self.config.time_limit)
        sample = f"first sample: question {problems[0].question!r}, text {texts[0]!r}"
        if thread.is_alive():
            raise RewardError(f"reward {name!r} took more than {self.config.time_limit} s (time_limit); {sample}")
        if failure:
            frame = traceback.extract_tb(failure[0].__traceback__)[-1]
            where = f"{frame.filename}, line {frame.lineno}"
            given = f"it is called as {name}(questions, texts, **columns), with the columns {', '.join(columns)}"
            raise RewardError(f"reward {name!r} raised {failure[0]!r} ({where}); {given}; {sample}") from failure[0]
        if len(result) != len(texts):
            raise RewardError(f"reward {name!r} returned {len(result)} values for {len(texts)} texts; {sample}")
        values = []
        for problem, text, value in zip(problems, texts, result, strict=True):
            number = as_number(value)
            if not math.isfinite(number):
                raise RewardError(
                    f"reward {name!r} returned {value!r}, not a finite number, for question {problem.question!r}, "
                    f"text {text!r}; return a number for each text, such as a float or a tensor without dimensions"
                )
            values.append(number)
        return values
