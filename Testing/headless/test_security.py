"""What a file, a server or another user of the computer could try: code in weights, a false server, a look around."""

import ast
import contextlib
import http.server
import io
import json
import os
import pickle
import socket
import ssl
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import IconRegistrationLib
from IconRegistrationLib.batch.command import main
from IconRegistrationLib.errors import InputError
from IconRegistrationLib.networks import catalog
from IconRegistrationLib.networks import download as downloads
from IconRegistrationLib.networks.cards import shipped_cards

#: As the catalogue downloads: what came must be a network of the card.
download = partial(downloads.download, check=catalog.read_network)

LIBRARY = Path(IconRegistrationLib.__file__).parent
MODULES = sorted(LIBRARY.rglob("*.py"))
QUICK = ["--steps", "1", "--spacing", "16", "--no-scene", "--no-pictures"]

# --------------------------------------------------------------------------------------------------- what the code says

#: Modules that run what they read, and calls that do.
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib", "cloudpickle"}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.load",
    "tempfile.mktemp",
    "ssl._create_unverified_context",
}
#: Modules that open connections, and who may import them: what downloads weights on request, and Dask's runner (the
#: name of this computer, for which `socket` serves everywhere, is no connection).
NETWORK_MODULES = {"urllib.request", "http.client", "requests", "ftplib", "smtplib", "telnetlib", "httpx", "aiohttp"}
MAY_CONNECT = {"networks/download.py", "ui/dependencies.py"}


def calls(tree: ast.AST):
    """(dotted name, call) of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def keywords(call: ast.Call) -> dict[str, str]:
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(LIBRARY).as_posix())
def test_no_module_runs_what_it_reads(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    name = path.relative_to(LIBRARY).as_posix()
    assert not imported(tree) & UNSAFE_MODULES
    assert not (imported(tree) & NETWORK_MODULES) or name in MAY_CONNECT
    for function, call in calls(tree):
        given = keywords(call)
        assert function not in UNSAFE_CALLS, ast.unparse(call)
        assert given.get("shell", "False") == "False", ast.unparse(call)
        assert given.get("allow_pickle", "False") == "False", ast.unparse(call)
        if function == "torch.load":
            assert given.get("weights_only") == "True", ast.unparse(call)
        if function == "np.load":
            assert given.get("allow_pickle") == "False", ast.unparse(call)


# -------------------------------------------------------------------------------------------------------------- weights


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


def by_torch(content, path):
    torch.save(content, path)


def by_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


def by_torch_before_zip(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.fixture(scope="module")
def a_pair(phantom_files):
    """The folder of a small phantom's files."""
    return phantom_files


def register(a_pair, out, *more):
    """Exit code, stdout and stderr of a registration."""
    images = ["--fixed", str(a_pair / "fixed.nii.gz"), "--moving", str(a_pair / "moving.nii.gz")]
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        code = main(["register", *images, "--out", str(out), *QUICK, *more])
    return code, stdout.getvalue(), stderr.getvalue()


@pytest.mark.parametrize("save", [by_torch, by_torch_before_zip, by_pickle])
@pytest.mark.parametrize("wrapped", [False, True])
def test_code_in_weights_is_refused_and_not_run(save, wrapped, a_pair, tmp_path):
    bomb = Bomb(tmp_path / "ran")
    save({"weight": torch.zeros(1), "more": bomb} if wrapped else bomb, tmp_path / "w.trch")
    code, _, stderr = register(a_pair, tmp_path / "out", "--model", str(tmp_path / "w.trch"))
    assert code == 2
    assert "w.trch is damaged or not a PyTorch weights file" in stderr.splitlines()[-1]
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
    pickle.loads(pickle.dumps(bomb))  # it does go off where it is let
    assert (tmp_path / "ran").exists()


# -------------------------------------------------------------------------------------------------------------- network


class Connected(Exception):
    """A connection was tried."""


@pytest.fixture
def no_network(monkeypatch):
    """Whoever opens a connection, or looks a name up, fails its test."""

    def refuse(*arguments, **_):
        raise Connected(arguments)

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)


