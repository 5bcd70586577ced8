"""Model cards: what a model is, where its weights come from, what it expects."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

#: Weights that come with the code, each beside its card: in Slicer and in a checkout beside the module, where pip
#: installed it within the package.
_PACKAGE = Path(__file__).resolve().parents[1]

SHIPPED = next(
    (folder for folder in (_PACKAGE.parent / "Resources" / "Models", _PACKAGE / "Models") if folder.is_dir()),
    _PACKAGE / "Models",
)

#: Environment variable: a folder with weights that were placed there by hand, for machines without a network.
WEIGHTS_VARIABLE = "ICON_REGISTRATION_WEIGHTS"


@dataclass(frozen=True)
class ModelCard:
    """What a user should know about a model, and what the code needs to load it.

    input_shape: (D, H, W) of the lattice it was trained on.
    down_channels, up_channels: see `network.UNet`.
    alignment: linear alignment that the network expects before it (`align.ALIGNMENTS`), "none" for box on box.
    training, limits, results: of what and for how long it learned, what it cannot do, what was measured.
    url: where the weights are downloaded from; empty where they are shipped, or there are none.
    size: bytes of the weights file, to within two per cent; 0 where unknown.
    sha256: of the weights file; None where the publisher states none. Then the first download is remembered.
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

    @property
    def filename(self) -> str:
        """What the weights are called on disk (the publishers call all of theirs Step_2_final.trch)."""
        return f"{self.name}.trch"


_PREPROCESSING = "CT: -1000..1000 HU, MR: minimum .. 99th percentile, scaled to 0..1; resized to 175 x 175 x 175"

_LICENCE = "Apache-2.0 (LICENSE of uncbiag/uniGradICON, code and weights); for research, not a medical device"

_RELEASES = "https://github.com/uncbiag/uniGradICON/releases/download"


def read_card(path: str | Path) -> ModelCard:
    """The card in a JSON file beside weights, as Training/train.py exports it."""
    values = json.loads(Path(path).read_text(encoding="utf-8"))["card"]
    return ModelCard(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


CARDS: dict[str, ModelCard] = {
    card.name: card
    for card in (
        ModelCard(
            name="none",
            title="No network",
            description="Optimises the deformation of the pair itself. Needs no weights and no download.",
            modalities=("ct", "mri"),
            alignment="affine",
        ),
        *map(read_card, sorted(SHIPPED.glob("*.json"))),
        ModelCard(
            name="unigradicon",
            title="uniGradICON",
            description="Foundation model for pairs of one modality: lung, knee, brain and abdomen, CT and MR.",
            modalities=("ct", "mri"),
            preprocessing=_PREPROCESSING,
            licence=_LICENCE,
            citation="Tian et al.: uniGradICON: A Foundation Model for Medical Image Registration. MICCAI 2024.",
            url=f"{_RELEASES}/unigradicon_weights/Step_2_final.trch",
            size=283_000_000,
        ),
        ModelCard(
            name="multigradicon",
            title="multiGradICON",
            description="The same network trained on pairs of different modalities as well: CT to MR, T1 to T2.",
            modalities=("ct", "mri"),
            preprocessing=_PREPROCESSING,
            licence=_LICENCE,
            citation="Demir et al.: multiGradICON: A Foundation Model for Multimodal Medical Image Registration. "
            "WBIR 2024.",
            url=f"{_RELEASES}/multigradicon_weights/Step_2_final.trch",
            size=283_000_000,
        ),
    )
}


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    from ..io.writing import sha256_of

    try:
        return sha256_of([path])
    except OSError as error:
        raise InputError(f"The weights file {path} cannot be read ({error.strerror or error}).") from None
