"""`icon-registration cohort`: many pairs, on all processors and GPUs or on a cluster, as often as it takes.

The folder of a cohort, DIR:

    DIR/pairs/<id>/         the results of a finished pair, as `register` writes them, and its row; whole or not at all
    DIR/failed/<id>.json    the row of a failed pair (job.py says what a row is)
    DIR/cohort.csv, .html   all rows, to read
    DIR/.cohort.lock        held while a driver is at work

The driver knows at every moment which worker has which pair: each gets one at a time, and the next when it is done.
So a worker that dies or hangs costs its own pair only, and thousands of pairs take no more memory than two.
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

from ...errors import InputError
from ...networks.catalog import checked_weights
from ...workflow.folder import FolderError, clear_remains, trouble
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

#: Seconds between two looks at who is there and how long it takes.
_TICK = 1.0

#: How often a pair whose worker died is tried; the last time alone.
_TRIES = 3

#: Seconds without any worker after which others are started: Dask gives up one that dies while it starts.
_PATIENCE = 60.0

_DIED = (
    f"Its worker died {_TRIES} times, the last time with nothing beside it: it needs more memory than there is, or "
    "crashes a library; crop or resample the images, then --retry-failed."
)


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
    """Register all pairs that are not done yet into `folder`; returns how it stands then.

    workers, scheduler: as many processes on this computer, or a Dask scheduler; None, None: as many as fit.
    minutes: after which a pair counts as hanging; None: by its size.
    tally: is kept up to date, for who catches what this raises.
    register: what a worker calls for a pair, `register_pair` or what answers as it does; importable by the workers.
    Raises InputError before work begins, FolderError or ClusterError if it cannot go on; what is done stays done.
    """
    _need_dask()
    tally, progress = Tally() if tally is None else tally, progress or CohortProgress()
    folder = _cohort_folder(folder)
    with _locked(folder), _Signals() as signals:
        clear_remains(folder / "pairs")
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
                signals.note()
                for more in range(_TRIES - 1, -1, -1):
                    opened = cluster.remote_cluster(scheduler) if crew is None else cluster.local_cluster(crew)
                    patience = math.inf if crew is None else _PATIENCE
                    driver = _Driver(seconds, patience, tally, progress, signals.obey)
                    try:
                        with opened as client:
                            driver.run(client, [job for job in todo if job.entry.id in tally.left])
                        break
                    except WorkersGone as gone:
                        if not more:
                            raise
                        progress.close()
                        progress.say(f"{gone} Others are started.")
        finally:
            _count_late_results(todo, tally)
            clear_remains(folder / "pairs")
            _write_summary(folder, tally, progress)
    return tally


def _need_dask() -> None:
    missing = [name for name in ("dask", "distributed", "cryptography") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f'A cohort needs {" and ".join(missing)}; pip install "slicer-icon-registration[cohort]" brings all of it.'
        )


def _cohort_folder(path: Path) -> Path:
    """The absolute path of a folder that is a cohort's, new or begun; InputError otherwise."""
    path = Path(path).expanduser().resolve()
    if path.is_dir() and not (path / "pairs").is_dir() and any(path.iterdir()):
        raise InputError(f"The folder {path} is not empty and holds no cohort; choose another --out.")
    try:
        for name in ("pairs", "failed"):
            (path / name).mkdir(parents=path.parent.is_dir(), exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {path} cannot be made ({error.strerror}); choose another --out.") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"The folder {path} cannot be written to; choose another --out.")
    return path


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """InputError if another driver is at work in `folder`. The system opens the lock of a process that is killed."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"Another run is at work on {folder}; wait until it ends, or choose another --out.") from None
    except OSError as error:
        raise InputError(f"{lock.lock_file} cannot be locked ({error.strerror}); choose another --out.") from None
    try:
        yield
    finally:
        with suppress(OSError):  # the folder was removed
            lock.release()


class _Signals:
    """Ctrl-C and SIGTERM raise as before until `note` is called. From then on the first is noted, and raises where
    `obey` is called; a second one ends the process at once, its workers with it.

    An exception that is raised wherever the signal comes may come up in a finalizer (Dask's futures have one), where
    Python drops it.
    """

    def __enter__(self) -> _Signals:
        numbers = (signal.SIGINT, signal.SIGTERM)
        main = threading.current_thread() is threading.main_thread()  # Python's rule for signal handlers
        self._before = {number: signal.getsignal(number) for number in numbers if main}
        self._before = {number: handler for number, handler in self._before.items() if callable(handler)}
        self._noted = None
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def note(self) -> None:
        """From now on."""
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame) -> None:
        if self._noted is not None:
            os._exit(128 + number)
        self._noted = number

    def obey(self) -> None:
        """Raises what the noted signal would have raised, if there is one."""
        if self._noted is not None:
            self._before[self._noted](self._noted, None)


def _check_devices(entries: Iterable[Entry]) -> None:
    """Every device that is asked for is there, every model known; one sentence instead of a thousand failed pairs."""
    checked = {(entry.pair.settings.device, entry.pair.settings.model): entry.pair.settings for entry in entries}
    for settings in checked.values():
        check_settings(settings)


def _network_of(entry: Entry) -> tuple[str, str | None]:
    return entry.pair.settings.model, entry.pair.settings.weights_dir


def _weights(entries: Iterable[Entry], progress: CohortProgress) -> dict[tuple[str, str | None], str | None]:
    """SHA-256 of the weights of every network, which are downloaded here, before a hundred workers do it."""
    found = {}
    for model, weights_dir in dict.fromkeys(map(_network_of, entries)):
        if model == "none":
            sha256 = None
        else:
            progress.say(f"Looking at the weights of {model}")
            _, _, sha256 = checked_weights(model, weights_dir=weights_dir)
        found[model, weights_dir] = sha256
    return found


def _todo(jobs: Iterable[Job], retry_failed: bool, tally: Tally) -> list[Job]:
    """The jobs to run; counts the others."""
    todo = []
    for job in jobs:
        state = state_of(job)
        if state == "done":
            job.failure.unlink(missing_ok=True)  # of a driver that was killed before it did this
            tally.done += 1
        elif state == "failed" and not retry_failed:
            tally.failed += 1
            tally.kept += 1
        else:
            tally.left[job.entry.id] = None
            if not retry_failed or job.failure.exists():  # also with an input that was repaired since
                todo.append(job)
    return todo


def _count_late_results(jobs: Iterable[Job], tally: Tally) -> None:
    """Pairs whose results came while nobody listened any more."""
    for job in jobs:
        if job.entry.id in tally.left and state_of(job) == "done":
            del tally.left[job.entry.id]
            tally.done += 1


def _write_summary(folder: Path, tally: Tally, progress: CohortProgress) -> None:
    """cohort.csv and cohort.html, of whatever there is."""
    try:
        write_table(folder, tally.left)
        write_page(folder, tally.left)
    except OSError as error:
        progress.say(f"The summary could not be written: {trouble(folder, error)}")


@dataclass
class _Task:
    """A job at work on a worker."""

    job: Job
    future: Future
    began: float


class _Driver:
    """Gives every worker a job at a time until all are settled."""

    def __init__(
        self, seconds: float, patience: float, tally: Tally, progress: CohortProgress, obey: Callable[[], None]
    ):
        """seconds: after which a pair hangs.  patience: seconds without any worker after which they are gone.

        obey: is called all the time, and raises when everything is to stop.
        """
        self._seconds = seconds
        self._patience = patience
        self._tally = tally
        self._progress = progress
        self._obey = obey
        self._session = uuid.uuid4().hex[:8]  # a driver that was killed may have left tasks of the same numbers
        self._number = 0
        self._workers: set[str] = set()
        self._looked = -math.inf
        self._running: dict[str, _Task] = {}  # by the worker's address
        self._ended: queue.SimpleQueue[tuple[str, Future]] = queue.SimpleQueue()

    def run(self, client: Client, jobs: list[Job]) -> None:
        """Until every job is done or failed. Raises FolderError, ClusterError."""
        self._client, self._seen = client, time.monotonic()
        self._progress.start(self._tally, cluster.described(client))
        for attempt in range(1, _TRIES + 1):
            jobs = self._work_off(jobs, at_once=1 if attempt == _TRIES else None)
        for job in jobs:
            self._fail(job, _DIED)

    def _work_off(self, jobs: list[Job], at_once: int | None) -> list[Job]:
        """One try of every job; returns those whose worker died."""
        waiting, lost = deque(jobs), []
        while waiting or self._running:
            self._obey()
            self._look_for_workers()
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

    def _look_for_workers(self) -> None:
        if time.monotonic() - self._looked < _TICK:
            return
        self._looked = time.monotonic()
        try:
            self._workers = set(self._client.nthreads())
            self._seen = self._looked if self._workers else self._seen
        except (OSError, TimeoutError) as error:
            raise ClusterError(
                f"The scheduler does not answer any more ({error}); start it and run this again."
            ) from error
        if self._looked - self._seen > self._patience:
            raise WorkersGone("No worker came back after the last had died.")

    def _give(self, worker: str, job: Job) -> None:
        self._number += 1
        key = f"pair-{self._session}-{self._number}"  # no id: it may be a patient's, and the dashboard shows keys
        where = {"workers": [worker], "allow_other_workers": False, "pure": False, "key": key}
        future = self._client.submit(run_job, job, **where)
        self._running[worker] = _Task(job, future, time.monotonic())
        future.add_done_callback(lambda future: self._ended.put((worker, future)))

    def _take(self, worker: str, future: Future, lost: list[Job]) -> None:
        """What has become of a job."""
        task = self._running.get(worker)
        if task is None or task.future is not future:  # given up meanwhile
            return
        del self._running[worker]
        from distributed import CancelledError, KilledWorker

        try:
            row = future.result()
        except (KilledWorker, CancelledError):
            self._workers.discard(worker)
            lost.append(task.job)
        except Exception as error:  # of Dask or of unpickling: what a job raises is in its row
            self._fail(task.job, sentence_of(error))
        else:
            self._settle(task.job, row)

    def _end_hanging(self, worker: str) -> None:
        """Kill the worker's process, as far as Dask can: its nanny starts a new one."""
        task = self._drop(worker)
        with suppress(Exception):
            self._client.restart_workers([worker], timeout=20, raise_for_error=False)
        self._workers.discard(worker)
        limit = duration(self._seconds)
        self._fail(task.job, f"It had not ended after {limit}; look at its images, or allow it more with --timeout.")

    def _drop(self, worker: str) -> _Task:
        task = self._running.pop(worker)
        task.future.cancel(force=True)
        return task

    def _fail(self, job: Job, sentence: str) -> None:
        """A failure that no worker could tell of; its files were perhaps never read."""
        self._settle(job, row_of(job, files_of(job.entry.pair), "failed", error=sentence))

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
            raise FolderError(trouble(job.failure.parent, error)) from None
        del self._tally.left[job.entry.id]
        if row["state"] == "done":
            self._tally.done += 1
        else:
            self._tally.failed += 1
            self._progress.failed(job.entry.id, row["error"], details)
