"""Stand-ins for CTK's and Slicer's widgets, and a strict loader of .ui files.

A stand-in offers what PythonQt sees of the C++ class: properties (as attributes), slots, invokable methods, signals.
A plain C++ setter that is none of these (qMRMLNodeComboBox::setNoneEnabled) is missing here as it is in Slicer.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import slicer
import vtk
from PySide6 import QtCore, QtUiTools, QtWidgets
from PySide6.QtCore import Property, Qt
from PySide6.QtCore import Signal as QtSignal

from .pythonqt import Signal, connect, report

_UNBOUNDED = 16777215  # QWIDGETSIZE_MAX
_QT_TYPES = {bool: bool, int: int, float: float, str: str, list: "QStringList"}


def properties(_changed: str | None = None, **defaults) -> dict:
    """Qt properties with their defaults, for a class body: vars().update(properties(noneEnabled=False)).

    _changed: the method that is called after one was set.
    """

    def made(name, default):
        key, kind = "_h_" + name, type(default)

        def read(self):
            value = self.__dict__.get(key, default)
            return tuple(value) if kind is list else value  # as PythonQt returns a QStringList

        def write(self, value):
            self.__dict__[key] = kind(value)
            if _changed:
                getattr(self, _changed)()

        return Property(_QT_TYPES[kind], read, write)

    return {name: made(name, default) for name, default in defaults.items()}


def forwarded(kind, child: str, *names: str) -> dict:
    """Properties of a child widget that are the widget's own."""

    def made(name):
        return Property(
            kind,
            lambda self: getattr(getattr(self, child), name),
            lambda self, value: setattr(getattr(self, child), name, value),
        )

    return {name: made(name) for name in names}


def without_margins(box):
    box.setContentsMargins(0, 0, 0, 0)
    return box


# ------------------------------------------------------------------------------------------------ CTK


class ctkCollapsibleButton(QtWidgets.QAbstractButton):
    contentsCollapsed = QtSignal(bool)
    vars().update(properties(flat=False, collapsedHeight=12, contentsLineWidth=1, contentsMidLineWidth=0))

    def __init__(self, text="", parent=None):
        if isinstance(text, QtWidgets.QWidget):
            text, parent = "", text
        super().__init__(parent)
        self._h_collapsed = False
        self.text = text
        self.setCheckable(True)
        self.setChecked(True)
        self.setSizePolicy(QtWidgets.QSizePolicy.Minimum, QtWidgets.QSizePolicy.Preferred)
        self.setContentsMargins(2, self._h_header(), 2, 2)
        self.toggled.connect(lambda on: self.setCollapsed(not on))

    def _h_header(self):
        return self.fontMetrics().height() + 8

    def setCollapsed(self, on):
        on = bool(on)
        if on == self._h_collapsed:
            return
        self._h_collapsed = on
        self.setChecked(not on)
        self._h_show_contents()
        self.setMaximumHeight(self._h_header() if on else _UNBOUNDED)
        self.updateGeometry()
        self.contentsCollapsed.emit(on)

    def _h_show_contents(self):
        for child in self.children():
            if child.isWidgetType():
                child.setVisible(not self._h_collapsed)

    collapsed = Property(bool, lambda self: self._h_collapsed, setCollapsed)

    def paintEvent(self, _event):
        painter = QtWidgets.QStylePainter(self)
        header = QtCore.QRect(0, 0, self.width, self._h_header())
        painter.fillRect(header, self.palette.button().color().darker(106))
        option = QtWidgets.QStyleOption()
        option.initFrom(self)
        option.rect = QtCore.QRect(4, 0, 14, self._h_header())
        style = QtWidgets.QStyle
        arrow = style.PE_IndicatorArrowRight if self._h_collapsed else style.PE_IndicatorArrowDown
        painter.drawPrimitive(arrow, option)
        painter.drawText(header.adjusted(22, 0, 0, 0), Qt.AlignVCenter | Qt.AlignLeft, self.text)
        if not self._h_collapsed and not self.flat:
            painter.setPen(self.palette.mid().color())
            painter.drawRect(self.rect.adjusted(0, self._h_header() - 1, -1, -1))


