"""What the panel's controls mean to the library, without Qt and without nodes."""

import json
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.registration.settings import ALIGNMENTS, Settings
from IconRegistrationLib.registration.similarities import SIMILARITIES
from IconRegistrationLib.ui import choices
from IconRegistrationLib.workflow import presets
from IconRegistrationLib.workflow.roles import complete_roles


def a_panel(**values):
    """The attributes of the module's parameter node that ui/choices.py reads and writes, at their defaults."""
    start = {
        **{"model": "none", "steps": 0, "spacing": 0.0, "padding": 0.0, "otherSettings": ""},
        "refinement": choices.Refinement.AUTO,
        "similarity": choices.SimilarityMeasure.AUTO,
        "alignment": choices.Alignment.AUTO,
        "device": choices.Device.AUTO,
        "precision": choices.Precision.AUTO,
    }
    return SimpleNamespace(**{**start, **values})


def a_preset(name):
    return next(preset for preset in presets.builtin_presets() if preset.name == name)


def a_request(**values):
    """As mrml.registration.RegistrationRequest, of words instead of nodes."""
    nodes = ("fixed", "moving", "fixed_segmentation", "moving_segmentation", "fixed_landmarks", "moving_landmarks")
    start = {
        **dict.fromkeys(
            (*nodes, "fixed_mask", "moving_mask", "initial", "region", "fixed_segments", "moving_segments")
        ),
        **{"roles": complete_roles(), "moving_resolution": False},
        **{"jacobian": False, "distrust": False, "settings": Settings(), "fixed": "CT 1", "moving": "CT 2"},
    }
    return SimpleNamespace(**{**start, **values})


# ------------------------------------------------------------------------------------------------ words and settings


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (choices.Alignment, {"auto", *ALIGNMENTS}),
        (choices.SimilarityMeasure, {"auto", *SIMILARITIES}),
        (choices.Refinement, {"auto", "field", "network", "off"}),
        (choices.Precision, {"auto", "float32", "mixed"}),
    ],
)
def test_every_word_of_the_library_is_offered(kind, words):
    assert {choice.word for choice in kind} == words
    for choice in kind:
        assert kind.of(choice.word) is choice
        assert choice.label()
    assert len({choice.label() for choice in kind}) == len(kind)


def test_a_panel_that_nobody_touched_means_the_defaults():
    assert choices.settings_of(a_panel()) == Settings()


CHANGED = Settings(
    model="unigradicon",
    refine="network",
    steps=7,
    similarity="mind",
    align="rigid",
    device="cuda:1",
    precision="float32",
    fixed_modality="ct",
    moving_modality="mri",
    ct_window=(-500.0, 500.0),
    quantile_range=(0.1, 0.9),
    label_weight=2.0,
    padding=12.5,
    spacing=3.0,
    weights_dir="/weights",
)


def test_settings_go_through_the_panel_unchanged():
    assert all(getattr(CHANGED, field.name) != getattr(Settings(), field.name) for field in fields(Settings))
    panel = a_panel()
    choices.show_settings(panel, CHANGED)
    assert choices.settings_of(panel) == CHANGED
    choices.show_settings(panel, Settings())
    assert vars(panel) == vars(a_panel()), "nothing is left of what was shown before"


def test_the_other_settings_are_kept_while_controls_change():
    panel = a_panel()
    choices.show_settings(panel, CHANGED)
    panel.steps, panel.similarity = 0, choices.SimilarityMeasure.LNCC
    assert choices.settings_of(panel) == replace(CHANGED, steps=None, similarity="lncc")


def test_the_first_gpu_has_two_names():
    panel = a_panel()
    choices.show_settings(panel, Settings(device="cuda:0"))
    assert choices.settings_of(panel).device == "cuda"


@pytest.mark.parametrize(("field", "value"), [("device", "cuda:17"), ("device", "tpu")])
def test_what_no_control_offers_is_refused_and_nothing_changes(field, value):
    panel = a_panel()
    with pytest.raises(InputError, match=value):
        choices.show_settings(panel, replace(Settings(steps=5), **{field: value}))
    assert vars(panel) == vars(a_panel())


