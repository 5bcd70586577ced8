"""Pictures of a registration: slice views and a 3D view, rendered offscreen by Slicer's own displayable managers."""

from __future__ import annotations

import functools
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from ..errors import InputError
from ..text import tr
from .embedded import application_logic
from .review.deformation import show_grid
from .scene import nodes_of_class, temporary_nodes

ORIENTATIONS = ("Axial", "Sagittal", "Coronal")

_SLICE_MANAGERS = (
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLTransformsDisplayableManager2D",
)
_VIEW_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
    "vtkMRMLTransformsDisplayableManager3D",
)
_PROBE = """
import vtkmodules.vtkRenderingOpenGL2
from vtkmodules.vtkRenderingCore import vtkRenderer, vtkRenderWindow
window = vtkRenderWindow()
window.SetOffScreenRendering(1)
window.AddRenderer(vtkRenderer())
window.Render()
"""


@functools.cache
def can_render() -> str | None:
    """Return None where an offscreen render works, else why not and what to install.

    Asked of a child process, once: without a driver a render is a segmentation fault.
    """
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=120, check=False)
    if probe.returncode == 0:
        return None
    reason = (probe.stderr.strip().splitlines() or [f"exit code {probe.returncode}"])[-1]
    return tr(
        "Nothing can be rendered on this machine ({reason}); on Linux, apt install libegl1 libgl1-mesa-dri.",
        reason=reason,
    )


def render_slices(
    scene: Any,
    background: Any,
    path: str | Path,
    foreground: Any = None,
    *,
    opacity: float = 0.5,
    transform: Any = None,
    segmentations: Any = (),
    orientations: Any = ORIENTATIONS,
    centre: Any = None,
    size: int = 480,
) -> Path:
    """Write one PNG with a slice view per orientation, side by side; segments are outlined.

    Directions are Slicer's: the patient's right is left in axial and coronal views. The scene is left as it was.

    Parameters
    ----------
    scene : vtkMRMLScene
        The scene of the nodes.
    background, foreground : vtkMRMLVolumeNode
        The foreground is drawn over the background.
    path : str or Path
        The PNG file.
    opacity : float
        Of the foreground volume, 0 to 1.
    transform : vtkMRMLTransformNode, optional
        Its deformation grid is drawn; spacing and line width follow from the field of view.
    segmentations : sequence of vtkMRMLSegmentationNode
        Their outlines are drawn; the scene's others, and other transforms, are not.
    orientations : sequence of str
        Of ORIENTATIONS.
    centre : sequence of float, optional
        The point (x, y, z) in mm, LPS through which the slices go; by default the middle of the segments, else of the
        background.
    size : int
        Edge of one view in pixels.

    Raises
    ------
    InputError
        Where nothing can be rendered.
    """
    path = _picture_path(path)
    box = _bounds([background])
    if box is None:
        raise InputError(
            tr("The volume {name!r} has no voxels; load or choose another one.", name=background.GetName())
        )
    if centre is None:
        segments = _bounds(segmentations)
        middle = (box if segments is None else segments).mean(axis=0)
    else:
        middle = np.asarray(centre, dtype=float) * (-1, -1, 1)
    field_of_view = float(np.ptp(box, axis=0).max())
    with ExitStack() as stack:
        stack.enter_context(temporary_nodes(scene))
        stack.enter_context(_alone(scene, segmentations))
        if transform is not None:
            stack.enter_context(_grid_display(scene, transform, field_of_view))
        views = [
            _slice_view(stack, scene, orientation, background, foreground, opacity, middle, size)
            for orientation in orientations
        ]
        _write_png(np.concatenate([_pixels(window) for window in views], axis=1), path)
    return path


def render_3d(scene: Any, path: str | Path, segmentations: Any, *, transform: Any = None, size: int = 600) -> Path:
    """Write one PNG with the closed surfaces of `segmentations`, seen from the front.

    The scene is left as it was.

    Parameters
    ----------
    scene : vtkMRMLScene
        The scene of the nodes.
    path : str or Path
        The PNG file.
    segmentations : sequence of vtkMRMLSegmentationNode
        What is drawn.
    transform : vtkMRMLTransformNode, optional
        Its deformation grid is drawn too.
    size : int
        Edge in pixels.

    Raises
    ------
    InputError
        Where nothing can be rendered.
    """
    path = _picture_path(path)
    bounds = _bounds(segmentations)
    if bounds is None:
        raise InputError(tr("There is no segment to show in 3D; give a segmentation that is not empty."))
    with ExitStack() as stack:
        stack.enter_context(temporary_nodes(scene))
        stack.enter_context(_alone(scene, segmentations))
        for node in segmentations:
            stack.enter_context(_closed_surfaces(node))
        if transform is not None:
            stack.enter_context(_grid_display(scene, transform, float(np.ptp(bounds, axis=0).max()) * 1.2))
        window = _view_3d(stack, scene, bounds, size)
        _write_png(_pixels(window), path)
    return path


