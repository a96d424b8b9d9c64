"""The export of a taught model: its options answer as the folder does, and what it says of itself is what was found."""

import json
import re

import pytest
import torch
import yaml

from seqloom.hub.export import ctranslate2_export, ctranslate2_loader, engine_parity
from seqloom.hub.export.ctranslate2_export import QUANTIZATIONS, describe_export, export_ctranslate2
from seqloom.hub.export.ctranslate2_loader import ConversionError, vocabulary_of
from seqloom.hub.export.ctranslate2_options import greedy, translate_options
from seqloom.hub.export.engine_parity import Engine, write
from seqloom.hub.export.output_folder import EXPORT_NAME, ExportError
from seqloom.hub.loading import load_folder
from seqloom.training.confidence import compare_outputs
from seqloom_cli import verbs
from tests.toy import MODERN

ctranslate2 = pytest.importorskip("ctranslate2")

SOURCES = ["abc", "p", "bacd", "hgfedcba", "mn", "kp", "ponm", "aa"]


@pytest.fixture(scope="module")
def save(taught_model, save_toy, tmp_path_factory):
    """Return a function that saves a taught model with these fields and generation settings."""

    def build(fields=(), **settings):
        defaults = {"max_new_tokens": 12, "num_beams": 3, "suppress_tokens": [0, 1, 3]}
        path = tmp_path_factory.mktemp("toy") / "model"
        return save_toy(path, taught_model(**dict(fields)), **{**defaults, **settings})

    return build


@pytest.fixture(scope="module")
def folder(save):
    return save()


@pytest.fixture
def text(tmp_path):
    """Return files of sources and references."""
    files = tmp_path / "sources", tmp_path / "references"
    files[0].write_text("".join(f"{line}\n" for line in [*SOURCES, ""]))
    files[1].write_text("".join(f"{line.upper()}\n" for line in [*SOURCES, ""]))
    return [str(file) for file in files]


def engine_of(output, folder):
    """Open an export as its manifest says, beside the folder's own model."""
    model, tokenizer = load_folder(folder)
    names = vocabulary_of(tokenizer, model.config.vocab_size)
    options = json.loads((output / EXPORT_NAME).read_text())["translate_batch"]
    return Engine(str(output), names, options), model, tokenizer


def test_in_float32_it_answers_as_the_folder_does(folder, text, tmp_path):
    export = export_ctranslate2(folder, tmp_path / "ct2", text=text, scorer=compare_outputs)
    parity = export.parity
    assert (parity.sentences, parity.greedy_equal, parity.greedy_ties, parity.beam_equal) == (8, 8, 0, 8)
    assert parity.compute_type == "float32"
    assert parity.forced_tokens == sum(len(line) + 1 for line in SOURCES)
    assert parity.forced_difference < 1e-5
    assert [row.metric for row in export.scores] == ["chrf", "exact_match"]
    assert all(row.torch == row.export and row.difference_interval == (0, 0) for row in export.scores)
    assert export.scores[1].torch > 30  # percent: the model is unsure, so that a mistake would change what it writes


def test_what_it_says_is_what_was_found(folder, text, tmp_path):
    output = tmp_path / "ct2"
    export = export_ctranslate2(folder, output, text=text, scorer=compare_outputs)
    card, manifest = (output / "README.md").read_text(), json.loads((output / EXPORT_NAME).read_text())
    head = yaml.safe_load(card.split("---\n")[1])
    assert (head["library_name"], head["tags"]) == ("ctranslate2", ["seqloom", "ctranslate2"])
    score, parity = export.scores[0], export.parity
    for said in (card, describe_export(output, export)):
        assert f"differ by at most {parity.forced_difference:.1e} on {parity.forced_tokens} tokens" in said
        assert f"{score.export:.2f}" in said
        assert f"{score.export_interval[0]:.2f} to {score.export_interval[1]:.2f}" in said
        assert "sources and references" in said
        assert "at most 4,096" in said
    size = (output / "model.bin").stat().st_size
    assert (manifest["num_bytes"], manifest["quantization"], manifest["longest"]) == (size, "float32", 4096)
    assert manifest["parity"]["forced_difference"] == export.parity.forced_difference
    assert {path.name for path in output.iterdir()} == {EXPORT_NAME, *manifest["sha256"]}
    assert {"model.bin", "config.json", "shared_vocabulary.json", "tokenizer.json"} <= set(manifest["sha256"])


