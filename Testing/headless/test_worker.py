"""The child process: the protocol over real pipes, in this process with stand-ins and in real children."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_exchange import assert_same, some_results
from waiting import PATIENCE
from worker_parent import PATIENT, Parent, a_child, a_request_folder, a_thread, as_shown, inputs_of_a_patient, left_in

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.spatial.field import warp_segmentation
from IconRegistrationLib.text import Sentence, set_translator, tr
from IconRegistrationLib.worker import exchange, protocol
from IconRegistrationLib.worker import serve as worker
from IconRegistrationLib.workflow.pipeline import compute

QUICK = {"spacing": 12.0, "align": "centre", "steps": 5, "device": "cpu"}
ENDLESS = QUICK | {"steps": 10_000_000}


@pytest.fixture(scope="module")
def some_inputs():
    return inputs_of_a_patient()


@pytest.fixture
def a_folder(tmp_path):
    return a_request_folder(tmp_path)


@pytest.fixture(scope="module")
def a_worker(tmp_path_factory):
    """One real child for many tests, started as the panel starts it; at its end, what it wrote for a log is checked."""
    log = tmp_path_factory.mktemp("log") / "stderr"
    with (
        open(log, "wb") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "IconRegistrationLib.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
        ) as process,
    ):
        parent = Parent(process.stdin, process.stdout)
        parent.ready = parent.read()["ready"]
        parent.pid = process.pid
        yield parent
        parent.close()
        assert process.wait(PATIENCE) == 0
    assert PATIENT not in log.read_text()


# ------------------------------------------------------------------------------------------------------- real children


def test_the_first_line_says_what_is_there(a_worker):
    ready = a_worker.ready
    assert ready["protocol"] == protocol.PROTOCOL
    assert ready["pid"] == a_worker.pid
    assert ready["torch"] == torch.__version__
    assert ready["python"] == sys.version.split()[0]
    *gpus, cpu = ready["devices"]
    assert len(gpus) == torch.cuda.device_count() + torch.backends.mps.is_available()
    assert cpu["name"] == "cpu"
    assert 2**28 < cpu["memory"] < 2**45


def without_times(results):
    registration = dataclasses.replace(results.registration, phi_AB=None, phi_BA=None, provenance={})
    return dataclasses.replace(
        results, registration=registration, report=dataclasses.replace(results.report, provenance={})
    )


def test_two_runs_give_what_compute_gives(a_worker, a_folder, some_inputs):
    exchange.write_inputs(a_folder / "inputs", some_inputs)
    options = {"guide": True, "moving_resolution": True, "compare": False}
    here = compute(some_inputs, Settings(**QUICK), **options)
    for number in (1, 2):
        a_worker.send(id=number, request="register", folder=str(a_folder), settings=QUICK, options=options)
        messages = a_worker.until("result", number)
        assert messages[-1] == {"id": number, "result": {"notes": []}}
        assert {message["id"] for message in messages} == {number}
        fractions = [message["progress"]["fraction"] for message in messages if "progress" in message]
        assert fractions == sorted(fractions)
        assert (fractions[0], fractions[-1]) == (0, 1)
        there = exchange.read_results(a_folder / "results")
        assert_same(without_times(there), without_times(here))
        record = here.registration.provenance
        assert there.registration.provenance | {"seconds": 0} == record | {"seconds": 0}
        assert left_in(a_folder) == ["inputs", "results"]


def test_cancel_ends_a_run_and_the_next_one_works(a_worker, a_folder):
    a_worker.send(id=4, request="register", folder=str(a_folder), settings=ENDLESS)
    a_worker.until("refinement", 4)
    a_worker.send(id=3, request="cancel")  # too late for a request that has ended: nothing happens
    a_worker.until("progress", 4)
    a_worker.send(id=4, request="cancel")
    assert a_worker.failure(4) == {"kind": "cancelled", "message": "Cancelled; nothing was changed.", "details": ""}
    assert left_in(a_folder) == ["inputs"]
    a_worker.send(id=5, request="register", folder=str(a_folder), settings=QUICK)
    assert "result" in a_worker.outcome(5)


def test_a_second_request_is_refused_by_the_number_of_the_first(a_worker, a_folder):
    a_worker.send(id=6, request="register", folder=str(a_folder), settings=ENDLESS)
    a_worker.until("refinement", 6)
    a_worker.send(id=7, request="release")
    failed = a_worker.failure(7)
    assert (failed["kind"], failed["message"].split(";")[0]) == ("input", "Request 6 is at work")
    a_worker.send(id=6, request="cancel")
    assert a_worker.failure(6)["kind"] == "cancelled"


def test_an_image_that_cannot_be_registered_is_said_as_in_process(a_worker, a_folder, some_inputs):
    constant = dataclasses.replace(some_inputs.moving, array=np.zeros_like(some_inputs.moving.array))
    inputs = dataclasses.replace(some_inputs, moving=constant)
    exchange.write_inputs(a_folder / "inputs", inputs)
    a_worker.send(id=8, request="register", folder=str(a_folder), settings=QUICK)
    with pytest.raises(InputError) as caught:
        compute(inputs, Settings(**QUICK))
    assert a_worker.failure(8) == {"kind": "input", "message": str(caught.value), "details": ""}


def test_a_segmentation_is_warped_once_from_its_own_voxels(a_worker, tmp_path, some_inputs):
    field = some_results().registration.forward
    segmentation, target = some_inputs.moving_segmentation, some_inputs.fixed.grid
    exchange.write(tmp_path / "inputs", segmentation=segmentation, field=field, target=target)
    a_worker.send(id=9, request="warp_segmentation", folder=str(tmp_path))
    assert a_worker.outcome(9) == {"id": 9, "result": {}}
    here = warp_segmentation(segmentation, field, target)
    assert_same(exchange.read(tmp_path / "results"), {"segmentation": here})
    assert any(layer.any() for layer in here.layers)


def test_the_end_of_the_requests_ends_an_endless_run(a_folder):
    with a_child() as (parent, process):
        parent.read()
        parent.send(id=1, request="register", folder=str(a_folder), settings=ENDLESS)
        parent.until("refinement", 1)
        parent.close()
        assert process.wait(PATIENCE) == protocol.ABANDONED
    assert not a_folder.exists(), "nobody else would remove it"


def test_the_end_of_the_requests_ends_what_never_calls_back(a_folder):
    """As while one long operation runs in native code; what the protocol did not put there stays."""
    (a_folder / "kept").write_text("")
    code = "import time\nfrom IconRegistrationLib.worker.serve import own_pipes, serve\n"
    code += "def compute(inputs, settings, progress, load):\n"
    code += "    progress('asleep', 0.5); time.sleep(10 * 3600)\n"
    with a_child(code + "serve(*own_pipes(), compute=compute)") as (parent, process):
        parent.read()
        parent.send(id=1, request="register", folder=str(a_folder))
        parent.until("asleep", 1)
        parent.close()
        assert process.wait(PATIENCE) == protocol.ABANDONED
    assert left_in(a_folder) == ["kept"]


def test_the_end_of_the_requests_ends_the_start():
    code = "import os, threading; from IconRegistrationLib.worker import serve as worker\n"
    code += "worker._ready = lambda: (os.write(1, b'{}\\n'), threading.Event().wait())\n"
    code += "stdin, stdout = worker.own_pipes(); os.dup2(stdout.fileno(), 1); worker.serve(stdin, stdout)"
    with a_child(code) as (parent, process):
        parent.read()
        parent.close()
        assert process.wait(PATIENCE) == protocol.ABANDONED


def test_what_others_print_and_read_does_not_reach_the_protocol(tmp_path):
    code = """
