"""One function, volumes in and transforms out: `register`. The panel, the console and the command all end here."""

from __future__ import annotations

import dataclasses
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
import torch.nn.functional as F

from .. import __version__
from ..machine import map_both_directions
from ..networks.catalog import load_model
from ..networks.devices import choose_device, memory_guard
from ..networks.inference import predict_maps
from ..spatial.displacement import DisplacementField
from ..spatial.field import compose_displacements, displacement_from_phi
from ..spatial.geometry import Grid, Image, Segmentation
from ..spatial.lattice import REFINEMENT_VOXELS, linear_between, network_lattices, refinement_lattices, region_box
from ..spatial.sampling import coverage, sample, sample_mask, smooth_for
from .align import Alignment, align
from .checks import check_pair
from .finetune import finetune
from .intensity import background_value, guess_modality, normalise
from .objective import FieldRefinement, Pair
from .refine import carried, contrast_agreement, linear_maps, refine
from .result import Registration
from .settings import Settings
from .similarities import FINE_TUNING, ONE_CONTRAST, TWO_CONTRASTS, make_similarity

#: `contrast_agreement` from which on two images count as one contrast. Measured after the coarsest level: 0.95 and more
#: for one, 0.87 for T1-FLAIR, 0.43 and less for CT-MR and T1-T2 (docs/refinement.md).
SAME_CONTRAST = 0.94
#: Steps of fine-tuning a network where the settings name none: those of unigradicon-register.
NETWORK_STEPS = 50
#: progress(stage, fraction of the whole run in [0, 1])
Progress = Callable[[str, float], None]
#: Expected shares of the time, for progress; the refinement's depends on its kind.
STAGE_COSTS = {"model": 2, "alignment": 10, "preparation": 3, "network": 20, "transform": 2}
REFINEMENT_COSTS = {"off": 0, "field": 60, "network": 600}


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
    progress: Progress | None = None,
    load: Callable = load_model,
) -> Registration:
    """Finds the map from the fixed to the moving image and its counterpart.

    initial: 4x4, fixed mm -> moving mm (LPS), where to start; an alignment by intensity is then made only if
        `settings.align` asks for one.
    fixed_mask, moving_mask: where the images count (non-zero), on grids of their own.
    fixed_labels, moving_labels: structures that should meet, matched by name (soft Dice).
    region: a box in the fixed world; the map is found there and continued smoothly outside.
    progress: called as progress(stage, fraction of the whole in [0, 1]); what it raises (`Cancelled`) ends the run.
    load: `load_model`, or what keeps loaded networks between runs.
    Raises InputError for input that cannot be registered, before any work; DeviceMemoryError.
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
    clock = _Clock(settings, progress or (lambda stage, fraction: None))
    remedy = "choose a coarser spacing, refine 'field' instead of 'network', or device 'cpu'"
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
            sides = map_both_directions(
                lambda image, mask, modality: _Side.of(image, mask, modality, settings),
                (fixed, moving),
                (fixed_mask, moving_mask),
                (settings.fixed_modality, settings.moving_modality),
            )
            records, outside = [_described(side) for side in sides], background_value(moving, sides[1].modality)
            alignment = _alignment(*sides, initial, settings, card.alignment if card else "affine", step)
        with clock.stage("preparation"):
            if network is None:
                pair = _refinement_pair(*sides, alignment.matrix, region, settings, device)
            else:
                stretched = alignment.kind == "none" and initial is None and region is None
                pair = _network_pair(*sides, None if stretched else alignment.matrix, region, card.input_shape, device)
        if settings.refinement != "field":
            del sides  # both images at full resolution, which nothing reads any more
        if network is None:
            maps = linear_maps(pair)
        elif settings.refinement != "network":  # which evaluates the network itself
            with clock.stage("network") as step:
                maps = predict_maps(network, pair.moving, pair.fixed, precision=settings.precision, progress=step)
        similarity = None
        if settings.refinement != "off":
            with clock.stage("refinement") as step:
                similarity = settings.similarity
                if settings.refinement == "network":
                    similarity = FINE_TUNING if similarity == "auto" else similarity
                    pair = _with_labels(pair, fixed_labels, moving_labels, thinned=False)
                    maps = _finetuned(network, pair, similarity, settings, step)
                else:
                    if network is not None:
                        seen, pair = pair, _refinement_pair(*sides, pair.linear, region, settings, device)
                        maps = carried(*maps, seen, pair)
                    pair = _with_labels(pair, fixed_labels, moving_labels, thinned=True)
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
                backward = _straightened(backward, moving.grid.with_shape(pair.moving_lattice.shape))
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
        provenance={
            "fixed": records[0],
            "moving": records[1],
            "model": {"name": settings.model, "title": card.title if card else "no network", "sha256": checksum},
            "refinement": settings.refinement,
            "similarity": similarity,
            "alignment": str(alignment),
            "lattice": {
                "shape": list(pair.fixed_lattice.shape),
                "fixed_spacing_mm": pair.fixed_lattice.spacing.round(4).tolist(),
                "moving_spacing_mm": pair.moving_lattice.spacing.round(4).tolist(),
            },
            "settings": dataclasses.asdict(settings),
            "device": _device_name(device),
            "seconds": clock.seconds,
            "versions": _versions(),
        },
    )


def choose_similarity(pair: Pair, phi_AB: torch.Tensor, phi_BA: torch.Tensor) -> str:
    """ "lncc2" where the images, brought together by the maps, have one contrast; "mind" where they have two.

    Images that the maps leave far apart agree less than their contrasts do: they are asked again after the coarsest
    level of a refinement with MIND-SSC, which suits both.
    """
    agreement = contrast_agreement(pair, phi_AB, phi_BA)
    if agreement <= SAME_CONTRAST:
        options = FieldRefinement(similarity=TWO_CONTRASTS)
        coarsest = dataclasses.replace(options, levels=options.levels[:1])
        agreement = contrast_agreement(pair, *refine(pair, phi_AB, phi_BA, options=coarsest))
    return ONE_CONTRAST if agreement > SAME_CONTRAST else TWO_CONTRASTS


@dataclass(frozen=True)
class _Side:
    """One of the two images, made ready: `values` [k, j, i] float32 in [0, 1]."""

    image: Image
    values: np.ndarray
    modality: str
    mask: Image | None

    @classmethod
    def of(cls, image: Image, mask: Image | None, modality: str, settings: Settings) -> _Side:
        modality = guess_modality(image) if modality == "auto" else modality
        values = normalise(image, modality, ct_window=settings.ct_window, quantile_range=settings.quantile_range)
        return cls(image, values, modality, mask)

    def on(self, lattice: Grid, device, *, antialias: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and mask on a lattice, [1, 1, D, H, W]; the mask also leaves out what was never scanned."""
        values = smooth_for(self.values, self.image.grid, lattice) if antialias else self.values
        on_lattice = torch.from_numpy(sample(values, self.image.grid, lattice))[None, None].to(device)
        return on_lattice, self.mask_on(lattice, device)

    def mask_on(self, lattice: Grid, device) -> torch.Tensor:
        """[1, 1, D, H, W], 1 where the image was scanned and its mask, if any, lets it count."""
        seen = coverage(self.image.grid, lattice)
        if self.mask is not None:
            seen &= sample_mask(self.mask, lattice)
        if seen.all():
            return torch.ones(1, 1, 1, 1, 1, device=device).expand(1, 1, *lattice.shape)  # takes no memory
        return torch.from_numpy(seen.astype(np.float32))[None, None].to(device)


