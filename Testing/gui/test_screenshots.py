"""Pictures of the panel and of what Review shows, and what must be in them.

They are written to the folder that the environment variable ICON_REGISTRATION_SCREENSHOTS names: the good ones became
Resources/Screenshots. The panel is the real one on the test double of Slicer; the views are drawn by Slicer's own
displayable managers.
"""

import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import slicer
import vtk
from panel import tick
from slicerharness import grab, pick, settle
from vtk.util.numpy_support import vtk_to_numpy

from IconRegistrationLib.mrml import pictures
from IconRegistrationLib.mrml.review.trust import DISTRUST_LIMITS
from IconRegistrationLib.mrml.scene import temporary_nodes
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.ui.samples import add_phantom
from IconRegistrationLib.worker import exchange
from IconRegistrationLib.workflow.pipeline import compute

WIDTH = 500
#: Voxels along an edge of the phantom: fine enough for pictures, coarse enough for a test.
SIZE = 88
#: Pixels along an edge of a rendered view.
VIEW = 340


@pytest.fixture
def folder(tmp_path):
    return Path(os.environ.get("ICON_REGISTRATION_SCREENSHOTS", tmp_path))


@pytest.fixture
def landmarks_in_views(monkeypatch):
    """Slicer's views show landmarks, which the command's pictures do without."""
    for name in ("_SLICE_MANAGERS", "_VIEW_MANAGERS"):
        managers = (*getattr(pictures, name), "vtkMRMLMarkupsDisplayableManager")
        monkeypatch.setattr(pictures, name, managers)


def pixels(path) -> np.ndarray:
    """[row from the top, column, 3] uint8."""
    reader = vtk.vtkPNGReader()
    reader.SetFileName(str(path))
    reader.Update()
    columns, rows, _ = reader.GetOutput().GetDimensions()
    values = vtk_to_numpy(reader.GetOutput().GetPointData().GetScalars())
    return values.reshape(rows, columns, -1)[::-1, :, :3]


def level(name: str) -> str:
    """The panel's colour of a verdict."""
    from IconRegistrationLib.ui.status import LEVEL_COLORS

    return LEVEL_COLORS[name]


def amount_of(color: str, picture: np.ndarray) -> int:
    """Pixels of a colour "#rrggbb"."""
    wanted = np.array([int(color[n : n + 2], 16) for n in (1, 3, 5)])
    return int((np.abs(picture.astype(int) - wanted).max(axis=-1) <= 2).sum())


def photograph(panel, path) -> np.ndarray:
    grab(panel.page, path, width=WIDTH)
    picture = pixels(path)
    assert picture.shape[1] == WIDTH, "the panel is wider than it may be"
    assert path.stat().st_size < 300_000
    return picture


def choose_phantom(panel) -> dict:
    names = [f"{side}{kind}" for kind in ("Volume", "Segmentation", "Landmarks") for side in ("fixed", "moving")]
    nodes = dict(zip(names, add_phantom(panel.scene, size=SIZE), strict=True))
    panel.choose(**nodes)
    return nodes


def finish(panel) -> None:
    """A registration of what the panel sent, with the coarse end of the offline method."""
    settings = Settings(align="mass", spacing=6.0, steps=25, device="cpu")
    results = compute(panel.worker.inputs, settings)
    exchange.write_results(panel.worker.folder / "results", results)
    panel.worker.busy = False
    panel.worker.callbacks.result({"notes": []})
    settle()


@pytest.mark.slow
def test_empty_ready_running_and_failed(panel, folder):
    levels = [level(name) for name in ("green", "amber", "red")]
    picture = photograph(panel, folder / "panel_empty.png")
    assert [amount_of(color, picture) for color in levels] == [0, 0, 0]
    height = picture.shape[0]
    choose_phantom(panel)
    picture = photograph(panel, folder / "panel_ready.png")
    assert picture.shape[0] > height  # segments and preflight are there
    assert amount_of(level("red"), picture) == 0
    panel.apply()
    panel.worker.ready()
    panel.worker.progress("refinement", 0.4)
    settle()
    photograph(panel, folder / "panel_running.png")
    bar = panel.ui.progressBar
    assert bar.isVisible()
    assert 30 <= bar.value <= 50
    panel.worker.fail("memory", "The CPU ran out of memory; choose a coarser grid spacing under Advanced.")
    settle()
    picture = photograph(panel, folder / "panel_error.png")
    assert amount_of(level("red"), picture) > 50


