"""Write cohort.csv: a line for each pair, a column for each quality number that any pair has.

Rows are on the disk (pairs/<id>/row.json, failed/<id>.json) and are read one at a time: memory grows with the names of
pairs and columns, not with the numbers.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...io.writing import atomic_text_file
from ...quality.verdicts import AMBER, GREEN, RED
from ...text import tr

#: Columns that every pair has; those of its numbers follow.
_COLUMNS = ("id", "state", "verdict", "error", "seconds", "worker", "fixed", "moving")
_LEVELS = (GREEN, AMBER, RED)
#: A spreadsheet takes text that starts with one of these for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_table(folder: Path, left: Iterable[str] = ()) -> None:
    """Write folder/cohort.csv.

    Unknown (NaN) and infinite numbers are empty cells, as in report.csv.

    Parameters
    ----------
    folder : Path
        Folder of the cohort, whose rows are listed first.
    left : iterable of str
        Ids of pairs that have no row yet.

    Raises
    ------
    OSError
        If the file cannot be written; it is then as it was.
    """
    names: dict[str, None] = {}  # a set that keeps the order
    for path in row_files(folder):
        names.update(dict.fromkeys(_numbers_of(read_row(path))))
    shared_first = sorted(names, key=lambda name: ":" in name)
    with atomic_text_file(folder / "cohort.csv", newline="") as file:
        writer = csv.DictWriter(file, [*_COLUMNS, *shared_first])
        writer.writeheader()
        for row in rows(folder, left):
            cells = {name: _cell(value) for name, value in _line(row).items()}
            writer.writerow(cells | _numbers_of(row))


def _line(row: dict) -> dict:
    """Return the cells of a pair in `_COLUMNS`."""
    files = row.get("files") or {}
    paths = {role: files.get(role, {}).get("path") for role in ("fixed", "moving")}
    report = row.get("report")
    plain = {name: row.get(name) for name in ("id", "state", "error", "seconds", "worker")}
    return plain | paths | {"verdict": worst_level(report) if report else None}


def _numbers_of(row: dict) -> dict[str, float | None]:
    return numbers(row["report"]) if row.get("report") else {}


def _cell(value):
    """Return text that a spreadsheet shows instead of computing it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


# -------------------------------------------------------------------------------------------------- rows and reports


def row_files(folder: Path) -> list[Path]:
    """Return the files of a cohort's rows, sorted by id; a failed pair may also have results of earlier inputs."""
    done = {path.parent.name: path for path in folder.glob("pairs/[!.]*/row.json")}  # .name: unfinished
    failed = {path.stem: path for path in folder.glob("failed/[!.]*.json")}
    return [path for _, path in sorted((done | failed).items())]


def read_row(path: Path) -> dict:
    """Return the row of a pair; one that cannot be read becomes the row of a failed pair."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        name = path.parent.name if path.name == "row.json" else path.stem
        error = tr("{path} cannot be read; remove it and run the cohort again.", path=path)
        return {"id": name, "state": "failed", "error": error.english}


def rows(folder: Path, left: Iterable[str] = ()) -> Iterator[dict]:
    """Yield the rows in `folder` except those of ids in `left` (of earlier inputs), then a row for each of these."""
    left = dict.fromkeys(left)
    yield from (row for row in map(read_row, row_files(folder)) if row["id"] not in left)
    yield from ({"id": name, "state": "left"} for name in left)


def numbers(report: dict) -> dict[str, float | None]:
    """Return every number of a `Report.to_dict()` by column: dice_after, and dice_after:liver for one structure."""
    found = _flat(report["means"]) | _flat(report["similarity"]) | _flat(report["deformation"])
    for name, segment in report["segments"].items():
        found |= _flat(segment, f":{name}")
    for label, change in report["landmarks_mm"].items():
        found |= _flat({"target_registration_error_mm": change}, f":{label}")
    return found


def _flat(tree: dict, suffix: str = "", prefix: str = "") -> dict[str, float | None]:
    """Return the leaves by their path between `prefix` and `suffix`; a point (x, y, z) becomes three."""
    found: dict[str, float | None] = {}
    for key, value in tree.items():
        if isinstance(value, list):
            value = dict(zip("xyz", value, strict=True))
        if isinstance(value, dict):
            found |= _flat(value, suffix, f"{prefix}{key}_")
        else:
            found[f"{prefix}{key}{suffix}"] = value if value is not None and math.isfinite(value) else None
    return found


def worst_level(report: dict) -> str:
    """Return the worst level of the verdicts of a `Report.to_dict()`."""
    return max((verdict["level"] for verdict in report["verdicts"]), key=_LEVELS.index)
