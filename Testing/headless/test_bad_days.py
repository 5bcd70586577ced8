"""Bad days of a cohort, for real: the registration itself, in processes that are killed while it reads, aligns, refines
and writes; inputs and weights that are damaged; a disk that is full. Afterwards nothing half done bears a final name,
what was finished is there to the byte, and starting again gives what an undisturbed run gives, to the bit.

`test_cohort.py` has the days on which it does not matter what a pair computes: hanging workers, a second driver, a
removed folder.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import waiting
from phantoms import phantom
from waiting import PATIENCE, until

from IconRegistrationLib.batch import pair as one_pair
from IconRegistrationLib.batch.cohort import driver as cohort
from IconRegistrationLib.batch.cohort.driver import run_cohort
from IconRegistrationLib.batch.cohort.entries import Entry
from IconRegistrationLib.batch.command import main
from IconRegistrationLib.batch.pair import OutputOptions, PairFiles
from IconRegistrationLib.errors import FolderError
from IconRegistrationLib.io import images as image_files
from IconRegistrationLib.io.images import write_image
from IconRegistrationLib.networks.cards import shipped_cards
from IconRegistrationLib.networks.unet import GradICON
from IconRegistrationLib.registration.settings import Settings

pytest.importorskip("distributed", reason="needs Dask")
pytest.importorskip("cryptography", reason="needs cryptography")
pytest.importorskip("filelock", reason="needs filelock")

#: Where a run can be struck: before and after the stages that `register` reports, and amid reading and writing.
STAGES = ("reading", "alignment", "refinement", "writing")
PAIRS = ("pair-a", "pair-b", "pair-c", "pair-d")
QUICK = Settings(steps=2, spacing=16.0, align="mass")
PLAIN = OutputOptions(scene=False, pictures=False)
FILES = {"report.csv", "report.json", "report.txt", "row.json", "warped.nii.gz"}
FILES |= {f"{name}.{suffix}" for name in ("transform", "inverse") for suffix in ("h5", "nii.gz")}


# -------------------------------------------------------------------------------------------------------------- faults


def struck(pair, folder, outputs, progress, load):
    """`register_pair` that meets with what the file fault.<id> beside the inputs says: "blow stage", once."""
    fault = Path(pair.moving).parent / f"fault.{Path(pair.moving).name.split('.')[0]}"
    blow, at = fault.read_text().split() if fault.exists() else ("", "")

    def strike():
        fault.rename(f"{fault}.struck")
        if blow == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if blow == "wait":
            time.sleep(2 * PATIENCE)
        if blow == "change":
            Path(pair.fixed).touch()

    def stage_began(stage, fraction):
        if stage == at and fault.exists():
            strike()
        progress(stage, fraction)

    def amid(function):
        def call(*arguments):
            if fault.exists():
                strike()
            return function(*arguments)

        return call

    amid_of = {
        "reading": (image_files, "read_image"),
        "writing": (image_files, "write_image"),
    }  # last
    if at not in amid_of:
        return one_pair.register_pair(pair, folder, outputs, stage_began, load)
    module, name = amid_of[at]
    with mock.patch.object(module, name, amid(getattr(module, name))):
        return one_pair.register_pair(pair, folder, outputs, progress, load)


class Study:
    """Four pairs of one phantom, in a folder of their own."""

    def __init__(self, folder: Path, images):
        self.inputs, self.out = folder / "inputs", folder / "out"
        self.inputs.mkdir()
        self.entries = []
        for name, (fixed, moving) in images.items():
            write_image(fixed, self.inputs / f"fixed of {name}.nii.gz")
            write_image(moving, self.inputs / f"{name}.nii.gz")
            pair = PairFiles(
                str(self.inputs / f"fixed of {name}.nii.gz"), str(self.inputs / f"{name}.nii.gz"), settings=QUICK
            )
            self.entries.append(Entry(name, pair))

    def fault(self, name, blow, stage):
        self.inputs.joinpath(f"fault.{name}").write_text(f"{blow} {stage}")

    def run(self, **options):
        return run_cohort(self.entries, self.out, PLAIN, **{"workers": 1, "register": struck} | options)

    def finished(self) -> dict[str, dict[str, bytes]]:
        """Contents of the files of every finished pair; asserts that none is half done."""
        pairs = {path.name: path for path in (self.out / "pairs").iterdir() if not path.name.startswith(".")}
        for path in pairs.values():
            assert {file.name for file in path.iterdir()} == FILES
            assert json.loads((path / "row.json").read_text())["state"] == "done"
        return {name: {file.name: file.read_bytes() for file in path.iterdir()} for name, path in pairs.items()}

    def remains(self) -> list[Path]:
        return [path for path in self.out.rglob(".*") if path.name != cohort.LOCK]


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_cluster")]


@pytest.fixture(scope="module")
def images():
    """Two volumes and two noisier ones, to make pairs of."""
    pair = phantom(28)
    fixed, moving = pair.fixed, pair.moving
    noise = np.random.default_rng(0).normal(0, 20, moving.array.shape).astype(np.int16)
    noisy = replace(moving, array=moving.array + noise)
    return dict(zip(PAIRS, [(fixed, moving), (moving, fixed), (fixed, noisy), (noisy, fixed)], strict=True))


@pytest.fixture
def a_study(images, tmp_path):
    return Study(tmp_path, images)


@pytest.fixture(scope="module")
def undisturbed(images, one_cluster, tmp_path_factory):
    """Displacements that a run without any fault gives, by pair and file."""
    study = Study(tmp_path_factory.mktemp("undisturbed"), images)
    assert study.run().done == len(PAIRS)
    return displacements(study)


def displacements(study) -> dict[tuple[str, str], np.ndarray]:
    import itk

    names = [(pair, name) for pair in study.finished() for name in ("transform.nii.gz", "inverse.nii.gz")]
    return {
        (pair, name): itk.array_from_image(itk.imread(str(study.out / "pairs" / pair / name))) for pair, name in names
    }


def is_as_undisturbed(study, undisturbed):
    assert study.remains() == []
    found = displacements(study)
    assert found.keys() == undisturbed.keys()
    for key, expected in undisturbed.items():
        assert np.array_equal(found[key], expected), key
    assert list((study.out / "failed").iterdir()) == []


# ---------------------------------------------------------------------------------------------------------------- kills


def test_workers_killed_in_every_stage_cost_nothing(a_study, undisturbed):
    for name, stage in zip(PAIRS, STAGES, strict=True):
        a_study.fault(name, "kill", stage)
    tally = a_study.run()
    assert (tally.done, tally.failed, list(tally.left)) == (len(PAIRS), 0, [])
    assert len(list(a_study.inputs.glob("*.struck"))) == len(PAIRS)
    is_as_undisturbed(a_study, undisturbed)


DRIVER = """
import sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from IconRegistrationLib.batch.cohort import cluster
from test_bad_days import PLAIN, QUICK, Entry, PairFiles, run_cohort, struck
cluster._cores = lambda: 1
inputs, out, *names = sys.argv[3:]
if __name__ == "__main__":
    pairs = [PairFiles(f"{inputs}/fixed of {n}.nii.gz", f"{inputs}/{n}.nii.gz", settings=QUICK) for n in names]
    entries = [Entry(*item) for item in zip(names, pairs)]
    run_cohort(entries, Path(out), PLAIN, workers=1, register=struck)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("signals", "stage", "codes"),
    [
        (["SIGKILL"], "writing", {-9}),
        (["SIGTERM"], "refinement", {-15}),
        (["SIGINT", "SIGINT"], "refinement", {130, -2}),  # the second may find nothing left to end
    ],
)
def test_a_driver_that_ends_in_a_stage_is_taken_up(signals, stage, codes, a_study, undisturbed):
    """While the first pair is finished, the second is at `stage`, and the others wait.

    One Ctrl-C ends it cleanly (test_cohort.py), another one meanwhile at once.
    """
    a_study.fault("pair-b", "wait", stage)
    words = [Path(__file__).parent, Path(waiting.__file__).parent, a_study.inputs, a_study.out, *PAIRS]
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *map(str, words)], start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: list(a_study.inputs.glob("*.struck")) or driver.poll() is not None)
        before = a_study.finished()
        assert list(before) == ["pair-a"]
        for name in signals:
            driver.send_signal(getattr(signal, name))
            time.sleep(0.3)
        assert driver.wait(PATIENCE) in codes
    finally:
        driver.kill()
    assert a_study.finished() == before
    tally = a_study.run()
    assert (tally.done, tally.failed) == (len(PAIRS), 0)
    assert a_study.finished()["pair-a"] == before["pair-a"]
    is_as_undisturbed(a_study, undisturbed)


