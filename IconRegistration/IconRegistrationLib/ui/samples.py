"""What the Sample Data module offers under our name: a pair that is computed and a pair that is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..demo.phantom import make_phantom
from ..mrml.markups import node_from_landmarks
from ..mrml.scene import temporary_nodes
from ..mrml.segmentations import node_from_segmentation
from ..mrml.volumes import node_from_image
from ..text import tr

CATEGORY = "IconRegistration"
_ICONS = Path(__file__).parents[2] / "Resources" / "Icons"

#: Slicer's own samples, two scans of one head with a tumour: node name -> file name, SHA-256 of the file.
_BRAINS = {
    "MRBrainTumor1": ("RegLib_C01_1.nrrd", "998cb522173839c78657f4bc0ea907cea09fd04e44601f17c82ea27927937b95"),
    "MRBrainTumor2": ("RegLib_C01_2.nrrd", "1a64f3f422eb3d1c9b093d1a18da354b13bcf307907c66317e2463ee530b7a97"),
}
_BRAINS_URL = "https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/"


def register_samples() -> None:
    """Add our samples to the Sample Data module; to be called when Slicer's startup is complete."""
    from SampleData import SampleDataLogic

    SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=tr("Phantom: a torso breathing in and out"),
        uris=(),  # SampleDataSource compares the lengths of these three; nothing is downloaded
        fileNames=(),
        nodeNames=(),
        customDownloader=_load_phantom,
        thumbnailFileName=str(_ICONS / "SamplePhantom.png"),
    )
    SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=tr("Brain with a tumour, two scans"),
        uris=tuple(_BRAINS_URL + sha256 for _file, sha256 in _BRAINS.values()),
        fileNames=tuple(file for file, _sha256 in _BRAINS.values()),
        nodeNames=tuple(_BRAINS),
        checksums=tuple(f"SHA256:{sha256}" for _file, sha256 in _BRAINS.values()),
        thumbnailFileName=str(_ICONS / "SampleBrains.png"),
    )


def _load_phantom(_source) -> list:
    """Load the phantom: the click on its picture."""
    import slicer

    with slicer.util.tryWithErrorDisplay(tr("The phantom could not be loaded."), waitCursor=True):
        nodes = add_phantom(slicer.mrmlScene)
        slicer.util.setSliceViewerLayers(background=nodes[0], fit=True)
        return nodes


def add_phantom(scene: Any, size: int = 144) -> list:
    """Return the phantom's nodes, always the same: volumes, segmentations and landmarks, of each inhale first.

    Inhale is meant as fixed, exhale as moving. size: the volumes have about size^3 voxels.
    The scene stays as it was if something fails.
    """
    phantom = make_phantom(size=size)
    with temporary_nodes(scene, only_on_error=True):
        inhale, exhale = "Phantom inhale", "Phantom exhale"
        fixed = node_from_image(scene, phantom.fixed, inhale)
        moving = node_from_image(scene, phantom.moving, exhale)
        for volume in (fixed, moving):
            volume.GetDisplayNode().SetAutoWindowLevel(False)
            volume.GetDisplayNode().SetWindowLevel(400, 40)  # the usual window for soft tissue
        fixed_organs = node_from_segmentation(scene, phantom.fixed_segmentation, f"{inhale} organs", reference=fixed)
        moving_organs = node_from_segmentation(scene, phantom.moving_segmentation, f"{exhale} organs", reference=moving)
        fixed_points = node_from_landmarks(scene, phantom.fixed_landmarks, f"{inhale} landmarks")
        moving_points = node_from_landmarks(scene, phantom.moving_landmarks, f"{exhale} landmarks")
        fixed_organs.GetDisplayNode().SetVisibility2DFill(False)
        for node in (moving_organs, fixed_points, moving_points):  # they would cover the image that is shown
            node.GetDisplayNode().SetVisibility(False)
    return [fixed, moving, fixed_organs, moving_organs, fixed_points, moving_points]
