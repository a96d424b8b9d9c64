"""Who asks for a length gets it, as from a Marian folder; absurd numbers are refused before they cost anything."""

import string
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    GenerationConfig,
    MarianMTModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from seqloom.configuration.configuration_seqloom import MOST_TOKENS, SeqloomConfig
from seqloom.hub.pipeline_seqloom import PIPELINES
from seqloom.modeling.modeling_seqloom import SeqloomForCausalLM, SeqloomForConditionalGeneration
from tests.modeling.test_marian import marian_twin
from tests.toy import TINY

Twins = tuple[Any, MarianMTModel]

SOURCE = torch.tensor([[7, 8, 9, 2]])


@pytest.fixture
def tokenizer(char_tokenizer: Callable[[str], Any]) -> Any:
    """A tokenizer for the toy language."""
    return char_tokenizer(string.ascii_letters[:36])


@pytest.fixture
def twins(tiny_model: Callable[..., Any]) -> Twins:
    """A Seqloom whose folder says 30 new tokens, as ours do, and its Marian; neither comes to an end by itself."""
    ours = tiny_model(max_position_embeddings=1024)
    marian = marian_twin(ours)
    for model in (ours, marian):
        model.generation_config = GenerationConfig(
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, suppress_tokens=[0, 2]
        )
    ours.generation_config.max_new_tokens = ours._folder_max_new_tokens = 30
    return ours, marian


def by_keyword(model: Any, tokenizer: Any, folder: Any) -> int:
    return model.generate(SOURCE, max_length=7).shape[1]


def by_config(model: Any, tokenizer: Any, folder: Any) -> int:
    return model.generate(SOURCE, GenerationConfig(max_length=7)).shape[1]


def by_keyword_over_config(model: Any, tokenizer: Any, folder: Any) -> int:
    return model.generate(SOURCE, GenerationConfig(max_length=9), max_length=7).shape[1]


def by_the_model(model: Any, tokenizer: Any, folder: Any) -> int:
    model.generation_config.max_length = 7
    return model.generate(SOURCE).shape[1]


def by_both(model: Any, tokenizer: Any, folder: Any) -> int:
    return model.generate(SOURCE, max_length=4, max_new_tokens=6).shape[1]


def by_new_tokens(model: Any, tokenizer: Any, folder: Any) -> int:
    model.generation_config.max_length = 4
    return model.generate(SOURCE, GenerationConfig(max_new_tokens=6)).shape[1]


def by_decoder_prompt(model: Any, tokenizer: Any, folder: Any) -> int:
    return model.generate(SOURCE, decoder_input_ids=torch.tensor([[1, 5, 6]]), max_length=7).shape[1]


def by_pipeline_call(model: Any, tokenizer: Any, folder: Any) -> int:
    write = PIPELINES["text2text-generation"](model=model, tokenizer=tokenizer, device="cpu")
    return len(write("abc", max_length=7, return_tensors=True)[0]["generated_token_ids"])


def by_pipeline(model: Any, tokenizer: Any, folder: Any) -> int:
    write = PIPELINES["translation"](model=model, tokenizer=tokenizer, device="cpu", task="translation", max_length=7)
    return len(write("abc", return_tensors=True)[0]["translation_token_ids"])


def by_pipeline_config(model: Any, tokenizer: Any, folder: Any) -> int:
    write = PIPELINES["text2text-generation"](model=model, tokenizer=tokenizer, device="cpu")
    options = {"generation_config": GenerationConfig(max_length=7), "return_tensors": True}
    return len(write("abc", **options)[0]["generated_token_ids"])


def by_trainer(model: Any, tokenizer: Any, folder: Any, **options: Any) -> int:
    arguments = Seq2SeqTrainingArguments(
        folder, predict_with_generate=True, report_to="none", use_cpu=True, disable_tqdm=True,
        **(options or {"generation_max_length": 7}),
    )  # fmt: skip
    rows = Dataset.from_dict({"input_ids": [[7, 8, 2], [9, 2]] * 5, "labels": [[27, 28, 2], [29, 2]] * 5})
    trainer = Seq2SeqTrainer(
        model=model, args=arguments, processing_class=tokenizer, data_collator=DataCollatorForSeq2Seq(tokenizer)
    )
    return int((trainer.predict(rows).predictions != 0).sum(-1).max())


WAYS = [
    by_keyword, by_config, by_keyword_over_config, by_the_model, by_both, by_new_tokens, by_decoder_prompt,
    by_pipeline_call, by_pipeline, by_pipeline_config, by_trainer,
]  # fmt: skip


@pytest.mark.parametrize("ask", WAYS)
def test_lengths_are_obeyed_as_by_marian(twins: Twins, tokenizer: Any, tmp_path: Any, ask: Any) -> None:
    lengths = [ask(model, tokenizer, str(tmp_path)) for model in twins]
    assert lengths == [7, 7]


def test_new_tokens_that_a_caller_writes_into_the_model_beat_a_length(twins: Twins, tmp_path: Any) -> None:
    twins[0].generation_config.max_new_tokens = None
    twins[0].generation_config.max_length = 9
    twins[0].save_pretrained(tmp_path)
    for model in (SeqloomForConditionalGeneration.from_pretrained(tmp_path), twins[1]):
        model.generation_config.max_length = 9
        model.generation_config.max_new_tokens = 3
        assert model.generate(SOURCE).shape[1] == 1 + 3


