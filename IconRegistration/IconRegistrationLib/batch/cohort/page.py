"""Write cohort.html: the pairs of a cohort, the worst first, on one page that needs neither a network nor other files.

The page is page.html with the pairs inserted as JSON; its script draws what is visible. Names are only ever data, and
its policy allows no other script and no loading.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ... import __version__
from ...io.writing import atomic_text_file
from ...quality.verdicts import AMBER, GREEN, RED, level_in_words
from ...text import english, tr
from .table import numbers, read_row, row_files, worst_level

#: Width of a picture in the page in pixels, and the characters that all pictures may take.
PICTURE_WIDTH = 1120
PICTURES_AT_MOST = 50_000_000
_LINKED = ("report.txt", "scene.mrb", "pictures/before.png", "pictures/after.png", "pictures/grid.png")
_STATES = ("failed", "done", "left")
#: Columns of cohort.csv, without the part after the colon, in the order of the numbers of a structure and a landmark.
_SEGMENT = (
    "dice_before",
    "dice_after",
    "hd95_mm_before",
    "hd95_mm_after",
    "volume_fixed_mm3",
    "volume_mapped_mm3",
    "volume_moving_mm3",
    "volume_ratio",
)
_LANDMARK = ("target_registration_error_mm_before", "target_registration_error_mm_after")


def write_page(folder: Path, left: Iterable[str] = ()) -> None:
    """Write folder/cohort.html. One pair is in memory at a time, besides the order of all.

    Parameters
    ----------
    folder : Path
        Folder of the cohort.
    left : iterable of str
        Ids of pairs that have no row yet.

    Raises
    ------
    OSError
        If the file cannot be written; it is then as it was.
    """
    left = dict.fromkeys(left)
    order = []
    columns: dict[str, float | None] = {}
    for number, path in enumerate(row_files(folder)):
        row = read_row(path)
        if row["id"] not in left:
            order.append((severity(row), number, path))
            columns = columns or _shared_numbers(row)
    order.sort()
    head, tail = _template(folder.name)
    pictures = _Pictures()
    with atomic_text_file(folder / "cohort.html") as file:
        file.write(head)
        words = {level: english(level_in_words(level)) for level in (GREEN, AMBER, RED)}
        about = {"made": time.strftime("%Y-%m-%d %H:%M"), "version": __version__, "words": words}
        about |= {"columns": list(columns), "segment_columns": _SEGMENT, "landmark_columns": _LANDMARK}
        file.write(_data(about, 'id="cohort"'))
        for place, (_, _, path) in enumerate(order):
            found = pictures.of(path)
            file.write(_data(_record(folder, path, columns, list(found)), 'class="pair"'))
            for kind, picture in found.items():
                file.write(f'<script type="text/plain" id="picture-{place}-{kind}">{picture}</script>\n')
        for name in left:
            file.write(_data({"id": name, "state": "left"}, 'class="pair"'))
        file.write(_data({"notes": pictures.notes()}, 'id="closing"'))
        file.write(tail)


def severity(row: dict) -> tuple:
    """Return a key that sorts the worst pair first.

    Failed pairs come first; then those with the most verdicts "do not trust", the most "look closely", the lowest mean
    Dice, the highest mean target registration error, and the highest 95th percentile of the inverse-consistency error.
    """
    report = row.get("report")
    state = _STATES.index(row["state"])
    if not report:
        return (state,)
    levels = [verdict["level"] for verdict in report["verdicts"]]
    found = numbers(report)
    dice, *errors = (
        found.get(name)
        for name in ("dice_after", "target_registration_error_mm_after", "inverse_consistency_mm_percentile95")
    )
    return (
        state,
        -levels.count(RED),
        -levels.count(AMBER),
        2.0 if dice is None else dice,
        *(0.0 if error is None else -error for error in errors),
    )


def _shared_numbers(row: dict) -> dict[str, float | None]:
    """Return the numbers that every report has."""
    report = row.get("report")
    return {name: value for name, value in numbers(report).items() if ":" not in name} if report else {}


def _record(folder: Path, path: Path, columns: Iterable[str], pictures: list[str]) -> dict:
    """Return the data of a pair for the script of the page."""
    row = read_row(path)
    files = row.get("files") or {}
    record = {name: row.get(name) for name in ("id", "state", "error", "seconds", "worker", "notes")}
    record |= {role: files.get(role, {}).get("path") for role in ("fixed", "moving")}
    report = row.get("report")
    if report:
        found = numbers(report)
        record |= {
            "level": worst_level(report),
            "verdicts": [[v["measure"], v["level"], v["meaning"], v["before"], v["value"]] for v in report["verdicts"]],
            "numbers": [found.get(name) for name in columns],
            "segments": [[name, *(found[f"{column}:{name}"] for column in _SEGMENT)] for name in report["segments"]],
            "landmarks": [
                [name, *(found[f"{column}:{name}"] for column in _LANDMARK)] for name in report["landmarks_mm"]
            ],
            "pictures": pictures,
            "links": [
                [name, quote((path.parent / name).relative_to(folder).as_posix(), errors="surrogateescape")]
                for name in _LINKED
                if (path.parent / name).is_file()
            ],
        }
    return {name: _short(value) for name, value in record.items() if value not in (None, [])}


def _short(value):
    """Return five digits of every number; None for what JSON lacks."""
    if isinstance(value, list):
        return [_short(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


# -------------------------------------------------------------------------------------------------------------- page


def _template(title: str) -> tuple[str, str]:
    """Return the parts of the page before and after the pairs."""
    text = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    style, script = (re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[0] for tag in ("style", "script"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    head, tail = text.split("<!-- pairs -->\n")
    return head.replace("{policy}", policy).replace("{title}", html.escape(title)), tail


def _hash(text: str) -> str:
    """Return the name of the one text that a content security policy allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(value: dict, attributes: str) -> str:
    """Return JSON that a browser does not run, and that no name can end."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" {attributes}>{text}</script>\n'


# ---------------------------------------------------------------------------------------------------------- pictures


class _Pictures:
    """Small copies of the pictures of the first pairs, as many as the page can hold; counts what it omits."""

    def __init__(self):
        self._written = 0
        self._pictured = self._beyond = 0
        self._image: Any = None
        try:
            from PIL import Image
        except ImportError:
            return
        self._image = Image

    def of(self, row: Path) -> dict[str, str]:
        """Return data URIs of a pair by "before" and "after", or else "grid". row: its file."""
        if row.name != "row.json":
            return {}
        there = {kind: row.parent / "pictures" / f"{kind}.png" for kind in ("before", "after", "grid")}
        there = {kind: path for kind, path in there.items() if path.is_file()}
        if len(there) > 1:
            there.pop("grid", None)
        if there and (self._image is None or self._written > PICTURES_AT_MOST):
            self._beyond += 1
            return {}
        found = {kind: uri for kind, path in there.items() if (uri := self._small(path))}
        self._written += sum(map(len, found.values()))
        self._pictured += bool(found)
        return found

    def _small(self, path: Path) -> str | None:
        """Return a data URI; None for a file that is not a picture."""
        try:
            with self._image.open(path) as file:
                picture = file.convert("RGB")
        except (OSError, ValueError):
            return None
        height = round(picture.height * PICTURE_WIDTH / picture.width)
        small = picture.resize((PICTURE_WIDTH, height), self._image.Resampling.BICUBIC)
        data = io.BytesIO()
        small.save(data, "WEBP", quality=75, method=2)
        return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"

    def notes(self) -> list[str]:
        """Return notes about omitted pictures."""
        if not self._beyond:
            return []
        if self._image is None:
            return [
                tr(
                    "This page has no pictures because Pillow is not installed; run pip install "
                    '"slicer-icon-registration[scene]". The pictures are in the folders of the pairs.'
                )
            ]
        return [
            tr(
                "To keep the page small, it contains only the pictures of the worst {count} pairs; those of the other "
                "{others} are in their folders.",
                count=self._pictured,
                others=self._beyond,
            )
        ]
