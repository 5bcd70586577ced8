"""Predict a run: time, memory, problems and warnings, for the line under the selectors.

No torch here: Slicer's own process asks at every change of a selector.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError, words_of
from ..machine import physical_memory
from ..networks import catalog
from ..registration.checks import BYTES_PER_VOXEL, check_image
from ..registration.intensity import guess_modality
from ..registration.settings import Settings
from ..registration.similarities import ONE_CONTRAST, SIMILARITIES, TWO_CONTRASTS
from ..spatial.geometry import Grid, Image
from ..spatial.lattice import REFINEMENT_VOXELS, refinement_lattices, region_box
from ..text import Sentence, tr, translated
from .checks import check_inputs
from .fallback import cheaper_settings
from .results import Inputs

#: Share of the fixed volume below which an overlap is called small.
LITTLE_OVERLAP = 0.3

#: Slices along an axis below which a volume is called thin.
FEW_SLICES = 10

#: Share of this machine's memory from which on a run is called large.
NEARLY_FULL = 0.8

#: Steps on each level, distances of the levels, steps of fine-tuning: defaults of the files in registration/.
FIELD_STEPS, LEVELS, NETWORK_STEPS = 40, (4, 2, 1), 50

# Seconds on two x86 cores. Fitted to the pairs of docs/benchmarks.md, lattices as given there. What a similarity takes,
# in seconds and bytes, is in registration/similarities.py.
#: An alignment that is optimised (hippocampus: 2 s with nearly nothing to refine).
ALIGNMENT_SECONDS = 1.8

#: Per million voxels of both images: normalising, smoothing, warping and measuring. An estimate: docs/benchmarks.md has
#: 0.08 for warping and 0.14 for the inverse consistency, per million samples; the rest was not measured apart.
VOXEL_SECONDS = 0.25

#: Both directions of a network at 175^3.
NETWORK_SECONDS = 5.6

#: One step of fine-tuning a network (docs/benchmarks.md).
FINETUNING_SECONDS = 51.0

# Bytes. The peaks of docs/benchmarks.md follow from these to within 0.2 GiB.
#: A process with torch and itk loaded that has registered something small (hippocampus: 1.1 GiB).
BASE_BYTES = int(1.0 * 2**30)

#: What CUDA itself takes.
GPU_BASE_BYTES = int(0.5 * 2**30)

#: A network's evaluation and weights, and its fine-tuning, at 175^3 (docs/models.md).
NETWORK_BYTES = int((0.57 + 0.27) * 2**30)

FINETUNING_BYTES = int(4.2 * 2**30)


@dataclass(frozen=True)
class ImageFacts:
    """What takes a pass over an image's voxels, found once. problem: what makes it unusable, or None."""

    modality: str
    problem: str | None

    @classmethod
    def of(cls, image: Image) -> ImageFacts:
        """Find the facts of an image, in a pass over its voxels."""
        try:
            check_image(image)
        except InputError as error:
            return cls("mri", words_of(error))
        return cls(guess_modality(image), None)


@dataclass(frozen=True)
class Preflight:
    """Prediction of what a registration would do, before it runs.

    `overlap` is the share of the fixed volume in [0, 1] that the moving one covers after the initial transform;
    `seconds` the time on the CPU, also while the devices are unknown, and None on a GPU, where nothing has been
    measured; `memory` the peak of the device that computes, in bytes. With a `problem`, which is why the pair cannot
    be registered, both are None.
    """

    summary: str
    problem: str | None
    warnings: tuple[str, ...]
    overlap: float
    seconds: float | None
    memory: int | None


