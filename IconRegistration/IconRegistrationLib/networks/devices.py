"""Choose the computing device and guard its memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import DeviceMemoryError, InputError
from ..text import tr
from .inference import predict_maps
from .unet import GradICON


def choose_device(name: str = "auto") -> torch.device:
    """Return the torch device of a setting.

    Parameters
    ----------
    name : str
        "auto" (CUDA, else Apple's GPU where it can run the network, else the CPU), "cpu", "cuda", "cuda:N" or "mps".

    Raises
    ------
    InputError
        With the remedy, for a device that does not exist or cannot run the network.

    Examples
    --------
    >>> choose_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() and _runs_network("mps") else "cpu")
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise InputError(tr("No device is called {name}; choose auto, cpu, cuda, cuda:N or mps.", name=repr(name)))
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise InputError(
                tr(
                    "Device {name} was asked for but this PyTorch ({version}) sees no CUDA GPU; choose auto or cpu, or "
                    "install a CUDA build of PyTorch and the NVIDIA driver.",
                    name=repr(name),
                    version=str(torch.__version__),
                )
            )
        if device.index is not None and device.index >= count:
            raise InputError(
                tr(
                    "Device {name} does not exist; this machine has cuda:0 to cuda:{last}.",
                    name=repr(name),
                    last=count - 1,
                )
            )
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise InputError(
                tr(
                    "Device {name} needs an Apple GPU and a PyTorch with Metal support; choose auto or cpu.",
                    name=repr(name),
                )
            )
        if not _runs_network("mps"):
            raise InputError(
                tr(
                    "PyTorch {version} lacks 3D operations on Apple's GPU (mps); choose cpu or a newer PyTorch.",
                    version=str(torch.__version__),
                )
            )
    return device


def _runs_network(device: str) -> bool:
    """Return whether the device has every operation of a (tiny) cascade: some MPS versions lack 3D sampling."""
    try:
        network = GradICON((9, 9, 9), down=(2, 2, 2), up=(2, 2)).to(device).eval()
        predict_maps(network, torch.zeros(1, 1, 9, 9, 9), torch.zeros(1, 1, 9, 9, 9), both=False)
    except RuntimeError:  # NotImplementedError, where an operation is missing, is one
        return False
    return True


@contextmanager
def memory_guard(device: torch.device, remedy: str) -> Iterator[None]:
    """Turn "out of memory" of the device or the host into one DeviceMemoryError.

    Parameters
    ----------
    device : torch.device
        What computes within the block.
    remedy : str
        What to choose instead: how the sentence ends.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torch.OutOfMemoryError on CUDA; a plain RuntimeError with these words on a CPU and on MPS
        words = str(error).lower()
        if not isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) and not any(
            phrase in words for phrase in ("out of memory", "can't allocate memory", "not enough memory")
        ):
            raise
        if torch.device(device).type != "cuda":
            sentence = tr("{device} ran out of memory; {remedy}.", device=str(device), remedy=remedy)
            raise DeviceMemoryError(sentence) from None
        free, total = torch.cuda.mem_get_info(device)
        torch.cuda.empty_cache()
        raise DeviceMemoryError(
            tr(
                "{device} ran out of memory ({free:.1f} of {total:.1f} GiB free); {remedy}.",
                device=str(device),
                free=free / 2**30,
                total=total / 2**30,
                remedy=remedy,
            )
        ) from None
