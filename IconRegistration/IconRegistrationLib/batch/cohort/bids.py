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
from ...text import tr
from .entries import Entry, entries_from_rows
from .rows import Row, abbreviate, read_text_file


class _Scan(NamedTuple):
    """An image of a BIDS folder: "sub-01", "ses-01", paths."""

    subject: str
    session: str | None
    image: str
    segmentation: str | None

    @property
    def name(self) -> str:
        return _joined(self.subject, self.session)


def bids_entries(
    folder: str | Path,
    suffix: str = "T1w",
    defaults: Settings | None = None,
    segment_roles: Mapping[str, bool] | None = None,
    atlas: Mapping[str, str] | None = None,
) -> tuple[list[Entry], list[str]]:
    """Return the pairs of a BIDS folder, and notes on omitted images.

    Every later session of a subject is registered to its first one; with an atlas, every image is one side of a pair.
    Images are ``sub-*/[ses-*/]anat/sub-*_<suffix>.nii[.gz]``; a segmentation is the only
    ``sub-*_[ses-*_]*_dseg.nii[.gz]`` below ``derivatives`` in the image's own space. Sessions are sorted by the
    ``acq_time`` of ``sub-*_sessions.tsv`` if that lists all of them, else by their names, in which numbers are compared
    as numbers.

    Parameters
    ----------
    folder : str or Path
        Root of the data set.
    suffix : str
        How the names of the images end.
    defaults : Settings, optional
        Settings of all pairs.
    segment_roles : mapping, optional
        Roles of the segments that are switched on or off, as `workflow.roles.complete_roles` takes them.
    atlas : mapping, optional
        Files of the atlas by role.

    Returns
    -------
    entries : list of Entry
    notes : list of str

    Raises
    ------
    InputError
        For a folder without such images, or with several of one session.
    """
    folder = Path(os.path.expanduser(folder))
    if not folder.is_dir():
        raise InputError(tr("{folder} is not a folder; give the root of a BIDS data set.", folder=folder))
    subjects, notes = _scans(folder, suffix)
    if atlas:
        rows = [_bids_row(scan.name, image=scan) for scans in subjects.values() for scan in scans]
    else:
        single = [subject for subject, scans in subjects.items() if len(scans) == 1]
        if len(single) == len(subjects):
            raise InputError(
                tr(
                    "No subject of {folder} has two sessions with a *_{suffix} image; give --to-atlas or --from-atlas, "
                    "or name the pairs in a manifest.",
                    folder=folder,
                    suffix=suffix,
                )
            )
        if single:
            notes.append(tr("Left out because they have only one session: {subjects}.", subjects=abbreviate(single)))
        rows = [
            _bids_row(f"{later.name}_to_{scans[0].session}", fixed=scans[0], moving=later)
            for scans in subjects.values()
            for later in scans[1:]
        ]
    return entries_from_rows(str(folder), rows, "", defaults or Settings(), segment_roles, atlas), notes


def _bids_row(id: str, **scans: _Scan) -> Row:
    """Return the row that a manifest would have; `scans` by column."""
    cells = {"id": id, **{column: scan.image for column, scan in scans.items()}}
    for column, scan in scans.items():
        if scan.segmentation:
            cells["segmentation" if column == "image" else f"{column}_segmentation"] = scan.segmentation
    return Row(id, cells)


def _scans(folder: Path, suffix: str) -> tuple[dict[str, list[_Scan]], list[str]]:
    """Return images by subject, the first session first, and notes on segmentations that are not used."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", suffix):
        raise InputError(
            tr(
                "--bids-suffix is {suffix!r}; give the end of the images' names, such as T1w or run-1_T1w.",
                suffix=suffix,
            )
        )
    images = _by_session(
        path for where in ("sub-*/anat", "sub-*/ses-*/anat") for path in folder.glob(f"{where}/*_{suffix}.nii*")
    )
    if not images:
        raise InputError(
            tr(
                "{folder} contains no sub-*/[ses-*/]anat/sub-*_{suffix}.nii.gz; give the root of a BIDS data set, and "
                "the end of its images' names with --bids-suffix.",
                folder=folder,
                suffix=suffix,
            )
        )
    several = [_joined(*key) for key, paths in images.items() if len(paths) > 1]
    if several:
        raise InputError(
            tr(
                "{folder} contains several *_{suffix} images of one session: {sessions}; choose with --bids-suffix, "
                "such as run-1_{suffix}, or name the pairs in a manifest.",
                folder=folder,
                suffix=suffix,
                sessions=abbreviate(several),
            )
        )
    segmentations = _by_session(
        path
        for path in (folder / "derivatives").rglob("sub-*_dseg.nii*")
        if not re.search(r"_space-(?!orig_)", path.name)
    )
    subjects: dict[str, list[_Scan]] = defaultdict(list)
    unclear = []
    for (subject, session), (image,) in sorted(images.items(), key=lambda item: _natural(_joined(*item[0]))):
        found = segmentations.get((subject, session), [])
        subjects[subject].append(_Scan(subject, session, image, found[0] if len(found) == 1 else None))
        if len(found) > 1:
            unclear.append(_joined(subject, session))
    for subject, scans in subjects.items():
        times = _acquisition_times(folder / subject / f"{subject}_sessions.tsv")
        if all(scan.session in times for scan in scans):
            scans.sort(key=lambda scan: times[scan.session or ""])
    if not unclear:
        return subjects, []
    note = tr("Segmentations not used because derivatives has several: {sessions}.", sessions=abbreviate(unclear))
    return subjects, [note]


def _by_session(paths: Iterable[Path]) -> dict[tuple[str, str | None], list[str]]:
    """Return NIfTI files by the subject and the session in their names."""
    found = defaultdict(list)
    for path in paths:
        match = re.fullmatch(r"(sub-[^_]+)_(?:(ses-[^_]+)_)?.+\.nii(\.gz)?", path.name)
        if match:
            found[match[1], match[2]].append(os.path.abspath(path))
    return found


def _joined(subject: str, session: str | None) -> str:
    return f"{subject}_{session}" if session else subject


def _natural(name: str) -> list:
    """Return a key that sorts ses-2 before ses-10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def _acquisition_times(path: Path) -> dict[str, str]:
    """Return acq_time (ISO 8601) by session_id of a sessions.tsv; unknown ones are omitted."""
    if not path.is_file():
        return {}
    rows = csv.DictReader(io.StringIO(read_text_file(path)), delimiter="\t", quoting=csv.QUOTE_NONE)
    times = {row.get("session_id"): row.get("acq_time") for row in rows}
    return {session: time for session, time in times.items() if session and time and time != "n/a"}
