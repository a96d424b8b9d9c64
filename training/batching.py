"""Which examples learn together: an epoch as a list of updates, and an update as micro-batches.

`tokens_per_update` is meaning: it fixes what one optimizer step learns from, counted in real source + target tokens.
World size and accumulation are mechanics: they cut the same update into more or fewer pieces. So the plan depends on
(lengths, seed, epoch) alone, and the number of devices changes the speed, never the sequence of updates.

Padding is computed and learns nothing, so a micro-batch should hold sentences of near-equal length. An update should
not: where length goes with language or format, updates of one length teach one thing at a time (the date demo had
learned 45 % after 300 sorted updates, and 97 % after 300 random ones; LOG 2026-11-23). Both are had at once:

    a random order -> pools of 16 updates -> each pool sorted by length, cut into chunks -> every update is dealt one
    chunk of each of 8 strata, short to long -> its micro-batches are runs of its own, sorted examples
"""

from collections.abc import Iterator

import numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler

POOL_UPDATES = 16
"""Updates whose examples are sorted together: more of them pad less and repeat neighbours more."""

NUM_STRATA = 8
"""Classes of length from which every update gets its share."""

MIN_MICRO_BATCH = 1024
"""Tokens under which a micro-batch costs more in overhead than it saves in padding."""


def plan_updates(lengths: np.ndarray, *, tokens_per_update: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Cut an epoch into updates of near-equal token count, each with short and long examples.

    Args:
        lengths: (examples, 2) source and target lengths in tokens.
        tokens_per_update: most source + target tokens in an update, padding not counted.
        seed: of the run.
        epoch: counted from 0; each has its own order.

    Returns:
        Updates in the order in which they are learned: arrays of example indices, sorted by (target, source) length.
        Together they hold each example exactly once, and there are as many in every epoch.

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
    count = _number_of_updates(sizes, tokens_per_update)
    order = rng.permutation(len(sizes))
    pool_of = _share_by_tokens(sizes[order], count) // POOL_UPDATES
    pools = np.split(order, np.flatnonzero(np.diff(pool_of)) + 1)
    updates: list[np.ndarray] = []
    for pool in pools:
        updates += _deal(pool, lengths, min(POOL_UPDATES, count - len(updates)), rng)
    _level(updates, lengths, tokens_per_update)
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
    sizes = lengths[update].sum(axis=1)
    total = np.cumsum(sizes)
    cuts = np.searchsorted(total, total[-1] * np.arange(1, parts) / parts)
    cuts = np.array([_widest_step(sizes, cut, reach=len(update) // (8 * parts)) for cut in cuts], dtype=int)
    # Each part needs an example of its own: push cuts apart from the left, then back from the right.
    steps = np.arange(1, parts)
    cuts = np.maximum.accumulate(cuts - steps).clip(0) + steps
    cuts = np.minimum(cuts, len(update) - parts + steps)
    return np.split(update, cuts)


def _widest_step(sizes: np.ndarray, cut: int, reach: int) -> int:
    """Return the place near `cut` where sizes jump most: one long example would pad a whole micro-batch."""
    low, high = max(1, cut - reach), min(len(sizes) - 1, cut + reach)
    return low + int(np.argmax(sizes[low : high + 1] - sizes[low - 1 : high])) if low <= high else cut


def accumulation_steps(tokens_per_update: int, tokens_per_device: int, world_size: int) -> int:
    """Return into how many micro-batches each process cuts its share of an update.

    As many as memory asks for; and up to one for each stratum of lengths, as long as a micro-batch keeps
    `MIN_MICRO_BATCH` tokens: on Multi30k an update in one piece is 45 % padding, in eight 5.5 % (LOG 2026-11-23).
    """
    for_memory = -(-tokens_per_update // (tokens_per_device * world_size))
    for_padding = min(NUM_STRATA, tokens_per_update // MIN_MICRO_BATCH) // world_size
    return max(1, for_memory, for_padding)


def _number_of_updates(sizes: np.ndarray, tokens_per_update: int) -> int:
    """Return how many updates an epoch has, a little more than tokens / budget, for chunks do not fill to the brim."""
    strata = np.array_split(np.sort(sizes), NUM_STRATA)
    brim = sum(int(stratum[-1]) for stratum in strata if len(stratum)) // 2
    room = max(tokens_per_update - brim, tokens_per_update // 2)
    return 1 if sizes.sum() <= tokens_per_update else min(len(sizes), -(-int(sizes.sum()) // room))


def _share_by_tokens(sizes: np.ndarray, count: int) -> np.ndarray:
    """Return for each example, in order, which of `count` runs of near-equal token count it falls into."""
    starts = np.cumsum(sizes) - sizes
    return starts * count // max(1, int(sizes.sum()))


def _deal(pool: np.ndarray, lengths: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Deal a pool's examples to `count` updates, a chunk of each stratum of lengths to each of them."""
    source, target = lengths[pool].T
    order = pool[np.lexsort((rng.random(len(pool)), source, target))]
    chunk = _share_by_tokens(lengths[order].sum(axis=1), count * NUM_STRATA)
    owners = rng.permuted(np.tile(np.arange(count), (NUM_STRATA, 1)), axis=1).ravel()  # chunk -> update
    owner = owners[chunk]
    by_update = order[np.argsort(owner, kind="stable")]
    return np.split(by_update, np.cumsum(np.bincount(owner, minlength=count))[:-1])


def _level(updates: list[np.ndarray], lengths: np.ndarray, tokens_per_update: int) -> None:
    """Move single examples until no update is over its budget and none is empty; few ever have to move."""
    sizes = lengths.sum(axis=1)
    loads = np.array([sizes[update].sum() for update in updates])
    while loads.max() > tokens_per_update or loads.min() == 0:
        giver, taker = int(loads.argmax()), int(loads.argmin())
        given = updates[giver][0]  # the shortest
        if loads[taker] + sizes[given] > tokens_per_update:
            return  # only where examples of more than half a budget crowd together
        updates[giver] = updates[giver][1:]
        joined = np.append(updates[taker], given)
        updates[taker] = joined[np.lexsort(lengths[joined].T)]
        loads[[giver, taker]] += sizes[given] * np.array([-1, 1])


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
        return plan_updates(self.lengths, tokens_per_update=self.tokens_per_update, seed=self.seed, epoch=epoch)

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

    batch_sampler: UpdateSampler

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration walks through."""
        self.batch_sampler.set_epoch(epoch)
