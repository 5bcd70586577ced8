"""The registration tools of the accuracy benchmark behind one call: two images in, one dense map out.

    field = TOOLS["elastix"].register(fixed, moving, run)

Every tool runs as its own documentation starts it; `recipe` says how. `run.clock` is held while the tool works, from
images in memory to its own result; loading its libraries (`run.loads`) and conversions before and after are apart. The
map is a DisplacementField with one sample per fixed voxel, fixed -> moving; Testing/headless/test_benchmark_peers.py
holds every tool to that.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from IconRegistrationLib.networks.cards import shipped_cards
from IconRegistrationLib.spatial.displacement import DisplacementField
from IconRegistrationLib.spatial.geometry import Grid, Image


@dataclass
class Run:
    """How a tool is to run, and what its clocks showed.

    threads: the most it may use.  two_contrasts: the images' contrasts differ, which a user knows.
    loading, seconds, cpu_seconds: the tool's libraries; the registration, wall and CPU.
    peak: GiB of memory of the whole process when the registration was done.
    """

    threads: int = 1
    two_contrasts: bool = False
    loading: float = field(default=0.0, init=False)
    seconds: float = field(default=0.0, init=False)
    cpu_seconds: float = field(default=0.0, init=False)
    peak: float = field(default=0.0, init=False)

    @contextmanager
    def loads(self):
        start = time.perf_counter()
        yield
        self.loading += time.perf_counter() - start

    @contextmanager
    def clock(self):
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu
        self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@dataclass(frozen=True)
class Tool:
    """title, recipe: for the table.  distribution: the package it comes in.  model: the network of ours it needs."""

    title: str
    recipe: str
    register: Callable[[Image, Image, Run], DisplacementField]
    distribution: str = "slicer-icon-registration"
    model: str = "none"

    @property
    def version(self) -> str | None:
        """None where it is not installed, or the network is not there."""
        try:
            return version(self.distribution) if self.model in shipped_cards() else None
        except PackageNotFoundError:
            return None


def limit_threads(threads: int) -> None:
    """For whatever a tool computes with; before it is imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ[name] = str(threads)


# ------------------------------------------------------------------------------------------------------------- ours


def ours(**settings) -> Callable[[Image, Image, Run], DisplacementField]:
    """`register` with these fields of Settings."""

    def run_ours(fixed: Image, moving: Image, run: Run) -> DisplacementField:
        with run.loads():
            import torch

            from IconRegistrationLib.machine import keep_freed_memory
            from IconRegistrationLib.registration.register import register
            from IconRegistrationLib.registration.settings import Settings

            keep_freed_memory()  # as the command does
            _load_alignment()
        torch.set_num_threads(run.threads)
        with run.clock():
            forward = register(fixed, moving, Settings(device="cpu", **settings)).forward
        return forward.sampled_on(fixed.grid)

    return run_ours


def _load_alignment() -> None:
    """What torch sets up at first use is not the alignment's time."""
    from IconRegistrationLib.demo.phantom import make_phantom
    from IconRegistrationLib.registration.align import align

    tiny = make_phantom(0, 16)
    align(tiny.fixed, tiny.moving, "affine")


# ---------------------------------------------------------------------------------------------------------- elastix


def elastix(fixed: Image, moving: Image, run: Run) -> DisplacementField:
    with run.loads():
        import itk

        for name in ("ElastixRegistrationMethod", "TransformixFilter", "ParameterObject"):
            getattr(itk, name)  # itk loads at first use
    # elastix 0.25.4 crashes in its second metric, bending energy, where ITK's threads are TBB's, the default of wheels
    itk.MultiThreaderBase.SetGlobalDefaultThreader(itk.MultiThreaderBaseEnums.Threader_Pool)
    images = [itk_image(image) for image in (fixed, moving)]
    parameters = itk.ParameterObject.New()
    for kind in ("rigid", "affine", "bspline"):
        stage = itk.ParameterObject.GetDefaultParameterMap(kind)
        stage["WriteResultImage"] = ["false"]
        if kind == "rigid":
            stage["AutomaticTransformInitialization"] = ["true"]
        parameters.AddParameterMap(stage)
    with run.clock():
        _, found = itk.elastix_registration_method(
            *images, parameter_object=parameters, number_of_threads=run.threads, log_to_console=False
        )
    with tempfile.TemporaryDirectory() as folder:  # it writes the field there, too
        displacement = itk.transformix_deformation_field(images[1], found, output_directory=folder)
    return DisplacementField(itk.array_from_image(displacement), fixed.grid)


