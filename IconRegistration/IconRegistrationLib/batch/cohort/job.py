"""Register one pair of a cohort and write its row: what a worker does. Independent of Dask.

A row is a JSON object:

    {"id", "state": "done" | "failed" | "left", "key", "files": {role: {"path", "size", "mtime_ns", "sha256"}},
     "settings": {fields of Settings}, "seconds", "worker": host, "error": sentence or null,
     "report": Report.to_dict() or null, "notes": [sentence, ...]}

"key" is a hash of everything that the results depend on: rows with the same key have the same results. As in git's
index, a file with the recorded size and modification time is taken to be unchanged.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...errors import InputError, explain
from ...io.paths import SERIES_SEPARATOR
from ...io.writing import atomic_folder, atomic_text_file, sha256_of
from ...networks import catalog
from ...text import english, one_line, tr
from ...workflow.folder import check_folder
from ...workflow.roles import SEGMENT_ROLES
from ..pair import OutputOptions, PairFiles, register_pair
from .entries import Entry

#: The row of a finished pair, among its results.
ROW = "row.json"
#: Part of every key: the version that first gave today's results. Cohorts of any version with the same go on;
#: raise it only when finished pairs have to be registered again.
_RESULTS_SINCE = "0.1.0"
_BLOCK = 1 << 22
#: Types of headers that name the files with their voxels, one on a line.
_NAMING_HEADERS = (".mhd", ".nhdr")


@dataclass(frozen=True)
class Job:
    """An entry of the manifest and everything else that a worker needs.

    Attributes
    ----------
    entry : Entry
    folder : Path
        Folder of the cohort.
    outputs : OutputOptions
        Which optional files are written.
    weights : str or None
        SHA-256 of the network's weights; None without a network.
    register : callable
        `pair.register_pair`, or a function of the same signature.
    """

    entry: Entry
    folder: Path
    outputs: OutputOptions = field(default_factory=OutputOptions)
    weights: str | None = None
    register: Callable = register_pair

    @property
    def place(self) -> Path:
        """Folder of the pair's results."""
        return self.folder / "pairs" / self.entry.id

    @property
    def failure(self) -> Path:
        """File with the pair's row if it failed."""
        return self.folder / "failed" / f"{self.entry.id}.json"


def run(job: Job) -> dict:
    """Register the pair unless results with the same key exist, and return its row, without the report.

    The row of a finished pair is written with its results; the driver writes those of failed pairs. The state "left"
    means not stored (disk full); the pair will be retried. An unexpected exception adds "traceback" to the row.
    """
    began = time.monotonic()
    files = files_of(job.entry.pair)
    try:
        files = with_contents(files)
        if not _done_already(job, files):
            _register(job, files, began)
        return row_of(job, files, "done", seconds=time.monotonic() - began)
    except Exception as error:
        if _done_already(job, files):  # by a worker that seemed to be lost
            return row_of(job, files, "done", seconds=time.monotonic() - began)
        kind, _ = explain(error)
        state = "left" if kind == "folder" else "failed"
        row = row_of(job, files, state, seconds=time.monotonic() - began, error=sentence_of(error))
        if kind in ("unexpected", "dependency", "cancelled"):
            row["traceback"] = traceback.format_exc()
    if kind == "memory":  # outside the handler, whose exception keeps the memory
        _models.release()
    return row


def _register(job: Job, files: dict, began: float) -> None:
    pair = job.entry.pair
    if job.place.exists():
        check_folder(job.place, True, map(Path, pair.files.values()))
    with atomic_folder(job.place) as partial:
        results, notes = job.register(pair, partial, job.outputs, lambda stage, fraction: None, _load(job.weights))
        changed = [role for role, now in files_of(pair, files).items() if now["sha256"] is None]
        if changed:
            raise InputError(
                tr("{path} changed while it was registered; run the cohort again.", path=files[changed[0]]["path"])
            )
        report = results.report.to_dict()
        row = row_of(job, files, "done", seconds=time.monotonic() - began, report=report, notes=notes)
        write_row(partial / ROW, row)


def _done_already(job: Job, files: dict) -> bool:
    """Return whether results of these contents exist; then their row is updated with the files' current paths."""
    row = read_row(job.place / ROW)
    if row is None or row["key"] != key_of(job, files):
        return False
    if row["files"] != files:
        write_row(job.place / ROW, row | {"files": files})
    return True


def state_of(job: Job) -> str:
    """Return how this very job ended, "done" or "failed", or "left". Reads its row, and no input."""
    for state, path in (("done", job.place / ROW), ("failed", job.failure)):
        row = read_row(path)
        if row is not None and row["key"] == key_of(job, files_of(job.entry.pair, row["files"])):
            return state
    return "left"


def sentence_of(error: Exception) -> str:
    """Return the sentence of an exception for the row and the page: one line in English."""
    return english(one_line(explain(error)[1]))


