"""Damaged and hostile files of every format that is read: InputError, never a crash of the process, never its memory.

Whatever reads is another process here: a reader that ends it, or waits for ever, fails its test and no other.
"""

import gzip
import json
import re
import struct
import subprocess
import sys
import threading
import zlib
from dataclasses import asdict, replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from waiting import PATIENCE

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.io.images import read_image, write_image
from IconRegistrationLib.io.landmarks import write_landmarks
from IconRegistrationLib.io.segmentations import write_segmentation
from IconRegistrationLib.io.transforms import write_field
from IconRegistrationLib.networks.cards import shipped_cards
from IconRegistrationLib.networks.unet import GradICON
from IconRegistrationLib.spatial.displacement import DisplacementField
from IconRegistrationLib.spatial.geometry import Grid, Image, Landmarks, Segment, Segmentation

sitk = pytest.importorskip("SimpleITK")
pytest.importorskip("itk")

#: How many damaged copies of each file are read.
COPIES = 40
#: Bytes by which the reading process may grow for a small file; ITK loads its parts as they are needed.
MOST_MEMORY = 1 << 30

READER = """
import contextlib, io, json, os, re, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what ITK's libraries print
os.dup2(1, 2)
import numpy as np
import SimpleITK  # else what it takes would count as what the first file takes
from IconRegistrationLib.batch.command import main
from IconRegistrationLib.errors import InputError
from IconRegistrationLib.io.images import image_header, read_image
from IconRegistrationLib.io.landmarks import read_landmarks
from IconRegistrationLib.io.segmentations import read_segmentation
from IconRegistrationLib.io.transforms import read_transform
from IconRegistrationLib.networks import catalog

def image(path):
    read, header = read_image(path), image_header(path)
    assert read.array.shape == read.grid.shape == header.shape
    assert np.isfinite(read.grid.affine).all()

def segmentation(path):
    read = read_segmentation(path)
    assert all(read.mask(segment).shape == read.grid.shape for segment in read.segments)

def landmarks(path):
    read = read_landmarks(path)
    assert np.isfinite(read.points).all() and len(read.points) == len(read.labels)
    assert all(isinstance(label, str) for label in read.labels)

def transform(path):
    assert np.isfinite(read_transform(path).TransformPoint([1.0, 2.0, 3.0])).all()

def weights(path):
    catalog.read_network(path, catalog.find_card(path))

def command(*arguments):
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
        code = main(list(arguments))
    return {"code": code, "stderr": stderr.getvalue()}

def memory(key):
    with open("/proc/self/status") as file:
        return int(re.search(rf"{key}:\\s+(\\d+)", file.read())[1]) << 10

for line in sys.stdin:
    verb, *arguments = json.loads(line)
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = memory("VmRSS") if os.path.exists("/proc/self/status") else None
    try:
        answer = {"outcome": "read", **(globals()[verb](*arguments) or {})}
    except InputError as error:
        answer = {"outcome": "refused", "sentence": str(error)}
    except BaseException as error:
        answer = {"outcome": repr(error)}
    answer["grown"] = 0 if before is None else memory("VmHWM") - before
    print(json.dumps(answer), file=answers, flush=True)
"""


