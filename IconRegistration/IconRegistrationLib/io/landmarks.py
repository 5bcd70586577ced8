"""Read and write landmarks: .mrk.json, .fcsv, CSV and legacy VTK files."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..spatial.geometry import Landmarks, flip_vectors
from ..text import tr
from .formats import Format, listed, reader_of, stem_of, suffixes_of, writer_of
from .paths import existing_path
from .writing import atomic_file, writable


def read_landmarks(path: str | os.PathLike[str]) -> Landmarks:
    """Read points with labels (mm, LPS); points without a position are omitted.

    Parameters
    ----------
    path : str or path-like
        A file of `LANDMARK_FORMATS`: Slicer's .mrk.json or .fcsv; a .csv with a header line of "label" and either
        "l,p,s", "r,a,s" (Slicer's table export) or "x,y,z" (LPS); or a legacy ASCII .vtk, taken as LPS and labelled
        "1", "2", ... in order.

    Raises
    ------
    InputError
        If it is missing, damaged, or holds no landmark with a finite position.
    """
    found, _ = existing_path(path)
    read = reader_of(found, LANDMARK_FORMATS)
    if read is None:
        raise InputError(
            tr(
                "{path} is not a list of landmarks; give {suffixes}.",
                path=found,
                suffixes=listed(suffixes_of(LANDMARK_FORMATS)),
            )
        )
    try:
        landmarks = read(found)
        points = np.asarray(landmarks.points, dtype=np.float64).reshape(-1, 3)
    except InputError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, csv.Error, OSError) as error:
        raise InputError(
            tr(
                "{path} cannot be read as landmarks ({error}: {reason}); export it again from Slicer.",
                path=found,
                error=type(error).__name__,
                reason=str(error)[:200],
            )
        ) from error
    if not len(points):
        raise InputError(tr("{path} holds no landmark with a position; place at least one.", path=found))
    if not np.isfinite(points).all():
        label = landmarks.labels[int(np.argmin(np.isfinite(points).all(1)))]
        raise InputError(
            tr("{path}: landmark {label} is not finite; place it again or delete it.", path=found, label=repr(label))
        )
    return Landmarks(points, tuple(landmarks.labels), stem_of(found, LANDMARK_FORMATS))


def write_landmarks(landmarks: Landmarks, path: str | os.PathLike[str]) -> None:
    """Write points in the format of `LANDMARK_FORMATS` that the name says: Slicer's .mrk.json, a point list in LPS.

    Raises
    ------
    InputError
        If the type of the file is unknown or its folder does not exist.
    OSError
        If the disk does not take it.
    """
    path = writable(path, suffixes_of(LANDMARK_FORMATS, written=True))
    with atomic_file(path) as partial:
        writer_of(path, LANDMARK_FORMATS)(landmarks, partial)


def _write_json(landmarks: Landmarks, path: Path) -> None:
    points = [
        {"id": str(n + 1), "label": label, "position": [float(c) for c in point], "positionStatus": "defined"}
        for n, (label, point) in enumerate(zip(landmarks.labels, landmarks.points, strict=True))
    ]
    schema = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points}
    document = {"@schema": schema + "markups-schema-v1.0.3.json#", "markups": [markup]}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")


def _to_lps(points: Sequence, system: str) -> np.ndarray:
    """Convert points (n, 3) from the coordinate system of Slicer's name: a word, or 0 or 1 in older files."""
    array = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    if system.upper() in ("LPS", "1"):
        return array
    if system.upper() in ("RAS", "0"):
        return flip_vectors(array)
    raise ValueError(tr("unknown coordinate system {name}", name=repr(system)))


def _read_json(path: Path) -> Landmarks:
    markups = json.loads(path.read_text(encoding="utf-8-sig"))["markups"]
    if len(markups) != 1:
        raise InputError(
            tr("{path} holds {count} markups; give a file with one point list.", path=path, count=len(markups))
        )
    points = [p for p in markups[0]["controlPoints"] if p.get("positionStatus", "defined") == "defined"]
    labels = [str(p.get("label", n + 1)) for n, p in enumerate(points)]
    system = str(markups[0].get("coordinateSystem", "RAS"))
    return Landmarks(_to_lps([p["position"] for p in points], system), tuple(labels))


def _read_fcsv(path: Path) -> Landmarks:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    header = dict(line[1:].split("=", 1) for line in lines if line.startswith("#") and "=" in line)
    header = {key.strip(): value.strip() for key, value in header.items()}
    columns = header.get("columns", "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID").split(",")
    rows = list(csv.reader(line for line in lines if line.strip() and not line.startswith("#")))
    label, first = columns.index("label"), columns.index("x")
    labels = [row[label] if len(row) > label else str(n + 1) for n, row in enumerate(rows)]
    points = _to_lps([row[first : first + 3] for row in rows], header.get("CoordinateSystem", "RAS"))
    return Landmarks(points, tuple(labels))


def _read_csv(path: Path) -> Landmarks:
    rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    rows = [{key.strip().lower(): value for key, value in row.items() if key} for row in rows]
    rows = [row for row in rows if row.get("defined", "1") not in ("0", "False", "false")]
    axes = next((a for a in ("lps", "ras", "xyz") if rows and all(c in rows[0] for c in a)), None)
    if axes is None:
        raise InputError(
            tr(
                "{path} needs a header line with the columns label,l,p,s or label,r,a,s and at least one row.",
                path=path,
            )
        )
    labels = [row.get("label") or str(n + 1) for n, row in enumerate(rows)]
    points = _to_lps([[row[c] for c in axes] for row in rows], "RAS" if axes == "ras" else "LPS")
    return Landmarks(points, tuple(labels))


def _read_vtk(path: Path) -> Landmarks:
    if b"\nASCII" not in path.read_bytes()[:512]:
        raise InputError(tr("{path} is not a legacy ASCII .vtk file; convert the points to .mrk.json.", path=path))
    text = path.read_text(encoding="ascii", errors="replace")
    match = re.search(r"^POINTS\s+(\d+)\s+\w+\s", text, re.MULTILINE)
    if match is None:
        raise InputError(tr("{path} holds no POINTS; convert the points to .mrk.json.", path=path))
    count = int(match[1])
    numbers = text[match.end() :].split()[: 3 * count]
    points = np.array(numbers, dtype=np.float64).reshape(count, 3)
    return Landmarks(points, tuple(str(n + 1) for n in range(count)))


#: Formats of points with labels.
LANDMARK_FORMATS = [
    Format("markups of Slicer", (".mrk.json",), _read_json, _write_json),
    Format("markups of Slicer under another name", (".json",), _read_json),
    Format("markups of older versions of Slicer", (".fcsv",), _read_fcsv),
    Format("table with the columns label and l,p,s, r,a,s or x,y,z", (".csv",), _read_csv),
    Format("legacy ASCII VTK points", (".vtk",), _read_vtk),
]
