"""What will happen, before it does: the line under the selectors, and what to try when a device was too small.

No torch here: Slicer's own process asks at every change of a selector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..machine import physical_memory
from ..networks import catalog
from ..registration.checks import BYTES_PER_VOXEL, check_image
from ..registration.intensity import guess_modality
from ..registration.settings import Settings
from ..registration.similarities import ONE_CONTRAST, SIMILARITIES, TWO_CONTRASTS
from ..spatial.geometry import Grid, Image
from ..spatial.lattice import REFINEMENT_VOXELS, refinement_lattices, region_box
from .checks import check_inputs
from .fallback import _cheaper
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
        try:
            check_image(image)
        except InputError as error:
            return cls("mri", str(error))
        return cls(guess_modality(image), None)


@dataclass(frozen=True)
class Preflight:
    """summary: one line.  problem: why this cannot be registered, or None.  warnings: what to think about first.

    overlap: share of the fixed volume in [0, 1] that the moving one covers where they are, after the initial transform.
    seconds: on the CPU, also while the devices are unknown; None on a GPU, where nothing has been measured, and where
        there is a problem.
    memory: bytes at the peak, of the device that computes; None where there is a problem.
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
    """What `compute(inputs, settings, guide=guide, compare=compare)` would do, in about a millisecond.

    facts: of the fixed and the moving image.
    devices: those of the worker ({"name", "title", "memory"}), None while they are unknown.
    speed: measured by predicted seconds of earlier runs on this machine (`updated_speed`).
    """
    fixed, moving = inputs.fixed.grid, inputs.moving.grid
    linear = np.eye(4) if inputs.initial is None else np.asarray(inputs.initial, dtype=np.float64)
    overlap = overlap_share(fixed, moving, linear)
    place = f"{_described(fixed, _modality(facts[0], settings.fixed_modality))} <- " + _described(
        moving, _modality(facts[1], settings.moving_modality)
    )
    place += f"; overlap {_percent(overlap)}"
    device, problem = None, None
    try:
        _check(inputs, settings, facts, guide, linear)
        device = _device(settings, devices)
    except InputError as error:
        problem = str(error)
    if problem:
        return Preflight(place, problem, (), overlap, None, None)
    modalities = tuple(
        _modality(f, m) for f, m in zip(facts, (settings.fixed_modality, settings.moving_modality), strict=True)
    )
    name = "cpu" if device is None else device["name"]
    gpu = not name.startswith("cpu")
    lattice = _lattice(inputs, settings, linear, gpu)
    similarities = _similarities(settings, modalities)
    memory = _memory(fixed, moving, settings, lattice, similarities, gpu)
    seconds = None if gpu else speed * _seconds(fixed, moving, settings, lattice, similarities, inputs)
    where = _where(device)
    cost = f"about {_duration(seconds)}, {_gib(memory)}" if seconds is not None else f"about {_gib(memory)}"
    warnings = [
        *_about_images(inputs, settings, modalities, overlap),
        *_about_memory(settings, device, memory),
        *_about_partners(inputs, compare and not guide),
        *_about_weights(settings),
    ]
    return Preflight(f"{place}; {_method(settings)} {where} {cost}", None, tuple(warnings), overlap, seconds, memory)


def updated_speed(speed: float, predicted: float, measured: float) -> float:
    """The factor after one more run: half-way, in ratio, to what that run says. Unusable times change nothing.

    predicted: seconds that `preflight` gave with `speed`.
    """
    if not (0 < predicted < math.inf and 0 < measured < math.inf):
        return speed
    return min(max(speed * math.sqrt(measured / predicted), 0.05), 20.0)


def overlap_share(fixed: Grid, moving: Grid, linear: np.ndarray) -> float:
    """Share of the fixed box's volume inside the moving box, exact, any geometry; linear: 4x4, fixed mm -> moving mm.

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
    """The faces (n, 3) of a convex body of which only `side * x[axis] <= 1` is kept, with the face that the cut makes.

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
    """Raises the InputError with which a run would end, as far as geometry and facts tell it."""
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


def _device(settings: Settings, devices: list[dict] | None) -> dict | None:
    """What will compute: {"name": ...} and more where known; None where only the worker can tell."""
    wanted = settings.device
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
                f"Device {wanted!r} was asked for and this machine has {names}; choose auto or one of them."
            )
    evaluated = settings.model != "none" and settings.refinement != "network"
    if evaluated and settings.precision == "mixed" and device and not device["name"].startswith("cuda"):
        raise InputError(
            f"Mixed precision gains nothing on {device['name']} and costs accuracy; choose float32 or auto."
        )
    return device


def _lattice(inputs: Inputs, settings: Settings, linear: np.ndarray, gpu: bool) -> Grid:
    """The lattice that is worked on; the refinement's as it would be where the boxes overlap most."""
    fixed, moving = inputs.fixed.grid, inputs.moving.grid
    if settings.model != "none" and settings.refinement != "field":
        return fixed.with_shape(catalog.find_card(settings.model, settings.weights_dir).input_shape)
    centred = linear.copy()
    centred[:3, 3] += moving.centre - (linear @ [*fixed.centre, 1])[:3]
    if overlap_share(fixed, moving, centred) > 2 * overlap_share(fixed, moving, linear):
        linear = centred  # from where an alignment would start
    budget = REFINEMENT_VOXELS["cuda" if gpu else "cpu"]
    try:
        options = {"spacing": settings.spacing, "voxels": budget}
        return refinement_lattices(fixed, moving, linear, region=inputs.region, **options)[0]
    except InputError:  # a region beside the moving image, until it is aligned
        return fixed if np.prod(fixed.shape) <= budget else fixed.with_shape([round(budget ** (1 / 3))] * 3)


