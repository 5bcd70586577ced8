"""A scene with the panel's choices, and the user's presets, as version 0.1 wrote them."""

import shutil
from pathlib import Path

import pytest
import qt
import slicer
from panel import ticked
from slicerharness import settle

from IconRegistrationLib.mrml.registration import outputs_of, request_of
from IconRegistrationLib.mrml.scene import load_scene
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.ui import choices, presets
from IconRegistrationLib.ui.review_controls import deformation, images, overlay

FILES = Path(__file__).parents[1] / "data" / "written_by_0_1"
NODES = {
    "fixedVolume": "Phantom inhale",
    "movingVolume": "Phantom exhale",
    "fixedSegmentation": "Phantom inhale organs",
    "movingSegmentation": "Phantom exhale organs",
    "fixedLandmarks": "Phantom inhale landmarks",
    "movingLandmarks": "Phantom exhale landmarks",
    "result": "Phantom exhale to Phantom inhale",
}
VALUES = {
    "fixedSegments": '["Segment_0_1", "Segment_0_2"]',
    "movingSegments": '["Segment_0_1", "Segment_0_2"]',
    "carry": True,
    "compare": False,
    "focus": True,
    "guide": True,
    "alignment": choices.Alignment.RIGID,
    "preset": "none",
    "model": "none",
    "refinement": choices.Refinement.FIELD,
    "steps": 7,
    "similarity": choices.SimilarityMeasure.MIND,
    "device": choices.Device.CPU,
    "precision": choices.Precision.FLOAT32,
    "spacing": 40.0,
    "padding": 1.5,
    "otherSettings": '{"label_weight": 0.5, "ct_window": [-900.0, 700.0]}',
    "update": False,
    "movingResolution": False,
    "jacobian": False,
    "distrust": False,
    "shown": images.Shown.LIVE,
    "swap": True,
    "warpAmount": 60.0,
    "comparison": images.Comparison.CURTAIN,
    "blend": 30.0,
    "cells": 5.0,
    "curtainDirection": images.CurtainDirection.SUPERIOR_INFERIOR,
    "curtain": 20.0,
    "linkedCursor": True,
    "deformation": deformation.Deformation.GRID,
    "deformationSpacing": 12.0,
    "lineWidth": 3,
    "deformationIn3D": True,
    "overlay": overlay.Overlay.DISTRUST,
    "outlines": True,
    "labels": '["Segment_0_1"]',
}
SHOWN = Settings(
    refine="field",
    steps=7,
    similarity="mind",
    align="rigid",
    device="cpu",
    precision="float32",
    ct_window=(-900.0, 700.0),
    label_weight=0.5,
    padding=1.5,
    spacing=40.0,
)


@pytest.fixture
def loaded(panel):
    """The panel, open while its scene is replaced by that of 0.1."""
    load_scene(slicer.mrmlScene, FILES / "panel.mrb", clear=True)
    settle()
    return panel


def test_every_choice_returns(loaded):
    p = loaded.parameters
    assert {name: getattr(p, name).GetName() for name in NODES} == NODES
    assert {name: getattr(p, name) for name in VALUES} == VALUES
    assert p.initialTransform is None
    assert p.region is None
    assert choices.settings_of(p) == SHOWN
    assert loaded.ui.stepsSpinBox.value == 7
    on = [name for name, on in ticked(loaded.ui.fixedSegmentsList).items() if on]
    assert len(on) == 2


def test_the_result_is_reviewed(loaded):
    forward = loaded.parameters.result
    assert loaded.ui.resultSelector.currentNode() is forward
    assert loaded.ui.trustTable.rowCount > 5
    assert loaded.ui.runAgainButton.enabled
    request, outputs = request_of(forward), outputs_of(forward)
    assert request.settings.steps == 7
    assert request.settings.label_weight == 0.5
    assert outputs.report.target_registration_error.before > 10
    made = {name for name, node in vars(outputs).items() if node is not None}
    assert {"forward", "backward", "warped_volume", "warped_segmentation", "warped_landmarks", "report"} <= made


def test_run_again_asks_for_the_same(loaded):
    """Of the result, not of what the panel shows: that was changed after the run."""
    request = request_of(loaded.parameters.result)
    loaded.ui.runAgainButton.click()
    assert loaded.busy, loaded.status
    assert loaded.worker.settings == request.settings
    assert loaded.worker.settings == Settings(
        refine="off",  # what panel.FakeWorker did then, not what it was asked
        steps=7,
        similarity="mind",
        align="mass",
        device="cpu",
        ct_window=(-900.0, 700.0),
        label_weight=0.5,
        padding=1.5,
        spacing=40.0,
    )
    sent = loaded.worker.inputs
    assert len(sent.fixed_segmentation.segments) == len(sent.moving_segmentation.segments) == 2
    assert sent.fixed_landmarks.labels == sent.moving_landmarks.labels
    assert loaded.worker.request["options"]["guide"]
    loaded.worker.finish()
    settle()
    assert loaded.parameters.result is not None, loaded.status
    assert loaded.ui.trustTable.rowCount > 5


def test_presets_give_the_same_settings(tmp_path):
    path = shutil.copyfile(FILES / "Slicer.ini", tmp_path / "Slicer.ini")
    store = qt.QSettings(str(path), qt.QSettings.IniFormat)
    here = Settings(device="cpu", weights_dir="/here")
    assert {preset.name: preset.apply(here) for preset in presets.user_presets(store)} == {
        "Lung, fine": Settings(
            refine="field",
            steps=30,
            similarity="mind",
            align="rigid",
            fixed_modality="ct",
            moving_modality="mri",
            ct_window=(-1000.0, 400.0),
            quantile_range=(0.0, 0.99),
            label_weight=0.5,
            padding=3.0,
            spacing=2.5,
            device="cpu",
            weights_dir="/here",
        ),
        "Größe \u2192 1": Settings(
            model='C:\\weights, mine;"x".trch',
            refine="network",
            precision="mixed",
            device="cpu",
            weights_dir="/here",
        ),
        "defaults": here,
    }
    presets.save_preset(store, "another", Settings(steps=1))
    presets.delete_preset(store, "defaults")
    assert [preset.name for preset in presets.user_presets(store)] == ["Größe \u2192 1", "Lung, fine", "another"]
