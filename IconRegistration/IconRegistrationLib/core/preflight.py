"""What will happen, before it does: the line under the selectors, and what to try when a device was too small.

No torch here: Slicer's own process asks at every change of a selector.
"""

from __future__ import annotations

from dataclasses import replace

from .settings import Settings


def cheaper_plan(settings: Settings, device: str) -> tuple[Settings, str] | None:
    """What to try after `device` ("cuda", "cuda:1", "mps", "cpu") ran out of memory, and the sentence that tells it.

    Mixed precision where a network is only evaluated on CUDA; field refinement instead of fine-tuning (which mixed
    precision would not make smaller); else the CPU. None on the CPU, where nothing is cheaper.
    """
    kind = device.partition(":")[0]
    if kind == "cpu":
        return None
    if settings.model != "none" and settings.refinement == "off" and kind == "cuda" and settings.precision != "mixed":
        return replace(settings, precision="mixed"), _retry("the network in mixed precision")
    if settings.refinement == "network":
        # the steps of the two refinements do not compare: 50 of one network, 60 on each level of a field
        plan = replace(settings, refine="field", steps=None)
        return plan, _retry("field refinement instead of fine-tuning the network")
    # which refuses mixed precision
    return replace(settings, device="cpu", precision="auto"), _retry("the CPU, which takes longer")


def _retry(what: str) -> str:
    return f"The GPU ran out of memory; trying again with {what}."
