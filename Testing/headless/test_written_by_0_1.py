"""What version 0.1 wrote opens, and goes on: scenes, cohorts, manifests, folders of results, model cards.

Testing/data/written_by_0_1/README.md says what the files are. Where a test fails, the code has to read them again.
"""

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from IconRegistrationLib.batch.cohort.entries import Entry
from IconRegistrationLib.batch.cohort.manifest import read_manifest
from IconRegistrationLib.batch.command import main
from IconRegistrationLib.batch.pair import PairFiles
from IconRegistrationLib.io.images import read_image
from IconRegistrationLib.io.landmarks import read_landmarks
from IconRegistrationLib.io.segmentations import read_segmentation
from IconRegistrationLib.io.transforms import read_transform
from IconRegistrationLib.networks.catalog import find_card, load_model
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.workflow.roles import complete_roles

FILES = Path(__file__).parents[1] / "data" / "written_by_0_1"
#: The folder of the cohort when it was written, and when its inputs were last changed (ns).
FOLDER, CHANGED = "/tmp/study", 1_790_000_000_000_000_000
POINTS = np.array([[0.0, 0.0, 0.0], [40.0, -30.0, 50.0], [-60.0, 20.0, -40.0]])  #: (x, y, z) mm, LPS
#: Where scene.mrb's transform nodes carry POINTS, mm.
FORWARD = [[-12.849873, 14.993164, 8.465976], [23.136743, -10.664010, 60.603158], [-68.480794, 31.004152, -34.165623]]
BACKWARD = [[12.080145, -15.291914, -6.572585], [54.797069, -47.948069, 40.318883], [-47.028512, 7.939777, -44.867680]]


# --------------------------------------------------------------------------------------------------------- the scene


@pytest.fixture
def a_scene(scene):
    """scene.mrb, loaded."""
    from IconRegistrationLib.mrml.scene import load_scene

    load_scene(scene, FILES / "scene.mrb")
    return scene


def named(scene, class_name, name):
    from IconRegistrationLib.mrml.scene import nodes_of_class

    [node] = [node for node in nodes_of_class(scene, class_name) if node.GetName() == name]
    return node


def forward_of(scene):
    return named(scene, "vtkMRMLGridTransformNode", "Phantom exhale to Phantom inhale")


def test_a_scene_knows_its_request(a_scene):
    from IconRegistrationLib.mrml.registration import inputs_from_nodes, request_of

    request = request_of(forward_of(a_scene))
    assert {name: node.GetName() for name, node in request.nodes.items()} == {
        "fixed": "Phantom inhale",
        "moving": "Phantom exhale",
        "fixed_segmentation": "Phantom inhale organs",
        "moving_segmentation": "Phantom exhale organs",
        "fixed_landmarks": "Phantom inhale landmarks",
        "moving_landmarks": "Phantom exhale landmarks",
        "fixed_mask": "Phantom inhale organs",
        "initial": "start",
        "region": "box",
    }
    assert request.settings == Settings(
        align="none",
        similarity="lncc",
        steps=3,
        spacing=40.0,
        padding=2.0,
        ct_window=(-900.0, 700.0),
        label_weight=0.5,
        device="cpu",
    )
    segments = ["Segment_0_1", "Segment_0_2", "Segment_0_3"]
    assert (list(request.fixed_segments), list(request.moving_segments)) == (segments, segments)
    assert request.roles == {"carry": True, "compare": True, "focus": False, "guide": True}
    assert not request.moving_resolution
    assert (request.jacobian, request.distrust) == (True, True)

    for node in request.nodes.values():  # the moving ones lie under the result
        if node.IsA("vtkMRMLTransformableNode"):
            node.SetAndObserveTransformNodeID(None)
    inputs = inputs_from_nodes(request)
    assert inputs.fixed.grid.size == read_image(FILES / "cohort" / "inputs" / "fixed.nii.gz").grid.size
    assert [segment.identifier for segment in inputs.moving_segmentation.segments] == segments
    assert len(inputs.fixed_landmarks.points) == len(inputs.moving_landmarks.points) > 5
    assert inputs.fixed_mask.array.any()
    assert inputs.initial[0, 3] == pytest.approx(5)  # mm
    assert inputs.region.extent == pytest.approx([300, 220, 260])


