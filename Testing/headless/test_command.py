"""The command from its arguments to its files: what is written, what is left behind, and what it exits with."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time

import itk
import numpy as np
import pytest
from phantoms import phantom
from waiting import PATIENCE

from IconRegistrationLib.batch import outputs
from IconRegistrationLib.batch import pair as one_pair
from IconRegistrationLib.batch.command import main
from IconRegistrationLib.errors import Cancelled, DeviceMemoryError
from IconRegistrationLib.io.images import read_image
from IconRegistrationLib.io.landmarks import read_landmarks
from IconRegistrationLib.io.segmentations import read_segmentation
from IconRegistrationLib.io.transforms import read_transform
from IconRegistrationLib.workflow import pipeline
from IconRegistrationLib.workflow.folder import output_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def a_phantom():
    return phantom(28)


@pytest.fixture(scope="module")
def inputs(phantom_files):
    """The folder with fixed.nii.gz, moving.nii.gz, *.seg.nrrd and *.mrk.json."""
    return phantom_files


QUICK = ["--align", "rigid", "--steps", "4", "--spacing", "10"]


def pair(inputs):
    return ["register", "--fixed", str(inputs / "fixed.nii.gz"), "--moving", str(inputs / "moving.nii.gz")]


@pytest.fixture(scope="module")
def a_run(inputs, tmp_path_factory):
    """(folder of results, JSON objects of stdout) of a registration with everything that can be given."""
    folder = tmp_path_factory.mktemp("run") / "out"
    more = ["--landmarks", str(inputs / "fixed.mrk.json"), str(inputs / "moving.mrk.json"), "--moving-resolution"]
    for side in ("fixed", "moving"):
        more += [f"--{side}-segmentation", str(inputs / f"{side}.seg.nrrd")]
    more += ["--json", "--no-scene", "--no-pictures", "--out", str(folder)]
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        assert main([*pair(inputs), *more, *QUICK]) == 0
    return folder, [json.loads(line) for line in stdout.getvalue().splitlines()]


# ---------------------------------------------------------------------------------------------------------- results


def python(*words):
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True).stdout


def test_help_needs_nothing_heavy():
    code = (
        "import sys; from IconRegistrationLib.batch.command import build_parser; build_parser().format_help();"
        "print(sorted({'torch', 'itk', 'vtk', 'slicer', 'matplotlib'} & set(sys.modules)))"
    )
    assert python("-c", code).strip() == "[]"
    assert python("-m", "IconRegistrationLib.batch.command", "--help").startswith("usage: icon-registration")


def test_progress_and_result_are_one_json_object_a_line(a_run):
    folder, lines = a_run
    *steps, last = lines
    fractions = [step["fraction"] for step in steps]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] <= 1
    stages = list(dict.fromkeys(step["stage"] for step in steps))
    assert stages[:2] == ["model", "alignment"]
    assert "refinement" in stages
    result = last["result"]
    assert result["folder"] == str(folder)
    assert set(result["files"]) == {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(result["files"]) <= set(outputs.FILES)
    assert json.loads((folder / "report.json").read_text()) == result["report"]


def test_the_report_says_what_was_done(a_run):
    text = (a_run[0] / "report.json").read_text()
    report = json.loads(text)
    assert report["provenance"]["settings"]["align"] == "rigid"
    assert report["provenance"]["settings"]["steps"] == 4
    assert "liver" in text
    assert "heart apex" in text
    assert "liver" in (a_run[0] / "report.csv").read_text()
    assert "Dice" in (a_run[0] / "report.txt").read_text()


def test_the_transform_brings_fixed_points_closer_to_the_truth(a_run, a_phantom):
    field = read_transform(a_run[0] / "transform.nii.gz")
    found = a_phantom.end_point_error(lambda points: transformed(field, points), step=4)
    assert found.mean() < 0.35 * a_phantom.end_point_error(lambda points: points, step=4).mean()


def transformed(transform, points):
    return np.array([transform.TransformPoint(point.tolist()) for point in points])


@pytest.mark.parametrize("name", ["transform", "inverse"])
def test_both_files_of_a_transform_hold_the_same(a_run, a_phantom, name):
    image_file, itk_file = (read_transform(a_run[0] / f"{name}.{suffix}") for suffix in ("nii.gz", "h5"))
    points = a_phantom.fixed_landmarks.points
    assert np.abs(transformed(image_file, points) - transformed(itk_file, points)).max() < 1e-3
    assert np.abs(transformed(image_file, points) - points).max() > 5


def test_the_warped_image_is_what_itk_makes_of_the_transform(a_run, inputs):
    moving, fixed = (itk.imread(str(inputs / f"{side}.nii.gz"), itk.F) for side in ("moving", "fixed"))
    (transform,) = itk.transformread(str(a_run[0] / "transform.h5"))
    transform = itk.down_cast(transform)
    expected = itk.array_from_image(
        itk.resample_image_filter(moving, transform=transform, reference_image=fixed, use_reference_image=True)
    )
    warped = itk.imread(str(a_run[0] / "warped.nii.gz"))
    assert itk.size(warped) == itk.size(fixed)
    array = itk.array_from_image(warped)
    assert array.dtype == np.int16  # the type of the moving image
    seen = expected != 0  # ITK fills with 0 what lies outside
    assert seen.mean() > 0.6
    close = np.abs(array[seen] - expected[seen]) <= 1.0
    assert close.mean() > 0.99


def test_the_finer_warp_has_the_moving_resolution_in_the_fixed_box(a_run, a_phantom):
    fine = read_image(a_run[0] / "warped_fine.nii.gz").grid
    assert fine.extent == pytest.approx(a_phantom.fixed.grid.extent, abs=1e-3)
    assert np.abs(fine.centre - a_phantom.fixed.grid.centre).max() < 1e-3
    assert (fine.spacing <= a_phantom.fixed.grid.spacing + 1e-6).any()
    assert fine.shape != a_phantom.fixed.grid.shape


def test_structures_and_landmarks_meet_their_counterparts(a_run, a_phantom):
    warped = read_segmentation(a_run[0] / "warped_segmentation.seg.nrrd")
    fixed, moving = a_phantom.fixed_segmentation, a_phantom.moving_segmentation
    assert [s.name for s in warped.segments] == [s.name for s in moving.segments]
    assert warped.by_name()["liver"].tags == moving.by_name()["liver"].tags
    for name in ("liver", "right lung", "thorax"):
        a, b = (s.mask(s.by_name()[name]) for s in (warped, fixed))
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.85
    carried = read_landmarks(a_run[0] / "warped_landmarks.mrk.json")
    assert carried.labels == a_phantom.fixed_landmarks.labels
    error = np.linalg.norm(carried.points - a_phantom.fixed_landmarks.points, axis=1)
    assert error.mean() < 10  # mm, at voxels of 10 mm; 22 mm before


def test_scene_and_pictures(inputs, tmp_path):
    review = pytest.importorskip("IconRegistrationLib.mrml.pictures")
    embedded = pytest.importorskip("IconRegistrationLib.mrml.embedded")
    pytest.importorskip("slicer", reason="slicer-core is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    embedded.boot()
    if reason := review.can_render():
        pytest.skip(reason)
    assert main([*pair(inputs), "--align", "centre", "--refine", "off", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "scene.mrb").stat().st_size > 10_000
    for name in ("before", "after", "grid"):
        assert (tmp_path / "out" / "pictures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


# -------------------------------------------------------------------------------------------------------------- warp


def test_warp_repeats_what_register_wrote(a_run, inputs, tmp_path):
    run = a_run[0]

    def warp(source, transform, out, *more):
        assert (
            main(["warp", "--input", str(source), "--transform", str(run / transform), "--out", str(out), *more]) == 0
        )

    reference = ["--reference", str(inputs / "fixed.nii.gz")]
    for transform in ("transform.nii.gz", "transform.h5"):
        warp(inputs / "moving.nii.gz", transform, tmp_path / "image.nrrd", *reference)
        image, expected = read_image(tmp_path / "image.nrrd"), read_image(run / "warped.nii.gz")
        assert image.grid.is_close(expected.grid)
        assert (np.abs(image.array.astype(int) - expected.array) > 1).mean() < 1e-3
        (tmp_path / "image.nrrd").unlink()
    warp(inputs / "moving.seg.nrrd", "transform.nii.gz", tmp_path / "labels.seg.nrrd", *reference)
    ours = read_segmentation(tmp_path / "labels.seg.nrrd")
    theirs = read_segmentation(run / "warped_segmentation.seg.nrrd")
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        assert (a != b).mean() < 1e-3
    warp(inputs / "moving.mrk.json", "inverse.h5", tmp_path / "points.mrk.json")
    points = read_landmarks(tmp_path / "points.mrk.json").points
    assert np.abs(points - read_landmarks(run / "warped_landmarks.mrk.json").points).max() < 1e-2


# -------------------------------------------------------------------------------------------- whole or not at all


@pytest.fixture
def no_work(monkeypatch):
    """Registration and writing in no time: one file, report.txt."""

    class Report:
        def table(self):
            return "a table"

        def to_dict(self):
            return {}

    class Results:
        report = Report()

    def write(folder, inputs, results, **_):
        (folder / "report.txt").write_text("new")
        return []

    monkeypatch.setattr(pipeline, "compute", lambda *_, **__: Results())
    monkeypatch.setattr(one_pair, "write_results", write)


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Cancelled(), 130, "Cancelled; nothing was changed."),
        (KeyboardInterrupt(), 130, "Cancelled; nothing was changed."),
        (DeviceMemoryError("8 GiB are too little; choose cpu."), 1, "choose cpu"),
        (MemoryError(), 1, "out of memory"),
        (OSError(28, "No space left on device"), 1, "No space left"),
        (ZeroDivisionError("a bug"), 1, "Unexpected ZeroDivisionError: a bug. Run again with --debug"),
    ],
)
@pytest.mark.parametrize("before", [None, "old"])
def test_a_run_that_ends_early_leaves_what_was(
    error, code, said, before, inputs, tmp_path, no_work, monkeypatch, capfd
):
    def fails(folder, *_, **__):
        (folder / "transform.nii.gz").write_text("half of it")
        raise error

    monkeypatch.setattr(one_pair, "write_results", fails)
    if before:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "report.txt").write_text(before)
    assert main([*pair(inputs), "--out", str(tmp_path / "out"), "--overwrite"]) == code
    err = capfd.readouterr().err
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err
    assert left_in(tmp_path) == (["out"] if before else [])
    if before:
        assert left_in(tmp_path / "out") == ["report.txt"]
        assert (tmp_path / "out" / "report.txt").read_text() == "old"


def test_debug_shows_where(inputs, tmp_path, no_work, monkeypatch, capfd):
    monkeypatch.setattr(one_pair, "write_results", lambda *_, **__: 1 / 0)
    assert main([*pair(inputs), "--out", str(tmp_path / "out"), "--debug"]) == 1
    assert "Traceback" in capfd.readouterr().err


def test_overwrite_replaces_the_whole_folder(inputs, tmp_path, no_work):
    out = tmp_path / "out"
    (out / "pictures").mkdir(parents=True)
    (out / "pictures" / "before.png").write_text("old")
    (out / "report.txt").write_text("old")
    assert main([*pair(inputs), "--out", str(out), "--overwrite"]) == 0
    assert left_in(tmp_path) == ["out"]
    assert left_in(out) == ["report.txt"]
    assert (out / "report.txt").read_text() == "new"


def test_an_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.txt").write_text("old")
    rename = type(tmp_path).rename

    def refuses(self, target):
        if ".partial-" in self.name:
            raise OSError("the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", refuses)
    with pytest.raises(OSError, match="the disk is gone"), output_folder(tmp_path / "out") as partial:
        (partial / "report.txt").write_text("new")
    assert left_in(tmp_path) == ["out"]
    assert (tmp_path / "out" / "report.txt").read_text() == "old"


#: A run that says "ready" when half of its files are written, and then waits. Reading and computing are left out, so
#: that it starts at once.
STOPPABLE = """
import sys, time, types
from IconRegistrationLib.batch import command, pair
from IconRegistrationLib.batch.commands import find_commands, register
find_commands()  # all of them, before others take the place of what they import
def write(folder, *_, **__):
    (folder / "transform.nii.gz").write_text("half of it")
    print("ready", flush=True)
    time.sleep(1000)
