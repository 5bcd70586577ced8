"""A device that is neither the CPU nor there: what CUDA or Apple's GPU would refuse is refused, and results are right.

Its tensors say that they are elsewhere and are computed on the CPU all the same. An operation on them and on the CPU's
together raises, as on CUDA; so does float64, as on Apple's GPUs. How often the CPU waits for the device is counted.

torch keeps one such device to a process and cannot forget it, so that tests run this file:
`python stand_in.py CASE ...` registers a phantom on the CPU and on the device, and prints one line of JSON per case.
"""

import json
import sys
import weakref
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from IconRegistrationLib.demo.phantom import make_phantom
from IconRegistrationLib.registration import register as room
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.spatial.geometry import Image

CASES = {
    "field": {"similarity": "lncc2", "steps": 4},
    "field, two contrasts": {"similarity": "mind", "steps": 4},
    "built-in network": {"model": "builtin", "refine": "off"},
    "fine-tuned network": {"model": "builtin", "refine": "network", "steps": 1},
}
NAME = "standin"
#: What takes tensors of both.
TRANSFERS = {"aten::_to_copy", "aten::copy_"}
#: Their result, or its size, is wanted on the CPU, which waits until the device has come that far; as it does to copy.
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::equal"}


class Elsewhere(torch.Tensor):
    """`inner`, a tensor of the CPU, as one of the device.

    waits: how often the CPU waited for the device. held, most: bytes of such tensors, now and at the most.
    """

    waits = held = most = 0
    _storages: ClassVar[set[int]] = set()
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        if inner.dtype == torch.float64:
            raise TypeError("float64 is not supported by this device")
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        result = torch.Tensor._make_wrapper_subclass(cls, inner.size(), **layout, device=f"{NAME}:0")
        result.inner = inner
        cls._hold(inner.untyped_storage())
        return result

    @classmethod
    def _hold(cls, storage) -> None:
        if id(storage) not in cls._storages:  # torch keeps this object as long as a tensor has that memory
            cls._storages.add(id(storage))
            cls.held += storage.nbytes()
            cls.most = max(cls.most, cls.held)
            weakref.finalize(storage, cls._let_go, id(storage), storage.nbytes())

    @classmethod
    def _let_go(cls, storage: int, count: int) -> None:
        cls._storages.discard(storage)
        cls.held -= count

    def tolist(self):  # torch has none for subclasses
        Elsewhere.waits += 1
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class Device(TorchDispatchMode):
    """Makes the tensors that are asked for on the device; those of `Elsewhere` see to themselves."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


def _run(operation, args, kwargs):
    name, leaves = operation._schema.name, pytree.tree_leaves((args, kwargs))
    is_there = any(isinstance(x, Elsewhere) for x in leaves)
    if is_there and name not in TRANSFERS:
        for x in leaves:
            if _is_here(x) and x.dim():
                raise RuntimeError(f"{name}: expected all tensors on one device, but {tuple(x.shape)} is on the CPU")
    plain, options = pytree.tree_map(lambda x: x.inner if isinstance(x, Elsewhere) else x, (args, kwargs))
    to = options.get("device")
    if to is not None:
        options["device"] = "cpu"
    result = operation(*plain, **options)
    if name == "aten::copy_":
        goes_there = isinstance(args[0], Elsewhere)
    else:
        goes_there = is_there if to is None else torch.device(to).type == NAME
    crosses = name in TRANSFERS and (goes_there != is_there or (is_there and any(map(_is_here, leaves))))
    Elsewhere.waits += crosses or (is_there and name in WAITS)
    if not goes_there or name == "aten::_local_scalar_dense":
        return result
    result = pytree.tree_map(lambda x: Elsewhere(x) if isinstance(x, torch.Tensor) else x, result)
    return return_and_correct_aliasing(operation, args, kwargs, result) if is_there else result


def _is_here(x) -> bool:
    return isinstance(x, torch.Tensor) and not isinstance(x, Elsewhere)


def set_up() -> torch.device:
    _setup_privateuseone_for_python_backend(NAME)
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16]
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) then asks `Device`, too
    return torch.device(NAME, 0)


def displacement(device: torch.device, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """[k, j, i, 3] mm of a guided registration with a mask, and where structures are."""
    phantom = make_phantom(3, 40, "ct-mr" if settings.similarity == "mind" else "ct")
    seen = np.ones(phantom.moving.grid.shape, np.uint8)
    seen[:3] = 0
    guide = {}
    if settings.refine != "network":
        guide = {"fixed_labels": phantom.fixed_segmentation, "moving_labels": phantom.moving_segmentation}
    room.choose_device = lambda name: device
    found = room.register(
        phantom.fixed, phantom.moving, settings, moving_mask=Image(seen, phantom.moving.grid), **guide
    )
    return found.forward.sampled_on(phantom.fixed.grid).displacement, phantom.fixed_segmentation.layers[0] > 0


def refused(device: torch.device) -> list[str]:
    """What it says to tensors of two devices, and to float64."""
    there, said = torch.ones(2, device=device), []
    for mistake in (lambda: there + torch.ones(2), lambda: there.double()):
        try:
            mistake()
        except (RuntimeError, TypeError) as error:
            said.append(str(error))
    return said


def main(*cases: str) -> None:
    """Print what is measured of each case; the CPU's registrations come before torch knows the device."""
    settings = {case: Settings(**CASES[case]) for case in cases}
    on_cpu = {case: displacement(torch.device("cpu"), settings[case]) for case in cases}
    device = set_up()
    for case in cases:
        print(json.dumps(compared(device, settings[case], *on_cpu[case])), flush=True)


def compared(device: torch.device, settings: Settings, on_cpu: np.ndarray, body: np.ndarray) -> dict:
    """Return how the device's registration differs from the CPU's, what it refused and how often it was waited for."""
    waits = []
    # autograd would give the device a thread of its own, which cannot run Python
    with Device(), torch.autograd.set_multithreading_enabled(False):
        said = refused(device)
        on_device, _ = displacement(device, settings)
        if settings.refinement == "field":
            for steps in (1, 3):
                Elsewhere.waits = 0
                displacement(device, replace(settings, steps=steps))
                waits.append(Elsewhere.waits)
    error = np.linalg.norm(on_device - on_cpu, axis=-1)[body]
    moved = np.linalg.norm(on_cpu, axis=-1)[body]
    return {"refused": said, "error": float(error.mean()), "moved": float(moved.mean()), "waits": waits}


if __name__ == "__main__":
    main(*sys.argv[1:])
