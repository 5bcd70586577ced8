"""On a device that is not the CPU nothing is mixed with the CPU's, the result is the CPU's, and steps wait for nothing.

No GPU is needed: the device is `stand_in.py`'s.
"""

import json
import subprocess
import sys

import pytest
import stand_in
import torch.utils.backend_registration
from stand_in import CASES

pytestmark = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch does not let Python be a device",
)


@pytest.fixture(scope="module")
def measured():
    """What the stand-in measures of each case; in one process, for torch cannot forget the device."""
    run = subprocess.run([sys.executable, stand_in.__file__, *CASES], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return dict(zip(CASES, map(json.loads, run.stdout.splitlines()), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_registers_as_on_the_cpu(case, measured):
    found = measured[case]
    mixed, double = found["refused"]
    assert "on one device" in mixed
    assert "float64" in double
    assert found["moved"] > 10  # mm
    assert found["error"] < 0.02  # mm; Adam enlarges what rounding differs by
    assert len(set(found["waits"])) < 2  # of one step on each level and of three
