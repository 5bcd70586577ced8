"""Manifests, BIDS folders and atlases: what is read from them, and that every mistake is named with its row."""

import argparse
import csv
import io
import json
import os
import random
import re
from dataclasses import asdict, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from IconRegistrationLib.batch.cohort.bids import bids_entries
from IconRegistrationLib.batch.cohort.entries import Entry, with_absolute_paths
from IconRegistrationLib.batch.cohort.manifest import read_manifest
from IconRegistrationLib.batch.cohort.selection import add_entries, entries_of
from IconRegistrationLib.batch.command import main
from IconRegistrationLib.batch.pair import ROLES, PairFiles
from IconRegistrationLib.errors import InputError
from IconRegistrationLib.registration.settings import Settings

DEFAULTS = Settings(steps=7)
IN_A_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def write(tmp_path):
    """write(text, name) -> path of a manifest."""

    def write(text, name="pairs.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return path

    return write


def refused(path, **options) -> list[str]:
    """The lines of the refusal: what has how many mistakes, and each of them."""
    with pytest.raises(InputError) as caught:
        read_manifest(path, DEFAULTS, **options)
    return str(caught.value).splitlines()


# ------------------------------------------------------------------------------------------------------ what is read


def test_a_plain_table(write, tmp_path):
    path = write("id,fixed,moving\na,one.nii.gz,two.nii.gz\nb,sub/three.nrrd,/elsewhere/four.nrrd\n")
    assert read_manifest(path, DEFAULTS) == [
        Entry("a", PairFiles(f"{tmp_path}/one.nii.gz", f"{tmp_path}/two.nii.gz", settings=DEFAULTS)),
        Entry("b", PairFiles(f"{tmp_path}/sub/three.nrrd", "/elsewhere/four.nrrd", settings=DEFAULTS)),
    ]


def test_every_role_and_setting_can_be_a_column(write, tmp_path):
    values = {
        "model": "builtin",
        "refine": "network",
        "steps": "12",
        "similarity": "mind",
        "align": "affine",
        "device": "cpu",
        "precision": "float32",
        "fixed_modality": "ct",
        "moving_modality": "mri",
        "ct_window": "-160 240",
        "quantile_range": "0.01  0.99",
        "label_weight": "0.5",
        "padding": "10",
        "spacing": "2.5",
        "weights_dir": "weights",
    }
    assert values.keys() == asdict(DEFAULTS).keys()
    row = {"id": "a", **{role: f"{role}.nii" for role in ROLES}, "guide": "yes", **values}
    path = write(";".join(row) + "\n" + ";".join(row.values()))
    (entry,) = read_manifest(path, DEFAULTS)
    assert entry.pair.files == {role: f"{tmp_path}/{role}.nii" for role in ROLES}
    assert entry.pair.roles["guide"]
    assert asdict(entry.pair.settings) == {
        **values,
        "steps": 12,
        "ct_window": (-160.0, 240.0),
        "quantile_range": (0.01, 0.99),
        "label_weight": 0.5,
        "padding": 10.0,
        "spacing": 2.5,
        "weights_dir": f"{tmp_path}/weights",
    }


def test_an_empty_cell_leaves_the_default(write):
    first, second = read_manifest(write("fixed,moving,steps,spacing\na,b,,\nc,d,3,4\n"), DEFAULTS)
    assert first.pair.settings == DEFAULTS
    assert second.pair.settings == replace(DEFAULTS, steps=3, spacing=4.0)


def test_json_with_settings_of_its_own(write):
    pairs = [
        {"id": 12, "fixed": "a", "moving": "b", "ct_window": [-160, 240], "guide": False},
        {"id": "x", "fixed": "a", "moving": "b", "steps": 2, "spacing": None, "initial": ""},
    ]
    path = write(
        json.dumps({"pairs": pairs, "settings": {"steps": 4, "align": "rigid", "weights_dir": None}}), "pairs.json"
    )
    first, second = read_manifest(path, DEFAULTS)
    assert (first.id, second.id) == ("12", "x")
    assert first.pair.settings == Settings(steps=4, align="rigid", ct_window=(-160.0, 240.0))
    assert second.pair.settings == Settings(steps=2, align="rigid")
    assert [entry.pair for entry in read_manifest(write(json.dumps(pairs), "list.json"), DEFAULTS)] == [
        replace(first.pair, settings=replace(DEFAULTS, ct_window=(-160.0, 240.0))),
        replace(second.pair, settings=replace(DEFAULTS, steps=2)),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_as_spreadsheets_write_it(write, tmp_path, encoding, separator, end):
    rows = ["Fixed Segmentation|fixed|moving|#age|", "|größe 1.nii|Ärztin/日本.nii|61|", "||||", "|c.nii|d.nii||"]
    path = write(end.join(rows).replace("|", separator), encoding=encoding)
    first, second = read_manifest(path, DEFAULTS)
    assert first.pair == PairFiles(f"{tmp_path}/größe 1.nii", f"{tmp_path}/Ärztin/日本.nii", settings=DEFAULTS)
    assert second.pair.fixed == f"{tmp_path}/c.nii"


def test_home_series_and_the_folder_above(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path = write('fixed,moving\n~/ct::1.2.840,"../a, b.nii"\n')
    (entry,) = read_manifest(path, DEFAULTS)
    assert entry.pair.files == {"fixed": "/home/me/ct::1.2.840", "moving": f"{tmp_path}/../a, b.nii"}


def test_guide_for_all_but_one(write):
    header = "fixed,moving,fixed_segmentation,moving_segmentation,guide\n"
    first, second = read_manifest(write(header + "a,b,c,d,\na,e,,,no\n"), DEFAULTS, {"guide": True})
    assert (first.pair.roles["guide"], second.pair.roles["guide"]) == (True, False)


def test_a_weights_file_starts_at_the_manifest(write, tmp_path):
    (tmp_path / "mine.trch").touch()
    first, second = read_manifest(write("fixed,moving,model\na,b,mine.trch\na,c,unigradicon\n"), DEFAULTS)
    assert first.pair.settings.model == f"{tmp_path}/mine.trch"
    assert second.pair.settings.model == "unigradicon"


PATHS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(
    lambda text: text == text.strip() and text.strip("./\\") and text[0] != "~"
)
NUMBERS = st.floats(-1e6, 1e6)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"fixed": PATHS.map("f/{}".format), "moving": PATHS.map("m/{}".format)},
        optional={
            "moving_mask": PATHS,
            "initial": PATHS,
            "guide": st.just(False),
            "steps": st.integers(1, 1000),
            "similarity": st.sampled_from(["auto", "mind"]),
            "ct_window": st.tuples(NUMBERS, NUMBERS).filter(lambda window: window[0] < window[1]),
            "spacing": st.floats(0.1, 10),
        },
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda row: (row["fixed"], row["moving"]),
)


@IN_A_FOLDER
@given(ROWS, st.sampled_from(",;\t"), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_round_trip(tmp_path, rows, separator, encoding):
    """What a table says and what JSON says is what was written, whatever the names."""
    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(name for row in rows for name in row)), delimiter=separator)
    writer.writeheader()
    for row in rows:
        texts = {name: " ".join(map(repr, value)) if isinstance(value, tuple) else value for name, value in row.items()}
        writer.writerow(texts)
    (tmp_path / "pairs.csv").write_bytes(table.getvalue().encode(encoding))
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    entries = read_manifest(tmp_path / "pairs.csv", DEFAULTS)
    pairs = [
        PairFiles(
            **{name: os.path.join(tmp_path, value) for name, value in row.items() if name in ROLES},
            settings=replace(DEFAULTS, **{name: value for name, value in row.items() if name in asdict(DEFAULTS)}),
        )
        for row in rows
    ]
    assert [entry.pair for entry in entries] == pairs
    assert [entry.pair for entry in read_manifest(tmp_path / "pairs.json", DEFAULTS)] == pairs
    check_ids([entry.id for entry in entries])


