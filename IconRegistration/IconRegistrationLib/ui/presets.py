"""The user's own presets, kept among the user's settings; the built-in ones are in workflow/presets.py.

The store is whatever has `value(key)` and `setValue(key, value)`: Slicer's `slicer.app.userSettings()` in the panel.
All presets of a user are one JSON object of names and fields. What cannot be read in it is logged and left alone: a
damaged value or one of a newer version must not keep the panel from opening.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from ..errors import InputError
from ..registration.settings import Settings
from ..text import tr
from ..workflow.presets import OF_THE_METHOD, Preset, builtin_presets

KEY = "IconRegistration/presets"


def user_presets(store: Any) -> list[Preset]:
    """Return the user's presets in alphabetical order; those that cannot be used are logged, with the reason."""
    presets = []
    for name, values in sorted(_stored(store).items()):
        try:
            settings = _method_of(values)
        except InputError as error:
            logging.warning("The preset %r is ignored: %s", name, error)
            continue
        presets.append(Preset(name, name, _describe_own(settings), _of_the_method(settings)))
    return presets


def save_preset(store: Any, name: str, settings: Settings) -> None:
    """Keep the method of `settings` as a preset of the user; one of the same name is replaced.

    Raises InputError for an empty name or that of a built-in preset.
    """
    name = name.strip()
    if not name:
        raise InputError(tr("The preset has no name; type one."))
    taken = {word.casefold() for preset in builtin_presets() for word in (preset.name, preset.title)}
    if name.casefold() in taken:
        raise InputError(tr("The preset {name!r} is built in and stays as it is; choose another name.", name=name))
    store.setValue(KEY, json.dumps({**_stored(store), name: _of_the_method(settings)}, indent=1))


def delete_preset(store: Any, name: str) -> None:
    """Delete a preset of the user. Raises InputError if there is none of that name."""
    stored = _stored(store)
    if name not in stored:
        raise InputError(
            tr(
                "You have no preset {name!r}; there is {presets}.",
                name=name,
                presets=", ".join(sorted(stored)) or tr("none that you saved"),
            )
        )
    del stored[name]
    store.setValue(KEY, json.dumps(stored, indent=1))


def _stored(store) -> dict:
    """Return the JSON object in the store; empty where there is none that can be read."""
    text = store.value(KEY)
    if not text:
        return {}
    try:
        content = json.loads(text)
    except (TypeError, ValueError) as error:
        logging.warning("The presets under %s cannot be read and are ignored: %s", KEY, error)
        return {}
    if not isinstance(content, dict):
        logging.warning("The presets under %s are no JSON object and are ignored", KEY)
        return {}
    return content


def _of_the_method(settings: Settings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in OF_THE_METHOD}


def _method_of(values) -> Settings:
    """Return the settings of a stored preset; raise InputError if it is invalid."""
    if not isinstance(values, dict):
        raise InputError(tr("it is {values!r}, not an object of settings; delete it.", values=values))
    unknown = sorted(set(values) - set(OF_THE_METHOD))
    if unknown:
        raise InputError(
            tr(
                "this version does not know {unknown}; update ICON Registration, or delete it.",
                unknown=", ".join(unknown),
            )
        )
    return Settings.from_plain(values)


def _describe_own(settings: Settings) -> str:
    default = Settings()
    own = {name: value for name, value in _of_the_method(settings).items() if value != getattr(default, name)}
    listed = ", ".join(f"{name} {value}" for name, value in own.items())
    return tr("Your preset: {settings}", settings=listed) if own else tr("Your preset: the defaults")
