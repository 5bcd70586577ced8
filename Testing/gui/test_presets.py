"""Presets from the cards, and the user's own through a real settings file."""

import json
import re
from dataclasses import fields, replace

import pytest
import qt

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.networks import catalog
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.ui import presets
from IconRegistrationLib.ui.presets import KEY, delete_preset, save_preset
from IconRegistrationLib.workflow.presets import (
    CUSTOM_WEIGHTS,
    OF_THE_MACHINE,
    OF_THE_METHOD,
    builtin_presets,
    settings_differ,
)


@pytest.fixture
def a_file(tmp_path):
    return str(tmp_path / "Slicer.ini")


@pytest.fixture
def store(a_file):
    return qt.QSettings(a_file, qt.QSettings.IniFormat)


def reopened(store, a_file):
    """What the next start of Slicer reads."""
    store.sync()
    return qt.QSettings(a_file, qt.QSettings.IniFormat)


def by_name():
    return {preset.name: preset for preset in builtin_presets()}


def test_the_built_in_presets():
    assert [preset.title for preset in builtin_presets()] == [
        "Offline, no download",
        "Built-in compact network",
        "uniGradICON",
        "uniGradICON + refinement",
        "multiGradICON: different modalities",
        "Custom weights",
    ]
    plain, refined = by_name()["unigradicon"], by_name()["unigradicon+refinement"]
    assert plain.apply(Settings()).refinement == "off"
    assert refined.apply(Settings()) == Settings(model="unigradicon", refine="field")
    assert by_name()["none"].apply(Settings()).refinement == "field"
    assert by_name()["builtin"].apply(Settings()).refinement == "field"


def test_a_new_card_appears_by_itself(monkeypatch):
    card = catalog.ModelCard("lungs", "LungICON", "For lungs.", ("ct",), size=5_000_000, url="https://example.org/l")
    monkeypatch.setitem(catalog.shipped_cards(), "lungs", card)
    preset = by_name()["lungs"]
    assert (preset.title, preset.settings) == ("LungICON", {"model": "lungs"})
    assert builtin_presets()[-1].name == CUSTOM_WEIGHTS


def test_a_card_in_the_folder_of_weights_appears_too(monkeypatch, tmp_path):
    card = {"name": "toy", "title": "ToyICON", "description": "Moves nothing.", "also_refined": True}
    (tmp_path / "toy.json").write_text(json.dumps({"card": card}))
    monkeypatch.setenv(catalog.WEIGHTS_VARIABLE, str(tmp_path))
    assert [preset.title for preset in builtin_presets()][-3:] == ["ToyICON", "ToyICON + refinement", "Custom weights"]
    assert by_name()["toy+refinement"].apply(Settings()) == Settings(model="toy", refine="field")
    (tmp_path / "toy.json").write_text("{")
    assert "toy" not in by_name()


def test_tooltips_say_what_a_user_should_know():
    card, tooltip = catalog.shipped_cards()["multigradicon"], by_name()["multigradicon"].tooltip
    for part in (card.description, "CT, MRI", card.preprocessing, "283 MB", card.licence, card.citation):
        assert part in tooltip
    assert "Download" not in by_name()["none"].tooltip
    assert "None" not in by_name()["none"].tooltip


def test_a_preset_leaves_the_machine_alone_and_resets_the_method():
    current = Settings(model="multigradicon", steps=7, device="cuda:1", weights_dir="/weights", align="affine")
    applied = by_name()["unigradicon"].apply(current)
    assert applied == Settings(model="unigradicon", device="cuda:1", weights_dir="/weights")


def test_modified_is_about_the_method():
    preset = by_name()["unigradicon"]
    settings = preset.apply(Settings(device="cpu"))
    assert not settings_differ(preset, settings)
    assert not settings_differ(preset, replace(settings, device="cuda:0", weights_dir="/elsewhere"))
    assert settings_differ(preset, replace(settings, refine="field"))
    assert settings_differ(preset, replace(settings, ct_window=(-1000.0, 0.0)))


def test_custom_weights_keep_the_file_and_are_no_silent_default():
    preset = by_name()[CUSTOM_WEIGHTS]
    own = Settings(model="/home/me/own.trch", device="cpu")
    assert preset.apply(own) == own
    assert not settings_differ(preset, own)
    unnamed = preset.apply(Settings(model="unigradicon"))
    with pytest.raises(InputError, match="path of a weights file"):
        catalog.find_card(unnamed.model)