def preflight(
    inputs: Inputs,
    settings: Settings,
    facts: tuple[ImageFacts, ImageFacts],
    *,
    guide: bool = False,
    compare: bool = True,
    devices: list[dict] | None = None,
    speed: float = 1.0,
) -> Preflight:
    """Predict what `compute(inputs, settings, guide=guide, compare=compare)` would do, in about a millisecond.

    Parameters
    ----------
    inputs : Inputs
    settings : Settings
    facts : tuple[ImageFacts, ImageFacts]
        Of the fixed and the moving image.
    guide, compare : bool
        As in `compute`.
    devices : list of dict, optional
        Those of the worker ({"name", "title", "memory"}), None while they are unknown.
    speed : float
        Measured by predicted seconds of earlier runs on this machine (`updated_speed`).

    Returns
    -------
    Preflight

    Examples
    --------
    >>> from IconRegistrationLib.demo.phantom import make_phantom
    >>> inputs = make_phantom(size=16).inputs
    >>> facts = (ImageFacts.of(inputs.fixed), ImageFacts.of(inputs.moving))
    >>> flight = preflight(inputs, Settings(device="cpu"), facts)
    >>> flight.problem is None, flight.seconds > 0
    (True, True)
    """
    fixed, moving = inputs.fixed.grid, inputs.moving.grid
    linear = np.eye(4) if inputs.initial is None else np.asarray(inputs.initial, dtype=np.float64)
    overlap = overlap_share(fixed, moving, linear)
    place = tr(
        "{fixed} <- {moving}; overlap {share}",
        fixed=_described(fixed, _modality(facts[0], settings.fixed_modality)),
        moving=_described(moving, _modality(facts[1], settings.moving_modality)),
        share=_percent(overlap),
    )
    device: dict[str, Any] | None = None
    try:
        _check(inputs, settings, facts, guide, linear)
        device = _device(settings, devices)
    except InputError as error:
        return Preflight(place, words_of(error), (), overlap, None, None)
    modalities = tuple(
        _modality(f, m) for f, m in zip(facts, (settings.fixed_modality, settings.moving_modality), strict=True)
    )
    name = "cpu" if device is None else device["name"]
    gpu = not name.startswith("cpu")
    lattice = _lattice(inputs, settings, linear, gpu)
    similarities = _similarities(settings, modalities)
    memory = _memory(fixed, moving, settings, lattice, similarities, gpu)
    seconds = None if gpu else speed * _seconds(fixed, moving, settings, lattice, similarities, inputs)
    cost = tr("about {memory}", memory=_gib(memory))
    if seconds is not None:
        cost = tr("about {duration}, {memory}", duration=_duration(seconds), memory=_gib(memory))
    summary = tr(
        "{place}; {method} {where} {cost}", place=place, method=_method(settings), where=_where(device), cost=cost
    )
    warnings = [
        *_about_images(inputs, settings, modalities, overlap),
        *_about_memory(settings, device, memory),
        *_about_partners(inputs, compare and not guide),
        *_about_weights(settings),
    ]
    return Preflight(summary, None, tuple(warnings), overlap, seconds, memory)


def updated_speed(speed: float, predicted: float, measured: float) -> float:
    """Return the factor after one more run: half-way, in ratio, to what that run says. Unusable times change nothing.

    predicted: seconds that `preflight` gave with `speed`.
    """
    if not (0 < predicted < math.inf and 0 < measured < math.inf):
        return speed
    return min(max(speed * math.sqrt(measured / predicted), 0.05), 20.0)


def overlap_share(fixed: Grid, moving: Grid, linear: np.ndarray) -> float:
    """Return the exact share of the fixed box inside the moving box; linear: 4x4, fixed mm -> moving mm.

    The fixed box is clipped by the six faces of the moving one, both in coordinates of the moving box [-1, 1]^3.
    """
    to_moving = np.linalg.inv(moving.faces_to_world()) @ linear @ fixed.faces_to_world()
    corners = np.array([(x, y, z) for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)], dtype=np.float64)
    corners = corners @ to_moving[:3, :3].T + to_moving[:3, 3]
    if (np.abs(corners) <= 1 + 1e-9).all():
        return 1.0
    faces = [corners[list(face)] for face in _CUBE]
    for axis in range(3):
        for side in (-1, 1):
            faces = _clipped(faces, axis, side)
            if not faces:
                return 0.0
    share = _convex_volume(faces) / (8 * abs(np.linalg.det(to_moving[:3, :3])))
    return float(min(max(share, 0.0), 1.0))


#: Corners of each face of a cube in order around it; corner n is at (n & 1, n >> 1 & 1, n >> 2).
_CUBE = ((0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5))


