"""The result of a registration, as a value. No torch here: Slicer's own process holds them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..spatial.displacement import DisplacementField
from ..spatial.geometry import Grid
from .settings import Settings


@dataclass(frozen=True)
class Registration:
    """The result of `register`.

    Attributes
    ----------
    forward : DisplacementField
        Fixed -> moving points, over the whole fixed image: the transform under which MOVING data is placed.
    backward : DisplacementField
        Moving -> fixed points, over the whole moving image.
    phi_AB, phi_BA : torch.Tensor | None
        float32 [1, 3, D, H, W] on `fixed_lattice` and `moving_lattice` (docs/phi.md); None where another process
        registered.
    fixed_lattice, moving_lattice : Grid
        Where the samples of the maps are, in mm (LPS).
    linear : np.ndarray
        4x4, fixed mm -> moving mm (LPS), the linear alignment contained in all of them.
    outside : float
        Value for warping outside the moving image.
    settings : Settings
        As they were asked for.
    provenance : dict
        JSON-safe record of what was done with what, how long it took and where.
    """

    forward: DisplacementField
    backward: DisplacementField
    phi_AB: object = field(repr=False)
    phi_BA: object = field(repr=False)
    fixed_lattice: Grid
    moving_lattice: Grid
    linear: np.ndarray
    outside: float
    settings: Settings
    provenance: dict = field(repr=False)