def test_options_name_every_default_that_cuts(folder, tmp_path):
    export_ctranslate2(folder, tmp_path / "ct2")
    assert json.loads((tmp_path / "ct2" / EXPORT_NAME).read_text())["translate_batch"] == DEFAULTS


SETTINGS = {
    "shortest": ({"min_new_tokens": 11}, {"min_decoding_length": 11}),
    "shortest is longest": (
        {"min_new_tokens": 11, "max_new_tokens": 9},
        {"min_decoding_length": 9, "max_decoding_length": 9},
    ),
    "longest": ({"max_new_tokens": 3}, {"max_decoding_length": 3}),
    "length penalty": ({"length_penalty": -2.0, "num_beams": 4}, {"length_penalty": -2.0, "beam_size": 4}),
    "no word twice": (
        {"no_repeat_ngram_size": 1, "min_new_tokens": 9},
        {"no_repeat_ngram_size": 1, "min_decoding_length": 9},
    ),
    "words that are bad": ({"bad_words_ids": [[24], [25, 26]]}, {"suppress_sequences": [["A"], ["B", "C"]]}),
    "two ends": ({"eos_token_id": [2, 27]}, {"end_token": ["</s>", "D"]}),
}
"""Of the folder, and what they are called in the engine."""

DEFAULTS = {"beam_size": 3, "max_input_length": 0, "max_decoding_length": 12, "min_decoding_length": 0}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_folder_are_options_of_the_engine(name, save, tmp_path, text):
    settings, options = SETTINGS[name]
    folder, plain = save(**settings), save()
    export = export_ctranslate2(folder, tmp_path / "ct2", text=text[:1])
    assert json.loads((tmp_path / "ct2" / EXPORT_NAME).read_text())["translate_batch"] == DEFAULTS | options
    assert export.parity.greedy_equal == 8
    _, model, tokenizer = engine_of(tmp_path / "ct2", folder)
    sources = tokenizer(SOURCES).input_ids
    if name == "length penalty":  # a matter of beams
        assert export.parity.beam_equal == 8
    else:
        assert write(load_folder(plain)[0], sources, num_beams=1) != write(model, sources, num_beams=1)


def test_repetition_is_punished_alike(save, tmp_path, text):
    folder = save(repetition_penalty=1.5, min_new_tokens=11, num_beams=1)
    assert export_ctranslate2(folder, tmp_path / "ct2", text=text[:1]).parity.greedy_equal == 8


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"forced_eos_token_id": 2}, r"says forced_eos_token_id=2, and CTranslate2 has nothing of the kind; remove it"),
        ({"begin_suppress_tokens": [5]}, r"says begin_suppress_tokens=\[5\], and CTranslate2 has nothing"),
        ({"min_p": 0.1, "do_sample": True, "num_beams": 1}, r"says min_p=0.1, and CTranslate2 has nothing"),
        (
            {"do_sample": True, "num_beams": 3},
            r"do_sample=true with num_beams=3, and CTranslate2 samples without",
        ),
        (
            {"repetition_penalty": 1.5, "num_beams": 3},
            r"repetition_penalty=1.5 with num_beams=3 is another .* set num_beams .* or repetition_penalty to 1 in",
        ),
    ],
)
def test_settings_that_the_engine_lacks_are_refused(settings, text, taught_model):
    model = taught_model()
    model.generation_config.update(**settings)
    with pytest.raises(ExportError, match=text):
        translate_options(model, [str(i) for i in range(40)])


def test_settings_that_do_nothing_are_not_refused(taught_model):
    model = taught_model()
    model.generation_config.update(typical_p=1.0, encoder_repetition_penalty=1.0, guidance_scale=1.0, use_cache=True)
    model.generation_config.update(encoder_no_repeat_ngram_size=0, num_return_sequences=2, num_beams=2)
    options = translate_options(model, [str(i) for i in range(40)])
    assert options["num_hypotheses"] == 2
    assert "num_hypotheses" not in greedy(options)
    model.generation_config.update(do_sample=True, top_k=7, top_p=0.5, temperature=0.3, num_beams=1)
    model.generation_config.num_return_sequences = None
    sampling = {"sampling_topk": 7, "sampling_topp": 0.5, "sampling_temperature": 0.3}
    assert translate_options(model, [str(i) for i in range(40)]).items() >= sampling.items()
    for top_k, words in ((None, 40), (99, 40), (0, 0)):
        model.generation_config.top_k = top_k
        assert translate_options(model, [str(i) for i in range(40)])["sampling_topk"] == words


