"""The roles that segments can have in a registration: an entry of this table is all that one needs.

The command's options, a manifest's columns, the panel's check boxes, the roles that `api.register` takes and the checks
before a run follow from it. A role switches an option of `pipeline.compute`, or changes the inputs before they are
registered. No torch here: Slicer's own process shows the roles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ..errors import InputError
from ..text import Sentence, tr

if TYPE_CHECKING:
    from ..spatial.geometry import Image, Segmentation
    from .results import Inputs


@dataclass(frozen=True)
class Role:
    """A role of the segments that take part.

    Attributes
    ----------
    title : Sentence
        On the panel's check box.
    help : Sentence
        What it does, in one sentence: the tooltip, and the help of the command's option.
    default : bool
        Whether segments have the role where nothing is said. Such a role does nothing where its segments are missing;
        the others need theirs.
    needs : "both", "moving" or "any"
        Whose segmentations it needs.
    option : str | None
        The option of `pipeline.compute` that it switches.
    apply : Callable[[Inputs], Inputs] | None
        What it makes of the inputs.
    """

    title: Sentence
    help: Sentence
    default: bool
    needs: Literal["both", "moving", "any"]
    option: str | None = None
    apply: Callable[[Inputs], Inputs] | None = None

    def is_possible(self, fixed: bool, moving: bool) -> bool:
        """Return whether it has what it needs.

        Parameters
        ----------
        fixed, moving : bool
            Whether there is a fixed and a moving segmentation.
        """
        return {"both": fixed and moving, "moving": moving, "any": fixed or moving}[self.needs]

    def is_missing(self, fixed: bool, moving: bool) -> bool:
        """Return whether segments that have the role, which nobody has by default, lack what it needs."""
        return not self.default and not self.is_possible(fixed, moving)

    @property
    def what_it_needs(self) -> Sentence:
        """Its segmentations in words."""
        if self.needs == "both":
            return tr("segmentations of both images")
        return tr("a segmentation of the moving image") if self.needs == "moving" else tr("a segmentation")


def segments_mask(segmentation: Segmentation) -> Image:
    """Return a uint8 image, 1 inside any segment.

    Examples
    --------
    >>> import numpy as np
    >>> from IconRegistrationLib.spatial.geometry import Grid, Segment, Segmentation
    >>> layer = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    >>> organs = Segmentation((layer,), (Segment("a", 3), Segment("b", 7)), Grid((2, 2, 2), np.eye(4)), "organs")
    >>> segments_mask(organs).array.ravel()
    array([0, 0, 0, 1, 0, 0, 0, 1], dtype=uint8)
    """
    import numpy as np

    from ..spatial.geometry import Image

    inside = np.zeros(segmentation.grid.shape, dtype=bool)
    for segment in segmentation.segments:
        inside |= segmentation.mask(segment)
    return Image(inside.astype(np.uint8), segmentation.grid, segmentation.name)


def confine(inputs: Inputs, mask_of: Callable[[Segmentation], Image]) -> Inputs:
    """Return the inputs with masks made of their segmentations.

    Raises
    ------
    InputError
        If an image with a segmentation has a mask already.
    """
    masks: dict[str, Any] = {}
    for side in ("fixed", "moving"):
        segmentation, mask = getattr(inputs, f"{side}_segmentation"), getattr(inputs, f"{side}_mask")
        if segmentation is None:
            continue
        if mask is not None:
            raise InputError(
                tr(
                    "{image} has the mask {mask} and segments that are to be one; omit either.",
                    image=getattr(inputs, side).name,
                    mask=mask.name,
                )
            )
        masks[f"{side}_mask"] = mask_of(segmentation)
    return replace(inputs, **masks)


def _focus(inputs: Inputs) -> Inputs:
    return confine(inputs, segments_mask)


#: Every role by its name, in the order of the panel.
SEGMENT_ROLES = {
    "carry": Role(
        tr("carry over"),
        tr("Warp the moving segments onto the fixed volume, in one single resampling."),
        default=True,
        needs="moving",
        option="carry",
    ),
    "compare": Role(
        tr("compare"),
        tr("Dice and surface distance of segments of one name, before and after."),
        default=True,
        needs="both",
        option="compare",
    ),
    "focus": Role(
        tr("focus"),
        tr("Only what lies inside the segments counts for the registration."),
        default=False,
        needs="any",
        apply=_focus,
    ),
    "guide": Role(
        tr("guide"),
        tr("Segments of one name are brought together; their own Dice then no longer measures the accuracy."),
        default=False,
        needs="both",
        option="guide",
    ),
}


def complete_roles(given: Mapping[str, bool] | None = None) -> dict[str, bool]:
    """Return every role and whether segments have it.

    Parameters
    ----------
    given : mapping, optional
        Roles that are switched on or off; the others have their defaults.

    Raises
    ------
    InputError
        Naming a role that does not exist, and those that do, or a value that is neither True nor False.

    Examples
    --------
    >>> complete_roles({"guide": True})
    {'carry': True, 'compare': True, 'focus': False, 'guide': True}
    """
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise InputError(
            tr(
                'roles is {value}; give each role\'s name with True or False, such as {{"guide": True}}.',
                value=repr(given),
            )
        )
    for name, value in given.items():
        if name not in SEGMENT_ROLES:
            raise InputError(
                tr("Segments have no role {name!r}; choose from {names}.", name=name, names=", ".join(SEGMENT_ROLES))
            )
        if not isinstance(value, bool):
            raise InputError(tr("The role {name} is {value}; give True or False.", name=name, value=repr(value)))
    return {name: given.get(name, role.default) for name, role in SEGMENT_ROLES.items()}


def compute_options(roles: Mapping[str, bool]) -> dict[str, bool]:
    """Return the options of `pipeline.compute` that complete roles switch."""
    return {role.option: roles[name] for name, role in SEGMENT_ROLES.items() if role.option}


def apply_roles(inputs: Inputs, roles: Mapping[str, bool]) -> Inputs:
    """Return the inputs as complete roles change them.

    Raises
    ------
    InputError
        As the roles do, `confine` for one.
    """
    for name, role in SEGMENT_ROLES.items():
        if roles[name] and role.apply is not None:
            inputs = role.apply(inputs)
    return inputs
