"""One sentence, all seven chapters: 今天的天气很 through the paper's base model, every shape on the way.

The mission in one line: [6] -> [6, d_model] -> ... -> [6, d_model] -> last row [1, d_model] -> [1, vocab] -> argmax.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration

SENTENCE = "今天的天气很"
CHARACTERS = "今天的气很好"
"""Six entries: the five different characters of the sentence, and the word that should come next."""


@pytest.fixture(scope="module")
def base_model() -> SeqloomForConditionalGeneration:
    torch.manual_seed(0)
    return SeqloomForConditionalGeneration(SeqloomConfig(vocab_size=4 + len(CHARACTERS))).eval()


@torch.no_grad()
def test_the_walk(base_model: SeqloomForConditionalGeneration, char_tokenizer: Callable[[str], Any]) -> None:
    width, heads, layers, vocabulary = 512, 8, 6, 10
    tokenizer = char_tokenizer(CHARACTERS)
    base_model.set_attn_implementation("eager")

    # 2. Cut into tokens: a character is a token, and the second 天 is the same entry as the first.
    ids = tokenizer(SENTENCE, add_special_tokens=False, return_tensors="pt").input_ids[0]
    assert ids.shape == (6,)
    assert ids.tolist() == [4, 5, 6, 5, 7, 8]

    # The encoder reads the sentence; the decoder reads it behind <s>'s place as its own past and writes on.
    output = base_model(
        input_ids=ids[None], decoder_input_ids=ids[None], output_hidden_states=True, output_attentions=True
    )
    # ... embedded, one row of the matrix each; 3. positions added: the shape does not change, the two 天 now differ.
    embedded = base_model.get_input_embeddings()(ids)
    assert embedded.shape == (6, width)
    assert torch.equal(embedded[1], embedded[3])
    positioned = output.encoder_hidden_states[0][0]
    assert positioned.shape == (6, width)
    assert not torch.allclose(positioned[1], positioned[3])

    # 4. Query, key and value in eight heads: every token's attention over all tokens, a distribution each.
    attention = output.encoder_attentions[0][0]
    assert attention.shape == (heads, 6, 6)
    torch.testing.assert_close(attention.sum(-1), torch.ones(heads, 6))

    # 5. Encoder layers keep the shape.
    assert len(output.encoder_hidden_states) == layers + 1
    assert all(states[0].shape == (6, width) for states in output.encoder_hidden_states)

    # 6. Decoder layers too; nobody looks into the future, everybody looks across.
    assert len(output.decoder_hidden_states) == layers + 1
    assert all(states[0].shape == (6, width) for states in output.decoder_hidden_states)
    assert all(maps[0].triu(1).eq(0).all() for maps in output.decoder_attentions)
    assert all(maps[0].shape == (heads, 6, 6) for maps in output.cross_attentions)

    # 7. The last row times the LM head's matrix: a score for each word, and the arg max is the next one.
    last = output.decoder_hidden_states[-1][0, -1:]
    assert last.shape == (1, width)
    assert base_model.lm_head.weight.T.shape == (width, vocabulary)
    scores = last @ base_model.lm_head.weight.T
    assert scores.shape == (1, vocabulary)
    torch.testing.assert_close(scores, output.logits[0, -1:], rtol=1e-5, atol=1e-5)
    next_word = scores.argmax(dim=-1)
    assert next_word.shape == (1,)


@torch.no_grad()
def test_generate_takes_that_arg_max(
    base_model: SeqloomForConditionalGeneration, char_tokenizer: Callable[[str], Any]
) -> None:
    ids = char_tokenizer(CHARACTERS)(SENTENCE, return_tensors="pt").input_ids
    assert ids.tolist() == [[4, 5, 6, 5, 7, 8, 2]], "the tokenizer closes the sentence"
    scores = base_model(input_ids=ids, decoder_input_ids=torch.tensor([[1]])).logits[:, -1]
    written = base_model.generate(ids, max_new_tokens=1, do_sample=False)
    assert written.tolist() == [[1, scores.argmax().item()]]
