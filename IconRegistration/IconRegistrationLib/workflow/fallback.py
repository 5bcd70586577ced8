"""Choose a cheaper plan after a device ran out of memory."""

from __future__ import annotations

from dataclasses import replace

from ..registration.settings import Settings


def cheaper_plan(settings: Settings, device: str) -> tuple[Settings, str] | None:
    """What to try after `device` ("cuda", "cuda:1", "mps", "cpu") ran out of memory, and the sentence that tells it.

    Mixed precision where a network is only evaluated on CUDA; field refinement instead of fine-tuning (which mixed
    precision would not make smaller); else the CPU. None on the CPU, where nothing is cheaper.
    """
    plan = _cheaper(settings, device)
    return plan and (plan[0], f"The GPU ran out of memory; trying again with {plan[1]}.")


def _cheaper(settings: Settings, device: str) -> tuple[Settings, str] | None:
    kind = device.partition(":")[0]
    if kind == "cpu":
        return None
    if settings.model != "none" and settings.refinement == "off" and kind == "cuda" and settings.precision != "mixed":
        return replace(settings, precision="mixed"), "the network in mixed precision"
    if settings.refinement == "network":
        # the steps of the two refinements do not compare: 50 of one network, 40 on each level of a field
        return replace(settings, refine="field", steps=None), "field refinement instead of fine-tuning the network"
    # which refuses mixed precision
    return replace(settings, device="cpu", precision="auto"), "the CPU, which takes longer"
