"""Computes the stream of each row of a run from the row's position in the run, with closed-form formulas."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_QUERIES = 4096
"""Number of rows whose positions are computed in one call, which limits the memory."""


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of the run in which each stream's share of the tokens changes linearly from one mix to another.

    The mixes are given as shares of the rows. If the rows of a stream have m tokens on average, the stream's share of
    the tokens is proportional to m times its share of the rows. If both mixes have the same mean number of tokens per
    row, the shares of the rows change linearly with the number of rows too.
    """

    n_rows: float
    """math.inf for a last stage without a fixed length. The shares in such a stage are constant."""
    start: np.ndarray
    end: np.ndarray
    """[S] shares of the rows at the start and at the end of the stage. Each sums to 1."""
    tokens_per_row: np.ndarray | None = None
    """[S] mean tokens per row of each stream. None means that all streams have the same mean."""

    def rates(self) -> tuple[float, float]:
        """The numbers of rows per token at the start and at the end of the stage, each divided by the mean of these two
        numbers, so that their sum is 2."""
        if self.tokens_per_row is None:
            return 1.0, 1.0
        # fsum rounds only once, so the result is the same in every version of Python and on every machine.
        first, last = (math.fsum((mix * self.tokens_per_row).tolist()) for mix in (self.start, self.end))
        if math.isclose(first, last, rel_tol=1e-12):
            return 1.0, 1.0
        return 2 * last / (first + last), 2 * first / (first + last)

    def shares(self, part: float) -> np.ndarray:
        """[S] shares of the rows after the fraction `part` (0 to 1) of the stage's rows has been drawn."""
        first, last = self.rates()
        of_tokens = 2 * part / (first + math.sqrt(first * first + 2 * (last - first) * part))
        return self.start + last * of_tokens / (first + (last - first) * of_tokens) * (self.end - self.start)

    def mean(self) -> np.ndarray:
        """[S] mean shares over all rows of the stage."""
        first, last = self.rates()
        return (first * self.start + last * self.end) / 2


