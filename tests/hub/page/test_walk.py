"""The walk's numbers against what the model itself says: its attentions, its states, its scores, its search."""

import base64
import json
import math
import re

import numpy as np
import pytest
import torch

from seqloom.hub.page import walk_numbers
from seqloom.hub.page.walk import render_walk, walk
from seqloom.hub.page.walk_file import TEMPLATE, write_walk
from seqloom.hub.page.walk_numbers import choose_layers, pack, shown_dimensions
from seqloom.hub.page.walk_search import source_pieces
from seqloom.hub.word_alignment import find_place
from seqloom_cli import verbs
from tests.toy import MODERN

VARIANTS = {
    "paper": {},
    "modern": MODERN,
    "learned": {"position_embedding_type": "learned", "norm_position": "pre", "tie_word_embeddings": False},
    "uneven": {"encoder_layers": 1, "encoder_attention_heads": 2, "scale_embedding": False, "norm_type": "rmsnorm"},
}


def unpack(packed):
    kind, text = ("<f4", packed["f32"]) if "f32" in packed else ("<f2", packed["f16"])
    return torch.tensor(np.frombuffer(base64.b64decode(text), kind).astype("f4").reshape(packed["shape"]))


def near(packed, expected, tolerance=2e-3):
    torch.testing.assert_close(unpack(packed), expected, atol=tolerance, rtol=tolerance)


@pytest.fixture(scope="module")
def tokenizer(shout_tokenizer):
    return shout_tokenizer


@pytest.fixture(scope="module", params=VARIANTS)
def seen(request, taught_model, tiny_model, tokenizer):
    """A model, its walk, and what the model's own forward returns for the same tokens."""
    build = taught_model if request.param in ("paper", "modern") else tiny_model
    model = build(**VARIANTS[request.param])
    model.generation_config.update(max_new_tokens=9)
    data = walk(model, tokenizer, "bacd", num_beams=3)
    assert json.loads(json.dumps(data)) == json.loads(json.dumps(data, allow_nan=False))
    ids, target = torch.tensor([data["source"]["ids"]]), torch.tensor([data["target"]["ids"]])
    model.set_attn_implementation("eager")
    own = model(ids, decoder_input_ids=target[:, :-1], output_attentions=True, output_hidden_states=True)
    return model, data, own, target[0, 1:]


def test_attention_is_the_models(seen):
    model, data, own, _ = seen
    for kind, side, weights in (
        ("encoder_self", "encoder", own.encoder_attentions),
        ("self", "decoder", own.decoder_attentions),
        ("cross", "decoder", own.cross_attentions),
    ):
        assert len(data[side]["layers"]) == len(weights) == getattr(model.config, f"{side}_layers")
        for layer, expected in zip(data[side]["layers"], weights, strict=True):
            near(layer[kind]["weights"], expected[0])


def test_queries_keys_and_values_make_these_weights_and_sums(seen):
    model, data, _, _ = seen
    for side, kind in (("encoder", "encoder_self"), ("decoder", "self"), ("decoder", "cross")):
        for layer in data[side]["layers"]:
            query, key, value = (unpack(layer[kind][part]) for part in ("query", "key", "value"))
            groups = query.shape[0] // key.shape[0]
            assert key.shape[0] == (model.config.num_key_value_heads or query.shape[0])
            key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
            scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
            if kind == "self":
                scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
            near(layer[kind]["weights"], scores.softmax(-1), 5e-3)
            near(layer[kind]["mixed_norms"], (scores.softmax(-1) @ value).norm(dim=-1), 1e-2)


def test_the_stream_is_the_models(seen):
    """Between layers transformers records the stream itself; behind the last, with the last norm."""
    _, data, own, _ = seen
    for side, states in (("encoder", own.encoder_hidden_states), ("decoder", own.decoder_hidden_states)):
        near(data["embedding"][side]["sum"], states[0][0], 5e-3)
        near(data[side]["start_norms"], states[0][0].norm(dim=-1), 5e-3)
        for layer, after in zip(data[side]["layers"][:-1], states[1:], strict=False):
            near(layer["stream"][-1]["after"], after[0], 5e-3)
            near(layer["stream"][-1]["after_norms"], after[0].norm(dim=-1), 5e-3)
    near(data["encoder"]["out"], own.encoder_last_hidden_state[0], 5e-3)


