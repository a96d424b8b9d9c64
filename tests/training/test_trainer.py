"""SeqloomTrainer: the loss ignores how an update is cut, checkpoints are whole, scores are token-weighted."""

import math
from dataclasses import fields
from functools import partial
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributed.fsdp import StateDictType
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoTokenizer, Seq2SeqTrainingArguments
from transformers.utils import logging

import seqloom
from seqloom.training import mouth
from seqloom.training import trainer as trainer_module
from seqloom.training.examples import lengths_of, longest_first
from seqloom.training.settings import describe_idle_devices
from seqloom.training.tokenizer import train_tokenizer
from seqloom.training.trainer import EvaluationSettings, SeqloomTrainer, freeze_inert_parameters
from tests.tiny_trainer import tiny_pairs, tiny_tokenizers, tiny_trainer
from tests.toy import toy_pairs


@pytest.fixture(scope="module")
def pairs():
    return tiny_pairs(tiny_tokenizers())


@pytest.fixture
def make_trainer(tmp_path):
    return partial(tiny_trainer, tmp_path / "run")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_does_not_depend_on_accumulation(make_trainer, smoothing):
    logged = []
    for steps in (1, 8):
        trainer = make_trainer(
            gradient_accumulation_steps=steps, label_smoothing_factor=smoothing, max_steps=3, learning_rate=0.01
        )
        trainer.train()
        logged.append([(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row])
    assert len(logged[0]) == 3
    np.testing.assert_allclose(logged[0], logged[1], rtol=1e-5)


def test_smoothing_reaches_the_loss(make_trainer, pairs):
    losses = []
    for smoothing in (0.0, 0.3):
        trainer = make_trainer(label_smoothing_factor=smoothing, max_steps=1, learning_rate=0.0)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] != pytest.approx(losses[1])


def test_evaluation_loss_is_token_weighted_and_unsmoothed(make_trainer, pairs):
    trainer = make_trainer(label_smoothing_factor=0.3, per_device_eval_batch_size=5, max_steps=10, learning_rate=0.02)
    trainer.train()  # without it, no token is right
    scores = trainer.evaluate()
    model = trainer.model.eval()
    nll, tokens, right = 0.0, 0, 0
    for row in pairs:
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).logits
        nll += torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="sum").item()
        tokens += labels.numel()
        right += (logits[0].argmax(-1) == labels[0]).sum().item()
    assert scores["eval_loss"] == pytest.approx(nll / tokens, rel=1e-5)
    assert scores["eval_perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-4)
    assert scores["eval_token_accuracy"] == pytest.approx(100 * right / tokens)
    assert 0 < right < tokens


def test_decoded_scores_and_outputs_keep_the_order_of_the_set(make_trainer, pairs):
    evaluation = EvaluationSettings(("exact_match", "cer"), max_new_tokens=4)
    trainer = make_trainer(evaluation=evaluation, per_device_eval_batch_size=5)
    scores = trainer.evaluate()
    assert {"eval_exact_match", "eval_cer", "eval_loss"} <= set(scores)
    one_by_one = [trainer.write_texts([source])[0] for source in pairs["source"]]
    mark = " [cut after 4 tokens]"
    assert trainer.outputs == [text.removesuffix(mark) for text in one_by_one]
    assert scores["eval_truncated"] == sum(text.endswith(mark) for text in one_by_one) > 0


def test_evaluation_leaves_the_generation_config_alone(make_trainer):
    trainer = make_trainer(evaluation=EvaluationSettings(("exact_match",), max_new_tokens=4))
    before = trainer.model.generation_config.to_dict()
    trainer.evaluate()
    assert trainer.model.generation_config.to_dict() == before


def test_a_checkpoint_is_a_whole_model(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=2, save_steps=1)
    trainer.train()
    folder = tmp_path / "run" / "checkpoint-2"
    model = seqloom.SeqloomForConditionalGeneration.from_pretrained(folder)
    for (name, ours), theirs in zip(trainer.model.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert (folder / "modeling_seqloom.py").is_file()
    assert AutoTokenizer.from_pretrained(folder).decode(trainer.tokenizers.source("abc").input_ids) == "abc</s>"


def test_separate_vocabularies_are_saved_on_both_sides(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=1, save_steps=1)
    trainer.tokenizers = train_tokenizer(
        ["ab", "bca"], ["xyz"], kind="char", vocab_size=270, joint=False, show_progress=False
    )
    trainer.train()
    target = AutoTokenizer.from_pretrained(tmp_path / "run" / "checkpoint-1", subfolder="target")
    assert target("xyz").input_ids == trainer.tokenizers.target("xyz").input_ids


def test_a_checkpoint_is_written_without_a_bar_of_its_own(tmp_path, capfd):
    tiny_trainer(tmp_path, max_steps=1, save_steps=1).train()
    assert (tmp_path / "checkpoint-1").is_dir()
    assert "shards" not in capfd.readouterr().err
    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_packed_sentences_train_the_same_weights(tmp_path, alpha):
    weights, padding = [], []
    for packing in (False, True):
        trainer = tiny_trainer(tmp_path, packing=packing, rdrop_alpha=alpha, tokens_per_update=100, max_steps=5)
        trainer.train()
        weights.append(trainer.model.state_dict())
        padding.append([row["padding"] for row in trainer.state.log_history if "padding" in row])
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-6, msg=name)
    assert min(padding[0]) > 0
    assert set(padding[1]) == {0}


def test_lengths_come_from_the_ids(pairs):
    expected = [(len(row["input_ids"]), len(row["labels"])) for row in pairs]
    assert lengths_of(pairs).tolist() == [list(pair) for pair in expected]
    chosen = pairs.select([3, 1, 2])
    assert lengths_of(chosen).tolist() == [list(expected[i]) for i in (3, 1, 2)]


def test_longest_first_remembers_positions(pairs):
    ordered = longest_first(pairs)
    lengths = [len(ids) for ids in ordered["input_ids"]]
    assert lengths == sorted(lengths, reverse=True)
    assert [pairs[position]["source"] for position in ordered["position"]] == ordered["source"][:]


@pytest.mark.parametrize(("positions", "num_frozen"), [("sinusoidal", 6), ("rotary", 2)])
def test_biases_that_softmax_forgets_are_not_trained(make_trainer, tiny_model, positions, num_frozen):
    trainer = make_trainer()
    model = tiny_model(position_embedding_type=positions)
    freeze_inert_parameters(model)
    frozen = [weight for name, weight in model.named_parameters() if not weight.requires_grad]
    assert len(frozen) == num_frozen  # with rotary positions only those of cross attention, which nothing rotates
    source, mask, labels = toy_pairs(4)
    before = model(input_ids=source, attention_mask=mask, labels=labels).logits
    with torch.no_grad():
        for weight in frozen:
            weight.add_(1.0)
    after = model(input_ids=source, attention_mask=mask, labels=labels).logits
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
    assert [name for name, weight in trainer.model.named_parameters() if not weight.requires_grad] == [
        name for name, _ in trainer.model.named_parameters() if name.endswith("k_proj.bias")
    ]


def test_the_train_loss_is_the_mean_of_all_updates(make_trainer):
    trainer = make_trainer(max_steps=5, learning_rate=0.01, logging_steps=2)
    outcome = trainer.train()
    logged = [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]
    assert [step for step, _ in logged] == [2, 4, 5]
    mean = (2 * logged[0][1] + 2 * logged[1][1] + logged[2][1]) / 5
    assert outcome.training_loss == pytest.approx(mean, rel=1e-5)


def test_shards_that_would_save_no_model_are_refused(make_trainer):
    trainer = make_trainer()
    trainer.is_fsdp_enabled = True
    trainer.accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=SimpleNamespace(state_dict_type=StateDictType.SHARDED_STATE_DICT))
    )
    with pytest.raises(
        ValueError, match=r"fsdp_state_dict_type=SHARDED_STATE_DICT leaves .* write fsdp_state_dict_type"
    ):
        trainer._refuse_sharded_state()


