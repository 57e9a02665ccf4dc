"""A small random DBRX with the quickstart's tokenizer: as a run's save folder, and exported."""

from pathlib import Path

from test_export import CONFIG, MODEL, save_checkpoint

from data.config.schema import TokenizerConfig, TokenizerKwargs
from data.tokenization.tokenizer import build_tokenizer
from train.export.export import export
from train.models.dbrx import DbrxForCausalLM
from train.models.init import initialise

ROOT = Path(__file__).resolve().parents[1]


def write_run(folder: Path) -> DbrxForCausalLM:
    """Writes config.yaml, tokenizer/ and ep0-ba10; returns the model of the checkpoint."""
    model = DbrxForCausalLM(MODEL)
    initialise(model, MODEL, seed=3)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    vocab = TokenizerKwargs(vocab_file=str(ROOT / "quickstart" / "vocab.tiktoken"))
    build_tokenizer(TokenizerConfig(name="tiktoken", kwargs=vocab)).save_pretrained(folder / "tokenizer", 64)
    save_checkpoint(folder / "ep0-ba10", model.state_dict())
    return model.eval()


def write_export(run: Path, folder: Path) -> Path:
    export(run / "ep0-ba10", folder, "fp32")
    return folder
