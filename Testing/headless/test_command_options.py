"""What the options reach: settings, masks, region, initial transform; and what happens without slicer-core."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import itk
import numpy as np
import pytest
from phantoms import phantom

from IconRegistrationLib.batch import commands, outputs
from IconRegistrationLib.batch.command import build_parser, main
from IconRegistrationLib.batch.commands import find_commands
from IconRegistrationLib.batch.options import help_of, option_of, settings_of
from IconRegistrationLib.errors import InputError
from IconRegistrationLib.io.images import write_image
from IconRegistrationLib.networks.cards import shipped_cards
from IconRegistrationLib.registration.settings import ALIGNMENTS, SETTINGS, Settings
from IconRegistrationLib.registration.similarities import SIMILARITIES
from IconRegistrationLib.workflow.folder import output_folder


@pytest.fixture(scope="module")
def a_phantom():
    return phantom(28)


@pytest.fixture
def a_pair(a_phantom, tmp_path):
    """A folder with the phantom's files."""
    outputs.write_inputs(tmp_path, a_phantom.inputs)
    return tmp_path / "inputs"


def images(pair):
    return ["register", "--fixed", str(pair / "fixed.nii.gz"), "--moving", str(pair / "moving.nii.gz")]


def test_help_names_every_choice():
    assert set(SETTINGS) == set(Settings.__dataclass_fields__)
    for name, choices in (("align", ALIGNMENTS), ("similarity", SIMILARITIES), ("model", shipped_cards())):
        assert all(choice in help_of(SETTINGS[name]) for choice in choices), name


def test_the_table_in_the_docs_is_that_of_the_settings():
    """| option | what it is | choices or range, with its unit | default |"""
    rows = []
    for name, about in SETTINGS.items():
        values = about.metavar if isinstance(about.metavar, str) else " ".join(about.metavar)
        default = getattr(Settings(), name)
        cells = (about.help, f"{about.allowed} {about.unit}".strip(), "" if default is None else f"`{default}`")
        rows.append(f"| `{option_of(name)} {values}` | " + " | ".join(cells) + " |")
    page = (Path(__file__).parents[2] / "docs" / "command.md").read_text(encoding="utf-8")
    assert "\n".join(rows).replace("  ", " ") in page


def test_the_table_of_commands_in_the_docs_is_that_of_the_help():
    page = (Path(__file__).parents[2] / "docs" / "command.md").read_text(encoding="utf-8")
    table = page.split("| command | what it does |\n|-|-|\n")[1].split("\n\n")[0]
    rows = re.findall(r"^\| \[?`([a-z-]+)`\S* \| (.*) \|$", table, re.MULTILINE)
    assert rows == [(name, module.HELP) for name, module in find_commands().items()]
    assert len(rows) == len(table.splitlines())


def test_a_file_in_the_folder_of_commands_is_a_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "say_hello.py").write_text(
        'HELP = "Greet someone."\n'
        'def add_options(parser):\n    parser.add_argument("name")\n'
        'def run(args):\n    print("hello", args.name)\n'
    )
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    try:
        assert main(["say-hello", "Anna"]) == 0
        assert main(["say-hello"]) == 2
        printed = capsys.readouterr()
        assert printed.out == "hello Anna\n"
        assert "name; see icon-registration say-hello --help." in printed.err
        listed = re.findall(r"^    ([a-z-]+)(?: |$)", build_parser().format_help(), re.MULTILINE)
        assert listed == ["register", "cohort", "propagate", "warp", "demo", "models", "say-hello"]
    finally:
        del commands.say_hello, sys.modules[f"{commands.__name__}.say_hello"]


def test_options_become_settings():
    words = ["register", "--fixed", "f", "--moving", "m", "--out", "o", "--ct-window", "-160", "240", "--steps", "5"]
    assert settings_of(build_parser().parse_args(words)) == Settings(ct_window=(-160.0, 240.0), steps=5)


def test_initial_mask_region_and_guide_reach_the_registration(a_phantom, a_pair, tmp_path, capfd):
    """With the true poses as the initial transform and no alignment the error halves."""
    matrix = a_phantom.moving_pose @ np.linalg.inv(a_phantom.fixed_pose)
    transform = itk.AffineTransform[itk.D, 3].New()
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(matrix[:3, :3])))
    transform.SetOffset(matrix[:3, 3].tolist())
    itk.transformwrite([transform], str(tmp_path / "initial.tfm"))
    write_image(replace(a_phantom.fixed, array=a_phantom.fixed_segmentation.layers[1]), tmp_path / "body.nii.gz")
    words = [
        *images(a_pair),
        *("--fixed-segmentation", str(a_pair / "fixed.seg.nrrd")),
        *("--moving-segmentation", str(a_pair / "moving.seg.nrrd"), "--guide"),
        *("--initial", str(tmp_path / "initial.tfm"), "--align", "none", "--steps", "2", "--spacing", "16"),
        *("--fixed-mask", str(tmp_path / "body.nii.gz"), "--region", str(tmp_path / "body.nii.gz")),
        *("--no-scene", "--no-pictures", "--out", str(tmp_path / "out")),
    ]
    assert main(words) == 0
    assert '"masked": true' in (tmp_path / "out" / "report.json").read_text(encoding="utf-8")
    (found,) = itk.transformread(str(tmp_path / "out" / "transform.h5"))
    after = a_phantom.end_point_error(lambda points: np.array([found.TransformPoint(p.tolist()) for p in points]), 3)
    assert after.mean() < a_phantom.end_point_error(lambda points: points, 3).mean() / 2


def test_region_is_the_box_of_the_mask(a_phantom):
    grid, array = a_phantom.fixed.grid, np.zeros(a_phantom.fixed.grid.shape, np.uint8)
    array[2:5, 3:9, 4:6] = 1
    region = grid.box_around(array)
    assert region.shape == (3, 6, 2)
    np.testing.assert_allclose(region.origin, grid.to_world((4, 3, 2)))


def test_without_slicer_core_all_else_is_written(a_pair, tmp_path, capfd, monkeypatch):
    def absent():
        raise InputError('MRML scenes need slicer-core; run pip install "slicer-icon-registration[scene]".')

    monkeypatch.setattr("IconRegistrationLib.mrml.embedded.boot", absent)
    assert main([*images(a_pair), "--align", "centre", "--steps", "1", "--out", str(tmp_path / "out")]) == 0
    assert "slicer-icon-registration[scene]" in capfd.readouterr().out
    assert not (tmp_path / "out" / "scene.mrb").exists()
    assert (tmp_path / "out" / "transform.h5").is_file()


def test_a_table_for_spreadsheets_holds_plain_numbers(a_pair, tmp_path):
    words = ["--align", "centre", "--steps", "1", "--no-scene", "--no-pictures", "--out", str(tmp_path / "out")]
    assert (
        main([*images(a_pair), "--landmarks", str(a_pair / "fixed.mrk.json"), str(a_pair / "moving.mrk.json"), *words])
        == 0
    )
    for line in (tmp_path / "out" / "report.csv").read_text(encoding="utf-8").splitlines()[1:]:
        assert all(number == "" or np.isfinite(float(number)) for number in line.rsplit(",", 2)[1:]), line


def test_results_that_appeared_meanwhile_are_not_replaced(tmp_path):
    def two_runs_at_once():
        with output_folder(tmp_path / "out"):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "report.txt").write_text("of the other run")

    with pytest.raises(InputError, match="meanwhile"):
        two_runs_at_once()
    assert (tmp_path / "out" / "report.txt").read_text() == "of the other run"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
