"""Arrays and matrices of numpy, torch or lists, as numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError
from ..text import tr


def as_numpy(value: Any) -> np.ndarray:
    """Return the array of a tensor, of whatever device, or of anything that numpy takes."""
    if hasattr(value, "detach"):  # torch's
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value  # numpy has no such type
        return value.numpy()
    return np.asarray(value)


def affine_matrix(value: Any, name: str) -> np.ndarray:
    """Return an affine 4x4 matrix that can be inverted, float64.

    Parameters
    ----------
    value : array_like, 4x4
    name : str
        What messages call it.

    Raises
    ------
    InputError
        If it has another shape, elements that are not finite or a last row that is not 0 0 0 1, or is singular.
    """
    try:
        matrix = np.array(as_numpy(value), dtype=np.float64)
    except (TypeError, ValueError):  # words, or rows of different lengths
        raise _refusal(name, repr(value)) from None
    if matrix.shape != (4, 4):
        raise _refusal(name, tr("the shape {shape}", shape=str(matrix.shape)))
    if not np.isfinite(matrix).all():
        raise _refusal(name, tr("one with NaN or infinite elements"))
    if not np.allclose(matrix[3], [0, 0, 0, 1]):
        row = " ".join(f"{number:g}" for number in matrix[3])
        raise _refusal(name, tr("one with the last row {row}", row=row))
    if np.linalg.matrix_rank(matrix[:3, :3]) < 3:
        raise _refusal(name, tr("a singular one"))
    return matrix


def _refusal(name: str, found: str) -> InputError:
    return InputError(
        tr(
            "{name}: an invertible 4x4 matrix is needed, with the last row 0 0 0 1, not {found}.",
            name=name,
            found=found,
        )
    )
