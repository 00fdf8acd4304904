'''HumanEval (Chen et al. 2021) and MBPP (Austin et al. 2021): small Python functions, judged by running their tests.

question   def add(x: int, y: int):
               """Add two numbers x and y"""
steps      return x + y
answer     return x + y

A text counts by the program it makes (`program_code`), which runs shut in: see `sandbox.py`.
'''

import ast
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from ladi.tasks.base import Problem, Published, Verdict
from ladi.tasks.published import published_rows
from ladi.tasks.sandbox import Limits, Program, shared_sandbox

Benchmark = Literal["humaneval", "mbpp"]
HUB = {"humaneval": ("openai/openai_humaneval", "openai_humaneval"), "mbpp": ("google-research-datasets/mbpp", "full")}
"""Name and configuration on the hub."""
MBPP_IDS = {"train": range(601, 975), "validation": range(511, 601), "test": range(11, 511), "prompt": range(1, 11)}
"""The published splits; those in `prompt` are meant as examples in prompts."""
FENCE = re.compile(r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


def code_lines(code: str) -> tuple[str, ...]:
    """The lines of a program that are not empty, with the indentation that says where they belong."""
    return tuple(line.rstrip() for line in code.splitlines() if line.strip())


def parse_humaneval(row: Mapping[str, Any]) -> Problem:
    """A problem whose question is the beginning of a program and whose answer is the rest."""
    entry, answer = row["entry_point"], row["canonical_solution"].rstrip()
    meta = {
        "task_id": row["task_id"],
        "names": (entry,),
        "setup": "",
        "prelude": row["prompt"],
        "tests": f"{row['test']}\ncheck({entry})\n",
    }
    return Problem(question=row["prompt"], steps=code_lines(answer), answer=answer, meta=meta)


def parse_mbpp(row: Mapping[str, Any]) -> Problem:
    """A problem whose question is a sentence and the tests, as published, and whose answer is a program."""
    answer, setup = ("\n".join(row[name].splitlines()) for name in ("code", "test_setup_code"))
    tests = "\n".join(row["test_list"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some escape characters that need none
        program = ast.parse(answer)
    defined = {name for tree in (program, ast.parse(setup)) for name in definitions(tree)}
    used = dict.fromkeys(node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name))
    names = tuple(name for name in used if name in defined)
    if not names:
        raise ValueError("the tests use nothing that the program defines")
    text = row["text"].strip()
    meta = {
        "task_id": row["task_id"],
        "text": text,
        "names": names,
        "setup": setup,
        "prelude": "\n".join(
            ast.unparse(node) for node in program.body if isinstance(node, ast.Import | ast.ImportFrom)
        ),
        "tests": tests,
    }
    question = f"{text}\nThe program has to pass these tests:\n{tests}\n"
    return Problem(question=question, steps=code_lines(answer), answer=answer.rstrip(), meta=meta)


def definitions(tree: ast.Module) -> Iterator[str]:
    """Names that a program gives to functions, classes and values at its top."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def unfenced(text: str, wanted: re.Pattern[str]) -> str:
    """The code of a text: its first ``` block with `wanted` in it, or its first block, or all of it."""
    blocks = FENCE.findall(text.replace("\r\n", "\n"))
    return next((block for block in blocks if wanted.search(block)), blocks[0] if blocks else text)


def program_code(problem: Problem, text: str) -> str:
    """The program that a text makes: the text itself, or where the question begins a program, both together.

    A text that repeats the signature replaces it, and keeps what stands before it in the question.
    """
    signature = re.compile(rf"^(?:async )?def {re.escape(problem.meta['names'][0])}\b", re.MULTILINE)
    code, begun = unfenced(text, signature), signature.search(problem.question)
    if begun is None:
        return code
    return (problem.question[: begun.start()] if signature.search(code) else problem.question) + code


@lru_cache
def read(benchmark: Benchmark, path: str, split: str) -> tuple[Problem, ...]:
    """All problems of a split.

    Raises:
        ValueError: if they cannot be read, or a row is malformed; says where.
    """
    name, config = HUB[benchmark]
    source = path or name
    problems = []
    for where, row in published_rows(source, split, (config,)):
        try:
            if benchmark == "humaneval":
                problems.append(parse_humaneval(row))
            elif row["task_id"] in MBPP_IDS[split]:
                problems.append(parse_mbpp(row))
        except (KeyError, TypeError, AttributeError, SyntaxError, ValueError) as error:
            raise ValueError(f"{where}: not as {benchmark} is published ({error!r})") from error
    return tuple(problems)


@dataclass(frozen=True, kw_only=True)
class Code(Published):
    """The task `code`."""

    benchmark: Benchmark = "mbpp"
    path: str = ""
    """JSONL file (also .jsonl.gz) or hub name; empty takes the hub's data set of the benchmark."""
    limits: Limits = field(default_factory=Limits)
    """What each program may use."""
    num_workers: int = min(8, os.cpu_count() or 1)
    """Programs that run at a time."""
    allow_unsafe_exec: bool = False
    """Run generated programs also where they can read your files and reach the network."""

    name = "code"
    step_separator = "\n"
    cot_in_answer = True
    needs_mark = False

    @property
    def source(self) -> str:
        """The benchmark."""
        return self.benchmark

    @property
    def splits(self) -> tuple[str, ...]:
        """HumanEval has problems to test on only."""
        return tuple(MBPP_IDS) if self.benchmark == "mbpp" else ("test",)

    def read(self, split: str) -> tuple[Problem, ...]:
        """All problems of a split."""
        return read(self.benchmark, self.path, split)

    def verify_many(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Verdict]:
        """Correct where the program that a text makes passes its problem's tests; equal programs run once.

        Raises:
            ValueError: if programs cannot be shut in well here and `allow_unsafe_exec` is not set.
        """
        programs = [
            Program(
                code=program_code(problem, text),
                setup=problem.meta["setup"],
                names=problem.meta["names"],
                prelude=problem.meta["prelude"],
                tests=problem.meta["tests"],
            )
            for problem, text in zip(problems, texts, strict=True)
        ]
        distinct = list(dict.fromkeys(programs))
        outcomes = shared_sandbox().run_many(distinct, self.limits, self.num_workers, self.allow_unsafe_exec)
        found = dict(zip(distinct, outcomes, strict=True))
        return [Verdict(correct=(o := found[p]).passed, reason=o.reason, canonical=o.canonical) for p in programs]
