"""Training with --push_to_hub, against a Hub on loopback: whole folders, our card, private, and nothing lost."""

import json
import random

import pytest

from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.hub.model_card import DEMO_EXAMPLE, is_generated
from seqloom.training.train import train
from tests.loopback_hub import card_errors, logged_in

GEOMETRY = {"preset": "demo", "d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_attention_heads": 2}
QUICK = {"decoder_attention_heads": 2, "tokenizer": "char", "vocab_size": 300, "max_new_tokens": 5, "num_beams": 1}
SCHEDULE = {"max_steps": 4, "save_steps": 2, "eval_steps": 4, "warmup_steps": 1, "disable_tqdm": True}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with logged_in(monkeypatch, tmp_path / "no token") as server:
        yield server


@pytest.fixture
def recipe(tmp_path):
    """A run on words and their reversals, to be pushed to alice/words."""
    rng = random.Random(0)
    files = {}
    for split, count in (("train", 40), ("valid", 3), ("test", 5)):
        words = ["".join(rng.choices("abcde", k=rng.randint(2, 6))) for _ in range(count)]
        rows = "".join(f"{word}\t{word[::-1]}\n" for word in words)
        (tmp_path / f"{split}.tsv").write_text(f"source\ttarget\n{rows}")
        files[split] = [str(tmp_path / f"{split}.tsv")]

    def build(**overrides):
        keys = {**files, **GEOMETRY, **QUICK, **SCHEDULE, "output": str(tmp_path / "words"), "license": "cc0-1.0"}
        return resolve_recipe(None, {**keys, "push_to_hub": True, "hub_model_id": "alice/words", **overrides})

    return build


