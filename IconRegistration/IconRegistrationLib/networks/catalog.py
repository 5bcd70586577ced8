"""Find model cards and weights, download, check and load them.

The module is imported when Slicer starts, and by a worker that tells which packages are missing: none at its top.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..text import tr
from .cards import SHIPPED, WEIGHTS_VARIABLE, ModelCard, in_order, read_card, shipped_cards
from .download import ByteProgress, download, read_json, sha256_of_weights

if TYPE_CHECKING:
    import torch

    from .inference import InferenceNetwork
    from .unet import GradICON


def find_card(name_or_path: str | Path, weights_dir: str | Path | None = None) -> ModelCard:
    """Find the card of a known name or beside a weights file, or make one for a file of uniGradICON's architecture.

    Parameters
    ----------
    name_or_path : str or Path
        As in `Settings.model`.
    weights_dir : str or Path, optional
        Folder of weights, whose cards are known too.

    Raises
    ------
    InputError
        Listing the names, naming the file that is missing, or saying what is wrong with the card of that name.
    """
    name = str(name_or_path)
    card = known_card(name, weights_dir)
    if card is not None:
        return card
    path = Path(name_or_path).expanduser()
    if os.path.isfile(path):  # Path.is_file raises where a name is too long
        if "card" in read_json(path.with_suffix(".json")):
            return read_card(path.with_suffix(".json"))
        return replace(
            shipped_cards()["unigradicon"],
            name=path.stem,
            one_modality=False,
            title=path.name,
            description="Weights of your own, of the architecture of uniGradICON.",
            licence="",
            url="",
            size=0,
        )
    names = ", ".join(known_cards(weights_dir))
    if path.suffix or len(path.parts) > 1:
        raise InputError(
            tr("The weights file {path} does not exist; choose {names} or an existing file.", path=path, names=names)
        )
    for folder in weights_folders(weights_dir):
        if (folder / f"{name}.json").is_file():
            read_card(folder / f"{name}.json")  # says what is wrong with it
    raise InputError(
        tr(
            "No model is called {name}; choose one of {names} or the path of a weights file.",
            name=repr(name),
            names=names,
        )
    )


def known_card(name: str, weights_dir: str | Path | None = None) -> ModelCard | None:
    """Return the card of a name, None where no card has it."""
    return shipped_cards().get(name) or _cards_of_the_user(weights_dir).get(name)


def known_cards(weights_dir: str | Path | None = None) -> dict[str, ModelCard]:
    """Return the cards that ship and those in the folders of weights, by name, in their order.

    A card of the user's that cannot be used is logged and left out, and so is one that has the name of a shipped one:
    a damaged file keeps no panel from opening. `find_card` says what is wrong with it.
    """
    return in_order({**_cards_of_the_user(weights_dir), **shipped_cards()}.values())


def _cards_of_the_user(weights_dir: str | Path | None) -> dict[str, ModelCard]:
    cards: dict[str, ModelCard] = {}
    for folder in weights_folders(weights_dir):
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
            if path.name.endswith((".trch.json", ".part.json")):  # records of downloads
                continue
            card = _card_of_the_user(path, *_state(path))
            if card is not None:
                cards.setdefault(card.name, card)
    return cards


@lru_cache(maxsize=256)  # requested at every key press in the panel
def _card_of_the_user(path: Path, changed: int, size: int) -> ModelCard | None:
    try:
        card = read_card(path)
    except InputError as error:
        logging.warning("%s", error)
        return None
    if card.name in shipped_cards():
        logging.warning("The model card %s is ignored: %r is the name of a model that ships.", path, card.name)
        return None
    return card


def cache_folder() -> Path:
    """Return where downloaded weights are kept for this user; the folder that the platform has for such files."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "icon-registration"


def weights_folders(weights_dir: str | Path | None = None) -> list[Path]:
    """Return the folders in which weights and cards are looked for: `weights_dir` alone where it is given.

    Else that of ICON_REGISTRATION_WEIGHTS, then the cache.
    """
    if weights_dir is not None:
        return [Path(weights_dir).expanduser()]
    placed = os.environ.get(WEIGHTS_VARIABLE)
    return [*([Path(placed).expanduser()] if placed else []), cache_folder()]


