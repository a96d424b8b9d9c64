"""What users and tools of transformers rely on: saving, dtypes, embeddings, outputs, caches, every mode of generate."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.output_capturing import OutputRecorder

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.modeling.library import CACHE
from seqloom.modeling.modeling_seqloom import (
    SeqloomForCausalLM,
    SeqloomForConditionalGeneration,
    SeqloomModel,
)
from tests.reference import PaperTransformer
from tests.toy import MODERN, TINY, toy_pairs

POSITIONS = ["sinusoidal", "learned", "rotary"]


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Four padded sources, and what the decoder has written so far."""
    source, mask, labels = toy_pairs(4, seed=9)
    start = torch.ones(4, 1, dtype=torch.long)
    return {
        "input_ids": source,
        "attention_mask": mask,
        "decoder_input_ids": torch.cat([start, labels[:, :4].clamp(min=0)], dim=1),
    }


def tables(model: Any) -> list[Tensor]:
    """Return the source's table, the target's table and the LM head's matrix."""
    return [
        model.get_encoder().embed_tokens.weight,
        model.get_decoder().embed_tokens.weight,
        model.get_output_embeddings().weight,
    ]


def storages(model: Any) -> int:
    """Count the different memories behind the three matrices."""
    return len({table.data_ptr() for table in tables(model)})


# ---- saving and loading ----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    "fields",
    [{"position_embedding_type": positions} for positions in POSITIONS] + [MODERN, {"tie_word_embeddings": False}],
    ids=str,
)
def test_save_and_load_give_the_same_logits(
    tiny_model: Callable[..., Any], batch: dict[str, Tensor], fields: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model(**fields)
    model.save_pretrained(tmp_path)
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not again.training
    assert torch.equal(again(**batch).logits, model(**batch).logits)


@torch.no_grad()
def test_the_three_classes_read_each_others_folders(
    tiny_model: Callable[..., Any], batch: dict[str, Tensor], tmp_path: Path
) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "seq2seq")
    states = SeqloomModel.from_pretrained(tmp_path / "seq2seq")(**batch).last_hidden_state
    assert torch.equal(states, model.model(**batch).last_hidden_state)
    causal = SeqloomForCausalLM.from_pretrained(tmp_path / "seq2seq")
    assert torch.equal(causal(**batch).logits, model(**batch).logits)
    causal.save_pretrained(tmp_path / "causal")
    back = SeqloomForConditionalGeneration.from_pretrained(tmp_path / "causal")
    assert torch.equal(back(**batch).logits, model(**batch).logits)
    model.model.save_pretrained(tmp_path / "base")
    headed = SeqloomForConditionalGeneration.from_pretrained(tmp_path / "base")
    assert torch.equal(headed(**batch).logits, model(**batch).logits), "the LM head is the tied embedding"


