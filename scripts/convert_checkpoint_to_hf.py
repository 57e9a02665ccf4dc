"""Exports a sharded Composer checkpoint as a Hugging Face DBRX folder, or its adapters as a PEFT folder."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    from train.models.precision import PRECISIONS

    parser = argparse.ArgumentParser(description=__doc__)
    what = "a sharded checkpoint such as runs/x/ep0-ba100, or a run's folder, whose newest checkpoint is used; or a "
    what += "URL (s3:// or gs://) such as s3://bucket/runs/x/ep0-ba100 or s3://bucket/runs/x/latest"
    parser.add_argument("--composer_path", required=True, help=what)
    parser.add_argument(
        "--hf_output_path", required=True, help="the new or empty folder to write, or its URL (s3:// or gs://)"
    )
    parser.add_argument("--output_precision", choices=PRECISIONS, default="fp32", help="default: fp32")
    what = "maximum size of a weights file: a number of bytes, or a size such as 500mb (default: 5gb)"
    parser.add_argument("--max_shard_size", type=_size, help=what)
    what = "check in a new process that transformers computes the same outputs from the files (default)"
    parser.add_argument("--verify", action=argparse.BooleanOptionalAction, help=what)
    what = "for a checkpoint of adapters: merge them into the base model (default), or write only the adapters for PEFT"
    parser.add_argument("--adapter", choices=("merge", "peft"), default="merge", help=what)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error as well")
    args = parser.parse_args(argv)
    if args.adapter == "peft" and (args.verify is not None or args.max_shard_size is not None):
        parser.error("--adapter peft does not support --verify or --max_shard_size: remove these options")

    # Check the arguments before torch is imported, because this import is slow.
    from data.base.console import show_error, show_on_console
    from data.base.errors import ConfigError
    from data.base.paths import refuse_path_arguments
    from train.checkpoint.remote.staging import path_here
    from train.export.export import export, find_checkpoint
    from train.export.output import output_folder
    from train.export.peft import export_peft
    from train.export.writer import MAX_SHARD_BYTES

    show_on_console()
    try:
        refuse_path_arguments(args, "--composer_path", "--hf_output_path")
        with output_folder(args.hf_output_path, "--hf_output_path") as output:
            checkpoint = find_checkpoint(path_here(args.composer_path, "--composer_path"))
            if args.adapter == "peft":
                export_peft(checkpoint, output, args.output_precision)
            else:
                print(f"exporting {checkpoint} in {args.output_precision}", flush=True)
                max_shard_bytes = args.max_shard_size or MAX_SHARD_BYTES
                export(checkpoint, output, args.output_precision, max_shard_bytes, verify=args.verify is not False)
        if args.adapter == "peft":
            print(f"wrote {args.hf_output_path}; load it with peft.PeftModel.from_pretrained (see its README.md)")
            return 0
    except ConfigError as error:
        show_error(error, debug=args.debug)
        return 2
    print(f"wrote {args.hf_output_path}; load it with transformers.AutoModelForCausalLM.from_pretrained")
    return 0


def _size(text: str) -> int:
    from data.base.sizes import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
