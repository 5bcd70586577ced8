"""Start, feed, watch, cancel and end the worker process from Slicer's window, without ever waiting for it.

    worker = WorkerProcess(python_command(""), worker_environment(own_python=True), Callbacks(result=show, failed=say))
    worker.submit({"request": "register", "folder": folder.name, "settings": {...}, "options": {...}})

The protocol is described in IconRegistrationLib/worker/protocol.py.
"""

from __future__ import annotations

import json
import os
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import qt
import slicer

from ..errors import Cancelled, InputError, explain
from ..text import Sentence, tr
from ..worker.protocol import PROTOCOL

#: Seconds: until a cancelled worker is killed; until one that was told to end is.
CANCEL_SECONDS, END_SECONDS = 0.7, 1.0

#: What is kept of the worker's other output: lines, and bytes of a line. Messages are shorter than a line may be.
_LOG_LINES, _LOG_LINE, _LONGEST_LINE = 200, 500, 1 << 20

#: Timer ticks per silence timeout; one missed tick does not kill the worker.
_TICKS = 4


def _nothing(*_values) -> None:
    pass


@dataclass(frozen=True)
class Callbacks:
    """Listener of a WorkerProcess. Every request ends with exactly one `result` or `failed`.

    ready(info): the worker runs; what it is and which devices it has.
    progress(stage, fraction of the request).  note(sentence): what the worker changed to get on.
    result(dict).
    failed(kind, sentence, details): "input", "memory", "cancelled", "unexpected" and "dependency" as the worker says
    it; "worker" if the process itself failed. The next request may be submitted from within.
    """

    ready: Callable[[dict], None] = _nothing
    progress: Callable[[str, float], None] = _nothing
    note: Callable[[str], None] = _nothing
    result: Callable[[dict], None] = _nothing
    failed: Callable[[str, str, str], None] = _nothing


