"""Turn the rows of a manifest into pairs."""

from __future__ import annotations

import functools
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import InputError, explain
from ...registration.settings import Settings, kinds_of_settings
from ...text import tr
from ...workflow.roles import SEGMENT_ROLES, complete_roles
from ..pair import PairFiles
from .ids import derived_ids, given_ids
from .rows import Row, RowError, required_columns, roles_by_column

#: Annotated type of each field of Settings, such as "float | None".
SETTING_TYPES = kinds_of_settings()

#: What a cell of a role may hold.
_YES, _NO = {"yes", "true", "1"}, {"no", "false", "0"}
#: How many mistakes are listed, and characters of each.
_MAX_LISTED, _MAX_MISTAKE_LENGTH = 10, 400


@dataclass(frozen=True)
class Entry:
    """A pair of a cohort.

    Attributes
    ----------
    id : str
        Name of its folder of results.
    pair : PairFiles
        Its files and settings.
    """

    id: str
    pair: PairFiles


def entries_from_rows(
    source: str,
    rows: Sequence[Row],
    folder: str,
    defaults: Settings,
    segment_roles: Mapping[str, bool] | None,
    atlas: Mapping[str, str] | None,
) -> list[Entry]:
    """Return the pairs that rows describe.

    Parameters
    ----------
    source : str
        What the rows were read from, for messages.
    rows : sequence of Row
        One for each pair.
    folder : str
        Absolute path at which relative paths in the rows start.
    defaults : Settings
        Settings of the rows that do not give their own.
    segment_roles : mapping, optional
        Roles of the segments that are switched on or off in the rows that do not say.
    atlas : mapping, optional
        Files of the atlas by role, shared by all pairs.

    Raises
    ------
    InputError
        Lists the mistakes, each with its row and remedy.
    """
    if not rows:
        raise InputError(
            tr(
                "{source} contains no pairs; write a row for each, below a header that names the columns.",
                source=source,
            )
        )
    roles = roles_by_column(atlas)
    settings_of = functools.cache(functools.partial(override_settings, defaults, folder))
    pairs: dict[int, PairFiles] = {}
    mistakes: dict[int, list[str]] = defaultdict(list)
    for index, row in enumerate(rows):
        try:
            pairs[index] = _pair(row, roles, atlas or {}, folder, segment_roles or {}, settings_of)
        except RowError as found:
            mistakes[index] += found.args
    ids, wrong = given_ids(rows)
    complete = {index: rows[index] for index in pairs}
    derived, repeated = derived_ids(complete, required_columns(roles)[::-1], ids.values())
    for index, mistake in (wrong | repeated).items():
        mistakes[index].append(mistake)
    if mistakes:
        raise InputError(_listed(source, [(rows[i].position, text) for i in sorted(mistakes) for text in mistakes[i]]))
    ids |= derived
    return [Entry(ids[index], pair) for index, pair in pairs.items()]


def _listed(source: str, mistakes: Sequence[tuple[str, str]]) -> str:
    """Return one text with a line for each mistake, given with its position."""
    if len(mistakes) == 1:
        text: str = tr("{source} has a mistake:", source=source)
    else:
        text = tr("{source} has {count} mistakes:", source=source, count=len(mistakes))
    for position, mistake in mistakes[:_MAX_LISTED]:
        text = tr("{above}\n{position}: {mistake}", above=text, position=position, mistake=_shortened(mistake))
    more = len(mistakes) - _MAX_LISTED
    return tr("{above}\nand {more} more.", above=text, more=more) if more > 0 else text


def _shortened(mistake: str) -> str:
    """Omit the middle of a long sentence (a cell can hold a page): the column and the remedy stay."""
    return mistake if len(mistake) <= _MAX_MISTAKE_LENGTH else f"{mistake[:200]} ... {mistake[-180:]}"


def _pair(
    row: Row,
    roles: Mapping[str, str],
    atlas: Mapping[str, str],
    folder: str,
    segment_roles: Mapping[str, bool] | None,
    settings_of: Callable[[str], Settings],
) -> PairFiles:
    """Return the pair of a row. Raises RowError."""
    if row.mistakes:
        raise RowError(*row.mistakes)
    cells, files = row.cells, dict(atlas)
    mistakes: list[str] = []
    for column, role in roles.items():
        path = cells.get(column)
        if isinstance(path, str):
            files[role] = absolute_path(folder, path)
        elif path is not None:
            mistakes.append(tr("{column} is {value!r}; write the path of a file.", column=column, value=path))
        elif role in ("fixed", "moving"):
            mistakes.append(tr("{column} is empty; name an image.", column=column))
    if "fixed" in files and "moving" in files and os.path.normpath(files["fixed"]) == os.path.normpath(files["moving"]):
        mistakes.append(tr("{path} is both fixed and moving; name two images.", path=files["fixed"]))
    chosen = _segment_roles(cells, segment_roles or {}, files, mistakes)
    written = {column: value for column, value in cells.items() if column in SETTING_TYPES}
    try:
        settings = settings_of(json.dumps(written) if written else "{}")
    except RowError as found:
        mistakes += found.args
    if mistakes:
        raise RowError(*mistakes)
    return PairFiles(**files, roles=chosen, settings=settings)


