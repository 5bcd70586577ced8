"""Run a cohort: many pairs, on all processors and GPUs of this computer or on a cluster, resumable.

The folder of a cohort, DIR:

    DIR/pairs/<id>/         the results of a finished pair, as `register` writes them, and its row; whole or not at all
    DIR/failed/<id>.json    the row of a failed pair (job.py says what a row is)
    DIR/cohort.csv, .html   all rows, for people
    DIR/.cohort.lock        held while a driver is running

The driver knows at every moment which worker has which pair: each gets one at a time, and the next when it is done.
So a worker that dies or hangs costs only its own pair, and thousands of pairs take no more memory than two.
"""

from __future__ import annotations

import importlib.util
import math
import os
import queue
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import FolderError, InputError
from ...io.writing import remove_stale_partials, write_error_message
from ...networks.catalog import checked_weights
from ...text import english, tr
from ...workflow.pace import duration
from ..pair import OutputOptions, check_settings, register_pair
from ..progress import CohortProgress
from . import cluster
from .cluster import ClusterError, WorkersGone
from .entries import Entry
from .job import Job, files_of, row_of, sentence_of, state_of, write_row
from .job import run as run_job
from .page import write_page
from .table import write_table
from .tally import Tally

if TYPE_CHECKING:
    from distributed import Client, Future

LOCK = ".cohort.lock"

#: Seconds between two checks of the workers and of the time that pairs take.
_TICK = 1.0

#: How often a pair whose worker died is tried; the last time with no other pair running.
_TRIES = 3

#: Seconds without any worker after which new ones are started: Dask gives up on one that dies while it starts.
_PATIENCE = 60.0


def run_cohort(
    entries: Sequence[Entry],
    folder: Path,
    outputs: OutputOptions | None = None,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    retry_failed: bool = False,
    minutes: float | None = None,
    progress: CohortProgress | None = None,
    tally: Tally | None = None,
    register: Callable = register_pair,
) -> Tally:
    """Register all pairs that are not done yet into `folder`.

    Parameters
    ----------
    entries : sequence of Entry
        All pairs of the cohort, finished ones too.
    folder : Path
        Folder of the cohort, new or unfinished.
    outputs : OutputOptions, optional
        Which optional files are written.
    workers : int, optional
        Number of processes on this computer; by default as many as fit.
    scheduler : str, optional
        Address of a Dask scheduler, which replaces processes on this computer.
    retry_failed : bool
        Run the pairs that failed before, and only those.
    minutes : float, optional
        After which a pair counts as hanging; by default it depends on the size of the images.
    progress : CohortProgress, optional
        What shows how far it is.
    tally : Tally, optional
        Updated in place, readable after an exception.
    register : callable
        What a worker calls for a pair: `register_pair`, or a function of the same signature that workers can import.

    Returns
    -------
    Tally
        The pairs that are done, failed and left.

    Raises
    ------
    InputError
        Before work begins.
    FolderError, ClusterError
        If it cannot go on; finished pairs stay.
    """
    _need_dask()
    tally, progress = Tally() if tally is None else tally, progress or CohortProgress()
    folder = _cohort_folder(folder)
    with _locked(folder), _Signals() as signals:
        remove_stale_partials(folder / "pairs")
        if scheduler is None:
            _check_devices(entries)
        weights = _weights(entries, progress)
        outputs = outputs or OutputOptions()
        jobs = (Job(entry, folder, outputs, weights[_network_of(entry)], register) for entry in entries)
        todo = _todo(jobs, retry_failed, tally)
        try:
            if todo:
                demand = cluster.demand_of(entries)
                crew = cluster.workers_for(entries, demand, workers) if scheduler is None else None
                seconds = 60 * (minutes or demand.minutes_to_hang)
                signals.defer()
                for more in range(_TRIES - 1, -1, -1):
                    opened = cluster.remote_cluster(scheduler or "") if crew is None else cluster.local_cluster(crew)
                    patience = math.inf if crew is None else _PATIENCE
                    driver = _Driver(seconds, patience, tally, progress, signals.raise_if_stopped)
                    try:
                        with opened as client:
                            driver.run(client, [job for job in todo if job.entry.id in tally.left])
                        break
                    except WorkersGone as gone:
                        if not more:
                            raise
                        progress.close()
                        progress.say(tr("{problem} New ones are started.", problem=gone.args[0]))
        finally:
            _count_late_results(todo, tally)
            remove_stale_partials(folder / "pairs")
            _write_summary(folder, tally, progress)
    return tally


def _worker_died() -> str:
    return tr(
        "Its worker died {count} times, the last time with no other pair running: it needs more memory than this "
        "computer has, or crashes a library; crop or resample the images, then use --retry-failed.",
        count=_TRIES,
    )


def _need_dask() -> None:
    missing = [name for name in ("dask", "distributed", "cryptography") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            tr(
                "A cohort needs packages that are not installed: {packages}; run pip install "
                '"slicer-icon-registration[cohort]".',
                packages=", ".join(missing),
            )
        )


