"""Which examples learn together: an epoch as a list of updates, and an update as micro-batches.

`tokens_per_update` fixes what one optimizer step learns from, counted in source + target tokens without padding. The
numbers of processes and of accumulation steps only say into how many micro-batches the same update is cut. So the plan
depends on (lengths, seed, epoch) alone: more devices make a run faster and do not change its updates.

Padding is computed and teaches nothing, so the sentences of a micro-batch should have nearly the same length. Those of
an update should not: length often goes with language or format, and then an update of one length teaches one thing only
(the date demo had learned 45 % after 300 sorted updates, and 97 % after 300 random ones; LOG: mixed updates). So:

    all examples in random order -> pools of at least 64 updates -> each pool sorted by length, cut into strata
    -> each stratum cut into one chunk for every update of the pool
    -> an update is one chunk of each stratum, from short to long
    -> a micro-batch is a run of neighbours in this order

Both lengths count. Examples are sorted by target length, and among equal targets by source length: rising for one
target length, falling for the next. So neighbours hardly differ on either side.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler

if TYPE_CHECKING:
    from transformers import TrainingArguments

logger = logging.getLogger(__name__)

POOL_UPDATES = 64
"""Least number of updates in a pool. Larger pools pad less, but bring the same examples together again more often
(LOG: padding)."""

MIN_STRATA = 3
"""Least number of strata. Three teach as well as eight, and allow fewer and larger micro-batches (LOG: strata)."""

STRATUM_TOKENS = 2048
"""A large update has one stratum for each so many of its tokens."""

IMBALANCE = 1.02
"""By this factor the largest micro-batch of an update may be larger than in the most even cut, where that saves padding
(LOG: padding)."""

MAX_CUT_POINTS = 128
"""Cut points that are tried in an update, unless it has more than a quarter as many micro-batches."""

MAX_MICRO_BATCHES = 64
"""For more micro-batches an update is halved first, and each half cut on its own: the time grows with the square of the
cut points."""

ATTEMPTS = 5
"""So many times an epoch is dealt at random before its updates are filled by size instead; nearly always the first
deal keeps the budget."""

COSTED_UPDATES = 8
"""Updates of the sample on which numbers of micro-batches are compared."""

HEADROOM = 0.95
"""Share of `tokens_per_device` that a sample of updates may fill, so that the micro-batches of all epochs fit."""

CPU_OVERHEAD, NARROW_CPU_OVERHEAD, ACCELERATOR_OVERHEAD = 128, 384, 4096
"""What a micro-batch costs however small it is, counted in tokens that could be computed in that time: 40 to 130
measured on a CPU with the presets tiny to base (LOG: padding), 140 to 450 in bf16, which casts all weights for each
(LOG: numbers by measurement), thousands on a GPU, which starts hundreds of kernels for each."""

UNLIMITED = sys.maxsize
"""As many tokens as it takes."""


@dataclass(frozen=True)
class BatchSettings:
    """How a process of a run makes updates of examples, and its micro-batches of updates."""

    tokens_per_update: int
    """Most source + target tokens in an update, padding not counted."""
    tokens_per_device: int = UNLIMITED
    """Most padded tokens that lie in memory at once."""
    packed: bool = False
    """Sentences of a micro-batch stand end to end, without padding."""
    seed: int = 0
    """Of the order of the examples."""
    accumulation_steps: int = 1
    """Micro-batches of an update that a process computes one after the other."""
    world_size: int = 1
    """Processes that share an update."""
    rank: int = 0
    """Number of this process."""
    num_passes: int = 1
    """Forward passes of a micro-batch that lie in memory at once; R-Drop has two."""

    @property
    def tokens_per_pass(self) -> int:
        """Most padded tokens in a micro-batch."""
        return self.tokens_per_device // self.num_passes

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches into which an update is cut, over all processes."""
        return self.accumulation_steps * self.world_size

    def in_run(self, args: "TrainingArguments") -> "BatchSettings":
        """Return these settings for one process of a run, with the four fields that Trainer's arguments know."""
        return replace(
            self,
            seed=args.seed if args.data_seed is None else args.data_seed,
            accumulation_steps=args.gradient_accumulation_steps,
            world_size=args.world_size,
            rank=args.process_index,
        )


