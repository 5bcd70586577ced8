"""The controls of the Review section, one file per kind: each holds a tuple CONTROLS of `ui.control.Control`.

A file that is put here is part of the panel: its parameter is saved with the scene, its widget is bound, its value is
part of the view, and its function is called when the value changes. docs/extending.md shows an example.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..control import Control

#: Files in the order in which a view is made possible and shown; files that are not named here follow.
ORDER = ("linked_cursor", "images", "labels", "amount", "deformation", "outlines", "overlay")


@functools.cache
def controls() -> tuple[Control, ...]:
    """Return the controls of all files in their order; the files are read once."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    names.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    files = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return tuple(control for file in files for control in file.CONTROLS)
