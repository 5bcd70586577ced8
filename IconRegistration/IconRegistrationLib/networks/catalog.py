"""Which networks there are, where their weights come from, and how they are checked before they are used.

The module is imported when Slicer starts, and by a worker that tells which packages are missing: none at its top.
"""

from __future__ import annotations

import gc
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .cards import CARDS, SHIPPED, WEIGHTS_VARIABLE, ModelCard, _read_json, _sha256, read_card
from .download import ByteProgress, download

if TYPE_CHECKING:
    from .inference import InferenceNetwork
    from .unet import GradICON


def find_card(name_or_path: str | Path) -> ModelCard:
    """The card of a known name, the one beside a weights file, or one made for a file of the published architecture.

    Raises InputError that lists the names, or names the file that is missing.
    """
    name = str(name_or_path)
    if name in CARDS:
        return CARDS[name]
    path = Path(name_or_path).expanduser()
    if os.path.isfile(path):  # Path.is_file raises where a name is too long
        if "card" in _read_json(path.with_suffix(".json")):
            return read_card(path.with_suffix(".json"))
        return replace(
            CARDS["unigradicon"],
            name=path.stem,
            title=path.name,
            description="Weights of your own, of the architecture of uniGradICON.",
            licence="",
            citation=CARDS["unigradicon"].citation,
            url="",
            size=0,
        )
    if path.suffix or len(path.parts) > 1:
        raise InputError(f"The weights file {path} does not exist; choose {', '.join(CARDS)} or an existing file.")
    raise InputError(f"No model is called {name!r}; choose one of {', '.join(CARDS)} or the path of a weights file.")


def cache_folder() -> Path:
    """Where downloaded weights are kept for this user; the place that the platform has for such files."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "icon-registration"


def find_weights(card: ModelCard, weights_dir: str | Path | None = None) -> Path | None:
    """The weights file of a known model on this machine, or None: the shipped one, or that in `weights_dir`; else in
    the folder of ICON_REGISTRATION_WEIGHTS, then in the cache."""
    if not card.url:
        shipped = SHIPPED / card.filename
        return shipped if shipped.is_file() else None
    if weights_dir is not None:
        folders = [Path(weights_dir).expanduser()]
    else:
        placed = os.environ.get(WEIGHTS_VARIABLE)
        folders = [*([Path(placed).expanduser()] if placed else []), cache_folder()]
    return next((path for path in (folder / card.filename for folder in folders) if path.is_file()), None)


def fetch_weights(card: ModelCard, weights_dir: str | Path | None = None, progress: ByteProgress | None = None) -> Path:
    """The weights file, downloaded into `weights_dir` or the cache if it is not on this machine yet.

    Raises InputError if the model has no weights, or for what `download` raises.
    """
    path = find_weights(card, weights_dir)
    if path is None and not card.url:
        raise InputError(f"The model {card.name!r} has no weights; choose one of unigradicon, multigradicon or a file.")
    if path is None:
        path = (Path(weights_dir).expanduser() if weights_dir else cache_folder()) / card.filename
        download(card, path, progress, check=read_network)
    return path


def load_model(
    name_or_path: str | Path,
    *,
    weights_dir: str | Path | None = None,
    device="cpu",
    trainable: bool = False,
    progress: ByteProgress | None = None,
) -> tuple[GradICON | InferenceNetwork, ModelCard, str]:
    """(network in evaluation mode on `device`, its card, SHA-256 of its weights file).

    trainable: a GradICON, for fine-tuning; else what is faster to evaluate.
    Downloads the weights of a known model at first use; `progress` then receives bytes. Raises InputError for an
    unknown name, a failed download, or a file that is damaged or of another architecture.
    """
    from .inference import InferenceNetwork

    path, card, sha256 = checked_weights(name_or_path, weights_dir=weights_dir, progress=progress)
    network = read_network(path, card).to(device)
    return network if trainable else InferenceNetwork(network), card, sha256


class ModelKeeper:
    """`load_model` that keeps the last network until another model, device or file is asked for."""

    def __init__(self):
        self._key, self._loaded = None, None

    def load(self, name_or_path, *, weights_dir=None, device="cpu", trainable=False, progress=None):
        asked = str(name_or_path), weights_dir, str(device), trainable
        key = (*asked, _state_of_weights(name_or_path, weights_dir))
        if self._loaded is None or key != self._key:
            self.release()
            self._loaded = load_model(
                name_or_path, weights_dir=weights_dir, device=device, trainable=trainable, progress=progress
            )
            self._key = (*asked, _state_of_weights(name_or_path, weights_dir))  # perhaps downloaded just now
        return self._loaded

    def release(self) -> None:
        """Forget the network and give the GPU's memory back."""
        import torch

        self._key, self._loaded = None, None
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def _state_of_weights(name_or_path, weights_dir) -> tuple[int, int] | None:
    """(time of the last change in ns, bytes) of the weights file; None where it is not on this machine."""
    card = find_card(name_or_path)
    path = find_weights(card, weights_dir) if name_or_path in CARDS else Path(name_or_path).expanduser()
    if path is None:
        return None
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def checked_weights(
    name_or_path: str | Path, *, weights_dir: str | Path | None = None, progress: ByteProgress | None = None
) -> tuple[Path, ModelCard, str]:
    """(weights file, its card, its SHA-256) as `load_model` takes them, downloaded if need be; nothing is unpickled."""
    card = find_card(name_or_path)
    known = card.name in CARDS and CARDS[card.name] is card
    path = fetch_weights(card, weights_dir, progress) if known else Path(name_or_path).expanduser()
    sha256 = _sha256(path)
    _compare_with_record(path, card, sha256)
    return path, card, sha256


