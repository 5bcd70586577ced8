"""Name and write the files that a registration leaves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..text import tr

if TYPE_CHECKING:
    from .results import Results

#: Every file that a run may write, and what it is; shown through `text.translated`.
FILES = {
    "pictures/before.png": tr("fixed and moving as they were: both outlines of every structure in its colour"),
    "pictures/after.png": tr("fixed and warped, with the deformation grid and the outlines of both"),
    "pictures/grid.png": tr("the deformation without its linear part: the moving space's grid on the fixed image"),
    "scene.mrb": tr("drop it on 3D Slicer: both images, the moving one under the live transform, and all that follows"),
    "report.txt": tr("how good it is, to read"),
    "report.json": tr("the same for programs, with the provenance"),
    "report.csv": tr("the same for a spreadsheet"),
    "warped.nii.gz": tr("the moving image on the fixed image's grid"),
    "warped_fine.nii.gz": tr("the moving image in the fixed image's box, at its own resolution"),
    "warped_segmentation.seg.nrrd": tr("the moving segmentation on the fixed image's grid"),
    "warped_landmarks.mrk.json": tr("the moving landmarks in the fixed image"),
    "transform.nii.gz": tr("fixed -> moving, a displacement image: put MOVING data under it in Slicer"),
    "transform.h5": tr("the same as an ITK transform"),
    "inverse.nii.gz": tr("moving -> fixed"),
    "inverse.h5": tr("the same as an ITK transform"),
    "row.json": tr("what a cohort knows of the pair"),
    "inputs/fixed.nii.gz": tr("the phantom in one breathing state"),
    "inputs/moving.nii.gz": tr("the phantom in the other"),
    "inputs/fixed.seg.nrrd": tr("its structures"),
    "inputs/moving.seg.nrrd": tr("its structures"),
    "inputs/fixed.mrk.json": tr("its landmarks"),
    "inputs/moving.mrk.json": tr("its landmarks"),
}


def files_in(folder: Path) -> list[str]:
    """List which of `FILES` exist in a folder."""
    return [name for name in FILES if (folder / name).is_file()]


def write_values(folder: Path, results: Results) -> None:
    """Write transforms, warped data and the report into an existing folder, under the names of `FILES`.

    The scene and the pictures of Slicer, which need its libraries, are added by batch/outputs.py.

    Parameters
    ----------
    folder : Path
        Where to write.
    results : Results
        Transforms map mm to mm (LPS); "transform" from the fixed to the moving image, "inverse" back.

    Raises
    ------
    OSError
        Where the disk does not take them.
    """
    from ..io.images import write_image
    from ..io.landmarks import write_landmarks
    from ..io.segmentations import write_segmentation
    from ..io.transforms import write_field

    registration = results.registration
    for name, field in (("transform", registration.forward), ("inverse", registration.backward)):
        write_field(field, folder / f"{name}.nii.gz")
        write_field(field, folder / f"{name}.h5")
    write_image(results.warped, folder / "warped.nii.gz")
    if results.warped_fine is not None:
        write_image(results.warped_fine, folder / "warped_fine.nii.gz")
    if results.warped_segmentation is not None:
        write_segmentation(results.warped_segmentation, folder / "warped_segmentation.seg.nrrd")
    if results.warped_landmarks is not None:
        write_landmarks(results.warped_landmarks, folder / "warped_landmarks.mrk.json")
    results.report.write_json(folder / "report.json")
    results.report.write_csv(folder / "report.csv")
    (folder / "report.txt").write_text(results.report.table() + "\n", encoding="utf-8")