def test_a_user_preset_returns_from_the_settings_file(store, a_file):
    settings = Settings(
        model='C:\\weights, mine;"x".trch',
        refine="field",
        steps=30,
        similarity="mind",
        ct_window=(-1000.0, 400.0),
        quantile_range=(0.0, 0.99),
        label_weight=0.5,
        spacing=2.5,
        device="cuda:1",
        weights_dir="/weights",
    )
    save_preset(store, "  Lunge, Größe \u2192 1 ", settings)
    save_preset(store, "A first", Settings())
    first, lung = presets.user_presets(reopened(store, a_file))
    assert (first.title, lung.title) == ("A first", "Lunge, Größe \u2192 1")
    here = Settings(device="cpu")
    assert lung.apply(here) == replace(settings, device="cpu", weights_dir=None)
    assert not settings_differ(lung, lung.apply(here))
    assert "steps 30" in lung.tooltip


def test_every_field_is_of_the_method_or_of_the_machine():
    assert {field.name for field in fields(Settings)} == {*OF_THE_METHOD, *OF_THE_MACHINE}


def test_replacing_and_deleting(store, a_file):
    save_preset(store, "mine", Settings(steps=1))
    save_preset(store, "mine", Settings(steps=2))
    (mine,) = presets.user_presets(reopened(store, a_file))
    assert mine.settings["steps"] == 2
    with pytest.raises(InputError, match="You have no preset 'other'; there is mine"):
        delete_preset(store, "other")
    delete_preset(store, "mine")
    assert presets.user_presets(reopened(store, a_file)) == []
    with pytest.raises(InputError, match="none that you saved"):
        delete_preset(store, "mine")


@pytest.mark.parametrize("name", ["unigradicon", "Offline, no download", " UNIGRADICON + refinement", "custom"])
def test_built_in_names_are_taken(store, name):
    with pytest.raises(InputError, match="built in"):
        save_preset(store, name, Settings())
    assert store.value(KEY) is None


def test_a_preset_needs_a_name(store):
    with pytest.raises(InputError, match="no name"):
        save_preset(store, "  ", Settings())


@pytest.mark.parametrize("value", ["", "{", "[1, 2]", '"text"', "null", ["{a", "b}"], 7, {"mine": 3}, b"\xff"])
def test_a_foreign_value_does_not_break_the_panel(store, a_file, value, caplog):
    store.setValue(KEY, value)
    store = reopened(store, a_file)
    assert presets.user_presets(store) == []
    assert caplog.records or not value
    save_preset(store, "mine", Settings())
    assert [preset.name for preset in presets.user_presets(store)] == ["mine"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model": "none", "warp_factor": 9}, "does not know warp_factor; update"),
        ({"device": "cuda:0"}, "does not know device"),
        ({"steps": "many"}, "steps is 'many'"),
        ({"steps": True}, "steps is True"),
        ({"model": None}, "model is None"),
        ({"label_weight": float("nan")}, "label_weight is nan"),
        ({"ct_window": [1, 2, 3]}, r"ct_window is \(1, 2, 3\)"),
        ({"ct_window": "wide"}, "ct_window is 'wide'"),
        ({"refine": "everything"}, "refine is 'everything'; choose one of"),
        ({"model": "none", "refine": "network"}, "name a model"),
        ("text", "not an object"),
        (None, "not an object"),
    ],
)
def test_one_bad_preset_is_refused_by_name_and_kept(store, a_file, values, reason, caplog):
    store.setValue(KEY, json.dumps({"bad": values, "good": {"steps": 3, "label_weight": 1}}))
    store = reopened(store, a_file)
    (good,) = presets.user_presets(store)
    assert good.apply(Settings()).steps == 3
    (record,) = caplog.records
    assert "'bad'" in record.getMessage()
    assert re.search(reason, record.getMessage())
    save_preset(store, "another", Settings())
    assert "bad" in json.loads(store.value(KEY)), "a newer version may still want it"


def test_the_order_of_fields_does_not_matter(store):
    store.setValue(KEY, json.dumps({"mine": {"refine": "network", "model": "unigradicon"}}))
    (mine,) = presets.user_presets(store)
    assert mine.apply(Settings()).refinement == "network"
