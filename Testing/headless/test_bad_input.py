"""Whatever is wrong with the input: exit code 2, one sentence that names it and a remedy, and nothing left behind."""

import json
import re

import itk
import numpy as np
import pytest
import torch

from IconRegistrationLib.batch.command import main

SIZE = 12


def textured(seed=0, shape=(SIZE,) * 3):
    rng = np.random.default_rng(seed)
    return rng.normal(100, 20, shape).astype(np.float32)


def write(path, array, spacing=4.0, origin=(0, 0, 0)):
    image = itk.image_from_array(np.ascontiguousarray(array))
    image.SetSpacing([spacing] * array.ndim)
    image.SetOrigin(list(origin) + [0] * (array.ndim - 3) if array.ndim >= 3 else [0] * array.ndim)
    itk.imwrite(image, str(path))
    return path


def write_points(path, names):
    points = [{"label": name, "position": [10, 10, 10 + n]} for n, name in enumerate(names)]
    path.write_text(json.dumps({"markups": [{"coordinateSystem": "LPS", "controlPoints": points}]}))
    return path


def write_named(path, name):
    """A .seg.nrrd of one segment."""
    from IconRegistrationLib.io.segmentations import write_segmentation
    from IconRegistrationLib.spatial.geometry import Grid, Segment, Segmentation

    labels = np.zeros((SIZE,) * 3, np.uint8)
    labels[3:8, 3:8, 3:8] = 1
    grid = Grid.from_parts((SIZE,) * 3, (4, 4, 4))
    write_segmentation(Segmentation((labels,), (Segment(name, 1),), grid), path)
    return path


def write_rgb(path):
    itk.imwrite(itk.image_from_array(np.zeros((SIZE, SIZE, SIZE, 3), np.uint8), is_vector=True), str(path))
    return path


def write_header(path, text):
    path.write_text(text)
    return path


def with_one(value):
    array = textured()
    array[5, 5, 5] = value
    return array


NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 4000 4000 4000\n"
    "space directions: (1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
    "space origin: (0,0,0)\n\n"
)
MHA = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
    "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 1\nDimSize = 4000 4000 4000\n"
    "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
)


def fixed_is(make):
    """Arguments with another fixed volume."""
    return lambda folder: ["--fixed", str(make(folder))]


def options(*words):
    return lambda folder: [word.format(folder=folder) for word in words]


def files(*pairs):
    """Arguments of (option, maker, maker, ...): what the makers write follows the option."""
    return lambda folder: [
        word for option, *makers in pairs for word in (option, *(str(make(folder)) for make in makers))
    ]


def apart(folder):
    write(folder / "far.nii.gz", textured(1), origin=(5000, 0, 0))
    return ["--moving", str(folder / "far.nii.gz"), "--align", "none"]


def in_place_of_out(folder):
    (folder / "file").write_text("not a folder")
    return ["--out", str(folder / "file")]


def filled(folder):
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")
    return ["--out", str(folder / "full")]


def state_dict(folder):
    torch.save({"conv.weight": torch.zeros(3, 3)}, folder / "foreign.trch")
    return folder / "foreign.trch"


def missing_parent(folder):
    return ["--out", str(folder / "no" / "such" / "out")]


