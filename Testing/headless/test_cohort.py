"""The runner of cohorts: real Dask processes, real signals, real files; most with a registration that is a stand-in."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import phantoms
import pytest
import SimpleITK
import waiting
from waiting import PATIENCE, Clock, until

from IconRegistrationLib.batch import outputs
from IconRegistrationLib.batch.cohort import cluster, job
from IconRegistrationLib.batch.cohort import driver as cohort
from IconRegistrationLib.batch.cohort.cluster import local_cluster
from IconRegistrationLib.batch.cohort.driver import run_cohort
from IconRegistrationLib.batch.cohort.entries import Entry
from IconRegistrationLib.batch.cohort.tally import Tally
from IconRegistrationLib.batch.command import main
from IconRegistrationLib.batch.pair import PairFiles
from IconRegistrationLib.errors import FolderError, InputError
from IconRegistrationLib.io.images import read_image, write_image
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.workflow.folder import output_folder

pytest.importorskip("distributed", reason="needs Dask")
pytest.importorskip("cryptography", reason="needs cryptography")
psutil = pytest.importorskip("psutil", reason="needs psutil, which comes with Dask")

REPORT = {"verdicts": [], "means": {}, "similarity": {}, "deformation": {}, "segments": {}, "landmarks_mm": {}}
REPORT["verdicts"] = [{"measure": "all", "value": 0.0, "level": "green", "meaning": "", "before": None}]


def stand_in(pair, folder, outputs, progress, load):
    """Notes that it was called; the moving file says what happens. Called as `register_pair` is."""
    calls = Path(pair.moving).with_suffix(".calls")
    with open(calls, "a") as file:
        file.write("x")
    text = Path(pair.moving).read_text()
    (folder / "report.txt").write_text(text)
    if "kill" in text:
        os.kill(os.getpid(), signal.SIGKILL)
    if "freeze" in text:
        os.kill(os.getpid(), signal.SIGSTOP)
    if "hang" in text:
        time.sleep(2 * PATIENCE)
    if "wait" in text:
        until(Path(pair.moving).with_name("go").exists)
    if "bug" in text:
        raise ZeroDivisionError("of a patient")
    if "memory" in text:
        raise MemoryError
    if "input" in text:
        raise InputError("This cannot be registered; choose another.")
    return SimpleNamespace(report=SimpleNamespace(to_dict=lambda: REPORT)), ["a note"]


class Study:
    """Files of text, and the entries that name them."""

    def __init__(self, folder, texts):
        self.inputs = folder / "in"
        self.inputs.mkdir()
        self.out = folder / "out"
        (self.inputs / "fixed.txt").write_text("fixed")
        self.entries = []
        for name, text in texts.items():
            self.write(name, text)
            pair = PairFiles(str(self.inputs / "fixed.txt"), str(self.inputs / f"{name}.txt"))
            self.entries.append(Entry(name, pair))

    def write(self, name, text):
        (self.inputs / f"{name}.txt").write_text(text)

    def go(self):
        """Let the pairs end that wait."""
        (self.inputs / "go").touch()

    def calls(self):
        """How often each was registered."""
        return {path.stem: len(path.read_text()) for path in self.inputs.glob("*.calls")}

    def run(self, **options):
        return run_cohort(self.entries, self.out, register=stand_in, **{"workers": 1} | options)

    def row(self, name):
        paths = [self.out / "pairs" / name / "row.json", self.out / "failed" / f"{name}.json"]
        [path] = [path for path in paths if path.exists()]
        return json.loads(path.read_text())

    def states(self):
        return {entry.id: self.row(entry.id)["state"] for entry in self.entries}


@pytest.fixture
def a_study(tmp_path, one_cluster):
    """Make a study from the texts of its pairs; at the end none of them waits any longer."""
    studies = []

    def make(**texts):
        studies.append(Study(tmp_path, texts))
        return studies[-1]

    yield make
    for study in studies:
        study.go()


@pytest.fixture
def own_cluster(one_cluster, monkeypatch):
    """A cluster for every cohort, as users have it: what is tested is the cluster."""
    monkeypatch.setattr(cluster, "local_cluster", local_cluster)


@pytest.fixture
def clock(monkeypatch):
    """The driver's clock, which a test puts ahead."""
    clock = Clock()
    monkeypatch.setattr(cohort, "time", clock)
    return clock


