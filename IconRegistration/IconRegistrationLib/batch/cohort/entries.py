"""Turn the rows of a manifest into pairs."""

from __future__ import annotations

import functools
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ...errors import InputError
from ...registration.settings import Settings, kinds_of_settings
from ..pair import Pair
from .ids import _derived_ids, _given_ids
from .rows import _Mistakes, _needed, _roles, _Row

#: Fields of Settings and their annotated types, such as "float | None".
_SETTINGS = kinds_of_settings()

_YES, _NO = {"yes", "true", "1"}, {"no", "false", "0"}

_SHOWN = 10


@dataclass(frozen=True)
class Entry:
    """A pair of a cohort; `id` is the name of its folder of results."""

    id: str
    pair: Pair


def _entries(
    source: str,
    rows: Sequence[_Row],
    folder: str,
    defaults: Settings,
    guide: bool,
    atlas: Mapping[str, str] | None,
) -> list[Entry]:
    """Entries of the rows of `source`; InputError that lists what is wrong with them."""
    if not rows:
        raise InputError(f"{source} holds no pairs; write a row for each, below a header that names the columns.")
    roles = _roles(atlas)
    settings_of = functools.cache(functools.partial(_changed, defaults, folder))
    pairs, mistakes = {}, defaultdict(list)
    for number, row in enumerate(rows):
        try:
            pairs[number] = _pair(row, roles, atlas or {}, folder, guide, settings_of)
        except _Mistakes as found:
            mistakes[number] += found.args
    ids, wrong = _given_ids(rows)
    derived, repeated = _derived_ids({number: rows[number] for number in pairs}, _needed(roles)[::-1], ids.values())
    for number, mistake in (wrong | repeated).items():
        mistakes[number].append(mistake)
    if mistakes:
        listed = [f"{rows[number].where}: {mistake}" for number in sorted(mistakes) for mistake in mistakes[number]]
        count = "a mistake" if len(listed) == 1 else f"{len(listed)} mistakes"
        rest = [f"and {len(listed) - _SHOWN} more"] if len(listed) > _SHOWN else []
        raise InputError("\n".join([f"{source} has {count}:", *map(_shortened, listed[:_SHOWN]), *rest]) + ".")
    ids |= derived
    return [Entry(ids[number], pair) for number, pair in pairs.items()]


def _shortened(mistake: str) -> str:
    """A cell can hold a page; where it is and the remedy stay."""
    return mistake if len(mistake) <= 400 else f"{mistake[:200]} ... {mistake[-180:]}"


def _pair(
    row: _Row,
    roles: Mapping[str, str],
    atlas: Mapping[str, str],
    folder: str,
    guide: bool,
    settings_of: Callable[[str], Settings],
) -> Pair:
    """The pair of a row, or `_Mistakes`."""
    if row.mistakes:
        raise _Mistakes(*row.mistakes)
    cells, files, mistakes = row.cells, dict(atlas), []
    for column, role in roles.items():
        path = cells.get(column)
        if isinstance(path, str):
            files[role] = _path(folder, path)
        elif path is not None:
            mistakes.append(f"{column} is {path!r}; write the path of a file")
        elif role in ("fixed", "moving"):
            mistakes.append(f"{column} is empty; name an image")
    if "fixed" in files and "moving" in files and os.path.normpath(files["fixed"]) == os.path.normpath(files["moving"]):
        mistakes.append(f"{files['fixed']} is both fixed and moving; name two images")
    word = str(cells.get("guide", guide)).lower()
    if word not in _YES | _NO:
        mistakes.append(f"guide is {cells['guide']!r}; write yes or no")
    if word in _YES and not {"fixed_segmentation", "moving_segmentation"} <= files.keys():
        mistakes.append("guide needs segmentations of both images; name them, or do without it")
    written = {column: value for column, value in cells.items() if column in _SETTINGS}
    try:
        settings = settings_of(json.dumps(written) if written else "{}")
    except _Mistakes as found:
        mistakes += found.args
    if mistakes:
        raise _Mistakes(*mistakes)
    return Pair(**files, guide=word in _YES, settings=settings)


def _path(folder: str, path: str) -> str:
    """Absolute, "~" expanded; the UID of a DICOM series stays at its end."""
    return os.path.join(folder, os.path.expanduser(path))


def _changed(defaults: Settings, folder: str, written: str) -> Settings:
    """The defaults with what a JSON object says, in which values may also be text as in a table; or `_Mistakes`."""
    values = {name: value for name, value in json.loads(written).items() if value is not None}
    mistakes = []
    for name, value in values.items():
        if isinstance(value, str):
            try:
                values[name] = _value(_SETTINGS.get(name, "str"), value)
            except ValueError as error:
                mistakes.append(f"{name} is {value!r}; write {error}")
    if mistakes:
        raise _Mistakes(*mistakes)
    try:
        settings = Settings.from_plain({**vars(defaults), **values})
        if "weights_dir" in values:
            settings = replace(settings, weights_dir=_path(folder, settings.weights_dir))
        if "model" in values:
            settings = replace(settings, model=_model(folder, settings.model))
    except InputError as error:
        raise _Mistakes(str(error).rstrip(".")) from None
    return settings


def _value(kind: str, text: str):
    """What a text means for a field of this kind; ValueError says what to write instead."""
    try:
        if kind.startswith("tuple"):
            low, high = re.split(r"[\s;]+", text)
            return float(low), float(high)
        if kind.startswith("int"):
            return int(text)
        if kind.startswith("bool"):
            return {**dict.fromkeys(_YES, True), **dict.fromkeys(_NO, False)}[text.lower()]
        return float(text) if kind.startswith("float") else text
    except (ValueError, KeyError):
        expected = {"tuple": "two numbers, such as -160 240", "int": "a whole number", "float": "a number, such as 2.5"}
        expected["bool"] = "yes or no"
        raise ValueError(next(words for start, words in expected.items() if kind.startswith(start))) from None


def everywhere(settings: Settings) -> Settings:
    """Settings that mean the same to a worker, whose working folder is another; InputError for an unknown model."""
    folder = os.getcwd()
    weights_dir = settings.weights_dir and _path(folder, settings.weights_dir)
    return replace(settings, model=_model(folder, settings.model), weights_dir=weights_dir)


def _model(folder: str, model: str) -> str:
    """A known name as it is, a weights file as an absolute path; InputError if it is neither."""
    from ...networks.cards import CARDS
    from ...networks.catalog import find_card

    model = model if model in CARDS else _path(folder, model)
    find_card(model)
    return model
