"""Provenance of a registration: inputs, settings, device, times and versions."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..networks.cards import ModelCard
from .align import Alignment
from .objective import RefinementPair
from .preparation import PreparedImage
from .settings import Settings


def provenance_of(
    images: Sequence[dict[str, Any]],
    settings: Settings,
    *,
    card: ModelCard | None,
    checksum: str | None,
    similarity: str | None,
    alignment: Alignment,
    pair: RefinementPair,
    device: torch.device,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Return the JSON-safe record of a registration, in English.

    Parameters
    ----------
    images : Sequence[dict]
        `describe_image` of the fixed and the moving image.
    settings : Settings
        As they were asked for.
    card, checksum : ModelCard | None, str | None
        The network and the SHA-256 of its weights; None without a network.
    similarity : str | None
        What the refinement compared the images by, "auto" decided; None without a refinement.
    alignment : Alignment
        The linear alignment.
    pair : RefinementPair
        The images on the lattices that were worked on last.
    device : torch.device
        What computed.
    seconds : dict
        How long each stage took, and "total".
    """
    return {
        "fixed": images[0],
        "moving": images[1],
        "model": {"name": settings.model, "title": card.title if card else "no network", "sha256": checksum},
        "refinement": settings.refinement,
        "similarity": similarity,
        "alignment": str(alignment),
        "lattice": {
            "shape": list(pair.fixed_lattice.shape),
            "fixed_spacing_mm": pair.fixed_lattice.spacing.round(4).tolist(),
            "moving_spacing_mm": pair.moving_lattice.spacing.round(4).tolist(),
        },
        "settings": dataclasses.asdict(settings),
        "device": device_title(device),
        "seconds": seconds,
        "versions": library_versions(),
    }


def describe_image(image: PreparedImage) -> dict[str, Any]:
    """Return name, modality, shape, spacing [mm] and whether a mask was used, JSON-safe."""
    grid = image.image.grid
    return {
        "name": image.image.name,
        "modality": image.modality,
        "shape": list(grid.shape),
        "spacing_mm": grid.spacing.round(4).tolist(),
        "masked": image.mask is not None,
    }


def device_title(device: torch.device) -> str:
    """Return the device's name with that of the hardware."""
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"{device}: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def library_versions() -> dict[str, str]:
    """Return the versions of this library and of those it computes with."""
    return {
        "IconRegistration": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "SimpleITK": _installed_version("SimpleITK"),
        "itk": _installed_version("itk"),
    }


def _installed_version(package: str) -> str:
    """Return the version that is installed, without importing the package, which itk makes long."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
