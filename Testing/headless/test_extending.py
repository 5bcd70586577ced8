"""docs/extending.md: every example is added to a copy of the library as it stands on the page, and used from there."""

import json
import re
import textwrap
from pathlib import Path

import pytest
from extended import extend, run_extended

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
BLOCKS = re.findall(r"^```(python|json)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
COMMAND = ("-m", "IconRegistrationLib.batch.command")
#: A field of a dataclass is written among the others.
FIELD_ANCHOR = "    # newer than version 0.1: see `identity`"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    copy = extend(tmp_path_factory.mktemp("extending"), {})
    for kind, block in BLOCKS:
        if kind == "json":
            (copy / "Resources" / "Models" / "toy.json").write_text(block, encoding="utf-8")
            continue
        first, _, code = block.partition("\n")
        file = copy / "IconRegistrationLib" / first.removeprefix("# ").partition(",")[0]
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if "in Settings" in first:
            assert FIELD_ANCHOR in text
            file.write_text(text.replace(FIELD_ANCHOR, textwrap.indent(code, "    ") + FIELD_ANCHOR), encoding="utf-8")
        else:
            file.write_text(f"{text}\n\n{code}" if text else code, encoding="utf-8")
    return copy


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_an_example_has_at_most_20_lines(number):
    lines = [line for line in BLOCKS[number][1].splitlines()[1:] if line.strip()]
    assert len(lines) <= 20


def test_the_help_names_all_of_them(copy):
    text = " ".join(run_extended(copy, *COMMAND, "register", "--help").stdout.split())
    for what in ("msd", "--patience TIMES", "--ignore", "toy"):
        assert what in text, what
    assert "info" in run_extended(copy, *COMMAND, "--help").stdout
    assert "Toy" in run_extended(copy, *COMMAND, "models").stdout


def test_the_command_uses_them(copy, phantom_files, tmp_path):
    words = ["--fixed", phantom_files / "fixed.nii.gz", "--moving", phantom_files / "moving.nii.gz"]
    words += ["--moving-segmentation", phantom_files / "moving.seg.nrrd", "--ignore", "--similarity", "msd"]
    words += ["--preset", "toy", "--patience", "5", "--no-scene", "--no-pictures", "--out", tmp_path / "out"]
    run = run_extended(copy, *COMMAND, "register", *words)
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    settings = report["provenance"]["settings"]
    assert (settings["similarity"], settings["patience"], settings["align"], settings["steps"]) == (
        "msd",
        5,
        "rigid",
        5,
    )
    assert "Overlap" in [verdict["measure"] for verdict in report["verdicts"]]


def test_the_file_format_and_the_command(copy, phantom_files, tmp_path):
    (tmp_path / "points.xyz").write_text("apex 1.0 2.0 3.0\n")
    words = ["--input", tmp_path / "points.xyz", "--transform", shift(tmp_path), "--out", tmp_path / "moved.xyz"]
    run = run_extended(copy, *COMMAND, "warp", *words)
    assert run.returncode == 0, run.stderr
    label, *point = (tmp_path / "moved.xyz").read_text().split()
    assert (label, [float(x) for x in point]) == ("apex", pytest.approx([5.0, 2.0, 3.0]))
    run = run_extended(copy, *COMMAND, "info", phantom_files / "fixed.nii.gz")
    assert re.fullmatch(r"\d+ x \d+ x \d+\n", run.stdout), run.stderr


def shift(folder: Path) -> Path:
    """Write a transform that moves points by 4 mm along x."""
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteTransform(sitk.TranslationTransform(3, (4.0, 0.0, 0.0)), str(folder / "shift.tfm"))
    return folder / "shift.tfm"
