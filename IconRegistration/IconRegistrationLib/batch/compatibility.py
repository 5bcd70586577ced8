"""Translate the flags of `unigradicon-register` and `unigradicon-warp` (unigradicon 1.0.6) into those of this command.

Old scripts change only the command's name. A command with a flag that contains an underscore is taken for an old one:
its other options mean what they mean there, and omitted ones have the defaults that they have there.
"""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import InputError
from ..text import tr

#: Flags of unigradicon-register: (number of values, our flag of the same meaning; None: `_register` decides).
REGISTER = {
    "--fixed": (1, "--fixed"),
    "--moving": (1, "--moving"),
    "--fixed_modality": (1, "--fixed-modality"),
    "--moving_modality": (1, "--moving-modality"),
    "--transform_out": (1, "--transform-out"),
    "--warped_moving_out": (1, "--warped-out"),
    "--io_sim": (1, "--similarity"),
    "--ct_window": (2, "--ct-window"),
    "--quantile_range": (2, "--quantile-range"),
    "--model": (1, "--model"),
    "--network_weights": (1, "--model"),
    "--io_iterations": (1, None),
    "--io_lr": (1, None),
    "--fixed_segmentation": (1, None),
    "--moving_segmentation": (1, None),
    "--dice_loss_weight": (1, None),
    "--fixed_mask": (1, None),
    "--moving_mask": (1, None),
    "--input_masking": (0, None),
    "--loss_function_masking": (0, None),
    "--intensity_conservation_loss": (0, None),
}
#: Flags of unigradicon-warp.
WARP = {
    "--fixed": (1, "--reference"),
    "--moving": (1, "--input"),
    "--transform": (1, "--transform"),
    "--warped_moving_out": (1, "--out"),
    "--nearest_neighbor": (0, None),
    "--linear": (0, None),
}
#: The step size of instance optimisation, there and here.
_RATE = 2e-5


def translate(arguments: list[str]) -> list[str]:
    """Replace the old flags in the arguments of `icon-registration`; our own options stay.

    Raises
    ------
    InputError
        For an old flag whose effect this command does not have.
    """
    commands = {"register": (REGISTER, _register), "warp": (WARP, _warp)}
    if not arguments or arguments[0] not in commands:
        return arguments
    command, *words = arguments
    flags, decide = commands[command]
    old_only = {flag for flag in flags if "_" in flag}
    if not old_only & {word.partition("=")[0] for word in words}:
        return arguments
    given, ours = _parse(command, flags, words)
    renamed = [word for flag, values in given.items() if (ours_of := flags[flag][1]) for word in (ours_of, *values)]
    return [command, *decide(given), *renamed, *ours]


def _parse(
    command: str, flags: dict[str, tuple[int, str | None]], words: list[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the old flags that are given with their values, in the order of the table; and the other words."""

    class Parser(argparse.ArgumentParser):
        def error(self, message: str):
            raise InputError(tr("{message}; see icon-registration {command} --help.", message=message, command=command))

    parser = Parser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for flag, (number, _) in flags.items():
        values: dict[str, Any] = {"nargs": number} if number else {"action": "store_const", "const": []}
        parser.add_argument(flag, dest=flag, **values)
    found, others = parser.parse_known_args(words)
    return {flag: vars(found)[flag] for flag in flags if flag in vars(found)}, others


def _register(given: dict[str, list[str]]) -> list[str]:
    """Return our words for the flags that need a decision; the renamed flags, which follow, take precedence."""
    if "--intensity_conservation_loss" in given:
        raise InputError(
            tr(
                "--intensity_conservation_loss is not supported: no loss here conserves mass; omit it, or run "
                "unigradicon-register and apply its transform with icon-registration warp."
            )
        )
    rate = _number(given, "--io_lr", _RATE)
    if rate != _RATE:
        raise InputError(
            tr(
                "--io_lr {rate:g} is not supported: the network is tuned at {supported:g}; omit it, and change "
                "--io_iterations instead.",
                rate=rate,
                supported=_RATE,
            )
        )
    if "--network_weights" in given:  # there both have the same architecture
        given.pop("--model", None)
    words = [] if {"--model", "--network_weights"} & given.keys() else ["--model", "unigradicon"]
    return [*words, "--similarity", "lncc", *_iterations(given), *_segmentations_and_masks(given)]


def _iterations(given: dict[str, list[str]]) -> list[str]:
    (iterations,) = given.get("--io_iterations", ["50"])
    if iterations == "None":
        return ["--refine", "off"]
    if not iterations.isdigit() or int(iterations) == 0:
        raise InputError(tr("--io_iterations is {value!r}; give a whole number from 1, or None.", value=iterations))
    if given.get("--model") == ["none"]:  # our own model name: there is no network to tune
        return ["--refine", "field", "--steps", iterations]
    return ["--refine", "network", "--steps", iterations]


def _segmentations_and_masks(given: dict[str, list[str]]) -> list[str]:
    """Use segmentations as guides if Dice has a weight, masks if a flag asks for them, else segmentations as masks."""
    segmentations, masks = (
        [given.get(f"--{side}_{kind}") for side in ("fixed", "moving")] for kind in ("segmentation", "mask")
    )
    weight = _number(given, "--dice_loss_weight", 0.0)
    masking = [flag for flag in ("--input_masking", "--loss_function_masking") if flag in given]
    if not any(masks) and all(segmentations) and weight == 0:
        masks, masking = segmentations, ["--input_masking"]  # deprecated there, and still so
    if masking and not all(masks):
        raise InputError(tr("{flag} needs masks of both images; give --fixed_mask and --moving_mask.", flag=masking[0]))
    if weight > 0 and not all(segmentations):
        raise InputError(
            tr(
                "--dice_loss_weight {weight:g} needs segmentations of both images; give --fixed_segmentation and "
                "--moving_segmentation.",
                weight=weight,
            )
        )
    words = ["--guide", "--label-weight", str(weight)] if weight > 0 else []
    for kind, files, used in (("segmentation", segmentations, True), ("mask", masks, masking)):
        for side, file in zip(("fixed", "moving"), files, strict=True):
            words += [f"--{side}-{kind}", *file] if file and used else []
    return words


def _number(given: dict[str, list[str]], flag: str, default: float) -> float:
    (text,) = given.get(flag, [str(default)])
    try:
        return float(text)
    except ValueError:
        raise InputError(tr("{flag} is {value!r}; give a number.", flag=flag, value=text)) from None


def _warp(given: dict[str, list[str]]) -> list[str]:
    """Return our words for warping an image with 0 outside of it."""
    if "--transform" not in given:
        raise InputError(tr("--transform is missing: resampling without one is not supported; name the transform."))
    order = next((flag for flag in ("--linear", "--nearest_neighbor") if flag in given), None)
    if order is None:
        raise InputError(tr("The interpolation is missing; give --linear or, for labels, --nearest_neighbor."))
    interpolation = {"--linear": "linear", "--nearest_neighbor": "nearest"}[order]
    return ["--kind", "image", "--interpolation", interpolation, "--background", "0"]
