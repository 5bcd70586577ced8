"""Sentences: English without a translator, translated where they are shown, whole through JSON and pickle."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from IconRegistrationLib import text
from IconRegistrationLib.errors import Cancelled, DeviceMemoryError, FolderError, InputError, explain
from IconRegistrationLib.text import Sentence, english, one_line, plain_sentence, set_translator, tr


@pytest.fixture
def upper():
    """A language that shouts."""
    set_translator(lambda context, template: template.replace("does not exist", "GIBT ES NICHT"))
    yield
    set_translator(None)


def a_sentence() -> Sentence:
    inner = tr("{size:.1f} mm", size=np.float64(2.25))
    return tr("{path} does not exist; {what}.", path=Path("a/b.nii"), what=inner)


def test_english_without_a_translator():
    sentence = a_sentence()
    assert sentence == "a/b.nii does not exist; 2.2 mm." == sentence.english
    assert sentence.context == f"{__name__}"[-len(sentence.context) :]


def test_translated_where_it_is_shown(upper):
    sentence = a_sentence()
    assert sentence == "a/b.nii GIBT ES NICHT; 2.2 mm."
    assert sentence.english == "a/b.nii does not exist; 2.2 mm."


def test_another_process_sends_template_and_values(request):
    sent = json.dumps(plain_sentence(a_sentence()))
    request.getfixturevalue("upper")
    received = Sentence.from_plain(json.loads(sent))
    assert received == "a/b.nii GIBT ES NICHT; 2.2 mm."
    assert isinstance(received, Sentence)
    assert received.english == "a/b.nii does not exist; 2.2 mm."


def test_pickle_keeps_what_it_is_made_of():
    sentence = pickle.loads(pickle.dumps(a_sentence()))
    assert isinstance(sentence, Sentence)
    assert sentence.template == a_sentence().template


def test_plain_strings_stay():
    assert plain_sentence("plain") == "plain" == Sentence.from_plain("plain")


def test_a_wrong_translation_is_not_shown():
    set_translator(lambda context, template: "{other} {0} {")
    try:
        assert tr("{path} is gone", path="x") == "x is gone"
    finally:
        set_translator(None)
    assert text._translate is None


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (InputError("The scan is empty; choose another."), "input", "The scan is empty; choose another."),
        (DeviceMemoryError("cuda:0 is full; choose cpu."), "memory", "cuda:0 is full; choose cpu."),
        (FolderError("No room in out; free some."), "folder", "No room in out; free some."),
        (MemoryError(), "memory", "This machine ran out of memory; crop"),
        (Cancelled(), "cancelled", "Cancelled; nothing was changed."),
        (KeyboardInterrupt("stopped; 3 pairs are left."), "cancelled", "stopped; 3 pairs are left."),
        (ModuleNotFoundError(name="itk"), "dependency", "The package itk is not installed; press Apply"),
        (RuntimeError("one.\ntwo."), "unexpected", "Unexpected RuntimeError: one. two."),
        (AssertionError(), "unexpected", "Unexpected AssertionError: it says no more."),
    ],
)
def test_every_exception_has_a_kind_and_a_sentence(error, kind, said):
    found, sentence = explain(error)
    assert found == kind
    assert sentence.startswith(said)


def test_an_explanation_is_still_translated(upper):
    kind, sentence = explain(InputError(a_sentence()))
    assert kind == "input"
    assert sentence.english == "a/b.nii does not exist; 2.2 mm."
    assert one_line(sentence) == "a/b.nii GIBT ES NICHT; 2.2 mm."


def test_one_line_keeps_a_sentence():
    sentence = one_line(tr("{path} is\n upside down: {reason}", path="x", reason="no\n axis"))
    assert sentence == "x is upside down: no axis" == sentence.english
    assert isinstance(sentence, Sentence)
    assert english("plain") == "plain"
