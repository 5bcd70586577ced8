"""Sentences: English without a translator, translated where they are shown, whole through JSON and pickle."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from IconRegistrationLib import text
from IconRegistrationLib.text import Sentence, plain_sentence, set_translator, tr


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
