"""Exchange values with another process through a folder: the window's process and the one that computes.

Arrays are .npy files, which the reader may map instead of reading; everything else is one JSON index, written last: a
folder without it is not whole. What is read equals what was written, to the bit, in type, shape and byte order.
Nothing is pickled, and no name of an image becomes a name of a file.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..io.writing import atomic_file
from ..plain import from_plain
from ..quality.report import Report
from ..registration.result import Registration
from ..registration.settings import Settings
from ..spatial.displacement import DisplacementField
from ..spatial.geometry import Grid, Image, Landmarks, Segment, Segmentation
from ..text import Sentence, one_line, tr
from ..workflow.results import Inputs, Results

INDEX = "index.json"
_KINDS = {
    kind.__name__: kind
    for kind in (
        Grid,
        Image,
        Segment,
        Segmentation,
        Landmarks,
        DisplacementField,
        Settings,
        Inputs,
        Registration,
        Results,
    )
}


def write_inputs(folder: str | Path, inputs: Inputs) -> None:
    """Write what a registration needs, for `read_inputs` of another process. Raises InputError as `write`."""
    write(folder, inputs=inputs)


def read_inputs(folder: str | Path) -> Inputs:
    """Read what `write_inputs` wrote; the arrays are read-only and mapped: their files must stay meanwhile."""
    return read(folder, mapped=True)["inputs"]


def write_results(folder: str | Path, results: Results) -> None:
    """Write what a registration gave, without phi_AB and phi_BA, which the fields replace. Raises InputError."""
    registration = replace(results.registration, phi_AB=None, phi_BA=None)
    write(folder, results=replace(results, registration=registration))


def read_results(folder: str | Path) -> Results:
    """Read what `write_results` wrote into memory: the folder may be deleted then (Windows deletes no mapped file)."""
    return read(folder)["results"]


def write(folder: str | Path, **values: Any) -> None:
    """Write values by name.

    Parameters
    ----------
    folder : str or Path
        Is made if it does not exist; what was written to it before is replaced.
    **values
        Image, Segmentation, Landmarks, Grid, DisplacementField, Inputs, Results, arrays or None.

    Raises
    ------
    InputError
        Where the disk is full or read-only.
    """
    folder = Path(folder)
    arrays: list[np.ndarray] = []
    index = {name: _plain(value, arrays) for name, value in values.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INDEX).unlink(missing_ok=True)
        for number, array in enumerate(arrays):
            np.save(_array_file(folder, number), array, allow_pickle=False)
        with atomic_file(folder / INDEX) as partial:
            partial.write_text(json.dumps(index), encoding="ascii")
    except OSError as error:
        megabytes = sum(array.nbytes for array in arrays) / 1e6
        raise InputError(
            tr(
                "{folder} cannot be written ({reason}); free about {megabytes:.0f} MB there or choose another folder "
                "for temporary files.",
                folder=folder,
                reason=error.strerror or str(error),
                megabytes=megabytes,
            )
        ) from None


def read(folder: str | Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read the values that `write` put into a folder, by name.

    Parameters
    ----------
    folder : str or Path
        As of `write`.
    mapped : bool
        Whether arrays stay in their files, read-only, and come into memory as they are read.

    Raises
    ------
    InputError
        Where something is missing or damaged.
    """
    folder = Path(folder)
    try:
        index = json.loads((folder / INDEX).read_text(encoding="ascii"))
        return {name: _value(plain, folder, mapped) for name, plain in index.items()}
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = one_line(str(error)).rstrip(".")
        raise InputError(
            tr("{folder} holds no complete exchange ({reason}); write it again.", folder=folder, reason=reason)
        ) from error


# In the index lists, strings, numbers, booleans and None stand for themselves; an object has one key, its kind.


def _plain(value, arrays: list[np.ndarray]):
    """Return `value` as JSON has it; its arrays are appended to `arrays` and stand in it as their index there."""
    if isinstance(value, Sentence):
        return {"Sentence": value.to_plain()}
    if isinstance(value, Report):
        return {"Report": _plain(dataclasses.asdict(value), arrays)}
    if type(value).__name__ in _KINDS:
        fields = {field.name: _plain(getattr(value, field.name), arrays) for field in dataclasses.fields(value)}
        return {type(value).__name__: fields}
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if isinstance(value, tuple):
        return {"tuple": [_plain(item, arrays) for item in value]}
    if isinstance(value, list):
        return [_plain(item, arrays) for item in value]
    if isinstance(value, dict):  # as pairs: the keys need not be strings
        return {"dict": [[_plain(key, arrays), _plain(item, arrays)] for key, item in value.items()]}
    return value.item() if isinstance(value, np.generic) else value


def _value(plain, folder: Path, mapped: bool):
    """Make the value that `_plain` was given."""
    if isinstance(plain, list):
        return [_value(item, folder, mapped) for item in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "array":
        return _load(_array_file(folder, content), mapped)
    if kind == "tuple":
        return tuple(_value(item, folder, mapped) for item in content)
    if kind == "dict":
        return {_value(key, folder, mapped): _value(item, folder, mapped) for key, item in content}
    if kind == "Report":
        return from_plain(Report, _value(content, folder, mapped))
    if kind == "Sentence":
        return Sentence.from_plain(content)
    return _KINDS[kind](**{name: _value(item, folder, mapped) for name, item in content.items()})


def _array_file(folder: Path, number: int) -> Path:
    return folder / f"{number}.npy"


def _load(path: Path, mapped: bool) -> np.ndarray:
    array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    return np.asarray(array)  # numpy.memmap is a class of its own, whose results are memmaps without a file
