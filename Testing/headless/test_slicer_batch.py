"""The command as Slicer runs it: a process that treats the script as qSlicerCoreApplication does.

What of Slicer's is imitated is what its sources say: arguments that it does not know are the script's, with or without
the "--" before them; the script runs within __main__, its folder first on the path; stdout and stderr are replaced by
objects that only write, into a buffer; Ctrl-C has its default effect; exit() takes effect in the event loop, later.
"""

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from waiting import PATIENCE

MODULE = Path(__file__).parents[2] / "IconRegistration"
SCRIPT = MODULE / "IconRegistrationLib" / "batch" / "__main__.py"
SLICER = '''
import os, signal, sys, types

class Redirected:
    """PythonQt's stdout: no isatty, no fileno, and nothing is seen before the end."""
    text = ""
    def write(self, text):
        self.text += text
    def flush(self):
        pass

class Options:
    runPythonAndExit = True

class Application:
    code = None
    def commandOptions(self):
        return Options
    def exit(self, code):
        self.code = code
    def applicationLogic(self):
        return self.logic

flags, words = sys.argv[1:].copy(), []
script, keeps = None, os.environ.get("KEEPS_DASHES") == "yes"
while flags:
    flag = flags.pop(0)
    if flag == "--python-script":
        script = flags.pop(0)
    elif flag == "--":
        words += ["--"] * keeps + flags
        flags = []
    elif flag not in ("--no-splash", "--no-main-window"):
        words.append(flag)
signal.signal(signal.SIGINT, signal.SIG_DFL)
try:
    import slicer
except ImportError:
    slicer = sys.modules["slicer"] = types.ModuleType("slicer")
app = slicer.app = Application()
if hasattr(slicer, "vtkMRMLScene"):
    slicer.mrmlScene = slicer.vtkMRMLScene()
    app.logic = slicer.vtkSlicerApplicationLogic()
    app.logic.SetMRMLScene(slicer.mrmlScene)
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode", "of the user")
    def nodes():
        return [slicer.mrmlScene.GetNthNode(n).GetID() for n in range(slicer.mrmlScene.GetNumberOfNodes())]
    before, scene = nodes(), slicer.mrmlScene
else:  # slicer.util is Slicer's own where there is one
    def leave(status):
        app.commandOptions().runPythonAndExit = False
        app.exit(status)
    slicer.util = types.SimpleNamespace(exit=leave)
if not hasattr(slicer, "util"):
    import slicer.util
out = sys.stdout, sys.stderr = Redirected(), Redirected()
sys.argv = [script, *words]
sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
space = {"__name__": "__main__", "__package__": None, "__file__": script}
exec(open(script).read(), space)
sys.__stdout__.write(out[0].text)
sys.__stderr__.write(out[1].text)
if hasattr(slicer, "vtkMRMLScene"):
    assert slicer.mrmlScene is scene and slicer.app is app
    assert nodes() == before, "the user's scene was touched"
assert Options.runPythonAndExit is False
assert app.code is not None, "Slicer would stay open"
sys.__stdout__.flush()
os._exit(app.code)
'''


@pytest.fixture(scope="module")
def a_slicer(tmp_path_factory):
    path = tmp_path_factory.mktemp("slicer") / "Slicer.py"
    path.write_text(SLICER)
    return [sys.executable, str(path), "--no-splash", "--no-main-window", "--python-script", str(SCRIPT), "--"]


@pytest.fixture
def inputs(phantom_files):
    return phantom_files


