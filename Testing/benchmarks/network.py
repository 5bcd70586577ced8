"""Speed, memory and deviation of `GradICON.maps` against icon_registration's modules with the same random weights.

    python Testing/benchmarks/network.py [--size 175] [--threads 2] [--rounds 2] [--register-pair]

Every measurement is a process of its own (its peak memory is its own), ours and theirs alternate, and the table gives
the fastest round of each. Wall and CPU seconds cover both directions, without loading; the peak is that above the
process with weights and images loaded.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from separate import PeakMemory, alternately

from IconRegistrationLib.networks.unet import identity_points

sys.path.insert(0, str(Path(__file__).parents[1] / "headless"))
from test_network import published_maps, published_network, smooth_pair, voxels_apart

VARIANTS = {"ours": "GradICON.maps", "library": "icon_registration, network only"}


def measure(variant: str, folder: Path, size: int) -> dict:
    """Runs one variant in this process: seconds, peak memory; its maps go into `folder`."""
    shape = (size,) * 3
    moving, fixed = smooth_pair(shape)
    weights = torch.load(folder / "weights.trch", weights_only=True)
    if variant == "ours":
        from IconRegistrationLib.networks.unet import GradICON

        network = GradICON(shape).eval()
        network.load_state_dict(weights)
        run = network.maps
    else:
        import icon_registration.itk_wrapper
        import itk
        import unigradicon

        network = unigradicon.make_network([1, 1, *shape], include_last_step=True).eval()
        network.regis_net.load_state_dict(weights)

        def run(moving, fixed):
            if variant == "library":
                return published_maps(network, moving, fixed)
            images = [itk.image_from_array(image[0, 0].numpy()) for image in (moving, fixed)]
            return icon_registration.itk_wrapper.register_pair(network, *images)

    del weights
    memory, wall, cpu = PeakMemory(), time.perf_counter(), time.process_time()
    maps = run(moving, fixed)
    result = {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak": memory.above_base(),
    }
    if variant in VARIANTS:
        torch.save([phi.detach() for phi in maps], folder / f"{variant}.pt")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=175)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--register-pair", action="store_true", help="also icon_registration's register_pair (slow)")
    parser.add_argument("--measure", nargs=2, metavar=("VARIANT", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        variant, folder = arguments.measure
        print(json.dumps(measure(variant, Path(folder), arguments.size)))
        return

    variants = {**VARIANTS, **({"register_pair": "register_pair"} if arguments.register_pair else {})}
    with tempfile.TemporaryDirectory() as name:
        torch.save(published_network((65, 65, 65), voxels=0.5).regis_net.state_dict(), Path(name) / "weights.trch")
        options = ("--size", arguments.size, "--threads", arguments.threads)
        best = alternately(__file__, variants, arguments.rounds, name, *options)
        ours, theirs = (torch.load(Path(name) / f"{variant}.pt") for variant in VARIANTS)
    print(f"{arguments.size}^3, {arguments.threads} threads, torch {torch.__version__}")
    print("| both directions | wall s | CPU s | peak GiB above base |\n|-|-|-|-|")
    for variant, title in variants.items():
        row = best[variant]
        print(f"| {title} | {row['wall']:.1f} | {row['cpu']:.1f} | {row['peak']:.2f} |")
    moved = voxels_apart(theirs[0], identity_points(theirs[0].shape[2:]))
    apart = max(voxels_apart(a, b) for a, b in zip(ours, theirs, strict=True))
    print(f"largest displacement {moved:.1f} voxels, largest deviation {apart:.1e} voxels")


if __name__ == "__main__":
    main()