def itk_image(image: Image):
    import itk

    result = itk.image_from_array(np.ascontiguousarray(image.array, np.float32))
    result.SetSpacing(image.grid.spacing)
    result.SetOrigin(image.grid.origin)
    result.SetDirection(itk.matrix_from_array(np.ascontiguousarray(image.grid.direction)))
    return result


# ------------------------------------------------------------------------------------------------------------- ANTs


def ants(kind: str, aligned: bool = False) -> Callable[[Image, Image, Run], DisplacementField]:
    """antspyx's `registration` with this type of transform and its other defaults.

    aligned: from our affine alignment, of which a type without one of its own makes a start.
    """

    def run_ants(fixed: Image, moving: Image, run: Run) -> DisplacementField:
        with run.loads():
            import ants

            from IconRegistrationLib.registration.align import align

            if aligned:
                _load_alignment()
        images = [_ants_image(image) for image in (fixed, moving)]
        with tempfile.TemporaryDirectory() as folder:
            start = f"{folder}/start.mat" if aligned else None
            with run.clock():
                if aligned:
                    matrix = align(fixed, moving, "affine").matrix
                    parameters = [*matrix[:3, :3].ravel(), *matrix[:3, 3]]
                    affine = ants.new_ants_transform(
                        dimension=3, transform_type="AffineTransform", parameters=parameters
                    )
                    ants.write_transform(affine, start)
                found = ants.registration(
                    *images, type_of_transform=kind, initial_transform=start, outprefix=f"{folder}/"
                )
            composed = ants.apply_transforms(*images, found["fwdtransforms"], compose=f"{folder}/all")
            field = ants.image_read(composed).numpy()  # [i, j, k, component]
        return DisplacementField(field.transpose(2, 1, 0, 3), fixed.grid)

    return run_ants


def _ants_image(image: Image):
    import ants

    return ants.from_numpy(
        np.ascontiguousarray(image.array.T, np.float32),
        origin=image.grid.origin.tolist(),
        spacing=image.grid.spacing.tolist(),
        direction=image.grid.direction,
    )


# ----------------------------------------------------------------------------------------------------------- greedy


#: greedy's matrices are between RAS points.
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def greedy(aligned: bool) -> Callable[[Image, Image, Run], DisplacementField]:
    """aligned: started from our affine alignment in place of its own, to tell its two stages apart."""

    def run_greedy(fixed: Image, moving: Image, run: Run) -> DisplacementField:
        with run.loads():
            import SimpleITK
            from picsl_greedy import Greedy3D

            from IconRegistrationLib.registration.align import align

            if aligned:
                _load_alignment()
        tool = Greedy3D()
        # for two contrasts too: its NMI, which is advised for them, sent every phantom out of the image
        common = f"-threads {run.threads} -V 0 -i fixed moving -m WNCC 2x2x2 -n 100x50x10"
        images = {"fixed": _sitk_image(fixed), "moving": _sitk_image(moving)}
        with tempfile.TemporaryDirectory() as folder:
            start = f"{folder}/affine.mat" if aligned else "affine"
            with run.clock():
                if aligned:
                    np.savetxt(start, RAS @ align(fixed, moving, "affine").matrix @ RAS)
                else:
                    tool.execute(f"{common} -a -ia-image-centers -o affine", **images, affine=None)
                tool.execute(f"{common} -it {start} -sv -o warp", **images, warp=None)
            tool.execute(f"-rf fixed -rc all -r warp {start}", all=None)
        return DisplacementField(SimpleITK.GetArrayFromImage(tool["all"]), fixed.grid)

    return run_greedy


