"""The rules of IconRegistrationLib/__init__.py, enforced by reading every import; and CMake lists every file."""

import ast
import re
from pathlib import Path

import pytest

MODULE = Path(__file__).parents[2] / "IconRegistration"
LIBRARY = MODULE / "IconRegistrationLib"
QT = {"qt", "ctk", "PySide6", "PythonQt"}
SLICER = {"slicer", "vtk", "vtkmodules", "vtkAddon"}
HEAVY = {
    "torch",
    "itk",
    "matplotlib",
    "icon_registration",
    "unigradicon",
    "nibabel",
    "SimpleITK",
    "dask",
    "distributed",
}
#: From the ground up: a room imports itself and the rooms before it.
FLOORS = (
    "text",
    "errors",
    "plain",
    "machine",
    "spatial",
    "io",
    "networks",
    "registration",
    "quality",
    "workflow",
    "demo",
    "worker",
    "mrml",
    "batch",
    "ui",
)
#: Packages that a room must not import.
FORBIDDEN = dict.fromkeys(FLOORS, QT | SLICER) | {"mrml": QT, "batch": QT, "ui": set()}
#: What hangs on the running application, or on its scene.
GLOBALS = r"slicer\.(app|mrmlScene|modules|util)\b"
SOURCES = sorted(path for path in LIBRARY.rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    """IconRegistrationLib.spatial.field, of a file."""
    return ".".join(path.relative_to(MODULE).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, only_at_start: bool = False) -> set[str]:
    """Absolute names of what a file imports, also within functions; `only_at_start`: outside of them."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    names = set()
    pending = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            names.update(f"{base}.{alias.name}" for alias in node.names)
        elif only_at_start and (
            isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or is_type_checking(node)
        ):
            continue
        pending.extend(ast.iter_child_nodes(node))
    return names


def is_type_checking(node) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).removeprefix("typing.") == "TYPE_CHECKING"


def room_of(name: str) -> str | None:
    """The room of IconRegistrationLib in which an imported name lives."""
    parts = name.split(".")
    return parts[1] if parts[0] == "IconRegistrationLib" and len(parts) > 1 and parts[1] in FLOORS else None


def loaded_at_start(path: Path) -> set[Path]:
    """The file and every file of the library that importing it loads."""
    loaded, pending = set(), [path]
    while pending:
        path = pending.pop()
        if path in loaded:
            continue
        loaded.add(path)
        for name in imports(path, only_at_start=True):
            parts = name.split(".")
            if parts[0] != "IconRegistrationLib":
                continue
            for length in range(1, len(parts) + 1):  # importing a.b.c runs a and a.b first
                place = MODULE.joinpath(*parts[:length])
                pending += [file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()]
    return loaded


def names_of(path: Path) -> set[str]:
    """Dotted names as they are written, `slicer.app` among them: code, not comments or docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_rooms_import_what_they_may(path):
    room = path.relative_to(LIBRARY).with_suffix("").parts[0]
    if room == "__init__":
        assert not imports(path, only_at_start=True), "importing the library imports nothing"
        assert imports(path) == {"importlib.import_module"}, "its public names are loaded when they are asked for"
        return
    allowed = {None, *FLOORS[: FLOORS.index(room) + 1]}
    found = imports(path)
    assert not {name for name in found if name.split(".")[0] in FORBIDDEN[room]}
    assert not {name for name in found if room_of(name) not in allowed}


def test_no_circle_of_imports():
    """Files of the library, all imports counted, those within functions and under TYPE_CHECKING too."""
    files = {module_name(path): path for path in SOURCES}
    needs = {
        module: {longest(name, files) for name in imports(path)} - {None, module} for module, path in files.items()
    }
    while free := [module for module, needed in needs.items() if not needed & needs.keys()]:
        for module in free:
            del needs[module]
    assert not needs, "these import each other"


def longest(name: str, files) -> str | None:
    """The module of the library that an imported name is or lives in."""
    parts = name.split(".")
    return next((stem for n in range(len(parts), 1, -1) if (stem := ".".join(parts[:n])) in files), None)


@pytest.mark.parametrize("room", [room for room in FLOORS if room not in ("batch", "ui")])
def test_no_global_scene_below_ui(room):
    """embedded.py is the one place that knows where the scene comes from."""
    for path in (path for path in (LIBRARY / room).rglob("*.py") if path.name != "embedded.py"):
        assert not {name for name in names_of(path) if re.match(GLOBALS, name)}, path
        assert not {name for name in imports(path) if re.match(GLOBALS, name)}, path


def test_slicer_starts_without_heavy_packages():
    """What the module file and ui load when Slicer starts; packages/__init__ included."""
    start = [path for path in (MODULE / "IconRegistration.py", *(LIBRARY / "ui").rglob("*.py")) if path.is_file()]
    if not start:
        pytest.skip("neither IconRegistration.py nor ui is there yet")
    loaded = set().union(*(loaded_at_start(path) for path in start))
    found = {
        f"{path.relative_to(MODULE)}: {name}"
        for path in loaded
        for name in imports(path, only_at_start=True)
        if name.split(".")[0] in HEAVY
    }
    assert not found


def test_cmake_lists_every_file():
    """What CMake does not list is not packaged."""
    lists = MODULE / "CMakeLists.txt"
    if not lists.is_file():
        pytest.skip("IconRegistration/CMakeLists.txt is not there yet")
    text = re.sub(r"#.*", "", lists.read_text(encoding="utf-8"))
    listed = set()
    for variable in ("MODULE_PYTHON_SCRIPTS", "MODULE_PYTHON_RESOURCES"):
        block = re.search(rf"set\(\s*{variable}\b(.*?)\)", text, re.DOTALL)
        assert block, f"{variable} is not set"
        entries = block.group(1).replace("${MODULE_NAME}", "IconRegistration").split()
        listed.update(entry if Path(entry).suffix else f"{entry}.py" for entry in entries)
    endings = {".py", ".pyi", ".typed", ".json", ".trch", ".html", ".ui", ".png", ".svg"}
    there = {
        path.relative_to(MODULE).as_posix()
        for path in MODULE.rglob("*")
        if path.suffix in endings and not {"__pycache__", "Testing"} & set(path.relative_to(MODULE).parts)
    }
    assert there - listed == set(), "not packaged"
    assert {entry for entry in listed if not (MODULE / entry).is_file()} == set(), "listed but not there"


def test_the_rules_bite(tmp_path, monkeypatch):
    """The reader sees imports within functions and relative ones, and tells start from later."""
    library = tmp_path / "IconRegistrationLib"
    (library / "io").mkdir(parents=True)
    source = library / "io" / "a.py"
    source.write_text(
        "import torch\nfrom . import b\nfrom ..ui.c import d\n"
        "class A:\n    import itk\n"
        "def f():\n    import slicer.util\n    return slicer.mrmlScene\n"
    )
    (library / "io" / "b.py").write_text("import numpy\n")
    monkeypatch.setattr(f"{__name__}.MODULE", tmp_path)
    found = imports(source)
    assert found == {"torch", "itk", "slicer.util", "IconRegistrationLib.io.b", "IconRegistrationLib.ui.c.d"}
    assert imports(source, only_at_start=True) == found - {"slicer.util"}
    assert {room_of(name) for name in found} == {None, "io", "ui"}
    assert loaded_at_start(source) == {source, library / "io" / "b.py"}
    assert "slicer.mrmlScene" in names_of(source)


def test_no_file_is_longer_than_one_can_read():
    """500 lines in the library, 300 in the module file, 700 in a test."""
    limits = {MODULE / "IconRegistration.py": 300} | dict.fromkeys(SOURCES, 500)
    limits |= dict.fromkeys((MODULE.parent / "Testing").rglob("*.py"), 700)
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in limits}
    assert not {path.name: length for path, length in lengths.items() if length > limits[path]}
