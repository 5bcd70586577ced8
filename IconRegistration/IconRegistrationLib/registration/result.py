"""The result of a registration, as a value. No torch here: Slicer's own process holds them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..spatial.displacement import DisplacementField
from ..spatial.geometry import Grid
from .settings import Settings


@dataclass(frozen=True)
class Registration:
    """What `register` found.

    forward: fixed -> moving points, over the whole fixed image: the transform under which MOVING data is placed.
    backward: moving -> fixed points, over the whole moving image.
    phi_AB, phi_BA: float32 tensors [1, 3, D, H, W] on `fixed_lattice` and `moving_lattice` (docs/phi.md); None where
        the registration was made by another process.
    linear: 4x4, fixed mm -> moving mm, the linear alignment contained in all of them.
    outside: value of the moving image where there is nothing, for warping.
    provenance: JSON-safe record of what was done with what, how long it took and where.
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
