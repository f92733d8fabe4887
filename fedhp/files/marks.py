"""The files by which a folder is known: as the record of a run, or as what is made of many."""

RUN = "config.yaml"
COMPARISON = "comparison.json"
STUDY = "study.txt"
DEVICES = "devices.json"  # of a run over devices that are not simulated


def model_name(level: str = "") -> str:
    """Returns the name of the file of a run's global model, or of one of the levels that it stands for."""
    return f"level-{level}.safetensors" if level else "model.safetensors"
