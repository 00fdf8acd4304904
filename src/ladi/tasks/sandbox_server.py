"""The process that generated programs are forked from, started by `sandbox.py` as a script; standard library only.

    server           small and clean: no model, no environment, no user's code; one program at a time
      keeper         enters the namespaces, then waits (not in the weak tier)
        judge        runs the tests, holds the pipe for the verdict
          program    and what it forks

For each program it reads a frame with the code and its limits. A second frame with the tests is read by the judge, from
the same pipe, once the program is forked: no ancestor of a program ever holds the tests. It answers in lines of JSON. A
process that dies takes those below it along; the server reaps every one of them before it answers.
"""

import contextlib
import importlib.util
import json
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

PRELOADED = (
    *("array", "bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools", "hashlib"),
    *("heapq", "itertools", "math", "operator", "random", "re", "statistics", "string", "threading", "typing"),
)
"""What programs often import, so that every fork has it."""
RESULT = 200
"""The judge's file descriptor for the verdict."""
TESTS_READ = b"tests read\n"
MAX_OPEN_FILES = 64
TAIL = 2000
"""Bytes of a program's output that are kept."""


def load(name: str) -> Any:
    """A module beside this one; its folder is not searched, because it has a math.py."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


isolation, judging = load("sandbox_isolation"), load("sandbox_judge")


def read_exactly(size: int) -> bytes:
    """The next bytes of the input; fewer where it ends."""
    parts = []
    while size and (part := os.read(0, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def read_frame() -> Any:
    """The next frame: its length in four bytes, then JSON; None at the end."""
    length = read_exactly(4)
    return json.loads(read_exactly(int.from_bytes(length, "big"))) if length else None


def limit(limits: dict[str, Any], max_processes: int) -> None:
    """Bound this process and all that it forks."""
    bounds = {
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_NPROC: max_processes,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in bounds.items():
        resource.setrlimit(kind, (bound, bound))
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"], limits["cpu_s"] + 1))


def play(job: dict[str, Any]) -> dict[str, Any]:
    """In the judge's process: fork the program, then read the tests; the verdict."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    requests, replies = os.pipe(), os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            isolation.die_with(parent)
            os.dup2(nothing, 0)
            for fd in (RESULT, nothing, requests[1], replies[0]):
                os.close(fd)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            judging.serve(job["code"], job["setup"], requests[0], replies[1])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else end.code is not None
        finally:
            os._exit(status & 0xFF)
    os.close(requests[0])
    os.close(replies[1])
    tests = read_frame()
    os.dup2(nothing, 0)
    os.write(RESULT, TESTS_READ)
    return judging.judge(judging.Program(pid, requests[1], replies[0]), job["code"], **tests)


def shut_in(tier: Any, job: dict[str, Any], folder: str, result: int, output: int) -> None:
    """In a fork of the server: what becomes the judge's process, up to its end."""
    try:
        os.dup2(result, RESULT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        max_processes = tier.max_processes(job["limits"]["processes"])
        tier.enter(folder, job["limits"]["file_bytes"])
        os.closerange(3, RESULT)
        os.closerange(RESULT + 1, os.sysconf("SC_OPEN_MAX"))
        os.setsid()
        os.environ.update(HOME=folder, TMPDIR=folder)
        limit(job["limits"], max_processes)
        verdict = play(job)
    except OSError as error:
        verdict = {"passed": False, "reason": f"not judged: {error}"}  # begins with FAILED of base.py
    os.write(RESULT, json.dumps(verdict).encode())


def watch(result: int, output: int, limits: dict[str, Any]) -> tuple[bytes, str, bytes]:
    """What the judge writes, why it was not waited for (or ""), and the end of the program's output.

    Ends the server if the process that started it has gone.
    """
    deadline = time.monotonic() + limits["wall_s"]
    poller, verdict, tail, length = select.poll(), b"", b"", 0
    poller.register(0, 0)  # hang-up only
    poller.register(result, select.POLLIN)
    poller.register(output, select.POLLIN)
    while (remaining_s := deadline - time.monotonic()) > 0:
        for fd, _ in poller.poll(1000 * remaining_s):
            part = os.read(fd, 65536) if fd else b""
            if fd == output:
                length += len(part)
                tail = (tail + part)[-TAIL:]
                if length > limits["output_bytes"]:
                    return verdict, "output limit", tail
                if not part:
                    poller.unregister(output)
            elif part:
                verdict += part
            else:
                return verdict, "" if fd else "abandoned", tail
    return verdict, "timeout", tail


def end_all(tier: Any) -> None:
    """Kill and reap everything below this process; what loses its parent becomes our child."""
    while True:
        tier.kill()
        try:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.0005)
        except ChildProcessError:
            return


def run(tier: Any, job: dict[str, Any]) -> dict[str, Any]:
    """The outcome of one program; `is_last` says that the tests were not read, so nothing may follow."""
    result, output = os.pipe(), os.pipe()
    with tier.folder() as folder:
        child = os.fork()
        if not child:
            try:
                shut_in(tier, job, folder, result[1], output[1])
            finally:
                os._exit(0)
        os.close(result[1])
        os.close(output[1])
        tier.admit(child)
        written, why, tail = watch(result[0], output[0], job["limits"])
        end_all(tier)
    tail = drain(output[0], tail)
    os.close(result[0])
    os.close(output[0])
    written, is_read, verdict = written.rpartition(TESTS_READ)
    outcome = {"passed": False, "reason": why or "the tests' process died"}
    if verdict and not why:
        outcome = json.loads(verdict)
    return {"is_last": not is_read, "output": tail.decode(errors="replace"), **outcome}


def drain(output: int, tail: bytes) -> bytes:
    """The end of a program's output, with what is left of it in the pipe."""
    os.set_blocking(output, False)
    try:
        while part := os.read(output, 1 << 16):
            tail = (tail + part)[-TAIL:]
    except BlockingIOError:  # somebody outlived us and holds it
        pass
    return tail


def answer(message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # who asked has gone, and the input ends
        os.write(1, json.dumps(message).encode() + b"\n")


def main() -> None:
    """Say that the wanted tier is there, or why not; then run programs until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    for name in PRELOADED:
        importlib.import_module(name)
    if sys.platform != "linux":
        answer({"error": f"programs are shut in on Linux only, this is {sys.platform}"})
        return
    Path("/proc/self/oom_score_adj").write_text("1000")
    isolation.control(isolation.PR_SET_CHILD_SUBREAPER, 1)
    try:
        tier = isolation.TIERS[sys.argv[1]]()
    except OSError as error:
        answer({"error": str(error)})
        return
    answer({"error": ""})
    is_last = False
    while not is_last and (job := read_frame()) is not None:
        outcome = run(tier, job)
        is_last = outcome["is_last"]
        answer(outcome)


if __name__ == "__main__":
    main()
