"""The walk's page in Chromium, offline: its numbers against the model's, every station in both languages and themes."""

import json
import math

import pytest
import torch

from seqloom.hub.page import walk as walk_module
from seqloom.hub.page import walk_numbers
from seqloom.hub.page.walk import render_walk, walk
from seqloom.hub.page.walk_file import TEMPLATE
from seqloom.training.tokenizer import train_tokenizer
from tests.browser import open_browser
from tests.toy import MODERN

pytestmark = pytest.mark.slow

ODD = "نهر <b>&'\"\u202e"

LOOK = """
const problems = [];
const wide = document.documentElement.scrollWidth;
if (wide > innerWidth) problems.push(`${wide} pixels wide`);
for (const element of document.querySelectorAll("header *, nav *, main *, .walkbar *")) {
  const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
  if (own && parseFloat(getComputedStyle(element).fontSize) < 11) problems.push(`tiny: ${element.textContent}`);
  if (/button|link|img/.test(element.getAttribute("role")) && !element.getAttribute("aria-label")) problems.push(`no name: ${element.outerHTML.slice(0, 80)}`);
}
for (const control of document.querySelectorAll("button, select, input")) {
  if (!(control.innerText || control.getAttribute("aria-label") || control.closest("label"))) problems.push(`no name: ${control.id}`);
}
const text = document.body.innerText;
for (const word of ["undefined", "NaN", "[object", "{"]) if (text.includes(word)) problems.push(word);
return problems;
"""  # noqa: E501 - JavaScript


@pytest.fixture(scope="module")
def tokenizer(shout_tokenizer):
    return shout_tokenizer


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def opened(browser, tokenizer, tmp_path):
    """Return a function that walks through a model, opens the page, and returns the walk."""

    def open_(model, text, names=tokenizer, **options):
        data = walk(model, names, text, name="capitals", **{"max_new_tokens": 9, **options})
        page = tmp_path / "walk.html"
        page.write_text(render_walk(data, TEMPLATE.read_text(encoding="utf-8")), encoding="utf-8")
        browser.resize(1400)
        browser.open(page)
        browser.run("walk.set({zh: false, dark: false, all: false})")
        return data

    return open_


SWITCHES = {
    "paper": {},
    "modern": MODERN,
    "learned": {"position_embedding_type": "learned", "encoder_layers": 1, "encoder_attention_heads": 2},
}


@pytest.mark.parametrize("switches", SWITCHES)
def test_every_station_stands(browser, opened, taught_model, switches):
    opened(taught_model(**SWITCHES[switches]), "bacd", num_beams=3)
    for width, chinese, dark in ((1400, False, False), (360, True, True), (360, False, False)):
        browser.resize(width)
        browser.run("walk.set({zh: arguments[0], dark: arguments[1]})", chinese, dark)
        for index, name in enumerate(browser.run("return walk.stations")):
            for kind in ("encoder_self", "self", "cross"):
                browser.run("walk.set({i: arguments[0], kind: arguments[1], step: 1})", index, kind)
                assert browser.run(LOOK) == [], (name, width, chinese)
    assert [check for check in browser.run("return walk.checks()") if not check["ok"]] == []
    assert browser.errors() == []


