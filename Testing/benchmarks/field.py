"""The field against ITK and icon_registration, side by side: python Testing/benchmarks/field.py [--large]

Times are the least of a few runs that alternate between the two, on one thread; memory is the peak above what was
held before. Another program on the machine shifts seconds, hardly ratios. --large warps a 512 x 512 x 300 volume.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
import types

os.environ.setdefault("OMP_NUM_THREADS", "1")

import itk
import numpy as np
import psutil
import torch

from IconRegistrationLib.spatial.field import (
    DisplacementField,
    compose_displacements,
    displacement_from_phi,
    inverse_consistency_error,
    jacobian_determinant,
    warp_image,
    warp_labels,
)
from IconRegistrationLib.spatial.geometry import Grid, Image
from IconRegistrationLib.spatial.sampling import sample, smooth_for


def peak_memory(function):
    """The result of `function` and the GiB of resident memory it took beyond what there was."""
    process, stop, highest = psutil.Process(), threading.Event(), [0]

    def watch():
        while not stop.wait(0.002):
            highest[0] = max(highest[0], process.memory_info().rss)

    base = process.memory_info().rss
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        result = function()
    finally:
        stop.set()
        thread.join()
    return result, max(0, highest[0] - base) / 2**30


def alternate(name, candidates, runs=3):
    """Prints the least time and the peak memory of each candidate; returns their last results."""
    seconds, gib, results = {c: [] for c in candidates}, {}, {}
    for _ in range(runs):
        for candidate, function in candidates.items():
            results.pop(candidate, None)
            start = time.perf_counter()
            results[candidate], gib[candidate] = peak_memory(function)
            seconds[candidate].append(time.perf_counter() - start)
    row = "   ".join(f"{c} {min(seconds[c]):6.2f} s {gib[c]:5.2f} GiB" for c in candidates)
    print(f"{name:34} {row}", flush=True)
    return results


def rotation(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def itk_image(array, grid):
    image = itk.image_from_array(array)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(grid.direction)))
    return image


def itk_warp(image, transform, target, kind="Linear"):
    return itk.array_from_image(
        itk.resample_image_filter(
            image,
            transform=transform,
            interpolator=getattr(itk, f"{kind}InterpolateImageFunction")[type(image), itk.D].New(),
            size=target.size,
            output_spacing=target.spacing,
            output_origin=target.origin,
            output_direction=itk.matrix_from_array(np.ascontiguousarray(target.direction)),
        )
    )


def icon_composite(phi, fixed, moving):
    """icon_registration's own transform of this phi, or None where the package is missing."""
    try:
        sys.modules.setdefault("tqdm", types.ModuleType("tqdm"))  # its training's progress bar
        from icon_registration.itk_wrapper import create_itk_transform
    except ImportError as error:
        print(f"icon_registration is left out: {error}")
        return None
    identity = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, n) for n in phi.shape[2:]], indexing="ij"))[None]
    images = [itk_image(np.zeros(g.shape, np.float32), g) for g in (moving, fixed)]
    return lambda: create_itk_transform(phi, identity, *images)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="a 512 x 512 x 300 volume instead of 256 x 256 x 180")
    large = parser.parse_args().large
    torch.set_num_threads(1)
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)

    size, spacing = ((512, 512, 300), (0.8, 0.8, 1.5)) if large else ((256, 256, 180), (1, 1, 1.2))
    fixed = Grid.from_parts(size, spacing, (-120, -110, 40), rotation(8))
    moving = Grid.from_parts(size, np.multiply(spacing, 1.05), (-125, -120, 30), rotation(-5))
    lattice = (175, 175, 175)
    unit = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, n) for n in lattice], indexing="ij"))[None]
    phi = unit + 0.01 * torch.sin(12 * unit.flip(1))
    lattices = fixed.with_shape(lattice), moving.with_shape(lattice)
    print(f"lattice {lattice}, volume {size}, one thread; ours against ITK (icon: icon_registration)")

    candidates = {"ours": lambda: displacement_from_phi(phi, *lattices, cover=fixed)}
    composite = icon_composite(phi, fixed, moving)
    if composite:
        candidates["icon"] = composite
        candidates["icon, flattened"] = lambda: DisplacementField.from_itk(composite(), fixed)
    field = alternate("flatten", candidates, runs=1 if large else 2)["ours"]
    transform = alternate("to ITK", {"ours": field.to_itk})["ours"]

    k, j, i = np.ogrid[tuple(slice(n) for n in moving.shape)]
    array = (np.sin(i / 9.0) + np.cos(j / 7.0) + np.sin(k / 5.0)).astype(np.float32) * 100
    image, theirs = Image(array, moving), itk_image(array, moving)
    results = alternate(
        "warp, linear, fixed grid",
        {"ours": lambda: warp_image(image, field, fixed).array, "ITK": lambda: itk_warp(theirs, transform, fixed)},
    )
    print(f"{'':34} largest difference {np.abs(results['ours'] - results['ITK']).max():.4f} of 600")
    other = fixed.moved(np.block([[rotation(3), np.zeros((3, 1))], [np.zeros(3), 1]]))
    alternate(
        "warp, linear, grid off the lattice",
        {"ours": lambda: warp_image(image, field, other).array, "ITK": lambda: itk_warp(theirs, transform, other)},
    )

    labels = (array / 40 + 8).round().clip(0, 15).astype(np.uint8)
    ours, theirs = Image(labels, moving), itk_image(labels, moving)
    results = alternate(
        "warp labels, nearest",
        {
            "ours": lambda: warp_labels(ours, field, fixed).array,
            "ITK": lambda: itk_warp(theirs, transform, fixed, "NearestNeighbor"),
        },
    )
    print(f"{'':34} voxels that differ: {(results['ours'] != results['ITK']).sum()} of {labels.size}")
    many = Image((labels.astype(np.int32) * 9 + (i // 16 + j // 16 + k // 16) % 9), moving)
    for name, given in ((f"{len(np.unique(labels))} labels", ours), (f"{len(np.unique(many.array))} labels", many)):
        smooth = alternate(
            f"warp {name}, label-wise linear", {"ours": lambda given=given: warp_labels(given, field, fixed, "linear")}
        )["ours"]
        changed = (smooth.array != warp_labels(given, field, fixed).array).mean()
        print(f"{'':34} differs from nearest in {changed:.2%} of voxels")

    vectors = itk.Image[itk.Vector[itk.F, 3], 3]
    displacement = itk.image_from_array(field.displacement, ttype=(vectors,))
    displacement.SetSpacing(field.grid.spacing)

    def itk_jacobian():
        jacobian = itk.DisplacementFieldJacobianDeterminantFilter[vectors, itk.F].New(displacement)
        jacobian.Update()
        return itk.array_from_image(jacobian.GetOutput())

    alternate("Jacobian determinant, lattice", {"ours": lambda: jacobian_determinant(field), "ITK": itk_jacobian})
    backward = displacement_from_phi(2 * unit - phi, *reversed(lattices), cover=moving)
    alternate("inverse consistency, lattice", {"ours": lambda: inverse_consistency_error(field, backward)})
    alternate("composition, lattice", {"ours": lambda: compose_displacements(field, backward)})
    alternate("one vector per fixed voxel", {"ours": lambda: field.sampled_on(fixed)}, runs=1)
    points = fixed.centre + np.random.default_rng(0).uniform(-90, 90, (1_000_000, 3))
    alternate("a million points", {"ours": lambda: field.transform_points(points)})
    alternate("image to lattice, linear", {"ours": lambda: sample(array, moving, lattices[1])})
    alternate("image smoothed for 96^3", {"ours": lambda: smooth_for(array, moving, moving.with_shape((96, 96, 96)))})


if __name__ == "__main__":
    main()