# Other devices -------------------------------------------------------------------------------------------------------


class NoFloat64(TorchDispatchMode):
    """Refuses what Apple's GPUs do not have."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(isinstance(each, torch.Tensor) and each.dtype == torch.float64 for each in tree_leaves(result)):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return result


def test_an_evaluation_does_without_float64_where_there_is_none(make_trainer, monkeypatch):
    settings = EvaluationSettings(("exact_match",), max_new_tokens=6)
    keys = {"evaluation": settings, "model": {"position_embedding_type": "rotary"}}
    expected = make_trainer(**keys).evaluate()
    rule = mouth.widest_floats
    for module in (mouth, trainer_module):
        monkeypatch.setattr(module, "widest_floats", lambda device: rule(torch.device("mps")))
    with NoFloat64():
        scores = make_trainer(**keys).evaluate()
    for name in ("eval_loss", "eval_token_accuracy", "eval_exact_match"):
        assert scores[name] == pytest.approx(expected[name], rel=1e-6), name


def test_a_data_worker_that_is_not_forked_gets_all_it_needs(make_trainer):
    loader = make_trainer(dataloader_num_workers=1).get_train_dataloader()
    for part in (loader.worker_init_fn, loader.collate_fn, loader.dataset):
        ForkingPickler.dumps(part)


@pytest.mark.slow
@pytest.mark.skipif(
    "dataloader_multiprocessing_context" not in {field.name for field in fields(Seq2SeqTrainingArguments)},
    reason="transformers cannot be told how workers start",
)
def test_updates_of_a_worker_that_is_not_forked_are_those_of_none(make_trainer):
    losses = []
    for workers in ({}, {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "spawn"}):
        trainer = make_trainer(max_steps=2, **workers)
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]


def test_one_process_uses_one_gpu_and_says_how_to_use_all(make_trainer, monkeypatch):
    trainer = make_trainer()
    trainer.args._n_gpu = 4  # as one process finds them
    again = SeqloomTrainer(
        trainer.model,
        trainer.args,
        tokenizers=trainer.tokenizers,
        batching=trainer.batching,
        train_dataset=tiny_pairs(trainer.tokenizers),
    )
    assert again.args.n_gpu == 1, "else Trainer wraps the model in nn.DataParallel"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert describe_idle_devices(trainer.args) == ""
    alone = SimpleNamespace(device=torch.device("cuda"), world_size=1)
    said = describe_idle_devices(alone)
    assert said.startswith("one of 4 GPUs is used; accelerate launch ")
    assert "--num_processes 4 training/train.py" in said
    assert describe_idle_devices(SimpleNamespace(device=torch.device("cuda"), world_size=4)) == ""
