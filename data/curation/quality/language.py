"""Identification of languages with a fastText model (Joulin et al. 2016, https://arxiv.org/abs/1607.01759)."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError, DataError
from data.base.paths import shown
from data.config.sections import Defect
from data.config.suggest import near
from data.config.values import PathText, Share
from data.curation.base.document import Document, Verdict
from data.curation.base.step import ScoredStep, Threshold

_LABEL = "__label__"
_SCORE = "language.score"


@dataclass(frozen=True, kw_only=True)
class Language(ScoredStep):
    """Keeps documents in certain languages, according to a fastText model such as lid.176.bin
    (https://fasttext.cc/docs/en/language-identification.html) or GlotLID."""

    RULES = (lambda step: [] if step.languages else [Defect("languages", "is empty: add at least one language")],)

    model: PathText
    """The file of the model. On a cluster, all executors must see it at this path."""
    languages: list[str]
    """The languages to keep, by their labels in the model without `__label__`, such as `en` for lid.176.bin."""
    min_score: Share | None = 0.65
    """Minimum probability of the most probable of these languages; null keeps all documents, and stores the scores."""

    def check(self) -> None:
        """Raises ConfigError if fastText or the model is missing, or if the model does not know a language."""
        try:
            import fasttext  # noqa: F401
        except ImportError:
            raise ConfigError(
                f"is {self.model!r}, but fastText, which reads the model, is not installed: pip install -e "
                "'.[curation]'",
                key="model",
            ) from None
        if not Path(self.model).is_file():
            raise ConfigError(
                f"is {self.model!r}, but no such file exists: download a model, such as lid.176.bin from "
                "https://fasttext.cc/docs/en/language-identification.html",
                key="model",
            )
        try:
            labels = [label.removeprefix(_LABEL) for label in _load(self.model).get_labels()]
        except (ValueError, RuntimeError, MemoryError) as error:
            raise ConfigError(
                f"is {self.model!r}, but fastText cannot read this file as a classifier ({error}): download it again",
                key="model",
            ) from None
        for index, language in enumerate(self.languages):
            if language not in labels:
                raise ConfigError(
                    f"is {shown(language)}, but the model has no such label{near(language, labels)} (it has "
                    f"{len(labels)} labels, such as {', '.join(labels[:5])})",
                    key=f"languages[{index}]",
                )

    def scorer(self) -> Callable[[Document], Mapping[str, float]]:
        try:
            state = Path(self.model).stat()
        except OSError as error:
            raise DataError(f"model {self.model!r} cannot be read on this machine: {error.strerror}") from None
        model, wanted = _model(self.model, state.st_size, state.st_mtime_ns), {_LABEL + name for name in self.languages}

        def score(document: Document) -> dict[str, float]:
            # fastText predicts single lines.
            labels, probabilities = model.predict(document.text.replace("\n", " "), k=-1)
            found = dict(zip(labels, map(float, probabilities), strict=True))
            first = max(found, key=found.__getitem__)
            best = max((value for label, value in found.items() if label in wanted), default=0.0)
            return {_SCORE: best, f"language.{first.removeprefix(_LABEL)}": found[first]}

        return score

    def scores_made_from(self) -> dict[str, Any]:
        with Path(self.model).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"model": digest, "languages": sorted(self.languages)}

    def made_from(self) -> dict[str, Any]:
        return {**self.scores_made_from(), "min_score": self.min_score}

    def decide(self, scores: Mapping[str, float]) -> Verdict:
        verdict = super().decide(scores)
        first = next((name for name in scores if name.startswith("language.") and name != _SCORE), None)
        if verdict.reason is None or first is None:
            return verdict
        name = first.removeprefix("language.")
        return verdict._replace(detail=f"{verdict.detail}; the most probable language is {name} ({scores[first]:.2f})")

    def thresholds(self) -> list[Threshold]:
        return [Threshold(_SCORE, "min_score", min=self.min_score)]


def _load(file: str) -> Any:
    import fasttext

    return fasttext.load_model(file)


@cache
def _model(file: str, size: int, modified: int) -> Any:
    """The model, which a process loads once, even if it judges several partitions. It is loaded again if the file has
    changed."""
    return _load(file)
