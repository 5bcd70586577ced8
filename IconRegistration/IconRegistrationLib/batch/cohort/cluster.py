"""The Dask cluster on which a cohort runs: one of this computer's own, or one that is there."""

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

if TYPE_CHECKING:
    from distributed import Client, SpecCluster

    from ..pair import PairFiles
    from .entries import Entry

#: Share of the memory that the workers may fill together; the rest is the driver's and the system's.
_USABLE = 0.8
#: Of how many of the largest pairs the headers are read.
_LOOKED_AT = 5
#: What a pair is taken to need whose headers cannot be read, bytes: one of 256^3 voxels each.
_USUAL_BYTES = 3 << 30
#: A pair hangs after this many times what it is expected to take, and after this many minutes at least.
_PATIENCE, _LEAST_MINUTES = 10, 30.0
#: How long a scheduler on another computer is waited for.
_CONNECT = "20s"
#: Environment variables that say how many threads a library starts.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
#: Of the cluster on this computer. Logs of bounded length: the scheduler lives in the driver. Nothing watches what the
#: threads do, nothing moves pairs between workers.
_CONFIG = {
    "distributed.admin.low-level-log-length": 1000,
    "distributed.worker.profile.enabled": False,
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.allowed-failures": 0,
    "distributed.comm.timeouts.connect": "30s",
    "distributed.worker.http.routes": ["distributed.http.health"],
}
#: Pages about all that goes on, if Dask cannot draw its dashboard.
_NO_PAGES = {"distributed.scheduler.http.routes": ["distributed.http.health"]}


class ClusterError(Exception):
    """The cluster is gone, or did not come. One sentence."""


class WorkersGone(ClusterError):
    """The workers of this computer did not come, or not back: others may."""


@dataclass(frozen=True)
class Demand:
    """What the most demanding pair needs at its peak. seconds: on two cores, None where unknown (a GPU)."""

    memory: int
    seconds: float | None

    @property
    def minutes_to_hang(self) -> float:
        """After which a pair counts as hanging."""
        return max(_LEAST_MINUTES, _PATIENCE * (self.seconds or 0) / 60)


@dataclass(frozen=True)
class Workers:
    """How many on this computer, threads of each, and the GPU of each (names for CUDA), if they have one."""

    count: int
    threads: int
    gpus: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------------------ sizing


def demand_of(entries: Sequence[Entry]) -> Demand:
    """By the headers of the largest files, for every kind of settings."""
    largest: dict[Settings, list[tuple[int, PairFiles]]] = {}
    for entry in entries:
        found = largest.setdefault(entry.pair.settings, [])
        found.append((_bytes_on_disk(entry.pair), entry.pair))
        if len(found) > 2 * _LOOKED_AT:
            found[:] = sorted(found, key=lambda item: -item[0])[:_LOOKED_AT]
    demands = [
        _demand(pair) for found in largest.values() for _, pair in sorted(found, key=lambda item: -item[0])[:_LOOKED_AT]
    ]
    known = [demand for demand in demands if demand is not None]
    seconds = [demand.seconds for demand in known if demand.seconds is not None]
    return Demand(max((demand.memory for demand in known), default=_USUAL_BYTES), max(seconds, default=None))


def _bytes_on_disk(pair: PairFiles) -> int:
    from .job import files_of

    files = files_of(pair)
    return sum(files[role]["size"] or 0 for role in ("fixed", "moving"))


def _demand(pair: PairFiles) -> Demand | None:
    """None for a pair that will fail for what its headers say."""
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
    flight = preflight(Inputs(*images), pair.settings, (ImageFacts("ct", None), ImageFacts("mri", None)))
    return None if flight.memory is None else Demand(flight.memory, flight.seconds)


def workers_for(entries: Sequence[Entry], demand: Demand, wanted: int | None) -> Workers:
    """One worker per GPU, else as many as cores and memory allow, `wanted` instead where it is given.

    The same for the same pairs, however many of them are done: results depend on the threads in their last bits.
    """
    gpus = _gpus(entries)
    cores = _cores()
    most = len(gpus) or min(cores, math.floor(_USABLE * (physical_memory() or math.inf) / demand.memory))
    count = wanted or max(1, min(most, len(entries)))
    # more workers than GPUs take turns
    return Workers(count, max(1, cores // count), tuple(gpus[n % len(gpus)] for n in range(count)) if gpus else ())


def _cores() -> int:
    """That this process may use: affinity and control groups count."""
    from dask.system import CPU_COUNT

    return CPU_COUNT


def _gpus(entries: Sequence[Entry]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES calls them; none where no pair asks for one, or a pair asks for a particular one."""
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
    """A client of a cluster of processes on this computer, which ends with the block.

    It listens on 127.0.0.1 only, and to nobody without the key that it makes for itself: on a computer that several
    people use, whoever can speak to a Dask scheduler can run code as its owner.
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
        # an address for pages too: without one they are served to everybody
        common = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "protocol": "tls", "security": security}
        scheduler = {**common, "dashboard": has_dashboard()}
        nanny = {
            **common,
            "nthreads": 1,  # one pair at a time; the libraries' threads are another matter (_env)
            "memory_limit": None,  # how many workers there are is decided by memory; what is beyond, the system decides
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
                f"The workers could not be started ({reason}); run this again, or with fewer --workers."
            ) from error
        client = stack.enter_context(Client(cluster, security=security))
        try:
            yield client
        finally:
            cluster.sync(_end, cluster)


def _env(workers: Workers, number: int) -> dict[str, str]:
    """Read by torch, ITK and CUDA when a worker loads them, at its first pair."""
    threads = dict.fromkeys(_THREADS, str(workers.threads))
    return threads | ({"CUDA_VISIBLE_DEVICES": workers.gpus[number]} if workers.gpus else {})


async def _end(cluster: SpecCluster) -> None:
    """Without waiting for pairs that are at work."""
    await asyncio.gather(*(nanny.close(timeout=1) for nanny in cluster.workers.values()), return_exceptions=True)


def dask_setup(worker) -> None:
    """Dask calls this in every process of `local_cluster`, before its first pair.

    Libraries print what they like, also of what stands in headers: nobody is to read it, least of all a log. Ctrl-C
    reaches every process of a terminal; the driver decides what it means.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def remote_cluster(address: str) -> Iterator[Client]:
    """A client of a scheduler that is there. Certificates for tls:// come from Dask's configuration."""
    from distributed import Client

    with _quiet():
        try:
            client = Client(address, timeout=_CONNECT, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"No Dask scheduler answers at {address} ({reason}); check --scheduler.") from None
        with client:
            yield client


def has_dashboard() -> bool:
    """Whether what Dask's dashboard is drawn with is installed."""
    return importlib.util.find_spec("bokeh") is not None


@contextmanager
def _quiet() -> Iterator[None]:
    """Dask's log says what the driver says in its own words, and the arguments of what went wrong."""
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
    """Who works, and where to watch them."""
    count = len(client.nthreads())
    watch = client.dashboard_link if has_dashboard() else "no dashboard: bokeh is not installed"
    return f"{count} worker{'' if count == 1 else 's'}; {watch}"