# name -> (arguments that replace or add to the good ones, a word with the value, a word of the remedy)
CASES = {
    "2D": (fixed_is(lambda d: write(d / "x.nii.gz", textured()[0])), "12 x 12", "volume"),
    "4D": (fixed_is(lambda d: write(d / "x.nii.gz", textured(0, (3, SIZE, SIZE, SIZE)))), "4 dimensions", "extract"),
    "RGB": (fixed_is(lambda d: write_rgb(d / "x.nrrd")), "3 values per voxel", "extract"),
    "empty file": (fixed_is(lambda d: write_header(d / "x.nrrd", "")), "x.nrrd", "give"),
    "truncated": (fixed_is(lambda d: write_header(d / "x.nrrd", NRRD.replace("4000", "20"))), "x.nrrd", "damaged"),
    "wrong type": (fixed_is(lambda d: write_header(d / "x.txt", "hello")), "x.txt", "give"),
    "missing": (fixed_is(lambda d: d / "none.nii.gz"), "none.nii.gz", "check the path"),
    "constant": (fixed_is(lambda d: write(d / "x.nii.gz", np.full((SIZE,) * 3, 7, np.int16))), "7", "Choose"),
    "NaN": (fixed_is(lambda d: write(d / "x.nrrd", with_one(np.nan))), "1 voxel", "replace"),
    "NaN in a NIfTI file": (fixed_is(lambda d: write(d / "x.nii.gz", with_one(np.nan))), "1 voxel", "replace"),
    "Inf": (fixed_is(lambda d: write(d / "x.nrrd", with_one(np.inf))), "1 voxel", "replace"),
    "one voxel thin": (fixed_is(lambda d: write(d / "x.nii.gz", textured()[:1])), "12 x 12 x 1", "volume"),
    "two voxels thin": (fixed_is(lambda d: write(d / "x.nii.gz", textured()[:2])), "12 x 12 x 2", "choose"),
    "giant nrrd": (fixed_is(lambda d: write_header(d / "x.nrrd", NRRD)), "4000 x 4000 x 4000", "crop"),
    "giant mha": (fixed_is(lambda d: write_header(d / "x.mha", MHA)), "GiB", "resample"),
    "no overlap": (apart, "1250", "align them first"),
    "segmentation elsewhere": (
        files(
            (
                "--fixed-segmentation",
                lambda d: write(d / "s.nii.gz", np.eye(SIZE, dtype=np.uint8)[None].repeat(SIZE, 0), origin=(900, 0, 0)),
            )
        ),
        "mm apart",
        "Choose",
    ),
    "segmentation of intensities": (
        files(("--fixed-segmentation", lambda d: write(d / "s.nii.gz", textured()))),
        "s.nii.gz",
        "give",
    ),
    "segmentation without segments": (
        files(("--fixed-segmentation", lambda d: write(d / "s.nii.gz", np.zeros((SIZE,) * 3, np.uint8)))),
        "s has no segments",
        "choose",
    ),
    "out is a file": (in_place_of_out, "file", "choose"),
    "out without parent": (missing_parent, "such", "create"),
    "out is not empty": (filled, "full", "--overwrite"),
    "out holds another's file": (lambda d: [*filled(d), "--overwrite"], "notes.txt", "move"),
    "input lies in out": (
        lambda d: ["--out", str(d / "inputs"), "--overwrite"],
        "fixed.nii.gz",
        "choose",
    ),
    "damaged weights": (
        files(("--model", lambda d: write_header(d / "w.trch", "nonsense"))),
        "w.trch",
        "download",
    ),
    "foreign weights": (files(("--model", state_dict)), "foreign.trch", "choose"),
    "missing weights": (options("--model", "{folder}/none.trch"), "none.trch", "choose"),
    "unknown model": (options("--model", "supericon"), "supericon", "choose"),
    "unknown similarity": (options("--similarity", "ssd"), "ssd", "choose"),
    "unknown alignment": (options("--align", "magic"), "magic", "choose"),
    "unknown device": (options("--device", "abacus"), "abacus", "choose"),
    "unknown option": (options("--speed", "9"), "--speed", "see icon-registration register --help"),
    "one path for two files": (
        lambda d: ["--transform-out", str(d / "x.nii.gz"), "--warped-out", str(d / "x.nii.gz")],
        "x.nii.gz",
        "choose another",
    ),
    "a word for a number": (options("--steps", "many"), "many", "--help"),
    "no steps": (options("--steps", "0"), "0", "at least"),
    "negative spacing": (options("--spacing", "-2"), "-2", "must"),
    "negative weight": (options("--label-weight", "-1"), "-1", "must"),
    "refined network without a network": (options("--refine", "network"), "none", "name a model"),
    "empty CT window": (options("--ct-window", "40", "40", "--fixed-modality", "ct"), "40", "must"),
    "empty quantiles": (options("--quantile-range", "0.9", "0.1", "--fixed-modality", "mri"), "0.9", "must"),
    "empty mask": (
        files(("--fixed-mask", lambda d: write(d / "m.nii.gz", np.zeros((SIZE,) * 3, np.uint8)))),
        "mask m",
        "omit",
    ),
    "empty region": (
        files(("--region", lambda d: write(d / "r.nii.gz", np.zeros((SIZE,) * 3, np.uint8)))),
        "mask r",
        "omit",
    ),
    "landmarks of other names": (
        files(
            (
                "--landmarks",
                lambda d: write_points(d / "a.mrk.json", "ab"),
                lambda d: write_points(d / "b.mrk.json", "xy"),
            )
        ),
        "(a, b)",
        "rename",
    ),
    "no landmarks": (
        files(
            (
                "--landmarks",
                lambda d: write_points(d / "a.mrk.json", ""),
                lambda d: write_points(d / "b.mrk.json", "xy"),
            )
        ),
        "a.mrk.json",
        "place",
    ),
    "guidance without segments": (options("--guide"), "--guide", "give"),
    "guidance by other names": (
        files(
            ("--fixed-segmentation", lambda d: write_named(d / "a.seg.nrrd", "liver")),
            ("--moving-segmentation", lambda d: write_named(d / "b.seg.nrrd", "spleen")),
            ("--guide",),
        ),
        "liver",
        "rename",
    ),
    "initial is no transform": (
        files(("--initial", lambda d: write_header(d / "t.tfm", "hello"))),
        "t.tfm",
        "damaged",
    ),
    "initial is an image": (options("--initial", "{folder}/inputs/fixed.nii.gz"), "fixed.nii.gz", "displacement"),
}


