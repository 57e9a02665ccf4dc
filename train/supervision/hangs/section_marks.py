"""The callback that reports steps and evaluations to `Sections`."""

from composer.core import Callback, Event, State
from composer.loggers import Logger

from train.supervision.hangs.deadlines import Section
from train.supervision.hangs.sections import Sections


class SectionMarks(Callback):
    """Marks steps and evaluations. This callback runs before the other callbacks, so the time that other callbacks take
    after a step counts towards the next step, unless these callbacks enter their own section."""

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
