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
        self.steps, self._distinct, self.columns = rows.shape
        if of_sample is None and self._distinct != 1:
            raise ValueError(f"of_sample: it is None, and there are {self._distinct} distinct rows; that needs 1")
        self._table = rows.reshape(-1, self.columns)
        self._first = torch.zeros(1, dtype=torch.int64, device=rows.device)
        self._of_sample = torch.zeros_like(self._first) if of_sample is None else of_sample.to(rows.device)

    @property
    def rows(self) -> int:
        """How many `read` returns: N, or 1 that all samples share."""
        return self._of_sample.shape[0]

    def seek(self, step: int) -> None:
        """Set the step index, in the order of the current stream. ValueError for one outside the table."""
        if not 0 <= step < self.steps:
            raise ValueError(f"step: got {step}; the table has {self.steps} steps")
        self._first.fill_(step * self._distinct)

    def advance(self) -> None:
        """Go to the next step; this can be captured."""
        self._first.add_(self._distinct)

    def read(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """The rows [N or 1, columns] of the step; this can be captured."""
        index = self._first + self._of_sample
        if out is None:
            return self._table.index_select(0, index)
        return torch.index_select(self._table, 0, index, out=out)