def find_weights(card: ModelCard, weights_dir: str | Path | None = None) -> Path | None:
    """Return the weights file of a known model on this machine: the shipped one, or that in `weights_folders`."""
    folders = weights_folders(weights_dir) if card.url else [SHIPPED, *weights_folders(weights_dir)]
    return next((path for path in (folder / card.filename for folder in folders) if path.is_file()), None)


def fetch_weights(card: ModelCard, weights_dir: str | Path | None = None, progress: ByteProgress | None = None) -> Path:
    """Return the weights file, downloaded into `weights_dir` or the cache if it is not on this machine yet.

    Raises InputError if the model has no weights, or for what `download` raises.
    """
    path = find_weights(card, weights_dir)
    if path is None and not card.url:
        if card.name == "none":
            names = ", ".join(name for name, known in known_cards(weights_dir).items() if known.url)
            raise InputError(
                tr(
                    "The model {name} has no weights; choose one of {names} or a file.",
                    name=repr(card.name),
                    names=names,
                )
            )
        folder = weights_folders(weights_dir)[0]
        raise InputError(
            tr(
                "The weights of {model} are missing; put {name} into {folder}.",
                model=card.title,
                name=card.filename,
                folder=folder,
            )
        )
    if path is None:
        path = (Path(weights_dir).expanduser() if weights_dir else cache_folder()) / card.filename
        download(card, path, progress, check=read_network)
    return path


def load_model(
    name_or_path: str | Path,
    *,
    weights_dir: str | Path | None = None,
    device: str | torch.device = "cpu",
    trainable: bool = False,
    progress: ByteProgress | None = None,
) -> tuple[GradICON | InferenceNetwork, ModelCard, str]:
    """Load a network; the weights of a known model are downloaded at first use.

    Parameters
    ----------
    name_or_path, weights_dir
        As in `Settings`.
    device : str or torch.device
        Where the network's tensors go.
    trainable : bool
        Whether it is a GradICON, for fine-tuning; else what is faster to evaluate.
    progress : callable, optional
        Called with the bytes downloaded and their total.

    Returns
    -------
    network : GradICON or InferenceNetwork
        In evaluation mode.
    card : ModelCard
    sha256 : str
        Of the weights file.

    Raises
    ------
    InputError
        For an unknown name, a failed download, or a file that is damaged or of another architecture.
    """
    from .inference import InferenceNetwork

    path, card, sha256 = checked_weights(name_or_path, weights_dir=weights_dir, progress=progress)
    network = read_network(path, card).to(device)
    return network if trainable else InferenceNetwork(network), card, sha256


class ModelKeeper:
    """`load_model` that keeps the last network until another model, device or file is asked for."""

    def __init__(self) -> None:
        self._key: tuple | None = None
        self._loaded: tuple[GradICON | InferenceNetwork, ModelCard, str] | None = None

    def load(
        self,
        name_or_path: str | Path,
        *,
        weights_dir: str | Path | None = None,
        device: str | torch.device = "cpu",
        trainable: bool = False,
        progress: ByteProgress | None = None,
    ) -> tuple[GradICON | InferenceNetwork, ModelCard, str]:
        """Return what `load_model` returns, the kept one where nothing has changed."""
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


def _state_of_weights(name_or_path: str | Path, weights_dir: str | Path | None) -> tuple[int, int] | None:
    """Return `_state` of the weights file; None where it is not on this machine."""
    card = known_card(str(name_or_path), weights_dir)
    if card is None:
        find_card(name_or_path, weights_dir)  # raises where there is no such file
    path = find_weights(card, weights_dir) if card else Path(name_or_path).expanduser()
    return None if path is None else _state(path)