def test_positions_are_what_is_added(seen):
    model, data, _, _ = seen
    part = data["embedding"]["encoder"]
    if model.config.position_embedding_type == "rotary":
        assert part["positions"] is None
        angles = torch.arange(5)[:, None] * model.model.encoder.rotary_emb.inv_freq
        near(part["turns"], torch.atan2(angles.sin(), angles.cos()), 5e-3)
        near(part["sum"], unpack(part["rows"]) * data["model"]["scale"], 5e-3)
        return
    near(part["sum"], unpack(part["rows"]) * data["model"]["scale"] + unpack(part["positions"]), 1e-2)
    table = model.model.encoder.embed_tokens.weight.detach()
    near(part["rows"], table[data["source"]["ids"]])


def test_the_distribution_is_the_models(seen):
    _, data, own, written = seen
    logits, scores = own.logits[0].detach(), data["scores"]
    near(scores["logits"], logits.sort(-1, descending=True).values[:, : walk_numbers.MOST_WORDS], 1e-4)
    near(scores["written_logp"], logits.log_softmax(-1).gather(1, written[:, None])[:, 0], 1e-4)
    assert data["score"] == pytest.approx(float(unpack(scores["written_logp"]).sum()), abs=1e-3)
    rows, last = unpack(scores["rows"]), unpack(scores["last"])
    expected = logits[:, scores["row_ids"]]
    torch.testing.assert_close(last @ rows.T, expected, atol=2e-2, rtol=1e-2)
    assert scores["written_rank"] == [int((row > row[id_]).sum()) for row, id_ in zip(logits, written)]


def test_the_lens_ends_at_the_models_answer(seen):
    model, data, own, written = seen
    probabilities = own.logits[0].softmax(-1).detach()
    torch.testing.assert_close(
        unpack(data["lens"]["written"])[-1], probabilities.gather(1, written[:, None])[:, 0], atol=2e-3, rtol=2e-3
    )
    assert [ids[0] for ids in data["lens"]["ids"][-1]] == probabilities.argmax(-1).tolist()
    first = model.lm_head(model.model.decoder.layer_norm(own.decoder_hidden_states[1]))[0].softmax(-1)
    assert [ids[0] for ids in data["lens"]["ids"][0]] == first.argmax(-1).tolist()
    torch.testing.assert_close(
        unpack(data["lens"]["written"])[0], first.gather(1, written[:, None])[:, 0], atol=2e-3, rtol=2e-3
    )


def test_the_tree_is_the_search(seen, tokenizer):
    model, data, _, _ = seen
    tree, batch = data["tree"], tokenizer(["bacd"], return_tensors="pt")
    found = model.generate(
        **batch, num_beams=3, num_return_sequences=3, return_dict_in_generate=True, output_scores=True
    )
    assert [end["score"] for end in tree["ends"]] == pytest.approx(found.sequences_scores.tolist(), abs=1e-4)
    for end, score in zip(tree["ends"], found.sequences_scores.tolist(), strict=True):
        node = tree["nodes"][end["node"]]
        assert node["sum"] / node["depth"] ** tree["length_penalty"] == pytest.approx(score, abs=1e-4)
    path, node = [], tree["ends"][0]["node"]
    while node is not None:
        path.append(tree["nodes"][node]["id"])
        node = tree["nodes"][node]["parent"]
    assert path[::-1] == data["target"]["ids"]
    depths = [node["depth"] for node in tree["nodes"] if node["rank"] is not None]
    assert max(depths.count(depth) for depth in depths) == 3
    winner = [tree["nodes"][n] for n in _ancestors(tree["nodes"], tree["ends"][0]["node"])][:-1]
    behind = [node["depth"] for node in winner if node["rank"]]
    assert tree["overtook"] == max(behind, default=0) + 1


def _ancestors(nodes, node):
    path = []
    while node:
        path.append(node)
        node = nodes[node]["parent"]
    return path[::-1]


