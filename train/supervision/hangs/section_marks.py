"""The callback that marks steps and evaluations."""

from composer.core import Callback, Event, State
from composer.loggers import Logger

from train.supervision.hangs.deadlines import Section
from train.supervision.hangs.sections import Sections


class SectionMarks(Callback):
    """Marks steps and evaluations. Stands before the other callbacks: what they do after a step has the next one's
    deadline, or says what it is itself."""

    def __init__(self, sections: Sections) -> None:
        self._sections = sections

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        self._sections.mark()
        super().run_event(event, state, logger)

    def fit_start(self, state: State, logger: Logger) -> None:
        self._sections.at_batch(state.timestamp.batch.value)

    def batch_end(self, state: State, logger: Logger) -> None:
        self._sections.step_done(state.timestamp.batch.value)

    def eval_start(self, state: State, logger: Logger) -> None:
        self._sections.enter(Section.EVALUATION)

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        self._sections.again()

    def eval_end(self, state: State, logger: Logger) -> None:
        self._sections.leave(measured=False)
