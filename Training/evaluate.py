"""What an exported network is worth: side by side with `none`, on phantoms and on the real pairs that are at hand.

    python Training/evaluate.py FOLDER/builtin.trch [--data ../shared/data] [--only PAIR ...]

One row per pair and way: `none` (affine alignment, then the field is refined), the network alone, the network and
then the field (at most as long as `none` took: its steps are cut where the network cost more), each box on box and
after the same affine alignment. Dice is the mean over segments, TRE in mm at landmarks, error the mean distance in mm
from the known deformation (phantoms) or the published transform (MS pairs), folding the share of places.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "Testing" / "benchmarks"))

import pairs  # noqa: E402

from IconRegistrationLib.core.catalog import ModelCard, read_network  # noqa: E402
from IconRegistrationLib.core.phantom import make_phantom  # noqa: E402
from IconRegistrationLib.core.pipeline import compute  # noqa: E402
from IconRegistrationLib.core.refine import FieldRefinement  # noqa: E402
from IconRegistrationLib.core.report import Change  # noqa: E402
from IconRegistrationLib.core.results import Inputs  # noqa: E402
from IconRegistrationLib.core.settings import Settings  # noqa: E402

PHANTOMS = {f"phantom {modality} {seed}": (modality, seed) for modality in ("ct", "mri") for seed in (11, 12)}
COLUMNS = "pair", "way", "Dice", "TRE mm", "error mm", "folding %", "seconds"


def loader(weights: Path):
    """A `load` for `register`: the network of a file that lies beside its card."""
    record = json.loads(weights.with_suffix(".json").read_text())["card"]
    card = ModelCard(**{k: tuple(v) if isinstance(v, list) else v for k, v in record.items()})
    network = read_network(weights, card)
    return lambda name, *, device, **_: (network.to(device), card, card.sha256)


def inputs_of(name: str, data: Path, size: int) -> tuple[Inputs, object]:
    """The pair and its measure of error: a function of the forward field that gives a Change, or None."""
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


def row(pair: str, way: str, inputs: Inputs, error, settings: Settings, load) -> tuple[dict, dict]:
    """A row of the table, and the seconds of the stages."""
    results = compute(inputs, settings, load=load)
    report, seconds = results.report, results.registration.provenance["seconds"]
    cells = {
        "pair": pair,
        "way": way,
        "folding %": f"{100 * report.deformation.folding.share:.4f}",
        "seconds": f"{seconds['total']:.1f}",
    }
    if report.segments:
        cells["Dice"] = pairs.change(report.dice, 3)
    if report.landmarks:
        cells["TRE mm"] = pairs.change(report.target_registration_error, 2)
    if error:
        cells["error mm"] = pairs.change(error(results.registration.forward), 2)
    return cells, seconds


def rows(pair: str, inputs: Inputs, error, load):
    """Rows of one pair; the first sets the time that the others may take."""
    cells, budget = row(pair, "none", inputs, error, Settings(), load)
    yield cells
    steps = FieldRefinement().steps
    for align in ("none", "affine"):
        alone = Settings(model="builtin", refine="off", align=align)
        frame = "box on box" if align == "none" else align
        cells, spent = row(pair, f"network, {frame}", inputs, error, alone, load)
        yield cells
        # A step on the network's lattice costs no more than one of `none`, whose lattice is at least as fine.
        left = (budget["total"] - spent["total"]) / max(budget["refinement"], 1e-3)
        refined = replace(alone, refine="field", steps=max(1, min(steps, int(steps * left))))
        yield row(pair, f"network, {frame}, field ({refined.steps} steps)", inputs, error, refined, load)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--only", nargs="+", choices=[*PHANTOMS, *pairs.PAIRS], default=[*PHANTOMS, *pairs.PAIRS])
    parser.add_argument("--size", type=int, default=144, help="voxels of a phantom along its longest axis")
    options = parser.parse_args()
    load = loader(options.weights)
    print("| " + " | ".join(COLUMNS) + " |\n|" + "-|" * len(COLUMNS))
    for pair in options.only:
        if pair in pairs.PAIRS and not (options.data / pairs.PAIRS[pair]["fixed"]).exists():
            print(f"| {pair} | left out: its files are not at {options.data} |")
            continue
        inputs, error = inputs_of(pair, options.data, options.size)
        for cells in rows(pair, inputs, error, load):
            print("| " + " | ".join(cells.get(column, "") for column in COLUMNS) + " |", flush=True)


if __name__ == "__main__":
    main()
