"""The public face: register and warp what SimpleITK, ITK, nibabel, numpy, torch or files hold.

`register` here wraps `workflow.pipeline.compute`; the panel, the worker and the command call that with values of their
own.
"""

from __future__ import annotations

import dataclasses
import numbers
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..io.convert import (
    ImageLike,
    LandmarksLike,
    LinearLike,
    SegmentationLike,
    TransformLike,
    as_field,
    as_image,
    as_landmarks,
    as_linear,
    as_segmentation,
    in_form_of,
    is_path,
    points_in_form_of,
    to_itk,
    to_nibabel,
    to_sitk,
)
from ..io.formats import format_of
from ..io.landmarks import LANDMARK_FORMATS
from ..io.segmentations import SEGMENTATION_FORMATS
from ..io.transforms import read_transform
from ..networks.catalog import load_model
from ..registration.checks import check_image, check_mask, check_overlap
from ..registration.intensity import background_value
from ..registration.register import StageProgress
from ..registration.settings import Settings
from ..spatial.displacement import DisplacementField
from ..spatial.field import in_type_of, warp_image, warp_labels, warp_segmentation
from ..spatial.geometry import Grid, Image, Landmarks, Segmentation
from ..text import tr
from .checks import check_landmarks
from .folder import check_folder, output_folder
from .notebook import html_of
from .outputs import write_values
from .pipeline import compute
from .results import Inputs, Results
from .roles import SEGMENT_ROLES, apply_roles, complete_roles, compute_options

#: What values are interpolated by -> the order of `warp_image`.
IMAGE_INTERPOLATIONS = {"linear": 1, "cubic": 3, "nearest": 0}
#: What labels are interpolated by -> the method of `warp_labels`.
LABEL_INTERPOLATIONS = {"nearest": "nearest", "label": "linear"}


