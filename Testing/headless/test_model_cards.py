"""One JSON file makes a model: the command, the preflight and the docs know it by its card; a damaged one is named."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from IconRegistrationLib.batch import outputs
from IconRegistrationLib.batch.command import main
from IconRegistrationLib.batch.pair import check_settings
from IconRegistrationLib.demo.phantom import make_phantom
from IconRegistrationLib.errors import InputError
from IconRegistrationLib.networks import catalog
from IconRegistrationLib.networks.cards import ModelCard, read_card, shipped_cards
from IconRegistrationLib.networks.catalog import find_card, known_cards
from IconRegistrationLib.networks.unet import GradICON
from IconRegistrationLib.registration.settings import Settings

TOY = {
    "name": "toy",
    "title": "ToyICON",
    "description": "Moves nothing.",
    "input_shape": [16, 16, 16],
    "down_channels": [2, 4, 8],
    "up_channels": [4, 8],
    "alignment": "centre",
}


def write_card(folder: Path, **changes) -> Path:
    path = folder / "toy.json"
    path.write_text(json.dumps({"card": TOY | changes}), encoding="utf-8")
    return path


@pytest.fixture
def a_folder(tmp_path, monkeypatch):
    """A folder of weights with a toy network and its card, and no other."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.delenv(catalog.WEIGHTS_VARIABLE, raising=False)
    folder = tmp_path / "weights"
    folder.mkdir()
    write_card(folder)
    network = GradICON(*(tuple(TOY[name]) for name in ("input_shape", "down_channels", "up_channels")))
    torch.save(network.state_dict(), folder / "toy.trch")
    return folder


def test_the_table_in_the_docs_is_that_of_the_cards():
    rows = []
    for card in shipped_cards().values():
        weights = ("" if card.url else "shipped, ") + f"{card.size / 1e6:.3g} MB" if card.size else "none"
        rows.append(f"| `{card.name}` | {card.title}: {card.description} | {weights} | {card.licence} |\n")
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert "".join(rows) in page


def test_a_card_is_one_file(a_folder, monkeypatch, capsys):
    assert main(["models", "--weights-dir", str(a_folder), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["models"]
    assert [model["name"] for model in listed] == [*shipped_cards(), "toy"]
    assert listed[-1]["weights"] == str(a_folder / "toy.trch")
    assert listed[-1]["downloaded"] is True
    monkeypatch.setenv(catalog.WEIGHTS_VARIABLE, str(a_folder))
    assert main(["models", "toy"]) == 0
    assert "here " + str(a_folder / "toy.trch") in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["register", "--help"])
    assert "multigradicon, toy" in " ".join(capsys.readouterr().out.split())


def test_the_command_registers_with_it(a_folder, tmp_path):
    outputs.write_inputs(tmp_path, make_phantom(size=32).inputs)
    images = [f"--{side}={tmp_path / 'inputs' / side}.nii.gz" for side in ("fixed", "moving")]
    plain = ["--no-scene", "--no-pictures", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(["register", *images, "--model", "toy", "--weights-dir", str(a_folder), *plain]) == 0
    provenance = json.loads((tmp_path / "out" / "report.json").read_text())["provenance"]
    assert provenance["settings"]["model"] == "toy"


def test_settings_follow_the_card(a_folder):
    settings = Settings(model="toy", weights_dir=str(a_folder))
    assert settings.refinement == "off"
    check_settings(settings)
    write_card(a_folder, refine="field")
    assert settings.refinement == "field"
    assert find_card("toy", a_folder).alignment == "centre"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "toy.json cannot be used"),
        ("[]", 'holds no object with a "card"'),
        ({"size": "large"}, "card.size is 'large', which is no int"),
        ({"input_shape": [16, 16]}, r"card.input_shape is \[16, 16\], which has not 3 elements"),
        ({"tilte": "Toy"}, "card has no 'tilte'; choose from name, title"),
        ({"name": "../toy"}, "card.name is '../toy', which is no name of a file"),
        ({"refine": "twice"}, "card.refine is 'twice'; choose off or field"),
    ],
)
def test_a_damaged_card_is_named_and_breaks_nothing_else(a_folder, content, said, caplog):
    if isinstance(content, str):
        (a_folder / "toy.json").write_text(content)
    else:
        write_card(a_folder, **content)
    with caplog.at_level(logging.WARNING):
        assert list(known_cards(a_folder)) == list(shipped_cards())
    assert "toy.json" in caplog.text
    with pytest.raises(InputError, match=said):
        find_card("toy", a_folder)


def test_a_shipped_model_keeps_its_name(a_folder, caplog):
    write_card(a_folder, name="builtin")
    with caplog.at_level(logging.WARNING):
        assert find_card("builtin", a_folder) is shipped_cards()["builtin"]
        assert known_cards(a_folder) == shipped_cards()
    assert "'builtin' is the name of a model that ships" in caplog.text


def test_weights_that_are_missing_are_named(a_folder):
    (a_folder / "toy.trch").unlink()
    with pytest.raises(InputError, match=r"The weights of ToyICON are missing; put toy\.trch into .*weights"):
        catalog.load_model("toy", weights_dir=a_folder)


def test_a_card_of_version_0_1_is_read(tmp_path):
    old = asdict(ModelCard("old net", "Old", "Of 0.1."))
    for name in ("refine", "preset", "also_refined", "one_modality", "order"):
        del old[name]
    (tmp_path / "old net.json").write_text(json.dumps({"card": old, "plan": {}}))
    assert read_card(tmp_path / "old net.json") == ModelCard("old net", "Old", "Of 0.1.")
