"""Which rows an optimizer step learns from, where a stage goes over its data in epochs."""

from rto_fast.training.seeds import permutation


class Epochs:
    """Batches of row numbers, every epoch in an order of its own; the last rows that fill no batch wait for the next.

    rows        how many there are
    batch_size  rows of a step; fewer where there are fewer
    epochs      how often each row is seen, a fraction too; at least one step is made
    where       the name of the random stream
    """

    def __init__(self, rows: int, batch_size: int, epochs: float, seed: int, where: str):
        self.rows, self.seed, self.where = rows, seed, where
        self.batch_size = min(batch_size, rows)
        self.num_steps = max(1, int(epochs * rows // self.batch_size))
        self._orders: dict[int, list[int]] = {}

    def chosen(self, step: int) -> list[int]:
        """The rows of a step (from 0)."""
        epoch, place = divmod(step, self.rows // self.batch_size)
        if epoch not in self._orders:
            self._orders = {epoch: permutation(self.rows, self.seed, self.where, epoch)}
        return self._orders[epoch][place * self.batch_size : (place + 1) * self.batch_size]
