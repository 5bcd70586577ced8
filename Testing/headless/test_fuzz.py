"""The whole path, from any two volumes on the disk to the folder of results: one sentence, or results that hold.

`pytest -m nightly Testing/headless/test_fuzz.py` runs ten thousand cases, other ones every time.
"""

import contextlib
import io
import json
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from IconRegistrationLib.batch import pair as one_pair
from IconRegistrationLib.batch.command import main
from IconRegistrationLib.batch.commands import register
from IconRegistrationLib.registration import align
from IconRegistrationLib.registration.objective import FieldRefinement, level_shape
from IconRegistrationLib.spatial.geometry import Grid

itk = pytest.importorskip("itk")

CASES, NIGHTLY_CASES = 40, 10_000
TRANSFORMS = {"transform": "forward", "inverse": "backward"}


pytestmark = pytest.mark.usefixtures("one_thread")


# --------------------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Volume:
    """A file: format, stored type, what is in it, and where it lies. direction: 3x3, columns are the axes, LPS."""

    suffix: str
    dtype: str
    content: str
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: np.ndarray = field(repr=False)
    seed: int = 0

    def array(self) -> np.ndarray:
        """[k, j, i]"""
        random = np.random.default_rng(self.seed)
        shape = self.size[::-1]
        places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
        centre = random.uniform(-0.3, 0.3, (3, 1, 1, 1))
        values = 80 * np.exp(-4 * ((places - centre) ** 2).sum(0)) + 20 * (np.abs(places - centre).max(0) < 0.4)
        values = values + random.normal(0, 2, shape) + 5
        values = {
            "blob": values,
            "ct": 15 * values - 1000,
            "noise": random.normal(60, 20, shape),
            "binary": values > 40,
            "constant": np.full(shape, 7.0),
            "one voxel": np.arange(values.size).reshape(shape) == values.size // 2,
            "nan": np.where(values > 80, np.nan, values),
            "infinite": np.where(values > 80, np.inf, values),
            "tiny": values * 1e-30,
            "huge": values * 1e30,
            "offset": values + 1e7,
        }[self.content]
        dtype = np.dtype(self.dtype)
        if dtype.kind in "iu":
            values = np.nan_to_num(values).clip(np.iinfo(dtype).min, min(np.iinfo(dtype).max, 2**53))
        with np.errstate(over="ignore"):
            return values.astype(dtype)

    def affine(self) -> np.ndarray:
        """Voxel (i, j, k) -> mm, LPS."""
        affine = np.eye(4)
        affine[:3, :3] = self.direction * self.spacing
        affine[:3, 3] = self.origin
        return affine

    def write(self, folder: Path, name: str) -> Path:
        """nibabel writes NIfTI, ITK the rest; as the format's users do."""
        path, array = folder / f"{name}{self.suffix}", self.array()
        if ".nii" in self.suffix:
            image = nibabel.Nifti1Image(array.T, np.diag([-1, -1, 1, 1]) @ self.affine(), dtype=array.dtype)
            nibabel.save(image, path)
            return path
        image = itk.image_from_array(array)
        image.SetSpacing(list(self.spacing))
        image.SetOrigin(list(self.origin))
        image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(self.direction)))
        itk.imwrite(image, str(path), compression=self.seed % 2 == 0)
        return path


def rotation(vector) -> np.ndarray:
    """Rodrigues' rotation about a vector of that many radians."""
    angle = np.linalg.norm(vector)
    if angle < 1e-9:
        return np.eye(3)
    x, y, z = np.asarray(vector) / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def mostly(usual, *others):
    """Half of the draws from `usual`."""
    return st.one_of(usual, st.one_of(*others))


@st.composite
def directions(draw) -> np.ndarray:
    """Axes permuted and flipped, turned a little, much, or not at all."""
    order, signs = draw(st.permutations(range(3))), draw(st.tuples(*[st.sampled_from([1, -1])] * 3))
    small, large = st.floats(-0.3, 0.3), st.floats(-3, 3)
    turn = draw(st.one_of(st.just((0, 0, 0)), st.tuples(small, small, small), st.tuples(large, large, large)))
    return rotation(turn) @ (np.eye(3)[:, list(order)] * signs)


