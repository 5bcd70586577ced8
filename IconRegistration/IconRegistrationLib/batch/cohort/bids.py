"""Find the pairs of a BIDS dataset."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ...errors import InputError
from ...registration.settings import Settings
from .entries import Entry, _entries
from .rows import _few, _read_text, _Row


class _Scan(NamedTuple):
    """An image of a BIDS folder."""

    subject: str  #: "sub-01"
    session: str | None  #: "ses-01"
    image: str
    segmentation: str | None

    @property
    def name(self) -> str:
        return _joined(self.subject, self.session)


def bids_entries(
    folder: str | Path,
    suffix: str = "T1w",
    defaults: Settings | None = None,
    guide: bool = False,
    atlas: Mapping[str, str] | None = None,
) -> tuple[list[Entry], list[str]]:
    """Pairs of a BIDS folder, and what was left out and why.

    Every later session of a subject is brought to its first one; with an atlas, every image is one side of a pair.
    Images are sub-*/[ses-*/]anat/sub-*_<suffix>.nii[.gz]; a segmentation is the one sub-*_[ses-*_]*_dseg.nii[.gz] below
    derivatives in the image's own space. Sessions go by acq_time of sub-*_sessions.tsv where that has all of them,
    else by their names, in which numbers count as numbers.

    Raises InputError for a folder without such images, or with several of one session.
    """
    folder = Path(os.path.expanduser(folder))
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the root of a BIDS data set.")
    subjects, notes = _scans(folder, suffix)
    if atlas:
        rows = [_bids_row(scan.name, image=scan) for scans in subjects.values() for scan in scans]
    else:
        single = [subject for subject, scans in subjects.items() if len(scans) == 1]
        if len(single) == len(subjects):
            raise InputError(
                f"No subject of {folder} has two sessions with a *_{suffix} image; give --to-atlas or --from-atlas, or "
                "name the pairs in a manifest."
            )
        if single:
            notes.append(f"Left out, for having one session: {_few(single)}.")
        rows = [
            _bids_row(f"{later.name}_to_{scans[0].session}", fixed=scans[0], moving=later)
            for scans in subjects.values()
            for later in scans[1:]
        ]
    return _entries(str(folder), rows, "", defaults or Settings(), guide, atlas), notes


def _bids_row(id: str, **scans: _Scan) -> _Row:
    """A row as a manifest would have it; `scans` by column."""
    cells = {"id": id, **{column: scan.image for column, scan in scans.items()}}
    for column, scan in scans.items():
        if scan.segmentation:
            cells["segmentation" if column == "image" else f"{column}_segmentation"] = scan.segmentation
    return _Row(id, cells)


def _scans(folder: Path, suffix: str) -> tuple[dict[str, list[_Scan]], list[str]]:
    """Images by subject, the first session first, and a sentence on segmentations that are not used."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", suffix):
        raise InputError(f"--bids-suffix is {suffix!r}; give the end of the images' names, such as T1w or run-1_T1w.")
    images = _by_session(
        path for where in ("sub-*/anat", "sub-*/ses-*/anat") for path in folder.glob(f"{where}/*_{suffix}.nii*")
    )
    if not images:
        raise InputError(
            f"{folder} holds no sub-*/[ses-*/]anat/sub-*_{suffix}.nii.gz; give the root of a BIDS data set, and with "
            "--bids-suffix what its images end with."
        )
    several = [_joined(*key) for key, paths in images.items() if len(paths) > 1]
    if several:
        raise InputError(
            f"{folder} holds several *_{suffix} images of one session: {_few(several)}; choose with --bids-suffix, "
            f"such as run-1_{suffix}, or name the pairs in a manifest."
        )
    segmentations = _by_session(
        path
        for path in (folder / "derivatives").rglob("sub-*_dseg.nii*")
        if not re.search(r"_space-(?!orig_)", path.name)
    )
    subjects, unclear = defaultdict(list), []
    for (subject, session), (image,) in sorted(images.items(), key=lambda item: _natural(_joined(*item[0]))):
        found = segmentations.get((subject, session), [])
        subjects[subject].append(_Scan(subject, session, image, found[0] if len(found) == 1 else None))
        if len(found) > 1:
            unclear.append(_joined(subject, session))
    for subject, scans in subjects.items():
        times = _acquisition_times(folder / subject / f"{subject}_sessions.tsv")
        if all(scan.session in times for scan in scans):
            scans.sort(key=lambda scan: times[scan.session])
    notes = [f"Segmentations not used, for there are several in derivatives: {_few(unclear)}."] if unclear else []
    return subjects, notes


def _by_session(paths: Iterable[Path]) -> dict[tuple[str, str | None], list[str]]:
    """NIfTI files by the subject and the session in their names."""
    found = defaultdict(list)
    for path in paths:
        match = re.fullmatch(r"(sub-[^_]+)_(?:(ses-[^_]+)_)?.+\.nii(\.gz)?", path.name)
        if match:
            found[match[1], match[2]].append(os.path.abspath(path))
    return found


def _joined(subject: str, session: str | None) -> str:
    return f"{subject}_{session}" if session else subject


def _natural(name: str) -> list:
    """A key by which ses-2 comes before ses-10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def _acquisition_times(path: Path) -> dict[str, str]:
    """acq_time (ISO 8601) by session_id of a sessions.tsv; what is not there is left out."""
    if not path.is_file():
        return {}
    rows = csv.DictReader(io.StringIO(_read_text(path)), delimiter="\t", quoting=csv.QUOTE_NONE)
    times = {row.get("session_id"): row.get("acq_time") for row in rows}
    return {session: time for session, time in times.items() if time and time != "n/a"}
