"""Generates text from fixed prompts during training."""

from collections.abc import Callable

from composer.core import Callback, State, get_precision_context
from composer.loggers import ConsoleLogger, Logger
from composer.utils import dist
from torch import Tensor

from data.base import console
from data.base.durations import Clock
from data.base.errors import ConfigError, DataError
from data.secrets.redaction import redacted
from data.tokenization.tokenizer import Tokenizer
from train.composer_model import DbrxForComposer
from train.config.sampling import Sampling, room
from train.config.schema import TrainConfig
from train.generation.decoders import DbrxDecoder
from train.generation.generate import stream_answers
from train.generation.questions import as_question, encode_one
from train.supervision.events import Events
from train.supervision.hangs.deadlines import Section
from train.supervision.hangs.sections import within

COLUMNS = ["batch", "prompt", "response"]


class Generate(Callback):
    """Generates completions of the prompts every `every` batches and after the last batch, and prints and logs them.

    All ranks of a sharded model decode the same tokens, which rank 0 samples. The random state and the mode of the
    model are restored, so training gives the same results with and without this callback.
    """

    def __init__(
        self, shown: list[str], prompts: list[list[int]], every: int, sampling: Sampling, tokenizer: Tokenizer
    ) -> None:
        self.shown, self.prompts, self.every = shown, prompts, every
        self.sampling, self.tokenizer = sampling, tokenizer
        self.is_ending: Callable[[State], bool] | None = None
        """Returns whether the run is ending, with the same result on all ranks. If it returns True, generation
        stops."""
        self.events: Events | None = None

    def batch_end(self, state: State, logger: Logger) -> None:
        # At this point, Composer's timestamp already counts this batch.
        batch = state.timestamp.batch.value
        if batch % self.every and batch != _last_batch(state):
            return
        if (texts := self._generate(state)) is None:
            return
        for prompt, text in zip(self.shown, texts, strict=True):
            console.logger.info(f"batch {batch}: {prompt!r} -> {text!r}")
        samples = [(redacted(prompt), redacted(text)) for prompt, text in zip(self.shown, texts, strict=True)]
        if self.events is not None:
            self.events.note(batch, samples=[{"prompt": prompt, "text": text} for prompt, text in samples])
        for destination in logger.destinations:
            # The texts were already printed to the console above, in a more readable form.
            if not isinstance(destination, ConsoleLogger):
                destination.log_table(COLUMNS, [[batch, *sample] for sample in samples], "generate", batch)

    @within(Section.GENERATE)
    def _generate(self, state: State) -> list[str] | None:
        """Return the completions, or None if the run is ending."""

        def agree(ids_B: Tensor) -> None:
            if self._ends(state):
                raise _Ending
            dist.broadcast(ids_B, src=0)

        composed = state.model.module if state.is_model_ddp else state.model
        assert isinstance(composed, DbrxForComposer)
        texts = [""] * len(self.prompts)
        was_training = composed.training
        composed.eval()
        try:
            with get_precision_context(state.precision, state.precision_config):
                for row, piece, _ in stream_answers(
                    DbrxDecoder(composed.model),
                    self.tokenizer,
                    self.prompts,
                    self.sampling,
                    self.tokenizer.stop_token_ids,
                    agree=agree,
                ):
                    texts[row] += piece
        except _Ending:
            return None
        finally:
            composed.train(was_training)
        return texts

    def _ends(self, state: State) -> bool:
        return self.is_ending is not None and self.is_ending(state)


class _Ending(Exception):
    pass


def _last_batch(state: State) -> int:
    # All durations passed to Composer are in batches (see train/run/trainer.py).
    assert state.max_duration is not None
    return state.max_duration.value


def build_generate(config: TrainConfig, tokenizer: Tokenizer, clock: Clock) -> list[Generate]:
    """Return the configured callback, if any. Raises ConfigError if a prompt is empty, invalid or too long to be
    completed."""
    generate = config.callbacks.generate
    if generate is None:
        return []
    prompts = []
    for number, prompt in enumerate(generate.prompts):
        key = f"callbacks.generate.prompts[{number}] is {prompt!r}"
        try:
            ids = encode_one(as_question(prompt, chat=generate.chat), tokenizer)
        except (ConfigError, DataError) as error:
            raise ConfigError(f"{key}, with chat: true, but {error}") from None
        if not ids:
            raise ConfigError(f"{key}, but a prompt must contain at least one token")
        if room(len(ids), generate, config.model.max_seq_len) < 1:
            limit = config.model.max_seq_len
            raise ConfigError(f"{key}, which has {len(ids)} tokens, but model.max_seq_len is {limit}")
        prompts.append(ids)
    return [Generate(generate.prompts, prompts, clock.batches(generate.interval), generate, tokenizer)]
