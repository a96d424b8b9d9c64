"""SeqloomForCausalLM: the same network behind the causal-LM interface, as the stock text-generation pipeline asks."""

from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer, pipeline
from transformers.generation.streamers import BaseStreamer

from seqloom.modeling.modeling_seqloom import SeqloomForCausalLM, SeqloomForConditionalGeneration
from tests.toy import padded

PROMPTS = [
    [5, 9, 13, 4, 2],
    [7, 2],
    [11, 6, 12, 2],
    [15, 8, 4, 9, 10, 13, 2],
    [6, 6, 2],
    [19, 2],
    [4, 18, 2],
    [9, 5, 7, 8, 2],
]
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ"
"""36 characters: with the four special tokens they fill the tiny vocabulary."""


@pytest.fixture(scope="module")
def causal(taught_model: Callable[..., Any]) -> SeqloomForCausalLM:
    return taught_model("SeqloomForCausalLM")


@pytest.fixture(scope="module")
def seq2seq(taught_model: Callable[..., Any]) -> SeqloomForConditionalGeneration:
    return taught_model()


@pytest.fixture(scope="module")
def tokenizer(char_tokenizer: Callable[[str], Any]) -> Any:
    return char_tokenizer(CHARACTERS)


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"num_beams": 3},
    "n-best": {"num_beams": 4, "num_return_sequences": 3},
    "sample": {"do_sample": True},
    "samples": {"do_sample": True, "num_return_sequences": 2},
    "no-cache": {"use_cache": False},
    "static": {"cache_implementation": "static"},
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mode", MODES)
def test_generate_returns_the_prompt_and_what_seq2seq_writes(
    causal: SeqloomForCausalLM, seq2seq: SeqloomForConditionalGeneration, mode: str, side: str
) -> None:
    options = {"max_new_tokens": 10, **MODES[mode]}
    ids, mask = padded(PROMPTS, side)
    torch.manual_seed(2)
    written = seq2seq.generate(ids, attention_mask=mask, **options)
    torch.manual_seed(2)
    continued = causal.generate(ids, attention_mask=mask, **options)
    copies = options.get("num_return_sequences", 1)
    assert torch.equal(continued[:, : ids.shape[1]], ids.repeat_interleave(copies, 0))
    assert torch.equal(continued[:, ids.shape[1] :], written[:, 1:])


def test_forward_is_the_same_network(causal: SeqloomForCausalLM, seq2seq: SeqloomForConditionalGeneration) -> None:
    assert causal.state_dict().keys() == seq2seq.state_dict().keys()
    ids, mask = padded(PROMPTS, "right")
    batch = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": torch.ones(8, 1, dtype=torch.long)}
    assert torch.equal(causal(**batch).logits, seq2seq(**batch).logits)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("with_mask", [True, False])
def test_an_open_prompt_is_read_as_a_closed_one(causal: SeqloomForCausalLM, side: str, with_mask: bool) -> None:
    """Chat templates and `add_special_tokens=False` leave </s> out; a batch may hold both kinds."""
    expected = [causal.generate(torch.tensor([ids]), max_new_tokens=8)[0, len(ids) :].tolist() for ids in PROMPTS]
    mixed = [ids[:-1] if row % 2 else ids for row, ids in enumerate(PROMPTS)]
    opened = [ids[:-1] for ids in PROMPTS]
    for prompts in (mixed, opened):
        ids, mask = padded(prompts, side)
        options = {"attention_mask": mask} if with_mask else {}
        continued = causal.generate(ids, max_new_tokens=8, **options)
        assert torch.equal(continued[:, : ids.shape[1]], ids), "the prompt comes back as it was given"
        for row, words in enumerate(expected):
            new = continued[row, ids.shape[1] :].tolist()
            assert new[: len(words)] == words[: len(new)]
            assert set(new[len(words) :]) <= {0}


@pytest.mark.parametrize("dtype", [torch.float, torch.bool, torch.int])
def test_a_mask_may_have_any_type(causal: SeqloomForCausalLM, dtype: torch.dtype) -> None:
    ids, mask = padded([[5, 9, 13, 4], [7, 2]], "right")
    expected = causal.generate(ids, attention_mask=mask, max_new_tokens=8)
    assert torch.equal(causal.generate(ids, attention_mask=mask.to(dtype), max_new_tokens=8), expected)


def test_the_prompt_by_position_or_by_name(causal: SeqloomForCausalLM) -> None:
    ids = torch.tensor([PROMPTS[0]])
    config = GenerationConfig(max_new_tokens=5, decoder_start_token_id=1, eos_token_id=2, pad_token_id=0)
    expected = causal.generate(ids, max_new_tokens=5)
    assert torch.equal(causal.generate(inputs=ids, max_new_tokens=5), expected)
    assert torch.equal(causal.generate(input_ids=ids, max_new_tokens=5), expected)
    assert torch.equal(causal.generate(ids, config), expected)
    assert torch.equal(causal.generate(ids, generation_config=config), expected)


