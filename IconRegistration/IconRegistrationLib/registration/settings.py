"""How to register, as a value. No torch here: Slicer's own process makes settings, and may have none.

A field of `Settings` carries all that is said of it (`Setting`). The command's option, the check of its value, a
manifest's column, what presets and results remember and the table in docs/command.md follow from it: a new field is one
line here, below the others.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import InputError
from ..networks.catalog import known_card, known_cards
from ..text import tr
from .similarities import SIMILARITIES

#: Linear alignments, from the least to the most freedom (registration/align.py).
ALIGNMENTS = ("none", "centre", "mass", "rigid", "similarity", "affine")


@dataclass(frozen=True)
class Setting:
    """What is said of a field of `Settings`.

    Attributes
    ----------
    help : str
        What it is, in a few words; the choices or the range follow by themselves.
    metavar : str | tuple[str, str]
        Its value in the command's help, such as "MM"; two for a pair of numbers.
    choices : tuple[str, ...]
        The words that it may be; () where any value of its type will do.
    names : callable | None
        Returns the words that are known to be good, where others are too.
    least, above, below, most : float | None
        A number, or each of a pair, must be at least, more than, less than, at most this.
    unit : str
        Of a number.
    of_the_machine : bool
        Whether it belongs to the computer, not to the method: no preset changes it.
    """

    help: str
    metavar: str | tuple[str, str]
    choices: tuple[str, ...] = ()
    names: Callable[[], Iterable[str]] | None = None
    least: float | None = None
    above: float | None = None
    below: float | None = None
    most: float | None = None
    unit: str = ""
    of_the_machine: bool = False

    @property
    def allowed(self) -> str:
        """The choices or the range in words; "" where any value of its type will do."""
        if self.choices:
            return ", ".join(self.choices)
        if self.names:
            return ", ".join(self.names())
        bounds = []
        if self.least is not None:
            bounds.append(tr("at least {bound:g}", bound=self.least))
        if self.above is not None:
            bounds.append(tr("more than {bound:g}", bound=self.above))
        if self.below is not None:
            bounds.append(tr("less than {bound:g}", bound=self.below))
        if self.most is not None:
            bounds.append(tr("at most {bound:g}", bound=self.most))
        return tr("{low} and {high}", low=bounds[0], high=bounds[1]) if len(bounds) > 1 else next(iter(bounds), "")

    def check(self, name: str, value: Any, kind: str) -> None:
        """Raise InputError if `value` is not of the annotated `kind`, or not allowed; None decides by itself."""
        if self.choices:
            if not isinstance(value, str) or value not in self.choices:
                raise InputError(tr("{name} is {value}; choose one of {choices}.", **self._said(name, repr(value))))
        elif not _fits(kind, value):
            raise InputError(
                tr(
                    "{name} is {value}; it must be {kind}.",
                    name=name,
                    value=repr(value),
                    kind=_KINDS.get(_outermost(kind), kind),
                )
            )
        elif isinstance(value, tuple):
            if not value[0] < value[1]:
                raise InputError(
                    tr("{name} is {value}; the first number must be less than the second.", name=name, value=str(value))
                )
            if not all(map(self._in_range, value)):
                raise InputError(
                    tr("{name} is {value}; both numbers must be {choices}.", **self._said(name, str(value)))
                )
        elif value is not None and not self._in_range(value):
            if self.unit:
                raise InputError(
                    tr("{name} is {value} {unit}; it must be {choices} {unit}.", **self._said(name, value))
                )
            raise InputError(tr("{name} is {value}; it must be {choices}.", **self._said(name, value)))

    def _said(self, name: str, value: Any) -> dict[str, Any]:
        return {"name": name, "value": value, "choices": self.allowed, "unit": self.unit}

    def _in_range(self, value: Any) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (self.most is None or value <= self.most)
        )


def setting(default: Any, help: str, metavar: str | tuple[str, str], **more: Any) -> Any:
    """Make a field of `Settings` with its default and its `Setting`, of the same keyword arguments."""
    return dataclasses.field(default=default, metadata={"setting": Setting(help, metavar, **more)})


_REFINEMENTS = ("auto", "field", "network", "off")
_MODALITIES = ("auto", "ct", "mri")


@dataclass(frozen=True)
class Settings:
    """How to register. Every field has a default that suits a first try; "auto" decides from the images.

    Raises
    ------
    InputError
        For a value that is not of its type or not allowed, and for fields that exclude each other.

    Examples
    --------
    >>> Settings(align="rigid", steps=20).refinement
    'field'
    >>> Settings(similarity="ssd")
    Traceback (most recent call last):
    IconRegistrationLib.errors.InputError: similarity is 'ssd'; choose one of auto, lncc, lncc2, mind.
    """

    model: str = setting("none", tr("a network, or the path of a weights file"), "MODEL", names=known_cards)
    #: "auto" is what the model's card says: field with "none" and "builtin", off with other networks
    refine: str = setting("auto", tr("what is optimised for this pair"), "WHAT", choices=_REFINEMENTS)
    #: of the field, on each of three levels
    steps: int | None = setting(None, tr("steps of the refinement; 40 for the field, 50 for a network"), "N", least=1)
    #: "auto" as `register.choose_similarity` finds
    similarity: str = setting("auto", tr("what compares the images"), "NAME", choices=("auto", *SIMILARITIES))
    #: "auto" as the model expects it
    align: str = setting("auto", tr("linear alignment first"), "KIND", choices=("auto", *ALIGNMENTS))
    device: str = setting("auto", tr("what computes: auto, cpu, cuda, cuda:N, mps"), "DEVICE", of_the_machine=True)
    #: maps are always float32
    precision: str = setting(
        "auto", tr("precision of the network's arithmetic"), "PRECISION", choices=("auto", "float32", "mixed")
    )
    fixed_modality: str = setting("auto", tr("what the fixed image is"), "MODALITY", choices=_MODALITIES)
    moving_modality: str = setting("auto", tr("what the moving image is"), "MODALITY", choices=_MODALITIES)
    ct_window: tuple[float, float] | None = setting(None, tr("HU that become 0 and 1"), ("LOW", "HIGH"))
    quantile_range: tuple[float, float] | None = setting(
        None, tr("MR quantiles that become 0 and 1"), ("LOW", "HIGH"), least=0, most=1
    )
    label_weight: float = setting(1.0, tr("weight of the segments with --guide"), "WEIGHT", least=0)
    #: continued smoothly there
    padding: float = setting(
        0.0, tr("how far the transforms reach beyond the images"), "MM", least=0, below=1000, unit="mm"
    )
    #: None by memory and time
    spacing: float | None = setting(
        None, tr("distance of the samples of the refinement's lattice"), "MM", above=0, unit="mm"
    )
    weights_dir: str | None = setting(
        None, tr("folder of weights files that were placed there"), "DIR", of_the_machine=True
    )
    # newer than version 0.1: see `identity`

    def __post_init__(self) -> None:
        """Check every value, and that they do not exclude each other."""
        for name, kind in kinds_of_settings().items():
            value = _plain(getattr(self, name))
            object.__setattr__(self, name, value)
            SETTINGS[name].check(name, value, kind)
        if self.model == "none" and self.refine == "network":
            raise InputError(tr("refine is 'network' but model is 'none': name a model, or refine the field."))

    @property
    def refinement(self) -> str:
        """`refine` with "auto" decided."""
        if self.refine != "auto":
            return self.refine
        card = known_card(self.model, self.weights_dir)
        return card.refine if card else "off"

    def identity(self) -> dict[str, Any]:
        """Return what decides about the results, as JSON-safe values; two runs with the same identity are one.

        The weights count by their contents, not by their folder. Fields newer than `weights_dir`, the last one of
        version 0.1, count where they differ from their defaults: what older versions computed keeps its identity.
        """
        names = [field.name for field in fields(self)]
        first = names[: names.index("weights_dir")]
        newer = [f.name for f in fields(self)[len(first) + 1 :] if getattr(self, f.name) != f.default]
        return {name: getattr(self, name) for name in (*first, *newer)}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Settings:
        """Make settings of the values of `dataclasses.asdict`, also after JSON, which has no tuples.

        Parameters
        ----------
        values : Mapping[str, Any]
            Values by the name of their field; what is missing has its default.

        Raises
        ------
        InputError
            Naming a field that does not exist, or a value that is not allowed.

        Examples
        --------
        >>> Settings.from_plain({"ct_window": [-160, 240]}).ct_window
        (-160, 240)
        """
        kinds = kinds_of_settings()
        for name in values:
            if name not in kinds:
                raise InputError(
                    tr("There is no setting {name!r}; choose from {names}.", name=name, names=", ".join(sorted(kinds)))
                )
        return cls(**values)


#: What is said of each field.
SETTINGS: dict[str, Setting] = {field.name: field.metadata["setting"] for field in fields(Settings)}


def kinds_of_settings() -> dict[str, str]:
    """Return the annotated type of each field of `Settings`, such as "int | None"."""
    return {field.name: str(field.type) for field in fields(Settings)}


#: What a value of an annotated type is called in a sentence.
_KINDS = {
    "int": tr("a whole number"),
    "float": tr("a finite number"),
    "tuple": tr("two finite numbers"),
    "str": tr("text"),
    "bool": tr("True or False"),
}


def _outermost(kind: str) -> str:
    """Return "tuple" for "tuple[float, float] | None"."""
    return kind.partition(" ")[0].partition("[")[0]


def _plain(value: Any) -> Any:
    """Return lists, which JSON has, as tuples, paths as text, and the scalars of numpy and torch as Python's."""
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _fits(kind: str, value: Any) -> bool:
    """Return whether a value is of the annotated kind of a field, "int | None"."""
    if value is None:
        return "None" in kind
    if kind.startswith("tuple"):
        return isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value))
    if kind.startswith("float"):
        return _is_number(value)
    return type(value).__name__ == _outermost(kind)


def _is_number(value: Any) -> bool:
    # JSON has integers that are no float: compared, not converted
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
