"""The pipelines that transformers 5 removed, against `generate` called by hand, on a model that can write."""

import copy
import logging
import string

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig, pipeline, pipelines
from transformers.pipelines import PIPELINE_REGISTRY, check_task

import seqloom
from seqloom.hub import pipeline_seqloom
from seqloom.hub.pipeline_seqloom import PIPELINES, ReturnType, score_sequences

TEXTS = ["abcd", "p", "ponmlkj", "aa"]
KEYS = {"translation": "translation", "summarization": "summary", "text2text-generation": "generated"}


@pytest.fixture(scope="module")
def tokenizer(char_tokenizer):
    """Return a tokenizer for the toy language: a to p are source words, u to J their translations, in order."""
    return char_tokenizer(string.ascii_letters[:36])


@pytest.fixture(scope="module")
def model(taught_model):
    return taught_model()


@pytest.fixture
def make(model, tokenizer):
    """Return a function that builds a pipeline from objects; the limit keeps the tests fast."""

    def build(task="translation", **options):
        return pipeline(task, model=model, tokenizer=tokenizer, device="cpu", **{"max_new_tokens": 10, **options})

    return build


def by_hand(model, tokenizer, text, **options):
    """Return the texts that generate writes for one text."""
    batch = tokenizer(text, return_tensors="pt")
    sequences = model.generate(**batch, **{"max_new_tokens": 10, "num_beams": 4, **options})
    return tokenizer.batch_decode(sequences, skip_special_tokens=True)


# Keys, lists and options, as in transformers 4 ----------------------------------------------------------------------


@pytest.mark.parametrize("task", KEYS)
def test_a_text_gives_a_list_and_a_list_gives_a_list_of_records(make, model, tokenizer, task):
    write, key = make(task), f"{KEYS[task]}_text"
    expected = [{key: by_hand(model, tokenizer, text)[0]} for text in TEXTS]
    assert type(write) is PIPELINES[task]
    assert write(TEXTS[0]) == expected[:1]
    assert write(TEXTS) == expected
    assert list(write(text for text in TEXTS)) == [[record] for record in expected]
    assert write([]) == []
    assert len({record[key] for record in expected}) == len(TEXTS)


def test_the_answer_is_in_the_words_of_the_target_and_without_the_source(make):
    for record in make()(TEXTS):
        assert set(record["translation_text"]) <= set(string.ascii_letters[20:36])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 3}], ids=str)
def test_batches_give_what_texts_give_alone_on_either_padding_side(make, tokenizer, monkeypatch, side, options):
    monkeypatch.setattr(tokenizer, "padding_side", side)
    write = make(return_scores=True, **options)
    alone, together = write(TEXTS), write(TEXTS, batch_size=3)
    assert len(alone) == len(together) == len(TEXTS)
    for one, other in zip(alone, together, strict=True):
        records, others = ([one], [other]) if isinstance(one, dict) else (one, other)
        assert [record["translation_text"] for record in records] == [record["translation_text"] for record in others]
        scores = [record["score"] for record in others]
        assert [record["score"] for record in records] == pytest.approx(scores, abs=1e-5)


def test_several_sequences_give_lists_of_records(make, model, tokenizer):
    lists = make(num_return_sequences=3)(TEXTS)
    assert [[record["translation_text"] for record in records] for records in lists] == [
        by_hand(model, tokenizer, text, num_return_sequences=3) for text in TEXTS
    ]


@pytest.mark.parametrize("task", KEYS)
@pytest.mark.parametrize("options", [{"return_tensors": True}, {"return_type": ReturnType.TENSORS}], ids=str)
def test_token_ids_instead_of_text(make, model, tokenizer, task, options):
    (record,) = make(task)("abcd", **options)
    assert list(record) == [f"{KEYS[task]}_token_ids"]
    batch = tokenizer("abcd", return_tensors="pt")
    expected = model.generate(**batch, max_new_tokens=10, num_beams=4)[0]
    assert torch.equal(record[f"{KEYS[task]}_token_ids"], expected)