def _state(path: Path) -> tuple[int, int]:
    """Return the time of the last change in ns, and the bytes, of a file."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def checked_weights(
    name_or_path: str | Path, *, weights_dir: str | Path | None = None, progress: ByteProgress | None = None
) -> tuple[Path, ModelCard, str]:
    """Return weights file, card and SHA-256 as `load_model` takes them, downloaded if need be; nothing is unpickled."""
    card = find_card(name_or_path, weights_dir)
    known = known_card(str(name_or_path), weights_dir) is not None
    path = fetch_weights(card, weights_dir, progress) if known else Path(name_or_path).expanduser()
    sha256 = sha256_of_weights(path)
    _compare_with_record(path, card, sha256)
    return path, card, sha256


def read_network(path: Path, card: ModelCard) -> GradICON:
    """Read the network of `card` with the weights of `path`, on the CPU, in evaluation mode.

    Only tensors are unpickled (weights_only), so a file cannot run code. Raises InputError that names the first
    entry that is missing, unexpected, of another shape or not finite.
    """
    import torch

    from .unet import GradICON

    remedy = tr("delete it and download it again, or choose another file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(
            tr(
                "The weights file {path} cannot be read ({reason}); {remedy}.",
                path=path,
                reason=str(error),
                remedy=remedy,
            )
        ) from None
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, KeyError, ... for damaged files
        # its words are left out: for some files they advise to load without weights_only, which runs the file's code
        raise InputError(
            tr(
                "{path} is damaged or not a PyTorch weights file ({kind}); {remedy}.",
                path=path,
                kind=type(error).__name__,
                remedy=remedy,
            )
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(
            tr("{path} holds no state dict of tensors; save the network's state_dict(), not the network.", path=path)
        )
    with torch.device("meta"):  # no time spent on random weights that are replaced at once
        network = GradICON(card.input_shape, card.down_channels, card.up_channels)
    expected = network.state_dict()
    for key, tensor in expected.items():
        if key not in state:
            raise _other_architecture(path, card, tr("{key} is missing", key=key), remedy)
        if state[key].shape != tensor.shape:
            found, needed = str(tuple(state[key].shape)), str(tuple(tensor.shape))
            problem = tr("{key} has shape {found}, not {needed}", key=key, found=found, needed=needed)
            raise _other_architecture(path, card, problem, remedy)
    for key, tensor in state.items():
        if key not in expected:
            raise _other_architecture(path, card, tr("{key} is unexpected", key=key), remedy)
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(
                tr(
                    "{path} is damaged: {key} holds values that are not finite; {remedy}.",
                    path=path,
                    key=key,
                    remedy=remedy,
                )
            )
    network.load_state_dict({key: state[key].to(expected[key].dtype) for key in expected}, assign=True)
    return network.eval().requires_grad_(False)


def _other_architecture(path: Path, card: ModelCard, problem: str, remedy: str) -> InputError:
    return InputError(
        tr(
            "{path} is not of the architecture of {model}: {problem}; {remedy}.",
            path=path,
            model=card.title,
            problem=problem,
            remedy=remedy,
        )
    )


def _compare_with_record(path: Path, card: ModelCard, sha256: str) -> None:
    """Raise InputError if the file is no longer the one that was downloaded, or not the one that the card names."""
    record = path.with_name(path.name + ".json")
    expected = card.sha256 or read_json(record).get("sha256")
    if not expected or expected == sha256:
        return
    values = {"path": path, "found": sha256[:12], "expected": expected[:12], "record": record.name}
    if card.sha256 and not card.url:
        if path.parent == SHIPPED:
            remedy = tr("install ICON Registration again")
        else:
            remedy = tr("put the right file there, or correct the card")
        raise InputError(
            tr(
                "{path} is not the file that its card describes (SHA-256 {found}..., not {expected}...); {remedy}.",
                **values,
                remedy=remedy,
            )
        )
    raise InputError(
        tr(
            "{path} has changed since it was downloaded (SHA-256 {found}..., not {expected}...); delete it and "
            "{record} so that it is downloaded again.",
            **values,
        )
    )
