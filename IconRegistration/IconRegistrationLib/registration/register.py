"""One function, volumes in and transforms out: `register`. The panel, the console and the command all end here."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch

from ..machine import map_both_directions
from ..networks.catalog import load_model
from ..networks.devices import choose_device, memory_guard
from ..networks.inference import predict_maps
from ..spatial.displacement import DisplacementField
from ..spatial.field import compose_displacements, displacement_from_phi
from ..spatial.geometry import Grid, Image, Segmentation
from ..text import tr, translated
from .align import Alignment, align
from .checks import check_pair
from .finetune import finetune
from .intensity import background_value
from .objective import FieldRefinement, RefinementPair
from .preparation import PreparedImage, network_pair, refinement_pair, with_labels
from .provenance import describe_image, provenance_of
from .refine import contrast_agreement, linear_maps, refine, resample_maps
from .result import Registration
from .settings import Settings
from .similarities import FINE_TUNING, ONE_CONTRAST, TWO_CONTRASTS, make_similarity

#: `contrast_agreement` from which on two images count as one contrast. Measured after the coarsest level: 0.95 and more
#: for one, 0.87 for T1-FLAIR, 0.43 and less for CT-MR and T1-T2 (docs/refinement.md).
SAME_CONTRAST = 0.94
#: Steps of fine-tuning a network where the settings name none: those of unigradicon-register.
NETWORK_STEPS = 50
#: progress(stage, fraction of the whole run in [0, 1])
StageProgress = Callable[[str, float], None]
# phi_AB and phi_BA, each [1, 3, D, H, W] in [0, 1]
Maps = tuple[torch.Tensor, torch.Tensor]
#: Expected shares of the time, for progress; the refinement's depends on its kind.
STAGE_COSTS = {"model": 2, "alignment": 10, "preparation": 3, "network": 20, "transform": 2}
REFINEMENT_COSTS = {"off": 0, "field": 60, "network": 600}
#: The stages as a person reads them; shown through `text.translated`.
STAGE_NAMES = {
    "model": tr("model"),
    "alignment": tr("alignment"),
    "preparation": tr("preparation"),
    "network": tr("network"),
    "refinement": tr("refinement"),
    "transform": tr("transform"),
}


def register(
    fixed: Image,
    moving: Image,
    settings: Settings | None = None,
    *,
    initial: np.ndarray | None = None,
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
    fixed_labels: Segmentation | None = None,
    moving_labels: Segmentation | None = None,
    region: Grid | None = None,
    progress: StageProgress | None = None,
    load: Callable = load_model,
) -> Registration:
    """Find the map from the fixed to the moving image, and that from the moving to the fixed one.

    Parameters
    ----------
    fixed, moving : Image
        Volumes [k, j, i]; their affines map voxels (i, j, k) to mm (LPS).
    settings : Settings, optional
        How to register; the defaults suit a first try.
    initial : np.ndarray, optional
        4x4, fixed mm -> moving mm (LPS), where to start; an alignment by intensity is then made only if
        `settings.align` asks for one.
    fixed_mask, moving_mask : Image, optional
        Where the images count (non-zero), on grids of their own.
    fixed_labels, moving_labels : Segmentation, optional
        Structures that should meet, matched by name (soft Dice). Both or neither.
    region : Grid, optional
        A box in the fixed world; the map is found there and continued smoothly outside.
    progress : Callable[[str, float], None], optional
        Called with the stage and the fraction of the whole in [0, 1]; what it raises (`Cancelled`) ends the run.
    load : Callable
        `load_model`, or what keeps loaded networks between runs.

    Returns
    -------
    Registration
        Displacement fields of both directions in mm, the maps on the network's lattices, and the record of the run.

    Raises
    ------
    InputError
        For input that cannot be registered, before any work.
    DeviceMemoryError
        If the device runs out of memory.

    Examples
    --------
    >>> from IconRegistrationLib.demo.phantom import make_phantom
    >>> phantom = make_phantom(size=20)
    >>> found = register(phantom.fixed, phantom.moving, Settings(align="centre", steps=1, device="cpu"))
    >>> found.forward.grid.shape, found.provenance["refinement"]
    ((22, 20, 28), 'field')
    """
    settings = settings or Settings()
    check_pair(
        fixed,
        moving,
        fixed_mask=fixed_mask,
        moving_mask=moving_mask,
        fixed_labels=fixed_labels,
        moving_labels=moving_labels,
    )
    device = choose_device(settings.device)
    clock = _StageClock(settings, progress or (lambda stage, fraction: None))
    remedy = tr("choose a coarser spacing, refine 'field' instead of 'network', or device 'cpu'")
    with memory_guard(device, remedy):
        with clock.stage("model") as step:
            network, card, checksum = None, None, None
            if settings.model != "none":
                network, card, checksum = load(
                    settings.model,
                    weights_dir=settings.weights_dir,
                    device=device,
                    trainable=settings.refinement == "network",
                    progress=lambda done, total: step(done / total if total else 0.0),
                )
        with clock.stage("alignment") as step:
            made = map_both_directions(
                lambda image, mask, modality: PreparedImage.of(image, mask, modality, settings),
                (fixed, moving),
                (fixed_mask, moving_mask),
                (settings.fixed_modality, settings.moving_modality),
            )
            prepared = cast("tuple[PreparedImage, PreparedImage]", tuple(made))
            del made
            records, outside = (
                [describe_image(image) for image in prepared],
                background_value(moving, prepared[1].modality),
            )
            alignment = _alignment(*prepared, initial, settings, card.alignment if card else "affine", step)
        with clock.stage("preparation"):
            if card is None:
                pair = refinement_pair(*prepared, alignment.matrix, region, settings, device)
            else:
                stretched = alignment.kind == "none" and initial is None and region is None
                pair = network_pair(
                    *prepared, None if stretched else alignment.matrix, region, card.input_shape, device
                )
        if settings.refinement != "field":
            del prepared  # both images at full resolution, which nothing reads any more
        maps: Maps
        if network is None:
            maps = linear_maps(pair)
        elif settings.refinement != "network":  # which evaluates the network itself
            with clock.stage("network") as step:
                predicted = predict_maps(network, pair.moving, pair.fixed, precision=settings.precision, progress=step)
                maps = cast("Maps", predicted)  # both directions
                del predicted
        similarity = None
        if settings.refinement != "off":
            with clock.stage("refinement") as step:
                similarity = settings.similarity
                if settings.refinement == "network":
                    similarity = FINE_TUNING if similarity == "auto" else similarity
                    pair = with_labels(pair, fixed_labels, moving_labels, thinned=False)
                    maps = _finetuned(network, pair, similarity, settings, step)
                else:
                    if network is not None:
                        coarse, pair = pair, refinement_pair(*prepared, pair.linear, region, settings, device)
                        maps = resample_maps(*maps, coarse, pair)
                    pair = with_labels(pair, fixed_labels, moving_labels, thinned=True)
                    similarity = choose_similarity(pair, *maps) if similarity == "auto" else similarity
                    options = FieldRefinement(similarity=similarity, label_weight=settings.label_weight)
                    if settings.steps is not None:
                        options = dataclasses.replace(options, steps=settings.steps)
                    maps = refine(pair, *maps, options=options, progress=step)
        with clock.stage("transform"):
            phi_AB, phi_BA = (phi.float().cpu() for phi in maps)
            lattices = pair.fixed_lattice, pair.moving_lattice
            forward, backward = map_both_directions(
                displacement_from_phi,
                (phi_AB, phi_BA),
                lattices,
                lattices[::-1],
                [grid.padded(settings.padding) for grid in (fixed.grid, moving.grid)],
                (pair.linear, np.linalg.inv(pair.linear)),
            )
            if moving.grid.is_orthogonal and not backward.grid.is_orthogonal:
                backward = _on_orthogonal_grid(backward, moving.grid.with_shape(pair.moving_lattice.shape))
    return Registration(
        forward=forward,
        backward=backward,
        phi_AB=phi_AB,
        phi_BA=phi_BA,
        fixed_lattice=pair.fixed_lattice,
        moving_lattice=pair.moving_lattice,
        linear=pair.linear,
        outside=outside,
        settings=settings,
        provenance=provenance_of(
            records,
            settings,
            card=card,
            checksum=checksum,
            similarity=similarity,
            alignment=alignment,
            pair=pair,
            device=device,
            seconds=clock.seconds,
        ),
    )


def choose_similarity(pair: RefinementPair, phi_AB: torch.Tensor, phi_BA: torch.Tensor) -> str:
    """Choose `ONE_CONTRAST` where the images, brought together by the maps, have one contrast, else `TWO_CONTRASTS`.

    Poor alignment lowers the contrast agreement, so it is measured again after one coarse MIND level.

    Parameters
    ----------
    pair : RefinementPair
        The images on their lattices.
    phi_AB, phi_BA : torch.Tensor
        The maps so far, [1, 3, D, H, W] in [0, 1] (docs/phi.md).
    """
    agreement = contrast_agreement(pair, phi_AB, phi_BA)
    if agreement <= SAME_CONTRAST:
        options = FieldRefinement(similarity=TWO_CONTRASTS)
        coarsest = dataclasses.replace(options, levels=options.levels[:1])
        agreement = contrast_agreement(pair, *refine(pair, phi_AB, phi_BA, options=coarsest))
    return ONE_CONTRAST if agreement > SAME_CONTRAST else TWO_CONTRASTS


def _alignment(
    fixed: PreparedImage,
    moving: PreparedImage,
    initial: np.ndarray | None,
    settings: Settings,
    expected: str,
    step: Callable[[float], None],
) -> Alignment:
    """Align linearly as the settings say; "auto" is what the model expects (`ModelCard.alignment`)."""
    kind = settings.align
    if kind == "auto":
        kind = expected if initial is None else "none"
    return align(
        fixed.image,
        moving.image,
        kind,
        initial=initial,
        fixed_mask=fixed.mask,
        moving_mask=moving.mask,
        progress=step,
    )


def _finetuned(
    network: Any, pair: RefinementPair, similarity: str, settings: Settings, step: Callable[[float], None]
) -> Maps:
    """Return phi_AB and phi_BA of a copy of the network, fine-tuned on this pair."""
    masked = bool((pair.fixed_mask < 1).any() or (pair.moving_mask < 1).any())
    steps = settings.steps or NETWORK_STEPS
    phi_AB, phi_BA, _ = finetune(
        network,
        pair.moving,
        pair.fixed,
        steps=steps,
        similarity=make_similarity(similarity),
        moving_mask=pair.moving_mask if masked else None,
        fixed_mask=pair.fixed_mask if masked else None,
        moving_labels=pair.moving_labels,
        fixed_labels=pair.fixed_labels,
        label_weight=settings.label_weight,
        progress=lambda done, loss: step(done / steps),
    )
    return phi_AB, phi_BA


def _on_orthogonal_grid(shear: DisplacementField, grid: Grid) -> DisplacementField:
    """Resample a map on an orthogonal grid with a margin of one sample: no file format holds a sheared field."""
    grid = grid.box((-1, -1, -1), np.array(grid.size) + 1)
    return compose_displacements(DisplacementField(np.zeros((*grid.shape, 3), np.float32), grid), shear)


class _StageClock:
    """Measures the stages and turns their progress into that of the whole run."""

    def __init__(self, settings: Settings, progress: StageProgress):
        self._costs = STAGE_COSTS | {"refinement": REFINEMENT_COSTS[settings.refinement]}
        if settings.model == "none" or settings.refinement == "network":
            self._costs["network"] = 0
        self._progress = progress
        self._done = 0.0
        self._start = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[float], None]]:
        share = self._costs[name] / sum(self._costs.values())
        start = time.perf_counter()
        shown = translated(STAGE_NAMES[name])
        self._progress(shown, self._done)
        yield lambda fraction: self._progress(shown, self._done + share * fraction)
        self._done += share
        self.seconds[name] = round(time.perf_counter() - start, 3)
        self.seconds["total"] = round(time.perf_counter() - self._start, 3)
