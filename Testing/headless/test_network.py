"""The cascade against icon_registration's own modules with the same weights."""

import numpy as np
import pytest
import torch

from IconRegistrationLib.errors import Cancelled, DeviceMemoryError, InputError
from IconRegistrationLib.networks.devices import choose_device, memory_guard
from IconRegistrationLib.networks.inference import InferenceNetwork, MinimalFiltering, choose_precision, predict_maps
from IconRegistrationLib.networks.unet import (
    DOWN_CHANNELS,
    UP_CHANNELS,
    GradICON,
    compose_cascade,
    identity_points,
    sample_at,
)

#: A cascade of the same kind with fewer levels and channels, for what need not be run at full size.
COMPACT = {"down": (2, 6, 10, 14), "up": (6, 8, 12)}


def published_network(shape, seed=0, voxels=3.0, down=DOWN_CHANNELS, up=UP_CHANNELS):
    """unigradicon's own network with random weights and batch-norm statistics.

    Each U-Net's last layer is scaled so that its displacements have a standard deviation of `voxels` (of its own
    lattice; None leaves them zero) on a random pair: of the size of real ones, on which a wrong composition shows.
    """
    unigradicon = pytest.importorskip("unigradicon")
    from icon_registration import losses, networks

    def a_unet(dimension):
        return networks.UNet2(len(up), [list(down), list(up)], dimension)

    torch.manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "tallUNet2", a_unet)
        network = unigradicon.make_network([1, 1, *shape], include_last_step=True, loss_fn=losses.LNCC(sigma=5)).eval()
    for module in network.regis_net.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.weight, 1, 0.2)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    for module in network.regis_net.modules():
        if voxels and hasattr(module, "lastConv"):
            torch.nn.init.normal_(module.lastConv.weight)
            torch.nn.init.normal_(module.lastConv.bias)
            pair = smooth_pair((48, 48, 48), seed)
            with torch.no_grad():
                spread = module(*pair).std() * 48 / voxels
                module.lastConv.weight /= spread
                module.lastConv.bias /= spread
    return network


def smooth_pair(shape, seed=0):
    """Two images [1, 1, D, H, W] in [0, 1] with structure at several scales."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for _ in range(2):
        image = sum(
            torch.nn.functional.interpolate(
                torch.rand(1, 1, n, n, n, generator=generator), size=shape, mode="trilinear"
            )
            for n in (4, 9, 19)
        )
        images.append((image - image.min()) / (image.max() - image.min()))
    return images


def published_maps(network, moving, fixed):
    with torch.no_grad():
        network.identity_map.isIdentity = True
        return (
            network.regis_net(moving, fixed)(network.identity_map),
            network.regis_net(fixed, moving)(network.identity_map),
        )


def ours_with_weights_of(network, shape, **channels):
    ours = GradICON(shape, **channels).eval()
    ours.load_state_dict(network.regis_net.state_dict())
    return ours


def voxels_apart(phi, reference):
    scale = torch.tensor(phi.shape[2:]).view(1, 3, 1, 1, 1) - 1
    return ((phi - reference).abs() * scale).max().item()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((80, 96, 72), {}),
        ((65, 71, 82), {}),
        ((45, 50, 41), COMPACT),
        ((18, 17, 33), COMPACT),
        ((9, 11, 10), {"down": (2, 4, 8), "up": (4, 8)}),
    ],
)
def test_maps_are_those_of_the_library(shape, channels):
    theirs = published_network(shape, **channels)
    moving, fixed = smooth_pair(shape)
    expected = published_maps(theirs, moving, fixed)
    ours = predict_maps(ours_with_weights_of(theirs, shape, **channels), moving, fixed)
    displacement = voxels_apart(expected[0], identity_points(shape))
    assert displacement > 3, "the case must be one where a wrong composition shows"
    for phi, reference in zip(ours, expected, strict=True):
        assert voxels_apart(phi, reference) < 1e-3


def test_forward_is_the_same_and_differentiable():
    shape = (25, 30, 27)
    theirs = published_network(shape, **COMPACT)
    moving, fixed = smooth_pair(shape)
    theirs.identity_map.isIdentity = True
    expected = theirs.regis_net(moving, fixed)(theirs.identity_map)
    expected.square().sum().backward()
    for save_memory in (False, True):
        ours = ours_with_weights_of(theirs, shape, **COMPACT)
        phi = compose_cascade(ours(moving, fixed, save_memory))
        assert voxels_apart(phi.detach(), expected.detach()) < 1e-3
        phi.square().sum().backward()
        gradients = dict(theirs.regis_net.named_parameters())
        for name, parameter in ours.named_parameters():
            reference = gradients[name].grad
            # float32 rounding through four U-Nets and samples at voxel borders: 1 % of the largest
            assert (parameter.grad - reference).abs().max() <= 1e-2 * reference.abs().max() + 1e-6, name


def test_one_direction_alone():
    shape = (21, 26, 19)
    network = ours_with_weights_of(published_network(shape, **COMPACT), shape, **COMPACT)
    moving, fixed = smooth_pair(shape)
    phi, other = predict_maps(network, moving, fixed, both=False)
    assert other is None
    assert torch.equal(phi, predict_maps(network, moving, fixed)[0])
    assert torch.allclose(phi, predict_maps(network, fixed, moving)[1], atol=1e-6)


def test_a_network_rewritten_once_gives_the_same_maps_every_time():
    shape = (21, 26, 19)
    network = ours_with_weights_of(published_network(shape, **COMPACT), shape, **COMPACT)
    pairs = [smooth_pair(shape), smooth_pair(shape)[::-1]]
    expected = [predict_maps(network, *pair) for pair in pairs]
    rewritten = InferenceNetwork(network)
    network.to_empty(device="meta")  # the original is not needed any more
    for pair, maps in zip(pairs * 2, expected * 2, strict=True):
        assert all(torch.equal(phi, reference) for phi, reference in zip(rewritten.maps(*pair), maps, strict=True))


@pytest.mark.parametrize("planes", [1, 3, 4, 6, 8])
def test_a_filtered_convolution_is_the_convolution(planes):
    draw = torch.Generator().manual_seed(planes)
    x, weight, bias = (
        torch.randn(*shape, generator=draw) for shape in ((1, 6, planes + 2, 7, 9), (5, 6, 3, 3, 3), (5,))
    )
    found = MinimalFiltering(weight, bias)(x.contiguous(memory_format=torch.channels_last_3d))
    expected = torch.conv3d(x.double(), weight.double(), bias.double())
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)  # of values of about 13


def test_an_untrained_network_is_the_identity():
    shape = (20, 24, 18)
    phi, _ = predict_maps(GradICON(shape, down=(2, 4, 8), up=(4, 8)).eval(), *smooth_pair(shape))
    assert voxels_apart(phi, identity_points(shape)) < 1e-5


def test_the_maps_can_be_optimised_afterwards():
    shape = (16, 16, 16)
    phi, back = predict_maps(GradICON(shape, down=(2, 4, 8), up=(4, 8)).eval(), *smooth_pair(shape))
    for tensor in (phi, back):
        tensor.requires_grad_()
        tensor.square().sum().backward()
        assert tensor.grad is not None


def test_mixed_precision_stays_near(monkeypatch):
    """bfloat16 as on CUDA, here by the CPU's own autocast: a few hundredths of a voxel, not another result."""
    shape = (33, 36, 40)
    network = ours_with_weights_of(published_network(shape, **COMPACT), shape, **COMPACT)
    moving, fixed = smooth_pair(shape)
    exact, _ = predict_maps(network, moving, fixed)
    monkeypatch.setattr("IconRegistrationLib.networks.inference.choose_precision", lambda name, device: name)
    mixed, _ = predict_maps(network, moving, fixed, precision="mixed")
    assert mixed.dtype == torch.float32
    scale = torch.tensor(shape).view(1, 3, 1, 1, 1) - 1
    apart = ((mixed - exact) * scale).norm(dim=1)
    assert 0 < apart.mean() < 0.1


