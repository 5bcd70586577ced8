"""io/: what is read is what other readers read, what is written loads in Slicer, what is refused says why."""

import gzip
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.io.images import image_header, read_image, write_image
from IconRegistrationLib.io.landmarks import read_landmarks, write_landmarks
from IconRegistrationLib.io.segmentations import read_segmentation, write_segmentation
from IconRegistrationLib.io.transforms import read_transform, write_field
from IconRegistrationLib.spatial.displacement import DisplacementField
from IconRegistrationLib.spatial.geometry import Grid, Image, Landmarks, Segment, Segmentation

nibabel = pytest.importorskip("nibabel")
sitk = pytest.importorskip("SimpleITK")

DATA = Path(__file__).parents[3] / "shared" / "data"


def a_grid(size=(7, 6, 5), left_handed=False) -> Grid:
    """Oblique, anisotropic, permuted axes, far from the origin."""
    axes = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    axes[:, 0] *= np.sign(np.linalg.det(axes)) * (-1 if left_handed else 1)
    return Grid.from_parts(size, (0.8, 1.3, 2.5), (-90.25, 41.5, 1203.0), axes)


def an_image(dtype=np.int16, **kwargs) -> Image:
    grid = a_grid(**kwargs)
    array = np.random.default_rng(5).integers(0, 100, grid.shape).astype(dtype)
    return Image(array, grid, "scan")


def a_segmentation(overlapping: bool) -> Segmentation:
    grid = a_grid((12, 10, 8))
    first = np.zeros(grid.shape, np.uint8)
    first[1:4, 2:6, 2:7] = 1
    first[5:7, 2:6, 2:7] = 2
    second = np.zeros(grid.shape, np.uint8)
    second[2:6, 4:8, 1:4] = 1
    tags = {
        "Segmentation.Status": "inprogress",
        "TerminologyEntry": "Segmentation category and type~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^",
    }
    segments = (
        Segment("Liver", 1, 0, (0.9, 0.25, 0.125), "Segment_7", tags),
        Segment("Milz, groß", 2, 0, (0.0, 1.0, 0.5), "Segment_9"),
        Segment("tumour", 1, 1, (1.0, 1.0, 0.0), "Segment_3"),
    )
    if overlapping:
        return Segmentation((first, second), segments, grid, "organs")
    return Segmentation((first,), segments[:2], grid, "organs")


# ---------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("suffix", [".nrrd", ".nii", ".nii.gz", ".mha"])
@pytest.mark.parametrize("left_handed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_an_image_comes_back_as_simpleitk_and_nibabel_see_it(tmp_path, suffix, left_handed, dtype):
    path = tmp_path / f"Schädel scan{suffix}"
    image = an_image(dtype, left_handed=left_handed)
    write_image(image, path)
    read = read_image(path)
    assert read.array.dtype == dtype
    assert np.array_equal(read.array, image.array)
    assert read.grid.is_close(image.grid, 1e-3 if "nii" in suffix else 1e-6)
    assert read.name == "Schädel scan"
    other = sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(other), image.array)
    for corner, ijk in zip(image.grid.corners(), np.ndindex(2, 2, 2), strict=True):
        index = [int(e * (n - 1)) for e, n in zip(ijk[::-1], image.grid.size, strict=True)]
        assert np.allclose(other.TransformIndexToPhysicalPoint(index), corner, atol=1e-3)
    if "nii" in suffix:
        theirs = nibabel.load(path)
        assert np.allclose(np.diag([-1, -1, 1, 1]) @ theirs.affine, image.grid.affine, atol=1e-3)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (bool, np.uint8),
        (np.int8, np.int16),
        (np.float16, np.float32),
        (np.int64, np.int32),
        (np.uint64, np.int32),
        (np.dtype(">i2"), np.int16),
        (np.dtype(">f8"), np.float64),
    ],
)
def test_awkward_types_are_written_as_the_nearest_that_slicer_reads(tmp_path, dtype, stored):
    image = an_image(dtype)
    write_image(image, tmp_path / "a.nrrd")
    read = read_image(tmp_path / "a.nrrd")
    assert read.array.dtype == stored
    assert np.array_equal(read.array, image.array)


