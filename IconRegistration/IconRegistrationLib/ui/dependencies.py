"""Dependencies of registration besides Slicer: Python packages and weights, and their installation.

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
from typing import Any

from ..errors import InputError
from ..networks import catalog
from ..text import tr, translated
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
        """Return the requirement and the installed version."""
        if self.found:
            return tr("{needed} ({found} is installed)", needed=self.needed, found=self.found)
        return tr("{needed} (not installed)", needed=self.needed)


def needed_packages() -> list[str]:
    """Return torch and the lines of requirements.txt, without its comments."""
    lines = (line.partition("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    return [TORCH, *filter(None, lines)]


def missing(requirements: Iterable[str]) -> list[Problem]:
    """Return what this Python lacks of `requirements`, in their order; judged by the packages' metadata alone."""
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
        return importlib.metadata.version(name) or None  # remains of a removed package have no version
    except importlib.metadata.PackageNotFoundError:
        return None


def _fix_by_hand(requirement) -> str:
    if requirement.name == "torch":
        return tr(
            "in the module PyTorch Utils uninstall an older PyTorch and install {version}",
            version=str(requirement.specifier),
        )
    return tr('run slicer.util.pip_install("{requirement}") in the Python console', requirement=str(requirement))


class SlicerInstaller:
    """How packages get into Slicer's own Python: by the means that Slicer documents. Main thread only.

    Another object with these methods can take its place. They raise what pip and the extensions raise.
    """

    def has_torch_extension(self) -> bool:
        """Return whether the PyTorch extension is installed."""
        return importlib.util.find_spec("PyTorchUtils") is not None

    def install_torch_extension(self) -> bool:
        """Install it and return whether it is installed; it can be used after a restart of Slicer."""
        import slicer

        with slicer.util.WaitCursor():
            return slicer.app.extensionsManagerModel().installExtensionFromServer("PyTorch", False)

    def install_torch(self, requirement: str, constraints: Path) -> None:
        """Install torch by the extension. constraints: a file for pip."""
        import PyTorchUtils
        import slicer

        with slicer.util.WaitCursor(), _pip_constrained_by(constraints):  # installTorch takes no constraints
            PyTorchUtils.PyTorchUtilsLogic().installTorch(
                askConfirmation=False,  # the user has been asked, and has been told more
                torchVersionRequirement=requirement.removeprefix("torch"),
            )

    def install_packages(self, requirements: list[str], constraints: Path) -> None:
        """Install packages with pip. constraints: a file for pip."""
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
    """Constrain every pip that is started meanwhile. pip splits the variable at spaces, hence the URL."""
    before = os.environ.get("PIP_CONSTRAINT")
    os.environ["PIP_CONSTRAINT"] = f"{before or ''} {constraints.as_uri()}".strip()
    try:
        yield
    finally:
        if before is None:
            del os.environ["PIP_CONSTRAINT"]
        else:
            os.environ["PIP_CONSTRAINT"] = before


def ensure_packages(ask: Callable[[str], bool], say: Callable[[str], None], installer: Any = None) -> None:
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
            tr(
                "Registration needs {packages}; press Apply again to install, or name another "
                "Python that has what is needed.",
                packages=_listed(problems),
            )
        )
    with _numpy_kept() as constraints:
        if torch:
            say(tr("Installing PyTorch: this may take some minutes..."))
            _attempt([torch], lambda: installer.install_torch(torch.needed, constraints))
        if others:
            say(tr("Installing {packages}...", packages=", ".join(problem.name for problem in others)))
            _attempt(others, lambda: installer.install_packages([problem.needed for problem in others], constraints))
    left = missing(needed_packages())
    if left:
        raise InputError(
            tr("After the installation there is still no {packages}; {fix}.", packages=_listed(left), fix=left[0].fix)
        )


