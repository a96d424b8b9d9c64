"""The two modules behind the graphs, step by step, against the model's own forward: every switch of the network."""

import pytest
import torch

from seqloom.hub.export import onnx_graphs
from seqloom.hub.export.onnx_graphs import (
    DecoderGraph,
    EncoderGraph,
    past_names,
    refuse_too_large,
    refuse_unknown_switches,
)
from seqloom.hub.export.output_folder import ExportError
from tests.toy import MODERN

SWITCHES = {
    "paper": {},
    "modern": MODERN,
    "learned": {"position_embedding_type": "learned"},
    "heads of each side": {"encoder_attention_heads": 2, "decoder_attention_heads": 8, "num_key_value_heads": 1},
    "tables of each side": {"tie_word_embeddings": False, "scale_embedding": False},
    "pre-norm, gated": {"norm_position": "pre", "use_gated_ffn": True, "activation_function": "gelu_new"},
    "one layer, three": {"encoder_layers": 3, "decoder_layers": 1},
}


@pytest.mark.parametrize("name", SWITCHES)
@torch.inference_mode()
def test_steps_of_the_graphs_are_the_forward(name, tiny_model):
    model = tiny_model(**SWITCHES[name])
    model.generation_config.suppress_tokens = [0, 1]
    source, target = torch.randint(4, 40, (3, 9)), torch.randint(4, 40, (3, 7))
    mask = torch.ones_like(source)
    mask[1, 6:] = mask[2, 4:] = 0
    expected = model(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
    expected[..., :2] -= 1e4
    memory, decoder = EncoderGraph(model)(source, mask), DecoderGraph(model)
    heads = model.config.num_key_value_heads or model.config.decoder_attention_heads
    past = [torch.zeros(3, heads, 0, 16 // model.config.decoder_attention_heads) for _ in past_names(model)]
    found = []
    for piece in target.split([3, 1, 1, 2], dim=1):
        logits, *past = decoder(piece, memory, mask, past)
        found.append(logits)
    torch.testing.assert_close(torch.cat(found, dim=1), expected, atol=1e-4, rtol=1e-5)


def test_what_one_file_cannot_hold_is_refused(tiny_model, monkeypatch):
    monkeypatch.setattr(onnx_graphs, "MOST_BYTES", 1000)
    with pytest.raises(ExportError, match=r"has [\d,]+ bytes of weights, .* at most 1,000; seqloom export --to ctrans"):
        refuse_too_large(tiny_model())


def test_scaling_by_length_is_refused_and_the_advice_holds(tiny_model):
    ids = torch.randint(4, 40, (2, 60))
    models = {
        kind: tiny_model(
            position_embedding_type="rotary", rope_parameters={"rope_theta": 100.0, "rope_type": kind, "factor": 2.0}
        )
        for kind in ("dynamic", "linear")
    }
    with pytest.raises(
        ExportError, match=r"rope_type='dynamic' counts anew for each length, .* 'default' computes the"
    ):
        refuse_unknown_switches(models["dynamic"].config)
    refuse_unknown_switches(models["linear"].config)
    plain = tiny_model(position_embedding_type="rotary", rope_parameters={"rope_theta": 100.0, "rope_type": "default"})
    inputs = {"input_ids": ids, "decoder_input_ids": ids}
    torch.testing.assert_close(models["dynamic"](**inputs).logits, plain(**inputs).logits)
    assert not torch.allclose(models["linear"](**inputs).logits, plain(**inputs).logits, atol=1e-2)
