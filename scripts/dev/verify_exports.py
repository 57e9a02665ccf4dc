"""Exports a small random DBRX and verifies the folder with several versions of transformers, each in its own
environment. The checks of train/export/verify.py must also pass with versions that are older or newer than the
installed one.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import subprocess
from collections.abc import Sequence
from importlib.metadata import version

VERSIONS = ("4.53", "4.57", "locked", "newest")
NEEDED = ("torch", "numpy", "omegaconf", "psutil", "pyyaml", "tqdm", "jinja2", "safetensors")
"""Packages that train/export/verify.py needs in addition to transformers. The installed versions are used."""
TIKTOKEN = f"{{name: tiktoken, kwargs: {{vocab_file: {ROOT}/quickstart/vocab.tiktoken}}}}"
CONFIG = """\
run_name: verify-exports
max_seq_len: 64
model:
  {d_model: 64, n_heads: 4, n_layers: 3, max_seq_len: 64, vocab_size: 320, initializer_range: 0.2,
   attn_config: {kv_n_heads: 2, clip_qkv: 1.0, rope_theta: 500.0},
   ffn_config: {ffn_hidden_size: 48, moe_num_experts: 8, moe_top_k: 3}}
tokenizer: TOKENIZER
train_loader: {name: finetuning, dataset: {hf_name: json, max_seq_len: 64}}
optimizer: {name: adamw, lr: 1.0e-3}
scheduler: {name: constant_with_warmup}
max_duration: 1ba
global_train_batch_size: 1
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--versions", nargs="+", default=VERSIONS, help="versions of transformers; default: %(default)s"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "verify", help="default: %(default)s")
    args = parser.parse_args(argv)

    from data.base.console import show_on_console

    show_on_console()
    args.folder.mkdir(parents=True, exist_ok=True)
    # The tokenizer of the first run is saved by our code, and the tokenizer of the second run by transformers.
    write_run(args.folder / "run-fp32")
    write_run(args.folder / "run-bf16", f"{{name: {(args.folder / 'run-fp32' / 'tokenizer').resolve()}}}")
    export_both(args.folder)
    failed = [number for number in args.versions if not check(number, args.folder)]
    print(f"failed with transformers {', '.join(failed)}" if failed else "all exports are correct")
    return 1 if failed else 0


def write_run(folder: Path, tokenizer: str = TIKTOKEN) -> None:
    """Write a save folder as training does, with random weights."""
    import shutil

    from torch.distributed.checkpoint.state_dict_saver import save

    from data.tokenization.build import build_tokenizer
    from train.checkpoint.reader import PREFIX
    from train.config.load import read_config
    from train.models.dbrx import DbrxForCausalLM
    from train.models.init import initialise

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG.replace("TOKENIZER", tokenizer), encoding="utf-8")
    config = read_config(str(folder / "config.yaml"))
    build_tokenizer(config.tokenizer).save_pretrained(folder / "tokenizer", config.max_seq_len)
    model = DbrxForCausalLM(config.model)
    initialise(model, config.model, config.seed)
    state = {PREFIX + name: tensor for name, tensor in model.state_dict().items()}
    save(state, checkpoint_id=folder / "ep0-ba1", no_dist=True)


def export_both(folder: Path) -> None:
    import shutil

    from train.export.export import export
    from train.models.precision import PRECISIONS

    for precision in PRECISIONS:
        shutil.rmtree(folder / precision, ignore_errors=True)
        export(folder / f"run-{precision}", folder / precision, precision, max_shard_bytes=200_000)


def check(number: str, folder: Path) -> bool:
    """Verify both exports with one version and print the results. Returns whether they passed."""
    from train.models.precision import PRECISIONS

    python = environment(number, folder / f"transformers-{number}")
    passed = True
    for precision in PRECISIONS:
        command = [
            str(python),
            "-m",
            "train.export.verify",
            str(folder / precision),
            "--composer_path",
            str(folder / f"run-{precision}"),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        print(f"transformers {number}, {precision}\n{done.stdout if done.returncode == 0 else done.stderr}", flush=True)
        passed &= done.returncode == 0
    return passed


def environment(number: str, folder: Path) -> Path:
    """Create or update the environment and return its interpreter."""
    python, uv = folder / "bin" / "python", str(Path(sys.executable).parent / "uv")
    if not python.exists():
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    pins = [f"{package}=={version(package)}" for package in NEEDED]
    wanted = {"locked": f"transformers=={version('transformers')}", "newest": "transformers"}
    packages = [wanted.get(number, f"transformers=={number}.*"), *pins]
    install = ("pip", "install", "--no-config", "--quiet", "--upgrade-package", "transformers")
    subprocess.run([uv, *install, "--python", str(python), *packages], check=True)
    return python


if __name__ == "__main__":
    sys.exit(main())