def test_what_is_missing_is_missing(seen, tokenizer):
    """Each word taken away: what is written, and by how much the old output falls, asked of the model one by one."""
    model, data, _, written = seen
    without = data["without"]
    assert without["words"] == list("bacd")
    assert without["whole"] == data["output"]
    full = torch.tensor(data["target"]["ids"])[None]

    def scores(text):
        batch = tokenizer([text], return_tensors="pt")
        logits = model(**{k: batch[k] for k in ("input_ids", "attention_mask")}, decoder_input_ids=full[:, :-1]).logits
        return logits[0].log_softmax(-1).gather(1, written[:, None])[:, 0].detach()

    for index, text in enumerate(("acd", "bcd", "bad", "bac")):
        torch.testing.assert_close(unpack(without["falls"])[index], scores("bacd") - scores(text), atol=5e-3, rtol=2e-3)
        batch = tokenizer([text], return_tensors="pt")
        output = tokenizer.decode(model.generate(**batch, num_beams=3)[0], skip_special_tokens=True)
        assert "".join(part for sign, part in without["changes"][index] if sign != "-") == output
        assert "".join(part for sign, part in without["changes"][index] if sign != "+") == data["output"]


def test_the_tail_keeps_the_distribution_at_other_temperatures(taught_model, tokenizer, monkeypatch):
    monkeypatch.setattr(walk_numbers, "MOST_WORDS", 4)
    model = taught_model()
    data = walk(model, tokenizer, "abc", max_new_tokens=9)
    ids, target = torch.tensor([data["source"]["ids"]]), torch.tensor([data["target"]["ids"]])
    logits = model(ids, decoder_input_ids=target[:, :-1]).logits[0]
    best, tail = unpack(data["scores"]["logits"]), unpack(data["scores"]["tail"])
    assert (tail[..., 0].sum(-1) == model.config.vocab_size - 4).all()
    for temperature, tolerance in ((1.0, 1e-5), (0.5, 1e-2), (2.0, 1e-2)):
        rest = (tail[..., 0] * (tail[..., 1] / temperature).exp() * (tail[..., 0] > 0)).sum(-1)
        top = (best / temperature).exp()
        expected = (logits / temperature).softmax(-1).sort(-1, descending=True).values[:, :4]
        torch.testing.assert_close(
            top / (top.sum(-1) + rest)[:, None], expected.detach(), atol=tolerance, rtol=tolerance
        )


def test_a_causal_lm_and_a_given_target_walk_too(taught_model, tokenizer):
    data = walk(taught_model(), tokenizer, "abc", max_new_tokens=9)
    causal = walk(taught_model("SeqloomForCausalLM"), tokenizer, "abc", max_new_tokens=9)
    assert causal == data
    forced = walk(taught_model(), tokenizer, "abc", target="PPP", max_new_tokens=9)
    assert forced["output"] == "PPP"
    assert forced["forced"]
    assert forced["target"]["end"] == tokenizer.eos_token_id
    assert forced["target"]["ids"][1:] == tokenizer("PPP")["input_ids"]


def test_a_folders_own_search_does_not_shift_the_page(taught_model, tokenizer):
    model = taught_model()
    expected = walk(model, tokenizer, "bacd", num_beams=3, max_new_tokens=9)
    model.generation_config.update(num_beams=4, num_return_sequences=2)
    found = walk(model, tokenizer, "bacd", num_beams=3, max_new_tokens=9)
    assert found["without"]["changes"] == expected["without"]["changes"]
    model.generation_config.length_penalty = 0.0
    found = walk(model, tokenizer, "bacd", num_beams=3, max_new_tokens=9)
    assert found["tree"]["length_penalty"] == 0.0
    assert [end["score"] for end in found["tree"]["ends"]] == pytest.approx(
        [found["tree"]["nodes"][end["node"]]["sum"] for end in found["tree"]["ends"]], abs=1e-4
    )
    model.generation_config.decoder_start_token_id = None
    model.generation_config.bos_token_id = 1
    assert walk(model, tokenizer, "abc", target="PPP", max_new_tokens=9)["output"] == "PPP"


def test_long_texts_are_shown_in_part(taught_model, tokenizer, monkeypatch):
    monkeypatch.setattr(walk_numbers, "MOST_TOKENS", 3)
    data = walk(taught_model(), tokenizer, "abcdef", max_new_tokens=9)
    layer = data["encoder"]["layers"][0]["encoder_self"]
    assert layer["weights"]["shape"] == [4, 3, 3]
    near({**layer["rest"]}, 1 - unpack(layer["weights"]).sum(-1))


def test_the_alignment_starts_where_this_model_keeps_it(seen):
    model, data, _, _ = seen
    place = find_place(model, [(data["source"]["ids"], data["target"]["ids"][1:])])
    assert data["place"] == {"layer": place.layer, "shift": place.is_shifted}


