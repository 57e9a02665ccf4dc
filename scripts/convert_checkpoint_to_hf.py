"""Turns a sharded Composer checkpoint into a folder that stock transformers loads as DBRX."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    what = "a sharded checkpoint such as runs/x/ep0-ba100, or a folder of them, whose newest is taken"
    parser.add_argument("--composer_path", type=Path, required=True, help=what)
    parser.add_argument("--hf_output_path", type=Path, required=True, help="the folder to write: new, or empty")
    parser.add_argument("--output_precision", choices=("fp32", "bf16"), default="fp32", help="default: fp32")
    args = parser.parse_args(argv)

    # torch is imported after the arguments are known to be right.
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from data.errors import ConfigError
    from train.hf import export, find_checkpoint

    try:
        checkpoint = find_checkpoint(args.composer_path)
        print(f"exporting {checkpoint} in {args.output_precision}", flush=True)
        export(checkpoint, args.hf_output_path, args.output_precision)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.hf_output_path}, which transformers.AutoModelForCausalLM.from_pretrained loads")
    return 0


if __name__ == "__main__":
    sys.exit(main())