@pytest.mark.parametrize("options", [{"return_text": True}, {"return_tensors": False}], ids=str)
def test_text_where_it_is_asked_for(make, options):
    assert list(make()("abcd", **options)[0]) == ["translation_text"]


def test_truncation_cuts_long_inputs_and_only_on_request(make, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "model_max_length", 4)
    write = make()
    assert write("abcdefg", truncation=True) == write("abc")
    assert write("abcdefg") != write("abc")


def test_clean_up_removes_blanks_before_punctuation_and_only_on_request(make, tokenizer, monkeypatch):
    seen = []
    original = type(tokenizer).batch_decode

    def decode(self, ids, **options):
        seen.append(options["clean_up_tokenization_spaces"])
        return original(self, ids, **options)

    monkeypatch.setattr(type(tokenizer), "batch_decode", decode)
    make()("abcd")
    make()("abcd", clean_up_tokenization_spaces=True)
    assert seen == [False, True]


def test_token_types_do_not_reach_generate(make, tokenizer, monkeypatch):
    plain = make()("abcd")
    monkeypatch.setattr(tokenizer, "model_input_names", ["input_ids", "attention_mask", "token_type_ids"])
    assert "token_type_ids" in tokenizer("abcd")
    assert make()("abcd") == plain


def test_prefix_of_the_configuration_stands_before_every_text(make, model, monkeypatch):
    plain = make()("aab")
    monkeypatch.setattr(model.config, "prefix", "aa", raising=False)
    assert make()("b") == plain


# Lengths and other settings of generate -----------------------------------------------------------------------------


def test_defaults_are_four_beams_and_256_tokens_unless_the_folder_says_otherwise(make, model, tokenizer, monkeypatch):
    calls = []

    def generate(self, **options):
        calls.append(options)
        return torch.ones(1, 2, dtype=torch.long)

    monkeypatch.setattr(type(model), "generate", generate)
    write = pipeline("translation", model=model, tokenizer=tokenizer)
    write("abcd")
    assert (calls[-1]["num_beams"], calls[-1]["max_new_tokens"]) == (4, 256)
    monkeypatch.setattr(model, "generation_config", GenerationConfig(num_beams=1, max_new_tokens=7))
    write("abcd")
    assert {"num_beams", "max_new_tokens"}.isdisjoint(calls[-1])
    write("abcd", max_length=5)
    assert calls[-1]["max_new_tokens"] == 4
    assert "max_length" not in calls[-1]


@pytest.mark.parametrize("folder_limit", [None, 9])
def test_max_length_counts_the_start_token_and_wins_over_the_folder(model, tokenizer, monkeypatch, folder_limit):
    monkeypatch.setattr(model.generation_config, "max_new_tokens", folder_limit)
    for built_with, called_with in (
        ({}, {"max_length": 4}),
        ({"max_length": 4}, {}),
        ({"max_length": 9}, {"max_length": 4}),
    ):
        write = pipeline("translation", model=model, tokenizer=tokenizer, return_tensors=True, **built_with)
        assert len(write("abcdefgh", **called_with)[0]["translation_token_ids"]) == 4


def test_generation_config_and_other_options_reach_generate(make, model, tokenizer):
    settings = {"num_beams": 2, "max_new_tokens": 3}
    (record,) = make()("abcd", generation_config=GenerationConfig(**settings))
    assert [record["translation_text"]] == by_hand(model, tokenizer, "abcd", **settings)
    (record,) = make()("abcd", min_new_tokens=9)
    assert [record["translation_text"]] == by_hand(model, tokenizer, "abcd", min_new_tokens=9)
    assert make()("abcd", return_dict_in_generate=True, output_scores=True) == make()("abcd")


def test_stop_sequence_ends_the_answer_behind_it(make):
    full = make(num_beams=1)("abcdefgh")[0]["translation_text"]
    stop = full[1:3]
    up_to_it = full[: full.index(stop) + len(stop)]
    assert make(num_beams=1)("abcdefgh", stop_sequence=stop)[0]["translation_text"] == up_to_it
    assert make(num_beams=1, stop_strings=[stop])("abcdefgh")[0]["translation_text"] == up_to_it