@dataclass(frozen=True)
class RegistrationResult(Results):
    """What `register` found, with the ways to use it elsewhere; in a notebook it shows verdicts and a picture.

    Attributes
    ----------
    registration, warped, warped_fine, warped_segmentation, warped_landmarks, jacobian, report
        As in `workflow.results.Results`.
    inputs : Inputs
        What was registered, as values of this library.
    """

    inputs: Inputs = dataclasses.field(repr=False)

    @property
    def forward(self) -> DisplacementField:
        """Fixed points -> moving points in mm, LPS: what resamples moving data."""
        return self.registration.forward

    @property
    def backward(self) -> DisplacementField:
        """Moving points -> fixed points in mm, LPS: what carries moving points to the fixed image."""
        return self.registration.backward

    def to_sitk(self, what: str = "forward") -> Any:
        """Convert a part of the result to SimpleITK.

        Parameters
        ----------
        what : str
            "forward" or "backward": a displacement-field transform in mm, LPS, of fixed points to moving points or
            back. "warped", "warped_fine", "warped_segmentation", "jacobian" or another image among the attributes: an
            image in LPS.

        Raises
        ------
        InputError
            If there is no such part.
        """
        return to_sitk(self._part(what))

    def to_itk(self, what: str = "forward") -> Any:
        """Convert a part of the result to ITK: as `to_sitk`."""
        return to_itk(self._part(what))

    def to_nibabel(self, what: str = "forward") -> Any:
        """Convert a part of the result to a NIfTI image of nibabel, RAS.

        Parameters
        ----------
        what : str
            As in `to_sitk`. A transform becomes an image [i, j, k, 1, 3] of displacements in mm, RAS: added to a
            fixed point ("forward") they give the moving point.

        Raises
        ------
        InputError
            If there is no such part.
        """
        return to_nibabel(self._part(what))

    def warp(
        self,
        value: Any,
        *,
        to: str = "fixed",
        labels: bool = False,
        interpolation: str | None = None,
        outside: float | None = None,
        order: str | None = None,
        world: str | None = None,
    ) -> Any:
        """Bring data of one image to the other.

        Parameters
        ----------
        value : ImageLike, SegmentationLike or LandmarksLike
            An image, a label map (with `labels`), a Segmentation, Landmarks or points (n, 3), in any form that
            `register` takes; on any grid that lies in the world of its image.
        to : {"fixed", "moving"}
            Whose grid and space the result has; `value` belongs to the other image.
        labels : bool
            Whether an image is a label map: nearest neighbour, its own type, 0 outside.
        interpolation : {"linear", "cubic", "nearest", "label"}, optional
            "linear" for images and "nearest" for labels by default; "label" smooths the borders of labels.
        outside : float, optional
            Value where the map leads out of an image; by default its own background.
        order, world : str, optional
            Of arrays and points, see `register`.

        Returns
        -------
        The same kind of value from the same library; an Image, Segmentation or Landmarks where `value` is a path.

        Raises
        ------
        InputError
            If `value` or an option cannot be used.
        """
        if to not in ("fixed", "moving"):
            raise InputError(tr('to is {value}; choose "fixed" or "moving".', value=repr(to)))
        pulling, carrying = self.forward, self.backward
        grid = self.inputs.fixed.grid
        if to == "moving":
            pulling, carrying, grid = carrying, pulling, self.inputs.moving.grid
        options = _Options(labels, interpolation, outside, order, world)
        if _are_points(value):
            return _carried(value, carrying.transform_points, options)
        return _pulled(value, pulling, grid, options)

    def save(self, folder: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write transforms, warped data and the report into a folder, completely or not at all.

        The files are those of ``icon-registration register --out``, without Slicer's scene and pictures: transform and
        inverse as .nii.gz and .h5, warped.nii.gz, report.json and so on.

        Parameters
        ----------
        folder : path
            A folder that is not there yet, or is empty; its parent exists.
        overwrite : bool
            Replace the results of an earlier run.

        Returns
        -------
        Path
            The folder, absolute.

        Raises
        ------
        InputError
            If the folder cannot be used.
        FolderError
            If the disk does not take the results.
        """
        path = check_folder(Path(folder), overwrite)
        with output_folder(path) as partial:
            write_values(partial, self)
        return path

    def _part(self, what: str) -> Image | Segmentation | DisplacementField:
        parts: dict[str, Image | Segmentation | DisplacementField] = {
            name: value for name, value in vars(self).items() if isinstance(value, (Image, Segmentation))
        }
        parts |= {"forward": self.forward, "backward": self.backward}
        if what not in parts:
            raise InputError(
                tr("This result has no {what}; choose {choices}.", what=repr(what), choices=", ".join(sorted(parts)))
            )
        return parts[what]

    def _repr_html_(self) -> str:
        return html_of(self, self.inputs)


def register(
    fixed: ImageLike,
    moving: ImageLike,
    settings: Settings | None = None,
    *,
    fixed_segmentation: SegmentationLike | None = None,
    moving_segmentation: SegmentationLike | None = None,
    fixed_landmarks: LandmarksLike | None = None,
    moving_landmarks: LandmarksLike | None = None,
    fixed_mask: ImageLike | None = None,
    moving_mask: ImageLike | None = None,
    initial: LinearLike | None = None,
    region: ImageLike | Grid | None = None,
    order: str | None = None,
    world: str | None = None,
    roles: Mapping[str, bool] | None = None,
    moving_resolution: bool = False,
    progress: StageProgress | None = None,
    load: Callable = load_model,
) -> RegistrationResult:
    """Register two images, warp what belongs to the moving one, and measure how good it is.

    Parameters
    ----------
    fixed, moving : path, Image, SimpleITK.Image, itk.Image, nibabel image, or tuple of array and affine
        3D scalar volumes in one world; mm. The affine of an array (numpy or torch) maps voxel (i, j, k) to mm.
    settings : Settings, optional
        How to register; the defaults need no network and no download.
    fixed_segmentation, moving_segmentation : Segmentation, path, or label map in a form of `fixed`, optional
        Compared where both name a structure; the moving one is warped.
    fixed_landmarks, moving_landmarks : Landmarks, path, points (n, 3) or mapping of labels to points, optional
        In mm. Compared by label; the moving ones are carried to the fixed image.
    fixed_mask, moving_mask : like `fixed`, optional
        Only voxels that are not 0 count; on grids of their own.
    initial : path, 4x4 array, or linear transform of ITK or SimpleITK, optional
        Fixed mm -> moving mm: where to start. An alignment is then made only if the settings ask for one.
    region : Grid, or mask like `fixed`, optional
        Register only within this box, or within the box of what is not 0.
    order : {"kji", "ijk"}, optional
        Axes of all arrays given; needed with any. "kji" is [slice, row, column] (SimpleITK, torch), "ijk" nibabel's.
    world : {"LPS", "RAS"}, optional
        World of all affines, points and matrices given as numbers; needed with any.
    roles : mapping of str to bool, optional
        Roles of the segmentations to switch on or off (`workflow.roles.SEGMENT_ROLES`): ``{"guide": True}`` lets
        structures that both name guide the registration, ``{"focus": True}`` makes masks of them. Unless given, the
        moving one is warped ("carry") and both are compared ("compare").
    moving_resolution : bool
        Whether the moving image is also warped at its own resolution.
    progress : callable, optional
        Called as progress(stage, fraction of the whole in [0, 1]); may raise `Cancelled`.
    load : callable
        `networks.catalog.load_model`, or what keeps loaded networks between runs.

    Returns
    -------
    RegistrationResult

    Raises
    ------
    InputError
        If something cannot be registered, before any work.
    DeviceMemoryError
        If the device is too small.

    Examples
    --------
    >>> from IconRegistrationLib import Settings, register
    >>> from IconRegistrationLib.demo.phantom import make_phantom
    >>> phantom = make_phantom(size=24)
    >>> result = register(phantom.fixed, phantom.moving, Settings(align="centre", steps=1, device="cpu"))
    >>> result.warped.grid == phantom.fixed.grid
    True
    """
    if settings is not None and not isinstance(settings, Settings):
        raise InputError(
            tr("settings is {value}; give Settings(...), such as Settings(steps=20).", value=repr(settings))
        )
    switched = complete_roles(roles)
    for name, role in SEGMENT_ROLES.items():
        if switched[name] and role.is_missing(fixed_segmentation is not None, moving_segmentation is not None):
            raise InputError(
                tr(
                    "The role {role} needs {what}; give fixed_segmentation and moving_segmentation.",
                    role=repr(name),
                    what=role.what_it_needs,
                )
            )
    arrays = {"order": order, "world": world}

    def image(value: ImageLike, name: str) -> Image:
        return as_image(value, name=name, **arrays)

    def optional(value: Any, convert: Callable, name: str, **options: Any) -> Any:
        return None if value is None else convert(value, name=name, **options)

    inputs = Inputs(
        image(fixed, tr("fixed image")),
        image(moving, tr("moving image")),
        optional(fixed_segmentation, as_segmentation, tr("fixed segmentation"), **arrays),
        optional(moving_segmentation, as_segmentation, tr("moving segmentation"), **arrays),
        optional(fixed_landmarks, as_landmarks, tr("fixed landmarks"), world=world),
        optional(moving_landmarks, as_landmarks, tr("moving landmarks"), world=world),
        optional(fixed_mask, as_image, tr("fixed mask"), **arrays),
        optional(moving_mask, as_image, tr("moving mask"), **arrays),
        optional(initial, as_linear, tr("initial transform"), world=world),
    )
    for segmentation, its_image in (
        (inputs.fixed_segmentation, inputs.fixed),
        (inputs.moving_segmentation, inputs.moving),
    ):
        if segmentation is not None:
            check_overlap(segmentation, its_image)
    if inputs.fixed_landmarks is not None and inputs.moving_landmarks is not None:
        check_landmarks(inputs.fixed_landmarks, inputs.moving_landmarks)
    if region is not None and not isinstance(region, Grid):
        mask = image(region, tr("region"))
        check_mask(mask, inputs.fixed, tr("region"))
        region = mask.grid.box_around(mask.array)
    inputs = apply_roles(replace(inputs, region=region), switched)
    results = compute(
        inputs,
        settings,
        **compute_options(switched),
        moving_resolution=moving_resolution,
        progress=progress,
        load=load,
    )
    return RegistrationResult(**vars(results), inputs=inputs)


def warp(
    value: Any,
    transform: TransformLike,
    reference: ImageLike | Grid | None = None,
    *,
    labels: bool = False,
    interpolation: str | None = None,
    outside: float | None = None,
    order: str | None = None,
    world: str | None = None,
) -> Any:
    """Apply a transform to an image, a label map, a segmentation or points.

    Parameters
    ----------
    value : ImageLike, SegmentationLike or LandmarksLike
        As in `RegistrationResult.warp`.
    transform : path, DisplacementField, or transform of ITK or SimpleITK
        Points of the result's space -> points of the space of `value` where that is an image or a segmentation, as ITK
        resamples: `forward` brings moving images to the fixed one. Landmarks and points are mapped by it as they are:
        `backward` carries moving points to the fixed image. In mm, LPS.
    reference : Grid, or image as in `register`, optional
        Where the result lies; needed for images and segmentations.
    labels, interpolation, outside, order, world
        As in `RegistrationResult.warp`.

    Returns
    -------
    The same kind of value from the same library; an Image, Segmentation or Landmarks where `value` is a path.

    Raises
    ------
    InputError
        If something cannot be used, or `reference` is missing.
    """
    options = _Options(labels, interpolation, outside, order, world)
    if _are_points(value):
        transform = read_transform(transform) if is_path(transform) else transform
        if isinstance(transform, DisplacementField):
            return _carried(value, transform.transform_points, options)
        if not hasattr(transform, "TransformPoint"):
            raise InputError(tr("A {kind} is not a transform of points.", kind=type(transform).__name__))
        mapped = transform.TransformPoint
        return _carried(value, lambda points: np.array([list(mapped(p.tolist())) for p in points]), options)
    if reference is None:
        raise InputError(tr("A warped image needs a grid; give the fixed image as reference."))
    if not isinstance(reference, Grid):
        reference = as_image(reference, order=order, world=world, name=tr("reference")).grid
    return _pulled(value, as_field(transform, reference), reference, options)


@dataclass(frozen=True)
class _Options:
    """How a value is warped: the options of `warp`."""

    labels: bool
    interpolation: str | None
    outside: float | None
    order: str | None
    world: str | None

    def choose(self, choices: dict[str, Any]) -> Any:
        """Return the value in `choices` that the interpolation names; without one, the first."""
        name = self.interpolation or next(iter(choices))
        if name not in choices:
            raise InputError(
                tr("interpolation is {name}; choose {choices}.", name=repr(name), choices=" or ".join(choices))
            )
        return choices[name]

    def check_outside(self, kind: str, is_image: bool = False) -> None:
        """Raise InputError if a value outside is no number, or given for what has none."""
        if self.outside is None:
            return
        if isinstance(self.outside, bool) or not isinstance(self.outside, numbers.Real):
            raise InputError(tr("outside is {value}; it must be a number.", value=repr(self.outside)))
        if not is_image:
            raise InputError(tr("outside is for images; omit {value:g} for {kind}.", value=self.outside, kind=kind))


def _are_points(value: Any) -> bool:
    """Tell whether a value is landmarks, or points: a mapping, a file of points, or an array of two axes."""
    if is_path(value):
        return format_of(value, LANDMARK_FORMATS) is not None
    return isinstance(value, (Landmarks, dict)) or getattr(value, "ndim", None) == 2


def _carried(value: LandmarksLike, transform_points: Callable[[np.ndarray], np.ndarray], options: _Options) -> Any:
    options.check_outside(tr("points"))
    if options.interpolation is not None:
        raise InputError(
            tr("Points are not interpolated; omit interpolation {name}.", name=repr(options.interpolation))
        )
    if options.labels:
        raise InputError(tr("Points are no label map; omit labels."))
    landmarks = as_landmarks(value, world=options.world)
    moved = replace(landmarks, points=transform_points(landmarks.points))
    return points_in_form_of(moved, value, world=options.world)


def _pulled(value: Any, field: DisplacementField, grid: Grid, options: _Options) -> Any:
    if isinstance(value, Segmentation) or (is_path(value) and format_of(value, SEGMENTATION_FORMATS)):
        options.check_outside(tr("segmentations"))
        return warp_segmentation(as_segmentation(value), field, grid, options.choose(LABEL_INTERPOLATIONS))
    options.check_outside(tr("labels"), is_image=not options.labels)
    image = as_image(value, order=options.order, world=options.world)
    if options.labels:
        warped = warp_labels(image, field, grid, options.choose(LABEL_INTERPOLATIONS))
    else:
        check_image(image)
        outside = background_value(image) if options.outside is None else options.outside
        warped = in_type_of(image, warp_image(image, field, grid, options.choose(IMAGE_INTERPOLATIONS), outside))
    return in_form_of(warped, value, order=options.order, world=options.world)
