"""Choose a cheaper plan after a device ran out of memory."""

from __future__ import annotations

from dataclasses import replace

from ..registration.settings import Settings
from ..text import Sentence, tr


def cheaper_plan(settings: Settings, device: str) -> tuple[Settings, Sentence] | None:
    """Return what to try after `device` ("cuda", "cuda:1", "mps", "cpu") ran out of memory, and a sentence on it.

    Mixed precision where a network is only evaluated on CUDA; field refinement instead of fine-tuning (which mixed
    precision would not make smaller); else the CPU. None on the CPU, where nothing is cheaper.
    """
    plan = cheaper_settings(settings, device)
    return plan and (plan[0], tr("The GPU ran out of memory; trying again with {plan}.", plan=plan[1]))


def cheaper_settings(settings: Settings, device: str) -> tuple[Settings, Sentence] | None:
    """Return cheaper settings and what they are in words; `cheaper_plan` without its sentence."""
    kind = device.partition(":")[0]
    if kind == "cpu":
        return None
    if settings.model != "none" and settings.refinement == "off" and kind == "cuda" and settings.precision != "mixed":
        return replace(settings, precision="mixed"), tr("the network in mixed precision")
    if settings.refinement == "network":
        # the steps of the two refinements do not compare: 50 of one network, 40 on each level of a field
        return replace(settings, refine="field", steps=None), tr("field refinement instead of fine-tuning the network")
    # which refuses mixed precision
    return replace(settings, device="cpu", precision="auto"), tr("the CPU, which takes longer")
