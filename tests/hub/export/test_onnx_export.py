"""The ONNX export of a taught model: it answers as the folder does, and what it says of itself is what was found."""

import json
import re
from dataclasses import replace

import pytest
import yaml
from transformers import AutoTokenizer

from seqloom.hub.export import onnx_export, onnx_graphs
from seqloom.hub.export.engine_parity import Sentence, compare, write
from seqloom.hub.export.onnx_engine import GreedySettings, OnnxEngine
from seqloom.hub.export.onnx_export import export_onnx
from seqloom.hub.export.onnx_graphs import QUANTIZED, quantize_graphs, write_graphs
from seqloom.hub.export.onnx_page import INSTALL, PACKAGES, find_page_parts
from seqloom.hub.export.output_folder import EXPORT_NAME, ExportError
from seqloom.hub.loading import load_folder
from seqloom.training.confidence import compare_outputs
from seqloom_cli import verbs
from tests.hub.export.test_onnx_graphs import SWITCHES
from tests.layout import ROOT

onnxruntime = pytest.importorskip("onnxruntime")

SOURCES = ["abc", "p", "bacd", "hgfedcba", "mn", "kp", "ponm", "aa"]
FIELDS = {"num_key_value_heads": 2, "use_gated_ffn": True, "tie_word_embeddings": False}


@pytest.fixture(scope="module")
def folder(taught_model, save_toy, tmp_path_factory):
    """A taught model, sources and references."""
    model = taught_model(**FIELDS, encoder_layers=1, decoder_layers=1)
    path = tmp_path_factory.mktemp("toy") / "model"
    save_toy(path, model, max_new_tokens=12, num_beams=3, suppress_tokens=[0, 1, 3])
    for name, change in (("sources", str), ("references", str.upper)):
        (path.parent / name).write_text("".join(f"{change(line)}\n" for line in [*SOURCES, ""]))
    return path


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder with `node_modules` whose files are stand-ins."""
    root = tmp_path_factory.mktemp("npm")
    for name, files in PACKAGES.items():
        for file in (*files.values(), "package.json", "LICENSE"):
            path = root / "node_modules" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("May be used." if file == "LICENSE" else '{"version": "1.2", "license": "MIT"}')
    return root


@pytest.fixture(scope="module")
def exported(folder, packages):
    """What the verb has said, and where it lies: tracing takes most of this file's time, so it is done once."""
    output, texts = folder.with_name("graphs"), f"{folder.parent / 'sources'} {folder.parent / 'references'}"
    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as lines:
        patch.chdir(packages)
        said = []
        lines.setattr(verbs, "print", said.append, raising=False)
        assert verbs.main(f"export {folder} --to onnx -o {output} --text {texts}".split()) == 0
    return output, "\n".join(said)


def engine_of(output, folder, suffix="", **changes):
    model, tokenizer = load_folder(folder)
    settings = replace(GreedySettings.of(model), **changes)
    return OnnxEngine(output / "onnx", model, settings, suffix), model, tokenizer


def test_what_it_says_is_what_was_found(exported):
    output, said = exported
    card, manifest = (output / "README.md").read_text(), json.loads((output / EXPORT_NAME).read_text())
    head = yaml.safe_load(card.split("---\n")[1])
    assert (head["library_name"], head["tags"]) == ("transformers.js", ["seqloom", "onnx"])
    assert list(manifest["formats"]) == ["float32", "int8"]
    for name, found in manifest["formats"].items():
        parity = found["parity"]
        assert (parity["sentences"], parity["compute_type"], parity["beam_equal"]) == (8, name, None)
        assert parity["forced_tokens"] == sum(len(line) + 1 for line in SOURCES)
        assert [row["metric"] for row in found["scores"]] == ["chrf", "exact_match"]
        for text in (card, said):
            assert f"differ by at most {parity['forced_difference']:.1e} on" in text
            assert f"{found['scores'][0]['export']:.2f}" in text
    exact = manifest["formats"]["float32"]["parity"]
    assert (exact["greedy_equal"], exact["greedy_ties"]) == (8, 0)
    assert exact["forced_difference"] < 1e-5
    assert manifest["formats"]["int8"]["parity"]["greedy_equal"] >= 6
    assert "| chrf | int8 |" in card
    assert "original, 3 beams" in card
    assert re.search(r"float32, greedy, against torch with 3 beams: chrf: torch [\d.]+, export [\d.]+ \(95 %", said)
    files = {p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file()}
    assert files == {EXPORT_NAME, *manifest["sha256"]}
    assert {"onnx/encoder_model.onnx", "onnx/decoder_model_merged_quantized.onnx", "index.html"} <= files


def test_greedy_answers_and_settings_are_torchs(exported, folder):
    output, _ = exported
    kept = [
        {},
        {"repetition_penalty": 1.5, "min_new_tokens": 11},
        {"no_repeat_ngram_size": 1, "min_new_tokens": 9},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 12},
        {"max_new_tokens": 1},
    ]
    answers = []
    for changes in kept:
        engine, model, tokenizer = engine_of(output, folder, **changes)
        sources = tokenizer(SOURCES).input_ids
        answers.append(engine.search(sources))
        assert answers[-1] == write(model, sources, num_beams=1, **{"max_new_tokens": 12, **changes})
    assert [answer != answers[0] for answer in answers] == [False, True, True, True, True]


