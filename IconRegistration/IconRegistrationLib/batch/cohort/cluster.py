"""Start a Dask cluster on this computer for a cohort, or connect to an existing one."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import InputError
from ...machine import physical_memory
from ...registration.settings import Settings
from ...text import tr

if TYPE_CHECKING:
    from distributed import Client, SpecCluster

    from ..pair import PairFiles
    from .entries import Entry

#: Share of the memory that the workers may fill together; the rest is the driver's and the system's.
_USABLE = 0.8
#: Number of the largest pairs whose headers are read.
_SAMPLED_PAIRS = 5
#: Bytes that a pair with unreadable headers is assumed to need: that of two images of 256^3 voxels.
_USUAL_BYTES = 3 << 30
#: A pair counts as hanging after this multiple of its expected time, but not before this many minutes.
_PATIENCE, _LEAST_MINUTES = 10, 30.0
#: How long a scheduler on another computer is waited for.
_CONNECT = "20s"
#: Environment variables with the number of threads that a library starts.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
#: Configuration of the cluster on this computer. Logs have a bounded length, as the scheduler lives in the driver; no
#: profiling, and no moving of pairs between workers.
_CONFIG = {
    "distributed.admin.low-level-log-length": 1000,
    "distributed.worker.profile.enabled": False,
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.allowed-failures": 0,
    "distributed.comm.timeouts.connect": "30s",
    "distributed.worker.http.routes": ["distributed.http.health"],
}
#: Without Dask's dashboard no pages are served.
_NO_PAGES = {"distributed.scheduler.http.routes": ["distributed.http.health"]}


class ClusterError(Exception):
    """The cluster was lost or could not be reached. One sentence."""


class WorkersGone(ClusterError):
    """The workers of this computer did not start, or did not return after they died. New ones can be started."""


@dataclass(frozen=True)
class Demand:
    """Needs of the most demanding pair.

    Attributes
    ----------
    memory : int
        Bytes at its peak.
    seconds : float or None
        Expected time on two cores; None if unknown (a GPU).
    """

    memory: int
    seconds: float | None

    @property
    def minutes_to_hang(self) -> float:
        """Minutes after which a pair counts as hanging."""
        return max(_LEAST_MINUTES, _PATIENCE * (self.seconds or 0) / 60)


@dataclass(frozen=True)
class Workers:
    """Worker processes on this computer.

    Attributes
    ----------
    count : int
    threads : int
        Threads of each.
    gpus : tuple of str
        CUDA's name of the GPU of each; empty without GPUs.
    """

    count: int
    threads: int
    gpus: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------------------ sizing


def demand_of(entries: Sequence[Entry]) -> Demand:
    """Return the needs of the most demanding pair, from the headers of the largest files of each kind of settings."""
    largest: dict[Settings, list[tuple[int, PairFiles]]] = {}
    for entry in entries:
        found = largest.setdefault(entry.pair.settings, [])
        found.append((_bytes_on_disk(entry.pair), entry.pair))
        if len(found) > 2 * _SAMPLED_PAIRS:
            found[:] = sorted(found, key=lambda item: -item[0])[:_SAMPLED_PAIRS]
    demands = [
        _demand(pair)
        for found in largest.values()
        for _, pair in sorted(found, key=lambda item: -item[0])[:_SAMPLED_PAIRS]
    ]
    known = [demand for demand in demands if demand is not None]
    seconds = [demand.seconds for demand in known if demand.seconds is not None]
    return Demand(max((demand.memory for demand in known), default=_USUAL_BYTES), max(seconds, default=None))


def _bytes_on_disk(pair: PairFiles) -> int:
    from .job import files_of

    files = files_of(pair)
    return sum(files[role]["size"] or 0 for role in ("fixed", "moving"))


def _demand(pair: PairFiles) -> Demand | None:
    """Return the needs of a pair; None if its headers say that it will fail."""
    import numpy as np

    from ...io.images import image_header
    from ...spatial.geometry import Grid, Image
    from ...workflow.preflight import ImageFacts, preflight
    from ...workflow.results import Inputs

    try:
        shapes = [image_header(path).shape for path in (pair.fixed, pair.moving)]
    except InputError:
        return None
    # voxels of 1 mm that take no memory, and two contrasts: the similarity that needs most
    images = [Image(np.broadcast_to(np.float32(0), shape), Grid(shape, np.eye(4)), "image") for shape in shapes]
    needs = preflight(Inputs(images[0], images[1]), pair.settings, (ImageFacts("ct", None), ImageFacts("mri", None)))
    return None if needs.memory is None else Demand(needs.memory, needs.seconds)


def workers_for(entries: Sequence[Entry], demand: Demand, wanted: int | None) -> Workers:
    """Return one worker per GPU, or as many as cores and memory allow.

    The answer is the same for the same pairs, however many of them are done: the last bits of results depend on the
    number of threads.

    Parameters
    ----------
    entries : sequence of Entry
        All pairs of the cohort.
    demand : Demand
        Needs of the most demanding one.
    wanted : int, optional
        This many instead.
    """
    gpus = _gpus(entries)
    cores = _cores()
    most = len(gpus) or min(cores, math.floor(_USABLE * (physical_memory() or math.inf) / demand.memory))
    count = wanted or max(1, min(most, len(entries)))
    # more workers than GPUs take turns
    return Workers(count, max(1, cores // count), tuple(gpus[n % len(gpus)] for n in range(count)) if gpus else ())


def _cores() -> int:
    """Return how many cores this process may use; affinity and control groups count."""
    from dask.system import CPU_COUNT

    return CPU_COUNT


def _gpus(entries: Sequence[Entry]) -> list[str]:
    """Return the GPUs as CUDA_VISIBLE_DEVICES names them; none if a pair excludes them or asks for a particular one."""
    wanted = {entry.pair.settings.device for entry in entries}
    if not wanted <= {"auto", "cuda"}:
        return []
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(n) for n in range(count)]


# ------------------------------------------------------------------------------------------------------- the cluster


@contextmanager
def local_cluster(workers: Workers) -> Iterator[Client]:
    """Yield a client of a cluster of processes on this computer, which ends with the block.

    It listens on 127.0.0.1 only, and requires a key that it makes for itself: on a computer with several users, whoever
    can connect to a Dask scheduler can run code as its owner.

    Raises
    ------
    WorkersGone
        If the processes do not start.
    """
    import dask
    from distributed import Client, Nanny, Scheduler, Security, SpecCluster

    with ExitStack() as stack:
        stack.enter_context(_quiet())
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="icon-registration-", ignore_cleanup_errors=True)
        )
        stack.enter_context(dask.config.set(_CONFIG if has_dashboard() else _CONFIG | _NO_PAGES))
        security = Security.temporary()
        # with an address for the pages too: without one they are served to everybody
        common = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "protocol": "tls", "security": security}
        scheduler = {**common, "dashboard": has_dashboard()}
        nanny = {
            **common,
            "nthreads": 1,  # one pair at a time; _env sets the libraries' threads
            "memory_limit": None,  # their number already depends on memory
            "local_directory": folder,
            "dashboard": False,
            "preload": [__name__],
            "silence_logs": logging.CRITICAL,
        }
        try:
            cluster = stack.enter_context(
                SpecCluster(
                    workers={
                        n: {"cls": Nanny, "options": {**nanny, "env": _env(workers, n)}} for n in range(workers.count)
                    },
                    scheduler={"cls": Scheduler, "options": scheduler},
                    security=security,
                    silence_logs=logging.CRITICAL,
                )
            )
        except (OSError, RuntimeError, TimeoutError) as error:
            reason = " ".join(str(error).split())
            raise WorkersGone(
                tr("The workers could not be started ({reason}); try again, or with fewer --workers.", reason=reason)
            ) from error
        client = stack.enter_context(Client(cluster, security=security))
        try:
            yield client
        finally:
            cluster.sync(_end, cluster)


def _env(workers: Workers, number: int) -> dict[str, str]:
    """Return environment variables that torch, ITK and CUDA read when a worker loads them, at its first pair."""
    threads = dict.fromkeys(_THREADS, str(workers.threads))
    return threads | ({"CUDA_VISIBLE_DEVICES": workers.gpus[number]} if workers.gpus else {})


async def _end(cluster: SpecCluster) -> None:
    """End the workers without waiting for running pairs."""
    await asyncio.gather(*(nanny.close(timeout=1) for nanny in cluster.workers.values()), return_exceptions=True)


def dask_setup(worker) -> None:
    """Prepare a process of `local_cluster`; Dask calls this before its first pair.

    What libraries print is discarded, as it may quote headers. Ctrl-C reaches every process of a terminal and is
    left to the driver.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def remote_cluster(address: str) -> Iterator[Client]:
    """Connect to an existing scheduler. Certificates for tls:// come from Dask's configuration.

    Raises
    ------
    InputError
        If no scheduler answers at `address`.
    """
    from distributed import Client

    with _quiet():
        try:
            client = Client(address, timeout=_CONNECT, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                tr(
                    "No Dask scheduler answers at {address} ({reason}); check --scheduler.",
                    address=address,
                    reason=reason,
                )
            ) from None
        with client:
            yield client


def has_dashboard() -> bool:
    """Return whether bokeh, which draws Dask's dashboard, is installed."""
    return importlib.util.find_spec("bokeh") is not None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Dask's logs, which repeat what the driver says and print arguments of failed calls."""
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def described(client: Client) -> str:
    """Return a phrase with the number of workers and the address of the dashboard."""
    count = len(client.nthreads())
    workers = tr("1 worker") if count == 1 else tr("{count} workers", count=count)
    if not has_dashboard():
        return tr("{workers}; no dashboard because bokeh is not installed", workers=workers)
    return tr("{workers}; {dashboard}", workers=workers, dashboard=client.dashboard_link)