USUAL = ("blob", "ct", "noise", "binary")
ODD = ("constant", "one voxel", "nan", "infinite", "tiny", "huge", "offset")
#: What ITK's Python writes, and what nibabel writes.
ITK_TYPES = ("uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")
NIFTI_TYPES = (*ITK_TYPES, "int8", "int64", "uint64", ">i2", ">f4")


@st.composite
def volumes(draw, scale: float) -> Volume:
    """scale: the usual voxel in mm, and the unit of places."""
    suffix = draw(st.sampled_from([".nii", ".nii.gz", ".nrrd", ".mha"]))
    usual_side, any_side = st.integers(6, 18), st.integers(1, 24)
    sides = draw(mostly(st.tuples(*[usual_side] * 3), st.tuples(*[usual_side] * 3), st.tuples(*[any_side] * 3)))
    steps = draw(st.tuples(*[st.floats(0.5, 1.5)] * 3))
    middle = draw(mostly(st.just((0, 0, 0)), st.tuples(*[st.floats(-3, 3)] * 3), st.tuples(*[st.floats(-60, 60)] * 3)))
    spacing = tuple(scale * step for step in steps)
    direction = draw(directions())
    extent = np.array(spacing) * (np.array(sides) - 1)
    origin = np.array(middle) * scale - direction @ extent / 2
    return Volume(
        suffix,
        draw(st.sampled_from(NIFTI_TYPES if ".nii" in suffix else ITK_TYPES)),
        draw(mostly(st.sampled_from(USUAL), st.sampled_from(USUAL), st.sampled_from(ODD))),
        sides,
        spacing,
        tuple(map(float, origin)),
        direction,
        draw(st.integers(0, 99)),
    )


#: Options that keep a run short.
OPTIONS = st.fixed_dictionaries(
    {
        "--align": st.sampled_from(["none", "centre", "mass", "mass", "rigid", "similarity", "affine"]),
        "--refine": st.sampled_from(["off", "field"]),
        "--steps": st.sampled_from(["1", "2"]),
        "--spacing": st.sampled_from(["16", "40", "1000"]),
    },
    optional={
        "--similarity": st.sampled_from(["lncc", "lncc2", "mind"]),
        "--padding": st.sampled_from([0, 0.3, 5]),  # in voxels here
        "--fixed-modality": st.sampled_from(["ct", "mri"]),
        "--moving-modality": st.sampled_from(["ct", "mri"]),
        "--moving-resolution": st.just(None),
    },
)


@st.composite
def cases(draw) -> tuple[Volume, Volume, dict, frozenset]:
    """(fixed, moving, options, what else is given)."""
    scale = draw(mostly(st.just(10.0), st.just(10.0), st.sampled_from([1e-3, 0.05, 1.0, 100.0, 1e4])))
    fixed = draw(volumes(scale))
    moving = draw(volumes(scale * draw(mostly(st.just(1.0), st.just(1.0), st.sampled_from([0.5, 2.0])))))
    options = draw(OPTIONS)
    if "--padding" in options:
        options["--padding"] = str(scale * options["--padding"])
    extras = draw(st.frozensets(st.sampled_from(["labels", "guide", "mask", "region", "landmarks"]), max_size=2))
    return fixed, moving, options, extras


# ------------------------------------------------------------------------------------------------------ what must hold


def labels_of(volume: Volume, folder: Path, name: str) -> str:
    """A label map over the volume, of its bright half."""
    array = np.nan_to_num(volume.array().astype(np.float64))
    image = itk.image_from_array((array > np.median(array)).astype(np.uint8))
    image.SetSpacing(list(volume.spacing))
    image.SetOrigin(list(volume.origin))
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(volume.direction)))
    itk.imwrite(image, str(folder / f"{name}.nrrd"))
    return str(folder / f"{name}.nrrd")


