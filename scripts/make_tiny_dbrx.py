"""Writes the model of a config with its initial weights as a Hugging Face DBRX folder, for example to try imports."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import json
import shutil
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    from train.models.precision import PRECISIONS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder to write, which must be new or empty")
    config = str(ROOT / "yamls/finetune/dbrx_tiny_lora.yaml")
    parser.add_argument("--config", default=config, help="default: %(default)s")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16", help="default: %(default)s")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error as well")
    args = parser.parse_args(argv)

    from data.base.console import show_error, show_on_console
    from data.base.errors import ConfigError, DataError, plain_os_errors
    from data.base.paths import refuse_path_arguments
    from data.tokenization.build import build_tokenizer
    from train.config.load import read_config
    from train.export.writer import write_weights
    from train.hf.config_json import config_json
    from train.hf.repository import write_json
    from train.models.precision import FORMATS
    from train.weights.frozen_base import DrawnWeights

    part = args.folder.absolute().with_name(f".{args.folder.name}.part")
    show_on_console()
    try:
        refuse_path_arguments(args, "folder")
        if args.folder.exists() and (not args.folder.is_dir() or any(args.folder.iterdir())):
            raise ConfigError(f"{args.folder} exists and is not empty: specify a new folder, or empty it")
        config = read_config(args.config)
        weights, tokenizer = DrawnWeights(config.model, config.seed), build_tokenizer(config.tokenizer)
        with plain_os_errors(str(args.folder), "specify another folder"):
            tokenizer.save_pretrained(part, config.max_seq_len)
            write_weights(weights, part, weights.shapes, args.precision)
            generation = json.loads((part / "generation_config.json").read_text(encoding="utf-8"))
            write_json(part / "config.json", config_json(config.model, generation, FORMATS[args.precision].dtype))
            part.replace(args.folder)
    except (ConfigError, DataError) as error:
        show_error(error, debug=args.debug)
        return 2
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"wrote {args.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