def _clipped(faces: list[np.ndarray], axis: int, side: int) -> list[np.ndarray]:
    """Return the faces (n, 3) of a convex body cut to `side * x[axis] <= 1`, with the face that the cut makes.

    Each face is clipped by Sutherland and Hodgman's algorithm (Comm. ACM 1974).
    """
    kept, cut = [], []
    for face in faces:
        beyond = side * face[:, axis] - 1
        points = []
        for n, (point, d) in enumerate(zip(face, beyond, strict=True)):
            before, e = face[n - 1], beyond[n - 1]
            if (d > 0) != (e > 0):
                crossing = before + (point - before) * (e / (e - d))
                points.append(crossing)
                cut.append(crossing)
            if d <= 0:
                points.append(point)
        if len(points) >= 3:
            kept.append(np.array(points))
    if len(cut) >= 3:
        around = np.array(cut)
        u, v = np.delete(around - around.mean(0), axis, axis=1).T
        kept.append(around[np.argsort(np.arctan2(v, u))])
    return kept


def _convex_volume(faces: list[np.ndarray]) -> float:
    inside = np.concatenate(faces).mean(0)
    fans = [np.stack([np.broadcast_to(f[0], f[1:-1].shape), f[1:-1], f[2:]], 1) for f in faces]
    return float(np.abs(np.linalg.det(np.concatenate(fans) - inside)).sum() / 6)


def _check(inputs: Inputs, settings: Settings, facts, guide: bool, linear: np.ndarray) -> None:
    """Raise the InputError with which a run would end, as far as geometry and facts tell it."""
    problems = {id(image): f.problem for image, f in zip((inputs.fixed, inputs.moving), facts, strict=True)}

    def look(image: Image) -> None:
        if problems[id(image)]:
            raise InputError(problems[id(image)])

    check_inputs(inputs, guide, look)
    catalog.find_card(settings.model, settings.weights_dir)
    stays = settings.align == "none" or (settings.align == "auto" and inputs.initial is not None)
    if settings.model == "none" and stays:
        refinement_lattices(inputs.fixed.grid, inputs.moving.grid, linear, spacing=1e6, region=inputs.region)
    elif inputs.region is not None:
        region_box(inputs.fixed.grid, inputs.region)


def _device(settings: Settings, devices: list[dict] | None) -> dict[str, Any] | None:
    """Return what will compute: {"name": ...} and more where known; None where only the worker can tell."""
    wanted = settings.device
    device: dict[str, Any] | None
    if wanted == "cpu":
        device = next((d for d in devices or () if d["name"] == "cpu"), {"name": "cpu"})
    elif devices is None:
        device = None if wanted == "auto" else {"name": wanted}
    elif wanted == "auto":
        device = devices[0]
    else:
        full = "cuda:0" if wanted == "cuda" else wanted
        device = next((d for d in devices if d["name"] in (wanted, full)), None)
        if device is None:
            names = ", ".join(d["name"] for d in devices)
            raise InputError(
                tr(
                    "Device {wanted!r} was asked for and this machine has {names}; choose auto or one of them.",
                    wanted=wanted,
                    names=names,
                )
            )
    evaluated = settings.model != "none" and settings.refinement != "network"
    if evaluated and settings.precision == "mixed" and device and not device["name"].startswith("cuda"):
        raise InputError(
            tr(
                "Mixed precision gains nothing on {device} and costs accuracy; choose float32 or auto.",
                device=device["name"],
            )
        )
    return device


def _lattice(inputs: Inputs, settings: Settings, linear: np.ndarray, gpu: bool) -> Grid:
    """Return the lattice that is worked on; the refinement's as it would be where the boxes overlap most."""
    fixed, moving = inputs.fixed.grid, inputs.moving.grid
    if settings.model != "none" and settings.refinement != "field":
        return fixed.with_shape(catalog.find_card(settings.model, settings.weights_dir).input_shape)
    centred = linear.copy()
    centred[:3, 3] += moving.centre - (linear @ [*fixed.centre, 1])[:3]
    if overlap_share(fixed, moving, centred) > 2 * overlap_share(fixed, moving, linear):
        linear = centred  # from where an alignment would start
    budget = REFINEMENT_VOXELS["cuda" if gpu else "cpu"]
    try:
        return refinement_lattices(
            fixed, moving, linear, region=inputs.region, spacing=settings.spacing, voxels=budget
        )[0]
    except InputError:  # a region beside the moving image, until it is aligned
        return fixed if np.prod(fixed.shape) <= budget else fixed.with_shape([round(budget ** (1 / 3))] * 3)