def test_a_large_model_keeps_first_and_last_layers(tiny_config):
    config = tiny_config(encoder_layers=6, decoder_layers=6, d_model=512)
    assert len(choose_layers(config, 30, 30, None)) == 18
    kept = choose_layers(config, 30, 30)
    assert {(kind, layer) for kind in ("encoder_self", "self", "cross") for layer in (0, 5)} <= kept
    assert len(kept) < 18
    assert choose_layers(config, 30, 30, 1) == {("encoder_self", 0), ("cross", 0)}
    assert shown_dimensions(512)[:3] == [0, 8, 16]


@pytest.mark.parametrize("d_model", [256, 512, 1024])
def test_two_megabytes_hold_sixteen_heads_in_twelve_layers(tiny_config, d_model):
    """Weights of all heads, and of queries, keys and values what fits; the rest of such a page is about 0.7 MB."""
    config = tiny_config(
        encoder_layers=6, decoder_layers=6, d_model=d_model, encoder_attention_heads=16, decoder_attention_heads=16
    )
    weights = 12 * 16 * 30 * 30 + 6 * 16 * 30 * 30
    vectors = len(choose_layers(config, 30, 30)) * 3 * 30 * d_model
    assert (weights + vectors) * 2 * 4 / 3 < 1.25e6
    assert {("encoder_self", 0), ("cross", 0)} <= choose_layers(config, 30, 30)


def test_numbers_that_float16_cannot_hold_are_packed_wide():
    assert "f16" in pack(torch.tensor([1.0, -2.0]))
    assert unpack(pack(torch.tensor([1e6, 0.5]))).tolist() == [1e6, 0.5]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("22 novembre 2026", ["22", "novembre", "2026"]),
        ("今天的天气", list("今天的天气")),
        ("2026年11月", ["2026", "年", "11", "月"]),
        ("hello", list("hello")),
        ("مرحبا بالعالم", ["مرحبا", "بالعالم"]),
        ("  ", []),
    ],
)
def test_words_of_a_source(text, pieces):
    spans, left = source_pieces(text)
    assert ([text[begin:end] for begin, end in spans], left) == (pieces, 0)
    assert source_pieces("a b c", most=2) == ([(0, 1), (2, 3)], 1)


EVIL = "</script><script>alert(1)</script><!-- <b>& \u2028\u202e\u0000"


def test_no_text_ends_the_script(taught_model, tokenizer):
    data = walk(taught_model(), tokenizer, f"a{EVIL}", max_new_tokens=4)
    page = render_walk(data, TEMPLATE.read_text(encoding="utf-8"))
    (inside,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert json.loads(inside)["text"] == f"a{EVIL}"
    assert page.count("<script") == 2
    assert not re.search("[\u2028\u202e\u0000]", page)
    addresses = set(re.findall(r"https?://[^\"' ]+", page.replace(inside, "")))
    assert addresses == {"http://www.w3.org/2000/svg"}, "nothing is fetched"


def test_the_command(taught_model, tokenizer, tmp_path, capsys):
    folder, page = tmp_path / "capitals", tmp_path / "walk.html"
    model = taught_model()
    model.generation_config.update(max_new_tokens=9)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert verbs.main(["walk", str(folder), "abc", "-o", str(page), "--beams", "2", "--target", "AB"]) == 0
    assert capsys.readouterr().out.startswith(f"AB\n{page}: 0.")
    assert '"forced":true' in page.read_text(encoding="utf-8")
    for arguments, said in (
        ([str(folder), " ", "-o", str(page)], "text=' ' has no words to walk with; give a sentence"),
        ([str(folder), "a", "-o", str(tmp_path / "no" / "x.html")], "does not exist; create it"),
        ([str(folder), "a" * 1025, "-o", str(page)], "a walk reads up to 1,024; shorten it"),
    ):
        assert verbs.main(["walk", *arguments]) == 1
        assert said in capsys.readouterr().err
    write_walk(folder, "a b " * 40, page)  # shortened


def test_other_networks_are_told_what_works(tokenizer):
    from transformers import MarianConfig, MarianMTModel

    config = MarianConfig(
        vocab_size=40,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        pad_token_id=0,
    )
    with pytest.raises(ValueError, match=r"MarianMTModel is no Seqloom model.*explain"):
        walk(MarianMTModel(config), tokenizer, "a")
