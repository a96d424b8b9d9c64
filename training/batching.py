"""Which examples learn together: an epoch as a list of updates, and an update as micro-batches.

`tokens_per_update` is meaning: it fixes what one optimizer step learns from, counted in real source + target tokens.
World size and accumulation are mechanics: they cut the same update into more or fewer pieces. So the plan depends on
(lengths, seed, epoch) alone, and the number of devices changes the speed, never the sequence of updates. Sentences of
near-equal length stand together, for padding is computed and learns nothing.
"""

from collections.abc import Iterator

import numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler

LENGTH_NOISE = 0.1
"""Lengths are jittered by this share before sorting, so that neighbours differ from epoch to epoch."""


def plan_updates(
    lengths: np.ndarray, *, tokens_per_update: int, seed: int, epoch: int, min_examples: int = 1
) -> list[np.ndarray]:
    """Cut an epoch into updates of near-equal length and near-equal token count.

    Args:
        lengths: (examples, 2) source and target lengths in tokens.
        tokens_per_update: most source + target tokens in an update, padding not counted; where one example takes more
            than half of it, an update may overshoot by less than that example.
        seed: of the run.
        epoch: counted from 0; each has its own order.
        min_examples: every update gets at least so many examples (one for each micro-batch), where there are enough.

    Returns:
        Updates in the order in which they are learned: arrays of example indices, shortest target first. Together they
        hold each example exactly once.

    Raises:
        ValueError: when an example alone has more than `tokens_per_update` tokens, or there are no examples.
    """
    sizes = lengths.sum(axis=1)
    if len(sizes) == 0:
        raise ValueError("there are no examples to plan updates from; check the training files and the length limits.")
    longest = int(sizes.max())
    if longest > tokens_per_update:
        raise ValueError(
            f"example {int(sizes.argmax())} has {longest} source + target tokens, more than "
            f"tokens_per_update={tokens_per_update}; raise it, or lower max_source_length and max_target_length."
        )
    rng = np.random.default_rng((seed, epoch))
    order = _order_by_length(lengths, rng)
    updates = _cut_by_tokens(order, sizes[order], _number_of_updates(sizes, tokens_per_update, min_examples))
    rng.shuffle(updates)
    return updates


def cut_update(update: np.ndarray, lengths: np.ndarray, parts: int) -> list[np.ndarray]:
    """Cut one update into micro-batches of near-equal cost, none of them empty.

    Args:
        update: indices of its examples, ordered by length as `plan_updates` leaves them.
        lengths: (examples, 2) source and target lengths in tokens.
        parts: world size x accumulation steps.

    Returns:
        `parts` arrays of indices.

    Raises:
        ValueError: when there are fewer examples than parts.
    """
    if len(update) < parts:
        raise ValueError(
            f"an update of {len(update)} examples cannot feed {parts} micro-batches (processes x accumulation steps); "
            f"raise tokens_per_update or use fewer processes."
        )
    cost = np.cumsum(lengths[update].sum(axis=1))
    cuts = np.searchsorted(cost, cost[-1] * np.arange(1, parts) / parts) + 1
    # Each part needs one example of its own: push cuts apart from the left, then back from the right.
    steps = np.arange(1, parts)
    cuts = np.maximum.accumulate(cuts - steps) + steps
    cuts = np.minimum(cuts, len(update) - parts + steps)
    return np.split(update, cuts)


def accumulation_steps(tokens_per_update: int, tokens_per_device: int | None, world_size: int) -> int:
    """Return into how many micro-batches each process cuts its share, so that one fits `tokens_per_device`."""
    if tokens_per_device is None:
        return 1
    return max(1, -(-tokens_per_update // (tokens_per_device * world_size)))


def _order_by_length(lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sort by (target, source) after jittering both, so that buckets mix anew every epoch."""
    noise = 1 + LENGTH_NOISE * rng.uniform(-1, 1, size=lengths.shape)
    source, target = np.rint(lengths * noise).T
    return np.lexsort((rng.random(len(lengths)), source, target))


def _number_of_updates(sizes: np.ndarray, tokens_per_update: int, min_examples: int) -> int:
    """Return the smallest number that keeps every update under its budget wherever the cuts fall."""
    total, longest = int(sizes.sum()), int(sizes.max())
    by_tokens = -(-total // max(tokens_per_update - longest, longest)) if total > tokens_per_update else 1
    return max(1, min(by_tokens, len(sizes) // min_examples))


def _cut_by_tokens(order: np.ndarray, sizes: np.ndarray, count: int) -> list[np.ndarray]:
    """Cut an order into `count` runs of near-equal token count."""
    starts = np.cumsum(sizes) - sizes
    owner = starts * count // sizes.sum()
    return [run for run in np.split(order, np.flatnonzero(np.diff(owner)) + 1) if len(run)]


class UpdateSampler(Sampler[list[int]]):
    """One process's micro-batches, in the order of the updates; it only walks the plan."""

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        tokens_per_update: int,
        seed: int,
        accumulation_steps: int = 1,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        """Plan for one of `world_size` processes.

        Args:
            lengths: (examples, 2) source and target lengths in tokens.
            tokens_per_update: most source + target tokens in an update.
            seed: of the run.
            accumulation_steps: micro-batches an update that this process computes one after the other.
            world_size: processes that share an update.
            rank: this process's number.
        """
        self.lengths = lengths
        self.tokens_per_update = tokens_per_update
        self.seed = seed
        self.accumulation_steps = accumulation_steps
        self.world_size = world_size
        self.rank = rank
        self.epoch = 0
        self._num_updates = len(self.plan(0))

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Return the updates of an epoch, the same for every process."""
        parts = self.accumulation_steps * self.world_size
        return plan_updates(
            self.lengths,
            tokens_per_update=self.tokens_per_update,
            seed=self.seed,
            epoch=epoch,
            min_examples=parts,
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration walks through."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._num_updates * self.accumulation_steps

    def __iter__(self) -> Iterator[list[int]]:
        parts = self.accumulation_steps * self.world_size
        for update in self.plan(self.epoch):
            for micro_batch in cut_update(update, self.lengths, parts)[self.rank :: self.world_size]:
                yield micro_batch.tolist()


class UpdateLoader(DataLoader[Dataset]):
    """A DataLoader that passes the epoch on to its sampler, which is where Trainer announces it."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration walks through."""
        self.batch_sampler.set_epoch(epoch)