def _picture_path(path) -> Path:
    reason = can_render()
    if reason:
        raise InputError(reason)
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(tr("The folder {folder} does not exist; create it first.", folder=path.parent))
    return path


def _bounds(nodes) -> np.ndarray | None:
    """Return lowest and highest corner, (2, 3) mm, RAS, of volumes or segmentations; None if all are empty."""
    boxes = []
    for node in nodes:
        bounds = [0.0] * 6
        node.GetRASBounds(bounds)
        if bounds[0] <= bounds[1]:
            boxes.append(np.reshape(bounds, (3, 2)).T)
    return np.array([np.min(boxes, axis=0)[0], np.max(boxes, axis=0)[1]]) if boxes else None


@contextmanager
def _alone(scene, segmentations):
    """Show only the given segmentations and transforms, as outlines; afterwards each as before."""
    shown = [display for node in segmentations for display in _displays(node)]
    segments = nodes_of_class(scene, "vtkMRMLSegmentationDisplayNode")
    every = segments + nodes_of_class(scene, "vtkMRMLTransformDisplayNode")
    visible = [(display, display.GetVisibility()) for display in every]
    filled = [(display, display.GetVisibility2DFill()) for display in segments]
    try:
        for display, _ in visible:
            display.SetVisibility(display in shown)
        for display, _ in filled:
            display.SetVisibility2DFill(False)
        yield
    finally:
        for display, value in visible:
            display.SetVisibility(value)
        for display, value in filled:
            display.SetVisibility2DFill(value)


def _displays(node) -> list:
    return [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]


@contextmanager
def _grid_display(scene, transform, field_of_view: float):
    """Add a second display node for a transform that shows its grid, for the time of the picture."""
    display = scene.AddNewNodeByClass("vtkMRMLTransformDisplayNode")
    show_grid(display, field_of_view)
    transform.AddAndObserveDisplayNodeID(display.GetID())
    try:
        yield
    finally:
        transform.RemoveNthDisplayNodeID(transform.GetNumberOfDisplayNodes() - 1)


@contextmanager
def _closed_surfaces(node):
    """Make the surfaces of a segmentation node that has none yet, for the time of the picture."""
    name = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    had_surfaces = node.GetSegmentation().ContainsRepresentation(name)
    node.CreateClosedSurfaceRepresentation()
    try:
        yield
    finally:
        if not had_surfaces:
            node.RemoveClosedSurfaceRepresentation()


def _window(stack: ExitStack, size: int):
    renderer = vtk.vtkRenderer()
    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(True)
    window.ShowWindowOff()
    window.SetMultiSamples(0)
    window.SetSize(size, size)
    window.AddRenderer(renderer)
    interactor = vtk.vtkRenderWindowInteractor()
    interactor.SetRenderWindow(window)
    interactor.Initialize()

    def release():
        interactor.SetRenderWindow(None)
        window.Finalize()

    stack.callback(release)
    return window, renderer


def _managers(stack: ExitStack, factory_class, names, renderer, node) -> None:
    """Let Slicer's displayable managers draw the view `node` into `renderer`."""
    factory = factory_class.GetInstance()
    factory.SetMRMLApplicationLogic(application_logic(node.GetScene()))
    stack.callback(factory.SetMRMLApplicationLogic, application_logic())
    missing = [name for name in names if not factory.IsDisplayableManagerRegistered(name)]
    for name in missing:
        factory.RegisterDisplayableManager(name)
        stack.callback(factory.UnRegisterDisplayableManager, name)
    group = slicer.vtkMRMLDisplayableManagerGroup()
    group.Initialize(factory, renderer)
    group.SetMRMLDisplayableNode(node)
    stack.callback(group.SetMRMLDisplayableNode, None)