# --------------------------------------------------------------------------------------------------------------- ids


def check_ids(ids):
    """Each can be a folder of its own on any system."""
    assert len({id.casefold() for id in ids}) == len(ids)
    for id in ids:
        assert 0 < len(id.encode()) <= 100
        assert id.isprintable()
        assert not re.search(r'[<>:"/\\|?*]|^\.|\.$', id)
        assert id.partition(".")[0].lower() not in {"con", "prn", "aux", "nul", "com1", "lpt9"}


def ids_of(path, **options) -> list[str]:
    return [entry.id for entry in read_manifest(path, DEFAULTS, **options)]


def test_ids_are_made_of_as_little_of_the_paths_as_tells_them_apart(write):
    rows = ["brain.nii.gz,other scan.nrrd", "p1/f.nii,p1/m.nii", "p2/f.nii,p2/m.nii", "/s1/x/f.nii,m.nii"]
    rows += ["a/s1/t.nii,b/s1/t.nii", "a/s1/t.nii,c/s1/t.nii"]
    assert ids_of(write("fixed,moving\n" + "\n".join(rows))) == [
        "other_scan_to_brain",
        "p1_m_to_p1_f",
        "p2_m_to_p2_f",
        "m_to_x_f",
        "b_s1_t_to_a_s1_t",
        "c_s1_t_to_a_s1_t",
    ]


