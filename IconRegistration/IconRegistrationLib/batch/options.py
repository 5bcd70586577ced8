"""Command-line options that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

from ..registration.settings import SETTINGS, Setting, Settings, kinds_of_settings
from ..text import translated
from ..workflow.presets import find_preset, preset_names
from ..workflow.roles import SEGMENT_ROLES
from .pair import OutputOptions


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the preset and the fields of `Settings`, for `settings_of`.

    A field that is not given keeps the preset's value, else its default.
    """
    how = parser.add_argument_group("settings", "defaults suit a first try; auto decides from the images")
    listed = f"settings to start from: {', '.join(preset_names())}"
    how.add_argument("--preset", metavar="NAME", default=argparse.SUPPRESS, help=f"{listed}; other options override it")
    kinds = kinds_of_settings()
    for name, about in SETTINGS.items():
        how.add_argument(
            option_of(name), help=help_of(about), default=argparse.SUPPRESS, **_argument(kinds[name], about)
        )


def option_of(name: str) -> str:
    """Return the option that sets a field of `Settings`."""
    return "--" + name.replace("_", "-")


def help_of(about: Setting) -> str:
    """Return the line of help of a field: what it is, and its choices or its range."""
    if about.choices:
        return f"{translated(about.help)}: {about.allowed}"
    return f"{translated(about.help)} ({about.allowed})" if about.allowed else str(translated(about.help))


def _argument(kind: str, about: Setting) -> dict[str, Any]:
    """Return what argparse needs to read a value of an annotated type, such as "int | None"."""
    if kind.startswith("bool"):
        return {"action": argparse.BooleanOptionalAction}
    if kind.startswith("tuple"):
        return {"metavar": about.metavar, "type": float, "nargs": 2}
    types = {"int": int, "float": float}
    return {"metavar": about.metavar, "type": types.get(kind.partition(" ")[0], str)}


def add_roles(group) -> None:
    """Add an option for each role of the segments, for `roles_of`."""
    for name, role in SEGMENT_ROLES.items():
        group.add_argument(
            f"--{name}",
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=f"{translated(role.help)} (default: {'yes' if role.default else 'no'})".replace("%", "%%"),
        )


def roles_of(args: argparse.Namespace) -> dict[str, bool]:
    """Return the roles that the given options switch on or off."""
    return {name: value for name, value in vars(args).items() if name in SEGMENT_ROLES}


def add_outputs(group) -> None:
    """Add the options for `outputs_of`."""
    group.add_argument("--moving-resolution", action="store_true", help="also warp at the moving volume's resolution")
    group.add_argument("--no-scene", action="store_true", help="write no scene.mrb")
    group.add_argument("--no-pictures", action="store_true", help="draw no pictures")


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the settings that the given options make. Raises InputError for an unknown preset or a bad value."""
    preset = find_preset(args.preset).settings if "preset" in args else {}
    return Settings.from_plain({**preset, **{name: value for name, value in vars(args).items() if name in SETTINGS}})


def outputs_of(args: argparse.Namespace) -> OutputOptions:
    """Return which files are wanted."""
    return OutputOptions(not args.no_scene, not args.no_pictures, args.moving_resolution)
