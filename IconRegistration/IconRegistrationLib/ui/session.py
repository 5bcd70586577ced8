"""One thing at a time through the worker: from nodes, by way of arrays in a private folder, to nodes.

The scene is changed only when everything has arrived; whatever ends a run early leaves it as it was, and the folder is
removed in every case.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from ..errors import InputError, explain
from ..mrml.registration import RegistrationRequest, ResultNodes, check_outputs, inputs_from_nodes, nodes_from_results
from ..mrml.scene import place_beside
from ..mrml.segmentations import node_from_segmentation, segmentation_from_node
from ..mrml.transforms import field_from_node
from ..mrml.volumes import image_from_node
from ..text import tr
from ..worker import exchange
from ..workflow.checks import check_inputs
from ..workflow.pace import Pace
from .dependencies import instruction
from .process import Callbacks, WorkerProcess
from .python import private_folder, python_command, worker_environment


class Listener(Protocol):
    """What hears about a run: the panel."""

    def on_ready(self, info: dict) -> None:
        """Receive the devices of the worker, which is now running."""

    def on_progress(self, stage: str, fraction: float, seconds_left: float | None) -> None:
        """Receive the progress of the run. fraction: of the whole run."""

    def on_note(self, sentence: str) -> None:
        """Receive a note on a setting that was changed in order to continue."""

    def on_failed(self, sentence: str, details: str, cancelled: bool) -> None:
        """Receive the reason for which the run ended without a result."""


@dataclass
class _Task:
    """What the worker is doing, and what becomes of its result. folder: a TemporaryDirectory or None."""

    finish: Callable[[Any], Any]
    done: Callable[[Any], None]
    folder: Any = None


class Session:
    """python, working_folder: called when a worker is started and when volumes are exchanged; "" for the default."""

    def __init__(
        self,
        scene: Any,
        listener: Listener,
        *,
        python: Callable[[], str] = str,
        working_folder: Callable[[], str] = str,
        worker: Callable[..., WorkerProcess] = WorkerProcess,
    ):
        self._scene, self._listener = scene, listener
        self._python, self._working_folder, self._make_worker = python, working_folder, worker
        self._worker: WorkerProcess | None = None
        self._worker_python = ""
        self._task: _Task | None = None
        self._pace = Pace()

    @property
    def busy(self) -> bool:
        """Whether something is running."""
        return self._task is not None

    def register(self, request: RegistrationRequest, outputs: ResultNodes, done: Callable[[ResultNodes], None]) -> None:
        """Register; `done` gets the nodes. outputs: nodes to update in place, where they are still in the scene.

        Raises InputError, before anything starts, for what cannot be registered.
        """
        request = self._present(request)
        check_outputs(outputs, request)
        inputs = inputs_from_nodes(request)
        check_inputs(inputs, request.options["guide"])

        def finish(folder: Path) -> ResultNodes:
            kept = self._present(request)
            results = exchange.read_results(folder / "results")
            there = {name: self._if_present(getattr(outputs, name)) for name in _OUTPUT_NODES}
            return nodes_from_results(results, kept, ResultNodes(**there))

        message = {"request": "register", "settings": asdict(request.settings), "options": request.options}
        self._begin(message, done, finish, lambda folder: exchange.write_inputs(folder, inputs))

    def warp_segments(
        self, source: Any, identifiers: list[str], forward: Any, fixed: Any, done: Callable[[Any], None]
    ) -> None:
        """Warp segments of the node `source` onto the grid of the volume node `fixed`, resampled once.

        forward: the transform node. `done` gets a new segmentation node.
        """
        segmentation = segmentation_from_node(source).only(identifiers)
        values = {
            "segmentation": segmentation,
            "field": field_from_node(forward),
            "target": image_from_node(fixed).grid,
        }

        def finish(folder: Path):
            warped = exchange.read(folder / "results")["segmentation"]
            if self._if_present(fixed) is None:
                raise InputError(tr("The fixed volume was deleted meanwhile; the warped segments were dropped."))
            name = self._scene.GenerateUniqueName(f"{source.GetName()} warped to {fixed.GetName()}")
            node = node_from_segmentation(self._scene, warped, name, reference=fixed)
            place_beside(self._scene, node, self._if_present(source) or fixed)
            return node

        self._begin({"request": "warp_segmentation"}, done, finish, lambda folder: exchange.write(folder, **values))

    def download(self, model: str, weights_dir: str | None, done: Callable[[Any], None]) -> None:
        """Fetch the weights of a model."""
        self._begin({"request": "download", "model": model, "weights_dir": weights_dir}, done, lambda folder: None)

    def cancel(self) -> None:
        """Ask the worker to stop; the listener hears of it within a second. Nothing changes in the scene."""
        if self._worker and self.busy:
            self._worker.cancel()

    def release(self) -> None:
        """Let the worker, if there is one and it is idle, forget weights and free the GPU."""
        if self._worker and not self.busy:
            self._worker.release()

    def close(self) -> None:
        """Stop the worker; drop the request without notifying the listener."""
        self._end_task()
        if self._worker:
            self._worker.stop()
            self._worker = None

    # ------------------------------------------------------------------------------------------------ the worker's part

    def _begin(self, message: dict, done, finish, write: Callable[[Path], None] | None = None) -> None:
        if self.busy:
            raise InputError(tr("Something is running already; wait for its end or cancel it."))
        worker = self._ready_worker()
        folder: Any = private_folder(self._working_folder() or tempfile.gettempdir()) if write else None
        self._task = _Task(finish, done, folder)
        try:
            if write:
                write(Path(folder.name) / "inputs")
                message = {**message, "folder": folder.name}
            self._pace = Pace()
            worker.submit(message)
        except BaseException:
            self._end_task()
            raise

    def _ready_worker(self) -> WorkerProcess:
        python = self._python()
        if self._worker and python != self._worker_python:
            self._worker.stop()
            self._worker = None
        if self._worker is None:
            self._worker_python = python
            self._worker = self._make_worker(
                python_command(python),
                worker_environment(own_python=not python),
                Callbacks(
                    self._listener.on_ready, self._on_progress, self._listener.on_note, self._on_result, self._on_failed
                ),
            )
        return self._worker

    def _on_progress(self, stage: str, fraction: float) -> None:
        self._listener.on_progress(stage, fraction, self._pace.seconds_left(stage, fraction))

    def _on_result(self, result: dict) -> None:
        task = self._task
        if task is None:
            return
        try:
            value = task.finish(Path(task.folder.name) if task.folder else None)
        except Exception as error:
            self._end_task()
            kind, sentence = explain(error)
            if kind != "input":
                sentence = tr("The result could not be used: {reason}", reason=sentence)
            self._listener.on_failed(sentence, traceback.format_exc(), False)
            return
        self._end_task()
        task.done(value)

    def _on_failed(self, kind: str, sentence: str, details: str) -> None:
        if self._task is not None:
            self._end_task()
            if kind == "dependency" and self._worker_python:
                sentence = tr(
                    "{sentence} {instruction}", sentence=sentence, instruction=instruction(self._worker_python)
                )
            self._listener.on_failed(sentence, details, kind == "cancelled")

    def _end_task(self) -> None:
        task, self._task = self._task, None
        if task and task.folder:
            task.folder.cleanup()

    # ------------------------------------------------------------------------------------------ what is left of it

    def _if_present(self, node):
        return node if node is not None and node.GetScene() is self._scene else None

    def _present(self, request: RegistrationRequest) -> RegistrationRequest:
        """Return the request without the nodes that were deleted meanwhile. Raises InputError if a volume was."""
        for name, side in (("fixed", tr("fixed")), ("moving", tr("moving"))):
            if self._if_present(getattr(request, name)) is None:
                raise InputError(tr("The {side} volume was deleted meanwhile; nothing was changed.", side=side))
        gone: dict[str, Any] = {name: None for name, node in request.nodes.items() if self._if_present(node) is None}
        return replace(request, **gone)


_OUTPUT_NODES = [f.name for f in fields(ResultNodes) if f.name != "report"]
