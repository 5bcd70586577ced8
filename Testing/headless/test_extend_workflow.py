"""A role, a verdict and a preset, each added in one place, from the command; the panel is in Testing/gui."""

import json
import re
from pathlib import Path

import pytest
from extended import WORKFLOW, extend, run_extended

from IconRegistrationLib.workflow.roles import SEGMENT_ROLES

pytestmark = pytest.mark.slow

COMMAND = ("-m", "IconRegistrationLib.batch.command", "register")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return extend(tmp_path_factory.mktemp("extended"), WORKFLOW)


@pytest.fixture(scope="module")
def words(phantom_files):
    files = [f"{side}.nii.gz" for side in ("fixed", "moving")]
    words = [*COMMAND, "--fixed", phantom_files / files[0], "--moving", phantom_files / files[1]]
    return [*words, "--align", "centre", "--refine", "off", "--no-scene", "--no-pictures"]


def test_the_help_names_the_role(copy):
    text = " ".join(run_extended(copy, *COMMAND, "--help").stdout.split())
    assert "--ignore, --no-ignore What lies inside the segments does not count. (default: no)" in text


def test_the_command_registers_with_the_role_and_reports_the_verdict(copy, words, phantom_files, tmp_path):
    organs = ["--moving-segmentation", phantom_files / "moving.seg.nrrd"]
    run = run_extended(copy, *words, *organs, "--ignore", "--out", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert "AMBER Displacement: up to" in run.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["verdicts"][-1]["measure"] == "Displacement"
    assert report["verdicts"][-1]["level"] == "amber"


def test_the_command_takes_the_preset_and_options_override_it(copy, words, tmp_path):
    text = " ".join(run_extended(copy, *COMMAND, "--help").stdout.split())
    assert "unigradicon+refinement, multigradicon, quick; other options override it" in text
    run = run_extended(copy, *words, "--preset", "quick", "--steps", "3", "--out", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    settings = report["provenance"]["settings"]
    assert (settings["steps"], settings["spacing"], settings["refine"]) == (3, 9.0, "off")
    run = run_extended(copy, *words, "--preset", "slow", "--out", tmp_path / "out")
    assert run.returncode == 2
    assert "No preset is called 'slow'; choose one of none, builtin" in run.stderr


def test_a_role_that_lacks_its_segments_is_named(copy, words, tmp_path):
    run = run_extended(copy, *words, "--ignore", "--out", tmp_path / "out")
    assert run.returncode == 2
    assert "--ignore needs a segmentation; give --fixed-segmentation and --moving-segmentation." in run.stderr


#: Of the extended library: a manifest's column, the masks, and the key of a pair.
LOOK = """
import json
from pathlib import Path
from IconRegistrationLib.batch.cohort.manifest import read_manifest
from IconRegistrationLib.demo.phantom import make_phantom
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.workflow.roles import apply_roles, complete_roles
inputs = make_phantom(size=28).inputs
masked = apply_roles(inputs, complete_roles({"ignore": True}))
body = inputs.fixed_segmentation.mask(inputs.fixed_segmentation.by_name()["body"])
Path("pairs.csv").write_text("fixed,moving,fixed_segmentation,ignore\\na,b,c,yes\\na,c,d,\\n")
print(json.dumps({
    "roles": [entry.pair.roles["ignore"] for entry in read_manifest("pairs.csv", Settings())],
    "body": int(masked.fixed_mask.array[body].max()), "outside": int(masked.fixed_mask.array[~body].min()),
}))
"""


def test_a_manifest_and_the_masks_follow(copy):
    run = run_extended(copy, "-c", LOOK)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {"roles": [True, False], "body": 0, "outside": 1}


def test_the_panel_of_the_documentation_names_every_role():
    page = (Path(__file__).parents[2] / "docs" / "panel.md").read_text(encoding="utf-8")
    for role in SEGMENT_ROLES.values():
        assert re.search(rf"^\| {role.title} \| .* \| {'on' if role.default else 'off'} \|$", page, re.MULTILINE)
