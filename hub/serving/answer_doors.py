"""An answer in the words of each of OpenAI's routes: whole, and as events."""

from collections.abc import Iterator
from typing import Any

from seqloom.hub.serving.answer_text import Answer
from seqloom.hub.serving.chat_request import CHAT, COMPLETION, RESPONSE


class Door:
    """/v1/chat/completions; what /v1/completions says otherwise stands in `PromptDoor`."""

    kind, object, event = CHAT, "chat.completion", "chat.completion.chunk"

    def whole(self, answer: Answer) -> dict[str, Any]:
        """Return the answer to a request that wants it whole."""
        return self._choice(answer, self.object, self._whole_text(answer.text), is_last=True)

    def first(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """Yield events before any text."""
        yield self._choice(answer, self.event, {"delta": {"role": "assistant", "content": ""}})

    def piece(self, answer: Answer, text: str) -> dict[str, Any]:
        """Return the event of a piece of text."""
        return self._choice(answer, self.event, self._new_text(text))

    def last(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """Yield events after all text."""
        yield self._choice(answer, self.event, self._new_text(""), is_last=True)

    def _whole_text(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def _new_text(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    @staticmethod
    def _choice(answer: Answer, kind: str, said: dict[str, Any], *, is_last: bool = False) -> dict[str, Any]:
        reason = ("length" if answer.is_cut else "stop") if is_last else None
        choices = [{"index": 0, **said, "finish_reason": reason, "logprobs": None}]
        head = {"id": answer.name, "object": kind, "created": answer.created, "model": answer.model}
        return {**head, "choices": choices, **({"usage": usage(answer)} if is_last else {})}


class PromptDoor(Door):
    """/v1/completions."""

    kind, object, event = COMPLETION, "text_completion", "text_completion"

    def first(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """Yield nothing."""
        yield from ()

    def _whole_text(self, text: str) -> dict[str, Any]:
        return {"text": text}

    _new_text = _whole_text


class ResponseDoor(Door):
    """/v1/responses: one response, which holds one item, which holds one part, the text."""

    kind = RESPONSE

    def whole(self, answer: Answer, status: str | None = None) -> dict[str, Any]:
        """Return a response, done or in the making."""
        status, is_open = status or ("incomplete" if answer.is_cut else "completed"), status is not None
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        head = {"id": f"resp_{answer.name}", "object": "response", "created_at": answer.created, "model": answer.model}
        nothing: dict[str, Any] = {
            "error": None,
            "instructions": None,
            "metadata": {},
            "tools": [],
            "tool_choice": "auto",
        }
        return (
            head
            | nothing
            | {
                "status": status,
                "parallel_tool_calls": False,
                "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
                "output": [] if is_open else [_item(answer, status, [_part(answer.text)])],
                "usage": None if is_open else {**usage(answer, "input_tokens", "output_tokens"), **details},
            }
        )

    def first(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """Yield the beginning of the response, of its item and of its part."""
        response, item = self.whole(answer, "in_progress"), _item(answer, "in_progress", [])
        yield {"type": "response.created", "sequence_number": 0, "response": response}
        yield {"type": "response.in_progress", "sequence_number": 1, "response": response}
        yield {"type": "response.output_item.added", "sequence_number": 2, "output_index": 0, "item": item}
        yield _of_part("response.content_part.added", answer, 3, part=_part(""))

    def piece(self, answer: Answer, text: str) -> dict[str, Any]:
        """Return the event of a piece of text."""
        return _of_part("response.output_text.delta", answer, 3 + answer.num_pieces, delta=text, logprobs=[])

    def last(self, answer: Answer) -> Iterator[dict[str, Any]]:
        """Yield the end of the part, of its item and of the response."""
        number, response = 4 + answer.num_pieces, self.whole(answer)
        yield _of_part("response.output_text.done", answer, number, text=answer.text, logprobs=[])
        yield _of_part("response.content_part.done", answer, number + 1, part=_part(answer.text))
        item = {"output_index": 0, "item": response["output"][0]}
        yield {"type": "response.output_item.done", "sequence_number": number + 2, **item}
        yield {"type": f"response.{response['status']}", "sequence_number": number + 3, "response": response}


def usage(answer: Answer, read: str = "prompt_tokens", written: str = "completion_tokens") -> dict[str, int]:
    """Return the counts under the names of a route."""
    prompt_tokens = answer.job.prompt_tokens
    total = prompt_tokens + answer.num_tokens
    return {read: prompt_tokens, written: answer.num_tokens, "total_tokens": total}


def _of_part(kind: str, answer: Answer, number: int, **more: Any) -> dict[str, Any]:
    place = {"item_id": f"msg_{answer.name}", "output_index": 0, "content_index": 0}
    return {"type": kind, "sequence_number": number, **place, **more}


def _item(answer: Answer, status: str, content: list[Any]) -> dict[str, Any]:
    item = {"id": f"msg_{answer.name}", "type": "message", "role": "assistant", "status": status}
    return {**item, "content": content}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


DOORS: dict[str, Door] = {"chat/completions": Door(), "completions": PromptDoor(), "responses": ResponseDoor()}
"""Route below /v1/ -> how it answers."""

__all__ = ["DOORS", "Door"]
