"""The worker process seen from the window: whatever it does, a request ends once, in one sentence, and the next runs.

The children are small Python programs that speak the worker's protocol, or fail to; the last test runs the real worker.
"""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import phantoms
import pytest
import slicer
from slicerharness import process_until, settle
from waiting import PATIENCE

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.machine import process_is_alive
from IconRegistrationLib.text import set_translator
from IconRegistrationLib.ui import process
from IconRegistrationLib.ui.process import Callbacks, LineBuffer, WorkerProcess
from IconRegistrationLib.ui.python import private_folder, python_command, worker_environment
from IconRegistrationLib.worker import exchange
from IconRegistrationLib.worker.protocol import PROTOCOL
from IconRegistrationLib.workflow.results import Inputs

REGISTER = {"request": "register", "folder": "/nowhere"}
PRELUDE = f"""
import json, os, signal, sys, time
def say(**message):
    print(json.dumps(message), flush=True)
def ready():
    say(ready={{"protocol": {PROTOCOL}, "version": "1", "devices": [], "pid": os.getpid()}})
def requests():
    for line in sys.stdin:
        yield json.loads(line)
def serve():
    ready()
    for request in requests():
        say(id=request["id"], result={{"did": request["request"]}})
"""


class Told(list):
    """What the callbacks were told, in order: (name, values...)."""

    def __init__(self):
        super().__init__()
        names = ("ready", "progress", "note", "result", "failed")
        self.callbacks = Callbacks(**{name: self._listener(name) for name in names})

    def _listener(self, name):
        return lambda *values: self.append((name, *values))

    def ends(self):
        return [entry for entry in self if entry[0] in ("result", "failed")]


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def worker_of(tmp_path, told):
    """worker_of(program, ...): a WorkerProcess whose child runs a Python program after PRELUDE."""
    workers = []

    def make(program, **options):
        script = tmp_path / f"child {len(workers)}.py"
        script.write_text(PRELUDE + textwrap.dedent(program))
        return command([sys.executable, str(script)], **options)

    def command(words, environment=None, **options):
        workers.append(WorkerProcess(words, environment, told.callbacks, **options))
        return workers[-1]

    make.command = command
    yield make
    for worker in workers:
        worker.stop()
    process_until(lambda: not process._running)


def run(worker, told, request=REGISTER):
    """Submit a request; its one end."""
    before = len(told.ends())
    worker.submit(request)
    process_until(lambda: len(told.ends()) > before)
    settle()
    (end,) = told.ends()[before:]
    assert not worker.busy
    return end


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() if Path("/proc").exists() else process_is_alive(pid)


# ------------------------------------------------------------------------------------------------ all goes well


def test_one_warm_child_serves_request_after_request(worker_of, told):
    worker = worker_of(
        """
        ready()
        for request in requests():
            number = request.pop("id")
            say(id=number, progress={"stage": "network", "fraction": 0.5})
            say(id=number, alive=True)
            say(id=number, note="A note.")
            say(id=number - 1, note="Of another request.")
            say(id=number, result=request)
        """
    )
    assert (worker.busy, worker.info) == (False, None)
    request = {**REGISTER, "settings": {"title": "größer"}}
    assert run(worker, told, request) == ("result", request)
    info = worker.info
    assert told == [("ready", info), ("progress", "network", 0.5), ("note", "A note."), ("result", request)]
    assert run(worker, told, {"request": "download"}) == ("result", {"request": "download"})
    assert worker.info is info, "the same child"


def test_the_child_gets_its_environment(worker_of, told):
    child = "ready(); say(id=next(requests())['id'], result={'mine': os.environ.get('MINE')})"
    assert run(worker_of(child), told) == ("result", {"mine": None})
    assert run(worker_of(child, environment={**os.environ, "MINE": "ä"}), told) == ("result", {"mine": "ä"})


def test_an_idle_child_may_be_silent(worker_of, told):
    worker = worker_of("serve()")
    run(worker, told)
    assert not worker._watch.active, "nothing counts how long it is silent"
    assert worker.info
    run(worker, told)
    assert [entry[0] for entry in told] == ["ready", "result", "result"]


def test_a_second_request_has_to_wait(worker_of, told):
    worker = worker_of("serve()")
    worker.submit(REGISTER)
    with pytest.raises(InputError, match="'register' request is at work"):
        worker.submit(REGISTER)
    process_until(told.ends)
    assert [end[0] for end in told.ends()] == ["result"]