def test_large_64_bit_values_survive_as_doubles(tmp_path):
    image = an_image(np.int64)
    image.array[0, 0, 0] = 2**40
    write_image(image, tmp_path / "a.nrrd")
    assert np.array_equal(read_image(tmp_path / "a.nrrd").array, image.array)


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint64", "uint32", ">i2", "float64"])
def test_types_that_itk_does_not_wrap_are_read(tmp_path, dtype):
    array = np.arange(60).reshape(3, 4, 5)[::-1].astype(dtype)
    nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), np.eye(4), dtype=np.dtype(dtype)), tmp_path / "a.nii")
    read = read_image(tmp_path / "a.nii").array
    assert read.dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(read, array)


def test_the_header_is_known_without_the_voxels(tmp_path):
    """A header that promises 4000^3 voxels is answered from the header alone."""
    path = tmp_path / "giant.nrrd"
    path.write_text(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 4000 5000 6000\nspacings: 1 1 1\nencoding: raw\nendian: little\n\n"
    )
    header = image_header(path)
    assert header.shape == (6000, 5000, 4000)
    assert header.dtype == np.int16
    assert header.bytes == 240_000_000_000


def a_nifti(path, array, affine=None, code=1):
    image = nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine)
    image.set_sform(np.eye(4) if affine is None else affine, code)
    image.header["qform_code"] = 0
    nibabel.save(image, path)


def test_a_slightly_sheared_sform_is_straightened_and_a_sheared_one_refused(tmp_path):
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[0, 1] = 0.01
    a_nifti(tmp_path / "slight.nii.gz", np.ones((20, 21, 22), np.float32), affine)
    read = read_image(tmp_path / "slight.nii.gz").grid
    exact = Grid(read.shape, np.diag([-1, -1, 1, 1]) @ affine)
    assert 0 < np.abs(read.corners() - exact.corners()).max() < 0.5
    assert read.is_orthogonal
    affine[0, 1] = 0.5
    a_nifti(tmp_path / "sheared.nii.gz", np.ones((20, 21, 22), np.float32), affine)
    with pytest.raises(InputError, match=r"right angles.*resample"):
        read_image(tmp_path / "sheared.nii.gz")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((5, 6), np.float32), "single slice"),
        (np.zeros((5, 6, 1), np.float32), "single slice"),
        (np.zeros((5, 6, 7, 3), np.float32), "4 dimensions"),
        (np.zeros((5, 6, 7), np.complex64), "values per voxel"),
        (np.zeros((5, 6, 7), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "3 values per voxel"),
    ],
)
def test_what_is_no_scalar_volume_is_refused(tmp_path, array, message):
    a_nifti(tmp_path / "a.nii.gz", array)
    for function in (read_image, image_header):
        with pytest.raises(InputError, match=message) as caught:
            function(tmp_path / "a.nii.gz")
        assert "\n" not in str(caught.value)


def test_a_fourth_dimension_of_one_is_a_volume(tmp_path):
    a_nifti(tmp_path / "a.nii.gz", np.ones((5, 6, 7, 1), np.float32))
    assert read_image(tmp_path / "a.nii.gz").array.shape == (7, 6, 5)


@pytest.mark.parametrize("suffix", [".nrrd", ".nii", ".nii.gz", ".mha"])
def test_a_truncated_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    grid = a_grid((24, 25, 26))
    write_image(Image(np.random.default_rng(1).normal(size=grid.shape), grid), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.(n|mha)"):
        read_image(path)


def test_a_gzip_of_several_members_is_not_taken_for_truncated(tmp_path):
    """bgzip and pigz write blocks; gzip's last word is then the length of the last block alone."""
    image = an_image(np.float32)
    write_image(image, tmp_path / "a.nii")
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]))
    assert np.array_equal(read_image(tmp_path / "b.nii.gz").array, image.array)