def watched(look):
    """A CohortProgress that calls `look` as often as the driver shows how it stands."""
    progress = cohort.CohortProgress()
    show = progress.show

    def show_and_look(*args, **options):
        show(*args, **options)
        look()

    progress.show = show_and_look
    return progress


@pytest.fixture
def no_cluster(monkeypatch):
    """A cluster that is asked for is a failure."""

    def refuse(workers):
        raise AssertionError("a cluster was started")

    return lambda: monkeypatch.setattr(cluster, "local_cluster", refuse)


def hidden(folder):
    return [path for path in folder.rglob(".*") if path.name != cohort.LOCK]


# ------------------------------------------------------------------------------------------------- the real command


@pytest.fixture(scope="module")
def a_manifest(tmp_path_factory):
    """Three pairs of one phantom; the files of the last are not there."""
    folder = tmp_path_factory.mktemp("manifest")
    phantom = phantoms.phantom(28)
    outputs.write_inputs(folder, phantom.inputs)
    with open(folder / "pairs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "fixed", "moving", "fixed_segmentation", "moving_segmentation", "steps"])
        files = ["inputs/fixed.nii.gz", "inputs/moving.nii.gz", "inputs/fixed.seg.nrrd", "inputs/moving.seg.nrrd"]
        writer.writerow(["first", *files, ""])
        writer.writerow(["second", *files, "3"])
        writer.writerow(["third", "inputs/fixed.nii.gz", "inputs/nothing.nii.gz", "", "", ""])
    return folder / "pairs.csv"


QUICK = ["--steps", "2", "--spacing", "16", "--no-scene", "--no-pictures"]


@pytest.mark.slow
def test_a_cohort_does_what_register_does(a_manifest, one_cluster, tmp_path):
    out = tmp_path / "out"
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        code = main(["cohort", str(a_manifest), "--out", str(out), "--workers", "1", "--json", *QUICK])
    lines = [json.loads(line) for line in stdout.getvalue().splitlines()]
    assert code == 3
    assert lines[-1] == {"result": {"folder": str(out), "done": 2, "failed": 1, "left": 0, "error": None}}
    [failure] = [line for line in lines if "pair" in line]
    assert failure["pair"] == "third"
    assert "nothing.nii.gz does not exist" in failure["error"]

    inputs = a_manifest.parent / "inputs"
    alone = ["register", "--fixed", str(inputs / "fixed.nii.gz"), "--moving", str(inputs / "moving.nii.gz")]
    alone += [x for side in ("fixed", "moving") for x in (f"--{side}-segmentation", str(inputs / f"{side}.seg.nrrd"))]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*alone, "--out", str(tmp_path / "alone"), *QUICK]) == 0
    files = outputs.files_in(tmp_path / "alone")
    assert outputs.files_in(out / "pairs" / "first") == sorted([*files, "row.json"], key=list(outputs.FILES).index)

    report = json.loads((out / "pairs" / "first" / "report.json").read_text())
    row = json.loads((out / "pairs" / "first" / "row.json").read_text())
    assert row["report"] == report
    dice = [
        json.loads((folder / "report.json").read_text())["means"]["dice"]
        for folder in (out / "pairs" / "first", tmp_path / "alone")
    ]
    assert dice[0] == pytest.approx(dice[1], abs=1e-3)
    assert row["settings"]["steps"] == 2
    assert json.loads((out / "pairs" / "second" / "row.json").read_text())["settings"]["steps"] == 3
    with open(out / "cohort.csv", newline="") as file:
        table = {line["id"]: line for line in csv.DictReader(file)}
    assert {name: line["state"] for name, line in table.items()} == {
        "first": "done",
        "second": "done",
        "third": "failed",
    }
    assert not hidden(out)


