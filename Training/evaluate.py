"""What a network is worth: side by side with `none`, on phantoms, generated pairs and the real ones that are at hand.

    python Training/evaluate.py FOLDER/builtin.trch [--data ../shared/data] [--only PAIR ...]

Four rows per pair: an affine alignment, then from there the field refined without a network, the network alone, the
network and then the field. Dice is the mean over segments, TRE in mm at landmarks, error the mean distance in mm from
the known deformation (phantoms) or the published transform (MS pairs), folding the share of places; each before and
after. CPU seconds contain the quality report.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "Testing" / "benchmarks"))

import pairs  # noqa: E402
import torch  # noqa: E402
from generator import make_pair  # noqa: E402
from train import HELD_OUT  # noqa: E402

from IconRegistrationLib.demo.phantom import make_phantom  # noqa: E402
from IconRegistrationLib.quality.values import Change  # noqa: E402
from IconRegistrationLib.registration.settings import Settings  # noqa: E402
from IconRegistrationLib.spatial.geometry import Grid, Image, Segment, Segmentation  # noqa: E402
from IconRegistrationLib.workflow.pipeline import compute  # noqa: E402
from IconRegistrationLib.workflow.results import Inputs  # noqa: E402

PHANTOMS = {f"phantom {modality} {seed}": (modality, seed) for modality in ("ct", "mr") for seed in (11, 12)}
#: Pairs as the network learned from, which no training step reaches: of the kind that it should know best.
GENERATED = {f"generated {n}": HELD_OUT + n for n in range(8)}
COLUMNS = "pair", "way", "Dice", "TRE mm", "error mm", "folding %", "CPU s"


def inputs_of(name: str, data: Path, size: int) -> tuple[Inputs, object]:
    """The pair and its measure of error: a function of the forward field that gives a Change, or None."""
    if name in GENERATED:
        return generated(GENERATED[name], size), None
    if name not in PHANTOMS:
        inputs = pairs.load(name, data)
        if "reference" not in pairs.PAIRS[name]:
            return inputs, None
        return inputs, lambda forward: pairs.reference_error(name, data, inputs.fixed, forward)
    modality, seed = PHANTOMS[name]
    phantom = make_phantom(seed, size, modality)

    def error(forward):
        before, after = (
            float(np.mean(phantom.end_point_error(transform))) for transform in (lambda p: p, forward.transform_points)
        )
        return Change(before, after)

    return phantom.inputs, error


def generated(seed: int, size: int) -> Inputs:
    """A pair of the generator on a box of 300 mm; segments are the structures that both sides show."""
    sample = make_pair((size,) * 3, seed)
    grid = Grid.from_parts((size,) * 3, (300 / size,) * 3, (0, 0, 0), np.eye(3))
    counts = torch.stack([torch.bincount(side.flatten(), minlength=64) for side in sample.labels])
    shared = [n for n in range(1, 64) if counts[:, n].min() > 50]
    segments = tuple(Segment(f"structure {n}", n, 0, (1.0, 0.0, 0.0), f"Segment_{n}", {}) for n in shared)
    images, labels = (side[:, 0].numpy() for side in (1000 * sample.images, sample.labels))
    moving, fixed = (Image(image, grid, name) for image, name in zip(images, ("moving", "fixed"), strict=True))
    moving_labels, fixed_labels = (Segmentation([side.astype(np.uint8)], segments, grid, "labels") for side in labels)
    return Inputs(fixed, moving, fixed_segmentation=fixed_labels, moving_segmentation=moving_labels)


def rows(pair: str, inputs: Inputs, error, model: str | Path) -> Iterator[dict[str, str]]:
    """Rows of one pair. All ways start from one affine alignment, whose time only the first row contains."""
    cells, linear = _row(pair, "affine alignment", inputs, error, Settings(align="affine", refine="off"))
    yield cells
    aligned = replace(inputs, initial=linear)
    for way, settings in {
        "none: field": Settings(),
        "network": Settings(model=str(model), refine="off"),
        "network, field": Settings(model=str(model), refine="field"),
    }.items():
        yield _row(pair, way, aligned, error, settings)[0]


def _row(pair: str, way: str, inputs: Inputs, error, settings: Settings) -> tuple[dict[str, str], np.ndarray]:
    """A row of the table, and the linear part of the map."""
    start = time.process_time()
    results = compute(inputs, settings)
    report = results.report
    cells = {
        "pair": pair,
        "way": way,
        "folding %": f"{100 * report.deformation.folding.share:.4f}",
        "CPU s": f"{time.process_time() - start:.0f}",
    }
    if report.segments:
        cells["Dice"] = pairs.change(report.dice, 3)
    if report.landmarks:
        cells["TRE mm"] = pairs.change(report.target_registration_error, 2)
    if error:
        cells["error mm"] = pairs.change(error(results.registration.forward), 2)
    return cells, results.registration.linear


def table_row(cells: dict[str, str]) -> str:
    return "| " + " | ".join(cells.get(column, "") for column in COLUMNS) + " |"


def evaluate(model: str | Path, names: Sequence[str], data: Path, size: int) -> Iterator[dict[str, str]]:
    """Rows of all pairs whose files are there; size: voxels of a phantom along its longest axis."""
    for name in names:
        if name in PHANTOMS or name in GENERATED or (data / pairs.PAIRS[name]["fixed"]).exists():
            yield from rows(name, *inputs_of(name, data, size), model)
        else:
            yield {"pair": name, "way": f"left out: its files are not at {data}"}


def add_options(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """What `evaluate` is asked for."""
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument(
        "--only", nargs="*", choices=[*PHANTOMS, *GENERATED, *pairs.PAIRS], default=default, metavar="PAIR"
    )
    parser.add_argument(
        "--size", type=int, default=144, help="voxels of a phantom or generated pair along its longest axis"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="builtin, or a weights file beside its card")
    add_options(parser, [*PHANTOMS, *pairs.PAIRS])
    options = parser.parse_args()
    print(f"{table_row(dict(zip(COLUMNS, COLUMNS, strict=True)))}\n|" + "-|" * len(COLUMNS))
    for cells in evaluate(options.model, options.only, options.data, options.size):
        print(table_row(cells), flush=True)


if __name__ == "__main__":
    main()
