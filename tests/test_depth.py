"""How deep the program is: what stands between a user's call and the arithmetic."""

import inspect
from pathlib import Path

import fedhp
import fedhp.model.side_by_side
import fedhp.training.stack

ROOT = Path(__file__).parent.parent
MOST_FRAMES = 14


def own_frames() -> list[str]:
    """Returns the functions of fedhp that are being called now, the outermost first."""
    files = [(Path(frame.filename), frame.function) for frame in inspect.stack(context=0)[2:]]
    folders = [ROOT / name for name in ("fedhp", "clients", "strategies")]
    return [f"{file.stem}.{what}" for file, what in files if any(f in file.parents for f in folders)][::-1]


def test_few_frames_lie_between_the_call_and_the_matrix_product(tmp_path, monkeypatch):
    """Of a client's training in this process, whose dense layers are multiplied in `chain_gradients`."""
    seen = set()
    multiply = fedhp.training.stack.chain_gradients

    def spied(*args, **kwargs):
        seen.add(tuple(own_frames()))
        return multiply(*args, **kwargs)

    monkeypatch.setattr(fedhp.training.stack, "chain_gradients", spied)
    monkeypatch.setattr(fedhp.model.side_by_side.Dense, "gradients", staticmethod(spied))
    fedhp.simulate("quickstart", tmp_path / "run", rounds=1, **{"simulation.num_workers": 0}, show=False)
    training = [frames for frames in seen if "stack.step" in frames]
    assert training
    # One more than the spy sees: the function that it stands for.
    assert max(map(len, training)) + 1 <= MOST_FRAMES, max(training, key=len)