def test_a_scene_knows_its_outputs_and_report(a_scene):
    from IconRegistrationLib.mrml.registration import PROVENANCE_ATTRIBUTE, outputs_of, request_of
    from IconRegistrationLib.mrml.segmentations import segmentation_from_node
    from IconRegistrationLib.mrml.transforms import transform_points
    from IconRegistrationLib.mrml.volumes import image_from_node

    outputs = outputs_of(forward_of(a_scene))
    nodes = {name: node for name, node in vars(outputs).items() if name != "report" and node is not None}
    assert nodes.keys() == {
        *("forward", "backward", "warped_volume", "warped_segmentation", "warped_landmarks", "jacobian", "distrust")
    }
    for node in nodes.values():
        assert json.loads(node.GetAttribute(PROVENANCE_ATTRIBUTE))["settings"]["spacing"] == 40.0
        assert request_of(node).fixed.GetName() == "Phantom inhale"
    np.testing.assert_allclose(transform_points(outputs.forward, POINTS), FORWARD, atol=1e-3)
    np.testing.assert_allclose(transform_points(outputs.backward, POINTS), BACKWARD, atol=1e-3)
    fixed = image_from_node(named(a_scene, "vtkMRMLScalarVolumeNode", "Phantom inhale"))
    assert image_from_node(outputs.warped_volume).grid.is_close(fixed.grid, 1e-3)
    assert len(segmentation_from_node(outputs.warped_segmentation).segments) == 3

    error = outputs.report.target_registration_error
    assert (error.before, error.after) == pytest.approx((21.550557, 11.045797), abs=1e-5)
    assert len(outputs.report.segments) == 3
    assert outputs.report.verdicts
    assert "Verdict" in outputs.report.table()


def test_a_scene_is_registered_again_into_its_nodes(a_scene):
    from IconRegistrationLib.mrml.registration import ResultNodes, outputs_of, register_nodes, request_of
    from IconRegistrationLib.mrml.transforms import transform_points

    request, earlier = request_of(forward_of(a_scene)), outputs_of(forward_of(a_scene))
    for node in (request.moving, request.moving_segmentation, request.moving_landmarks):
        assert node.GetParentTransformNode() is earlier.forward
        node.SetAndObserveTransformNodeID(None)
    asked = {name: value for name, value in vars(request).items() if name not in ("fixed", "moving")}
    again = register_nodes(request.fixed, request.moving, outputs=earlier, **asked)
    assert {name: node for name, node in vars(again).items() if name != "report"} == {
        name: node for name, node in vars(earlier).items() if name != "report"
    }
    assert isinstance(again, ResultNodes)
    # a later version may find another optimum, not another anatomy
    assert np.linalg.norm(transform_points(again.forward, POINTS) - FORWARD, axis=1).max() < 5
    assert again.report.target_registration_error.after < 15


# -------------------------------------------------------------------------------------------------------- the cohort


class Study:
    """A copy of the cohort, with the means to go on with it."""

    def __init__(self, folder: Path, scheduler: str):
        shutil.copytree(FILES / "cohort", folder)
        self.folder, self.out, self._scheduler = folder, folder / "study", scheduler
        for path in (folder / "inputs").iterdir():
            os.utime(path, ns=(CHANGED, CHANGED))

    def go_on(self, *more: str) -> int:
        """The exit code of the command of 0.1, with its folder's name of today."""
        settings = ("--align", "mass", "--steps", "4", "--spacing", "40", "--device", "cpu")
        where = (str(self.folder / "pairs.csv"), "--out", str(self.out), "--scheduler", self._scheduler)
        return main(["cohort", *where, *settings, "--no-scene", "--no-pictures", "--json", *more])

    def row(self, name: str) -> dict:
        paths = [self.out / "pairs" / name / "row.json", self.out / "failed" / f"{name}.json"]
        [path] = [path for path in paths if path.exists()]
        return json.loads(path.read_text())

    def state(self, name: str) -> dict:
        """Content and time of change of every file of a finished pair."""
        files = sorted((self.out / "pairs" / name).rglob("*"))
        assert files
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    def states(self) -> dict[str, str]:
        with open(self.out / "cohort.csv", newline="", encoding="utf-8") as file:
            return {line["id"]: line["state"] for line in csv.DictReader(file)}


