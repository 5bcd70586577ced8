"""Every convention warps an image and a label map like ITK's resampler, at the original resolution."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from IconRegistrationLib.spatial.conventions import (
    displacement_in_voxels,
    half_extent_displacement,
    identity_map,
    sampling_grid,
    sampling_grid_from_phi,
    voxel_map,
)
from IconRegistrationLib.spatial.field import displacement_from_phi
from IconRegistrationLib.spatial.geometry import Grid, flip_affine, flip_vectors

PAGE = Path(__file__).parents[2] / "docs" / "phi.md"


def rotation(seed, left_handed=False):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * [np.sign(np.linalg.det(q)) * (-1 if left_handed else 1), 1, 1]


#: Fixed and moving differ in size, spacing, axes, handedness and place; the lattice has a third shape.
FIXED = Grid.from_parts((32, 25, 18), (1.1, 1.4, 2.8), (-20, 50, -100), rotation(1)[:, [2, 0, 1]])
MOVING = Grid.from_parts((28, 31, 22), (1.3, 0.9, 2.2), (210, -130, 20), rotation(2, left_handed=True))
SHAPE = (14, 17, 15)


def an_image(grid, seed=0):
    """Smooth enough that float32 places (2e-5 voxel) matter little, rough enough to show a wrong axis."""
    noise = torch.from_numpy(np.random.default_rng(seed).normal(0, 1, (1, 1, *(n // 3 for n in grid.shape))))
    return F.interpolate(noise, size=grid.shape, mode="trilinear", align_corners=False)[0, 0].float().numpy() * 100


@pytest.fixture(scope="module")
def a_phi():
    identity = identity_map(SHAPE)
    wave = torch.sin(4 * identity.flip(1) + torch.tensor([0.2, 1.1, 2.3]).view(1, 3, 1, 1, 1))
    return 0.5 + 0.85 * (identity - 0.5) + 0.03 * wave


@pytest.fixture(scope="module")
def a_field(a_phi):
    return displacement_from_phi(a_phi, FIXED.with_shape(SHAPE), MOVING.with_shape(SHAPE), cover=FIXED)


class Data:
    """A moving image and label map, and what ITK's resampler makes of them on the fixed grid."""

    def __init__(self, field):
        import itk

        self.image = an_image(MOVING)
        self.labels = (np.digitize(self.image, [-40, 0, 40]) * 7).astype(np.int16)
        self.warped, self.warped_labels = (
            itk.array_from_image(
                itk.resample_image_filter(
                    self._itk(array),
                    transform=field.to_itk(),
                    interpolator=kind[type(self._itk(array)), itk.D].New(),
                    size=FIXED.size,
                    output_spacing=FIXED.spacing,
                    output_origin=FIXED.origin,
                    output_direction=itk.matrix_from_array(np.ascontiguousarray(FIXED.direction)),
                )
            )
            for array, kind in (
                (self.image, itk.LinearInterpolateImageFunction),
                (self.labels, itk.NearestNeighborInterpolateImageFunction),
            )
        )
        places = MOVING.to_index(field.transform_points(nodes(FIXED)))
        size = np.array(MOVING.size)
        # From the outermost centres on, tools differ by design; what they share is the inside.
        self.interior = ((places > 0.01) & (places < size - 1.01)).all(-1)
        self.ties = (np.abs(places % 1 - 0.5) < 1e-3).any(-1)
        self.places = places

    @staticmethod
    def _itk(array):
        import itk

        image = itk.image_from_array(array)
        image.SetSpacing(MOVING.spacing)
        image.SetOrigin(MOVING.origin)
        image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(MOVING.direction)))
        return image

    def check(self, warped, warped_labels):
        """Interior voxels: the image within 0.02 of a range of about 600, labels identical off ties."""
        assert self.interior.mean() > 0.4
        assert self.warped[self.interior].std() > 20
        assert np.abs(warped - self.warped)[self.interior].max() < 0.02
        sure = self.interior & ~self.ties
        assert len(np.unique(self.warped_labels[sure])) == 4
        assert np.array_equal(warped_labels[sure], self.warped_labels[sure])


def nodes(grid):
    axes = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    return grid.to_world(np.stack(axes[::-1], -1))


@pytest.fixture(scope="module")
def the_data(a_field):
    return Data(a_field)


def pull(array, grid, mode, align_corners):
    tensor = torch.from_numpy(array.astype(np.float32))[None, None]
    return F.grid_sample(tensor, grid, mode=mode, align_corners=align_corners)[0, 0].numpy()


@pytest.mark.parametrize("align_corners", [True, False])
def test_torch_grids(a_field, the_data, align_corners):
    grid = sampling_grid(a_field, FIXED, MOVING, align_corners)
    assert grid.shape == (1, *FIXED.shape, 3)
    the_data.check(
        pull(the_data.image, grid, "bilinear", align_corners), pull(the_data.labels, grid, "nearest", align_corners)
    )


def test_torch_grid_straight_from_phi(a_phi, the_data):
    """No affine enters, for the lattices fill the boxes of their images."""
    grid = sampling_grid_from_phi(a_phi, FIXED.shape)
    the_data.check(pull(the_data.image, grid, "bilinear", False), pull(the_data.labels, grid, "nearest", False))


def test_the_grid_from_phi_agrees_to_the_border(a_phi, a_field):
    expected = sampling_grid(a_field, FIXED, MOVING, align_corners=False)
    assert (sampling_grid_from_phi(a_phi, FIXED.shape) - expected).abs().max() < 1e-5


