"""Before a run: packages are installed and weights downloaded after asking, and what comes of a no."""

import sys

import pytest
from panel import VOLUMES, ids, is_ready
from slicerharness import pick

from IconRegistrationLib.networks import catalog
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.ui import dependencies

# ------------------------------------------------------------------------------------------------ packages, weights


def test_packages_are_installed_after_asking(panel, popups, monkeypatch):
    installed = []

    class Installer:
        def install_packages(self, requirements, constraints):
            installed.extend(requirements)
            monkeypatch.setattr(dependencies, "needed_packages", list)

    monkeypatch.setattr(dependencies, "needed_packages", lambda: ["nobody-has-this>=1"])
    monkeypatch.setattr(dependencies, "SlicerInstaller", Installer)
    panel.choose_phantom(*VOLUMES)
    popups.answers.append(False)
    panel.ui.applyButton.click()
    assert is_ready(panel)
    assert "Registration needs nobody-has-this>=1" in panel.status
    assert (len(popups.shown), installed, panel.workers) == (1, [], [])
    popups.answers.append(True)
    panel.apply()
    assert (len(popups.shown), installed) == (2, ["nobody-has-this>=1"])
    panel.worker.finish()
    assert panel.status == "Done."
    panel.apply()
    assert len(popups.shown) == 2


def test_nothing_is_installed_for_another_python(panel, popups, monkeypatch):
    monkeypatch.setattr(dependencies, "needed_packages", lambda: ["nobody-has-this>=1"])
    panel.choose_phantom(*VOLUMES)
    panel.ui.pythonLineEdit.text = sys.executable
    panel.apply()
    assert not popups.shown


def test_an_installation_that_fails(panel, popups, monkeypatch):
    class Installer:
        def install_packages(self, requirements, constraints):
            raise RuntimeError("no network")

    monkeypatch.setattr(dependencies, "needed_packages", lambda: ["nobody-has-this>=1"])
    monkeypatch.setattr(dependencies, "SlicerInstaller", Installer)
    panel.choose_phantom(*VOLUMES)
    panel.ui.applyButton.click()
    assert is_ready(panel)
    assert "no network" in panel.status
    assert len(popups.shown) == 1, "the question"


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """A cache without weights, in which none appear."""
    monkeypatch.delenv(catalog.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(catalog, "cache_folder", lambda: tmp_path / "cache")


def test_a_download_that_is_declined(panel, popups, no_weights):
    panel.choose_phantom(*VOLUMES)
    pick(panel.ui.presetComboBox, "uniGradICON")
    assert "MB) will be downloaded first" in panel.ui.preflightLabel.text
    popups.answers.append(False)
    panel.ui.applyButton.click()
    (question,) = popups.shown
    assert "MB from github.com" in question.text
    assert is_ready(panel)
    assert "were not downloaded" in panel.status
    assert not panel.workers


@pytest.mark.parametrize("leaves", [False, True])
def test_a_download_and_then_the_run(panel, no_weights, leaves):
    panel.choose_phantom(*VOLUMES)
    pick(panel.ui.presetComboBox, "uniGradICON")
    panel.apply()
    assert panel.worker.request == {"request": "download", "model": "unigradicon", "weights_dir": None}
    assert panel.ui.applyButton.text == "Cancel"
    panel.worker.progress("download", 0.4)
    assert (panel.ui.progressBar.value, panel.status) == (40, "Download")
    if leaves:
        panel.page.exit()
    panel.worker.finish(path="/somewhere")
    assert panel.busy
    assert panel.worker.request["request"] == "register"
    assert panel.worker.settings == Settings(model="unigradicon")
    panel.worker.finish()
    if leaves:
        panel.page.enter()
    assert panel.parameters.result is not None
    assert panel.status == "Done."


def test_a_download_that_ends_early(panel, no_weights):
    panel.choose_phantom(*VOLUMES)
    pick(panel.ui.presetComboBox, "uniGradICON")
    for kind, sentence in (("input", "github.com does not answer."), ("cancelled", "Cancelled; nothing was changed.")):
        panel.apply()
        panel.worker.fail(kind, sentence)
        assert is_ready(panel)
        assert panel.status == sentence
        assert len(panel.worker.requests) == ["input", "cancelled"].index(kind) + 1


def test_a_volume_that_is_deleted_during_the_download(panel, no_weights):
    nodes = panel.choose_phantom(*VOLUMES)
    pick(panel.ui.presetComboBox, "uniGradICON")
    panel.apply()
    panel.scene.RemoveNode(nodes["fixedVolume"])
    before = ids(panel.scene)
    panel.worker.finish(path="/somewhere")
    if panel.busy:
        panel.worker.finish()
    assert not panel.busy
    assert "fixed volume was deleted" in panel.status
    assert ids(panel.scene) == before
