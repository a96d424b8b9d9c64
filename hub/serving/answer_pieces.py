"""The text of tokens as they come, also where their bytes are no text.

transformers' server takes `DecodeStream` of tokenizers, which fails ("Invalid prefix encountered") once a model has
written bytes that are not UTF-8 together, and keeps the end of an answer to itself if that is half a character.
"""

from typing import Any

HALF = "\ufffd"
"""How a tokenizer writes bytes that are no character, or not yet one."""


class AnswerPieces:
    """Cuts an answer into pieces of whole characters; what was given out once is never taken back."""

    def __init__(self, tokenizer: Any) -> None:
        """Take what decodes."""
        self._tokenizer = tokenizer
        self._context: list[int] = []
        """Tokens whose text was given out last; whether a word begins with a blank depends on the one before it."""
        self._open: list[int] = []
        """Tokens since then."""

    def step(self, tokenizer: Any, token: int) -> str | None:
        """Take a token, as `DecodeStream.step` does; return the text that is whole with it, None if nothing is."""
        self._open.append(token)
        text = self._text()
        if not text or text.endswith(HALF):
            return None
        self._context, self._open = self._open, []
        return text

    def rest(self) -> str:
        """Return what is left when no token follows."""
        return self._text()

    def _text(self) -> str:
        before, whole = (
            self._tokenizer.decode(tokens, skip_special_tokens=True)
            for tokens in (self._context, self._context + self._open)
        )
        return str(whole[len(before) :])


__all__ = ["AnswerPieces"]
