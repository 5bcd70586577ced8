"""What the tests without a window share."""

import pytest


@pytest.fixture
def scene():
    """The scene of this process; what a test adds to it goes with the test."""
    pytest.importorskip("slicer", reason="needs slicer-core")
    from IconRegistrationLib.mrml import embedded
    from IconRegistrationLib.mrml.scene import temporary_nodes

    scene = embedded.boot()
    with temporary_nodes(scene):
        yield scene
