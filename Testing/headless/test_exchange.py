"""Values through a folder: what is read is what was written, in type, shape, byte order and bits."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from IconRegistrationLib.errors import InputError
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
from IconRegistrationLib.registration.result import Registration
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.spatial.displacement import DisplacementField
from IconRegistrationLib.spatial.geometry import Grid, Image, Landmarks, Segment, Segmentation
from IconRegistrationLib.text import Sentence, tr
from IconRegistrationLib.worker import exchange
from IconRegistrationLib.workflow.results import Inputs, Results

SHAPE = (3, 4, 5)
DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
DTYPES += ["float16", "float32", "float64", ">i2", ">u4", ">f4", ">f8", "<i2"]
NAME = "Müller, José · 胸部 CT \udcff"  # the last is half of a character, as a name in broken UTF-8 has


def an_oblique_grid(shape=SHAPE) -> Grid:
    turn = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, -1.0]])
    return Grid.from_parts(shape[::-1], (0.1, 1 / 3, math.pi), (-1e-300, 12345.678901234567, 0.1 + 0.2), turn)


def an_image(dtype="int16", shape=SHAPE, name=NAME) -> Image:
    values = np.random.default_rng(1).integers(0, 2 if dtype == "bool" else 100, shape)
    return Image(values.astype(dtype), an_oblique_grid(shape), name)


def a_segmentation() -> Segmentation:
    layers = tuple(np.full(SHAPE, n, dtype) for n, dtype in ((0, "uint8"), (1, ">i2")))
    tags = {"TerminologyEntry": "SCT^10200004^Leber", "array": "0", "ß": "{}"}
    segments = (Segment("Leber ≥ 1", 3, 0, (0.1, 1 / 3, 1.0), "Segment_1", tags), Segment("empty", 1, 1))
    return Segmentation(layers, segments, an_oblique_grid(), NAME)


def a_field(shape=SHAPE) -> DisplacementField:
    values = np.random.default_rng(2).normal(size=(*shape, 3)).astype(np.float32)
    return DisplacementField(values, an_oblique_grid(shape))


def a_report() -> Report:
    change = Change(math.nan, 0.1 + 0.2)
    spread = Spread(1.0, math.nan, math.inf, 5e-324)
    return Report(
        Similarity(change, Change(1.0, -0.0), change),
        (SegmentQuality("Leber", change, Change(math.inf, 2.0), 1.0, 2.0, math.nan),),
        (LandmarkQuality("Spitze", change),),
        Deformation(Folding(3, 1e-3, -0.5, (1.0, 2.0, 3.0)), 0.25, spread, spread),
        (Verdict("Folding", 1e-3, "red", tr("{share:.1f} % of the points", share=0.1)),),
        {"seconds": {"total": 1.5}, "fixed": {"shape": [3, 4, 5], "name": NAME}, "none": None},
    )


def some_results() -> Results:
    registration = Registration(
        forward=a_field(),
        backward=a_field((2, 3, 4)),
        phi_AB=object(),  # a tensor, which no .npy file holds
        phi_BA=object(),
        fixed_lattice=an_oblique_grid(),
        moving_lattice=an_oblique_grid((2, 2, 2)),
        linear=np.random.default_rng(3).normal(size=(4, 4)),
        outside=-1024.1,
        settings=Settings(steps=7, ct_window=(-200.0, 300.5), spacing=1 / 3),
        provenance={"settings": {"steps": 7, "ct_window": (-200.0, 300.5)}, "model": {"sha256": None}},
    )
    return Results(
        registration,
        warped=an_image(),
        warped_fine=None,
        warped_segmentation=a_segmentation(),
        warped_landmarks=Landmarks(np.random.default_rng(4).normal(size=(2, 3)), ("A", "Ä"), NAME),
        jacobian=an_image("float32", name="Jacobian"),
        consistency_error=Image(np.full(SHAPE, np.nan, np.float32), an_oblique_grid(), "distrust"),
        report=a_report(),
    )


def assert_same(there, here):
    """Of one type and equal to the last bit, all the way down; NaN equals NaN and -0.0 is not 0.0."""
    assert type(there) is type(here)
    if isinstance(here, Sentence):
        assert (there.template, there.values, there.context) == (here.template, here.values, here.context)
    elif isinstance(here, np.ndarray):
        assert there.dtype == here.dtype
        assert there.dtype.byteorder == here.dtype.byteorder
        assert there.shape == here.shape
        assert there.tobytes() == here.tobytes()
    elif dataclasses.is_dataclass(here):
        for field in dataclasses.fields(here):
            assert_same(getattr(there, field.name), getattr(here, field.name))
    elif isinstance(here, dict):
        assert list(there) == list(here)
        for key in here:
            assert_same(there[key], here[key])
    elif isinstance(here, (list, tuple)):
        assert len(there) == len(here)
        for one, other in zip(there, here, strict=True):
            assert_same(one, other)
    else:
        assert repr(there) == repr(here)


def there_and_back(folder, value, **options):
    exchange.write(folder, value=value)
    return exchange.read(folder, **options)["value"]


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_of_voxels(tmp_path, dtype, mapped):
    image = an_image(dtype)
    assert_same(there_and_back(tmp_path, image, mapped=mapped), image)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(60.0).reshape(5, 4, 3).T,
        np.arange(240, dtype=np.int16).reshape(6, 8, 5)[::2, ::-2],
        np.broadcast_to(np.float32(3), SHAPE),
        np.array([np.nan, -0.0, np.inf, -np.inf, 5e-324]).reshape(1, 1, 5),
    ],
    ids=["transposed", "strided", "broadcast", "not finite"],
)
def test_arrays_however_they_lie_in_memory(tmp_path, array, mapped):
    back = there_and_back(tmp_path, array, mapped=mapped)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    assert (np.signbit(back) == np.signbit(array)).all()


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        a_segmentation(),
        Segmentation((), (), an_oblique_grid(), "no layers"),
        Landmarks(np.zeros((0, 3)), (), "none"),
        Landmarks(np.array([[1, 2, 3]], dtype=np.float32), ("F-1",)),
        an_oblique_grid(),
        a_field(),
        np.diag([1.0, 2.0, 3.0, 1.0]),
        {"dict": [1, (2, "array")], 3: {"tuple": None}, "": []},
        None,
    ],
    ids=lambda value: getattr(value, "name", type(value).__name__),
)
def test_every_kind_of_value(tmp_path, value, mapped):
    assert_same(there_and_back(tmp_path, value, mapped=mapped), value)


def test_inputs_are_complete_read_only_and_stay_in_their_files(tmp_path):
    inputs = Inputs(
        an_image(name="fixed"),
        an_image("float32", name="moving"),
        fixed_segmentation=a_segmentation(),
        moving_landmarks=Landmarks(np.ones((1, 3)), ("A",)),
        fixed_mask=an_image("bool"),
        initial=np.eye(4) * 1.5,
        region=an_oblique_grid((2, 2, 2)),
    )
    exchange.write_inputs(tmp_path, inputs)
    back = exchange.read_inputs(tmp_path)
    assert_same(back, inputs)
    assert not back.fixed.array.flags.writeable
    assert isinstance(back.fixed.array.base, np.memmap)
    assert type(back.fixed.array + 1) is np.ndarray


def test_results_are_complete_but_for_phi_and_need_their_folder_no_more(tmp_path):
    results = some_results()
    exchange.write_results(tmp_path, results)
    back = exchange.read_results(tmp_path)
    for file in tmp_path.iterdir():
        file.write_bytes(b"")  # what a map of the file would show from here on
    without_phi = dataclasses.replace(results.registration, phi_AB=None, phi_BA=None)
    assert_same(back, dataclasses.replace(results, registration=without_phi))
    assert back.warped.array.flags.writeable
    assert back.report.table() == results.report.table()


def test_a_second_writing_replaces_the_first(tmp_path):
    exchange.write(tmp_path, a=np.zeros(3), b=np.zeros(4))
    exchange.write(tmp_path, c=np.ones(5))
    assert_same(exchange.read(tmp_path), {"c": np.ones(5)})


def test_names_of_images_are_not_names_of_files(tmp_path):
    exchange.write(tmp_path, image=dataclasses.replace(an_image(), name="../../Müller"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.npy", "1.npy", "index.json"]


def test_nothing_is_pickled(tmp_path):
    with pytest.raises(ValueError, match="pickle"):
        exchange.write(tmp_path, array=np.array([{}], dtype=object))
    assert not (tmp_path / exchange.INDEX).exists()
    np.save(tmp_path / "0.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / exchange.INDEX).write_text(json.dumps({"array": {"array": 0}}))
    with pytest.raises(InputError, match="holds no complete exchange"):
        exchange.read(tmp_path)


def damage(folder, how):
    if how == "no folder":
        return folder / "elsewhere"
    file = {"no index": exchange.INDEX, "no array": "0.npy", "empty array": "0.npy", "cut array": "0.npy"}.get(how)
    if how.startswith("no"):
        (folder / file).unlink()
    elif how == "empty array":
        (folder / file).write_bytes(b"")
    elif how == "cut array":
        (folder / file).write_bytes((folder / file).read_bytes()[:-1])
    else:
        (folder / exchange.INDEX).write_text(how)
    return folder


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        "no folder",
        "no index",
        "no array",
        "empty array",
        "cut array",
        '{"image": {"Ima',
        '{"image": {"os.system": {}}}',
        '{"image": {"Image": {"array": {"array": 0}}}}',
        '{"image": {"array": "../0"}, "more": {}}',
        "[]",
    ],
)
def test_what_is_missing_or_damaged_is_said_in_one_sentence(tmp_path, how, mapped):
    exchange.write(tmp_path, image=an_image())
    with pytest.raises(InputError, match=r"holds no complete exchange \(.+\); write it again\.$") as caught:
        exchange.read(damage(tmp_path, how), mapped=mapped)
    assert "\n" not in str(caught.value)


def test_a_disk_that_takes_nothing_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written .* free about 0 MB there or choose another folder"):
        exchange.write(tmp_path / "file" / "folder", array=np.zeros(3))


def test_slicers_process_needs_neither_torch_nor_itk_for_it():
    code = (
        "import sys; sys.modules.update(torch=None, itk=None, scipy=None, matplotlib=None)\n"
        "from IconRegistrationLib.worker import exchange; import numpy, tempfile\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    exchange.write(folder, array=numpy.eye(4)); print(exchange.read(folder)['array'].sum())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "4.0", done.stderr