def test_wrong_use_is_one_sentence_and_exit_code_2(a_manifest, tmp_path, capsys):
    for words, said in (
        (["--workers", "0"], "--workers is 0"),
        (["--workers", "2", "--scheduler", "tcp://127.0.0.1:1"], "choose one"),
        (["--timeout", "0"], "must be positive"),
        (["--device", "cuda:7"], "cuda:7"),
    ):
        assert main(["cohort", str(a_manifest), "--out", str(tmp_path / "out"), *words]) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("...")
    assert main(["cohort", str(a_manifest), "--out", str(tmp_path / "mine")]) == 2
    assert "holds no cohort" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_scheduler_that_is_not_there(a_study, monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT", "0.1s")
    with pytest.raises(InputError, match=r"No Dask scheduler answers at 127\.0\.0\.1:1 "):
        a_study(a="").run(workers=None, scheduler="127.0.0.1:1")


# --------------------------------------------------------------------------------------------------- one bad pair


def test_no_pair_stops_the_others(a_study, capsys):
    study = a_study(a="", b="bug", c="memory", d="input", e="")
    tally = study.run()
    assert (tally.done, tally.failed, len(tally.left)) == (2, 3, 0)
    assert study.states() == {"a": "done", "b": "failed", "c": "failed", "d": "failed", "e": "done"}
    assert study.row("b")["error"] == "Unexpected ZeroDivisionError: of a patient."
    assert "ran out of memory" in study.row("c")["error"]
    assert study.row("d")["error"] == "This cannot be registered; choose another."
    assert study.row("a")["notes"] == ["a note"]
    assert study.row("a")["report"] == REPORT
    assert "Traceback" not in capsys.readouterr().err
    assert not hidden(study.out)


@pytest.mark.slow
def test_a_pair_that_kills_its_worker_fails_after_three_tries(a_study):
    study = a_study(a="", b="kill", c="", d="")
    tally = study.run(workers=2)
    assert (tally.done, tally.failed) == (3, 1)
    assert study.calls() == {"a": 1, "b": 3, "c": 1, "d": 1}
    assert "worker died 3 times" in study.row("b")["error"]
    assert not hidden(study.out)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["hang", pytest.param("freeze", marks=pytest.mark.skipif(os.name == "nt", reason="no SIGSTOP"))]
)
def test_a_pair_that_hangs_costs_its_own_worker_only(a_study, how, clock):
    study = a_study(a="", b=how, c="", d="")

    def an_hour_later():
        if study.calls() == {"a": 1, "b": 1}:
            clock.ahead = 3600

    tally = study.run(minutes=50, progress=watched(an_hour_later))
    assert (tally.done, tally.failed) == (3, 1)
    assert "not ended after 50 min" in study.row("b")["error"]
    assert study.calls()["b"] == 1
    assert not hidden(study.out)


@pytest.mark.slow
def test_workers_that_do_not_come_back_are_replaced(a_study, own_cluster, clock, monkeypatch):
    """Dask gives up a worker for good that cannot be started anew; without others the cohort would wait forever."""
    from distributed import Nanny

    start, starts, refused = Nanny.instantiate, [], []

    async def not_the_second_time(nanny):
        starts.append(nanny)
        if len(starts) == 2:
            refused.append(nanny)
            raise RuntimeError("no more processes")
        return await start(nanny)

    def a_minute_later():
        if refused and len({id(nanny) for nanny in starts}) == 1:
            clock.ahead += 60

    monkeypatch.setattr(Nanny, "instantiate", not_the_second_time)
    study = a_study(a="", b="kill", c="")
    tally = study.run(minutes=10**6, progress=watched(a_minute_later))
    assert (tally.done, tally.failed, len(tally.left)) == (2, 1, 0)
    assert len({id(nanny) for nanny in starts}) == 2
    assert not hidden(study.out)


# ---------------------------------------------------------------------------------------------------------- resume


def test_what_is_done_is_not_done_again(a_study, no_cluster):
    study = a_study(a="", b="input")
    study.run()
    no_cluster()
    tally = study.run()
    assert (tally.done, tally.failed, tally.kept) == (1, 1, 1)
    assert study.calls() == {"a": 1, "b": 1}


def test_contents_count_not_times(a_study):
    study = a_study(a="one", b="two", c="three")
    study.run()
    os.utime(study.inputs / "a.txt", ns=(0, 0))  # the same content
    study.write("b", "TWO")  # another of the same length
    assert study.run().done == 3
    assert study.calls() == {"a": 1, "b": 2, "c": 1}
    assert (study.out / "pairs" / "b" / "report.txt").read_text() == "TWO"
    assert study.row("a")["files"]["moving"]["mtime_ns"] == 0
    study.run()
    assert study.calls() == {"a": 1, "b": 2, "c": 1}