class ctkSliderWidget(QtWidgets.QWidget):
    """A slider and a spin box that hold one number."""

    valueChanged = QtSignal(float)
    vars().update(properties(pageStep=1.0, tracking=True, tickInterval=0.0, spinBoxVisible=True, popupSlider=False))
    vars().update(forwarded(float, "_h_spin", "value", "minimum", "maximum", "singleStep"))
    vars().update(forwarded(int, "_h_spin", "decimals"))
    vars().update(forwarded(str, "_h_spin", "prefix", "suffix"))

    def __init__(self, parent=None):
        super().__init__(parent)
        self._h_spin = QtWidgets.QDoubleSpinBox(self)
        self._h_bar = QtWidgets.QSlider(Qt.Horizontal, self)
        self._h_bar.setRange(0, 1000)
        box = without_margins(QtWidgets.QHBoxLayout(self))
        box.addWidget(self._h_bar, 1)
        box.addWidget(self._h_spin)
        self._h_spin.valueChanged.connect(self._h_spun)
        self._h_bar.sliderMoved.connect(self._h_dragged)

    def _h_spun(self, value):
        span = self.maximum - self.minimum
        self._h_bar.setValue(round((value - self.minimum) / span * 1000) if span > 0 else 0)
        self.valueChanged.emit(value)

    def _h_dragged(self, position):
        self.value = self.minimum + position / 1000 * (self.maximum - self.minimum)

    def setValue(self, value):
        self.value = value

    def setRange(self, low, high):
        self._h_spin.setRange(low, high)

    def reset(self):
        self.value = 0.0


class ctkPathLineEdit(QtWidgets.QWidget):
    currentPathChanged, validInputChanged = QtSignal(str), QtSignal(bool)
    Dirs, Files, Drives, Readable, Writable, Executable = 0x1, 0x2, 0x4, 0x10, 0x20, 0x40
    vars().update(properties(label="", filters=0, settingKey="", nameFilters=[]))
    vars().update(properties(showBrowseButton=True, showHistoryButton=True))

    def __init__(self, parent=None):
        super().__init__(parent)
        self._h_edit, button = QtWidgets.QLineEdit(self), QtWidgets.QToolButton(self)
        button.text = "..."
        box = without_margins(QtWidgets.QHBoxLayout(self))
        box.addWidget(self._h_edit)
        box.addWidget(button)
        self._h_edit.textChanged.connect(self.currentPathChanged.emit)

    def setCurrentPath(self, path):
        self._h_edit.text = path

    currentPath = Property(str, lambda self: self._h_edit.text, setCurrentPath)

    def addCurrentPathToHistory(self):
        pass


# ------------------------------------------------------------------------------------------------ MRML


class qMRMLWidget(QtWidgets.QWidget):
    mrmlSceneChanged = Signal("mrmlSceneChanged(vtkMRMLScene*)")

    def setMRMLScene(self, scene):
        if scene is not self.mrmlScene():
            self.__dict__["_h_scene"] = scene
            self._h_scene_set()
            self.mrmlSceneChanged.emit(scene)

    def _h_scene_set(self):
        pass

    def mrmlScene(self):
        return self.__dict__.get("_h_scene")


class qSlicerWidget(qMRMLWidget):
    pass


