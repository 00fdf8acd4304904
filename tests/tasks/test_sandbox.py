"""Generated programs are shut in, judged by what they return, and gone afterwards."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from hostile import DETACHED, EVERYWHERE, SHUT_IN
from hypothesis import given, settings
from hypothesis import strategies as st

from ladi.tasks import sandbox
from ladi.tasks.base import FAILED, TIMEOUT
from ladi.tasks.sandbox import DIED, SERVER, Limits, Outcome, Program, Sandbox
from ladi.tasks.sandbox_isolation import remove
from ladi.tasks.sandbox_judge import decode, encode

TESTS = "assert add(1, 2) == 3  # the-hidden-tests"
RIGHT = "def add(a, b): return a + b"
TIGHT = Limits(wall_s=0.5, cpu_s=1, memory_bytes=256 << 20, file_bytes=1 << 20, output_bytes=100_000)
PATIENT = Limits(wall_s=60.0, cpu_s=60)
"""So that a busy machine fails no test."""
ENDLESS = "while True: pass"


@pytest.fixture(scope="module", params=["namespaces", "rlimits"])
def box(request):
    box = Sandbox(request.param)
    if request.param == "namespaces":
        probed = Sandbox()
        if probed.probe() != "namespaces":
            pytest.skip(f"this system lets no namespaces be made: {probed.weakness}")
    yield box
    box.close()
    assert until(lambda: not processes()), "a process, or its zombie, is left"


@pytest.fixture
def shut(box):
    if box.probe() != "namespaces":
        pytest.skip("without namespaces, programs can do this")
    return box


def until(condition, limit_s: float = 20.0) -> bool:
    end = time.monotonic() + limit_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def processes() -> set[int]:
    """Servers of this checkout and all that they forked, whoever is their parent now."""
    return {p.pid for p in psutil.process_iter(["cmdline"]) if str(SERVER) in (p.info["cmdline"] or ())}


def program(code: str, tests: str = TESTS, **other) -> Program:
    return Program(code=code, names=("add",), tests=tests, **other)


def run(box: Sandbox, code: str, limits: Limits = PATIENT, tests: str = TESTS, **other) -> Outcome:
    return box.run_many([program(code, tests, **other)], limits, 1, allow_unsafe=True)[0]


def folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("ladi-*-*"))


def no_trace_is_left(box: Sandbox, before: set[Path]) -> bool:
    servers = {server.process.pid for server in box._servers}
    return until(lambda: processes() <= servers, 5.0) and folders() <= before


def attack(box: Sandbox, code: str) -> Outcome:
    before = folders()
    start = time.monotonic()
    outcome = run(box, code, TIGHT)
    assert time.monotonic() - start < 15, "it took long"
    assert not outcome.passed, outcome
    assert outcome.reason
    assert not outcome.is_failure, outcome
    assert len(outcome.output) <= 2000
    assert no_trace_is_left(box, before)
    assert run(box, RIGHT).passed, "the next program is harmed"
    return outcome


@pytest.mark.parametrize("name", EVERYWHERE)
def test_hostile_programs_fail_and_leave_nothing(box, name):
    attack(box, EVERYWHERE[name])


@pytest.mark.parametrize("name", SHUT_IN)
def test_programs_see_no_files_network_processes_or_privileges(shut, name, tmp_path):
    (tmp_path / "readable").write_text("secret")
    abstract = f"\0ladi-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(abstract)
        local.listen()
        code = SHUT_IN[name].format(
            home=str(Path.home()),
            readable=str(tmp_path / "readable"),
            writable=str(tmp_path / "written"),
            port=server.getsockname()[1],
            socket=abstract,
            pid=os.getpid(),
        )
        attack(shut, code)
    assert [path.name for path in tmp_path.iterdir()] == ["readable"]


def test_what_a_program_detaches_ends_with_it(box):
    outcome = attack(box, DETACHED)
    assert outcome.reason == "AssertionError"
    assert run(box, DETACHED + RIGHT).passed
    assert no_trace_is_left(box, folders())


def test_a_link_in_place_of_its_folder_is_not_followed(box, tmp_path):
    inner = tmp_path / "victim" / "inner"
    inner.mkdir(parents=True, mode=0o755)
    attack(box, f"import os\nhere = os.getcwd()\nos.rename(here, here + 'x')\nos.symlink({str(inner.parent)!r}, here)")
    assert inner.stat().st_mode & 0o777 == 0o755


@pytest.fixture
def another_user():
    """Whom permissions bind, as they do not bind root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)


