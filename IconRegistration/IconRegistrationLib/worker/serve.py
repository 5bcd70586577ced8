"""The child process: registers for a window that must neither wait nor hold torch. Requests in, results out.

    python -m IconRegistrationLib.worker

What travels over standard input and output is described in worker/protocol.py. Nothing at the top of this file needs
numpy, torch or SimpleITK: a Python without them can say so.
"""

from __future__ import annotations

import gc
import os
import platform
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .. import __version__
from ..errors import DeviceMemoryError, InputError, explain, words_of
from ..networks import catalog
from ..registration.settings import Settings
from ..text import Sentence, one_line, plain_sentence, tr
from .protocol import (
    NO_DEPENDENCIES,
    PROTOCOL,
    ProgressSender,
    ReplyWriter,
    Request,
    RequestReader,
    own_pipes,
    signs_of_life,
)

#: The oldest versions that work. pyproject.toml and Resources/requirements.txt say the same, which a test compares.
OLDEST = {"Python": "3.10", "torch": "2.4", "SimpleITK": "2.4", "scipy": "1.13"}
_OPTIONS = ("guide", "carry", "compare", "moving_resolution")


def main() -> int:
    """Serve standard input and output; returns the exit code."""
    return serve(*own_pipes())


def serve(requests: BinaryIO, replies: BinaryIO, *, compute: Callable | None = None) -> int:
    """Answer requests until their end.

    If they end while one is at work the whole process ends, for nothing else stops a computation.

    Parameters
    ----------
    requests, replies : binary files
        One JSON object per line, see worker/protocol.py.
    compute : callable, optional
        In place of `workflow.pipeline.compute`.

    Returns
    -------
    int
        The exit code.
    """
    writer = ReplyWriter(replies)
    reader = RequestReader(requests, writer)
    try:
        ready = _ready()
    except Exception as error:
        sentence = plain_sentence(_dependency_sentence(error))
        writer.send(failed={"kind": "dependency", "message": sentence, "details": traceback.format_exc()})
        return NO_DEPENDENCIES
    handler = _RequestHandler(writer, compute or _pipeline())
    writer.send(ready=ready)
    for request in reader.requests():
        with signs_of_life(writer, request):
            outcome = handler.outcome(request)
        reader.close(request)
        writer.send(id=request.id, **outcome)
    return 0


class _RequestHandler:
    """Does what requests ask for. Every answer is the content of a "result"."""

    def __init__(self, replies: ReplyWriter, compute: Callable):
        self._replies = replies
        self._compute = compute
        self._models = catalog.ModelKeeper()

    def outcome(self, request: Request) -> dict[str, Any]:
        """Return {"result": ...} or {"failed": ...}; no file of the request's folder is open or mapped then."""
        answers = {
            "register": self._register,
            "warp_segmentation": self._warp_segmentation,
            "download": self._download,
            "release": self._release,
        }
        try:
            if request.name not in answers:
                raise InputError(
                    tr(
                        "There is no request {name}; choose one of {choices}.",
                        name=repr(request.name),
                        choices=", ".join([*answers, "cancel"]),
                    )
                )
            outcome = {"result": answers[request.name](request, ProgressSender(self._replies, request))}
        except Exception as error:
            outcome = {"failed": _failure(error)}
        gc.collect()  # Windows deletes no file that is mapped
        return outcome

    def _register(self, request: Request, progress: ProgressSender) -> dict[str, Any]:
        from ..machine import keep_freed_memory
        from .exchange import read_inputs, write_results

        settings, options = Settings.from_plain(request.values("settings")), _options(request.values("options"))
        with _results(request) as folder:
            inputs = read_inputs(request.folder / "inputs")

            def run(settings: Settings):
                keep_freed_memory(training=settings.refinement == "network")
                return self._compute(inputs, settings, **options, progress=progress, load=self._models.load)

            results: Any = None
            plan, notes = None, []
            try:
                results = run(settings)
            except DeviceMemoryError:
                plan = _cheaper(settings)
                if plan is None:
                    raise
            if plan is not None:  # out of the handler, whose exception holds what filled the memory
                settings, sentence = plan
                notes.append(plain_sentence(sentence))
                self._replies.send(id=request.id, note=plain_sentence(sentence))
                self._models.release()
                results = run(settings)
            progress(tr("saving"), 1.0)
            write_results(folder, results)
            progress.check()
        return {"notes": notes}

    def _warp_segmentation(self, request: Request, progress: ProgressSender) -> dict[str, Any]:
        from ..spatial.field import warp_segmentation
        from .exchange import read, write

        with _results(request) as folder:
            inputs = read(request.folder / "inputs", mapped=True)
            missing = {"segmentation", "field", "target"} - set(inputs)
            if missing:
                raise InputError(
                    tr(
                        "{folder} has no {missing}; write it first.",
                        folder=request.folder / "inputs",
                        missing=", ".join(sorted(missing)),
                    )
                )
            progress(tr("warping"), 0.0)
            warped = warp_segmentation(inputs["segmentation"], inputs["field"], inputs["target"])
            progress(tr("saving"), 1.0)
            write(folder, segmentation=warped)
            progress.check()
        return {}

    def _download(self, request: Request, progress: ProgressSender) -> dict[str, Any]:
        def downloaded(done: int, total: int) -> None:
            progress(tr("download"), done / total if total else 0.0, done=done, total=total)

        weights_dir = request.content.get("weights_dir")
        card = catalog.find_card(str(request.content.get("model")), weights_dir)
        progress(tr("download"), 0.0)
        return {"path": str(catalog.fetch_weights(card, weights_dir, downloaded))}

    def _release(self, request: Request, progress: ProgressSender) -> dict[str, Any]:
        self._models.release()
        return {}


