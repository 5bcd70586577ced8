"""Runs inside Slicer (ctest), with its main window: the panel as users meet it, its worker, and the Review section."""

import os
import sys
import tempfile
import time
import unittest

import slicer

ROLES = ("fixedVolume", "movingVolume", "fixedSegmentation", "movingSegmentation", "fixedLandmarks", "movingLandmarks")
#: Seconds that starting the worker and registering a small phantom may take on a slow computer.
PATIENCE = 300


def opened():
    """The panel, as a click in the list of modules opens it."""
    slicer.util.selectModule("IconRegistration")
    return slicer.util.getModuleWidget("IconRegistration")


def parameters():
    """The panel's parameter node, by the module's present code."""
    from IconRegistration import IconRegistrationParameterNode

    return IconRegistrationParameterNode(slicer.util.getModuleLogic("IconRegistration").getParameterNode())


def choose(ui, nodes):
    for role, node in nodes.items():
        getattr(ui, role + "Selector").setCurrentNode(node)


def add_phantom():
    """Nodes of a small phantom by the parameter that takes them."""
    from IconRegistrationLib.ui.samples import add_phantom

    return dict(zip(ROLES, add_phantom(slicer.mrmlScene, size=32), strict=True))


def wait_until(condition, what):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not happen within {PATIENCE} s")
        slicer.app.processEvents()
        time.sleep(0.01)


def distance(one, other):
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5


def shown_transform(node):
    """From fixed to moving points, of the transform under which a node lies."""
    return node.GetParentTransformNode().GetTransformFromParent()


def composite(view="Red"):
    return slicer.app.layoutManager().sliceWidget(view).mrmlSliceCompositeNode()


class PanelTest(unittest.TestCase):
    """Needs no torch: nothing is registered."""

    def setUp(self):
        if slicer.app.layoutManager() is None:
            self.skipTest("This Slicer runs without a main window; the panel needs one.")
        slicer.mrmlScene.Clear(False)
        self.widget = opened()
        self.ui = self.widget.ui

    def test_apply_says_what_is_missing(self):
        self.assertFalse(self.ui.applyButton.enabled)
        self.assertIn("Choose a fixed and a moving volume", self.ui.applyButton.toolTip)

    def test_the_line_under_the_selectors_is_true_of_the_nodes(self):
        nodes = add_phantom()
        choose(self.ui, nodes)
        size = " x ".join(map(str, nodes["fixedVolume"].GetImageData().GetDimensions()))
        self.assertIn(size, self.ui.preflightLabel.text)
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)
        nodes["movingVolume"].GetImageData().GetPointData().GetScalars().Fill(0)
        nodes["movingVolume"].GetImageData().Modified()
        self.assertIn("constant", self.ui.preflightLabel.text)
        self.assertFalse(self.ui.applyButton.enabled)

    def test_the_panel_and_its_parameters_follow_each_other(self):
        nodes = add_phantom()
        choose(self.ui, nodes)
        self.assertEqual(parameters().movingSegmentation, nodes["movingSegmentation"])
        parameters().guide = True
        self.assertTrue(self.ui.guideCheckBox.checked)
        self.ui.stepsSpinBox.value = 7
        self.assertEqual(parameters().steps, 7)
        self.assertEqual(self.ui.fixedSegmentsList.count, 14)

    def test_a_closed_scene_leaves_an_empty_panel(self):
        choose(self.ui, add_phantom())
        slicer.mrmlScene.Clear(False)
        self.assertIsNone(self.ui.fixedVolumeSelector.currentNode())
        self.assertIsNone(parameters().fixedVolume)
        self.assertFalse(self.ui.applyButton.enabled)
        choose(self.ui, add_phantom())
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)

    def test_a_deleted_volume_disables_apply(self):
        nodes = add_phantom()
        choose(self.ui, nodes)
        slicer.mrmlScene.RemoveNode(nodes["movingVolume"])
        self.assertIsNone(parameters().movingVolume)
        self.assertFalse(self.ui.applyButton.enabled)
        self.assertIn("moving", self.ui.applyButton.toolTip)

    def test_another_module_and_back(self):
        nodes = add_phantom()
        choose(self.ui, nodes)
        slicer.util.selectModule("Data")
        self.assertIs(opened(), self.widget)
        self.assertEqual(self.ui.fixedVolumeSelector.currentNode(), nodes["fixedVolume"])
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)

    def test_a_reload_reads_the_library_anew_and_keeps_what_is_chosen(self):
        nodes, library = add_phantom(), sys.modules["IconRegistrationLib.ui.choices"]
        choose(self.ui, nodes)
        self.widget.onReload()
        reloaded = slicer.util.getModuleWidget("IconRegistration")
        self.assertIsNot(reloaded, self.widget)
        self.assertIsNot(sys.modules["IconRegistrationLib.ui.choices"], library)
        self.assertEqual(reloaded.ui.movingVolumeSelector.currentNode(), nodes["movingVolume"])
        self.assertTrue(reloaded.ui.applyButton.enabled, reloaded.ui.applyButton.toolTip)


