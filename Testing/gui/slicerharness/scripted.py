"""Scripted modules: what slicer.ScriptedLoadableModule offers, and the objects that Slicer builds around a module."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
import unittest
from pathlib import Path

import slicer
from PySide6 import QtCore, QtWidgets

from .widgets import qSlicerWidget


class ScriptedLoadableModule:
    def __init__(self, parent):
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title = parent.helpText = parent.acknowledgementText = ""
        parent.categories, parent.dependencies, parent.contributors = [], [], []
        parent.hidden = False

    def resourcePath(self, filename):
        return os.path.join(os.path.dirname(self.parent.path), "Resources", filename)

    def getDefaultModuleDocumentationLink(self, docPage=None):
        return ""


class ScriptedLoadableModuleWidget:
    def __init__(self, parent=None):
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent
        self.layout = parent.layout()
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def resourcePath(self, filename):
        return os.path.join(os.path.dirname(slicer.util.modulePath(self.moduleName)), "Resources", filename)

    def _onModuleAboutToBeUnloaded(self, moduleName):
        """Slicer unloads its modules when it ends."""
        if moduleName == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().disconnect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def setup(self):
        pass

    def cleanup(self):
        pass

    def enter(self):
        pass

    def exit(self):
        pass

    def onReload(self):
        slicer.util.reloadScriptedModule(self.moduleName)


class ScriptedLoadableModuleLogic:
    def __init__(self, parent=None):
        super().__init__()
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self):
        if self.isSingletonParameterNode:
            node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        else:
            nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
            node = next((node for node in nodes if node.GetAttribute("ModuleName") == self.moduleName), None)
        return node or self.createParameterNode()

    def createParameterNode(self):
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return slicer.mrmlScene.AddNode(node)


class ScriptedLoadableModuleTest(unittest.TestCase):
    def delayDisplay(self, message, requestedDelay=None, msec=None):
        slicer.app.processEvents()


class qSlicerScriptedLoadableModule:
    """slicer.modules.<name>: the object that a module class gets as its parent."""

    def __init__(self, path):
        self.path = str(path)
        self.name = Path(path).stem
        setattr(slicer.modules, self.name.lower(), self)
        folder = os.path.dirname(self.path)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        spec = importlib.util.spec_from_file_location(self.name, self.path)
        sys.modules[self.name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._widget = None
        self.instance = getattr(module, self.name)(self)

    def widgetRepresentation(self):
        """The module's page, made at the first call: Slicer does it when the module is first opened."""
        if self._widget is None:
            self._widget = qSlicerScriptedLoadableModuleWidget(self.name)
            self._widget.reload()
        return self._widget

    def close(self):
        """What Slicer does with the page when it ends."""
        if self._widget is not None:
            self._widget.exit()
            slicer.app.moduleManager().moduleAboutToBeUnloaded.emit(self.name)
            self._widget.deleteLater()
            self._widget = None
            delattr(slicer.modules, self.name + "Widget")


class qSlicerScriptedLoadableModuleWidget(qSlicerWidget):
    """A module's page: the parent of its Python widget."""

    def __init__(self, module_name):
        super().__init__()
        self._h_name, self._h_self, self._h_entered = module_name, None, False
        self.setLayout(QtWidgets.QVBoxLayout())
        self.setMRMLScene(slicer.mrmlScene)

    def reload(self):
        """A new Python widget of the module's present code, set up."""
        self._h_self = getattr(sys.modules[self._h_name], self._h_name + "Widget")(self)
        setattr(slicer.modules, self._h_name + "Widget", self._h_self)
        self._h_self.setup()

    def self(self):
        return self._h_self

    @property
    def isEntered(self):
        return self._h_entered

    def enter(self):
        self._h_entered = True
        self._h_self.enter()

    def exit(self):
        if self._h_entered:
            self._h_entered = False
            self._h_self.exit()


class SampleDataLogic:
    """Of Slicer's Sample Data module: the register of sources, in slicer.modules.sampleDataSources."""

    @staticmethod
    def registerCustomSampleDataSource(
        category="Custom",
        sampleName=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileTypes=None,
        loadFiles=None,
        loadFileProperties=None,
        checksums=None,
        loadFileType=None,
    ):
        if not len(uris) == len(fileNames) == len(nodeNames) == len(uris if checksums is None else checksums):
            raise ValueError("All fields of sample data source must have the same length")
        source = types.SimpleNamespace(**locals())
        slicer.modules.sampleDataSources.setdefault(category, []).append(source)


def translate(context, text):
    """Of slicer.i18n: by the translators that are installed in the application."""
    return QtCore.QCoreApplication.translate(context, text)


def submodules() -> dict[str, types.ModuleType]:
    """The Python modules that this page stands for, by name."""

    def module(name, **contents):
        made = types.ModuleType(name)
        made.__dict__.update(contents)
        return made

    classes = (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    )
    every = {cls.__name__: cls for cls in classes}
    return {
        "slicer.ScriptedLoadableModule": module("slicer.ScriptedLoadableModule", **every, __all__=list(every)),
        "slicer.i18n": module("slicer.i18n", tr=lambda text: translate("", text), translate=translate),
        "SampleData": module("SampleData", SampleDataLogic=SampleDataLogic),
    }