# The plan of an epoch -------------------------------------------------------------------------------------------------


def plan_updates(
    lengths: np.ndarray, *, tokens_per_update: int, seed: int, epoch: int, num_updates: int | None = None
) -> list[np.ndarray]:
    """Cut an epoch into updates of near-equal token count, each with short and long examples.

    Args:
        lengths: (examples, 2) source and target lengths in tokens.
        tokens_per_update: most source + target tokens in an update, padding not counted.
        seed: of the run.
        epoch: counted from 0; each has its own order.
        num_updates: how many; None: as few as fit. To be given where lengths change from epoch to epoch (BPE-dropout),
            for the number of updates must not change with them.

    Returns:
        Updates in the order in which they are learned: arrays of example indices, ordered so that neighbours are alike
        in length. Together they hold each example exactly once, and none is over budget. Every epoch has as many, each
        of at least `PlanSize.fewest_examples`.

    Raises:
        ValueError: when an example alone has more than `tokens_per_update` tokens, there are no examples, or they
            cannot be made into `num_updates`.
    """
    size = plan_size(lengths, tokens_per_update, num_updates)
    sizes = token_counts(lengths)
    rng = np.random.default_rng((seed, epoch))
    index_type = np.int32 if len(sizes) <= np.iinfo(np.int32).max else np.int64
    for _ in range(ATTEMPTS):
        order = rng.permutation(np.arange(len(sizes), dtype=index_type))
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
    """No update of any epoch has fewer, so it can be cut into that many micro-batches."""
    runs: np.ndarray
    """(num_updates,) examples of each update in the plan by size: largest first, each update filled before the next."""


def plan_size(lengths: np.ndarray, tokens_per_update: int, num_updates: int | None = None) -> PlanSize:
    """Return how many updates an epoch has, and how many examples each of them has at least, without planning one.

    A few more than tokens / `tokens_per_update`, for chunks of whole examples do not fill an update to the last token.
    Never fewer than in the plan by size, which any epoch can fall back to: examples from the largest to the smallest,
    each update filled until the next example does not fit.

    Args:
        lengths: (examples, 2) source and target lengths in tokens.
        tokens_per_update: most source + target tokens in an update.
        num_updates: how many; None: as few as fit.

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
    """Return the tokens to leave free in each update, and those to add to the epoch's total for its longest examples.

    A chunk exceeds its share of tokens by half of its longest example on average, so each update keeps that much free.
    For the longest 1 % of the longest stratum that would be too much in most updates: the tokens by which they exceed
    the others are added to the epoch's total instead.
    """
    ranks = np.arange(num_strata) * len(falling) // num_strata
    ranks[0] = len(falling) // (100 * num_strata)
    longest = falling[ranks]  # of each stratum
    return min(int(longest.sum()) // 2, tokens_per_update // 2), int((falling[: ranks[0]] - longest[0]).sum())


def token_counts(lengths: np.ndarray) -> np.ndarray:
    """Return (examples,) source + target tokens of each example."""
    return np.add(lengths[:, 0], lengths[:, 1], dtype=np.int32, casting="same_kind")


def padded_tokens(lengths: np.ndarray, *, packed: bool = False) -> int:
    """Return the tokens of both sides, padding included, of a micro-batch with these (examples, 2) lengths.

    Packed sentences stand end to end and need no padding.
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


