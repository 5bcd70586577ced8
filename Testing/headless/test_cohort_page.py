"""cohort.csv and cohort.html: every number of every pair, the worst first, safe to open; the page in a real browser."""

import base64
import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from IconRegistrationLib.batch.cohort import page, table
from IconRegistrationLib.batch.cohort.page import write_page
from IconRegistrationLib.batch.cohort.table import write_table
from IconRegistrationLib.quality.report import Report
from IconRegistrationLib.quality.values import (
    Change,
    Deformation,
    Folding,
    LandmarkQuality,
    SegmentQuality,
    Similarity,
    Spread,
)
from IconRegistrationLib.quality.verdicts import Verdict

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'


def a_report(dice=0.9, level="green", structure="liver", landmark="carina", error=1.5, folding=0):
    """A report with one structure and one landmark."""
    return Report(
        Similarity(Change(0.6, 0.95), Change(1.07, 1.38), Change(0.87, 0.91)),
        (SegmentQuality(structure, Change(0.5, dice), Change(20.0, math.inf), 1000.0, 1100.0, 1200.0),),
        (LandmarkQuality(landmark, Change(18.0, error)),),
        Deformation(
            Folding(folding, folding / 1e4, 0.23, (1.0, -2.0, 3.0)), 0.1, Spread(4, 3, 9, 12), Spread(0.2, 0.1, 0.7, 2)
        ),
        (
            Verdict("Folding", folding / 1e4, "green", "none; the smallest Jacobian is 0.23"),
            Verdict("Dice", dice, level, f"mean 0.500 -> {dice:.3f}", 0.5),
        ),
    )


def put(folder, name, report=None, error=None, pictures=(), **more):
    """A pair on the disk: done where it has a report, else failed."""
    row = {"id": name, "state": "done" if report else "failed", "error": error, "seconds": 12.5, "worker": "node1"}
    files = {role: {"path": f"/data/{name}/{role}.nii.gz"} for role in ("fixed", "moving")}
    row |= {"files": files, "report": report.to_dict() if report else None, "notes": [], **more}
    path = folder / "pairs" / more.get("place", name) / "row.json" if report else folder / "failed" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row), encoding="utf-8")
    for kind, data in pictures:
        (path.parent / "pictures").mkdir(exist_ok=True)
        (path.parent / "pictures" / f"{kind}.png").write_bytes(data)
    return path


def a_png(width=1680, height=560):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow, which comes with matplotlib")
    data = io.BytesIO()
    image.linear_gradient("L").resize((width, height)).convert("RGB").save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def a_cohort(tmp_path):
    """Three pairs that are done, one that failed; `write_table` and `write_page` are told of one that is left."""
    put(tmp_path, "middling", a_report(0.75, "amber", structure="spleen", error=4.0))
    put(tmp_path, "good", a_report())
    put(tmp_path, "bad", a_report(0.4, "red", error=9.0, folding=7))
    put(tmp_path, "gone", error="/data/gone/fixed.nii.gz does not exist; check the path.")
    return tmp_path