class WorkerProcess:
    """Runs requests in a child process, one at a time; the child stays warm between them.

    command: the Python interpreter and its first arguments, or a wrapper around one.
    environment: the child's variables; None for this process's own.
    silence: seconds without a sign of life after which a working child is killed.
    start_silence: the same for a child that has not yet said that it is ready; importing torch takes a while.
    """

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str] | None,
        callbacks: Callbacks,
        *,
        silence: float = 60.0,
        start_silence: float = 180.0,
    ):
        self._command, self._environment, self._callbacks = list(command), environment, callbacks
        self._silence, self._start_silence = silence, start_silence
        self._child: Any = None  # a _Child
        self._info: dict | None = None
        self._request: Any = None  # the caller's, from submit to its end
        self._at_work: int | None = None  # the id of what the child was sent and has not ended
        self._ids = 0
        self._ticks = 0
        self._watch = _timer(self._tick)
        self._cancel_deadline = _timer(self._cancel_by_force, once=True)

    @property
    def busy(self) -> bool:
        """Whether a request has not ended yet."""
        return self._request is not None

    @property
    def info(self) -> dict | None:
        """Self-description of the running worker; None while none is ready."""
        return self._info

    def submit(self, request: dict) -> None:
        """Send a request, without its id, as soon as a worker is ready; starts one if need be.

        Raises InputError while another request is at work.
        """
        if self.busy:
            name = repr(self._request["request"])
            raise InputError(tr("A {name} request is at work; wait for its end or cancel it.", name=name))
        self._request = {"id": self._next_id(), **request}
        if self._child is None:
            self._start()
        else:
            self._send_request()

    def cancel(self) -> None:
        """End the request as cancelled within a second: by asking, else by killing the child."""
        if not self.busy or self._cancel_deadline.active:
            return
        if self._at_work != self._request["id"]:
            self._end_request(*_cancelled())
            return
        self._child.send({"id": self._at_work, "request": "cancel"})
        self._cancel_deadline.start(int(1000 * CANCEL_SECONDS))

    def release(self) -> None:
        """Let an idle worker give back the GPU's memory."""
        if self._info is not None and self._at_work is None:
            self._send({"id": self._next_id(), "request": "release"})

    def stop(self) -> None:
        """End the child, soon and without waiting. A request at work is dropped without a word."""
        child = self._forget_child()
        self._request = None
        if child is not None:
            child.close()

    # ------------------------------------------------------------------------------------------------ the child

    def _next_id(self) -> int:
        self._ids += 1
        return self._ids

    def _start(self) -> None:
        self._child = _Child(self._command, self._environment, self._take, self._child_ended)
        self._watch_for(self._start_silence)
        slicer.app.connect("aboutToQuit()", self._quit)
        self._child.start()

    def _send(self, message: dict) -> None:
        self._at_work = message["id"]
        self._child.send(message)
        self._watch_for(self._silence)

    def _send_request(self) -> None:
        if self.busy and self._info is not None and self._at_work is None:
            self._send(self._request)

    def _forget_child(self) -> Any:
        """Return the child and listen to it no more."""
        child, self._child, self._info, self._at_work = self._child, None, None, None
        self._watch.stop()
        self._cancel_deadline.stop()
        if child is not None:
            child.ignore()
            slicer.app.disconnect("aboutToQuit()", self._quit)
        return child

    def _end_request(self, sentence: str, kind: str = "worker", details: str = "") -> None:
        if self.busy:
            self._request = None
            self._callbacks.failed(kind, sentence, details)

    def _give_up(self, sentence: str, kind: str = "worker", details: str | None = None) -> None:
        """End the child, which is of no use, and the request."""
        child = self._forget_child()
        child.kill()
        self._end_request(sentence, kind, child.log_text() if details is None else details)

    def _quit(self) -> None:
        """Kill the child as Slicer ends, whose event loop will not run the timers that `stop` relies on."""
        child = self._child
        self.stop()
        if child is not None:
            child.wait()

    # ------------------------------------------------------------------------------------------------ what it says

    def _take(self, message: dict) -> None:
        self._ticks = 0
        if self._info is None:
            self._take_first(message)
        elif message.get("id") == self._at_work and self._at_work is not None:
            self._take_reply(message)

    def _take_first(self, message: dict) -> None:
        if "failed" in message:
            failed = message["failed"]
            self._give_up(Sentence.from_plain(failed["message"]), failed["kind"], failed["details"])
        elif "ready" in message:
            info = message["ready"]
            if info.get("protocol") != PROTOCOL:
                self._give_up(
                    tr(
                        "{python} runs version {version} of IconRegistrationLib, which does not understand this panel; "
                        "update the one that is installed there, or choose another Python.",
                        python=self._command[0],
                        version=info.get("version"),
                    )
                )
                return
            self._info = info
            self._watch.stop()
            child = self._child
            self._callbacks.ready(info)
            if child is self._child:
                self._send_request()

    def _take_reply(self, message: dict) -> None:
        wanted = self.busy and self._at_work == self._request["id"] and not self._cancel_deadline.active
        if "result" in message or "failed" in message:
            self._take_end(message)
        elif "progress" in message and wanted:
            progress = message["progress"]
            self._callbacks.progress(Sentence.from_plain(progress["stage"]), progress["fraction"])
        elif "note" in message and wanted:
            self._callbacks.note(Sentence.from_plain(message["note"]))

    def _take_end(self, message: dict) -> None:
        """Take the end of a request; a cancelled one ends as cancelled, even if it came to a result."""
        ours, cancelled = self.busy and self._at_work == self._request["id"], self._cancel_deadline.active
        self._at_work = None
        self._watch.stop()
        self._cancel_deadline.stop()
        if not ours:  # a release; what was submitted meanwhile has waited for it
            self._send_request()
        elif cancelled:
            self._end_request(*_cancelled())
        elif "failed" in message:
            failed = message["failed"]
            self._end_request(Sentence.from_plain(failed["message"]), failed["kind"], failed["details"])
        else:
            self._request = None
            self._callbacks.result(message["result"])

    # ------------------------------------------------------------------------------------------------ what it does not

    def _watch_for(self, seconds: float) -> None:
        self._ticks = 0
        self._watch.start(int(1000 * seconds / _TICKS))

    def _tick(self) -> None:
        self._ticks += 1
        if self._ticks < _TICKS:
            return
        seconds = self._start_silence if self._info is None else self._silence
        self._give_up(
            tr(
                "The worker gave no sign of life for {seconds:g} s and was ended; try again, and if it happens again, "
                "choose another device or another Python.",
                seconds=seconds,
            )
        )

    def _cancel_by_force(self) -> None:
        self._give_up(*_cancelled(), "")

    def _child_ended(self, ending: _Ending) -> None:
        cancelled, was_ready = self._cancel_deadline.active, self._info is not None
        child = self._forget_child()
        if cancelled:
            self._end_request(*_cancelled())
        else:
            kind, sentence = ending_sentence(ending, self._command[0], was_ready, child.last_words())
            self._end_request(sentence, kind, child.log_text())


@dataclass(frozen=True)
class _Ending:
    """How a process ended. error: why it did not even start.  code: its exit code, or the signal that ended it."""

    error: str = ""
    code: int = 0
    crashed: bool = False


