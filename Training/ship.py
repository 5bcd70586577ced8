"""Exports a training, measures it, and places it where the extension ships it.

    python Training/ship.py FOLDER [--pairs 24] [--only PAIR ...]

FOLDER is that of Training/train.py. The weights are those of its checkpoint.pt; they are validated on generated pairs
that no training step reaches, then `evaluate.py` measures them, by default on two phantoms. What was measured becomes
part of the card, and both files replace those in IconRegistration/Resources/Models.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from evaluate import GENERATED, ROOT, add_options, evaluate, table_row
from train import Training, export, write_record

#: What of a row the card tells, and whether more (1) or less (-1) of it is better.
MEASURES = {"Dice": 1, "TRE mm": -1, "error mm": -1}
MODELS = ROOT / "IconRegistration" / "Resources" / "Models"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=24, help="held-out generated pairs")
    add_options(parser, ["phantom ct 11", "phantom mr 11"])
    options = parser.parse_args(argv)

    training = Training.load(options.folder / "checkpoint.pt", torch.device("cpu"), {})
    print(export(training, options.folder, options.pairs), flush=True)
    weights = options.folder / "builtin.trch"
    measured = []
    for cells in evaluate(weights, options.only, options.data, options.size):
        print(table_row(cells), flush=True)
        measured.append(cells)

    path = weights.with_suffix(".json")
    record = json.loads(path.read_text())
    record["card"]["results"] += "".join(f" {_sentence(cells)}" for cells in _summary(measured))
    record["card"]["limits"] += f" {_verdict(measured)}"
    write_record(record | {"evaluation": measured}, path)
    MODELS.mkdir(exist_ok=True)
    for file in (weights, path):
        shutil.copyfile(file, MODELS / file.name)
    print(f"{MODELS / weights.name}: {weights.stat().st_size / 1e6:.1f} MB")


def _summary(measured: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows that have a number; those of generated pairs as one row per way, with the mean Dice."""
    done = [cells for cells in measured if any(cells.get(column) for column in MEASURES)]
    generated = [cells for cells in done if cells["pair"] in GENERATED]
    result = [cells for cells in done if cells["pair"] not in GENERATED]
    for way in dict.fromkeys(cells["way"] for cells in generated):
        dice = np.array([cells["Dice"].split(" -> ") for cells in generated if cells["way"] == way], float)
        mean = " -> ".join(f"{value:.3f}" for value in dice.mean(0))
        result.append({"pair": f"mean of {len(dice)} generated pairs", "way": way, "Dice": mean})
    return result


def _sentence(cells: dict[str, str]) -> str:
    """'phantom ct 11, network, field: Dice 0.700 -> 0.800.'"""
    numbers = (f"{column} {cells[column]}" for column in MEASURES if cells.get(column))
    return f"{cells['pair']}, {cells['way']}: {', '.join(numbers)}."


def _verdict(measured: list[dict[str, str]]) -> str:
    """Where it is worth its time: pairs on which any number is better by 1 % than that of the model none."""
    ends = {}
    for cells in measured:
        for column, sign in MEASURES.items():
            if cells.get(column) and cells["way"].endswith("field"):
                ends.setdefault((cells["pair"], column, sign), []).append(float(cells[column].split()[-1]))
    better = {pair for (pair, _, sign), (none, network) in ends.items() if sign * (network - none) > 0.01 * none}
    return f"Refined, it is better than the model none on {len(better)} of {len({pair for pair, *_ in ends})} pairs."


if __name__ == "__main__":
    main()
