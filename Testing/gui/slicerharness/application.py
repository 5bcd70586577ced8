"""slicer.app: the application object with the real scene, and its layout manager over real slice logics."""

from __future__ import annotations

import tempfile

import slicer
from PySide6 import QtCore, QtWidgets
from PySide6.QtCore import Property
from PySide6.QtCore import Signal as QtSignal


class ModuleManager(QtCore.QObject):
    moduleAboutToBeUnloaded = QtSignal(str)

    def module(self, name):
        return getattr(slicer.modules, name.lower(), None)


class SlicerApplication(QtWidgets.QApplication):
    """qSlicerApplication, without a main window. Settings and temporary files lie in a folder that goes at exit."""

    startupCompleted = QtSignal()
    applicationName = Property(str, lambda self: "Slicer")
    temporaryPath = Property(str, lambda self: self._h_folder.name)
    slicerHome = Property(str, lambda self: self._h_folder.name)
    slicerUserSettingsFilePath = Property(str, lambda self: self.userSettings().fileName())

    def __init__(self, application_logic):
        super().__init__(["Slicer"])
        self._h_folder = tempfile.TemporaryDirectory(prefix="slicer-harness-", ignore_cleanup_errors=True)
        self._h_logic = application_logic
        self._h_embedded = slicer.app  # it holds what VTK holds weakly
        self._h_modules = ModuleManager()
        self.setOrganizationName("harness")
        QtWidgets.QApplication.setApplicationName("Slicer")
        settings = QtCore.QSettings
        settings.setDefaultFormat(settings.IniFormat)
        settings.setPath(settings.IniFormat, settings.UserScope, self._h_folder.name)
        self._h_layout = LayoutManager(application_logic)

    def applicationLogic(self):
        return self._h_logic

    def mrmlScene(self):
        return self._h_logic.GetMRMLScene()

    def layoutManager(self):
        return self._h_layout

    def moduleManager(self):
        return self._h_modules

    def mainWindow(self):
        return None

    def userSettings(self):
        return QtCore.QSettings()

    def startupEnvironment(self):
        """In Slicer: the environment before its launcher changed it."""
        return QtCore.QProcessEnvironment.systemEnvironment()

    def testingEnabled(self):
        """False: code goes a user's way; what would pop up is recorded (see popups)."""
        return False

    def translate(self, _context, text):
        return text


class LayoutManager(QtCore.QObject):
    """qSlicerLayoutManager without widgets: Slicer's own layout logic makes the view nodes that a layout needs.

    They are singletons: `scene.Clear(False)` keeps them; what removes singletons breaks it.
    """

    layoutChanged = QtSignal(int)
    layout = Property(int, lambda self: self._h_node().GetViewArrangement(), lambda self, value: self.setLayout(value))
    threeDViewCount = Property(int, lambda self: len(self._h_three_d()))

    def __init__(self, application_logic):
        super().__init__()
        self._h_application = application_logic
        self._h_logic = slicer.vtkMRMLLayoutLogic()
        self._h_logic.SetMRMLApplicationLogic(application_logic)
        self._h_logic.SetMRMLScene(application_logic.GetMRMLScene())
        self._h_slices = {}
        self.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)

    def _h_node(self):
        return self._h_logic.GetLayoutNode()

    def setLayout(self, layout):
        self._h_node().SetViewArrangement(layout)
        views = self._h_logic.GetViewNodes()
        shown = [views.GetItemAsObject(i) for i in range(views.GetNumberOfItems())]
        for view in shown:
            if view.IsA("vtkMRMLSliceNode") and view.GetLayoutName() not in self._h_slices:
                self._h_slices[view.GetLayoutName()] = SliceWidget(view, self._h_application)
        for view in [*(widget.mrmlSliceNode() for widget in self._h_slices.values()), *self._h_three_d()]:
            view.SetMappedInLayout(view in shown)
        self.layoutChanged.emit(layout)

    def layoutLogic(self):
        return self._h_logic

    def sliceViewNames(self):
        return tuple(sorted(self._h_slices, reverse=True))  # Slicer's are in the order of a hash table

    def sliceWidget(self, name):
        return self._h_slices.get(name)

    def mrmlSliceLogics(self):
        return self._h_application.GetSliceLogics()

    def _h_three_d(self):
        views = self._h_application.GetMRMLScene().GetNodesByClass("vtkMRMLViewNode")
        views.UnRegister(None)
        return [views.GetItemAsObject(i) for i in range(views.GetNumberOfItems())]

    def threeDWidget(self, index):
        views = self._h_three_d()
        return ThreeDWidget(views[index]) if 0 <= index < len(views) else None

    def resetSliceViews(self):
        for widget in self._h_slices.values():
            widget.sliceLogic().FitSliceToBackground()

    def resetThreeDViews(self):
        pass


class SliceWidget:
    """One slice view: its real logic and nodes."""

    def __init__(self, node, application_logic):
        self._logic = slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLApplicationLogic(application_logic)
        self._logic.SetMRMLScene(node.GetScene())
        self._logic.SetSliceNode(node)
        application_logic.GetSliceLogics().AddItem(self._logic)

    def sliceLogic(self):
        return self._logic

    def mrmlSliceNode(self):
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self):
        return self._logic.GetSliceCompositeNode()


class ThreeDWidget:
    """One 3D view: its real node; what would move the camera or render does nothing."""

    def __init__(self, node):
        self._node = node

    def mrmlViewNode(self):
        return self._node

    def threeDView(self):
        return self

    def resetFocalPoint(self):
        pass

    def resetCamera(self):
        pass

    def scheduleRender(self):
        pass

    def forceRender(self):
        pass