def test_transformers_js_and_python_find_what_they_need(exported, folder):
    output, _ = exported
    config = json.loads((output / "config.json").read_text())
    assert (config["model_type"], config["d_model"], config["decoder_layers"]) == ("marian", 16, 1)
    settings = json.loads((output / "generation_config.json").read_text())
    assert (settings["max_new_tokens"], settings["suppress_tokens"]) == (12, [0, 1, 3])
    assert "num_beams" not in settings
    assert (
        AutoTokenizer.from_pretrained(output)("abc").input_ids == AutoTokenizer.from_pretrained(folder)("abc").input_ids
    )
    decoder = engine_of(output, folder)[0].decoder
    shapes = {each.name: each.shape for each in decoder.get_inputs()}
    assert shapes["past_key_values.0.decoder.key"] == ["batch_size", 2, "past_decoder_sequence_length", 4]
    assert [each.name for each in decoder.get_outputs()] == [
        "logits", "present.0.decoder.key", "present.0.decoder.value",
    ]  # fmt: skip


def test_the_recipe_of_the_documents_runs(exported, folder, tmp_path, monkeypatch, capsys):
    output, _ = exported
    (tmp_path / "my-folder-onnx").symlink_to(output)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```py\n(.*?)```", (ROOT / "docs" / "RECIPES.md").read_text(), flags=re.DOTALL)
    exec(compile(code, "RECIPES.md", "exec"), {})
    engine, _, tokenizer = engine_of(output, folder)
    (expected,) = tokenizer.batch_decode(engine.search(tokenizer(["abc"]).input_ids), skip_special_tokens=True)
    assert capsys.readouterr().out.strip() == expected
    assert expected


def test_the_page_is_made_where_its_packages_are(exported, packages, tmp_path):
    output, said = exported
    assert f"{output}/index.html: " in said
    page = (output / "index.html").read_text()
    assert set(re.findall(r'<script type="text/plain" id="(\w+)">', page)) == {
        "settings", "tokenizer", "tokenizer_config", "engine", "wasm", "tokenizers", "encoder", "decoder",
    }  # fmt: skip
    assert (output / "LICENSES.txt").read_text().startswith("onnxruntime-web 1.2 (MIT)\n\nMay be used.")
    below = packages / "a" / "b"
    below.mkdir(parents=True)
    assert find_page_parts(below).credits == ["onnxruntime-web 1.2 (MIT)", "@huggingface/tokenizers 1.2 (MIT)"]
    assert find_page_parts(tmp_path) is None
    wasm = packages / "node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm"
    wasm.rename(wasm.with_suffix(".old"))
    with pytest.raises(ExportError, match=r"onnxruntime-web 1\.2 has no dist/ort-wasm-simd-threaded\.wasm; npm insta"):
        find_page_parts(below)
    assert f"No index.html: the packages that run in it are not installed here. {INSTALL}" in onnx_export.describe_page(
        output, {}
    )


def test_mistakes_are_told_before_anything_is_traced(folder, tmp_path, monkeypatch, taught_model, capsys):
    monkeypatch.setattr(onnx_export, "write_graphs", lambda *_: pytest.fail("traced"))
    assert verbs.main(f"export {folder} --to onnx -o {tmp_path / 'x'} --quantization int8".split()) != 0
    assert "--to onnx writes float32 and int8 side by side" in capsys.readouterr().err
    with pytest.raises(ExportError, match=r"model holds something, and no export of ours"):
        export_onnx(folder, folder)
    model = taught_model()
    model.generation_config.update(bad_words_ids=[[5]])
    with pytest.raises(ExportError, match=r"says bad_words_ids=\[\[5\]\], and an ONNX export has nothing of the kind"):
        GreedySettings.of(model)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs onnx, onnxscript and onnxruntime \(.*\); pip install 'seqloom\[onnx"):
        export_onnx(folder, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_another_answer_is_refused_and_nothing_is_written(exported, folder, tmp_path, monkeypatch):
    """The graphs of the export stand in for those of a model that was bent."""
    output, _ = exported

    def bent(model, graphs):
        for path in (output / "onnx").glob("*.onnx"):
            (graphs / path.name).write_bytes(path.read_bytes())
        model.lm_head.weight.data.mul_(1.1)

    monkeypatch.setattr(onnx_export, "write_graphs", bent)
    monkeypatch.setattr(onnx_export, "quantize_graphs", lambda graphs: None)
    with pytest.raises(ExportError, match=r"does not answer as it does in torch, so nothing was written: Of \d+ sent"):
        export_onnx(folder, tmp_path / "x", scorer=compare_outputs)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_in_onnx_runtime(name, tiny_model, tmp_path):
    model = tiny_model(**{"encoder_layers": 1, "decoder_layers": 1, **SWITCHES[name]})
    model.generation_config.update(max_new_tokens=12, suppress_tokens=[0, 1])
    write_graphs(model, tmp_path)
    quantize_graphs(tmp_path)
    settings = GreedySettings.of(model)
    sentences = [Sentence([*range(4, 4 + length), 2]) for length in (1, 2, 7, 30)]
    parity = compare(model, None, OnnxEngine(tmp_path, model, settings), sentences)
    assert parity.is_exact
    assert parity.forced_difference < 5e-5
    rounded = compare(model, None, OnnxEngine(tmp_path, model, settings, QUANTIZED), sentences)
    assert 0 < rounded.forced_difference < 2
    assert model.config._attn_implementation == "sdpa"  # as before
    assert onnx_graphs.past_names(model)[-1].endswith(".decoder.value")