def test_a_folder_is_removed_whatever_its_permissions_depth_and_links(another_user):
    outside = Path(tempfile.mkdtemp())
    (outside / "kept").write_text("kept")
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    for name in ("a/b/c", "d/e", "d/f"):
        (folder / name).mkdir(parents=True)
        (folder / name / "file").write_text("x")
    (folder / "d" / "e" / "link").symlink_to(outside)
    (folder / "link").symlink_to(outside)
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1100):  # beyond what Python's own recursion removes
        os.mkdir("x" * 100, dir_fd=here)
        deeper = os.open("x" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    for name in ("a/b/c", "a/b", "a", "d/e", "d", "."):
        (folder / name).chmod(0)
    remove(str(folder))
    assert not folder.exists()
    folder.symlink_to(outside)
    remove(str(folder))
    remove(str(folder))
    assert not folder.is_symlink()
    assert [path.name for path in outside.iterdir()] == ["kept"]
    remove(str(outside))


def test_processes_and_threads_are_counted(box):
    code = """
import os, time
def add(a, b):
    for i in range(64):
        try:
            if not os.fork():
                time.sleep(60)
        except OSError:
            return i
"""
    # in the weak tier without root, the user's other processes count and come and go
    tests = "num = add(1, 2)\nassert 0 < num < 24, num"
    outcome = run(box, code, tests=tests)
    assert outcome.passed, outcome


@pytest.mark.parametrize(
    ("code", "limits", "reason"),
    [
        (RIGHT, PATIENT, "ok"),
        ("def add(a, b): return 4", PATIENT, "AssertionError"),
        ("def add(a, b): return [][0]", PATIENT, "IndexError: list index out of range"),
        ("class Odd(Exception): pass\ndef add(a, b): raise Odd('x')", PATIENT, "RuntimeError: Odd: x"),
        ("def sub(a, b): return 3", PATIENT, "AttributeError: module 'solution' has no attribute 'add'"),
        ("def add(a, b: return", PATIENT, "SyntaxError: "),
        ("raise SystemExit(3)", PATIENT, "exit 3"),
        ("import os; os.kill(os.getpid(), 9)", PATIENT, "signal 9"),
        ("import time; time.sleep(60)", Limits(wall_s=0.3), TIMEOUT),
        (ENDLESS, Limits(wall_s=60.0, cpu_s=1), "cpu limit"),
        ("x = bytearray(1 << 33)", PATIENT, "memory"),
        ("print('x' * 2_000_000)", PATIENT, "output limit"),
        ("def add(a, b): return '\ud800'", PATIENT, "RuntimeError: UnicodeEncodeError"),
        ("#" * (1 << 21), PATIENT, "too long"),
    ],
)
def test_the_reason_is_said(box, code, limits, reason):
    assert run(box, code, limits).reason.startswith(reason)


def test_what_a_program_writes_is_kept_at_its_end(box):
    outcome = run(box, "print('x' * 5000)\nprint('end')\ndef add(a, b): return 1 / 0")
    assert outcome.reason == "ZeroDivisionError: division by zero"
    assert "xxx\nend\n" in outcome.output
    assert 'File "<solution>", line 3, in add' in outcome.output
    assert "sandbox" not in outcome.output
    assert len(outcome.output) == 2000


def test_a_program_finds_an_empty_environment_and_its_own_folder(box, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    box.close()  # a server started now would inherit it
    code = """
import os, sys
def add(a, b):
    with open("file", "w") as file: file.write("x")
    known = {"HOME", "TMPDIR", "LC_CTYPE", "LD_LIBRARY_PATH"}
    return set(os.environ) - known, os.listdir(), os.environ["HOME"] == os.getcwd()
"""
    tests = "left, files, at_home = add(1, 2)\nassert not left, left\nassert files == ['file']\nassert at_home"
    for _ in range(2):
        outcome = run(box, code, tests=tests)
        assert outcome.passed, outcome


def test_tests_use_what_is_not_plain_data_by_handing_it_back(box):
    code = """
class Pair:
    def __init__(self, a, b): self.a, self.b = a, b
def add(pairs): return sum(pair.a + pair.b for pair in pairs)
def evens(n): return (i for i in range(n) if i % 2 == 0)
"""
    tests = """
assert add([Pair(1, 2), Pair(3, b=4)]) == 10
assert add([made]) == 11
assert list(evens(5)) == [0, 2, 4]
assert sorted(evens(5), reverse=True) == [4, 2, 0]
"""
    several = Program(code=code, setup="made = Pair(5, 6)", names=("add", "Pair", "made", "evens"), tests=tests)
    assert box.run_many([several], PATIENT, 1, allow_unsafe=True)[0].passed
    for wrong in (
        "assert Pair(1, 2)",
        "assert Pair(1, 2) != 3",
        "assert not Pair(1, 2) == 3",
        "assert 3 in [Pair(1, 2)]",
    ):
        outcome = box.run_many([Program(code=code, names=("Pair",), tests=wrong)], PATIENT, 1, allow_unsafe=True)[0]
        assert "no plain data" in outcome.reason, wrong


def test_tests_catch_what_a_program_raises_but_not_its_end(box):
    tests = "try: add(1, 2)\nexcept ValueError: pass\nelse: assert False"
    assert run(box, "def add(a, b): raise ValueError('x')", tests=tests).passed
    assert not run(box, RIGHT, tests=tests).passed
    hidden = "try: add(1, 2)\nexcept Exception: pass"
    assert run(box, "import os\ndef add(a, b): os._exit(0)", tests=hidden).reason == "exit 0"


def test_no_exception_of_the_program_ends_a_loop_of_the_tests(box):
    tests = "for three in map(add, [1], [2]): assert three == 3"
    assert run(box, RIGHT, tests=tests).passed
    assert run(box, "def add(a, b): raise StopIteration", tests=tests).reason == "RuntimeError: StopIteration"


def test_the_prelude_helps_tests_but_does_not_stand_in_for_the_program(box):
    prelude = "def add(a, b): return a + b\ndef three(): return 3"
    tests = "assert add(1, 2) == three()"
    assert run(box, RIGHT, prelude=prelude, tests=tests).passed
    assert not run(box, "def add(a, b): return 4", prelude=prelude, tests=tests).passed
    assert not run(box, "def three(): return 4\ndef add(a, b): return 4", prelude=prelude, tests=tests).passed


def test_outcomes_come_in_order_from_many_threads_and_workers(box):
    def batch(first: int) -> list[bool]:
        codes = [f"def add(a, b): return {3 if (first + i) % 3 == 0 else 0}" for i in range(8)]
        return [o.passed for o in box.run_many([program(c) for c in codes], PATIENT, 2, allow_unsafe=True)]

    with ThreadPoolExecutor(3) as threads:
        for first, passed in enumerate(threads.map(batch, range(4))):
            assert passed == [(first + i) % 3 == 0 for i in range(8)]
    assert box.run_many([], PATIENT, 2, allow_unsafe=True) == []


def kill_server(box) -> None:
    """Kill the server of the program that runs, and wait until it is gone."""

    def busy() -> list[sandbox.Server]:
        return [server for server in box._servers if psutil.Process(server.process.pid).children(recursive=True)[1:]]

    assert until(busy)
    (server,) = busy()
    os.kill(server.process.pid, signal.SIGKILL)
    assert until(lambda: server not in box._servers)


def test_a_server_killed_while_a_program_runs_takes_it_along_and_is_replaced(box, caplog):
    left, failures = folders(), box.failures
    assert run(box, RIGHT).passed
    with ThreadPoolExecutor(1) as threads:
        batch = threads.submit(run, box, ENDLESS)
        kill_server(box)
        kill_server(box)
        assert batch.result() == DIED
    assert box.failures == failures + 1
    assert "1 of 1 programs could not be run, twice, and count as wrong" in caplog.text
    assert until(lambda: processes() == {server.process.pid for server in box._servers})
    assert folders() <= left
    assert run(box, RIGHT).passed


def test_a_program_whose_server_dies_once_is_judged_by_the_next(box, caplog):
    with ThreadPoolExecutor(1) as threads:
        batch = threads.submit(run, box, "import time\ntime.sleep(1.5)\n" + RIGHT)
        kill_server(box)
        assert batch.result().passed
    assert not caplog.text


def test_what_a_server_cannot_run_is_tried_by_another_and_counted(box, monkeypatch, tmp_path):
    for path in SERVER.parent.glob("sandbox_*.py"):
        (tmp_path / path.name).write_text(path.read_text())
    broken, line = tmp_path / SERVER.name, "        limit(job"
    broken.write_text(broken.read_text().replace(line, f"        raise OSError('no room')\n{line}"))
    servers = []

    class Broken(sandbox.Server):
        def __init__(self, tier):
            servers.append(tier)
            super().__init__(tier)

    monkeypatch.setattr(sandbox, "SERVER", broken)
    monkeypatch.setattr(sandbox, "Server", Broken)
    other = Sandbox(box.probe())
    assert run(other, RIGHT).reason == f"{FAILED}: no room"
    assert (len(servers), other.failures) == (2, 1)
    other.close()


def test_a_server_killed_while_it_waits_costs_no_outcome(box):
    assert run(box, RIGHT).passed
    for server in box._servers:
        os.kill(server.process.pid, signal.SIGKILL)
        assert until(lambda pid=server.process.pid: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert run(box, RIGHT).passed


def test_everything_ends_with_the_process_that_asked(box):
    code = f"""
from ladi.tasks.sandbox import *
limits = Limits(wall_s=60.0, cpu_s=60)
box = Sandbox({box.probe()!r})
box.run_many([Program(code={ENDLESS!r}, names=(), tests="")], limits, 1, allow_unsafe=True)
"""
    before = processes()
    env = {**os.environ, "PYTHONPATH": str(SERVER.parents[2])}
    parent = subprocess.Popen([sys.executable, "-c", code], env=env)
    assert until(lambda: len(processes() - before) >= 3)
    parent.kill()
    parent.wait()
    assert until(lambda: processes() <= before)


def test_a_closed_sandbox_ends_what_runs_and_starts_again(box):
    with ThreadPoolExecutor(1) as threads:
        batch = threads.submit(run, box, ENDLESS)
        assert until(lambda: len(processes()) >= 3)
        box.close()
        assert not batch.result().passed
    assert until(lambda: not processes())
    assert run(box, RIGHT).passed


def test_the_weak_tier_is_refused_unless_it_is_allowed():
    before = processes()
    box = Sandbox("rlimits")
    with pytest.raises(ValueError, match="allow-unsafe-exec"):
        box.run_many([program(RIGHT)], PATIENT, 1)
    assert processes() <= before


def test_without_namespaces_the_weak_tier_is_found_and_said_once(monkeypatch, capsys):
    class NoNamespaces:
        def __init__(self, tier):
            self.error, self.is_usable = "unshare: Operation not permitted", False

        def end(self): ...

    monkeypatch.setattr(sandbox, "Server", NoNamespaces)
    box = Sandbox()
    assert box.probe() == box.probe() == "rlimits"
    assert capsys.readouterr().out.count("unshare: Operation not permitted") == 1
    with pytest.raises(ValueError, match=r"unshare: Operation not permitted.*allow-unsafe-exec"):
        box.run_many([program(RIGHT)], PATIENT, 1)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="wall_s must be positive"):
        Limits(wall_s=0.0)
    with pytest.raises(ValueError, match="num_workers"):
        Sandbox("rlimits").run_many([], PATIENT, 0, allow_unsafe=True)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers()), inner)
        | st.frozensets(st.integers() | st.text())
        | st.sets(st.integers())
    ),
)


@settings(deadline=None)
@given(PLAIN)
def test_plain_data_passes_unchanged(value):
    back = decode(json.loads(json.dumps(encode(value, repr))), repr)
    assert back == value
    assert type(back) is type(value)
