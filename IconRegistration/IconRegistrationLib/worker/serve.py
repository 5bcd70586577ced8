"""The child process: registers for a window that must neither wait nor hold torch. Requests in, results out.

    python -m IconRegistrationLib.worker

One JSON object per line in UTF-8: the parent's on standard input, the worker's on standard output. What else libraries
print goes to standard error. Arrays travel through folders (worker/exchange.py) that the parent makes and removes.

The worker's first line says that it can work, or why it cannot; then it exits with 3:

    {"ready": {"protocol": 1, "version": "0.1.0", "python": "3.12.10", "torch": "2.8.0", "pid": 4711, "devices":
        [{"name": "cuda:0", "title": "NVIDIA ...", "memory": bytes}, ...,
         {"name": "cpu", "title": ..., "memory": bytes or null}]}}
    {"failed": {"kind": "dependency", "message": sentence, "details": traceback}}

Requests carry an integer "id", which the replies repeat:

    {"id": 1, "request": "register", "folder": DIR, "settings": {fields of Settings}, "options": {"guide": bool,
        "carry": bool, "compare": bool, "moving_resolution": bool}}     `compute` of DIR/inputs gives DIR/results
    {"id": 2, "request": "warp_segmentation", "folder": DIR}            segmentation, field and target in DIR/inputs
                                                                        give segmentation in DIR/results
    {"id": 3, "request": "download", "model": name, "weights_dir": DIR or null}
    {"id": 4, "request": "release"}                                     forgets the network, empties the GPU's cache
    {"id": 1, "request": "cancel"}                                      request 1, which then fails as "cancelled"

One request at a time; another one fails. Replies, the last two of which end a request:

    {"id": 1, "progress": {"stage": "alignment", "fraction": 0.31}}     a download's also has "done", "total" in bytes
    {"id": 1, "note": sentence}                                         what was changed to get on
    {"id": 1, "alive": true}                                            every second
    {"id": 1, "result": {...}}              register: {"notes": [sentence, ...]}; download: {"path": FILE}; else {}
    {"id": 1, "failed": {"kind": one of `errors.explain`'s, "message": sentence, "details": traceback or ""}}
                                            DIR/results is then not there; "id" is null where the line had none

The end of standard input, which is also what a dead parent looks like, ends the worker at once. Then nobody is left to
remove the folder of a request that was at work: the worker does, as far as the protocol filled it.

Nothing at the top of this file needs numpy, torch or itk: a Python without them can say so.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import queue
import re
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from .. import __version__
from ..errors import Cancelled, DeviceMemoryError, InputError, explain
from ..networks import catalog
from ..registration.settings import Settings
from ..text import one_line

PROTOCOL = 1
#: Exit codes: a library is missing or too old; the parent went away while a request was at work.
NO_DEPENDENCIES, ABANDONED = 3, 4
#: The oldest versions that work. pyproject.toml and Resources/requirements.txt say the same, which a test compares.
OLDEST = {"Python": "3.10", "torch": "2.4", "itk": "5.4", "scipy": "1.13"}
_OPTIONS = ("guide", "carry", "compare", "moving_resolution")
_SECONDS_BETWEEN_PROGRESS = 0.1
_SECONDS_BETWEEN_SIGNS_OF_LIFE = 1.0


def main() -> int:
    """Serve standard input and output; returns the exit code."""
    return serve(*_own_pipes())


def serve(requests: BinaryIO, replies: BinaryIO, *, compute: Callable | None = None) -> int:
    """Answer `requests` on `replies` until their end; returns the exit code.

    compute: in place of workflow.pipeline.compute.
    If `requests` end while one is at work the whole process ends, for nothing stops a computation.
    """
    line = _Line(replies)
    desk = _Desk(requests, line)
    try:
        ready = _ready()
    except Exception as error:
        details = traceback.format_exc()
        line.send(failed={"kind": "dependency", "message": _dependency_sentence(error), "details": details})
        return NO_DEPENDENCIES
    if compute is None:
        from ..workflow.pipeline import compute
    office = _Office(line, compute)
    line.send(ready=ready)
    for request in desk.requests():
        with _signs_of_life(line, request):
            outcome = office.outcome(request)
        desk.close(request)
        line.send(id=request.id, **outcome)
    return 0


# ------------------------------------------------------------------------------------------------------------- pipes


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for the protocol alone.

    Whoever prints, in Python or in native code, then prints to standard error, and whoever reads finds nothing.
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


class _Line:
    """The way to the parent; threads take turns."""

    def __init__(self, replies: BinaryIO):
        self._replies = replies
        self._turn = threading.Lock()

    def send(self, **message) -> None:
        text = json.dumps(message).encode("ascii") + b"\n"
        # Where nobody listens, the end of the requests, which ends the worker, is on its way.
        with self._turn, suppress(OSError):
            self._replies.write(text)
            self._replies.flush()

    def fail(self, number: int | None, sentence: str) -> None:
        self.send(id=number, failed={"kind": "input", "message": sentence, "details": ""})


@dataclass(frozen=True)
class _Request:
    """A request that was taken on. folder: raises InputError where it is not there."""

    id: int
    name: str
    content: dict = field(repr=False)
    cancelled: threading.Event = field(default_factory=threading.Event, repr=False)

    def values(self, name: str) -> dict:
        """The object `name` of the request, empty where it has none."""
        values = self.content.get(name) or {}
        if not isinstance(values, dict):
            raise InputError(f"The {name} of the request {self.name!r} are {values!r}; send an object.")
        return values

    @property
    def folder(self) -> Path:
        folder = self.content.get("folder")
        if not isinstance(folder, str) or not Path(folder).is_dir():
            raise InputError(f"The folder {folder!r} of the request {self.name!r} does not exist; make it first.")
        return Path(folder)


class _Desk:
    """Takes requests in, one at a time, on a thread that goes on reading while the main thread works."""

    def __init__(self, requests: BinaryIO, line: _Line):
        self._line = line
        self._state = threading.Lock()
        self._starting = True
        self._current: _Request | None = None
        self._accepted: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(requests,), name="requests", daemon=True).start()

    def requests(self) -> Iterator[_Request]:
        """As they come, until there are no more."""
        with self._state:
            self._starting = False
        while (request := self._accepted.get()) is not None:
            yield request

    def close(self, request: _Request) -> None:
        """The request's work is done: the next may come."""
        with self._state:
            self._current = None

    def _read(self, requests: BinaryIO) -> None:
        with suppress(OSError):  # a broken pipe is an end too
            for text in requests:
                self._take(text)
        with self._state:
            if self._starting or self._current is not None:
                _abandon(self._current)
        self._accepted.put(None)

    def _take(self, text: bytes) -> None:
        if not text.strip():
            return
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            self._line.fail(None, "A line of the requests is no JSON object; send one object per line.")
            return
        number, name = content.get("id"), str(content.get("request"))
        if type(number) is not int:
            self._line.fail(None, f"The id of a request is {number!r}; it must be an integer.")
        elif name == "cancel":
            with self._state:
                if self._current is not None and self._current.id == number:
                    self._current.cancelled.set()
        else:
            request = _Request(number, name, content)
            with self._state:
                other = self._current
                if other is None:
                    self._current = request
                    self._accepted.put(request)
            if other is not None:
                sentence = f"Request {other.id} is at work; wait for its result, or cancel it, before request {number}."
                self._line.fail(number, sentence)