@pytest.mark.parametrize("switches", SWITCHES)
def test_the_page_computes_what_the_model_says(browser, opened, taught_model, switches):
    model = taught_model(**SWITCHES[switches])
    data = opened(model, "bacd")
    ids, target = torch.tensor([data["source"]["ids"]]), torch.tensor([data["target"]["ids"]])
    model.set_attn_implementation("eager")
    own = model(ids, decoder_input_ids=target[:, :-1], output_attentions=True, output_hidden_states=True)
    for step, row in enumerate(own.logits[0].detach()):
        for temperature, top_k in ((1.0, 0), (0.5, 0), (2.0, 3)):
            found = browser.run("return walk.distribution(...arguments)", step, temperature, top_k)
            values = (row / temperature).sort(descending=True).values
            expected = values[: top_k or None].softmax(-1)
            torch.testing.assert_close(torch.tensor(found["words"])[: len(expected)], expected, atol=1e-4, rtol=1e-3)
    page = browser.run("return walk.plain(walk.data)")
    for kind, side, attentions in (
        ("encoder_self", "encoder", own.encoder_attentions),
        ("self", "decoder", own.decoder_attentions),
        ("cross", "decoder", own.cross_attentions),
    ):
        for layer, expected in zip(page[side]["layers"], attentions, strict=True):
            torch.testing.assert_close(torch.tensor(layer[kind]["weights"]), expected[0], atol=1e-3, rtol=1e-3)
    added = torch.tensor(page["decoder"]["layers"][0]["stream"][-1]["after"])
    torch.testing.assert_close(added, own.decoder_hidden_states[1][0], atol=5e-3, rtol=5e-3)


def test_each_side_may_have_a_vocabulary_of_its_own(browser, opened, tiny_model):
    tokenizers = train_tokenizer(["abc bca"] * 9, ["ABC xyz"] * 9, kind="char", vocab_size=300, joint=False)
    model = tiny_model(vocab_size=tokenizers.vocab_size, **MODERN)
    data = opened(model, "cab", tokenizers.source, target="xyB", target_tokenizer=tokenizers.target)
    assert (data["source"]["tokens"], data["output"]) == (["c", "a", "b", "</s>"], "xyB")
    assert data["target"]["ids"][1:] == tokenizers.target("xyB")["input_ids"]
    browser.run("walk.set({i: walk.stations.indexOf('next')})")
    written = browser.run("return [...document.querySelectorAll('main tr td:nth-child(4)')].map(x => x.textContent)")
    assert written == ["x", "y", "B", "</s>"]
    browser.run("walk.set({all: true})")
    text = browser.run("return document.body.innerText")
    assert "Source and target have vocabularies of their own" in text
    assert not [mark for mark in ("<source>", "<target>") if mark in text]
    assert [check for check in browser.run("return walk.checks()") if not check["ok"]] == []
    assert browser.errors() == []


def test_what_is_shown_in_part_is_said(browser, opened, taught_model, monkeypatch):
    monkeypatch.setattr(walk_numbers, "MOST_TOKENS", 3)
    monkeypatch.setattr(walk_module, "MOST_TOKENS", 3)
    opened(taught_model(), "abcdef")
    browser.run("walk.set({i: walk.stations.indexOf('tokens')})")
    text = browser.run("return document.querySelector('main').innerText")
    assert "Shown are the first 3 of 7 tokens; the model reads all of them." in text
    assert "</s> marks the end." in text
    browser.run("walk.set({i: walk.stations.indexOf('attention')})")
    assert "on tokens that are not shown" in browser.run("return document.querySelector('main').innerText")
    checks = browser.run("return walk.checks()")
    assert not [check for check in checks if check["ok"] is False]
    assert [check["key"] for check in checks if check["ok"] is None] == ["c_score"]


def test_on_one_page_and_on_paper_everything_is_there_once(browser, opened, taught_model):
    opened(taught_model(), "bacd")
    browser.run("walk.set({dark: true}); dispatchEvent(new Event('beforeprint'))")
    assert browser.run("return [document.querySelectorAll('main h2').length, walk.stations.length]") == [17, 17]
    assert browser.run("return document.documentElement.dataset.theme") == "light"
    twice = "return [...document.querySelectorAll('[id]')].map(x => x.id).filter((id, n, all) => all.indexOf(id) !== n)"
    assert browser.run(twice) == []
    browser.run("document.getElementById('ffn-layer').focus(); walk.set({layer: 1})")
    assert browser.run("return document.activeElement.id") == "ffn-layer", "the keyboard stays where it was"
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run("return [walk.state.all, walk.state.dark]") == [False, True]


