"""The planner and its sampler: budgets, completeness, determinism, little padding, and no process without work."""

import gzip
import itertools
import logging
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from seqloom.training import batching
from seqloom.training.batching import (
    BatchSettings,
    EpochRows,
    UpdateSampler,
    accumulation_steps,
    cut_update,
    padded_tokens,
    plan_size,
    plan_updates,
)

DATA = os.environ.get("SEQLOOM_DATA")

pairs = st.tuples(st.integers(1, 40), st.integers(1, 40))
lengths_strategy = st.lists(pairs, min_size=1, max_size=300).map(np.array)
few_lengths = st.lists(pairs, min_size=4, max_size=11).map(np.array)
skewed_strategy = st.lists(st.one_of(pairs, st.tuples(st.integers(60, 200), st.integers(60, 200))), min_size=1).map(
    np.array
)


def sentences(count, seed=0):
    """Return lengths as text has them: few long ones, and both sides alike."""
    rng = np.random.default_rng(seed)
    source = 3 + rng.gamma(4.0, 3.0, count).astype(int)
    return np.stack([source, np.maximum(2, source + rng.integers(-4, 5, count))], axis=1)


def padded_tokens_of(parts, lengths):
    """Count the padded tokens of micro-batches one by one, without the planner's help."""
    return [sum(lengths[part][:, side].max() for side in (0, 1)) * len(part) for part in parts]


def every_cut(update, parts):
    """Return every way to cut an update into runs."""
    for cuts in itertools.combinations(range(1, len(update)), parts - 1):
        yield np.split(update, cuts)


# The plan ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(
    lengths=st.one_of(lengths_strategy, skewed_strategy),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
    slack=st.one_of(st.integers(0, 50), st.integers(0, 2000)),
)
def test_every_example_once_and_no_update_over_budget(lengths, seed, epoch, slack):
    budget = int(lengths.sum(axis=1).max()) + slack
    size = plan_size(lengths, budget)
    updates = plan_updates(lengths, tokens_per_update=budget, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(updates).tolist()) == list(range(len(lengths)))
    assert all(0 < lengths[update].sum() <= budget for update in updates)
    assert len(updates) == size.num_updates
    assert min(map(len, updates)) >= size.fewest_examples >= 1


def test_updates_are_full_and_mix_lengths():
    lengths = sentences(20_000)
    updates = plan_updates(lengths, tokens_per_update=4096, seed=0, epoch=0)
    tokens = np.array([lengths[update].sum() for update in updates])
    assert tokens.mean() > 0.95 * 4096
    means = np.array([lengths[update].mean() for update in updates])
    assert means.std() < 0.15 * means.mean()  # of single examples, and of sorted updates, it is 0.4
    spreads = np.array([lengths[update].std() for update in updates])
    assert spreads.mean() > 0.8 * lengths.std()
    assert spreads.min() > 0.2 * lengths.std()


def test_no_update_is_far_below_its_budget_for_one_long_example():
    lengths = np.concatenate([sentences(5000), [[2000, 2000]]])
    updates = plan_updates(lengths, tokens_per_update=4096, seed=0, epoch=0)
    assert len(updates) < 1.2 * lengths.sum() / 4096
    assert max(lengths[update].sum() for update in updates) <= 4096


def test_where_nothing_can_be_mixed_updates_are_dealt_by_size():
    lengths = np.array([[30, 30]] * 40 + [[5, 5]] * 40)  # two long ones do not fit into 100
    updates = plan_updates(lengths, tokens_per_update=100, seed=0, epoch=0)
    assert sorted(np.concatenate(updates).tolist()) == list(range(80))
    assert max(lengths[update].sum() for update in updates) <= 100


