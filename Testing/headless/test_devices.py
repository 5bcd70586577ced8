"""On a device that is not the CPU nothing is mixed with the CPU's, the result is the CPU's, and steps wait for nothing.

No GPU is needed: the device is `stand_in.py`'s.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch.utils.backend_registration
from stand_in import CASES

pytestmark = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch does not let Python be a device",
)


@pytest.mark.parametrize("case", CASES)
def test_registers_as_on_the_cpu(case):
    words = [sys.executable, str(Path(__file__).with_name("stand_in.py")), case]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    mixed, double = found["refused"]
    assert "on one device" in mixed
    assert "float64" in double
    assert found["moved"] > 10  # mm
    assert found["error"] < 0.02  # mm; Adam enlarges what rounding differs by
    assert len(set(found["waits"])) < 2  # of one step on each level and of three