def test_progress_and_cancelling():
    shape = (16, 16, 16)
    network = GradICON(shape, down=(2, 4, 8), up=(4, 8)).eval()
    seen = []
    predict_maps(network, *smooth_pair(shape), progress=seen.append)
    assert seen == sorted(seen)
    assert len(seen) == 8
    assert 0 < seen[0] < seen[-1] <= 1

    def cancel(fraction):
        raise Cancelled

    with pytest.raises(Cancelled):
        predict_maps(network, *smooth_pair(shape), progress=cancel)


def test_keys_are_the_published_ones():
    published = published_network((65, 65, 65), voxels=None).regis_net.state_dict()
    ours = GradICON().state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in published.items()}


def test_wrong_shapes_are_named():
    with pytest.raises(InputError, match="three axes"):
        GradICON((4, 20, 20))
    network = GradICON((16, 16, 16), down=(2, 4, 8), up=(4, 8))
    with pytest.raises(InputError, match="moving"):
        predict_maps(network, torch.zeros(1, 1, 16, 16, 15), torch.zeros(1, 1, 16, 16, 16))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("outside", ["border", "zeros"])
def test_sampling_is_grid_sample_whatever_the_threads(threads, outside):
    generator = torch.Generator().manual_seed(0)
    field = torch.rand(1, 2, 5, 6, 7, generator=generator)
    points = torch.rand(1, 3, 8, 4, 5, generator=generator) * 1.4 - 0.2
    grid = (points * 2 - 1).flip(1).permute(0, 2, 3, 4, 1)
    expected = torch.nn.functional.grid_sample(field, grid, padding_mode=outside, align_corners=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        np.testing.assert_allclose(sample_at(field, points, outside), expected, atol=1e-6)
    finally:
        torch.set_num_threads(before)


def test_devices(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="'gpu'"):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    for absent in ("cuda", "cuda:1", "mps"):
        with pytest.raises(InputError, match=f"'{absent}'.*choose auto or cpu"):
            choose_device(absent)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(InputError, match="cuda:0 to cuda:1"):
        choose_device("cuda:2")


def test_an_apple_gpu_without_3d_sampling_is_not_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    # this PyTorch has no Metal: the probe fails as it does where an operation is missing
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="choose cpu"):
        choose_device("mps")


def test_precision():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert choose_precision("auto", cpu) == choose_precision("auto", gpu) == "float32"
    assert choose_precision("mixed", gpu) == "mixed"
    with pytest.raises(InputError, match="cpu"):
        choose_precision("mixed", cpu)
    with pytest.raises(InputError, match="'double'"):
        choose_precision("double", cpu)


def test_out_of_memory_is_one_sentence():
    cpu = torch.device("cpu")
    with pytest.raises(DeviceMemoryError, match="cpu ran out of memory; choose less"), memory_guard(cpu, "choose less"):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shape"), memory_guard(cpu, "choose less"):
        torch.zeros(2, 3) @ torch.zeros(2, 3)
