"""Instance optimisation against unigradicon's own loss and loop; the given network stays as it was."""

import pytest
import torch
from test_network import COMPACT, ours_with_weights_of, published_network, smooth_pair, voxels_apart

from IconRegistrationLib.errors import Cancelled, InputError
from IconRegistrationLib.networks.inference import predict_maps
from IconRegistrationLib.networks.unet import GradICON
from IconRegistrationLib.registration.finetune import finetune, soft_dice_loss
from IconRegistrationLib.registration.similarities import make_similarity

SHAPE = (45, 48, 52)


def a_small_network(shape=(20, 18, 22)):
    torch.manual_seed(3)
    network = GradICON(shape, down=(2, 4, 8), up=(4, 8)).eval()
    for unet in network.unets:
        torch.nn.init.normal_(unet.lastConv.weight, 0, 0.02)
    return network


def two_boxes(shape):
    labels = torch.zeros(1, 1, *shape, dtype=torch.long)
    labels[..., 5:20, 10:30, 10:30] = 1
    labels[..., 25:40, 20:40, 15:45] = 2
    return labels


@pytest.mark.slow
def test_steps_are_the_published_ones():
    """Same weights and noise: the loss of each step, and the maps after two of them."""
    theirs = published_network(SHAPE, voxels=1.0, **COMPACT)
    network = ours_with_weights_of(theirs, SHAPE, **COMPACT)
    moving, fixed = smooth_pair(SHAPE)

    torch.manual_seed(7)
    phi_AB, phi_BA, history = finetune(network, moving, fixed, steps=2, learning_rate=2e-4)

    torch.manual_seed(7)
    optimiser = torch.optim.Adam(theirs.parameters(), lr=2e-4)
    expected = []
    for _ in history:
        optimiser.zero_grad()
        loss = theirs(moving, fixed)[0]
        expected.append(loss.item())
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        theirs(moving, fixed)
    assert history[0] == pytest.approx(expected[0], rel=1e-4)
    # Adam's first steps are signs of gradients. Those of the finite differences agree to 2e-3 (of LNCC to 1e-5), so
    # the smallest may differ in sign, and the two paths part a little.
    assert history == pytest.approx(expected, rel=5e-3)
    start = predict_maps(network, moving, fixed)
    for phi, theirs_phi, before in zip(
        (phi_AB, phi_BA), (theirs.phi_AB_vectorfield, theirs.phi_BA_vectorfield), start, strict=True
    ):
        assert voxels_apart(phi, before) > 0.05, "the steps must move the maps for the comparison to say anything"
        assert (phi - theirs_phi).norm() < 0.25 * (phi - before).norm()


@pytest.mark.slow
def test_masks_and_labels_enter_as_published():
    theirs = published_network(SHAPE, voxels=1.0, **COMPACT)
    theirs.loss_function_masking = True
    theirs.dice_loss_weight = 0.7
    moving, fixed = smooth_pair(SHAPE)
    labels = two_boxes(SHAPE)
    shifted = labels.roll(4, -1)
    network = ours_with_weights_of(theirs, SHAPE, **COMPACT)
    masks = (smooth_pair(SHAPE, 5)[0] > 0.5).float(), (smooth_pair(SHAPE, 6)[0] > 0.5).float()
    torch.manual_seed(1)
    with torch.no_grad():
        expected = theirs(
            moving, fixed, mask_A=masks[0], mask_B=masks[1], segmentation_A=labels, segmentation_B=shifted
        )
    torch.manual_seed(1)
    one_hot = [torch.cat([x == 1, x == 2], 1).float() for x in (labels, shifted)]
    history = finetune(
        network, moving, fixed, steps=1, moving_mask=masks[0], fixed_mask=masks[1],
        moving_labels=one_hot[0], fixed_labels=one_hot[1], label_weight=0.7,
    )[2]  # fmt: skip
    assert history[0] == pytest.approx(expected[0].item(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("similarity", ["lncc2", "mind"])
def test_it_lowers_the_loss(similarity):
    network = a_small_network()
    moving, fixed = smooth_pair(network.shape)
    torch.manual_seed(0)
    history = finetune(
        network, moving, fixed, steps=15, learning_rate=2e-3, similarity=make_similarity(similarity), save_memory=False
    )[2]
    assert sum(history[-3:]) < sum(history[:3])


@pytest.mark.parametrize("error", [Cancelled, ZeroDivisionError])
def test_the_network_stays_as_it_was_however_it_ends(error):
    network = a_small_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    steps = []

    def stop(step, loss):
        steps.append(step)
        if step == 2:
            raise error

    with pytest.raises(error):
        finetune(network, *smooth_pair(network.shape), steps=9, learning_rate=1e-2, progress=stop)
    assert steps == [1, 2]
    finetune(network, *smooth_pair(network.shape), steps=2, learning_rate=1e-2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_frozen_weights_are_tuned_and_results_detached():
    network = a_small_network().requires_grad_(False)
    phi_AB, phi_BA, history = finetune(network, *smooth_pair(network.shape), steps=2, learning_rate=1e-2)
    assert history[0] != history[1]
    assert not phi_AB.requires_grad
    assert not phi_BA.requires_grad
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_settings_that_do_not_fit_are_named():
    network = a_small_network()
    moving, fixed = smooth_pair(network.shape)
    with pytest.raises(InputError, match="0 steps"):
        finetune(network, moving, fixed, steps=0)
    with pytest.raises(InputError, match="fixed mask"):
        finetune(network, moving, fixed, fixed_mask=torch.ones(1, 1, 3, 3, 3))
    with pytest.raises(InputError, match="both or neither"):
        finetune(network, moving, fixed, moving_labels=torch.ones(1, 1, 20, 18, 22))


def test_soft_dice_of_known_overlap():
    a = torch.zeros(1, 2, 4, 4, 4)
    b = torch.zeros(1, 2, 4, 4, 4)
    a[:, 0, :2], b[:, 0, 1:3] = 1, 1  # Dice 0.5
    a[:, 1], b[:, 1] = 1, 1  # Dice 1
    assert soft_dice_loss(a, b).item() == pytest.approx(0.25, abs=1e-5)