def test_the_plan_depends_on_seed_and_epoch_alone():
    lengths = np.random.default_rng(0).integers(1, 50, (1000, 2))
    plan = [plan_updates(lengths, tokens_per_update=500, seed=s, epoch=e) for s, e in ((1, 0), (1, 0), (2, 0), (1, 1))]
    as_lists = [[update.tolist() for update in updates] for updates in plan]
    assert as_lists[0] == as_lists[1]
    assert as_lists[0] != as_lists[2]
    assert as_lists[0] != as_lists[3]
    narrow = plan_updates(lengths.astype(np.int16), tokens_per_update=500, seed=1, epoch=0)
    assert [update.tolist() for update in narrow] == as_lists[0]


def test_neighbours_change_from_epoch_to_epoch():
    lengths = sentences(20_000)
    owners = []
    for epoch in (0, 1):
        updates = plan_updates(lengths, tokens_per_update=4096, seed=0, epoch=epoch)
        owners.append(np.empty(len(lengths), dtype=int))
        for number, update in enumerate(updates):
            owners[-1][update] = number
    one, other = np.random.default_rng(0).integers(0, len(lengths), (2, 1_000_000))
    shared = (owners[0][one] == owners[0][other]) & (one != other)
    again = (owners[1][one] == owners[1][other])[shared].mean()
    assert again < 0.12  # by chance 0.007; always together would be 1


def test_a_number_of_updates_can_be_asked_for():
    lengths = sentences(500)
    fewest = plan_size(lengths, 1000).num_updates
    updates = plan_updates(lengths, tokens_per_update=1000, seed=0, epoch=0, num_updates=fewest + 3)
    assert len(updates) == fewest + 3
    assert sorted(np.concatenate(updates).tolist()) == list(range(500))
    sampler = UpdateSampler(lengths, BatchSettings(1000, accumulation_steps=2), num_updates=fewest + 3)
    micro_batches = list(sampler)
    assert len(sampler) == len(micro_batches) == 2 * (fewest + 3)
    assert sorted(itertools.chain(*micro_batches)) == list(range(500))
    with pytest.raises(ValueError, match=r"500 examples with \d+ tokens do not make 2 updates of .* let num_"):
        plan_size(lengths, 1000, num_updates=2)


@settings(deadline=None, max_examples=50)
@given(lengths=st.one_of(lengths_strategy, skewed_strategy), slack=st.integers(0, 500))
def test_asking_for_as_many_updates_as_there_are_changes_nothing(lengths, slack):
    """The sampler always asks, also where nobody chose a number; plans of earlier runs must stay as they were."""
    budget = int(lengths.sum(axis=1).max()) + slack
    freely = plan_updates(lengths, tokens_per_update=budget, seed=1, epoch=2)
    asked = plan_updates(lengths, tokens_per_update=budget, seed=1, epoch=2, num_updates=len(freely))
    assert [update.tolist() for update in asked] == [update.tolist() for update in freely]


def test_errors_of_the_plan_name_value_rule_and_remedy():
    with pytest.raises(ValueError, match=r"example 1 has 90 source \+ target tokens, more than tokens_per_update=50"):
        plan_updates(np.array([[1, 1], [50, 40]]), tokens_per_update=50, seed=0, epoch=0)
    with pytest.raises(ValueError, match="no examples to plan updates from; check the training files"):
        plan_updates(np.zeros((0, 2), dtype=int), tokens_per_update=50, seed=0, epoch=0)


# The cut -------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(lengths=lengths_strategy, parts=st.integers(1, 8))
def test_cutting_an_update_leaves_no_part_empty(lengths, parts):
    update = np.argsort(lengths.sum(axis=1), kind="stable")
    if len(update) < parts:
        with pytest.raises(ValueError, match=r"cannot feed .* raise tokens_per_update or use fewer processes"):
            cut_update(update, lengths, parts)
        return
    pieces = cut_update(update, lengths, parts)
    assert len(pieces) == parts
    assert all(len(piece) for piece in pieces)
    assert np.concatenate(pieces).tolist() == update.tolist()


