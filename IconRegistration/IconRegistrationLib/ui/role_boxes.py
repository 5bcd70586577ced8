"""A check box for every role of the segments, by the table in workflow/roles.py."""

from __future__ import annotations

from typing import Any

import qt

from ..text import translated
from ..workflow.roles import SEGMENT_ROLES, complete_roles


def with_role_parameters(cls: type) -> type:
    """Add a parameter for each role to the class of a parameter node; to be used below parameterNodeWrapper."""
    for name, role in SEGMENT_ROLES.items():
        cls.__annotations__[name] = bool
        setattr(cls, name, role.default)
    return cls


def add_role_boxes(ui: Any) -> None:
    """Put the check boxes into the page, each bound to the parameter of its role."""
    for name, role in SEGMENT_ROLES.items():
        box = qt.QCheckBox(translated(role.title))
        box.toolTip = translated(role.help)
        box.objectName = f"{name}CheckBox"
        box.setProperty("SlicerParameterName", name)
        ui.rolesWidget.layout().addWidget(box)
        setattr(ui, f"{name}CheckBox", box)


def enable_role_boxes(ui: Any, fixed: bool, moving: bool) -> None:
    """Enable the boxes of the roles that segments can have; fixed, moving: whether there are such segmentations."""
    for name, role in SEGMENT_ROLES.items():
        getattr(ui, f"{name}CheckBox").enabled = role.is_possible(fixed, moving)


def roles_from(parameters: Any) -> dict[str, bool]:
    """Return the roles that the panel's parameters describe; what lacks its segmentations is off."""
    given = (parameters.fixedSegmentation is not None, parameters.movingSegmentation is not None)
    chosen = {name: getattr(parameters, name) for name in SEGMENT_ROLES}
    return complete_roles({name: on and not SEGMENT_ROLES[name].is_missing(*given) for name, on in chosen.items()})
