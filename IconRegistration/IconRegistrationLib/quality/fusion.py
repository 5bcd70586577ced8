"""Label fusion: the segmentations that several atlases give one image, as one segmentation.

Every atlas votes for what it sees at a voxel: with one vote (majority voting), or with as much weight as its warped
image resembles the target around the voxel (locally weighted voting: Artaechevarria, Munoz-Barrutia and
Ortiz-de-Solorzano, Combination strategies in multi-atlas image segmentation, IEEE TMI 2009).

Joint label fusion (Wang et al., IEEE TPAMI 2013) also discounts atlases that err together. It solves a system of all
atlases in every voxel, after a search for the best patch of each; both pay with ten and more similar atlases, and the
search repairs registrations coarser than ours. It is not built here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import InputError
from ..spatial.geometry import Image, Segment, Segmentation
from ..spatial.sampling import SLAB_VOXELS, slabs
from ..text import tr

#: Half the edge of the window in which images are compared, in mm; at least two voxels.
RADIUS_MM = 5.0
#: Power of the squared correlation: how much more a better atlas counts.
GAIN = 2.0
#: Weight of an atlas that resembles nothing: where all do not, as in plain tissue, all count alike.
_LEAST_WEIGHT = 1e-3
#: Of the image's variance: a window that varies less is noise.
_FLAT = 1e-4


@dataclass(frozen=True)
class Fusion:
    """agreement: the share of the vote that won, float32 in [0, 1] (of several layers the least)."""

    segmentation: Segmentation
    agreement: Image


# ------------------------------------------------------------------------------------------------------------ weights


def vote_weights(warped: Image, target: Image, radius: float = RADIUS_MM, gain: float = GAIN) -> np.ndarray:
    """Return how much an atlas counts in each voxel: float16 [k, j, i] in (0, 1].

    warped: the atlas' image on the target's grid.  radius: of the cubic window in mm.
    The weight is c^(2 gain), c the correlation of both images in the window; of either sign, since a structure may be
    dark in one and bright in the other. The window ends at the border of the image.
    Raises InputError if the images lie on different grids.
    """
    _check_grid(warped.grid, target.grid, warped.name)
    reach = [max(2, round(radius / s)) for s in target.grid.spacing[::-1]]
    halo, depth = reach[0], target.grid.shape[0]
    scales = [(float(image.array.mean()), float(image.array.std()) or 1.0) for image in (warped, target)]
    weights = np.empty(target.grid.shape, np.float16)
    thickness = max(4 * halo, SLAB_VOXELS // target.array[0].size)  # what a slab shares with the next is computed twice
    for start in range(0, depth, thickness):
        slab = slice(start, min(start + thickness, depth))
        low, high = max(slab.start - halo, 0), min(slab.stop + halo, depth)
        a, b = (
            (image.array[low:high].astype(np.float64) - mean) / std
            for image, (mean, std) in zip((warped, target), scales, strict=True)
        )
        squared = _squared_correlation(a, b, reach)[slab.start - low : slab.stop - low]
        weights[slab] = np.maximum(squared**gain, _LEAST_WEIGHT)
    return weights


def _squared_correlation(a: np.ndarray, b: np.ndarray, reach: Sequence[int]) -> np.ndarray:
    """Correlate images [k, j, i] of unit variance, within `reach` (k, j, i) voxels around each voxel; squared."""
    mean_a, mean_b = _mean(a, reach), _mean(b, reach)
    covariance = _mean(a * b, reach) - mean_a * mean_b
    variance_a, variance_b = (_mean(x * x, reach) - m * m for x, m in ((a, mean_a), (b, mean_b)))
    return covariance**2 / ((variance_a.clip(0) + _FLAT) * (variance_b.clip(0) + _FLAT))


def _mean(image: np.ndarray, reach: Sequence[int]) -> np.ndarray:
    """Average over the voxels within `reach` that exist; by running sums, whose cost does not depend on the reach."""
    for axis, (n, reached) in enumerate(zip(image.shape, reach, strict=True)):
        sums = np.insert(image.cumsum(axis), 0, 0, axis)
        first, past = (np.arange(n) - reached).clip(0), (np.arange(n) + reached + 1).clip(max=n)
        count = (past - first).reshape([-1 if a == axis else 1 for a in range(3)])
        image = (sums.take(past, axis) - sums.take(first, axis)) / count
    return image


# -------------------------------------------------------------------------------------------------------------- votes


def fuse(atlases: Sequence[Segmentation], weights: Sequence[np.ndarray] | None = None) -> Fusion:
    """Fuse the structures that the atlases name into one segmentation; they are matched by name.

    atlases: warped to one grid.  weights: of each, [k, j, i] (`vote_weights`); without them every atlas has one vote.

    Structures that share a layer in every atlas that has both exclude each other, and with the background they share
    the vote; the others may overlap and are fused apart. The largest share wins. Equal shares go to the background,
    else to the structure that the first atlases name first. An atlas without a structure has no say in it: a share is
    that of the atlases which know the structure.

    Names, colours and tags are those of the first atlas that has the structure. Memory: a slab of votes at a time.
    Raises InputError if the atlases lie on different grids.
    """
    if not atlases:
        raise InputError(tr("There is nothing to fuse; give at least one atlas."))
    for atlas in atlases:
        _check_grid(atlas.grid, atlases[0].grid, atlas.name)
    named = [_in_order(atlas) for atlas in atlases]
    layers, segments = [], []
    agreement = np.ones(atlases[0].grid.shape, np.float32)
    for number, names in enumerate(_exclusive(named)):
        layers.append(_vote(atlases, named, names, weights, agreement))
        for value, name in enumerate(names, start=1):
            segments.append(replace(_first(named, name), layer=number, value=value, identifier=""))
    segments = [replace(segment, identifier=f"Segment_{n}") for n, segment in enumerate(segments, start=1)]
    segmentation = Segmentation(tuple(layers), tuple(segments), atlases[0].grid, "fused")
    return Fusion(segmentation, Image(agreement, atlases[0].grid, "agreement"))


def _check_grid(grid, expected, name: str) -> None:
    if not grid.is_close(expected):
        raise InputError(
            tr("{name} lies on another grid than the rest; warp every atlas to the grid of the target.", name=name)
        )


def _in_order(atlas: Segmentation) -> dict[str, Segment]:
    """Return the segments by name, as the atlas lists them; of two with one name the first."""
    found: dict[str, Segment] = {}
    for segment in atlas.segments:
        found.setdefault(segment.name, segment)
    return found


def _first(named: Sequence[dict[str, Segment]], name: str) -> Segment:
    return next(segments[name] for segments in named if name in segments)


def _exclusive(named: Sequence[dict[str, Segment]]) -> list[list[str]]:
    """Return names in groups; the structures of a group overlap in no atlas."""
    groups: list[list[str]] = []
    for name in dict.fromkeys(name for segments in named for name in segments):
        for group in groups:
            if all(_share_layers(named, name, other) for other in group):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _share_layers(named: Sequence[dict[str, Segment]], a: str, b: str) -> bool:
    return all(s[a].layer == s[b].layer for s in named if a in s and b in s)


def _vote(atlases, named, names: list[str], weights, agreement: np.ndarray) -> np.ndarray:
    """Return the winners among `names`, 1 for the first, 0 for the background; lowers `agreement` to their shares."""
    known = [[n for n, name in enumerate(names, start=1) if name in segments] for segments in named]
    voters = [v for v, indices in enumerate(known) if indices]
    tables = {v: _table(atlases[v], named[v], names) for v in voters}
    result = np.empty(agreement.shape, np.uint8 if len(names) < 256 else np.uint16)
    for slab in slabs(agreement.shape):
        size = agreement[slab].size
        votes, total = np.zeros((len(names) + 1, size)), np.zeros((len(names) + 1, size))
        for v in voters:
            layer, table = tables[v]
            weight = np.ones(size) if weights is None else weights[v][slab].reshape(-1).astype(np.float64)
            votes[table(atlases[v].layers[layer][slab].reshape(-1)), np.arange(size)] += weight
            for index in (0, *known[v]):
                total[index] += weight
        shares = votes / total
        winner = shares.argmax(axis=0)  # of equals the first
        result[slab] = winner.reshape(result[slab].shape)
        share = shares[winner, np.arange(size)].reshape(result[slab].shape)
        np.minimum(agreement[slab], share, out=agreement[slab])
    return result


def _table(atlas: Segmentation, segments: dict[str, Segment], names: list[str]):
    """Return the layer that holds `names`, and a function from its values to the positions in `names`, from 1."""
    there = {segments[name].value: n for n, name in enumerate(names, start=1) if name in segments}
    layer = next(segments[name].layer for name in names if name in segments)
    values = np.array(sorted(there))
    places = np.array([there[value] for value in values])

    def place(labels: np.ndarray) -> np.ndarray:
        nearest = np.searchsorted(values, labels).clip(max=len(values) - 1)
        return np.where(values[nearest] == labels, places[nearest], 0)

    return layer, place