def _sitk_image(image: Image):
    import SimpleITK

    result = SimpleITK.GetImageFromArray(np.ascontiguousarray(image.array, np.float32))
    result.SetSpacing(image.grid.spacing.tolist())
    result.SetOrigin(image.grid.origin.tolist())
    result.SetDirection(image.grid.direction.ravel().tolist())
    return result


# ------------------------------------------------------------------------------------------------------- ConvexAdam


#: mm3 of a field of view; a head has 6 to 11 million, the largest image of Learn2Reg 8 million voxels.
LARGEST_ON_1_MM = 12e6


def convexadam(aligned: bool) -> Callable[[Image, Image, Run], DisplacementField]:
    """On 1 mm over the fixed image's field of view, as its own `convex_adam_translation` prepares images.

    A torso is on 2 mm, as in Learn2Reg, whose images it was made for: 1 mm would be four times its largest image.

    aligned: after an affine alignment, here ours: it has none, and the challenges it won give it aligned images.
    """

    def run_convexadam(fixed: Image, moving: Image, run: Run) -> DisplacementField:
        with run.loads():
            import torch
            from convexAdam.convex_adam_MIND import convex_adam_pt

            from IconRegistrationLib.registration.align import align
            from IconRegistrationLib.spatial.sampling import sample

            if aligned:
                _load_alignment()
        torch.set_num_threads(run.threads)
        spacing = 1.0 if np.prod(fixed.grid.extent) < LARGEST_ON_1_MM else 2.0
        grid = fixed.grid.with_shape(np.maximum(np.rint(fixed.grid.extent[::-1] / spacing), 1).astype(int))
        with run.clock():
            linear = align(fixed, moving, "affine").matrix if aligned else np.eye(4)
            arrays = [
                sample(fixed.array, fixed.grid, grid),
                sample(moving.array, moving.grid, grid, transform=linear, outside=float(moving.array.min())),
            ]
            voxels = convex_adam_pt(*arrays, device=torch.device("cpu"), dtype=torch.float32)  # [k, j, i, (k, j, i)]
        millimetres = voxels[..., ::-1] @ grid.affine[:3, :3].T
        return DisplacementField(millimetres, grid).after(linear).sampled_on(fixed.grid)

    return run_convexadam


# --------------------------------------------------------------------------------------------------------- FireANTs


def fireants(aligned: bool) -> Callable[[Image, Image, Run], DisplacementField]:
    """aligned: after our affine alignment instead of its own, which begins at the headers and moves 3 um a step."""

    def run_fireants(fixed: Image, moving: Image, run: Run) -> DisplacementField:
        with run.loads():
            import torch
            from fireants.io.image import BatchedImages
            from fireants.io.image import Image as FireImage
            from fireants.registration.affine import AffineRegistration
            from fireants.registration.greedy import GreedyRegistration

            from IconRegistrationLib.registration.align import align

            if aligned:
                _load_alignment()
        torch.set_num_threads(run.threads)
        images = [FireImage(_sitk_image(_in_unit_range(image)), device="cpu") for image in (fixed, moving)]
        pair = [BatchedImages([image]) for image in images]
        loss = {"loss_type": "mi"} if run.two_contrasts else {"loss_type": "cc", "cc_kernel_size": 5}
        options = {"progress_bar": False, **loss}
        scales = [4, 2, 1]
        with run.clock():
            if aligned:
                linear = torch.tensor(align(fixed, moving, "affine").matrix, dtype=torch.float32)[None]
            else:
                affine = AffineRegistration(
                    scales, [200, 100, 50], *pair, optimizer="Adam", optimizer_lr=3e-3, **options
                )
                affine.optimize()
                linear = affine.get_affine_matrix().detach()
            deformable = GreedyRegistration(
                scales,
                [200, 100, 25],
                *pair,
                deformation_type="compositive",
                smooth_grad_sigma=1,
                optimizer="adam",
                optimizer_lr=0.5,
                init_affine=linear,
                **options,
            )
            deformable.optimize()
        with torch.no_grad():
            unit = deformable.get_warped_coordinates(*pair)[
                0
            ].numpy()  # -1 and 1 at the centres of the outermost voxels
        last = np.array(moving.grid.size) - 1
        there = moving.grid.to_world((unit + 1) / 2 * last)
        return DisplacementField(there - _places(fixed.grid), fixed.grid)

    return run_fireants