def test_ids_do_not_hang_on_the_order_of_the_rows(write):
    rows = [f"s{n % 3}/f{n % 2}.nii,s{n % 5}/m.nii,{n + 1}" for n in range(20)] + [
        "con.nii,aux.nii,1",
        "?/?.nii,*.nii,1",
    ]
    path = write("fixed,moving,steps\n" + "\n".join(rows))
    before = {entry.pair: entry.id for entry in read_manifest(path, DEFAULTS)}
    check_ids(before.values())
    random.Random(0).shuffle(rows)
    path = write("fixed,moving,steps\n" + "\n".join([*rows, "new.nii,newer.nii,1"]))
    after = {entry.pair: entry.id for entry in read_manifest(path, DEFAULTS)}
    assert before.items() <= after.items()


def test_a_made_id_leaves_a_given_one_alone(write):
    path = write("id,fixed,moving\n,x/a.nii,x/b.nii\nB_to_A,c.nii,d.nii\n")
    assert ids_of(path) == ["x_b_to_x_a", "B_to_A"]


@pytest.mark.parametrize(
    ("id", "said"),
    [
        ("a/b", "contains /"),
        ("a\\b", "contains \\"),
        ("..", "begins or ends with a dot"),
        (".", "begins or ends with a dot"),
        (".hidden", "begins or ends with a dot"),
        ("end.", "begins or ends with a dot"),
        ("what?", "contains ?"),
        ("a\u200bb", "an invisible character"),
        ("NUL", "Windows"),
        ("com1.scan", "Windows"),
        ("x" * 101, "longer than 100 bytes"),
        ("ü" * 51, "longer than 100 bytes"),
    ],
)
def test_an_id_that_is_no_folder(write, id, said):
    first, line = refused(write(f"id,fixed,moving\nfine,a,b\n{id},c,d\n"))
    assert first.endswith("pairs.csv has a mistake:")
    assert line.startswith("row 3: the id ")
    assert said in line


def test_ids_that_are_one_folder_somewhere(write):
    """NFC and NFD are one name on a Mac; upper and lower case there and on Windows."""
    _, *lines = refused(write("id,fixed,moving\nÜ1,a,b\nü1,c,d\nU\u03081,e,f\nother,g,h\nÜ1,i,j\n"))
    assert [line.partition(":")[0] for line in lines] == ["row 3", "row 4", "row 6"]
    assert all("is already that of row 2" in line for line in lines)