@pytest.fixture
def a_pair(tmp_path):
    folder = tmp_path / "inputs"
    folder.mkdir()
    write(folder / "fixed.nii.gz", textured())
    write(folder / "moving.nii.gz", textured())
    return tmp_path


def refused(arguments, value, remedy, folder, capfd):
    """Exit code 2, one sentence on stderr (after the progress so far), nothing new in `folder`."""
    before = sorted(folder.rglob("*"))
    capfd.readouterr()
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert not out
    (line,) = (line for line in err.splitlines() if not re.fullmatch(r"\w+ +\d+%.*", line))
    assert line.startswith("icon-registration: ")
    assert line.endswith((".", "?"))
    assert value in line
    assert remedy in line
    assert "Traceback" not in err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_in_one_sentence(case, a_pair, capfd):
    change, value, remedy = CASES[case]
    good = {
        "--fixed": str(a_pair / "inputs" / "fixed.nii.gz"),
        "--moving": str(a_pair / "inputs" / "moving.nii.gz"),
        "--out": str(a_pair / "out"),
    }
    changed = change(a_pair)
    arguments = ["register", *(word for pair in good.items() if pair[0] not in changed for word in pair), *changed]
    refused(arguments, value, remedy, a_pair, capfd)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU here, so asking for it is right")
def test_cuda_that_is_not_there(a_pair, capfd):
    inputs = [f"--{side}={a_pair / 'inputs' / side}.nii.gz" for side in ("fixed", "moving")]
    refused(
        ["register", *inputs, f"--out={a_pair / 'out'}", "--device=cuda"], "cuda", "choose auto or cpu", a_pair, capfd
    )


def test_the_giant_sentence_says_what_is_needed_and_what_there_is(a_pair, capfd):
    write_header(a_pair / "x.nrrd", NRRD)
    arguments = ["register", "--fixed", str(a_pair / "x.nrrd"), "--moving", str(a_pair / "inputs" / "moving.nii.gz")]
    assert main([*arguments, "--out", str(a_pair / "out")]) == 2
    numbers = [int(word) for word in capfd.readouterr().err.split() if word.isdigit()]
    assert max(numbers[-2:]) == numbers[-2] > 1000  # GiB needed, more than the GiB that are there


WARPS = {
    "no reference": (["--reference", None], "image", "--reference"),
    "a slice of labels": (["--kind", "labels", "--interpolation", "cubic"], "cubic", "nearest, label"),
    "a background of labels": (["--kind", "labels", "--background", "3"], "3", "omit"),
    "unknown kind": (["--kind", "mesh"], "mesh", "--help"),
    "unknown interpolation": (["--interpolation", "sinc"], "sinc", "linear, cubic, nearest"),
    "the input replaced": (["--out", "{folder}/inputs/moving.nii.gz"], "moving.nii.gz", "choose another name"),
    "the reference replaced": (["--out", "{folder}/inputs/fixed.nii.gz"], "fixed.nii.gz", "choose another name"),
    "the transform replaced": (["--out", "{folder}/t.tfm"], "t.tfm", "choose another name"),
    "no transform": (["--transform", "{folder}/none.h5"], "none.h5", "check"),
    "an image for a transform": (["--transform", "{folder}/inputs/fixed.nii.gz"], "1 values per voxel", "displacement"),
    "unwritable type": (["--out", "{folder}/out.png"], "out.png", "name it"),
    "no folder": (["--out", "{folder}/none/out.nrrd"], "none", "create"),
    "points for an image": (
        ["--input", "{folder}/p.txt", "--kind", "landmarks", "--reference", None],
        "p.txt",
        "check",
    ),
}


@pytest.mark.parametrize("case", WARPS)
def test_bad_warp_is_refused_in_one_sentence(case, a_pair, capfd):
    change, value, remedy = WARPS[case]
    transform = itk.TranslationTransform[itk.D, 3].New()
    itk.transformwrite([transform], str(a_pair / "t.tfm"))
    good = {
        "--input": str(a_pair / "inputs" / "moving.nii.gz"),
        "--reference": str(a_pair / "inputs" / "fixed.nii.gz"),
        "--transform": str(a_pair / "t.tfm"),
        "--out": str(a_pair / "out.nii.gz"),
    }
    for option, word in zip(change[::2], change[1::2], strict=True):
        good[option] = word and word.format(folder=a_pair)
    words = [word for option, value in good.items() if value for word in (option, value)]
    refused(["warp", *words], value, remedy, a_pair, capfd)


def test_unknown_command_and_model(tmp_path, capfd):
    refused(["transmogrify"], "transmogrify", "--help", tmp_path, capfd)
    refused(["models", "supericon"], "supericon", "choose", tmp_path, capfd)
    refused(["models", "--download"], "--download", "needs the name", tmp_path, capfd)
    refused(["models", "none", "--download"], "none", "choose", tmp_path, capfd)
    refused(["demo", "--size", "4", "--out", str(tmp_path / "d")], "4", "choose", tmp_path, capfd)
