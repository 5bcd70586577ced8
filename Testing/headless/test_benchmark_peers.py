"""Every adapter of the accuracy benchmark gives the map from fixed to moving points, in mm and LPS; its table ranks."""

import sys
from pathlib import Path

import numpy as np
import pytest

from IconRegistrationLib.spatial.geometry import Grid, Image, apply_affine

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from adapters import TOOLS, Run, limit_threads
from peers import overview, table

#: Where the fixed image's content lies in the moving image (mm LPS), and the limits of the field's mean error and of
#: the length of its mean. The shift is long against the error of any tool and different along every axis, so that no
#: inverse, swap or flip passes. Content that stays where it is shows conventions that differ by half a voxel, 1.5 mm.
CASES = {"shifted": ((6.0, -4.0, 2.5), 2.5, 2.0), "in place": ((0.0, 0.0, 0.0), 1.5, 0.6)}


def turned(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    result = np.eye(3)
    a, b = (axis + 1) % 3, (axis + 2) % 3
    result[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
    return result


def content(points: np.ndarray) -> np.ndarray:
    """A textured ellipsoid around (10, -20, 30) mm."""
    x, y, z = np.moveaxis(points - (10, -20, 30), -1, 0)
    inside = 1 / (1 + np.exp((np.sqrt((x / 22) ** 2 + (y / 17) ** 2 + (z / 26) ** 2) - 1) * 12))
    texture = np.sin(x / 5 + 0.4) + np.cos(y / 4) + np.sin(z / 6 + x / 9)
    return (inside * (500 + 120 * texture)).astype(np.float32)


def an_image(grid: Grid, matrix: np.ndarray) -> Image:
    k, j, i = np.indices(grid.shape)
    return Image(content(apply_affine(matrix, grid.to_world(np.stack([i, j, k], -1)))), grid)


def around_content(size, spacing, direction, off=(0.0, 0.0, 0.0)) -> Grid:
    spacing, direction = np.array(spacing), np.array(direction)
    origin = np.array([10, -20, 30]) + off - direction * spacing @ (np.array(size) - 1) / 2
    return Grid.from_parts(size, spacing, origin, direction)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TOOLS)
def test_a_known_shift_is_found(name, case):
    tool, (shift, most, bias) = TOOLS[name], CASES[case]
    if tool.version is None:
        pytest.skip(f"{tool.distribution} is not installed, or has no model {tool.model!r}")
    limit_threads(1)
    fixed = around_content((40, 36, 34), (1.6, 1.5, 2.0), turned(12, 2) @ turned(-7, 0))
    moving = around_content((38, 42, 36), (1.7, 1.5, 1.9), turned(-9, 1) * (-1, -1, 1), off=(3, 2, -1))
    back = np.eye(4)
    back[:3, 3] = np.negative(shift)
    run = Run()
    field = tool.register(an_image(fixed, np.eye(4)), an_image(moving, back), run)
    assert field.grid == fixed
    error = field.displacement[an_image(fixed, np.eye(4)).array > 300] - shift
    assert np.linalg.norm(error, axis=1).mean() < most
    assert np.linalg.norm(error.mean(axis=0)) < bias
    assert run.seconds > 0


def a_row(pair: str, tool: str, seconds: float, **measures) -> dict:
    clocks = {"seconds": seconds, "cpu_seconds": seconds, "loading": 1.0, "peak": 1.0}
    head = {"pair": pair, "tool": tool, "round": 0, "threads": 2, "machine": "M", "version": "1", "commit": "abc"}
    return head | clocks | {"folding": 0.0, "segments": 3, "landmarks": 0} | measures


def test_the_table_names_the_most_accurate_and_the_fastest_of_equals():
    rows = [
        a_row("brain", "none", 20, dice=[0.2, 0.80], nmi=[1.0, 1.2]),
        a_row("brain", "greedy", 10, dice=[0.2, 0.79], nmi=[1.0, 1.1]),
        a_row("brain", "ants", 5, dice=[0.2, 0.70], nmi=[1.0, 1.3]),
    ]
    text = table(rows, TOOLS)
    assert "| brain | Dice, 0.200  before | ours, none: 0.800  | greedy: 10 s |" in text
    assert "Means over 3 segments." in text
    assert "| greedy * | 0.790 |" in text


def test_the_overview_has_a_column_per_pair_and_the_most_accurate_bold():
    rows = [
        a_row("brain", "none", 20, dice=[0.2, 0.80], nmi=[1.0, 1.2]),
        a_row("brain", "greedy", 9.96, dice=[0.2, 0.79], nmi=[1.0, 1.1]) | {"folding": 0.0012, "peak": 2.51},
        a_row("liver", "none", 7, tre=[6.1, 1.4]),
        {"pair": "liver", "tool": "greedy", "round": 0, "failed": "ended by SIGSEGV"},
    ]
    assert overview(rows, TOOLS) == [
        "|  | brain, Dice | liver, landmark error mm | peak GiB |",
        "|-|-|-|-|",
        "| headers alone | 0.200 | 6.10 |  |",
        "| ours, none | **0.800**, 20 s | **1.40**, 7.0 s | 1.0 |",
        "| greedy | 0.790, 10.0 s, folds 0.12 % | ended by SIGSEGV | 2.5 |",
    ]


def test_mutual_information_ranks_no_tool_and_a_failure_stays_in_the_table():
    failure = {"failed": "not done after 4 minutes"}
    head = {name: a_row("knee", "fireants", 1)[name] for name in ("pair", "tool", "round", "threads", "machine")}
    rows = [
        a_row("knee", "none", 20, nmi=[1.0, 1.2]),
        a_row("knee", "ants", 5, nmi=[1.0, 1.3]),
        head | {"version": "1", "commit": "abc"} | failure,
    ]
    text = table(rows, TOOLS)
    assert "| knee | nothing: it has no labels, landmarks or reference | | |" in text
    assert " * |" not in text
    assert "| FireANTs | not done after 4 minutes |" in text
