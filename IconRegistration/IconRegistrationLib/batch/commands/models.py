"""`icon-registration models`: list the models, their licences and the paths of their weights."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ...errors import InputError
from ...text import tr
from ..progress import ProgressPrinter

HELP = "List the models, their licences and where their weights are, or download weights."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `models`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="only this one")
    parser.add_argument("--download", action="store_true", help="fetch the weights of NAME now")
    parser.add_argument("--weights-dir", metavar="DIR", help="where weights are and go (default: the user's cache)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> None:
    """Print the models, their licences, and where the weights are or would be; download weights."""
    from ...networks.cards import SHIPPED
    from ...networks.catalog import fetch_weights, find_card, find_weights, known_cards, weights_folders

    if args.download and not args.name:
        raise InputError(tr("--download needs the name of a model; see icon-registration models."))
    weights_dir = args.weights_dir
    cards = [find_card(args.name, weights_dir)] if args.name else list(known_cards(weights_dir).values())
    if args.download:
        progress = ProgressPrinter(args.json)
        try:
            fetch_weights(cards[0], weights_dir, lambda done, total: progress(tr("download"), done / max(total, 1)))
        finally:
            progress.close()
    listed: list[dict[str, Any]] = []
    for card in cards:
        weights = find_weights(card, weights_dir)
        folder = weights_folders(weights_dir)[-1]
        listed.append(
            {
                "name": card.name,
                "title": card.title,
                "description": card.description,
                "licence": card.licence,
                "citation": card.citation,
                "training": card.training,
                "limits": card.limits,
                "results": card.results,
                "url": card.url,
                "megabytes": round(card.size / 1e6),
                "weights": str(weights or folder / card.filename) if weights or card.url else None,
                "downloaded": weights is not None if card.url or (weights and weights.parent != SHIPPED) else None,
            }
        )
    if args.json:
        print(json.dumps({"models": listed}), flush=True)
        return
    for entry in listed:
        print(f"{entry['name']}: {entry['title']}\n  {entry['description']}")
        print("".join(f"  {fact}\n" for fact in _facts(entry)), end="", flush=True)


def _facts(entry: dict[str, Any]) -> list[str]:
    """Return the lines to be printed below a model's description."""
    lines: list[str] = []
    if entry["weights"]:
        lines += [
            tr("Licence: {licence}", licence=entry["licence"]),
            tr("Cite: {citation}", citation=entry["citation"]),
        ]
        weights, megabytes = entry["weights"], entry["megabytes"]
        if entry["downloaded"] is None:
            lines.append(tr("Weights: shipped, {weights}", weights=weights))
        elif entry["downloaded"]:
            lines.append(tr("Weights: here {weights}", weights=weights))
        else:
            lines.append(
                tr(
                    "Weights: not downloaded yet ({megabytes} MB); goes to {weights}",
                    megabytes=megabytes,
                    weights=weights,
                )
            )
    if entry["training"]:
        lines.append(tr("Training: {training}", training=entry["training"]))
    if entry["limits"]:
        lines.append(tr("Limits: {limits}", limits=entry["limits"]))
    if entry["results"]:
        lines.append(tr("Results: {results}", results=entry["results"]))
    return lines
