"""Which networks there are, where their weights come from, and how they are checked before they are used.

The module is imported when Slicer starts, and by a worker that tells which packages are missing: none at its top.
"""

from __future__ import annotations

import gc
import http.client
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import InputError

if TYPE_CHECKING:
    from .network import GradICON, InferenceNetwork

#: Called with (bytes done, bytes in total); may raise Cancelled.
ByteProgress = Callable[[int, int], None]

#: Weights that come with the code, each beside its card: in Slicer and in a checkout beside the module, where pip
#: installed it within the package.
_PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = next(
    (folder for folder in (_PACKAGE.parent / "Resources" / "Models", _PACKAGE / "Models") if folder.is_dir()),
    _PACKAGE / "Models",
)
#: Environment variable: a folder with weights that were placed there by hand, for machines without a network.
WEIGHTS_VARIABLE = "ICON_REGISTRATION_WEIGHTS"
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30
#: A connection that breaks is taken up again this often, as long as each attempt brought something.
_ATTEMPTS = 5


@dataclass(frozen=True)
class ModelCard:
    """What a user should know about a model, and what the code needs to load it.

    input_shape: (D, H, W) of the lattice it was trained on.
    down_channels, up_channels: see `network.UNet`.
    alignment: linear alignment that the network expects before it (`align.ALIGNMENTS`), "none" for box on box.
    training, limits, results: of what and for how long it learned, what it cannot do, what was measured.
    url: where the weights are downloaded from; empty where they are shipped, or there are none.
    size: bytes of the weights file, to within two per cent; 0 where unknown.
    sha256: of the weights file; None where the publisher states none. Then the first download is remembered.
    """

    name: str
    title: str
    description: str
    modalities: tuple[str, ...] = ()
    preprocessing: str = ""
    licence: str = ""
    citation: str = ""
    input_shape: tuple[int, int, int] = (175, 175, 175)
    down_channels: tuple[int, ...] = (2, 16, 32, 64, 256, 512)
    up_channels: tuple[int, ...] = (16, 32, 64, 128, 256)
    alignment: str = "none"
    training: str = ""
    limits: str = ""
    results: str = ""
    url: str = ""
    size: int = 0
    sha256: str | None = None

    @property
    def filename(self) -> str:
        """What the weights are called on disk (the publishers call all of theirs Step_2_final.trch)."""
        return f"{self.name}.trch"


_PREPROCESSING = "CT: -1000..1000 HU, MR: minimum .. 99th percentile, scaled to 0..1; resized to 175 x 175 x 175"
_LICENCE = "Apache-2.0 (LICENSE of uncbiag/uniGradICON, code and weights); for research, not a medical device"
_RELEASES = "https://github.com/uncbiag/uniGradICON/releases/download"