def _similarities(settings: Settings, modalities) -> tuple[str, ...]:
    """Those that the run may use: with MR and MR, one contrast or two, only the aligned voxels decide."""
    if settings.similarity != "auto":
        return (settings.similarity,)
    if modalities[0] != modalities[1]:
        return (TWO_CONTRASTS,)
    return (ONE_CONTRAST,) if modalities[0] == "ct" else (ONE_CONTRAST, TWO_CONTRASTS)


def _samples_of_levels(lattice: Grid) -> float:
    """Samples of the refinement's levels together (registration/objective.level_shape)."""
    spacing = lattice.spacing
    return sum(float(np.prod(lattice.size / np.maximum(distance * spacing.min() / spacing, 1))) for distance in LEVELS)


def _seconds(fixed: Grid, moving: Grid, settings: Settings, lattice: Grid, similarities, inputs: Inputs) -> float:
    """On two CPU cores; for two possible similarities their geometric mean, hence wrong by 1.1 at most."""
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
    """Bytes at the peak; for two possible similarities the larger. A GPU holds the lattices, not the whole images."""
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


def _about_images(inputs: Inputs, settings: Settings, modalities, overlap: float):
    if overlap < LITTLE_OVERLAP and inputs.initial is None:
        little = (
            f"Only {_percent(overlap)} of {inputs.fixed.name} overlaps {inputs.moving.name} where the headers put them"
        )
        expected = catalog.find_card(settings.model, settings.weights_dir).alignment
        if settings.align == "none" or (settings.align == "auto" and expected == "none"):
            yield f"{little}; choose an alignment or an initial transform."
        else:
            kind = "affine" if settings.align == "auto" else settings.align
            yield f"{little}; the {kind} alignment will bring them together first."
    for image in (inputs.fixed, inputs.moving):
        if min(image.grid.shape) < FEW_SLICES:
            yield f"{image.name} has only {min(image.grid.shape)} slices; across them little can be told."
    if modalities[0] != modalities[1]:
        both = " and ".join(m.upper().replace("MRI", "MR") for m in modalities)
        if settings.model == "unigradicon":
            yield (
                f"uniGradICON was trained on pairs of one modality, these are {both}; "
                f"choose multiGradICON or no network."
            )
        suits = settings.similarity == "auto" or SIMILARITIES[settings.similarity].two_contrasts
        if settings.refinement != "off" and not suits:
            yield f"{settings.similarity} compares one contrast, these are {both}; choose {TWO_CONTRASTS}."


def _about_memory(settings: Settings, device: dict | None, needed: int):
    name = "cpu" if device is None else device["name"]
    if name.startswith("cpu"):
        there = (device or {}).get("memory") or physical_memory()
        if there and needed > NEARLY_FULL * there:
            yield f"About {_gib(needed)} of memory are needed and this machine has {_gib(there)}; close other programs."
        return
    there = device.get("memory")
    if there and needed > there:
        after = _cheaper(settings, name)[1]
        yield (
            f"About {_gib(needed)} are needed and {device.get('title', name)} has {_gib(there)}; "
            f"should that not do, {after} is tried."
        )


def _about_partners(inputs: Inputs, compare: bool):
    fixed, moving = inputs.fixed_landmarks, inputs.moving_landmarks
    if fixed is not None and moving is not None:
        alone = sorted(set(fixed.labels) ^ set(moving.labels))
        if alone:
            yield (
                f"{len(alone)} landmarks have no partner of the same name ({', '.join(alone[:3])}); "
                f"they are not compared."
            )
    elif fixed is not None:
        yield f"{fixed.name} has no moving landmarks to be compared with."
    fixed, moving = inputs.fixed_segmentation, inputs.moving_segmentation
    if compare and fixed is not None and moving is not None and not set(fixed.by_name()) & set(moving.by_name()):
        yield f"{fixed.name} and {moving.name} have no segment of the same name; none is compared."


def _about_weights(settings: Settings):
    card = catalog.find_card(settings.model, settings.weights_dir)
    if card.url and catalog.find_weights(card, settings.weights_dir) is None:
        yield f"The weights of {card.title} ({card.size / 1e6:.0f} MB) will be downloaded first."


def _modality(facts: ImageFacts, setting: str) -> str:
    return facts.modality if setting == "auto" else setting


def _described(grid: Grid, modality: str) -> str:
    size, spacing = " x ".join(map(str, grid.size)), [f"{s:.2g}" for s in grid.spacing]
    step = spacing[0] if len(set(spacing)) == 1 else " x ".join(spacing)
    return f"{size} at {step} mm {'CT' if modality == 'ct' else 'MR'}"


def _method(settings: Settings) -> str:
    refinement = {"field": " + field refinement", "network": " + fine-tuning", "off": ""}[settings.refinement]
    title = catalog.find_card(settings.model, settings.weights_dir).title.replace("No network", "no network")
    return f"{title}{refinement}"


def _where(device: dict | None) -> str:
    if device is None:
        return "on the GPU if there is one, else the CPU; there"
    if device["name"] == "cpu":
        return "on the CPU,"
    return f"on {device['name']} ({device['title']})," if "title" in device else f"on {device['name']},"


def _percent(share: float) -> str:
    return "less than 1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(round(seconds / 5), 1) * 5} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