import ctypes, os, subprocess
from IconRegistrationLib.worker import serve as worker

def compute(inputs, settings, progress, load):
    print('by print')
    os.write(1, b'by os.write\\n')
    native = ctypes.CDLL(None)
    native.puts(b'by native code'); native.fflush(None)
    subprocess.run([sys.executable, '-c', "print('by a process'); print('read', repr(input()))"])
    print('read', sys.stdin.readline() == os.read(0, 99) == b'' or 'nothing')
    progress('printed', 0.5)

worker.serve(*worker.own_pipes(), compute=compute)
"""
    (tmp_path / "inputs").mkdir()
    exchange.write(tmp_path / "inputs", inputs=None)
    with a_child(code, stderr=subprocess.PIPE) as (parent, process):
        assert "ready" in parent.read()
        parent.send(id=1, request="register", folder=str(tmp_path))
        assert [list(message) for message in parent.until("printed", 1)] == [["id", "progress"]]
        assert parent.failure(1)["kind"] == "unexpected"  # for it returned no results
        parent.close()
        assert parent.read() is None
        printed = process.stderr.read().decode()
    for text in ("by print", "by os.write", "by native code", "by a process", "EOFError", "read nothing"):
        assert text in printed


@pytest.mark.parametrize("package", ["torch", "SimpleITK", "scipy", "numpy"])
def test_a_python_without_a_package_says_so(package):
    code = f"sys.modules['{package}'] = None; from IconRegistrationLib.worker.serve import main; sys.exit(main())"
    with a_child(code) as (parent, process):
        failed = as_shown(parent.read()["failed"])
        assert parent.read() is None
        assert process.wait(PATIENCE) == protocol.NO_DEPENDENCIES
    assert failed["kind"] == "dependency"
    assert re.fullmatch(
        rf"{re.escape(sys.executable)} cannot register: .*\b{package}\b.*; install [^\n]+\.", failed["message"]
    )
    assert "ModuleNotFoundError" in failed["details"]


def test_a_package_that_is_too_old_is_named_with_the_version_it_takes(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "1.13.1+cu117")
    requests, replies = os.pipe(), os.pipe()
    os.close(requests[1])
    with os.fdopen(requests[0], "rb") as stdin, os.fdopen(replies[1], "wb") as stdout:
        # the requests end before the worker has started
        monkeypatch.setattr(protocol, "_abandon", lambda request: None)
        assert worker.serve(stdin, stdout) == protocol.NO_DEPENDENCIES
    with os.fdopen(replies[0], "rb") as from_worker:
        failed = as_shown(json.loads(from_worker.read())["failed"])
    assert failed["kind"] == "dependency"
    assert "torch 1.13.1+cu117 is too old, 2.4 or newer is needed" in failed["message"]


def test_the_oldest_versions_are_everywhere_the_same():
    root = Path(__file__).parents[2]
    project, readme, panel, requirements = (
        (root / path).read_text(encoding="utf-8")
        for path in ("pyproject.toml", "README.md", "docs/panel.md", "IconRegistration/Resources/requirements.txt")
    )
    python, torch, sitk, scipy = (worker.OLDEST[name] for name in ("Python", "torch", "SimpleITK", "scipy"))
    for part in (f'requires-python = ">={python}"', f'"torch>={torch}"', f'"SimpleITK>={sitk}"', f'"scipy>={scipy}"'):
        assert part in project
    for text in (readme, panel):
        assert f"torch {torch} and SimpleITK {sitk}" in text
        assert f"{python} or later" in text
    # torch is the PyTorch extension's part
    assert re.findall(r"^\w.*", requirements, re.MULTILINE) == [f"SimpleITK>={sitk}", f"scipy>={scipy}"]


# ----------------------------------------------------------------------------------------------------- with stand-ins


@pytest.mark.parametrize(
    ("line", "number", "words"),
    [
        (b"register, please\n", None, "no JSON object"),
        (b"[1, 2]\n", None, "no JSON object"),
        (b'{"id": 1, "request": "\xff"}\n', None, "no JSON object"),
        (b'{"request": "release"}\n', None, "id of a request is None"),
        (b'{"id": "1", "request": "release"}\n', None, "id of a request is '1'"),
        (b'{"id": 1}\n', 1, "There is no request 'None'; choose one of register, "),
        (b'{"id": 1, "request": ["shutdown"]}\n', 1, "There is no request"),
        (b'{"id": 1, "request": "register"}\n', 1, "The folder None .* does not exist"),
        (b'{"id": 1, "request": "register", "folder": "/no/such"}\n', 1, "The folder '/no/such' .* does not exist"),
        (b'{"id": 1, "request": "warp_segmentation", "folder": 7}\n', 1, "The folder 7 .* does not exist"),
        (b'{"id": 1, "request": "register", "settings": [1]}\n', 1, r"The settings .* are \[1\]; send an object"),
        (b'{"id": 1, "request": "register", "options": {"fast": true}}\n', 1, "fast = True is none of guide, carry"),
        (b'{"id": 1, "request": "register", "options": {"guide": 1}}\n', 1, "guide = 1 is none of .*, true or false"),
        (b'{"id": 1, "request": "register", "settings": {"speed": 9}}\n', 1, "no setting 'speed'; choose from align,"),
        (b'{"id": 1, "request": "register", "settings": {"align": "afine"}}\n', 1, "'afine'; choose one of auto,"),
        (
            b'{"id": 1, "request": "register", "settings": {"steps": "9"}}\n',
            1,
            "steps is '9'; it must be a whole number",
        ),
        (
            b'{"id": 1, "request": "register", "settings": {"padding": NaN}}\n',
            1,
            "padding is nan; it must be a finite number",
        ),
        (
            b'{"id": 1, "request": "register", "settings": {"ct_window": [0]}}\n',
            1,
            r"ct_window is \(0,\); it must be two",
        ),
        (b'{"id": 1, "request": "download", "model": "alexnet"}\n', 1, "No model is called 'alexnet'"),
        (b'{"id": 1, "request": "download", "model": "none"}\n', 1, "has no weights"),
    ],
)
def test_requests_that_cannot_be_understood_are_answered_in_one_sentence(a_worker, line, number, words):
    a_worker.write(line)
    failed = a_worker.failure(number)
    assert failed["kind"] == "input"
    assert failed["details"] == ""
    assert re.search(words, failed["message"])
    a_worker.send(id=2, request="release")  # the worker goes on
    assert a_worker.outcome(2) == {"id": 2, "result": {}}


@pytest.mark.parametrize("request_name", ["register", "warp_segmentation"])
def test_a_folder_without_inputs_is_named(tmp_path, request_name):
    with a_thread(compute=lambda *arguments, **options: None) as parent:
        parent.send(id=1, request=request_name, folder=str(tmp_path))
        assert re.search(r"inputs holds no complete exchange .*write it again", parent.failure(1)["message"])
        exchange.write(tmp_path / "inputs", field=None)
        parent.send(id=2, request="warp_segmentation", folder=str(tmp_path))
        assert "inputs has no segmentation, target;" in parent.failure(2)["message"]
    assert left_in(tmp_path) == ["inputs"]


def test_settings_and_options_arrive_as_they_were_sent(a_folder):
    seen = []

    def stand_in(inputs, settings, **options):
        assert callable(options.pop("progress"))
        assert callable(options.pop("load"))
        seen.append((inputs.fixed.name, settings, options))
        return some_results()

    every = {"guide": True, "carry": False, "compare": False, "moving_resolution": True}
    sent = Settings(ct_window=(-200.0, 300.0), steps=3, similarity="mind", padding=5.0)
    with a_thread(compute=stand_in) as parent:
        settings = dataclasses.asdict(sent)
        parent.send(id=1, request="register", folder=str(a_folder), settings=settings, options=every)
        assert "result" in parent.outcome(1)
    assert seen == [(PATIENT, sent, every)]


def test_progress_is_sparse_but_no_stage_is_left_out(a_folder):
    def stand_in(inputs, settings, progress, load):
        for n in range(5000):
            progress("many", n / 10000)
        for stage in ("one", "two", "three"):
            progress(stage, 0.6)
        return some_results()

    with a_thread(compute=stand_in) as parent:
        start = time.monotonic()
        parent.send(id=1, request="register", folder=str(a_folder))
        progress = [message["progress"] for message in parent.until("result", 1) if "progress" in message]
        seconds = time.monotonic() - start
    stages = [Sentence.from_plain(step["stage"]) for step in progress]
    assert list(dict.fromkeys(stages)) == ["many", "one", "two", "three", "saving"]
    assert stages.count("many") <= 1 + 10 * seconds


def test_signs_of_life_come_while_nothing_else_does_and_only_then(a_folder, monkeypatch):
    monkeypatch.setattr(protocol, "_SECONDS_BETWEEN_SIGNS_OF_LIFE", 0.02)
    seen_alive = threading.Event()

    def silent(inputs, settings, progress, load):
        assert seen_alive.wait(PATIENCE)
        return some_results()

    with a_thread(compute=silent) as parent:
        parent.send(id=1, request="register", folder=str(a_folder))
        for _ in range(3):
            assert parent.read() == {"id": 1, "alive": True}
        seen_alive.set()
        assert "result" in parent.until("result", 1)[-1]
        time.sleep(0.1)  # time enough for five more
        parent.send(id=2, request="nonsense")
        assert [set(message) - {"alive"} for message in parent.until("failed")][-1] == {"id", "failed"}
        parent.send(id=3, request="release")
        assert all(message["id"] == 3 for message in parent.until("result"))


def test_a_cancel_that_the_computation_did_not_notice_still_counts(a_folder):
    cancelled = threading.Event()

    def deaf(inputs, settings, progress, load):
        progress("deaf", 0.1)
        assert cancelled.wait(PATIENCE)
        return some_results()

    with a_thread(compute=deaf) as parent:
        parent.send(id=1, request="register", folder=str(a_folder))
        parent.until("deaf", 1)
        parent.send(id=1, request="cancel")
        parent.send(id=2, request="release")  # refused; once it is, the cancel before it has been read
        parent.failure(2)
        cancelled.set()
        assert parent.failure(1)["kind"] == "cancelled"
    assert left_in(a_folder) == ["inputs"]


@pytest.mark.parametrize(
    ("error", "kind", "words", "detailed"),
    [
        (InputError("The scan is upside\n down; turn it."), "input", "The scan is upside down; turn it.", False),
        (MemoryError(), "memory", "This machine ran out of memory; crop", False),
        (KeyError("lattice"), "unexpected", "Unexpected KeyError: 'lattice'.", True),
        (RuntimeError("one.\ntwo."), "unexpected", "Unexpected RuntimeError: one. two.", True),
        (AssertionError(), "unexpected", "Unexpected AssertionError: it says no more.", True),
    ],
)
def test_every_error_has_a_kind_and_a_sentence_and_no_results(a_folder, error, kind, words, detailed):
    exchange.write_results(a_folder / "results", some_results())  # of an earlier request in the same folder

    def failing(inputs, settings, **options):
        raise error

    with a_thread(compute=failing) as parent:
        parent.send(id=1, request="register", folder=str(a_folder))
        failed = parent.failure(1)
    assert failed["kind"] == kind
    assert failed["message"].startswith(words)
    assert ("in failing" in failed["details"]) is detailed
    assert left_in(a_folder) == ["inputs"]


def test_a_sentence_is_put_together_in_the_language_of_the_window(a_folder):
    def failing(inputs, settings, **options):
        raise InputError(tr("{path} is empty; {remedy}.", path="a.nii", remedy=tr("choose {count} others", count=2)))

    with a_thread(compute=failing) as parent:
        parent.send(id=1, request="register", folder=str(a_folder))
        sent = parent.outcome(1)["failed"]["message"]
    assert Sentence.from_plain(sent) == "a.nii is empty; choose 2 others."
    set_translator(lambda context, template: f"[{template}]")
    try:
        assert Sentence.from_plain(sent) == "[a.nii is empty; [choose 2 others].]"
    finally:
        set_translator(None)


def test_results_that_cannot_be_written_are_not_left_half(a_folder):
    half = dataclasses.replace(some_results(), jacobian=np.array([object()]))
    with a_thread(compute=lambda *arguments, **options: half) as parent:
        parent.send(id=1, request="register", folder=str(a_folder))
        assert parent.failure(1)["kind"] == "unexpected"
    assert left_in(a_folder) == ["inputs"]