def _number_of_strata(tokens_per_update: int) -> int:
    return max(MIN_STRATA, tokens_per_update // STRATUM_TOKENS)


def _fill(total: np.ndarray, capacity: int) -> np.ndarray:
    """Return where runs end when each is filled to `capacity`; `total` are the cumulated tokens of the examples."""
    ends: list[int] = []
    spent = 0
    while not ends or ends[-1] < len(total):
        ends.append(int(np.searchsorted(total, spent + capacity, side="right")))
        spent = int(total[ends[-1] - 1])
    return np.array(ends)


def _level_last(runs: np.ndarray) -> np.ndarray:
    """Share the examples of the last two runs evenly if the last has fewer; no run gets too large, for sizes fall."""
    if len(runs) == 1 or runs[-1] >= runs[-2]:
        return runs
    rest = int(runs[-2:].sum())
    return np.array([*runs[:-2], rest - rest // 2, rest // 2])


def _fewest_dealt(falling: np.ndarray, total: np.ndarray, num_updates: int, num_strata: int) -> int:
    """Return how many examples an update gets at least when it is dealt a chunk of equal tokens of each stratum.

    A cautious count: each chunk may lack one example of its share. The strata of a pool differ a little from those of
    all examples, so those of each stratum are taken to be as long as the longest of the stratum above, and those of the
    stratum with the longest examples are not counted.
    """
    share = int(total[-1]) // (num_updates * num_strata)
    starts = np.searchsorted(total, total[-1] * np.arange(num_strata - 1) // num_strata, side="right")
    return int((np.maximum(share - falling[starts], 0) // falling[starts]).sum())


def _halve_longest(runs: np.ndarray, times: int) -> np.ndarray:
    """Halve the runs with the most examples, up to `times` of them; a single example stays whole."""
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
    """Deal a pool's examples to its updates: to each one chunk of each stratum. Equal lengths stay in random order."""
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
    """Return the order by target length; source lengths rise where it is even and fall where it is odd."""
    source, target = lengths.astype(np.int64, copy=False).T
    width = int(source.max(initial=0)) + 1
    return np.argsort(target * width + np.where(target % 2, width - 1 - source, source), kind="stable")


def _level(
    updates: list[np.ndarray], lengths: np.ndarray, sizes: np.ndarray, tokens_per_update: int, fewest_examples: int
) -> bool:
    """Move single examples between updates, in place, until none is over budget or has too few; few have to move.

    Returns:
        Whether that succeeded; it may fail where many examples fill half an update or more.
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
        offered[offered > tokens_per_update - loads[taker]] = np.inf  # it has no room for these
        best = int(np.abs(offered - max(over, 0)).argmin())
        if giver == taker or np.isinf(offered[best]):
            return False
        given = updates[giver][best]
        joined = np.append(updates[taker], given)
        updates[taker] = joined[_snake(lengths[joined])]
        updates[giver] = np.delete(updates[giver], best)
        loads[[giver, taker]] += sizes[given] * np.array([-1, 1])
        counts[[giver, taker]] += (-1, 1)


def _sorted_updates(order: np.ndarray, lengths: np.ndarray, sizes: np.ndarray, runs: np.ndarray) -> list[np.ndarray]:
    """Return the plan by size, which always fits: examples from the largest to the smallest, cut into these runs."""
    falling = order[np.argsort(-sizes[order], kind="stable")]
    updates = np.split(falling, np.cumsum(runs)[:-1])
    return [update[_snake(lengths[update])] for update in updates]


# Cutting an update ----------------------------------------------------------------------------------------------------


def cut_update(
    update: np.ndarray,
    lengths: np.ndarray,
    num_micro_batches: int,
    tokens_per_device: int = UNLIMITED,
    *,
    packed: bool = False,
) -> list[np.ndarray]:
    """Cut an update into micro-batches of nearly equal cost, none of them empty, with the least padding that allows.

    Args:
        update: indices of its examples, ordered by length as `plan_updates` leaves them.
        lengths: (examples, 2) source and target lengths in tokens.
        num_micro_batches: world size x accumulation steps.
        tokens_per_device: most padded tokens in a micro-batch; exceeded only where every cut exceeds it.
        packed: sentences stand end to end, without padding.

    Returns:
        Arrays of indices, each a run of `update`. Micro-batches `k * world size` to `(k + 1) * world size` are computed
        at the same time, one on each process.

    Raises:
        ValueError: when there are fewer examples than micro-batches.
    """
    if len(update) < num_micro_batches:
        raise ValueError(
            f"an update of {len(update)} examples cannot feed {num_micro_batches} micro-batches (processes x "
            f"accumulation steps); raise tokens_per_update or use fewer processes."
        )
    if num_micro_batches > MAX_MICRO_BATCHES:
        left, right = num_micro_batches // 2, num_micro_batches - num_micro_batches // 2
        total = np.cumsum(token_counts(lengths[update]), dtype=np.int64)
        middle = np.searchsorted(total, total[-1] * left // num_micro_batches)
        middle = int(np.clip(middle, left, len(update) - right))
        return [
            *cut_update(update[:middle], lengths, left, tokens_per_device, packed=packed),
            *cut_update(update[middle:], lengths, right, tokens_per_device, packed=packed),
        ]
    return np.split(update, _cheapest_cut(lengths[update], num_micro_batches, tokens_per_device, packed))


def _cheapest_cut(lengths: np.ndarray, num_micro_batches: int, tokens_per_device: int, packed: bool) -> np.ndarray:
    """Return where to cut for the least padding: nearly evenly, and within `tokens_per_device` if that can be."""
    cut_points = _cut_points(lengths, num_micro_batches)
    costs = _run_costs(lengths, cut_points, packed)
    most_even, _ = _best_cut(costs, num_micro_batches, np.maximum)
    limit = max(most_even, min(most_even * IMBALANCE, tokens_per_device))
    _, cut = _best_cut(np.where(costs <= limit, costs, np.inf), num_micro_batches, np.add)
    return cut_points[cut]


def _cut_points(lengths: np.ndarray, num_micro_batches: int) -> np.ndarray:
    """Return where a cut is tried, both ends included.

    In a small update that is between any two examples. In a large one half of the cut points are where lengths change
    most from one example to the next, the others at even distances.
    """
    count = len(lengths)
    most = max(MAX_CUT_POINTS, 4 * num_micro_batches)
    if count <= most:
        return np.arange(count + 1)
    changes = np.abs(np.diff(lengths, axis=0)).sum(axis=1)
    largest = 1 + np.argsort(-changes, kind="stable")[: most // 2]
    return np.union1d(largest, np.arange(most // 2 + 1) * count // (most // 2))


def _run_costs(lengths: np.ndarray, cut_points: np.ndarray, packed: bool) -> np.ndarray:
    """Return (cut points, cut points) padded tokens of the examples between two of them; infinite if there are none."""
    if packed:
        total = np.concatenate([[0], np.cumsum(token_counts(lengths), dtype=np.int64)])[cut_points]
        costs = (total[None] - total[:, None]).astype(float)
        return np.where(costs > 0, costs, np.inf)
    longest = np.maximum.reduceat(lengths, cut_points[:-1], axis=0)  # (cut points - 1, 2), between neighbours
    is_run = np.triu(np.ones((len(longest), len(longest)), dtype=bool))
    widths = sum(np.maximum.accumulate(np.where(is_run, side, 0), axis=1) for side in longest.T)
    rows = cut_points[None, 1:] - cut_points[:-1, None]
    costs = np.full((len(cut_points), len(cut_points)), np.inf)
    costs[:-1, 1:] = np.where(is_run, rows * widths, np.inf)
    return costs


def _best_cut(costs: np.ndarray, num_micro_batches: int, combine: np.ufunc) -> tuple[float, np.ndarray]:
    """Return the least cost of a cut, and the cut: indices into the cut points, ends left out.

    Args:
        costs: (cut points, cut points) of the micro-batch between two of them.
        num_micro_batches: how many micro-batches the cut makes.
        combine: makes one cost of two: the sum, or the maximum.
    """
    best, came_from = costs[0], []
    for _ in range(num_micro_batches - 1):
        through = combine(best[:, None], costs)  # (last cut, end)
        came_from.append(through.argmin(axis=0))
        best = through.min(axis=0)
    cut = [len(costs) - 1]
    for previous in reversed(came_from):
        cut.append(int(previous[cut[-1]]))
    return float(best[-1]), np.array(cut[:0:-1], dtype=int)


# How many micro-batches -----------------------------------------------------------------------------------------------


def accumulation_steps(lengths: np.ndarray, settings: BatchSettings, *, overhead: int = CPU_OVERHEAD) -> int:
    """Return into how many micro-batches each process cuts its share of an update.

    Of the numbers that keep `tokens_per_device`, the one that costs least on a sample of updates: a few micro-batches
    of mixed lengths are half padding, and each further one costs its overhead.

    Args:
        lengths: (examples, 2) source and target lengths in tokens.
        settings: of the run; its own `accumulation_steps` and `rank` are not read.
        overhead: what a micro-batch costs however small it is, see `CPU_OVERHEAD`.

    Raises:
        ValueError: when an example does not fit into a micro-batch, or updates may have too few examples for the
            processes or for micro-batches so small.
    """
    steps, needed = _cheapest_steps(lengths, settings, overhead)
    if steps:
        return steps
    enough = needed
    while not _cheapest_steps(lengths, replace(settings, tokens_per_device=enough), overhead)[0]:
        enough += enough // 8 + 1  # larger micro-batches are fewer, and not each number of them is tried
    raise ValueError(
        f"tokens_per_device={settings.tokens_per_device} is too small: the smallest micro-batches that updates of "
        f"tokens_per_update={settings.tokens_per_update} can be cut into have {needed:,} tokens with padding"
        f"{_because_of_passes(settings)}; {_remedies(lengths, settings, overhead, enough)}."
    )


def _cheapest_steps(lengths: np.ndarray, settings: BatchSettings, overhead: int) -> tuple[int, int]:
    """Return the accumulation steps, and what the smallest micro-batches need of `tokens_per_device`; 0: too small."""
    tokens_per_update, passes = settings.tokens_per_update, settings.num_passes
    longest = int(token_counts(lengths).max(initial=0))
    fewest = plan_size(lengths, tokens_per_update).fewest_examples
    _refuse_too_many_micro_batches(fewest, tokens_per_update, settings.world_size)
    if longest > settings.tokens_per_pass:
        return 0, longest * passes
    updates, sample = _sample_updates(lengths, tokens_per_update)
    tried = [replace(settings, accumulation_steps=steps) for steps in _steps_to_try(settings, fewest)]
    costs = {each: _step_costs(updates[:COSTED_UPDATES], sample, each) for each in tried}
    limit = max(HEADROOM * settings.tokens_per_pass, sample.sum(axis=1).max())
    for each in sorted(tried, key=lambda each: float((costs[each] + overhead).sum())):
        if costs[each].max() <= limit and _step_costs(updates, sample, each).max() <= limit:
            return each.accumulation_steps, settings.tokens_per_device
    smallest = min(int(_step_costs(updates, sample, each).max()) for each in tried)
    return 0, (int(smallest / HEADROOM) + 1) * passes


def _because_of_passes(settings: BatchSettings) -> str:
    return f", counted in {settings.num_passes} passes that lie in memory at once" if settings.num_passes > 1 else ""


def _remedies(lengths: np.ndarray, settings: BatchSettings, overhead: int, enough: int) -> str:
    """Return what can be done: leave out the longest examples, if few are to blame, or raise the budget."""
    raised = f"raise tokens_per_device to {enough}, if memory holds that"
    for share in (0.99, 0.95, 0.9, 0.75, 0.5):
        source, target = np.quantile(lengths, share, axis=0, method="lower").tolist()
        kept = lengths[(lengths <= (source, target)).all(axis=1)]
        with contextlib.suppress(ValueError):
            if len(kept) and _cheapest_steps(kept, settings, overhead)[0]:
                return (
                    f"set max_source_length={source} and max_target_length={target}, which leaves out "
                    f"{len(lengths) - len(kept):,} of {len(lengths):,} training examples, or {raised}"
                )
    return raised


def _refuse_too_many_micro_batches(fewest_examples: int, tokens_per_update: int, num_micro_batches: int) -> None:
    if num_micro_batches > fewest_examples:
        raise ValueError(
            f"an update of tokens_per_update={tokens_per_update} may have as few as {fewest_examples} examples, "
            f"too few for {num_micro_batches} micro-batches (processes x accumulation steps); raise tokens_per_update, "
            f"lower max_source_length and max_target_length, or use fewer processes."
        )


def _sample_updates(lengths: np.ndarray, tokens_per_update: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return updates planned from a sample of examples, about a pool of them, and the lengths of this sample.

    The longest examples are in it, and random others.
    """
    sizes = token_counts(lengths)
    count = min(len(sizes), int(POOL_UPDATES * tokens_per_update / sizes.mean()))
    longest = np.argpartition(-sizes, min(POOL_UPDATES, len(sizes) - 1))[:POOL_UPDATES]
    picked = np.union1d(longest, np.random.default_rng(0).choice(len(sizes), count, replace=False))
    sample = lengths[picked]
    return plan_updates(sample, tokens_per_update=tokens_per_update, seed=0, epoch=0), sample


def _steps_to_try(settings: BatchSettings, fewest_examples: int) -> list[int]:
    """Return the numbers of accumulation steps to try, rising.

    The first is half of what the tokens would need without any padding; the last is more than padding makes worthwhile.

    Args:
        settings: of the run.
        fewest_examples: of an update; each micro-batch needs one.
    """
    world_size, tokens_per_update = settings.world_size, settings.tokens_per_update
    most = fewest_examples // world_size
    steps = [max(1, min(most, -(-tokens_per_update // (settings.tokens_per_pass * world_size * 2))))]
    end = min(most, 4 * max(steps[0], -(-_number_of_strata(tokens_per_update) // world_size)))
    while steps[-1] < end:
        steps.append(min(end, steps[-1] + max(1, steps[-1] // 8)))
    return steps


def _step_costs(updates: list[np.ndarray], lengths: np.ndarray, settings: BatchSettings) -> np.ndarray:
    """Return (updates, steps) padded tokens of the largest of the micro-batches that are computed at the same time."""
    packed = settings.packed
    cuts = [cut_update(update, lengths, settings.num_micro_batches, packed=packed) for update in updates]
    costs = [[padded_tokens(lengths[micro_batch], packed=packed) for micro_batch in cut] for cut in cuts]
    return np.array(costs).reshape(len(updates), settings.accumulation_steps, settings.world_size).max(axis=2)


# One process's share --------------------------------------------------------------------------------------------------


class EpochRows:
    """Which examples an epoch holds, where some are to be learned more often than others.

    The whole part of a weight is as many copies in every epoch. For its fraction the examples of that weight, sorted by
    length, are cut into as many runs as an epoch takes of them; it takes one of each run, the next epoch the next. So
    all are learned equally often, and no epoch has longer examples than `longest`.
    """

    def __init__(self, lengths: np.ndarray, weights: np.ndarray | None, seed: int) -> None:
        """Cut the examples into runs.

        Args:
            lengths: (examples, 2) source and target lengths in tokens.
            weights: (examples,) how often an epoch holds each, on average over the epochs; None: once.
            seed: of the run; says with which of a run the first epoch begins.
        """
        weights = np.ones(len(lengths)) if weights is None else weights
        self._always = np.repeat(np.arange(len(lengths)), weights.astype(np.int64))
        self._orders: list[np.ndarray] = []
        self._starts: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        self._first: list[np.ndarray] = []
        rng = np.random.default_rng(seed)
        for weight in np.unique(weights[weights % 1 > 0]):
            rows = np.flatnonzero(weights == weight)
            order = rows[np.argsort(token_counts(lengths[rows]), kind="stable")]
            num_runs = max(1, round(weight % 1 * len(rows)))
            bounds = np.arange(num_runs + 1) * len(rows) // num_runs
            self._orders.append(order)
            self._starts.append(bounds[:-1])
            self._counts.append(np.diff(bounds))
            self._first.append(rng.integers(0, self._counts[-1]))

    def of(self, epoch: int) -> np.ndarray:
        """Return the examples of an epoch; as many in each."""
        parts = zip(self._orders, self._starts, self._counts, self._first, strict=True)
        drawn = [order[starts + (first + epoch) % counts] for order, starts, counts, first in parts]
        return np.concatenate([self._always, *drawn])

    def longest(self) -> np.ndarray:
        """Return the longest of each run, and what every epoch holds: no epoch is longer, example for example."""
        parts = zip(self._orders, self._starts, self._counts, strict=True)
        return np.concatenate([self._always, *(order[starts + counts - 1] for order, starts, counts in parts)])


def longest_epoch(lengths: np.ndarray, weights: np.ndarray | None, seed: int) -> np.ndarray:
    """Return lengths, (examples, 2), that those of no epoch exceed; see `EpochRows`."""
    return lengths if weights is None else lengths[EpochRows(lengths, weights, seed).longest()]


class UpdateSampler(Sampler[list[int]]):
    """One process's micro-batches, in the order of the updates."""

    def __init__(
        self,
        lengths: np.ndarray,
        settings: BatchSettings,
        *,
        weights: np.ndarray | None = None,
        num_updates: int | None = None,
    ) -> None:
        """Plan for one process.

        Args:
            lengths: (examples, 2) source and target lengths in tokens.
            settings: of this process.
            weights: see `EpochRows`.
            num_updates: updates an epoch; None: as few as fit.

        Raises:
            ValueError: when an update of any epoch might have fewer examples than micro-batches.
        """
        self.rows = None if weights is None else EpochRows(lengths, weights, settings.seed)
        """Of each epoch; None: all examples once."""
        longest = lengths if self.rows is None else lengths[self.rows.longest()]
        size = plan_size(longest, settings.tokens_per_update, num_updates)
        _refuse_too_many_micro_batches(size.fewest_examples, settings.tokens_per_update, settings.num_micro_batches)
        self.lengths = lengths
        self.settings = settings
        self.epoch = 0
        self.num_updates = size.num_updates
        """Updates an epoch, the same in all of them."""
        self.num_oversized = 0
        """Micro-batches of this process so far that did not fit `tokens_per_device`."""

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Return the updates of an epoch, the same for every process."""
        rows = None if self.rows is None else self.rows.of(epoch)
        updates = plan_updates(
            self.lengths if rows is None else self.lengths[rows],
            tokens_per_update=self.settings.tokens_per_update,
            seed=self.settings.seed,
            epoch=epoch,
            num_updates=self.num_updates,
        )
        return updates if rows is None else [rows[update] for update in updates]

    def num_tokens(self) -> int:
        """Return the source + target tokens of the first epoch."""
        return int(self.lengths.sum() if self.rows is None else self.lengths[self.rows.of(0)].sum())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration walks through."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_updates * self.settings.accumulation_steps

    def __iter__(self) -> Iterator[list[int]]:
        settings = self.settings
        num_micro_batches, most = settings.num_micro_batches, settings.tokens_per_pass
        for update in self.plan(self.epoch):
            cut = cut_update(update, self.lengths, num_micro_batches, most, packed=settings.packed)
            for micro_batch in cut[settings.rank :: settings.world_size]:
                self._count_oversized(micro_batch)
                yield micro_batch.tolist()

    def _count_oversized(self, micro_batch: np.ndarray) -> None:
        """Count a micro-batch over `tokens_per_device`, and warn of the first."""
        size = padded_tokens(self.lengths[micro_batch], packed=self.settings.packed)
        if size <= self.settings.tokens_per_pass:
            return
        if not self.num_oversized:
            logger.warning(
                "A micro-batch takes %s tokens with padding, over tokens_per_device=%s: no cut of its update into %s "
                "micro-batches keeps it. If memory runs out, lower tokens_per_device and start again.",
                size * self.settings.num_passes,
                self.settings.tokens_per_device,
                self.settings.num_micro_batches,
            )
        self.num_oversized += 1


class UpdateLoader(DataLoader[Dataset]):
    """A DataLoader that passes the epoch on to its sampler, which is where Trainer announces it."""

    batch_sampler: UpdateSampler

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration walks through."""
        self.batch_sampler.set_epoch(epoch)
