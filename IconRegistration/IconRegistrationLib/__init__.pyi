"""The public names for type checkers and editors; __init__.py loads them when they are asked for."""

from .errors import Cancelled, DeviceMemoryError, FolderError, InputError
from .io.convert import as_field, as_image, as_landmarks, as_segmentation, image_from_array, to_itk, to_nibabel, to_sitk
from .io.images import read_image, write_image
from .io.landmarks import read_landmarks, write_landmarks
from .io.segmentations import read_segmentation, write_segmentation
from .io.transforms import read_transform, write_field
from .quality.report import Report
from .registration.settings import Settings
from .spatial.conventions import (
    displacement_in_voxels,
    half_extent_displacement,
    identity_map,
    sampling_grid,
    sampling_grid_from_phi,
    voxel_map,
)
from .spatial.displacement import DisplacementField
from .spatial.field import (
    compose_displacements,
    displacement_from_phi,
    inverse_consistency_error,
    jacobian_determinant,
    warp_image,
    warp_labels,
    warp_segmentation,
)
from .spatial.geometry import (
    Grid,
    Image,
    Landmarks,
    Segment,
    Segmentation,
    flip_affine,
    flip_vectors,
    flip_world_transform,
)
from .workflow.api import RegistrationResult, register, warp

__version__: str
__all__ = [
    "Cancelled",
    "DeviceMemoryError",
    "DisplacementField",
    "FolderError",
    "Grid",
    "Image",
    "InputError",
    "Landmarks",
    "RegistrationResult",
    "Report",
    "Segment",
    "Segmentation",
    "Settings",
    "__version__",
    "as_field",
    "as_image",
    "as_landmarks",
    "as_segmentation",
    "compose_displacements",
    "displacement_from_phi",
    "displacement_in_voxels",
    "flip_affine",
    "flip_vectors",
    "flip_world_transform",
    "half_extent_displacement",
    "identity_map",
    "image_from_array",
    "inverse_consistency_error",
    "jacobian_determinant",
    "read_image",
    "read_landmarks",
    "read_segmentation",
    "read_transform",
    "register",
    "sampling_grid",
    "sampling_grid_from_phi",
    "to_itk",
    "to_nibabel",
    "to_sitk",
    "voxel_map",
    "warp",
    "warp_image",
    "warp_labels",
    "warp_segmentation",
    "write_field",
    "write_image",
    "write_landmarks",
    "write_segmentation",
]