def _segment_roles(
    cells: Mapping[str, Any], otherwise: Mapping[str, bool], files: Mapping[str, str], mistakes: list[str]
) -> dict[str, bool]:
    """Return the roles that the segments of a row have; appends to the mistakes."""
    given = dict(otherwise)
    for name in SEGMENT_ROLES.keys() & cells.keys():
        word = str(cells[name]).lower()
        if word not in _YES | _NO:
            mistakes.append(tr("{role} is {value!r}; write yes or no.", role=name, value=cells[name]))
        given[name] = word in _YES
    roles = complete_roles(given)
    segmentations = ("fixed_segmentation" in files, "moving_segmentation" in files)
    for name, role in SEGMENT_ROLES.items():
        if roles[name] and role.is_missing(*segmentations):
            what = role.what_it_needs
            mistakes.append(tr("{role} needs {what}; name them, or write no.", role=name, what=what))
    return roles


def absolute_path(folder: str, path: str) -> str:
    """Return `path`, which may be relative to `folder` or start with "~", as an absolute one.

    The UID of a DICOM series stays at its end.
    """
    return os.path.join(folder, os.path.expanduser(path))


def override_settings(defaults: Settings, folder: str, written: str) -> Settings:
    """Return `defaults` with the values that a manifest gives.

    Parameters
    ----------
    defaults : Settings
        What is not written stays.
    folder : str
        Absolute path at which relative paths start.
    written : str
        A JSON object of values by field; a value may also be text as in a table. It is JSON so that answers can be
        cached: thousands of rows have the same.

    Raises
    ------
    RowError
        If a value cannot be used.
    """
    values = {name: value for name, value in json.loads(written).items() if value is not None}
    mistakes = []
    for name, value in values.items():
        if isinstance(value, str):
            try:
                values[name] = _parsed(SETTING_TYPES.get(name, "str"), value)
            except ValueError:
                expected = _expected(SETTING_TYPES[name])
                mistakes.append(tr("{name} is {value!r}; write {expected}.", name=name, value=value, expected=expected))
    if mistakes:
        raise RowError(*mistakes)
    try:
        settings = Settings.from_plain({**vars(defaults), **values})
        if settings.weights_dir and "weights_dir" in values:
            settings = replace(settings, weights_dir=absolute_path(folder, settings.weights_dir))
        if "model" in values:
            settings = replace(settings, model=_model(folder, settings.model, settings.weights_dir))
    except InputError as error:
        raise RowError(explain(error)[1]) from None
    return settings


def _parsed(kind: str, text: str) -> Any:
    """Return the value that a text means for a field of this annotated type, or raise ValueError."""
    if kind.startswith("tuple"):
        low, high = re.split(r"[\s;]+", text)
        return float(low), float(high)
    if kind.startswith("int"):
        return int(text)
    if kind.startswith("bool"):
        if text.lower() not in _YES | _NO:
            raise ValueError(text)
        return text.lower() in _YES
    return float(text) if kind.startswith("float") else text


def _expected(kind: str) -> str:
    """Say what to write for a field of this annotated type."""
    if kind.startswith("tuple"):
        return tr("two numbers, such as -160 240")
    if kind.startswith("bool"):
        return tr("yes or no")
    return tr("a whole number") if kind.startswith("int") else tr("a number, such as 2.5")


def with_absolute_paths(settings: Settings) -> Settings:
    """Return settings that mean the same to a worker, whose working folder is another.

    Raises
    ------
    InputError
        If the model is unknown.
    """
    folder = os.getcwd()
    weights_dir = settings.weights_dir and absolute_path(folder, settings.weights_dir)
    return replace(settings, model=_model(folder, settings.model, weights_dir), weights_dir=weights_dir)


def _model(folder: str, model: str, weights_dir: str | None) -> str:
    """Return a known name as it is, a weights file as an absolute path; InputError if it is neither."""
    from ...networks.catalog import find_card, known_card

    model = model if known_card(model, weights_dir) else absolute_path(folder, model)
    find_card(model, weights_dir)
    return model