class qMRMLNodeComboBox(qMRMLWidget):
    """A node selector on the real scene: it follows additions, removals, renames, import and close."""

    currentNodeChanged = Signal("currentNodeChanged(vtkMRMLNode*)", "currentNodeChanged(bool)")
    currentNodeIDChanged = Signal("currentNodeIDChanged(QString)")
    nodeActivated = Signal("nodeActivated(vtkMRMLNode*)")
    nodeAdded = Signal("nodeAdded(vtkMRMLNode*)")
    nodeAddedByUser = Signal("nodeAddedByUser(vtkMRMLNode*)")
    nodeAboutToBeRemoved = Signal("nodeAboutToBeRemoved(vtkMRMLNode*)")
    vars().update(properties("_h_refresh", nodeTypes=[], hideChildNodeTypes=[], showChildNodeTypes=True))
    vars().update(properties("_h_refresh", showHidden=False, noneEnabled=False, noneDisplay="None"))
    vars().update(properties("_h_refresh", addEnabled=True, removeEnabled=True, renameEnabled=False))
    vars().update(properties(baseName="", selectNodeUponCreation=True, editEnabled=False))

    def __init__(self, parent=None):
        super().__init__(parent)
        self._h_combo = QtWidgets.QComboBox(self)
        without_margins(QtWidgets.QHBoxLayout(self)).addWidget(self._h_combo)
        self._h_id, self._h_busy = "", False
        self._h_attributes, self._h_labels, self._h_tags, self._h_watched = [], {}, [], {}
        self.setSizePolicy(QtWidgets.QSizePolicy.Expanding, QtWidgets.QSizePolicy.Fixed)
        self.setEnabled(False)
        self._h_combo.activated.connect(self._h_picked)
        self.destroyed.connect(self._h_unobserve)

    def _h_unobserve(self):
        for source, tag in [*self._h_tags, *self._h_watched.values()]:
            source.RemoveObserver(tag)
        self._h_tags, self._h_watched = [], {}

    def _h_scene_set(self):
        self._h_unobserve()
        scene = self.mrmlScene()
        events = (
            slicer.vtkMRMLScene.NodeAddedEvent,
            slicer.vtkMRMLScene.NodeRemovedEvent,
            slicer.vtkMRMLScene.EndBatchProcessEvent,
        )
        self._h_tags = [(scene, scene.AddObserver(event, self._h_scene_event)) for event in events] if scene else []
        self.setEnabled(scene is not None)
        self._h_refresh()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _h_scene_event(self, scene, event, node=None):
        try:
            if not scene.IsBatchProcessing():
                self._h_refresh()
            if event == "NodeAddedEvent" and node is not None and self._h_shows(node):
                self.nodeAdded.emit(node)
        except Exception as error:
            report(error)

    def _h_shows(self, node) -> bool:
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        fits = node.IsA if self.showChildNodeTypes else node.GetClassName().__eq__
        if not any(map(fits, self.nodeTypes)) or any(map(node.IsA, self.hideChildNodeTypes)):
            return False
        wanted = [(key, value) for kind, key, value in self._h_attributes if node.IsA(kind)]
        return all(
            node.GetAttribute(key) is not None and value in (None, node.GetAttribute(key)) for key, value in wanted
        )

    def _h_nodes(self) -> list:
        scene = self.mrmlScene()
        every = [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())] if scene else []
        return [node for node in every if self._h_shows(node)]

    def _h_watch(self, nodes):
        """Follow the names of the nodes that are shown."""
        shown = {node.GetID(): node for node in nodes}
        for node_id in self._h_watched.keys() - shown.keys():
            source, tag = self._h_watched.pop(node_id)
            source.RemoveObserver(tag)
        for node_id in shown.keys() - self._h_watched.keys():
            tag = shown[node_id].AddObserver(vtk.vtkCommand.ModifiedEvent, self._h_renamed)
            self._h_watched[node_id] = shown[node_id], tag

    def _h_renamed(self, node, _event):
        index = self._h_combo.findData(node.GetID())
        if index >= 0 and self._h_combo.itemText(index) != node.GetName():
            self._h_combo.setItemText(index, node.GetName())

    def _h_refresh(self):
        if self._h_busy or "_h_watched" not in self.__dict__:
            return
        self._h_busy = True
        nodes = self._h_nodes()
        self._h_watch(nodes)
        wanted = self._h_id
        if self.mrmlScene() and wanted not in [node.GetID() for node in nodes]:
            # nothing is selected by itself, but Qt replaces a row that went away by its neighbour
            rows = [""] * self.noneEnabled + [node.GetID() for node in nodes]
            wanted = rows[min(max(self._h_combo.currentIndex, 0), len(rows) - 1)] if wanted and rows else ""
        self._h_combo.clear()
        if self.noneEnabled:
            self._h_combo.addItem(self.noneDisplay, "")
        for node in nodes:
            self._h_combo.addItem(node.GetName() or "", node.GetID())
        if self.addEnabled:
            for kind in self.nodeTypes:
                self._h_combo.addItem(f"Create new {self.nodeTypeLabel(kind)}", "ADD " + kind)
        if self.renameEnabled and wanted:
            self._h_combo.addItem("Rename current", "RENAME")
        if self.removeEnabled and wanted:
            self._h_combo.addItem("Delete current", "DELETE")
        self._h_combo.currentIndex = self._h_combo.findData(wanted)
        self._h_busy = False
        self._h_set_id(wanted)

    def _h_set_id(self, node_id):
        self._h_combo.currentIndex = self._h_combo.findData(node_id)
        if node_id != self._h_id:
            self._h_id = node_id
            self.currentNodeChanged.emit(self.currentNode())
            self.currentNodeIDChanged.emit(node_id)

    def _h_picked(self, index):
        data = self._h_combo.itemData(index)
        self._h_combo.currentIndex = self._h_combo.findData(self._h_id)
        if data.startswith("ADD "):
            self.addNode(data[4:])
        elif data == "DELETE":
            self.removeCurrentNode()
        elif data == "RENAME":
            self.renameCurrentNode()
        else:
            self._h_set_id(data)
            self.nodeActivated.emit(self.currentNode())

    def currentNode(self):
        return self.mrmlScene().GetNodeByID(self._h_id) if self._h_id and self.mrmlScene() else None

    def setCurrentNode(self, node):
        self.setCurrentNodeID(node if node is None or isinstance(node, str) else node.GetID())

    def setCurrentNodeID(self, node_id):
        node_id = node_id or ""
        if self.mrmlScene() is None:
            self._h_id = node_id
        else:
            self._h_refresh()  # an attribute may have been set since
            self._h_set_id(node_id if node_id in [node.GetID() for node in self._h_nodes()] else "")

    currentNodeID = Property(str, lambda self: self._h_id, setCurrentNodeID)

    def setCurrentNodeIndex(self, index):
        self.setCurrentNode(self.nodeFromIndex(index))

    def nodeCount(self):
        return len(self._h_nodes())

    def nodeFromIndex(self, index):
        nodes = self._h_nodes()
        return nodes[index] if 0 <= index < len(nodes) else None

    def addNode(self, node_type=None):
        node_type = node_type or next(iter(self.nodeTypes), None)
        if node_type not in self.nodeTypes:
            return None
        node = self.mrmlScene().CreateNodeByClass(node_type)
        node.UnRegister(None)
        node.SetName(self.mrmlScene().GenerateUniqueName(self.baseName or node.GetNodeTagName()))
        for kind, key, value in self._h_attributes:
            if node.IsA(kind):
                node.SetAttribute(key, value or "")
        node = self.mrmlScene().AddNode(node)
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self):
        if node := self.currentNode():
            self.nodeAboutToBeRemoved.emit(node)
            self.mrmlScene().RemoveNode(node)

    def renameCurrentNode(self):
        self.currentNode().SetName(QtWidgets.QInputDialog.getText(self, "Rename", "New name:"))

    def addAttribute(self, node_type, name, value=None):
        self._h_attributes.append((node_type, name, value))
        self._h_refresh()

    def removeAttribute(self, node_type, name):
        self._h_attributes = [entry for entry in self._h_attributes if entry[:2] != (node_type, name)]
        self._h_refresh()

    def setNodeTypeLabel(self, label, node_type):
        self._h_labels[node_type] = label
        self._h_refresh()

    def nodeTypeLabel(self, node_type):
        return self._h_labels.get(node_type) or node_type.replace("vtkMRML", "").replace("Node", "")


