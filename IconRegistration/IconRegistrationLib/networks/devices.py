"""Choose the computing device and guard its memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import DeviceMemoryError, InputError
from .inference import predict_maps
from .unet import GradICON


def choose_device(name: str = "auto") -> torch.device:
    """The torch device of a setting: "auto" (CUDA, else Apple's GPU where it can run the network, else the CPU),
    "cpu", "cuda", "cuda:N" or "mps". Raises InputError with the remedy if it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() and _runs_network("mps") else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"No device is called {name!r}; choose auto, cpu, cuda, cuda:N or mps.")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise InputError(
                f"Device {name!r} was asked for but this PyTorch ({torch.__version__}) sees no CUDA GPU; choose auto "
                "or cpu, or install a CUDA build of PyTorch and the NVIDIA driver."
            )
        if device.index is not None and device.index >= count:
            raise InputError(f"Device {name!r} does not exist; this machine has cuda:0 to cuda:{count - 1}.")
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise InputError(
                f"Device {name!r} needs an Apple GPU and a PyTorch with Metal support; choose auto or cpu."
            )
        if not _runs_network("mps"):
            raise InputError(
                f"PyTorch {torch.__version__} lacks 3D operations on Apple's GPU (mps); choose cpu or a newer PyTorch."
            )
    return device


def _runs_network(device: str) -> bool:
    """Whether the device has every operation of a (tiny) cascade: 3D sampling is missing on MPS in many versions."""
    try:
        network = GradICON((9, 9, 9), down=(2, 2, 2), up=(2, 2)).to(device).eval()
        predict_maps(network, torch.zeros(1, 1, 9, 9, 9), torch.zeros(1, 1, 9, 9, 9), both=False)
    except RuntimeError:  # NotImplementedError, where an operation is missing, is one
        return False
    return True


@contextmanager
def memory_guard(device: torch.device, remedy: str) -> Iterator[None]:
    """Turns "out of memory" of the device or the host into one DeviceMemoryError that ends with `remedy`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torch.OutOfMemoryError on CUDA; a plain RuntimeError with these words on a CPU and on MPS
        words = str(error).lower()
        if not isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) and not any(
            phrase in words for phrase in ("out of memory", "can't allocate memory", "not enough memory")
        ):
            raise
        message = f"{device} ran out of memory"
        if torch.device(device).type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            message += f" ({free / 2**30:.1f} of {total / 2**30:.1f} GiB free)"
            torch.cuda.empty_cache()
        raise DeviceMemoryError(f"{message}; {remedy}.") from None
