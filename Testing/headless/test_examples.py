"""The examples in the library's docstrings run, and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import IconRegistrationLib

ROOT = Path(IconRegistrationLib.__file__).parent
#: Modules that cannot be imported outside Slicer's window, or that run when they are imported.
LEFT_OUT = {"ui", "__main__"}


def modules_with_examples():
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        if not LEFT_OUT & set(parts) and ">>> " in path.read_text(encoding="utf-8"):
            yield ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 0
    assert found.failed == 0