def test_choices_that_exclude_each_other_are_refused():
    with pytest.raises(InputError, match="model is 'none'"):
        choices.settings_of(a_panel(refinement=choices.Refinement.NETWORK))
    with pytest.raises(InputError, match="No weights file is chosen"):
        choices.settings_of(a_panel(model=""))


# ------------------------------------------------------------------------------------------------ presets


@pytest.mark.parametrize("preset", [preset for preset in presets.builtin_presets() if preset.settings["model"]])
def test_a_preset_is_what_it_says_on_every_machine(preset):
    panel = a_panel()
    choices.show_settings(panel, CHANGED)
    choices.with_preset(panel, preset, "/ignored.trch")
    settings = choices.settings_of(panel)
    assert settings == Settings(**preset.settings, device="cuda:1", weights_dir="/weights")
    assert not presets.settings_differ(preset, settings)
    panel.steps = 3
    assert presets.settings_differ(preset, choices.settings_of(panel))


def test_custom_weights_take_the_chosen_file():
    panel = a_panel(steps=5)
    choices.with_preset(panel, a_preset(presets.CUSTOM_WEIGHTS), "/data/mine.trch")
    assert choices.settings_of(panel) == Settings(model="/data/mine.trch")
    assert not presets.settings_differ(a_preset(presets.CUSTOM_WEIGHTS), choices.settings_of(panel))
    choices.with_preset(panel, a_preset(presets.CUSTOM_WEIGHTS), "")
    with pytest.raises(InputError, match="No weights file"):
        choices.settings_of(panel)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (Settings(), "none"),
        (Settings(device="cpu", weights_dir="/weights"), "none"),
        (Settings(model="unigradicon"), "unigradicon"),
        (Settings(model="unigradicon", refine="field"), "unigradicon+refinement"),
        (Settings(model="unigradicon", refine="network"), "unigradicon"),
        (Settings(model="/data/mine.trch"), presets.CUSTOM_WEIGHTS),
        (Settings(model="/data/mine.trch", steps=3), presets.CUSTOM_WEIGHTS),
        (Settings(steps=3), "mine"),
        (Settings(steps=4), "none"),
    ],
)
def test_the_preset_of_an_earlier_run(settings, name):
    own = presets.Preset("mine", "mine", "", {"model": "none", "steps": 3})
    assert presets.preset_of([*presets.builtin_presets(), own], settings).name == name


# ------------------------------------------------------------------------------------------------ segments


def test_all_segments_are_remembered_as_no_list():
    there = ["lung", "liver"]
    assert choices.remembered_segments(there, there) == ""
    assert choices.chosen_segments("") is None
    for chosen in (["liver"], []):
        assert choices.chosen_segments(choices.remembered_segments(chosen, there)) == chosen


# ------------------------------------------------------------------------------------------------ run again


def test_an_earlier_request_is_shown():
    panel = a_panel()
    asked = a_request(
        fixed_segmentation="organs 1",
        moving_segmentation="organs 2",
        fixed_segments=["lung"],
        fixed_mask="organs 1",
        region="box",
        initial="matrix",
        roles=complete_roles({"guide": True, "compare": False}),
        jacobian=True,
        settings=CHANGED,
    )
    choices.show_request(panel, asked)
    assert (panel.fixedVolume, panel.movingVolume) == ("CT 1", "CT 2")
    assert (panel.fixedSegmentation, panel.movingSegmentation) == ("organs 1", "organs 2")
    assert (panel.fixedLandmarks, panel.movingLandmarks) == (None, None)
    assert (panel.initialTransform, panel.region) == ("matrix", "box")
    assert (json.loads(panel.fixedSegments), panel.movingSegments) == (["lung"], "")
    assert (panel.focus, panel.guide, panel.carry, panel.compare) == (True, True, True, False)
    assert (panel.jacobian, panel.distrust, panel.movingResolution) == (True, False, False)
    assert choices.settings_of(panel) == CHANGED


@pytest.mark.parametrize("values", [{"moving_mask": "a volume"}, {"settings": Settings(device="cuda:17")}])
def test_a_request_that_the_panel_cannot_make_changes_nothing(values):
    panel = a_panel()
    with pytest.raises(InputError):
        choices.show_request(panel, a_request(**values))
    assert vars(panel) == vars(a_panel())