# ---------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("fixed,movin\na,b\n", "row 1, the header", "no column is called 'movin'; did you mean 'moving'?"),
        ("fixed,moving,zzz\na,b,c\n", "row 1, the header", "choose from align, carry, compare, ct_window"),
        ("fixed\na\n", "row 1, the header", "the column 'moving' is missing"),
        ("fixed,moving,Fixed\na,b,c\n", "row 1, the header", "'fixed' appears twice"),
        ("a.nii,b.nii\nc.nii,d.nii\n", "row 1, the header", "no column is called 'a.nii'"),
        ("fixed,moving\na,b\n\nc\n", "row 4", "1 cells, but the header has 2"),
        ("fixed,moving\na,b,c\n", "row 2", "3 cells, but the header has 2; quote a cell that contains ','"),
        ('fixed,moving\na,b\n"c,d\n', "row 3", "quotes do not match"),
        ('fixed,moving\na,"b"c\n', "row 2", "quotes do not match"),
        (f"fixed,moving\na,{'x' * 200_000}\n", "row 2", "field larger than field limit"),
        ("fixed,moving\na,\n", "row 2", "moving is empty; name an image"),
        ('fixed,moving\n"a\nb",c\nd,\n', "row 4", "moving is empty; name an image"),
        ("fixed,moving\na,./a\n", "row 2", "is both fixed and moving; name two images"),
        ("fixed,moving,guide\na,b,maybe\n", "row 2", "guide is 'maybe'; write yes or no"),
        ("fixed,moving,guide\na,b,1\n", "row 2", "guide needs segmentations of both images"),
        ("fixed,moving,steps\na,b,2.5\n", "row 2", "steps is '2.5'; write a whole number"),
        ("fixed,moving,steps\na,b,0\n", "row 2", "steps is 0; it must be at least 1"),
        ("fixed;moving;spacing\na;b;2,5\n", "row 2", "spacing is '2,5'; write a number, such as 2.5"),
        ("fixed,moving,spacing\na,b,nan\n", "row 2", "spacing is nan"),
        ("fixed,moving,padding\na,b,1e999\n", "row 2", "padding is inf"),
        ("fixed,moving,ct_window\na,b,-160\n", "row 2", "ct_window is '-160'; write two numbers"),
        ("fixed,moving,align\na,b,rigit\n", "row 2", "align is 'rigit'; choose one of auto"),
        ("fixed,moving,model\na,b,unigradicom\n", "row 2", "unigradicom does not exist; choose none, builtin"),
        (f"fixed,moving,model\na,b,{'m' * 300}\n", "row 2", "m does not exist; choose none, builtin"),
        ("fixed,moving\na,b\na,b\n", "row 3", "it repeats another; remove it"),
        ("image\na\n", "row 1, the header", "no column is called 'image'"),
    ],
)
def test_a_mistake_in_a_table_is_named_with_its_row(write, text, where, said):
    first, *lines = refused(write(text))
    assert re.fullmatch(r".*pairs\.csv has (a mistake|[2-4] mistakes):", first)
    found, _, mistake = lines[0].partition(": ")
    assert found == where
    assert said in " ".join(lines)
    assert len(mistake) < 500


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("{", "the file", "it is not JSON"),
        ("[" * 100_000, "the file", "it is not JSON"),
        ("3", "the file", "it does not hold pairs; write a list of objects"),
        ('{"pairs": [], "x": 1}', "the file", "it does not hold pairs"),
        ('{"pairs": {}}', "the file", "its pairs are not a list"),
        ('{"pairs": [], "settings": []}', "the file", "its settings not an object"),
        ('[{"fixed": "a", "moving": "b"}, 3]', "pair 2", "it is not an object; write one with the keys fixed, moving"),
        ('[{"fixed": "a"}]', "pair 1", "moving is empty"),
        ('[{"fixed": "a", "moving": "b", "step": 1}]', "pair 1", "did you mean 'steps'?"),
        ('[{"fixed": "a", "moving": 3}]', "pair 1", "moving is 3; write the path of a file"),
        ('[{"fixed": "a", "moving": "b\\u0000"}]', "pair 1", "is not a character"),
        ('[{"fixed": "a", "moving": "b\\ud800"}]', "pair 1", "is not a character"),
        ('[{"id": true, "fixed": "a", "moving": "b"}]', "pair 1", "the id True is not text"),
        ('[{"id": ["x"], "fixed": "a", "moving": "b"}]', "pair 1", "the id ['x'] is not text"),
        ('[{"fixed": "a", "moving": "b", "spacing": 1' + "0" * 400 + "}]", "pair 1", "it must be a finite number"),
        ('[{"fixed": "a", "moving": "b", "ct_window": {"low": 1}}]', "pair 1", "ct_window is {'low': 1}"),
        ('{"pairs": [{"fixed": "a", "moving": "b"}], "settings": {"step": 1}}', "the settings", "no setting 'step'"),
    ],
)
def test_a_mistake_in_json_is_named_with_its_pair(write, text, where, said):
    _, line, *_ = refused(write(text, "pairs.json"))
    assert line.startswith(f"{where}: ")
    assert said in line
    assert len(line) < 500


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "contains no pairs; write a row for each"),
        (b"\n  \n,,\n", "contains no pairs; write a row for each"),
        (b"fixed,moving\n", "contains no pairs; write a row for each"),
        ("fixed,moving\na,b\nc,ü\n".encode("cp1252"), "is not UTF-8 text (see line 3); save it again"),
        (b"fixed,moving\na,b\0\n", "a zero byte in line 2"),
        ("fixed,moving\na,b\n".encode("utf-16-le"), "a zero byte in line 1"),
        (b"\xff\xfef", "is not UTF-8 text"),
    ],
)
def test_what_is_no_manifest(write, data, said):
    (line,) = refused(write(data))
    assert said in line


