"""What a GPU has to hold, found without one: the tests' stand-in for a device counts the tensors that are on it.

    python Testing/benchmarks/device.py [--size 175]

Bytes of all tensors of the device at the most, images and weights included, random weights of the published
architecture. The code is that which runs on a GPU; computed on the CPU it takes minutes. Not counted are what kernels
borrow while they run (of convolutions above all) and what CUDA itself takes, half a GiB or so.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from separate import alternately
from steps import Steps, network_run

from IconRegistrationLib.errors import Cancelled
from IconRegistrationLib.networks.inference import InferenceNetwork
from IconRegistrationLib.networks.unet import GradICON
from IconRegistrationLib.registration.objective import FieldRefinement, RefinementPair
from IconRegistrationLib.registration.refine import linear_maps, refine
from IconRegistrationLib.spatial.geometry import Grid

sys.path.insert(0, str(Path(__file__).parents[1] / "headless"))
sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from stand_in import Device, Elsewhere, set_up
from test_network import published_network, smooth_pair

VARIANTS = {
    "maps": "both maps of the network",
    "lncc2": "refinement of the field, lncc2",
    "mind": "refinement of the field, mind",
    "network": "steps of the network",
}


def measure(variant: str, folder: Path, size: int) -> dict:
    device, shape = set_up(), (size,) * 3
    with Device(), torch.autograd.set_multithreading_enabled(False):
        moving, fixed = (image.to(device) for image in smooth_pair(shape))
        if variant == "maps":
            maps_of(folder, shape, moving, fixed)
        elif variant == "network":
            with suppress(Cancelled):
                network_run(folder, shape, moving, fixed)(Steps(1))
        else:
            refined(variant, shape, moving, fixed)
    return {"GiB": Elsewhere.most / 2**30}


def maps_of(folder: Path, shape, moving, fixed) -> None:
    network = GradICON(shape).eval()
    network.load_state_dict(torch.load(folder / "weights.trch", weights_only=True))
    InferenceNetwork(network.to(moving.device)).maps(moving, fixed)


def refined(similarity: str, shape, moving, fixed) -> None:
    lattice, ones = Grid.from_parts(shape[::-1]), torch.ones_like(fixed)
    pair = RefinementPair(fixed, moving, ones, ones, lattice, lattice, np.eye(4))
    refine(pair, *linear_maps(pair), FieldRefinement(steps=2, similarity=similarity))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=175)
    parser.add_argument("--measure", nargs=2, metavar=("VARIANT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        variant, folder = options.measure
        print(json.dumps(measure(variant, Path(folder), options.size)))
        return

    with tempfile.TemporaryDirectory() as folder:
        torch.save(published_network((65, 65, 65), voxels=0.5).regis_net.state_dict(), Path(folder) / "weights.trch")
        found = alternately(__file__, VARIANTS, 1, folder, "--size", options.size)
    print(f"{options.size}^3\n| | GiB at the most |\n|-|-|")
    for variant, title in VARIANTS.items():
        print(f"| {title} | {found[variant]['GiB']:.2f} |")


if __name__ == "__main__":
    main()
