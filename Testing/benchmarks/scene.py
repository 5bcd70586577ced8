"""What a user waits for once a registration is there, in a real scene without the application's windows.

    python Testing/benchmarks/scene.py [--size 512 512 300] [--lattice 175] [--threads 2] [--rounds 2]

A volume and a segmentation of --size (i, j, k) under a grid transform with --lattice^3 samples; pictures are one slice
view of 512 pixels, rendered by the processor where there is no GPU. Steps run in this order, --rounds times, and the
fastest counts. The peak is that above the process when the step begins.
"""

from __future__ import annotations

import argparse
import itertools
import time
from contextlib import ExitStack

import numpy as np
import torch
from separate import PeakMemory

from IconRegistrationLib.mrml import embedded, pictures, review, segmentations, transforms, volumes
from IconRegistrationLib.spatial.displacement import DisplacementField
from IconRegistrationLib.spatial.field import warp_labels
from IconRegistrationLib.spatial.geometry import Grid, Image, Segment, Segmentation

SEGMENTS = 7
DRAG = (0.8, 0.6, 0.4, 0.2, 1.0)


def a_scan(grid: Grid) -> Image:
    k, j, i = np.ogrid[tuple(slice(n) for n in grid.shape)]
    return Image(((np.sin(i / 9.0) + np.cos(j / 7.0) + np.sin(k / 5.0)) * 300).astype(np.int16), grid, "moving")


def labels_of(scan: Image) -> Image:
    bands = np.digitize(scan.array, np.linspace(-700, 700, SEGMENTS + 1)).astype(np.uint8)
    return Image(np.where(bands > SEGMENTS, 0, bands).astype(np.uint8), scan.grid, "labels")


def a_field(grid: Grid) -> DisplacementField:
    """Waves of 6 mm."""
    k, j, i = np.indices(grid.shape, dtype=np.float32)
    waves = np.stack([np.sin(j / 11), np.cos(k / 13), np.sin(i / 12)], -1)
    return DisplacementField(6 * waves, grid)


class Steps:
    """Times and peaks by name, in the order of their first run."""

    def __init__(self):
        self.found: dict[str, list[tuple[float, float]]] = {}

    def __call__(self, name: str, function):
        memory, start = PeakMemory(), time.perf_counter()
        result = function()
        self.found.setdefault(name, []).append((time.perf_counter() - start, memory.above_base()))
        return result

    def print(self) -> None:
        print("| step | seconds | peak GiB above base |\n|-|-|-|")
        for name, runs in self.found.items():
            seconds, peak = (min(values) for values in zip(*runs, strict=True))
            print(f"| {name} | {seconds:.2f} | {peak:.2f} |")


def run(steps: Steps, scan: Image, labels: Image, field: DisplacementField) -> None:
    scene = embedded.boot()
    names = tuple(Segment(f"band {n}", n, identifier=f"band_{n}") for n in range(1, SEGMENTS + 1))
    segmentation = Segmentation((labels.array,), names, labels.grid, "bands")
    volume = steps("volume node", lambda: volumes.node_from_image(scene, scan, "moving"))
    segments = segmentations.node_from_segmentation(scene, segmentation, "bands")
    transform = steps("transform node", lambda: transforms.node_from_field(scene, field, "forward"))
    before = review.SceneRestorePoint(scene)
    if pictures.can_render() is None:
        show(steps, scene, before, volume, segments, transform, scan.grid.centre * (-1, -1, 1))
    else:
        print(pictures.can_render())
    before.restore()
    for name, node in (("volume", volume), (f"segmentation, {SEGMENTS} segments", segments)):
        node.SetAndObserveTransformNodeID(transform.GetID())
        steps(f"harden {name}", node.HardenTransform)
    for node in (volume, segments, transform):
        scene.RemoveNode(node)
    steps("warp labels, nearest", lambda: warp_labels(labels, field, labels.grid))
    steps("warp labels, label-wise linear", lambda: warp_labels(labels, field, labels.grid, "linear"))


def show(steps: Steps, scene, before, volume, segments, transform, middle) -> None:
    with ExitStack() as stack:
        window = pictures._slice_view(stack, scene, "Axial", volume, None, 0.5, middle, 512)
        steps("display, not under the transform", window.Render)

        def put_under():
            for node in (volume, segments):
                review.put_under(before, node, transform)
            window.Render()

        def drag():
            for amount in DRAG:
                review.set_warp_amount(transform, amount)
                window.Render()

        steps("first display under it", put_under)
        steps(f"warp amount dragged, {len(DRAG)} pictures", drag)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 300), metavar=("I", "J", "K"))
    parser.add_argument("--lattice", type=int, default=175)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    extent = np.array((400, 400, 450))
    c, s = np.cos(0.1), np.sin(0.1)
    grid = Grid.from_parts(options.size, extent / options.size, -extent / 2, [[c, -s, 0], [s, c, 0], [0, 0, 1]])
    scan = a_scan(grid)
    labels, field = labels_of(scan), a_field(grid.with_shape((options.lattice,) * 3))
    steps = Steps()
    for _ in itertools.repeat(None, options.rounds):
        run(steps, scan, labels, field)
    print(f"{tuple(options.size)}, field of {options.lattice}^3, {options.threads} threads")
    steps.print()


if __name__ == "__main__":
    main()