def landmarks_of(volume: Volume, folder: Path, name: str) -> str:
    """Three points of the volume."""
    middle = (np.array(volume.size) - 1) / 2
    places = [(volume.affine() @ [*(middle * share), 1])[:3] for share in (0.5, 1.0, 1.5)]
    points = [{"label": str(n), "position": place.tolist()} for n, place in enumerate(places)]
    document = {"markups": [{"coordinateSystem": "LPS", "controlPoints": points}]}
    (folder / f"{name}.mrk.json").write_text(json.dumps(document))
    return str(folder / f"{name}.mrk.json")


def arguments_of(case, folder: Path) -> list[str]:
    fixed, moving, options, extras = case
    words = ["register", "--out", str(folder / "out"), "--no-scene", "--no-pictures"]
    for side, volume in (("fixed", fixed), ("moving", moving)):
        words += [f"--{side}", str(volume.write(folder, side))]
        if extras & {"labels", "guide"}:
            words += [f"--{side}-segmentation", labels_of(volume, folder, f"{side} labels")]
        if "mask" in extras:
            words += [f"--{side}-mask", labels_of(volume, folder, f"{side} mask")]
    words += ["--guide"] if "guide" in extras else []
    if "region" in extras:
        words += ["--region", labels_of(fixed, folder, "region")]
    if "landmarks" in extras:
        words += ["--landmarks", landmarks_of(fixed, folder, "a"), landmarks_of(moving, folder, "b")]
    return words + [word for option, value in options.items() for word in (option, value) if word is not None]