sys.modules["IconRegistrationLib.workflow.pipeline"] = types.SimpleNamespace(compute=lambda *_, **__: None)
sys.modules["IconRegistrationLib.networks.catalog"] = types.SimpleNamespace(load_model=None)
register.check_files = register.check_settings = pair.read_inputs = lambda *_: None
pair.write_results = write
sys.exit(command.main(sys.argv[1:]))
"""


@pytest.fixture
def a_stoppable_run(inputs, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPABLE, *pair(inputs), "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a Ctrl-C for the tests is not one for it
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM and SIGINT for other processes")
@pytest.mark.parametrize(("sent", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_clears_everything_away(a_stoppable_run, tmp_path, sent, code):
    assert len(left_in(tmp_path)) == 1
    a_stoppable_run.send_signal(getattr(signal, sent))
    _, err = a_stoppable_run.communicate(timeout=PATIENCE)
    assert a_stoppable_run.returncode == code
    assert "nothing was changed" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert left_in(tmp_path) == []


def test_what_a_killed_run_leaves_goes_with_the_next(a_stoppable_run, inputs, tmp_path, no_work):
    a_stoppable_run.kill()
    a_stoppable_run.communicate()
    (remains,) = left_in(tmp_path)
    assert remains.startswith(".out.partial-")
    assert main([*pair(inputs), "--out", str(tmp_path / "out")]) == 0
    assert left_in(tmp_path) == ["out"]


def test_a_run_beside_is_left_alone_and_what_was_moved_aside_comes_back(a_stoppable_run, tmp_path):
    (alive,) = left_in(tmp_path)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    old = tmp_path / f".out.old-{socket.gethostname()}-{gone.pid}"
    old.mkdir()
    (old / "report.txt").write_text("old")
    elsewhere = tmp_path / ".out.partial-another-machine-1"
    elsewhere.mkdir()
    with pytest.raises(Cancelled), output_folder(tmp_path / "out"):
        raise Cancelled
    assert left_in(tmp_path) == sorted([alive, elsewhere.name, "out"])
    assert (tmp_path / "out" / "report.txt").read_text() == "old"


# ---------------------------------------------------------------------------------------------------- models and demo


def test_models_are_listed_without_any_download(tmp_path, capfd):
    assert main(["models", "--json", "--weights-dir", str(tmp_path)]) == 0
    models = {entry["name"]: entry for entry in json.loads(capfd.readouterr().out)["models"]}
    assert set(models) == {"none", "builtin", "unigradicon", "multigradicon"}
    assert models["unigradicon"]["downloaded"] is False
    assert models["unigradicon"]["weights"].startswith(str(tmp_path))
    assert main(["models", "--weights-dir", str(tmp_path)]) == 0
    text = capfd.readouterr().out
    assert "Apache-2.0" in text
    assert "not downloaded yet" in text
    assert left_in(tmp_path) == []


def test_demo_beats_the_starting_error_and_leaves_its_inputs(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(pipeline, "compute", quickly(pipeline.compute))
    start = time.monotonic()
    assert main(["demo", "--size", "24", "--out", str(tmp_path / "demo")]) == 0
    out, err = capfd.readouterr()
    before, after = (float(line.split()[1]) for line in out.splitlines() if line.split()[:1] in (["before"], ["after"]))
    assert after < 0.5 * before
    assert left_in(tmp_path / "demo" / "inputs") == left_in_inputs()
    assert str(tmp_path / "demo") in out
    stages = [line.split()[0] for line in err.splitlines()]
    assert stages[0] == "phantom"
    assert len(stages) < 20 + (time.monotonic() - start) / 5  # a line for a stage, or every five seconds


def left_in_inputs():
    return sorted(name.split("/")[1] for name in outputs.FILES if name.startswith("inputs/"))


def quickly(compute):
    from IconRegistrationLib.registration.settings import Settings

    return lambda inputs, **options: compute(inputs, Settings(align="mass", steps=3, spacing=12), **options)