def test_a_click_spells_out_the_sum(browser, opened, taught_model):
    model = taught_model()
    data = opened(model, "bacd")
    browser.run("walk.set({i: walk.stations.indexOf('attention'), kind: 'encoder_self', layer: 1, head: 2, token: 3})")
    browser.run("document.querySelectorAll('main td button')[0].click()")
    said = browser.run("return document.querySelector('main output.sum').textContent").replace("−", "-")
    terms, _, result = said.rpartition(" = ")
    products = [math.prod(float(x.strip("() ")) for x in term.split("×")) for term in terms.split(" + ")]
    assert len(products) == model.config.d_model // model.config.encoder_attention_heads
    assert sum(products) == pytest.approx(float(result), abs=0.05)
    with torch.inference_mode():
        layer = model.model.encoder.layers[1].self_attn
        states = model.model.encoder(torch.tensor([data["source"]["ids"]]), output_hidden_states=True).hidden_states[1]
        query, key = (layer.split_heads(part(states))[0, 2] for part in (layer.q_proj, layer.k_proj))
    assert float(result) == pytest.approx(float(query[3] @ key[0]), rel=0.02, abs=0.02)


def test_keys_slider_and_links(browser, opened, taught_model):
    opened(taught_model(), "bacd")
    press = "document.body.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))"
    browser.run(press, "ArrowRight")
    browser.run(press, "]")
    assert browser.run("return [walk.state.i, walk.state.step, location.hash]") == [1, 1, "#tokens"]
    browser.run("walk.set({i: walk.stations.indexOf('cross')})")
    browser.run(
        "document.getElementById('link_cross').dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight'}))"
    )
    lit = "return [...document.querySelectorAll('#link_encoder_self rect[visibility=visible]')].length"
    assert browser.run(lit) == 1, "the same word lights up in the encoder"
    before = browser.run(
        "walk.set({i: walk.stations.indexOf('align')}); return document.querySelector('main svg').outerHTML"
    )
    browser.run("document.getElementById('naive').click()")
    assert browser.run("return document.querySelector('main svg').outerHTML") != before
    browser.run("document.querySelectorAll('nav .block')[4].dispatchEvent(new MouseEvent('click', {bubbles: true}))")
    assert browser.run("return walk.state.i") != browser.run("return walk.stations.indexOf('align')")


def test_figures_and_numbers_can_be_taken_along(browser, opened, taught_model):
    """What the buttons save, caught before it becomes a download."""
    opened(taught_model(), "bacd")
    browser.run("window.saved = []; URL.createObjectURL = blob => { saved.push(blob); return '#'; };")
    browser.run(
        "walk.set({i: walk.stations.indexOf('mask')}); document.querySelectorAll('.dl button').forEach(b => b.click())"
    )
    browser.run("document.getElementById('json').click()")
    browser.wait("return saved.length === 3")
    kinds = browser.run("return saved.map(blob => [blob.type, blob.size])")
    assert sorted(kind for kind, _ in kinds) == ["application/json", "image/png", "image/svg+xml"]
    assert all(size > 1000 for _, size in kinds)
    browser.run("Promise.all(saved.map(blob => blob.text())).then(texts => { window.texts = texts; })")
    texts = browser.wait("return window.texts")
    (found,) = (json.loads(text) for text in texts if text.startswith('{"model"'))
    assert abs(sum(found["encoder"]["layers"][0]["encoder_self"]["weights"][0][0]) - 1) < 1e-3
    assert browser.errors() == []


