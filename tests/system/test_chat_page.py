"""The server's page in a real browser: what is typed is answered as it streams, an error is shown as a sentence."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest
from starlette.responses import HTMLResponse
from starlette.routing import Route

from seqloom.hub.serving.chat_server import PAGE, build_app
from seqloom.hub.serving.serve import HOST, limits_of, listening, load_service, open_socket, read_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium is installed"),
]
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --virtual-time-budget=60000 --window-size=700,520""".split()


@pytest.fixture(scope="module")
def address(tmp_path_factory, taught_model, char_tokenizer):
    """Serve, and beside the page the same page in which somebody types what stands behind ? and presses the button."""
    folder = tmp_path_factory.mktemp("served") / "模型 <b>"
    model = taught_model()
    model.generation_config.update(max_new_tokens=30, do_sample=False)
    model.save_pretrained(folder)
    char_tokenizer("abcdefghijklmnop今天气很ABCDEFGHIJKLMNOP").save_pretrained(folder)
    service = load_service(folder, limits_of(read_config(folder), folder, None))
    typing = "source.value = decodeURIComponent(location.search.slice(1)); form.requestSubmit();</script>"
    typed = PAGE.read_text(encoding="utf-8").replace("</script>", typing)
    app = build_app(service)
    app.router.routes.append(Route("/typed", lambda request: HTMLResponse(typed)))
    with open_socket(HOST, 0) as listener, listening(listener, app):
        yield f"http://{HOST}:{listener.getsockname()[1]}"
    service.close()


def seen(url, tmp_path):
    """Return id -> text of the page when all is done."""
    command = ["chromium", *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", url]
    dom = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", timeout=300).stdout
    return {name: unescape(text) for name, text in re.findall(r'id="(\w+)"[^>]*>([^<]*)<', dom)}


def test_what_is_typed_is_answered(address, tmp_path):
    page = seen(f"{address}/typed?abc", tmp_path)
    assert page["model"] == "模型 <b>"
    assert page["answer"], page
    assert re.fullmatch(r"\d+ tokens, [\d.]+ s.*", page["said"])


def test_an_error_is_shown_as_it_was_written(address, tmp_path):
    assert seen(f"{address}/typed?", tmp_path)["answer"] == "The source text is empty; send a text."


def test_the_page_itself_asks_for_nothing_but_the_models_name(address, tmp_path):
    page = seen(address, tmp_path)
    assert (page["model"], page["answer"], json.dumps(page["send"])) == ("模型 <b>", "", '"Send"')