def test_the_prompt_as_embeddings_returns_new_ids_only(causal: SeqloomForCausalLM) -> None:
    """As with every causal LM: where there are no prompt ids, there are none to give back."""
    ids = torch.tensor([PROMPTS[3]])
    expected = causal.generate(ids, max_new_tokens=8)[:, ids.shape[1] :]
    written = causal.generate(inputs_embeds=causal.get_input_embeddings()(ids), max_new_tokens=8)
    assert torch.equal(written, expected)


def test_lengths_count_the_prompt(causal: SeqloomForCausalLM) -> None:
    ids = torch.tensor([PROMPTS[3]])
    assert causal.generate(ids, max_length=10, min_length=10).shape == (1, 10)
    assert causal.generate(ids, max_new_tokens=4, min_new_tokens=4).shape == (1, 11)
    with pytest.raises(ValueError, match="max_length=5 counts the prompt too and leaves no room after its 7 tokens"):
        causal.generate(ids, max_length=5)
    begun = torch.tensor([[1, 21, 22]])
    assert causal.generate(ids, decoder_input_ids=begun, max_length=12, min_length=12).shape == (1, 12)
    states = causal.get_encoder()(ids)
    assert causal.generate(encoder_outputs=states, max_length=10, min_length=10).shape == (1, 10), "without a prompt"


def test_an_output_object_with_scores(causal: SeqloomForCausalLM, seq2seq: SeqloomForConditionalGeneration) -> None:
    ids, mask = padded(PROMPTS, "left")
    options = {
        "attention_mask": mask,
        "max_new_tokens": 8,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
    }
    for more in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        continued, written = causal.generate(ids, **options, **more), seq2seq.generate(ids, **options, **more)
        new = written.sequences[:, 1:]
        assert torch.equal(continued.sequences[:, ids.shape[1] :], new)
        torch.testing.assert_close(continued.scores, written.scores)
        beams = {"beam_indices": continued.beam_indices} if more else {}
        mine = causal.compute_transition_scores(continued.sequences, continued.scores, **beams)
        theirs = seq2seq.compute_transition_scores(written.sequences, written.scores, **beams)
        torch.testing.assert_close(mine, theirs)
        if more:
            torch.testing.assert_close(continued.sequences_scores, written.sequences_scores)


