"""The panel's tests run Slicer's module code under slicerharness; where that does not work they are skipped."""

import functools
import sys

import pytest
import slicerharness


@functools.cache
def missing():
    """Return why the harness does not work here, None where it does and is installed.

    It is asked when the first file is collected: the parent of parallel workers collects none.
    """
    reason = slicerharness.unavailable()
    if reason is None:
        slicerharness.install()
    return reason


class SkippedModule(pytest.Module):
    """A test file that cannot even be imported."""

    def collect(self):
        pytest.skip(missing(), allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    return SkippedModule.from_parent(parent, path=module_path) if missing() else None


@pytest.fixture(autouse=True)
def no_hidden_errors(monkeypatch):
    """An exception in a slot or an observer, which Slicer would only print, fails the test that caused it."""
    errors, popups = slicerharness.errors, slicerharness.popups
    for record in (errors, popups.shown, popups.answers):
        record.clear()
    monkeypatch.setattr(sys, "excepthook", lambda _kind, error, _traceback: errors.append(error))  # virtual methods
    yield
    slicerharness.settle()
    assert not errors, f"raised in slots or observers: {errors}"
    assert not popups.answers, f"questions that were never asked: {popups.answers}"


@pytest.fixture
def errors():
    """The exceptions in slots so far; a test that expects some takes them out."""
    return slicerharness.errors


@pytest.fixture
def popups():
    """slicerharness.popups: `shown` and the `answers` to give."""
    return slicerharness.popups


@pytest.fixture
def scene():
    """The scene, empty but for its singletons (views, selection, crosshair)."""
    import slicer

    slicer.mrmlScene.Clear(False)
    yield slicer.mrmlScene
    slicer.mrmlScene.Clear(False)


@pytest.fixture
def panel(scene, monkeypatch, tmp_path):
    """The opened panel over an empty scene, with a FakeWorker instead of the process; see panel.py."""
    from panel import Panel

    opened = Panel(monkeypatch, tmp_path)
    yield opened
    opened.close()
    assert not list(tmp_path.glob("IconRegistration-*")), "a private folder was left behind"
