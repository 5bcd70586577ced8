"""What README and docs say of files, controls, messages and modules is so."""

import ast
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

import IconRegistrationLib
from IconRegistrationLib import __version__

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "IconRegistration"
LIBRARY = MODULE / "IconRegistrationLib"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PANEL, ARCHITECTURE = ROOT / "docs" / "panel.md", ROOT / "docs" / "architecture.md"
#: What stands for names and numbers in a quoted message.
ANYTHING = "…"


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)) if "://" not in link]
    for link in links:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_import_what_there_is(page):
    for block in re.findall(r"^```python\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "IconRegistrationLib":
                assert {alias.name for alias in node.names} <= set(IconRegistrationLib.__all__)
            elif isinstance(node, ast.ImportFrom) and node.module.startswith("IconRegistrationLib"):
                file = MODULE.joinpath(*node.module.split(".")).with_suffix(".py")
                there = {name for each in ast.walk(ast.parse(text_of(file))) for name in _bound(each)}
                assert {alias.name for alias in node.names} <= there


def test_readme_s_python_runs(phantom_files, tmp_path, monkeypatch):
    """Every block that needs neither Slicer nor its scene, on small files of the names that it uses."""
    pytest.importorskip("nibabel")
    for name, source in (
        ("fixed.nii.gz", "fixed.nii.gz"),
        ("moving.nii.gz", "moving.nii.gz"),
        ("organs.seg.nrrd", "moving.seg.nrrd"),
    ):
        shutil.copyfile(phantom_files / source, tmp_path / name)
    organs = IconRegistrationLib.read_segmentation(tmp_path / "organs.seg.nrrd")
    IconRegistrationLib.write_image(
        IconRegistrationLib.Image(organs.layers[0], organs.grid), tmp_path / "labels.nii.gz"
    )
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", text_of(ROOT / "README.md"), re.MULTILINE | re.DOTALL)
    run = [block for block in blocks if "slicer." not in block]
    assert len(run) == 2
    for block in run:
        exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "result" / "transform.h5").is_file()


def _bound(node) -> set[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return {node.name}
    return {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else set()


def test_the_citation_and_the_changelog_name_this_version():
    assert f"\nversion: {__version__}\n" in text_of(ROOT / "CITATION.cff")
    assert f"\n## [{__version__}] - " in text_of(ROOT / "CHANGELOG.md")


def test_every_control_of_the_panel_is_described():
    form = ElementTree.parse(MODULE / "Resources" / "UI" / "IconRegistration.ui")
    texts = {
        node.findtext("string")
        for widget in form.iter("widget")
        for node in widget.findall("property")
        if node.get("name") in ("text", "title")
    }
    texts -= {None, "", "Fixed", "Moving", "Inputs", "Model and effort", "Used to", "Advanced", "Outputs", "Review"}
    texts -= {"Images", "Deformation and trust"}
    assert len(texts) > 30
    description = text_of(PANEL)
    assert not {text for text in texts if text not in description}


def literals() -> list[str]:
    """Every text in the code, with ANYTHING in place of what is put into it."""
    found = []
    for path in [MODULE / "IconRegistration.py", *LIBRARY.rglob("*.py")]:
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else ANYTHING for p in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"\{\w+(![rs])?(:[^{}]*)?\}", ANYTHING, node.value))  # the placeholders of `tr`
    return found


def test_every_message_of_the_table_is_in_the_code():
    quoted = re.findall(r"^\| `(.+?)` \|", text_of(PANEL), re.MULTILINE)
    assert len(quoted) > 30
    code = [_squeezed(text) for text in literals()]
    assert not [message for message in quoted if not any(_squeezed(message) in text for text in code)]


def _squeezed(text: str) -> str:
    return re.sub(rf"(\W*{ANYTHING}\W*)+", ANYTHING, text).strip(ANYTHING)


def test_every_module_has_its_place_in_the_architecture():
    """Each room is a section whose table names exactly the files that are there."""
    _, *sections = re.split(r"^### ", text_of(ARCHITECTURE).partition("## Who may import")[0], flags=re.MULTILINE)
    described = {}
    for section in sections:
        room = re.match(r"`(\w+)/`", section)
        described[room[1] if room else "."] = set(re.findall(r"^\| `([\w/]+\.py)` \|", section, re.MULTILINE))
    files = {path.relative_to(LIBRARY) for path in LIBRARY.rglob("*.py") if path.name != "__init__.py"}
    rooms = {path.parts[0] if len(path.parts) > 1 else "." for path in files}
    assert described == {
        room: {path.relative_to(room).as_posix() for path in files if path.parent == Path(room) or room in path.parts}
        for room in rooms
    }


def test_the_page_of_the_library_lists_every_room():
    page = text_of(ARCHITECTURE.parent / "api.md")
    rooms = {path.stem for path in LIBRARY.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert set(re.findall(r"^ +IconRegistrationLib\.(\w+)$", page, re.MULTILINE)) == rooms - {"__init__", "ui"}
    assert "`ui` is omitted" in page
