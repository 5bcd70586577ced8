"""io/formats: a format that is appended to the list of its kind is read and written by the commands, and told of."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from IconRegistrationLib.batch.command import main
from IconRegistrationLib.errors import InputError
from IconRegistrationLib.io.formats import Format, format_of, listed, stem_of, suffixes_of
from IconRegistrationLib.io.images import IMAGE_FORMATS, image_header, read_image, write_image
from IconRegistrationLib.io.landmarks import LANDMARK_FORMATS, read_landmarks, write_landmarks
from IconRegistrationLib.io.segmentations import SEGMENTATION_FORMATS, read_segmentation, write_segmentation
from IconRegistrationLib.io.transforms import TRANSFORM_FORMATS, read_field, read_transform, write_field
from IconRegistrationLib.spatial.displacement import DisplacementField
from IconRegistrationLib.spatial.geometry import Grid, Image, Landmarks, Segment, Segmentation

COMMAND = Path(__file__).parents[2] / "docs" / "command.md"
TABLES = {
    "image": IMAGE_FORMATS,
    "segmentation": SEGMENTATION_FORMATS,
    "landmarks": LANDMARK_FORMATS,
    "transform": TRANSFORM_FORMATS,
}
GRID = Grid.from_parts((20, 18, 16), (2.0, 2.0, 2.0), (-20.0, 10.0, 5.0))


# ------------------------------------------------------------------------------ one toy of each kind: numpy's archives


def save(path, **arrays):
    with open(path, "wb") as file:  # np.savez would append an ending of its own
        np.savez(file, **arrays)


def write_toy_image(image, path):
    save(path, array=image.array, affine=image.grid.affine)


def read_toy_image(path):
    stored = np.load(path)
    return Image(stored["array"], Grid(stored["array"].shape, stored["affine"]))


def write_toy_segmentation(segmentation, path):
    names = {segment.name: segment.value for segment in segmentation.segments}
    save(path, labels=segmentation.layers[0], affine=segmentation.grid.affine, names=json.dumps(names))


def read_toy_segmentation(path):
    stored = np.load(path)
    segments = tuple(Segment(name, value) for name, value in json.loads(str(stored["names"])).items())
    return Segmentation((stored["labels"],), segments, Grid(stored["labels"].shape, stored["affine"]))


def write_toy_landmarks(landmarks, path):
    save(path, points=landmarks.points, labels=np.array(landmarks.labels))


def read_toy_landmarks(path):
    stored = np.load(path)
    return Landmarks(stored["points"], tuple(map(str, stored["labels"])))


def write_toy_field(field, path):
    save(path, displacement=field.displacement, affine=field.grid.affine)


def read_toy_field(path):
    stored = np.load(path)
    return DisplacementField(stored["displacement"], Grid(stored["displacement"].shape[:3], stored["affine"]))


@pytest.fixture
def toys():
    """Append a toy format of each kind, as a program that uses the library does."""
    added = {
        "image": Format("toy image", (".toyi",), read_toy_image, write_toy_image),
        "segmentation": Format("toy segmentation", (".toys",), read_toy_segmentation, write_toy_segmentation),
        "landmarks": Format("toy landmarks", (".toyl",), read_toy_landmarks, write_toy_landmarks),
        "transform": Format("toy field", (".toyt",), read_toy_field, write_toy_field),
    }
    for kind, item in added.items():
        TABLES[kind].append(item)
    yield added
    for kind, item in added.items():
        TABLES[kind].remove(item)


def an_image():
    array = np.zeros(GRID.shape, np.int16)
    array[4:12, 5:13, 6:14] = np.arange(512).reshape(8, 8, 8) + 100
    return Image(array, GRID)


def a_segmentation():
    return Segmentation(((an_image().array > 0).astype(np.uint8),), (Segment("cube", 1),), GRID)


POINTS = Landmarks(np.array([[-10.0, 20.0, 15.0], [-4.0, 25.0, 19.0]]), ("a", "b"))


def a_shift(x):
    return DisplacementField(np.broadcast_to(np.float32([x, 0, 0]), (*GRID.shape, 3)), GRID)


@pytest.mark.usefixtures("toys")
def test_a_toy_of_each_kind_is_written_and_read(tmp_path):
    write_image(an_image(), tmp_path / "scan.toyi")
    assert np.array_equal(read_image(tmp_path / "scan.toyi").array, an_image().array)
    assert read_image(tmp_path / "scan.toyi").name == "scan"
    assert image_header(tmp_path / "scan.toyi").shape == GRID.shape
    write_segmentation(a_segmentation(), tmp_path / "parts.toys")
    assert [s.name for s in read_segmentation(tmp_path / "parts.toys").segments] == ["cube"]
    write_landmarks(POINTS, tmp_path / "points.toyl")
    assert read_landmarks(tmp_path / "points.toyl").labels == POINTS.labels
    write_field(a_shift(4), tmp_path / "field.toyt")
    assert read_transform(tmp_path / "field.toyt").TransformPoint((0.0, 20.0, 15.0)) == (4, 20, 15)
    assert np.array_equal(read_field(tmp_path / "field.toyt", GRID).displacement, a_shift(4).displacement)


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("kind", ["image", "segmentation", "landmarks"])
def test_warp_takes_a_toy_by_its_name_alone(tmp_path, kind, capsys):
    write_field(a_shift(4), tmp_path / "field.toyt")
    write_image(an_image(), tmp_path / "fixed.toyi")
    words = ["warp", "--transform", str(tmp_path / "field.toyt")]
    if kind == "landmarks":
        write_landmarks(POINTS, tmp_path / "in.toyl")
        assert main([*words, "--input", str(tmp_path / "in.toyl"), "--out", str(tmp_path / "out.toyl")]) == 0
        assert np.allclose(read_landmarks(tmp_path / "out.toyl").points, POINTS.points + np.array([4, 0, 0]))
        return
    ending, write = {"image": (".toyi", write_image), "segmentation": (".toys", write_segmentation)}[kind]
    write(an_image() if kind == "image" else a_segmentation(), tmp_path / f"in{ending}")
    words += ["--reference", str(tmp_path / "fixed.toyi"), "--input", str(tmp_path / f"in{ending}")]
    assert main([*words, "--out", str(tmp_path / f"out{ending}")]) == 0, capsys.readouterr().err
    read = read_image if kind == "image" else lambda path: Image(read_segmentation(path).layers[0], GRID)
    before, after = read(tmp_path / f"in{ending}").array, read(tmp_path / f"out{ending}").array
    assert np.array_equal(after[:, :, :-2], before[:, :, 2:])  # two voxels of 2 mm along i


@pytest.mark.usefixtures("toys")
def test_register_takes_and_gives_toys(tmp_path, capsys):
    for side in ("fixed", "moving"):
        write_image(an_image(), tmp_path / f"{side}.toyi")
        write_segmentation(a_segmentation(), tmp_path / f"{side}.toys")
        write_landmarks(POINTS, tmp_path / f"{side}.toyl")
    words = ["register", "--model", "none", "--refine", "off", "--align", "none", "--device", "cpu"]
    for side in ("fixed", "moving"):
        words += [f"--{side}", str(tmp_path / f"{side}.toyi")]
        words += [f"--{side}-segmentation", str(tmp_path / f"{side}.toys")]
    words += ["--landmarks", str(tmp_path / "fixed.toyl"), str(tmp_path / "moving.toyl")]
    words += ["--transform-out", str(tmp_path / "field.toyt"), "--warped-out", str(tmp_path / "warped.toyi")]
    assert main(words) == 0, capsys.readouterr().err
    assert read_transform(tmp_path / "field.toyt").GetDimension() == 3
    assert read_image(tmp_path / "warped.toyi").array.shape == GRID.shape


@pytest.mark.usefixtures("toys")
def test_help_and_errors_name_the_toys(tmp_path, capsys):
    for command, endings in (("warp", (".toyi", ".toys", ".toyl", ".toyt")), ("register", (".toys", ".toyl", ".toyt"))):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = capsys.readouterr().out
        assert all(ending in said for ending in endings)
    (tmp_path / "a.ply").write_text("x")
    with pytest.raises(InputError, match=r"\.toyl"):
        read_landmarks(tmp_path / "a.ply")
    with pytest.raises(InputError, match=r"name it .*\.toyi"):
        write_image(an_image(), tmp_path / "a.png")
    with pytest.raises(InputError, match=r"give .*\.toyt"):
        read_transform(tmp_path)


# ----------------------------------------------------------------------------------------------------------- the tables


def test_the_longest_ending_wins_and_then_the_last_of_the_list():
    assert format_of("A.SEG.NRRD", [*IMAGE_FORMATS, *SEGMENTATION_FORMATS]) is SEGMENTATION_FORMATS[0]
    assert format_of("a.mhd", IMAGE_FORMATS, written=True) is None
    assert format_of("a.ply", LANDMARK_FORMATS) is None
    mine = Format("mine", (".nrrd",), read_toy_image)
    assert format_of("a.nrrd", [*IMAGE_FORMATS, mine]) is mine


@pytest.mark.parametrize(
    ("name", "stem"), [("a.b.nii.gz", "a.b"), ("a.seg.nrrd", "a"), ("B.NRRD", "B"), ("scan.hdr", "scan.hdr")]
)
def test_the_name_of_what_is_read_is_that_of_the_file(name, stem):
    assert stem_of(Path(name), IMAGE_FORMATS) == stem


def test_the_documentation_lists_the_formats():
    text = COMMAND.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (image|segmentation|landmarks|transform) \| (.+) \|$", text, re.MULTILINE)
    expected = [
        (kind, f"{item.title} | {listed(f'`{suffix}`' for suffix in item.suffixes)} | {use(item)}")
        for kind, formats in TABLES.items()
        for item in formats
    ]
    assert rows == expected


def use(item):
    return " and ".join(word for word, does in (("read", item.read), ("written", item.write)) if does)


def test_suffixes_are_listed_once_in_the_order_of_the_table():
    assert suffixes_of(IMAGE_FORMATS, written=True) == (".nrrd", ".nii.gz", ".nii", ".mha")
    assert suffixes_of([*IMAGE_FORMATS, *IMAGE_FORMATS]) == (".nrrd", ".nii.gz", ".nii", ".mha", ".nhdr", ".mhd")
