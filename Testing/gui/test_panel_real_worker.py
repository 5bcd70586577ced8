"""The panel with the real worker process."""

import os
import signal
import sys
import time

import numpy as np
import pytest
import qt
from panel import VOLUMES, Panel, ids, is_ready, made_by, state_of
from slicerharness import pick, process_until

from IconRegistrationLib.mrml.registration import register_nodes
from IconRegistrationLib.mrml.transforms import field_from_node
from IconRegistrationLib.mrml.volumes import image_from_node
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.ui import dependencies

# ------------------------------------------------------------------------------------------------ the real worker


class Clock:
    """Ticks while Qt's event loop runs: how often, for how many seconds, and the longest time that it did not."""

    def __init__(self):
        self.ticks, self.gap, self.seconds, self._last = 0, 0.0, 0.0, time.monotonic()
        self._timer = qt.QTimer()
        self._timer.interval = 20
        self._timer.timeout.connect(self._tick)
        self._timer.start()

    def _tick(self):
        now = time.monotonic()
        self.ticks, self.gap = self.ticks + 1, max(self.gap, now - self._last)
        self.seconds, self._last = self.seconds + now - self._last, now

    def stop(self):
        self._timer.stop()


@pytest.fixture
def real_panel(scene, monkeypatch, tmp_path):
    """The panel with the real worker process."""
    opened = Panel(monkeypatch, tmp_path, real_worker=True)
    yield opened
    opened.close()
    from IconRegistrationLib.ui import process

    process_until(lambda: not process._running)


@pytest.mark.slow
def test_the_real_worker(real_panel):
    """One process: a run as in this process, a cancelled run, a killed one, and another process for the next."""
    panel = real_panel
    nodes = panel.choose_phantom(*VOLUMES, "movingSegmentation")  # no second one: comparing would only take time
    panel.ui.spacingSpinBox.value = 12
    panel.ui.stepsSpinBox.value = 3
    pick(panel.ui.alignmentComboBox, "Centre of mass")
    pick(panel.ui.deviceComboBox, "CPU")
    clock = Clock()
    panel.apply()
    process_until(lambda: not panel.busy)
    clock.stop()
    assert is_ready(panel)
    assert panel.status == "Done."
    assert clock.ticks > 20
    assert clock.gap < max(3, clock.seconds / 2), "the window did not react for so many seconds"
    made = made_by(panel)
    here = register_nodes(
        nodes["fixedVolume"],
        nodes["movingVolume"],
        moving_segmentation=nodes["movingSegmentation"],
        settings=Settings(spacing=12.0, steps=3, align="mass", device="cpu"),
    )
    for name in ("forward", "backward"):
        ours, theirs = field_from_node(made[name]), field_from_node(getattr(here, name))
        np.testing.assert_allclose(ours.grid.affine, theirs.grid.affine, atol=1e-6)
        np.testing.assert_allclose(ours.displacement, theirs.displacement, atol=1e-3)
    warped = image_from_node(made["warped_volume"]).array
    np.testing.assert_allclose(warped, image_from_node(here.warped_volume).array, atol=1)
    pid = panel.widget.panel.session._worker.info["pid"]

    def at_work():
        """A run that would take minutes, once it refines."""
        panel.ui.spacingSpinBox.value = 8
        panel.ui.stepsSpinBox.value = 2000
        panel.apply()
        process_until(lambda: panel.ui.progressBar.value > 0 and panel.status.startswith("Refine"))

    before, states = ids(panel.scene), state_of([*nodes.values(), *made.values()])
    at_work()
    assert panel.widget.panel.session._worker.info["pid"] == pid, "the same warm process"
    panel.ui.applyButton.click()
    process_until(lambda: not panel.busy)
    assert is_ready(panel)
    assert panel.status == "Cancelled; nothing was changed."

    at_work()
    os.kill(panel.widget.panel.session._worker.info["pid"], signal.SIGKILL)
    process_until(lambda: not panel.busy)
    assert is_ready(panel)
    assert "The system killed the worker" in panel.status
    assert ids(panel.scene) == before
    assert {i: s[2:] for i, s in state_of([*nodes.values(), *made.values()]).items()} == {
        i: s[2:] for i, s in states.items()
    }
    panel.apply()
    panel.ui.applyButton.click()
    process_until(lambda: not panel.busy)
    assert is_ready(panel)


def test_the_real_worker_of_a_python_without_torch(real_panel, tmp_path):
    """What a user sees who names a bare Python: which package is missing, and the line that installs it there."""
    panel = real_panel
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "torch.py").write_text("raise ImportError(\"No module named 'torch'\")")
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH="{bare}:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    wrapper.chmod(0o755)
    panel.choose_phantom(*VOLUMES)
    panel.ui.pythonLineEdit.text = str(wrapper)
    panel.apply()
    process_until(lambda: not panel.busy)
    assert is_ready(panel)
    assert "No module named 'torch'" in panel.status
    assert dependencies.instruction(str(wrapper)) in panel.status
    assert "Traceback" in panel.ui.statusLabel.toolTip
