"""The planner and its sampler: budgets, completeness, determinism, and cuts that leave no process without work."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqloom.training.batching import UpdateSampler, accumulation_steps, cut_update, plan_updates

lengths_strategy = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=300).map(np.array)


@settings(deadline=None, max_examples=150)
@given(lengths=lengths_strategy, seed=st.integers(0, 5), epoch=st.integers(0, 5), slack=st.integers(0, 500))
def test_every_example_once_and_no_update_over_budget(lengths, seed, epoch, slack):
    budget = 2 * int(lengths.sum(axis=1).max()) + slack
    updates = plan_updates(lengths, tokens_per_update=budget, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(updates).tolist()) == list(range(len(lengths)))
    assert all(0 < lengths[update].sum() <= budget for update in updates)
    assert len(updates) == len(plan_updates(lengths, tokens_per_update=budget, seed=seed, epoch=epoch + 1))


def test_updates_are_full_and_mix_lengths():
    lengths = np.random.default_rng(0).integers(1, 50, (20_000, 2))
    updates = plan_updates(lengths, tokens_per_update=4096, seed=0, epoch=0)
    tokens = np.array([lengths[update].sum() for update in updates])
    assert tokens.mean() > 0.93 * 4096
    means = np.array([lengths[update].mean() for update in updates])
    assert means.std() < 0.1 * means.mean()
    assert all((np.diff(lengths[update][:, 1]) >= 0).all() for update in updates)


def test_the_plan_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(1, 50, (1000, 2))
    plan = [plan_updates(lengths, tokens_per_update=500, seed=s, epoch=e) for s, e in ((1, 0), (1, 0), (2, 0), (1, 1))]
    as_lists = [[update.tolist() for update in updates] for updates in plan]
    assert as_lists[0] == as_lists[1]
    assert as_lists[0] != as_lists[2]
    assert as_lists[0] != as_lists[3]


def test_neighbours_change_from_epoch_to_epoch():
    lengths = np.random.default_rng(0).integers(5, 50, (2000, 2))
    groups = [
        {frozenset(update.tolist()) for update in plan_updates(lengths, tokens_per_update=600, seed=0, epoch=e)}
        for e in (0, 1)
    ]
    assert not groups[0] & groups[1]


def test_micro_batches_of_an_update_hardly_pad():
    rng = np.random.default_rng(0)
    source = rng.integers(3, 60, 5000)
    lengths = np.stack([source, np.maximum(1, source + rng.integers(-3, 4, 5000))], axis=1)

    def padded(pieces):
        return sum(len(piece) * lengths[piece].max(axis=0).sum() for piece in pieces)

    updates = plan_updates(lengths, tokens_per_update=8192, seed=0, epoch=0)
    pieces = [piece for update in updates for piece in cut_update(update, lengths, 8)]
    shuffled = np.array_split(rng.permutation(5000), len(pieces))
    assert padded(pieces) < 1.12 * lengths.sum()
    assert padded(shuffled) > 1.5 * lengths.sum()


@settings(deadline=None, max_examples=100)
@given(lengths=lengths_strategy, parts=st.integers(1, 8))
def test_cutting_an_update_leaves_no_part_empty(lengths, parts):
    update = np.argsort(lengths.sum(axis=1), kind="stable")
    if len(update) < parts:
        with pytest.raises(ValueError, match="cannot feed"):
            cut_update(update, lengths, parts)
        return
    pieces = cut_update(update, lengths, parts)
    assert len(pieces) == parts
    assert all(len(piece) for piece in pieces)
    assert np.concatenate(pieces).tolist() == update.tolist()


def test_processes_and_accumulation_share_the_same_updates():
    lengths = np.random.default_rng(0).integers(5, 30, (400, 2))

    def updates_of(world_size, steps):
        ranks = [
            list(
                UpdateSampler(
                    lengths,
                    tokens_per_update=800,
                    seed=3,
                    accumulation_steps=steps,
                    world_size=world_size,
                    rank=rank,
                )
            )
            for rank in range(world_size)
        ]
        assert len({len(batches) for batches in ranks}) == 1
        count = len(ranks[0]) // steps
        return [
            sorted(i for batches in ranks for batch in batches[u * steps : (u + 1) * steps] for i in batch)
            for u in range(count)
        ]

    assert updates_of(1, 1) == updates_of(1, 4) == updates_of(2, 1) == updates_of(2, 3)


def test_the_sampler_knows_its_length_and_its_epoch():
    lengths = np.random.default_rng(0).integers(5, 30, (400, 2))
    sampler = UpdateSampler(lengths, tokens_per_update=800, seed=3, accumulation_steps=2)
    first = list(sampler)
    assert len(first) == len(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first


@pytest.mark.parametrize(
    ("update", "device", "world", "steps"),
    [(8192, 8192, 1, 8), (8192, 512, 1, 16), (1000, 8192, 1, 1), (8192, 8192, 2, 4), (50_000, 1000, 10, 5)],
)
def test_accumulation_follows_from_the_budgets(update, device, world, steps):
    assert accumulation_steps(update, device, world) == steps


def test_errors_name_value_rule_and_remedy():
    with pytest.raises(ValueError, match=r"example 1 has 90 source \+ target tokens, more than tokens_per_update=50"):
        plan_updates(np.array([[1, 1], [50, 40]]), tokens_per_update=50, seed=0, epoch=0)
    with pytest.raises(ValueError, match="no examples to plan updates from"):
        plan_updates(np.zeros((0, 2), dtype=int), tokens_per_update=50, seed=0, epoch=0)
