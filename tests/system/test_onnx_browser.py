"""index.html of an ONNX export in Chromium, from a disk and from a server: its answers and its ids are Python's."""

import functools
import http.server
import json
import random
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from seqloom.hub.export.onnx_engine import GreedySettings, OnnxEngine
from seqloom.hub.export.onnx_export import export_onnx
from seqloom.hub.export.onnx_graphs import QUANTIZED
from seqloom.hub.export.onnx_page import INSTALL, find_page_parts
from seqloom.hub.loading import load_folder
from seqloom.training.tokenizer import train_tokenizer
from tests.browser import open_browser
from tests.layout import ROOT
from tests.toy import MODERN

pytestmark = pytest.mark.slow
pytest.importorskip("onnxruntime")

SOURCES = ["abc", "p", "bacd", "hgfedcba", "mn", "kp", "ponm", "aa"]
TRANSFORMERS_JS = "@huggingface/transformers@4.3.2"

TEXT = [
    "Der Hund läuft über die Straße, heute um 12:30 Uhr.", "今天的天气很好。我们去公园吧!", "ہم آج پارک جاتے ہیں",
    "कल हम पार्क जाएंगे", "don't stop 3.14 <b>bold</b> a<b", "Tiếng Việt có dấu", "日本語のテキストー です",
]  # fmt: skip
MESSY = [
    "", " ", "  two  blanks ", "\ttab\tand\u00a0nbsp", "</s> <s> <pad> <unk> <0x41> <source>x <target>y", "▁meta ▁",
    "emoji 👩‍👩‍👧 🇩🇪 ☺️", "e\u0301 u\u0308ber", "ﬁ ｆｕｌｌ ½ ²", "\u200bzero\u200dwidth\u200c", "\ufeffBOM a\ufeff",
    "line\nbreak\r\nand \x85 nel \u2028sep\u2029", "незнакомый 𝔘𝔫 𐍈", "a'b 'c’d ''", "1234567 ٣٤٥",
    "क्षत्रिय कल", "x" * 300,
    "\x00\x01\x7f", "ẞß ŉ ǆ", "한국어 각 \u1100\u1161\u11a8", "נִקּוּד ا\u064bب", "!?!? ... —",
    "$ € <<>> <", "_a_ 10_000 ab12cd",
]  # fmt: skip


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Return a folder in or below which the packages of npm are installed."""
    if find_page_parts(ROOT):
        return ROOT
    folder = tmp_path_factory.mktemp("npm")
    install(folder, *INSTALL.split()[2:])
    return folder


def install(folder, *names):
    """Install packages of npm, or skip."""
    if shutil.which("npm") is None:
        pytest.skip(f"npm is not installed; it gets the packages that run in a page: {INSTALL}")
    line = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), *names]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"npm could not install {' '.join(names)}: {done.stderr.strip()[-300:]}")


@pytest.fixture(scope="module")
def folder(taught_model, save_toy, tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "model"
    return save_toy(path, taught_model(**MODERN), max_new_tokens=12, num_beams=3, suppress_tokens=[0, 1, 3])


@pytest.fixture(scope="module")
def exported(folder, packages):
    output = folder.with_name("graphs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(packages)
        export_onnx(folder, output)
    return output


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(scope="module")
def engine(exported, folder):
    model, tokenizer = load_folder(folder)
    return OnnxEngine(exported / "onnx", model, GreedySettings.of(model), QUANTIZED), tokenizer


STATE = "const said = document.getElementById('state').textContent; return said.endsWith('…') ? null : said"
WRITE = """
const [sources, changes] = arguments, {model} = seqloom, kept = model.settings;
globalThis.done = null;
model.settings = {...kept, ...changes};
(async () => {
  const found = [];
  for (const source of sources) found.push(await model.write(source));
  model.settings = kept;
  globalThis.done = found;
})().catch(error => { globalThis.done = [error.message]; });
"""
SPELL = """
const [json, config, texts, answers] = arguments, {constructor, tokenizer} = seqloom.spelling;
const spelling = new constructor(tokenizer.constructor, JSON.parse(json), JSON.parse(config));
return [texts.map(text => spelling.encode(text)), answers.map(ids => spelling.decode(ids))];
"""


@pytest.fixture
def opened(browser, exported):
    """The page, opened from the disk."""
    browser.open(exported / "index.html")
    assert browser.wait(STATE) == "ready"
    return browser


def test_from_a_disk_it_answers_as_python_does(opened, engine):
    runtime, tokenizer = engine
    expected = tokenizer.batch_decode(runtime.search(tokenizer(SOURCES).input_ids), skip_special_tokens=True)
    opened.run("document.getElementById('source').value = arguments[0]", "\n".join([*SOURCES, "", SOURCES[0]]))
    opened.run("document.getElementById('go').click()")
    assert opened.wait(STATE).split()[1:3] == ["tokens", "in"]
    written = opened.run("return document.getElementById('answer').textContent").split("\n")
    assert written == [*expected, "", expected[0]]
    assert len(set(expected)) > 4
    assert opened.errors() == []


def test_from_a_plain_server_too(browser, exported):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=exported)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.open(f"http://127.0.0.1:{server.server_port}/")
        assert browser.wait(STATE) == "ready"
        server.shutdown()
    browser.run("document.getElementById('source').value = 'abc'; document.getElementById('go').click()")
    assert browser.wait(STATE).startswith(("1 ", "2 ", "3 ", "4 ", "5 ", "6 "))
    assert browser.errors() == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"repetition_penalty": 1.5, "min_new_tokens": 11},
        {"no_repeat_ngram_size": 1, "min_new_tokens": 9},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 12},
        {"max_new_tokens": 1},
    ],
)
def test_settings_do_what_they_do_in_python(changes, opened, engine):
    runtime, tokenizer = engine
    sources = tokenizer(SOURCES).input_ids
    kept, runtime.settings = runtime.settings, replace(runtime.settings, **changes)
    try:
        expected = runtime.search(sources)
    finally:
        runtime.settings = kept
    opened.run(WRITE, sources, changes)
    assert opened.wait("return globalThis.done") == expected


@pytest.mark.parametrize("normalization", ["nfc", "nfkc", "nfd", "none"])
@pytest.mark.parametrize("kind", ["bpe", "unigram", "char", "word"])
def test_messy_text_has_the_ids_that_it_has_in_python(kind, normalization, opened, tmp_path):
    is_joint = normalization != "nfkc"
    own = train_tokenizer(
        TEXT * 20, TEXT[::-1] * 20, kind=kind, vocab_size=600, normalization=normalization, joint=is_joint,
        show_progress=False,
    )  # fmt: skip
    own.save(tmp_path)
    draw = random.Random(1)
    characters = "".join([*TEXT, *MESSY, *map(chr, draw.sample(range(0x20, 0x2FF0), 400))])
    texts = [*MESSY, *("".join(draw.choices(characters, k=draw.randrange(1, 30))) for _ in range(200))]
    ids = own.source(texts).input_ids
    answers = [*ids, *own.target(texts).input_ids]
    files = [(tmp_path / f"{name}.json").read_text() for name in ("tokenizer", "tokenizer_config")]
    found, decoded = opened.run(SPELL, *files, texts, answers)
    assert [text for text, ours, theirs in zip(texts, ids, found, strict=True) if ours != theirs] == []
    expected = own.source.batch_decode(answers, skip_special_tokens=True)
    assert [one for one, other in zip(expected, decoded, strict=True) if one != other] == []


def test_a_line_that_is_too_long_is_an_error(opened):
    opened.run("seqloom.settings.longest_source = 5; document.getElementById('source').value = 'abcdefgh'")
    opened.run("document.getElementById('go').click()")
    assert opened.wait(STATE) == "a line has 9 tokens, and the model reads at most 5; shorten it"


def test_transformers_js_reads_the_folder(exported, engine, tmp_path):
    if shutil.which("node") is None:
        pytest.skip("node is not installed; transformers.js runs in it")
    install(tmp_path, TRANSFORMERS_JS)
    script = (exported / "README.md").read_text().split("```js\n")[1].split("```")[0]
    script = script.replace('"./"', json.dumps(f"{exported.parent}/")).replace("console.log(", "void (")
    script += f"""
    const answers = [];
    for (const text of {json.dumps(SOURCES)}) answers.push((await write(text))[0].generated_text);
    console.log(JSON.stringify(answers));
    """
    Path(tmp_path / "run.mjs").write_text(script)
    done = subprocess.run(["node", "run.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    runtime, tokenizer = engine
    expected = tokenizer.batch_decode(runtime.search(tokenizer(SOURCES).input_ids), skip_special_tokens=True)
    assert json.loads(done.stdout.strip().split("\n")[-1]) == expected