def read_network(path: Path, card: ModelCard) -> GradICON:
    """The network of `card` with the weights of `path`, on the CPU, in evaluation mode.

    Only tensors are unpickled (weights_only), so a file cannot run code. Raises InputError that names the first
    entry that is missing, unexpected, of another shape or not finite.
    """
    import torch

    from .unet import GradICON

    remedy = "delete it and download it again, or choose another file"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"The weights file {path} cannot be read ({error}); {remedy}.") from None
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, KeyError, ... for damaged files
        # its words are left out: for some files they advise to load without weights_only, which runs the file's code
        kind = type(error).__name__
        raise InputError(f"{path} is damaged or not a PyTorch weights file ({kind}); {remedy}.") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict of tensors; save the network's state_dict(), not the network.")
    with torch.device("meta"):  # no time spent on random weights that are replaced at once
        network = GradICON(card.input_shape, card.down_channels, card.up_channels)
    expected = network.state_dict()
    for key, tensor in expected.items():
        if key not in state:
            raise InputError(f"{path} is not of the architecture of {card.title}: {key} is missing; {remedy}.")
        if state[key].shape != tensor.shape:
            raise InputError(
                f"{path} is not of the architecture of {card.title}: {key} has shape {tuple(state[key].shape)}, not "
                f"{tuple(tensor.shape)}; {remedy}."
            )
    for key, tensor in state.items():
        if key not in expected:
            raise InputError(f"{path} is not of the architecture of {card.title}: {key} is unexpected; {remedy}.")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{path} is damaged: {key} holds values that are not finite; {remedy}.")
    network.load_state_dict({key: state[key].to(expected[key].dtype) for key in expected}, assign=True)
    return network.eval().requires_grad_(False)


def _compare_with_record(path: Path, card: ModelCard, sha256: str) -> None:
    """Raises InputError if the file is no longer the one that was downloaded, or not the one that the card names."""
    record = path.with_name(path.name + ".json")
    expected = card.sha256 or _read_json(record).get("sha256")
    if card.sha256 and not card.url and sha256 != card.sha256:
        raise InputError(
            f"{path} is not the file that its card describes (SHA-256 {sha256[:12]}..., not {card.sha256[:12]}...); "
            "install ICON Registration again."
        )
    if expected and expected != sha256:
        raise InputError(
            f"{path} has changed since it was downloaded (SHA-256 {sha256[:12]}..., not {expected[:12]}...); delete it "
            f"and {record.name} so that it is downloaded again."
        )
