"""A similarity and a setting that are added in one place each, from the command; from the panel in Testing/gui."""

import json

import pytest
from extended import REGISTRATION, extend, run_extended

from IconRegistrationLib.registration.settings import Settings

COMMAND = ("-m", "IconRegistrationLib.batch.command", "register")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return extend(tmp_path_factory.mktemp("extended"), REGISTRATION)


def test_the_help_names_them(copy):
    text = " ".join(run_extended(copy, *COMMAND, "--help").stdout.split())
    assert "what compares the images: auto, lncc, lncc2, mind, msd" in text
    assert "--patience TIMES how often a friend may ask (at least 1 and less than 9)" in text


@pytest.mark.slow
def test_the_command_registers_with_them(copy, phantom_files, tmp_path):
    words = [*COMMAND, "--fixed", phantom_files / "fixed.nii.gz", "--moving", phantom_files / "moving.nii.gz"]
    words += ["--align", "centre", "--similarity", "msd", "--steps", "10", "--no-scene", "--no-pictures"]
    run = run_extended(copy, *words, "--patience", "5", "--out", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["provenance"]["similarity"] == "msd"
    assert report["provenance"]["settings"]["patience"] == 5
    assert report["similarity"]["ncc"]["after"] > report["similarity"]["ncc"]["before"] + 0.1
    run = run_extended(copy, *words, "--patience", "9", "--out", tmp_path / "out")
    assert run.returncode == 2
    assert "patience is 9; it must be at least 1 and less than 9." in run.stderr


#: Of the extended library: a manifest's column, the estimate, and the identity of what older versions computed.
LOOK = """
import json, sys
from pathlib import Path
from IconRegistrationLib.batch.cohort.manifest import read_manifest
from IconRegistrationLib.demo.phantom import make_phantom
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.workflow.preflight import ImageFacts, preflight
inputs = make_phantom(size=28).inputs
facts = ImageFacts.of(inputs.fixed), ImageFacts.of(inputs.moving)
Path("pairs.csv").write_text("fixed,moving,patience,similarity\\na,b,7,msd\\n")
settings = read_manifest("pairs.csv", Settings())[0].pair.settings
print(json.dumps({
    "patience": settings.patience, "similarity": settings.similarity,
    "seconds": preflight(inputs, settings, facts).seconds,
    "default": Settings().identity(), "changed": Settings(patience=4).identity(),
}))
"""


def test_a_manifest_the_estimate_and_the_identity_follow(copy):
    run = run_extended(copy, "-c", LOOK)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert (seen["patience"], seen["similarity"]) == (7, "msd")
    assert seen["seconds"] > 0
    assert seen["default"] == Settings().identity()
    assert seen["changed"] == {**Settings().identity(), "patience": 4}
