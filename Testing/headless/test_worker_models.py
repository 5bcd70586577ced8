"""The worker and what it holds: a cheaper plan after memory ran out, kept networks, downloads."""

import dataclasses
import time
import weakref

import numpy as np
import pytest
import torch
from test_catalog import Publisher
from test_exchange import some_results
from worker_parent import a_request_folder, a_thread, left_in

from IconRegistrationLib.errors import DeviceMemoryError
from IconRegistrationLib.networks import catalog
from IconRegistrationLib.networks.unet import GradICON
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.text import Sentence, plain_sentence, tr
from IconRegistrationLib.worker import exchange
from IconRegistrationLib.worker import serve as worker

DOWNLOAD = plain_sentence(Sentence("download", context="worker.serve"))
QUICK = {"spacing": 12.0, "align": "centre", "steps": 5, "device": "cpu"}


@pytest.fixture
def a_folder(tmp_path):
    return a_request_folder(tmp_path)


class Field:
    """Something large: a plain object, so that a weak reference tells whether it is still held."""


def test_after_out_of_memory_a_cheaper_plan_is_tried_once(a_folder, monkeypatch):
    tried, held = [], []
    note = tr("There was not enough memory for {model}; the field is refined instead.", model="unigradicon")

    def stand_in(inputs, settings, progress, load):
        tried.append(settings)
        load("unigradicon")
        if len(tried) == 2:
            assert held[0]() is None, "what filled the memory is still there"
            return some_results()
        large = Field()
        held.append(weakref.ref(large))
        raise DeviceMemoryError("cuda:0 ran out of memory; choose cpu.")

    loaded = []
    cheaper = Settings(steps=9)
    monkeypatch.setattr(catalog, "load_model", lambda *arguments, **options: loaded.append(arguments) or "network")
    monkeypatch.setattr(worker, "_cheaper", lambda settings: (cheaper, note) if settings == Settings(steps=7) else None)
    with a_thread(compute=stand_in) as parent:
        parent.send(id=1, request="register", folder=str(a_folder), settings={"steps": 7})
        messages = parent.until("result", 1)
    assert tried == [Settings(steps=7), cheaper]
    assert {"id": 1, "note": plain_sentence(note)} in messages
    assert messages[-1]["result"] == {"notes": [plain_sentence(note)]}
    assert len(loaded) == 2, "the network, too, made room"


@pytest.mark.parametrize("plans", [[None], [(Settings(steps=9), "Less."), None]], ids=["no plan", "in vain"])
def test_out_of_memory_at_the_end_of_the_plans(a_folder, monkeypatch, plans):
    tried = []

    def stand_in(inputs, settings, **options):
        tried.append(settings)
        raise DeviceMemoryError(f"out of memory with {settings.steps} steps; choose cpu.")

    monkeypatch.setattr(worker, "_cheaper", lambda settings: plans[len(tried) - 1])
    with a_thread(compute=stand_in) as parent:
        parent.send(id=1, request="register", folder=str(a_folder), settings={"steps": 7})
        failed = parent.failure(1)
    last = 7 if len(plans) == 1 else 9
    assert failed == {"kind": "memory", "message": f"out of memory with {last} steps; choose cpu.", "details": ""}
    assert len(tried) == len(plans)
    assert left_in(a_folder) == ["inputs"]


SHAPE = (64, 72, 80)  # the published cascade of five halvings needs 65 and more; this one has three


@pytest.fixture
def a_small_model(tmp_path, monkeypatch):
    """unigradicon, but small and with random weights that lie in a folder; (folder, names of what was loaded)."""
    card = dataclasses.replace(
        catalog.shipped_cards()["unigradicon"],
        input_shape=SHAPE,
        down_channels=(2, 4, 8, 16),
        up_channels=(4, 4, 8),
        size=0,
    )
    torch.manual_seed(0)
    network = GradICON(SHAPE, down=card.down_channels, up=card.up_channels)
    for unet in network.unets:
        torch.nn.init.normal_(unet.lastConv.weight, std=0.02)
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.save(network.state_dict(), folder / card.filename)
    monkeypatch.setitem(catalog.shipped_cards(), "unigradicon", card)
    loaded = []

    def counted(name, load=catalog.load_model, **options):
        loaded.append(name)
        return load(name, **options)

    monkeypatch.setattr(catalog, "load_model", counted)
    return folder, loaded


@pytest.mark.slow
def test_weights_stay_loaded_until_released_or_changed(a_folder, a_small_model):
    weights, loaded = a_small_model
    settings = {"model": "unigradicon", "weights_dir": str(weights), "device": "cpu"}
    with a_thread() as parent:
        number = 0

        def run():
            nonlocal number
            number += 1
            parent.send(id=number, request="register", folder=str(a_folder), settings=settings)
            assert "result" in parent.until("result", number)[-1]
            return exchange.read_results(a_folder / "results").registration.forward.displacement

        first, second = run(), run()
        assert loaded == ["unigradicon"]
        np.testing.assert_array_equal(first, second)
        parent.send(id=99, request="release")
        parent.until("result", 99)
        np.testing.assert_array_equal(run(), first)
        assert len(loaded) == 2
        file = weights / "unigradicon.trch"
        state = torch.load(file)
        torch.save({key: value * 0 for key, value in state.items()}, file)
        changed = run()
        assert len(loaded) == 3
        assert np.abs(changed - first).max() > 1


def test_downloads_report_bytes_and_fill_the_folder(tmp_path, a_small_model, monkeypatch):
    weights, _ = a_small_model
    content = (weights / "unigradicon.trch").read_bytes()
    publisher = Publisher(content)
    card = dataclasses.replace(catalog.shipped_cards()["unigradicon"], url=publisher.url)
    monkeypatch.setitem(catalog.shipped_cards(), "unigradicon", card)
    with a_thread() as parent:
        parent.send(id=1, request="download", model="unigradicon", weights_dir=str(tmp_path / "there"))
        messages = parent.until("result", 1)
    publisher.shutdown()
    assert messages[0]["progress"] == {"stage": DOWNLOAD, "fraction": 0.0}
    assert messages[-1]["result"]["path"] == str(tmp_path / "there" / "unigradicon.trch")
    assert (tmp_path / "there" / "unigradicon.trch").read_bytes() == content


def test_a_download_can_be_cancelled(monkeypatch):
    sizes = iter(range(1, 10**9))

    def endless(card, weights_dir, progress):
        while True:
            progress(next(sizes), 10**9)
            time.sleep(0.001)

    monkeypatch.setattr(catalog, "fetch_weights", endless)
    with a_thread() as parent:
        parent.send(id=1, request="download", model="unigradicon", weights_dir=None)
        parent.read()
        progress = parent.read()["progress"]
        assert progress == {"stage": DOWNLOAD, "fraction": 0.0, "done": progress["done"], "total": 10**9}
        assert progress["done"] > 0
        parent.send(id=1, request="cancel")
        assert parent.failure(1)["kind"] == "cancelled"