def read_card(path: str | Path) -> ModelCard:
    """The card in a JSON file beside weights, as Training/train.py exports it."""
    values = json.loads(Path(path).read_text(encoding="utf-8"))["card"]
    return ModelCard(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


CARDS: dict[str, ModelCard] = {
    card.name: card
    for card in (
        ModelCard(
            name="none",
            title="No network",
            description="Optimises the deformation of the pair itself. Needs no weights and no download.",
            modalities=("ct", "mri"),
            alignment="affine",
        ),
        *map(read_card, sorted(SHIPPED.glob("*.json"))),
        ModelCard(
            name="unigradicon",
            title="uniGradICON",
            description="Foundation model for pairs of one modality: lung, knee, brain and abdomen, CT and MR.",
            modalities=("ct", "mri"),
            preprocessing=_PREPROCESSING,
            licence=_LICENCE,
            citation="Tian et al.: uniGradICON: A Foundation Model for Medical Image Registration. MICCAI 2024.",
            url=f"{_RELEASES}/unigradicon_weights/Step_2_final.trch",
            size=283_000_000,
        ),
        ModelCard(
            name="multigradicon",
            title="multiGradICON",
            description="The same network trained on pairs of different modalities as well: CT to MR, T1 to T2.",
            modalities=("ct", "mri"),
            preprocessing=_PREPROCESSING,
            licence=_LICENCE,
            citation="Demir et al.: multiGradICON: A Foundation Model for Multimodal Medical Image Registration. "
            "WBIR 2024.",
            url=f"{_RELEASES}/multigradicon_weights/Step_2_final.trch",
            size=283_000_000,
        ),
    )
}


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
        download(card, path, progress)
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
    from .network import InferenceNetwork

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

    from .network import GradICON

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


def download(card: ModelCard, target: Path, progress: ByteProgress | None = None) -> None:
    """The weights of `card` as the file `target`, which appears only once it is complete and checked.

    An interrupted download stays beside it as `<target>.part` and is continued by the next call if the server still
    has the same file (HTTP Range with If-Range). The SHA-256 is written to `<target>.json`. Raises InputError
    without a network, for a full or read-only disk, and for a file that is not what the card says.
    """
    part = target.with_name(target.name + ".part")
    _require_https(card.url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(_ATTEMPTS):
            before = _size(part)
            try:
                _download_rest(card, target, part, progress)
                break
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                broken = not isinstance(error, urllib.error.HTTPError) and _size(part) > before
                if not broken or attempt == _ATTEMPTS - 1:
                    raise _no_download(card, target, getattr(error, "reason", None) or error) from None
        if card.size and abs(_size(part) - card.size) > 0.02 * card.size:
            size = _size(part)
            _forget(part)
            raise InputError(
                f"{card.url} delivered {size} bytes where about {card.size} were expected; download it in a browser "
                f"and save it as {target}."
            )
        sha256 = _sha256(part)
        try:
            if card.sha256 and sha256 != card.sha256:
                raise InputError(f"{card.url} delivered a file with another SHA-256 ({sha256}); try again later.")
            read_network(part, card)
        except InputError:
            _forget(part)
            raise
        record = {"url": card.url, "size": _size(part), "sha256": sha256}
        target.with_name(target.name + ".json").write_text(json.dumps(record, indent=1))
        os.replace(part, target)
        _forget(part)
    except OSError as error:
        raise InputError(
            f"The weights of {card.title} cannot be written to {target.parent} ({error.strerror or error}); free about "
            f"{card.size / 1e6:.0f} MB there or choose another weights folder."
        ) from None


def _download_rest(card: ModelCard, target: Path, part: Path, progress: ByteProgress | None) -> None:
    """One connection: appends to `part` what is missing of it, or starts anew where the server cannot continue."""
    request = urllib.request.Request(card.url, headers={"User-Agent": "icon-registration"})
    validator = _read_json(_validator_file(part)).get(card.url)
    if _size(part) and validator:
        request.add_header("Range", f"bytes={_size(part)}-")
        request.add_header("If-Range", validator)
    try:
        response = urllib.request.build_opener(_SecureRedirects).open(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # asked for what lies beyond the end: `part` is complete, or of another file
            raise
        if error.headers.get("Content-Range") == f"bytes */{_size(part)}":
            return
        _forget(part)
        return _download_rest(card, target, part, progress)
    with response:
        start = _size(part)
        continues = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if response.status == 206 and not continues:
            _forget(part)
            raise http.client.HTTPException(f"the server sent {response.headers.get('Content-Range')}")
        done = start if continues else 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else card.size
        # A weak ETag does not promise equal bytes.
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if tag.startswith("W/"):
            tag = ""
        with open(part, "ab" if continues else "wb") as file:
            _validator_file(part).write_text(json.dumps({card.url: tag}))
            while chunk := _read(response):
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
        if length and done < total:
            raise ConnectionError(f"the connection broke after {done} of {total} bytes")


def _read(response) -> bytes:
    """The next piece, what there is of it if the connection breaks, b"" at the end."""
    try:
        return response.read(_CHUNK)
    except http.client.IncompleteRead as error:
        return error.partial


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects (a release lies on another host) but never from HTTPS to plain HTTP."""

    def redirect_request(self, request, file, code, message, headers, url):
        _require_https(url)
        return super().redirect_request(request, file, code, message, headers, url)


def _require_https(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")):
        raise InputError(f"Weights are downloaded over HTTPS only, not from {url}.")


def _no_download(card: ModelCard, target: Path, reason) -> InputError:
    return InputError(
        f"The weights of {card.title} could not be downloaded ({reason}); try again, or fetch {card.url} in a browser, "
        f"rename it to {target.name} and put it into {target.parent} or into the folder that {WEIGHTS_VARIABLE} names."
    )


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


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _forget(part: Path) -> None:
    for path in (part, _validator_file(part)):
        path.unlink(missing_ok=True)


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    from .files import sha256_of

    try:
        return sha256_of([path])
    except OSError as error:
        raise InputError(f"The weights file {path} cannot be read ({error.strerror or error}).") from None
