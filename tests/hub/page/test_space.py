"""The Space: a folder that works without Seqloom, and a page that says what the model says."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from seqloom.hub.bundle import ALLOWED_PACKAGES
from seqloom.hub.page.space import GRADIO_VERSION, write_space
from seqloom_cli import verbs
from seqloom_cli.command import visible
from tests.browser import open_browser
from tests.test_package import imports_of

SPACE_KEYS = {"title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "app_file", "pinned", "tags"}
PAGE_CODE = ["app.py", "explain.py", "walk.py", "walk_numbers.py", "walk_search.py", "word_alignment.py"]
PAGE_FILES = ["README.md", *PAGE_CODE[:2], "requirements.txt", "walk.html", *PAGE_CODE[2:]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_toy):
    return save_toy(tmp_path_factory.mktemp("space") / "capitals", max_new_tokens=9)


def head_of(readme):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", readme, re.DOTALL)[1])


def test_the_folder_has_all_that_a_space_needs(folder, tmp_path, capsys):
    assert verbs.main(["space", str(folder), "-o", str(tmp_path / "page")]) == 0
    page = tmp_path / "page"
    top = {path.name for path in page.iterdir()}
    assert top == {*PAGE_FILES, "model"}
    assert (page / "model" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (page / "model" / "README.md").is_file()
    head = head_of((page / "README.md").read_text())
    assert (head["sdk"], head["sdk_version"], head["app_file"]) == ("gradio", GRADIO_VERSION, "app.py")
    assert head["title"] == "capitals"
    assert "models" not in head
    assert {re.split(r"[<>=]", line)[0] for line in (page / "requirements.txt").read_text().split()} == {
        "gradio",
        "torch",
        "transformers",
    }
    said = capsys.readouterr().out
    assert f"pip install -r {page}/requirements.txt && python {page}/app.py" in said
    assert f"hf upload OWNER/NAME {page} . --repo-type space" in said


def test_it_imports_nothing_of_seqloom(folder, tmp_path):
    write_space(folder, tmp_path / "page")
    for name in PAGE_CODE:
        packages = {module.split(".")[0] for module, _, _ in imports_of(tmp_path / "page" / name)}
        assert packages <= ALLOWED_PACKAGES | {"gradio", *(name.removesuffix(".py") for name in PAGE_CODE)}


def test_a_model_on_the_hub_is_named_and_not_copied(folder, tmp_path):
    files = write_space(folder, tmp_path / "page", repo="alice/capitals")
    assert files == PAGE_FILES
    assert 'MODEL = "alice/capitals"' in (tmp_path / "page" / "app.py").read_text()
    assert head_of((tmp_path / "page" / "README.md").read_text())["models"] == ["alice/capitals"]


def test_wrong_calls(folder, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for arguments, text in (
        (
            [str(folder), "-o", str(tmp_path / "full")],
            "full holds something already; name a folder that does not exist",
        ),
        ([str(tmp_path / "nowhere"), "-o", str(tmp_path / "page")], "nowhere holds no config.json; name the folder"),
        ([str(folder), "-o", str(tmp_path / "page"), "--repo", "a b"], "'a b' is not the name of a repository"),
    ):
        assert verbs.main(["space", *arguments]) == 1
        assert text in capsys.readouterr().err
    assert not (tmp_path / "page").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]


EVIL = "x\nsdk: docker\napp_file: evil.py\n---\n# <script>alert(1)</script> [a](http://evil) ![b](c) `d` | e ```"
EVIL += "\x1b[1A\u202e"


def with_records(folder: Path, **training: object) -> None:
    (folder / "run").mkdir(exist_ok=True)
    recipe = {"data": {"task": "pairs", "train": ["a"], "languages": ["de", EVIL]}, "training": training}
    (folder / "run" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    rows = {"name": EVIL, "files": [{"path": EVIL, "num_bytes": 9, "sha256": EVIL}], "num_rows": 9}
    (folder / "run" / "data.json").write_text(json.dumps({"train": rows, "test": rows | {"files": []}}))
    (folder / "run" / "results.json").write_text(json.dumps({"test_bleu": 1.0, "bleu_signature": EVIL}))
    packages = {"device": EVIL, "system": EVIL, "packages": {"seqloom": EVIL}}
    (folder / "run" / "environment.json").write_text(json.dumps(packages))


def test_what_records_say_is_quoted_for_where_it_goes(folder, tmp_path):
    evil = shutil.copytree(folder, tmp_path / "a`b`<i>[c](d)")
    with_records(evil, license=EVIL, seed=EVIL, hub_model_id=f"a/{EVIL}", tokenizer=EVIL)
    write_space(evil, tmp_path / "page")
    head = head_of((tmp_path / "page" / "README.md").read_text())
    assert (head["sdk"], head["app_file"], set(head)) == ("gradio", "app.py", SPACE_KEYS | {"license"})
    for readme in (tmp_path / "page" / "README.md", tmp_path / "page" / "model" / "README.md"):
        text = readme.read_text()
        assert visible(text) == text
        head_of(text)
        body = re.sub(r"\\[^\w\s]|(`+)(?!`).*?(?<!`)\1(?!`)", "", text.split("\n---\n", 1)[1], flags=re.DOTALL)
        body = re.sub(r"<!-- Written by Seqloom .*-->\n\Z", "", body)
        assert "evil.py" in body or readme.parent.name == "page"
        assert not re.findall(r"[<\[`]|https?://", body), "without what is escaped, and without code"
    compile((tmp_path / "page" / "app.py").read_text(), "app.py", "exec")


def test_records_that_are_none_are_refused_with_what_helps(folder, tmp_path, capsys):
    mine = shutil.copytree(folder, tmp_path / "mine")
    lines = "".join(f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi"))
    bomb = f"a: &a [x, x]\n{lines}"
    for text in (bomb, "- 1\n", "a: [", "data: {train: 1, languages: 5}\n", "[" * 20_000):
        (mine / "run").mkdir(exist_ok=True)
        (mine / "run" / "recipe.yaml").write_text(text)
        assert verbs.main(["space", str(mine), "-o", str(tmp_path / "page")]) == 1
        said = capsys.readouterr().err
        assert "is not as Seqloom writes it (" in said, text
        assert said.endswith("get the folder anew, or delete these.\n")
        shutil.rmtree(mine / "run")  # delete these
        assert verbs.main(["space", str(mine), "-o", str(tmp_path / "page")]) == 0
        shutil.rmtree(tmp_path / "page")
        capsys.readouterr()


def test_changed_code_makes_no_space(folder, tmp_path, capsys):
    mine = shutil.copytree(folder, tmp_path / "mine")
    (mine / "modeling_seqloom.py").write_text("import os\n")
    (mine / "seqloom_manifest.json").unlink()  # the manifest is no proof: whoever changes code changes it, too
    assert verbs.main(["space", str(mine), "-o", str(tmp_path / "page")]) == 1
    assert "modeling_seqloom.py: SHA-256 " in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize("name", ["a b", "a'b", "$(touch trace)", "a;b", "a\nb\x1b[1A", "-rf"])
def test_the_lines_to_paste_work_in_a_shell(folder, tmp_path, capsys, name):
    output = tmp_path / name
    assert verbs.main(["space", str(folder), "-o", str(output)]) == 0
    (command,) = re.findall(r"python (.*app\.py\S*)$", capsys.readouterr().out, re.MULTILINE)
    run = subprocess.run(["bash", "-c", f"ls {command}"], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert {path.name for path in tmp_path.iterdir()} == {name}


def test_examples_come_from_the_test_set(folder, tmp_path, capsys):
    mine = shutil.copytree(folder, tmp_path / "mine")
    with_records(mine)
    rows = ["abc", "abc", "", "x" * 999, "dab", "<b>", "d", "e", "f", "g"]
    text = "".join(json.dumps({"source": row, "target": "", "output": ""}) + "\n" for row in rows)
    (mine / "run" / "test_outputs.jsonl").write_text(text)
    assert verbs.main(["space", str(mine), "-o", str(tmp_path / "page")]) == 0
    assert json.loads((tmp_path / "page" / "examples.json").read_text()) == ["abc", "dab", "<b>", "d", "e"]
    assert "quotes sources of the test set; delete it if they are private" in capsys.readouterr().out
    for index, broken in enumerate(("[1]\n", "{}\n", "\x00", "[" * 20_000)):
        (mine / "run" / "test_outputs.jsonl").write_text(broken)
        assert "examples.json" not in write_space(mine, tmp_path / f"page{index}")


ASK = """
import sys
from unittest.mock import MagicMock
sys.modules["gradio"] = MagicMock()  # the page's widgets; what it answers is computed for real
sys.path.insert(0, sys.argv[1])
import app
output, frame = app.answer("abc")
assert app.answer("  ") == ("", "")
assert "seqloom" not in sys.modules
print(output, frame.count("<iframe"), frame.count("<"))
"""


@pytest.mark.slow
def test_the_page_answers_as_the_model_does(folder, tmp_path):
    write_space(folder, tmp_path / "page")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", ASK, str(tmp_path / "page")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = AutoModelForSeq2SeqLM.from_pretrained(folder).generate(**tokenizer(["abc"], return_tensors="pt"))[0]
    assert run.stdout.split() == [tokenizer.decode(ids, skip_special_tokens=True), "1", "2"]


IN_FRAME = "const inside = document.querySelector('iframe')?.contentWindow; "


@pytest.mark.slow
def test_somebody_clicks_through_the_page(folder, tmp_path):
    """On real Gradio, in Chromium: an example, the button, the output, and the walk in its frame."""
    pytest.importorskip("gradio", reason="gradio is needed where the page runs, and is no dependency of Seqloom")
    mine = shutil.copytree(folder, tmp_path / "mine")
    with_records(mine)
    (mine / "run" / "test_outputs.jsonl").write_text('{"source": "bacd", "target": "", "output": ""}\n')
    write_space(mine, tmp_path / "page")
    port = _free_port()
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    environment |= {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "PYTHONUNBUFFERED": "1"}
    environment |= {"GRADIO_ANALYTICS_ENABLED": "False"}
    log = tmp_path / "log"
    with open_browser(tmp_path) as browser, log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "app.py"], cwd=tmp_path / "page", env=environment, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            _wait_for(port, server, log)
            browser.open(f"http://127.0.0.1:{port}")
            _click_through(browser)
        finally:
            server.terminate()
            server.wait(timeout=30)


def _click_through(browser):
    find = "return [...document.querySelectorAll('button, td, .gallery-item')].find(x => x.innerText.trim() === %r)"
    for name in ("bacd", "Write"):
        browser.wait(find % name)
        browser.run(f"{find[7:] % name}.click()")
        if name == "bacd":
            browser.wait("return document.querySelector('textarea').value === 'bacd'")
    browser.wait(f"{IN_FRAME} return inside?.walk && inside.walk.data.text === 'bacd'", 120)
    output = browser.run("return document.querySelectorAll('textarea')[1].value")
    assert output.isupper()
    assert browser.run(f"{IN_FRAME} return inside.walk.data.output") == output
    assert all(check["ok"] for check in browser.run(f"{IN_FRAME} return inside.walk.checks()"))
    browser.run(f"{IN_FRAME} inside.document.getElementById('next').click()")
    assert browser.run(f"{IN_FRAME} return inside.document.querySelector('h2').textContent") == "Words become numbers"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(2400):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert server.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())