def test_what_is_no_image_is_refused(tmp_path):
    for name, content in [("a.nrrd", b"hello"), ("b.nii.gz", b""), ("c.txt", b"a"), ("d.mha", b"ObjectType = Image\n")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(InputError, match="does not exist"):
        read_image(tmp_path / "nothing.nrrd")
    with pytest.raises(InputError, match="no DICOM"):
        read_image(tmp_path)


def test_a_nan_in_the_affine_is_refused(tmp_path):
    affine = np.eye(4)
    a_nifti(tmp_path / "a.nii", np.ones((5, 6, 7), np.float32), affine)
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[280:284] = struct.pack("<f", float("nan"))
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(InputError):
        read_image(tmp_path / "a.nii")


@pytest.mark.parametrize("writer", [write_image, write_segmentation])
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, writer):
    item = an_image() if writer is write_image else a_segmentation(overlapping=False)
    with pytest.raises(InputError, match=r"name it .*nii\.gz"):
        writer(item, tmp_path / "a.png")
    with pytest.raises(InputError, match="create it first"):
        writer(item, tmp_path / "none" / "a.nrrd")
    assert not os.listdir(tmp_path)


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.nrrd"
    write_image(an_image(), path)
    before = path.read_bytes()

    def fail(*_, **__):
        raise RuntimeError("disk full")

    monkeypatch.setattr(sitk, "WriteImage", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        write_image(an_image(np.float32), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.nrrd"]


def test_a_sheared_grid_cannot_be_written(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.3
    with pytest.raises(InputError, match="right angles"):
        write_image(Image(np.zeros((4, 5, 6)), Grid((4, 5, 6), affine)), tmp_path / "a.nrrd")


# ------------------------------------------------------------------------------------------------------------ DICOM


def write_series(folder: Path, volume, uid: str, skip=()):
    """A CT series of SimpleITK's image, one file per slice, names in reverse order of place."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = np.reshape(volume.GetDirection(), (3, 3))
    count = volume.GetSize()[2]
    for z in range(count):
        if z in skip:
            continue
        piece = volume[:, :, z]
        tags = {
            "0008|0060": "CT",
            "0008|0018": f"{uid}.{z + 1}",
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0013": str(z + 1),
            "0020|0037": "\\".join(f"{c:.12g}" for c in np.r_[direction[:, 0], direction[:, 1]]),
            "0020|0032": "\\".join(f"{c:.12g}" for c in volume.TransformIndexToPhysicalPoint((0, 0, z))),
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for key, value in tags.items():
            piece.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid}_{count - z:03d}.dcm"))
        writer.Execute(piece)


def a_ct():
    array = np.random.default_rng(2).integers(-1024, 2000, (6, 9, 8)).astype(np.int16)
    volume = sitk.GetImageFromArray(array)
    volume.SetSpacing((0.5, 0.75, 2.5))
    volume.SetOrigin((-10, 20, 300))
    volume.SetDirection((1, 0, 0, 0, 0.8, -0.6, 0, 0.6, 0.8))
    return array, volume


def test_a_dicom_folder_is_read_in_hounsfield_units_and_in_place(tmp_path):
    array, volume = a_ct()
    write_series(tmp_path / "ct scan", volume, "1.2.7")
    header = image_header(tmp_path / "ct scan")
    assert header.shape == array.shape
    image = read_image(tmp_path / "ct scan")
    assert image.array.dtype == np.int16
    assert np.array_equal(image.array, array)
    expected = Grid.from_parts(
        volume.GetSize(), volume.GetSpacing(), volume.GetOrigin(), np.reshape(volume.GetDirection(), (3, 3))
    )
    assert image.grid.is_close(expected, 1e-4)


def test_of_several_series_one_must_be_chosen(tmp_path):
    array, volume = a_ct()
    write_series(tmp_path / "study", volume, "1.2.7")
    write_series(tmp_path / "study", volume[:, :, :4] + 1, "1.2.8")
    with pytest.raises(InputError, match=r"several.*1\.2\.7.*6 slices.*1\.2\.8.*4 slices"):
        read_image(tmp_path / "study")
    assert np.array_equal(read_image(f"{tmp_path / 'study'}::1.2.8").array, array[:4] + 1)
    with pytest.raises(InputError, match=r"1\.9"):
        read_image(f"{tmp_path / 'study'}::1.9")


def test_a_series_with_a_missing_slice_is_refused(tmp_path):
    _, volume = a_ct()
    write_series(tmp_path / "ct", volume, "1.2.7", skip=(2,))
    with pytest.raises(InputError, match="uneven distances"):
        read_image(tmp_path / "ct")


# ---------------------------------------------------------------------------------------------------- segmentations


@pytest.mark.parametrize("overlapping", [False, True])
def test_a_seg_nrrd_comes_back_whole(tmp_path, overlapping):
    segmentation = a_segmentation(overlapping)
    write_segmentation(segmentation, tmp_path / "a.seg.nrrd")
    read = read_segmentation(tmp_path / "a.seg.nrrd")
    assert read.segments == segmentation.segments
    assert read.grid.is_close(segmentation.grid, 1e-9)
    assert len(read.layers) == len(segmentation.layers)
    for mine, theirs in zip(segmentation.layers, read.layers, strict=True):
        assert np.array_equal(mine, theirs)
    assert os.listdir(tmp_path) == ["a.seg.nrrd"]


@pytest.mark.parametrize("overlapping", [False, True])
def test_slicer_reads_what_is_written_and_its_files_are_read(tmp_path, overlapping):
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    vtk = pytest.importorskip("vtk")
    segmentation = a_segmentation(overlapping)
    path = tmp_path / "a.seg.nrrd"
    write_segmentation(segmentation, path)
    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(path))
    assert storage.ReadData(node) == 1
    theirs = node.GetSegmentation()
    assert theirs.GetNumberOfSegments() == len(segmentation.segments)
    assert theirs.GetNumberOfLayers() == len(segmentation.layers)
    for n, segment in enumerate(segmentation.segments):
        slicers = theirs.GetNthSegment(n)
        assert slicers.GetName() == segment.name
        assert np.allclose(slicers.GetColor(), segment.color, atol=1e-5)
        assert slicers.GetLabelValue() == segment.value
        assert theirs.GetNthSegmentID(n) == segment.identifier
        for key, value in segment.tags.items():
            stored = vtk.mutable("")
            assert slicers.GetTag(key, stored)
            assert stored == value
    storage.SetFileName(str(tmp_path / "b.seg.nrrd"))
    storage.SetUseCompression(True)
    assert storage.WriteData(node) == 1
    back = read_segmentation(tmp_path / "b.seg.nrrd")
    assert [s.name for s in back.segments] == [s.name for s in segmentation.segments]
    for mine, slicers in zip(segmentation.segments, back.segments, strict=True):
        assert mine.tags.items() <= slicers.tags.items()
        places = [s.grid.to_world(np.argwhere(s.mask(e))[:, ::-1]) for s, e in ((segmentation, mine), (back, slicers))]
        assert places[0].shape == places[1].shape
        assert np.allclose(places[0], places[1], atol=1e-3)


def test_the_format_before_layers_has_one_component_per_segment(tmp_path):
    segmentation = a_segmentation(overlapping=True)
    write_segmentation(segmentation, tmp_path / "a.seg.nrrd")
    header, _, voxels = (tmp_path / "a.seg.nrrd").read_bytes().partition(b"\n\n")
    lines = [line for line in header.split(b"\n") if b"_Layer:" not in line and b"LabelValue:" not in line]
    lines = [line for line in lines if not line.startswith(b"Segment2_")]
    (tmp_path / "old.seg.nrrd").write_bytes(b"\n".join(lines) + b"\n\n" + voxels)
    read = read_segmentation(tmp_path / "old.seg.nrrd")
    assert [(s.value, s.layer) for s in read.segments] == [(1, 0), (1, 1)]


def test_a_label_map_is_a_segmentation_and_an_image_is_not(tmp_path):
    labels = an_image(np.float64)
    write_image(labels, tmp_path / "a.nii.gz")
    read = read_segmentation(tmp_path / "a.nii.gz")
    assert read.layers[0].dtype.kind == "i"
    assert {s.value for s in read.segments} == set(np.unique(labels.array)) - {0}
    assert read.segments[0].name == f"label {read.segments[0].value}"
    for array, message in [
        (labels.array + 0.5, "whole numbers"),
        (labels.array - 5, "it holds -5"),
        (labels.array * np.nan, "whole numbers"),
    ]:
        write_image(Image(array, labels.grid), tmp_path / "b.nrrd")
        with pytest.raises(InputError, match=message):
            read_segmentation(tmp_path / "b.nrrd")


def test_overlap_needs_seg_nrrd(tmp_path):
    with pytest.raises(InputError, match=r"overlaps.*\.seg\.nrrd"):
        write_segmentation(a_segmentation(overlapping=True), tmp_path / "a.nii.gz")
    assert not os.listdir(tmp_path)
    whole = a_segmentation(overlapping=False)
    write_segmentation(whole, tmp_path / "a.nii.gz")
    assert np.array_equal(read_image(tmp_path / "a.nii.gz").array, whole.layers[0])


def test_layers_with_the_same_values_are_renumbered_in_a_label_map(tmp_path):
    whole = a_segmentation(overlapping=True)
    apart = np.where(whole.layers[0] > 0, 0, whole.layers[1])
    write_segmentation(Segmentation((whole.layers[0], apart), whole.segments, whole.grid), tmp_path / "a.nii.gz")
    labels = read_image(tmp_path / "a.nii.gz").array
    assert np.array_equal(labels == 3, apart > 0)
    assert np.array_equal(np.where(labels == 3, 0, labels), whole.layers[0])


# -------------------------------------------------------------------------------------------------------- landmarks


def some_landmarks() -> Landmarks:
    return Landmarks(np.array([[1.5, -2.25, 300.125], [-4, 5, -6]]), ("Nasion, oben", "R-2"), "points")


def test_landmarks_come_back_and_slicer_reads_them(tmp_path):
    path = tmp_path / "a.mrk.json"
    write_landmarks(some_landmarks(), path)
    read = read_landmarks(path)
    assert read.labels == some_landmarks().labels
    assert np.array_equal(read.points, some_landmarks().points)
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    scene = slicer.vtkMRMLScene()
    logic = slicer.vtkSlicerMarkupsLogic()
    logic.SetMRMLScene(scene)
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
    storage = scene.AddNewNodeByClass("vtkMRMLMarkupsJsonStorageNode")
    storage.SetFileName(str(path))
    assert storage.ReadData(node) == 1
    for n, (label, point) in enumerate(zip(read.labels, read.points, strict=True)):
        assert node.GetNthControlPointLabel(n) == label
        assert np.allclose(node.GetNthControlPointPositionWorld(n), point * [-1, -1, 1])


def test_every_file_of_landmarks_gives_the_same_points(tmp_path):
    expected = some_landmarks().points
    ras = expected * [-1, -1, 1]

    def control_points(points):
        placed = [
            {
                "label": label,
                "position": list(point),
                "positionStatus": "defined",
                "orientation": [-1, 0, 0, 0, -1, 0, 0, 0, 1],
            }
            for label, point in zip(("a", "b"), points, strict=True)
        ]
        return [*placed[:1], {"label": "unset", "position": [0, 0, 0], "positionStatus": "undefined"}, *placed[1:]]

    for system, points in (("LPS", expected), ("RAS", ras)):
        markup = {"type": "Fiducial", "coordinateSystem": system, "controlPoints": control_points(points)}
        (tmp_path / f"{system}.mrk.json").write_text(json.dumps({"markups": [markup]}))
        for word in (system, {"LPS": "1", "RAS": "0"}[system]):
            rows = "".join(
                f"n,{p[0]},{p[1]},{p[2]},0,0,0,1,1,1,0,{label},,\n" for p, label in zip(points, "ab", strict=True)
            )
            (tmp_path / f"{system}{word}.fcsv").write_text(
                f"# Markups fiducial file version = 4.11\n# CoordinateSystem = {word}\n"
                f"# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n{rows}"
            )
        axes = ",".join(system.lower())
        rows = "\n".join(f"{label},{p[0]},{p[1]},{p[2]},1" for p, label in zip(points, "ab", strict=True))
        (tmp_path / f"{system}.csv").write_text(f"label,{axes},defined\n{rows}\nunset,0,0,0,0\n")
    (tmp_path / "p.vtk").write_text(
        "# vtk DataFile Version 3.0\nvtk output\nASCII\nDATASET POLYDATA\nPOINTS 2 float\n"
        + " ".join(str(c) for c in expected.ravel())
        + " \n\nMETADATA\nINFORMATION 0\n"
    )
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 9
    for path in paths:
        read = read_landmarks(path)
        assert np.allclose(read.points, expected), path.name
        assert read.labels == (("1", "2") if path.suffix == ".vtk" else ("a", "b")), path.name


def test_bad_landmarks_are_refused(tmp_path):
    for name, content in {
        "a.mrk.json": '{"markups": []}',
        "b.mrk.json": "{",
        "c.mrk.json": '{"markups": [{"coordinateSystem": "LPS", "controlPoints": []}]}',
        "d.fcsv": "# CoordinateSystem = XYZ\nn,1,2,3,0,0,0,1,1,1,0,a,,\n",
        "e.csv": "1,2,3\n",
        "f.vtk": "# vtk DataFile\nx\nBINARY\n",
        "g.ply": "x",
        "h.csv": "label,x,y,z\na,1,nan,2\n",
    }.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=name.split(".")[1]):
            read_landmarks(tmp_path / name)


# ------------------------------------------------------------------------------------------------------- transforms


def a_field() -> DisplacementField:
    grid = a_grid((9, 8, 7))
    return DisplacementField(np.random.default_rng(4).normal(size=(*grid.shape, 3)).astype(np.float32), grid)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".h5", ".tfm"])
def test_a_written_field_moves_points_in_itk_and_in_slicer_as_the_field_does(tmp_path, suffix):
    field = a_field()
    path = tmp_path / f"fixed to moving{suffix}"
    write_field(field, path)
    assert os.listdir(tmp_path) == [path.name]
    inside = field.grid.to_world(np.random.default_rng(1).uniform(0.6, np.array(field.grid.size) - 1.6, (20, 3)))
    expected = field.transform_points(inside)
    transform = read_transform(path)
    moved = [transform.TransformPoint([float(c) for c in p]) for p in inside]
    assert np.allclose(moved, expected, atol=1e-3)
    theirs = sitk.ReadTransform(str(path)) if suffix in (".h5", ".tfm") else None
    if theirs is not None:
        assert np.allclose([theirs.TransformPoint(p) for p in inside], expected, atol=1e-3)

    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode")
    storage = scene.AddNewNodeByClass("vtkMRMLTransformStorageNode")
    storage.SetFileName(str(path))
    assert storage.ReadData(node) == 1
    from_parent = node.GetTransformFromParent()
    # Slicer may interpolate by cubic splines, which agree on nodes alone.
    nodes = field.grid.to_world([(2, 3, 4), (5, 5, 3)])
    for point, target in zip(nodes, field.transform_points(nodes), strict=True):
        slicers = np.array(from_parent.TransformPoint(point * [-1, -1, 1])) * [-1, -1, 1]
        assert np.allclose(slicers, target, atol=2e-2 if from_parent.IsA("vtkOrientedBSplineTransform") else 1e-3)


def test_nifti_fields_carry_the_vector_intent(tmp_path):
    write_field(a_field(), tmp_path / "a.nii.gz")
    header = nibabel.load(tmp_path / "a.nii.gz").header
    assert header["intent_code"] == 1007
    assert header.get_data_dtype() == np.float32


def test_linear_and_composite_transforms_are_read_in_itks_order(tmp_path):
    scale, shift = sitk.AffineTransform(3), sitk.TranslationTransform(3, (10.0, 0.0, 0.0))
    scale.SetMatrix((2, 0, 0, 0, 2, 0, 0, 0, 2))
    composite = sitk.CompositeTransform([scale, shift])
    for name in ("a.h5", "a.tfm"):
        sitk.WriteTransform(composite, str(tmp_path / name))
        read = read_transform(tmp_path / name)
        assert np.allclose(read.TransformPoint([1.0, 2.0, 3.0]), composite.TransformPoint((1, 2, 3)))


def test_a_matrix_offset_transform_of_elastix_or_ants_is_read(tmp_path):
    (tmp_path / "a.txt").write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: MatrixOffsetTransformBase_double_3_3\n"
        "Parameters: 0.9 0.1 0 -0.1 0.9 0 0 0 1.1 1 2 3\nFixedParameters: 4 5 6\n"
    )
    matrix, centre = np.array([[0.9, 0.1, 0], [-0.1, 0.9, 0], [0, 0, 1.1]]), np.array([4.0, 5, 6])
    point = np.array([7.0, 8, 9])
    expected = matrix @ (point - centre) + centre + [1, 2, 3]
    assert np.allclose(read_transform(tmp_path / "a.txt").TransformPoint(list(point)), expected)


def test_what_is_no_transform_is_refused(tmp_path):
    write_image(an_image(), tmp_path / "a.nii.gz")
    (tmp_path / "b.tfm").write_text("nothing")
    (tmp_path / "c.h5").write_text("nothing")
    for name in ("a.nii.gz", "b.tfm", "c.h5"):
        with pytest.raises(InputError, match=name):
            read_transform(tmp_path / name)


# -------------------------------------------------------------------------------------------------------- real data


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data beside the checkout are absent")
def test_real_files_agree_with_nibabel():
    for path in sorted(DATA.glob("[126]_*/*.nii.gz")):
        theirs = nibabel.load(path)
        mine = read_image(path)
        corners = Grid(mine.grid.shape, np.diag([-1, -1, 1, 1]) @ theirs.affine)
        assert mine.grid.is_close(corners, 0.01), path.name
        assert np.array_equal(mine.array, np.asanyarray(theirs.dataobj).transpose(2, 1, 0)), path.name


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data beside the checkout are absent")
def test_the_livers_landmarks_are_where_its_documentation_says():
    fixed, moving = (
        read_landmarks(DATA / "4_liver_mr_breathing_NC" / f"{n}LMliver.vtk") for n in ("exhMaster", "cyc_1_6")
    )
    distance = np.linalg.norm(fixed.points - moving.points, axis=1)
    assert len(distance) == 36
    assert distance.mean() == pytest.approx(6.1, abs=0.05)
    assert distance.max() == pytest.approx(10.2, abs=0.05)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_nan_in_a_nifti_file_is_refused_where_itk_would_make_it_zero(tmp_path, order, suffix):
    array = np.ones((8, 9, 10), order + "f4")
    array[2, 3, 4], array[7, 8, 9] = np.nan, -np.inf
    image = nibabel.Nifti1Image(array, np.eye(4), nibabel.Nifti1Header(endianness=order))
    image.set_data_dtype(np.float32)
    path = tmp_path / f"nan{suffix}"
    nibabel.save(image, path)
    with pytest.raises(InputError, match="2 voxels that are not a number"):
        read_image(path)
    image.dataobj[2, 3, 4] = image.dataobj[7, 8, 9] = 0
    nibabel.save(image, path)
    assert read_image(path).array.sum() == 8 * 9 * 10 - 2