def test_the_next_request_may_be_submitted_from_a_callback(worker_of, told):
    worker = worker_of("serve()")
    result = told.callbacks.result
    again = Callbacks(result=lambda values: (result(values), len(told.ends()) < 3 and worker.submit(REGISTER)))
    worker._callbacks = again
    worker.submit(REGISTER)
    process_until(lambda: len(told.ends()) == 3)


def test_lines_in_pieces_long_lines_and_lines_of_others(worker_of, told):
    worker = worker_of(
        """
        print("Python 3.12, with a banner")
        ready()
        (number := next(requests())["id"])
        print("[1, 2]", "7", "null", sep="\\n")
        sys.stdout.buffer.write(b"\\xff\\xfe not UTF-8\\r\\n")
        print("x" * 3_000_000)
        text = json.dumps({"id": number, "note": "In pieces."})
        for piece in (text[:5], text[5:11], text[11:] + "\\n" + '{"id"'):
            sys.stdout.write(piece)
            sys.stdout.flush()
            time.sleep(0.05)
        print(f': {number}, "result": {json.dumps({"long": "y" * 500_000})}}}', flush=True)
        time.sleep(60)
        """
    )
    assert run(worker, told) == ("result", {"long": "y" * 500_000})
    assert ("note", "In pieces.") in told
    log = worker._child.log_text().splitlines()
    assert log[0] == "Python 3.12, with a banner"
    assert {"[1, 2]", "7", "null"} < set(log)
    assert max(map(len, log)) == 500


def test_the_gpu_is_released_between_requests(worker_of, told):
    worker = worker_of(
        """
        ready()
        did = []
        for request in requests():
            did.append(request["request"])
            time.sleep(0.2)
            say(id=request["id"], result={"did": did})
        """
    )
    worker.release()
    assert worker._child is None, "nothing is started to release nothing"
    run(worker, told)
    worker.release()
    assert not worker.busy
    worker.submit(REGISTER)
    worker.release()
    process_until(lambda: len(told.ends()) == 2)
    assert told.ends()[-1] == ("result", {"did": ["register", "release", "register"]})


# ------------------------------------------------------------------------------------------------ cancelling

CANCELLED = ("failed", "cancelled", "Cancelled; nothing was changed.", "")


@pytest.fixture
def time_to_answer(monkeypatch):
    """A cancelled worker, or one that is told to end, is not killed meanwhile, however slow the machine."""
    monkeypatch.setattr(process, "CANCEL_SECONDS", PATIENCE)
    monkeypatch.setattr(process, "END_SECONDS", PATIENCE)


def test_a_worker_that_answers_a_cancel_stays_warm(worker_of, told, time_to_answer):
    worker = worker_of(
        """
        ready()
        for request in requests():
            if request["request"] == "cancel":
                say(id=request["id"], failed={"kind": "cancelled", "message": "In its own words.", "details": ""})
            elif request["request"] == "download":
                say(id=request["id"], result={})
            else:
                say(id=request["id"], note="started")
        """
    )
    worker.submit(REGISTER)
    process_until(lambda: ("note", "started") in told)
    info = worker.info
    worker.cancel()
    worker.cancel()
    process_until(lambda: not worker.busy)
    assert told.ends() == [CANCELLED]
    assert run(worker, told, {"request": "download"}) == ("result", {})
    assert worker.info is info


def test_a_worker_that_does_not_answer_a_cancel_is_killed(worker_of, told):
    worker = worker_of(
        """
        ready()
        for request in requests():
            while True:
                say(id=request["id"], progress={"stage": "network", "fraction": 0.1})
                time.sleep(0.01)
        """
    )
    worker.submit(REGISTER)
    process_until(lambda: worker.info and any(entry[0] == "progress" for entry in told))
    pid = worker.info["pid"]
    worker.cancel()
    told.clear()
    assert worker._cancel_deadline.active
    assert process.CANCEL_SECONDS < 1
    process_until(lambda: not worker.busy)
    assert told == [CANCELLED], "no progress after the cancel"
    process_until(lambda: not is_alive(pid))
    settle()
    assert told == [CANCELLED]
    worker.submit(REGISTER)
    process_until(lambda: any(entry[0] == "progress" for entry in told))
    assert worker.info["pid"] != pid