def _abandon(request: _Request | None) -> None:
    """End the process now, whatever its threads compute; of what the request brought or made nothing stays."""
    with suppress(InputError, OSError):  # no folder; or something else is in it
        if request is not None:
            for name in ("inputs", "results.partial", "results"):
                shutil.rmtree(request.folder / name, ignore_errors=True)
            request.folder.rmdir()
    os._exit(ABANDONED)


@contextmanager
def _signs_of_life(line: _Line, request: _Request) -> Iterator[None]:
    """A sign every second, so that the parent can tell a long computation from a dead one."""
    done = threading.Event()

    def beat():
        while not done.wait(_SECONDS_BETWEEN_SIGNS_OF_LIFE):
            line.send(id=request.id, alive=True)

    thread = threading.Thread(target=beat, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


# --------------------------------------------------------------------------------------------------------- the work


class _Progress:
    """progress(stage, fraction) of one request: says so, not too often, and raises Cancelled where that is wished."""

    def __init__(self, line: _Line, request: _Request):
        self._line, self._request = line, request
        self._stage, self._time = None, 0.0

    def __call__(self, stage: str, fraction: float, **more) -> None:
        self.check()
        now = time.monotonic()
        if stage == self._stage and now - self._time < _SECONDS_BETWEEN_PROGRESS:
            return
        self._stage, self._time = stage, now
        self._line.send(id=self._request.id, progress={"stage": stage, "fraction": round(fraction, 4), **more})

    def check(self) -> None:
        if self._request.cancelled.is_set():
            raise Cancelled


class _Office:
    """What the requests ask for. Every answer is the content of a "result"."""

    def __init__(self, line: _Line, compute: Callable):
        self._line = line
        self._compute = compute
        self._models = catalog.ModelKeeper()

    def outcome(self, request: _Request) -> dict:
        """{"result": ...} or {"failed": ...}. When it returns no file of the request's folder is open or mapped."""
        answers = {
            "register": self._register,
            "warp_segmentation": self._warp_segmentation,
            "download": self._download,
            "release": self._release,
        }
        try:
            if request.name not in answers:
                raise InputError(f"There is no request {request.name!r}; choose one of {', '.join(answers)}, cancel.")
            outcome = {"result": answers[request.name](request, _Progress(self._line, request))}
        except Exception as error:
            outcome = {"failed": _failure(error)}
        gc.collect()  # Windows deletes no file that is mapped
        return outcome

    def _register(self, request: _Request, progress: _Progress) -> dict:
        from ..machine import keep_freed_memory
        from .exchange import read_inputs, write_results

        settings, options = Settings.from_plain(request.values("settings")), _options(request.values("options"))
        with _results(request) as folder:
            inputs = read_inputs(request.folder / "inputs")

            def run(settings: Settings):
                keep_freed_memory(training=settings.refinement == "network")
                return self._compute(inputs, settings, **options, progress=progress, load=self._models.load)

            results, notes = None, []
            try:
                results = run(settings)
            except DeviceMemoryError:
                plan = _cheaper(settings)
                if plan is None:
                    raise
            if results is None:  # out of the handler, whose exception holds what filled the memory
                settings, sentence = plan
                notes.append(sentence)
                self._line.send(id=request.id, note=sentence)
                self._models.release()
                results = run(settings)
            progress("saving", 1.0)
            write_results(folder, results)
            progress.check()
        return {"notes": notes}

    def _warp_segmentation(self, request: _Request, progress: _Progress) -> dict:
        from ..spatial.field import warp_segmentation
        from .exchange import read, write

        with _results(request) as folder:
            inputs = read(request.folder / "inputs", mapped=True)
            missing = {"segmentation", "field", "target"} - set(inputs)
            if missing:
                raise InputError(f"{request.folder / 'inputs'} has no {', '.join(sorted(missing))}; write it first.")
            progress("warping", 0.0)
            warped = warp_segmentation(inputs["segmentation"], inputs["field"], inputs["target"])
            progress("saving", 1.0)
            write(folder, segmentation=warped)
            progress.check()
        return {}

    def _download(self, request: _Request, progress: _Progress) -> dict:
        def downloaded(done: int, total: int) -> None:
            progress("download", done / total if total else 0.0, done=done, total=total)

        card = catalog.find_card(str(request.content.get("model")))
        progress("download", 0.0)
        return {"path": str(catalog.fetch_weights(card, request.content.get("weights_dir"), downloaded))}

    def _release(self, request: _Request, progress: _Progress) -> dict:
        self._models.release()
        return {}


def _options(values: dict) -> dict[str, bool]:
    for name, value in values.items():
        if name not in _OPTIONS or not isinstance(value, bool):
            raise InputError(f"The option {name} = {value!r} is none of {', '.join(_OPTIONS)}, true or false.")
    return values


def _cheaper(settings: Settings) -> tuple[Settings, str] | None:
    from ..networks.devices import choose_device
    from ..workflow.fallback import cheaper_plan

    return cheaper_plan(settings, choose_device(settings.device).type)


@contextmanager
def _results(request: _Request) -> Iterator[Path]:
    """A folder to write to, which becomes DIR/results when all went well and vanishes when not."""
    results, partial = request.folder / "results", request.folder / "results.partial"
    for folder in (results, partial):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        yield partial
        os.replace(partial, results)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _failure(error: Exception) -> dict:
    """Return the content of a "failed": kind, sentence, and the traceback of what was not to be expected."""
    kind, sentence = explain(error)
    expected = kind in ("input", "memory", "folder", "cancelled")
    details = "" if expected else "".join(traceback.format_exception(error))
    return {"kind": kind, "message": one_line(sentence), "details": details}


# ------------------------------------------------------------------------------------------------------ the machine


def _ready() -> dict:
    """What this worker is and can use. Raises ImportError, or whatever else a broken installation raises."""
    import itk
    import scipy
    import torch

    from ..workflow import pipeline  # noqa: F401  what the first request needs, before it comes

    packages = {"torch": str(torch.__version__), "itk": itk.__version__, "scipy": scipy.__version__}
    versions = {"Python": platform.python_version(), **packages}
    for name, version in versions.items():
        if _major_and_minor(version) < _major_and_minor(OLDEST[name]):
            raise ImportError(f"{name} {version} is too old, {OLDEST[name]} or newer is needed")
    return {
        "protocol": PROTOCOL,
        "version": __version__,
        "python": versions["Python"],
        "torch": versions["torch"],
        "devices": _devices(),
        "pid": os.getpid(),
    }


def _major_and_minor(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _dependency_sentence(error: Exception) -> str:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return f"{sys.executable} cannot register: {reason}; install torch and itk for it, or choose another Python."


def _devices() -> list[dict]:
    """What `Settings.device` may name here: GPUs first, the CPU last; memory in bytes."""
    import torch

    from ..machine import physical_memory
    from ..networks.devices import choose_device

    devices = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(number)
        # what of it is free changes by the minute, and to ask would take some hundred MB of every GPU
        devices.append({"name": f"cuda:{number}", "title": properties.name, "memory": properties.total_memory})
    try:
        choose_device("mps")
    except InputError:
        pass
    else:
        devices.append({"name": "mps", "title": "Apple GPU", "memory": torch.mps.recommended_max_memory()})
    title = platform.processor() or platform.machine()
    return [*devices, {"name": "cpu", "title": title, "memory": physical_memory()}]
