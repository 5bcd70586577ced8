"""What the installer asks, calls and refuses, against doubles that take no argument which the originals do not have."""

import importlib.machinery
import importlib.metadata
import os
import subprocess
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import pytest
import slicer

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.networks import catalog
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.ui import dependencies

NUMPY = "1.26.4"


class Asker:
    """Answers as told and keeps the questions."""

    def __init__(self, *answers):
        self.answers, self.questions = list(answers), []

    def __call__(self, text):
        self.questions.append(text)
        return self.answers.pop(0)


class Computer:
    """A Slicer: the packages of its Python, the extensions it has, and what was called, in this order.

    works: the packages that an installation really brings.
    """

    def __init__(self):
        self.packages = {"numpy": NUMPY, "scipy": "1.14.1"}
        self.works = {"torch": "2.13.0", "SimpleITK": "2.5.7"}
        self.calls = []
        self.fails = self.fails_at_the_end = None
        self.extension_installs = True
        self.manager = None

    def version(self, name):
        try:
            return self.packages[name]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    def install(self, call, names, constraints):
        self.calls.append((call, Path(constraints).read_text(encoding="utf-8")))
        if self.fails:
            raise self.fails
        self.packages.update({name: self.works[name] for name in names if name in self.works})
        if self.fails_at_the_end:
            raise self.fails_at_the_end


@pytest.fixture
def computer(monkeypatch):
    """Slicer 5.12 with the PyTorch extension and nothing else."""
    computer = Computer()

    class PyTorchUtilsLogic:
        def installTorch(
            self,
            askConfirmation=False,
            forceComputationBackend=None,
            torchVersionRequirement=None,
            torchvisionVersionRequirement=None,
        ):
            address = os.environ["PIP_CONSTRAINT"].split()[-1]
            assert address.startswith("file://")
            call = ("installTorch", askConfirmation, forceComputationBackend, torchVersionRequirement)
            computer.install(call, ["torch"], address.removeprefix("file://").replace("%20", " "))

    def pip_ensure(
        requirements,
        constraints=None,
        skip_packages=None,
        prompt_install=True,
        prompt_restart=True,
        requester=None,
        skip_in_testing=True,
        show_progress=True,
    ):
        assert skip_packages is None
        names = [requirement.name for requirement in requirements]
        call = ("pip_ensure", [str(line) for line in requirements], prompt_install, prompt_restart, requester)
        computer.install(call, names, constraints)

    def pip_install(requirements):
        packages, (option, constraints) = requirements[:-2], requirements[-2:]
        assert option == "-c"
        computer.install(("pip_install", packages), [line.partition(">")[0] for line in packages], constraints)

    utils, packaging = types.ModuleType("PyTorchUtils"), types.ModuleType("slicer.packaging")
    utils.__spec__ = importlib.machinery.ModuleSpec("PyTorchUtils", None)
    utils.PyTorchUtilsLogic, packaging.pip_ensure = PyTorchUtilsLogic, pip_ensure
    monkeypatch.setitem(sys.modules, "PyTorchUtils", utils)
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    monkeypatch.setattr(slicer.util, "pip_install", pip_install)
    monkeypatch.setattr(slicer.util, "WaitCursor", nullcontext)
    monkeypatch.setattr(importlib.metadata, "version", computer.version)

    def install_extension(extensionName, restart=True, update=False):
        computer.calls.append(("extension", extensionName, restart, update))
        return computer.extension_installs

    computer.manager = types.SimpleNamespace(installExtensionFromServer=install_extension)
    monkeypatch.setattr(type(slicer.app), "extensionsManagerModel", lambda _app: computer.manager, raising=False)
    return computer


def ensure(ask, said=None):
    dependencies.ensure_packages(ask, (said if said is not None else []).append)


def test_the_needs_are_torch_and_the_requirements_file(tmp_path, monkeypatch):
    assert dependencies.needed_packages() == ["torch>=2.4", "SimpleITK>=2.4", "scipy>=1.13"]
    file = tmp_path / "requirements.txt"
    file.write_text("# why\n\nSimpleITK>=2.4  # because\nscipy\n")
    monkeypatch.setattr(dependencies, "REQUIREMENTS", file)
    assert dependencies.needed_packages() == [dependencies.TORCH, "SimpleITK>=2.4", "scipy"]


def test_the_package_asks_for_the_same_versions():
    """pip's metadata of the library and the panel's needs are written in two places."""
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for line in dependencies.needed_packages():
        assert f'"{line}"' in project