CTK = {name: cls for name, cls in list(globals().items()) if name.startswith("ctk")}
MRML = {name: cls for name, cls in list(globals().items()) if name.startswith(("qMRML", "qSlicer"))}


# ------------------------------------------------------------------------------------------------ .ui files


class QUiLoader(QtUiTools.QUiLoader):
    """Loads a .ui file strictly: an unknown class, property, signal, slot or object name raises.

    Slicer prints a warning for these, or nothing.
    """

    def __init__(self, parent=None):
        super().__init__(parent)
        for cls in (*CTK.values(), *MRML.values()):
            self.registerCustomWidget(cls)

    def load(self, device, parent=None):
        tree = ElementTree.fromstring(bytes(device.readAll().data()))
        connections = tree.find("connections")
        pending = []
        if connections is not None:  # a vtkMRMLScene* cannot cross PySide's meta-object: they are made below
            pending = [[made.findtext(key) for key in ("sender", "signal", "receiver", "slot")] for made in connections]
            tree.remove(connections)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(tree))
        buffer.open(QtCore.QIODevice.ReadOnly)
        root = super().load(buffer, parent)
        if root is None:
            raise RuntimeError(self.errorString())
        named = {widget.objectName: widget for widget in [root, *root.findChildren(QtCore.QObject)]}
        for entry in tree.iter("widget"):
            widget, kind = named.get(entry.get("name")), entry.get("class")
            if type(widget).__name__ != kind:
                raise RuntimeError(f".ui: {entry.get('name')}: the harness has no widget class {kind}")
            for prop in entry.findall("property"):
                if prop.get("stdset") != "0" and widget.metaObject().indexOfProperty(prop.get("name")) < 0:
                    raise RuntimeError(f".ui: {kind} {entry.get('name')} has no property {prop.get('name')}")
        for button in root.findChildren(ctkCollapsibleButton):
            button._h_show_contents()  # it was collapsed before it had any
        for sender, signal, receiver, slot in pending:
            connect(named[sender], signal, named[receiver], slot)
        return root