@pytest.mark.slow
def test_the_result_under_review(panel, folder, landmarks_in_views):
    nodes = choose_phantom(panel)
    panel.apply()
    finish(panel)
    picture = photograph(panel, folder / "panel_done.png")
    assert amount_of(level("green"), picture) > 1500  # the status, and every verdict
    assert amount_of(level("red"), picture) == 0
    ui = panel.ui
    ui.inputsSection.collapsed = ui.methodSection.collapsed = True
    pick(ui.deformationComboBox, "Grid")
    ui.outlinesCheckBox.click()
    for name in ("liver", "spleen", "heart", "aorta", "spine", "left kidney", "right kidney"):
        tick(ui.labelsList, name)
    settle()
    picture = photograph(panel, folder / "panel_review.png")
    assert amount_of(level("green"), picture) > 1500

    if pictures.can_render():
        pytest.skip(pictures.can_render())
    views = render(nodes, folder / "review_views.png")
    for name in ("Red", "Green", "Yellow"):
        view = views[name]
        grey = np.ptp(view, axis=-1) < 12
        assert ((view.max(axis=-1) > 90) & grey).mean() > 0.02, name  # the images
        # lines of the grid: between light blue, yellow and red, on black, beside the body
        assert (np.ptp(view[20:-20, 20:-20], axis=-1) > 100).mean() > 0.02, name
    colors = {tuple(color) for color in views["3D"][::4, ::4].reshape(-1, 3) // 16}
    assert len(colors) > 40  # shaded surfaces, not the empty background

    pick(ui.deformationComboBox, "Hidden")
    ui.outlinesCheckBox.click()
    for name in ("liver", "spleen", "heart", "aorta", "spine", "left kidney", "right kidney"):
        tick(ui.labelsList, name, on=False)
    without = render(nodes, folder / "review_blend.png")
    for name in ("Red", "Green", "Yellow"):
        coloured = np.ptp(without[name], axis=-1) > 60
        assert coloured.mean() < 0.003, name  # landmarks at most: nothing hides the images
    pick(ui.overlayComboBox, "Local distrust [mm]")
    settle()
    distrusted = render(nodes, folder / "review_distrust.png")
    error = vtk_to_numpy(panel.review.nodes.distrust.GetImageData().GetPointData().GetScalars())
    assert (error > DISTRUST_LIMITS[0]).any()
    assert any((distrusted[name] != without[name]).mean() > 0.002 for name in ("Red", "Green", "Yellow"))


def render(nodes, path) -> dict[str, np.ndarray]:
    """The application's views by name, [row from the top, column, 3] uint8, as they are now; and as one PNG."""
    manager = slicer.app.layoutManager()
    with ExitStack() as stack:
        stack.enter_context(temporary_nodes(slicer.mrmlScene))
        windows = {
            name: slice_window(stack, manager.sliceWidget(name).sliceLogic()) for name in ("Red", "Green", "Yellow")
        }
        box = pictures._bounds([nodes["fixedVolume"]])
        windows["3D"] = pictures._window_3d(stack, manager.threeDWidget(0).mrmlViewNode(), box, VIEW)
        views = {name: pictures._pixels(window)[::-1] for name, window in windows.items()}
    rows = [np.concatenate([views[name] for name in row], axis=1) for row in (("Red", "3D"), ("Green", "Yellow"))]
    pictures._write_png(np.concatenate(rows)[::-1], path)
    assert path.stat().st_size < 300_000
    return views


def slice_window(stack: ExitStack, logic):
    """A vtkRenderWindow with what a slice view of the application shows; the view keeps its size and field of view."""
    node = logic.GetSliceNode()
    dimensions, field_of_view = node.GetDimensions(), node.GetFieldOfView()
    stack.callback(node.SetFieldOfView, *field_of_view)
    stack.callback(node.SetDimensions, *dimensions)  # before the field of view
    logic.ResizeSliceNode(VIEW, VIEW)
    node.SetFieldOfView(*(max(field_of_view[:2]),) * 2, field_of_view[2])
    return pictures._slice_window(stack, logic, VIEW)