def _similarities(settings: Settings, modalities) -> tuple[str, ...]:
    """Return the similarities that may be used: with MR and MR, one contrast or two, only the aligned voxels decide."""
    if settings.similarity != "auto":
        return (settings.similarity,)
    if modalities[0] != modalities[1]:
        return (TWO_CONTRASTS,)
    return (ONE_CONTRAST,) if modalities[0] == "ct" else (ONE_CONTRAST, TWO_CONTRASTS)


def _samples_of_levels(lattice: Grid) -> float:
    """Count the samples of the refinement's levels together (registration/objective.level_shape)."""
    spacing = lattice.spacing
    return sum(float(np.prod(lattice.size / np.maximum(distance * spacing.min() / spacing, 1))) for distance in LEVELS)


def _seconds(fixed: Grid, moving: Grid, settings: Settings, lattice: Grid, similarities, inputs: Inputs) -> float:
    """Predict seconds on two CPU cores; for two similarities their geometric mean, hence wrong by 1.1 at most."""
    seconds = VOXEL_SECONDS * (math.prod(fixed.shape) + math.prod(moving.shape)) / 1e6
    automatic = settings.align == "auto" and inputs.initial is None
    align = catalog.find_card(settings.model, settings.weights_dir).alignment if automatic else settings.align
    if align in ("rigid", "similarity", "affine"):
        seconds += ALIGNMENT_SECONDS
    if settings.model != "none":
        seconds += NETWORK_SECONDS
    if settings.refinement == "network":
        seconds += FINETUNING_SECONDS * (settings.steps or NETWORK_STEPS)
    elif settings.refinement == "field":
        rate = math.prod(SIMILARITIES[s].seconds for s in similarities) ** (1 / len(similarities))
        seconds += rate * _samples_of_levels(lattice) / 1e6 * (settings.steps or FIELD_STEPS) / FIELD_STEPS
    return seconds


def _memory(fixed: Grid, moving: Grid, settings: Settings, lattice: Grid, similarities, gpu: bool) -> int:
    """Predict bytes at the peak, the larger of two possible similarities'; a GPU holds lattices, not whole images."""
    stages = [0]
    if settings.model != "none":
        stages.append(NETWORK_BYTES)
    if settings.refinement == "network":
        stages.append(FINETUNING_BYTES)
    elif settings.refinement == "field":
        entries = [SIMILARITIES[s] for s in similarities]
        each = max(entry.gpu_bytes_per_sample if gpu else entry.bytes_per_sample for entry in entries)
        stages.append(each * math.prod(lattice.shape))
    if gpu:
        return GPU_BASE_BYTES + max(stages)
    voxels = math.prod(fixed.shape) + math.prod(moving.shape)
    return BASE_BYTES + max(stages) + voxels * BYTES_PER_VOXEL


def _about_images(inputs: Inputs, settings: Settings, modalities, overlap: float) -> Iterator[str]:
    if overlap < LITTLE_OVERLAP and inputs.initial is None:
        names = {"share": _percent(overlap), "fixed": inputs.fixed.name, "moving": inputs.moving.name}
        little = tr("Only {share} of {fixed} overlaps {moving} where the headers put them", **names)
        expected = catalog.find_card(settings.model, settings.weights_dir).alignment
        if settings.align == "none" or (settings.align == "auto" and expected == "none"):
            yield tr("{little}; choose an alignment or an initial transform.", little=little)
        else:
            kind = "affine" if settings.align == "auto" else settings.align
            yield tr("{little}; the {kind} alignment will bring them together first.", little=little, kind=kind)
    for image in (inputs.fixed, inputs.moving):
        if min(image.grid.shape) < FEW_SLICES:
            yield tr(
                "{name} has only {count} slices; across them little can be told.",
                name=image.name,
                count=min(image.grid.shape),
            )
    if modalities[0] != modalities[1]:
        first, second = (m.upper().replace("MRI", "MR") for m in modalities)
        card = catalog.find_card(settings.model, settings.weights_dir)
        if card.one_modality:
            yield tr(
                "{model} was trained on pairs of one modality, these are {first} and {second}; choose "
                "multiGradICON or no network.",
                model=translated(card.title),
                first=first,
                second=second,
            )
        suits = settings.similarity == "auto" or SIMILARITIES[settings.similarity].two_contrasts
        if settings.refinement != "off" and not suits:
            yield tr(
                "{similarity} compares one contrast, these are {first} and {second}; choose {other}.",
                similarity=settings.similarity,
                first=first,
                second=second,
                other=TWO_CONTRASTS,
            )