class RunTest(unittest.TestCase):
    """Registers for real, in the worker process."""

    def setUp(self):
        if slicer.app.layoutManager() is None:
            self.skipTest("This Slicer runs without a main window; the panel needs one.")
        slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)  # others left another
        from IconRegistrationLib.ui.choices import Alignment, Device
        from IconRegistrationLib.ui.dependencies import missing, needed_packages

        lacking = " and ".join(map(str, missing(needed_packages())))
        if lacking:
            self.skipTest(f"This Slicer's Python lacks {lacking}; the panel's first Apply installs it.")
        slicer.mrmlScene.Clear(False)
        self.widget = opened()
        self.ui = self.widget.ui
        self.ui.pythonLineEdit.text = ""  # Slicer's own, whatever this user's settings say
        self.nodes = add_phantom()
        choose(self.ui, self.nodes)
        quick = parameters()
        quick.alignment, quick.device, quick.spacing, quick.steps = Alignment.MASS, Device.CPU, 10.0, 8

    def start(self):
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)
        self.ui.applyButton.click()
        self.assertEqual(self.ui.applyButton.text, "Cancel", self.ui.statusLabel.text)

    def finish(self):
        wait_until(lambda: self.ui.applyButton.text == "Apply", "the end of the registration")

    def register(self):
        self.start()
        self.finish()
        self.assertIn("Done", self.ui.statusLabel.text)
        return parameters().result

    def test_a_registration_is_updated_reviewed_saved_and_loaded(self):
        first = self.register()
        count = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLTransformableNode")
        forward = self.register()  # by the worker that is warm now
        self.assertEqual(forward, first)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLTransformableNode"), count)
        self.assertTrue(forward.IsA("vtkMRMLGridTransformNode"))
        self.assertIn(self.nodes["movingVolume"].GetName(), forward.GetName())
        self.assertFalse(self.ui.reviewSection.collapsed)
        self.assertGreater(self.ui.trustTable.rowCount, 10)
        self.assertEqual(composite().GetBackgroundVolumeID(), self.nodes["fixedVolume"].GetID())
        foreground = slicer.mrmlScene.GetNodeByID(composite().GetForegroundVolumeID())
        self.assertIn("registered", foreground.GetName())
        self.images()
        self.deformation_and_trust()
        self.linked_cursor()
        self.saved_and_loaded(forward)

    def images(self):
        ui, moving = self.ui, self.nodes["movingVolume"]
        ui.shownComboBox.setCurrentText("Live, under the transform")
        self.assertEqual(composite().GetForegroundVolumeID(), moving.GetID())
        ui.warpAmountSlider.value = 25
        self.assertAlmostEqual(shown_transform(moving).GetDisplacementScale(), 0.25)
        ui.warpAmountSlider.value = 100
        self.assertAlmostEqual(shown_transform(moving).GetDisplacementScale(), 1)
        ui.blendSlider.value = 80
        self.assertAlmostEqual(composite().GetForegroundOpacity(), 0.8)
        ui.swapCheckBox.checked = True
        self.assertIsNone(moving.GetParentTransformNode())
        self.assertIsNotNone(self.nodes["fixedVolume"].GetParentTransformNode())
        self.assertEqual(composite().GetBackgroundVolumeID(), moving.GetID())
        ui.swapCheckBox.checked = False
        for comparison in ("Checkerboard", "Curtain", "Flicker", "Blend"):
            ui.compareComboBox.setCurrentText(comparison)
            slicer.app.processEvents()
        self.assertAlmostEqual(composite().GetForegroundOpacity(), 0.8)

    def deformation_and_trust(self):
        ui = self.ui
        ui.deformationComboBox.setCurrentText("Grid")
        display = self.nodes["movingVolume"].GetParentTransformNode().GetDisplayNode()
        self.assertTrue(display.GetVisibility2D())
        self.assertEqual(display.GetVisualizationMode(), display.VIS_MODE_GRID)
        ui.deformationComboBox.setCurrentText("Hidden")
        self.assertFalse(display.GetVisibility2D())
        ui.outlinesCheckBox.checked = True
        self.assertTrue(self.nodes["fixedSegmentation"].GetDisplayNode().GetVisibility2DOutline())
        ui.overlayComboBox.setCurrentText("Local distrust [mm]")
        self.assertIsNotNone(composite().GetLabelVolumeID())
        ui.overlayComboBox.setCurrentText("None")
        self.assertIsNone(composite().GetLabelVolumeID())

    def linked_cursor(self):
        layout = slicer.app.layoutManager().layout
        self.ui.linkedCursorCheckBox.checked = True
        self.assertNotEqual(slicer.app.layoutManager().layout, layout)
        self.assertIsNone(self.nodes["movingVolume"].GetParentTransformNode())
        self.ui.linkedCursorCheckBox.checked = False
        self.assertEqual(slicer.app.layoutManager().layout, layout)

    def saved_and_loaded(self, forward):
        """A scene holds all of a deformation that is shown in part."""
        name, point = forward.GetName(), [20.0, -10.0, 30.0]
        whole = forward.GetTransformFromParent().TransformPoint(point)
        self.ui.warpAmountSlider.value = 25
        part = shown_transform(self.nodes["movingVolume"]).TransformPoint(point)
        self.assertGreater(distance(whole, part), 1)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "result.mrb")
            self.assertTrue(slicer.util.saveScene(path))
            slicer.mrmlScene.Clear(False)
            slicer.util.loadScene(path)
        loaded = slicer.util.getNode(name)
        self.assertLess(distance(whole, loaded.GetTransformFromParent().TransformPoint(point)), 1e-3)
        self.ui.resultSelector.setCurrentNode(loaded)
        self.assertGreater(self.ui.trustTable.rowCount, 10)
        self.assertEqual(composite().GetBackgroundVolumeID(), parameters().fixedVolume.GetID())

        moving = parameters().movingVolume
        self.assertAlmostEqual(shown_transform(moving).GetDisplacementScale(), 0.25)  # the panel is as it was saved
        slicer.mrmlScene.RemoveNode(loaded)
        slicer.app.processEvents()
        self.assertIsNone(moving.GetParentTransformNode())
        self.assertFalse(self.ui.warpAmountSlider.enabled)

    def test_a_run_that_is_ended_leaves_the_scene_as_it_was(self):
        parameters().steps = 2000
        count = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLTransformableNode")
        self.start()
        wait_until(lambda: self.ui.progressBar.value > 0, "some progress")
        self.ui.applyButton.click()
        self.finish()
        self.assertIn("Cancelled", self.ui.statusLabel.text)
        self.assertTrue(self.ui.applyButton.enabled, self.ui.applyButton.toolTip)
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLTransformableNode"), count)

        self.start()
        slicer.mrmlScene.Clear(False)
        self.assertIn("scene was closed", self.ui.statusLabel.text)
        self.assertEqual(self.ui.applyButton.text, "Apply")
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLGridTransformNode"), 0)


if __name__ == "__main__":
    unittest.main()
