"""Run one of the project's commands: `python Testing/run.py VERB`.

    demo            register a phantom; the results are in demo/
    test            check style and types, then run all tests, two at a time
    test --fast     check the style, then run the tests that are not marked slow or nightly
    docs            build the documentation's site in build/docs

Further arguments of `demo` go to the command, those of `test` to pytest, those of `docs` to Sphinx. Each verb makes
its own virtual environment in the checkout, installs the versions that CI tests (Testing/constraints.txt) and runs. It
needs Python 3.10 or later and the package registry, nothing else.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "Testing" / "constraints.txt"
#: Of pytest-xdist. Neighbours stay in one process as long as both have work, for they share fixtures.
TWO_AT_A_TIME = ["-n", "2", "--dist", "worksteal"]


def environment(name, *requirements, without_dependencies=()):
    """Return the interpreter of a virtual environment that holds this project and `requirements`."""
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
    """Run the verb that `arguments` begin with; return its exit code."""
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
        checks = [["ruff", "check", "."], ["ruff", "format", "--check", "."]]
        if "--fast" in rest:
            rest.remove("--fast")
            rest = ["-m", "not slow and not nightly", *rest]
        elif sys.version_info >= (3, 11):  # numpy's last release for 3.10 has other type hints
            checks.append(["mypy"])
        for check in checks:
            subprocess.check_call([python, "-m", *check], cwd=ROOT)
        return subprocess.call([python, "-m", "pytest", *TWO_AT_A_TIME, *rest], cwd=ROOT)
    if verb == "docs":
        # sphinx imports every module of the library, scenes and cohorts too
        python = environment(".venv-docs", "--editable", ".[scene,cohort,docs]")
        sphinx = [python, "-m", "sphinx", "-W", "--keep-going", "-b", "html"]
        return subprocess.call([*sphinx, *rest, "docs", "build/docs"], cwd=ROOT)
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
