"""User-visible sentences: a literal template in English and its values, translated where they are shown.

Every sentence that a user may read passes through `tr`. Slicer's translations reach it by `set_translator`; without one
(the command, the worker, the library) it is English. A sentence keeps template and values, so that another process can
send them and the window can translate them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

#: translate(context, template) -> template in the language of the window.
Translator = Callable[[str, str], str]

_translate: Translator | None = None


class Sentence(str):
    """A sentence as it is shown, which remembers what it was made of.

    Attributes
    ----------
    template : str
        The English literal, with named placeholders as of `str.format`.
    values : dict
        What the placeholders stand for; other sentences among them.
    context : str
        Where translations look for the template: folder and file of the module that says it, as "io.images".
    """

    template: str
    values: dict[str, Any]
    context: str

    def __new__(cls, template: str, values: Mapping[str, Any] | None = None, context: str = "") -> Sentence:
        """Make the sentence in the language of the window, in English where its translation cannot be used."""
        values = dict(values or {})
        shown = _translate(context, template) if _translate else template
        try:
            text = shown.format(**values)
        except (KeyError, IndexError, ValueError):  # a translation with other placeholders
            text = template.format(**values)
        sentence = super().__new__(cls, text)
        sentence.template, sentence.values, sentence.context = template, values, context
        return sentence

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep template and values in pickles and copies."""
        return Sentence, (self.template, self.values, self.context)

    def to_plain(self) -> dict[str, Any]:
        """Return template, context and values as JSON-safe values; the inverse of `from_plain`."""
        return {
            "template": self.template,
            "context": self.context,
            "values": {name: _plain(value) for name, value in self.values.items()},
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any] | str) -> str:
        """Make a sentence of `to_plain`'s values, in the language of this process; a plain string stays what it is."""
        if isinstance(plain, str):
            return plain
        values = {name: cls.from_plain(v) if isinstance(v, Mapping) else v for name, v in plain["values"].items()}
        return cls(plain["template"], values, plain.get("context", ""))

    @property
    def english(self) -> str:
        """The sentence in English."""
        values = {name: v.english if isinstance(v, Sentence) else v for name, v in self.values.items()}
        return self.template.format(**values)


def tr(template: str, /, **values: Any) -> Sentence:
    """Return the sentence that `template` and `values` make, in the language of the window.

    Parameters
    ----------
    template : str
        A literal in English with named placeholders: ``tr("{path} does not exist; check the path.", path=path)``.
        Translators see the literal, so it must be whole: no f-string, no concatenation with another sentence.
    **values
        Numbers, strings, paths, or other sentences.

    Examples
    --------
    >>> tr("{count} of {total:.0f} mm", count=2, total=7.0)
    '2 of 7 mm'
    """
    module = sys._getframe(1).f_globals.get("__name__", "")
    return Sentence(template, values, ".".join(module.split(".")[-2:]))  # as slicer.i18n names its contexts


def set_translator(translate: Translator | None) -> None:
    """Translate every sentence from now on by `translate(context, template)`; None: English."""
    global _translate
    _translate = translate


def plain_sentence(text: str) -> dict[str, Any] | str:
    """Return `text` as JSON-safe values: a Sentence with its template, anything else as it is."""
    return text.to_plain() if isinstance(text, Sentence) else str(text)


def english(text: str) -> str:
    """Return `text` in English, for files that programs read."""
    return text.english if isinstance(text, Sentence) else text


def translated(text: str) -> str:
    """Return a sentence that was made earlier in the language of the window now: for tables that modules hold."""
    return Sentence.from_plain(plain_sentence(text))


def one_line(text: str) -> str:
    r"""Return `text` without line breaks and repeated spaces; a Sentence stays one.

    Examples
    --------
    >>> one_line("one,\n  two")
    'one, two'
    """
    if isinstance(text, Sentence):
        values = {name: one_line(value) if isinstance(value, str) else value for name, value in text.values.items()}
        return Sentence(" ".join(text.template.split()), values, text.context)
    return " ".join(text.split())


def _plain(value: Any) -> Any:
    if isinstance(value, Sentence):
        return value.to_plain()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value.item() if hasattr(value, "item") else str(value)  # numpy's scalars; paths
