"""A model that generates, on whatever this machine has."""

from pathlib import Path

from train.generation.open_model import Opened, open_model
from train.hardware.device import choose_device


def open_here(folder: Path) -> Opened:
    return open_model(folder, choose_device(None))