def test_sampling_is_that_of_generate(make, model, tokenizer):
    options = {"do_sample": True, "num_beams": 1, "temperature": 2.0}
    torch.manual_seed(5)
    sampled = make()("abcd", **options)[0]["translation_text"]
    torch.manual_seed(5)
    assert sampled == by_hand(model, tokenizer, "abcd", **options)[0]


# Scores -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_scores_are_those_of_the_beam_search(make, model, tokenizer, length_penalty):
    options = {"num_beams": 4, "num_return_sequences": 4, "length_penalty": length_penalty}
    records = make()("abcd", return_scores=True, **options)
    batch = tokenizer("abcd", return_tensors="pt")
    output = model.generate(**batch, max_new_tokens=10, return_dict_in_generate=True, output_scores=True, **options)
    assert [record["score"] for record in records] == pytest.approx(output.sequences_scores.tolist(), abs=1e-4)
    assert [record["translation_text"] for record in records] == tokenizer.batch_decode(
        output.sequences, skip_special_tokens=True
    )


def test_score_of_a_greedy_answer_is_the_mean_log_probability_of_its_tokens(make, model, tokenizer):
    (record,) = make(num_beams=1, length_penalty=1.0)("abcd", return_scores=True, return_tensors=True)
    ids = record["translation_token_ids"][None]
    with torch.no_grad():
        logits = model(**tokenizer("abcd", return_tensors="pt"), decoder_input_ids=ids[:, :-1]).logits
    log_probs = logits.double().log_softmax(-1)[0, range(ids.shape[1] - 1), ids[0, 1:]]
    assert record["score"] == pytest.approx(log_probs.mean().item(), abs=1e-5)


def test_a_quantised_model_scores_what_it_writes(model, tokenizer):
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    sequences = quantised.generate(**batch, max_new_tokens=4, num_beams=1)
    with torch.no_grad():
        scores = score_sequences(quantised, batch, sequences, {"eos_token_id": 2, "pad_token_id": 0})
    assert (scores < 0).all()


def test_scores_ignore_the_padding_behind_stop_strings_and_do_not_depend_on_passes(make, model, tokenizer, monkeypatch):
    write = make(num_beams=1, return_scores=True)
    stop = write("ab")[0]["translation_text"][:1]
    records = write(["abcdefgh", "ab"], batch_size=2, stop_sequence=stop)
    assert records[1]["score"] == pytest.approx(write("ab", stop_sequence=stop)[0]["score"], abs=1e-5)
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    sequences = model.generate(**batch, max_new_tokens=6, num_beams=2, num_return_sequences=2)
    settings = {"eos_token_id": 2, "pad_token_id": 0}
    with torch.no_grad():
        whole = score_sequences(model, batch, sequences, settings)
        monkeypatch.setattr(pipeline_seqloom, "LOGITS_PER_PASS", 1)
        rows = score_sequences(model, batch, sequences, settings)
        padded = score_sequences(model, batch, torch.nn.functional.pad(sequences, (0, 3)), settings)
    torch.testing.assert_close(rows, whole)
    torch.testing.assert_close(padded, whole)
    assert not (sequences == 2).any(dim=1).all()  # one at least has only its length to end it


# Languages ----------------------------------------------------------------------------------------------------------


def test_languages_in_the_name_of_the_task(make):
    write = make("translation_en_to_fr")
    assert write.task == "translation_en_to_fr"
    assert write("abcd") == make()("abcd")
    with pytest.raises(KeyError, match="translation_en_fr"):
        make("translation_en_fr")


def test_languages_reach_a_tokenizer_that_knows_them(make, tokenizer, monkeypatch):
    calls = []

    def build(text, return_tensors, truncation, **languages):
        calls.append(languages)
        return tokenizer(text, return_tensors=return_tensors, truncation=truncation)

    monkeypatch.setattr(tokenizer, "_build_translation_inputs", build, raising=False)
    make("translation_en_to_fr")("abcd")
    make(src_lang="de", tgt_lang="it")("abcd")
    make("translation_en_to_fr")("abcd", src_lang="x", tgt_lang="y")
    assert calls == [
        {"src_lang": "en", "tgt_lang": "fr"},
        {"src_lang": "de", "tgt_lang": "it"},
        {"src_lang": "x", "tgt_lang": "y"},
    ]


