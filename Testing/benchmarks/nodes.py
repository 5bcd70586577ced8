"""Volume nodes to transform nodes without refinement, against icon_registration followed by ITK's flattening.

    python Testing/benchmarks/nodes.py [--size 175] [--reference 256 256 180] [--threads 2] [--rounds 2]

Random weights of the published architecture. "transform nodes" reads two volume nodes and makes the forward and the
backward transform node; "all outputs" is `register_nodes` with everything that it gives besides (warped volume,
Jacobian, distrust, measures); "register_pair" starts from ITK images and ends with the forward transform flattened over
the fixed image, networks loaded in all of them. Every measurement is a process of its own, all alternate, the fastest
round counts; the peak is that above the process with everything loaded.

The floor is the time that the network's convolutions would take at the throughput measured on this machine for one
large convolution: FLOPs of both directions divided by FLOPs per second.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from separate import PeakMemory, alternately

from IconRegistrationLib.networks import catalog
from IconRegistrationLib.spatial.geometry import Grid, Image

sys.path.insert(0, str(Path(__file__).parents[1] / "headless"))
from test_network import published_network, smooth_pair

VARIANTS = {
    "transforms": "transform nodes",
    "everything": "all outputs of register_nodes",
    "library": "register_pair and ITK flattening",
}


def images(size: tuple[int, int, int]) -> list[Image]:
    """Moving and fixed, [0, 1], on oblique grids of `size` (i, j, k)."""
    c, s = np.cos(0.14), np.sin(0.14)
    direction = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    grids = (
        Grid.from_parts(size, (1.05, 1.05, 1.26), (-125, -120, 30), direction.T),
        Grid.from_parts(size, (1.0, 1.0, 1.2), (-120, -110, 40), direction),
    )
    pair = smooth_pair(size[::-1])
    return [Image(array[0, 0].numpy(), grid) for array, grid in zip(pair, grids, strict=True)]


def measure(variant: str, folder: Path, size: int, reference: tuple[int, int, int]) -> dict:
    """Seconds and peak memory of one variant in this process; where it maps samples of the lattice goes to `folder`."""
    if variant == "throughput":
        return {"per second": convolution_throughput()}
    moving, fixed = images(reference)
    make = library_run if variant == "library" else partial(our_run, variant)
    run = make(folder, size, moving, fixed)
    memory, wall, cpu = PeakMemory(), time.perf_counter(), time.process_time()
    forward = run()
    result = {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak": memory.above_base(),
    }
    lattice = fixed.grid.with_shape((size,) * 3)  # at its samples nothing is interpolated
    nodes = lattice.to_world(np.random.default_rng(0).integers(0, size, (1000, 3)))
    np.save(folder / f"{variant}.npy", forward(nodes))
    return result


def our_run(variant: str, folder: Path, size: int, moving: Image, fixed: Image):
    from IconRegistrationLib.machine import keep_freed_memory
    from IconRegistrationLib.mrml import embedded, transforms, volumes
    from IconRegistrationLib.mrml.registration import register_nodes
    from IconRegistrationLib.registration import register
    from IconRegistrationLib.registration.settings import Settings
    from IconRegistrationLib.workflow import pipeline

    keep_freed_memory()  # as the worker does

    catalog.shipped_cards()["unigradicon"] = replace(catalog.shipped_cards()["unigradicon"], input_shape=(size,) * 3)
    loaded = catalog.load_model(folder / "weights.trch")

    def load(*_, **__):
        return loaded

    # the images are in [0, 1] already: these quantiles leave them alone, as register_pair does
    settings = Settings(
        model=str(folder / "weights.trch"),
        refine="off",
        fixed_modality="mri",
        moving_modality="mri",
        quantile_range=(0.0, 1.0),
        device="cpu",
    )
    scene = embedded.boot()
    nodes = [volumes.node_from_image(scene, image, name) for image, name in ((moving, "moving"), (fixed, "fixed"))]

    def transform_nodes():
        found = register.register(*map(volumes.image_from_node, reversed(nodes)), settings, load=load)
        node = transforms.node_from_field(scene, found.forward, "forward")
        transforms.node_from_field(scene, found.backward, "backward")
        return lambda points: transforms.field_from_node(node).transform_points(points)

    def all_outputs():
        pipeline.compute.__kwdefaults__["load"] = load
        node = register_nodes(nodes[1], nodes[0], settings=settings).forward
        return lambda points: transforms.field_from_node(node).transform_points(points)

    return transform_nodes if variant == "transforms" else all_outputs


def library_run(folder: Path, size: int, moving: Image, fixed: Image):
    import icon_registration.itk_wrapper
    import itk
    import unigradicon
    from adapters import itk_image

    from IconRegistrationLib.spatial.displacement import DisplacementField

    network = unigradicon.make_network([1, 1, size, size, size], include_last_step=True).eval()
    network.regis_net.load_state_dict(torch.load(folder / "weights.trch", weights_only=True))
    pair = [itk_image(image) for image in (moving, fixed)]
    itk.TransformToDisplacementFieldFilter, itk.CompositeTransform  # noqa: B018  itk loads at first use

    def run():
        transform, _ = icon_registration.itk_wrapper.register_pair(network, *pair)
        DisplacementField.from_itk(transform, fixed.grid)
        return lambda points: np.array([transform.TransformPoint(point.tolist()) for point in points])

    return run


def network_flops(size: int) -> int:
    """Of both directions."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from IconRegistrationLib.networks.unet import GradICON

    with FakeTensorMode(), FlopCounterMode(display=False) as counter:  # fake tensors: counted, not computed
        network = GradICON((size,) * 3).eval()
        image = torch.zeros(1, 1, size, size, size)
        network(image, image)
    return 2 * counter.get_total_flops()