def test_what_is_missing_and_what_is_in_the_way(computer):
    computer.packages |= {"SimpleITK": "2.3.1", "torch": "2.4.0+cu121"}
    (problem,) = dependencies.missing(dependencies.needed_packages())
    assert (problem.name, problem.needed, problem.found) == ("SimpleITK", "SimpleITK>=2.4", "2.3.1")
    assert str(problem) == "SimpleITK>=2.4 (2.3.1 is installed)"
    assert 'slicer.util.pip_install("SimpleITK>=2.4")' in problem.fix
    computer.packages["torch"] = "1.13.1"
    torch, _simpleitk = dependencies.missing(dependencies.needed_packages())
    assert torch.found == "1.13.1"
    assert "PyTorch Utils" in torch.fix


def test_metadata_of_this_python():
    """No double: numpy is here, nothing has version 999, and a package that does not exist is not installed."""
    assert dependencies.missing(["numpy>=1.26"]) == []
    too_old, absent = dependencies.missing(["numpy>=999", "no-such-package-of-ours>=1"])
    assert too_old.found == importlib.metadata.version("numpy")
    assert absent.found is None


def test_nothing_is_asked_where_nothing_is_missing(computer):
    computer.packages |= computer.works
    ensure(Asker())
    assert computer.calls == []


def test_one_question_then_torch_first_and_numpy_pinned(computer):
    ask, said = Asker(True), []
    ensure(ask, said)
    assert computer.calls == [
        (("installTorch", False, None, ">=2.4"), f"numpy=={NUMPY}\n"),
        (("pip_ensure", ["SimpleITK>=2.4"], False, False, "ICON Registration"), f"numpy=={NUMPY}\n"),
    ]
    (question,) = ask.questions
    for part in ("torch>=2.4 (not installed)", "SimpleITK>=2.4 (not installed)", f"numpy {NUMPY} is kept", "pypi.org"):
        assert part in question
    assert "Replaced" not in question
    assert len(said) == 2
    assert "PyTorch" in said[0]
    assert computer.packages["numpy"] == NUMPY
    assert "PIP_CONSTRAINT" not in os.environ


def test_slicer_which_brings_simpleitk_is_asked_for_torch_alone(computer):
    computer.packages["SimpleITK"] = "2.5.2"
    ask = Asker(True)
    ensure(ask)
    assert [call[0] for call, _constraints in computer.calls] == ["installTorch"]
    assert "SimpleITK" not in ask.questions[0]


def test_what_is_replaced_is_said(computer):
    computer.packages |= {"SimpleITK": "2.3.1", "torch": "2.13.0"}
    ask = Asker(True)
    ensure(ask)
    assert "Replaced, also for other extensions: SimpleITK 2.3.1." in ask.questions[0]
    assert [call[0] for call, _constraints in computer.calls] == ["pip_ensure"]


def test_slicer_5_10_has_only_pip_install(computer, monkeypatch):
    monkeypatch.setitem(sys.modules, "slicer.packaging", None)
    ensure(Asker(True))
    assert computer.calls[1] == (("pip_install", ["SimpleITK>=2.4"]), f"numpy=={NUMPY}\n")


def test_a_no_installs_nothing(computer):
    with pytest.raises(InputError, match=r"needs torch>=2.4 .* and SimpleITK>=2.4 .*; press Apply again"):
        ensure(Asker(False))
    assert computer.calls == []


@pytest.mark.parametrize(
    "error",
    [
        subprocess.CalledProcessError(1, "pip install"),
        RuntimeError("PythonSlicer executable not found"),
        OSError("[WinError 5] Access is denied"),
        ImportError("DLL load failed while importing _C"),
    ],
)
def test_a_failed_installation_is_one_sentence_with_the_remedy(computer, error):
    computer.fails = error
    with pytest.raises(InputError) as caught:
        ensure(Asker(True))
    text = str(caught.value)
    assert text.startswith(f"torch>=2.4 could not be installed beside Slicer's numpy {NUMPY} ({error})")
    assert "PyTorch Utils" in text
    assert "another Python" in text
    assert "\n" not in text
    assert len(computer.calls) == 1, "SimpleITK is not tried any more"
    assert "PIP_CONSTRAINT" not in os.environ


def test_what_slicer_itself_cannot_load_may_serve_the_worker(computer, caplog):
    """installTorch imports torch into Slicer at its end, where other libraries may be in the way."""
    computer.fails_at_the_end = ImportError("DLL load failed while importing _C")
    ensure(Asker(True))
    assert dependencies.missing(dependencies.needed_packages()) == []
    assert "DLL load failed" in caplog.text