def test_a_finished_run_is_pushed_whole_and_private_with_its_scores(recipe, hub, tmp_path):
    results = train(recipe())
    repository = hub.repositories["alice/words"]
    assert repository.private
    assert repository.messages == ["initial commit", "End of training"]
    folder = tmp_path / "words"
    at_home = {path.name for path in folder.iterdir() if path.is_file()}
    assert set(repository.files) == at_home | {".gitattributes"}
    assert {"modeling_seqloom.py", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= at_home
    card = repository.files["README.md"].decode()
    assert is_generated(card)
    assert card == (folder / "README.md").read_text()
    assert card_errors(card) == []
    assert f"| test | Character error rate (edits per 100 characters) | {results['test_cer']:.2f} |" in card
    assert "license: cc0-1.0" in card
    assert 'model="alice/words"' in card


def test_the_run_keeps_what_the_card_says(recipe, tmp_path):
    train(recipe(push_to_hub=False))
    results = json.loads((tmp_path / "words" / "run" / "results.json").read_text())
    low, high = results["test_cer_ci95"]
    assert low <= results["test_cer"] <= high
    assert (results["epochs"], results["processes"]) == (4.0, 1)
    rows = (tmp_path / "train.tsv").read_text().splitlines()[1:]
    ends = 2 * len(rows)  # </s> on either side
    assert results["train_source_tokens"] + results["train_target_tokens"] == sum(len(r) - 1 for r in rows) + ends
    card = (tmp_path / "words" / "README.md").read_text()
    assert 'model="alice/words"' in card
    assert DEMO_EXAMPLE not in card


def test_examples_that_are_too_long_are_told(recipe, tmp_path):
    train(recipe(push_to_hub=False, max_source_length=4, max_steps=2))
    record = json.loads((tmp_path / "words" / "run" / "data.json").read_text())["train"]
    assert record["num_too_long"] > 0
    rest = record["num_rows"] - record["num_too_long"]
    assert (
        f"| training | train.tsv | {rest} | {record['num_too_long']} too long |"
        in (tmp_path / "words" / "README.md").read_text()
    )


def test_checkpoints_have_a_card_without_scores(recipe, tmp_path):
    train(recipe(push_to_hub=False, hub_model_id=None, save_total_limit=2))
    card = (tmp_path / "words" / "checkpoint-2" / "README.md").read_text()
    assert "saved at update 2; it has no final scores" in card
    assert "## Data" in card
    assert "## Scores" not in card


def test_every_save_sends_whole_checkpoints(recipe, hub):
    train(recipe(hub_strategy="every_save"))
    repository = hub.repositories["alice/words"]
    progress = [f"Training in progress, step {step}" for step in (2, 4)]
    assert repository.messages == ["initial commit", *progress, "End of training"]
    first = repository.commits[1]
    assert {"modeling_seqloom.py", "model.safetensors", "tokenizer.json", "README.md"} <= set(first)
    assert not {"optimizer.pt", "trainer_state.json", "scheduler.pt"} & set(first)
    assert "saved at update 2" in first["README.md"].decode()


def test_a_checkpoint_that_is_not_taken_does_not_end_the_training(recipe, hub, caplog):
    hub.answers["POST .*/commit/"] = 500
    with pytest.raises(ValueError, match="answered 500 to the push to alice/words"):
        train(recipe(hub_strategy="every_save"))
    assert "The checkpoint at step 2 was not pushed: " in caplog.text
    assert "The checkpoint at step 4 was not pushed: " in caplog.text


def test_a_refused_token_is_said_before_training(recipe, hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(ValueError, match="does not accept the token"):
        train(recipe())
    assert not list((tmp_path / "words").glob("checkpoint-*"))


def test_what_could_not_be_sent_is_sent_by_the_next_start(recipe, hub, tmp_path, capsys):
    hub.cut = "POST .*/commit/"
    with pytest.raises(ValueError, match="Start the same command again"):
        train(recipe())
    results = json.loads((tmp_path / "words" / "run" / "results.json").read_text())
    assert len(hub.repositories["alice/words"].commits) == 1
    hub.cut = None
    assert train(recipe()) == results
    assert "nothing to do" in capsys.readouterr().out
    assert "model.safetensors" in hub.repositories["alice/words"].files


def test_strategies_that_send_pickles_are_refused(recipe, hub):
    with pytest.raises(
        ValueError, match="hub_strategy=checkpoint would send optimizer states, which are pickles; use end"
    ):
        train(recipe(hub_strategy="checkpoint"))


def test_public_is_asked_for_in_the_words_of_trainer(recipe, hub):
    train(recipe(hub_private_repo=False))
    assert not hub.repositories["alice/words"].private


def test_an_edited_card_survives_another_training(recipe, tmp_path):
    train(recipe(push_to_hub=False, max_steps=2))
    card = tmp_path / "words" / "README.md"
    card.write_text("# Mine\n")
    train(recipe(push_to_hub=False, max_steps=2, resume="never", overwrite=True))
    assert card.read_text() == "# Mine\n"


def test_push_to_hub_of_the_trainer_itself(recipe, hub, tmp_path, tiny_config, caplog):
    """Somebody's own script, as in transformers' documents: trainer.push_to_hub()."""
    from datasets import Dataset
    from transformers import Seq2SeqTrainingArguments

    import seqloom
    from seqloom.training.batching import BatchSettings
    from seqloom.training.tokenizer import train_tokenizer
    from seqloom.training.trainer import SeqloomTrainer

    tokenizers = train_tokenizer(["ab"], ["ab"], kind="char", vocab_size=270, show_progress=False)
    pairs = Dataset.from_dict({"input_ids": [[4, 5, 2]], "labels": [[5, 4, 2]]})
    trainer = SeqloomTrainer(
        seqloom.SeqloomForConditionalGeneration(tiny_config(vocab_size=tokenizers.vocab_size)),
        Seq2SeqTrainingArguments(output_dir=str(tmp_path / "own"), use_cpu=True, report_to="none", disable_tqdm=True),
        tokenizers=tokenizers,
        batching=BatchSettings(100),
        train_dataset=pairs,
    )
    report = trainer.push_to_hub(tags="mine")
    assert report.repo == "alice/own"
    assert hub.repositories["alice/own"].private
    assert "How it was trained is not recorded" in hub.repositories["alice/own"].files["README.md"].decode()
    assert "Arguments of create_model_card are ignored" in caplog.text