def lines_of(folder):
    with open(folder / "cohort.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------- cohort.csv


def test_every_number_of_every_pair_is_a_cell(a_cohort):
    write_table(a_cohort, ["later"])
    lines = {line["id"]: line for line in lines_of(a_cohort)}
    states = {name: (line["state"], line["verdict"]) for name, line in lines.items()}
    assert states == {
        "good": ("done", "green"),
        "middling": ("done", "amber"),
        "bad": ("done", "red"),
        "gone": ("failed", ""),
        "later": ("left", ""),
    }
    assert lines["gone"]["error"].startswith("/data/gone/fixed.nii.gz does not exist")
    good = lines["good"]
    assert good["fixed"] == "/data/good/fixed.nii.gz"
    wanted = {
        "dice_before": 0.5,
        "dice_after:liver": 0.9,
        "ncc_after": 0.95,
        "target_registration_error_mm_after:carina": 1.5,
        "volume_ratio:liver": 1.1,
        "folding_place_y": -2.0,
        "inverse_consistency_mm_percentile95": 0.7,
        "seconds": 12.5,
    }
    assert {name: float(good[name]) for name in wanted} == wanted
    assert float(lines["middling"]["dice_after:spleen"]) == 0.75
    assert good["dice_after:spleen"] == lines["middling"]["dice_after:liver"] == ""

    def leaves(tree):
        if isinstance(tree, dict):
            return [leaf for value in tree.values() for leaf in leaves(value)]
        return [leaf for value in tree for leaf in leaves(value)] if isinstance(tree, list) else [tree]

    report = a_report().to_dict()
    del report["verdicts"], report["provenance"]
    expected = sorted(value for value in leaves(report) if value is not None)
    cells = [cell for name, cell in good.items() if name not in table._COLUMNS and cell]
    assert sorted(map(float, cells)) == expected


def test_infinite_and_unknown_are_empty_cells(a_cohort):
    write_table(a_cohort)
    line = lines_of(a_cohort)[0]
    assert line["hd95_mm_before:liver"] == "20.0"
    assert line["hd95_mm_after:liver"] == "", "infinite, as in report.csv"
    assert not {"nan", "inf", "None"} & {cell.lower() for other in lines_of(a_cohort) for cell in other.values()}


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_no_name_is_a_formula(tmp_path, name):
    put(tmp_path, "a", error=name, id=name)
    put(tmp_path, "b", a_report(structure=name))
    write_table(tmp_path, [name + "left"])
    with open(tmp_path / "cohort.csv", newline="", encoding="utf-8") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert f"'{name}" in cells
    assert f"'{name}left" in cells
    assert f"dice_after:{name}" in cells
    assert not [cell for cell in cells if cell.startswith(table._FORMULA) and not re.fullmatch(r"-[\d.]+", cell)]


def test_names_of_any_alphabet_and_of_none(tmp_path):
    put(tmp_path, "Jürgen 患者", a_report(structure="Leber, groß"))
    put(tmp_path, "bytes", error="\udcff is no UTF-8")
    write_table(tmp_path)
    write_page(tmp_path)
    assert {line["id"] for line in lines_of(tmp_path)} == {"Jürgen 患者", "bytes"}
    assert [pair["id"] for pair in data_of(tmp_path)[1]] == ["bytes", "Jürgen 患者"]


def test_a_failure_counts_more_than_earlier_results_and_partial_folders_not_at_all(tmp_path):
    put(tmp_path, "again", a_report())
    put(tmp_path, "again", error="Its file is truncated; copy it again.")
    put(tmp_path, "x", a_report(), place=".x.partial-host-1")
    put(tmp_path, "stale", a_report())
    write_table(tmp_path, ["stale"])
    assert [(line["id"], line["state"], line["dice_after"]) for line in lines_of(tmp_path)] == [
        ("again", "failed", ""),
        ("stale", "left", ""),
    ]


def test_a_row_that_cannot_be_read_is_told(tmp_path):
    path = put(tmp_path, "torn", a_report())
    path.write_text(path.read_text()[:100])
    write_table(tmp_path)
    write_page(tmp_path)
    (line,) = lines_of(tmp_path)
    assert line["state"] == "failed"
    assert str(path) in line["error"]
    assert data_of(tmp_path)[1][0]["error"] == line["error"]


@pytest.mark.parametrize(("write", "name"), [(write_table, "cohort.csv"), (write_page, "cohort.html")])
def test_a_disk_that_refuses_leaves_what_there_was(a_cohort, monkeypatch, write, name):
    write(a_cohort)
    before = (a_cohort / name).read_bytes()
    put(a_cohort, "new", a_report())

    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        write(a_cohort)
    assert (a_cohort / name).read_bytes() == before
    assert {path.name for path in a_cohort.iterdir()} == {"pairs", "failed", name}


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_table, write_page])
def test_memory_does_not_grow_with_the_numbers(tmp_path, write):
    """Of a pair, a name and an order are kept, not its row of 14 kB."""
    report = a_report()
    structures = tuple(SegmentQuality(f"s{n}", Change(0.5, 0.9), Change(9, 3), 1, 1, 1) for n in range(80))
    row = json.loads(put(tmp_path, "0", Report(**{**vars(report), "segments": structures})).read_text())
    size = len(json.dumps(row))

    def peak(count):
        for n in range(count):
            place = tmp_path / "pairs" / str(n)
            place.mkdir(exist_ok=True)
            (place / "row.json").write_text(json.dumps({**row, "id": str(n)}))
        tracemalloc.start()
        write(tmp_path)
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    few, many = peak(20), peak(220)
    assert size > 12_000
    assert (many - few) / 200 < 3000


# ------------------------------------------------------------------------------------------------------ cohort.html


