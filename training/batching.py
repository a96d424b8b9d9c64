"""Which examples learn together: an epoch as a list of updates, and an update as micro-batches.

`tokens_per_update` is meaning: it fixes what one optimizer step learns from, counted in real source + target tokens.
World size and accumulation are mechanics: they cut the same update into more or fewer pieces. So the plan depends on
(lengths, seed, epoch) alone, and the number of devices changes the speed, never the sequence of updates.

Padding is computed and learns nothing, so a micro-batch should hold sentences of near-equal length. An update should
not: where length goes with language or format, updates of one length teach one thing at a time (the date demo had
learned 45 % after 300 sorted updates, and 97 % after 300 random ones; LOG 2026-11-23). Both are had at once:

    a random order -> pools of 64 updates and more -> each pool sorted by both lengths, cut into chunks
    -> every update is dealt one chunk of each stratum of lengths, short to long
    -> its micro-batches are runs of its own, sorted examples

Both lengths count: with the target as the first key and the source as the second, running up and down in turns (a snake
through the plane of lengths), neighbours hardly differ on either side.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler

logger = logging.getLogger(__name__)

POOL_UPDATES = 64
"""Updates, at least, whose examples are sorted together: more pad less and repeat neighbours more (LOG 2026-11-23)."""

MIN_STRATA = 3
"""Classes of length, at least, from which every update gets its share: it learns as well as from 8, in fewer and larger
micro-batches (LOG 2026-11-23)."""

STRATUM_TOKENS = 2048
"""Tokens that a large update has for each of its strata: it has more of them than a small one."""

IMBALANCE = 1.02
"""How much dearer than the fairest cut allows a micro-batch may be, where that saves padding (LOG 2026-11-23)."""

MAX_PLACES = 128
"""Places in an update at which a cut is considered, unless there are many parts."""

MAX_PARTS = 64
"""Micro-batches that are cut at once; more are cut by halves, for the cost of the search grows with the square."""

ATTEMPTS = 5
"""Random deals that are tried before the examples are dealt by size; the first one nearly always fits."""

COSTED_UPDATES = 8
"""Updates on which numbers of micro-batches are compared."""

HEADROOM = 0.95
"""Share of `tokens_per_device` that the sampled updates may fill, so that those of all epochs fit."""

CPU_OVERHEAD, ACCELERATOR_OVERHEAD = 128, 4096
"""What a micro-batch costs before its first token, in tokens: 40 to 110 measured on a CPU with the presets tiny to base
(LOG 2026-11-23), thousands on a GPU, where hundreds of kernels are launched for however little work."""


def plan_updates(
    lengths: np.ndarray, *, tokens_per_update: int, seed: int, epoch: int, num_updates: int | None = None
) -> list[np.ndarray]:
    """Cut an epoch into updates of near-equal token count, each with short and long examples.

    Args:
        lengths: (examples, 2) source and target lengths in tokens.
        tokens_per_update: most source + target tokens in an update, padding not counted.
        seed: of the run.
        epoch: counted from 0; each has its own order.
        num_updates: as many, where lengths change from epoch to epoch and the number must not; None: as few as fit.

    Returns:
        Updates in the order in which they are learned: arrays of example indices, ordered so that neighbours are alike
        in length. Together they hold each example exactly once, none is over budget, and there are as many of them, and
        none with fewer than `PlanSize.fewest_examples`, in every epoch.

    Raises:
        ValueError: when an example alone has more than `tokens_per_update` tokens, there are no examples, or they do
            not make `num_updates`.
    """
    size = plan_size(lengths, tokens_per_update, num_updates)
    sizes = token_counts(lengths)
    rng = np.random.default_rng((seed, epoch))
    for _ in range(ATTEMPTS):
        order = rng.permutation(np.arange(len(sizes), dtype=_index_type(len(sizes))))
        updates = _deal_pools(order, lengths, sizes, size.num_updates, _number_of_strata(tokens_per_update), rng)
        if _level(updates, lengths, sizes, tokens_per_update, size.fewest_examples):
            break
    else:
        updates = _sorted_updates(order, lengths, sizes, size.runs)
    return [updates[i] for i in rng.permutation(len(updates))]


@dataclass(frozen=True)
class PlanSize:
    """What is the same in every epoch of a plan."""

    num_updates: int
    """Updates an epoch."""
    fewest_examples: int
    """No update has fewer, whatever the epoch: so many micro-batches can always be fed."""
    runs: np.ndarray
    """(num_updates,) how many examples each update would get if they were dealt by size, largest first."""


def plan_size(lengths: np.ndarray, tokens_per_update: int, num_updates: int | None = None) -> PlanSize:
    """Return how many updates an epoch has, and how many examples each of them has at least; no epoch is planned.

    Updates are a little more than tokens / budget, for chunks do not fill to the brim. That they suffice in every epoch
    is known from one way to fill them that always works: the examples by size, each update filled until the next one
    does not fit.

    Args:
        lengths: (examples, 2) source and target lengths in tokens.
        tokens_per_update: most source + target tokens in an update.
        num_updates: as many; None: as few as fit.

    Raises:
        ValueError: as `plan_updates`.
    """
    sizes = token_counts(lengths)
    _refuse_unplannable(sizes, tokens_per_update)
    falling = np.sort(sizes)[::-1]
    total = np.cumsum(falling, dtype=np.int64)
    if total[-1] <= tokens_per_update and num_updates in (None, 1):
        return PlanSize(1, len(sizes), np.array([len(sizes)]))
    runs = _level_last(np.diff(_fill(total, tokens_per_update), prepend=0))
    num_strata = _number_of_strata(tokens_per_update)
    brim, above = _spare_room(falling, num_strata, tokens_per_update)
    wanted = num_updates or -(-(int(total[-1]) + above) // (tokens_per_update - brim))
    runs = _halve_longest(runs, wanted - len(runs))
    while num_updates and len(runs) < num_updates and runs.max() > 1:
        runs = _halve_longest(runs, num_updates - len(runs))
    if num_updates not in (None, len(runs)):
        raise ValueError(
            f"{len(sizes)} examples with {int(total[-1])} tokens do not make {num_updates} updates of at most "
            f"tokens_per_update={tokens_per_update}; let num_updates be {len(runs)}."
        )
    fewest = int(runs.min()) // 2
    if brim <= tokens_per_update // 4:
        fewest = max(fewest, _fewest_dealt(falling, total, len(runs), num_strata) // 2)
    return PlanSize(len(runs), max(1, fewest), runs)


def _spare_room(falling: np.ndarray, num_strata: int, tokens_per_update: int) -> tuple[int, int]:
    """Return the tokens that an update leaves free for chunks that come out long, and those for outliers, over all.

    A chunk overshoots by half its longest example on average. The longest one in a hundred of the longest stratum are
    few and find room one by one.
    """
    ranks = np.arange(num_strata) * len(falling) // num_strata
    ranks[0] = len(falling) // (100 * num_strata)
    longest = falling[ranks]  # of each stratum
    return min(int(longest.sum()) // 2, tokens_per_update // 2), int((falling[: ranks[0]] - longest[0]).sum())


def token_counts(lengths: np.ndarray) -> np.ndarray:
    """Return (examples,) source + target tokens of each example."""
    return np.add(lengths[:, 0], lengths[:, 1], dtype=np.int32, casting="same_kind")


def padded_size(lengths: np.ndarray, *, packed: bool = False) -> int:
    """Return the places that a micro-batch of examples with these (examples, 2) lengths takes, padding included.

    Packed sentences stand side by side and have none.
    """
    return int(lengths.sum()) if packed else len(lengths) * int(lengths[:, 0].max() + lengths[:, 1].max())


def _refuse_unplannable(sizes: np.ndarray, tokens_per_update: int) -> None:
    if len(sizes) == 0:
        raise ValueError("there are no examples to plan updates from; check the training files and the length limits.")
    longest = int(sizes.max())
    if longest > tokens_per_update:
        raise ValueError(
            f"example {int(sizes.argmax())} has {longest} source + target tokens, more than "
            f"tokens_per_update={tokens_per_update}; raise it, or lower max_source_length and max_target_length."
        )


def _index_type(count: int) -> type[np.signedinteger]:
    return np.int32 if count <= np.iinfo(np.int32).max else np.int64


def _number_of_strata(tokens_per_update: int) -> int:
    return max(MIN_STRATA, tokens_per_update // STRATUM_TOKENS)


def _fill(total: np.ndarray, capacity: int) -> np.ndarray:
    """Return where runs end when each is filled to `capacity`; `total` counts the tokens up to each example."""
    ends: list[int] = []
    spent = 0
    while not ends or ends[-1] < len(total):
        ends.append(int(np.searchsorted(total, spent + capacity, side="right")))
        spent = int(total[ends[-1] - 1])
    return np.array(ends)


def _level_last(runs: np.ndarray) -> np.ndarray:
    """Share the examples of the last two runs evenly where the last one is a short rest; both fit, sizes fall."""
    if len(runs) == 1 or runs[-1] >= runs[-2]:
        return runs
    rest = int(runs[-2:].sum())
    return np.array([*runs[:-2], rest - rest // 2, rest // 2])


def _fewest_dealt(falling: np.ndarray, total: np.ndarray, num_updates: int, num_strata: int) -> int:
    """Return how many examples an update gets at least when it is dealt a chunk of equal tokens of each stratum.

    A chunk may be short of its share by one example. A pool's strata are not quite those of all examples, so each
    counts as if it were as long as the one above.
    """
    share = int(total[-1]) // (num_updates * num_strata)
    starts = np.searchsorted(total, total[-1] * np.arange(num_strata - 1) // num_strata, side="right")
    return int((np.maximum(share - falling[starts], 0) // falling[starts]).sum())


def _halve_longest(runs: np.ndarray, times: int) -> np.ndarray:
    """Cut up to `times` runs of examples in two, those with the most examples, and never one of a single example."""
    longest = np.argsort(-runs, kind="stable")[: max(0, times)]
    longest = np.sort(longest[runs[longest] > 1])
    halves = runs[longest] // 2
    runs = runs.copy()
    runs[longest] -= halves
    return np.insert(runs, longest, halves)


# Dealing an epoch -----------------------------------------------------------------------------------------------------


def _deal_pools(
    order: np.ndarray, lengths: np.ndarray, sizes: np.ndarray, num_updates: int, strata: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Cut a random order into pools of near-equal token count, and deal each to its updates."""
    num_pools = max(1, num_updates // POOL_UPDATES)
    first_update = np.arange(num_pools + 1) * num_updates // num_pools  # of each pool
    total = np.cumsum(sizes[order], dtype=np.int64)
    pools = np.split(order, np.searchsorted(total, total[-1] * first_update[1:-1] // num_updates))
    del total
    updates: list[np.ndarray] = []
    for pool, count in zip(pools, np.diff(first_update), strict=True):
        updates += _deal(pool, lengths[pool], int(count), strata, rng)
    return updates


def _deal(
    pool: np.ndarray, lengths: np.ndarray, num_updates: int, strata: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Deal a pool's examples to its updates, to each a chunk of each stratum; among equals their random order stays."""
    by_length = _snake(lengths)
    total = np.cumsum(token_counts(lengths)[by_length], dtype=np.int64)
    num_chunks = num_updates * strata
    edges = np.searchsorted(total, total[-1:] * np.arange(1, num_chunks) // num_chunks)
    chunk_sizes = np.diff(edges, prepend=0, append=len(pool))
    owner_of_chunk = rng.permuted(np.tile(np.arange(num_updates, dtype=np.int16), (strata, 1)), axis=1).ravel()
    owner = np.repeat(owner_of_chunk, chunk_sizes)
    dealt = pool[by_length[np.argsort(owner, kind="stable")]]
    return np.split(dealt, np.cumsum(np.bincount(owner, minlength=num_updates))[:-1])


def _snake(lengths: np.ndarray) -> np.ndarray:
    """Return the order by target length, the source rising where that is even and falling where it is odd."""
    source, target = lengths.astype(np.int64, copy=False).T
    width = int(source.max(initial=0)) + 1
    return np.argsort(target * width + np.where(target % 2, width - 1 - source, source), kind="stable")


def _level(
    updates: list[np.ndarray], lengths: np.ndarray, sizes: np.ndarray, tokens_per_update: int, fewest_examples: int
) -> bool:
    """Move single examples until no update is over budget and none has too few; few ever have to move.

    Returns:
        Whether it worked out: not always where examples of half a budget and more crowd together.
    """
    loads = np.array([sizes[update].sum() for update in updates], dtype=np.int64)
    counts = np.array([len(update) for update in updates])
    while True:
        over = int(loads.max()) - tokens_per_update
        if over > 0:
            giver, taker = int(loads.argmax()), int(loads.argmin())
        elif counts.min() < fewest_examples:
            giver, taker = int(counts.argmax()), int(counts.argmin())
        else:
            return True
        offered = sizes[updates[giver]].astype(float)
        offered[offered > tokens_per_update - loads[taker]] = np.inf  # finds no room there
        place = int(np.abs(offered - max(over, 0)).argmin())
        if giver == taker or np.isinf(offered[place]):
            return False
        given = updates[giver][place]
        joined = np.append(updates[taker], given)
        updates[taker] = joined[_snake(lengths[joined])]
        updates[giver] = np.delete(updates[giver], place)
        loads[[giver, taker]] += sizes[given] * np.array([-1, 1])
        counts[[giver, taker]] += (-1, 1)


def _sorted_updates(order: np.ndarray, lengths: np.ndarray, sizes: np.ndarray, runs: np.ndarray) -> list[np.ndarray]:
    """Return updates by size, largest first: full, but not mixed. The way out where nothing else fits."""
    falling = order[np.argsort(-sizes[order], kind="stable")]
    updates = np.split(falling, np.cumsum(runs)[:-1])
    return [update[_snake(lengths[update])] for update in updates]


# Cutting an update ----------------------------------------------------------------------------------------------------


def cut_update(
    update: np.ndarray, lengths: np.ndarray, parts: int, tokens_per_device: int | None = None, *, packed: bool = False
) -> list[np.ndarray]:
    """Cut one update into micro-batches of near-equal cost with as little padding as such a cut allows; none is empty.

    Args:
        update: indices of its examples, ordered by length as `plan_updates` leaves them.
        lengths: (examples, 2) source and target lengths in tokens.
        parts: world size x accumulation steps.
        tokens_per_device: most places of a micro-batch, padding included; kept wherever a cut can keep it.
        packed: sentences are packed, so that there is no padding.

    Returns:
        `parts` arrays of indices, runs of `update`; parts `k * world size` to `(k + 1) * world size` are neighbours and
        are computed at the same time.

    Raises:
        ValueError: when there are fewer examples than parts.
    """
    if len(update) < parts:
        raise ValueError(
            f"an update of {len(update)} examples cannot feed {parts} micro-batches (processes x accumulation steps); "
            f"raise tokens_per_update or use fewer processes."
        )
    if parts > MAX_PARTS:
        left, right = parts // 2, parts - parts // 2
        total = np.cumsum(token_counts(lengths[update]), dtype=np.int64)
        middle = int(np.clip(np.searchsorted(total, total[-1] * left // parts), left, len(update) - right))
        return [
            *cut_update(update[:middle], lengths, left, tokens_per_device, packed=packed),
            *cut_update(update[middle:], lengths, right, tokens_per_device, packed=packed),
        ]
    return np.split(update, _cheapest_cuts(lengths[update], parts, tokens_per_device, packed))


def _cheapest_cuts(lengths: np.ndarray, parts: int, capacity: int | None, packed: bool) -> np.ndarray:
    """Return the places of the cuts of least padding, among those that are near fair and keep `capacity` if any do."""
    places = _places(lengths, parts)
    costs = _run_costs(lengths, places, packed)
    fairest, _ = _cut(costs, parts, np.maximum)
    limit = fairest * IMBALANCE
    if capacity is not None:
        limit = max(fairest, min(limit, capacity))
    _, cuts = _cut(np.where(costs <= limit, costs, np.inf), parts, np.add)
    return places[cuts]


def _places(lengths: np.ndarray, parts: int) -> np.ndarray:
    """Return where a cut is considered, both ends included: everywhere, or at wide steps and at even distances."""
    count = len(lengths)
    most = max(MAX_PLACES, 4 * parts)
    if count <= most:
        return np.arange(count + 1)
    steps = np.abs(np.diff(lengths, axis=0)).sum(axis=1)
    widest = 1 + np.argsort(-steps, kind="stable")[: most // 2]
    return np.union1d(widest, np.arange(most // 2 + 1) * count // (most // 2))


def _run_costs(lengths: np.ndarray, places: np.ndarray, packed: bool) -> np.ndarray:
    """Return (places, places) the padded size of the run from one place to another; infinite where there is none."""
    if packed:
        total = np.concatenate([[0], np.cumsum(token_counts(lengths), dtype=np.int64)])[places]
        costs = (total[None] - total[:, None]).astype(float)
        return np.where(costs > 0, costs, np.inf)
    longest = np.maximum.reduceat(lengths, places[:-1], axis=0)  # (places - 1, 2), between neighbouring places
    is_run = np.triu(np.ones((len(longest), len(longest)), dtype=bool))
    widths = sum(np.maximum.accumulate(np.where(is_run, side, 0), axis=1) for side in longest.T)
    rows = places[None, 1:] - places[:-1, None]
    costs = np.full((len(places), len(places)), np.inf)
    costs[:-1, 1:] = np.where(is_run, rows * widths, np.inf)
    return costs


def _cut(costs: np.ndarray, parts: int, combine: np.ufunc) -> tuple[float, np.ndarray]:
    """Return the least combined cost of `parts` runs from the first place to the last, and the cuts between them."""
    best, came_from = costs[0], []
    for _ in range(parts - 1):
        through = combine(best[:, None], costs)  # (last cut, end)
        came_from.append(through.argmin(axis=0))
        best = through.min(axis=0)
    cuts = [len(costs) - 1]
    for previous in reversed(came_from):
        cuts.append(int(previous[cuts[-1]]))
    return float(best[-1]), np.array(cuts[:0:-1], dtype=int)


# How many parts -------------------------------------------------------------------------------------------------------


def accumulation_steps(
    lengths: np.ndarray,
    *,
    tokens_per_update: int,
    tokens_per_device: int,
    world_size: int = 1,
    overhead: int = CPU_OVERHEAD,
    packed: bool = False,
) -> int:
    """Return into how many micro-batches each process cuts its share of an update.

    So many that they fit into memory, and of those the number that costs least on a sample of the updates: one piece of
    mixed lengths is half padding, and every further piece costs its overhead.

    Args:
        lengths: (examples, 2) source and target lengths in tokens.
        tokens_per_update: most source + target tokens in an update.
        tokens_per_device: most places of a micro-batch, padding included.
        world_size: processes that share an update.
        overhead: what a micro-batch costs before its first token, in tokens.
        packed: sentences are packed, so that there is no padding.

    Raises:
        ValueError: when an example does not fit into a micro-batch, or updates may have too few examples for the
            processes or for micro-batches so small.
    """
    _refuse_too_long(lengths, tokens_per_device)
    fewest = plan_size(lengths, tokens_per_update).fewest_examples
    refuse_too_many_parts(fewest, tokens_per_update, world_size)
    updates, sample = _sample_updates(lengths, tokens_per_update)
    tried = _steps_to_try(tokens_per_update, tokens_per_device, world_size, fewest // world_size)
    costs = {steps: _slot_costs(updates[:COSTED_UPDATES], sample, steps, world_size, packed) for steps in tried}
    limit = max(HEADROOM * tokens_per_device, sample.sum(axis=1).max())
    for steps in sorted(tried, key=lambda steps: float((costs[steps] + overhead).sum())):
        if costs[steps].max() <= limit and _slot_costs(updates, sample, steps, world_size, packed).max() <= limit:
            return steps
    raise ValueError(
        f"tokens_per_device={tokens_per_device} is too small: cut into {tried[-1] * world_size} micro-batches, as many "
        f"as updates of tokens_per_update={tokens_per_update} can feed, the largest has {int(costs[tried[-1]].max())} "
        f"tokens with padding; raise tokens_per_device to {int(costs[tried[-1]].max() / HEADROOM) + 1}."
    )


def refuse_too_many_parts(fewest_examples: int, tokens_per_update: int, parts: int) -> None:
    """Refuse a run in which an update might leave a process without an example.

    Raises:
        ValueError: before anything is trained.
    """
    if parts > fewest_examples:
        raise ValueError(
            f"an update of tokens_per_update={tokens_per_update} may have as few as {fewest_examples} examples, "
            f"too few for {parts} micro-batches (processes x accumulation steps); raise tokens_per_update, lower "
            f"max_source_length and max_target_length, or use fewer processes."
        )


def _refuse_too_long(lengths: np.ndarray, tokens_per_device: int) -> None:
    sizes = token_counts(lengths)
    longest = int(sizes.max(initial=0))
    if longest > tokens_per_device:
        raise ValueError(
            f"{int((sizes > tokens_per_device).sum())} training examples are longer than "
            f"tokens_per_device={tokens_per_device}, the longest has {longest} source + target tokens; raise "
            f"tokens_per_device to {longest}, or lower max_source_length and max_target_length."
        )


def _sample_updates(lengths: np.ndarray, tokens_per_update: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the updates of one pool's worth of examples, and their lengths: the longest of all, and random ones."""
    sizes = token_counts(lengths)
    count = min(len(sizes), int(POOL_UPDATES * tokens_per_update / sizes.mean()))
    longest = np.argpartition(-sizes, min(POOL_UPDATES, len(sizes) - 1))[:POOL_UPDATES]
    picked = np.union1d(longest, np.random.default_rng(0).choice(len(sizes), count, replace=False))
    sample = lengths[picked]
    return plan_updates(sample, tokens_per_update=tokens_per_update, seed=0, epoch=0), sample


def _steps_to_try(tokens_per_update: int, tokens_per_device: int, world_size: int, most: int) -> list[int]:
    """Return numbers of steps from what real tokens alone need to well beyond what padding can ask for."""
    steps = [max(1, min(most, -(-tokens_per_update // (tokens_per_device * world_size * 2))))]
    end = min(most, 4 * max(steps[0], -(-_number_of_strata(tokens_per_update) // world_size)))
    while steps[-1] < end:
        steps.append(min(end, steps[-1] + max(1, steps[-1] // 8)))
    return steps


def _slot_costs(
    updates: list[np.ndarray], lengths: np.ndarray, steps: int, world_size: int, packed: bool
) -> np.ndarray:
    """Return (updates, steps) the padded size of the largest of the micro-batches that run at the same time."""
    parts = steps * world_size
    cuts = (cut_update(update, lengths, parts, packed=packed) for update in updates)
    sizes = [[padded_size(lengths[part], packed=packed) for part in cut] for cut in cuts]
    return np.array(sizes).reshape(len(updates), steps, world_size).max(axis=2)


# One process's share --------------------------------------------------------------------------------------------------


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
        tokens_per_device: int | None = None,
        num_updates: int | None = None,
        packed: bool = False,
    ) -> None:
        """Plan for one of `world_size` processes.

        Args:
            lengths: (examples, 2) source and target lengths in tokens.
            tokens_per_update: most source + target tokens in an update.
            seed: of the run.
            accumulation_steps: micro-batches an update that this process computes one after the other.
            world_size: processes that share an update.
            rank: this process's number.
            tokens_per_device: most places of a micro-batch, padding included; None: as many as it takes.
            num_updates: updates an epoch, where lengths change between them; None: as few as fit.
            packed: sentences are packed, so that there is no padding.

        Raises:
            ValueError: when an update of any epoch might have fewer examples than micro-batches.
        """
        size = plan_size(lengths, tokens_per_update, num_updates)
        refuse_too_many_parts(size.fewest_examples, tokens_per_update, accumulation_steps * world_size)
        self.lengths = lengths
        self.tokens_per_update = tokens_per_update
        self.tokens_per_device = tokens_per_device
        self.seed = seed
        self.packed = packed
        self.accumulation_steps = accumulation_steps
        self.world_size = world_size
        self.rank = rank
        self.epoch = 0
        self.num_updates = size.num_updates
        """Updates an epoch, the same in all of them."""
        self.num_oversized = 0
        """Micro-batches of this process so far that did not fit `tokens_per_device`."""

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Return the updates of an epoch, the same for every process."""
        return plan_updates(self.lengths, tokens_per_update=self.tokens_per_update, seed=self.seed, epoch=epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration walks through."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_updates * self.accumulation_steps

    def __iter__(self) -> Iterator[list[int]]:
        parts = self.accumulation_steps * self.world_size
        for update in self.plan(self.epoch):
            cut = cut_update(update, self.lengths, parts, self.tokens_per_device, packed=self.packed)
            for micro_batch in cut[self.rank :: self.world_size]:
                self._count_oversized(micro_batch)
                yield micro_batch.tolist()

    def _count_oversized(self, micro_batch: np.ndarray) -> None:
        """Say so, once, when a micro-batch is larger than it was asked to be."""
        size = padded_size(self.lengths[micro_batch], packed=self.packed)
        if self.tokens_per_device is None or size <= self.tokens_per_device:
            return
        if not self.num_oversized:
            logger.warning(
                "A micro-batch of %s tokens with padding is over tokens_per_device=%s: no cut of its update into %s "
                "micro-batches keeps it. If memory runs out, lower tokens_per_device and start again.",
                size,
                self.tokens_per_device,
                self.accumulation_steps * self.world_size,
            )
        self.num_oversized += 1


class UpdateLoader(DataLoader[Dataset]):
    """A DataLoader that passes the epoch on to its sampler, which is where Trainer announces it."""

    batch_sampler: UpdateSampler

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration walks through."""
        self.batch_sampler.set_epoch(epoch)
