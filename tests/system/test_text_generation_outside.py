"""The stock text-generation pipeline on a folder, where Seqloom is missing: every option against the local `generate`.

And eight processes that open one folder at the same time.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import seqloom
from tests.outside import run_outside

WORDS = "abcdefghijklmnop"  # ids 4 to 19, the toy language's source words; its target words are ids 24 to 39
PROMPTS = ["abc", "p", "bacd", "hgfedcba", "mn", "oooo"]
LIMIT = {"do_sample": False, "max_new_tokens": 10}
CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "n-best": {"num_beams": 4, "num_return_sequences": 3},
    "penalty": {"num_beams": 4, "length_penalty": 2.0},
    "bad words": {"bad_words_ids": [[24], [27]]},
    "no cache": {"use_cache": False},
}
CHAT_TEMPLATE = "{{ (messages | selectattr('role', 'equalto', 'user') | list | last).content }}"


# Run outside --------------------------------------------------------------------------------------------------------


def write_with_every_option(folder, prompts, cases, limit, stop):
    from threading import Thread

    from transformers import TextIteratorStreamer, pipeline
    from transformers.generation.streamers import BaseStreamer

    write = pipeline("text-generation", model=folder, trust_remote_code=True, device="cpu")
    chats = [[{"role": "system", "content": "zzz"}, {"role": "user", "content": prompt}] for prompt in prompts]
    result = {"module": type(write.model).__module__.split(".")[0], "new": {}}
    for name, case in cases.items():
        for side in ("left", "right"):
            write.tokenizer.padding_side = side
            for batch_size in (1, 4):
                outputs = write(prompts, return_full_text=False, batch_size=batch_size, **limit, **case)
                result["new"][f"{name}, {side}, {batch_size}"] = [
                    [output["generated_text"] for output in group] for group in outputs
                ]
    result["full"] = [group[0]["generated_text"] for group in write(prompts, batch_size=3, **limit)]
    result["chat"] = [group[0]["generated_text"] for group in write(chats, batch_size=3, **limit)]
    result["reply"] = write(chats[0], return_full_text=False, **limit)[0]["generated_text"]
    result["chats"] = chats
    for name in ("stop_sequence", "stop_strings"):
        more = {"tokenizer": write.tokenizer} if name == "stop_strings" else {}
        outputs = write(prompts[3], return_full_text=False, **{name: stop}, **more, **limit)
        result[name] = outputs[0]["generated_text"]

    class Recorder(BaseStreamer):
        def put(self, value):
            result["streamed"].append(value.flatten().tolist())

        def end(self):
            result["streamed"].append("end")

    result["streamed"] = []
    write(prompts[3], streamer=Recorder(), **limit)
    streamer = TextIteratorStreamer(write.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = Thread(target=write, args=(prompts[3],), kwargs={"streamer": streamer, **limit})
    thread.start()
    result["pieces"] = list(streamer)
    thread.join()
    return result


def open_in_eight_processes(folder, prompt):
    """Import once, open once, then fork: the eight start together and find the code in transformers' cache."""
    import multiprocessing
    import sys

    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    torch.set_num_threads(1)

    def score():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        batch = tokenizer(prompt, return_tensors="pt")
        writer = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
        scorer = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True).eval()
        with torch.no_grad():
            logits = scorer(**batch, decoder_input_ids=batch["input_ids"]).logits
        return [writer.generate(**batch, max_new_tokens=5).tolist(), logits.sum().item()]

    def work():
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            del sys.modules[name]  # as in a process that has not opened the folder
        barrier.wait(60)
        try:
            results.put(score())
        except Exception as error:
            results.put(repr(error))

    first = score()
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(8), context.Queue()
    processes = [context.Process(target=work) for _ in range(8)]
    for process in processes:
        process.start()
    outcome = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    return [first, *outcome]


# Prepared inside ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(
    taught_model: Callable[..., Any], char_tokenizer: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("写 text") / "toy"
    taught_model().save_pretrained(path)
    tokenizer = char_tokenizer(WORDS + "0123" + WORDS.upper())
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def local(folder: Path) -> Callable[..., list[str]]:
    """Return a function that writes for one prompt with the local class's `generate`."""
    model = seqloom.SeqloomForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def write(prompt: str, **options: Any) -> list[str]:
        ids = model.generate(**tokenizer(prompt, return_tensors="pt"), **{**LIMIT, **options})
        return tokenizer.batch_decode(ids, skip_special_tokens=True)

    return write


@pytest.fixture(scope="module")
def outside(folder: Path, local: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    stop = local(PROMPTS[3])[0][3]
    result, printed = run_outside(
        write_with_every_option,
        tmp_path_factory.mktemp("outside"),
        folder=str(folder),
        prompts=PROMPTS,
        cases=CASES,
        limit=LIMIT,
        stop=stop,
    )
    return SimpleNamespace(**result, stop=stop, printed=printed)


# Outside ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_every_option_gives_what_generate_gives_alone(
    outside: SimpleNamespace, local: Callable[..., list[str]], case: str, side: str, batch_size: int
) -> None:
    assert outside.module == "transformers_modules"
    expected = [local(prompt, **CASES[case]) for prompt in PROMPTS]
    assert outside.new[f"{case}, {side}, {batch_size}"] == expected
    assert len({text for texts in expected for text in texts}) >= len(PROMPTS) - 1  # they do differ


def test_cases_differ_from_each_other(outside: SimpleNamespace) -> None:
    for case in ("n-best", "bad words"):
        assert outside.new[f"{case}, left, 4"] != outside.new["greedy, left, 4"]


def test_prompt_and_continuation(outside: SimpleNamespace, local: Callable[..., list[str]]) -> None:
    assert outside.full == [prompt + local(prompt)[0] for prompt in PROMPTS]


def test_chat_messages_get_a_reply(outside: SimpleNamespace, local: Callable[..., list[str]]) -> None:
    replies = [{"role": "assistant", "content": local(prompt)[0]} for prompt in PROMPTS]
    assert outside.chat == [[*chat, reply] for chat, reply in zip(outside.chats, replies, strict=True)]
    assert outside.reply == local(PROMPTS[0])[0]


def test_stop_strings(outside: SimpleNamespace, local: Callable[..., list[str]]) -> None:
    text = local(PROMPTS[3])[0]
    cut = text[: text.index(outside.stop) + 1]
    assert outside.stop_sequence == outside.stop_strings == cut
    assert len(cut) < len(text)


def test_streamer(outside: SimpleNamespace, local: Callable[..., list[str]], folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = local(PROMPTS[3])[0]
    assert "".join(outside.pieces) == text
    new = tokenizer(text)["input_ids"]
    assert outside.streamed == [tokenizer(PROMPTS[3])["input_ids"], *([token] for token in new), "end"]


def test_nothing_is_complained_about(outside: SimpleNamespace) -> None:
    for word in ("not supported", "deprecat", "Traceback", "Both `max_new_tokens`"):
        assert word not in outside.printed


@pytest.mark.slow
def test_eight_processes_open_one_folder_at_the_same_time(folder: Path, tmp_path: Path) -> None:
    """After one has opened it: into an empty cache transformers copies in place, and a reader may meet half a file."""
    (first, *others), _ = run_outside(open_in_eight_processes, tmp_path, folder=str(folder), prompt=PROMPTS[0])
    assert others == [first] * 8
    model = seqloom.SeqloomForConditionalGeneration.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(PROMPTS[0], return_tensors="pt")
    with torch.no_grad():
        assert first[1] == model(**batch, decoder_input_ids=batch["input_ids"]).logits.sum().item()
