"""How threads wait: chosen for a busy machine, and never against the user's choice."""

import os
import subprocess
import sys

import pytest

from IconRegistrationLib.machine import WAITING, process_is_alive, wait_briefly


def test_waiting_is_chosen_where_nobody_did():
    environment = {"PATH": "/bin"}
    wait_briefly(environment)
    assert environment == {"PATH": "/bin", **WAITING}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", *WAITING])
def test_the_users_choice_stays(name):
    environment = {name: "whatever"}
    wait_briefly(environment)
    assert environment == {name: "whatever"}


def test_the_command_chooses_before_torch_is_loaded(tmp_path):
    """In a process of its own, where nothing is loaded yet."""
    code = (
        "import os, sys\n"
        "from IconRegistrationLib.batch.command import main\n"
        "assert main(['models']) == 0\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ['GOMP_SPINCOUNT'])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", *WAITING)}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600)
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines()[-1] == WAITING["GOMP_SPINCOUNT"]


def test_a_process_is_alive_until_it_has_ended():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert process_is_alive(child.pid)
        child.stdin.close()
        child.wait(timeout=600)
    assert not process_is_alive(child.pid)
    assert not process_is_alive(2**70), "no system has such a number"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows is not asked by signals")
def test_a_process_of_another_user_is_alive(monkeypatch):
    def refuse(pid, signal):
        assert (pid, signal) == (1234, 0)
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert process_is_alive(1234)
