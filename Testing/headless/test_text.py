"""Sentences: English without a translator, translated where they are shown, whole through JSON and pickle."""

import ast
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from IconRegistrationLib import text
from IconRegistrationLib.batch.progress import ProgressPrinter
from IconRegistrationLib.errors import Cancelled, DeviceMemoryError, FolderError, InputError, explain
from IconRegistrationLib.registration.register import STAGE_NAMES
from IconRegistrationLib.text import Sentence, english, one_line, plain_sentence, set_translator, tr, translated


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


#: Calls that return a sentence, and exceptions that are raised with one.
MAKERS = {"tr", "words_of", "write_error_message", "_listed"}
RAISED = {"InputError", "DeviceMemoryError", "FolderError", "_Unavailable"}


def makes_no_sentence(value: ast.expr, function: ast.AST) -> bool:
    """Whether an expression is certainly no sentence: a literal, a string put together, a variable that holds one."""
    if isinstance(value, ast.Call):
        return ast.unparse(value.func) not in MAKERS
    if isinstance(value, ast.IfExp):
        return makes_no_sentence(value.body, function) or makes_no_sentence(value.orelse, function)
    if isinstance(value, ast.Name):
        held = [
            node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == value.id
        ]
        return any(isinstance(held_value, (ast.Constant, ast.JoinedStr, ast.BinOp)) for held_value in held)
    return not isinstance(value, ast.Subscript)  # of a row, of a table of sentences


def test_every_error_is_raised_with_a_sentence():
    found = []
    for path in sorted(Path(text.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
        for function in functions:
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            found += [
                f"{path.name}:{call.lineno}: {ast.unparse(argument)}"
                for call in calls
                if ast.unparse(call.func).rpartition(".")[2] in RAISED
                for argument in call.args
                if makes_no_sentence(argument, function)
            ]
    assert not found, "translations do not reach these"


@pytest.mark.parametrize(
    "source",
    [
        'raise InputError("The image is empty.")',
        'raise InputError(f"{path} is empty.")',
        'raise InputError("The image is " + what)',
        'raise errors.FolderError("Full: {}".format(path))',
        'raise InputError(tr("One.") if one else "Two.")',
    ],
)
def test_a_string_of_any_kind_is_found(source):
    (raised,) = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise))
    assert makes_no_sentence(raised.exc.args[0], raised)


def test_programs_read_progress_in_english(capsys):
    set_translator(lambda context, template: template.upper())
    try:
        ProgressPrinter(as_json=True)(tr("warping"), 0.5)
        shown = translated(STAGE_NAMES["alignment"])
    finally:
        set_translator(None)
    assert shown == "ALIGNMENT"
    assert json.loads(capsys.readouterr().out)["stage"] == "warping"