class StopAfter(StoppingCriteria):
    """Stop when so many words stand in the sequences that generate shows to its criteria."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


def test_stopping(causal: SeqloomForCausalLM, tokenizer: Any) -> None:
    ids = torch.tensor([PROMPTS[3]])
    free = causal.generate(ids, max_new_tokens=8)[0, 7:].tolist()
    assert len(free) > 3
    stopped = causal.generate(ids, max_new_tokens=8, stopping_criteria=StoppingCriteriaList([StopAfter(3)]))
    assert stopped[0, 7:].tolist() == free[:2], "the decoder has written <s> and two words"
    word = tokenizer.decode(free[1:2])
    stopped = causal.generate(ids, max_new_tokens=8, stop_strings=[word], tokenizer=tokenizer)
    assert stopped[0, 7:].tolist() == free[: free.index(free[1]) + 1]


def test_what_the_decoder_begins_with_is_streamed_behind_the_prompt(causal: SeqloomForCausalLM) -> None:
    streamed: list[int] = []

    class Streamer(BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            streamed.extend(value.flatten().tolist())

        def end(self) -> None:
            pass

    options = {"decoder_input_ids": torch.tensor([[causal.config.decoder_start_token_id, 5, 6]]), "max_new_tokens": 4}
    (returned,) = causal.generate(torch.tensor([PROMPTS[3]]), streamer=Streamer(), **options).tolist()
    assert streamed == returned
    assert returned[len(PROMPTS[3]) :][:2] == [5, 6]


@pytest.mark.parametrize("skip_prompt", [True, False])
def test_streaming(causal: SeqloomForCausalLM, tokenizer: Any, skip_prompt: bool) -> None:
    prompt = tokenizer("fgh", return_tensors="pt").input_ids
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True, timeout=60)
    options = {"input_ids": prompt, "streamer": streamer, "max_new_tokens": 8}
    thread = Thread(target=causal.generate, kwargs=options)
    thread.start()
    text = "".join(streamer)
    thread.join()
    ids = causal.generate(prompt, max_new_tokens=8)[0]
    expected = tokenizer.decode(ids[prompt.shape[1] :] if skip_prompt else ids, skip_special_tokens=True)
    assert text == expected
    assert len(expected) > 1


# ---- the stock pipeline ----------------------------------------------------------------------------------------------

TEXTS = ["fgh", "a", "dcba", "ppoonm", "b", "abcdefgh", "ee", "kca"]


@pytest.fixture
def generator(causal: SeqloomForCausalLM, char_tokenizer: Callable[[str], Any]) -> Any:
    """The stock pipeline around a model object, deterministic."""
    tokenizer = char_tokenizer(CHARACTERS)
    return pipeline("text-generation", model=causal, tokenizer=tokenizer, do_sample=False, max_new_tokens=10)


def test_pipeline_string_in_text_out(generator: Any, causal: SeqloomForCausalLM, tokenizer: Any) -> None:
    ids = tokenizer("fgh", return_tensors="pt").input_ids
    new = tokenizer.decode(causal.generate(ids, max_new_tokens=10)[0, ids.shape[1] :], skip_special_tokens=True)
    assert new
    assert generator("fgh") == [{"generated_text": "fgh" + new}]
    assert generator("fgh", return_full_text=False) == [{"generated_text": new}]
    (tensors,) = generator("fgh", return_tensors=True)
    assert tensors["generated_token_ids"][: ids.shape[1]] == ids[0].tolist()


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"return_full_text": False}, {"add_special_tokens": False}], ids=str
)
def test_pipeline_in_batches_equals_one_by_one(generator: Any, options: dict[str, Any]) -> None:
    assert generator.tokenizer.padding_side == "left", "what the pipeline makes of it"
    one_by_one = [generator(text, **options) for text in TEXTS]
    assert len({outputs[0]["generated_text"] for outputs in one_by_one}) > 4
    assert generator(TEXTS, batch_size=8, **options) == one_by_one
    assert generator(TEXTS, batch_size=3, **options) == one_by_one


def test_pipeline_open_and_closed_prompts_agree(generator: Any) -> None:
    assert generator(TEXTS, add_special_tokens=False) == generator(TEXTS)


def test_pipeline_returns_several(generator: Any) -> None:
    outputs = generator("fghi", num_beams=4, num_return_sequences=3)
    texts = [output["generated_text"] for output in outputs]
    assert len(set(texts)) == 3
    assert texts[0] == generator("fghi", num_beams=4)[0]["generated_text"]
    torch.manual_seed(0)
    assert len(generator(TEXTS[:2], do_sample=True, num_return_sequences=4)[1]) == 4


def test_pipeline_stops_at_a_string(generator: Any) -> None:
    new = generator("ppoonm", return_full_text=False)[0]["generated_text"]
    cut = generator("ppoonm", return_full_text=False, stop_sequence=new[1])[0]["generated_text"]
    assert cut == new[: new.index(new[1]) + 1]


def test_pipeline_answers_chats(generator: Any) -> None:
    generator.tokenizer.chat_template = "{{ (messages | selectattr('role', 'equalto', 'user') | list | last).content }}"
    chat = [{"role": "system", "content": "zzz"}, {"role": "user", "content": "fgh"}]
    answer = generator(chat)[0]["generated_text"]
    assert answer[:2] == chat
    new = generator("fgh", return_full_text=False)[0]["generated_text"]
    assert answer[2] == {"role": "assistant", "content": new}


def test_assisted_generation(causal: SeqloomForCausalLM, taught_model: Callable[..., Any]) -> None:
    assistant = taught_model("SeqloomForCausalLM", position_embedding_type="learned")
    for prompt in PROMPTS[:4]:
        ids = torch.tensor([prompt])
        expected = causal.generate(ids, max_new_tokens=8)
        assert torch.equal(causal.generate(ids, max_new_tokens=8, prompt_lookup_num_tokens=2), expected)
        assert torch.equal(causal.generate(ids, max_new_tokens=8, assistant_model=assistant), expected)


def test_as_causal_lm_is_the_same_network(causal: SeqloomForCausalLM, taught_model: Callable[..., Any]) -> None:
    given = taught_model()
    other = given.as_causal_lm()
    assert type(other) is SeqloomForCausalLM
    assert type(given) is SeqloomForConditionalGeneration
    ids = torch.tensor([PROMPTS[3]])
    assert torch.equal(other.generate(ids, max_new_tokens=8), causal.generate(ids, max_new_tokens=8))
    with torch.no_grad():
        given.lm_head.weight.zero_()
    assert not other.model.encoder.embed_tokens.weight.any(), "the weights are shared, tied ones too"
    assert other.as_causal_lm() is other