def _slice_view(stack, scene, orientation, background, foreground, opacity, middle, size):
    """Return a vtkRenderWindow with one slice."""
    application = application_logic(scene)
    logic = slicer.vtkMRMLSliceLogic()
    logic.SetMRMLApplicationLogic(application)
    application.GetSliceLogics().AddItem(logic)
    logic.SetMRMLScene(scene)
    node = logic.AddSliceNode(f"IconRegistrationReview{orientation}")
    composite = logic.GetSliceCompositeNode()
    if not node.SetOrientation(orientation):
        raise InputError(
            tr(
                "No view is called {orientation!r}; choose one of {orientations}.",
                orientation=orientation,
                orientations=", ".join(ORIENTATIONS),
            )
        )
    node.SetMappedInLayout(True)
    composite.SetBackgroundVolumeID(background.GetID())
    composite.SetForegroundVolumeID(foreground.GetID() if foreground else None)
    composite.SetForegroundOpacity(opacity)
    composite.SetLabelVolumeID(None)
    logic.ResizeSliceNode(size, size)
    logic.FitSliceToBackground()
    node.JumpSliceByCentering(*middle)

    def release():
        application.GetSliceLogics().RemoveItem(logic)
        logic.SetMRMLScene(None)

    stack.callback(release)
    return _slice_window(stack, logic, size)


def _slice_window(stack, logic, size):
    window, renderer = _window(stack, size)
    renderer.GetActiveCamera().ParallelProjectionOn()
    overlay = vtk.vtkRenderer()  # outlines and grids are drawn in a layer of their own
    overlay.SetLayer(1)
    overlay.GetActiveCamera().ParallelProjectionOn()
    window.SetNumberOfLayers(2)
    window.AddRenderer(overlay)
    mapper = vtk.vtkImageMapper()
    mapper.SetColorWindow(255)
    mapper.SetColorLevel(127.5)
    mapper.SetInputConnection(logic.GetImageDataConnection())
    picture = vtk.vtkActor2D()
    picture.SetMapper(mapper)
    picture.GetProperty().SetDisplayLocationToBackground()
    renderer.AddViewProp(picture)  # first: what comes later is drawn over it
    _managers(stack, slicer.vtkMRMLSliceViewDisplayableManagerFactory, _SLICE_MANAGERS, renderer, logic.GetSliceNode())
    return window


def _view_3d(stack, scene, bounds, size):
    """Return a vtkRenderWindow with a 3D view of its own, from the patient's front."""
    logic = slicer.vtkMRMLViewLogic()
    logic.SetMRMLApplicationLogic(application_logic(scene))
    logic.SetMRMLScene(scene)
    node = logic.AddViewNode("IconRegistrationReview3D")
    node.SetMappedInLayout(True)
    node.SetBoxVisible(False)
    node.SetAxisLabelsVisible(False)
    stack.callback(logic.SetMRMLScene, None)
    return _window_3d(stack, node, bounds, size)


def _window_3d(stack, node, bounds, size):
    window, renderer = _window(stack, size)
    _managers(stack, slicer.vtkMRMLThreeDViewDisplayableManagerFactory, _VIEW_MANAGERS, renderer, node)
    middle, distance = bounds.mean(axis=0), float(np.linalg.norm(np.ptp(bounds, axis=0)))
    camera = renderer.GetActiveCamera()
    camera.SetFocalPoint(middle)
    camera.SetPosition(middle + np.array([0, 1.6 * distance, 0]))
    camera.SetViewUp(0, 0, 1)
    renderer.ResetCameraClippingRange()
    return window


def _pixels(window) -> np.ndarray:
    """Return the pixels, [row, column, 3] uint8, first row at the bottom."""
    window.Render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    grab.Update()
    columns, rows, _ = grab.GetOutput().GetDimensions()
    return vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars()).reshape(rows, columns, 3).copy()


def _write_png(pixels: np.ndarray, path: Path) -> None:
    image = vtk.vtkImageData()
    image.SetDimensions(pixels.shape[1], pixels.shape[0], 1)
    image.GetPointData().SetScalars(numpy_to_vtk(pixels.reshape(-1, 3), deep=True))
    writer = vtk.vtkPNGWriter()
    writer.SetFileName(str(path))
    writer.SetInputData(image)
    writer.Write()
    if not path.is_file():
        raise OSError(tr("The picture could not be written to {path}.", path=path))
