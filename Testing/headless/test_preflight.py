"""The line under the selectors: closed forms, the run's own sentences, the pairs of docs/benchmarks.md."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.registration import register as register_room
from IconRegistrationLib.registration.checks import check_pair
from IconRegistrationLib.registration.objective import FieldRefinement
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.spatial.geometry import Grid, Image, Landmarks, Segment, Segmentation
from IconRegistrationLib.ui.checking import apply_state
from IconRegistrationLib.workflow import preflight as preflight_room
from IconRegistrationLib.workflow.fallback import cheaper_plan
from IconRegistrationLib.workflow.pipeline import compute
from IconRegistrationLib.workflow.preflight import ImageFacts, overlap_share, preflight, updated_speed
from IconRegistrationLib.workflow.results import Inputs

CPU = [{"name": "cpu", "title": "CPU", "memory": 32 * 2**30}]
GPU = [{"name": "cuda:0", "title": "A GPU", "memory": 2 * 2**30}, *CPU]
MR, CT = ImageFacts("mri", None), ImageFacts("ct", None)


def an_image(size=(12, 12, 12), spacing=(4, 4, 4), origin=(0, 0, 0), name="scan", seed=0):
    grid = Grid.from_parts(size, spacing, origin)
    return Image(np.random.default_rng(seed).normal(100, 20, grid.shape).astype(np.float32), grid, name)


def a_shape(size, spacing=(1, 1, 1), name="scan"):
    """An image of that size that takes no memory."""
    grid = Grid.from_parts(size, spacing)
    return Image(np.broadcast_to(np.float32(0), grid.shape), grid, name)


def flight(inputs, chosen=None, facts=(MR, MR), devices=CPU, **options):
    return preflight(inputs, chosen or Settings(), facts, devices=devices, **options)


def rotation(a, b, c):
    def about(axis, angle):
        i, j = [n for n in range(3) if n != axis]
        m = np.eye(3)
        m[i, i] = m[j, j] = np.cos(angle)
        m[i, j], m[j, i] = -np.sin(angle), np.sin(angle)
        return m

    return about(0, a) @ about(1, b) @ about(2, c)


def test_overlap_of_shifted_boxes():
    fixed = Grid.from_parts((10, 20, 30), (2, 1, 1))
    for shift, share in ((0, 1), (5, 0.75), (-5, 0.75), (19, 0.05), (20, 0), (50, 0)):
        moving = Grid.from_parts((10, 20, 30), (2, 1, 1), (shift, 0, 0))
        assert overlap_share(fixed, moving, np.eye(4)) == pytest.approx(share, abs=1e-9)
        back = np.eye(4)
        back[0, 3] = shift
        assert overlap_share(fixed, moving, back) == pytest.approx(1, abs=1e-9)


def test_overlap_of_a_square_turned_by_45_degrees_is_an_octagon():
    fixed = Grid.from_parts((10, 10, 10), origin=(-4.5,) * 3)
    turned = np.eye(4)
    turned[:3, :3] = rotation(0, 0, np.pi / 4)
    assert overlap_share(fixed, fixed, turned) == pytest.approx(2 * (np.sqrt(2) - 1), abs=1e-9)


@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    shift=st.tuples(*[st.floats(-12, 12)] * 3),
    size=st.tuples(*[st.integers(1, 20)] * 3),
)
@settings(max_examples=40, deadline=None)
def test_overlap_is_what_points_count(angles, shift, size):
    fixed = Grid.from_parts((8, 12, 16), (1, 1.5, 1))
    moving = Grid.from_parts(size, (1.2, 1, 2), shift, rotation(*angles))
    inside = moving.contains(fixed.with_shape((50, 50, 50)).to_world(np.indices((50,) * 3).reshape(3, -1).T))
    assert overlap_share(fixed, moving, np.eye(4)) == pytest.approx(inside.mean(), abs=0.04)
    volume = [grid.voxel_volume * np.prod(grid.shape) for grid in (fixed, moving)]
    there, back = overlap_share(fixed, moving, np.eye(4)), overlap_share(moving, fixed, np.eye(4))
    assert there * volume[0] == pytest.approx(back * volume[1], rel=1e-6, abs=1e-9)


def with_one(value):
    image = an_image()
    image.array[5, 5, 5] = value
    return image


def a_segmentation(name, origin=(0, 0, 0)):
    grid = Grid.from_parts((12, 12, 12), (4, 4, 4), origin)
    layer = np.zeros(grid.shape, np.uint8)
    layer[4:8, 4:8, 4:8] = 1
    return Segmentation((layer,), (Segment(name, 1),), grid, f"the {name}s")


GOOD = an_image(seed=1)
FAR = an_image(origin=(500, 0, 0), name="far")
NOTHING = Image(np.zeros((12, 12, 12), np.uint8), GOOD.grid, "nothing")
IMPOSSIBLE = {
    "nan": (Inputs(with_one(np.nan), GOOD), Settings()),
    "moving infinite": (Inputs(GOOD, with_one(np.inf)), Settings()),
    "constant": (Inputs(GOOD, a_shape((12, 12, 12))), Settings()),
    "slices": (Inputs(an_image((12, 12, 2)), GOOD), Settings()),
    "memory": (Inputs(a_shape((9000, 9000, 9000)), GOOD), Settings()),
    "empty mask": (Inputs(GOOD, GOOD, fixed_mask=NOTHING), Settings()),
    "mask elsewhere": (Inputs(GOOD, GOOD, moving_mask=FAR), Settings()),
    "one segmentation": (Inputs(GOOD, GOOD, a_segmentation("liver")), Settings()),
    "names": (Inputs(GOOD, GOOD, a_segmentation("liver"), a_segmentation("heart")), Settings()),
    "no overlap": (Inputs(GOOD, FAR), Settings(align="none")),
    "initial": (Inputs(FAR, GOOD, initial=np.eye(4)), Settings()),
    "region": (Inputs(GOOD, GOOD, region=FAR.grid), Settings(align="none")),
    "model": (Inputs(GOOD, GOOD), Settings(model="nonesuch")),
}


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"fixed_mask": Image(NOTHING.array, GOOD.grid)}, "The fixed mask is empty"),
        ({"moving_mask": Image(NOTHING.array, GOOD.grid)}, "The moving mask is empty"),
        ({"fixed_mask": NOTHING}, "The mask nothing is empty"),
        (
            {"moving_mask": Image(np.full(GOOD.grid.shape, np.nan), GOOD.grid, "m")},
            "The mask m has 1728 voxels that are",
        ),
        ({"fixed_mask": Image(with_one(np.inf).array, GOOD.grid)}, "The fixed mask has 1 voxels that are not a number"),
    ],
)
def test_a_mask_that_marks_nothing_is_named(masks, words):
    with pytest.raises(InputError, match=words):
        check_pair(GOOD, GOOD, **masks)


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_problem_is_the_sentence_with_which_the_run_would_end(case):
    inputs, chosen = IMPOSSIBLE[case]
    # the facts of nine thousand cubed voxels cannot be found; memory is looked at before them
    facts = (MR, MR) if case == "memory" else tuple(map(ImageFacts.of, (inputs.fixed, inputs.moving)))
    with pytest.raises(InputError) as error:
        compute(inputs, chosen, guide=True)
    assert flight(inputs, chosen, facts, guide=True).problem == str(error.value)


def test_one_image_as_both_is_no_problem():
    assert flight(Inputs(GOOD, GOOD)).problem is None


def test_a_device_that_is_not_there():
    assert "'cuda:1'" in flight(Inputs(GOOD, GOOD), Settings(device="cuda:1"), devices=GPU).problem
    assert flight(Inputs(GOOD, GOOD), Settings(device="cuda"), devices=GPU).problem is None
    mixed = Settings(model="unigradicon", precision="mixed", device="cpu")
    assert flight(Inputs(GOOD, GOOD), mixed).problem.startswith("Mixed precision gains nothing on cpu")


def test_the_summary_says_sizes_overlap_method_place_and_cost():
    fixed, moving = a_shape((512, 512, 300), (0.8, 0.8, 1)), a_shape((256, 256, 180))
    seen = flight(Inputs(fixed, moving), facts=(CT, MR), devices=None)
    assert seen.summary.startswith("512 x 512 x 300 at 0.8 x 0.8 x 1 mm CT <- 256 x 256 x 180 at 1 mm MR; overlap 23 %")
    assert "no network + field refinement on the GPU if there is one, else the CPU; there about " in seen.summary
    on_gpu = flight(Inputs(fixed, moving), facts=(CT, MR), devices=GPU)
    assert on_gpu.seconds is None
    assert "on cuda:0 (A GPU), about" in on_gpu.summary
    assert any("2.0 GiB; should that not do, the CPU" in sentence for sentence in on_gpu.warnings)


#: Lattice (i, j, k), mm of its image's voxels, what refines, seconds and GiB of docs/benchmarks.md.
MEASURED = {
    "brain": ((162, 214, 167), (151, 202, 163), (1, 1, 1), "lncc2", 10, 1.8),
    "liver": ((152, 183, 27), (152, 183, 27), (1.29, 1.29, 5), "lncc2", 8, 1.2),
    "hippocampus": ((41, 47, 42), (38, 55, 40), (1, 1, 1), "lncc2", 2, 1.1),
    "cord": ((42, 76, 77), (60, 55, 52), (1, 1, 1), "mind", 4, 1.2),
    "MS T1-T1": ((256, 256, 48), (256, 256, 48), (0.91, 0.91, 3), "lncc2", 11, 1.6),
    "MS T1-FLAIR": ((256, 256, 48), (256, 256, 48), (0.91, 0.91, 3), "mind", 11, 1.7),
    "head": ((256, 256, 26), (256, 256, 26), (1.25, 1.25, 4), "mind", 13, 1.5),
    "knee": ((128, 64, 128), (128, 64, 128), (1, 0.97, 1), "mind", 10, 1.3),
}


@pytest.mark.parametrize("pair", MEASURED)
def test_estimates_are_near_what_was_measured(pair):
    fixed, moving, spacing, similarity, seconds, gib = MEASURED[pair]
    inputs = Inputs(a_shape(fixed, spacing), a_shape(moving, spacing))
    seen = flight(inputs, Settings(similarity=similarity))
    assert 1 / 1.4 < seen.seconds / seconds < 1.4
    assert type(seen.seconds) is float, "goes into user settings"
    assert seen.memory / 2**30 == pytest.approx(gib, abs=0.3)
    auto = flight(inputs)
    assert 1 / 1.4 < auto.seconds / seconds < 1.4


def test_the_steps_are_those_of_the_run():
    assert preflight_room.NETWORK_STEPS == register_room.NETWORK_STEPS
    defaults = FieldRefinement()
    assert (defaults.steps, defaults.levels) == (preflight_room.FIELD_STEPS, preflight_room.LEVELS)


def test_estimates_grow_with_size_steps_and_the_machine():
    sizes = [flight(Inputs(*[a_shape((n, n, n))] * 2)) for n in (40, 80, 160, 320)]
    for smaller, larger in pairwise(sizes):
        assert smaller.seconds < larger.seconds
        assert smaller.memory < larger.memory
    inputs = Inputs(*[a_shape((80, 80, 80))] * 2)
    steps = [flight(inputs, Settings(steps=n)).seconds for n in (10, 60, 200)]
    assert steps[0] < steps[1] < steps[2]
    assert flight(inputs, speed=3.0).seconds == pytest.approx(3 * flight(inputs).seconds)
    tuned = Settings(model="unigradicon", refine="network")
    assert flight(inputs, tuned).seconds > 45 * 50


def test_warnings_name_what_they_are_about(tmp_path):
    def said(*arguments, **options):
        return " ".join(flight(*arguments, **options).warnings)

    assert flight(Inputs(GOOD, GOOD)).warnings == ()
    assert "affine alignment will bring them together" in said(Inputs(GOOD, FAR))
    network = Settings(model="unigradicon", weights_dir=str(tmp_path))
    assert "choose an alignment" in said(Inputs(GOOD, FAR), network)
    assert "uniGradICON (283 MB) will be downloaded" in said(Inputs(GOOD, GOOD), network)
    assert "these are CT and MR" in said(Inputs(GOOD, GOOD), network, facts=(CT, MR))
    assert "choose mind" in said(Inputs(GOOD, GOOD), Settings(similarity="lncc"), facts=(CT, MR))
    assert "choose mind" not in said(Inputs(GOOD, GOOD), facts=(CT, MR))
    assert "thinned has only 6 slices" in said(Inputs(an_image((12, 12, 6), name="thinned"), GOOD))
    points = [Landmarks(np.zeros((2, 3)), labels, "points") for labels in (("a", "b"), ("a", "c"))]
    assert "2 landmarks have no partner of the same name (b, c)" in said(
        Inputs(GOOD, GOOD, fixed_landmarks=points[0], moving_landmarks=points[1])
    )
    apart = Inputs(GOOD, GOOD, a_segmentation("liver"), a_segmentation("heart"))
    assert "the livers and the hearts have no segment of the same name" in said(apart)
    assert said(apart, compare=False) == ""
    small = [{"name": "cpu", "title": "CPU", "memory": 2**30}]
    assert "this machine has 1.0 GiB" in said(Inputs(GOOD, GOOD), devices=small)


MIXED, FIELD, LAST = "the network in mixed precision", "field refinement instead", "the CPU, which"
#: (a network?, refinement, mixed already?) -> what is tried on CUDA, in this order
PLANS = {
    (False, "field", False): [LAST],
    (False, "field", True): [LAST],
    (False, "off", False): [LAST],
    (False, "off", True): [LAST],
    (True, "off", False): [MIXED, LAST],
    (True, "off", True): [LAST],
    (True, "field", False): [LAST],  # its peak is the refinement's, whatever the network's precision
    (True, "field", True): [LAST],
    (True, "network", False): [FIELD, LAST],  # fine-tuning is float32 whatever the precision
    (True, "network", True): [FIELD, LAST],
}


@pytest.mark.parametrize("case", PLANS)
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "cpu"])
def test_plans_get_cheaper_until_the_cpu(case, device):
    network, refine, mixed = case
    chosen = Settings(
        model="unigradicon" if network else "none",
        refine=refine,
        precision="mixed" if mixed else "auto",
        device=device,
    )
    told, where = [], device
    while (plan := cheaper_plan(chosen, where)) is not None:
        chosen, sentence = plan
        told.append(sentence)
        where = "cpu" if chosen.device == "cpu" else device
    expected = [] if device == "cpu" else [step for step in PLANS[case] if device != "mps" or step != MIXED]
    assert len(told) == len(expected)
    for sentence, step in zip(told, expected, strict=True):
        assert sentence.startswith(f"The GPU ran out of memory; trying again with {step}")
    assert where == "cpu"
    assert device == "cpu" or chosen.precision == "auto", "the CPU refuses mixed precision"


def test_mixed_precision_is_tried_on_cuda_only():
    network = Settings(model="unigradicon", steps=9)
    assert cheaper_plan(network, "cuda")[0] == Settings(model="unigradicon", steps=9, precision="mixed")
    assert cheaper_plan(network, "mps")[0].device == "cpu"
    tuned = Settings(model="unigradicon", refine="network", steps=9)
    assert cheaper_plan(tuned, "cuda:1")[0] == Settings(model="unigradicon", refine="field")


def test_the_speed_of_a_machine_is_learnt_in_ratio():
    speed = 1.0
    for _ in range(20):
        speed = updated_speed(speed, predicted=40 * speed, measured=120)
    assert speed == pytest.approx(3, rel=1e-4)
    assert updated_speed(2.0, 0, 5) == updated_speed(2.0, 5, 0) == updated_speed(2.0, float("nan"), 5) == 2.0


def test_the_apply_button_says_why():
    good, bad = flight(Inputs(GOOD, GOOD)), flight(Inputs(GOOD, FAR), Settings(align="none"))
    assert apply_state(False, False, None, False) == (False, "Apply", "Choose a fixed and a moving volume.")
    assert apply_state(True, False, None, False) == (False, "Apply", "Choose a moving volume.")
    assert apply_state(False, True, None, False) == (False, "Apply", "Choose a fixed volume.")
    assert apply_state(True, True, bad, False) == (False, "Apply", bad.problem)
    assert apply_state(True, True, good, False) == (True, "Apply", good.summary)
    assert apply_state(True, True, bad, True)[:2] == (True, "Cancel")