def run(arguments):
    """(exit code, stderr, the results if there are any)."""
    seen = []

    def spy(*given):
        seen.append(one_pair.register_pair(*given))
        return seen[-1]

    stderr = io.StringIO()
    with (
        mock.patch.object(register, "register_pair", spy),
        contextlib.redirect_stderr(stderr),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        code = main(arguments)
    return code, stderr.getvalue(), seen[0][0] if seen else None


def holds(case) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        arguments = arguments_of(case, folder)
        code, stderr, results = run(arguments)
        assert code in (0, 2), stderr
        if code == 2:
            (sentence,) = (s for s in stderr.splitlines() if not re.fullmatch(r"\w+ +\d+%.*", s))
            assert sentence.endswith((".", "?"))
            assert not (folder / "out").exists()
            assert results is None, "refused when all the work was done"
            event("refused: " + re.sub(r"/\S+|[-\d.]+", "#", sentence)[17:90])
            return
        event("registered")
        holds_of_results(case, folder / "out", results)
    finally:
        shutil.rmtree(folder)


def holds_of_results(case, out: Path, results) -> None:
    fixed, moving, options, extras = case
    expected = {"warped.nii.gz", "report.json", "report.csv", "report.txt"}
    expected |= {f"{name}.{suffix}" for name in TRANSFORMS for suffix in ("h5", "nii.gz")}
    expected |= {"warped_segmentation.seg.nrrd"} if extras & {"labels", "guide"} else set()
    expected |= {"warped_landmarks.mrk.json"} if "landmarks" in extras else set()
    expected |= {"warped_fine.nii.gz"} if "--moving-resolution" in options else set()
    assert {path.name for path in out.iterdir()} == expected
    for name, of in TRANSFORMS.items():
        volume, other = (fixed, moving) if of == "forward" else (moving, fixed)
        field = getattr(results.registration, of)
        assert np.isfinite(field.displacement).all()
        points = field.grid.to_world(np.random.default_rng(0).uniform(0, np.array(field.grid.size) - 1, (12, 3)))
        points = np.vstack([points[volume_contains(volume, points)], volume_corners(volume)])
        ours = field.transform_points(points)
        (transform,) = itk.transformread(str(out / f"{name}.h5"))
        theirs = np.array([transform.TransformPoint(point.tolist()) for point in points])
        # single precision of the displacement, which is as large as the images are far apart
        tolerance = 1e-5 * (reach(volume) + reach(other) + np.abs(field.displacement).max())
        assert np.abs(ours - theirs).max() <= tolerance
    holds_of_inverse(fixed, moving, results)
    holds_of_warped(fixed, moving, out)
    json.loads((out / "report.json").read_text())


def holds_of_inverse(fixed, moving, results) -> None:
    """There and back, where both images are: exact without a refinement; after a step or two of it, too few for
    consistency, no further off than such steps can move a place."""
    registration = results.registration
    nodes = np.stack(np.meshgrid(*map(np.arange, fixed.size), indexing="ij"), -1).reshape(-1, 3)
    points = Grid(fixed.size[::-1], fixed.affine()).to_world(nodes)
    moved = registration.forward.transform_points(points)
    inside = volume_contains(moving, moved)
    if not inside.any():
        return
    error = np.linalg.norm(registration.backward.transform_points(moved) - points, axis=1)[inside]
    exact = 1e-5 * (reach(fixed) + reach(moving))
    if registration.provenance["refinement"] == "off":
        assert error.max() <= exact
    else:
        there, back = most_moved(registration)
        magnified = np.linalg.norm(np.linalg.inv(registration.linear[:3, :3]), 2)
        assert error.max() <= magnified * there + back + exact


def most_moved(registration) -> tuple[float, float]:
    """mm by which the refinement can displace a place, fixed -> moving and back: one learning rate a step and axis,
    in samples of the level; Adam takes no larger steps, and a spline's values are averages of its coefficients."""
    lattices = SimpleNamespace(fixed_lattice=registration.fixed_lattice, moving_lattice=registration.moving_lattice)
    levels = [level_shape(lattices, distance) for distance in FieldRefinement.levels]
    rate = FieldRefinement.learning_rate * registration.provenance["settings"]["steps"]

    return tuple(
        rate * float(np.linalg.norm(sum(lattice.extent / level[::-1] for level in levels)))
        for lattice in (registration.moving_lattice, registration.fixed_lattice)
    )


def holds_of_warped(fixed, moving, out) -> None:
    warped = nibabel.load(out / "warped.nii.gz")
    assert warped.shape == fixed.size
    values = np.asanyarray(warped.dataobj)
    assert np.isfinite(values).all()
    stored = np.dtype(moving.dtype).newbyteorder("=")
    if stored.kind == "f":
        assert values.dtype == np.float32
    elif stored.itemsize < 8 and stored != np.int8:
        assert values.dtype == stored
    affine = np.diag([-1, -1, 1, 1]) @ warped.affine
    assert Grid(fixed.size[::-1], affine).is_close(Grid(fixed.size[::-1], fixed.affine()), 1e-5 * reach(fixed))


def reach(volume: Volume) -> float:
    """The largest coordinate in mm: what single precision, in which NIfTI keeps geometry, is relative to."""
    return float(np.abs(volume_corners(volume)).max())


def volume_corners(volume: Volume) -> np.ndarray:
    return Grid(volume.size[::-1], volume.affine()).corners()


def volume_contains(volume: Volume, points) -> np.ndarray:
    return Grid(volume.size[::-1], volume.affine()).contains(points)


# --------------------------------------------------------------------------------------------------------------- tests

QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


@settings(max_examples=CASES, derandomize=True, **QUIET)
@given(cases())
def test_any_pair_gives_a_sentence_or_results_that_hold(case):
    holds(case)


def test_a_small_crop_against_a_whole_body_takes_no_more_than_the_body_is_worth():
    """A lattice as fine as suits a crop of 20 mm has 1.2 billion voxels over a body: 25 GB."""
    crop, body = Grid((40, 40, 40), np.diag([0.5, 0.5, 0.5, 1])), Grid((600, 512, 512), np.eye(4))
    for voxels in (align.COARSE_VOXELS, align.FINE_VOXELS):
        lattices = align._lattices(crop, body, voxels)
        assert max(np.prod(lattice.shape) for lattice in lattices) <= 1.1 * align.MOST_TIMES_AS_MANY * voxels


@pytest.mark.nightly
@settings(max_examples=NIGHTLY_CASES, **QUIET)
@given(cases())
def test_any_of_very_many_pairs(case):
    holds(case)
