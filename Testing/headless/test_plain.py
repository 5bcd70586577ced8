"""Values as JSON has them, and back: exact where both ends are ours, readable for any program where one is not."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.plain import from_plain, to_plain
from IconRegistrationLib.text import Sentence, tr


@dataclass(frozen=True)
class Point:
    place: tuple[float, float, float]
    name: str = ""


@dataclass(frozen=True)
class Study:
    points: tuple[Point, ...]
    window: tuple[float, float] | None = None
    count: int = 0
    more: dict = field(default_factory=dict)


def through_json(value):
    return json.loads(json.dumps(value))


def test_dataclasses_come_back_from_json():
    study = Study(
        (Point((1.0, np.float32(2.5), float("inf"))), Point((0.0, 0.0, 0.0), tr("{n} mm", n=3))), (0.0, 1.0), 2
    )
    back = from_plain(Study, through_json(to_plain(study)))
    assert back == study
    assert isinstance(back.points[1].name, Sentence)


def test_strict_is_for_any_program():
    values = {"nan": float("nan"), "array": np.arange(3, dtype=np.uint8), "path": Path("a"), 1: np.bool_(True)}
    plain = to_plain({**values, "sentence": tr("{n} mm", n=3)}, strict=True)
    assert plain == {"nan": None, "array": [0, 1, 2], "path": "a", "1": True, "sentence": "3 mm"}
    json.dumps(plain, allow_nan=False)


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ({"points": [], "count": 1.5}, "Study.count is 1.5, which is no int"),
        ({"points": [{"place": [0, 0]}]}, r"Study.points\[0\].place is \[0, 0\], which has not 3 elements"),
        ({"points": [{"place": [0, 0, "x"]}]}, r"Study.points\[0\].place\[2\] is 'x', which is no float"),
        ({"points": [], "cuont": 1}, "Study has no 'cuont'; choose from points, window, count, more"),
        ({"window": None}, "Study lacks 'points'"),
        ([], r"Study is \[\], which is no object"),
    ],
)
def test_what_does_not_fit_is_named(plain, said):
    with pytest.raises(InputError, match=said):
        from_plain(Study, plain)
