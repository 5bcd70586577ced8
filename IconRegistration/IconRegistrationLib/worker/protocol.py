"""The protocol between the window and the worker process: lines of JSON, requests in and replies out.

One JSON object per line in UTF-8: the parent's on standard input, the worker's on standard output. Other output of
libraries goes to standard error. Arrays travel through folders (worker/exchange.py) that the parent makes and removes.

The worker's first line says that it can work, or why it cannot; then it exits with 3::

    {"ready": {"protocol": 2, "version": "0.2.0", "python": "3.12.10", "torch": "2.8.0", "pid": 4711, "devices":
        [{"name": "cuda:0", "title": "NVIDIA ...", "memory": bytes}, ...,
         {"name": "cpu", "title": ..., "memory": bytes or null}]}}
    {"failed": {"kind": "dependency", "message": SENTENCE, "details": traceback}}

A SENTENCE is what a user reads, or a plain string that needs no translation. The window makes the text of it,
in its own language (text.Sentence)::

    {"template": English with {named} placeholders, "values": {name: value or SENTENCE},
     "context": where translations look for it}

Requests carry an integer "id", which the replies repeat::

    {"id": 1, "request": "register", "folder": DIR, "settings": {fields of Settings}, "options": {"guide": bool,
        "carry": bool, "compare": bool, "moving_resolution": bool}}     `compute` of DIR/inputs gives DIR/results
    {"id": 2, "request": "warp_segmentation", "folder": DIR}            segmentation, field and target in DIR/inputs
                                                                        give segmentation in DIR/results
    {"id": 3, "request": "download", "model": name, "weights_dir": DIR or null}
    {"id": 4, "request": "release"}                                     forgets the network, empties the GPU's cache
    {"id": 1, "request": "cancel"}                                      request 1, which then fails as "cancelled"

One request at a time; another one fails. Replies, the last two of which end a request::

    {"id": 1, "progress": {"stage": SENTENCE, "fraction": 0.31}}        a download's also has "done", "total" in bytes
    {"id": 1, "note": SENTENCE}                                         what was changed to get on
    {"id": 1, "alive": true}                                            every second
    {"id": 1, "result": {...}}              register: {"notes": [SENTENCE, ...]}; download: {"path": FILE}; else {}
    {"id": 1, "failed": {"kind": one of `errors.explain`'s, "message": SENTENCE, "details": traceback or ""}}
                                            DIR/results does not exist then; "id" is null where the line had none

The end of standard input, which is also what a dead parent looks like, ends the worker at once. Then nobody is left to
remove the folder of a request at work: the worker does, as far as the protocol filled it.

Protocol 1, of version 0.1, had English strings in place of SENTENCE.

Nothing at the top of this file needs numpy, torch or SimpleITK: a Python without them can say so.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import Cancelled, InputError
from ..text import plain_sentence, tr

#: Version of what this file describes. A window and a worker of different versions do not talk to each other.
PROTOCOL = 2
#: Exit codes: a library is missing or too old; the parent ended while a request was at work.
NO_DEPENDENCIES, ABANDONED = 3, 4

_SECONDS_BETWEEN_PROGRESS = 0.1
_SECONDS_BETWEEN_SIGNS_OF_LIFE = 1.0


def own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Return standard input and output for the protocol alone.

    Whatever prints afterwards, in Python or in native code, prints to standard error, and whatever reads finds nothing.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    if sys.platform == "win32":  # neither "\r\n" nor an end at Ctrl-Z
        import msvcrt

        for file in (requests, replies):
            msvcrt.setmode(file.fileno(), os.O_BINARY)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return requests, replies


class ReplyWriter:
    """Writes replies to the parent, one line each; threads take turns."""

    def __init__(self, replies: BinaryIO):
        self._replies = replies
        self._turn = threading.Lock()

    def send(self, **message: Any) -> None:
        """Write one reply, of JSON-safe values."""
        text = json.dumps(message).encode("ascii") + b"\n"
        # Where nobody reads, the end of the requests, which ends the worker, is on its way.
        with self._turn, suppress(OSError):
            self._replies.write(text)
            self._replies.flush()

    def fail(self, number: int | None, sentence: str) -> None:
        """Refuse the request with that number, or a line that is none."""
        self.send(id=number, failed={"kind": "input", "message": plain_sentence(sentence), "details": ""})


@dataclass(frozen=True)
class Request:
    """A request that was accepted.

    Attributes
    ----------
    id : int
        Repeated by every reply.
    name : str
        The value of its "request".
    content : dict
        The whole object.
    cancelled : threading.Event
        Set when the parent cancels it.
    """

    id: int
    name: str
    content: dict[str, Any] = field(repr=False)
    cancelled: threading.Event = field(default_factory=threading.Event, repr=False)

    def values(self, name: str) -> dict[str, Any]:
        """Return the object `name` of the request, empty where it has none. Raises InputError for another value."""
        values = self.content.get(name) or {}
        if not isinstance(values, dict):
            raise InputError(
                tr(
                    "The {name} of the request {request} are {values}; send an object.",
                    name=name,
                    request=repr(self.name),
                    values=repr(values),
                )
            )
        return values

    @property
    def folder(self) -> Path:
        """The folder through which arrays travel. Raises InputError where it does not exist."""
        folder = self.content.get("folder")
        if not isinstance(folder, str) or not Path(folder).is_dir():
            raise InputError(
                tr(
                    "The folder {folder} of the request {request} does not exist; make it first.",
                    folder=repr(folder),
                    request=repr(self.name),
                )
            )
        return Path(folder)


class RequestReader:
    """Accepts requests, one at a time, on a thread that goes on reading while the main thread works."""

    def __init__(self, requests: BinaryIO, replies: ReplyWriter):
        self._replies = replies
        self._state = threading.Lock()
        self._starting = True
        self._current: Request | None = None
        self._accepted: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(requests,), name="requests", daemon=True).start()

    def requests(self) -> Iterator[Request]:
        """Yield requests as they come, until there are no more."""
        with self._state:
            self._starting = False
        while (request := self._accepted.get()) is not None:
            yield request

    def close(self, request: Request) -> None:
        """Declare the work of `request` done: the next may come."""
        with self._state:
            self._current = None

    def _read(self, requests: BinaryIO) -> None:
        with suppress(OSError):  # a broken pipe is an end too
            for text in requests:
                self._accept(text)
        with self._state:
            if self._starting or self._current is not None:
                _abandon(self._current)
        self._accepted.put(None)

    def _accept(self, text: bytes) -> None:
        if not text.strip():
            return
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            self._replies.fail(None, tr("A line of the requests is no JSON object; send one object per line."))
            return
        number, name = content.get("id"), str(content.get("request"))
        if type(number) is not int:
            self._replies.fail(None, tr("The id of a request is {id}; it must be an integer.", id=repr(number)))
        elif name == "cancel":
            with self._state:
                if self._current is not None and self._current.id == number:
                    self._current.cancelled.set()
        else:
            request = Request(number, name, content)
            with self._state:
                other = self._current
                if other is None:
                    self._current = request
                    self._accepted.put(request)
            if other is not None:
                sentence = tr(
                    "Request {other} is at work; wait for its result, or cancel it, before request {number}.",
                    other=other.id,
                    number=number,
                )
                self._replies.fail(number, sentence)


def _abandon(request: Request | None) -> None:
    """End the process now, whatever its threads compute; nothing stays of what the request brought or made."""
    with suppress(InputError, OSError):  # no folder; or something else is in it
        if request is not None:
            for name in ("inputs", "results.partial", "results"):
                shutil.rmtree(request.folder / name, ignore_errors=True)
            request.folder.rmdir()
    os._exit(ABANDONED)


@contextmanager
def signs_of_life(replies: ReplyWriter, request: Request) -> Iterator[None]:
    """Send a sign every second, so that the parent can tell a long computation from a dead one."""
    done = threading.Event()

    def beat():
        while not done.wait(_SECONDS_BETWEEN_SIGNS_OF_LIFE):
            replies.send(id=request.id, alive=True)

    thread = threading.Thread(target=beat, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class ProgressSender:
    """`progress(stage, fraction)` of one request: sends it at a limited rate; raises Cancelled once requested."""

    def __init__(self, replies: ReplyWriter, request: Request):
        self._replies, self._request = replies, request
        self._stage: str | None = None
        self._time = 0.0

    def __call__(self, stage: str, fraction: float, **more: int) -> None:
        """Send stage and fraction of the request, and `more` beside them; raises Cancelled."""
        self.check()
        now = time.monotonic()
        if stage == self._stage and now - self._time < _SECONDS_BETWEEN_PROGRESS:
            return
        self._stage, self._time = stage, now
        progress = {"stage": plain_sentence(stage), "fraction": round(fraction, 4), **more}
        self._replies.send(id=self._request.id, progress=progress)

    def check(self) -> None:
        """Raise Cancelled if the parent has cancelled the request."""
        if self._request.cancelled.is_set():
            raise Cancelled
