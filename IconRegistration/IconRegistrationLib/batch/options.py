"""Command-line options that several commands share."""

from __future__ import annotations

import argparse

from ..registration.settings import Settings
from ..registration.similarities import SIMILARITIES
from .pair import Outputs

#: Options of `register` that are fields of `Settings`, which also checks their values: (metavar, help, what argparse
#: needs besides). An option that is not given leaves the field's default.
SETTINGS = {
    "align": ("KIND", "linear alignment first: auto, none, centre, mass, rigid, similarity, affine", {}),
    "model": ("MODEL", "none, builtin, unigradicon, multigradicon, or a weights file (default: none)", {}),
    "refine": ("WHAT", "auto, field, network, off", {}),
    "steps": ("N", "refinement steps", {"type": int}),
    "similarity": ("NAME", ", ".join(("auto", *SIMILARITIES)), {}),
    "device": ("DEVICE", "auto, cpu, cuda, cuda:N, mps", {}),
    "precision": ("PRECISION", "auto, float32, mixed: of the network's arithmetic", {}),
    "fixed_modality": ("MODALITY", "auto, ct, mri", {}),
    "moving_modality": ("MODALITY", "auto, ct, mri", {}),
    "ct_window": (("LOW", "HIGH"), "HU that become 0 and 1", {"type": float, "nargs": 2}),
    "quantile_range": (("LOW", "HIGH"), "MR quantiles that become 0 and 1", {"type": float, "nargs": 2}),
    "label_weight": ("WEIGHT", "of the segments with --guide", {"type": float}),
    "padding": ("MM", "by which the transforms reach beyond the images", {"type": float}),
    "spacing": ("MM", "between the samples of the refinement's lattice", {"type": float}),
    "weights_dir": ("DIR", "folder with weights files that were placed there", {}),
}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options that are fields of Settings, for `settings_of`."""
    how = parser.add_argument_group("settings", "defaults suit a first try; auto decides from the images")
    for name, (metavar, text, more) in SETTINGS.items():
        option = "--" + name.replace("_", "-")
        how.add_argument(option, metavar=metavar, help=text, default=argparse.SUPPRESS, **more)


def add_outputs(group) -> None:
    """The options for `outputs_of`."""
    group.add_argument("--moving-resolution", action="store_true", help="also warp at the moving volume's resolution")
    group.add_argument("--no-scene", action="store_true", help="write no scene.mrb")
    group.add_argument("--no-pictures", action="store_true", help="draw no pictures")


def settings_of(args: argparse.Namespace) -> Settings:
    """Settings of the options that were given."""
    return Settings.from_plain({name: value for name, value in vars(args).items() if name in SETTINGS})


def outputs_of(args: argparse.Namespace) -> Outputs:
    """Which files are wanted."""
    return Outputs(not args.no_scene, not args.no_pictures, args.moving_resolution)
