"""The similarities that a registration can compare two images by: an entry of this table is all that one needs.

The choices of `Settings`, the command's help, the panel's list, the estimates before a run, a manifest's column and the
table in docs/refinement.md follow from it. No torch here: Slicer's own process reads the table, and may have none; what
computes is imported when an entry makes its loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import InputError
from ..text import tr

if TYPE_CHECKING:
    from .similarity import LocalSimilarity


def _lncc(**options) -> LocalSimilarity:
    from .similarity import LNCC

    return LNCC(**options)


def _mindssc(**options) -> LocalSimilarity:
    from .similarity import MINDSSC

    return MINDSSC(**options)


@dataclass(frozen=True)
class SimilarityEntry:
    """A similarity: how it is called, what it costs, and what makes its loss.

    Attributes
    ----------
    title : str
        Its name in the panel's list.
    summary : str
        What it compares, in one line.
    make : Callable[..., LocalSimilarity]
        Makes the loss for fine-tuning a network; keyword arguments are those of the loss.
    make_for_field : Callable[[float], LocalSimilarity] | None
        Makes the loss for refining the field, of the Gaussian sigma of a window in samples; None: `make()`.
    gain : float
        What the refinement of the field multiplies the loss by: it then balances with the regularisers as 1 - squared
        correlation does.
    two_contrasts : bool
        Whether it compares images of two contrasts, such as CT and MR.
    seconds : float
        Of refining the field, per million samples of all levels and 40 steps, on two x86 cores.
    bytes_per_sample, gpu_bytes_per_sample : int
        By which the peak memory of a whole run grows per sample of the lattice, on a CPU and on a GPU.
    """

    title: str
    summary: str
    make: Callable[..., LocalSimilarity]
    make_for_field: Callable[[float], LocalSimilarity] | None = None
    gain: float = 1.0
    two_contrasts: bool = False
    seconds: float = 5.5
    bytes_per_sample: int = 500
    gpu_bytes_per_sample: int = 370


# Seconds: brain, liver and MS T1-T1 for the correlations; cord, MS T1-FLAIR, head and knee for MIND-SSC
# (docs/benchmarks.md). Bytes: the peaks there follow to within 0.2 GiB; on a GPU a third more than the tensors on it at
# once (Testing/benchmarks/device.py), for kernels take some, too.
SIMILARITIES: dict[str, SimilarityEntry] = {
    "lncc": SimilarityEntry(
        title=tr("Local correlation"),
        summary=tr("1 - local normalised cross-correlation: bright on bright, dark on dark"),
        make=_lncc,
        make_for_field=lambda window: _lncc(sigma=window, within=True, every=2),
        seconds=4.7,
        bytes_per_sample=350,
        gpu_bytes_per_sample=320,
    ),
    "lncc2": SimilarityEntry(
        title=tr("Squared local correlation"),
        summary=tr("1 - squared local correlation: either sign counts"),
        make=lambda **options: _lncc(squared=True, **options),
        make_for_field=lambda window: _lncc(squared=True, sigma=window, within=True, every=2),
        seconds=4.7,
        bytes_per_sample=350,
        gpu_bytes_per_sample=320,
    ),
    "mind": SimilarityEntry(
        title=tr("MIND: different contrasts"),
        summary=tr("mean squared difference of MIND-SSC descriptors of local structure"),
        make=_mindssc,
        # closer patches than in training: noise of flat regions correlates less (docs/refinement.md)
        make_for_field=lambda window: _mindssc(radius=1, dilation=1),
        gain=3.0,  # the squared differences of its descriptors are smaller than 1 - correlation^2
        two_contrasts=True,
    ),
}

# What is chosen where nothing is said.
#: What "auto" takes for images of one contrast, for images of two, and for fine-tuning a network (as published).
ONE_CONTRAST, TWO_CONTRASTS, FINE_TUNING = "lncc2", "mind", "lncc"


def find_similarity(name: str) -> SimilarityEntry:
    """Return the entry of `SIMILARITIES` called `name`.

    Raises
    ------
    InputError
        If there is none; the sentence lists the names.

    Examples
    --------
    >>> find_similarity("mind").two_contrasts
    True
    """
    if name not in SIMILARITIES:
        raise InputError(
            tr("No similarity is called {name!r}; choose one of {names}.", name=name, names=", ".join(SIMILARITIES))
        )
    return SIMILARITIES[name]


def make_similarity(name: str, **options) -> LocalSimilarity:
    """Make a new loss by its name in `SIMILARITIES`.

    Parameters
    ----------
    name : str
        "lncc", "lncc2" or "mind".
    **options
        Keyword arguments of the loss, such as `sigma`.

    Returns
    -------
    LocalSimilarity
        A function of `warped` and `fixed`, tensors [N, 1, D, H, W], and an optional mask of `fixed`.

    Raises
    ------
    InputError
        If there is no similarity of this name; the sentence lists the names.

    Examples
    --------
    >>> import torch
    >>> image = torch.rand(1, 1, 8, 8, 8)
    >>> bool(make_similarity("lncc", sigma=2)(image, image) < 0.01)
    True
    """
    return find_similarity(name).make(**options)