def test_suppressed_words_are_never_written(save, tmp_path):
    """The most likely words of the taught model."""
    allowed = save(suppress_tokens=[0, 1, 3])
    forbidden = save(suppress_tokens=[0, 1, 3, *range(24, 34)])
    outputs = []
    for number, folder in enumerate((allowed, forbidden)):
        export_ctranslate2(folder, tmp_path / str(number))
        engine, _, tokenizer = engine_of(tmp_path / str(number), folder)
        outputs.append(engine.write(tokenizer(SOURCES).input_ids))
    assert {token for ids in outputs[0] for token in ids} & set(range(24, 34))
    assert not {token for ids in outputs[1] for token in ids} & set(range(24, 34))


def test_an_answer_may_be_empty(save, tmp_path):
    """All words but the end are suppressed."""
    folder = save(suppress_tokens=[token for token in range(40) if token != 2])
    assert export_ctranslate2(folder, tmp_path / "ct2").parity.forced_difference < 1e-5
    engine, _, tokenizer = engine_of(tmp_path / "ct2", folder)
    assert engine.write(tokenizer(["abc"]).input_ids) == [[]]


def test_long_text_is_not_cut(save, tmp_path):
    """1,500 tokens in, 280 out: the engine's own limits are 1,024 and 256; behind the table there is an error."""
    folder = save(max_new_tokens=300, min_new_tokens=280, num_beams=1)
    (tmp_path / "one").write_text("a\n")
    export_ctranslate2(folder, tmp_path / "ct2", text=[str(tmp_path / "one")])
    engine, model, tokenizer = engine_of(tmp_path / "ct2", folder)
    sources = tokenizer(["abcdefghijklmno" * 100]).input_ids
    answers = engine.write(sources)
    assert answers == write(model, sources, num_beams=1)
    assert 280 <= len(answers[0]) <= 300
    (scores,) = engine.score(sources, answers)
    assert (torch.tensor(scores) - engine_parity.force(model, sources[0], answers[0])).abs().max() < 1e-4
    with pytest.raises(RuntimeError, match=r"No position encodings are defined for positions >= 4096"):
        engine.write(tokenizer(["a" * 5000]).input_ids)


def test_learned_positions_limit_answer_and_sentences(save, tmp_path, text):
    folder = save({"position_embedding_type": "learned", "max_position_embeddings": 16}, max_new_tokens=50)
    with open(text[0], "a") as file:
        file.write("abcdefgh" * 3 + "\n")
    export = export_ctranslate2(folder, tmp_path / "ct2", text=text[:1])
    assert (export.parity.sentences, export.longest) == (8, 16)
    assert export.options["max_decoding_length"] == 16


def test_rotary_positions_have_no_limit(tiny_model, save_toy, tmp_path):
    assert export_ctranslate2(save_toy(tmp_path / "model", tiny_model(**MODERN)), tmp_path / "ct2").longest is None
    assert "reads and writes at most" not in (tmp_path / "ct2" / "README.md").read_text()


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_every_format_runs_and_is_compared(quantization, folder, tmp_path, text):
    export = export_ctranslate2(folder, tmp_path / "ct2", quantization=quantization, text=text, scorer=compare_outputs)
    if quantization != "float32":
        assert export.num_bytes < export_ctranslate2(folder, tmp_path / "full", text=text).num_bytes
    card = (tmp_path / "ct2" / "README.md").read_text()
    assert f"`{quantization}` is how the weights are stored" in card
    if quantization not in ctranslate2.get_supported_compute_types("cpu"):
        assert f"cannot compute {quantization}" in describe_export(tmp_path / "ct2", export)
        pytest.skip(f"this CPU computes {quantization} as {export.parity.compute_type}, which was compared")
    assert export.parity.compute_type.startswith(quantization)
    assert export.parity.forced_difference < 0.5  # 2.2 where the range of int8 overflows, see the loader
    assert export.parity.greedy_equal >= 6