def test_other_settings_are_another_pair(a_study):
    study = a_study(a="", b="")
    study.run()
    study.entries[1] = Entry("b", PairFiles(**{**vars(study.entries[1].pair), "settings": Settings(steps=7)}))
    study.run()
    assert study.calls() == {"a": 1, "b": 2}
    assert study.row("b")["settings"]["steps"] == 7


@pytest.mark.slow
def test_only_the_failed_are_retried(a_study):
    study = a_study(a="input", b="kill")
    study.run()
    study.entries += a_study_entry(study, "c")
    before = study.calls()
    tally = study.run(retry_failed=True)
    assert list(tally.left) == ["c"]
    assert study.calls() == {"a": before["a"] + 1, "b": before["b"] + 3}
    study.write("a", "better")
    study.write("b", "better")
    tally = study.run()  # their inputs changed
    assert (tally.done, tally.failed) == (3, 0)
    assert not list((study.out / "failed").iterdir())


def a_study_entry(study, name):
    study.write(name, "")
    return [Entry(name, PairFiles(study.entries[0].pair.fixed, str(study.inputs / f"{name}.txt")))]


def test_a_file_of_ones_own_among_the_results_is_not_replaced(a_study):
    study = a_study(a="")
    study.run()
    (study.out / "pairs" / "a" / "remarks.txt").write_text("mine")
    study.write("a", "changed")
    assert study.run().failed == 1
    assert (study.out / "pairs" / "a" / "remarks.txt").read_text() == "mine"
    assert "remarks.txt" in json.loads((study.out / "failed" / "a.json").read_text())["error"]


def test_a_row_that_was_damaged_is_made_again(a_study):
    study = a_study(a="")
    study.run()
    (study.out / "pairs" / "a" / "row.json").write_text('{"id": "a", "sta')
    assert study.run().done == 1
    assert study.calls() == {"a": 2}
    assert study.row("a")["state"] == "done"


# ------------------------------------------------------------------------------------------------ the driver's end

SCRIPT = """
import sys, os
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from IconRegistrationLib.batch import command
from IconRegistrationLib.batch.commands import cohort
import test_cohort
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    cohort.entries_of = lambda args, defaults: (test_cohort.entries_in(folder / "in"), [])
    run = cohort.run_cohort
    cohort.run_cohort = lambda *args, **options: run(*args, **options, register=test_cohort.stand_in)
    sys.exit(command.main(["cohort", "x.csv", "--out", str(folder / "out"), "--workers", "2"]))
"""


def entries_in(folder):
    return [
        Entry(path.stem, PairFiles(str(folder / "fixed.txt"), str(path)))
        for path in sorted(folder.glob("*.txt"))
        if path.stem != "fixed"
    ]


