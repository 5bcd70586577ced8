"""What registration needs beside Slicer: Python packages and weights. Is it there, and how does it get there?

Nothing happens when this module is imported; nothing is installed or downloaded before the user has said yes. The
packages are looked up, never imported: registration runs in the worker process, so that what is installed here is used
without a restart of Slicer.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import tempfile
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..networks import catalog
from ..worker.serve import OLDEST

#: torch is no line of requirements.txt: the PyTorch extension installs the build that fits the machine.
TORCH = f"torch>={OLDEST['torch']}"
REQUIREMENTS = Path(__file__).parents[2] / "Resources" / "requirements.txt"


@dataclass(frozen=True)
class Problem:
    """A package that is missing or too old.

    needed: the requirement, "scipy>=1.13".  found: the version that is in the way, None if there is none.
    fix: how to install it by hand, words that continue a sentence.
    """

    name: str
    needed: str
    found: str | None
    fix: str

    def __str__(self):
        return f"{self.needed} ({f'{self.found} is installed' if self.found else 'not installed'})"


def needed_packages() -> list[str]:
    """torch and the lines of requirements.txt, without its comments."""
    lines = (line.partition("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    return [TORCH, *filter(None, lines)]


def missing(requirements: Iterable[str]) -> list[Problem]:
    """What this Python lacks of `requirements`, in their order; judged by the packages' metadata alone."""
    from packaging.requirements import Requirement

    importlib.invalidate_caches()  # pip works in a process of its own
    problems = []
    for requirement in map(Requirement, requirements):
        found = _installed_version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            problems.append(Problem(requirement.name, str(requirement), found, _fix_by_hand(requirement)))
    return problems


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name) or None  # what is left of a removed package has no version
    except importlib.metadata.PackageNotFoundError:
        return None


def _fix_by_hand(requirement) -> str:
    if requirement.name == "torch":
        return f"in the module PyTorch Utils uninstall an older PyTorch and install {requirement.specifier}"
    return f'run slicer.util.pip_install("{requirement}") in the Python console'


class SlicerInstaller:
    """How packages get into Slicer's own Python: by the means that Slicer documents. Main thread only.

    Another object with these methods can take its place. They raise what pip and the extensions raise.
    """

    def has_torch_extension(self) -> bool:
        return importlib.util.find_spec("PyTorchUtils") is not None

    def install_torch_extension(self) -> bool:
        """Returns whether it is installed; it can be used after a restart of Slicer."""
        import slicer

        with slicer.util.WaitCursor():
            return slicer.app.extensionsManagerModel().installExtensionFromServer("PyTorch", False)

    def install_torch(self, requirement: str, constraints: Path) -> None:
        import PyTorchUtils
        import slicer

        with slicer.util.WaitCursor(), _pip_constrained_by(constraints):  # installTorch takes no constraints
            PyTorchUtils.PyTorchUtilsLogic().installTorch(
                askConfirmation=False,  # the user has been asked, and has been told more
                torchVersionRequirement=requirement.removeprefix("torch"),
            )

    def install_packages(self, requirements: list[str], constraints: Path) -> None:
        import slicer

        try:
            from slicer.packaging import pip_ensure
        except ImportError:  # Slicer 5.10
            with slicer.util.WaitCursor():
                slicer.util.pip_install([*requirements, "-c", str(constraints)])
            return
        from packaging.requirements import Requirement

        pip_ensure(
            [Requirement(line) for line in requirements],
            constraints=constraints,
            prompt_install=False,
            prompt_restart=False,  # the worker imports the packages, Slicer does not
            requester="ICON Registration",
        )


@contextmanager
def _pip_constrained_by(constraints: Path) -> Iterator[None]:
    """Every pip that is started meanwhile obeys the file. pip splits the variable at spaces, hence the URL."""
    before = os.environ.get("PIP_CONSTRAINT")
    os.environ["PIP_CONSTRAINT"] = f"{before or ''} {constraints.as_uri()}".strip()
    try:
        yield
    finally:
        if before is None:
            del os.environ["PIP_CONSTRAINT"]
        else:
            os.environ["PIP_CONSTRAINT"] = before


def ensure_packages(ask: Callable[[str], bool], say: Callable[[str], None], installer=None) -> None:
    """Make Slicer's own Python able to register: returns at once where it is, else asks and installs.

    ask: shows a question, returns True for yes.  say: shows what is being done.
    installer: a SlicerInstaller, or what stands in for it.
    Slicer's numpy stays as it is, whatever the packages would prefer.
    Raises InputError, with the remedy, if the user declines or something could not be installed.
    """
    problems = missing(needed_packages())
    if not problems:
        return
    installer = installer or SlicerInstaller()
    torch = next((problem for problem in problems if problem.name == "torch"), None)
    others = [problem for problem in problems if problem is not torch]
    if torch and not installer.has_torch_extension():
        _install_torch_extension(ask, say, installer)
    if not ask(question(problems)):
        raise InputError(
            f"Registration needs {_listed(problems)}; press Apply again to install, or name another Python that has "
            "what is needed."
        )
    with _numpy_kept() as constraints:
        if torch:
            say("Installing PyTorch: this may take some minutes...")
            _attempt([torch], lambda: installer.install_torch(torch.needed, constraints))
        if others:
            say(f"Installing {', '.join(problem.name for problem in others)}...")
            _attempt(others, lambda: installer.install_packages([problem.needed for problem in others], constraints))
    left = missing(needed_packages())
    if left:
        raise InputError(f"After the installation there is still no {_listed(left)}; {left[0].fix}.")


