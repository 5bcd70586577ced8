"""Values as JSON has them, and back: dataclasses, tuples, sentences, numpy's numbers.

`to_plain` and `from_plain` are inverse to each other for dataclasses whose fields are annotated. Arrays that must stay
arrays travel through files (worker/exchange.py).
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from .errors import InputError
from .text import Sentence, tr

_Value = TypeVar("_Value")


def to_plain(value: Any, *, strict: bool = False) -> Any:
    """Return `value` as dict, list, str, int, float, bool and None.

    Parameters
    ----------
    value : Any
        Dataclasses become a dict of their fields, tuples and arrays lists, paths and whatever else a string.
    strict : bool
        For files that other programs read: NaN and infinity, which JSON lacks, become None, and sentences English. Not
        strict: floats stay what they are, and sentences keep template and values, so that `from_plain` is the inverse.

    Examples
    --------
    >>> to_plain({"window": (-160.0, float("nan"))}, strict=True)
    {'window': [-160.0, None]}
    """
    if isinstance(value, Sentence):
        return value.english if strict else value.to_plain()
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) or not strict else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return to_plain(fields, strict=strict)
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, strict=strict) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item, strict=strict) for item in value]
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        return to_plain(value.tolist(), strict=strict)
    return str(value)


def from_plain(kind: type[_Value], plain: Any, name: str = "") -> _Value:
    """Make a value of a type from what `to_plain` (or `dataclasses.asdict`, before or after JSON) made of it.

    Parameters
    ----------
    kind : type
        A dataclass with annotated fields, or an annotation: a tuple, a union, a dict, a list, a number, a string.
    plain : Any
        What is missing of a dataclass has its default.
    name : str
        What the value is called in an error.

    Raises
    ------
    InputError
        Naming the value that is not of its type, the field that is missing, or the one that does not exist.

    Examples
    --------
    >>> from_plain(tuple[int, ...], [1, 2])
    (1, 2)
    """
    return cast(_Value, _from_plain(kind, plain, name or getattr(kind, "__name__", str(kind))))


def _from_plain(kind: Any, plain: Any, name: str) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _dataclass_from_plain(kind, plain, name)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if plain is None and type(None) in arguments:
            return None
        choices = [choice for choice in arguments if choice is not type(None)]
        fitting = [choice for choice in choices if _is_of(choice, plain)]
        return _from_plain((fitting or choices)[0], plain, name)
    if not _is_of(kind, plain):
        raise InputError(
            tr(
                "{name} is {value}, which is no {kind}; correct it.",
                name=name,
                value=repr(plain),
                kind=getattr(kind, "__name__", str(kind)),
            )
        )
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            arguments = arguments[:1] * len(plain)
        if len(arguments) != len(plain):
            raise InputError(
                tr(
                    "{name} is {value}, which has not {count} elements; correct it.",
                    name=name,
                    value=repr(plain),
                    count=len(arguments),
                )
            )
        return tuple(
            _from_plain(k, item, f"{name}[{n}]") for n, (k, item) in enumerate(zip(arguments, plain, strict=True))
        )
    if origin is list:
        return [_from_plain(arguments[0], item, f"{name}[{n}]") for n, item in enumerate(plain)]
    if origin is dict:
        return {key: _from_plain(arguments[1], item, f"{name}[{key!r}]") for key, item in plain.items()}
    return Sentence.from_plain(plain) if kind is str else plain


def _dataclass_from_plain(kind: Any, plain: Any, name: str) -> Any:
    if not isinstance(plain, Mapping):
        raise InputError(
            tr("{name} is {value}, which is no object of fields; correct it.", name=name, value=repr(plain))
        )
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for field in plain:
        if field not in fields:
            raise InputError(
                tr(
                    "{name} has no {field}; choose from {fields}.",
                    name=name,
                    field=repr(field),
                    fields=", ".join(fields),
                )
            )
    for field in fields.values():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in plain:
            raise InputError(tr("{name} lacks {field}; add it.", name=name, field=repr(field.name)))
    return kind(**{field: _from_plain(hints[field], value, f"{name}.{field}") for field, value in plain.items()})


def _is_of(kind: Any, plain: Any) -> bool:
    """Return whether a plain value can be one of the annotated type, looking at its outermost level only."""
    kind = get_origin(kind) or kind
    if kind is float:
        return isinstance(plain, (int, float)) and not isinstance(plain, bool)
    if kind is int:
        return isinstance(plain, int) and not isinstance(plain, bool)
    if kind is str:
        return isinstance(plain, str) or (isinstance(plain, Mapping) and "template" in plain)
    if kind in (tuple, list):
        return isinstance(plain, (list, tuple))
    if kind is dict or dataclasses.is_dataclass(kind):
        return isinstance(plain, Mapping)
    return isinstance(plain, kind) if isinstance(kind, type) else True
