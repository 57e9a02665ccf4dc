"""Opens the inputs of a run in the same way as the run, except that nothing is written to a save folder in an object
store."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from data.base.errors import Problems
from train.checkpoint.remote.staging import check_remote_unowned, open_save_folder, planned_folder
from train.checkpoint.save_folder import run_name_of
from train.config.schema import TrainConfig
from train.run.inputs import Inputs, open_inputs


@contextmanager
def opened(config: TrainConfig, problems: Problems, *, rehash: bool) -> Iterator[Inputs]:
    """Open the inputs. A real run downloads the checkpoint that it resumes from to the staging folder, which may have
    to be cleared first. A dry run downloads the checkpoint, without its tensors, to a temporary folder, which is
    deleted at the end. Raises the same errors as `open_inputs`."""
    here = config
    with ExitStack() as stack:
        with problems.collect():
            run_name = run_name_of(config)
            if (remote := open_save_folder(config, run_name)) is not None:
                check_remote_unowned(remote)
                found = stack.enter_context(planned_folder(config, run_name))
                folder = str(found) if found is not None else None
                here = replace(config, save_folder=folder, autoresume=config.autoresume and folder is not None)
        yield open_inputs(here, problems, rehash=rehash)
