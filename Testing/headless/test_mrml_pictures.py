"""Pictures by Slicer's displayable managers: what is shown is there, at its place, the right way round."""

import numpy as np
import pytest
from grids import places

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.spatial.geometry import Grid, Image, Segment, Segmentation

slicer = pytest.importorskip("slicer", reason="needs slicer-core")
vtk = pytest.importorskip("vtk")

from IconRegistrationLib.mrml import embedded, pictures, segmentations, transforms, volumes  # noqa: E402
from IconRegistrationLib.mrml.scene import nodes_of_class  # noqa: E402
from IconRegistrationLib.spatial.displacement import DisplacementField  # noqa: E402

SIZE = 200
GRID = Grid.from_parts((50, 50, 50), (2, 2, 2), (-49, -49, -49))


@pytest.fixture
def scene(scene):
    if pictures.can_render():
        pytest.skip(pictures.can_render())
    return scene


def ball(centre, radius: float) -> np.ndarray:
    return np.linalg.norm(places(GRID) - centre, axis=-1) < radius


def a_volume(scene, inside: np.ndarray, name="volume"):
    node = volumes.node_from_image(scene, Image(inside.astype(np.float32), GRID), name)
    node.GetDisplayNode().SetAutoWindowLevel(False)
    node.GetDisplayNode().SetWindowLevel(1, 0.5)
    return node


def a_ball_node(scene, color=(1, 0, 0), centre=(0, 0, 0), radius=20.0):
    labels = ball(centre, radius).astype(np.uint8)
    given = Segmentation((labels,), (Segment("ball", 1, color=color, identifier="ball"),), GRID, "balls")
    return segmentations.node_from_segmentation(scene, given, "balls")


def a_shift_node(scene, shift):
    field = DisplacementField(np.broadcast_to(np.float32(shift), (*GRID.shape, 3)).copy(), GRID)
    return transforms.node_from_field(scene, field, "shift")


def pixels(path) -> np.ndarray:
    """[row from the top, column, 3] in [0, 1]."""
    reader = vtk.vtkPNGReader()
    reader.SetFileName(str(path))
    reader.Update()
    columns, rows, _ = reader.GetOutput().GetDimensions()
    values = vtk.util.numpy_support.vtk_to_numpy(reader.GetOutput().GetPointData().GetScalars())
    return values.reshape(rows, columns, -1)[::-1, :, :3] / 255


def views(path) -> dict[str, np.ndarray]:
    picture = pixels(path)
    assert picture.shape == (SIZE, 3 * SIZE, 3)
    return dict(zip(pictures.ORIENTATIONS, np.split(picture, 3, axis=1), strict=True))


def middle_of(mask: np.ndarray) -> np.ndarray:
    """Centre of gravity as (column to the right, row to the top), in views, from the view's centre."""
    row, column = np.argwhere(mask).mean(axis=0)
    return np.array([column / SIZE - 0.5, 0.5 - row / SIZE])


def red(picture):
    return (picture[..., 0] > 0.5) & (picture[..., 1] < 0.4) & (picture[..., 2] < 0.4)


def test_directions_are_slicers(scene, tmp_path):
    """A ball at the patient's left, back and head: left is right in the picture, the back below, the head up."""
    volume = a_volume(scene, ball((25, 20, 15), 10))
    path = pictures.render_slices(scene, volume, tmp_path / "views.png", centre=(25, 20, 15), size=SIZE)
    for view, picture in views(path).items():
        bright = picture.min(axis=-1) > 0.5
        assert bright.sum() > 100, view
        assert np.abs(middle_of(bright)).max() < 0.02, view  # centred on the slices' crossing
    path = pictures.render_slices(scene, volume, tmp_path / "views.png", centre=(25, 20, 0), size=SIZE)
    # the axial slice now misses the ball; the other two, centred 15 mm lower, show it above the middle
    shown = views(path)
    assert not (shown["Axial"] > 0.5).any()
    assert middle_of(shown["Coronal"].min(axis=-1) > 0.5)[1] > 0.1
    path = pictures.render_slices(scene, volume, tmp_path / "views.png", centre=(20, 15, 15), size=SIZE)
    right, up = middle_of(views(path)["Axial"].min(axis=-1) > 0.5)
    assert right > 0.03
    assert up < -0.03
    right, _ = middle_of(views(path)["Sagittal"].min(axis=-1) > 0.5)
    assert right > 0.03  # the back is right in Slicer's sagittal view