def test_nothing_but_a_download_opens_a_connection(a_pair, tmp_path, no_network, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(catalog.WEIGHTS_VARIABLE, raising=False)
    assert register(a_pair, tmp_path / "out")[0] == 0
    transform = str(tmp_path / "out" / "transform.h5")
    images = ["--input", str(a_pair / "moving.nii.gz"), "--reference", str(a_pair / "fixed.nii.gz")]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as stderr:
        assert main(["warp", *images, "--transform", transform, "--out", str(tmp_path / "w.nrrd")]) == 0
        assert main(["models"]) == 0
        # and the fixture does see it where one is opened
        assert main(["models", "unigradicon", "--download", "--weights-dir", str(tmp_path / "weights")]) != 0
    assert "Connected" in stderr.getvalue() or "could not be downloaded" in stderr.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Answers with `content`, or sends on to `redirect`, over TLS with a certificate of its own if there is one."""

    def __init__(self, content=b"", redirect=None, certificate=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.redirect = content, redirect
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        pass


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.server.redirect:
            self.send_response(302)
            self.send_header("Location", self.server.redirect)
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *arguments):
        pass


def card(url, **more):
    return replace(shipped_cards()["unigradicon"], url=url, size=0, **more)


@pytest.mark.parametrize("scheme", ["http", "ftp", "file"])
def test_only_https_is_asked(scheme, tmp_path, no_network):
    with pytest.raises(InputError, match="HTTPS only"):
        download(card(f"{scheme}://example.org/w.trch"), tmp_path / "w.trch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["http://example.org/w.trch", "ftp://example.org/w", "file:///etc/passwd"])
def test_a_redirect_away_from_https_is_not_followed(target, tmp_path):
    with Server(redirect=target) as server, pytest.raises(InputError):
        download(card(f"http://127.0.0.1:{server.server_address[1]}/w.trch"), tmp_path / "w.trch")
    assert not (tmp_path / "w.trch").exists()


@pytest.fixture(scope="module")
def a_certificate(tmp_path_factory):
    """Of nobody that anybody trusts."""
    pytest.importorskip("cryptography", reason="needs cryptography")
    from distributed.security import Security

    folder = tmp_path_factory.mktemp("certificate")
    security = Security.temporary()
    (folder / "key.pem").write_text(security.tls_scheduler_key)
    (folder / "certificate.pem").write_text(security.tls_scheduler_cert)
    return folder / "certificate.pem", folder / "key.pem"


def test_a_certificate_that_nobody_signed_is_refused(a_certificate, tmp_path):
    with Server(b"weights", certificate=a_certificate) as server, pytest.raises(InputError, match=r"(?i)certificate"):
        download(card(f"https://127.0.0.1:{server.server_address[1]}/w.trch"), tmp_path / "w.trch")
    assert not (tmp_path / "w.trch").exists()


def test_another_checksum_leaves_no_file(tmp_path):
    with Server(b"other weights") as server, pytest.raises(InputError, match="SHA-256"):
        download(card(f"http://127.0.0.1:{server.server_address[1]}/w.trch", sha256="0" * 64), tmp_path / "w.trch")
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------- other people here


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
def test_what_is_not_finished_is_nobody_elses_to_read(a_pair, tmp_path, monkeypatch):
    """The folder that is written to, and the temporary ones, while they are there."""
    from IconRegistrationLib.batch import pair as one_pair

    seen = {}
    write = one_pair.write_results

    def look(folder, *given, **more):
        seen["partial"] = stat.S_IMODE(folder.stat().st_mode)
        return write(folder, *given, **more)

    monkeypatch.setattr(one_pair, "write_results", look)
    before = os.umask(0)
    try:
        assert register(a_pair, tmp_path / "out")[0] == 0
    finally:
        os.umask(before)
    assert seen["partial"] == 0o700


def test_temporary_files_are_made_by_tempfile_alone():
    """Which makes folders of mode 0700 with names that nobody can guess; no path begins with /tmp."""
    for path in MODULES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = [
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
        assert not [text for text in texts if text.startswith(("/tmp", "/var/tmp", "/dev/shm"))], path
        made = {function for function, _ in calls(tree) if function.startswith("tempfile.")}
        allowed = {"tempfile.TemporaryDirectory", "tempfile.mkdtemp", "tempfile.gettempdir", "tempfile.TemporaryFile"}
        assert made <= allowed, path


# ------------------------------------------------------------------------------------------------------------- patients

SECRETS = {
    "0010|0010": "MUSTERMANN^ERIKA",
    "0010|0020": "PATIENT-4711",
    "0010|0030": "19640812",
    "0008|0080": "KLINIKUM-XY",
    "0008|0050": "ACCESSION-0815",
    "0008|0090": "DR-REFERRER",
}


def a_dicom_series(folder: Path, seed: int) -> Path:
    sitk = pytest.importorskip("SimpleITK")
    folder.mkdir()
    array = np.random.default_rng(seed).integers(-1000, 1000, (8, 24, 24)).astype(np.int16)
    for k, plane in enumerate(array):
        piece = sitk.GetImageFromArray(plane)
        piece.SetSpacing((4.0, 4.0))
        place = {"0020|0032": f"0\\0\\{5 * k}", "0020|0037": "1\\0\\0\\0\\1\\0", "0020|0013": str(k + 1)}
        identity = {"0008|0060": "CT", "0008|0018": f"1.2.{seed}.{k}", "0020|000d": "1.2", "0020|000e": f"1.2.{seed}"}
        for key, value in (place | identity | SECRETS).items():
            piece.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{k}.dcm"))
        writer.Execute(piece)
    return folder


@pytest.mark.slow
def test_nothing_of_a_patients_header_is_said_or_written(tmp_path):
    """In no output, no log, no error; by a process of its own, in which ITK's libraries print what they like."""
    series = [a_dicom_series(tmp_path / side, seed) for seed, side in enumerate(("fixed", "moving"), 1)]
    assert b"MUSTERMANN" in (series[0] / "0.dcm").read_bytes()
    command = [sys.executable, "-m", "IconRegistrationLib.batch.command", "register"]
    command += ["--fixed", str(series[0]), "--moving", str(series[1])]
    good = subprocess.run([*command, "--out", str(tmp_path / "out"), *QUICK, "--debug"], capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    for number in (1, 5):  # one slice is cut short, one is gone
        (series[0] / f"{number}.dcm").write_bytes((series[0] / f"{number}.dcm").read_bytes()[:700])
    bad = subprocess.run([*command, "--out", str(tmp_path / "bad"), *QUICK, "--debug"], capture_output=True, text=True)
    assert bad.returncode == 2
    said = good.stdout + good.stderr + bad.stdout + bad.stderr
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    for secret in SECRETS.values():
        assert secret not in said
        assert secret.encode() not in written
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert str(tmp_path) not in json.dumps(report)  # names of folders may be names of patients