def test_a_result_that_crosses_the_cancel_is_dropped(worker_of, told, time_to_answer):
    worker = worker_of(
        """
        ready()
        first, *_ = (request["id"] for request in (next(requests()), next(requests())))
        say(id=first, result={})
        list(requests())
        """
    )
    worker.submit(REGISTER)
    process_until(lambda: worker.info)
    worker.cancel()
    process_until(lambda: not worker.busy)
    assert told.ends() == [CANCELLED]
    assert worker.info, "it is kept: it is free again"


def test_a_worker_that_dies_of_the_cancel_has_been_cancelled(worker_of, told, time_to_answer):
    worker = worker_of("ready(); next(requests()); next(requests()); sys.exit(1)")
    worker.submit(REGISTER)
    process_until(lambda: worker.info)
    worker.cancel()
    process_until(lambda: not worker.busy)
    assert told.ends() == [CANCELLED]


def test_cancelled_before_the_worker_is_ready(worker_of, told):
    worker = worker_of("time.sleep(0.3); serve()")
    worker.submit(REGISTER)
    worker.cancel()
    assert told == [CANCELLED]
    assert run(worker, told, {"request": "download"})[1]["did"] == "download", "the first was never sent"


def test_nothing_to_cancel(worker_of, told):
    worker = worker_of("serve()")
    worker.cancel()
    run(worker, told)
    worker.cancel()
    assert worker.info
    assert len(told.ends()) == 1


# ------------------------------------------------------------------------------------------------ faults