class Interleaving:
    """Maps each row of the run to a row of a stream, by merging the streams in the order of due times.

    T_s(x) is the planned number of rows of stream s among the first x rows of the run. Row k of s is due at the x for
    which T_s is k + 1/2, and the run's order is the order of the due times of all rows. After every row, the number of
    rows drawn from s therefore differs from T_s by at most 1/2 + S/2 times its largest share.

    In a stage of D rows, shares are linear in tokens. Let v in [0, D] be the number of tokens in the rows drawn so far
    in the stage, divided by the stage's mean tokens per row. Then stream s has contributed a_s v + c_s v^2 rows, and
    all streams together R(v) = A v + C v^2 rows. A and B are the numbers of rows per token at the start and at the end,
    divided by their mean over the stage; a_s = A start_s, c_s = (B end_s - A start_s) / 2D, C = (B - A) / 2D. Row k
    of s is due at R(v), where v is the solution of a_s v + c_s v^2 = k + 1/2. To compute T_s(x), the equation R(v) = x
    is solved for v. If A = B = 1, then v = x.

    R(v) and T_s(x) have closed forms, so the cost does not depend on the position. Only + - * / and square roots of
    float64 are used, for which IEEE 754 guarantees the same results on every machine.
    """

    def __init__(self, stages: Sequence[Stage], counts: Sequence[int] | None = None) -> None:
        """`counts`: number of rows that an earlier plan has drawn from each stream. This plan begins after these
        rows."""
        n_streams = len(stages[0].start)
        taken = np.zeros(n_streams) if counts is None else np.asarray(counts, dtype=np.float64)
        self.n_streams = n_streams
        # The number of rows due by x differs from x by at most S/2.
        self._slack = n_streams / 2 + 2
        self.first = int(taken.sum())
        # After the last stage, the shares stay constant. The computation needs the due times of some rows after the end
        # of the stage.
        tail = Stage(math.inf, stages[-1].end, stages[-1].end)
        every = [*stages, tail] if math.isfinite(stages[-1].n_rows) else list(stages)
        rates_J2 = np.array([stage.rates() for stage in every])
        double_J = np.array([2 * stage.n_rows for stage in every])
        start_JS = rates_J2[:, :1] * np.array([stage.start for stage in every], dtype=np.float64)
        end_JS = rates_J2[:, 1:] * np.array([stage.end for stage in every], dtype=np.float64)
        self._a_JS, self._c_JS = start_JS, (end_JS - start_JS) / double_J[:, None]
        self._A_J, self._C_J = rates_J2[:, 0], (rates_J2[:, 1] - rates_J2[:, 0]) / double_J
        self._curved = bool(self._C_J.any())
        length_J = np.array([stage.n_rows for stage in every[:-1]], dtype=np.float64)
        self._starts_J = self.first + np.concatenate(([0.0], np.cumsum(length_J)))
        mean_JS = np.array([stage.mean() for stage in every[:-1]]).reshape(-1, n_streams)
        self._taken_JS = taken + np.concatenate(
            (np.zeros((1, n_streams)), np.cumsum(mean_JS * length_J[:, None], axis=0))
        )

    def planned(self, x: float) -> np.ndarray:
        """T(x), the planned number of rows of each stream among the first x rows; float64 [S]."""
        return self._planned(np.array([x], dtype=np.float64))[0]

    def _planned(self, x_N: np.ndarray) -> np.ndarray:
        """`planned` for several x; float64 [N, S]."""
        j_N = np.searchsorted(self._starts_J, x_N, side="right") - 1
        v_N = x_N - self._starts_J[j_N]
        if self._curved:
            A_N, C_N = self._A_J[j_N], self._C_J[j_N]
            v_N = np.where(C_N == 0, v_N, 2 * v_N / (A_N + np.sqrt(np.maximum(A_N * A_N + 4 * C_N * v_N, 0.0))))
        v_N1 = v_N[:, None]
        return self._taken_JS[j_N] + self._a_JS[j_N] * v_N1 + self._c_JS[j_N] * v_N1 * v_N1

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """For rows start..stop-1: the stream, and the row's number in the stream, counted over all epochs; int64 [N]
        each."""
        s_N, k_N, before = self._around(start, stop)
        return s_N[start - before : stop - before], k_N[start - before : stop - before]

    def counts(self, x: int) -> np.ndarray:
        """Number of rows of each stream among the first x rows; int64 [S]."""
        s_N, _, before = self._around(x, x)
        low_S = self._due_by(max(x - self._slack, self.first))
        return low_S + np.bincount(s_N[: x - before], minlength=self.n_streams)

    def positions(self, s_N: np.ndarray, k_N: np.ndarray) -> np.ndarray:
        """The inverse of `rows`: the position in the run of row k of stream s, for rows that the plan draws; int64
        [N]."""
        position_N = np.empty(len(s_N), dtype=np.int64)
        for first in range(0, len(s_N), _QUERIES):
            part = slice(first, first + _QUERIES)
            position_N[part] = self._positions(s_N[part], k_N[part])
        return position_N

    def _positions(self, s_N: np.ndarray, k_N: np.ndarray) -> np.ndarray:
        # The position is the number of rows that precede the row in the order of (due time, stream, k).
        due_N1, streams = self._due(s_N, k_N)[:, None], np.arange(self.n_streams)
        if not np.isfinite(due_N1).all():
            raise ValueError("the plan never draws some of these rows")
        precedes_ties_NS = streams < s_N[:, None]

        def precedes(k_NS: np.ndarray) -> np.ndarray:
            s_NS = np.broadcast_to(streams, k_NS.shape)
            due_NS = self._due(s_NS.ravel(), k_NS.ravel()).reshape(k_NS.shape)
            return (due_NS < due_N1) | ((due_NS == due_N1) & precedes_ties_NS)

        before_NS = np.floor(self._planned(due_N1[:, 0]) + 0.5).astype(np.int64)
        # Because of rounding, the result may differ by one from the order of the due times. It is corrected as in
        # _due_by.
        before_NS -= ~precedes(before_NS - 1) & (before_NS > self._taken_JS[0])
        before_NS += precedes(before_NS)
        before_NS[np.arange(len(s_N)), s_N] = k_N
        return before_NS.sum(axis=1)

    def _around(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, int]:
        """A range of rows in the run's order that includes rows start..stop-1, and the position of the range's first
        row."""
        if not self.first <= start <= stop:
            raise ValueError(f"rows {start} to {stop} were requested, but the plan begins at row {self.first}")
        low_S = self._due_by(max(start - self._slack, self.first))
        high_S = self._due_by(stop + self._slack)
        n_S = high_S - low_S
        s_N = np.repeat(np.arange(self.n_streams), n_S)
        k_N = np.arange(len(s_N)) - np.repeat(np.cumsum(n_S) - n_S - low_S, n_S)
        order = np.lexsort((k_N, s_N, self._due(s_N, k_N)))
        return s_N[order], k_N[order], int(low_S.sum())

    def _due_by(self, x: float) -> np.ndarray:
        """Number of rows of each stream that are due at x or before; int64 [S]."""
        k_S = np.floor(self.planned(x) + 0.5).astype(np.int64)
        streams = np.arange(self.n_streams)
        # Because of rounding, the numbers of rows from planned() and _due() may differ by one. The number from _due()
        # is used.
        k_S -= (self._due(streams, k_S - 1) > x) & (k_S > self._taken_JS[0])
        k_S += self._due(streams, k_S) <= x
        return k_S

    def _due(self, s_N: np.ndarray, k_N: np.ndarray) -> np.ndarray:
        """Due times of the rows, which are the positions x for which T_s(x) is k + 1/2; float64 [N], inf for rows that
        are never due."""
        half_N = k_N + 0.5
        j_N = np.maximum((self._taken_JS.T[s_N] <= half_N[:, None]).sum(axis=1) - 1, 0)
        d_N, a_N, c_N = half_N - self._taken_JS[j_N, s_N], self._a_JS[j_N, s_N], self._c_JS[j_N, s_N]
        # This form of the root of a v + c v^2 = d is also correct for a = 0 and for c = 0.
        root_N = a_N + np.sqrt(np.maximum(a_N * a_N + 4 * c_N * d_N, 0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            v_N = np.where(d_N == 0, 0.0, 2 * d_N / root_N)
            if self._curved:
                C_N = self._C_J[j_N]
                v_N = np.where(C_N == 0, v_N, v_N * (self._A_J[j_N] + C_N * v_N))
        return self._starts_J[j_N] + v_N
