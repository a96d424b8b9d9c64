"""Asks a model by every way ("door") through which people use its folder, and compares the answers.

    canary      forced passes, greedy search and beams, compared with the canary's file in the folder
    tokenizer   compared with tokenizer.json read by the tokenizers library alone
    seq2seq     compared with forced passes; what it answers, with the folder's own search, all doors below must answer
    AutoModel, causal LM, pipelines (one text, a batch, a chat), server

The installed classes run, never the folder's own code, which `verify_folder` compares with theirs. Weights of fewer
than 32 bits are widened to 32, because in fewer bits equal models may give different answers by rounding; only the
canary takes them as they are.
"""

import json
import logging
import os
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    pipeline,
)

from seqloom.hub.files import SEAL_NAME
from seqloom.hub.loading import answer_length, no_loading_bar
from seqloom.hub.pipeline_seqloom import PIPELINES
from seqloom.hub.quoting import shell, shown
from seqloom.hub.serving import serve
from seqloom.hub.verify import check_folder
from seqloom.modeling import canary
from seqloom.modeling.library import REMEDY, describe_running, running_library

MOST_TOKENS = 32
"""The longest answer that a door is asked for."""

SERVER_SECONDS = 120.0
"""How long the server may take to answer."""

LOADING: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
"""How every door but the canary's loads the model."""


class NotOpenedError(Exception):
    """A door cannot be tried here, for a reason that says nothing against the folder."""


@dataclass(frozen=True)
class Door:
    """One line of the table."""

    name: str
    asked: str
    """What was asked of it."""
    verdict: str
    """ "ok", "FAILED" or "not run"."""
    reason: str = ""
    """What is wrong, or why it was not run."""
    seconds: float = 0.0

    @property
    def is_wrong(self) -> bool:
        """Whether it answered, and not rightly."""
        return self.verdict == "FAILED"

    def __str__(self) -> str:
        seconds = f"{self.seconds:.1f} s" if self.verdict != "not run" else ""
        why = f": {self.reason}" if self.reason else ""
        return shown(f"{self.verdict:<8}  {self.name:<20}  {seconds:>7}  {self.asked}{why}")