def test_an_installation_that_brings_nothing_is_noticed(computer):
    """In Slicer's testing mode pip_ensure returns without having done anything."""
    del computer.works["SimpleITK"]
    with pytest.raises(InputError, match=r"there is still no SimpleITK>=2.4 \(not installed\); run slicer"):
        ensure(Asker(True))


@pytest.fixture
def without_extension(computer, monkeypatch):
    monkeypatch.delitem(sys.modules, "PyTorchUtils")
    return computer


def test_without_the_pytorch_extension_it_is_offered_first(without_extension):
    ask = Asker(True)
    with pytest.raises(InputError, match="is installed; save your data, restart Slicer and press Apply again"):
        ensure(ask)
    assert without_extension.calls == [("extension", "PyTorch", False, False)]
    assert "restarted" in ask.questions[0]


def test_without_the_pytorch_extension_and_a_no(without_extension):
    with pytest.raises(InputError, match="open the Extensions Manager, install PyTorch, restart Slicer"):
        ensure(Asker(False))
    assert without_extension.calls == []


def test_an_extension_that_cannot_be_installed(without_extension):
    without_extension.extension_installs = False
    with pytest.raises(InputError, match="could not be installed; open the Extensions Manager"):
        ensure(Asker(True))
    without_extension.manager = None  # a Slicer that was built without it
    with pytest.raises(InputError, match=r"could not be installed \(.*\); open the Extensions Manager"):
        ensure(Asker(True))


def test_no_extension_is_needed_for_simpleitk_alone(without_extension):
    without_extension.packages["torch"] = "2.13.0"
    ensure(Asker(True))
    assert without_extension.packages["SimpleITK"] == "2.5.7"


def test_another_installer_can_take_the_place(computer):
    class Refusing:
        def has_torch_extension(self):
            return True

        def install_torch(self, requirement, constraints):
            raise RuntimeError("no")

    with pytest.raises(InputError, match=r"torch>=2.4 could not be installed .*\(no\)"):
        dependencies.ensure_packages(Asker(True), print, installer=Refusing())


@pytest.mark.slow
def test_real_pip_obeys_the_constraint(tmp_path, monkeypatch):
    """In a folder whose name has a space, as a user's may; beside a constraint that the user has set."""
    folder = tmp_path / "John Doe"
    folder.mkdir()
    constraints = folder / "constraints.txt"
    other = tmp_path / "other.txt"
    other.write_text("pip<999\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(other))
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "numpy", "-c", str(constraints)]

    def pip():
        with dependencies._pip_constrained_by(constraints):
            return subprocess.run(command[:-2], capture_output=True, text=True, check=False)

    constraints.write_text(f"numpy=={importlib.metadata.version('numpy')}\n")
    assert pip().returncode == 0, pip().stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    constraints.write_text("numpy==999.0\n")
    refused = pip()
    assert refused.returncode != 0
    assert "999.0" in refused.stdout + refused.stderr
    assert os.environ["PIP_CONSTRAINT"] == str(other)


def test_what_to_type_for_another_python(tmp_path):
    assert dependencies.instruction("conda run -n icon python") == (
        "Run this in a terminal and press Apply again: conda run -n icon python -m pip install "
        '"torch>=2.4" "SimpleITK>=2.4" "scipy>=1.13"'
    )
    python = tmp_path / "my env" / "python"
    python.parent.mkdir()
    python.touch()
    assert f'"{python}" -m pip install' in dependencies.instruction(str(python))


def test_the_question_before_a_download(tmp_path):
    download = dependencies.needed_download("unigradicon", str(tmp_path / "weights"))
    file = tmp_path / "weights" / "unigradicon.trch"
    assert (download.title, download.size, download.file) == ("uniGradICON", 283_000_000, file)
    for part in ("uniGradICON", "283 MB", "github.com/uncbiag/uniGradICON.", str(file), "Apache-2.0"):
        assert part in download.question
    assert not file.parent.exists(), "asking makes nothing"


def test_downloads_go_to_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("ICON_REGISTRATION_WEIGHTS", raising=False)
    monkeypatch.setattr(catalog, "cache_folder", lambda: tmp_path)
    assert dependencies.needed_download("multigradicon").file == tmp_path / "multigradicon.trch"


def test_no_question_without_a_download(tmp_path):
    assert dependencies.needed_download(Settings().model) is None
    (tmp_path / "unigradicon.trch").touch()
    assert dependencies.needed_download("unigradicon", str(tmp_path)) is None
    own = tmp_path / "own.trch"
    own.touch()
    assert dependencies.needed_download(str(own)) is None
    with pytest.raises(InputError, match="No model is called 'nonsense'"):
        dependencies.needed_download("nonsense")