def question(problems: list[Problem]) -> str:
    """What is installed, from where, what it replaces and what stays."""
    sources = []
    if any(problem.name == "torch" for problem in problems):
        sources.append("PyTorch in the build that fits this computer (0.2 to 3 GB), by the PyTorch extension")
    names = [problem.name for problem in problems if problem.name != "torch"]
    if names:
        sources.append(f"{', '.join(names)} from pypi.org")
    replaced = [f"{problem.name} {problem.found}" for problem in problems if problem.found]
    return "\n\n".join(
        filter(
            None,
            [
                f"Registration needs packages that Slicer's Python does not have: {_listed(problems)}.",
                f"To be installed: {'; '.join(sources)}. This may take some minutes.",
                f"Replaced, also for other extensions: {', '.join(replaced)}." if replaced else "",
                f"Slicer's numpy {_installed_version('numpy')} is kept. Install now?",
            ],
        )
    )


def _listed(problems: list[Problem]) -> str:
    return " and ".join(map(str, problems))


def _install_torch_extension(ask, say, installer) -> None:
    """Raises InputError in every case: the extension can be used after Slicer has been restarted."""
    by_hand = "open the Extensions Manager, install PyTorch, restart Slicer and press Apply again"
    if not ask(
        "torch is installed by Slicer's PyTorch extension, which is not installed. Install the extension from the "
        "Extensions Manager now? Slicer must be restarted afterwards."
    ):
        raise InputError(f"torch is installed by the extension PyTorch, which Slicer does not have; {by_hand}.")
    say("Installing the PyTorch extension...")
    try:
        installed = installer.install_torch_extension()
    except Exception as error:  # a Slicer without an extensions manager, an unreachable server
        raise InputError(f"The extension PyTorch could not be installed ({error}); {by_hand}.") from error
    if not installed:
        raise InputError(f"The extension PyTorch could not be installed; {by_hand}.")
    raise InputError("The extension PyTorch is installed; save your data, restart Slicer and press Apply again.")


@contextmanager
def _numpy_kept() -> Iterator[Path]:
    """A constraints file for pip that allows no numpy but the one that is there."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "constraints.txt"
        file.write_text(f"numpy=={_installed_version('numpy')}\n", encoding="utf-8")
        yield file


def _attempt(problems: list[Problem], install: Callable[[], None]) -> None:
    try:
        install()
    except Exception as error:  # pip's exit status, no network, a file in use, a library that cannot be loaded
        if not missing(problem.needed for problem in problems):
            logging.warning("Installed, but not loaded by Slicer itself: %s", error)  # installTorch imports torch
            return  # the worker is another process; if it cannot load it either, it will say so
        raise InputError(
            f"{' and '.join(problem.needed for problem in problems)} could not be installed beside Slicer's numpy "
            f"{_installed_version('numpy')} ({error}); read the reason in the Python console, then "
            f"{' and '.join(problem.fix for problem in problems)}, or name another Python that has what is needed."
        ) from error


def instruction(python: str) -> str:
    """What to do where the Python that the user named lacks packages. Nothing is ever installed into it from here.

    python: as the user wrote it, a path or a command.
    """
    start = f'"{python}"' if " " in python and Path(python).exists() else python
    packages = " ".join(f'"{line}"' for line in needed_packages())
    return f"Run this in a terminal and press Apply again: {start} -m pip install {packages}"


@dataclass(frozen=True)
class Download:
    """Weights that are not on this machine.  size: bytes.  file: what they will be kept as."""

    title: str
    url: str
    size: int
    licence: str
    file: Path

    @property
    def question(self) -> str:
        address = urllib.parse.urlsplit(self.url)
        source = address.hostname + "/".join(address.path.split("/")[:3])  # github.com/owner/repository
        return (
            f"The weights of {self.title} are not on this computer: {self.size / 1e6:.0f} MB from {source}.\n\n"
            f"They are kept as {self.file}; to remove them, delete that file. Licence: {self.licence}.\n\n"
            "Download now?"
        )


def needed_download(model: str, weights_dir: str | None = None) -> Download | None:
    """What must be downloaded before `model` can be used; None if it needs no weights or they are there.

    model, weights_dir: as in `Settings`. Raises InputError for an unknown model.
    """
    card = catalog.find_card(model)
    if not card.url or catalog.find_weights(card, weights_dir):
        return None
    folder = Path(weights_dir).expanduser() if weights_dir else catalog.cache_folder()
    return Download(card.title, card.url, card.size, card.licence, folder / card.filename)
