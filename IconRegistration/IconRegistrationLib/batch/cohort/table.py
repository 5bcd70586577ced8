"""cohort.csv: a line per pair, a column per quality number that any pair has.

Rows lie on the disk (pairs/<id>/row.json, failed/<id>.json) and are read one at a time: memory grows with the names
of pairs and columns, not with the numbers.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ...io.writing import replacing
from ...quality.verdicts import AMBER, GREEN, RED

#: Columns that every pair has; those of its numbers follow.
_COLUMNS = ("id", "state", "verdict", "error", "seconds", "worker", "fixed", "moving")
_LEVELS = (GREEN, AMBER, RED)
#: A spreadsheet takes a text that begins with one of these for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_table(folder: Path, left: Iterable[str] = ()) -> None:
    """folder/cohort.csv from the rows in `folder`, then `left`: ids of pairs that have no row yet.

    What a report does not know (NaN) or what has no bounds (infinity) is an empty cell, as in report.csv.
    Raises OSError where the disk does not take it; the file is then what it was.
    """
    names: dict[str, None] = {}  # a set that keeps the order
    for path in row_files(folder):
        names.update(dict.fromkeys(_numbers_of(read_row(path))))
    shared_first = sorted(names, key=lambda name: ":" in name)
    with whole(folder / "cohort.csv", newline="") as file:
        writer = csv.DictWriter(file, [*_COLUMNS, *shared_first])
        writer.writeheader()
        for row in rows(folder, left):
            cells = {name: _cell(value) for name, value in _line(row).items()}
            writer.writerow(cells | _numbers_of(row))


def _line(row: dict) -> dict:
    """`_COLUMNS` of a pair."""
    files = row.get("files") or {}
    paths = {role: files.get(role, {}).get("path") for role in ("fixed", "moving")}
    report = row.get("report")
    plain = {name: row.get(name) for name in ("id", "state", "error", "seconds", "worker")}
    return plain | paths | {"verdict": worst_level(report) if report else None}


def _numbers_of(row: dict) -> dict[str, float | None]:
    return numbers(row["report"]) if row.get("report") else {}


def _cell(value):
    """A text that a spreadsheet shows instead of computing it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


# -------------------------------------------------------------------------------------------------- rows and reports


def row_files(folder: Path) -> list[Path]:
    """Where the rows of a cohort are, by the names of pairs; a pair that failed may have results of earlier inputs."""
    done = {path.parent.name: path for path in folder.glob("pairs/[!.]*/row.json")}  # .name: not whole yet
    failed = {path.stem: path for path in folder.glob("failed/[!.]*.json")}
    return [path for _, path in sorted((done | failed).items())]


def read_row(path: Path) -> dict:
    """The row of a pair; one that cannot be read is a failure of its own."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        name = path.parent.name if path.name == "row.json" else path.stem
        return {"id": name, "state": "failed", "error": f"{path} cannot be read; remove it and run the cohort again."}


def rows(folder: Path, left: Iterable[str] = ()) -> Iterator[dict]:
    """All rows in `folder`, then one for every id that is `left`: what is there of these is of other inputs."""
    left = dict.fromkeys(left)
    yield from (row for row in map(read_row, row_files(folder)) if row["id"] not in left)
    yield from ({"id": name, "state": "left"} for name in left)


def numbers(report: dict) -> dict[str, float | None]:
    """Every number of a `Report.to_dict()` by its column: dice_after, and dice_after:liver of one structure."""
    found = _flat(report["means"]) | _flat(report["similarity"]) | _flat(report["deformation"])
    for name, segment in report["segments"].items():
        found |= _flat(segment, f":{name}")
    for label, change in report["landmarks_mm"].items():
        found |= _flat({"target_registration_error_mm": change}, f":{label}")
    return found


def _flat(tree: dict, of: str = "", above: str = "") -> dict[str, float | None]:
    """Leaves by their path; points (x, y, z) as three. of: what ends every name."""
    found = {}
    for key, value in tree.items():
        if isinstance(value, list):
            value = dict(zip("xyz", value, strict=True))
        if isinstance(value, dict):
            found |= _flat(value, of, f"{above}{key}_")
        else:
            found[f"{above}{key}{of}"] = value if value is not None and math.isfinite(value) else None
    return found


def worst_level(report: dict) -> str:
    """Of the verdicts of a `Report.to_dict()`."""
    return max((verdict["level"] for verdict in report["verdicts"]), key=_LEVELS.index)


# -------------------------------------------------------------------------------------------------------------- files


@contextmanager
def whole(path: Path, newline: str = "\n") -> Iterator[TextIO]:
    """A text file to write; it takes the name `path` once it is on the disk, and vanishes after any exception."""
    # names of files may hold bytes that are no UTF-8: lone surrogates, written as JSON and Python escape them
    how = {"encoding": "utf-8", "errors": "backslashreplace", "newline": newline}
    with replacing(path) as partial, open(partial, "w", **how) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
