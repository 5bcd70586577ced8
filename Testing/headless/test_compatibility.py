"""The flags of unigradicon-register and unigradicon-warp: what they become, and that its own warp agrees."""

import contextlib
import io
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from phantoms import phantom

from IconRegistrationLib.batch import outputs
from IconRegistrationLib.batch.command import build_parser, main
from IconRegistrationLib.batch.commands.register import pair_of
from IconRegistrationLib.batch.compatibility import REGISTER, WARP, translate
from IconRegistrationLib.errors import InputError
from IconRegistrationLib.io.images import read_image
from IconRegistrationLib.io.transforms import read_transform
from IconRegistrationLib.registration.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "command.md"
#: What every old command has.
OLD = {
    "register": "--fixed=f.nrrd --moving=m.nrrd --fixed_modality=ct --moving_modality=mri --transform_out=t.hdf5",
    "warp": "--fixed=f.nrrd --moving=m.nrrd --transform=t.hdf5 --warped_moving_out=w.nrrd",
}
NEEDED = {
    "register": "--fixed f.nrrd --moving m.nrrd",
    "warp": "--input m.nrrd --transform t.hdf5 --out w.nrrd",
}


def parsed(words):
    return vars(build_parser().parse_args(words))


def rows():
    """(command, old flags, what docs/command.md says that they are)."""
    table = PAGE.read_text(encoding="utf-8").partition("## Scripts for unigradicon")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `(register|warp)` \| `(.+?)` \| (.+?) \|$", table, re.MULTILINE)
    assert len(found) > 20
    return found


@pytest.mark.parametrize(("command", "old", "ours"), rows())
def test_every_row_of_the_table_is_so(command, old, ours):
    words = [command, *shlex.split(OLD[command]), *shlex.split(old)]
    if command == "warp" and not {"--linear", "--nearest_neighbor"} & set(words):
        words.append("--linear")
    if ours.startswith("refused"):
        with pytest.raises(InputError) as error:
            translate(words)
        assert old.split()[0] in str(error.value)
        return
    found = parsed(translate(words))
    wanted = shlex.split(ours.strip("`")) if ours.startswith("`") else []
    expected = parsed([command, *shlex.split(NEEDED[command]), *wanted])
    given = {word[2:].replace("-", "_") for word in wanted if word.startswith("--")}
    assert {name: found[name] for name in given} == {name: expected[name] for name in given}


def test_every_old_flag_has_a_row():
    text = " ".join(f"{command} {old}" for command, old, _ in rows())
    assert not {flag for flag in REGISTER | WARP if flag not in text}


@pytest.mark.parametrize(("command", "table"), [("register", REGISTER), ("warp", WARP)])
def test_the_tables_hold_the_flags_of_the_package(command, table):
    """Read from its source: importing it would load its network."""
    import importlib.util

    spec = importlib.util.find_spec("unigradicon")
    if spec is None:
        pytest.skip("needs the package unigradicon")
    source = Path(spec.origin).read_text(encoding="utf-8")
    start = {"register": "def main(", "warp": "def warp_command("}[command]
    body = source.partition(start)[2].partition("\ndef ")[0]
    assert set(re.findall(r"""add_argument\(["'](--\w+)["']""", body)) == set(table)


def test_an_old_command_has_the_old_defaults():
    pair = pair_of(build_parser().parse_args(translate(["register", *shlex.split(OLD["register"])])))
    old = Settings("unigradicon", "network", 50, "lncc", fixed_modality="ct", moving_modality="mri")
    assert pair.settings == old


def test_our_own_commands_and_options_stay():
    ours = ["register", "--fixed", "f", "--moving", "m", "--fixed-mask", "a", "--out", "o"]
    assert translate(ours) == ours
    assert translate(["demo", "--fixed_mask"]) == ["demo", "--fixed_mask"]
    assert translate([]) == []
    mixed = parsed(translate(["register", *shlex.split(OLD["register"]), "--align", "rigid", "--steps", "7"]))
    assert (mixed["align"], mixed["steps"]) == ("rigid", 7)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--io_iterations fifty", "--io_iterations is 'fifty'; give a whole number"),
        ("--io_iterations 0", "give a whole number from 1, or None"),
        ("--io_lr", "--io_lr: expected 1 argument"),
        ("--io_lr fast", "--io_lr is 'fast'; give a number"),
        ("--input_masking", "needs masks of both images; give --fixed_mask and --moving_mask"),
        ("--loss_function_masking --fixed_mask a", "--loss_function_masking needs masks of both"),
        ("--dice_loss_weight 1 --fixed_segmentation a", "needs segmentations of both images"),
    ],
)
def test_wrong_values_are_named_as_they_were_written(more, said, capfd):
    assert main(["register", *shlex.split(OLD["register"]), *shlex.split(more)]) == 2
    err = capfd.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_segmentations_are_masks_where_they_were():
    words = ["register", *shlex.split(OLD["register"]), "--fixed_segmentation=a", "--moving_segmentation=b"]
    deprecated = pair_of(build_parser().parse_args(translate(words)))
    assert (deprecated.fixed_mask, deprecated.moving_mask) == ("a", "b")
    guided = pair_of(build_parser().parse_args(translate([*words, "--dice_loss_weight=0.5"])))
    assert (guided.roles["guide"], guided.settings.label_weight, guided.fixed_mask) == (True, 0.5, None)


