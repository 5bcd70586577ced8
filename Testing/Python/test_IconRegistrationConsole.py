"""Runs inside Slicer (ctest), without its main window: the console's function, samples, and what a scene file keeps."""

import os
import tempfile
import unittest

import numpy as np
import slicer


def missing_packages():
    """What registration needs and this Python lacks, as one text; "" if nothing."""
    from IconRegistrationLib.ui.dependencies import missing, needed_packages

    return " and ".join(map(str, missing(needed_packages())))


def add_phantom():
    """Fixed and moving volume, segmentation and landmarks of a small phantom."""
    from IconRegistrationLib.ui.samples import add_phantom

    return add_phantom(slicer.mrmlScene, size=32)


def register(*nodes, **more):
    """A quick registration of `add_phantom`'s nodes, as from the Python console."""
    from IconRegistration import IconRegistrationLogic
    from IconRegistrationLib.registration.settings import Settings

    names = ("fixed_segmentation", "moving_segmentation", "fixed_landmarks", "moving_landmarks")
    options = dict(zip(names, nodes[2:], strict=True))
    settings = Settings(align="mass", spacing=10.0, steps=8, device="cpu")
    return IconRegistrationLogic().register(nodes[0], nodes[1], **options, settings=settings, **more)


def distance(transform, fixed_points, moving_points):
    """Mean distance in mm of the fixed points, sent through a transform node (or None), to the moving points."""
    points, partners = map(slicer.util.arrayFromMarkupsControlPoints, (fixed_points, moving_points))
    if transform is not None:
        from_parent = transform.GetTransformFromParent()
        points = np.array([from_parent.TransformPoint(point) for point in points])
    return np.linalg.norm(points - partners, axis=1).mean()


class SamplesTest(unittest.TestCase):
    """Needs nothing but Slicer."""

    def setUp(self):
        slicer.mrmlScene.Clear(False)

    def test_two_samples_with_pictures(self):
        slicer.app.processEvents()  # Slicer's startup may not be complete yet, which is when samples are announced
        sources = slicer.modules.sampleDataSources["IconRegistration"]
        self.assertEqual(len({source.sampleName for source in sources}), 2)
        for source in sources:
            self.assertTrue(os.path.isfile(source.thumbnailFileName))

    def test_the_phantom_has_a_partner_for_everything(self):
        fixed, moving, fixed_organs, moving_organs, fixed_points, moving_points = add_phantom()
        self.assertNotEqual(fixed.GetImageData().GetDimensions(), moving.GetImageData().GetDimensions())
        names = [
            [organs.GetSegmentation().GetNthSegment(n).GetName() for n in range(14)]
            for organs in (fixed_organs, moving_organs)
        ]
        self.assertEqual(*names)
        self.assertEqual(fixed_points.GetNumberOfControlPoints(), moving_points.GetNumberOfControlPoints())
        self.assertGreater(distance(None, fixed_points, moving_points), 10)


class ConsoleTest(unittest.TestCase):
    """Registers for real, in Slicer's own process."""

    def setUp(self):
        slicer.mrmlScene.Clear(False)
        missing = missing_packages()
        if missing:
            self.skipTest(f"This Slicer's Python lacks {missing}; the panel's first Apply installs it.")

    def test_a_registration_brings_points_and_organs_together(self):
        nodes = add_phantom()
        outputs = register(*nodes)
        before = distance(None, *nodes[4:])
        self.assertLess(distance(outputs.forward, *nodes[4:]), before / 2)
        self.assertLess(distance(outputs.backward, nodes[5], nodes[4]), before / 2)
        self.assertEqual(outputs.warped_volume.GetImageData().GetDimensions(), nodes[0].GetImageData().GetDimensions())
        nodes[5].SetAndObserveTransformNodeID(outputs.forward.GetID())  # data under it warps live, the inverse way
        warped = slicer.util.arrayFromMarkupsControlPoints(nodes[5], world=True)
        wanted = slicer.util.arrayFromMarkupsControlPoints(nodes[4])
        self.assertLess(np.linalg.norm(warped - wanted, axis=1).mean(), before / 2)
        self.assertGreater(outputs.report.dice.after, outputs.report.dice.before)
        self.assertAlmostEqual(
            outputs.report.target_registration_error.after, distance(outputs.forward, *nodes[4:]), delta=0.01
        )

    def test_wrong_input_is_said_in_a_sentence_and_changes_nothing(self):
        from IconRegistrationLib.errors import InputError

        nodes = add_phantom()
        slicer.util.arrayFromVolume(nodes[1])[:] = 7
        slicer.util.arrayFromVolumeModified(nodes[1])
        count = slicer.mrmlScene.GetNumberOfNodes()
        with self.assertRaises(InputError) as raised:  # noqa: PT027
            register(*nodes)
        self.assertIn("Phantom exhale is constant: every voxel is 7", str(raised.exception))
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodes(), count)

    def test_a_second_run_updates_the_nodes_and_a_scene_file_keeps_them(self):
        from IconRegistrationLib.mrml.registration import outputs_of, request_of

        nodes = add_phantom()
        first = register(*nodes)
        count = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLTransformableNode")
        outputs = register(*nodes, outputs=first)
        self.assertEqual(outputs.forward.GetID(), first.forward.GetID())
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLTransformableNode"), count)

        name, dice = outputs.forward.GetName(), outputs.report.dice.after
        error = distance(outputs.forward, *nodes[4:])
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "result.mrb")
            self.assertTrue(slicer.util.saveScene(path))
            slicer.mrmlScene.Clear(False)
            slicer.util.loadScene(path)
        forward = slicer.util.getNode(name)
        request, loaded = request_of(forward), outputs_of(forward)
        self.assertAlmostEqual(distance(forward, request.fixed_landmarks, request.moving_landmarks), error, delta=1e-3)
        self.assertEqual(loaded.report.dice.after, dice)
        self.assertEqual(request.settings.spacing, 10.0)
        self.assertEqual(request.moving.GetName(), "Phantom exhale")
        self.assertIsNotNone(loaded.backward)


if __name__ == "__main__":
    unittest.main()