def test_a_trainer_that_names_no_length_gets_the_folders_in_every_batch(
    twins: Twins, tokenizer: Any, tmp_path: Any
) -> None:
    """Seq2SeqTrainer writes transformers' default, 20, into the model after the first batch."""
    options = {"per_device_eval_batch_size": 2}
    assert by_trainer(twins[0], tokenizer, str(tmp_path), **options) == 1 + 30


def test_a_file_with_both_lengths_means_new_tokens(twins: Twins, tmp_path: Any) -> None:
    ours = twins[0]
    ours.generation_config.max_length = 4
    ours.save_pretrained(tmp_path)
    again = SeqloomForConditionalGeneration.from_pretrained(tmp_path)
    assert again.generate(SOURCE).shape[1] == 1 + 30
    again.generation_config.max_length = 7
    assert again.generate(SOURCE).shape[1] == 7


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_new_tokens": 10**9}, "max_new_tokens=1000000000 is more than 131,072, the most that is tried; lower it"),
        (
            {"max_length": 10**9, "max_new_tokens": None},
            "max_(length=1000000000|new_tokens=999999999) is more than 131,072",
        ),
        ({"num_beams": 10**6}, "num_beams=1000000 is more than 1,000, the most that is tried; lower it in the call,"),
        (
            {"num_return_sequences": 10**6, "do_sample": True},
            "num_return_sequences.*(=1000000 is more than 1,000|smaller or equal)",
        ),
    ],
)
@pytest.mark.parametrize("door", ["generate", "causal", "folder", "pipeline"])
def test_absurd_settings_are_refused(
    twins: Twins, tokenizer: Any, settings: dict[str, Any], sentence: str, door: str
) -> None:
    model = twins[0].as_causal_lm() if door == "causal" else twins[0]
    if door == "pipeline":
        write = PIPELINES["text2text-generation"](model=model, tokenizer=tokenizer, device="cpu")
    if door == "folder":
        model.generation_config.update(**settings)
    with pytest.raises(ValueError, match=sentence):
        write("abc", **settings) if door == "pipeline" else model.generate(
            SOURCE, **({} if door == "folder" else settings)
        )
    assert model.generate(SOURCE, max_new_tokens=3, max_length=None, num_beams=2, num_return_sequences=1).shape[0] == 1


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("encoder_layers", 10**7, "is more than 1,000, the largest that Seqloom builds; lower it."),
        ("decoder_layers", 1001, "is more than 1,000"),
        ("d_model", 10**12, "is more than 65,536"),
        ("vocab_size", 10**12, "is more than 16,777,216"),
        ("encoder_ffn_dim", 10**12, "is more than 262,144"),
        ("decoder_ffn_dim", 10**12, "is more than 262,144"),
        ("max_position_embeddings", 10**9, f"is more than {MOST_TOKENS:,}"),
    ],
)
def test_absurd_sizes_are_refused_at_once(field: str, value: int, rule: str) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"{field}={value} {rule}"):
        SeqloomConfig(**{field: value})
    assert time.monotonic() - start < 60, "nothing is built, and no divisors of a large number are sought"


def test_sizes_are_refused_together() -> None:
    with pytest.raises(ValueError, match=r"a network of about [\d,]+ weights, and Seqloom builds up to 20,000,000,000"):
        SeqloomConfig(d_model=32768, encoder_ffn_dim=131072, decoder_ffn_dim=131072)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_gated_ffn": True, "num_key_value_heads": 2, "tie_word_embeddings": False},
        {"position_embedding_type": "learned"},
    ],
)
def test_weights_are_counted_about_right(tiny_model: Callable[..., Any], fields: dict[str, Any]) -> None:
    model = tiny_model(d_model=64, **fields)
    matrices = {id(weight): weight.numel() for weight in model.parameters() if weight.ndim == 2}
    assert model.config._count_weights() == pytest.approx(sum(matrices.values()), rel=0.15)


@pytest.mark.parametrize("door", [SeqloomForConditionalGeneration, SeqloomForCausalLM])
@pytest.mark.parametrize(
    ("source", "error", "rule"),
    [
        ("hallo", TypeError, r"got a str and reads ids, a tensor of shape \(B, S\); write generate\(\*\*tokenizer"),
        ({"input_ids": torch.tensor([[5, 2]])}, TypeError, "got a dict and reads ids"),
        ([[5, 2]], TypeError, "got a list and reads ids"),
        (torch.tensor([5, 6, 2]), TypeError, r"got a tensor of shape \(3,\) and reads ids, a tensor of shape \(B, S\)"),
        (torch.tensor([[5, 40]]), ValueError, "input_ids hold 40, and the ids of this model run from 0 to 39; use the"),
        (torch.tensor([[-100, 2]]), ValueError, "input_ids hold -100, and the ids of this model run from 0"),
    ],
)
def test_what_is_no_batch_of_ids_is_refused(door: type[Any], source: Any, error: type[Exception], rule: str) -> None:
    model = door(SeqloomConfig(**TINY)).eval()
    with pytest.raises(error, match=rule):
        model.generate(source, max_new_tokens=2)
    assert model.generate(torch.tensor([[5, 2]]), max_new_tokens=2).ndim == 2  # the remedy
