"""A folder fine-tuned by people who have transformers alone: its plain Seq2SeqTrainer, with Seqloom and without it.

What runs outside stands here as a function whose source is handed over (see tests/outside.py).
"""

import json

import pytest

from seqloom.modeling.canary import CANARY_NAME, read_canary
from seqloom.modeling.library import running_library
from tests.outside import run_outside

WORDS = "abcdefghijklmnop" + "....ABCDEFGHIJKLMNOP"
"""Ids 4 to 19 in small letters; their translations, 20 higher, in large ones: `toy_pairs`, which the model knows."""


def fine_tune(folder, output, smoothing):
    import random

    import torch
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
    )

    torch.set_num_threads(1)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    letters = random.Random(0)
    words = ["".join(letters.choices("abcdefghijklmnop", k=letters.randint(1, 8))) for _ in range(136)]
    rows = [{**tokenizer(word), "labels": tokenizer(word.upper())["input_ids"]} for word in words]
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=output,
            predict_with_generate=True,
            generation_max_length=12,
            label_smoothing_factor=smoothing,
            eval_strategy="steps",
            eval_steps=8,
            max_steps=24,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=3,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            logging_steps=1,
            save_steps=8,
            report_to=[],
            use_cpu=True,
        ),
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        train_dataset=rows[:128],
        eval_dataset=rows[128:],
        processing_class=tokenizer,
    )
    trainer.train()
    written = trainer.predict(rows[128:]).predictions
    trainer.save_model()
    again = AutoModelForSeq2SeqLM.from_pretrained(output, trust_remote_code=True)
    batch = tokenizer(words[128:], return_tensors="pt", padding=True)

    def texts(ids):
        return tokenizer.batch_decode([[token for token in row if token >= 0] for row in ids], skip_special_tokens=True)

    return {
        "class": type(again).__module__.partition(".")[0],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "evaluation": [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry],
        "expected": [word.upper() for word in words[128:]],
        "written": texts(written.tolist()),
        "again": texts(again.generate(**batch, max_length=12).tolist()),
        "one checkpoint": AutoModelForSeq2SeqLM.from_pretrained(f"{output}/checkpoint-8", trust_remote_code=True).dtype
        == torch.float32,
    }


@pytest.fixture(scope="module")
def folder(taught_model, char_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught")
    taught_model().save_pretrained(folder)
    char_tokenizer(WORDS).save_pretrained(folder)
    return folder


def check(result, output, origin):
    """Read what a fine-tuning gave."""
    assert result["class"] == origin
    losses = result["losses"]
    assert sum(losses[-8:]) < sum(losses[:8])
    assert len(result["evaluation"]) == 3
    assert result["evaluation"][-1] < result["evaluation"][0]
    assert result["written"] == result["again"]
    assert len(set(result["written"])) > 3
    right = [got == want for got, want in zip(result["written"], result["expected"], strict=True)]
    assert any(right), result  # so small a model learns no more within seconds
    assert result["one checkpoint"]
    canary = read_canary(output / CANARY_NAME)
    assert canary.rows
    assert canary.tested == [running_library()]
    assert "auto_map" in json.loads((output / "config.json").read_text())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_plain_trainer_fine_tunes_a_folder(folder, tmp_path, smoothing):
    check(fine_tune(str(folder), str(tmp_path), smoothing), tmp_path, "seqloom")


def test_plain_trainer_fine_tunes_a_folder_where_seqloom_is_missing(folder, tmp_path):
    (tmp_path / "cache").mkdir()
    output = tmp_path / "tuned"
    result, _ = run_outside(fine_tune, tmp_path / "cache", folder=str(folder), output=str(output), smoothing=0.1)
    check(result, output, "transformers_modules")


def test_smoothing_without_a_target_is_refused(folder, tmp_path):
    """Trainer takes the labels out when it smooths; a collator that knows no model then leaves no target at all.

    Both remedies of the message are used above: `DataCollatorForSeq2Seq(tokenizer, model=model)`, with smoothing, and
    the model's own `label_smoothing` in every training by Seqloom.
    """
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [{**tokenizer(word), "labels": tokenizer(word.upper())["input_ids"]} for word in ("abc", "de", "fgh")]
    options = {"label_smoothing_factor": 0.1, "max_steps": 1, "report_to": [], "use_cpu": True}
    trainer = Trainer(
        model=AutoModelForSeq2SeqLM.from_pretrained(folder),
        args=TrainingArguments(str(tmp_path), **options),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        train_dataset=rows,
    )
    with pytest.raises(ValueError, match=r"label_smoothing_factor is set: set model\.config\.label_smoothing"):
        trainer.train()
