"""The built-in presets: those of the model cards, and a table of others, of which an entry is all that one needs.

The panel's list and the option `--preset` of the command follow from them. No torch here: Slicer's own process
shows presets.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import InputError
from ..networks.cards import ModelCard
from ..networks.catalog import known_card, known_cards
from ..registration.settings import SETTINGS, Settings
from ..text import tr, translated

#: The preset with which the user names a weights file; its model is up to the user.
CUSTOM_WEIGHTS = "custom"
#: What belongs to the computer, not to the method: no preset touches it.
OF_THE_MACHINE = tuple(name for name, about in SETTINGS.items() if about.of_the_machine)
#: The other fields of `Settings`.
OF_THE_METHOD = tuple(field.name for field in fields(Settings) if field.name not in OF_THE_MACHINE)


@dataclass(frozen=True)
class Preset:
    """A named way to register.

    Attributes
    ----------
    name : str
        What is remembered, and what the command takes; of a user's preset it is the title too.
    title : str
        In the panel's list.
    tooltip : str
        What it does, what it is for, whom to cite.
    settings : dict
        Fields of `Settings` and their values; the others have their defaults.
    """

    name: str
    title: str
    tooltip: str
    settings: dict[str, Any]

    def apply(self, current: Settings) -> Settings:
        """Return the preset's settings on the machine of `current`; "Custom weights" keeps the file of `current`."""
        kept = {name: getattr(current, name) for name in OF_THE_MACHINE}
        if self.name == CUSTOM_WEIGHTS and known_card(current.model, current.weights_dir) is None:
            kept["model"] = current.model
        return Settings(**{**self.settings, **kept})


#: Presets that are not of a model card, by name, in the order in which they are offered after those.
PRESETS = {
    CUSTOM_WEIGHTS: Preset(
        CUSTOM_WEIGHTS,
        tr("Custom weights"),
        tr("A weights file of your own, of the architecture of uniGradICON."),
        {"model": ""},  # which is refused when it is run
    ),
}


def builtin_presets() -> list[Preset]:
    """Return what is offered first: the presets of the model cards, and those of the table.

    Examples
    --------
    >>> [preset.name for preset in builtin_presets()][:4]
    ['none', 'builtin', 'unigradicon', 'unigradicon+refinement']
    """
    of_cards = [preset for card in known_cards().values() for preset in _presets_of(card)]
    others = (replace(p, title=translated(p.title), tooltip=translated(p.tooltip)) for p in PRESETS.values())
    return [*of_cards, *others]


def preset_names() -> list[str]:
    """Return the names that the command takes: those of presets that say which model they use."""
    return [preset.name for preset in builtin_presets() if preset.name != CUSTOM_WEIGHTS]


def find_preset(name: str) -> Preset:
    """Return a built-in preset.

    Raises
    ------
    InputError
        Naming the preset that does not exist, and those that do.

    Examples
    --------
    >>> find_preset("unigradicon+refinement").settings
    {'model': 'unigradicon', 'refine': 'field'}
    """
    found = {preset.name: preset for preset in builtin_presets() if preset.name != CUSTOM_WEIGHTS}
    if name not in found:
        raise InputError(tr("No preset is called {name!r}; choose one of {names}.", name=name, names=", ".join(found)))
    return found[name]


def settings_differ(preset: Preset, settings: Settings) -> bool:
    """Return whether `settings` register otherwise than the preset does."""
    return preset.apply(settings) != settings


def preset_of(presets: list[Preset], settings: Settings) -> Preset:
    """Return the preset that gives `settings`; if none does, the one that they modify: the first of their model."""
    same = [preset for preset in presets if not settings_differ(preset, settings)]
    of_the_model = [preset for preset in presets if preset.settings.get("model", "none") == settings.model]
    own_weights = [preset for preset in presets if preset.name == CUSTOM_WEIGHTS]
    return (same + of_the_model + own_weights)[0]


def _presets_of(card: ModelCard) -> list[Preset]:
    """Return the preset of a model card, and where the card asks for it the one that also refines."""
    title = translated(card.preset or card.title)
    presets = [Preset(card.name, title, describe_card(card), {"model": card.name})]
    if card.also_refined:
        then = tr(
            "{model} Then the deformation is optimised for this pair, which takes longer.",
            model=translated(card.description),
        )
        tooltip = describe_card(replace(card, description=then))
        settings = {"model": card.name, "refine": "field"}
        presets.append(Preset(f"{card.name}+refinement", tr("{preset} + refinement", preset=title), tooltip, settings))
    return presets


def describe_card(card: ModelCard) -> str:
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
