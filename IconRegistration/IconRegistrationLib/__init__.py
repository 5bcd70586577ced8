"""The library behind the IconRegistration module of 3D Slicer; importing it imports nothing.

``from IconRegistrationLib import register, warp, Settings, read_image`` is all that most scripts need; `__all__` lists
the public names.

Its rooms, from the ground up. A room imports only the rooms above it in this list
(``Testing/headless/test_import_rules.py`` reads every import, also under TYPE_CHECKING, and enforces it):

- ``text``, ``errors``, ``plain``, ``machine``   what everybody may use
- ``spatial``        geometry, displacement fields, sampling, lattices: values and arithmetic in mm
- ``io``             files to values and back
- ``networks``       ICON-family networks: architecture, inference, model cards, weights, devices
- ``registration``   two images, settings and constraints to two displacement fields
- ``quality``        measures and judges displacement fields
- ``workflow``       one whole job: inputs, checks, preflight, pipeline, results
- ``demo``           the generated phantom and plots
- ``worker``         the child process and the exchange of values with it
- ``mrml``           nodes to values and back: vtk and MRML classes; never qt, slicer.app or slicer.mrmlScene
- ``batch``          the command, cohorts
- ``ui``             qt and slicer, and everything above

Up to ``worker`` nothing imports slicer, vtk or qt. torch, itk and matplotlib are imported inside the functions that
need them in whatever Slicer loads at start.
"""

__version__ = "0.1.0"

#: The public names by their modules, which are loaded at first use.
_PUBLIC = {
    "errors": (
        "Cancelled",
        "DeviceMemoryError",
        "FolderError",
        "InputError",
    ),
    "spatial.geometry": (
        "Grid",
        "Image",
        "Landmarks",
        "Segment",
        "Segmentation",
        "flip_affine",
        "flip_vectors",
        "flip_world_transform",
    ),
    "spatial.displacement": ("DisplacementField",),
    "spatial.field": (
        "compose_displacements",
        "displacement_from_phi",
        "inverse_consistency_error",
        "jacobian_determinant",
        "warp_image",
        "warp_labels",
        "warp_segmentation",
    ),
    "spatial.conventions": (
        "displacement_in_voxels",
        "half_extent_displacement",
        "identity_map",
        "sampling_grid",
        "sampling_grid_from_phi",
        "voxel_map",
    ),
    "io.convert": (
        "as_field",
        "as_image",
        "as_landmarks",
        "as_segmentation",
        "image_from_array",
        "to_itk",
        "to_nibabel",
        "to_sitk",
    ),
    "io.images": ("read_image", "write_image"),
    "io.landmarks": ("read_landmarks", "write_landmarks"),
    "io.segmentations": ("read_segmentation", "write_segmentation"),
    "io.transforms": ("read_transform", "write_field"),
    "registration.settings": ("Settings",),
    "quality.report": ("Report",),
    "workflow.api": (
        "RegistrationResult",
        "register",
        "warp",
    ),
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *sorted(_MODULES)]


def __getattr__(name: str):
    """Load the module of a public name at its first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # importing the library imports nothing

    module = import_module(f"{__name__}.{_MODULES[name]}")
    globals()[name] = value = getattr(module, name)
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
