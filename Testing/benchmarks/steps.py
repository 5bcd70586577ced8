"""One step of refinement: of the field, of the network as `refine="network"` does it, and as published.

    python Testing/benchmarks/steps.py [--size 175] [--threads 2] [--rounds 1] [--steps 2]

Random weights of the published architecture, one pair, one lattice; both directions are optimised in all of them. Each
variant is a process of its own, they alternate, and the fastest step counts. The peak is that above the process with
weights and images loaded.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from separate import PeakMemory, alternately

from IconRegistrationLib.errors import Cancelled

sys.path.insert(0, str(Path(__file__).parents[1] / "headless"))
from test_network import published_network, smooth_pair

VARIANTS = {"field": "field", "network": "network", "library": "published"}


class Steps:
    """Called after every step, it ends the run when `count` steps after the first are done."""

    def __init__(self, count: int):
        self.count, self.times = count, []

    def __call__(self, *_) -> None:
        self.times.append(time.perf_counter())
        if len(self.times) > self.count:
            raise Cancelled

    @property
    def fastest(self) -> float:
        return float(np.diff(self.times).min())


def measure(variant: str, folder: Path, size: int, count: int) -> dict:
    shape = (size,) * 3
    moving, fixed = smooth_pair(shape)
    run = {"field": field_run, "network": network_run, "library": library_run}[variant](folder, shape, moving, fixed)
    steps = Steps(count)
    memory = PeakMemory()
    try:
        run(steps)
    except Cancelled:
        return {"seconds": steps.fastest, "peak": memory.above_base()}
    raise RuntimeError(f"{variant} made fewer than {count} steps")


def field_run(folder: Path, shape, moving, fixed):
    from IconRegistrationLib.registration.objective import FieldRefinement, RefinementPair
    from IconRegistrationLib.registration.refine import linear_maps, refine
    from IconRegistrationLib.spatial.geometry import Grid

    lattice, ones = Grid.from_parts(shape[::-1]), torch.ones_like(fixed)
    pair = RefinementPair(fixed, moving, ones, ones, lattice, lattice, np.eye(4))
    maps = linear_maps(pair)
    return lambda steps: refine(pair, *maps, FieldRefinement(steps=1000, levels=(1,)), progress=steps)


def network_run(folder: Path, shape, moving, fixed):
    from IconRegistrationLib.machine import keep_freed_memory
    from IconRegistrationLib.networks.unet import GradICON
    from IconRegistrationLib.registration.finetune import finetune

    keep_freed_memory(training=True)  # as the command does
    network = GradICON(shape).eval()
    network.load_state_dict(torch.load(folder / "weights.trch", weights_only=True))
    network.to(moving.device)
    return lambda steps: finetune(network, moving, fixed, steps=1000, progress=steps)


def library_run(folder: Path, shape, moving, fixed):
    import unigradicon
    from icon_registration import losses

    network = unigradicon.make_network([1, 1, *shape], include_last_step=True, loss_fn=losses.LNCC(sigma=5)).eval()
    network.regis_net.load_state_dict(torch.load(folder / "weights.trch", weights_only=True))

    def run(steps):  # icon_registration.itk_wrapper.finetune_execute, with a clock
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-5)
        while True:
            optimiser.zero_grad()
            loss = network(moving, fixed)
            loss[0].backward()
            optimiser.step()
            steps()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=175)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1, help="steps that are timed, after a first one")
    parser.add_argument("--measure", nargs=2, metavar=("VARIANT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        variant, folder = options.measure
        print(json.dumps(measure(variant, Path(folder), options.size, options.steps)))
        return

    with tempfile.TemporaryDirectory() as folder:
        torch.save(published_network((65, 65, 65), voxels=0.5).regis_net.state_dict(), Path(folder) / "weights.trch")
        arguments = ["--size", options.size, "--threads", options.threads, "--steps", options.steps]
        best = alternately(__file__, VARIANTS, options.rounds, folder, *arguments)
    print(f"{options.size}^3, {options.threads} threads, torch {torch.__version__}")
    print("| one step | seconds | peak GiB above base | faster | smaller |\n|-|-|-|-|-|")
    theirs = best["library"]
    for variant, title in VARIANTS.items():
        row = best[variant]
        print(
            f"| {title} | {row['seconds']:.2f} | {row['peak']:.2f} | {theirs['seconds'] / row['seconds']:.1f} x "
            f"| {theirs['peak'] / max(row['peak'], 1e-3):.1f} x |"
        )


if __name__ == "__main__":
    main()
