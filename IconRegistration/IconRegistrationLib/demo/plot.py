"""Pictures of a deformation: the grid over a slice, and a page that shows a registration at a glance.

matplotlib is imported inside and used without pyplot: no window, no global state, any thread.
"""

from __future__ import annotations

import numpy as np

from ..spatial.displacement import DisplacementField
from ..spatial.geometry import Grid, Image
from ..spatial.sampling import sample

#: Letters of both ends of x, y and z of LPS, in the direction of growing coordinates.
_ENDS = (("R", "L"), ("A", "P"), ("I", "S"))
_LINES = {"linewidths": 0.7, "colors": "gold"}


def nice_spacing(grid: Grid) -> float:
    """Return a round distance in mm (1, 2 or 5 times a power of ten) that divides the longest edge into 20 to 50."""
    rough = float(grid.extent.max()) / 20
    power = 10.0 ** np.floor(np.log10(rough))
    return float(max(step * power for step in (1, 2, 5) if step * power <= rough))


def _axes_of_slice(grid: Grid, axis: int) -> tuple[int, int]:
    """Return the two axes (0, 1, 2 = i, j, k) that a slice across `axis` shows, horizontal first: x, y, then z."""
    world = _world_axes(grid)
    first, second = sorted({0, 1, 2} - {axis}, key=lambda a: world[a])
    return first, second


def _world_axes(grid: Grid) -> list[int]:
    """Return for i, j, k the world axis (0, 1, 2 = x, y, z) that each follows most closely, no two the same."""
    closeness = np.abs(grid.direction.copy())
    result = [0, 0, 0]
    for _ in range(3):
        world, own = np.unravel_index(np.argmax(closeness), (3, 3))
        result[own] = int(world)
        closeness[world], closeness[:, own] = -1, -1
    return result


def axis_label(grid: Grid, axis: int) -> str:
    """Return the label of a grid's axis (0, 1, 2 = i, j, k): its name, and from where to where its mm grow.

    Examples
    --------
    >>> axis_label(Grid.from_parts((10, 10, 10), (1, 1, 1), direction=np.diag([-1, 1, 1])), 0)
    'i, L→R (mm)'
    """
    world = _world_axes(grid)[axis]
    start, end = _ENDS[world] if _runs_forward(grid, axis) else reversed(_ENDS[world])
    return f"{'ijk'[axis]}, {start}→{end} (mm)"


def _runs_forward(grid: Grid, axis: int) -> bool:
    """Return whether the grid's axis runs along its world axis of LPS, not against it."""
    return bool(grid.direction[_world_axes(grid)[axis], axis] > 0)


def _slice_of(image: Image, axis: int, index: int) -> np.ndarray:
    """Return a slice, [horizontal, vertical]."""
    plane = np.take(image.array, index, axis=2 - axis)  # axes left, in the order of k, j, i
    return plane if _axes_of_slice(image.grid, axis)[0] > _axes_of_slice(image.grid, axis)[1] else plane.T


def plot_slice(axes, image: Image, axis: int = 2, index: int | None = None):
    """Draw a slice across `axis` (0, 1, 2 = i, j, k; the middle one if `index` is None) and return the `axes`.

    Axes are in mm from the first voxel, true to scale, and turned the radiological way: left is right, up is up,
    front is up or left.
    """
    grid = image.grid
    index = grid.size[axis] // 2 if index is None else index
    plane = _slice_of(image, axis, index).astype(np.float32)
    low, high = np.percentile(plane[np.isfinite(plane)], (1, 99))
    ends = [(-0.5 * grid.spacing[a], (grid.size[a] - 0.5) * grid.spacing[a]) for a in _axes_of_slice(grid, axis)]
    axes.imshow(
        plane.T,
        cmap="gray",
        vmin=low,
        vmax=max(high, low + 1e-6),
        origin="lower",
        extent=(*ends[0], *ends[1]),
        interpolation="nearest",
        aspect="equal",
    )
    for a, (start, stop), set_limits, set_label in zip(
        _axes_of_slice(grid, axis),
        ends,
        (axes.set_xlim, axes.set_ylim),
        (axes.set_xlabel, axes.set_ylabel),
        strict=True,
    ):
        set_label(axis_label(grid, a))
        # Left, posterior and superior are drawn rightwards, downwards and upwards.
        downwards = set_limits == axes.set_ylim and _world_axes(grid)[a] == 1
        towards_end = _runs_forward(grid, a) != downwards
        set_limits((start, stop) if towards_end else (stop, start))
    return axes


