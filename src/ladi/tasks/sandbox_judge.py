"""How a verdict is reached: the tests run in one process, the program in another, and between them passes plain data.

    tests       assert add([1, 2]) == 3      `add` is a `Remote`: calling it asks the program
                   |  ["call", "add", [["l", [1, 2]]], {}]
    program     add([1, 2])                  whatever it overrides, patches or inspects, it does so here
                   |  ["value", 3]
    tests       3 == 3                       a new int, compared by the tests' own interpreter

The program is forked before the tests are read and sees only the arguments of its calls. So it can neither read the
expected values nor decide a comparison: it passes by returning the right plain values, however it came by them (it may
know a public benchmark by heart, or recognise the arguments). What is not plain data stays with the program; tests may
pass it back or iterate over it, every other use fails. Tests see arguments unchanged, though the program may change its
copies. Loaded by `sandbox_server.py`; standard library only.
"""

import ast
import builtins
import contextlib
import json
import os
import signal
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

MAX_MESSAGE = 16 << 20
"""Bytes of one reply."""
MAX_REASON = 200
KEPT_INSIDE = (UnicodeError, StopIteration, StopAsyncIteration)
"""Exceptions that tests see as a RuntimeError: some need more than a message, the others would end a test's loop."""
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
SEQUENCES: dict[str, type] = {"l": list, "t": tuple, "s": set, "f": frozenset}


class Ended(BaseException):
    """The program ended, or closed its end of the pipe; no `except Exception` of a test hides it."""


def encode(value: Any, refer: Callable[[Any], Any]) -> Any:
    """A value as JSON keeps it; `refer` names what is not plain data."""
    if value is None or isinstance(value, bool | str | float):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else ["i", hex(value)]
    if isinstance(value, complex):
        return ["c", [value.real, value.imag]]
    if isinstance(value, bytes):
        return ["b", value.hex()]
    if isinstance(value, dict):
        return ["d", [[encode(k, refer), encode(v, refer)] for k, v in value.items()]]
    for tag, kind in SEQUENCES.items():
        if isinstance(value, kind):
            return [tag, [encode(item, refer) for item in value]]
    if isinstance(value, type) and value.__module__ == "builtins":
        return ["y", value.__name__]
    return ["r", refer(value)]


def decode(data: Any, resolve: Callable[[Any], Any]) -> Any:
    """The value, made of exact builtin types; `resolve` finds what `refer` has named."""
    if not isinstance(data, list):
        return data
    tag, content = data
    if tag in SEQUENCES:
        return SEQUENCES[tag](decode(item, resolve) for item in content)
    if tag == "d":
        return {decode(k, resolve): decode(v, resolve) for k, v in content}
    if tag == "i":
        return int(content, 16)
    if tag == "c":
        return complex(*content)
    if tag == "b":
        return bytes.fromhex(content)
    if tag == "y":
        return {kind.__name__: kind for kind in vars(builtins).values() if isinstance(kind, type)}[content]
    return resolve(content)


class Remote:
    """Something of the program's that is no plain data; it can be called and iterated over, but not compared."""

    def __init__(self, program: "Program", ref: str | int):
        self._program, self._ref = program, ref

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._program.ask("call", self._ref, args, kwargs)

    def __iter__(self) -> Any:
        return iter(self._program.ask("list", self._ref))

    def _refuse(self, *_: Any) -> Any:
        raise TypeError("the program returned something that is no plain data")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __contains__ = _refuse
    __hash__ = None  # pyright: ignore[reportAssignmentType]


class Program:
    """The tests' end of the pipes to the program."""

    def __init__(self, pid: int, requests: int, replies: int):
        self.pid, self.requests, self.replies = pid, os.fdopen(requests, "wb"), os.fdopen(replies, "rb")

    def receive(self) -> Any:
        """The value that the program sends.

        Raises:
            Ended: if it sends no more.
            ValueError: if it sends too much.
            Exception: what it raised, if that is builtin, or a RuntimeError that names it.
        """
        line = self.replies.readline(MAX_MESSAGE)
        if not line:
            raise Ended
        if not line.endswith(b"\n"):
            raise ValueError("the program's reply is cut off or too long")
        kind, content = json.loads(line)
        if kind == "value":
            return decode(content, lambda ref: Remote(self, ref))
        name, message = content
        error = getattr(builtins, name, None)
        if isinstance(error, type) and issubclass(error, Exception) and not issubclass(error, KEPT_INSIDE):
            raise error(message)
        raise RuntimeError(f"{name}: {message}")

    def ask(self, verb: str, ref: str | int, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """What the program returns; see `receive`."""
        data = [encode(arg, self.refer) for arg in args], {k: encode(v, self.refer) for k, v in (kwargs or {}).items()}
        try:
            self.requests.write(json.dumps([verb, ref, *data]).encode() + b"\n")
            self.requests.flush()
        except OSError:
            raise Ended from None
        return self.receive()

    def refer(self, value: Any) -> str | int:
        """What the program calls a value of its own."""
        if isinstance(value, Remote):
            return value._ref
        raise TypeError(f"a test passes a {type(value).__name__}, which is no plain data")

    def ending(self) -> str:
        """How its process ended; waits for it."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return f"exit {code}" if code >= 0 else "cpu limit" if -code == signal.SIGXCPU else f"signal {-code}"


def canonical(code: str) -> str:
    """The program without comments, docstrings and formatting."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def judge(program: Program, code: str, names: list[str], prelude: str, tests: str) -> dict[str, Any]:
    """The verdict of the tests, in which `names` are the program's."""
    scope: dict[str, Any] = {"__name__": "tests"}
    try:
        program.receive()
        exec(compile(prelude, "<prelude>", "exec"), scope)
        scope.update({name: Remote(program, name) for name in names})
        exec(compile(tests, "<tests>", "exec"), scope)
        return {"passed": True, "reason": "ok", "canonical": canonical(code)}
    except Ended:
        reason = program.ending()
    except MemoryError:
        reason = "memory"
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}".removesuffix(": ")[:MAX_REASON]
    return {"passed": False, "reason": reason}


def outside(trace: types.TracebackType | None) -> types.TracebackType | None:
    """A traceback without the frames of this module that it begins with."""
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def serve(code: str, setup: str, requests: int, replies: int) -> None:
    """Run a program, then what the tests ask of it. All of this is in the program's hands."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    values: list[Any] = []

    def refer(value: Any) -> int:
        values.append(value)
        return len(values) - 1

    def resolve(ref: str | int) -> Any:
        return values[ref] if isinstance(ref, int) else getattr(module, ref)

    def run() -> None:
        exec(compile(code, "<solution>", "exec"), module.__dict__)
        exec(compile(setup, "<setup>", "exec"), module.__dict__)

    def answer(verb: str, ref: str | int, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if verb == "list":
            return list(resolve(ref))
        named = {name: decode(arg, resolve) for name, arg in kwargs.items()}
        return resolve(ref)(*(decode(arg, resolve) for arg in args), **named)

    def reply(function: Callable[..., Any], *args: Any) -> bool:
        try:
            message = "value", encode(function(*args), refer)
        except Exception as error:
            with contextlib.suppress(Exception):
                traceback.print_exception(error.with_traceback(outside(error.__traceback__)))
            message = "error", [type(error).__name__, str(error)[:MAX_REASON]]
        writer.write(json.dumps(message) + "\n")
        writer.flush()
        return message[0] == "value"

    with os.fdopen(replies, "w") as writer, os.fdopen(requests) as reader:
        if reply(run):
            for line in reader:
                reply(answer, *json.loads(line))
