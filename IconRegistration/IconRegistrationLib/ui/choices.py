"""What the panel's controls offer, and what a choice means to the library.

No Qt, no nodes: `panel` is whatever has the attributes of the module's parameter node.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from dataclasses import fields, replace
from enum import Enum
from typing import Any

from ..errors import InputError
from ..registration.settings import Settings
from ..registration.similarities import SIMILARITIES
from ..text import tr, translated
from ..workflow.presets import OF_THE_MACHINE


class Choice(Enum):
    """A choice of one word of the library (the value's first part), shown as a text (the second)."""

    def label(self) -> str:
        """Return the text in the language of the window."""
        return str(translated(self.value[1]))

    @property
    def word(self) -> str:
        """The word of the library."""
        return self.value[0]

    @classmethod
    def of(cls, word: str) -> Any:
        """Return the choice that stands for a word of the library. Raises InputError if none does."""
        for choice in cls:
            if choice.word == word:
                return choice
        raise InputError(
            tr("The panel does not offer {word!r}; use the console, or choose the settings anew.", word=word)
        )


class Alignment(Choice):
    """How moving is laid on fixed before the deformation is found."""

    AUTO = "auto", tr("Automatic")
    NONE = "none", tr("None: as they lie")
    CENTRE = "centre", tr("Centre on centre")
    MASS = "mass", tr("Centre of mass")
    RIGID = "rigid", tr("Rigid, by intensity")
    SIMILARITY = "similarity", tr("Rigid and scale, by intensity")
    AFFINE = "affine", tr("Affine, by intensity")


class Refinement(Choice):
    """What is optimised for the pair."""

    AUTO = "auto", tr("Automatic")
    FIELD = "field", tr("Deformation field")
    NETWORK = "network", tr("Network (fine-tuning)")
    OFF = "off", tr("None")


class SimilarityMeasure(Choice):
    """The similarities of registration/similarities.py."""

    _ignore_ = "members key entry"  # Enum's own way to make members in a loop
    AUTO = "auto", tr("Automatic")
    members = vars()
    for key, entry in SIMILARITIES.items():
        members[key.upper()] = key, entry.title


class Precision(Choice):
    """Of the network's arithmetic."""

    AUTO = "auto", tr("Automatic")
    FLOAT32 = "float32", tr("float32")
    MIXED = "mixed", tr("Mixed")


class Device(Choice):
    """Where it runs."""

    AUTO = "auto", tr("Automatic: GPU if there is one")
    CUDA = "cuda", tr("GPU (CUDA)")
    CUDA1 = "cuda:1", tr("Second GPU")
    CUDA2 = "cuda:2", tr("Third GPU")
    CUDA3 = "cuda:3", tr("Fourth GPU")
    MPS = "mps", tr("GPU (Apple)")
    CPU = "cpu", tr("CPU")

    @classmethod
    def of(cls, word: str) -> Any:
        """Return the choice for a device; "cuda:0" is the first GPU."""
        return super().of("cuda" if word == "cuda:0" else word)


#: Settings that a control of the panel holds: field -> (parameter, kind of choice or None).
_CONTROLS = {
    "model": ("model", None),
    "refine": ("refinement", Refinement),
    "similarity": ("similarity", SimilarityMeasure),
    "align": ("alignment", Alignment),
    "device": ("device", Device),
    "precision": ("precision", Precision),
    "padding": ("padding", None),
}
#: Settings whose "by itself" is None in the library and 0 in a spin box: field -> parameter.
_ZERO_IS_AUTO = {"steps": "steps", "spacing": "spacing"}
#: Settings without a control: what a preset or an earlier result brings is kept in `otherSettings`, as JSON.
_OTHERS = [f.name for f in fields(Settings) if f.name not in (*_CONTROLS, *_ZERO_IS_AUTO)]


def settings_of(panel: Any) -> Settings:
    """Return the Settings that the panel shows. Raises InputError where the choices exclude each other."""
    values = _others(panel)
    for field, (parameter, choice) in _CONTROLS.items():
        value = getattr(panel, parameter)
        values[field] = value.word if choice else value
    for field, parameter in _ZERO_IS_AUTO.items():
        values[field] = getattr(panel, parameter) or None
    if not values["model"]:
        raise InputError(tr("No weights file is chosen; choose one under Advanced, or another preset."))
    return Settings.from_plain(values)


def with_preset(panel: Any, preset: Any, weights: str) -> None:
    """Show a preset's settings; what belongs to the machine stays. weights: the file of "Custom weights"."""
    kept = {name: value for name, value in _others(panel).items() if name in OF_THE_MACHINE}
    machine = Settings(device=panel.device.word, **kept)
    if preset.settings.get("model", Settings().model):
        show_settings(panel, preset.apply(machine))
    else:
        show_settings(panel, replace(machine, **{**preset.settings, "model": "none"}))
        panel.model = weights


def _others(panel) -> dict:
    return json.loads(panel.otherSettings or "{}")


def show_settings(panel: Any, settings: Settings) -> None:
    """Show settings; the reverse of `settings_of`. Raises InputError for what no control can show."""
    shown = {}
    for field, (parameter, choice) in _CONTROLS.items():
        value = getattr(settings, field)
        shown[parameter] = choice.of(value) if choice else value
    for field, parameter in _ZERO_IS_AUTO.items():
        shown[parameter] = type(getattr(panel, parameter))(getattr(settings, field) or 0)
    for parameter, value in shown.items():
        try:
            setattr(panel, parameter, value)
        except ValueError:  # beyond the control's range
            raise InputError(
                tr(
                    "The panel does not offer {parameter} {value}; use the console, or choose the settings anew.",
                    parameter=parameter,
                    value=value,
                )
            ) from None
    plain = Settings()
    others = {name: getattr(settings, name) for name in _OTHERS if getattr(settings, name) != getattr(plain, name)}
    panel.otherSettings = json.dumps(others) if others else ""


def chosen_segments(text: str, there: Container[str] | None = None) -> list[str] | None:
    """Return identifiers of the segments that take part, None for all, of the parameter that remembers them.

    there: the segments that there are; what was deleted since takes no part.
    """
    chosen: list[str] | None = json.loads(text) if text else None
    if chosen is None or there is None:
        return chosen
    return [identifier for identifier in chosen if identifier in there]


def remembered_segments(chosen: Iterable[str], there: Iterable[str]) -> str:
    """Return the text for `chosen_segments`; all of them are not listed, so that segments drawn later take part too."""
    chosen, there = list(chosen), list(there)
    return "" if chosen == there else json.dumps(chosen)


def show_request(panel: Any, request: Any) -> None:
    """Make the panel ask for a mrml.registration.RegistrationRequest again: its nodes, roles and settings.

    Raises InputError for what the panel cannot ask for.
    """
    if request.fixed_mask not in (None, request.fixed_segmentation) or request.moving_mask not in (
        None,
        request.moving_segmentation,
    ):
        raise InputError(
            tr("This result was made with masks of their own, which the panel does not have; use the console.")
        )
    show_settings(panel, request.settings)
    panel.fixedVolume, panel.movingVolume = request.fixed, request.moving
    panel.fixedSegmentation, panel.movingSegmentation = request.fixed_segmentation, request.moving_segmentation
    panel.fixedLandmarks, panel.movingLandmarks = request.fixed_landmarks, request.moving_landmarks
    panel.initialTransform, panel.region = request.initial, request.region
    for parameter, chosen in (("fixedSegments", request.fixed_segments), ("movingSegments", request.moving_segments)):
        setattr(panel, parameter, "" if chosen is None else json.dumps(list(chosen)))
    masked = request.fixed_mask is not None or request.moving_mask is not None  # as 0.1 remembered the focus
    roles = {**request.roles, "focus": masked or request.roles["focus"]}
    for name, value in {**roles, "jacobian": request.jacobian, "distrust": request.distrust}.items():
        setattr(panel, name, value)
    panel.movingResolution = request.moving_resolution