def _alignment(fixed: _Side, moving: _Side, initial, settings: Settings, expected: str, step) -> Alignment:
    """expected: what the model was made to start from (`ModelCard.alignment`)."""
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


def _refinement_pair(fixed: _Side, moving: _Side, linear, region, settings: Settings, device) -> Pair:
    """On lattices as fine as the budget allows, over what the images share."""
    lattices = refinement_lattices(
        fixed.image.grid,
        moving.image.grid,
        linear,
        spacing=settings.spacing,
        voxels=REFINEMENT_VOXELS["cuda" if device.type == "cuda" else "cpu"],
        region=region,
    )
    images, masks = zip(
        *(side.on(lattice, device, antialias=True) for side, lattice in zip((fixed, moving), lattices, strict=True)),
        strict=True,
    )
    return Pair(*images, *masks, *lattices, linear)


def _network_pair(fixed: _Side, moving: _Side, linear, region, shape, device) -> Pair:
    """On the network's input lattices.

    Without a linear alignment both images are stretched to the input as published. With one, the moving image is seen
    on the fixed image's lattice, moved by it: the network's identity is then the alignment.
    A mask blanks the network's input outside of it, as published.
    """
    if linear is None:
        lattices = network_lattices(fixed.image.grid, moving.image.grid, shape)
        linear = linear_between(*lattices)
        values = [
            F.interpolate(torch.from_numpy(side.values)[None, None].to(device), size=tuple(shape), mode="trilinear")
            for side in (fixed, moving)
        ]
    else:
        box = fixed.image.grid if region is None else region_box(fixed.image.grid, region)
        lattices = box.with_shape(shape), box.with_shape(shape).moved(linear)
        values = [
            side.on(lattice, device, antialias=False)[0]
            for side, lattice in zip((fixed, moving), lattices, strict=True)
        ]
    masks = [side.mask_on(lattice, device) for side, lattice in zip((fixed, moving), lattices, strict=True)]
    for side, value, mask in zip((fixed, moving), values, masks, strict=True):
        if side.mask is not None:
            value *= mask
    return Pair(*values, *masks, *lattices, linear)


