"""How to register, as a value. No torch here: Slicer's own process makes settings, and may have none."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields

from ..errors import InputError
from .similarities import SIMILARITIES

#: Linear alignments, from the least to the most freedom (registration/align.py).
ALIGNMENTS = ("none", "centre", "mass", "rigid", "similarity", "affine")


@dataclass(frozen=True)
class Settings:
    """How to register. Every field has a default that works for a first try; "auto" decides from the images."""

    model: str = "none"  #: a model card's name (networks/catalog.py) or the path of a weights file
    refine: str = "auto"  #: field, network, off; auto is field with "none" and "builtin", off with other networks
    steps: int | None = None  #: refinement steps (field: on each of three levels), None the method's default
    similarity: str = "auto"  #: of registration/similarities.py; auto as `choose_similarity` finds
    align: str = "auto"  #: none, centre, mass, rigid, similarity, affine; auto as the model expects it
    device: str = "auto"  #: cpu, cuda, cuda:1, mps
    precision: str = "auto"  #: float32, mixed (the network's arithmetic; maps are always float32)
    fixed_modality: str = "auto"  #: ct, mri
    moving_modality: str = "auto"
    ct_window: tuple[float, float] | None = None  #: HU that become 0 and 1
    quantile_range: tuple[float, float] | None = None  #: MR quantiles that become 0 and 1
    label_weight: float = 1.0  #: weight of the soft Dice loss where labels guide
    padding: float = 0.0  #: mm by which the transforms reach beyond their images, continued smoothly
    spacing: float | None = None  #: mm between samples of the refinement's lattice; None by memory and time
    weights_dir: str | None = None  #: folder of pre-placed weights files

    def __post_init__(self):
        for name, choices in {
            "refine": ("auto", "field", "network", "off"),
            "similarity": ("auto", *SIMILARITIES),
            "align": ("auto", *ALIGNMENTS),
            "precision": ("auto", "float32", "mixed"),
            "fixed_modality": ("auto", "ct", "mri"),
            "moving_modality": ("auto", "ct", "mri"),
        }.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")
        if self.model == "none" and self.refine == "network":
            raise InputError("refine is 'network' but model is 'none': name a model, or refine the field.")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps is {self.steps}; at least 1, or refine 'off'.")
        if self.spacing is not None and not self.spacing > 0:
            raise InputError(f"spacing is {self.spacing} mm; it must be positive.")
        if not 0 <= self.padding < 1000:
            raise InputError(f"padding is {self.padding} mm; choose 0 to 1000 mm.")
        if self.label_weight < 0:
            raise InputError(f"label_weight is {self.label_weight}; it must not be negative.")

    @property
    def refinement(self) -> str:
        """`refine` with "auto" decided."""
        if self.refine != "auto":
            return self.refine
        return "field" if self.model in ("none", "builtin") else "off"

    @classmethod
    def from_plain(cls, values: dict) -> Settings:
        """The inverse of `dataclasses.asdict`, also after JSON, which has no tuples; what is missing has its default.

        Raises InputError that names the field which there is not, or whose value cannot be.
        """
        kinds = {field.name: field.type for field in fields(cls)}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        for name, value in values.items():
            if name not in kinds:
                raise InputError(f"There is no setting {name!r}; choose from {', '.join(sorted(kinds))}.")
            if not _fits(kinds[name], value):
                raise InputError(f"The settings say {name} is {value!r}, which cannot be used; correct it.")
        return cls(**values)


def _fits(kind: str, value) -> bool:
    """Whether a value is of the annotated kind of a field, "int | None"; Settings itself checks the choices."""
    if value is None:
        return "None" in kind
    if kind.startswith("tuple"):
        return isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value))
    if kind.startswith("float"):
        return _is_number(value)
    return type(value).__name__ == kind.partition(" ")[0]


def _is_number(value) -> bool:
    # JSON has integers that are no float: compared, not converted
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