def question(problems: list[Problem]) -> str:
    """Return the question before an installation: packages, source, replaced and unchanged packages."""
    sources = []
    if any(problem.name == "torch" for problem in problems):
        sources.append(tr("PyTorch in the build that fits this computer (0.2 to 3 GB), by the PyTorch extension"))
    names = [problem.name for problem in problems if problem.name != "torch"]
    if names:
        sources.append(tr("{packages} from pypi.org", packages=", ".join(names)))
    old = ", ".join(f"{problem.name} {problem.found}" for problem in problems if problem.found)
    return "\n\n".join(
        filter(
            None,
            [
                tr(
                    "Registration needs packages that Slicer's Python does not have: {packages}.",
                    packages=_listed(problems),
                ),
                tr("To be installed: {sources}. This may take some minutes.", sources="; ".join(sources)),
                tr("Replaced, also for other extensions: {packages}.", packages=old) if old else "",
                tr("Slicer's numpy {version} is kept. Install now?", version=_installed_version("numpy")),
            ],
        )
    )


def _listed(problems: list[Problem]) -> str:
    return _joined(map(str, problems))


def _joined(words: Iterable[str]) -> str:
    """Join with "and", in the language of the window."""
    first, *others = words
    for word in others:
        first = tr("{first} and {second}", first=first, second=word)
    return first


def _install_torch_extension(ask, say, installer) -> None:
    """Install the extension; raise InputError in every case, for it can be used after Slicer has been restarted."""
    by_hand = tr("open the Extensions Manager, install PyTorch, restart Slicer and press Apply again")
    if not ask(
        tr(
            "torch is installed by Slicer's PyTorch extension, which is not installed. Install the extension from the "
            "Extensions Manager now? Slicer must be restarted afterwards."
        )
    ):
        raise InputError(
            tr("torch is installed by the extension PyTorch, which Slicer does not have; {by_hand}.", by_hand=by_hand)
        )
    say(tr("Installing the PyTorch extension..."))
    try:
        installed = installer.install_torch_extension()
    except Exception as error:  # a Slicer without an extensions manager, an unreachable server
        raise InputError(
            tr("The extension PyTorch could not be installed ({error}); {by_hand}.", error=error, by_hand=by_hand)
        ) from error
    if not installed:
        raise InputError(tr("The extension PyTorch could not be installed; {by_hand}.", by_hand=by_hand))
    raise InputError(tr("The extension PyTorch is installed; save your data, restart Slicer and press Apply again."))


@contextmanager
def _numpy_kept() -> Iterator[Path]:
    """Make a constraints file for pip that allows no numpy but the installed one."""
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
            tr(
                "{packages} could not be installed beside Slicer's numpy "
                "{version} ({error}); read the reason in the Python console, then "
                "{fixes}, or name another Python that has what is needed.",
                packages=_joined(problem.needed for problem in problems),
                version=_installed_version("numpy"),
                error=error,
                fixes=_joined(problem.fix for problem in problems),
            )
        ) from error


def instruction(python: str) -> str:
    """Return the remedy if the Python chosen by the user lacks packages. The extension never installs into it.

    python: as the user wrote it, a path or a command.
    """
    start = f'"{python}"' if " " in python and Path(python).exists() else python
    packages = " ".join(f'"{line}"' for line in needed_packages())
    command = f"{start} -m pip install {packages}"
    return tr("Run this in a terminal and press Apply again: {command}", command=command)


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
        """Question to the user before the download."""
        address = urllib.parse.urlsplit(self.url)
        source = str(address.hostname) + "/".join(address.path.split("/")[:3])  # github.com/owner/repository
        return tr(
            "The weights of {model} are not on this computer: {size:.0f} MB from {source}.\n\n"
            "They are kept as {file}; to remove them, delete that file. Licence: {licence}.\n\n"
            "Download now?",
            model=translated(self.title),
            size=self.size / 1e6,
            source=source,
            file=self.file,
            licence=translated(self.licence),
        )


def needed_download(model: str, weights_dir: str | None = None) -> Download | None:
    """Return what must be downloaded before `model` can be used; None if it needs no weights or they exist.

    model, weights_dir: as in `Settings`. Raises InputError for an unknown model.
    """
    card = catalog.find_card(model, weights_dir)
    if not card.url or catalog.find_weights(card, weights_dir):
        return None
    folder = Path(weights_dir).expanduser() if weights_dir else catalog.cache_folder()
    return Download(card.title, card.url, card.size, card.licence, folder / card.filename)