# ----------------------------------------------------------------------------------------- inputs, weights and the disk


def test_inputs_that_are_cut_short_and_inputs_that_change_meanwhile(a_study, undisturbed):
    whole = (a_study.inputs / "pair-b.nii.gz").read_bytes()
    (a_study.inputs / "pair-b.nii.gz").write_bytes(whole[: len(whole) // 2])
    a_study.fault("pair-c", "change", "refinement")
    tally = a_study.run()
    assert (tally.done, tally.failed) == (2, 2)
    sentences = {path.stem: json.loads(path.read_text())["error"] for path in (a_study.out / "failed").iterdir()}
    assert "pair-b.nii.gz cannot be read" in sentences["pair-b"]
    assert "changed while it was registered" in sentences["pair-c"]
    before = a_study.finished()
    assert set(before) == {"pair-a", "pair-d"}
    (a_study.inputs / "pair-b.nii.gz").write_bytes(whole)
    first = (a_study.inputs / "pair-a.nii.gz").read_bytes()
    (a_study.inputs / "pair-a.nii.gz").write_bytes(first[:-9])  # finished, and now damaged
    assert a_study.run(retry_failed=True).done == 3  # of the four; pair-a is to be made again
    assert a_study.finished()["pair-a"] == before["pair-a"]
    (a_study.inputs / "pair-a.nii.gz").write_bytes(first)
    assert a_study.run().done == len(PAIRS)
    is_as_undisturbed(a_study, undisturbed)


def some_weights(folder: Path) -> Path:
    """A network of noise, and its card."""
    shape, down, up = (16, 16, 16), (2, 4, 8), (4, 8)
    torch.manual_seed(0)
    torch.save(GradICON(shape, down, up).state_dict(), folder / "small.trch")
    card = replace(
        shipped_cards()["none"], name="small", title="Small", input_shape=shape, down_channels=down, up_channels=up
    )
    (folder / "small.json").write_text(json.dumps({"card": asdict(card)}))
    return folder / "small.trch"


def test_weights_that_are_damaged_stop_the_cohort_before_it_begins(a_study, tmp_path, capfd):
    weights = some_weights(tmp_path)
    rows = [f"{name},inputs/fixed of {name}.nii.gz,inputs/{name}.nii.gz\n" for name in PAIRS]
    arguments = ["cohort", str(tmp_path / "pairs.csv"), "--out", str(a_study.out), "--workers", "1"]
    arguments += ["--model", str(weights), "--no-scene", "--no-pictures"]
    (tmp_path / "pairs.csv").write_text("id,fixed,moving\n" + "".join(rows[:1]))
    assert main(arguments) == 0
    before, whole = a_study.finished(), weights.read_bytes()
    (tmp_path / "pairs.csv").write_text("id,fixed,moving\n" + "".join(rows[:2]))
    weights.write_bytes(whole[:-2000])
    capfd.readouterr()
    code, (_, err) = main(arguments), capfd.readouterr()
    assert code in (2, 3)
    assert "small.trch" in err
    assert "Traceback" not in err
    assert a_study.finished() == before
    weights.write_bytes(whole)
    assert main([*arguments]) == 0
    after = a_study.finished()
    assert set(after) == {"pair-a", "pair-b"}
    assert after["pair-a"]["transform.h5"] == before["pair-a"]["transform.h5"]


@pytest.fixture
def a_small_disk(tmp_path):
    """A file system of its own, as large as it is told to be; skips where none can be made."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root and Linux")
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(kilobytes, first=False):
        options = f"size={kilobytes}k" if first else f"remount,size={kilobytes}k"
        return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode

    if resize(64, first=True):
        pytest.skip("this container may not mount")
    yield folder, resize
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_blames_no_pair_and_room_is_all_it_takes(a_study, undisturbed, a_small_disk):
    folder, resize = a_small_disk
    one = sum(array.nbytes for (name, _), array in undisturbed.items() if name == "pair-a")
    resize(6 * one // 1024)  # .h5 in double precision, .nii.gz, the warped image: more than one pair, less than four
    a_study.out = folder / "out"
    with pytest.raises(FolderError, match=r"full|space|room"):
        a_study.run()
    before = a_study.finished()
    assert 0 < len(before) < len(PAIRS)
    assert list((a_study.out / "failed").iterdir()) == []
    assert a_study.remains() == []
    resize(100 * one // 1024)
    assert a_study.run().done == len(PAIRS)
    assert {name: a_study.finished()[name] for name in before} == before
    is_as_undisturbed(a_study, undisturbed)
