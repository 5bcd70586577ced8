"""Presets: the built-in ones made from the model cards, and the user's own, kept among the user's settings.

The store is whatever has `value(key)` and `setValue(key, value)`: Slicer's `slicer.app.userSettings()` in the panel.
All presets of a user are one JSON object of names and fields. What cannot be read in it is logged and left alone: a
damaged value or one of a newer version must not keep the panel from opening.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, fields, replace

from ..errors import InputError
from ..networks.cards import ModelCard
from ..networks.catalog import known_card, known_cards
from ..registration.settings import SETTINGS, Settings
from ..text import tr, translated

KEY = "IconRegistration/presets"
#: The preset with which the user names a weights file; its model is up to the user.
CUSTOM_WEIGHTS = "custom"
#: What belongs to the computer, not to the method: no preset touches it.
OF_THE_MACHINE = tuple(name for name, about in SETTINGS.items() if about.of_the_machine)
#: The other fields of Settings.
_OF_THE_METHOD = [field.name for field in fields(Settings) if field.name not in OF_THE_MACHINE]


@dataclass(frozen=True)
class Preset:
    """A named way to register.

    name: what is remembered; of a user's preset it is the title too.
    settings: fields of `Settings` and their values; the others have their defaults.
    """

    name: str
    title: str
    tooltip: str
    settings: dict[str, object]

    def apply(self, current: Settings) -> Settings:
        """Return the preset's settings on the machine of `current`; "Custom weights" keeps the file of `current`."""
        kept = {name: getattr(current, name) for name in OF_THE_MACHINE}
        if self.name == CUSTOM_WEIGHTS and known_card(current.model, current.weights_dir) is None:
            kept["model"] = current.model
        return Settings(**{**self.settings, **kept})


def settings_differ(preset: Preset, settings: Settings) -> bool:
    """Whether `settings` register otherwise than the preset does."""
    return preset.apply(settings) != settings


def preset_of(presets: list[Preset], settings: Settings) -> Preset:
    """Return the preset that gives `settings`; if none does, the one that they modify: the first of their model."""
    same = [preset for preset in presets if not settings_differ(preset, settings)]
    of_the_model = [preset for preset in presets if preset.settings["model"] == settings.model]
    own_weights = [preset for preset in presets if preset.name == CUSTOM_WEIGHTS]
    return (same + of_the_model + own_weights)[0]


def builtin_presets() -> list[Preset]:
    """Return the presets that are offered first: one per model card, and the user's own weights."""
    presets = []
    for card in known_cards().values():
        title = translated(card.preset or card.title)
        presets.append(Preset(card.name, title, describe(card), {"model": card.name}))
        if card.also_refined:
            then = tr(
                "{model} Then the deformation is optimised for this pair, which takes longer.",
                model=translated(card.description),
            )
            text = describe(replace(card, description=then))
            settings: dict[str, object] = {"model": card.name, "refine": "field"}
            presets.append(Preset(f"{card.name}+refinement", tr("{preset} + refinement", preset=title), text, settings))
    text = tr("A weights file of your own, of the architecture of uniGradICON.")
    return [*presets, Preset(CUSTOM_WEIGHTS, tr("Custom weights"), text, {"model": ""})]  # "" is refused when it is run


def describe(card: ModelCard) -> str:
    """Return a tooltip: what a model is, what it was made for, what it costs and whom to cite."""
    lines = [translated(card.description)]
    if card.modalities:
        lines.append(tr("Modalities: {modalities}", modalities=", ".join(card.modalities).upper()))
    if card.preprocessing:
        lines.append(tr("Preprocessing: {preprocessing}", preprocessing=translated(card.preprocessing)))
    if card.url:
        lines.append(tr("Download: {size:.0f} MB, once", size=card.size / 1e6))
    if card.limits:
        lines.append(tr("Limits: {limits}", limits=translated(card.limits)))
    if card.licence:
        lines.append(tr("Licence: {licence}", licence=translated(card.licence)))
    if card.citation:
        lines.append(tr("Cite: {citation}", citation=card.citation))
    return "\n".join(lines)


def user_presets(store) -> list[Preset]:
    """Return the user's presets in alphabetical order; those that cannot be used are logged, with the reason."""
    presets = []
    for name, values in sorted(_stored(store).items()):
        try:
            settings = _method_of(values)
        except InputError as error:
            logging.warning("The preset %r is ignored: %s", name, error)
            continue
        presets.append(Preset(name, name, _describe_own(settings), _of_the_method(settings)))
    return presets


def save_preset(store, name: str, settings: Settings) -> None:
    """Keep the method of `settings` as a preset of the user; one of the same name is replaced.

    Raises InputError for an empty name or that of a built-in preset.
    """
    name = name.strip()
    if not name:
        raise InputError(tr("The preset has no name; type one."))
    taken = {word.casefold() for preset in builtin_presets() for word in (preset.name, preset.title)}
    if name.casefold() in taken:
        raise InputError(tr("The preset {name!r} is built in and stays as it is; choose another name.", name=name))
    store.setValue(KEY, json.dumps({**_stored(store), name: _of_the_method(settings)}, indent=1))


def delete_preset(store, name: str) -> None:
    """Delete a preset of the user. Raises InputError if there is none of that name."""
    stored = _stored(store)
    if name not in stored:
        raise InputError(
            tr(
                "You have no preset {name!r}; there is {presets}.",
                name=name,
                presets=", ".join(sorted(stored)) or tr("none that you saved"),
            )
        )
    del stored[name]
    store.setValue(KEY, json.dumps(stored, indent=1))


def _stored(store) -> dict:
    """Return the JSON object in the store; empty where there is none that can be read."""
    text = store.value(KEY)
    if not text:
        return {}
    try:
        content = json.loads(text)
    except (TypeError, ValueError) as error:
        logging.warning("The presets under %s cannot be read and are ignored: %s", KEY, error)
        return {}
    if not isinstance(content, dict):
        logging.warning("The presets under %s are no JSON object and are ignored", KEY)
        return {}
    return content


def _of_the_method(settings: Settings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in _OF_THE_METHOD}


def _method_of(values) -> Settings:
    """Return the settings of what is stored as one preset; raise InputError where that cannot be."""
    if not isinstance(values, dict):
        raise InputError(tr("it is {values!r}, not an object of settings; delete it.", values=values))
    unknown = sorted(set(values) - set(_OF_THE_METHOD))
    if unknown:
        raise InputError(
            tr(
                "this version does not know {unknown}; update ICON Registration, or delete it.",
                unknown=", ".join(unknown),
            )
        )
    return Settings.from_plain(values)


def _describe_own(settings: Settings) -> str:
    default = Settings()
    own = {name: value for name, value in _of_the_method(settings).items() if value != getattr(default, name)}
    listed = ", ".join(f"{name} {value}" for name, value in own.items())
    return tr("Your preset: {settings}", settings=listed) if own else tr("Your preset: the defaults")