def test_a_table_is_taken_along_as_a_picture_of_its_texts_and_bars(browser, opened, taught_model):
    opened(taught_model(), "bacd")
    browser.run("window.saved = []; URL.createObjectURL = blob => { saved.push(blob); return '#'; };")
    for name in ("attention", "ffn", "head", "next", "why", "checks"):
        browser.run("saved.length = 0; walk.set({i: walk.stations.indexOf(arguments[0])})", name)
        assert browser.run("return [...document.querySelectorAll('table')].every(x => x.closest('figure .scroll'))")
        browser.run("document.querySelector('figure:has(table) .dl button').click()")
        browser.run("window.taken = null; saved[0].text().then(text => { taken = text; })")
        browser.wait("return window.taken")
        drawn = browser.run(
            "const picture = new DOMParser().parseFromString(taken, 'image/svg+xml');"
            "const all = x => [...picture.querySelectorAll(x)];"
            "return [all('text').map(x => x.textContent).join(''), all('rect[rx]').length, all('line').length]"
        )
        shown = browser.run(
            "const table = document.querySelector('table');"
            "return [table.textContent, table.querySelectorAll('.bar').length, table.rows.length]"
        )
        assert [drawn[0].replace(" ", ""), *drawn[1:]] == [shown[0].replace(" ", ""), *shown[1:]], name
    assert browser.errors() == []


def test_arrow_keys_stay_in_a_picture(browser, opened, taught_model):
    """Tab enters at one button, arrow keys go to its neighbours and leave the station alone, Enter presses."""
    opened(taught_model(), "bacd")
    press = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))"
    for name in ("heads", "residual", "beams", "lens"):
        browser.run("walk.set({i: walk.stations.indexOf(arguments[0]), layer: 0, head: 1, sub: 0, step: 0})", name)
        index = browser.run("return walk.state.i")
        entries = "return document.querySelectorAll('main svg [role=button][tabindex=\"0\"]').length"
        assert browser.run(entries) == 1, name
        browser.run("document.querySelector('main svg [role=button][tabindex=\"0\"]').focus()")
        before = browser.run("return document.activeElement.getAttribute('aria-label')")
        browser.run(press, "ArrowRight")
        assert browser.run("return document.activeElement.getAttribute('aria-label')") != before, name
        assert browser.run("return walk.state.i") == index, name
    browser.run("walk.set({i: walk.stations.indexOf('heads')})")
    browser.run("document.querySelector('main svg [data-at]').focus()")
    browser.run(press, "ArrowDown")
    assert browser.run("return document.activeElement.getAttribute('aria-label')") == "Layer 2, Head 2"
    browser.run(press, "Enter")
    assert browser.run("return [walk.state.layer, walk.state.head, walk.stations[walk.state.i]]") == [1, 1, "attention"]


def test_an_output_that_is_empty_or_did_not_end_is_said_at_once(browser, opened, taught_model, tokenizer):
    read = "return document.querySelector('main').innerText"
    opened(taught_model(), "bacd", max_new_tokens=2)
    assert "It did not end by itself" in browser.run(read)
    opened(taught_model(), "bacd", target="A", suppress_tokens=[tokenizer.eos_token_id], max_new_tokens=60)
    browser.resize(360)
    browser.run("walk.set({i: walk.stations.indexOf('why')})")
    assert browser.run(LOOK) == [], "a long output without a blank is broken into lines"
    data = opened(taught_model(), "bacd", suppress_tokens=[id_ for id_ in range(40) if id_ != tokenizer.eos_token_id])
    assert data["output"] == ""
    assert "It wrote nothing: it chose the end, </s>, before any word." in browser.run(read)


def test_odd_texts_are_texts(browser, opened, taught_model):
    opened(taught_model(), f"ab {ODD}")
    browser.run("walk.set({all: true})")
    assert browser.run("return document.querySelectorAll('main b, main script, main img').length") == browser.run(
        "return document.querySelectorAll('main .shapes b, main .sum b, main output b, main label b').length"
    )
    assert "\u202e" not in browser.run("return document.body.innerText")
    assert browser.run("return document.querySelector('main .text').textContent").startswith("ab نهر <b>&'\"⟨U+202E⟩")
    assert browser.errors() == []