def _about_memory(settings: Settings, device: dict[str, Any] | None, needed: int) -> Iterator[str]:
    if device is None or device["name"].startswith("cpu"):
        available = (device or {}).get("memory") or physical_memory()
        if available and needed > NEARLY_FULL * available:
            yield tr(
                "About {needed} of memory are needed and this machine has {available}; close other programs.",
                needed=_gib(needed),
                available=_gib(available),
            )
        return
    available, plan = device.get("memory"), cheaper_settings(settings, device["name"])
    if available and needed > available and plan is not None:
        yield tr(
            "About {needed} are needed and {device} has {available}; should that not do, {plan} is tried.",
            needed=_gib(needed),
            device=device.get("title", device["name"]),
            available=_gib(available),
            plan=plan[1],
        )


def _about_partners(inputs: Inputs, compare: bool) -> Iterator[str]:
    points, moving_points = inputs.fixed_landmarks, inputs.moving_landmarks
    if points is not None and moving_points is not None:
        alone = sorted(set(points.labels) ^ set(moving_points.labels))
        if alone:
            yield tr(
                "{count} landmarks have no partner of the same name ({names}); they are not compared.",
                count=len(alone),
                names=", ".join(alone[:3]),
            )
    elif points is not None:
        yield tr("{name} has no moving landmarks to be compared with.", name=points.name)
    fixed, moving = inputs.fixed_segmentation, inputs.moving_segmentation
    if compare and fixed is not None and moving is not None and not set(fixed.by_name()) & set(moving.by_name()):
        yield tr(
            "{fixed} and {moving} have no segment of the same name; none is compared.",
            fixed=fixed.name,
            moving=moving.name,
        )


def _about_weights(settings: Settings) -> Iterator[str]:
    card = catalog.find_card(settings.model, settings.weights_dir)
    if card.url and catalog.find_weights(card, settings.weights_dir) is None:
        yield tr(
            "The weights of {model} ({size:.0f} MB) will be downloaded first.",
            model=translated(card.title),
            size=card.size / 1e6,
        )


def _modality(facts: ImageFacts, setting: str) -> str:
    return facts.modality if setting == "auto" else setting


def _described(grid: Grid, modality: str) -> Sentence:
    size, spacing = " x ".join(map(str, grid.size)), [f"{s:.2g}" for s in grid.spacing]
    step = spacing[0] if len(set(spacing)) == 1 else " x ".join(spacing)
    kind = "CT" if modality == "ct" else "MR"
    return tr("{size} at {spacing} mm {modality}", size=size, spacing=step, modality=kind)


def _method(settings: Settings) -> str:
    card = catalog.find_card(settings.model, settings.weights_dir)
    title = tr("no network") if card.name == "none" else translated(card.title)
    if settings.refinement == "field":
        return tr("{network} + field refinement", network=title)
    return tr("{network} + fine-tuning", network=title) if settings.refinement == "network" else title


def _where(device: dict[str, Any] | None) -> Sentence:
    if device is None:
        return tr("on the GPU if there is one, else the CPU; there")
    if device["name"] == "cpu":
        return tr("on the CPU,")
    if "title" in device:
        return tr("on {device} ({title}),", device=device["name"], title=device["title"])
    return tr("on {device},", device=device["name"])


def _percent(share: float) -> Sentence:
    return tr("less than 1 %") if 0 < share < 0.01 else tr("{share:.0f} %", share=100 * share)


def _duration(seconds: float) -> Sentence:
    if seconds < 90:
        return tr("{seconds} s", seconds=max(round(seconds / 5), 1) * 5)
    if seconds < 5400:
        return tr("{minutes:.0f} min", minutes=seconds / 60)
    return tr("{hours:.1f} h", hours=seconds / 3600)


def _gib(count: int) -> Sentence:
    return tr("{size:.1f} GiB", size=count / 2**30)
