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

from ..core.errors import InputError

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


def boot():
    """The MRML scene: `slicer.mrmlScene` in desktop Slicer, else slicer-core's, booted by the first call (3 s).

    Raises InputError if neither is there.
    """
    try:
        import slicer
    except ImportError:
        slicer = None
    if not hasattr(slicer, "vtkMRMLScene"):  # SHAP brings another package of the name `slicer`
        raise InputError('MRML scenes need slicer-core; run pip install "slicer-icon-registration[scene]".')
    if getattr(slicer, "mrmlScene", None) is None:
        _boot_slicer_core(slicer)
    return slicer.mrmlScene


def application_logic():
    """The vtkMRMLApplicationLogic of the scene that `boot` returns; views are built on it."""
    boot()
    import slicer

    return slicer.app.applicationLogic()


def _boot_slicer_core(slicer) -> None:
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

    sys.modules["slicer.modules"] = slicer.modules = modules
    slicer.app = types.SimpleNamespace(
        applicationLogic=lambda: application,
        mrmlScene=lambda: scene,
        temporaryPath=folder.name,
        applicationName="slicer-core",
        processEvents=lambda: None,
        _alive=(remote, data),  # VTK holds them weakly
    )
    slicer.mrmlScene = scene
