"""Runs inside Slicer (ctest): a phantom pair through the console's function, on the scene of the application."""

import unittest

import numpy as np
import slicer


class IconRegistrationTest(unittest.TestCase):
    def setUp(self):
        slicer.mrmlScene.Clear(0)
        try:
            import itk  # noqa: F401
            import torch  # noqa: F401
        except ModuleNotFoundError as missing:
            self.skipTest(f"{missing.name} is not installed in this Slicer; the module's first Apply installs it")

    def test_a_phantom_is_registered_and_its_organs_follow(self):
        from IconRegistration import IconRegistrationLogic
        from IconRegistrationLib.core.phantom import make_phantom
        from IconRegistrationLib.core.settings import Settings
        from IconRegistrationLib.mrml.segmentations import node_from_segmentation
        from IconRegistrationLib.mrml.volumes import node_from_image

        phantom = make_phantom(size=64)
        scene = slicer.mrmlScene
        fixed = node_from_image(scene, phantom.fixed, "fixed")
        moving = node_from_image(scene, phantom.moving, "moving")
        segments = node_from_segmentation(scene, phantom.moving_segmentation, "organs")
        outputs = IconRegistrationLogic().register(
            fixed, moving, moving_segmentation=segments, settings=Settings(spacing=4.0, device="cpu")
        )

        transform = outputs.forward
        self.assertTrue(transform.IsA("vtkMRMLGridTransformNode"))
        points = phantom.fixed_landmarks.points * [-1, -1, 1]
        expected = phantom.moving_landmarks.points * [-1, -1, 1]
        from_parent = transform.GetTransformFromParent()
        reached = np.array([from_parent.TransformPoint(point) for point in points])
        before = np.linalg.norm(points - expected, axis=1).mean()
        after = np.linalg.norm(reached - expected, axis=1).mean()
        self.assertLess(after, before / 2)
        names = [s.GetName() for s in (outputs.warped_segmentation.GetSegmentation().GetNthSegment(0),)]
        self.assertIn(names[0], [s.name for s in phantom.moving_segmentation.segments])


if __name__ == "__main__":
    unittest.main()
