"""Labels of atlases on images, for real: registered by workers, fused, named as in the atlas, and not done twice."""

import json
import os
import shutil

import numpy as np
import pytest
from phantoms import phantom

from IconRegistrationLib.batch import outputs
from IconRegistrationLib.batch.command import build_parser, main
from IconRegistrationLib.batch.commands import propagate
from IconRegistrationLib.errors import InputError
from IconRegistrationLib.io.images import read_image
from IconRegistrationLib.io.segmentations import read_segmentation
from IconRegistrationLib.registration.settings import Settings

pytest.importorskip("distributed", reason="needs dask and distributed")
QUICK = ["--align", "rigid", "--steps", "4", "--spacing", "12", "--no-pictures", "--workers", "1"]


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "one_cluster")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Both sides of a phantom are atlases; what gets labels are other breathing states of other sizes."""
    folder = tmp_path_factory.mktemp("data")
    for name, size in (("a", 28), ("b", 30)):
        outputs.write_inputs(folder, phantom(size).inputs)
        (folder / "inputs").rename(folder / name)
    return folder


def words(data, out, *more, atlases=2, images=("b/fixed.nii.gz",)):
    sides = ("fixed", "moving")[:atlases]
    given = [w for s in sides for w in ("--atlas", f"{data}/a/{s}.nii.gz", f"{data}/a/{s}.seg.nrrd")]
    return ["propagate", *given, "--images", *(f"{data}/{i}" for i in images), "--out", str(out), *QUICK, *more]


@pytest.fixture(scope="module")
def a_run(data, one_cluster, tmp_path_factory):
    """The folder of a run of two atlases on two images."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(words(data, out, "--agreement", images=("b/fixed.nii.gz", "b/moving.nii.gz"))) == 0
    return out


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_every_image_gets_the_structures_of_the_atlases(a_run, data):
    assert {p.name for p in (a_run / "pairs").iterdir()} == {
        f"{i}_from_{a}" for i in ("fixed", "moving") for a in ("fixed", "moving")
    }
    atlas = read_segmentation(data / "a" / "fixed.seg.nrrd")
    for name in ("fixed", "moving"):
        image = read_image(data / "b" / f"{name}.nii.gz")
        truth = read_segmentation(data / "b" / f"{name}.seg.nrrd")
        ours = read_segmentation(a_run / "segmentations" / f"{name}.seg.nrrd")
        assert ours.grid.is_close(image.grid)
        assert {s.name for s in ours.segments} == {s.name for s in atlas.segments}
        for segment in ours.segments:
            model = atlas.by_name()[segment.name]
            assert segment.color == pytest.approx(model.color, abs=1e-3)
            assert segment.tags.items() >= model.tags.items()
        for structure in ("liver", "thorax", "right lung"):
            pair = (s.mask(s.by_name()[structure]) for s in (ours, truth))
            assert dice(*pair) > 0.8, (name, structure)
        shares = read_image(a_run / "segmentations" / f"{name}_agreement.nii.gz").array
        assert 0.4 < shares.mean() < 1
        assert shares.max() <= 1 + 1e-6


def test_structures_that_overlap_still_do(a_run):
    ours = read_segmentation(a_run / "segmentations" / "fixed.seg.nrrd")
    liver, body = (ours.mask(ours.by_name()[name]) for name in ("liver", "body"))
    assert (liver & body).sum() > 0.9 * liver.sum()


def stamps(folder):
    return {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.rglob("*") if p.suffix in (".nrrd", ".gz")}


