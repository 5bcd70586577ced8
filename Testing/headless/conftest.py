"""What several tests start from."""

import signal

import pytest

# A shell that starts the tests in its background has them, and all that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def one_thread():
    """Threads of several tests beside each other wait for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def scene():
    """The scene of this process; what a test adds to it goes with the test."""
    pytest.importorskip("slicer", reason="needs slicer-core")
    from IconRegistrationLib.mrml import embedded
    from IconRegistrationLib.mrml.scene import temporary_nodes

    scene = embedded.boot()
    with temporary_nodes(scene):
        yield scene