@pytest.fixture
def a_driver(a_study, tmp_path):
    """`drive(study)` starts a driver of two workers in a process of its own, when it returns one pair is done."""
    processes = []

    def drive(study):
        (tmp_path / "drive.py").write_text(SCRIPT)
        words = [sys.executable, tmp_path / "drive.py", tmp_path, Path(__file__).parent, Path(waiting.__file__).parent]
        process = subprocess.Popen(
            list(map(str, words)), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        processes.append(process)
        until(lambda: process.poll() is not None or list(study.out.glob("pairs/*/row.json")))
        assert process.poll() is None, process.stderr.read()
        return process

    yield drive
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def members(group):
    """Processes of a group that live."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "to_all", "code"),
    [
        (signal.SIGINT, True, 130),
        (signal.SIGINT, False, 130),
        (signal.SIGTERM, False, 143),
        (signal.SIGKILL, False, -9),
    ],
)
def test_a_driver_that_ends_leaves_what_it_can_go_on_from(a_study, a_driver, number, to_all, code):
    """Ctrl-C reaches the whole group, kill the driver only; after SIGKILL nobody clears up until the next run."""
    study = a_study(**{f"p{n:02}": "wait" if n else "" for n in range(30)})
    process = a_driver(study)
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    until(lambda: not members(process.pid))
    done = [path.parent.name for path in study.out.glob("pairs/*/row.json")]
    assert 1 <= len(done) < 30
    if code > 0:
        assert f"{len(done)} of 30 pairs are done" in said
        assert "Traceback" not in said
        assert not hidden(study.out)
        with open(study.out / "cohort.csv", newline="") as file:
            states = [line["state"] for line in csv.DictReader(file)]
        assert (states.count("done"), states.count("left")) == (len(done), 30 - len(done))
    calls = study.calls()
    study.go()
    assert study.run(workers=2).done == 30
    again = {name for name, count in study.calls().items() if calls.get(name, 0) and count > calls[name]}
    assert not again & set(done)
    assert not hidden(study.out)


class _Finalized:
    """Ctrl-C comes while Python finalizes it: exceptions that come up there are dropped."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_comes_in_a_finalizer_is_not_lost(a_study):
    """Dask's futures have finalizers; one in twenty Ctrl-C came up in one."""
    study, tally = a_study(**{f"p{n:02}": "wait" if n else "" for n in range(10)}), Tally()

    def finalize():
        if tally.done == 1:
            _Finalized()

    with pytest.raises(KeyboardInterrupt):
        study.run(tally=tally, progress=watched(finalize))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert 1 <= len(list(study.out.glob("pairs/*/row.json"))) < 10


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_second_driver_refuses(a_study, a_driver):
    study = a_study(**{f"p{n:02}": "wait" if n else "" for n in range(30)})
    a_driver(study)
    with pytest.raises(InputError, match="Another run is using"):
        study.run()


# ------------------------------------------------------------------------------------------------------ bad disks


def test_a_folder_that_is_removed_stops_the_cohort_with_a_sentence(a_study, monkeypatch):
    study = a_study(a="", b="", c="")
    settle = cohort._Driver._settle

    def settle_and_remove(driver, job, row):
        settle(driver, job, row)
        shutil.rmtree(study.out)

    monkeypatch.setattr(cohort._Driver, "_settle", settle_and_remove)
    with pytest.raises(FolderError, match="is not there any more"):
        study.run()
    monkeypatch.undo()
    assert study.run().done == 3


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_stops_the_cohort_and_blames_no_pair(a_study, tmp_path):
    study = a_study(a="x" * 100_000, b="y" * 100_000, c="z" * 100_000)
    study.out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=180k", "none", study.out], capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        with pytest.raises(FolderError, match="There is no room left"):
            study.run()
        assert [path.parent.name for path in study.out.glob("pairs/*/row.json")] == ["a"]
        assert not list((study.out / "failed").iterdir())
        assert not hidden(study.out)
        subprocess.run(["mount", "-o", "remount,size=10m", study.out], check=True)
        assert study.run().done == 3
        assert study.calls() == {"a": 1, "b": 2, "c": 1}
    finally:
        subprocess.run(["umount", "-l", study.out], check=True)


# ---------------------------------------------------------------------------------------------------- the cluster


def threads_of_torch():
    import torch

    return torch.get_num_threads()


@pytest.mark.slow
def test_nobody_else_can_speak_to_the_cluster():
    from distributed import Client

    with local_cluster(cluster.Workers(1, 1)) as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        assert set(client.run(threads_of_torch).values()) == {1}
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = [c.laddr.ip for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
        assert set(listening) == {"127.0.0.1"}
        [folder] = set(client.run(lambda dask_worker: dask_worker.local_directory).values())
        for stranger in (address, address.replace("tls", "tcp")):
            with pytest.raises((OSError, TypeError, ValueError)):
                Client(stranger, timeout="2s", set_as_default=False)
        private = next(path for path in Path(folder).parents if path.name.startswith("icon-registration-"))
        assert private.stat().st_mode & 0o777 == 0o700
    assert not private.exists()


@pytest.mark.slow
def test_a_scheduler_of_ones_own(a_study):
    """Its workers, started with nannies as usual; one dies."""
    from distributed import LocalCluster

    study = a_study(a="", b="kill", c="bug", d="")
    with LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None, silence_logs=60) as there:
        tally = study.run(workers=None, scheduler=there.scheduler_address)
    assert (tally.done, tally.failed) == (2, 2)
    assert "worker died" in study.row("b")["error"]


def test_workers_by_memory_and_cores(monkeypatch, a_study):
    entries = a_study(**dict.fromkeys("abcdefgh", "")).entries
    monkeypatch.setattr(cluster, "_cores", lambda: 8)
    monkeypatch.setattr(cluster, "physical_memory", lambda: 10 << 30)
    assert cluster.workers_for(entries, cluster.Demand(1 << 30, 1), None) == cluster.Workers(8, 1)
    assert cluster.workers_for(entries, cluster.Demand(2 << 30, 1), None) == cluster.Workers(4, 2)
    assert cluster.workers_for(entries, cluster.Demand(99 << 30, 1), None) == cluster.Workers(1, 8)
    assert cluster.workers_for(entries[:2], cluster.Demand(1 << 30, 1), None) == cluster.Workers(2, 4)
    assert cluster.workers_for(entries, cluster.Demand(2 << 30, 1), 16) == cluster.Workers(16, 1)
    monkeypatch.setattr(cluster, "_gpus", lambda entries: ["0", "3"])
    assert cluster.workers_for(entries, cluster.Demand(99 << 30, None), None) == cluster.Workers(2, 4, ("0", "3"))
    assert cluster.workers_for(entries, cluster.Demand(99 << 30, None), 3).gpus == ("0", "3", "0")


def test_the_largest_pair_decides_by_its_header(a_manifest):
    inputs = str(a_manifest.parent / "inputs")
    pair = PairFiles(f"{inputs}/fixed.nii.gz", f"{inputs}/moving.nii.gz")
    small = cluster.demand_of([Entry("a", pair)])
    assert 0.8 * 2**30 < small.memory < 1.5 * 2**30
    assert small.minutes_to_hang == 30
    slow = PairFiles(pair.fixed, pair.moving, settings=Settings(model="unigradicon", refine="network", device="cpu"))
    long = cluster.demand_of([Entry("a", pair), Entry("b", slow)])
    assert long.memory > 4 * 2**30
    assert long.minutes_to_hang > 10 * small.minutes_to_hang
    lost = PairFiles("nothing.nii.gz", "nothing.nii.gz")
    assert cluster.demand_of([Entry("a", lost)]).seconds is None


# ----------------------------------------------------------------------------------------------------------- files


def test_an_input_is_all_of_its_files(tmp_path):
    (tmp_path / "a.mhd").write_text("NDims = 3\nElementDataFile = a.raw\n")
    (tmp_path / "a.raw").write_bytes(b"12345")
    (tmp_path / "b.hdr").write_bytes(b"head")
    (tmp_path / "b.img").write_bytes(b"voxels")
    (tmp_path / "dicom").mkdir()
    for n in range(3):
        (tmp_path / "dicom" / f"{n}.dcm").write_bytes(bytes([n]))
    pair = PairFiles(str(tmp_path / "a.mhd"), f"{tmp_path}/dicom::1.2.3", initial=str(tmp_path / "b.hdr"))
    files = job.with_contents(job.files_of(pair))
    assert {role: file["size"] for role, file in files.items()} == {"fixed": 39, "moving": 3, "initial": 10}
    assert job.files_of(pair, files) == files
    for changed in ("a.raw", "b.img", "dicom/1.dcm"):
        path = tmp_path / changed
        path.write_bytes(path.read_bytes()[::-1] if len(path.read_bytes()) > 1 else b"x")
    again = job.files_of(pair, files)
    assert [file["sha256"] for file in again.values()] == [None] * 3
    assert all(file["sha256"] != files[role]["sha256"] for role, file in job.with_contents(again).items())


def test_a_nifti_that_was_cut_short_is_noticed(tmp_path, monkeypatch):
    """ITK itself says nothing on a full disk: what it wrote is cut here."""
    image, whole = phantoms.phantom(28).fixed, SimpleITK.WriteImage

    def write():
        with output_folder(tmp_path / "out") as partial:
            write_image(image, partial / "warped.nii.gz")

    def cut(picture, path, *options):
        whole(picture, path, *options)
        os.truncate(path, os.path.getsize(path) // 2)

    monkeypatch.setattr(SimpleITK, "WriteImage", cut)
    with pytest.raises(OSError, match="not written to its end"):
        write()
    assert not (tmp_path / "out").exists()
    with pytest.raises(OSError, match="not written to its end"):
        write_image(image, tmp_path / "alone.nii.gz")
    assert not (tmp_path / "alone.nii.gz").exists()
    monkeypatch.undo()
    write()
    assert np.array_equal(read_image(tmp_path / "out" / "warped.nii.gz").array, image.array)
