"""The README's two commands: `python Testing/run.py demo` and `python Testing/run.py test`.

Each makes its own virtual environment beside the checkout's files, installs the versions that CI tests
(Testing/constraints.txt) and runs. Needs Python 3.10 or later and the package registry, nothing else.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "Testing" / "constraints.txt"


def environment(name, *requirements, without_dependencies=()):
    """The interpreter of a virtual environment that holds this project and `requirements`."""
    folder = ROOT / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", CONSTRAINTS]
    subprocess.check_call([*pip, *requirements], cwd=ROOT)
    if without_dependencies:
        subprocess.check_call([*pip, "--no-deps", *without_dependencies], cwd=ROOT)
    return python


def main(arguments):
    verb, *rest = arguments or ["help"]
    if verb == "demo":
        python = environment(".venv", ".[scene]")
        return subprocess.call([python, "-m", "IconRegistrationLib.batch.command", "demo", *rest], cwd=ROOT)
    if verb == "test":
        # the published packages are references only; with their dependencies they would pull in torchvision
        python = environment(
            ".venv-test",
            "--editable",
            ".[scene,test]",
            without_dependencies=["icon_registration>=1.1.9", "unigradicon>=1.0.6", "footsteps"],
        )
        for check in (["ruff", "check", "."], ["ruff", "format", "--check", "."]):
            subprocess.check_call([python, "-m", *check], cwd=ROOT)
        return subprocess.call([python, "-m", "pytest", *rest], cwd=ROOT)
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
