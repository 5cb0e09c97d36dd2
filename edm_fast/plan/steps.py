"""The modulation rows of many steps in device memory, read by a step index that lies there too."""

from __future__ import annotations

import torch


class StepTable:
    """A step's rows without the host: `read` launches the same work whatever the step and the number of steps.

    Args:
        rows: [steps, distinct, columns]; the table lies on their device.
        of_sample: int64 [N], which of the distinct rows each sample has; None: they all share one, and distinct is 1.
    """

    def __init__(self, rows: torch.Tensor, of_sample: torch.Tensor | None = None) -> None:
        self._check(rows, of_sample)
        self.steps, self._distinct, self.columns = rows.shape
        self._table = rows.reshape(-1, self.columns)
        self._first = torch.zeros(1, dtype=torch.int64, device=rows.device)
        self._stride = torch.full_like(self._first, self._distinct)
        self._of_sample = torch.zeros_like(self._first) if of_sample is None else of_sample.to(rows.device)

    @classmethod
    def empty(cls, room: int, columns: int, samples: int | None, device: torch.device) -> StepTable:
        """A table of zeros with room for so many rows; `samples` of them name theirs, or all share one if it is None.

        What has captured a `read` of it reads what is loaded later.
        """
        of_sample = None if samples is None else torch.zeros(samples, dtype=torch.int64, device=device)
        return cls(torch.zeros([room, 1, columns], dtype=torch.float32, device=device), of_sample)

    @staticmethod
    def _check(rows: torch.Tensor, of_sample: torch.Tensor | None) -> None:
        if of_sample is None and rows.shape[1] != 1:
            raise ValueError(f"of_sample: it is None, and there are {rows.shape[1]} distinct rows; that needs 1")

    @property
    def rows(self) -> int:
        """How many `read` returns: N, or 1 that all samples share."""
        return self._of_sample.shape[0]

    def load(self, rows: torch.Tensor, of_sample: torch.Tensor | None = None) -> None:
        """Other rows in the same memory, from step 0 on; arguments as the constructor's.

        ValueError if there is no room for them, or if another number of samples names its rows.
        """
        self._check(rows, of_sample)
        steps, distinct, columns = rows.shape
        if columns != self.columns or steps * distinct > len(self._table):
            raise ValueError(
                f"rows: got {steps}x{distinct} of {columns} columns; there is room for {len(self._table)} of "
                f"{self.columns}"
            )
        if of_sample is not None and of_sample.shape != self._of_sample.shape:
            raise ValueError(f"of_sample: got shape {tuple(of_sample.shape)}; {tuple(self._of_sample.shape)} is needed")
        self.steps, self._distinct = steps, distinct
        self._table[: steps * distinct].copy_(rows.reshape(-1, columns))
        self._first.zero_()
        self._stride.fill_(distinct)
        if of_sample is None:
            self._of_sample.zero_()
        else:
            self._of_sample.copy_(of_sample)

    def seek(self, step: int) -> None:
        """Set the step index, in the order of the current stream. ValueError for one outside the table."""
        if not 0 <= step < self.steps:
            raise ValueError(f"step: got {step}; the table has {self.steps} steps")
        self._first.fill_(step * self._distinct)

    def advance(self) -> None:
        """Go to the next step; this can be captured."""
        self._first.add_(self._stride)

    def read(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """The rows [N or 1, columns] of the step; this can be captured."""
        index = self._first + self._of_sample
        if out is None:
            return self._table.index_select(0, index)
        return torch.index_select(self._table, 0, index, out=out)