@pytest.fixture(scope="module")
def scheduler(one_thread):
    """The address of a scheduler whose one worker is a thread of this process: no time to start others."""
    distributed = pytest.importorskip("distributed", reason="needs Dask")
    pytest.importorskip("cryptography", reason="needs cryptography")
    options = {"processes": False, "n_workers": 1, "threads_per_worker": 1, "protocol": "tcp://"}
    with distributed.LocalCluster(**options, host="127.0.0.1", dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def a_study(tmp_path, scheduler):
    return Study(tmp_path / "moved", scheduler)


def result_of(capfd) -> dict:
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    [result] = [line["result"] for line in lines if "result" in line]
    return {name: result[name] for name in ("done", "failed", "left")}


def test_a_stopped_cohort_goes_on_where_it_was(a_study, capfd):
    rows = [*(a_study.out / "pairs").glob("*/row.json"), *(a_study.out / "failed").iterdir()]
    for path in rows:  # as if it had always been here
        path.write_text(path.read_text().replace(FOLDER, str(a_study.folder)))
    before, failure = a_study.state("first"), a_study.row("torn")

    assert a_study.go_on() == 3
    assert result_of(capfd) == {"done": 2, "failed": 1, "left": 0}
    assert a_study.state("first") == before, "a finished pair was touched: is its key another?"
    assert a_study.row("torn") == failure, "a failed pair was tried again: is its key another?"
    third = a_study.row("third")
    assert third["settings"].items() >= {"steps": 4, "spacing": 40.0, "align": "mass"}.items()
    assert third["report"]["verdicts"]
    assert {"transform.nii.gz", "inverse.h5", "warped.nii.gz"} <= a_study.state("third").keys()
    assert not list((a_study.out / "pairs").glob(".*")), "what the killed driver left is still there"
    assert a_study.states() == {"first": "done", "torn": "failed", "third": "done"}
    page = (a_study.out / "cohort.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("first", "torn", "third"))

    shutil.copyfile(a_study.folder / "inputs" / "moving.nii.gz", a_study.folder / "inputs" / "torn.nii.gz")
    assert a_study.go_on("--retry-failed") == 0
    assert result_of(capfd) == {"done": 3, "failed": 0, "left": 0}
    assert a_study.state("first") == before
    assert not list((a_study.out / "failed").iterdir())
    assert a_study.states() == {"first": "done", "torn": "done", "third": "done"}


def test_a_cohort_that_was_moved_is_known_by_its_contents(a_study, capfd):
    """Rows name files that are elsewhere now: the contents are looked at, and nothing finished is registered again."""
    manifest = a_study.folder / "pairs.csv"
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:2]))
    before, row = a_study.state("first"), a_study.row("first")
    assert a_study.go_on() == 0
    assert result_of(capfd) == {"done": 1, "failed": 0, "left": 0}
    after = a_study.state("first")
    assert {name: after[name] for name in after if name != "row.json"} == {
        name: before[name] for name in before if name != "row.json"
    }
    now = a_study.row("first")
    assert {**now, "files": None} == {**row, "files": None}, "more than the files' paths changed"
    assert now["files"]["fixed"] == {
        **row["files"]["fixed"],
        "path": str(a_study.folder / "inputs" / "fixed.nii.gz"),
    }


# --------------------------------------------------------------------------------------------------------- manifests


def entries(name: str, **options) -> list[Entry]:
    return read_manifest(FILES / "cohort" / name, Settings(device="cpu"), **options)


def inputs(**roles: str) -> dict[str, str]:
    """Absolute paths of files below inputs/, by their role."""
    return {role: os.path.abspath(FILES / "cohort" / "inputs" / name) for role, name in roles.items()}


def test_a_table():
    images = {"fixed": "fixed.nii.gz", "moving": "moving.nii.gz"}
    organs = {"fixed_segmentation": "fixed.seg.nrrd", "moving_segmentation": "moving.seg.nrrd"}
    points = {"fixed_landmarks": "fixed.mrk.json", "moving_landmarks": "moving.mrk.json"}
    assert entries("pairs.csv") == [
        Entry("first", PairFiles(**inputs(**images, **organs, **points), settings=Settings(steps=3, device="cpu"))),
        Entry("torn", PairFiles(**inputs(fixed="fixed.nii.gz", moving="torn.nii.gz"), settings=Settings(device="cpu"))),
        Entry(
            "third",
            PairFiles(
                **inputs(fixed="fixed.nii.gz", moving="moving 2.nii.gz", fixed_segmentation="fixed.seg.nrrd"),
                settings=Settings(device="cpu"),
            ),
        ),
    ]


def test_json_with_settings():
    window = {"ct_window": (-160, 240), "device": "cpu"}
    organs = {"fixed_segmentation": "fixed.seg.nrrd", "moving_segmentation": "moving.seg.nrrd"}
    assert entries("pairs.json") == [
        Entry(
            "anna",
            PairFiles(
                **inputs(fixed="fixed.nii.gz", moving="moving.nii.gz", **organs),
                roles=complete_roles({"guide": True}),
                settings=Settings(align="rigid", **window),
            ),
        ),
        Entry(
            "moving_2_to_fixed",
            PairFiles(
                **inputs(fixed="fixed.nii.gz", moving="moving 2.nii.gz"),
                settings=Settings(align="mass", **window),
            ),
        ),
    ]


def test_a_spreadsheet_in_utf_16():
    first, second = entries("pairs_utf16.csv")
    assert first == Entry(
        "bert",
        PairFiles(
            **inputs(fixed="fixed.nii.gz", moving="moving.nii.gz"),
            moving_mask=os.path.expanduser(os.path.join("~", "mask.nrrd")),
            settings=Settings(ct_window=(-160.0, 240.0), steps=5, device="cpu"),
        ),
    )
    assert second.id == "dicom_1.2.840.113_to_fixed"
    assert second.pair.moving == os.path.abspath(FILES / "cohort" / "dicom") + "::1.2.840.113"