class Scripts(HTMLParser):
    """Every <script> of a page: (attributes, text); and the attributes of all other elements."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.elements, self._open = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._open = tag == "script"
        if self._open:
            self.scripts.append([dict(attributes), ""])
        else:
            self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        self._open = False

    def handle_data(self, data):
        if self._open:
            self.scripts[-1][1] += data


def data_of(folder):
    """What a page carries: about the cohort, the pairs in order, closing notes."""
    scripts = Scripts((folder / "cohort.html").read_text(encoding="utf-8")).scripts
    found = [(at, json.loads(text)) for at, text in scripts if at.get("type") == "application/json"]
    about = next(value for at, value in found if at.get("id") == "cohort")
    notes = next(value for at, value in found if at.get("id") == "closing")["notes"]
    return about, [value for at, value in found if at.get("class") == "pair"], notes


def test_the_worst_come_first(a_cohort):
    put(a_cohort, "worse", a_report(0.3, "red"))
    write_page(a_cohort, ["later"])
    assert [pair["id"] for pair in data_of(a_cohort)[1]] == ["gone", "worse", "bad", "middling", "good", "later"]


def test_the_page_has_the_numbers_and_the_sentences_of_the_report(a_cohort):
    write_page(a_cohort)
    about, pairs, _ = data_of(a_cohort)
    good = pairs[-1]
    numbers = dict(zip(about["columns"], good["numbers"], strict=True))
    assert numbers["dice_after"] == 0.9
    assert numbers["hd95_mm_after"] is None
    assert dict(zip(about["segment_columns"], good["segments"][0][1:], strict=True))["volume_ratio"] == 1.1
    assert good["landmarks"] == [["carina", 18.0, 1.5]]
    assert good["verdicts"] == [[v.measure, v.level, v.meaning, v.before, v.value] for v in a_report().verdicts]
    assert good["level"] == "green"
    assert about["words"] == {"green": "good", "amber": "look closely", "red": "do not trust"}


def test_names_are_data_and_nothing_is_loaded(tmp_path):
    """No name ends its element, the policy allows one script and one style, and no address leads elsewhere."""
    folder = tmp_path / "<b>study & co"
    put(folder, "x", a_report(structure=HOSTILE, landmark=HOSTILE), id=HOSTILE)
    put(folder, "y", error=HOSTILE)
    write_page(folder, [f"{HOSTILE}2"])
    text = (folder / "cohort.html").read_text(encoding="utf-8")
    parsed = Scripts(text)
    assert not [tag for tag, _ in parsed.elements if tag in ("b", "link", "iframe", "base")]
    assert [at for tag, at in parsed.elements if tag == "img"] == [{"id": "picture", "alt": ""}]
    assert "<title>&lt;b&gt;study &amp; co</title>" in text
    (running,) = (script for at, script in parsed.scripts if not at)
    digest = base64.b64encode(hashlib.sha256(running.encode()).digest()).decode()
    policy = next(at["content"] for _, at in parsed.elements if at.get("http-equiv") == "Content-Security-Policy")
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!#)[^"'\s>]*//""", text)
    assert [pair["id"] for pair in data_of(folder)[1]] == ["y", HOSTILE, f"{HOSTILE}2"]


def test_pictures_are_small_copies_in_the_page(tmp_path):
    put(tmp_path, "both", a_report(), pictures=[(kind, a_png()) for kind in ("before", "after", "grid")])
    put(tmp_path, "grid only", a_report(), pictures=[("grid", a_png(1600, 600))])
    put(tmp_path, "broken", a_report(), pictures=[("before", a_png()[:500])])
    write_page(tmp_path)
    _, pairs, notes = data_of(tmp_path)
    kinds = {pair["id"]: pair.get("pictures") for pair in pairs}
    assert kinds == {"both": ["before", "after"], "grid only": ["grid"], "broken": None}
    assert notes == []
    place = [pair["id"] for pair in pairs].index("grid only")
    scripts = Scripts((tmp_path / "cohort.html").read_text(encoding="utf-8")).scripts
    (uri,) = (text for at, text in scripts if at.get("id") == f"picture-{place}-grid")
    from PIL import Image

    kind, _, data = uri.partition(",")
    assert kind == "data:image/webp;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (1120, 420)
    links = dict(next(pair for pair in pairs if pair["id"] == "grid only")["links"])
    assert links == {"pictures/grid.png": "pairs/grid%20only/pictures/grid.png"}


def test_only_the_worst_have_pictures_where_all_would_be_too_many(tmp_path, monkeypatch):
    for name, dice in (("a", 0.9), ("b", 0.5), ("c", 0.7)):
        put(tmp_path, name, a_report(dice), pictures=[("before", a_png())])
    monkeypatch.setattr(page, "PICTURES_AT_MOST", 1)
    write_page(tmp_path)
    _, pairs, notes = data_of(tmp_path)
    assert {pair["id"]: "pictures" in pair for pair in pairs} == {"b": True, "c": False, "a": False}
    assert "worst 1 pairs" in notes[0]
    assert "other 2" in notes[0]


def test_without_pillow_the_page_says_so(tmp_path, monkeypatch):
    put(tmp_path, "a", a_report(), pictures=[("before", b"a picture")])
    monkeypatch.setitem(sys.modules, "PIL", None)
    write_page(tmp_path)
    _, pairs, notes = data_of(tmp_path)
    assert "pictures" not in pairs[0]
    assert "Pillow is not installed" in notes[0]


# ---------------------------------------------------------------------------------------------------------- Chromium

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium; apt install chromium")


