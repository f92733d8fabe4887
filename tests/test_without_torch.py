"""A device without PyTorch: what runs without it, and what says that it needs it."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent

# What a device's process has no business with, whatever is installed beside it.
HEAVY = (
    "torch",
    "ray",
    "pandas",
    "pyarrow",
    "scipy",
    "sklearn",
    "matplotlib",
    "wandb",
    "jinja2",
    "omegaconf",
)

KEPT_AWAY = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

sys.meta_path.insert(0, Without())
"""


def without(code: str, *names: str) -> str:
    """Runs code in a process that cannot import these; returns what it prints."""
    whole = KEPT_AWAY.format(names=names or ("torch",)) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", whole], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ASKING = """
from flwr.app import Context, Message, MessageType, RecordDict
from clients.client_app import app
from fedhp.data.normalisation import Normalisation
from fedhp.federation import wire
from fedhp.scenario.schema import Scenario
from fedhp.model.options import ModelConfig
from fedhp.simulation.identity import RUN_ID, acting_as

def brief(**model):
    scenario = Scenario(model=ModelConfig(**model))
    return wire.Brief(scenario.to_json(), (1, 8, 8), 10, Normalisation((0.3,), (0.4,)), (), True)

def ask(content, kind):
    with acting_as(0):
        message = Message(content, 7, kind)
    with acting_as(7):
        return app(message, Context(RUN_ID, 7, {{"data-path": {path!r}}}, RecordDict(), {{}}))
"""


@pytest.fixture
def asking(tmp_path):
    """Code that asks a device with 30 samples of its own."""
    file = tmp_path / "mine.npz"
    images = np.random.default_rng(0).integers(0, 17, (30, 8, 8)).astype(np.uint8)
    np.savez(file, x_train=images, y_train=np.arange(30) % 10)
    return ASKING.format(path=str(file))


def test_a_device_says_who_it_is_and_imports_nothing_heavy_for_it(asking):
    told = without(
        f"""
{asking}
profile, _ = wire.unpack_profile(ask(wire.pack_query(brief()), MessageType.QUERY).content)
print(profile.num_examples, [name for name in {HEAVY!r} if name in sys.modules])
""",
        "none",
    )
    assert told == "30 []\n"


def test_a_device_without_pytorch_says_who_it_is_and_declines_a_network_that_needs_it(asking):
    told = without(f"""
{asking}
profile, _ = wire.unpack_profile(ask(wire.pack_query(brief()), MessageType.QUERY).content)
print(profile.num_examples)
for model in ({{"name": "vgg11"}}, {{"name": "resnet20"}}, {{"name": "spiking_mlp"}}):
    print(ask(wire.pack_query(brief(**model)), MessageType.TRAIN).error.reason)
""")
    needs = "needs PyTorch: pip install 'fedhp[torch]'"
    wanted = [
        f"client: NeedsTorchError: model '{name}' {needs}" for name in ("vgg11", "resnet20", "spiking_mlp")
    ]
    assert told.splitlines() == ["30", *wanted]


def test_a_device_without_pytorch_trains_what_it_is_sent():
    """As CI does on every operating system, where PyTorch is not installed; the script checks it."""
    script = str(Path(__file__).with_name("device_alone.py"))
    without(f"""
import runpy
sys.path.insert(0, "")
runpy.run_path({script!r}, run_name="__main__")
""")


COMMANDS = (
    "run simulation.num_workers=0",
    "run",
    "train",
    "compare quickstart",
    "bench step",
    "bench round",
    "reproduce criteria",
    "strategies",
)

CHECKED = {
    "model.name=cnn": "the model cnn 16-32-128",
    "model.name=vgg11": "model 'vgg11'",
    "train.optimizer=adam": "train.optimizer = adam",
    "train.device=cuda": "train.device = cuda",
}


def test_what_needs_pytorch_says_so_in_one_line(tmp_path):
    told = without(f"""
import os
from typer.testing import CliRunner
from fedhp.cli import app
os.chdir({str(tmp_path)!r})
print(CliRunner().invoke(app, ["--help"]).exit_code)
print("NumPy" in CliRunner().invoke(app, ["device", "check"]).output)
for other in {CHECKED!r}:
    print(CliRunner().invoke(app, ["device", "check", "quickstart", other]).output, end="")
print("no such folder" in CliRunner().invoke(app, ["resume", "nowhere"]).output)
for command in {COMMANDS!r}:
    result = CliRunner().invoke(app, command.split())
    print(result.exit_code, *result.output.splitlines(), sep="|")
""")
    refusal = "2|error: needs PyTorch: pip install 'fedhp[server]'"
    needs = "needs PyTorch: pip install 'fedhp[torch]'"
    checked = [f"error: {what} {needs}" for what in CHECKED.values()]
    assert told.splitlines() == ["0", "True", *checked, "True"] + [refusal] * len(COMMANDS)
    assert not list(tmp_path.iterdir())
