"""The trust card: verdicts and numbers of a report in a table, and their export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import qt
import slicer

from ..mrml import review as scene_review
from ..mrml.scene import place_beside
from ..quality.report import Report
from ..quality.verdicts import level_in_words
from ..text import tr
from .panel import Panel
from .status import LEVEL_COLORS

#: Where a result remembers the table node of its trust card.
TABLE_REFERENCE = "IconRegistration.table"


@dataclass(frozen=True)
class TrustRow:
    """A line of the trust card: measure, before, after, verdict; the level of the verdict, "" for none."""

    cells: tuple[str, str, str, str]
    level: str = ""
    meaning: str = ""


def trust_card(report: Report | None) -> list[TrustRow]:
    """Return the lines for a report: verdicts first, then every number."""
    if report is None:
        return []
    verdicts = [
        TrustRow((v.measure, _number(v.before), _number(v.value), level_in_words(v.level)), v.level, v.meaning)
        for v in report.verdicts
    ]
    numbers = []
    for row in report.rows():
        unit = f" [{row.unit}]" if row.unit else ""
        name = f"{row.name}: {row.measure}" if row.name else row.measure
        numbers.append(TrustRow((name + unit, _number(row.before), _number(row.after), "")))
    return verdicts + numbers


def _number(value: float | None) -> str:
    return scene_review.number_text(value, digits=4)


class TrustCard:
    """The table of the result under review, and the buttons below it."""

    def __init__(self, panel: Panel):
        self._panel = panel
        self._shown: Report | None = None
        table = panel.ui.trustTable
        table.setColumnCount(4)
        table.setHorizontalHeaderLabels([tr("Measure"), tr("Before"), tr("After"), tr("Verdict")])
        table.setMinimumHeight(240)
        rows = table.verticalHeader()
        rows.setVisible(False)
        rows.defaultSectionSize = rows.minimumSectionSize
        table.horizontalHeader().setSectionResizeMode(0, qt.QHeaderView.Stretch)
        panel.ui.exportCsvButton.connect("clicked()", self.export_csv)
        panel.ui.exportTableButton.connect("clicked()", self.export_table)

    def refresh(self) -> None:
        """Show the report of the result under review."""
        report = self._panel.review.report
        if report is self._shown:
            return
        self._shown = report
        table = self._panel.ui.trustTable
        rows = trust_card(report)
        table.setRowCount(len(rows))
        for number, row in enumerate(rows):
            for column, text in enumerate(row.cells):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(row.meaning)
                if row.level and column == 3:
                    item.setBackground(qt.QBrush(qt.QColor(LEVEL_COLORS[row.level])))
                    item.setForeground(qt.QBrush(qt.QColor("black")))
                table.setItem(number, column, item)
        for column in (1, 2, 3):
            table.resizeColumnToContents(column)

    def export_csv(self) -> None:
        """Save the report to a CSV file that the user names."""
        panel = self._panel
        with panel.status.reporting():
            name = f"{panel.review.forward.GetName()}, quality.csv"
            title = tr("Save the trust card")
            path = qt.QFileDialog.getSaveFileName(slicer.util.mainWindow(), title, name, "CSV (*.csv)")
            if path:
                panel.review.nodes.report.write_csv(path)
                panel.status.show(tr("Saved: {path}", path=path), "green")

    def export_table(self) -> None:
        """Put the report into a table node beside the result; a second time into the same one."""
        panel = self._panel
        with panel.status.reporting():
            forward = panel.review.forward
            node: Any = forward.GetNodeReference(TABLE_REFERENCE)
            name = f"Quality of {forward.GetName()}"
            table = scene_review.report_table(panel.scene, panel.review.report, name, node)
            if node is None:
                forward.SetNodeReferenceID(TABLE_REFERENCE, table.GetID())
                place_beside(panel.scene, table, forward)
            panel.status.show(tr("The table {name} is in the scene.", name=table.GetName()), "green")