def plot_deformation(
    axes,
    field: DisplacementField,
    fixed: Image,
    axis: int = 2,
    index: int | None = None,
    spacing: float | None = None,
    style: str = "contour",
):
    """Draw the deformation over a slice of the fixed image and return the `axes`; see `plot_slice`.

    Coordinates are mm along the axes of the fixed image from its first voxel. A large linear part hides the rest: draw
    `field.after(numpy.linalg.inv(linear))`.

    Parameters
    ----------
    axes : matplotlib.axes.Axes
        Where to draw.
    field : DisplacementField
        The map T, fixed -> moving.
    fixed : Image
        The image below the lines.
    axis : int
        Axis across the slice: 0, 1, 2 for i, j, k.
    index : int, optional
        Index of the slice along `axis`; the middle one by default.
    spacing : float, optional
        Distance of the lines in mm; chosen by `nice_spacing` by default.
    style : str
        "contour" draws the contour lines of T, where the moving coordinates take round values: a straight grid of the
        moving space, pulled back with the image. "lines" draws the straight grid of the fixed slice as T pushes it,
        projected onto the slice.

    Returns
    -------
    matplotlib.axes.Axes
        The `axes`.
    """
    grid = fixed.grid
    index = grid.size[axis] // 2 if index is None else index
    spacing = spacing or nice_spacing(grid)
    plot_slice(axes, fixed, axis, index)

    across, up = _axes_of_slice(grid, axis)
    last = {a: (grid.size[a] - 1) * grid.spacing[a] for a in (across, up)}

    def mapped(u, v):
        """Return in-plane mm of T at in-plane mm (u, v), a meshgrid."""
        voxels = np.empty((*u.shape, 3))
        voxels[..., axis], voxels[..., across], voxels[..., up] = index, u / grid.spacing[across], v / grid.spacing[up]
        there = grid.to_index(field.transform_points(grid.to_world(voxels))) * grid.spacing
        return there[..., across], there[..., up]

    fine = [np.linspace(0, last[a], min(4 * grid.size[a], 400)) for a in (across, up)]
    if style == "lines":
        for u in np.arange(0, last[across] + 1e-6, spacing):
            axes.plot(*mapped(np.full_like(fine[1], u), fine[1]), color="gold", linewidth=0.7)
        for v in np.arange(0, last[up] + 1e-6, spacing):
            axes.plot(*mapped(fine[0], np.full_like(fine[0], v)), color="gold", linewidth=0.7)
        return axes
    u, v = np.meshgrid(*fine)
    for values in mapped(u, v):
        levels = np.arange(np.ceil(values.min() / spacing), np.floor(values.max() / spacing) + 1) * spacing
        if len(levels):
            axes.contour(u, v, values, levels=levels, **_LINES)
    return axes


def plot_registration(fixed: Image, moving_before: Image, warped: Image, field: DisplacementField, path):
    """Save a page with three slices of fixed, moving as given, warped, a checkerboard of both, and the deformation.

    `moving_before` and `warped` may lie on any grid: they are drawn on the fixed image's, by their world coordinates.
    Returns the matplotlib Figure.
    """
    from matplotlib.figure import Figure

    def on_fixed(image: Image) -> Image:
        if image.grid.is_close(fixed.grid):
            return image
        return Image(sample(image.array, image.grid, fixed.grid, outside=float(image.array.min())), fixed.grid)

    before, after = on_fixed(moving_before), on_fixed(warped)
    columns = ("fixed", "moving, as given", "moving, warped", "fixed | warped", "deformation")
    shown = [[fixed.grid.extent[a] for a in _axes_of_slice(fixed.grid, axis)] for axis in (2, 1, 0)]
    heights = [up / across for across, up in shown]
    figure = Figure(figsize=(16, 2 + 3 * sum(heights)), layout="constrained")
    panels = figure.subplots(3, 5, height_ratios=heights)
    for axis, row in zip((2, 1, 0), panels, strict=True):
        for panel, image in zip(row, (fixed, before, after, _checkerboard(fixed, after)), strict=False):
            plot_slice(panel, image, axis)
        plot_deformation(row[4], field, fixed, axis)
        for panel in row[1:]:
            panel.set_ylabel("")
    for panel, title in zip(panels[0], columns, strict=True):
        panel.set_title(title)
    figure.savefig(path, dpi=120)
    return figure


def _checkerboard(first: Image, second: Image) -> Image:
    """Alternate squares of both, an eighth of the longest edge wide, each scaled to its 1st to 99th percentile."""
    width = first.grid.extent.max() / 8
    k, j, i = np.ogrid[tuple(slice(n) for n in first.grid.shape)]
    step_i, step_j, step_k = first.grid.spacing / width
    parity = ((k * step_k).astype(int) + (j * step_j).astype(int) + (i * step_i).astype(int)) % 2

    def levelled(array):
        low, high = np.percentile(array, (1, 99))
        return ((array - low) / max(high - low, 1e-6)).clip(0, 1)

    return Image(np.where(parity == 0, levelled(first.array), levelled(second.array)), first.grid)