def _cohort_folder(path: Path) -> Path:
    """Return the absolute path of a cohort's folder, new or unfinished; InputError for any other."""
    path = Path(path).expanduser().resolve()
    if path.is_dir() and not (path / "pairs").is_dir() and any(path.iterdir()):
        raise InputError(tr("The folder {folder} is not empty and holds no cohort; choose another --out.", folder=path))
    try:
        for name in ("pairs", "failed"):
            (path / name).mkdir(parents=path.parent.is_dir(), exist_ok=True)
    except OSError as error:
        reason = error.strerror
        raise InputError(
            tr("The folder {folder} cannot be created ({reason}); choose another --out.", folder=path, reason=reason)
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(tr("The folder {folder} cannot be written to; choose another --out.", folder=path))
    return path


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`; InputError if another driver has it. The system releases that of a killed process."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            tr("Another run is using {folder}; wait until it ends, or choose another --out.", folder=folder)
        ) from None
    except OSError as error:
        file, reason = lock.lock_file, error.strerror
        raise InputError(
            tr("{file} cannot be locked ({reason}); choose another --out.", file=file, reason=reason)
        ) from None
    try:
        yield
    finally:
        with suppress(OSError):  # the folder was removed
            lock.release()


class _Signals:
    """Handle Ctrl-C and SIGTERM: after `defer` the first only raises where `raise_if_stopped` is called.

    A second one ends the process at once, its workers with it. An exception raised wherever the signal arrives may
    arise in a finalizer (Dask's futures have one), where Python drops it.
    """

    _received: int | None = None

    def __enter__(self) -> _Signals:
        numbers = (signal.SIGINT, signal.SIGTERM)
        main = threading.current_thread() is threading.main_thread()  # Python's rule for signal handlers
        handlers = {int(number): signal.getsignal(number) for number in numbers if main}
        self._before = {number: handler for number, handler in handlers.items() if callable(handler)}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """Keep signals for `raise_if_stopped` from now on."""
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame) -> None:
        if self._received is not None:
            os._exit(128 + number)
        self._received = number

    def raise_if_stopped(self) -> None:
        """Raise what the received signal would have raised, if there was one."""
        if self._received is not None:
            self._before[self._received](self._received, None)


def _check_devices(entries: Iterable[Entry]) -> None:
    """Check that devices and models exist: one sentence instead of a thousand failed pairs."""
    checked = {(entry.pair.settings.device, entry.pair.settings.model): entry.pair.settings for entry in entries}
    for settings in checked.values():
        check_settings(settings)


def _network_of(entry: Entry) -> tuple[str, str | None]:
    return entry.pair.settings.model, entry.pair.settings.weights_dir


def _weights(entries: Iterable[Entry], progress: CohortProgress) -> dict[tuple[str, str | None], str | None]:
    """Return the SHA-256 of every network's weights. They are downloaded here, before a hundred workers do it."""
    found: dict[tuple[str, str | None], str | None] = {}
    for model, weights_dir in dict.fromkeys(map(_network_of, entries)):
        sha256 = None
        if model != "none":
            progress.say(tr("Checking the weights of {model}", model=model))
            _, _, sha256 = checked_weights(model, weights_dir=weights_dir)
        found[model, weights_dir] = sha256
    return found


def _todo(jobs: Iterable[Job], retry_failed: bool, tally: Tally) -> list[Job]:
    """Return the jobs to run, and count the others."""
    todo = []
    for job in jobs:
        state = state_of(job)
        if state == "done":
            job.failure.unlink(missing_ok=True)  # left by a driver that was killed
            tally.done += 1
        elif state == "failed" and not retry_failed:
            tally.failed += 1
            tally.kept += 1
        else:
            tally.left[job.entry.id] = None
            if not retry_failed or job.failure.exists():  # also if an input has been repaired since
                todo.append(job)
    return todo


def _count_late_results(jobs: Iterable[Job], tally: Tally) -> None:
    """Count the pairs that finished after the driver stopped."""
    for job in jobs:
        if job.entry.id in tally.left and state_of(job) == "done":
            del tally.left[job.entry.id]
            tally.done += 1


def _write_summary(folder: Path, tally: Tally, progress: CohortProgress) -> None:
    """Write cohort.csv and cohort.html from the rows that exist."""
    try:
        write_table(folder, tally.left)
        write_page(folder, tally.left)
    except OSError as error:
        reason = write_error_message(folder, error)
        progress.say(tr("The summary could not be written: {reason}", reason=reason))


@dataclass
class _Task:
    """A job that runs on a worker. began: time.monotonic()."""

    job: Job
    future: Future
    began: float


class _Driver:
    """Give every worker one job at a time until all are done or failed."""

    def __init__(
        self,
        seconds: float,
        patience: float,
        tally: Tally,
        progress: CohortProgress,
        raise_if_stopped: Callable[[], None],
    ):
        """Prepare a driver.

        seconds: after which a pair hangs.  patience: seconds without any worker after which they are gone.
        raise_if_stopped: polled once per loop.
        """
        self._seconds = seconds
        self._patience = patience
        self._tally = tally
        self._progress = progress
        self._raise_if_stopped = raise_if_stopped
        self._session = uuid.uuid4().hex[:8]  # a killed driver may have left tasks of the same numbers
        self._number = 0
        self._workers: set[str] = set()
        self._checked = -math.inf
        self._running: dict[str, _Task] = {}  # by the worker's address
        self._ended: queue.SimpleQueue[tuple[str, Future]] = queue.SimpleQueue()

    def run(self, client: Client, jobs: list[Job]) -> None:
        """Run until every job is done or failed. Raises FolderError, ClusterError."""
        self._client, self._seen = client, time.monotonic()
        self._progress.start(self._tally, cluster.described(client))
        for attempt in range(1, _TRIES + 1):
            jobs = self._work_off(jobs, at_once=1 if attempt == _TRIES else None)
        for job in jobs:
            self._fail(job, _worker_died())

    def _work_off(self, jobs: list[Job], at_once: int | None) -> list[Job]:
        """Try every job once; return those whose worker died."""
        waiting = deque(jobs)
        lost: list[Job] = []
        while waiting or self._running:
            self._raise_if_stopped()
            self._find_workers()
            free = [worker for worker in self._workers if worker not in self._running]
            for worker in free[: None if at_once is None else at_once - len(self._running)]:
                if waiting:
                    self._give(worker, waiting.popleft())
            with suppress(queue.Empty):
                self._take(*self._ended.get(timeout=_TICK), lost)
            for worker, task in list(self._running.items()):
                if worker not in self._workers:
                    self._drop(worker)
                    lost.append(task.job)
                elif time.monotonic() - task.began > self._seconds:
                    self._end_hanging(worker)
            self._progress.show(self._tally, len(self._running), waiting=not self._workers)
        return lost

    def _find_workers(self) -> None:
        if time.monotonic() - self._checked < _TICK:
            return
        self._checked = time.monotonic()
        try:
            self._workers = set(self._client.nthreads())
            self._seen = self._checked if self._workers else self._seen
        except (OSError, TimeoutError) as error:
            raise ClusterError(
                tr("The scheduler no longer answers ({reason}); start it and run the same command again.", reason=error)
            ) from error
        if self._checked - self._seen > self._patience:
            raise WorkersGone(tr("No worker returned after the last one died."))

    def _give(self, worker: str, job: Job) -> None:
        self._number += 1
        key = f"pair-{self._session}-{self._number}"  # no id: it may be a patient's, and the dashboard shows keys
        where = {"workers": [worker], "allow_other_workers": False, "pure": False, "key": key}
        future = self._client.submit(run_job, job, **where)
        self._running[worker] = _Task(job, future, time.monotonic())
        future.add_done_callback(lambda future: self._ended.put((worker, future)))

    def _take(self, worker: str, future: Future, lost: list[Job]) -> None:
        """Record the outcome of a job; one whose worker died goes to `lost`."""
        task = self._running.get(worker)
        if task is None or task.future is not future:  # no longer waited for
            return
        del self._running[worker]
        from distributed import CancelledError, KilledWorker

        try:
            row = future.result()
        except (KilledWorker, CancelledError):
            self._workers.discard(worker)
            lost.append(task.job)
        except Exception as error:  # from Dask or unpickling: what a job raises is in its row
            self._fail(task.job, sentence_of(error))
        else:
            self._settle(task.job, row)

    def _end_hanging(self, worker: str) -> None:
        """Kill the worker's process, as far as Dask can; its nanny starts a new one."""
        task = self._drop(worker)
        with suppress(Exception):
            self._client.restart_workers([worker], timeout=20, raise_for_error=False)
        self._workers.discard(worker)
        limit = duration(self._seconds)
        self._fail(
            task.job,
            tr("It had not ended after {limit}; check its images, or allow more time with --timeout.", limit=limit),
        )

    def _drop(self, worker: str) -> _Task:
        task = self._running.pop(worker)
        task.future.cancel(force=True)
        return task

    def _fail(self, job: Job, sentence: str) -> None:
        """Record a failure that no worker could report; its files were perhaps never read."""
        self._settle(job, row_of(job, files_of(job.entry.pair), "failed", error=english(sentence)))

    def _settle(self, job: Job, row: dict) -> None:
        if row["state"] == "left":
            raise FolderError(row["error"])
        details = row.pop("traceback", None)
        try:
            if row["state"] == "done":
                job.failure.unlink(missing_ok=True)
            else:
                write_row(job.failure, row)
        except OSError as error:
            raise FolderError(write_error_message(job.failure.parent, error)) from None
        del self._tally.left[job.entry.id]
        if row["state"] == "done":
            self._tally.done += 1
        else:
            self._tally.failed += 1
            self._progress.failed(job.entry.id, row["error"], details)
