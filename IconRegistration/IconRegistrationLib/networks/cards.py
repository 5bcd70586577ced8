"""Model cards: title, licence, source of the weights, architecture and expected alignment of each model.

A model is added by one file: `<name>.json` with a "card", an object of the fields of `ModelCard`, in Resources/Models
or in a folder of weights of the user's (networks/catalog.py). The command, the panel's presets, the preflight and the
manifests of cohorts then know its name. Cards are read when they are first asked for, not when this file is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ..errors import InputError, words_of
from ..plain import from_plain
from ..text import Sentence, tr

_PACKAGE = Path(__file__).resolve().parents[1]

#: Folder of the cards and weights that come with the code: in Slicer and in a checkout beside the module, where pip
#: installed it within the package.
SHIPPED = next(
    (folder for folder in (_PACKAGE.parent / "Resources" / "Models", _PACKAGE / "Models") if folder.is_dir()),
    _PACKAGE / "Models",
)

#: Environment variable: a folder with weights that were placed there by hand, for machines without a network.
WEIGHTS_VARIABLE = "ICON_REGISTRATION_WEIGHTS"


@dataclass(frozen=True)
class ModelCard:
    """What a user should know about a model, and what the code needs to load it.

    Attributes
    ----------
    name : str
        What settings call it; its weights are `<name>.trch`.
    title, description : str
        For people.
    modalities : tuple of str
        Kinds of images that it saw: "ct", "mri".
    preprocessing, licence, citation : str
        What is done to intensities; under which terms the weights are; whom to cite.
    input_shape : tuple of int
        (D, H, W) of the lattice on which it was trained, in samples.
    down_channels, up_channels : tuple of int
        See `unet.UNet`.
    alignment : str
        Linear alignment that the network expects before it (`settings.ALIGNMENTS`), "none" for box on box.
    training, limits, results : str
        Of what and for how long it learned, what it cannot do, what was measured.
    url : str
        Where the weights are downloaded from, HTTPS; empty where they lie beside the card, or there are none.
    size : int
        Bytes of the weights file, to within two per cent; 0 where unknown.
    sha256 : str or None
        Of the weights file; None where the publisher states none. Then the first download is remembered.
    refine : str
        What the refinement "auto" is with it: "off", or "field" where the network is a start only.
    preset : str
        Title among the panel's presets; empty for `title`.
    also_refined : bool
        Whether the panel offers it a second time, with the refinement of the field after it.
    one_modality : bool
        Whether it was trained on pairs of one modality only, of which the preflight then warns.
    order : int
        Place in lists; by name among equals.
    """

    name: str
    title: str
    description: str
    modalities: tuple[str, ...] = ()
    preprocessing: str = ""
    licence: str = ""
    citation: str = ""
    input_shape: tuple[int, int, int] = (175, 175, 175)
    down_channels: tuple[int, ...] = (2, 16, 32, 64, 256, 512)
    up_channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    alignment: str = "none"
    training: str = ""
    limits: str = ""
    results: str = ""
    url: str = ""
    size: int = 0
    sha256: str | None = None
    refine: str = "off"
    preset: str = ""
    also_refined: bool = False
    one_modality: bool = False
    order: int = 100

    @property
    def filename(self) -> str:
        """File name of the weights (the publishers name all of their files Step_2_final.trch)."""
        return f"{self.name}.trch"


def read_card(path: str | Path) -> ModelCard:
    """Read the card of a JSON file.

    Parameters
    ----------
    path : str or Path
        An object with a "card", as Training/train.py exports it; what else it holds is left alone.

    Raises
    ------
    InputError
        Naming the file and the field that cannot be used.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "card" not in content:
            raise InputError(tr('it holds no object with a "card"'))
        card = from_plain(ModelCard, content["card"], "card")
        if not card.name.strip() or set(card.name) & set("/\\"):
            raise InputError(tr("card.name is {name}, which is no name of a file", name=repr(card.name)))
        if card.refine not in ("off", "field"):
            raise InputError(tr("card.refine is {refine}; choose off or field", refine=repr(card.refine)))
    except (OSError, ValueError) as error:
        reason = words_of(error)
        raise InputError(tr("The model card {path} cannot be used: {reason}", path=path, reason=reason)) from None
    return replace(card, preset=_sentence(card.preset), description=_sentence(card.description))


def _sentence(text: str) -> Sentence:
    """Return words of a card as a sentence, so that translations reach it."""
    return Sentence(text.replace("{", "{{").replace("}", "}}"), context="networks.cards")


@cache
def shipped_cards() -> dict[str, ModelCard]:
    """Return the cards that come with the code, by name, in their order; read at the first call."""
    return in_order(read_card(path) for path in SHIPPED.glob("*.json"))


def in_order(cards: Iterable[ModelCard]) -> dict[str, ModelCard]:
    """Return cards by name, sorted for a list."""
    return {card.name: card for card in sorted(cards, key=lambda card: (card.order, card.name))}