def test_a_manifest_that_cannot_be_read(tmp_path):
    for path in (tmp_path, tmp_path / "none.csv", tmp_path / ("x" * 300)):
        (line,) = refused(path)
        assert line.startswith(f"{path} cannot be read (")
        assert line.endswith("; check the path.")


def test_all_mistakes_at_once_the_first_ten_shown(write):
    rows = [f"p{n},a{n},{'' if n % 2 else 'b'}" for n in range(30)]
    rows[0], rows[29] = "x/y,a,b", "p1,a29,b"
    first, *lines = refused(write("id,fixed,moving\n" + "\n".join(rows)))
    assert first.endswith("has 16 mistakes:")
    assert [line.partition(":")[0] for line in lines[:-1]] == [f"row {n}" for n in (2, *range(3, 21, 2))]
    assert lines[-1] == "and 6 more."


def test_the_command_prints_a_mistake_on_each_line(write, capsys, monkeypatch):
    """Exit code 2, and no traceback."""
    from IconRegistrationLib.batch import command

    path = write("id,fixed,moving\nx/y,a,b\nz,c,c\n")
    monkeypatch.setattr(command, "find_commands", lambda: {"demo": _Reader})
    assert main(["demo", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"icon-registration: {path} has 2 mistakes:"
    assert [line.partition(":")[0] for line in lines[1:]] == ["row 2", "row 3"]


class _Reader:
    """A command that only reads the pairs."""

    HELP = "Read a manifest."
    add_options = staticmethod(add_entries)

    @staticmethod
    def run(args):
        entries_of(args, DEFAULTS)


MESS = st.one_of(
    st.text(max_size=200),
    st.lists(
        st.lists(st.sampled_from(["fixed", "moving", "id", "steps", "a", "b ", '"', "", "1", "ü", "\n", "a/b"])),
        max_size=6,
    ).map(lambda rows: "\n".join(map(",".join, rows))),
    st.text(max_size=30).map("id,fixed,moving\n{}".format),
    st.text(max_size=30).map("fixed,moving,spacing\na,b,{}".format),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["id", "fixed", "moving", "fixed_mask", "guide", "steps", "ct_window", "model", "weights_dir"])
OBJECTS = st.lists(st.dictionaries(NAMES, VALUES) | VALUES, max_size=4)


@IN_A_FOLDER
@given(MESS | st.binary(max_size=60))
def test_any_table_is_read_or_refused(tmp_path, mess):
    (tmp_path / "pairs.csv").write_bytes(mess.encode(errors="surrogatepass") if isinstance(mess, str) else mess)
    read_or_refused(tmp_path / "pairs.csv")


@IN_A_FOLDER
@given(OBJECTS | st.fixed_dictionaries({"pairs": OBJECTS, "settings": st.dictionaries(NAMES, VALUES) | VALUES}))
def test_any_json_is_read_or_refused(tmp_path, content):
    (tmp_path / "pairs.json").write_text(json.dumps(content))
    read_or_refused(tmp_path / "pairs.json")


def read_or_refused(path):
    refusal = None
    try:
        entries = read_manifest(path, DEFAULTS)
    except InputError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.startswith(str(path))
        assert refusal.endswith(".")
        assert len(refusal) < 6000
        return
    assert entries
    check_ids([entry.id for entry in entries])
    for entry in entries:
        assert entry.pair.fixed.startswith("/")
        assert entry.pair.fixed != entry.pair.moving


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_a_hundred_thousand_rows(write, named):
    """A quadratic step would take an hour."""
    rows = (f"{f'p{n}' if named else ''},p{n}/fixed.nii.gz,p{n}/moving.nii.gz,{n % 50 + 1}" for n in range(100_000))
    entries = read_manifest(write("id,fixed,moving,steps\n" + "\n".join(rows)), DEFAULTS)
    assert len(entries) == 100_000
    assert entries[-1].id == ("p99999" if named else "p99999_moving_to_p99999_fixed")
    assert len({entry.pair.settings for entry in entries}) == len({id(entry.pair.settings) for entry in entries}) == 50


# ------------------------------------------------------------------------------------------------- options and atlases


def options(*arguments) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_entries(parser)
    return parser.parse_args(list(map(str, arguments)))


@pytest.fixture
def an_atlas(tmp_path):
    """Its files, by kind."""
    atlas = {kind: tmp_path / f"atlas_{kind}.nii" for kind in ("image", "segmentation", "landmarks", "mask")}
    for path in atlas.values():
        path.touch()
    return atlas


def test_all_to_one_atlas_and_back(write, tmp_path, an_atlas):
    path = write("image,segmentation,steps\nscans/a.nii,a.seg.nrrd,3\nscans/b.nii,,\n")
    more = [word for kind in ("segmentation", "landmarks", "mask") for word in (f"--atlas-{kind}", an_atlas[kind])]
    (a, b), notes = entries_of(options(path, "--to-atlas", an_atlas["image"], *more), DEFAULTS)
    assert (a.id, b.id) == ("a", "b")
    shared = {f"fixed_{kind}": str(an_atlas[kind]) for kind in ("segmentation", "landmarks", "mask")}
    own = {"moving": f"{tmp_path}/scans/a.nii", "moving_segmentation": f"{tmp_path}/a.seg.nrrd"}
    assert a.pair.files == {"fixed": str(an_atlas["image"]), **shared, **own}
    assert a.pair.settings == replace(DEFAULTS, steps=3)
    assert len(notes) == 1
    assert f"{tmp_path}/scans/a.nii (pair a)" in notes[0]

    (a, b), _ = entries_of(options(path, "--from-atlas", an_atlas["image"]), DEFAULTS)
    assert b.pair.files == {"fixed": f"{tmp_path}/scans/b.nii", "moving": str(an_atlas["image"])}


def test_an_atlas_is_not_one_of_its_images(write, an_atlas):
    path = write(f"image\n{an_atlas['image']}\nother.nii\n")
    with pytest.raises(InputError, match=r"row 2: .* is both fixed and moving"):
        entries_of(options(path, "--to-atlas", an_atlas["image"]), DEFAULTS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either MANIFEST or --bids DIR"),
        (["pairs.csv", "--bids", "."], "give either MANIFEST or --bids DIR"),
        (["pairs.csv", "--to-atlas", "a", "--from-atlas", "a"], "exclude each other; choose one"),
        (["pairs.csv", "--atlas-segmentation", "s.nii"], "--atlas-segmentation s.nii lacks its image"),
        (["pairs.csv", "--to-atlas", "none.nii"], "none.nii does not exist"),
        (["--bids", "none"], "none is not a folder"),
        (["--bids", ".", "--bids-suffix", "../x"], "--bids-suffix is '../x'"),
        (["--bids", "."], "contains no sub-*"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(said)):
        entries_of(options(*arguments), DEFAULTS)


def test_files_that_are_missing_are_worth_a_sentence(write, tmp_path):
    for name in ("a.nii", "b.nii", "dicom"):
        (tmp_path / name).touch()
    path = write("id,fixed,moving\n1,a.nii,b.nii\n2,dicom::1.2,b.nii\n3,a.nii,c.nii\n4,d.nii,c.nii\n")
    entries, (note,) = entries_of(options(path), DEFAULTS)
    assert len(entries) == 4
    assert note == (
        f"These files do not exist: {tmp_path}/c.nii (pair 3), {tmp_path}/d.nii (pair 4). "
        "Their pairs will fail; the others will run."
    )


# -------------------------------------------------------------------------------------------------------------- BIDS


def scan(subject, session=None, end="T1w") -> str:
    """Where BIDS has an image."""
    folders = [f"sub-{subject}", *([f"ses-{session}"] if session else [])]
    return "/".join([*folders, "anat", "_".join([*folders, end]) + ".nii.gz"])


@pytest.fixture
def a_bids_folder(tmp_path):
    """make(*paths) -> a folder with these files, empty ones."""
    folder = tmp_path / "a study"

    def make(*paths):
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).touch()
        return folder

    return make


def test_later_sessions_to_the_first(a_bids_folder):
    folder = a_bids_folder(
        scan("01", "1"),
        scan("01", "2"),
        scan("01", "10"),
        scan("01", "10", "FLAIR"),
        scan("02", "m0"),
        scan("02", "m12"),
        scan("03", "1"),
        scan("04"),
        "derivatives/seg/sub-01/ses-1/anat/sub-01_ses-1_dseg.nii.gz",
        "derivatives/seg/sub-01/ses-2/anat/sub-01_ses-2_desc-tissues_dseg.nii.gz",
        "derivatives/seg/sub-01/ses-10/anat/sub-01_ses-10_dseg.nii.gz",
        "derivatives/other/sub-01_ses-10_space-MNI152_dseg.nii.gz",
        "derivatives/seg/sub-02_ses-m0_dseg.nii",
        "derivatives/other/sub-02_ses-m0_desc-other_dseg.nii.gz",
        "sourcedata/sub-09/ses-1/anat/sub-09_ses-1_T1w.nii.gz",
    )
    entries, notes = bids_entries(folder, defaults=DEFAULTS)
    assert [entry.id for entry in entries] == [
        "sub-01_ses-2_to_ses-1",
        "sub-01_ses-10_to_ses-1",
        "sub-02_ses-m12_to_ses-m0",
    ]
    assert entries[1].pair == PairFiles(
        f"{folder}/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
        f"{folder}/sub-01/ses-10/anat/sub-01_ses-10_T1w.nii.gz",
        f"{folder}/derivatives/seg/sub-01/ses-1/anat/sub-01_ses-1_dseg.nii.gz",
        f"{folder}/derivatives/seg/sub-01/ses-10/anat/sub-01_ses-10_dseg.nii.gz",
        settings=DEFAULTS,
    )
    assert entries[0].pair.moving_segmentation.endswith("sub-01_ses-2_desc-tissues_dseg.nii.gz")
    assert entries[2].pair.fixed_segmentation is None
    assert notes == [
        "Segmentations not used because derivatives has several: sub-02_ses-m0.",
        "Left out because they have only one session: sub-03, sub-04.",
    ]


def test_sessions_in_the_order_of_their_dates(a_bids_folder):
    folder = a_bids_folder(scan("01", "pre"), scan("01", "post"), scan("02", "a"), scan("02", "b"))
    for subject, rows in {
        "01": "ses-post\t2020-02-01\nses-pre\t2020-01-01\n",
        "02": "ses-a\tn/a\nses-b\t2001-01-01",
    }.items():
        (folder / f"sub-{subject}" / f"sub-{subject}_sessions.tsv").write_text(f"session_id\tacq_time\n{rows}")
    entries, _ = bids_entries(folder)
    assert [entry.id for entry in entries] == ["sub-01_ses-post_to_ses-pre", "sub-02_ses-b_to_ses-a"]


def test_every_image_of_a_study_to_an_atlas(a_bids_folder, an_atlas):
    folder = a_bids_folder(scan("01"), scan("02", "1"), scan("02", "2"), "derivatives/x/sub-01_dseg.nii.gz")
    arguments = options("--bids", folder, "--to-atlas", an_atlas["image"])
    entries, _ = entries_of(arguments, DEFAULTS)
    assert [entry.id for entry in entries] == ["sub-01", "sub-02_ses-1", "sub-02_ses-2"]
    assert entries[0].pair.files == {
        "fixed": str(an_atlas["image"]),
        "moving": f"{folder}/sub-01/anat/sub-01_T1w.nii.gz",
        "moving_segmentation": f"{folder}/derivatives/x/sub-01_dseg.nii.gz",
    }


def test_studies_that_name_no_pairs(a_bids_folder):
    folder = a_bids_folder(scan("01", "1"), scan("02"))
    with pytest.raises(InputError, match=r"No subject of .* has two sessions"):
        bids_entries(folder)
    folder = a_bids_folder(scan("01", "2", "run-1_T1w"), scan("01", "2", "run-2_T1w"))
    with pytest.raises(
        InputError, match=r"several \*_T1w images of one session: sub-01_ses-2; choose with --bids-suffix"
    ):
        bids_entries(folder)
    folder = a_bids_folder(scan("01", "1", "run-2_T1w"))
    assert [entry.id for entry in bids_entries(folder, "run-2_T1w")[0]] == ["sub-01_ses-2_to_ses-1"]


def test_guiding_without_segmentations(a_bids_folder):
    folder = a_bids_folder(scan("01", "1"), scan("01", "2"))
    with pytest.raises(InputError, match="sub-01_ses-2_to_ses-1: guide needs segmentations of both images"):
        bids_entries(folder, segment_roles={"guide": True})


def test_settings_of_the_command_line_mean_the_same_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "mine.trch").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    found = with_absolute_paths(Settings(model="mine.trch", weights_dir="cache"))
    assert (found.model, found.weights_dir) == (str(tmp_path / "mine.trch"), str(tmp_path / "cache"))
    assert with_absolute_paths(Settings(model="unigradicon")) == Settings(model="unigradicon")
    with pytest.raises(InputError, match=r"absent\.trch"):
        with_absolute_paths(Settings(model="absent.trch"))
