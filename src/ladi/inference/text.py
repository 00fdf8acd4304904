"""How a token-level model's text holds its answer, and which characters a task's models need."""

from ladi.tasks import TaskConfig
from ladi.tasks.base import Problem
from ladi.tasks.blocks import Block, before_block

ANSWER_MARK = "\n#### "


def alphabet(task: TaskConfig) -> str:
    """Every character that a model of this task reads or writes."""
    return "".join(sorted(set(task.alphabet) | set(ANSWER_MARK) | set(task.step_separator)))


def blocks_of(problem: Problem, block: str, separator: str) -> list[Block]:
    """The problem's blocks: its steps, or the whole chain of thought as one.

    Raises:
        ValueError: if it has none, or an empty one.
    """
    texts = list(problem.steps) if block == "step" else [separator.join(problem.steps)]
    if not texts or not all(text.strip() for text in texts):
        raise ValueError(
            f"latents are learned from steps, but {problem.question[:60]!r} has {texts or 'none'}; give it some or "
            "leave it out (sft, grpo, dlr-warmup and dlr need no steps)"
        )
    return [Block(before_block(problem.question, texts[:k]), text) for k, text in enumerate(texts)]


def sft_target(problem: Problem, task: TaskConfig) -> str:
    """What a token-level model writes: the chain of thought, then the answer unless the answer spells it already."""
    if task.cot_in_answer:
        return problem.answer
    return task.step_separator.join(problem.steps) + ANSWER_MARK + problem.answer


def judged_text(text: str, task: TaskConfig, whole: bool) -> str:
    """What the task's verifier reads of a model's text; `whole` texts hold chain of thought and answer.

    A verifier that reads only marked answers finds those of whole texts itself; a text head writes nothing but the
    answer, so its text is marked here.
    """
    if task.needs_mark:
        return text if whole else f"<answer>{text}</answer>"
    return text.rsplit(ANSWER_MARK, 1)[-1] if whole and not task.cot_in_answer else text
