"""Fixtures and settings that the tests of every folder share."""

import os
import signal

import hypothesis
import pytest

# A shell that starts the tests in its background has them, and all that they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:  # threads of tests that run at the same time would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test knows how fast the machine is.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="module")
def one_thread():
    """Run torch on one thread: threads of several tests beside each other wait for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def phantom_files(tmp_path_factory):
    """Return the folder with the files of the smallest phantom: fixed.nii.gz, fixed.seg.nrrd, fixed.mrk.json, ...

    Tests that change a file copy the folder before.
    """
    from phantoms import phantom

    from IconRegistrationLib.batch import outputs

    folder = tmp_path_factory.mktemp("phantom")
    outputs.write_inputs(folder, phantom(28).inputs)
    return folder / "inputs"
