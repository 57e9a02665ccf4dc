"""What a run says on the console."""

from composer.utils import dist


def say(line: str) -> None:
    """One line on the console, from one rank."""
    if dist.get_global_rank() == 0:
        print(line, flush=True)
