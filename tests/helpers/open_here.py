"""Open a model for generation on the devices of this machine."""

from pathlib import Path

from train.generation.open_model import Opened, open_model
from train.hardware.device import choose_device


def open_here(folder: Path) -> Opened:
    return open_model(folder, choose_device(None))
