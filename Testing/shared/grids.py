"""Where the samples of a grid lie, spelt out apart from the library's own ways."""

import numpy as np

from IconRegistrationLib.spatial.geometry import Grid


def places(grid: Grid) -> np.ndarray:
    """(x, y, z) of every sample, mm LPS, [k, j, i, 3]."""
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")[::-1], axis=-1)
    return grid.to_world(indices)