def test_phi_at_lattice_resolution_is_icon_s_own_warp(a_phi):
    """icon_registration warps the resized image at phi scaled to [-1, 1] with align_corners=True; so says the page."""
    moving = torch.from_numpy(an_image(MOVING))[None, None]
    resized = F.interpolate(moving, size=SHAPE, mode="trilinear", align_corners=False)
    as_icon = F.grid_sample(resized, (2 * a_phi - 1).flip(1).permute(0, 2, 3, 4, 1), align_corners=True)
    ours = F.grid_sample(resized, sampling_grid_from_phi(a_phi, SHAPE), align_corners=False)
    assert (as_icon - ours).abs().max() < 0.02


def trilinear(array, places):
    """Independent of torch and ITK: values of [k, j, i] at (i, j, k) inside it, and those of the nearest voxels."""
    places = np.clip(places, 0, np.array(array.shape[::-1]) - 1)
    low = np.minimum(places.astype(int), np.array(array.shape[::-1]) - 2)
    total = np.zeros(places.shape[:-1])
    for corner in np.ndindex(2, 2, 2):
        i, j, k = np.moveaxis(low + corner, -1, 0)
        total += np.where(corner, places - low, 1 - places + low).prod(-1) * array[k, j, i]
    return total


def at_nearest(array, places):
    i, j, k = np.moveaxis(np.clip(np.floor(places + 0.5).astype(int), 0, np.array(array.shape[::-1]) - 1), -1, 0)
    return array[k, j, i]


def check_places(the_data, places):
    the_data.check(trilinear(the_data.image, places), at_nearest(the_data.labels, places))


def test_mm_in_lps(a_field, the_data):
    displacement = a_field.sampled_on(FIXED).displacement
    check_places(the_data, MOVING.to_index(nodes(FIXED) + displacement))


def test_mm_in_ras_with_nibabel_s_affines(a_field, the_data, tmp_path):
    """Written and read by nibabel: fixed voxel -> RAS by its affine, plus the displacement, to moving voxels."""
    nib = pytest.importorskip("nibabel")
    displacement = flip_vectors(a_field.sampled_on(FIXED).displacement)
    stored = nib.Nifti1Image(displacement.transpose(2, 1, 0, 3), flip_affine(FIXED.affine))
    nib.save(stored, tmp_path / "displacement.nii.gz")
    nib.save(nib.Nifti1Image(the_data.image.transpose(2, 1, 0), flip_affine(MOVING.affine)), tmp_path / "moving.nii")
    loaded, moving = nib.load(tmp_path / "displacement.nii.gz"), nib.load(tmp_path / "moving.nii")
    ijk = np.stack(np.meshgrid(*[np.arange(n) for n in loaded.shape[:3]], indexing="ij"), -1)
    ras = nib.affines.apply_affine(loaded.affine, ijk) + loaded.get_fdata()
    places = nib.affines.apply_affine(np.linalg.inv(moving.affine), ras)
    assert np.abs(moving.get_fdata().transpose(2, 1, 0) - the_data.image).max() < 1e-4
    check_places(the_data, places.transpose(2, 1, 0, 3))


def test_moving_voxels(a_field, the_data):
    places = voxel_map(a_field, FIXED, MOVING)
    assert np.abs(places - the_data.places).max() < 1e-3
    check_places(the_data, places)


def test_displacement_in_voxels_of_either_image(a_field, the_data):
    """A fixed voxel displaced in fixed voxels, then to mm; a fixed centre in moving voxels, then displaced in those."""
    full = a_field.sampled_on(FIXED)
    ijk = FIXED.to_index(nodes(FIXED))
    check_places(the_data, MOVING.to_index(FIXED.to_world(ijk + displacement_in_voxels(full, FIXED))))
    check_places(the_data, MOVING.to_index(nodes(FIXED)) + displacement_in_voxels(full, MOVING))


@pytest.mark.parametrize("align_corners", [True, False])
def test_half_extents_in_nibabel_s_axes(a_field, the_data, tmp_path, align_corners):
    """A user with nibabel and torch only: load the moving image, add the displacement to the identity, sample."""
    nib = pytest.importorskip("nibabel")
    for name, array in (("image", the_data.image), ("labels", the_data.labels)):
        nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), flip_affine(MOVING.affine)), tmp_path / f"{name}.nii.gz")
    displacement = torch.from_numpy(half_extent_displacement(a_field, FIXED, MOVING, align_corners))
    assert displacement.shape == (*FIXED.size, 3)
    identity = F.affine_grid(torch.eye(3, 4)[None], (1, 1, *FIXED.size), align_corners=align_corners)[0]
    # torch counts x along the last axis: identity has (k, j, i) here, so the displacement is flipped.
    grid = (identity + displacement.flip(-1))[None]
    warped = {
        name: pull(nib.load(tmp_path / f"{name}.nii.gz").get_fdata(), grid, mode, align_corners).transpose(2, 1, 0)
        for name, mode in (("image", "bilinear"), ("labels", "nearest"))
    }
    the_data.check(warped["image"], warped["labels"])


def test_the_page_runs():
    """Every Python block of docs/phi.md, one after the other; its assertions are part of the page."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 6
    pytest.importorskip("nibabel")
    pytest.importorskip("SimpleITK")
    pytest.importorskip("matplotlib")
    exec(compile("\n".join(blocks), str(PAGE), "exec"), {})
