"""Trains the compact GradICON network on generated pairs.

    python Training/train.py FOLDER --minutes 25 [--device cuda] [--shape 96 96 96] [--batch 4]

Call it again with the same folder to go on: on another machine, for another time, on another shape. Options that are
not given are those of the last call. `--finish N` lets the learning rate fall to zero over the next N steps.
`--weights FILE` begins an empty FOLDER with exported weights, whose card lies beside them, instead of random ones.
FOLDER receives checkpoint.pt (all there is to resume), log.csv, curve.png, builtin.trch and builtin.json (the export).

Loss, for both directions of a pair at once (moving A, fixed B, labels one-hot, places in the anatomy):

    1 - Dice(labels_A o phi_AB, labels_B) + 1 - Dice(labels_B o phi_BA, labels_A)
      + mu * (|places_A o phi_AB - places_B| + |places_B o phi_BA - places_A|)
      + lambda * |grad(phi_AB o phi_BA - id)|^2

Dice is soft, from squares (Milletari et al., "V-Net", 3DV 2016). Labels say nothing of the inside of a structure; the
generator knows where every sample of it belongs. The last term and lambda = 1.5 are those of GradICON (Tian et al.,
CVPR 2023, eq. 4) and uniGradICON (MICCAI 2024). As there, training begins without the last U-Net; here
also without the third, because the first two cost little.

Everything random is a function of (seed, step), and so is the learning rate: a run that was killed and resumed gives
what an uninterrupted one gives.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import os
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from generator import make_pair

from IconRegistrationLib.networks.cards import ModelCard, read_card
from IconRegistrationLib.networks.catalog import read_network
from IconRegistrationLib.networks.devices import choose_device
from IconRegistrationLib.networks.inference import predict_maps
from IconRegistrationLib.networks.unet import STAGES, GradICON, compose_cascade, identity_points, sample_at
from IconRegistrationLib.registration.finetune import gradient_inverse_consistency

#: 2.73 million parameters in the four U-Nets, 5.5 MB as float16.
DOWN_CHANNELS = (2, 16, 24, 32, 48, 64)
UP_CHANNELS = (16, 16, 24, 32, 40)
#: Structures of a pair that the loss looks at in one step, to bound memory.
CLASSES = 10
#: Besides full resolution, Dice of labels averaged over blocks of this many samples: reaches where nothing overlaps.
COARSE = 4
#: What a validation measures.
MEASURED = "dice_before", "dice_after", "place_before", "place_after", "folding", "inverse_error"
#: Pairs of the validation are those of seeds no training step can reach.
HELD_OUT = 1 << 60


@dataclass(frozen=True)
class Plan:
    """What is trained, and how; part of the checkpoint."""

    shape: tuple[int, int, int] = (96, 96, 96)
    batch: int = 1  #: pairs per step; each is seen in both directions
    seed: int = 1
    learning_rate: float = 5e-4  #: of Adam, after `warmup` steps
    warmup: int = 100
    hold: int = 4000  #: steps after which the rate falls with the square root of the step
    starts: tuple[int, int] = (1500, 3000)  #: steps at which the third and the fourth U-Net join
    settle: int = 100  #: steps in which a U-Net that joins gathers its batch norms' statistics
    regularisation: float = 1.5  #: lambda
    places: float = 2.0  #: mu
    finish: tuple[int, int] | None = None  #: first step of the fall of the rate to zero, and its length

    def stages(self, step: int) -> int:
        """U-Nets that take part."""
        return len(STAGES) - len(self.starts) + sum(step >= start for start in self.starts)

    def rate(self, step: int) -> float:
        rate = self.learning_rate * min(1.0, (step + 1) / self.warmup, math.sqrt(self.hold / (step + 1)))
        if self.finish is None:
            return rate
        first, length = self.finish
        return rate * min(1.0, max(0.0, 1 - (step - first) / length))


class Training:
    """Network, its moving average, optimiser and step count: what a checkpoint holds."""

    def __init__(self, plan: Plan, device: torch.device):
        torch.manual_seed(plan.seed)
        self.plan, self.device, self.step, self.seconds = plan, device, 0, 0.0
        self.network = GradICON(plan.shape, DOWN_CHANNELS, UP_CHANNELS).to(device)
        self.average = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=plan.learning_rate)

    def advance(self) -> dict[str, float]:
        """One step; what it measured."""
        plan, step = self.plan, self.step
        for group in self.optimiser.param_groups:
            group["lr"] = plan.rate(step)
        # Statistics of one pair differ much from the average that inference uses (README.md has numbers), so they only
        # set the scale of a U-Net that has just joined.
        for unet, start in zip(self.network.unets, (0, 0, *plan.starts), strict=True):
            unet.train(step < start + plan.settle)
        # Made as coarse as the finest U-Net that takes part sees them; the network's pooling undoes the repetition.
        halved = 2 if plan.stages(step) == 2 else 1
        shape = tuple(-(-n // halved) for n in plan.shape)
        samples = [make_pair(shape, _seed(plan, step, n), self.device) for n in range(plan.batch)]
        images = F.interpolate(torch.cat([s.images for s in samples]), scale_factor=float(halved), mode="nearest")
        choice = torch.Generator().manual_seed(_seed(plan, step, 0))
        labels = torch.cat([one_hot(s.labels, choice) for s in samples])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            displacements = self.network(images, swapped(images), stages=plan.stages(step))
        places = torch.cat([s.places for s in samples])
        inside = torch.cat([s.labels > 0 for s in samples])
        dice, distance, consistency = losses(displacements, labels, places, inside, choice)
        loss = dice + plan.places * distance + plan.regularisation * consistency
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        if torch.isfinite(norm):  # one bad batch must not end hours of work
            self.optimiser.step()
        self._follow()
        self.step += 1
        measured = {"loss": loss, "dice": dice, "distance": distance, "consistency": consistency}
        return {name: value.detach() for name, value in measured.items()}

    def _follow(self) -> None:
        """Exponential moving average of the weights and of the batch norms' statistics."""
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def save(self, path: Path) -> None:
        """Replaces the file as a whole: a kill at any moment leaves the old one or the new one."""
        state = {
            "plan": asdict(self.plan),
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
        }
        write_atomically(path, lambda part: torch.save(state, part))

    @classmethod
    def load(cls, path: Path, device: torch.device, changes: dict) -> Training:
        """changes: fields of the plan that differ from now on."""
        state = torch.load(path, map_location=device, weights_only=True)
        training = cls(replace(Plan(**state["plan"]), **changes), device)
        training.network.load_state_dict(state["network"])
        training.average = state["average"]
        training.optimiser.load_state_dict(state["optimiser"])
        training.step, training.seconds = state["step"], state["seconds"]
        return training

    @classmethod
    def of_export(cls, weights: Path, device: torch.device, changes: dict) -> Training:
        """Goes on where the export was made, but for the optimiser's means, which an export does not hold."""
        path = weights.with_suffix(".json")
        recorded = json.loads(path.read_text())["plan"]
        plan = {name: tuple(value) if isinstance(value, list) else value for name, value in recorded.items()}
        plan = Plan(**{field.name: plan[field.name] for field in fields(Plan) if field.name in plan})
        training = cls(replace(plan, finish=None, **changes), device)
        exported = read_network(weights, read_card(path))
        trained = slice(recorded["stages"])  # the others are zeros there, from which nothing learns
        for unet, known in zip(training.network.unets[trained], exported.unets[trained], strict=True):
            unet.load_state_dict(known.state_dict())
        training.average = {name: value.clone() for name, value in training.network.state_dict().items()}
        training.step, training.seconds = recorded["steps"], float(recorded["seconds"])
        return training