def ending_sentence(ending: _Ending, program: str, was_ready: bool, last_words: str) -> tuple[str, str]:
    """Return (kind of failure, one sentence with the remedy) for a worker that ended by itself."""
    if ending.error:
        return "worker", tr(
            "The worker cannot be started, because {program} cannot be run ({reason}); choose an existing Python "
            "interpreter that may be executed.",
            program=repr(program),
            reason=ending.error.rstrip("."),
        )
    # 137: what a shell or another wrapper reports of a program that was killed
    killed = (ending.crashed and ending.code == 9) or ending.code == 137
    if killed and os.name == "posix":
        return "memory", tr(
            "The system killed the worker, most likely because the machine ran out of memory; "
            "choose a coarser spacing, a smaller region of interest or another device."
        )
    if ending.crashed:
        how = tr("by a crash ({signal})", signal=_signal_name(ending.code))
    else:
        how = tr("with exit code {code}", code=ending.code)
    last_words = f': "{last_words}"' if last_words else ""
    if was_ready:
        return "worker", tr(
            "The worker ended {how} in the middle of its work{last_words}; try again, or choose another device.",
            how=how,
            last_words=last_words,
        )
    return "worker", tr(
        "The worker ended {how} before it was ready{last_words}; choose another Python, or repair {program}.",
        how=how,
        last_words=last_words,
        program=repr(program),
    )


def _cancelled() -> tuple[str, str]:
    """Return sentence and kind of a cancelled request."""
    kind, sentence = explain(Cancelled())
    return sentence, kind


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"code {number}"


#: Children whose process has not ended: to drop the last reference to a running QProcess is to wait for its end.
_running: set[_Child] = set()


class _Child:
    """One process: its messages as dicts, its other output as a log, its end told once.

    Nothing is told after `ignore`.
    """

    def __init__(
        self, command: Any, environment: Any, on_message: Callable[[dict], None], on_end: Callable[[_Ending], None]
    ):
        self._command = command
        self._on_message, self._on_end = on_message, on_end
        self._lines = LineBuffer(_LONGEST_LINE)
        self._errors = LineBuffer(_LOG_LINE)
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._deadline = _timer(self.kill, once=True)
        self._process = qt.QProcess()
        if environment is not None:
            variables = qt.QProcessEnvironment()
            for name, value in environment.items():
                variables.insert(name, value)
            self._process.setProcessEnvironment(variables)
        self._process.connect("readyReadStandardOutput()", self._read)
        self._process.connect("readyReadStandardError()", self._read_errors)
        self._process.connect("errorOccurred(QProcess::ProcessError)", self._error)
        self._process.connect("finished(int,QProcess::ExitStatus)", self._finished)

    def start(self) -> None:
        _running.add(self)
        self._process.start(self._command[0], [*self._command[1:], "-m", "IconRegistrationLib.worker"])

    def send(self, message: dict) -> None:
        self._process.write(json.dumps(message).encode("ascii") + b"\n")

    def ignore(self) -> None:
        self._on_message, self._on_end = _nothing, _nothing

    def close(self) -> None:
        """Close the worker's input, its sign to end; kill it if it does not."""
        if self in _running:
            self._process.closeWriteChannel()
            self._deadline.start(int(1000 * END_SECONDS))

    def kill(self) -> None:
        if self in _running:
            self._process.kill()

    def wait(self) -> None:
        """Wait until the process closed by `close` has ended; only used when Slicer exits."""
        if self in _running and not self._process.waitForFinished(int(1000 * END_SECONDS)):
            self._process.kill()
            self._process.waitForFinished(int(1000 * END_SECONDS))

    def last_words(self) -> str:
        return self._log[-1] if self._log else ""

    def log_text(self) -> str:
        return "\n".join(self._log)

    def _read(self) -> None:
        for line in self._lines.feed(self._process.readAllStandardOutput().data()):
            message = parse(line)
            if message is None:
                self._note(line)
            else:
                self._on_message(message)

    def _read_errors(self) -> None:
        for line in self._errors.feed(self._process.readAllStandardError().data()):
            self._note(line)

    def _note(self, line: bytes) -> None:
        text = line[:_LOG_LINE].decode("utf-8", "replace").strip()
        if text:
            self._log.append(text)

    def _error(self, error) -> None:
        if error == qt.QProcess.FailedToStart:  # every other error is followed by `finished`
            ending = _Ending(error=self._process.errorString())
            qt.QTimer.singleShot(0, lambda: self._end(ending))  # `start` may still be at work

    def _finished(self, code, status) -> None:
        self._read()
        self._read_errors()
        for rest in (self._lines.rest, self._errors.rest):
            self._note(rest)
        self._end(_Ending(code=code, crashed=status == qt.QProcess.CrashExit))

    def _end(self, ending: _Ending) -> None:
        self._deadline.stop()
        _running.discard(self)
        self._process.deleteLater()
        self._on_end(ending)


class LineBuffer:
    """Puts lines together from pieces; of a line that is longer than `limit` bytes only its start is kept.

    rest: the bytes after the last end of a line.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes, without their ends."""
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = self.rest + lines[0]
            self.rest = rest[: self._limit]
        else:
            self.rest = (self.rest + rest)[: self._limit]
        return [line[: self._limit].rstrip(b"\r") for line in lines]


def parse(line: bytes) -> dict | None:
    """Return the JSON object in a line; None if the line holds something else."""
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _timer(slot: Callable[[], None], once: bool = False):
    timer = qt.QTimer()
    timer.setSingleShot(once)
    timer.connect("timeout()", slot)
    return timer
