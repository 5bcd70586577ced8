"""Read and write landmarks: .mrk.json, .fcsv, CSV and legacy VTK files."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..spatial.geometry import Landmarks, flip_vectors
from .itk_images import _existing, _stem
from .writing import replacing, writable


def read_landmarks(path) -> Landmarks:
    """Points of Slicer's .mrk.json and .fcsv, of a .csv, or of a legacy ASCII .vtk; mm, LPS.

    .csv: a header line with "label" and either "l,p,s", "r,a,s" (Slicer's table export) or "x,y,z" (LPS).
    .vtk: taken as LPS, labelled "1", "2", ... in order. Points without a position are left out. Raises InputError.
    """
    path, _ = _existing(path)
    readers = {".json": _points_of_json, ".fcsv": _points_of_fcsv, ".csv": _points_of_csv, ".vtk": _points_of_vtk}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} is no list of landmarks; give .mrk.json, .fcsv, .csv or .vtk.")
    try:
        labels, points = reader(path)
        points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    except InputError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, csv.Error, OSError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise InputError(f"{path} cannot be read as landmarks ({reason}); export it again from Slicer.") from error
    if not len(points):
        raise InputError(f"{path} holds no landmark with a position; place at least one.")
    if not np.isfinite(points).all():
        raise InputError(f"{path}: landmark {labels[int(np.argmin(np.isfinite(points).all(1)))]!r} is not finite.")
    return Landmarks(points, tuple(labels), _stem(path))


def write_landmarks(landmarks: Landmarks, path) -> None:
    """Slicer's .mrk.json, a point list in LPS."""
    path = writable(path, (".mrk.json",))
    points = [
        {"id": str(n + 1), "label": label, "position": [float(c) for c in point], "positionStatus": "defined"}
        for n, (label, point) in enumerate(zip(landmarks.labels, landmarks.points, strict=True))
    ]
    schema = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points}
    document = {"@schema": schema + "markups-schema-v1.0.3.json#", "markups": [markup]}
    with replacing(path) as partial:
        partial.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")


def _to_lps(points, system: str) -> np.ndarray:
    """From Slicer's names of coordinate systems: words, or 0 and 1 in older files."""
    points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    if system.upper() in ("LPS", "1"):
        return points
    if system.upper() in ("RAS", "0"):
        return flip_vectors(points)
    raise ValueError(f"coordinate system {system!r}")


def _points_of_json(path: Path):
    markups = json.loads(path.read_text(encoding="utf-8-sig"))["markups"]
    if len(markups) != 1:
        raise InputError(f"{path} holds {len(markups)} markups; give a file with one point list.")
    points = [p for p in markups[0]["controlPoints"] if p.get("positionStatus", "defined") == "defined"]
    labels = [str(p.get("label", n + 1)) for n, p in enumerate(points)]
    return labels, _to_lps([p["position"] for p in points], str(markups[0].get("coordinateSystem", "RAS")))


def _points_of_fcsv(path: Path):
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    header = dict(line[1:].split("=", 1) for line in lines if line.startswith("#") and "=" in line)
    header = {key.strip(): value.strip() for key, value in header.items()}
    columns = header.get("columns", "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID").split(",")
    rows = list(csv.reader(line for line in lines if line.strip() and not line.startswith("#")))
    label, first = columns.index("label"), columns.index("x")
    labels = [row[label] if len(row) > label else str(n + 1) for n, row in enumerate(rows)]
    return labels, _to_lps([row[first : first + 3] for row in rows], header.get("CoordinateSystem", "RAS"))


def _points_of_csv(path: Path):
    rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    rows = [{key.strip().lower(): value for key, value in row.items() if key} for row in rows]
    rows = [row for row in rows if row.get("defined", "1") not in ("0", "False", "false")]
    axes = next((a for a in ("lps", "ras", "xyz") if rows and all(c in rows[0] for c in a)), None)
    if axes is None:
        raise InputError(
            f"{path} needs a header line with the columns label,l,p,s or label,r,a,s and at least one row."
        )
    labels = [row.get("label") or str(n + 1) for n, row in enumerate(rows)]
    return labels, _to_lps([[row[c] for c in axes] for row in rows], "RAS" if axes == "ras" else "LPS")


def _points_of_vtk(path: Path):
    if b"\nASCII" not in path.read_bytes()[:512]:
        raise InputError(f"{path} is no legacy ASCII .vtk file; convert the points to .mrk.json.")
    text = path.read_text(encoding="ascii", errors="replace")
    match = re.search(r"^POINTS\s+(\d+)\s+\w+\s", text, re.MULTILINE)
    if match is None:
        raise InputError(f"{path} holds no POINTS; convert the points to .mrk.json.")
    count = int(match[1])
    numbers = text[match.end() :].split()[: 3 * count]
    points = np.array(numbers, dtype=np.float64).reshape(count, 3)
    return [str(n + 1) for n in range(count)], points
