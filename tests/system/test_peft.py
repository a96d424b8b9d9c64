"""PEFT on a folder of ours: LoRA from first step to merged weights, and what prefix tuning hands to the forward."""

import copy
import warnings

import pytest
import torch
from torch.nn import functional
from transformers import DynamicCache, EncoderDecoderCache

import seqloom
from seqloom.modeling import canary, library
from seqloom.modeling.canary import CANARY_NAME, read_canary, save_canary
from tests.toy import MODERN, toy_pairs

peft = pytest.importorskip("peft")

SOURCE, MASK, LABELS = toy_pairs(6, seed=7)
BATCH = {"input_ids": SOURCE, "attention_mask": MASK}


def with_lora(model):
    torch.manual_seed(0)
    places = ["q_proj", "v_proj", "fc1"]
    return peft.get_peft_model(
        model, peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules=places, init_lora_weights=False)
    )


def test_lora_knows_where_to_go(tiny_model):
    """`LoraConfig()` as in every tutorial."""
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig())
    adapted = {name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert adapted == {"q_proj", "v_proj"}


def test_an_adapter_of_the_head_has_its_share_in_a_loss_without_logits(tiny_model):
    model = peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    losses, gradients = [], []
    for skip_logits in (False, True):
        output = model(**BATCH, labels=LABELS, skip_logits=skip_logits)
        assert (output.logits is None) == skip_logits
        output.loss.backward()
        losses.append(output.loss.detach())
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        model.zero_grad()
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def write(model):
    return model.generate(**BATCH, max_new_tokens=8, num_beams=2)


@pytest.mark.parametrize("overrides", [{}, MODERN], ids=["paper", "modern"])
def test_lora_learns_writes_is_saved_and_merged(taught_model, tmp_path, overrides):
    model = with_lora(taught_model(**overrides)).train()
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.Adam(adapters, lr=1e-2), []
    for _ in range(10):
        losses.append(model(**BATCH, labels=LABELS).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    written = write(model.eval())

    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(taught_model(**overrides), tmp_path / "adapter").eval()
    assert torch.equal(write(again), written)

    merged = model.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(merged(**BATCH, labels=LABELS).logits, again(**BATCH, labels=LABELS).logits)
    merged.save_pretrained(tmp_path / "merged")
    assert read_canary(tmp_path / "merged" / CANARY_NAME).rows
    opened = seqloom.SeqloomForConditionalGeneration.from_pretrained(tmp_path / "merged")
    assert torch.equal(write(opened), written)


def test_the_canary_is_heard_before_a_model_with_lora_answers(taught_model, tmp_path, monkeypatch):
    """Under a library that was not tested: merged weights against the file, and unmerged ones against themselves."""
    with_lora(taught_model()).merge_and_unload().save_pretrained(tmp_path)
    untested = read_canary(tmp_path / CANARY_NAME)
    untested.tested = []
    save_canary(untested, tmp_path)
    monkeypatch.setattr(library, "TESTED", {})
    heard, find_faults = [], canary.find_faults
    monkeypatch.setattr(
        canary, "find_faults", lambda model, rows: heard.append(copy.deepcopy(rows)) or find_faults(model, rows)
    )
    model = seqloom.SeqloomForConditionalGeneration.from_pretrained(tmp_path)
    write(model)
    assert heard == [untested.rows]
    write(with_lora(seqloom.SeqloomForConditionalGeneration.from_pretrained(tmp_path)))
    assert len(heard) == 2
    assert [row.source for row in heard[1]] == [row.source for row in heard[0]]
    assert heard[1] != heard[0]


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated")
def test_a_prefix_is_seen_by_every_target(taught_model):
    """PEFT hands it over as `past_key_values`, with labels: the loss is that of the logits, and the prefix learns."""
    model = taught_model(**MODERN)
    prefix = {"num_virtual_tokens": 3, "num_layers": 2, "num_attention_heads": 2, "token_dim": 8}
    model = peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", **prefix)).eval()
    loss = model(**BATCH, labels=LABELS).loss
    loss.backward()
    (table,) = (parameter for parameter in model.parameters() if parameter.requires_grad)
    assert table.grad.abs().sum() > 0

    read = model.get_base_model().prepare_decoder_input_ids_from_labels(LABELS)
    cache = model.get_prompt(len(SOURCE))
    assert isinstance(cache, EncoderDecoderCache)
    assert isinstance(cache.self_attention_cache, DynamicCache)
    with torch.no_grad():
        logits = model.get_base_model()(**BATCH, decoder_input_ids=read, cache=cache).logits
        without = model.get_base_model()(**BATCH, decoder_input_ids=read).logits
    expected = functional.cross_entropy(logits.flatten(0, 1), LABELS.flatten())
    torch.testing.assert_close(loss.detach(), expected)
    assert not torch.allclose(logits, without, atol=1e-3)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("fields", [{}, {"num_key_value_heads": 2}], ids=["all heads", "two heads"])
def test_a_model_with_a_prefix_writes_what_it_says(taught_model, fields, beams):
    """What generate writes, step by step behind the prefix, is scored by one pass over all of it."""
    config = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3, num_layers=2)
    model = peft.get_peft_model(taught_model(**fields), config).eval()
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.mul_(3)
    options = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 6, "min_new_tokens": 6}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".past_key_values. is deprecated")
        output = model.generate(**BATCH, **options, num_beams=beams)
    written = output.sequences
    scores = model.get_base_model().compute_transition_scores(
        written, output.logits, getattr(output, "beam_indices", None), normalize_logits=True
    )
    cache = model.get_prompt(len(SOURCE))
    with torch.no_grad():
        logits = model.get_base_model()(**BATCH, decoder_input_ids=written[:, :-1], cache=cache).logits
    said = logits.log_softmax(-1).gather(-1, written[:, 1:, None])[..., 0]
    torch.testing.assert_close(scores, said, atol=1e-4, rtol=1e-4)
    assert not torch.equal(written, model.get_base_model().generate(**BATCH, **options, num_beams=beams).sequences)