def test_tied_weights_are_one_memory_and_saved_once(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_model()
    assert storages(model) == 1
    assert storages(copy.deepcopy(model)) == 1
    model.save_pretrained(tmp_path)
    assert storages(SeqloomForConditionalGeneration.from_pretrained(tmp_path)) == 1
    assert storages(SeqloomForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)) == 1
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        shapes = [tuple(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    assert shapes.count((TINY["vocab_size"], TINY["d_model"])) == 1


def test_untied_weights_are_three(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=False)
    assert storages(model) == 3
    model.save_pretrained(tmp_path)
    again = SeqloomForConditionalGeneration.from_pretrained(tmp_path)
    assert storages(again) == 3
    for mine, theirs in zip(tables(model), tables(again), strict=True):
        assert torch.equal(mine, theirs)
    model.zero_grad()
    source, mask, labels = toy_pairs(2)
    model(input_ids=source, attention_mask=mask, labels=labels).loss.backward()
    assert all(table.grad is not None and table.grad.abs().sum() > 0 for table in tables(model))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fields", [{}, MODERN], ids=["paper", "modern"])
def test_half_precision(
    tiny_model: Callable[..., Any], batch: dict[str, Tensor], fields: dict[str, Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    model = tiny_model(**fields)
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    logits = half(**batch).logits
    assert logits.dtype == dtype
    assert (logits.float() - model(**batch).logits).abs().max() < 0.5
    half.save_pretrained(tmp_path / "half")
    assert type(model).from_pretrained(tmp_path / "half", dtype="auto").dtype == dtype


@torch.no_grad()
@pytest.mark.parametrize("positions", POSITIONS)
def test_half_precision_does_not_blur_positions(tiny_model: Callable[..., Any], positions: str, tmp_path: Path) -> None:
    """Angles are computed in float32; in bfloat16 position 500 would be 499 or 502."""
    model = tiny_model(position_embedding_type=positions, max_position_embeddings=600)
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    moved = copy.deepcopy(model).to(torch.bfloat16)
    source = torch.randint(4, 40, (1, 600), generator=torch.Generator().manual_seed(0))
    expected = model.get_encoder()(input_ids=source).last_hidden_state
    for low in (half, moved):
        states = low.get_encoder()(input_ids=source).last_hidden_state.float()
        assert (states - expected)[:, -50:].abs().mean() < 2 * (states - expected)[:, :50].abs().mean() + 0.01


@torch.no_grad()
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(
    "options", [{"low_cpu_mem_usage": True}, {"device_map": "cpu"}, {"device_map": "auto"}], ids=str
)
def test_loading_through_the_meta_device(
    tiny_model: Callable[..., Any], batch: dict[str, Tensor], positions: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model(position_embedding_type=positions)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, **options)
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert storages(again) == 1
    assert torch.equal(
        again.generate(batch["input_ids"], max_new_tokens=3), model.generate(batch["input_ids"], max_new_tokens=3)
    )


def test_a_model_on_the_meta_device_has_shapes_only(tiny_config: Callable[..., Any]) -> None:
    with torch.device("meta"):
        model = SeqloomForConditionalGeneration(tiny_config())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_weights_sharded_over_files(tiny_model: Callable[..., Any], batch: dict[str, Tensor], tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(type(model).from_pretrained(tmp_path)(**batch).logits, model(**batch).logits)


def test_saving_takes_what_transformers_takes_by_position(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path, True, None, False, "10KB")
    assert len([*tmp_path.glob("model-*.safetensors")]) > 1
    model.config.save_pretrained(tmp_path / "config", False)
    assert SeqloomConfig.from_pretrained(tmp_path / "config").d_model == model.config.d_model


def test_module_names_are_barts(tiny_model: Callable[..., Any]) -> None:
    names = set(tiny_model(norm_position="pre", use_gated_ffn=True).state_dict())
    projections = [f"{name}_proj" for name in ("q", "k", "v", "out")]
    attentions = {"encoder": ["self_attn"], "decoder": ["self_attn", "encoder_attn"]}
    expected = {"lm_head.weight"}
    for side, kinds in attentions.items():
        modules = [f"{kind}.{projection}" for kind in kinds for projection in projections]
        modules += [f"{kind}_layer_norm" for kind in kinds] + ["fc1", "fc2", "fc3", "final_layer_norm"]
        paths = [f"layers.{layer}.{module}" for layer in range(2) for module in modules] + ["layer_norm"]
        expected |= {f"model.{side}.{path}.{part}" for path in paths for part in ("weight", "bias")}
        expected.add(f"model.{side}.embed_tokens.weight")
    assert names - {"model.shared.weight"} == expected, "and no table of sinusoids: a stored table is a limit"


# ---- initialisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, MODERN, {"position_embedding_type": "learned", "init_std": 0.5}], ids=str)
def test_initialisation_follows_the_seed(tiny_config: Callable[..., Any], fields: dict[str, Any]) -> None:
    def weights(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return SeqloomForConditionalGeneration(tiny_config(**fields)).state_dict()

    first, same, other = weights(1), weights(1), weights(2)
    for name, weight in first.items():
        assert torch.equal(weight, same[name]), name
        is_constant = "bias" in name or "layer_norm" in name
        assert is_constant or not torch.equal(weight, other[name]), f"{name} does not depend on the seed"


def test_initial_values(tiny_config: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    config = tiny_config(vocab_size=2000, d_model=64, encoder_ffn_dim=256, position_embedding_type="learned")
    model = SeqloomForConditionalGeneration(config)
    table = model.get_input_embeddings().weight
    assert table[4:].std().item() == pytest.approx(64**-0.5, rel=0.03), "N(0, 1/D)"
    weight = model.model.encoder.layers[0].fc1.weight
    bound = (6 / (64 + 256)) ** 0.5
    assert 0.98 * bound < weight.abs().max().item() <= bound, "Xavier-uniform"
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all(), name
        if "layer_norm.weight" in name:
            assert parameter.eq(1).all(), name
    config.init_std = 0.3
    model = SeqloomForConditionalGeneration(config)
    assert model.model.encoder.layers[0].fc1.weight.std().item() == pytest.approx(0.3, rel=0.03)
    assert model.get_input_embeddings().weight[4:].std().item() == pytest.approx(0.3, rel=0.03)


def test_building_a_model_leaves_the_config_alone(tiny_config: Callable[..., Any]) -> None:
    config = tiny_config(position_embedding_type="rotary")
    before = config.to_dict()
    SeqloomForConditionalGeneration(config)
    assert config.to_dict() == before


# ---- embeddings ------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["SeqloomForConditionalGeneration", "SeqloomForCausalLM"])
@pytest.mark.parametrize("size", [55, 37])
def test_resize_token_embeddings(
    tiny_model: Callable[..., Any], batch: dict[str, Tensor], kind: str, tied: bool, size: int, tmp_path: Path
) -> None:
    model = tiny_model(kind, tie_word_embeddings=tied)
    batch = {name: tensor.clamp(max=36) for name, tensor in batch.items()}
    before = model(**batch).logits
    resized = model.resize_token_embeddings(size)
    assert resized is model.get_input_embeddings()
    assert model.config.vocab_size == size
    assert [table.shape[0] for table in tables(model)] == [size] * 3
    assert storages(model) == (1 if tied else 3)
    logits = model(**batch).logits
    assert logits.shape[-1] == size
    kept = min(size, 40)
    torch.testing.assert_close(logits[..., :kept], before[..., :kept])
    model.save_pretrained(tmp_path)
    assert torch.equal(type(model).from_pretrained(tmp_path)(**batch).logits, logits)


def test_resize_without_means_takes_none_in_either_table(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(tie_word_embeddings=False)
    for table in (model.get_input_embeddings(), model.get_decoder().embed_tokens):
        torch.nn.init.constant_(table.weight, 7.0)
    model.resize_token_embeddings(60, mean_resizing=False)
    for table in (model.get_input_embeddings(), model.get_decoder().embed_tokens):
        assert table.weight[-10:].abs().max() < 6, "drawn as new ones are, and not about the mean"


def test_resize_to_a_multiple(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    model.resize_token_embeddings(41, pad_to_multiple_of=8)
    assert model.config.vocab_size == 48
    assert storages(model) == 1


@pytest.mark.parametrize("kind", ["SeqloomModel", "SeqloomForConditionalGeneration", "SeqloomForCausalLM"])
def test_get_and_set_input_embeddings(tiny_model: Callable[..., Any], kind: str) -> None:
    model = tiny_model(kind)
    table = nn.Embedding(40, 16)
    model.set_input_embeddings(table)
    assert model.get_input_embeddings() is table
    assert model.get_encoder().embed_tokens.weight is table.weight
    assert model.get_decoder().embed_tokens.weight is table.weight
    model.tie_weights()
    if kind != "SeqloomModel":
        assert model.get_output_embeddings().weight is table.weight


def test_get_and_set_output_embeddings(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    assert model.get_output_embeddings() is model.lm_head
    head = nn.Linear(16, 40, bias=False)
    model.set_output_embeddings(head)
    assert model.lm_head is head


def test_untied_sides_have_their_own_tables(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(tie_word_embeddings=False)
    assert model.get_input_embeddings() is model.get_encoder().get_input_embeddings()
    assert model.get_decoder().get_input_embeddings() is not model.get_input_embeddings()
    table = nn.Embedding(40, 16)
    model.set_input_embeddings(table)
    assert model.get_decoder().embed_tokens is not table


@pytest.mark.parametrize("given", ["neither", "both"])
def test_exactly_one_source_is_wanted(tiny_model: Callable[..., Any], given: str) -> None:
    model = tiny_model()
    source = torch.tensor([[5, 6, 2]])
    options = {"input_ids": source, "inputs_embeds": model.get_input_embeddings()(source)} if given == "both" else {}
    with pytest.raises(ValueError, match=rf"{given} of input_ids and\s+inputs_embeds; give exactly one"):
        model(**options, decoder_input_ids=source)


def test_a_missing_target_is_explained(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    vectors = model.get_input_embeddings()(torch.tensor([[5, 6, 2]]))
    with pytest.raises(ValueError, match="decoder_input_ids and decoder_inputs_embeds are both missing"):
        model.model(inputs_embeds=vectors)
    for inputs in ({"inputs_embeds": vectors}, {"input_ids": torch.tensor([[5, 6, 2]])}):
        with pytest.raises(ValueError, match="labels, decoder_input_ids and decoder_inputs_embeds are all missing"):
            model(**inputs)


def test_dummy_inputs_run(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    assert model(**model.dummy_inputs).logits.isfinite().all()


# ---- outputs ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    "fields", [{}, MODERN, {"encoder_layers": 3, "decoder_layers": 1}], ids=["paper", "modern", "deep"]
)
def test_hidden_states_and_attentions(
    tiny_model: Callable[..., Any], batch: dict[str, Tensor], fields: dict[str, Any]
) -> None:
    model = tiny_model(**fields)
    model.set_attn_implementation("eager")
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    encoder_layers, decoder_layers = model.config.encoder_layers, model.config.decoder_layers
    assert [states.shape for states in output.encoder_hidden_states] == [(4, 9, 16)] * (encoder_layers + 1)
    assert [states.shape for states in output.decoder_hidden_states] == [(4, 5, 16)] * (decoder_layers + 1)
    assert [maps.shape for maps in output.encoder_attentions] == [(4, 4, 9, 9)] * encoder_layers
    assert [maps.shape for maps in output.decoder_attentions] == [(4, 4, 5, 5)] * decoder_layers
    assert [maps.shape for maps in output.cross_attentions] == [(4, 4, 5, 9)] * decoder_layers
    assert output.encoder_last_hidden_state.shape == (4, 9, 16)
    torch.testing.assert_close(output.encoder_hidden_states[-1], output.encoder_last_hidden_state)
    padding = batch["attention_mask"].eq(0)[:, None, None]
    for maps in (*output.encoder_attentions, *output.cross_attentions):
        assert maps.masked_select(padding.expand_as(maps)).eq(0).all(), "nobody looks at padding"
    assert all(maps.triu(1).eq(0).all() for maps in output.decoder_attentions), "nobody looks ahead"
    for maps in (*output.encoder_attentions, *output.decoder_attentions, *output.cross_attentions):
        torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))


@torch.no_grad()
@pytest.mark.skipif(not hasattr(OutputRecorder, "num_hidden_layers_key"), reason="this release chooses none")
def test_chosen_hidden_states_are_counted_from_the_end_of_either_side(
    tiny_model: Callable[..., Any], batch: dict[str, Tensor]
) -> None:
    model = tiny_model(encoder_layers=3, decoder_layers=2)
    whole, chosen = (model(**batch, output_hidden_states=which) for which in (True, [-2]))
    for side in ("encoder_hidden_states", "decoder_hidden_states"):
        assert [states is None for states in chosen[side]] == [index != -2 for index in range(-len(whole[side]), 0)]
        assert torch.equal(chosen[side][-2], whole[side][-2])


@torch.no_grad()
def test_outputs_stay_out_unless_asked_for(tiny_model: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    output = tiny_model()(**batch)
    assert set(output) == {"logits", CACHE, "encoder_last_hidden_state"}
    assert isinstance(output.cache, EncoderDecoderCache)
    assert CACHE not in tiny_model()(**batch, use_cache=False)


@torch.no_grad()
def test_tuples_instead_of_dictionaries(tiny_model: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    model = tiny_model()
    expected = model(**batch)
    values = model(**batch, return_dict=False)
    assert isinstance(values, tuple)
    assert torch.equal(values[0], expected.logits)
    loss, logits = model(**batch, labels=batch["decoder_input_ids"], return_dict=False)[:2]
    assert loss.shape == ()
    assert logits.shape == expected.logits.shape
    states = model.model(**batch, return_dict=False)
    assert torch.equal(states[0], model.model(**batch).last_hidden_state)
    assert isinstance(model.get_encoder()(batch["input_ids"], return_dict=False), tuple)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dictionary", "tuple"])
def test_encoder_outputs_are_reused(tiny_model: Callable[..., Any], batch: dict[str, Tensor], kind: str) -> None:
    model = tiny_model()
    states = model.get_encoder()(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    given = BaseModelOutput(last_hidden_state=states) if kind == "dictionary" else (states,)
    source_free = {name: tensor for name, tensor in batch.items() if name != "input_ids"}
    torch.testing.assert_close(model(**source_free, encoder_outputs=given).logits, model(**batch).logits)


@torch.no_grad()
def test_logits_to_keep(tiny_model: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    model = tiny_model()
    logits = model(**batch).logits
    torch.testing.assert_close(model(**batch, logits_to_keep=1).logits, logits[:, -1:])
    torch.testing.assert_close(model(**batch, logits_to_keep=3).logits, logits[:, -3:])
    torch.testing.assert_close(model(**batch, logits_to_keep=torch.tensor([0, 2])).logits, logits[:, [0, 2]])


@pytest.mark.parametrize("fields", [{}, MODERN], ids=["paper", "modern"])
def test_gradient_checkpointing_gives_the_same_gradients(
    tiny_model: Callable[..., Any], fields: dict[str, Any]
) -> None:
    model = tiny_model(**fields).train()
    source, mask, labels = toy_pairs(4)
    gradients = []
    for reentrant in (None, False, True):
        if reentrant is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            assert model.is_gradient_checkpointing
        model.zero_grad()
        model(input_ids=source, attention_mask=mask, labels=labels, use_cache=True).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed, reentrant in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)
        torch.testing.assert_close(reentrant, plain)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, MODERN], ids=["paper", "modern"])
def test_eager_equals_sdpa(tiny_model: Callable[..., Any], batch: dict[str, Tensor], fields: dict[str, Any]) -> None:
    model = tiny_model(**fields)
    logits = []
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        assert model.get_decoder().config._attn_implementation == backend
        logits.append(model(**batch).logits)
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


# ---- lengths ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
def test_no_limit_on_length(tiny_model: Callable[..., Any], positions: str) -> None:
    model = tiny_model(position_embedding_type=positions, max_position_embeddings=8).double()
    source, target = torch.randint(4, 40, (1, 30)), torch.randint(4, 40, (1, 20))
    logits = model(input_ids=source, decoder_input_ids=target).logits[0]
    expected = PaperTransformer.of(model).logits(source[0].tolist(), target[0].tolist())
    torch.testing.assert_close(logits, torch.from_numpy(expected), rtol=0, atol=1e-5)
    assert model.generate(source, min_new_tokens=20, max_new_tokens=20).shape == (1, 21)


@torch.no_grad()
def test_learned_positions_refuse_what_they_never_saw(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model(position_embedding_type="learned", max_position_embeddings=8)
    source, longer = torch.randint(4, 40, (2, 8)), torch.randint(4, 40, (2, 9))
    sentence = (
        "a sequence of 9 tokens is longer than max_position_embeddings=8, all that learned positions know; shorten it, "
        "or train with position_embedding_type='sinusoidal' or 'rotary'."
    )
    for batch in (
        {"input_ids": longer, "decoder_input_ids": source},
        {"input_ids": source, "decoder_input_ids": longer},
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole sentence is compared below
            model(**batch)
        assert str(caught.value) == sentence
    assert model.generate(source, min_new_tokens=12, max_new_tokens=12).shape == (2, 1 + 8), "as many as there are"
    assert model.generate(source, min_length=12, max_length=12).shape == (2, 1 + 8)
    with pytest.raises(ValueError, match="a sequence of 9 tokens is longer than max_position_embeddings=8"):
        model.generate(longer, max_new_tokens=2)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 1]]).expand(2, -1)
    assert model(input_ids=longer, attention_mask=mask, decoder_input_ids=source).logits.isfinite().all()


@torch.no_grad()
def test_rotary_scaling(tiny_model: Callable[..., Any]) -> None:
    """At factor 1, and with "dynamic" up to the trained length, scaling is none; beyond, it changes the answer."""
    source = torch.randint(4, 40, (1, 20), generator=torch.Generator().manual_seed(0))

    def logits(length: int, **rope: Any) -> Tensor:
        parameters = {"rope_theta": 10000.0, **rope}
        model = tiny_model(position_embedding_type="rotary", max_position_embeddings=10, rope_parameters=parameters)
        return model(input_ids=source[:, :length], decoder_input_ids=source[:, :5]).logits

    plain = {length: logits(length, rope_type="default") for length in (10, 20)}
    torch.testing.assert_close(logits(20, rope_type="linear", factor=1.0), plain[20])
    torch.testing.assert_close(logits(10, rope_type="dynamic", factor=2.0), plain[10])
    for rope in ({"rope_type": "linear"}, {"rope_type": "dynamic"}, {"rope_type": "yarn"}):
        scaled = logits(20, factor=2.0, **rope)
        assert scaled.isfinite().all()
        assert not torch.allclose(scaled, plain[20], atol=1e-3), rope


# ---- caches ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    "fields", [{}, {"position_embedding_type": "learned"}, MODERN], ids=["paper", "learned", "modern"]
)
@pytest.mark.parametrize("kind", ["none", "dynamic", "encoder-decoder"])
def test_word_by_word_equals_all_at_once(
    tiny_model: Callable[..., Any], batch: dict[str, Tensor], fields: dict[str, Any], kind: str
) -> None:
    model = tiny_model(**fields)
    expected = model(**batch).logits
    cache = {
        "none": None,
        "dynamic": DynamicCache(config=model.config),
        "encoder-decoder": EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config)),
    }[kind]
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    target = batch["decoder_input_ids"]
    logits = []
    for chunk in target.split([2, 1, 1, 1], dim=1):
        output = model(**source, decoder_input_ids=chunk, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        assert isinstance(cache, EncoderDecoderCache)
        logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), expected, rtol=0, atol=1e-5)
    assert cache.get_seq_length() == target.shape[1]


@torch.no_grad()
def test_the_source_is_projected_once(tiny_model: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    model = tiny_model()
    calls: list[int] = []
    model.model.decoder.layers[0].encoder_attn.k_proj.register_forward_hook(lambda *_: calls.append(1))
    model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=5, min_new_tokens=5)
    assert len(calls) == 1


@torch.no_grad()
def test_reordering_the_cache_reorders_the_sentences(tiny_model: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    model = tiny_model()
    order = torch.tensor([2, 0, 3, 3])
    cache = model(**batch).past_key_values
    cache.reorder_cache(order)
    word = torch.full((4, 1), 7)
    mask = batch["attention_mask"][order]
    states = BaseModelOutput(model.get_encoder()(batch["input_ids"], batch["attention_mask"]).last_hidden_state[order])
    logits = model(encoder_outputs=states, attention_mask=mask, decoder_input_ids=word, past_key_values=cache).logits[
        :, -1
    ]
    whole = torch.cat([batch["decoder_input_ids"], word], dim=1)
    expected = model(**{**batch, "decoder_input_ids": whole}).logits[:, -1]
    torch.testing.assert_close(logits, expected[order], rtol=0, atol=1e-5)


# ---- generate --------------------------------------------------------------------------------------------------------

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "top_k": 10, "temperature": 1.3},
    "beam": {"num_beams": 4},
    "beam-sample": {"num_beams": 3, "do_sample": True, "top_k": 0},
    "n-best": {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.6, "early_stopping": True},
    "samples": {"do_sample": True, "num_return_sequences": 3},
    "processors": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 3, "bad_words_ids": [[24]]},
}


def write(model: Any, **options: Any) -> Tensor:
    """Translate eight padded toy sentences, always from the same seed."""
    source, mask, _ = toy_pairs(8, seed=123)
    torch.manual_seed(3)
    return model.generate(source, attention_mask=mask, **{"max_new_tokens": 12, **options})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fields", [{}, MODERN], ids=["paper", "modern"])
def test_caches_do_not_change_the_words(taught_model: Callable[..., Any], fields: dict[str, Any], mode: str) -> None:
    model = taught_model(**fields)
    expected = write(model, **MODES[mode], use_cache=False)
    assert expected.unique().numel() > 8, "the test is worth little when the model repeats one word"
    assert torch.equal(write(model, **MODES[mode]), expected)
    assert torch.equal(write(model, **MODES[mode], cache_implementation="dynamic"), expected)
    static = write(model, **MODES[mode], cache_implementation="static")
    width = min(static.shape[1], expected.shape[1])
    assert torch.equal(static[:, :width], expected[:, :width])
    assert static[:, width:].eq(0).all()
    assert expected[:, width:].eq(0).all()


def test_eager_and_sdpa_write_the_same_words(taught_model: Callable[..., Any]) -> None:
    model = taught_model()
    words = []
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        words.append(write(model, num_beams=3))
    assert torch.equal(*words)


def sentence_mask(words: Tensor) -> Tensor:
    """Mark what was written, up to and with the first </s>; beam search fills up with </s>, the others with <pad>."""
    return (words[:, 1:] == 2).cumsum(-1) - (words[:, 1:] == 2).long() == 0


def log_likelihood(model: Any, source: Tensor, mask: Tensor, words: Tensor) -> Tensor:
    """Return log P(words | source) of rows that start with <s>; (B,)."""
    with torch.no_grad():
        logits = model(input_ids=source, attention_mask=mask, decoder_input_ids=words[:, :-1]).logits
    steps = logits.log_softmax(-1).gather(-1, words[:, 1:, None])[..., 0]
    return steps.where(sentence_mask(words), 0.0).sum(-1)


@pytest.mark.parametrize("length_penalty", [1.0, 0.6, 0.0])
def test_n_best_scores_are_the_models_probabilities(taught_model: Callable[..., Any], length_penalty: float) -> None:
    model = taught_model()
    options = {"num_beams": 4, "num_return_sequences": 3, "length_penalty": length_penalty}
    output = write(model, **options, return_dict_in_generate=True, output_scores=True)
    scores = output.sequences_scores.view(8, 3)
    assert (scores[:, :-1] >= scores[:, 1:]).all(), "best first"
    source, mask, _ = toy_pairs(8, seed=123)
    source, mask = source.repeat_interleave(3, 0), mask.repeat_interleave(3, 0)
    lengths = sentence_mask(output.sequences).sum(-1)
    expected = log_likelihood(model, source, mask, output.sequences) / lengths**length_penalty
    torch.testing.assert_close(output.sequences_scores, expected, rtol=1e-4, atol=1e-4)
    transitions = model.compute_transition_scores(output.sequences, output.scores, output.beam_indices)
    torch.testing.assert_close(transitions.sum(-1) / lengths**length_penalty, expected, rtol=1e-4, atol=1e-4)


def test_a_wider_beam_finds_likelier_words(taught_model: Callable[..., Any]) -> None:
    model = taught_model()
    source, mask, _ = toy_pairs(8, seed=123)
    greedy, beam = (
        log_likelihood(model, source, mask, write(model, num_beams=beams, length_penalty=0.0)) for beams in (1, 8)
    )
    assert beam.sum() > greedy.sum()


def test_generate_returns_scores_and_attentions(taught_model: Callable[..., Any]) -> None:
    model = taught_model()
    model.set_attn_implementation("eager")
    output = write(
        model,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    steps = output.sequences.shape[1] - 1
    assert len(output.scores) == len(output.logits) == len(output.cross_attentions) == steps
    assert output.scores[0].shape == (8, 40)
    assert output.cross_attentions[-1][0].shape == (8, 4, 1, 9)
    assert len(output.encoder_attentions) == 2
    assert len(output.decoder_hidden_states[0]) == 3
    assert isinstance(output.past_key_values, EncoderDecoderCache)


def test_assisted_generation_writes_what_greedy_writes(taught_model: Callable[..., Any]) -> None:
    model, assistant = taught_model(), taught_model(position_embedding_type="learned")
    for source, mask, _ in [toy_pairs(1, seed=seed) for seed in (4, 5)]:
        options = {"attention_mask": mask, "max_new_tokens": 12}
        expected = model.generate(source, **options)
        assert torch.equal(model.generate(source, **options, assistant_model=assistant), expected)
        assert torch.equal(model.generate(source, **options, prompt_lookup_num_tokens=3), expected)


@torch.no_grad()
def test_generate_from_encoder_outputs(taught_model: Callable[..., Any]) -> None:
    model = taught_model()
    source, mask, _ = toy_pairs(8, seed=123)
    states = model.get_encoder()(source, mask)
    assert torch.equal(model.generate(encoder_outputs=states, attention_mask=mask, max_new_tokens=12), write(model))


def test_generate_stops_at_its_criteria(taught_model: Callable[..., Any]) -> None:
    model = taught_model()
    assert write(model, max_new_tokens=4).shape[1] <= 5
    assert write(model, max_length=4, max_new_tokens=None).shape[1] <= 4
    assert write(model, min_new_tokens=7)[:, 1:8].ne(2).all()
    words = write(model, eos_token_id=[2, 27])
    for row in words.tolist():
        ends = [place for place, word in enumerate(row) if word in (2, 27)]
        assert not ends or set(row[ends[0] + 1 :]) <= {0}


# ---- compilation -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_forward_is_one_graph(tiny_model: Callable[..., Any], batch: dict[str, Tensor]) -> None:
    """Without inductor: this shows that nothing breaks the graph, within seconds."""
    model = tiny_model(encoder_layers=1, decoder_layers=1)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [{}, {"position_embedding_type": "learned"}, MODERN], ids=["paper", "learned", "modern"]
)
def test_compiled_training_step_and_decoding(tiny_model: Callable[..., Any], fields: dict[str, Any]) -> None:
    model = tiny_model(encoder_layers=1, decoder_layers=1, **fields)
    source, mask, labels = toy_pairs(4)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    losses, gradients = [], []
    for some in (model, compiled):
        model.zero_grad()
        loss = some(input_ids=source, attention_mask=mask, labels=labels).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(*losses)
    for plain, fused in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    options = {"attention_mask": mask, "max_new_tokens": 8, "cache_implementation": "static"}
    expected = model.generate(source, **options)
    model.forward = torch.compile(model.forward, fullgraph=True)
    assert torch.equal(model.generate(source, **options), expected)


# ---- copies ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_model_from_its_config_in_another_dtype(tiny_config: Callable[..., Any]) -> None:
    model = SeqloomForConditionalGeneration._from_config(tiny_config(), dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert storages(model) == 1


def test_auto_classes_know_the_configuration() -> None:
    assert SeqloomForConditionalGeneration.config_class is SeqloomConfig
    assert SeqloomForConditionalGeneration.can_generate()
    assert SeqloomForCausalLM.can_generate()
    assert not SeqloomModel.can_generate()
