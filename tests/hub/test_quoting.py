"""Texts of others, quoted for where they go, and read back by what reads there."""

import re
import subprocess

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seqloom.hub.quoting import code, fenced, markdown, python_string, shell, shown, yaml_head

ODD = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40)


@given(ODD)
def test_a_shown_text_is_one_line_that_moves_no_cursor(text):
    assert not set(shown(text)) & set("\n\r\x1b\x07\x7f\u202e\u2028\u0085")


def test_a_long_text_shows_its_ends():
    assert shown("a" * 600 + "b" * 600) == "a" * 500 + " [...] " + "b" * 500


@settings(max_examples=20, deadline=None)
@given(ODD)
@example("\r\n")
def test_the_shell_reads_what_was_meant(text):
    text = "".join(character for character in text if ord(character) < 128)
    run = subprocess.run(["bash", "-c", f"printf %s {shell(text)}"], capture_output=True)
    assert (run.returncode, run.stdout) == (0, text.encode()), run.stderr


@given(ODD)
@example("\x85")
def test_yaml_reads_what_was_meant_and_no_other_key(text):
    head = yaml_head({"license": text, "sdk": "gradio", "none": None})
    assert yaml.safe_load(head) == {"license": text, "sdk": "gradio"}
    assert "\n---" not in head


@given(ODD)
def test_python_reads_what_was_meant(text):
    assert eval(python_string(text)) == text


@pytest.mark.parametrize("text", ["", "a", "`", "``", "a`b``c```", "```\nend"])
def test_a_fence_is_longer_than_what_it_holds(text):
    fence, *_, last = fenced(text, "python").rstrip("\n").split("\n")
    assert fence == f"{last}python"
    assert last not in text
    ticks, inside, again = re.fullmatch(r"(`+) ?(.*?) ?(`+)", code(text)).groups()
    assert ticks == again
    assert ticks not in inside
    assert inside == text.replace("\n", "\\n")


def test_markdown_shows_what_it_is_given():
    assert markdown("<b>[a](c)</b> | *x* `y` snake_case _z_ http://a.b @me") == (
        "\\<b\\>\\[a\\](c)\\</b\\> \\| \\*x\\* \\`y\\` snake_case \\_z\\_ http\\://a.b \\@me"
    )
    assert markdown(markdown("*")) == "\\*"
