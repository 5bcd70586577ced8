"""The samples: how they are announced to the Sample Data module, and the nodes that they make."""

import hashlib
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import phantoms
import pytest
import slicer

from IconRegistrationLib.demo.phantom import make_phantom
from IconRegistrationLib.mrml.markups import landmarks_from_node
from IconRegistrationLib.mrml.segmentations import segmentation_from_node
from IconRegistrationLib.mrml.volumes import image_from_node
from IconRegistrationLib.ui import samples

NAMES = [
    "Phantom inhale",
    "Phantom exhale",
    "Phantom inhale organs",
    "Phantom exhale organs",
    "Phantom inhale landmarks",
    "Phantom exhale landmarks",
]


@pytest.fixture
def announced(monkeypatch):
    """What the Sample Data module was told."""
    monkeypatch.setattr(slicer.modules, "sampleDataSources", {})
    samples.register_samples()
    return slicer.modules.sampleDataSources["IconRegistration"]


def test_two_samples_with_pictures(announced):
    assert [source.category for source in announced] == ["IconRegistration"] * 2
    for source in announced:
        header = Path(source.thumbnailFileName).read_bytes()[:24]
        assert header.startswith(b"\x89PNG")
        assert struct.unpack(">II", header[16:]) == (240, 160)
    assert announced[0].sampleName != announced[1].sampleName


def test_the_brains_are_named_by_what_they_contain(announced):
    """The testing data of Slicer are addressed by their SHA-256."""
    brains = announced[1]
    assert brains.nodeNames == ("MRBrainTumor1", "MRBrainTumor2")
    assert brains.customDownloader is None
    for uri, checksum in zip(brains.uris, brains.checksums, strict=True):
        algorithm, digest = checksum.split(":")
        assert algorithm == "SHA256"
        assert len(digest) == hashlib.sha256().digest_size * 2
        assert uri == f"https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/{digest}"
    assert len(set(brains.uris)) == 2


@pytest.fixture
def nodes(scene):
    return samples.add_phantom(scene, size=32)


def test_the_phantom_is_six_nodes_and_always_the_same(nodes, scene):
    assert [node.GetName() for node in nodes] == NAMES
    again = samples.add_phantom(scene, size=32)
    for node, other in zip(nodes[:2], again[:2], strict=True):
        assert np.array_equal(image_from_node(node).array, image_from_node(other).array)


def test_the_phantom_lies_where_it_was_computed(nodes):
    phantom = phantoms.phantom(32)
    for node, image in zip(nodes[:2], (phantom.fixed, phantom.moving), strict=True):
        there = image_from_node(node)
        assert there.grid.shape == image.grid.shape
        np.testing.assert_allclose(there.grid.affine, image.grid.affine, atol=1e-9)
        assert np.array_equal(there.array, image.array)
        assert node.GetDisplayNode().GetWindow() == 400
    for node, volume, segmentation in zip(
        nodes[2:4], nodes[:2], (phantom.fixed_segmentation, phantom.moving_segmentation), strict=True
    ):
        there = segmentation_from_node(node)
        assert [s.name for s in there.segments] == [s.name for s in segmentation.segments]
        liver, expected = there.by_name()["liver"], segmentation.by_name()["liver"]
        assert there.mask(liver).sum() == segmentation.mask(expected).sum() > 0
        assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is volume


def test_inhale_is_inhale(nodes):
    """The truth maps inhale to exhale; from one to the other the diaphragm rises against the spine."""
    inhale, exhale = (
        dict(zip(points.labels, points.points, strict=True)) for points in map(landmarks_from_node, nodes[4:])
    )
    assert list(inhale) == list(exhale)
    assert len(inhale) == 20
    dome, spine = "right diaphragm dome", "vertebra, upper"
    distance = [np.linalg.norm(points[dome] - points[spine]) for points in (inhale, exhale)]
    assert distance[0] - distance[1] > 5  # mm


def test_what_would_cover_the_image_is_hidden(nodes):
    visible = [bool(node.GetDisplayNode().GetVisibility()) for node in nodes[2:]]
    assert visible == [True, False, False, False]
    assert not nodes[2].GetDisplayNode().GetVisibility2DFill()


def test_the_click_shows_the_phantom(announced, scene, monkeypatch):
    monkeypatch.setattr(samples, "make_phantom", lambda size: make_phantom(size=32))
    nodes = announced[0].customDownloader(announced[0])
    assert [node.GetName() for node in nodes] == NAMES
    red = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    assert red.GetBackgroundVolumeID() == nodes[0].GetID()


def test_a_failed_click_is_shown_and_leaves_nothing(announced, scene, monkeypatch, popups):
    def full(**_options):
        raise MemoryError("no room for the phantom")

    monkeypatch.setattr(samples, "make_phantom", full)
    before = scene.GetNumberOfNodes()
    with pytest.raises(MemoryError):  # Slicer prints what leaves a slot
        announced[0].customDownloader(announced[0])
    (popup,) = popups.shown
    assert "no room for the phantom" in popup.text
    assert scene.GetNumberOfNodes() == before


def test_the_phantom_needs_nothing_that_slicer_lacks():
    code = "import sys; from IconRegistrationLib.demo.phantom import make_phantom; make_phantom(size=16)"
    code += "; print(sorted({'torch', 'itk', 'scipy'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_half_a_phantom_does_not_stay(scene, monkeypatch):
    def broken(*_arguments):
        raise MemoryError

    monkeypatch.setattr(samples, "node_from_landmarks", broken)
    before = scene.GetNumberOfNodes()
    with pytest.raises(MemoryError):
        samples.add_phantom(scene, size=32)
    assert scene.GetNumberOfNodes() == before
