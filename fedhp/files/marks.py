"""The files by which a folder is known: as the record of a run, or as what is made of many."""

RUN = "config.yaml"
COMPARISON = "comparison.json"
STUDY = "study.txt"
DEVICES = "devices.json"  # of a run over devices that are not simulated