def test_the_runs_test_set_is_compared_where_there_is_one(folder, tmp_path):
    assert export_ctranslate2(folder, tmp_path / "a").compared_on == "the canary's rows"
    (folder / "run").mkdir()
    rows = [{"source": line, "target": line.upper(), "output": line.upper()} for line in [*SOURCES, " "]]
    (folder / "run" / "test_outputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        export = export_ctranslate2(folder, tmp_path / "b", scorer=compare_outputs)
        (folder / "run" / "recipe.yaml").write_text("data:\n  task: pairs\n")
        (folder / "run" / "results.json").write_text('{"test_exact_match": 100, "test_cer": 0}')
        recorded = export_ctranslate2(folder, tmp_path / "c", scorer=compare_outputs)
    finally:
        for path in (folder / "run").iterdir():
            path.unlink()
        (folder / "run").rmdir()
    assert export.compared_on == recorded.compared_on == "the run's test set"
    assert export.parity.sentences == 8
    assert [row.metric for row in recorded.scores] == ["exact_match", "cer"]
    assert recorded.scores[0].torch == 100  # what the run has recorded; not asked again


def test_another_answer_is_refused_and_nothing_is_written(folder, tmp_path, monkeypatch):
    bend = ctranslate2_loader._positions
    monkeypatch.setattr(ctranslate2_loader, "_positions", lambda stack: bend(stack).roll(1, dims=0))
    text = r"does not answer as it does in torch, so nothing was written: Of \d+ sentences, .* Install another ctransl"
    with pytest.raises(ExportError, match=text):
        export_ctranslate2(folder, tmp_path / "ct2")
    assert not list(tmp_path.iterdir())
    export = export_ctranslate2(folder, tmp_path / "ct2", quantization="int8")  # counted, not judged
    assert not export.parity.is_exact


def test_other_greedy_tokens_are_only_forgiven_at_a_tie(taught_model):
    model = taught_model()
    log_probs = engine_parity.log_probs_of(model, [4, 5, 2], [])[-1]
    first, second = log_probs.topk(2).indices.tolist()
    assert not engine_parity.parts_at_tie(model, [4, 5, 2], [first], [second])
    assert engine_parity.parts_at_tie(model, [4, 5, 2], [first, 4], [first, 4])
    with torch.no_grad():
        model.model.encoder.embed_tokens.weight[second] = model.model.encoder.embed_tokens.weight[first]
    assert engine_parity.parts_at_tie(model, [4, 5, 2], [first], [second])


def test_mistakes_are_told_before_anything_is_loaded(folder, tmp_path, monkeypatch):
    with pytest.raises(ExportError, match=r"quantization='int88' is unknown; did you mean int8\? use one of float"):
        export_ctranslate2(folder, tmp_path / "ct2", quantization="int88")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(ExportError, match=r"full holds something, and no export of ours"):
        export_ctranslate2("nowhere", tmp_path / "full")
    with pytest.raises(ExportError, match=r"model holds something, and no export of ours"):
        export_ctranslate2(folder, folder)
    for content in ("\n \n", ""):
        (tmp_path / "blank").write_text(content)
        with pytest.raises(ExportError, match=r"blank holds no sentence to compare the two on; name another file"):
            export_ctranslate2(folder, tmp_path / "ct2", text=[str(tmp_path / "blank")])
    (tmp_path / "two").write_text("a\nb\n")
    (tmp_path / "one").write_text("a\n")
    with pytest.raises(ExportError, match=r"two has 2 lines and .*one 1; they must be line-aligned."):
        export_ctranslate2(folder, tmp_path / "ct2", text=[str(tmp_path / "two"), str(tmp_path / "one")])
    with pytest.raises(ExportError, match=r"names 3 files; sources, and one of references."):
        export_ctranslate2(folder, tmp_path / "ct2", text=[str(tmp_path / "one")] * 3)
    monkeypatch.setitem(__import__("sys").modules, "ctranslate2", None)
    with pytest.raises(ImportError, match=r"needs ctranslate2 \(.*\); pip install 'seqloom\[export\]'."):
        export_ctranslate2(folder, tmp_path / "ct2")
    assert not (tmp_path / "ct2").exists()


def test_the_verb(folder, tmp_path, capsys, text, monkeypatch):
    line = f"export {folder} --to ctranslate2 -o {tmp_path / 'ct2'} --quantization int8 --text {' '.join(text)}"
    assert verbs.main(line.split()) == 0
    out = capsys.readouterr().out
    assert re.search(r"ct2: int8, 0\.\d MB", out)
    assert re.search(r"chrf: torch [\d.]+, export [\d.]+ \(95 % interval", out)
    monkeypatch.setattr(ctranslate2_export, "build_spec", lambda *_: (_ for _ in ()).throw(ConversionError("no, so x")))
    assert verbs.main(line.split()) == 1
    assert "no, so x" in capsys.readouterr().err
    assert verbs.main(["export", "x", "--to", "onyx", "-o", "y"]) == 2
