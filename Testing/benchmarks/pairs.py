"""Registers real pairs with the `none` model and prints what came out, one process per pair.

    python Testing/benchmarks/pairs.py [--data ../shared/data] [--only brain liver ...] [--settings spacing=2.0 ...]
                                       [--refinement diffusion=0.25 window=3.0 ...]

The data are not part of the project (their licences differ); a pair whose files are absent is left out. Columns: Dice
is the mean over all segments that both label maps hold, before (headers alone) and after; TRE the mean landmark error
in mm; reference the mean distance in mm, over the brain, from a published rigid transform; unseen the correlation, in
the brain, of images that were not registered, of a further contrast at the same visits, under that transform and under
what was found; folding the share of the fixed
image's lattice with a Jacobian determinant <= 0; seconds are those of the registration alone, peak is the whole
process with reading, warping and measuring.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from ast import literal_eval
from functools import partial
from pathlib import Path

BRAIN, MS, HEAD, LIVER = "3_brain_labels_NC", "1_brain_ms_longitudinal", "2_head_ct_mr", "4_liver_mr_breathing_NC"
CORD, HIPPOCAMPUS, KNEE = "6_cord_t1_t2", "7_hippocampus", "5_knee_bend"
PAIRS = {
    "brain": {
        "fixed": f"{BRAIN}/1000_SS.nii.gz",
        "moving": f"{BRAIN}/1001_SS.nii.gz",
        "segmentations": (f"{BRAIN}/1000_glm.nii.gz", f"{BRAIN}/1001_glm.nii.gz"),
    },
    "liver": {
        "fixed": f"{LIVER}/exhMaster_unmasked.force_direction.mha",
        "moving": f"{LIVER}/cyc_1_6.force_direction.mha",
        "landmarks": (f"{LIVER}/exhMasterLMliver.vtk", f"{LIVER}/cyc_1_6LMliver.vtk"),
    },
    "hippocampus": {
        "fixed": f"{HIPPOCAMPUS}/images/hippocampus_056.nii.gz",
        "moving": f"{HIPPOCAMPUS}/images/hippocampus_368.nii.gz",
        "segmentations": (
            f"{HIPPOCAMPUS}/labels/hippocampus_056.nii.gz",
            f"{HIPPOCAMPUS}/labels/hippocampus_368.nii.gz",
        ),
    },
    "cord T1-T2": {
        "fixed": f"{CORD}/t1w.nii.gz",
        "moving": f"{CORD}/t2.nii.gz",
        "segmentations": (f"{CORD}/t1w_seg-manual.nii.gz", f"{CORD}/t2_seg-manual.nii.gz"),
        "longer": True,  # a quarter of the labelled cord was never scanned in the moving image
    },
    "MS T1-T1": {"fixed": f"{MS}/study1_T1W.nii.gz", "moving": f"{MS}/study2_T1W.nii.gz", "reference": "T1W"},
    "MS T1-FLAIR": {"fixed": f"{MS}/study1_T1W.nii.gz", "moving": f"{MS}/study2_FLAIR.nii.gz", "reference": "FLAIR"},
    "head CT-MR": {"fixed": f"{HEAD}/ct_example.nii.gz", "moving": f"{HEAD}/mri_t1_example.nii.gz"},
    "knee": {"fixed": f"{KNEE}/knee_fixed_R.nii.gz", "moving": f"{KNEE}/knee_moving_T.nii.gz"},
}
COLUMNS = (
    *("pair", "Dice", "TRE mm", "reference mm", "unseen", "NMI"),
    *("folding %", "similarity", "lattice", "seconds", "peak GiB"),
)


def load(name: str, data: Path):
    """The Inputs of a pair: images, and what it is measured by."""
    from IconRegistrationLib.io.images import read_image
    from IconRegistrationLib.io.landmarks import read_landmarks
    from IconRegistrationLib.io.segmentations import read_segmentation
    from IconRegistrationLib.workflow.results import Inputs

    pair = PAIRS[name]
    segmentations = [read_segmentation(data / path) for path in pair.get("segmentations", ())] or [None, None]
    landmarks = [read_landmarks(data / path) for path in pair.get("landmarks", ())] or [None, None]
    images = [read_image(data / pair[side]) for side in ("fixed", "moving")]
    if "longer" in pair:
        segmentations[0] = within_view(segmentations[0], images[1].grid)
    return Inputs(*images, *segmentations, *landmarks)


def within_view(segmentation, other):
    """Without what lies, by the headers, outside the other image's grid.

    Otherwise the best overlap has who drags what was seen over what was not: by 17 mm, on the pair of cords.
    """
    import dataclasses

    from IconRegistrationLib.spatial.sampling import coverage

    seen = coverage(other, segmentation.grid)
    return dataclasses.replace(segmentation, layers=[layer * seen for layer in segmentation.layers])


def measure(name: str, data: Path, changes: dict, refinement: dict) -> dict:
    """One pair in this process; `refinement` replaces defaults of registration.refine.FieldRefinement."""
    from IconRegistrationLib.machine import keep_freed_memory
    from IconRegistrationLib.registration import register as room
    from IconRegistrationLib.registration.settings import Settings
    from IconRegistrationLib.workflow.pipeline import compute

    room.FieldRefinement = partial(room.FieldRefinement, **refinement)
    inputs = load(name, data)
    keep_freed_memory()  # as the command does
    results = compute(inputs, Settings(**changes))
    report, registration = results.report, results.registration
    row = {
        "pair": name,
        "NMI": change(report.similarity.mutual_information, 3),
        "folding %": f"{100 * report.deformation.folding.share:.4f}",
        "similarity": registration.provenance["similarity"],
        "lattice": " x ".join(map(str, registration.provenance["lattice"]["shape"][::-1])),
        "seconds": f"{registration.provenance['seconds']['total']:.0f}",
    }
    if report.segments:
        row["Dice"] = change(report.dice, 3)
    if report.landmarks:
        row["TRE mm"] = change(report.target_registration_error, 2)
    if "reference" in PAIRS[name]:
        row["reference mm"] = change(reference_error(name, data, inputs.fixed, registration.forward), 2)
        row["unseen"] = change(unseen_correlation(name, data, inputs.fixed, registration.forward), 4)
    row["peak GiB"] = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f}"
    return row


def reference_error(name: str, data: Path, fixed, forward):
    """Change of the mean distance in mm from the pair's published transform: headers alone, then `forward`."""
    from IconRegistrationLib.quality.values import Change

    points, there = reference_points(data / MS, PAIRS[name]["reference"], fixed)
    return Change(abs_mean(points - there), abs_mean(forward.transform_points(points) - there))