def _with_labels(pair: Pair, fixed: Segmentation | None, moving: Segmentation | None, thinned: bool) -> Pair:
    """The pair with the structures that both segmentations name, as shares of voxels; `thinned` to every other one."""
    if fixed is None:  # check_pair: either both images have labels, or none
        return pair
    names = sorted(set(fixed.by_name()) & set(moving.by_name()))
    shape = [max(2, n // 2) if thinned else n for n in pair.fixed_lattice.shape]

    def shares(segmentation: Segmentation, lattice: Grid) -> torch.Tensor:
        layers = [sample(layer, segmentation.grid, lattice, order=0) for layer in segmentation.layers]
        result = torch.empty(1, len(names), *shape, device=pair.fixed.device)
        for channel, segment in enumerate(segmentation.by_name()[name] for name in names):
            inside = torch.from_numpy((layers[segment.layer] == segment.value).astype(np.float32))
            result[0, channel] = F.interpolate(inside[None, None], size=shape, mode="area")[0, 0]
        return result

    return dataclasses.replace(
        pair,
        fixed_labels=shares(fixed, pair.fixed_lattice),
        moving_labels=shares(moving, pair.moving_lattice),
    )


def _finetuned(network, pair: Pair, similarity: str, settings: Settings, step):
    """phi_AB, phi_BA of a copy of the network, fine-tuned on this pair."""
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


def _straightened(shear: DisplacementField, grid: Grid) -> DisplacementField:
    """The same map on an orthogonal grid and a sample around it: no file format holds a sheared field."""
    grid = grid.box((-1, -1, -1), np.array(grid.size) + 1)
    return compose_displacements(DisplacementField(np.zeros((*grid.shape, 3), np.float32), grid), shear)


class _Clock:
    """Times the stages and turns their progress into that of the whole run."""

    def __init__(self, settings: Settings, progress: Progress):
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
        self._progress(name, self._done)
        yield lambda fraction: self._progress(name, self._done + share * fraction)
        self._done += share
        self.seconds[name] = round(time.perf_counter() - start, 3)
        self.seconds["total"] = round(time.perf_counter() - self._start, 3)


def _described(side: _Side) -> dict:
    grid = side.image.grid
    return {
        "name": side.image.name,
        "modality": side.modality,
        "shape": list(grid.shape),
        "spacing_mm": grid.spacing.round(4).tolist(),
        "masked": side.mask is not None,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"{device}: {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def _versions() -> dict[str, str]:
    try:
        itk = version("itk")  # as installed: importing it to ask takes longer than a small registration
    except PackageNotFoundError:
        itk = "unknown"
    return {
        "IconRegistration": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "itk": itk,
    }