def test_nothing_to_write_is_said(capfd):
    assert main(["register", "--fixed", "f", "--moving", "m"]) == 2
    assert "give --out DIR, --transform-out FILE or --warped-out FILE" in capfd.readouterr().err


# -------------------------------------------------------------------------------------------------- files, for real


@pytest.fixture(scope="module")
def a_phantom():
    """Both images lie obliquely, and differently."""
    made = phantom(28)
    for grid in (made.fixed.grid, made.moving.grid):
        assert np.abs(grid.direction - np.round(grid.direction)).max() > 0.05
    return made


@pytest.fixture(scope="module")
def an_old_run(a_phantom, tmp_path_factory):
    """The folder of a run with unigradicon's flags, and of its inputs; without a network, which nothing ships."""
    folder = tmp_path_factory.mktemp("old")
    outputs.write_inputs(folder, a_phantom.inputs)
    words = [
        *("register", f"--fixed={folder}/inputs/fixed.nii.gz", f"--moving={folder}/inputs/moving.nii.gz"),
        *("--fixed_modality=ct", "--moving_modality=ct", f"--transform_out={folder}/trans.hdf5"),
        *(f"--warped_moving_out={folder}/warped.nii.gz", "--io_iterations", "4", "--model", "none"),
        *("--align", "rigid", "--spacing", "10"),
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(words) == 0
    return folder


def test_just_the_named_files_are_written(an_old_run):
    assert sorted(path.name for path in an_old_run.iterdir()) == ["inputs", "trans.hdf5", "warped.nii.gz"]


def test_the_transform_takes_fixed_points_to_moving_ones(an_old_run, a_phantom):
    transform = read_transform(an_old_run / "trans.hdf5")
    found = a_phantom.end_point_error(lambda p: np.array([transform.TransformPoint(x.tolist()) for x in p]), step=4)
    assert found.mean() < 0.4 * a_phantom.end_point_error(lambda points: points, step=4).mean()


@pytest.mark.parametrize("order", ["--linear", "--nearest_neighbor"])
def test_unigradicon_warp_makes_the_same_of_our_transform_as_ours_with_its_flags(
    order, an_old_run, tmp_path, monkeypatch
):
    pytest.importorskip("icon_registration", reason="needs the package icon_registration")
    unigradicon = pytest.importorskip("unigradicon", reason="needs the package unigradicon")
    inputs = an_old_run / "inputs"
    words = [f"--fixed={inputs}/fixed.nii.gz", f"--moving={inputs}/moving.nii.gz", order]
    words.append(f"--transform={an_old_run}/trans.hdf5")
    theirs, ours = tmp_path / "theirs.nii.gz", tmp_path / "ours.nii.gz"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["unigradicon-warp", *words, f"--warped_moving_out={theirs}"])
    unigradicon.warp_command()
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["warp", *words, f"--warped_moving_out={ours}"]) == 0
    a, b = (read_image(path) for path in (theirs, ours))
    assert a.grid.is_close(b.grid)
    assert a.array.dtype == b.array.dtype
    seen = (a.array != 0) | (b.array != 0)
    assert seen.mean() > 0.5
    assert (np.abs(a.array[seen].astype(float) - b.array[seen]) <= 1).mean() > 0.99
    if order == "--linear":  # and what --warped_moving_out of the registration held, but for the value outside
        first = read_image(an_old_run / "warped.nii.gz").array
        inside = (a.array != 0) & (b.array != 0)
        assert (np.abs(first[inside].astype(float) - a.array[inside]) <= 1).mean() > 0.99


def test_an_input_is_never_replaced(an_old_run, capfd):
    inputs = an_old_run / "inputs"
    words = ["register", "--fixed", f"{inputs}/fixed.nii.gz", "--moving", f"{inputs}/moving.nii.gz"]
    before = (inputs / "moving.nii.gz").read_bytes()
    assert main([*words, "--warped-out", f"{inputs}/../inputs/moving.nii.gz"]) == 2
    assert "is an input and would be replaced" in capfd.readouterr().err
    assert (inputs / "moving.nii.gz").read_bytes() == before


def test_json_lists_single_files(an_old_run, tmp_path, capfd):
    inputs, out = an_old_run / "inputs", tmp_path / "t.nii.gz"
    words = ["register", "--fixed", f"{inputs}/fixed.nii.gz", "--moving", f"{inputs}/moving.nii.gz", "--json"]
    assert main([*words, "--align", "centre", "--refine", "off", "--transform-out", str(out)]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])["result"]
    assert result["single_files"] == [str(out)]
    assert "folder" not in result
    assert [path.name for path in tmp_path.iterdir()] == ["t.nii.gz"]
