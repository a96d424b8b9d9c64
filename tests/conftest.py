"""What every test shares: no network, one torch thread, and models so small that a forward takes milliseconds."""

import atexit
import copy
import functools
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# What an earlier run has kept would answer in place of the code under test. All caches follow HF_HOME.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="seqloom-tests-")
os.environ.pop("HF_DATASETS_CACHE", None)
os.environ.pop("HF_HUB_CACHE", None)
os.environ.pop("HUGGINGFACE_HUB_CACHE", None)
os.environ.pop("HF_METRICS_CACHE", None)
os.environ.pop("HF_MODULES_CACHE", None)

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tests.toy import TINY, toy_pairs


def remove_home(home: str, owner: int) -> None:
    """Remove the caches at the end of the process that made them; a fork leaves them alone."""
    if os.getpid() == owner:
        shutil.rmtree(home, ignore_errors=True)


atexit.register(remove_home, os.environ["HF_HOME"], os.getpid())


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny matrices are slower on many threads, and sums in another order differ in the last bit."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def tested_pair() -> None:
    """Name the installed transformers and torch as tested, for that is what the suite does with them."""
    from seqloom.modeling import library

    running = library.running_library()
    library.TESTED = {**library.TESTED, running["transformers"]: running["digest"]}
    library.TESTED_TORCH = tuple(dict.fromkeys([*library.TESTED_TORCH, running["torch"]]))


@pytest.fixture(autouse=True, scope="session")
def one_precision() -> None:
    """Let no stopwatch choose the numbers of a run; on another processor, or a busy one, it would choose others."""
    from seqloom.training import precision

    precision.WORTH_IT = float("inf")


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """Return a function that builds a tiny `SeqloomConfig`; keyword arguments override its fields."""
    from seqloom.configuration.configuration_seqloom import SeqloomConfig

    def build(**overrides: Any) -> SeqloomConfig:
        return SeqloomConfig(**{**TINY, **overrides})

    return build


@pytest.fixture(scope="session")
def tiny_model(tiny_config: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that builds a tiny model in eval mode with every parameter away from its initial value.

    A fresh model has zero biases and unit norms, and would hide a bias that is never added. `noise` is the standard
    deviation of what is added to each parameter; 0 keeps the initialisation.
    """
    from seqloom.modeling import modeling_seqloom

    def build(
        kind: str = "SeqloomForConditionalGeneration", seed: int = 0, noise: float = 0.2, **overrides: Any
    ) -> Any:
        torch.manual_seed(seed)
        model = getattr(modeling_seqloom, kind)(tiny_config(**overrides)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * noise)
        return model

    return build


@pytest.fixture(scope="session")
def taught_model(tiny_config: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that gives a tiny model after some steps on `toy_pairs`; each variant is trained once.

    Random models repeat one word for ever. After 100 steps this one writes different words, ends its sentences at
    different lengths and is still unsure, so that a mistake in caches, masks or beams changes what it writes; after 600
    it knows the language, up to sentences of six words.
    """
    from seqloom.modeling import modeling_seqloom

    @functools.cache
    def teach(fields: tuple[tuple[str, Any], ...], steps: int) -> Any:
        torch.manual_seed(0)
        # In float64: in float32 every processor rounds its own way, and after 100 steps the models write differently.
        model = modeling_seqloom.SeqloomForConditionalGeneration(tiny_config(**dict(fields))).double().train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(steps):
            source, mask, labels = toy_pairs(32, seed=step)
            model(input_ids=source, attention_mask=mask, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.float().eval()

    def build(kind: str = "SeqloomForConditionalGeneration", *, steps: int = 100, **overrides: Any) -> Any:
        taught = teach(tuple(sorted(overrides.items())), steps)
        model = getattr(modeling_seqloom, kind)(copy.deepcopy(taught.config)).eval()
        model.load_state_dict(taught.state_dict())
        return model

    return build


@pytest.fixture(scope="session")
def char_tokenizer() -> Callable[[str], PreTrainedTokenizerFast]:
    """Return a function that makes a character tokenizer: four special tokens, then the given characters in order."""

    def build(characters: str) -> PreTrainedTokenizerFast:
        specials = ["<pad>", "<s>", "</s>", "<unk>"]
        vocabulary = {token: index for index, token in enumerate([*specials, *characters])}
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = Split(Regex("."), behavior="isolated")
        tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
        tokenizer.decoder = Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            model_input_names=["input_ids", "attention_mask"],
        )

    return build


@pytest.fixture(scope="session")
def shout_tokenizer(char_tokenizer: Callable[[str], PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """The toy language as text: its source words are small letters, ids 4 to 19, and its target words capitals."""
    return char_tokenizer("abcdefghijklmnop0123ABCDEFGHIJKLMNOP")


@pytest.fixture(scope="session")
def save_toy(taught_model: Callable[..., Any], shout_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """Return a function that saves a model of the toy language; keyword arguments are generation settings.

    `model` is another than the one after 100 steps.
    """

    def save(path: Path, model: Any = None, **generation: Any) -> Path:
        model = model or taught_model()
        model.generation_config.update(**generation)
        model.save_pretrained(path)
        shout_tokenizer.save_pretrained(path)
        return path

    return save