def unseen_correlation(name: str, data: Path, fixed, forward):
    """Change of the correlation of the two visits' images of a contrast that was not registered, from under the pair's
    published transform to under `forward`: whether what it adds to a rigid motion is there."""
    import numpy as np
    import torch

    from IconRegistrationLib.io.images import read_image
    from IconRegistrationLib.quality.values import Change
    from IconRegistrationLib.spatial.geometry import apply_affine
    from IconRegistrationLib.spatial.sampling import as_volume, interpolate

    moving = PAIRS[name]["reference"]
    unseen = {"T1W": "FLAIR", "FLAIR": "T1W"}[moving]
    points, there = reference_points(data / MS, moving, fixed)
    places = published(data / MS)

    def values(visit, contrast, points):
        image = read_image(data / MS / f"study{visit}_{unseen}.nii.gz")
        onwards = places[visit, unseen] @ np.linalg.inv(places[visit, contrast])
        index = torch.tensor(image.grid.to_index(apply_affine(onwards, points)).T)[..., None, None]
        return interpolate(as_volume(image.array), index).flatten().numpy()

    here = values(1, "T1W", points)
    ends = (there, forward.transform_points(points))
    return Change(*(float(np.corrcoef(here, values(2, moving, end))[0, 1]) for end in ends))


def reference_points(folder: Path, moving: str, fixed):
    """Brain points of visit 1's T1W (mm, LPS) and their places in visit 2, by the data set's own transforms."""
    import numpy as np

    from IconRegistrationLib.io.images import read_image
    from IconRegistrationLib.spatial.geometry import apply_affine
    from IconRegistrationLib.spatial.sampling import sample

    places = published(folder)
    to_common = np.linalg.inv(places[1, "T1W"])
    brain = read_image(folder / "brainmask.nii.gz")
    inside = sample(brain.array.astype(np.float32), brain.grid, fixed.grid, transform=to_common) > 0.5
    points = fixed.grid.to_world(np.argwhere(inside)[::29, ::-1])
    return points, apply_affine(places[2, moving] @ to_common, points)


def published(folder: Path) -> dict:
    """4x4 from the data set's common space to the image of a visit and a contrast, mm in LPS."""
    import numpy as np

    from IconRegistrationLib.io.transforms import read_transform

    def matrix(name):
        transform = read_transform(folder / name)
        origin = np.array(transform.TransformPoint([0.0, 0.0, 0.0]))
        result = np.eye(4)
        result[:3, 3] = origin
        for axis in range(3):
            result[:3, axis] = np.array(transform.TransformPoint(np.eye(3)[axis].tolist())) - origin
        return result

    places = {(visit, "FLAIR"): matrix(f"study{visit}_FLAIR_to_common_space.txt") for visit in (1, 2)}
    for visit in (1, 2):
        places[visit, "T1W"] = matrix(f"study{visit}_T1W_intrastudy_to_FLAIR.txt") @ places[visit, "FLAIR"]
    return places


def abs_mean(vectors) -> float:
    import numpy as np

    return float(np.linalg.norm(vectors, axis=1).mean())


def change(measure, digits: int) -> str:
    return f"{measure.before:.{digits}f} -> {measure.after:.{digits}f}"


def assigned(entries: list[str]) -> dict:
    """NAME=VALUE texts as values: numbers and tuples are read as such."""
    values = dict(entry.split("=") for entry in entries)
    return {name: literal_eval(value) if value[0] in "0123456789(" else value for name, value in values.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2].parent / "shared" / "data")
    parser.add_argument("--only", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--settings", nargs="+", default=[], metavar="NAME=VALUE", help="fields of Settings")
    parser.add_argument("--refinement", nargs="+", default=[], metavar="NAME=VALUE", help="fields of FieldRefinement")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        row = measure(options.only[0], options.data, assigned(options.settings), assigned(options.refinement))
        print(json.dumps(row))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "-|" * len(COLUMNS))
    for name in options.only:
        if not (options.data / PAIRS[name]["fixed"]).exists():
            print(f"| {name} | not at {options.data} |")
            continue
        command = [sys.executable, __file__, "--one", "--only", name, "--data", options.data]
        for option in ("settings", "refinement"):
            if getattr(options, option):
                command += [f"--{option}", *getattr(options, option)]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            print(f"| {name} | failed: {run.stderr.strip().splitlines()[-1]} |", flush=True)
            continue
        row = json.loads(run.stdout.strip().splitlines()[-1])
        print("| " + " | ".join(str(row.get(column, "")) for column in COLUMNS) + " |", flush=True)


if __name__ == "__main__":
    main()