def _seed(plan: Plan, step: int, n: int) -> int:
    return ((plan.seed << 40) + step * 64 + n) % HELD_OUT


def swapped(sides: torch.Tensor) -> torch.Tensor:
    """The other side of every pair: [2 N, ...], moving and fixed in turn."""
    return sides.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def one_hot(labels: torch.Tensor, choice: torch.Generator) -> torch.Tensor:
    """float32 [2, CLASSES, D, H, W] of structures that both sides show, drawn at random; the rest stays empty."""
    counts = torch.stack([torch.bincount(side.flatten(), minlength=64) for side in labels])
    present = (counts > 20).all(0).cpu()  # 0, what lies around, is a structure too
    order = torch.randperm(len(present), generator=choice)
    drawn = order[present[order]][:CLASSES].to(labels.device)
    result = (labels == drawn.view(1, -1, 1, 1, 1)).float()
    return F.pad(result, (0,) * 7 + (CLASSES - len(drawn),))


def losses(
    displacements: list[torch.Tensor],
    labels: torch.Tensor,
    places: torch.Tensor,
    inside: torch.Tensor,
    choice: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two Dice losses, summed, the distance between the places that meet, and the inverse consistency.

    displacements: of both directions in turn, [2 N, 3, ...].
    labels: [2 N, C, D, H, W], moving and fixed in turn; so are places [2 N, 3, D, H, W] and inside [2 N, 1, D, H, W].
    """
    phi = compose_cascade(displacements)
    shape = phi.shape[2:]
    warped = sample_at(labels, phi)
    target = swapped(labels)
    fine = dice_loss(warped, target)
    coarse = dice_loss(F.avg_pool3d(warped, COARSE), F.avg_pool3d(target, COARSE))
    half = [d[::2] for d in displacements], [d[1::2] for d in displacements]
    points = identity_points(shape, phi.device)
    noise = torch.randn(points.shape, generator=choice).to(phi.device)
    points = (points + 2 * noise / shape[-1])[:, :, ::2, ::2, ::2].expand(len(phi) // 2, -1, -1, -1, -1)
    distance = place_distance(sample_at(places, phi), swapped(places), swapped(inside))
    return fine + coarse, 2 * distance, gradient_inverse_consistency(*half, points)


def place_distance(a: torch.Tensor, b: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Mean distance of places [N, 3, D, H, W] where inside [N, 1, D, H, W]; what lies around is alike everywhere."""
    distance = ((a - b).square().sum(1, keepdim=True) + 1e-8).sqrt()  # the slope of a root is infinite at 0
    return (distance * inside).sum() / inside.sum().clamp(min=1)


def dice_loss(warped: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - soft Dice of a direction, mean over the structures that there are, summed over the two directions."""
    shared = (warped * target).sum((2, 3, 4))
    total = (warped.square() + target.square()).sum((2, 3, 4))
    there = target.amax((2, 3, 4)) > 0
    return 2 * ((1 - 2 * shared / total.clamp(min=1e-6)) * there).sum() / there.sum().clamp(min=1)


# --------------------------------------------------------------------------------------------------------- validation


@torch.no_grad()
def validate(network: GradICON, pairs: int, device: torch.device) -> dict[str, float]:
    """Means over held-out pairs and both directions, before and after: Dice of crisp labels, distance of places from
    where they belong in % of the anatomy's box; share of folded places, inverse consistency error in samples."""
    totals = dict.fromkeys(MEASURED, 0.0)
    for n in range(pairs):
        sample = make_pair(network.shape, HELD_OUT + n, device)
        moving, fixed = sample.images.split(1)
        maps = predict_maps(network, moving, fixed)
        identity = identity_points(network.shape, device)
        for (a, b), phi, back in zip(((0, 1), (1, 0)), maps, reversed(maps), strict=True):
            source, target = sample.labels[a : a + 1], sample.labels[b : b + 1]
            grid = (2 * phi.flip(1) - 1).movedim(1, -1)
            warped = F.grid_sample(source.float(), grid, mode="nearest", padding_mode="border", align_corners=True)
            totals["dice_before"] += mean_dice(source, target)
            totals["dice_after"] += mean_dice(warped.long(), target)
            places, belong = sample.places[a : a + 1], sample.places[b : b + 1]
            inside = target > 0
            totals["place_before"] += 50 * place_distance(places, belong, inside).item()
            totals["place_after"] += 50 * place_distance(sample_at(places, phi), belong, inside).item()
            totals["folding"] += folded_share(phi)
            error = (sample_at(back, phi) - identity) * (torch.tensor(network.shape, device=device) - 1).view(
                3, 1, 1, 1
            )
            totals["inverse_error"] += error.norm(dim=1).mean().item()
    return {name: total / (2 * pairs) for name, total in totals.items()}


def mean_dice(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over the structures of `b`, without what lies around (0)."""
    n = int(max(a.max(), b.max())) + 1
    ours, theirs = (torch.bincount(x.flatten(), minlength=n).float() for x in (a, b))
    both = torch.bincount(b[a == b].flatten(), minlength=n).float()
    there = theirs > 0
    there[0] = False
    return (2 * both / (ours + theirs).clamp(min=1))[there].mean().item()


def folded_share(phi: torch.Tensor) -> float:
    """Share of cells of the lattice whose Jacobian determinant (forward differences) is not positive."""
    columns = [
        phi.diff(dim=axis)[0, :, : phi.shape[2] - 1, : phi.shape[3] - 1, : phi.shape[4] - 1] for axis in (2, 3, 4)
    ]
    a, b, c = columns
    determinant = (torch.linalg.cross(a, b, dim=0) * c).sum(0)
    return (determinant <= 0).float().mean().item()


# ------------------------------------------------------------------------------------------------------------- output


def write_atomically(path: Path, write) -> None:
    part = path.with_name(path.name + ".part")
    write(part)
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def export(training: Training, folder: Path, pairs: int) -> dict[str, float]:
    """builtin.trch (float16) and builtin.json; returns the validation of exactly those weights."""
    plan, stages = training.plan, training.plan.stages(training.step)
    card = ModelCard(
        name="builtin",
        title="Built-in compact network",
        description="Compact GradICON network trained on generated anatomy, then the deformation is optimised for this "
        "pair: CT, MR, or one with the other. No download.",
        modalities=("ct", "mri"),
        preprocessing="CT: -1000..1000 HU, MR: minimum .. 99th percentile, scaled to 0..1; resized to "
        + " x ".join(map(str, plan.shape)),
        licence="Apache-2.0; for research, not a medical device",
        citation="Architecture: Tian et al.: GradICON. CVPR 2023. Data: after Hoffmann et al.: SynthMorph. TMI 2022.",
        alignment="affine",
        refine="field",
        order=1,
        training=f"Generated pairs only, no image of a person or animal: {training.step} steps, batch {plan.batch}, "
        f"{training.seconds / 3600:.1f} h of wall clock on one {_name_of(training.device)}. {stages} of the four "
        "U-Nets are trained; the others are the identity.",
        limits="Never saw a real image in training. Was trained for motions of up to about a fifth of the box and an "
        f"affine alignment before it, on a lattice of {' x '.join(map(str, plan.shape))}: a start for the refinement.",
        input_shape=plan.shape,
        down_channels=DOWN_CHANNELS,
        up_channels=UP_CHANNELS,
    )
    path = folder / card.filename
    halves = {k: v.half() if v.is_floating_point() else v for k, v in training.average.items()}
    for name, value in halves.items():
        if name.startswith(STAGES[stages:]):
            value.zero_()  # the identity
    part = path.with_name(path.name + ".part")
    torch.save({k: v.cpu() for k, v in halves.items()}, part)
    network = read_network(part, card).to(training.device)
    results = validate(network, pairs, training.device)
    os.replace(part, path)
    card = replace(
        card,
        size=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        results=f"Mean Dice of {pairs} generated pairs that it was not trained on: {results['dice_before']:.3f} -> "
        f"{results['dice_after']:.3f}, distance of a place from where it belongs {results['place_before']:.2f} -> "
        f"{results['place_after']:.2f} % of the box, {100 * results['folding']:.3f} % of places folded.",
    )
    record = {
        "card": asdict(card),
        "plan": asdict(plan) | {"steps": training.step, "stages": stages, "seconds": round(training.seconds)},
        "validation": {"pairs": pairs} | {k: round(v, 5) for k, v in results.items()},
    }
    write_record(record, path.with_suffix(".json"))
    return results


def write_record(record: dict, path: Path) -> None:
    """A card and what belongs to it, as JSON."""
    write_atomically(path, lambda part: part.write_text(json.dumps(record, indent=1) + "\n"))


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type.upper()} core" if torch.get_num_threads() == 1 else f"{device.type.upper()}"


class Log:
    """log.csv, a row now and then; rows beyond the checkpoint that a run resumes from are dropped."""

    COLUMNS = (
        "step", "stages", "seconds", "rate", "loss", "dice", "distance", "consistency", *MEASURED,
    )  # fmt: skip

    def __init__(self, path: Path, step: int):
        self.path = path
        rows = list(csv.DictReader(path.open())) if path.exists() else []
        self.rows = [row for row in rows if int(row["step"]) <= step]

    def write(self, **row) -> None:
        self.rows.append({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})

    def save(self) -> None:
        def write(part: Path):
            with part.open("w", newline="") as file:
                writer = csv.DictWriter(file, self.COLUMNS)
                writer.writeheader()
                writer.writerows(self.rows)

        write_atomically(self.path, write)

    def draw(self, path: Path) -> None:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
        for axes, names in (
            (left, ("loss", "dice", "distance", "consistency")),
            (right, ("dice_before", "dice_after")),
        ):
            for name in names:
                points = [(int(row["step"]), float(row[name])) for row in self.rows if row.get(name) not in (None, "")]
                if points:
                    axes.plot(*zip(*points, strict=True), label=name.replace("_", " "))
            axes.set_xlabel("step")
            axes.legend()
        left.set_ylabel("training loss")
        right.set_ylabel("Dice of held-out pairs")
        figure.tight_layout()
        figure.savefig(path, dpi=80, format="png")
        plt.close(figure)


def train(
    training: Training, folder: Path, minutes: float, save_every: float, validate_every: float, pairs: int
) -> None:
    """Runs for `minutes`, validation and saving included; saves at the intervals (minutes) and at the end."""
    begin = last_save = last_validation = last_step = time.monotonic()
    log = Log(folder / "log.csv", training.step)
    recent: list[dict[str, torch.Tensor]] = []
    slowest = 0.0
    done = False
    while not done:
        recent.append(training.advance())
        now = time.monotonic()
        training.seconds += now - last_step
        slowest, last_step = max(slowest, now - last_step), now
        done = now - begin + slowest > 60 * minutes or training.plan.rate(training.step) <= 0
        validating = done or now - last_validation > 60 * validate_every
        if not (validating or now - last_save > 60 * save_every):
            continue
        row = {name: torch.stack([r[name] for r in recent]).mean().item() for name in recent[0]}
        recent.clear()
        plan, step = training.plan, training.step
        row |= {"step": step, "stages": plan.stages(step), "seconds": training.seconds, "rate": plan.rate(step)}
        training.save(folder / "checkpoint.pt")
        if validating:
            row |= export(training, folder, pairs)
        log.write(**row)
        log.save()
        if validating:
            log.draw(folder / "curve.png")
            last_validation = time.monotonic()
        print("  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
        last_save = last_step = time.monotonic()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--weights", type=Path, help="exported weights to begin with, where FOLDER has no checkpoint")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--shape", type=int, nargs=3, help="lattice, 65 or more along each axis")
    parser.add_argument("--batch", type=int, help="pairs per step, at most 64")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--starts", type=int, nargs=2, help="steps at which the third and the fourth U-Net join")
    parser.add_argument("--finish", type=int, metavar="N", help="end the training within N steps from here")
    parser.add_argument("--save-every", type=float, default=5, help="minutes")
    parser.add_argument("--validate-every", type=float, default=30, help="minutes")
    parser.add_argument("--pairs", type=int, default=8, help="held-out pairs of a validation")
    options = parser.parse_args(argv)
    device = choose_device(options.device)
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    names = ("shape", "batch", "seed", "learning_rate", "starts")
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    changes |= {name: tuple(changes[name]) for name in ("shape", "starts") if name in changes}
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "checkpoint.pt"
    if path.exists():
        training = Training.load(path, device, changes)
    elif options.weights:
        training = Training.of_export(options.weights, device, changes)
    else:
        training = Training(Plan(**changes), device)
    if options.finish:
        training.plan = replace(training.plan, finish=None)  # what is kept can be trained on
        training.save(options.folder / "before_finish.pt")
        training.plan = replace(training.plan, finish=(training.step, options.finish))
    print(f"{device}, from step {training.step}: {training.plan}", flush=True)
    train(training, options.folder, options.minutes, options.save_every, options.validate_every, options.pairs)


if __name__ == "__main__":
    main()