def test_languages_that_are_ignored_are_named(make, caplog):
    pipeline_seqloom.logger.warning_once.cache_clear()
    assert make()("abcd", src_lang="en", tgt_lang="fr") == make()("abcd")
    assert "src_lang and tgt_lang are ignored: the tokenizer serves one pair of languages." in caplog.text


# Warnings and errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "options", "warning"),
    [
        ("translation", {"max_new_tokens": 5}, "max_length=5 may cut the translation of a text of 5 tokens; consider "),
        ("summarization", {"max_new_tokens": 9}, "max_length=9 allows a summary longer than its text of 5 tokens; con"),
        ("summarization", {"max_new_tokens": 3, "min_length": 4}, "min_length=4 is above max_length=3; lower it or "),
        ("translation", {"max_new_tokens": 6}, None),
        ("summarization", {"max_new_tokens": 5}, None),
        ("text2text-generation", {"max_new_tokens": 3}, None),
    ],
    ids=str,
)
def test_lengths_that_do_not_fit_are_warned_about(make, caplog, task, options, warning):
    with caplog.at_level(logging.WARNING, logger=pipeline_seqloom.__name__):
        make(task)("abcd", **options)
    messages = [record.message for record in caplog.records if record.name == pipeline_seqloom.__name__]
    assert len(messages) == (warning is not None)
    assert all(message.startswith(warning) for message in messages)


@pytest.mark.parametrize(
    ("inputs", "start"),
    [
        (3, "translation got 3 of type int; it takes a text or a list of texts. "),
        (["abcd", None], "translation got None of type NoneType; it takes"),
        ([["abcd", "b"]], "translation got ['abcd', 'b'] of type list; it takes"),
        ([{"role": "user", "content": "abcd"}], "translation got <transformers"),
    ],
    ids=str,
)
def test_what_is_no_text_is_refused(make, inputs, start):
    with pytest.raises(ValueError, match=r"Chat messages are for the text-generation pipeline\.$") as error:
        make()(inputs)
    assert str(error.value).startswith(start)


@pytest.mark.parametrize("kind", ["SeqloomForCausalLM", "SeqloomModel"])
def test_other_models_are_refused(tiny_model, tokenizer, kind):
    with pytest.raises(ValueError, match="sequence-to-sequence") as error:
        pipeline("summarization", model=tiny_model(kind), tokenizer=tokenizer)
    assert str(error.value) == (
        f"summarization reads what a sequence-to-sequence model writes, and {kind} is none; load the model with "
        f"AutoModelForSeq2SeqLM, or use the text-generation pipeline."
    )


def test_pipeline_built_without_a_task_names_its_class(model, tokenizer, tiny_model):
    answer = pipeline_seqloom.TranslationPipeline(model=model, tokenizer=tokenizer)
    assert answer("abcd", max_new_tokens=10)[0]["translation_text"] == by_hand(model, tokenizer, "abcd")[0]
    with pytest.raises(ValueError, match=r"^TranslationPipeline got 3 of type int"):
        answer(3)
    with pytest.raises(ValueError, match=r"^TranslationPipeline reads what"):
        pipeline_seqloom.TranslationPipeline(model=tiny_model("SeqloomModel"), tokenizer=tokenizer)


