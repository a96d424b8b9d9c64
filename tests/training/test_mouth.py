"""A run that checks its own mouth: each fault is met before the first update, in the middle and at the end."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM
from transformers.cache_utils import EncoderDecoderCache

from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.modeling import modeling_seqloom
from seqloom.modeling.canary import CANARY_NAME, find_faults, misread, read_canary
from seqloom.training import mouth, trainer
from seqloom.training import train as run
from seqloom.training.fault_tolerance.checkpoints import checkpoints_in
from seqloom.training.fault_tolerance.run_health import MouthError
from seqloom.training.mouth import doubt_of, spoken_sums, texts_to_say
from seqloom.training.train import train
from seqloom_cli.command import run_command
from tests.bent import forget_padding, mix_up_beams
from tests.tiny_trainer import tiny_pairs, tiny_tokenizers
from tests.toy import SMALL_RUN, write_reversals

SMALL = {
    **SMALL_RUN,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "tokens_per_update": 1024,
    "logging_steps": 5,
    "warmup_steps": 5,
}
ANSWER = "abcdeedcba"


@pytest.fixture
def recipe(tmp_path):
    """Return a function that makes a recipe for words and their reversals."""
    files = write_reversals(tmp_path, train=120, valid=6)

    def build(**overrides):
        keys = {"max_new_tokens": 12, "max_steps": 10, "eval_steps": 5, "save_steps": 10, "num_beams": 1}
        return resolve_recipe(None, {**files, **SMALL, **keys, "output": str(tmp_path / "run"), **overrides})

    return build


@pytest.fixture
def learn_by_heart(tmp_path):
    """Return a function that runs what learns one answer to everything, within 60 updates, to its exit code."""
    files = write_reversals(tmp_path, train=120, valid=20)
    for _, targets in files.values():
        Path(targets).write_text(f"{ANSWER}\n" * len(Path(targets).read_text().split()))

    def learn(**overrides):
        keys = {"learning_rate": 0.02, "max_steps": 60, "eval_steps": 60, "save_steps": 60, "max_new_tokens": 12}
        keys |= {"num_beams": 1, "output": str(tmp_path / "run"), **overrides}
        recipe = resolve_recipe(None, {**files, **SMALL, **keys})
        return run_command(lambda: bool(train(recipe)) and 0)

    return learn


def ignore_cache(monkeypatch):
    forward = modeling_seqloom.SeqloomModel.forward

    def forgetful(self, *args, **kwargs):
        return forward(self, *args, **{name: value for name, value in kwargs.items() if "cache" not in name})

    monkeypatch.setattr(modeling_seqloom.SeqloomModel, "forward", forgetful)


def load_other_weights(monkeypatch):
    """A library that loads the LM head, and then ties it to a table of its own."""
    load = modeling_seqloom.SeqloomForConditionalGeneration.from_pretrained.__func__

    def load_and_lose(cls, *args, **kwargs):
        model = load(cls, *args, **kwargs)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().roll(1, 0))
        return model

    monkeypatch.setattr(modeling_seqloom.SeqloomForConditionalGeneration, "from_pretrained", classmethod(load_and_lose))


def crash(monkeypatch):
    def fail(self, beams):
        raise AttributeError("'EncoderDecoderCache' object has no attribute 'layers'")

    monkeypatch.setattr(EncoderDecoderCache, "reorder_cache", fail)


class TestBeforeTheFirstUpdate:
    @pytest.mark.parametrize(
        ("break_library", "found"),
        [
            (ignore_cache, "beam search says "),
            (mix_up_beams, "beam search says "),
            (forget_padding, "a forced pass over a padded batch gives token "),
            (load_other_weights, "out of a saved folder, for source "),
            (crash, "Writing failed with AttributeError: 'EncoderDecoderCache' object has no attribute 'layers'"),
        ],
    )
    def test_a_library_that_writes_otherwise_is_refused(self, break_library, found, recipe, monkeypatch, tmp_path):
        break_library(monkeypatch)
        with pytest.raises(MouthError) as caught:
            train(recipe())
        text = str(caught.value)
        assert found in text
        assert text.startswith("This model does not write what it says under transformers ")
        assert "Nothing was trained: it would learn, and its texts would be nonsense. Tested was transformers " in text
        assert "SEQLOOM_CANARY=off in the environment goes on unchecked. " in text
        assert not checkpoints_in(tmp_path / "run")
        assert not (tmp_path / "run" / "_saving").exists() or not list((tmp_path / "run" / "_saving").iterdir())

    def test_the_remedy_depends_on_what_runs(self, monkeypatch):
        assert mouth.remedy().startswith("As this very pair was tested, something else interferes")
        monkeypatch.setattr(mouth, "is_tested", lambda: False)
        assert mouth.remedy().startswith("To go on, install a tested pair, as with pip install transformers==")
        assert mouth.remedy().endswith(", or a newer Seqloom, pip install -U seqloom.")

    def test_the_exit_code_is_one_and_the_message_one_paragraph(self, learn_by_heart, monkeypatch, capsys):
        mix_up_beams(monkeypatch)
        assert learn_by_heart() == 1
        [paragraph] = [line for line in capsys.readouterr().err.splitlines() if "does not write what it says" in line]
        assert "What differs: " in paragraph
        assert "--debug" not in paragraph

    def test_weights_are_those_of_a_run_without_it_and_the_canary_sings_real_words(
        self, recipe, monkeypatch, tmp_path, capsys
    ):
        train(recipe(dropout=0.1))
        assert "mouth     writes what it says: with a cache, padded, with beams, and out of a folder" in (
            capsys.readouterr().out
        )
        monkeypatch.setattr(run, "check_mouth", lambda *args: "")
        monkeypatch.setattr(trainer, "misread_in", lambda *args, **keys: [])
        train(recipe(dropout=0.1, output=str(tmp_path / "unchecked")))
        checked, unchecked = (
            AutoModelForSeq2SeqLM.from_pretrained(tmp_path / name).state_dict() for name in ("run", "unchecked")
        )
        assert all(torch.equal(checked[name], unchecked[name]) for name in checked)
        rows = read_canary(tmp_path / "run" / CANARY_NAME).rows
        assert len({len(row.source) for row in rows}) == 3
        assert {row.source[-1] for row in rows} == {2}

    def test_a_checkpoint_is_listened_to_before_its_run_goes_on(self, recipe, monkeypatch, tmp_path):
        train(recipe(max_steps=5, save_steps=5))
        (tmp_path / "run" / "run" / "results.json").unlink()
        forget_padding(monkeypatch)
        with pytest.raises(MouthError, match=r"out of a saved folder, for source \[.*\] a forced pass over a padded"):
            train(recipe(save_steps=5))

    def test_a_run_in_16_bits_is_no_fault_and_its_canary_sings_in_the_precision_of_its_weights(
        self, learn_by_heart, tmp_path
    ):
        assert learn_by_heart(bf16=True, num_beams=2, eval_steps=30) == 0
        loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run")
        assert loaded.dtype == torch.float32
        assert find_faults(loaded, read_canary(tmp_path / "run" / CANARY_NAME).rows) == []

    def test_it_can_be_switched_off(self, recipe, monkeypatch, capsys):
        monkeypatch.setenv("SEQLOOM_CANARY", "off")
        load_other_weights(monkeypatch)
        train(recipe(max_steps=1))
        assert "mouth     not checked under transformers " in capsys.readouterr().out

    def test_sources_have_the_lengths_asked_for_and_long_ones_are_cut(self):
        tokenizers = tiny_tokenizers()
        texts = texts_to_say(tiny_pairs(tokenizers))
        assert [len(ids) for ids in tokenizers.source(texts).input_ids] == [4, 8, 9]
        long = tiny_pairs(tokenizers).map(lambda row: {"source": row["source"] * 50})
        long = long.map(lambda row: {"input_ids": tokenizers.source(row["source"]).input_ids})
        lengths = [len(ids) for ids in tokenizers.source(texts_to_say(long)).input_ids]
        assert sorted(set(lengths)) == lengths
        assert lengths[-1] <= 18


class TestInTheMiddle:
    def test_a_run_whose_outputs_are_not_its_own_stops_and_goes_on_to_the_same_weights(
        self, learn_by_heart, monkeypatch, tmp_path, capsys
    ):
        steps = {"max_steps": 40, "eval_steps": 20, "save_steps": 40}
        assert learn_by_heart(output=str(tmp_path / "whole"), **steps) == 0
        with monkeypatch.context() as bent:
            bent.setenv("SEQLOOM_CANARY", "off")  # as if the fault came later than the check
            ignore_cache(bent)
            assert learn_by_heart(**steps) == 1
        [text] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("What is written")]
        assert text.startswith("What is written is not what the model says (update 20 of 40). Read again by a forced")
        assert "pass, greedy outputs are not what the model says: token " in text
        assert f"The last good checkpoint, {tmp_path / 'run' / 'checkpoint-20'}, is kept. The same command goes" in text
        assert learn_by_heart(**steps) == 0
        whole, parts = (AutoModelForSeq2SeqLM.from_pretrained(tmp_path / n).state_dict() for n in ("whole", "run"))
        assert all(torch.equal(whole[name], parts[name]) for name in whole)

    def test_what_only_scores_show_stops_a_run_too(self, learn_by_heart, monkeypatch, capsys):
        monkeypatch.setenv("SEQLOOM_CANARY", "off")
        monkeypatch.setattr(trainer, "misread_in", lambda *args, **keys: [])
        ignore_cache(monkeypatch)
        assert learn_by_heart(max_steps=80, save_steps=80) == 1
        text = capsys.readouterr().err
        assert "(update 60 of 80). token accuracy is 100.00 and exact_match 0.00: of 220 tokens that the model" in text

    def test_beams_are_listened_to_once_more_at_the_end(self, learn_by_heart, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(trainer.SeqloomTrainer, "use_moving_average", lambda self: ignore_cache(monkeypatch))
        assert learn_by_heart(num_beams=3) == 1
        [text] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("This model")]
        assert "The trained model is saved; started again under a tested pair, the same command scores it." in text
        assert "What differs: greedy search writes " in text
        assert (tmp_path / "run" / "model.safetensors").is_file()


class TestReadingAgain:
    def test_what_generate_writes_is_confirmed_and_other_words_are_not(self, taught_model):
        model = taught_model()
        source = [5, 9, 12, 2]
        written = model.generate(torch.tensor([source]), max_new_tokens=9, num_beams=1)[0, 1:].tolist()
        assert misread(model, source, written, most=9) is None
        other = [written[0], written[1] + 1, *written[2:]]
        assert misread(model, source, other, most=9) == (
            f"token 2 of the answer to {source} is {other[1]}, and read again {written[1]}"
        )
        assert misread(model, source, written[:-1], most=9) == (
            f"it stops after {len(written) - 1} tokens without an end of sequence"
        )
        assert misread(model, source, written[:-1], most=len(written) - 1) is None

    def test_a_token_that_may_not_be_written_is_no_fault(self, taught_model):
        model = taught_model()
        source = [5, 9, 12, 2]
        first = int(model.generate(torch.tensor([source]), max_new_tokens=9, num_beams=1)[0, 1])
        model.generation_config.suppress_tokens = [first]
        written = model.generate(torch.tensor([source]), max_new_tokens=9, num_beams=1)[0, 1:].tolist()
        assert first not in written
        assert misread(model, source, written, most=9) is None
        model.generation_config.suppress_tokens = None
        assert misread(model, source, written, most=9) is not None


def sums(labels, best, ids, *, suppressed=(0, 1, 3), most=10):
    logits = torch.nn.functional.one_hot(torch.tensor(best), 9).float()
    return spoken_sums(logits, torch.tensor(labels), torch.tensor(ids), suppressed=suppressed, most=most).tolist()


class TestScores:
    @pytest.mark.parametrize(
        ("labels", "best", "ids", "keys", "expected"),
        [
            ([5, 6, 2, -100], [5, 6, 2, 7], [1, 5, 6, 2], {}, [3, 3, 0, 1]),
            ([5, 6, 2, -100], [5, 6, 2, 7], [1, 5, 5, 5, 5, 5], {}, [3, 1, 0, 0]),
            ([5, 6, 7, 2], [5, 8, 7, 2], [1, 5, 8, 8, 2], {}, [1, 1, 0, 0]),
            ([5, 3, 7, 2], [5, 3, 7, 2], [1, 5, 7, 2], {}, [1, 1, 0, 0]),  # unknown is never written
            ([5, 6, 7, 2], [5, 6, 7, 2], [1, 5, 6], {"most": 2}, [2, 2, 1, 0]),
            ([5, 6, 7, 2], [5, 6, 7, 2], [1, 5], {}, [4, 1, 0, 0]),
        ],
    )
    def test_a_sentence_counts_until_its_first_mistake(self, labels, best, ids, keys, expected):
        assert sums([labels], [best], [ids], **keys) == [expected]

    @pytest.mark.parametrize(
        ("accuracy", "spoken", "scores"),
        [
            (99.9, [[300, 290, 0, 1]] * 50, {"exact_match": 95.0}),
            (99.0, [[100, 60, 0, 0]] * 50, {"exact_match": 0.0}),  # beams may differ
            (98.9, [[300, 1, 0, 0]] * 50, {"exact_match": 0.0}),
            (100.0, [[300, 1, 0, 0]] * 9, {"exact_match": 0.0}),
            (99.7, [[256, 250, 1, 0]] * 30 + [[200, 200, 0, 1]] * 20, {"exact_match": 40.0}),
            (99.7, [[20, 20, 0, 1]] * 50, {"exact_match": 0.0, "chrf": 80.0}),  # letter case
            (99.7, [[20, 20, 0, 1]] * 50, {}),
        ],
    )
    def test_honest_sets_are_believed(self, accuracy, spoken, scores):
        assert doubt_of({"token_accuracy": accuracy, **scores}, np.array(spoken, dtype=float), 256) is None

    def test_nonsense_after_a_high_accuracy_is_not(self):
        doubt = doubt_of({"token_accuracy": 100.0, "exact_match": 0.0}, np.array([[20.0, 1, 0, 0]] * 50), 256)
        assert doubt.is_broken
        assert doubt.reason.startswith(
            "token accuracy is 100.00 and exact_match 0.00: of 1,000 tokens that the model foresees when it reads the "
            "references, it wrote 50. It has learned the task, and what writes is broken, or its settings are. Running "
            "is transformers "
        )

    def test_texts_that_a_vocabulary_does_not_give_back_are_not(self):
        doubt = doubt_of({"token_accuracy": 99.9, "bleu": 1.0}, np.array([[20.0, 20, 0, 1]] * 50), 256)
        assert not doubt.is_broken
        assert doubt.reason.startswith(
            "token accuracy is 99.90 and bleu 1.00: 50 of 50 outputs are their reference token for token, and still "
            "not as text. The vocabulary does not give back what it has read"
        )

    def test_outputs_that_are_all_cut_are_scored_again_with_room(self, learn_by_heart, tmp_path, capsys, caplog):
        with caplog.at_level(logging.WARNING):
            assert learn_by_heart(max_new_tokens=5) == 1
        folder = tmp_path / "run"
        reason = (
            "token accuracy is 100.00 and exact_match 0.00: 20 of 20 references have more than max_new_tokens=5 "
            "tokens, so their outputs were cut; the weights are as good as the first number says. Start the same "
            "command with --max_new_tokens null, and the data decides: "
            "nothing is trained again, all is scored anew."
        )
        assert f"{folder} holds a model and its results, but: on the validation set {reason}" in capsys.readouterr().err
        assert reason in caplog.text, "already while it trains"
        weights = (folder / "model.safetensors").read_bytes()
        results = json.loads((folder / "run" / "results.json").read_text())
        assert results["doubt"].endswith(reason)
        assert results["validation_truncated"] == 20
        assert learn_by_heart(max_new_tokens=5) == 1, "asked again, it is not finished either"
        assert learn_by_heart(max_new_tokens=None) == 0, "the remedy works"
        results = json.loads((folder / "run" / "results.json").read_text())
        assert results["validation_exact_match"] == 100
        assert "doubt" not in results
        assert results["validation_truncated"] == 0
        assert (folder / "model.safetensors").read_bytes() == weights