@settings(deadline=None, max_examples=60)
@given(lengths=few_lengths, parts=st.integers(1, 4))
def test_a_cut_is_the_one_with_least_padding_among_the_fair_ones(lengths, parts):
    update = np.argsort(lengths[:, 1], kind="stable")
    found = padded_tokens_of(cut_update(update, lengths, parts), lengths)
    all_cuts = [padded_tokens_of(pieces, lengths) for pieces in every_cut(update, parts)]
    fairest = min(map(max, all_cuts))
    assert max(found) <= batching.IMBALANCE * fairest
    assert sum(found) == min(sum(sizes) for sizes in all_cuts if max(sizes) <= batching.IMBALANCE * fairest)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(pairs, min_size=4, max_size=11).map(np.array), parts=st.integers(1, 4), extra=st.integers(0, 99)
)
def test_micro_batches_fit_the_device_whenever_a_cut_can_fit(lengths, parts, extra):
    update = np.argsort(lengths[:, 1], kind="stable")
    fairest = min(max(padded_tokens_of(pieces, lengths)) for pieces in every_cut(update, parts))
    assert max(padded_tokens_of(cut_update(update, lengths, parts, fairest + extra), lengths)) <= fairest + extra
    assert max(padded_tokens_of(cut_update(update, lengths, parts, fairest - 1), lengths)) == fairest


def test_what_runs_at_the_same_time_costs_the_same():
    lengths = sentences(5000)
    for update in plan_updates(lengths, tokens_per_update=8192, seed=0, epoch=0)[:20]:
        costs = np.array(padded_tokens_of(cut_update(update, lengths, 8), lengths)).reshape(4, 2)
        assert (costs.max(axis=1) < 1.2 * costs.mean(axis=1)).all()


@settings(deadline=None, max_examples=60)
@given(lengths=few_lengths, parts=st.integers(1, 4))
def test_packed_sentences_are_cut_by_their_real_tokens(lengths, parts):
    update = np.arange(len(lengths))
    sizes = [lengths[piece].sum() for piece in cut_update(update, lengths, parts, packed=True)]
    fairest = min(max(lengths[piece].sum() for piece in pieces) for pieces in every_cut(update, parts))
    assert fairest <= max(sizes) <= batching.IMBALANCE * fairest
    assert sum(sizes) == lengths.sum()


def test_packed_updates_want_one_micro_batch_where_memory_has_room():
    lengths = sentences(3000)
    assert accumulation_steps(lengths, BatchSettings(8192, 9000, packed=True)) == 1
    assert accumulation_steps(lengths, BatchSettings(8192, 9000)) > 1
    steps = accumulation_steps(lengths, BatchSettings(8192, 3000, packed=True))
    sampler = UpdateSampler(lengths, BatchSettings(8192, packed=True, accumulation_steps=steps))
    assert max(lengths[rows].sum() for rows in sampler) <= 3000


def test_very_many_parts_are_cut_by_halves():
    lengths = sentences(3000)
    update = np.lexsort(lengths.T)
    pieces = cut_update(update, lengths, 200)
    assert len(pieces) == 200
    assert np.concatenate(pieces).tolist() == update.tolist()
    costs = np.array(padded_tokens_of(pieces, lengths))
    assert costs.max() < 1.5 * costs.mean()


def test_padded_tokens_counts_both_sides():
    assert padded_tokens(np.array([[3, 5], [4, 1]])) == 2 * (4 + 5)


# How many pieces -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 8])
@pytest.mark.parametrize("budget", [8192, 16_384, 50_000])
def test_three_percent_of_an_epoch_is_padding(budget, world_size):
    lengths = sentences(30_000)
    steps = accumulation_steps(lengths, BatchSettings(budget, 8192, world_size=world_size))
    updates = plan_updates(lengths, tokens_per_update=budget, seed=0, epoch=1)
    pieces = [piece for update in updates for piece in cut_update(update, lengths, steps * world_size, 8192)]
    assert lengths.sum() > 0.97 * sum(padded_tokens_of(pieces, lengths))