# text-generation, handed an object -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SeqloomForConditionalGeneration", "SeqloomForCausalLM"])
def test_text_generation_takes_either_class_and_cuts_nothing(taught_model, char_tokenizer, kind, caplog, monkeypatch):
    """transformers' own would take the first tokens of the one class's answer for the prompt."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    given, tokenizer = taught_model(kind), char_tokenizer(string.ascii_letters[:36])
    expected = [by_hand(taught_model(), tokenizer, text, num_beams=1)[0] for text in TEXTS]
    write = pipeline("text-generation", model=given, tokenizer=tokenizer, do_sample=False, max_new_tokens=10)
    assert [output[0]["generated_text"] for output in write(TEXTS, return_full_text=False, batch_size=3)] == expected
    assert [output[0]["generated_text"] for output in write(TEXTS)] == [
        text + new for text, new in zip(TEXTS, expected, strict=True)
    ]
    assert write.model.state_dict().keys() == given.state_dict().keys()
    assert write.model.lm_head.weight is given.lm_head.weight
    assert (write.model is given) == (kind == "SeqloomForCausalLM")
    assert "not supported" not in caplog.text
    assert given.generate(**tokenizer("ab", return_tensors="pt"), max_new_tokens=1)[0].tolist()[0] == (
        4 if kind == "SeqloomForCausalLM" else 1
    ), "what was given stays what it was"


def test_text_generation_refuses_a_prompt_that_it_would_lose(taught_model, tokenizer):
    """PEFT keeps a trained prompt outside the network, and what it adapts inside."""
    peft = pytest.importorskip("peft")
    prompt = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, num_layers=2)
    model = peft.get_peft_model(taught_model(), prompt).eval()
    with pytest.raises(ValueError, match=r"^text-generation would lose the trained prompt .*text2text-generation"):
        pipeline("text-generation", model=model, tokenizer=tokenizer)
    write = pipeline("text2text-generation", model=model, tokenizer=tokenizer, max_new_tokens=10)
    assert write("abcd")[0]["generated_text"] == by_hand(model, tokenizer, "abcd")[0]

    adapted = peft.get_peft_model(taught_model(), peft.LoraConfig(init_lora_weights=False)).eval()
    write = pipeline("text-generation", model=adapted, tokenizer=tokenizer, do_sample=False, max_new_tokens=10)
    assert (
        write("abcd", return_full_text=False)[0]["generated_text"]
        == by_hand(adapted, tokenizer, "abcd", num_beams=1)[0]
    )


def test_text_generation_of_other_models_is_transformers_own(tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = BartConfig(vocab_size=40, d_model=8, max_position_embeddings=32, **sizes)
    bart = BartForConditionalGeneration(config)
    write = pipeline("text-generation", model=bart, tokenizer=tokenizer)
    assert write.model is bart
    assert isinstance(write, pipelines.TextGenerationPipeline)
    assert "The model 'BartForConditionalGeneration' is not supported for text-generation." in caplog.text


# Registration -------------------------------------------------------------------------------------------------------


def test_import_makes_the_tasks_known():
    assert set(PIPELINES) <= set(PIPELINE_REGISTRY.get_supported_tasks())
    assert PIPELINE_REGISTRY.check_task("sentiment-analysis")[0] == "text-classification"
    with pytest.raises(KeyError, match="question-answering has been removed from transformers"):
        check_task("question-answering")


@pytest.mark.parametrize("task", [*KEYS, "translation_en_to_fr"])
def test_folder_opens_without_being_asked(model, tokenizer, tmp_path, monkeypatch, task):
    monkeypatch.setattr("builtins.input", pytest.fail)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for options in ({}, {"trust_remote_code": True}):
        write = pipeline(task, model=str(tmp_path), device="cpu", **options)
        assert type(write.model) is seqloom.SeqloomForConditionalGeneration
        assert list(write("abcd", max_new_tokens=10)[0].values()) == by_hand(model, tokenizer, "abcd")


def test_other_encoder_decoders_have_their_pipelines_back_too(tokenizer):
    torch.manual_seed(0)
    sizes = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = BartConfig(vocab_size=40, d_model=8, max_position_embeddings=32, **sizes)
    bart = BartForConditionalGeneration(config).eval()
    write = pipeline("summarization", model=bart, tokenizer=tokenizer, device="cpu", max_new_tokens=5)
    assert write("abcd")[0]["summary_text"] == by_hand(bart, tokenizer, "abcd", max_new_tokens=5, pad_token_id=0)[0]
