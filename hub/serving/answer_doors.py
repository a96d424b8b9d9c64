"""An answer in the words of each of OpenAI's routes: whole, and as events."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from seqloom.hub.serving.chat_request import CHAT, COMPLETION, RESPONSE


@dataclass(frozen=True)
class Answer:
    """What there is to say of an answer, or of its beginning."""

    name: str
    """Of the request."""
    model: str
    created: int
    """Seconds since 1970."""
    text: str
    prompt_tokens: int
    num_tokens: int
    """Tokens that were written, an end of sequence included."""
    is_cut: bool
    """Whether it ended for want of room."""

    @property
    def finish_reason(self) -> str:
        """In OpenAI's words."""
        return "length" if self.is_cut else "stop"

    def usage(self, read: str = "prompt_tokens", written: str = "completion_tokens") -> dict[str, Any]:
        """Return the counts."""
        total = self.prompt_tokens + self.num_tokens
        return {read: self.prompt_tokens, written: self.num_tokens, "total_tokens": total}


class Door:
    """/v1/completions, and what the other routes do alike."""

    kind, object, event = COMPLETION, "text_completion", "text_completion"

    def whole(self, answer: Answer) -> dict[str, Any]:
        """Return the answer to a request that wants it whole."""
        choice = {**self.said(answer.text), "index": 0, "finish_reason": answer.finish_reason, "logprobs": None}
        return {**self._head(answer, self.object), "choices": [choice], "usage": answer.usage()}

    def first(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """Yield events before any text."""
        yield from ()

    def piece(self, answer: Answer, text: str) -> dict[str, Any]:
        """Return the event of a piece of text."""
        return self._chunk(answer, self.added(text))

    def last(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """Yield events after all text."""
        yield {**self._chunk(answer, self.added(""), answer.finish_reason), "usage": answer.usage()}

    def said(self, text: str) -> dict[str, Any]:
        """Return how a choice holds its text."""
        return {"text": text}

    def added(self, text: str) -> dict[str, Any]:
        """Return how a choice holds a piece of text."""
        return {"text": text}

    def _chunk(self, answer: Answer, said: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {**said, "index": 0, "finish_reason": finish_reason, "logprobs": None}
        return {**self._head(answer, self.event), "choices": [choice]}

    def _head(self, answer: Answer, kind: str) -> dict[str, Any]:
        return {"id": answer.name, "object": kind, "created": answer.created, "model": answer.model}


class ChatDoor(Door):
    """/v1/chat/completions."""

    kind, object, event = CHAT, "chat.completion", "chat.completion.chunk"

    def first(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """Yield who speaks."""
        yield self._chunk(answer, {"delta": {"role": "assistant", "content": ""}})

    def said(self, text: str) -> dict[str, Any]:
        """Return a message."""
        return {"message": {"role": "assistant", "content": text}}

    def added(self, text: str) -> dict[str, Any]:
        """Return a part of a message."""
        return {"delta": {"content": text} if text else {}}


class ResponseDoor(Door):
    """/v1/responses."""

    kind, object = RESPONSE, "response"

    def whole(self, answer: Answer, status: str | None = None) -> dict[str, Any]:
        """Return a response, done or in the making."""
        status = status or ("incomplete" if answer.is_cut else "completed")
        return {
            "id": f"resp_{answer.name}",
            "object": "response",
            "created_at": answer.created,
            "model": answer.model,
            "status": status,
            "output": [] if status == "in_progress" else [self._item(answer, status)],
            "usage": None if status == "in_progress" else self._usage(answer),
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "error": None,
            "instructions": None,
            "metadata": {},
            "parallel_tool_calls": False,
            "tool_choice": "auto",
            "tools": [],
        }

    def first(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """Yield the beginning of a response and of its only item."""
        response, item = self.whole(answer, "in_progress"), {**self._item(answer, "in_progress"), "content": []}
        yield {"type": "response.created", "sequence_number": 0, "response": response}
        yield {"type": "response.in_progress", "sequence_number": 1, "response": response}
        yield {"type": "response.output_item.added", "sequence_number": 2, "output_index": 0, "item": item}
        yield self._of_part("response.content_part.added", answer, 3, part=self._part(""))

    def piece(self, answer: Answer, text: str) -> dict[str, Any]:
        """Return the event of a piece of text; tokens count the events, for each gives one at most."""
        return self._of_part("response.output_text.delta", answer, 3 + answer.num_tokens, delta=text, logprobs=[])

    def last(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """Yield the end of the text, of its item and of the response."""
        number, response = 5 + answer.num_tokens, self.whole(answer)
        yield self._of_part("response.output_text.done", answer, number, text=answer.text, logprobs=[])
        yield self._of_part("response.content_part.done", answer, number + 1, part=self._part(answer.text))
        item = {"output_index": 0, "item": response["output"][0]}
        yield {"type": "response.output_item.done", "sequence_number": number + 2, **item}
        yield {"type": f"response.{response['status']}", "sequence_number": number + 3, "response": response}

    def _of_part(self, kind: str, answer: Answer, number: int, **more: Any) -> dict[str, Any]:
        place = {"item_id": f"msg_{answer.name}", "output_index": 0, "content_index": 0}
        return {"type": kind, "sequence_number": number, **place, **more}

    def _item(self, answer: Answer, status: str) -> dict[str, Any]:
        item = {"id": f"msg_{answer.name}", "type": "message", "role": "assistant", "status": status}
        return {**item, "content": [self._part(answer.text)]}

    def _part(self, text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": []}

    def _usage(self, answer: Answer) -> dict[str, Any]:
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        return {**answer.usage("input_tokens", "output_tokens"), **details}


DOORS: dict[str, Door] = {"chat/completions": ChatDoor(), "completions": Door(), "responses": ResponseDoor()}
"""Route below /v1/ -> how it answers."""

__all__ = ["DOORS", "Answer", "Door"]