def test_a_program_that_is_not_there(worker_of, told, tmp_path):
    worker = worker_of.command([str(tmp_path / "no python")])
    for _ in range(2):
        name, kind, sentence, _details = run(worker, told)
        assert (name, kind) == ("failed", "worker")
        assert "no python' cannot be run" in sentence
        assert "choose an existing Python interpreter" in sentence


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission to execute")
def test_a_program_that_may_not_be_run(worker_of, told, tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\n")
    _, kind, sentence, _details = run(worker_of.command([str(tmp_path / "python")]), told)
    assert kind == "worker"
    assert "may be executed" in sentence


FAULTS = {
    "ends before it is ready": (
        "print('first', file=sys.stderr); print('No module named x', file=sys.stderr); sys.exit(1)",
        "worker",
        ["exit code 1 before it was ready", '"No module named x"', "choose another Python"],
        "first\nNo module named x",
    ),
    "has no torch": (
        "say(failed={'kind': 'dependency', 'message': 'torch is missing.', 'details': 'why'}); sys.exit(3)",
        "dependency",
        ["torch is missing."],
        "why",
    ),
    "speaks another protocol": (
        "say(ready={'protocol': 99, 'version': '7.1'}); time.sleep(60)",
        "worker",
        ["version 7.1", "does not understand this panel", "update"],
        "",
    ),
    "ends in the middle": (
        "ready(); next(requests()); print('last words', file=sys.stderr); sys.exit(7)",
        "worker",
        ["exit code 7 in the middle", '"last words"', "try again"],
        "last words",
    ),
    "ends well in the middle": ("ready(); next(requests())", "worker", ["exit code 0 in the middle"], ""),
    "crashes": (
        "ready(); next(requests()); os.kill(os.getpid(), signal.SIGSEGV)",
        "worker",
        ["by a crash (SIGSEGV)"],
        "",
    ),
    "is killed": (
        "ready(); next(requests()); os.kill(os.getpid(), signal.SIGKILL)",
        "memory",
        ["ran out of memory", "coarser spacing", "region of interest", "another device"],
        "",
    ),
    "is killed behind a wrapper": (
        "ready(); next(requests()); os._exit(137)",
        "memory",
        ["ran out of memory"],
        "",
    ),
    "fails as it says": (
        "ready(); say(id=next(requests())['id'], failed={'kind': 'input', 'message': 'Bad.', 'details': ''}); "
        "time.sleep(60)",
        "input",
        ["Bad."],
        "",
    ),
}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signals")
@pytest.mark.parametrize("fault", FAULTS)
def test_one_sentence_for_every_fault(worker_of, told, tmp_path, fault):
    """And the same object serves the next request, here by a child that is well."""
    program, kind, parts, details = FAULTS[fault]
    good = tmp_path / "good"
    worker = worker_of(f"if os.path.exists({str(good)!r}):\n    serve()\nelse:\n    {program}")
    name, told_kind, sentence, told_details = run(worker, told)
    assert (name, told_kind, told_details) == ("failed", kind, details)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence
    if fault != "fails as it says":
        good.touch()
        assert run(worker, told)[1]["did"] == "register"


def test_a_silent_worker_is_ended(worker_of, told):
    worker = worker_of("ready(); next(requests()); time.sleep(60)", silence=0.3)
    name, kind, sentence, _ = run(worker, told)
    assert (name, kind) == ("failed", "worker")
    assert "no sign of life for 0.3 s" in sentence
    process_until(lambda: not process._running)


def test_a_worker_that_never_gets_ready_is_ended(worker_of, told):
    worker = worker_of("time.sleep(60)", start_silence=0.3)
    assert "no sign of life for 0.3 s" in run(worker, told)[2]
    process_until(lambda: not process._running)


#: A sign of life as often as one is asked for; then its result.
BEATING = """
ready()
number = next(requests())["id"]
for message in requests():
    say(id=number, **({"alive": True} if "beat" in message else {"result": {}}))
"""


def test_a_worker_that_shows_signs_of_life_is_left_alone(worker_of, told):
    """It works for longer than it may be silent."""
    worker = worker_of(BEATING)
    worker.submit(REGISTER)
    process_until(lambda: worker.info)
    for _ in range(5):
        for _ in range(process._TICKS - 1):
            worker._tick()
        worker._child.send({"beat": True})
        process_until(lambda: worker._ticks == 0)
    worker._child.send({"end": True})
    process_until(told.ends)
    assert told.ends() == [("result", {})]


def test_a_window_that_was_busy_itself_blames_no_worker(worker_of, told):
    worker = worker_of(BEATING, silence=0.4)
    worker.submit(REGISTER)
    process_until(lambda: worker.info)
    worker._watch_for(0.4)
    time.sleep(0.6)
    slicer.app.processEvents()
    worker._watch.stop()
    assert worker._ticks == 1, "however long the window was busy"
    worker._child.send({"end": True})
    process_until(told.ends)
    assert told.ends() == [("result", {})]


def test_an_idle_worker_may_die_unnoticed(worker_of, told):
    worker = worker_of("ready(); say(id=next(requests())['id'], result={}); sys.exit(5)")
    assert run(worker, told) == ("result", {})
    process_until(lambda: not process._running)
    assert worker.info is None
    assert run(worker, told) == ("result", {})
    assert len(told.ends()) == 2


# ------------------------------------------------------------------------------------------------ the end


def test_stop_ends_the_child_without_a_word(worker_of, told, tmp_path, time_to_answer):
    """The end of its input is enough, and it has the time to tidy up."""
    worker = worker_of("ready(); list(requests()); open(sys.argv[0] + '.tidy', 'w').close()")
    worker.submit(REGISTER)
    process_until(lambda: worker.info)
    listening = slicer.app.receivers("2aboutToQuit()")
    worker.stop()
    assert slicer.app.receivers("2aboutToQuit()") == listening - 1
    assert (worker.busy, worker.info) == (False, None)
    process_until(lambda: not process._running)
    assert len(list(tmp_path.glob("*.tidy"))) == 1
    assert not told.ends()


def test_a_child_that_does_not_end_is_killed(worker_of, told):
    worker = worker_of("ready(); time.sleep(60)")
    worker.submit(REGISTER)
    process_until(lambda: worker.info)
    pid = worker.info["pid"]
    worker.stop()
    process_until(lambda: not process._running)
    assert not is_alive(pid)
    assert not told.ends()


def test_no_child_outlives_slicer(worker_of, told):
    worker = worker_of("ready(); time.sleep(60)")
    worker.submit(REGISTER)
    process_until(lambda: worker.info)
    pid = worker.info["pid"]
    slicer.app.aboutToQuit.emit()
    assert not is_alive(pid)
    assert not told.ends()
    slicer.app.aboutToQuit.emit()  # nothing is left to end


# ------------------------------------------------------------------------------------------------ pure parts


@pytest.mark.parametrize("size", [1, 3, 100])
def test_line_buffer(size):
    data = b"one\r\n\ntwo two two two\nthree"
    buffer = LineBuffer(10)
    lines = [line for start in range(0, len(data), size) for line in buffer.feed(data[start : start + size])]
    assert lines == [b"one", b"", b"two two tw"]
    assert buffer.rest == b"three"


def test_the_command_that_a_user_names(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert python_command("  ") == [sys.executable]
    own = tmp_path / ("PythonSlicer.exe" if os.name == "nt" else "PythonSlicer")
    own.touch(0o700)
    assert python_command("") == [str(own)]
    interpreter = tmp_path / "my env" / ("python.exe" if os.name == "nt" else "bin/python")
    interpreter.parent.mkdir(parents=True)
    interpreter.touch(0o700)
    assert python_command(str(interpreter)) == [str(interpreter)]
    assert python_command(str(tmp_path / "my env")) == [str(interpreter)]
    assert python_command(f'conda run "{tmp_path} x" python') == ["conda", "run", f"{tmp_path} x", "python"]
    assert python_command("python3 -X dev") == ["python3", "-X", "dev"]
    with pytest.raises(InputError, match="holds no Python"):
        python_command(str(tmp_path))
    with pytest.raises(InputError, match="quote"):
        python_command("python 'x")


def test_the_worker_finds_the_library_and_another_python_none_of_slicers(monkeypatch):
    library = str(Path(process.__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", "/slicer")
    monkeypatch.setenv("PYTHONHOME", "/slicer")
    before = {"PATH": "/usr/bin", "PYTHONPATH": "/mine"}
    monkeypatch.setattr(slicer.util, "startupEnvironment", lambda: before)
    own, other = worker_environment(own_python=True), worker_environment(own_python=False)
    assert own == {**os.environ, "PYTHONPATH": os.pathsep.join([library, "/slicer"])}
    assert other == {"PATH": "/usr/bin", "PYTHONPATH": os.pathsep.join([library, "/mine"])}
    assert before["PYTHONPATH"] == "/mine"


def test_a_private_folder_is_private_and_leftovers_go(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    first = private_folder(tmp_path)
    host = Path(first.name).name.split("-")[1]
    kept = [
        f"IconRegistration-{host}-{os.getppid()}-a",
        f"IconRegistration-elsewhere-{ended.pid}-b",
        "IconRegistration",
    ]
    gone = [f"IconRegistration-{host}-{ended.pid}-c", "IconRegistration-elsewhere-1-d"]
    for name in (*kept, *gone):
        (tmp_path / name / "inputs").mkdir(parents=True)
    os.utime(tmp_path / gone[1], (0, 0))
    second = private_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*kept, Path(first.name).name, Path(second.name).name}
    assert os.name == "nt" or Path(second.name).stat().st_mode & 0o777 == 0o700
    second.cleanup()
    assert not Path(second.name).exists()


# ------------------------------------------------------------------------------------------------ the real one


@pytest.mark.slow
def test_the_real_worker_registers(told, tmp_path):
    """A small phantom through folders and pipes; then the child ends when it is told to."""
    pytest.importorskip("torch", reason="needs torch")
    pytest.importorskip("SimpleITK", reason="needs SimpleITK")
    phantom = phantoms.phantom(32)
    inputs = Inputs(phantom.fixed, phantom.moving, None, phantom.moving_segmentation)
    worker = WorkerProcess(python_command(""), worker_environment(own_python=True), told.callbacks)
    set_translator(lambda context, template: f"<{context}: {template}>")
    try:
        refused = run(worker, told, {"request": "frobnicate"})
    finally:
        set_translator(None)
    said = "<worker.serve: There is no request 'frobnicate'; choose one of register, "
    assert refused[1:2] + refused[3:] == ("input", "")
    assert refused[2].startswith(said), "the worker speaks English, the window translates"
    del told[:]
    with private_folder(tmp_path) as folder:
        exchange.write_inputs(Path(folder) / "inputs", inputs)
        settings = {"refine": "field", "spacing": 12.0, "steps": 5, "align": "centre", "device": "cpu"}
        worker.submit({"request": "register", "folder": folder, "settings": settings, "options": {}})
        process_until(told.ends)
        assert told[-1][0] == "result", told[-1]
        results = exchange.read_results(Path(folder) / "results")
    assert worker.info["devices"][-1]["name"] == "cpu"
    fractions = [entry[2] for entry in told if entry[0] == "progress"]
    assert fractions
    assert fractions == sorted(fractions)
    assert results.warped.grid.is_close(phantom.fixed.grid)
    assert results.warped_segmentation is not None
    pid = worker.info["pid"]
    worker.stop()
    process_until(lambda: not process._running)
    assert not is_alive(pid)
    assert not list(tmp_path.iterdir())
