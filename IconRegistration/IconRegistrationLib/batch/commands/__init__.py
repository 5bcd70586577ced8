"""The commands of `icon-registration`, one file each.

A file in this folder is a command of its name. It has `HELP`, one sentence for --help and docs/command.md;
`add_options(parser)`, which adds its options; and `run(args)`, which returns the exit code or None for 0.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

#: Commands that help lists first; the others follow in alphabetical order.
FIRST = ("register", "cohort", "propagate", "warp")


def find_commands() -> dict[str, ModuleType]:
    """Return the module of every command by the command's name, in the order of the help.

    Files whose name starts with an underscore are not commands; underscores within a name become hyphens.
    """
    files = {module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")}
    names = [*FIRST, *sorted(files.difference(FIRST))]
    return {name.replace("_", "-"): importlib.import_module(f"{__name__}.{name}") for name in names}