@dataclass(frozen=True)
class Measure:
    """What the doors are asked, and what they have to answer."""

    folder: str
    model: Any
    """What the seq2seq door loads, in 32 bits."""
    tokenizer: Any | None
    sources: Sequence[Sequence[int]]
    """Ids, the end of sequence included."""
    texts: Sequence[str]
    """The same as texts; none where there is no tokenizer."""
    options: dict[str, Any]
    """What `generate` is told at every door, beyond the folder's settings."""

    @cached_property
    def answers(self) -> list[list[int]]:
        """The answer to each source, as ids."""
        return [self.answer(source) for source in self.sources]

    def answer(self, source: Sequence[int]) -> list[int]:
        """Return what `generate` writes for one source alone, up to the end of sequence."""
        ids = torch.tensor([list(source)], device=self.model.device)
        return canary.up_to_end(
            self.model.generate(ids, **self.options)[0, 1:].tolist(), canary.ends_of(self.model.config)
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Return ids as text, without special tokens."""
        assert self.tokenizer is not None, "only doors that take text decode"
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def try_doors(folder: str | os.PathLike[str]) -> Iterator[Door]:
    """Try one door of a folder after the other, and yield what each says as soon as it is known.

    Raises:
        FolderError: if the folder is dangerous to open; nothing of it is loaded then.
    """
    check_folder(folder)
    path = os.fspath(folder)
    with _quietly():
        yield _try("canary", "forced passes, greedy search and beams", lambda: _hear_canary(path))
        try:
            measure = take_measure(path)
        except Exception as error:
            yield Door("seq2seq", "to be loaded", "FAILED", _words(error))
            return
        for name, asked, ask in _doors(measure):
            yield _try(name, asked, partial(ask, measure))


def describe_doors(folder: str | os.PathLike[str], doors: Sequence[Door]) -> str:
    """Return the verdict over all doors of a folder in one sentence."""
    wrong = [door.name for door in doors if door.is_wrong]
    if wrong:
        number = f"{len(wrong)} doors do" if wrong[1:] else "1 door does"
        return f"{shown(folder)}: {number} not answer rightly under {describe_running()}: {', '.join(wrong)}. {REMEDY}"
    return f"{shown(folder)}: every door that was opened answers rightly under {describe_running()}."


def note_library(folder: str | os.PathLike[str]) -> str:
    """Write into the canary of a folder whose doors all answered rightly that the running library is tested.

    Readers who have this library then check nothing.

    Returns:
        What was done, in a sentence.
    """
    path = Path(folder) / canary.CANARY_NAME
    if not path.is_file():
        return f"It has no canary; seqloom upgrade {shell(folder)} gives it one."
    heard = canary.read_canary(path)
    if running_library() in heard.tested or heard.not_checked:
        return f"{canary.CANARY_NAME} is as it was."
    if (Path(folder) / SEAL_NAME).is_file():
        return f"{canary.CANARY_NAME} is as it was: a running checkpoint is sealed."
    heard.tested.append(running_library())
    try:
        canary.save_canary(heard, folder)
    except OSError as error:
        return f"{canary.CANARY_NAME} could not be written ({error.strerror}), so readers go on checking."
    return f"{canary.CANARY_NAME} names this library now, so readers who have it check nothing."


# The measure ----------------------------------------------------------------------------------------------------------


def take_measure(folder: str) -> Measure:
    """Load the seq2seq door and make up what is asked: the canary's sources, as text where there is a tokenizer."""
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, **LOADING).eval()
    has_tokenizer = (Path(folder) / "tokenizer.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False) if has_tokenizer else None
    sources, texts = canary.sources_of(model), []
    if tokenizer is not None and (texts := _texts_of(sources, tokenizer)):
        sources = [list(ids) for ids in tokenizer(texts).input_ids]
    own = model.generation_config
    most = max(canary.steps_of(model.config), min(answer_length(own), MOST_TOKENS))
    options = {"num_beams": own.num_beams or 1, "do_sample": False, "max_new_tokens": most}
    return Measure(folder, model, tokenizer, sources, texts, options)


def _texts_of(sources: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the sources as texts. Made-up ids may become a text that the tokenizer cuts into other ids."""
    said = [tokenizer.decode(list(ids), skip_special_tokens=True).strip() for ids in sources]
    return [text for text in dict.fromkeys(said) if text]


# The doors ------------------------------------------------------------------------------------------------------------

Ask = Callable[[Measure], str | None]
"""Tries a door; returns what is wrong with its answer, None if nothing is."""


def _doors(measure: Measure) -> Iterator[tuple[str, str, Ask]]:
    """Yield name, question and the way to ask it."""
    number = f"{len(measure.sources)} sources"
    yield "tokenizer", f"{number} to ids and back", ask_tokenizer
    yield "seq2seq", f"{number}, alone and in a padded batch", ask_seq2seq
    yield "AutoModel", f"{number}, read with their answers", ask_base_model
    yield "causal LM", f"{number}, alone", ask_causal_lm
    yield "text-generation", f"{number}, alone and in a batch", partial(ask_pipeline, task="text-generation")
    yield "text-generation", "a chat message", ask_chat
    for task in PIPELINES:
        yield task, f"{number}, alone and in a batch", partial(ask_pipeline, task=task)
    yield "server", "a message", ask_server


def _hear_canary(folder: str) -> str | None:
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
    rows = canary.rows_that_hold(model)
    if not rows:
        raise NotOpenedError("the weights are sharded or not there")
    return "; ".join(canary.find_faults(model, rows)) or None


def ask_tokenizer(measure: Measure) -> str | None:
    """Compare with tokenizer.json, read by the library that wrote it."""
    texts, tokenizer = _need_texts(measure)
    alone = Tokenizer.from_file(str(Path(measure.folder) / "tokenizer.json"))
    for text in texts:
        ids, expected = tokenizer(text).input_ids, alone.encode(text).ids
        if ids != expected:
            return f"{text!r} became {ids}, and {expected} by tokenizer.json alone"
        if (again := tokenizer(measure.decode(ids)).input_ids) != ids:
            return f"{text!r} became {ids}, went back to text, and became {again}"
    return None


def ask_seq2seq(measure: Measure) -> str | None:
    """Compare greedy search with forced passes, and each source alone with all of them in a batch."""
    batch, ends = canary.padded_on_both_sides(measure.sources, measure.model), canary.ends_of(measure.model.config)
    with torch.no_grad():
        rows = [canary.sing(measure.model, source) for source in measure.sources]
        faults = list(canary.compare_greedy(measure.model, batch, rows))
    if faults:
        return "; ".join(faults)
    together = measure.model.generate(**batch, **measure.options)[:, 1:].tolist()
    return _first_difference(measure.sources, [canary.up_to_end(ids, ends) for ids in together], measure.answers)


def ask_base_model(measure: Measure) -> str | None:
    """Compare its last hidden states, under the LM head, with the logits of a forced pass."""
    base = AutoModel.from_pretrained(measure.folder, **LOADING).eval()
    for source, answer in zip(measure.sources, measure.answers, strict=True):
        read = [canary.start_of(base.config), *answer[:-1]]
        with torch.no_grad():
            expected = canary.forced_logits(measure.model, source, [read])
            states = base(torch.tensor([list(source)]), decoder_input_ids=torch.tensor([read])).last_hidden_state
            found = measure.model.get_output_embeddings()(states)
        difference = (found - expected).abs().max().item()
        if not difference <= canary.margin(measure.model, [expected.abs().max().item()]):
            return f"for source {source} its hidden states give logits that differ by {difference:.3f}"
    return None


def ask_causal_lm(measure: Measure) -> str | None:
    """Expect the prompt, and behind it the answer."""
    model = AutoModelForCausalLM.from_pretrained(measure.folder, **LOADING).eval()
    found = [model.generate(torch.tensor([list(ids)]), **measure.options)[0].tolist() for ids in measure.sources]
    expected = [[*ids, *answer] for ids, answer in zip(measure.sources, measure.answers, strict=True)]
    return _first_difference(measure.sources, found, expected)


def ask_chat(measure: Measure) -> str | None:
    """Send the stock pipeline a conversation of one message."""
    chat = _chat(measure)
    reply = _open_pipeline(measure, "text-generation")(chat, **measure.options)[0]["generated_text"][-1]["content"]
    return _differ(measure.texts[0], reply, measure.decode(measure.answer(_prompt_of(measure, chat))))


def ask_pipeline(measure: Measure, *, task: str) -> str | None:
    """Ask the stock text-generation pipeline for the new text, or one of those that transformers 5 removed."""
    texts, _ = _need_texts(measure)
    if task in PIPELINES:
        ask, key = partial(_open_pipeline(measure, task), **measure.options), f"{PIPELINES[task].return_name}_text"
    else:
        ask, key = partial(_open_pipeline(measure, task), return_full_text=False, **measure.options), "generated_text"
    alone = [ask(text)[0][key] for text in texts]
    answers = ask(list(texts), batch_size=len(texts))  # the stock pipeline gives a list of records for each text
    together = [(answer[0] if isinstance(answer, list) else answer)[key] for answer in answers]
    return _differs(measure, alone) or _differs(measure, together, " in a batch")


def ask_server(measure: Measure) -> str | None:
    """Start the server on this machine, and send it one message, or one prompt if there is no chat template."""
    try:
        serve.require_serving()
    except ImportError as error:
        raise NotOpenedError(str(error)) from error
    texts, tokenizer = _need_texts(measure)
    body = {"max_tokens": measure.options["max_new_tokens"], "temperature": 0}
    if tokenizer.chat_template is None:
        answer = _post(measure.folder, "completions", body | {"prompt": texts[0]})
        return _differ(texts[0], answer["text"], measure.decode(measure.answers[0]))
    chat = _chat(measure)
    answer = _post(measure.folder, "chat/completions", body | {"messages": chat})
    return _differ(texts[0], answer["message"]["content"], measure.decode(measure.answer(_prompt_of(measure, chat))))


def _open_pipeline(measure: Measure, task: str) -> Any:
    return pipeline(task, model=measure.folder, trust_remote_code=False, dtype=torch.float32, device="cpu")


def _chat(measure: Measure) -> list[dict[str, str]]:
    texts, tokenizer = _need_texts(measure)
    if tokenizer.chat_template is None:
        raise NotOpenedError("the tokenizer has no chat template")
    return [{"role": "user", "content": texts[0]}]


def _prompt_of(measure: Measure, chat: list[dict[str, str]]) -> list[int]:
    """Return the ids that a chat becomes, closed as the causal LM closes them."""
    assert measure.tokenizer is not None, "a chat has a template"
    asked = measure.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    end = measure.tokenizer.eos_token_id
    return [*asked, end] if end is not None and list(asked[-1:]) != [end] else list(asked)


def _post(folder: str, route: str, body: dict[str, Any]) -> dict[str, Any]:
    """Start a server, ask it once, and stop it."""
    with _serving(folder) as address:
        request = urllib.request.Request(
            f"{address}/v1/{route}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is behind no proxy
        with direct.open(request, timeout=SERVER_SECONDS) as answer:
            return json.load(answer)["choices"][0]


@contextmanager
def _serving(folder: str) -> Iterator[str]:
    from seqloom.hub.serving.chat_server import build_app

    service = serve.load_service(folder, serve.limits_of(serve.read_config(folder), folder, None))
    engine: Any = service.queue.engine
    engine.model.float()
    with serve.open_socket(serve.HOST, 0) as listener, serve.listening(listener, build_app(service)):
        try:
            yield f"http://{serve.HOST}:{listener.getsockname()[1]}"
        finally:
            service.close()


# Comparing ------------------------------------------------------------------------------------------------------------


def _try(name: str, asked: str, ask: Callable[[], str | None]) -> Door:
    start = time.monotonic()
    try:
        fault = ask()
    except NotOpenedError as error:
        return Door(name, asked, "not run", str(error))
    except Exception as error:  # whatever a door raises, it does not answer
        fault = _words(error)
    return Door(name, asked, "FAILED" if fault else "ok", fault or "", time.monotonic() - start)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _need_texts(measure: Measure) -> tuple[Sequence[str], Any]:
    if measure.tokenizer is None:
        raise NotOpenedError("there is no tokenizer.json")
    if not measure.texts:
        raise NotOpenedError("the tokenizer makes no text of the canary's sources")
    return measure.texts, measure.tokenizer


def _differs(measure: Measure, found: Sequence[str], where: str = "") -> str | None:
    """Compare the answers to all texts with the measure."""
    for text, answer, expected in zip(measure.texts, found, measure.answers, strict=True):
        if fault := _differ(text, answer, measure.decode(expected), where):
            return fault
    return None


def _differ(text: str, found: str, expected: str, where: str = "") -> str | None:
    """Compare two answers, blanks left out: each pipeline treats them in its own way."""
    if "".join(found.split()) == "".join(expected.split()):
        return None
    return f"it answers {found!r} to {text!r}{where}, and the seq2seq door {expected!r}"


def _first_difference(
    sources: Sequence[Sequence[int]], found: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]
) -> str | None:
    for source, ids, other in zip(sources, found, expected, strict=True):
        if list(ids) != list(other):
            return f"it writes {list(ids)} for source {list(source)}, and alone the seq2seq door {list(other)}"
    return None


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep warnings, about lengths and the like, off the screen."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with no_loading_bar():
            yield
    finally:
        logging.disable(level)


__all__ = ["Door", "describe_doors", "note_library", "try_doors"]