class Reader:
    """A process that reads what it is told to, started again where a file ended it."""

    def __init__(self):
        self._process = None

    def __call__(self, verb, *arguments) -> dict:
        """{"outcome": "read", "refused", an exception, or how the process ended; "sentence", "grown", ...}."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        process = self._process
        process.stdin.write(json.dumps([verb, *map(str, arguments)]) + "\n")
        process.stdin.flush()
        watch = threading.Timer(PATIENCE, process.kill)
        watch.start()
        answer = process.stdout.readline()
        watch.cancel()
        if not answer:
            self._process = None
            return {"outcome": f"the process ended with {process.wait()}", "grown": 0}
        return json.loads(answer)

    def close(self):
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()


@pytest.fixture(scope="module")
def reader():
    reader = Reader()
    reader("image", "nothing")  # what it loads at first is no growth
    yield reader
    reader.close()


# ------------------------------------------------------------------------------------------------ files that are good

GRID = Grid.from_parts((14, 12, 10), (2.0, 2.5, 3.0), (-20.5, 10.25, 1200.0))
SMALL = {"down_channels": (2, 4, 8), "up_channels": (4, 8), "input_shape": (16, 16, 16)}


def an_image(dtype=np.int16):
    return Image(np.random.default_rng(1).integers(0, 2000, GRID.shape).astype(dtype), GRID, "scan")


def a_segmentation():
    layers = np.zeros((2, *GRID.shape), np.uint8)
    layers[0, 2:6, 2:6, 2:6] = 1
    layers[1, 4:8, 4:8, 4:8] = 1
    segments = (Segment("liver", 1, 0, identifier="Segment_1"), Segment("vessels", 1, 1, identifier="Segment_2"))
    return Segmentation(tuple(layers), segments, GRID)


def a_field():
    vectors = np.random.default_rng(2).normal(size=(*GRID.shape, 3)).astype(np.float32)
    return DisplacementField(vectors, GRID)


def by_simpleitk(name, compressed=False):
    def make(folder):
        sitk.WriteImage(sitk.GetImageFromArray(an_image().array), str(folder / name), compressed)
        return folder / name

    return make


def by_us(write, value, name):
    def make(folder):
        write(value(), folder / name)
        return folder / name

    return make


def by_nibabel(name, kind=nibabel.Nifti1Image, dtype=np.int16):
    def make(folder):
        image = kind(an_image(dtype).array.T, np.diag([-2.0, -2.5, 3.0, 1.0]))
        image.set_data_dtype(dtype)
        nibabel.save(image, folder / name)
        return folder / name

    return make


def text(name, content):
    def make(folder):
        (folder / name).write_text(content)
        return folder / name

    return make


def a_dicom_series(folder):
    """A folder of four slices; what is damaged is the third."""
    (folder / "series").mkdir()
    for k in range(4):
        piece = sitk.GetImageFromArray(an_image().array[k])
        position = {"0020|0032": f"0\\0\\{3 * k}", "0020|0037": "1\\0\\0\\0\\1\\0", "0020|0013": str(k + 1)}
        identity = {"0008|0060": "CT", "0008|0018": f"1.2.7.{k}", "0020|000d": "1.2", "0020|000e": "1.2.7"}
        for key, value in (position | identity).items():
            piece.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / "series" / f"{k}.dcm"))
        writer.Execute(piece)
    return folder / "series" / "2.dcm"


def a_linear_transform(name):
    def make(folder):
        sitk.WriteTransform(sitk.AffineTransform((1, 0.1, 0, -0.1, 1, 0, 0, 0, 1.1), (4, 5, 6)), str(folder / name))
        return folder / name

    return make


def some_weights(folder):
    torch.manual_seed(0)
    network = GradICON(SMALL["input_shape"], SMALL["down_channels"], SMALL["up_channels"])
    torch.save(network.state_dict(), folder / "w.trch")
    card = replace(shipped_cards()["none"], name="small", title="Small", **SMALL)
    (folder / "w.json").write_text(json.dumps({"card": asdict(card)}))
    return folder / "w.trch"


POINTS = Landmarks(np.array([[1.5, -2.25, 300.125], [-4, 5, -6]]), ("Nasion", "R-2"))
FCSV = """# Markups fiducial file version = 4.11
# CoordinateSystem = LPS
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
1,1.5,-2.25,300.125,0,0,0,1,1,1,0,Nasion,,
2,-4,5,-6,0,0,0,1,1,1,0,R-2,,
"""
VTK = "# vtk DataFile Version 3.0\npoints\nASCII\nDATASET POLYDATA\nPOINTS 2 float\n1.5 -2.25 300.125 -4 5 -6\n"

#: name -> (what reads it, what writes it)
FORMATS = {
    "nrrd": ("image", by_us(write_image, an_image, "a.nrrd")),
    "nrrd, raw": ("image", by_simpleitk("a.nrrd")),
    "nrrd, detached": ("image", by_simpleitk("a.nhdr")),
    "seg.nrrd": ("segmentation", by_us(write_segmentation, a_segmentation, "a.seg.nrrd")),
    "nii": ("image", by_nibabel("a.nii")),
    "nii, floats": ("image", by_nibabel("a.nii", dtype=np.float32)),
    "nii.gz": ("image", by_nibabel("a.nii.gz")),
    "hdr and img": ("image", by_nibabel("a.hdr", nibabel.Nifti1Pair)),
    "mha": ("image", by_us(write_image, an_image, "a.mha")),
    "mha, raw": ("image", by_simpleitk("a.mha")),
    "mhd": ("image", by_simpleitk("a.mhd")),
    "mhd, compressed": ("image", by_simpleitk("a.mhd", True)),
    "dicom": ("image", a_dicom_series),
    "mrk.json": ("landmarks", by_us(write_landmarks, lambda: POINTS, "a.mrk.json")),
    "fcsv": ("landmarks", text("a.fcsv", FCSV)),
    "csv": ("landmarks", text("a.csv", "label,l,p,s,defined\nNasion,1.5,-2.25,300.125,1\nR-2,-4,5,-6,1\n")),
    "vtk": ("landmarks", text("a.vtk", VTK)),
    "tfm": ("transform", a_linear_transform("a.tfm")),
    "h5": ("transform", a_linear_transform("a.h5")),
    "h5 of a field": ("transform", by_us(write_field, a_field, "a.h5")),
    "nii.gz of a field": ("transform", by_us(write_field, a_field, "a.nii.gz")),
    "nrrd of a field": ("transform", by_us(write_field, a_field, "a.nrrd")),
    "weights": ("weights", some_weights),
}


def what_is_read(path: Path) -> Path:
    return path.parent if path.suffix == ".dcm" else path


# -------------------------------------------------------------------------------------------------------- damaged files

NUMBERS = [
    b"0",
    b"-1",
    b"4000000000",
    b"9" * 30,
    b"nan",
    b"-inf",
    b"1e308",
    b"1e-300",
    b"",
    b"x",
    b"0.5",
    b"3",
    b"\xff",
]


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """A copy with one thing wrong; half of the time within the first bytes, where headers are."""
    end = len(content) if random.random() < 0.5 else min(len(content), 600)
    place = int(random.integers(end))
    length = int(random.integers(1, 12))
    kind = random.integers(7)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + content[place + length :]
    if kind == 2:
        return content[:place] + content[place : place + length] + content[place:]
    if kind == 3:
        return content[:place] + bytes([content[place] ^ 1 << int(random.integers(8))]) + content[place + 1 :]
    if kind == 4:
        return content[:place] + random.bytes(length) + content[place + length :]
    if kind == 5:
        return content[:place] + random.choice([b"\0", b"\xff"]) * length + content[place + length :]
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content[:end]))
    if not numbers:
        return content[:place]
    number = numbers[int(random.integers(len(numbers)))]
    return content[: number.start()] + NUMBERS[int(random.integers(len(NUMBERS)))] + content[number.end() :]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_refused_or_read(name, reader, tmp_path):
    verb, make = FORMATS[name]
    path = make(tmp_path)
    assert reader(verb, what_is_read(path))["outcome"] == "read"
    whole = path.read_bytes()
    packed = whole[:2] == b"\x1f\x8b"
    random = np.random.default_rng(sum(map(ord, name)))
    outcomes = []
    for copy in range(COPIES):
        inner = packed and copy % 2  # the header in it, not the stream
        content = gzip.compress(damaged(gzip.decompress(whole), random)) if inner else damaged(whole, random)
        path.write_bytes(content)
        answer = reader(verb, what_is_read(path))
        assert answer["outcome"] in ("read", "refused"), (copy, content[:400])
        assert answer["grown"] < MOST_MEMORY, (copy, content[:400])
        if answer["outcome"] == "refused":
            assert path.stem.split(".")[0] in answer["sentence"] or "series" in answer["sentence"]
            assert "\n" not in answer["sentence"]
        outcomes.append(answer["outcome"])
    assert "refused" in outcomes


def test_damaged_voxels_are_never_taken_for_good_ones(tmp_path):
    """A bit of the compressed voxels fell over: ITK reads MetaImages, larger NIfTI and some NRRD as if nothing were."""
    array = np.random.default_rng(3).integers(0, 4000, (60, 70, 80)).astype(np.int16)
    random = np.random.default_rng(4)
    for name in ("a.nii.gz", "a.nrrd", "a.mha"):
        write_image(Image(array, Grid.from_parts((80, 70, 60))), tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        for place in random.integers(1000, len(whole) - 8, 8):
            (tmp_path / name).write_bytes(damaged_at(whole, int(place)))
            with pytest.raises(InputError, match=rf"{re.escape(name)} (cannot be read|is truncated)"):
                read_image(tmp_path / name)
        (tmp_path / name).write_bytes(whole)
        assert np.array_equal(read_image(tmp_path / name).array, array)


def damaged_at(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti1Pair])
def test_scaled_integers_are_read_and_missed_where_they_are_truncated(tmp_path, suffix, kind):
    """Stored as 16 bits with a slope, read as 32-bit floats: what is on the disk counts."""
    suffix = suffix if kind is nibabel.Nifti1Image else suffix.replace("nii", "img")
    values = np.random.default_rng(5).normal(size=(9, 8, 7))
    image = kind(values, np.eye(4))
    image.set_data_dtype(np.int16)
    path = tmp_path / f"a{suffix}"
    nibabel.save(image, path)
    assert np.allclose(read_image(path).array, nibabel.load(path).get_fdata().T, atol=1e-6)
    whole = path.read_bytes()
    content = gzip.decompress(whole)[:-40] if suffix.endswith("gz") else whole[:-40]
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    with pytest.raises(InputError, match="truncated"):
        read_image(path)


@pytest.mark.slow
def test_what_follows_the_promised_voxels_is_not_unpacked(reader, tmp_path):
    """Half a gigabyte of zeros behind a small image, in half a megabyte."""
    bomb = gzip.compress(bytes(1 << 29), 9)
    small = by_nibabel("a.nii")(tmp_path).read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(small) + bomb)
    (tmp_path / "c.nrrd").write_bytes(nrrd(encoding="gzip")[: -len(BODY)] + bomb)
    for name in ("b.nii.gz", "c.nrrd"):
        answer = reader("image", tmp_path / name)
        assert answer["outcome"] == "read"
        assert answer["grown"] < 100 << 20


# -------------------------------------------------------------------------------------------------------- hostile files

BODY = bytes(range(250)) * 8  # 10 x 10 x 10 of 16 bits


def nrrd(body=BODY, **fields):
    lines = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "10 10 10",
        "space directions": "(2,0,0) (0,2,0) (0,0,2)",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(0,0,0)",
    } | {name.replace("_", " "): value for name, value in fields.items()}
    return ("NRRD0004\n" + "".join(f"{k}: {v}\n" for k, v in lines.items()) + "\n").encode() + body


def metaimage(body=BODY, **fields):
    lines = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "0 0 0",
        "ElementSpacing": "2 2 2",
        "DimSize": "10 10 10",
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    }
    last = lines.pop("ElementDataFile")
    lines = lines | fields | {"ElementDataFile": last}
    return "".join(f"{k} = {v}\n" for k, v in lines.items()).encode() + body


def nifti(*changes):
    """changes: (format, place in the header, values)."""
    header = bytearray(352)
    header[344:348] = b"n+1\0"
    good = [("<i", 0, 348), ("<8h", 40, 3, 10, 10, 10, 1, 1, 1, 1), ("<2h", 70, 4, 16), ("<4f", 76, 1, 2, 2, 2)]
    good += [("<f", 108, 352), ("<2h", 252, 0, 1), ("<12f", 280, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0)]
    for kind, place, *values in (*good, *changes):
        struct.pack_into(kind, header, place, *values)
    return bytes(header) + BODY


def json_points(*points):
    return json.dumps({"markups": [{"coordinateSystem": "LPS", "controlPoints": points}]}).encode()


def tfm(kind, parameters, fixed="0 0 0"):
    head = "#Insight Transform File V1.0\n#Transform 0\n"
    return f"{head}Transform: {kind}\nParameters: {parameters}\nFixedParameters: {fixed}\n".encode()


def seg(*lines):
    return nrrd().replace(b"\n\n", b"\nSegment0_ID:=a\n" + "".join(f"{x}\n" for x in lines).encode() + b"\n", 1)


def vector_nrrd(value):
    body = np.full((10, 10, 10, 3), value, "<f4").tobytes()
    directions = "none (2,0,0) (0,2,0) (0,0,2)"
    kinds = "vector domain domain domain"
    more = {"type": "float", "dimension": "4", "sizes": "3 10 10 10", "space_directions": directions, "kinds": kinds}
    return nrrd(body, **more)


NAN, INFINITE = float("nan"), float("inf")
LATTICE = "0 0 0 1 1 1 1 0 0 0 1 0 0 0 1"
#: file -> (its content, a word of the sentence)
HOSTILE = {
    "empty axis.nrrd": (nrrd(sizes="0 10 10"), "size is zero"),
    "negative axis.nrrd": (nrrd(sizes="-1 10 10"), "size"),
    "more than there are bytes.nrrd": (nrrd(sizes="99999999999 99999999999 10"), "too large"),
    "singular.nrrd": (nrrd(space_directions="(1,0,0) (1,0,0) (0,0,1)"), "cannot be read"),
    "no direction.nrrd": (nrrd(space_directions="(0,0,0) (0,1,0) (0,0,1)"), "unit vectors"),
    "not a number.nrrd": (nrrd(space_directions="(nan,0,0) (0,1,0) (0,0,1)"), "cannot be read"),
    "infinite.nrrd": (nrrd(space_origin="(1e999,0,0)"), "cannot be read"),
    "bzip2.nrrd": (nrrd(encoding="bzip2"), "bzip2"),
    "18 GB.nrrd": (nrrd(gzip.compress(BODY), encoding="gzip", sizes="3000 3000 1000"), "truncated|GiB"),
    "dimensions.mha": (metaimage(NDims="1000000"), "1000000 dimensions"),
    "negative dimensions.mha": (metaimage(NDims="-3"), "-3 dimensions"),
    "no dimensions.mha": (metaimage(NDims=""), "dimensions"),
    "empty axis.mha": (metaimage(DimSize="0 10 10"), "0 x 10 x 10"),
    "negative axis.mha": (metaimage(DimSize="-5 10 10"), "GiB"),
    "huge.mha": (metaimage(DimSize="2000000000 2000000000 10"), "GiB"),
    "no distance.mha": (metaimage(ElementSpacing="0 1 1"), "repair"),
    "flipped distance.mha": (metaimage(ElementSpacing="-1 1 1"), "repair"),
    "endless.mha": (metaimage(TransformMatrix="1 0 0 1e308 1 0 0 0 1"), "unit vectors"),
    "no direction.mha": (metaimage(TransformMatrix="0 0 0 0 0 0 0 0 0"), "cannot be read"),
    "6 GB.mha": (metaimage(zlib.compress(BODY), CompressedData="True", DimSize="3000 1000 1000"), "trunc|GiB"),
    "packed size.mha": (
        metaimage(zlib.compress(BODY), CompressedData="True", CompressedDataSize="99999999999999"),
        "cannot be read",
    ),
    "no axes.nii": (nifti(("<h", 40, 0)), "0 dimensions"),
    "nine axes.nii": (nifti(("<h", 40, 9)), "not recognized"),
    "negative axis.nii": (nifti(("<h", 42, -5)), "not recognized"),
    "huge.nii": (nifti(("<3h", 42, 32767, 32767, 32767)), "GiB"),
    "5 GB.nii.gz": (gzip.compress(nifti(("<3h", 42, 3000, 3000, 300))), "truncated|GiB"),
    "begins nowhere.nii": (nifti(("<f", 108, NAN)), "NaN"),
    "begins far away.nii": (nifti(("<f", 108, 1e30)), "truncated: 0 of"),
    "no orientation.nii": (nifti(("<12f", 280, *[0] * 12)), "orthonormal"),
    "not a number.nii": (nifti(("<12f", 280, *[NAN] * 12)), "unit vectors"),
    "singular.nii": (nifti(("<12f", 280, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0)), "orthonormal"),
    "unknown type.nii": (nifti(("<h", 70, 999)), "not recognized"),
    "second version.nii": (nibabel.Nifti2Image(np.ones((9, 9, 9), np.int16), np.eye(4)).to_bytes(), "NIfTI-1"),
    "colour.seg.nrrd": (seg("Segment0_Color:=1 2"), "segment 0"),
    "value.seg.nrrd": (seg("Segment0_LabelValue:=many"), "segment 0"),
    "layer.seg.nrrd": (seg("Segment0_Layer:=-1"), "layer -1"),
    "27 GB.seg.nrrd": (seg().replace(b"sizes: 10 10 10", b"sizes: 9000 9000 9000"), "GiB"),
    "deep.mrk.json": (b"[" * 100_000, "Recursion"),
    "null.mrk.json": (b'{"markups": [null]}', "cannot be read"),
    "list.mrk.json": (b"[]", "cannot be read"),
    "text.mrk.json": (json_points("a", "b"), "cannot be read"),
    "two coordinates.mrk.json": (json_points({"position": [1, 2]}), "cannot be read"),
    "infinite.mrk.json": (b'{"markups": [{"controlPoints": [{"position": [1e999, 2, 3]}]}]}', "not finite"),
    "digits.mrk.json": (b'{"markups": [{"controlPoints": [{"position": [' + b"9" * 5000 + b", 2, 3]}]}]}", "4300"),
    "utf-16.mrk.json": ('{"markups": []}'.encode("utf-16"), "utf-8"),
    "latin-1.fcsv": (FCSV.replace("Nasion", "Schädel").encode("latin-1"), "utf-8"),
    "no columns.fcsv": (b"# columns = x\n1\n", "cannot be read"),
    "long.csv": (b"label,l,p,s\n" + b"a" * 200_000 + b",1,2,3\n", "field larger"),
    "short.csv": (b"label,l,p,s\na,1\n", "not finite"),
    "promises.vtk": (VTK.replace("POINTS 2", "POINTS 2000000000").encode(), "cannot be read"),
    "two dimensions.tfm": (tfm("AffineTransform_double_2_2", "1 0 0 1 2 3", "0 0"), "not 3D"),
    "few.tfm": (tfm("AffineTransform_double_3_3", "1 0 0"), "parameters array size"),
    "nothing.tfm": (b"#Insight Transform File V1.0\n", "cannot be read"),
    "cut.tfm": (b"#Insight Transform File V1.0\n#Transform 0\nTransform: Aff", "cannot be read"),
    "no text.tfm": (tfm("AffineXTransform_double_3_3", "1").replace(b"X", b"\xff"), "cannot be read"),
    "5 GB.tfm": (tfm("DisplacementFieldTransform_double_3_3", "0 0 0", f"600 600 600 {LATTICE}"), "600 x 600 x 600"),
    "spline.tfm": (tfm("BSplineTransform_double_3_3", "0 0 0", f"600 600 600 {LATTICE}"), "600 x 600 x 600"),
    "cut.h5": (b"\x89HDF\r\n\x1a\n" + bytes(500), "cannot be read"),
    "not a number.nrrd as a transform": (vector_nrrd(NAN), "not a number"),
    "text.trch": (b"nonsense", "damaged"),
    "empty.trch": (b"", "damaged"),
}


def arguments(name, path, folder):
    """Of a command that reads the file."""
    image = str(by_nibabel("good.nii")(folder))
    out = ["--out", str(folder / "out")]
    if name.endswith(" as a transform"):
        return ["warp", "--input", image, "--reference", image, "--transform", str(path), "--out", f"{folder}/out.nii"]
    if path.suffix in (".json", ".fcsv", ".csv", ".vtk"):
        good = text("good.csv", "label,l,p,s\na,1,2,3\n")(folder)
        return ["register", "--fixed", image, "--moving", image, "--landmarks", str(path), str(good), *out]
    option = {".seg.nrrd": "--fixed-segmentation", ".tfm": "--initial", ".h5": "--initial", ".trch": "--model"}
    option = next((o for end, o in option.items() if path.name.endswith(end)), None)
    if option:
        return ["register", "--fixed", image, "--moving", image, option, str(path), *out]
    return ["register", "--fixed", str(path), "--moving", image, *out]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_costs_one_sentence(name, reader, tmp_path):
    """Exit code 2, one line that names the file, nothing written, and hardly any memory."""
    content, word = HOSTILE[name]
    path = tmp_path / name.removesuffix(" as a transform")
    path.write_bytes(content)
    words = arguments(name, path, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    answer = reader("command", *words)
    assert answer["outcome"] == "read", answer  # as opposed to an exception, or the end of the process
    assert answer["code"] == 2
    (line,) = (line for line in answer["stderr"].splitlines() if not re.fullmatch(r"\w+ +\d+%.*", line))
    assert line.startswith("icon-registration: ")
    assert re.search(word, line), line
    assert path.name in line or "crop or resample them" in line
    assert len(line) < 600
    assert sorted(tmp_path.rglob("*")) == before
    assert answer["grown"] < MOST_MEMORY
