"""In a language of other letters no English is left in the panel: what has ASCII letters was not translated."""

import ast
import re
from pathlib import Path

import pytest
import slicer
from panel import ROLES, Panel
from PySide6 import QtCore, QtWidgets
from reviewed import results
from slicerharness import settle

from IconRegistrationLib import text
from IconRegistrationLib.mrml.registration import nodes_from_results
from IconRegistrationLib.mrml.scene import nodes_of_class
from IconRegistrationLib.networks.catalog import known_cards
from IconRegistrationLib.ui.tick_list import segment_names

#: Units, modalities, names of programs, and the entry of Slicer's own selectors.
EXEMPT = {"CT", "MR", "MRI", "mm", "mm3", "px", "CSV", "None", "Python", "float32", "torch", "CPU", "x86_64"}
LIBRARY = Path(text.__file__).parent


def in_other_letters(template: str) -> str:
    """Fullwidth letters for all that are not part of a placeholder."""
    pieces = re.split(r"(\{[^{}]*\})", template)
    return "".join(p if p.startswith("{") else re.sub("[A-Za-z]", lambda m: chr(ord(m[0]) + 0xFEE0), p) for p in pieces)


class OtherLetters(QtCore.QTranslator):
    """The language, for texts of the .ui file and all that slicer.i18n is asked."""

    def translate(self, context, source, disambiguation=None, n=-1):
        return in_other_letters(source)

    def isEmpty(self):
        return False


@pytest.fixture
def language():
    """The language in which the panel is opened."""
    results()  # in English, for this and for other tests
    translator = OtherLetters()
    QtCore.QCoreApplication.installTranslator(translator)
    yield
    QtCore.QCoreApplication.removeTranslator(translator)
    text.set_translator(None)


@pytest.fixture
def panel(language, scene, monkeypatch, tmp_path):
    opened = Panel(monkeypatch, tmp_path)
    yield opened
    opened.close()


def texts_of(widget) -> list[str]:
    """Everything that a widget lets a user read."""
    found = [widget.toolTip, widget.whatsThis, widget.statusTip]
    names = ("text", "title", "placeholderText", "suffix", "prefix", "specialValueText", "noneDisplay")
    found += [value for name in names if isinstance(value := getattr(widget, name, None), str)]
    if isinstance(widget, QtWidgets.QComboBox):
        for index in range(widget.count):
            found += [widget.itemText(index), widget.itemData(index, QtCore.Qt.ToolTipRole)]
    if isinstance(widget, QtWidgets.QTableWidget):
        found += [widget.horizontalHeaderItem(column).text() for column in range(widget.columnCount)]
        cells = [widget.item(row, column) for row in range(widget.rowCount) for column in range(widget.columnCount)]
        found += [part for cell in cells for part in (cell.text(), cell.toolTip())]
    return [entry for entry in found if entry]


def names_of_data() -> list[str]:
    """Names of nodes, segments and points, and texts of model cards, the longest first: they are not translated."""
    names = {node.GetName() for node in nodes_of_class(slicer.mrmlScene, "vtkMRMLNode")}
    for node in nodes_of_class(slicer.mrmlScene, "vtkMRMLSegmentationNode"):
        names |= set(segment_names(node).values())
    for node in nodes_of_class(slicer.mrmlScene, "vtkMRMLMarkupsNode"):
        names |= {node.GetNthControlPointLabel(n) for n in range(node.GetNumberOfControlPoints())}
    for card in known_cards().values():
        names |= {
            card.title,
            card.preset,
            card.description,
            card.preprocessing,
            card.limits,
            card.licence,
            card.citation,
        }
    return sorted(filter(None, names), key=len, reverse=True)


def english_in(*sentences: str) -> list[str]:
    """Those in which words are left that are neither names of data nor units, paths or addresses."""
    names, left = names_of_data(), []
    for sentence in sentences:
        rest = sentence
        for name in names:
            rest = rest.replace(name, "")
        rest = re.sub(r"\S*[/\\]\S*|\S+\.\w+", "", rest)
        words = set(re.findall(r"[A-Za-z][A-Za-z0-9_]+", rest)) - EXEMPT
        if words:
            left.append(f"{sorted(words)} in {sentence!r}")
    return left


def english_of(panel) -> list[str]:
    """What is English in the panel as it is now."""
    settle()
    widgets = [panel.page, *panel.page.findChildren(QtWidgets.QWidget)]
    return english_in(*dict.fromkeys(entry for widget in widgets for entry in texts_of(widget)))


def test_the_language_is_spoken(panel):
    assert panel.ui.applyButton.text == in_other_letters("Apply") != "Apply"
    assert panel.ui.reviewSection.text == in_other_letters("Review")
    assert panel.ui.alignmentComboBox.itemText(0) == in_other_letters("Automatic")
    assert english_in("Choose a volume.") != []


def test_no_english_in_the_empty_panel(panel):
    assert english_of(panel) == []


def test_no_english_with_inputs_and_what_is_wrong_with_them(panel):
    nodes = panel.choose_phantom()
    assert english_of(panel) == []
    panel.parameters.spacing = 0.5
    assert english_of(panel) == []
    nodes["movingVolume"].GetImageData().GetPointData().GetScalars().Fill(0)
    nodes["movingVolume"].GetImageData().Modified()
    assert english_of(panel) == []
    panel.choose(movingVolume=None)
    assert english_of(panel) == []
    panel.choose(movingVolume=nodes["fixedVolume"])
    assert english_of(panel) == []


def test_no_english_while_it_runs_and_when_it_ends(panel):
    panel.choose_phantom(*ROLES[:2])
    panel.apply()
    assert english_of(panel) == []
    panel.worker.ready()
    panel.worker.progress(text.tr("refinement"), 0.4)
    assert english_of(panel) == []
    panel.worker.note(text.tr("The GPU ran out of memory; trying again on the CPU."))
    assert english_of(panel) == []
    panel.ui.applyButton.click()
    panel.worker.fail("cancelled", text.tr("Cancelled; nothing was changed."))
    assert english_of(panel) == []
    panel.apply()
    panel.worker.finish()
    assert english_of(panel) == []
    panel.apply()
    panel.scene.Clear(False)
    assert english_of(panel) == []


def test_no_english_in_review_and_trust_card(panel):
    panel.choose_phantom()
    panel.parameters.result = nodes_from_results(results(), panel.request()).forward
    assert panel.ui.trustTable.rowCount > 10
    assert english_of(panel) == []
    panel.ui.exportTableButton.click()
    assert english_of(panel) == []
    panel.ui.hardenButton.enabled = True
    panel.ui.hardenButton.click()
    assert english_of(panel) == []


@pytest.mark.parametrize("room", ["mrml", "ui"])
def test_what_is_raised_passes_through_translation(room):
    """A text that is written where it is raised, or put together there, reaches no translator."""
    raised = []
    for path in (LIBRARY / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("InputError", "OSError", "DeviceMemoryError"):
                raised += [(path.name, node.lineno, argument) for argument in node.args]
    assert len(raised) > 5
    assert not [
        (name, line) for name, line, what in raised if isinstance(what, (ast.JoinedStr, ast.Constant, ast.BinOp))
    ]