def convolution_throughput() -> float:
    """FLOPs per second of a 3^3 convolution of 64 channels into 64 on 64^3 samples, in the faster memory layout."""
    x, layer = torch.rand(1, 64, 64, 64, 64), torch.nn.Conv3d(64, 64, 3, padding=1, bias=False)
    best = 0.0
    with torch.no_grad():
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            x, layer = x.contiguous(memory_format=layout), layer.to(memory_format=layout)
            layer(x)
            for _ in range(5):
                start = time.perf_counter()
                layer(x)
                best = max(best, 2 * 27 * 64 * x.numel() / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=175)
    parser.add_argument("--reference", type=int, nargs=3, default=(256, 256, 180), metavar=("I", "J", "K"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", nargs=2, metavar=("VARIANT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        variant, folder = options.measure
        print(json.dumps(measure(variant, Path(folder), options.size, tuple(options.reference))))
        return

    with tempfile.TemporaryDirectory() as folder:
        torch.save(published_network((65, 65, 65), voxels=0.5).regis_net.state_dict(), Path(folder) / "weights.trch")
        arguments = ["--size", options.size, "--threads", options.threads, "--reference", *options.reference]
        best = alternately(__file__, VARIANTS, options.rounds, folder, *arguments)
        throughput = alternately(__file__, ["throughput"], 1, folder, *arguments)["throughput"]["per second"]
        places = {variant: np.load(Path(folder) / f"{variant}.npy") for variant in VARIANTS}
    flops = network_flops(options.size)
    floor = flops / throughput
    print(f"{options.size}^3, images {options.reference}, {options.threads} threads, torch {torch.__version__}")
    print("| | wall s | CPU s | peak GiB above base | faster | of its memory | times the floor |\n|" + "-|" * 7)
    theirs = best["library"]
    for variant, title in VARIANTS.items():
        row = best[variant]
        faster, smaller = theirs["wall"] / row["wall"], row["peak"] / theirs["peak"]
        print(
            f"| {title} | {row['wall']:.1f} | {row['cpu']:.1f} | {row['peak']:.2f} | {faster:.1f} x | {smaller:.2f} "
            f"| {row['wall'] / floor:.2f} |"
        )
    print(f"network: {flops / 1e12:.2f} TFLOP, machine: {throughput / 1e9:.0f} GFLOP/s, floor {floor:.2f} s")
    apart = np.linalg.norm(places["transforms"] - places["library"], axis=1).max()
    print(f"the two forward transforms lie at most {apart:.1e} mm apart")


if __name__ == "__main__":
    main()
