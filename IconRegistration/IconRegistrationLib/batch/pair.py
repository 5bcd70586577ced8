"""Register one pair of files and write the folder of results, as `register` and every row of a cohort do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..registration.settings import Settings
from ..text import tr
from ..workflow.roles import SEGMENT_ROLES, apply_roles, complete_roles, compute_options
from .outputs import write_results

if TYPE_CHECKING:
    from ..registration.register import StageProgress
    from ..workflow.results import Inputs, Results


@dataclass(frozen=True)
class PairFiles:
    """Files of a pair, and how to register them.

    Attributes
    ----------
    fixed, moving : str
        Paths of the images.
    fixed_segmentation, moving_segmentation, fixed_landmarks, moving_landmarks, fixed_mask, moving_mask : str or None
        Paths of their companions.
    initial : str or None
        Path of a linear transform, fixed mm -> moving mm.
    region : str or None
        Path of a label map; the box of its nonzero voxels is registered.
    roles : mapping
        Which roles of segments are used.
    settings : Settings
    """

    fixed: str
    moving: str
    fixed_segmentation: str | None = None
    moving_segmentation: str | None = None
    fixed_landmarks: str | None = None
    moving_landmarks: str | None = None
    fixed_mask: str | None = None
    moving_mask: str | None = None
    initial: str | None = None
    region: str | None = None
    roles: Mapping[str, bool] = field(default_factory=complete_roles, hash=False)
    settings: Settings = field(default_factory=Settings)

    @property
    def files(self) -> dict[str, str]:
        """The given files by role."""
        given = {role: getattr(self, role) for role in ROLES}
        return {role: path for role, path in given.items() if path}


#: The fields of `PairFiles` that name files.
ROLES = tuple(field.name for field in fields(PairFiles) if field.name not in ("roles", "settings"))


@dataclass(frozen=True)
class OutputOptions:
    """Which of the optional files are written."""

    scene: bool = True
    pictures: bool = True
    moving_resolution: bool = False


def register_pair(
    pair: PairFiles, folder: Path, outputs: OutputOptions, progress: StageProgress, load: Callable | None = None
) -> tuple[Results, list[str]]:
    """Read, check, register and write into the empty `folder`; return the results and notes on omissions.

    load: `load_model`, or what keeps loaded networks between pairs.
    Raises what `read_inputs` and `register` raise, and OSError where the disk does not take the results.
    """
    inputs = read_inputs(pair)
    results = compute_pair(pair, inputs, outputs, progress, load)
    return results, write_results(folder, inputs, results, scene=outputs.scene, pictures=outputs.pictures)


def compute_pair(
    pair: PairFiles, inputs: Inputs, outputs: OutputOptions, progress: StageProgress, load: Callable | None = None
) -> Results:
    """Register the inputs; `register_pair` without its folder."""
    from ..machine import keep_freed_memory
    from ..networks.catalog import load_model
    from ..workflow.pipeline import compute

    keep_freed_memory(training=pair.settings.refinement == "network")
    results = compute(
        inputs,
        pair.settings,
        **compute_options(pair.roles),
        moving_resolution=outputs.moving_resolution,
        progress=lambda stage, fraction: progress(stage, 0.95 * fraction),
        load=load or load_model,
    )
    progress(tr("writing"), 0.95)
    return results


def check_files(paths: Iterable[str]) -> None:
    """Raise InputError if a file does not exist."""
    for path in paths:
        if not is_there(path):
            raise InputError(tr("{path} does not exist; check the path.", path=path))


def check_outputs(outputs: Iterable[Path], inputs: Iterable[str]) -> None:
    """Raise InputError if an output would replace an input, or another output."""
    paths = [Path(path).expanduser().resolve() for path in outputs]
    replaced = set(paths) & {Path(source).expanduser().resolve() for source in inputs}
    if replaced:
        raise InputError(tr("{path} is an input and would be replaced; choose another name.", path=min(replaced)))
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice:
        raise InputError(tr("{path} is the name of two outputs; choose another for one of them.", path=twice))


def is_there(path: str) -> bool:
    """Return whether a file exists, or the folder of a "folder::UID"."""
    from ..io.paths import SERIES_SEPARATOR

    return os.path.exists(os.path.expanduser(path.partition(SERIES_SEPARATOR)[0]))


def check_settings(settings: Settings) -> None:
    """Raise InputError if the device or the model does not exist."""
    from ..networks.catalog import find_card
    from ..networks.devices import choose_device

    choose_device(settings.device)
    find_card(settings.model, settings.weights_dir)


def read_inputs(pair: PairFiles) -> Inputs:
    """Read everything that is registered, and check it as far as possible before work begins."""
    import numpy as np

    from ..io.convert import as_linear
    from ..io.images import image_header, read_image
    from ..io.landmarks import read_landmarks
    from ..io.segmentations import read_segmentation
    from ..registration import checks
    from ..spatial.geometry import Grid
    from ..workflow.checks import check_landmarks
    from ..workflow.results import Inputs

    check_files(pair.files.values())
    given = (bool(pair.fixed_segmentation), bool(pair.moving_segmentation))
    for name, role in SEGMENT_ROLES.items():
        if pair.roles[name] and role.is_missing(*given):
            raise InputError(
                tr(
                    "--{role} needs {what}; give --fixed-segmentation and --moving-segmentation.",
                    role=name,
                    what=role.what_it_needs,
                )
            )
    # by the headers alone: a file can claim any size
    grids = [Grid(image_header(path).shape, np.eye(4)) for path in (pair.fixed, pair.moving)]
    checks.check_memory(*grids)
    for path in filter(None, (pair.fixed_mask, pair.moving_mask, pair.region)):
        checks.check_memory(Grid(image_header(path).shape, np.eye(4)), grids[0])

    def read(path, reader):
        return None if path is None else reader(path)

    fixed, moving = read_image(pair.fixed), read_image(pair.moving)
    inputs = Inputs(
        fixed,
        moving,
        read(pair.fixed_segmentation, read_segmentation),
        read(pair.moving_segmentation, read_segmentation),
        read(pair.fixed_landmarks, read_landmarks),
        read(pair.moving_landmarks, read_landmarks),
        read(pair.fixed_mask, read_image),
        read(pair.moving_mask, read_image),
        read(pair.initial, as_linear),
    )
    for segmentation, image in ((inputs.fixed_segmentation, fixed), (inputs.moving_segmentation, moving)):
        if segmentation is not None:
            checks.check_overlap(segmentation, image)
    if inputs.fixed_landmarks is not None and inputs.moving_landmarks is not None:
        check_landmarks(inputs.fixed_landmarks, inputs.moving_landmarks)
    if pair.region is None:
        return apply_roles(inputs, pair.roles)
    mask = read_image(pair.region)
    checks.check_mask(mask, fixed, tr("region"))
    return apply_roles(replace(inputs, region=mask.grid.box_around(mask.array)), pair.roles)