def run(words, **environment):
    """Without the package's own entry on the path: the script has to find it."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    return subprocess.run(words, capture_output=True, text=True, env=env)


def pair(inputs):
    quick = ["--align", "centre", "--steps", "2", "--spacing", "16"]
    return ["register", "--fixed", f"{inputs}/fixed.nii.gz", "--moving", f"{inputs}/moving.nii.gz", *quick]


@pytest.mark.slow
@pytest.mark.parametrize("keeps", ["yes", "no"])
def test_the_arguments_and_the_exit_code_are_the_commands(a_slicer, keeps, tmp_path):
    done = run([*a_slicer, "models", "--json", "--weights-dir", str(tmp_path)], KEEPS_DASHES=keeps)
    assert done.returncode == 0, done.stderr
    assert {entry["name"] for entry in json.loads(done.stdout)["models"]} >= {"none", "unigradicon"}
    wrong = run([*a_slicer, "register", "--fixed", "f", "--out", "o"], KEEPS_DASHES=keeps)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("icon-registration: the following arguments are required: --moving")
    assert "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_help_ends_slicer_with_0(a_slicer):
    done = run([*a_slicer, "register", "--help"])
    assert done.returncode == 0
    assert "--moving-resolution" in done.stdout


@pytest.mark.slow
def test_a_whole_run_writes_its_scene_and_leaves_the_users_alone(a_slicer, inputs, tmp_path):
    pytest.importorskip("slicer", reason="needs slicer-core")
    done = run([*a_slicer, *pair(inputs), "--no-pictures", "--out", str(tmp_path / "out")])
    assert done.returncode == 0, done.stderr
    assert "refinement" in done.stderr
    assert "Open this" in done.stdout
    with zipfile.ZipFile(tmp_path / "out" / "scene.mrb") as bundle:
        (name,) = [name for name in bundle.namelist() if name.endswith(".mrml")]
        text = bundle.read(name).decode()
    assert "moving to fixed (for moving data)" in text
    assert "of the user" not in text


@pytest.mark.slow
def test_progress_is_seen_while_it_runs(a_slicer, inputs, tmp_path):
    words = [*a_slicer, *pair(inputs), "--json", "--no-scene", "--no-pictures", "--out", str(tmp_path / "out")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        first = json.loads(process.stdout.readline())
        assert "stage" in first
        assert process.poll() is None
        assert json.loads(process.stdout.read().splitlines()[-1])["result"]["folder"] == str(tmp_path / "out")
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM and SIGINT for other processes")
@pytest.mark.parametrize(("sent", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_clears_everything_away(a_slicer, inputs, tmp_path, sent, code):
    words = [*a_slicer, *pair(inputs), "--steps", "100000", "--json", "--out", str(tmp_path / "out")]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        for line in process.stdout:
            if json.loads(line)["stage"] == "refinement":
                break
        assert [path.name.startswith(".out.partial") for path in tmp_path.iterdir()] == [True]
        process.send_signal(getattr(signal, sent))
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert "nothing was changed" in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_missing_package_is_named_with_its_remedy(a_slicer, inputs, tmp_path):
    (tmp_path / "SimpleITK.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'SimpleITK'\", name='SimpleITK')"
    )
    done = run([*a_slicer, *pair(inputs), "--out", str(tmp_path / "out")], PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "The package SimpleITK is not installed; press Apply in Slicer's module once" in done.stderr


@pytest.mark.slow
def test_python_slicer_runs_it_as_a_module_and_as_a_file():
    for words in (["-m", "IconRegistrationLib.batch"], [str(SCRIPT)]):
        done = run([sys.executable, *words, "--version"])
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(".") == 2
    assert run([sys.executable, "-m", "IconRegistrationLib.batch", "warp"]).returncode == 2


def test_mrml_without_slicers_modules_is_no_scene(monkeypatch):
    """PythonSlicer imports Slicer's package; the modules' logics are in the application only."""
    import types

    from IconRegistrationLib.errors import InputError
    from IconRegistrationLib.mrml import embedded

    monkeypatch.setattr(embedded, "_own", None)
    monkeypatch.setitem(sys.modules, "slicer", types.SimpleNamespace(vtkMRMLScene=object))
    with pytest.raises(InputError, match="run the command in Slicer itself"):
        embedded.private_scene()
