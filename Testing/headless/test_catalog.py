"""Model cards, and weights through every accident: a local server stands for the publisher's."""

import hashlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from IconRegistrationLib.errors import Cancelled, InputError
from IconRegistrationLib.networks import catalog
from IconRegistrationLib.networks import download as downloads
from IconRegistrationLib.networks.cards import shipped_cards
from IconRegistrationLib.networks.catalog import cache_folder, fetch_weights, find_card, load_model
from IconRegistrationLib.networks.unet import GradICON

#: As the catalogue downloads: what came must be a network of the card.
download = partial(downloads.download, check=catalog.read_network)

SMALL = {"down_channels": (2, 4, 8), "up_channels": (4, 8), "input_shape": (16, 16, 16)}


def a_state_dict():
    torch.manual_seed(0)
    return GradICON(SMALL["input_shape"], SMALL["down_channels"], SMALL["up_channels"]).state_dict()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "Step_2_final.trch"
    torch.save(a_state_dict(), path)
    return path.read_bytes()


class Publisher(http.server.ThreadingHTTPServer):
    """Serves `content` at any path. break_after: bytes after which a connection is cut, one entry per request."""

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.break_after, self.ranges, self.etag = content, [], True, '"one"'
        self.redirect = None
        self.requests = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/Step_2_final.trch"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests.append(dict(self.headers))
        if server.redirect and "moved" not in self.path:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        start = 0
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(wanted[1])
        total = len(server.content)
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        end = start + server.break_after.pop(0) if server.break_after else total
        self.wfile.write(server.content[start:end])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def publisher(weights):
    server = Publisher(weights)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def a_card(publisher, monkeypatch):
    """A known model whose weights the local server has."""
    card = replace(
        shipped_cards()["unigradicon"],
        name="small",
        title="Small",
        url=publisher.url,
        size=len(publisher.content),
        **SMALL,
    )
    monkeypatch.setitem(shipped_cards(), "small", card)
    return card