def _pipeline() -> Callable:
    from ..workflow.pipeline import compute

    return compute


def _options(values: dict[str, Any]) -> dict[str, bool]:
    for name, value in values.items():
        if name not in _OPTIONS or not isinstance(value, bool):
            raise InputError(
                tr(
                    "The option {name} = {value} is none of {choices}, true or false.",
                    name=name,
                    value=repr(value),
                    choices=", ".join(_OPTIONS),
                )
            )
    return values


def _cheaper(settings: Settings) -> tuple[Settings, str] | None:
    from ..networks.devices import choose_device
    from ..workflow.fallback import cheaper_plan

    return cheaper_plan(settings, choose_device(settings.device).type)


@contextmanager
def _results(request: Request) -> Iterator[Path]:
    """Yield a folder to write to, which becomes DIR/results when all went well and is removed otherwise."""
    results, partial = request.folder / "results", request.folder / "results.partial"
    for folder in (results, partial):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        yield partial
        os.replace(partial, results)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _failure(error: Exception) -> dict[str, Any]:
    """Return the content of a "failed": kind, sentence, and the traceback of an unexpected error."""
    kind, sentence = explain(error)
    expected = kind in ("input", "memory", "folder", "cancelled")
    details = "" if expected else "".join(traceback.format_exception(error))
    return {"kind": kind, "message": plain_sentence(one_line(sentence)), "details": details}


# ------------------------------------------------------------------------------------------------------ the machine


def _ready() -> dict[str, Any]:
    """Return what this worker is and can use. Raises ImportError, or whatever a broken installation raises."""
    import scipy
    import SimpleITK
    import torch

    from ..workflow import pipeline  # noqa: F401  what the first request needs, before it comes

    packages = {"torch": str(torch.__version__), "SimpleITK": SimpleITK.__version__, "scipy": scipy.__version__}
    versions = {"Python": platform.python_version(), **packages}
    for name, version in versions.items():
        if _major_and_minor(version) < _major_and_minor(OLDEST[name]):
            raise ImportError(
                tr(
                    "{name} {version} is too old, {oldest} or newer is needed",
                    name=name,
                    version=version,
                    oldest=OLDEST[name],
                )
            )
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
    words = words_of(error)
    reason = words if isinstance(words, Sentence) else one_line(words).rstrip(".") or type(error).__name__
    return tr(
        "{python} cannot register: {reason}; install torch and SimpleITK for it, or choose another Python.",
        python=sys.executable,
        reason=reason,
    )


def _devices() -> list[dict[str, Any]]:
    """Return what `Settings.device` may name here: GPUs first, the CPU last; memory in bytes."""
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
