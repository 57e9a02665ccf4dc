"""External inputs of a run: tokenizer, hub, pretrained model, object store, and the kernels for this machine.

Each check imports the libraries that it needs, so that a missing library makes only this check fail."""

from collections.abc import Iterator
from pathlib import Path

from data.base.errors import ConfigError, under
from data.hub.reach import why_offline
from data.secrets.redaction import redacted
from train.checkpoint.remote.folder import store_errors_named
from train.checkpoint.remote.staging import open_save_folder
from train.checkpoint.save_folder import run_name_of
from train.config.load import LoadedConfig, check_vocab, resolve_pretrained
from train.config.ranks import check_kernel_sizes, check_world_size
from train.config.schema import TrainConfig
from train.doctor.check import Check, failed_check
from train.models.precision import computed, on_device


def resolve(loaded: LoadedConfig, world_size: int) -> tuple[TrainConfig, list[Check]]:
    """Check the config for this world size, and return it with the values of the pretrained model if its config can be
    read."""
    config = loaded.config
    try:
        config = resolve_pretrained(loaded)
        check_world_size(config, world_size)
        check_kernel_sizes(config, world_size)
    except ConfigError as error:
        return config, [failed_check("config", loaded.placed(error), "correct the config")]
    name = config.model.pretrained_model_name_or_path
    found = "valid" if name is None else f"valid with the config.json of {name}"
    return config, [Check(name="config", status="ok", found=f"{found}, on {world_size} rank(s)")]


def check_tokenizer(config: TrainConfig) -> Iterator[Check]:
    """Build the tokenizer as a run does. Raises ConfigError."""
    from data.tokenization.build import build_tokenizer

    tokenizer = build_tokenizer(config.tokenizer)
    check_vocab(config, tokenizer.vocab_size)
    yield Check(
        name="tokenizer", status="ok", found=f"{config.tokenizer.name}: token ids below {tokenizer.vocab_size:,}"
    )


def check_hub() -> Iterator[Check]:
    """Check whether the hub can be reached. Files in the hub's local cache can be read without a connection."""
    from huggingface_hub import constants

    if (why := why_offline()) is None:
        yield Check(name="hub", status="ok", found=f"{redacted(constants.ENDPOINT)} is reachable")
        return
    fix = (
        f"allow connections to the hub (HTTPS_PROXY, HF_ENDPOINT), or copy the run's files to {constants.HF_HUB_CACHE} "
        "and set HF_HUB_OFFLINE=1"
    )
    yield Check(name="hub", status="not here", found=why, fix=fix)


def check_hub_data(config: TrainConfig) -> Iterator[Check]:
    """Check that the config's hub datasets exist on the hub or in its local cache. Raises ConfigError."""
    from data.sources.find import is_path
    from data.sources.formats.names import FORMATS
    from data.sources.hub_commit import find_commit

    loaders = {"train_loader": config.train_loader, "eval_loader": config.eval_loader}
    for key, loader in loaders.items():
        for stream, dataset in loader.dataset.each_stream().items() if loader is not None else ():
            name = dataset.hf_name
            if name is None or name in FORMATS or is_path(name):
                continue
            with under(f"{key}.dataset.streams.{stream}" if stream else f"{key}.dataset"):
                commit = find_commit(dataset, name)
            where = "on the hub" if commit.offline is None else "in the hub's cache"
            yield Check(name=f"dataset {name}", status="ok", found=f"{where}, commit {commit.sha[:12]}")


def check_store(config: TrainConfig) -> Iterator[Check]:
    """Check that a save folder in an object store can be listed. Raises ConfigError."""
    remote = open_save_folder(config, run_name_of(config))
    if remote is None:
        return
    with store_errors_named("save_folder"):
        contents = remote.look()
    yield Check(
        name="save_folder: store",
        status="ok",
        found=f"{remote.url} is reachable and contains {len(contents.committed)} checkpoint(s)",
    )


def check_kernels(config: TrainConfig, world_size: int, *, gpu: bool) -> Iterator[Check]:
    """Report the kernels for experts and attention. Raises ConfigError."""
    import torch

    from train.hardware.kernels import choose_kernels

    precision = on_device(config.precision, gpu=gpu)
    dtype = torch.bfloat16 if computed(precision) == "bf16" else torch.float32
    _, lines = choose_kernels(config, world_size, torch.device("cuda" if gpu else "cpu"), dtype)
    yield Check(name="kernels", status="ok", found="; ".join(lines))


def caches(config: TrainConfig) -> list[Path]:
    """Return the cache folders of all streams, without duplicates."""
    loaders = [loader for loader in (config.train_loader, config.eval_loader) if loader is not None]
    datasets = [dataset for loader in loaders for dataset in loader.dataset.each_stream().values()]
    return list(dict.fromkeys(Path(dataset.cache_dir) for dataset in datasets))