@pytest.fixture(autouse=True)
def a_home(tmp_path, monkeypatch):
    """No test may touch the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.delenv(catalog.WEIGHTS_VARIABLE, raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


def test_cards_say_what_a_user_must_know():
    for name, card in shipped_cards().items():
        assert name == card.name
        assert card.title
        assert card.description
        if name == "builtin":
            assert card.training
            assert card.limits
            assert card.results
            assert not card.url  # nothing is downloaded
        elif name != "none":
            assert card.url.startswith("https://")
        if name != "none":
            assert card.licence
            assert card.citation
            assert card.preprocessing
    assert shipped_cards()["unigradicon"].down_channels == (2, 16, 32, 64, 256, 512)


def test_the_module_loads_without_torch():
    code = "import sys; import IconRegistrationLib.networks.catalog; assert not {'torch', 'itk'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_paths_and_neither(tmp_path, weights):
    own = tmp_path / "mine.trch"
    own.write_bytes(weights)
    assert find_card("multigradicon") is shipped_cards()["multigradicon"]
    assert find_card(own).title == "mine.trch"
    with pytest.raises(InputError, match=r"choose one of none, .*unigradicon"):
        find_card("unigradicno")
    with pytest.raises(InputError, match="does not exist"):
        find_card(tmp_path / "absent.trch")
    with pytest.raises(InputError, match="'none' has no weights"):
        load_model("none")


needs_shipped = pytest.mark.skipif(
    not (catalog.SHIPPED / "builtin.trch").is_file(), reason="no weights in Resources/Models; Training/ship.py exports"
)


@needs_shipped
def test_the_shipped_weights_are_those_of_their_card(tmp_path):
    card = find_card("builtin")
    path = fetch_weights(card, tmp_path)  # a folder for downloads changes nothing
    assert path == catalog.SHIPPED / "builtin.trch"
    assert path.stat().st_size == card.size <= 6e6
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card.sha256
    network, loaded, sha256 = load_model("builtin", weights_dir=tmp_path)
    assert loaded is card
    assert sha256 == card.sha256
    assert network.shape == card.input_shape
    assert list(tmp_path.iterdir()) == []


@needs_shipped
def test_shipped_weights_that_changed_are_refused(tmp_path, monkeypatch):
    (tmp_path / "builtin.trch").write_bytes((catalog.SHIPPED / "builtin.trch").read_bytes()[:-1] + b"x")
    monkeypatch.setattr(catalog, "SHIPPED", tmp_path)
    with pytest.raises(InputError, match=r"builtin\.trch is not the file that its card describes.*install"):
        load_model("builtin")


def test_a_card_beside_weights_is_theirs(tmp_path, weights):
    """So that a network which was just trained can be tried under the path of its file."""
    own = tmp_path / "mine.trch"
    own.write_bytes(weights)
    card = replace(shipped_cards()["none"], name="small", title="Mine", **SMALL)
    (tmp_path / "mine.json").write_text(json.dumps({"card": asdict(card)}))
    network, loaded, _ = load_model(own)
    assert loaded == card
    assert network.shape == SMALL["input_shape"]


def test_the_first_load_downloads_and_the_second_does_not(a_card, publisher):
    seen = []
    network, card, sha256 = load_model("small", trainable=True, progress=lambda done, total: seen.append((done, total)))
    assert card is a_card
    assert seen[-1] == (len(publisher.content),) * 2
    assert not network.training
    state = a_state_dict()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert load_model("small")[2] == sha256
    assert len(publisher.requests) == 1
    files = sorted(path.name for path in cache_folder().iterdir())
    assert files == ["small.trch", "small.trch.json"]
    assert json.loads((cache_folder() / "small.trch.json").read_text())["sha256"] == sha256


def test_a_file_that_changed_is_refused_by_name(a_card):
    load_model("small")
    path = cache_folder() / "small.trch"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(InputError, match=r"small\.trch has changed.*delete it"):
        load_model("small")


def test_a_broken_connection_is_taken_up_where_it_broke(a_card, publisher, tmp_path):
    publisher.break_after = [20_000, 7_000]
    seen = []
    download(a_card, tmp_path / "w.trch", progress=lambda done, total: seen.append(done))
    assert (tmp_path / "w.trch").read_bytes() == publisher.content
    assert [request.get("Range") for request in publisher.requests] == [None, "bytes=20000-", "bytes=27000-"]
    assert seen == sorted(seen)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.trch", "w.trch.json"]


def test_a_cancelled_download_is_continued_by_the_next_call(a_card, publisher, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_CHUNK", 4096)

    def cancel(done, total):
        if done > 10_000:
            raise Cancelled

    with pytest.raises(Cancelled):
        download(a_card, tmp_path / "w.trch", cancel)
    assert not (tmp_path / "w.trch").exists()
    download(a_card, tmp_path / "w.trch")
    assert (tmp_path / "w.trch").read_bytes() == publisher.content
    assert publisher.requests[1]["Range"].startswith("bytes=1")


@pytest.mark.parametrize("change", ["no ranges", "another file"])
def test_what_cannot_be_continued_starts_anew(a_card, publisher, tmp_path, change):
    part = tmp_path / "w.trch.part"
    part.write_bytes(b"z" * 5000)
    (tmp_path / "w.trch.part.json").write_text(json.dumps({publisher.url: '"one"'}))
    if change == "no ranges":
        publisher.ranges = False
    else:
        publisher.etag = '"two"'
    download(a_card, tmp_path / "w.trch")
    assert (tmp_path / "w.trch").read_bytes() == publisher.content


def test_a_part_of_unknown_origin_is_not_continued(a_card, publisher, tmp_path):
    (tmp_path / "w.trch.part").write_bytes(b"z" * 5000)
    download(a_card, tmp_path / "w.trch")
    assert (tmp_path / "w.trch").read_bytes() == publisher.content
    assert "Range" not in publisher.requests[0]


def test_a_part_that_is_complete_needs_no_more_bytes(a_card, publisher, tmp_path):
    (tmp_path / "w.trch.part").write_bytes(publisher.content)
    (tmp_path / "w.trch.part.json").write_text(json.dumps({publisher.url: '"one"'}))
    download(a_card, tmp_path / "w.trch")
    assert (tmp_path / "w.trch").read_bytes() == publisher.content


def test_a_file_of_another_size_or_content_never_arrives(a_card, publisher, tmp_path):
    with pytest.raises(InputError, match="bytes where about 283"):
        download(replace(a_card, size=283_000_000), tmp_path / "w.trch")
    with pytest.raises(InputError, match="another SHA-256"):
        download(replace(a_card, sha256="0" * 64), tmp_path / "w.trch")
    publisher.content = b"<html>sign in</html>" * (len(publisher.content) // 20)
    with pytest.raises(InputError, match="not a PyTorch weights file"):
        download(a_card, tmp_path / "w.trch")
    assert list(tmp_path.iterdir()) == []


def test_no_network_names_the_address_and_the_place(a_card, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    card = replace(a_card, url=f"http://127.0.0.1:{port}/w.trch")
    with pytest.raises(InputError) as error:
        download(card, tmp_path / "w.trch")
    assert card.url in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_plain_http_is_refused_also_by_redirect(a_card, publisher, tmp_path):
    with pytest.raises(InputError, match="HTTPS only"):
        download(replace(a_card, url="http://example.org/w.trch"), tmp_path / "w.trch")
    publisher.redirect = "http://example.org/w.trch"
    with pytest.raises(InputError, match="HTTPS only"):
        download(a_card, tmp_path / "w.trch")
    publisher.redirect = "/moved"
    download(a_card, tmp_path / "w.trch")


def test_a_folder_that_cannot_be_written_is_named(a_card, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match=r"cannot be written to .*file"):
        fetch_weights(a_card, tmp_path / "file")


def test_a_full_disk_is_named(a_card, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        download(a_card, tmp_path / "w.trch")


def test_placed_files_come_first(a_card, publisher, tmp_path, monkeypatch):
    placed = tmp_path / "site"
    placed.mkdir()
    (placed / "small.trch").write_bytes(publisher.content)
    monkeypatch.setenv(catalog.WEIGHTS_VARIABLE, str(placed))
    assert fetch_weights(a_card) == placed / "small.trch"
    assert publisher.requests == []
    assert fetch_weights(a_card, tmp_path / "other") == tmp_path / "other" / "small.trch"
    assert len(publisher.requests) == 1


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_the_cache_is_where_the_platform_keeps_such_files(platform, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    expected = tmp_path / "Library" / "Caches" if platform == "darwin" else tmp_path / "cache"
    assert cache_folder() == expected / "icon-registration"


class Intruder:
    """Would create a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_damaged_and_foreign_files_are_named(tmp_path):
    card = replace(shipped_cards()["unigradicon"], **SMALL)
    path = tmp_path / "w.trch"
    state = a_state_dict()
    first = next(iter(state))

    def refused(content, match):
        torch.save(content, path)
        with pytest.raises(InputError, match=match):
            catalog.read_network(path, card)

    refused({k: v for k, v in state.items() if k != first}, f"{re.escape(first)} is missing")
    refused({**state, "extra": torch.zeros(1)}, "extra is unexpected")
    refused({**state, first: state[first][:1]}, rf"{re.escape(first)} has shape \(1, ")
    refused({**state, first: state[first] * float("nan")}, f"{re.escape(first)} holds values that are not finite")
    refused([1, 2], "no state dict")
    refused({"regis_net": {"weight": torch.zeros(1)}}, "no state dict")
    refused({"a": Intruder(tmp_path / "ran")}, "damaged or not a PyTorch weights file")
    assert not (tmp_path / "ran").exists()
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(InputError, match="damaged"):
        catalog.read_network(path, card)


def test_a_file_of_the_publishers_format_loads(tmp_path, monkeypatch):
    """Saved as unigradicon saves it, from icon_registration's own modules; the same network comes back."""
    unigradicon = pytest.importorskip("unigradicon")
    published = unigradicon.make_network([1, 1, 65, 65, 65], include_last_step=True)
    path = tmp_path / "Step_2_final.trch"
    torch.save(published.regis_net.state_dict(), path)
    assert abs(path.stat().st_size - shipped_cards()["unigradicon"].size) < 0.02 * shipped_cards()["unigradicon"].size
    network, card, _ = load_model(path, trainable=True)
    assert card.title == "Step_2_final.trch"
    state = published.regis_net.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