@pytest.mark.skipif(DATA is None, reason="SEQLOOM_DATA names no folder with real corpora")
@pytest.mark.parametrize("budget", [8192, 16_384, 50_000])
def test_three_percent_of_multi30k_is_padding(budget):
    files = [Path(DATA or "") / "multi30k" / f"train.{language}.gz" for language in ("en", "de")]
    texts = [gzip.decompress(file.read_bytes()).splitlines() for file in files]
    lengths = np.array([[len(line.split()) + 2 for line in text] for text in texts]).T
    steps = accumulation_steps(lengths, BatchSettings(budget, 8192))
    updates = plan_updates(lengths, tokens_per_update=budget, seed=0, epoch=0)
    pieces = [piece for update in updates for piece in cut_update(update, lengths, steps, 8192)]
    assert lengths.sum() > 0.97 * sum(padded_tokens_of(pieces, lengths))


@pytest.mark.parametrize(("budget", "device", "world_size"), [(8192, 1024, 1), (2048, 512, 2), (512, 512, 1)])
def test_steps_are_enough_for_memory_in_every_epoch(budget, device, world_size):
    lengths = sentences(4000)
    steps = accumulation_steps(lengths, BatchSettings(budget, device, world_size=world_size))
    for epoch in range(3):
        for update in plan_updates(lengths, tokens_per_update=budget, seed=1, epoch=epoch):
            pieces = cut_update(update, lengths, steps * world_size, device)
            assert max(padded_tokens_of(pieces, lengths)) <= device


def test_dear_micro_batches_are_fewer():
    lengths = sentences(4000)
    on_cpu, on_gpu = (
        accumulation_steps(lengths, BatchSettings(8192, 16_384), overhead=overhead)
        for overhead in (batching.CPU_OVERHEAD, batching.ACCELERATOR_OVERHEAD)
    )
    assert on_gpu < on_cpu <= 10


def test_more_processes_accumulate_less():
    lengths = sentences(4000)
    steps = [
        accumulation_steps(lengths, BatchSettings(8192, 8192, world_size=world_size)) for world_size in (1, 2, 4, 8)
    ]
    assert steps == sorted(steps, reverse=True)
    assert steps[-1] == 1


def test_errors_of_the_budgets_name_value_rule_and_remedy():
    lengths = np.concatenate([sentences(100), [[400, 300]]])
    with pytest.raises(
        ValueError, match=r"tokens_per_device=600 is too small: .* 700 tokens .* leaves out 1 of 101 .* raise"
    ):
        accumulation_steps(lengths, BatchSettings(1000, 600))
    few = np.full((40, 2), 50)
    with pytest.raises(ValueError, match=r"tokens_per_update=300 may have as few as 1 examples, too few for 8 micro-"):
        accumulation_steps(few, BatchSettings(300, 300, world_size=8))
    wide = np.array([[1, 90], [90, 1]] * 20)
    with pytest.raises(
        ValueError, match=r"tokens_per_device=100 is too small: the smallest micro-batches that .* raise "
    ):
        accumulation_steps(wide, BatchSettings(1000, 100))


def test_settings_of_a_run_come_from_trainers_arguments(tmp_path):
    keys = {"gradient_accumulation_steps": 3, "seed": 5, "use_cpu": True, "output_dir": str(tmp_path)}
    chosen = BatchSettings(800, 400, packed=True)
    assert chosen.in_run(TrainingArguments(**keys)) == replace(chosen, seed=5, accumulation_steps=3)
    assert chosen.in_run(TrainingArguments(**keys, data_seed=6)).seed == 6
    others = SimpleNamespace(seed=5, data_seed=0, gradient_accumulation_steps=2, world_size=4, process_index=3)
    assert chosen.in_run(others) == BatchSettings(800, 400, True, 0, 2, 4, 3)
    assert chosen.in_run(others).num_micro_batches == 8


