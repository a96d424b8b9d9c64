"""A lesson takes out what it says and nothing else, and the page shows what came of it."""

import json
import re

import pytest
import torch

from seqloom.training.lessons import lesson
from seqloom.training.lessons.lesson import LESSONS, give_lesson, without_positions, without_residuals
from seqloom_cli import verbs
from tests.browser import open_browser
from tests.toy import MODERN, toy_pairs


@pytest.fixture
def small(monkeypatch):
    """Lessons on a handful of dates."""
    monkeypatch.setattr(lesson, "NUM_TRAIN", 300)
    monkeypatch.setattr(lesson, "NUM_VALIDATION", 4)


def page_data(page):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"))
    return json.loads(text)


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_without_residuals_a_layer_hands_on_what_it_found(tiny_model, norm_position):
    model = tiny_model(norm_position=norm_position)
    without_residuals(model)
    layer, states = model.model.encoder.layers[0], torch.randn(2, 5, 16)

    def sublayer(norm, states, compute):
        return compute(norm(states)) if norm_position == "pre" else norm(compute(states))

    attended = sublayer(layer.self_attn_layer_norm, states, lambda x: layer.self_attn(x)[0])
    torch.testing.assert_close(layer(states), sublayer(layer.final_layer_norm, attended, layer.feed_forward))


def test_without_positions_the_order_is_lost(tiny_model):
    model, (source, *_) = tiny_model(**MODERN), toy_pairs(4)
    source = source[:1, :4]
    mask = torch.ones_like(source)
    turned = model.model.encoder(source.flip(1), mask).last_hidden_state.flip(1)
    assert not torch.allclose(model.model.encoder(source, mask).last_hidden_state, turned, atol=1e-2)
    without_positions(model)
    turned = model.model.encoder(source.flip(1), mask).last_hidden_state.flip(1)
    torch.testing.assert_close(model.model.encoder(source, mask).last_hidden_state, turned, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", LESSONS)
def test_the_command(name, small, tmp_path, monkeypatch, capsys):
    page, draws = tmp_path / "page.html", name == "residual"
    monkeypatch.setattr(lesson, "can_draw", lambda: draws)
    assert verbs.main(["lesson", name, "--updates", "3", "-o", str(page)]) == 0
    said = capsys.readouterr().out
    about = LESSONS[name]
    assert f"{about.with_it[0]}: {about.rule[0]}\nupdate      1  " in said
    if draws:
        assert f"{page} and {tmp_path / 'page.png'}: open the page in a browser" in said
        assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert f"{page}: open it in a browser" in said
        assert said.endswith("A picture beside it: pip install 'seqloom[plots]'.\n")
        assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    data = page_data(page)
    whole, lacking = data["outcomes"]
    for outcome in (whole, lacking):
        assert [row["update"] for row in outcome["rows"] if "loss" in row] == [1, 2, 3]
        assert len(outcome["outputs"]) == len(about.examples)
    assert [row["learning_rate"] for row in whole["rows"] if "loss" in row] == [
        row["learning_rate"] for row in lacking["rows"] if "loss" in row
    ]
    assert whole["rows"][0]["padding"] == lacking["rows"][0]["padding"], "the same updates"
    assert whole["rows"][0]["loss"] != lacking["rows"][0]["loss"]
    assert "://" not in page.read_text("utf-8").replace("http://www.w3.org/2000/svg", ""), "it loads nothing"


def test_wrong_calls(tmp_path, capsys):
    (tmp_path / "folder.png").mkdir()
    for arguments, said in (
        (["residuals"], "lesson='residuals' is unknown; did you mean residual? use one of residual, positions."),
        (["residual", "-o", str(tmp_path / "no" / "x.html")], "no does not exist; create it."),
        (["residual", "-o", str(tmp_path)], f"{tmp_path} is no place for a file; name another."),
        (["residual", "-o", str(tmp_path / "folder.html")], "folder.png is no place for a file; name another."),
    ):
        assert verbs.main(["lesson", *arguments]) == 1
        assert said in capsys.readouterr().err
    assert verbs.main(["lesson", "--help"]) == 0
    assert f"{' or '.join(LESSONS)}: the part that is taken away" in capsys.readouterr().out


@pytest.mark.slow
def test_the_gradient_vanishes_and_the_page_shows_it(tmp_path):
    whole, lacking = give_lesson("residual", tmp_path / "page.html", num_updates=200)
    assert whole.losses[-1][1] < 0.8 < 1.8 < lacking.losses[-1][1]
    assert whole.ratio("decoder") > 0.1
    assert lacking.ratio("decoder") < 1e-6
    assert whole.ratio("encoder") > 0.1 < lacking.ratio("encoder"), "the norms keep the size there"
    with open_browser(tmp_path) as browser:
        for width, chinese in ((1200, False), (360, True)):
            browser.resize(width)
            browser.open(tmp_path / "page.html")
            browser.run("zh = arguments[0]; draw()", chinese)
            assert browser.run("return document.documentElement.scrollWidth") <= width
            text = browser.run("return document.body.innerText")
            assert ("无残差" in text) == chinese
            assert not [word for word in ("undefined", "NaN", "{") if word in text]
            assert browser.run("return document.querySelectorAll('figure svg').length") == 6
        shown = "return [...document.querySelectorAll('figure.ladder text')].map(text => text.textContent)"
        before = browser.run(shown)
        browser.run("const slider = document.querySelector('input'); slider.value = 5; slider.oninput?.();")
        browser.run("document.querySelector('input').dispatchEvent(new Event('input'))")
        assert browser.run(shown) != before
        assert browser.errors() == []


@pytest.mark.slow
def test_without_positions_a_date_and_its_mirror_image_get_one_answer(tmp_path):
    whole, lacking = give_lesson("positions", tmp_path / "page.html", num_updates=200)
    assert lacking.outputs[::2] == lacking.outputs[1::2] != whole.outputs[1::2]
    assert whole.outputs[::2] != whole.outputs[1::2]
    assert whole.losses[-1][1] < lacking.losses[-1][1]
