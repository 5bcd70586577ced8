"""Plots: lines lie where T says, slices are true to scale and turned rightly."""

import itertools

import numpy as np
import pytest

from IconRegistrationLib.spatial.displacement import DisplacementField
from IconRegistrationLib.spatial.geometry import Grid, Image, apply_affine

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from matplotlib.figure import Figure

from IconRegistrationLib.demo.plot import nice_spacing, plot_deformation, plot_registration, plot_slice

GRID = Grid.from_parts((40, 30, 12), (1.0, 1.5, 4.0), (5, 6, 7))


def a_field(function, grid=GRID):
    """The field of a map of world points, on the grid's nodes."""
    nodes = grid.to_world(np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")[::-1], -1))
    return DisplacementField(function(nodes) - nodes, grid)


def an_image(grid=GRID):
    return Image(np.random.default_rng(0).normal(size=grid.shape).astype(np.float32), grid, "T1")


def contour_points(axes):
    """Vertices of each of the two families of contour lines."""
    return [np.concatenate([p.vertices for p in c.get_paths() if len(p.vertices)]) for c in axes.collections]


def test_contours_lie_where_the_map_takes_round_values():
    """T stretches i by 1.25 and shifts j by 3 mm: lines of 10 mm lie 8 mm apart along i, and 3 mm lower along j."""
    matrix = np.diag([1.25, 1, 1, 1])
    matrix[:3, 3] = GRID.origin - matrix[:3, :3] @ GRID.origin + [0, 3, 0]
    axes = plot_deformation(
        Figure().subplots(), a_field(lambda x: apply_affine(matrix, x)), an_image(), axis=2, spacing=10
    )
    along_i, along_j = contour_points(axes)
    assert np.abs(along_i[:, 0] / 8 - np.round(along_i[:, 0] / 8)).max() < 1e-4
    assert set(np.round(along_i[:, 0] / 8).astype(int)) >= {1, 2, 3, 4}
    assert set(np.round(along_j[:, 1]).astype(int)) == {7, 17, 27, 37}


def test_warped_lines_are_images_of_straight_ones():
    """A shift by 2 mm along i moves the lines of constant i to 2, 12, 22, 32 mm."""
    axes = plot_deformation(
        Figure().subplots(), a_field(lambda x: np.add(x, (2, 0, 0))), an_image(), axis=2, spacing=10, style="lines"
    )
    places = {round(float(line.get_xdata()[0])) for line in axes.lines if np.ptp(line.get_xdata()) < 1e-3}
    assert places == {2, 12, 22, 32}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_is_true_to_scale(axis):
    axes = plot_slice(Figure().subplots(), an_image(), axis)
    lengths = sorted(GRID.extent[a] for a in range(3) if a != axis)
    assert sorted((np.ptp(axes.get_xlim()), np.ptp(axes.get_ylim()))) == pytest.approx(lengths)
    assert axes.get_aspect() == 1


def shown_at(axes, world, grid):
    """Where in the panel a world point is drawn, as fractions from the left and the bottom, and the value there."""
    picture = axes.images[0]
    mm = grid.to_index(world) * grid.spacing
    letters = [axes.get_xlabel()[0], axes.get_ylabel()[0]]
    place = [mm["ijk".index(letter)] for letter in letters]
    fraction = [(p - a) / (b - a) for p, (a, b) in zip(place, (axes.get_xlim(), axes.get_ylim()), strict=True)]
    left, right, bottom, top = picture.get_extent()
    rows, columns = picture.get_array().shape
    column = int((place[0] - left) / (right - left) * columns)
    row = int((place[1] - bottom) / (top - bottom) * rows)
    return fraction, picture.get_array()[row, column]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_left_is_right_and_up_is_up_for_any_orientation(seed, axis):
    """A bright voxel to the left, behind and above the centre, for permuted and flipped axes."""
    rng = np.random.default_rng(seed)
    direction = np.eye(3)[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
    grid = Grid.from_parts((21, 23, 25), (1.0, 2.0, 1.5), (3, 4, 5), direction)
    index = np.array(grid.size) // 2
    world_axis = int(np.argmax(np.abs(direction[:, axis])))
    step = np.full(3, 6.0)  # left, posterior, superior in LPS
    step[world_axis] = 0
    bright = grid.to_world(index) + step
    array = np.zeros(grid.shape, np.float32)
    array[tuple(np.round(grid.to_index(bright)).astype(int)[::-1])] = 1
    axes = plot_slice(Figure().subplots(), Image(array, grid), axis, index[axis])
    (across, up), value = shown_at(axes, bright, grid)
    assert value == 1
    assert across > 0.55  # left or posterior
    assert (up > 0.55) == (world_axis != 2)  # superior is up; posterior, in an axial slice, is down
    assert (up < 0.45) == (world_axis == 2)


FLIPS = list(itertools.product((-1, 1), repeat=3))


@pytest.mark.parametrize("tilt", [0, 25])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_axis_letters_are_those_of_nibabel(order, tilt):
    """From the opposite letter to the one of nibabel.aff2axcodes, for every permutation and flip, also oblique."""
    nibabel = pytest.importorskip("nibabel")
    angle = np.deg2rad(tilt)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    turn = turn @ np.roll(turn, (1, 1), (0, 1))  # about z, then about x
    opposite = dict(zip("LRPAIS", "RLAPSI", strict=True))
    for flips in FLIPS:
        direction = turn @ np.eye(3)[:, order] * flips
        grid = Grid.from_parts((6, 7, 8), (1.0, 2.0, 1.5), (3, 4, 5), direction)
        codes = nibabel.aff2axcodes(np.diag([-1, -1, 1, 1]) @ grid.affine)
        for axis in range(3):
            axes = plot_slice(Figure().subplots(), an_image(grid), axis)
            for label in (axes.get_xlabel(), axes.get_ylabel()):
                towards = codes["ijk".index(label[0])]
                assert label == f"{label[0]}, {opposite[towards]}→{towards} (mm)"
            assert {axes.get_xlabel()[0], axes.get_ylabel()[0]} == set("ijk") - {"ijk"[axis]}


@pytest.mark.parametrize(("edge", "expected"), [(240, 10), (100, 5), (39, 1), (600, 20), (1.2, 0.05)])
def test_spacing_is_round(edge, expected):
    assert nice_spacing(Grid.from_parts((10, 10, 10), (edge / 10, edge / 20, edge / 30))) == pytest.approx(expected)


def test_the_page_is_written_from_images_on_other_grids(tmp_path):
    oblique = Grid.from_parts((30, 30, 15), (1.3, 1.5, 3), (5, 6, 7), [[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    field = a_field(lambda x: x + np.sin(x / 9))
    figure = plot_registration(an_image(), an_image(oblique), an_image(), field, tmp_path / "page.png")
    assert len(figure.axes) == 15
    assert (tmp_path / "page.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_pyplot_stays_out():
    """No window and no global figure list: the plots run in worker threads and in Slicer."""
    import subprocess
    import sys

    code = (
        "import sys, numpy as np\n"
        "from matplotlib.figure import Figure\n"
        "from IconRegistrationLib.spatial.geometry import Grid, Image\n"
        "from IconRegistrationLib.demo.plot import plot_slice\n"
        "plot_slice(Figure().subplots(), Image(np.eye(27).reshape(9, 9, 9), Grid.from_parts((9, 9, 9))))\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