def test_nothing_is_done_twice_and_another_fusion_registers_nothing(a_run, data, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(a_run, out)
    images = ("b/fixed.nii.gz", "b/moving.nii.gz")
    before = stamps(out)
    assert main(words(data, out, "--agreement", images=images)) == 0
    assert stamps(out) == before
    (out / "segmentations" / "fixed.seg.nrrd").unlink()
    assert main(words(data, out, "--agreement", images=images)) == 0
    after = stamps(out)
    assert {path.name for path in after if after[path] != before[path]} == {
        "fixed.seg.nrrd",
        "fixed_agreement.nii.gz",
    }
    assert main(words(data, out, "--fusion", "majority", images=images)) == 0
    majority = stamps(out)
    assert {path.name for path in majority if majority[path] != after[path]} == {"fixed.seg.nrrd", "moving.seg.nrrd"}
    assert {path.name for path in after.keys() - majority.keys()} == {
        "fixed_agreement.nii.gz",
        "moving_agreement.nii.gz",
    }


def test_one_atlas_is_carried_over_as_it_is(a_run, data, tmp_path):
    """From the registrations that are there."""
    out = tmp_path / "out"
    shutil.copytree(a_run, out)
    assert main(words(data, out, atlases=1)) == 0
    alone = read_segmentation(out / "segmentations" / "fixed.seg.nrrd")
    warped = read_segmentation(out / "pairs" / "fixed_from_fixed" / "warped_segmentation.seg.nrrd")
    for segment in alone.segments:
        np.testing.assert_array_equal(alone.mask(segment), warped.mask(warped.by_name()[segment.name]))


def test_an_image_that_cannot_be_read_costs_only_itself(a_run, data, tmp_path, capfd):
    out = tmp_path / "out"
    shutil.copytree(a_run, out)
    (data / "b" / "broken.nii.gz").write_bytes(b"no image")
    assert main(words(data, out, images=("b/fixed.nii.gz", "b/moving.nii.gz", "b/broken.nii.gz"))) == 3
    text = capfd.readouterr()
    assert "2 of 3 images have labels" in text.out
    assert "Traceback" not in text.err
    assert not (out / "segmentations" / "broken.seg.nrrd").exists()


def test_a_disk_that_refuses_is_one_sentence(a_run, data, tmp_path, capfd):
    out = tmp_path / "out"
    shutil.copytree(a_run, out)
    shutil.rmtree(out / "segmentations")
    (out / "segmentations").write_text("a file in its place")
    assert main(words(data, out)) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("icon-registration:")]
    assert str(out / "segmentations") in line


def test_json_names_the_folder(a_run, data, capfd):
    assert main(words(data, a_run, "--agreement", "--json", images=("b/fixed.nii.gz", "b/moving.nii.gz"))) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert lines[-1] == {"segmentations": {"folder": str(a_run / "segmentations"), "written": 2}}


def test_the_cohort_reads_the_folder(a_run):
    """Its table tells of every registration."""
    lines = (a_run / "cohort.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: [x.replace("a/fixed.seg.nrrd", "a/none.seg.nrrd") for x in w], "a/none.seg.nrrd does not exist"),
        (lambda w: [x.replace("b/fixed.nii.gz", "b/none.nii.gz") for x in w], "b/none.nii.gz does not exist"),
        (lambda w: [x.replace("b/fixed", "a/fixed") for x in w], "is an atlas and already has labels"),
        (lambda w: [*w, "--workers", "0"], "--workers is 0"),
        (lambda w: [*w, "--fusion", "staple"], "invalid choice: 'staple'"),
    ],
)
def test_wrong_words_are_refused_before_any_work(data, tmp_path, change, said, capfd):
    assert main(change(words(data, tmp_path / "out"))) == 2
    assert said in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_do_not_collide_nor_outgrow_a_folder(tmp_path):
    long = "x" * 90
    for name in ("p/t1.nii.gz", "q/t1.nii.gz", f"{long}.nrrd", "atlas.nrrd", "labels.nrrd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images = [str(tmp_path / name) for name in ("p/t1.nii.gz", "q/t1.nii.gz", f"{long}.nrrd")]
    atlas = [str(tmp_path / "atlas.nrrd"), str(tmp_path / "labels.nrrd")]
    targets = propagate.targets_of(images, [atlas], Settings())
    assert [target.name for target in targets] == ["p_t1", "q_t1", long]
    ids = [target.entries[0].id for target in targets]
    assert ids[0] == "p_t1_from_atlas"
    assert len(set(ids)) == 3
    assert max(map(len, ids)) <= 100
    with pytest.raises(InputError, match="is listed twice"):
        propagate.targets_of([images[0], images[0]], [atlas], Settings())


def test_paths_are_absolute_for_workers_elsewhere(data, monkeypatch):
    monkeypatch.chdir(data)
    args = build_parser().parse_args(words(".", "out"))
    (target,) = propagate.targets_of(args.images, args.atlas, Settings())
    assert all(os.path.isabs(path) for path in (target.image, *target.entries[0].pair.files.values()))
