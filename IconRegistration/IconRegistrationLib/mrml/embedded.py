"""The one place that knows where the scene comes from: desktop Slicer's own, or slicer-core's booted here.

slicer-core is Slicer's real MRML as a wheel: nodes, logics, displayable managers, no Qt, no application. `boot` gives
it the application logic and the module logics that nodes and files need, and fills in `slicer.mrmlScene` and the few
attributes of `slicer.app` that `slicer.util` asks for, so that the same script runs in both.
"""

from __future__ import annotations

import atexit
import sys
import tempfile
import types
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..text import tr

#: Module logics by the name of their module. They register node classes: without them a scene file loses its nodes.
_LOGICS = {
    "Colors": "vtkMRMLColorLogic",
    "Units": "vtkSlicerUnitsLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Models": "vtkSlicerModelsLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Texts": "vtkSlicerTextsLogic",
    "Sequences": "vtkSlicerSequencesLogic",
}


def boot() -> Any:
    """Return the MRML scene: `slicer.mrmlScene` in desktop Slicer, else slicer-core's, booted by the first call (3 s).

    Raises InputError if neither is there.
    """
    slicer = _slicer()
    if getattr(slicer, "mrmlScene", None) is None:
        _present(slicer, _own_mrml(slicer))
    return slicer.mrmlScene


def private_scene() -> Any:
    """Return a private scene for writing files: never desktop Slicer's, which belongs to the user.

    In desktop Slicer it is assembled beside that one by the first call; elsewhere it is the one of `boot`, and raises
    what that raises.
    """
    boot()
    return _own_mrml(_slicer()).scene


def application_logic(scene: Any = None) -> Any:
    """Return the vtkMRMLApplicationLogic of `scene`, by default of that of `boot`; views are built on it."""
    boot()
    slicer = _slicer()
    if _own is not None and scene is _own.scene:
        return _own.application
    return slicer.app.applicationLogic()


def _slicer():
    """Return the package `slicer`, if it is the one with MRML in it."""
    try:
        import slicer
    except ImportError:
        slicer = None
    if not hasattr(slicer, "vtkMRMLScene"):  # SHAP brings another package of the name `slicer`
        raise InputError(tr('MRML scenes need slicer-core; run pip install "slicer-icon-registration[scene]".'))
    return slicer


@dataclass(frozen=True)
class _Mrml:
    """A scene, and what has to live as long as it does. keep: VTK holds it weakly."""

    scene: object
    application: object
    modules: types.ModuleType
    folder: str
    keep: tuple


_own: _Mrml | None = None


def _own_mrml(slicer) -> _Mrml:
    """Return the one that this process assembled, at the first call."""
    global _own
    if _own is None:
        _own = _assembled(slicer)
    return _own


def _present(slicer, mrml: _Mrml) -> None:
    """Provide what scripts for desktop Slicer ask for by these names."""
    sys.modules["slicer.modules"] = slicer.modules = mrml.modules
    slicer.app = types.SimpleNamespace(
        applicationLogic=lambda: mrml.application,
        mrmlScene=lambda: mrml.scene,
        temporaryPath=mrml.folder,
        applicationName="slicer-core",
        processEvents=lambda: None,
    )
    slicer.mrmlScene = mrml.scene


def _assembled(slicer) -> _Mrml:
    missing = [name for name in _LOGICS.values() if not hasattr(slicer, name)]
    if missing:  # PythonSlicer has Slicer's package, but not its modules
        raise InputError(
            tr("This interpreter has MRML without {missing}; run the command in Slicer itself.", missing=missing[0])
        )
    import vtk

    folder = tempfile.TemporaryDirectory(prefix="slicer-core-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    scene = slicer.vtkMRMLScene()
    scene.SetRootDirectory(folder.name)
    scene.RegisterNodeClass(slicer.vtkMRMLCommandLineModuleNode())
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairName("default")
    scene.AddNode(crosshair)

    application = slicer.vtkSlicerApplicationLogic()
    application.SetTemporaryPath(folder.name)
    application.SetMRMLScene(scene)
    application.SetSliceLogics(vtk.vtkCollection())
    application.SetViewLogics(vtk.vtkCollection())
    application.GetColorLogic().SetMRMLScene(scene)
    application.GetColorLogic().AddDefaultColorNodes()

    remote, data = slicer.vtkMRMLRemoteIOLogic(), slicer.vtkDataIOManagerLogic()
    remote.GetCacheManager().SetRemoteCacheDirectory(folder.name)
    data.SetMRMLApplicationLogic(application)
    data.SetAndObserveDataIOManager(remote.GetDataIOManager())
    application.SetMRMLSceneDataIO(scene, remote, data)

    modules = types.ModuleType("slicer.modules")
    for name, class_name in _LOGICS.items():
        logic = getattr(slicer, class_name)()
        logic.SetMRMLApplicationLogic(application)
        logic.SetMRMLScene(scene)
        application.SetModuleLogic(name, logic)
        setattr(modules, name.lower(), types.SimpleNamespace(name=name, logic=lambda logic=logic: logic))
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    return _Mrml(scene, application, modules, folder.name, (remote, data))