def test_images_for_an_atlas():
    atlas = "/atlas.nii.gz"
    moving = {
        "moving": "moving.nii.gz",
        "moving_segmentation": "moving.seg.nrrd",
        "moving_landmarks": "moving.mrk.json",
    }
    assert entries("images.csv", atlas={"fixed": atlas}) == [
        Entry("moving", PairFiles(atlas, **inputs(**moving), settings=Settings(similarity="mind", device="cpu"))),
        Entry("moving_2", PairFiles(atlas, **inputs(moving="moving 2.nii.gz"), settings=Settings(device="cpu"))),
    ]
    assert [entry.pair.fixed for entry in entries("images.csv", atlas={"moving": atlas})] == list(
        inputs(first="moving.nii.gz", second="moving 2.nii.gz").values()
    )


# ------------------------------------------------------------------------------------------------- a folder of results


@pytest.fixture
def results(tmp_path):
    return Path(shutil.copytree(FILES / "results", tmp_path / "results"))


def test_results_are_read(results):
    images, report = FILES / "cohort" / "inputs", json.loads((results / "report.json").read_text(encoding="utf-8"))
    fixed = read_image(images / "fixed.nii.gz")
    assert read_image(results / "warped.nii.gz").grid.is_close(fixed.grid, 1e-3)
    assert read_image(results / "warped_fine.nii.gz").grid.extent == pytest.approx(fixed.grid.extent, rel=1e-3)
    names = [segment.name for segment in read_segmentation(images / "moving.seg.nrrd").segments]
    assert [segment.name for segment in read_segmentation(results / "warped_segmentation.seg.nrrd").segments] == names
    landmarks = read_landmarks(results / "warped_landmarks.mrk.json")
    there = read_landmarks(images / "fixed.mrk.json")
    assert landmarks.labels == there.labels
    distance = np.linalg.norm(landmarks.points - there.points, axis=1).mean()
    assert distance == pytest.approx(report["means"]["target_registration_error_mm"]["after"], rel=0.2)
    for name in ("transform", "inverse"):
        image, file = (read_transform(results / f"{name}{suffix}") for suffix in (".nii.gz", ".h5"))
        for point in POINTS.tolist():
            assert list(image.TransformPoint(point)) == pytest.approx(list(file.TransformPoint(point)), abs=1e-3)


def test_results_are_warped_with_and_replaced(results, tmp_path):
    pair = FILES / "cohort" / "inputs"
    out = tmp_path / "points.mrk.json"
    assert not main(
        [
            "warp",
            "--input",
            str(pair / "moving.mrk.json"),
            "--transform",
            str(results / "inverse.h5"),
            "--out",
            str(out),
        ]
    )
    expected = read_landmarks(results / "warped_landmarks.mrk.json").points
    np.testing.assert_allclose(read_landmarks(out).points, expected, atol=1e-2)

    images = ("--fixed", str(pair / "fixed.nii.gz"), "--moving", str(pair / "moving.nii.gz"))
    settings = ("--refine", "off", "--align", "mass", "--device", "cpu", "--no-scene", "--no-pictures")
    assert not main(["register", *images, *settings, "--out", str(results), "--overwrite"])
    assert not (results / "scene.mrb").exists()


def test_the_scene_among_results(results, scene):
    from IconRegistrationLib.mrml.scene import load_scene
    from IconRegistrationLib.mrml.transforms import transform_points

    load_scene(scene, results / "scene.mrb")
    forward = named(scene, "vtkMRMLGridTransformNode", "moving to fixed (for moving data)")
    assert named(scene, "vtkMRMLSegmentationNode", "moving segmentation").GetParentTransformNode() is forward
    transform = read_transform(results / "transform.nii.gz")
    expected = [transform.TransformPoint(point) for point in POINTS.tolist()]
    np.testing.assert_allclose(transform_points(forward, POINTS), expected, atol=1e-2)


# ---------------------------------------------------------------------------------------------------------- the model


def test_a_card_beside_weights(capsys):
    path = FILES / "model" / "own.trch"
    network, card, sha256 = load_model(path)
    assert network is not None
    assert card == find_card(path)
    written = json.loads(path.with_suffix(".json").read_text())["card"]
    assert {name: getattr(card, name) for name in written} == {
        name: tuple(value) if isinstance(value, list) else value for name, value in written.items()
    }
    assert sha256 == written["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not main(["models", str(path), "--json"])
    [listed] = json.loads(capsys.readouterr().out)["models"]
    assert (listed["title"], listed["licence"]) == ("Own compact network", "Apache-2.0")