def opened(path, profile):
    """The document after its script has run, and what the console said."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={profile}"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def after(folder, script, profile):
    """What `script`, an expression, is when it runs in a copy of the page whose policy allows it."""
    text = (folder / "cohort.html").read_text(encoding="utf-8")
    text = re.sub(r"<meta http-equiv=.*?>", "", text, count=1)
    answer = f"`<pre>${{encodeURIComponent(JSON.stringify(({script})()))}}</pre>`"
    copy = folder / "copy.html"
    copy.write_text(f"{text}<script>document.body.innerHTML = {answer}</script>", encoding="utf-8")
    document, console = opened(copy, profile)
    assert not console
    return json.loads(unquote(re.search("<pre>(.*?)</pre>", document)[1]))


@needs_browser
def test_a_browser_shows_all_and_runs_no_name(tmp_path):
    put(tmp_path / "study", "x", a_report(structure=HOSTILE, landmark=HOSTILE), id=HOSTILE, worker=HOSTILE)
    put(tmp_path / "study", "y", error=HOSTILE)
    put(tmp_path / "study", "z", a_report(), pictures=[("before", a_png()), ("after", a_png())])
    write_page(tmp_path / "study", ["later"])
    document, console = opened(tmp_path / "study" / "cohort.html", tmp_path / "profile")
    assert not console
    assert "<title>study</title>" in document
    parsed = Scripts(document)
    assert not [at for _, at in parsed.elements if "onerror" in at]
    assert len([at for tag, at in parsed.elements if tag == "article" and "pair" in at["class"].split()]) == 4
    assert len([at for tag, at in parsed.elements if tag == "img" and at.get("src", "").startswith("data:")]) == 2
    assert document.count("&lt;img src=x onerror=") >= 2, "shown as text"
    assert "none; the smallest Jacobian is 0.23" in document
    assert "do not trust" in document


@needs_browser
def test_filters_sorting_and_keys(a_cohort, tmp_path_factory):
    for number in range(40):
        put(a_cohort, f"sub-{number:02d}", a_report(0.81 + number / 400))
    write_page(a_cohort, ["later"])
    script = """() => {
      const get = (id) => document.getElementById(id);
      const count = () => get("count").textContent;
      const first = () => document.querySelector(".pair h2").textContent;
      const fire = (element, event) => element.dispatchEvent(event);
      const type = (text) => { get("search").value = text; fire(get("search"), new Event("input")); };
      const seen = { all: count(), first: first(), cards: document.querySelectorAll("article.pair").length };
      get("more").click();
      seen.more = document.querySelectorAll("article.pair").length;
      type("sub-1"); seen.search = count(); type("");
      document.querySelector('.tile[data-value="failed"]').click(); seen.failed = count();
      document.querySelector('.tile[data-value="failed"]').click();
      document.querySelector('.tile[data-value="red"]').click(); seen.red = [count(), first()];
      document.querySelector("#tags button").click(); seen.removed = count();
      const bar = document.querySelector(".plot .bin");
      fire(bar, new MouseEvent("click")); seen.bar = [count(), first()];
      const pressed = document.querySelector('.bin[aria-pressed="true"]');
      fire(pressed, new KeyboardEvent("keydown", { key: "Enter" })); seen.key = count();
      const start = document.querySelector('.bin[tabindex="0"]'); start.focus();
      fire(start, new KeyboardEvent("keydown", { key: "ArrowRight" }));
      seen.moved = document.activeElement === start.nextElementSibling;
      get("measure").value = "dice_after:liver"; get("from").value = "0,85"; get("to").value = "";
      fire(get("threshold"), new Event("submit", { cancelable: true })); seen.threshold = count();
      document.querySelector("#tags button").click();
      get("sort").value = 3; fire(get("sort"), new Event("change")); seen.sorted = first();
      const details = document.querySelector("details"); details.open = true; fire(details, new Event("toggle"));
      seen.numbers = details.textContent;
      fire(window, new Event("beforeprint")); seen.printed = document.querySelectorAll("article.pair").length;
      return seen;
    }"""
    seen = after(a_cohort, script, tmp_path_factory.mktemp("profile"))
    numbers = seen.pop("numbers")
    assert seen == {
        "all": "45 of 45 pairs",
        "first": "gone",
        "cards": 24,
        "more": 45,
        "search": "10 of 45 pairs",
        "failed": "1 of 45 pairs",
        "red": ["1 of 45 pairs", "bad"],
        "removed": "45 of 45 pairs",
        "bar": ["1 of 45 pairs", "bad"],
        "key": "45 of 45 pairs",
        "moved": True,
        "threshold": "25 of 45 pairs",
        "sorted": "bad",
        "printed": 45,
    }
    for text in ("liver", "carina", "smallest Jacobian", "95 %: inverse consistency [mm]", "1,100"):
        assert text in numbers