# The sampler ---------------------------------------------------------------------------------------------------------


def test_processes_and_accumulation_share_the_same_updates():
    lengths = np.random.default_rng(0).integers(5, 30, (400, 2))

    def updates_of(world_size, steps):
        ranks = [
            list(
                UpdateSampler(
                    lengths, BatchSettings(800, seed=3, accumulation_steps=steps, world_size=world_size, rank=rank)
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

    assert updates_of(1, 1) == updates_of(1, 4) == updates_of(2, 1) == updates_of(2, 2)


def test_the_sampler_knows_its_length_and_its_epoch():
    lengths = np.random.default_rng(0).integers(5, 30, (400, 2))
    sampler = UpdateSampler(lengths, BatchSettings(800, seed=3, accumulation_steps=2))
    first = list(sampler)
    assert len(first) == len(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_the_sampler_plans_only_when_it_is_walked(monkeypatch):
    monkeypatch.setattr(batching, "plan_updates", None)
    sampler = UpdateSampler(sentences(400), BatchSettings(800, seed=3))
    assert len(sampler) == sampler.num_updates > 5


def test_the_sampler_refuses_before_training_what_could_leave_a_process_without_work():
    few = np.full((40, 2), 50)
    with pytest.raises(ValueError, match=r"too few for 4 micro-batches .* raise tokens_per_update, lower max_source_l"):
        UpdateSampler(few, BatchSettings(300, accumulation_steps=2, world_size=2))


def test_micro_batches_that_no_cut_can_fit_are_counted_and_named(caplog):
    sampler = UpdateSampler(sentences(400), BatchSettings(800, 400, seed=3))
    with caplog.at_level(logging.WARNING, logger=batching.__name__):
        list(sampler)
    assert sampler.num_oversized == len(sampler)
    assert [record.message.split(": ")[0] for record in caplog.records] == [
        f"A micro-batch takes {caplog.records[0].args[0]} tokens with padding, over tokens_per_device=400"
    ]


class TestEpochRows:
    """Examples that are to be learned more often than others, or more rarely."""

    LENGTHS = np.random.default_rng(1).integers(2, 30, (500, 2))
    WEIGHTS = np.repeat([2.0, 0.25, 1.0, 1.5], [100, 200, 150, 50])

    def test_each_is_learned_as_often_as_its_weight_says(self):
        rows = EpochRows(self.LENGTHS, self.WEIGHTS, seed=3)
        seen = sum(np.bincount(rows.of(epoch), minlength=500) for epoch in range(4))
        assert np.array_equal(seen, 4 * self.WEIGHTS)

    def test_all_epochs_have_as_many_updates_and_none_is_over_budget(self):
        sampler = UpdateSampler(self.LENGTHS, BatchSettings(400, 400, seed=3), weights=self.WEIGHTS)
        for epoch in range(12):
            plan = sampler.plan(epoch)
            assert len(plan) == sampler.num_updates
            assert max(self.LENGTHS[update].sum() for update in plan) <= 400
            assert sorted(np.concatenate(plan)) == sorted(sampler.rows.of(epoch))

    def test_no_epoch_is_longer_than_the_longest(self):
        rows = EpochRows(self.LENGTHS, self.WEIGHTS, seed=3)
        longest = np.sort(self.LENGTHS[rows.longest()].sum(axis=1))
        assert all((np.sort(self.LENGTHS[rows.of(epoch)].sum(axis=1)) <= longest).all() for epoch in range(12))

    def test_a_few_examples_of_little_weight_are_learned_all_the_same(self):
        rows = EpochRows(self.LENGTHS[:3], np.full(3, 0.01), seed=0)
        assert sorted(rows.of(epoch).tolist() for epoch in range(3)) == [[0], [1], [2]]

    def test_without_weights_an_epoch_is_all_examples_once(self):
        assert EpochRows(self.LENGTHS, None, seed=0).of(5).tolist() == list(range(500))
