"""A panel with a result under review, and what its tests look at."""

import functools
import re
from types import SimpleNamespace

import numpy as np
import slicer
from panel import phantom
from slicerharness import pick, settle

from IconRegistrationLib.mrml.registration import nodes_from_results, outputs_of
from IconRegistrationLib.mrml.scene import nodes_of_class
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.workflow.pipeline import compute
from IconRegistrationLib.workflow.results import Inputs

UPPER = ("Red", "Green", "Yellow")


@functools.cache
def results():
    """Of the phantom, once for all tests: coarse, but with every output."""
    p = phantom()
    inputs = Inputs(
        p.fixed, p.moving, p.fixed_segmentation, p.moving_segmentation, p.fixed_landmarks, p.moving_landmarks
    )
    return compute(inputs, Settings(align="mass", spacing=12.0, steps=5, device="cpu"))


class Reviewed:
    """A panel with a result under review. `n`: its nodes by their names in RegistrationRequest and ResultNodes."""

    def __init__(self, panel, *without: str):
        self.panel, self.ui = panel, panel.ui
        chosen = panel.choose_phantom()
        names = ("fixed", "moving", *(f"{side}_{kind}" for kind in ("segmentation", "landmarks") for side in SIDES))
        show(panel.scene, chosen["fixedVolume"])
        self.before = looks(panel.scene)  # and then the result is there, and shown
        outputs = nodes_from_results(results(), panel.request())
        for name in without:
            panel.scene.RemoveNode(getattr(outputs, name))
        outputs = outputs_of(outputs.forward)
        self.outputs = outputs
        self.n = SimpleNamespace(**dict(zip(names, chosen.values(), strict=True)), **vars(outputs))
        self.before |= looks(panel.scene)
        panel.parameters.result = outputs.forward
        settle()

    def choose(self, name: str, text: str):
        box = getattr(self.ui, name)
        assert box.enabled, name
        pick(box, text)
        settle()

    def click(self, name: str):
        button = getattr(self.ui, name)
        assert button.enabled, name
        button.click()
        settle()

    def drag(self, name: str, *values: float):
        """Pull a slider over these values."""
        slider = getattr(self.ui, name)
        assert slider.enabled, name
        for value in values:
            share = (value - slider.minimum) / (slider.maximum - slider.minimum)
            slider._h_bar.sliderMoved.emit(round(1000 * share))
        settle()

    def put(self, name: str, value):
        box = getattr(self.ui, name)
        assert box.enabled, name
        box.value = value
        settle()

    def enabled(self, *names: str) -> list[bool]:
        return [getattr(self.ui, name).enabled for name in names]

    @property
    def amount(self) -> float:
        """The part of the displacement under which data is shown."""
        return scale(self.shown_under(self.n.forward))

    def shown_under(self, transform):
        """What data lies under where `transform` is looked at: a hidden node that shares its samples."""
        hidden = [t for t in nodes_of_class(slicer.mrmlScene, "vtkMRMLGridTransformNode") if t.GetHideFromEditors()]
        (copy,) = [t for t in hidden if grid(t) is grid(transform)]
        assert not copy.GetSaveWithScene()
        assert scale(transform) == 1  # always: it may be saved at any time
        return copy


SIDES = ("fixed", "moving")


def scale(transform) -> float:
    return transform.GetTransformFromParent().GetDisplacementScale()


def grid(transform):
    return transform.GetTransformFromParent().GetDisplacementGrid()


def composite(name="Red"):
    return slicer.app.layoutManager().sliceWidget(name).sliceLogic().GetSliceCompositeNode()


def composites():
    return [composite(name) for name in UPPER]


def show(scene, volume):
    for node in composites():
        node.SetBackgroundVolumeID(volume.GetID())


def layers(node) -> tuple:
    return node.GetBackgroundVolumeID(), node.GetForegroundVolumeID()


def ids(*nodes) -> tuple:
    return tuple(node.GetID() for node in nodes)


def looks(scene) -> dict[str, list[str]]:
    """Properties of all nodes as VTK prints them, by ID."""
    nodes = [node for node in nodes_of_class(scene, "vtkMRMLNode") if not _is_a_views(node)]
    return {node.GetID(): _printed(node) for node in nodes}


def _is_a_views(node) -> bool:
    """What a view has: its position, which is the user's, and nodes that come with it when it is first seen."""
    kind, hidden = node.GetClassName(), node.GetHideFromEditors()
    if kind == "vtkMRMLSliceCompositeNode":
        return node.GetLayoutName() not in UPPER
    if kind in ("vtkMRMLLinearTransformNode", "vtkMRMLModelNode"):
        return hidden
    return kind in (
        *("vtkMRMLSliceNode", "vtkMRMLSliceDisplayNode", "vtkMRMLModelDisplayNode"),
        *("vtkMRMLScriptedModuleNode", "vtkMRMLSelectionNode", "vtkMRMLLayoutNode"),
    )


def _printed(node) -> list[str]:
    lines = [line for line in str(node).splitlines() if re.match(" {2,5}[^ ]", line)]
    return [line for line in lines if not re.search("MTime|Time:|Reference Count|0x|CrosshairRAS", line)]


def differences(before: dict, after: dict) -> list[str]:
    """What is not as it was, of nodes that are still there; and nodes that were not there."""
    found = [
        f"{name}: {line.strip()}"
        for name in before.keys() & after.keys()
        for line in set(after[name]) ^ set(before[name])
    ]
    return sorted(found + list(after.keys() - before.keys()))


def assert_as_before(reviewed):
    found = differences(reviewed.before, looks(reviewed.panel.scene))
    assert not found, "\n".join(found)


def observers(node) -> int:
    """Of modifications; a crosshair has none by itself."""
    return sum(node.HasObserver(event) for event in ("ModifiedEvent", "AnyEvent"))


def voxels(scene) -> dict[str, int]:
    """Volumes and when their voxels changed last."""
    nodes = nodes_of_class(scene, "vtkMRMLVolumeNode")
    return {node.GetID(): node.GetImageData().GetMTime() for node in nodes}


def world_of(node, label: str) -> np.ndarray:
    numbers = {node.GetNthControlPointLabel(n): n for n in range(node.GetNumberOfControlPoints())}
    point = np.zeros(3)
    node.GetNthControlPointPositionWorld(numbers[label], point)
    return point