# ----------------------------------------------------------------------------------------------------------- the row


def row_of(job: Job, files: dict, state: str, *, seconds=None, worker=None, error=None, report=None, notes=()) -> dict:
    """Return the row of a pair. worker: None for this computer."""
    return {
        "id": job.entry.id,
        "state": state,
        "key": key_of(job, files),
        "files": files,
        "settings": asdict(job.entry.pair.settings),
        "seconds": None if seconds is None else round(seconds, 3),
        "worker": worker or socket.gethostname(),
        "error": error,
        "report": report,
        "notes": [english(note) for note in notes],
    }


def write_row(path: Path, row: dict) -> None:
    """Write a row atomically."""
    with atomic_text_file(path) as file:
        json.dump(row, file, indent=1)


def read_row(path: Path) -> dict | None:
    """Return a row; None if there is none that can be read."""
    try:
        row = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) and {"key", "files", "state"} <= row.keys() else None


def key_of(job: Job, files: dict) -> str:
    """Return the hash of what results depend on: contents, settings, weights, wanted files, version of the results."""
    pair = job.entry.pair
    contents = {role: file["sha256"] or [file["size"], file["mtime_ns"]] for role, file in files.items()}
    parts = [_RESULTS_SINCE, contents, pair.settings.identity(), pair.roles["guide"], job.weights, asdict(job.outputs)]
    changed = {name: on for name, on in pair.roles.items() if name != "guide" and on != SEGMENT_ROLES[name].default}
    parts += [changed] if changed else []  # newer than version 0.1
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# --------------------------------------------------------------------------------------------------------- the files


def files_of(pair: PairFiles, known: dict | None = None) -> dict[str, dict]:
    """Return "path", "size", "mtime_ns" and "sha256" of every file by role, as they are now.

    Parameters
    ----------
    pair : PairFiles
        Size and time of an input of several files are sums; those of a missing file are None.
    known : dict, optional
        An earlier answer. Its hash is kept for a file whose path, size and time have not changed; others have None.
    """
    files: dict[str, dict] = {}
    for role, path in pair.files.items():
        files[role] = {"path": path, **_stamp(path), "sha256": None}
        before = (known or {}).get(role, {})
        if files[role] == {**before, "sha256": None}:
            files[role]["sha256"] = before["sha256"]
    return files


def with_contents(files: dict[str, dict]) -> dict[str, dict]:
    """Return `files` with the hash of every existing file. Raises InputError for one that cannot be read."""
    return {
        role: {
            **file,
            "sha256": None if file["size"] is None else _sha256(file["path"], file["size"], file["mtime_ns"]),
        }
        for role, file in files.items()
    }


def _stamp(path: str) -> dict:
    try:
        found = [part.stat() for part in _parts(path)]
    except OSError:
        found = []
    if not found:
        return {"size": None, "mtime_ns": None}
    return {"size": sum(stat.st_size for stat in found), "mtime_ns": sum(stat.st_mtime_ns for stat in found)}


def _parts(path: str) -> list[Path]:
    """Return the files of an input: the slices of a DICOM folder; a header and the files that it names."""
    main = Path(path.partition(SERIES_SEPARATOR)[0]).expanduser()
    if main.is_dir():
        return sorted(part for part in main.iterdir() if part.is_file())
    if main.name.lower().endswith(_NAMING_HEADERS):
        with open(main, "rb") as file:
            lines = file.read(_BLOCK).decode("latin-1").splitlines()
        names = [re.split(r"[:=]", line, maxsplit=1)[-1].strip() for line in lines]
        return [main, *(part for name in names if name and (part := main.parent / name).is_file())]
    twin = re.sub(r"\.(hdr|img)(\.gz)?$", lambda m: f".{ {'hdr': 'img', 'img': 'hdr'}[m[1]] }{m[2] or ''}", main.name)
    return [main, main.with_name(twin)] if twin != main.name and main.with_name(twin).is_file() else [main]


@functools.lru_cache(maxsize=64)  # an atlas is in every pair
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    """Return the SHA-256 of all parts; size and time are keys of the cache."""
    try:
        return sha256_of(_parts(path))
    except OSError as error:
        reason = error.strerror
        raise InputError(tr("{path} cannot be read ({reason}); check it.", path=path, reason=reason)) from None


# -------------------------------------------------------------------------------------------------------- the worker


#: The network that this process keeps between pairs.
_models = catalog.ModelKeeper()


def _load(weights: str | None) -> Callable:
    """Return `load` for `register_pair`: it returns the kept network if its weights have this SHA-256."""

    def load(name, **options):
        loaded = _models.load(name, **options)
        if loaded[2] != weights:
            raise InputError(
                tr(
                    "The weights of {model} on {computer} differ from those with which the cohort was started; copy "
                    "them there, or give a folder that all computers share with --weights-dir, and start it again.",
                    model=name,
                    computer=socket.gethostname(),
                )
            )
        return loaded

    return load
