"""transformers' own common tests, for Seqloom's classes, and for Marian's as the measure.

Not collected here: `tests/system/test_transformers_own.py` lays this file and toy.py into a tree of transformers' tests
and runs it there, where the package `tests` is theirs. Theirs is what is tested; the testers, which make tiny models
and their inputs, are ours.
"""

import unittest
from typing import Any

import torch
from transformers import MarianConfig, MarianModel, MarianMTModel
from transformers.models.auto import modeling_auto

from seqloom import SeqloomConfig, SeqloomForConditionalGeneration, SeqloomModel
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask
from tests.toy import MODERN

SIZE: dict[str, Any] = {
    "vocab_size": 99,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 100,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}

# Theirs ask these tables, by names of classes, which models take labels.
modeling_auto.MODEL_MAPPING_NAMES["seqloom"] = "SeqloomModel"
modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES["seqloom"] = "SeqloomForConditionalGeneration"


class Tester:
    """A tiny model and its inputs, under the names by which the common tests ask for them."""

    batch_size, seq_length, encoder_seq_length, decoder_seq_length = 3, 7, 7, 7
    is_training = True
    num_hidden_layers, num_attention_heads, hidden_size = 2, 4, 32

    def __init__(self, config_class: type[Any], **fields: Any) -> None:
        self.config_class = config_class
        self.fields = {**SIZE, **fields}

    def get_config(self) -> Any:
        """Return a new configuration."""
        return self.config_class(**self.fields)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        """Return a configuration and the inputs of one forward."""
        source = ids_tensor([self.batch_size, self.seq_length], SIZE["vocab_size"]).clamp(4)
        source[:, -1] = SIZE["eos_token_id"]
        inputs = {
            "input_ids": source,
            "attention_mask": random_attention_mask([self.batch_size, self.seq_length]),
            "decoder_input_ids": ids_tensor([self.batch_size, self.seq_length], SIZE["vocab_size"]).clamp(4),
            "decoder_attention_mask": torch.ones(self.batch_size, self.seq_length, dtype=torch.long),
        }
        return self.get_config(), inputs

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


class Common(ModelTesterMixin, GenerationTesterMixin):
    """What Marian's own test class is made of, but for pipelines: their tests ask the Hub for a tiny model."""

    is_encoder_decoder = True


class TestMarian(Common, unittest.TestCase):
    """The measure: what it passes, ours pass."""

    all_model_classes = (MarianModel, MarianMTModel)

    def setUp(self) -> None:
        self.model_tester = Tester(MarianConfig, dropout=0.1)


class TestSeqloomPaper(Common, unittest.TestCase):
    """The model of the paper."""

    all_model_classes = (SeqloomModel, SeqloomForConditionalGeneration)

    def setUp(self) -> None:
        self.model_tester = Tester(SeqloomConfig)

    def test_custom_4d_attention_mask(self) -> None:
        """Theirs is for decoders alone: whatever takes `position_ids`. For two sides, as T5Gemma's tests have it.

        Three targets that begin alike are read one by one, and as one row in which a mask keeps their ends apart.
        """
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model, source = SeqloomForConditionalGeneration(config).eval(), inputs["input_ids"][:1]
        ends = torch.tensor([[13], [14], [15]])
        common = torch.tensor([10, 11, 12])
        places = torch.tensor([[0, 1, 2, 3, 3, 3]])
        seen = torch.ones(6, 6).tril()
        seen[3:, 3:] = torch.eye(3)
        mask = (1 - seen)[None, None] * torch.finfo(torch.float32).min
        with torch.no_grad():
            apart = model(source.expand(3, -1), decoder_input_ids=torch.cat([common.expand(3, -1), ends], 1)).logits
            together = model(
                source,
                decoder_input_ids=torch.cat([common, ends[:, 0]])[None],
                decoder_attention_mask=mask,
                decoder_position_ids=places,
            ).logits
        torch.testing.assert_close(together[0, -3:], apart[:, -1])


class TestSeqloomModern(TestSeqloomPaper):
    """Pre-norm, RMSNorm, rotary positions, SwiGLU, grouped queries."""

    def setUp(self) -> None:
        self.model_tester = Tester(SeqloomConfig, **MODERN)
