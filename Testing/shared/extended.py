"""The library with something added through its seams: a copy of it, with lines inserted, in a process of its own.

Tables are read when modules are imported, so that what a newcomer would write is written, and nothing is patched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

TESTING = Path(__file__).parents[1]
MODULE = TESTING.parent / "IconRegistration"


def extend(folder: Path, insertions: dict[str, list[tuple[str, str]]]) -> Path:
    """Copy the module to `folder`, insert lines, and return the copy's folder.

    insertions: by file of the library ("registration/settings.py"): lines as they are in it, once, and what to insert
    above each.
    """
    copy = folder / "IconRegistration"
    shutil.copytree(MODULE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, lines in insertions.items():
        path = copy / "IconRegistrationLib" / name
        text = path.read_text(encoding="utf-8")
        for anchor, inserted in lines:
            assert text.count(f"\n{anchor}\n") == 1, f"{name}: {anchor!r}"
            text = text.replace(f"\n{anchor}\n", f"\n{inserted}\n{anchor}\n")
        path.write_text(text, encoding="utf-8")
    return copy


def run_extended(copy: Path, *arguments: str | Path) -> subprocess.CompletedProcess:
    """Run Python with the copied library, the harness and what tests share on its path."""
    path = [copy, TESTING / "gui", TESTING / "shared"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, cwd=copy.parent, capture_output=True, text=True
    )


#: A similarity and a setting, each as docs/extending.md shows.
REGISTRATION = {
    "registration/similarities.py": [
        (
            "# What is chosen where nothing is said.",
            """
def _mean_squares(**options) -> LocalSimilarity:
    from .similarity import LocalSimilarity

    class MeanSquares(LocalSimilarity):
        def compare(self, warped, fixed):
            return (warped - fixed) ** 2

    return MeanSquares()


SIMILARITIES["msd"] = SimilarityEntry(tr("Mean squared difference"), tr("(A o phi - B)^2"), _mean_squares, gain=30.0)
""",
        )
    ],
    "registration/settings.py": [
        (
            "    # newer than version 0.1: see `identity`",
            '    patience: int = setting(3, tr("how often a friend may ask"), "TIMES", least=1, below=9)',
        )
    ],
}

#: A role of the segments, a verdict and a preset, each as docs/extending.md shows.
WORKFLOW = {
    "workflow/presets.py": [
        (
            "def builtin_presets() -> list[Preset]:",
            """
PRESETS["quick"] = Preset("quick", tr("Quick look"), tr("Five steps, coarsely."), {"steps": 5, "spacing": 9.0})


""",
        )
    ],
    "workflow/roles.py": [
        (
            "def complete_roles(given: Mapping[str, bool] | None = None) -> dict[str, bool]:",
            """
def _outside(segmentation: Segmentation) -> Image:
    mask = segments_mask(segmentation)
    return replace(mask, array=1 - mask.array)


SEGMENT_ROLES["ignore"] = Role(
    tr("ignore"),
    tr("What lies inside the segments does not count."),
    default=False,
    needs="any",
    apply=lambda inputs: confine(inputs, _outside),
)


""",
        )
    ],
    "quality/verdicts.py": [
        (
            "#: Every verdict by its measure, in the order of the report.",
            """
def _displacement(measured: Measured) -> Verdict:
    largest = measured.deformation.displacement.maximum
    return Verdict(tr("Displacement"), largest, AMBER, tr("up to {largest:.1f} mm", largest=largest))


""",
        ),
        (
            '    "HD95": VerdictEntry("mean lower than before", "unchanged", _hd95),',
            '    "Displacement": VerdictEntry("never", "always", _displacement),',
        ),
    ],
}