def _in_unit_range(image: Image) -> Image:
    values = image.array.astype(np.float32)
    return Image((values - values.min()) / max(float(np.ptp(values)), 1e-6), image.grid, image.name)


def _places(grid: Grid) -> np.ndarray:
    """Where the voxels are, [k, j, i, 3] mm LPS."""
    k, j, i = np.indices(grid.shape)
    return grid.to_world(np.stack([i, j, k], -1))


_NETWORK = {"model": "builtin"}
#: By the name that --tools takes.
TOOLS = {
    "none": Tool("ours, none", "no network, affine alignment, field refinement: the default", ours()),
    "none-linear": Tool("ours, none, not refined", "the affine alignment alone", ours(refine="off")),
    "builtin": Tool(
        "ours, builtin", "built-in network, field refinement", ours(**_NETWORK, refine="field"), **_NETWORK
    ),
    "builtin-plain": Tool(
        "ours, builtin, not refined", "built-in network alone", ours(**_NETWORK, refine="off"), **_NETWORK
    ),
    "elastix": Tool(
        "elastix",
        "default parameter maps rigid, affine, bspline (Mattes MI, bending energy, 10 mm), started centre on centre",
        elastix,
        "itk-elastix",
    ),
    "ants": Tool("ANTs SyN", "type_of_transform SyN and its defaults (Mattes MI)", ants("SyN"), "antspyx"),
    "ants-aligned": Tool(
        "ANTs SyN, aligned", "its SyN stage after our affine alignment", ants("SyNOnly", aligned=True), "antspyx"
    ),
    "ants-script": Tool(
        "ANTs SyN, script",
        "type_of_transform antsRegistrationSyN[s], the script that is recommended for accuracy (CC, radius 4)",
        ants("antsRegistrationSyN[s]"),
        "antspyx",
    ),
    "greedy": Tool(
        "greedy",
        "its quick start: affine centre on centre, then -sv, both WNCC 2x2x2 at 100x50x10",
        greedy(aligned=False),
        "picsl-greedy",
    ),
    "greedy-aligned": Tool(
        "greedy, aligned", "the same after our affine alignment", greedy(aligned=True), "picsl-greedy"
    ),
    "convexadam": Tool(
        "ConvexAdam",
        "MIND, defaults, images on 1 mm (a torso on 2 mm, as in Learn2Reg); it has no linear alignment",
        convexadam(aligned=False),
        "convexadam",
    ),
    "convexadam-aligned": Tool(
        "ConvexAdam, aligned", "the same after our affine alignment", convexadam(aligned=True), "convexadam"
    ),
    "fireants": Tool(
        "FireANTs",
        "its quick start: affine, then greedy, CC 5 (MI for two contrasts) at 200x100x50 and 200x100x25, on the CPU",
        fireants(aligned=False),
        "fireants",
    ),
    "fireants-aligned": Tool(
        "FireANTs, aligned", "the same greedy after our affine alignment", fireants(aligned=True), "fireants"
    ),
}
OURS = [name for name, tool in TOOLS.items() if tool.register.__name__ == "run_ours"]