def test_outlines_of_the_given_segmentations_alone(scene, tmp_path):
    volume = a_volume(scene, ball((0, 0, 0), 20))
    shown = a_ball_node(scene, (1, 0, 0))
    a_ball_node(scene, (0, 1, 0), radius=40)  # visible in the scene, not asked for
    path = pictures.render_slices(scene, volume, tmp_path / "views.png", segmentations=[shown], size=SIZE)
    for picture in views(path).values():
        rows, columns = np.nonzero(red(picture))
        # outline of a disc of 40 mm in a view of about 100 mm
        assert np.ptp(rows) / SIZE == pytest.approx(0.4, abs=0.06)
        assert np.ptp(columns) / SIZE == pytest.approx(0.4, abs=0.06)
        assert (picture[SIZE // 2 - 5 : SIZE // 2 + 5, SIZE // 2 - 5 : SIZE // 2 + 5] > 0.9).all()  # no fill
        assert not ((picture[..., 1] > 0.5) & (picture[..., 0] < 0.3)).any()


def test_a_transformed_segmentation_is_outlined_where_it_is_moved_to(scene, tmp_path):
    volume = a_volume(scene, np.zeros(GRID.shape))
    node = a_ball_node(scene, radius=12)
    node.SetAndObserveTransformNodeID(a_shift_node(scene, (-20, 0, 0)).GetID())  # fixed -> moving: content goes +20
    path = pictures.render_slices(
        scene, volume, tmp_path / "views.png", segmentations=[node], centre=(0, 0, 0), size=SIZE
    )
    assert middle_of(red(views(path)["Axial"]))[0] == pytest.approx(0.2, abs=0.03)


def test_the_grid_is_drawn_and_bends(scene, tmp_path):
    volume = a_volume(scene, np.zeros(GRID.shape))
    wave = np.zeros((*GRID.shape, 3), np.float32)
    wave[..., 0] = 6 * np.sin(places(GRID)[..., 1] / 8)
    for name, displacement in {"straight": wave * 1e-4, "bent": wave}.items():
        node = transforms.node_from_field(scene, DisplacementField(displacement, GRID), name)
        path = pictures.render_slices(scene, volume, tmp_path / f"{name}.png", transform=node, size=SIZE)
        drawn = views(path)["Axial"].max(axis=-1) > 0.2
        columns = drawn.mean(axis=0)
        assert drawn.mean() > 0.05
        if name == "straight":
            assert columns.max() > 0.8  # whole columns are lines
        else:
            assert columns.max() < 0.6


def test_the_foreground_is_blended(scene, tmp_path):
    back, front = a_volume(scene, ball((-20, 0, 0), 10)), a_volume(scene, ball((20, 0, 0), 10))
    path = pictures.render_slices(scene, back, tmp_path / "views.png", front, opacity=0.25, size=SIZE)
    picture = views(path)["Axial"]
    assert picture[SIZE // 2, SIZE // 2 - int(0.2 * SIZE)].mean() == pytest.approx(0.75, abs=0.03)
    assert picture[SIZE // 2, SIZE // 2 + int(0.2 * SIZE)].mean() == pytest.approx(0.25, abs=0.03)


def test_pictures_leave_the_scene_as_it_was(scene, tmp_path):
    volume, node, shift = a_volume(scene, ball((0, 0, 0), 20)), a_ball_node(scene), a_shift_node(scene, (5, 0, 0))
    other = a_ball_node(scene, (0, 1, 0))
    other.GetDisplayNode().SetVisibility(False)
    before = {n.GetID() for n in nodes_of_class(scene, "vtkMRMLNode")}
    logics = embedded.application_logic().GetSliceLogics().GetNumberOfItems()
    pictures.render_slices(scene, volume, tmp_path / "views.png", transform=shift, segmentations=[node], size=SIZE)
    pictures.render_3d(scene, tmp_path / "surface.png", [node], size=SIZE)
    assert {n.GetID() for n in nodes_of_class(scene, "vtkMRMLNode")} == before
    assert node.GetDisplayNode().GetVisibility2DFill()
    assert [n.GetDisplayNode().GetVisibility() for n in (node, other)] == [1, 0]
    assert shift.GetNumberOfDisplayNodes() == 0
    assert not node.GetSegmentation().ContainsRepresentation("Closed surface")
    assert embedded.application_logic().GetSliceLogics().GetNumberOfItems() == logics


def test_a_surface_is_seen_from_the_front(scene, tmp_path):
    labels = ball((20, 0, 0), 12).astype(np.uint8) + 2 * ball((-20, 0, 15), 12).astype(np.uint8)
    segments = (
        Segment("left", 1, color=(1, 0, 0), identifier="l"),
        Segment("right", 2, color=(0, 1, 0), identifier="r"),
    )
    node = segmentations.node_from_segmentation(scene, Segmentation((labels,), segments, GRID), "pair")
    picture = pixels(pictures.render_3d(scene, tmp_path / "surface.png", [node], size=SIZE))
    left = (picture[..., 0] > 0.4) & (picture[..., 1] < 0.3)
    right = (picture[..., 1] > 0.4) & (picture[..., 0] < 0.3)
    assert middle_of(left)[0] > 0.05 > -0.05 > middle_of(right)[0]
    assert middle_of(right)[1] > middle_of(left)[1] + 0.1


def test_what_cannot_be_drawn_is_refused(scene, tmp_path, monkeypatch):
    volume = a_volume(scene, ball((0, 0, 0), 20))
    with pytest.raises(InputError, match="'Oblique'"):
        pictures.render_slices(scene, volume, tmp_path / "views.png", orientations=("Oblique",))
    with pytest.raises(InputError, match="does not exist"):
        pictures.render_slices(scene, volume, tmp_path / "absent" / "views.png")
    monkeypatch.setattr(pictures, "can_render", lambda: "no driver; install one")
    with pytest.raises(InputError, match="no driver"):
        pictures.render_slices(scene, volume, tmp_path / "views.png")


def test_a_machine_without_a_driver_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(pictures, "_PROBE", "import os; os.abort()")
    assert "libegl1" in pictures.can_render.__wrapped__()
