"""The parent's end of a worker's pipes, for tests: real children, and workers on a thread with stand-ins."""

import contextlib
import dataclasses
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import phantoms
from waiting import PATIENCE

from IconRegistrationLib.text import Sentence
from IconRegistrationLib.worker import exchange
from IconRegistrationLib.worker import serve as worker
from IconRegistrationLib.workflow.results import Inputs

PATIENT = "Erika Mustermann"
#: Parents of workers in this process. A failed test leaves its own here, for a worker whose requests end while it is
#: at work ends the process.
OPEN = []


def as_shown(failed: dict) -> dict:
    """A "failed" with its sentence as a window shows it."""
    return {**failed, "message": Sentence.from_plain(failed["message"])}


class Parent:
    """The parent's end of a worker's pipes."""

    def __init__(self, to_worker, from_worker):
        self._to_worker = to_worker
        self._lines = queue.Queue()
        threading.Thread(target=self._listen, args=(from_worker,), daemon=True).start()

    def _listen(self, from_worker):
        for line in from_worker:
            self._lines.put(line)
        self._lines.put(None)

    def write(self, line: bytes):
        self._to_worker.write(line)
        self._to_worker.flush()

    def send(self, **message):
        self.write(json.dumps(message).encode() + b"\n")

    def read(self) -> dict | None:
        """The next line; None at the end."""
        line = self._lines.get(timeout=PATIENCE)
        return None if line is None else json.loads(line)

    def messages(self):
        """As they come, but not for ever: a worker that hangs may well be alive."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            message = self.read()
            assert message is not None, "the worker ended"
            yield message
        raise AssertionError("the worker goes on and on")

    def until(self, key: str, number: int | None = None) -> list[dict]:
        """Everything up to the first message with `key`, or to the first progress of the stage `key`.

        number: of a request that must not fail before.
        """
        seen = []
        for message in self.messages():
            seen.append(message)
            if key in message or Sentence.from_plain(message.get("progress", {}).get("stage", "")) == key:
                return seen
            assert number is None or "failed" not in message, message

    def outcome(self, number: int | None) -> dict:
        """The last message of a request."""
        for message in self.messages():
            if message.get("id") == number and {"result", "failed"} & set(message):
                return message

    def failure(self, number: int) -> dict:
        """What went wrong: the checked content of "failed"."""
        message = self.outcome(number)
        assert set(message) == {"id", "failed"}, message
        failed = as_shown(message["failed"])
        assert set(failed) == {"kind", "message", "details"}
        assert re.fullmatch(r"[^\n]+\.", failed["message"]), "one sentence"
        return failed

    def close(self):
        with contextlib.suppress(BrokenPipeError):
            self._to_worker.close()


@contextlib.contextmanager
def a_child(code="from IconRegistrationLib.worker import serve as worker; sys.exit(worker.main())", **options):
    """(Parent, Popen) of a real child process."""
    with subprocess.Popen(
        [sys.executable, "-c", f"import sys; {code}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options
    ) as process:
        parent = Parent(process.stdin, process.stdout)
        try:
            yield parent, process
        finally:
            parent.close()
            process.kill()


@contextlib.contextmanager
def a_thread(**options):
    """A Parent of a worker that serves pipes in this process."""
    requests, replies = os.pipe(), os.pipe()
    stdin, to_worker = os.fdopen(requests[0], "rb"), os.fdopen(requests[1], "wb")
    from_worker, stdout = os.fdopen(replies[0], "rb"), os.fdopen(replies[1], "wb")
    codes = []
    thread = threading.Thread(target=lambda: codes.append(worker.serve(stdin, stdout, **options)), daemon=True)
    thread.start()
    parent = Parent(to_worker, from_worker)
    OPEN.append(parent)
    assert "ready" in parent.read()
    yield parent
    OPEN.remove(parent)
    parent.close()
    thread.join(PATIENCE)
    assert codes == [0]
    for file in (stdin, stdout, from_worker):
        file.close()


def inputs_of_a_patient() -> Inputs:
    """The small phantom under a patient's name, which must not leave the worker by its log."""
    phantom = phantoms.phantom(32)
    return dataclasses.replace(
        phantom.inputs,
        fixed=dataclasses.replace(phantom.fixed, name=PATIENT),
        moving=dataclasses.replace(phantom.moving, name=f"{PATIENT} 2"),
    )


def a_request_folder(parent: Path) -> Path:
    """The folder of a request, filled as the parent fills it; two images alone, for they are the quickest."""
    inputs = inputs_of_a_patient()
    exchange.write_inputs(parent / "request" / "inputs", Inputs(inputs.fixed, inputs.moving))
    return parent / "request"


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
