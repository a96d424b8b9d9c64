"""The library under the model: with which releases of transformers it was tested, and what older ones call otherwise.

The other files read as if the newest transformers were the only one. transformers 5.24 renamed the cache: it is `cache`
where 5.23 said `past_key_values`, as a keyword of `generate` and of every forward, and as a field of every output. What
bridges the two stands here and nowhere else; when 5.23 is no longer admitted, `CACHE` becomes a constant and
`GradientCheckpointingLayer` goes.

A keyword that is renamed and that nobody reads is worse than an error: 5.24 gave the cache under its new name to
forwards that took it for one of their `**kwargs`, and every model wrote nonsense. So no forward of ours takes what it
does not know (`known_keywords`), and a library counts as tested by the digest of its files, not by its version number
(`running_library`).
"""

import hashlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache as once
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from transformers import GenerationConfig, modeling_layers, modeling_outputs
from transformers.utils import ModelOutput, TransformersKwargs

from seqloom.configuration.suggestion import did_you_mean

TESTED = {
    "5.21.0": "7c3bb0b4c1169b35",
    "5.22.2": "f2c419a43bbdb5b1",
    "5.23.0": "5812c1e7271f921d",
    "5.24.0": "6ff84827266b8369",
}
"""Release of transformers -> digest of its text, as `running_library` makes it. With each of them the whole suite, or
its compat part, has passed."""

TESTED_TORCH = ("2.13.0", "2.14.1", "2.15.0")
"""Releases of torch with which they have passed."""

CACHE = "cache" if hasattr(modeling_outputs.BaseModelOutputWithPast, "cache") else "past_key_values"
"""What the installed transformers calls the cache."""

CACHE_NAMES = ("cache", "past_key_values")
"""What callers may call it."""

T = TypeVar("T", bound=Callable[..., Any])


# Which library is this ------------------------------------------------------------------------------------------------

LEANED_ON = (
    "generation/*.py",
    "integrations/*attention*.py",
    "modeling_*.py",
    "utils/generic.py",
    "utils/output_capturing.py",
    "activations.py",
    "cache_utils.py",
    "core_model_loading.py",
    "initialization.py",
    "masking_utils.py",
)
"""The files of transformers between a call of `generate` and our forwards."""


@once
def running_library() -> dict[str, str]:
    """Return what says which library answers: both versions, and a digest of the text of transformers.

    Two copies of one version can differ: a development version has the same name for weeks, and people patch what they
    have installed. The digest tells them apart, and costs some milliseconds once in a process.
    """
    home = Path(transformers.__file__).parent
    digest = hashlib.sha256()
    for pattern in LEANED_ON:
        for file in sorted(home.glob(pattern)):
            digest.update(file.read_bytes())
    return {
        "transformers": transformers.__version__,
        "digest": digest.hexdigest()[:16],
        "torch": torch.__version__.partition("+")[0],  # without the build, as in 2.13.0+cpu
    }


def is_tested() -> bool:
    """Return whether this very text of transformers and this torch were tested."""
    running = running_library()
    return TESTED.get(running["transformers"]) == running["digest"] and running["torch"] in TESTED_TORCH


def describe_running() -> str:
    """Return the versions that run, for messages."""
    running = running_library()
    is_patched = TESTED.get(running["transformers"], running["digest"]) != running["digest"]
    patched = " (not as it was released)" if is_patched else ""
    return f"transformers {running['transformers']}{patched} and torch {running['torch']}"


def describe_tested() -> str:
    """Return the versions that were tested, for messages."""
    return f"transformers {', '.join(TESTED)} with torch {', '.join(TESTED_TORCH)}"


# Keywords ------------------------------------------------------------------------------------------------------------

EVERYWHERE = frozenset(TransformersKwargs.__optional_keys__) | {
    "return_dict",  # taken off by transformers' decorators
    "use_cache",  # told to encoder and decoder alike
    *("logits_to_keep", "tokenizer", "assistant_tokenizer"),  # what generate knows it tells the encoder, too
}
"""What any forward may be handed: what transformers documents for all, and what it hands on without documenting it."""


class UnknownKeywordError(TypeError):
    """A forward was handed something that it does not know."""


def known_keywords(forward: T) -> T:
    """Let a function that takes `**kwargs` refuse what it does not know, and take the cache by either name.

    Known is what its signature names, and `EVERYWHERE`. None is never refused: it asks for nothing.

    Raises:
        UnknownKeywordError: by the decorated function, for any other keyword.
    """
    signature = inspect.signature(forward)
    takes_cache = "cache" in signature.parameters
    known = EVERYWHERE | frozenset(signature.parameters) | frozenset(CACHE_NAMES if takes_cache else ())
    where = forward.__qualname__

    @wraps(forward)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        if takes_cache and "past_key_values" in kwargs:
            warn_of_the_old_name()
            kwargs = by_one_name(kwargs, "cache")
        if not known.issuperset(kwargs):
            refuse_unknown(kwargs, known, where)
        return forward(self, *args, **kwargs)

    checked.known = known  # type: ignore[attr-defined]
    if takes_cache:  # generate asks the signature whether a forward takes a cache
        named = [p.replace(name=CACHE) if name == "cache" else p for name, p in signature.parameters.items()]
        checked.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
    return checked  # type: ignore[return-value]


def warn_of_the_old_name() -> None:
    """Say that `past_key_values` has another name, under a library in which it has."""
    if CACHE != "past_key_values" and not torch.compiler.is_compiling():
        warnings.warn("`past_key_values` is deprecated: it is `cache` since transformers 5.24.", FutureWarning, 3)


def by_one_name(kwargs: dict[str, Any], name: str) -> dict[str, Any]:
    """Return keywords in which the cache, by whichever name it came, has this one.

    Raises:
        ValueError: if two caches came.
    """
    given = [kwargs[key] for key in CACHE_NAMES if kwargs.get(key) is not None]
    if len(given) > 1:
        raise ValueError("cache and past_key_values are two names of one thing, and both were given; give one.")
    others = {key: value for key, value in kwargs.items() if key not in CACHE_NAMES}
    return {**others, name: given[0]} if given else others


def refuse_unknown(kwargs: dict[str, Any], known: Iterable[str], where: str) -> None:
    """Refuse keywords with a value that are not known.

    Raises:
        UnknownKeywordError: naming the first, what runs, what was tested, and what to do.
    """
    for name, value in kwargs.items():
        if value is not None and name not in known:
            hint = did_you_mean(name, known)
            raise UnknownKeywordError(
                f"{where} does not know the keyword {name}, and would have answered without it; {hint}Running is "
                f"{describe_running()}, tested was {describe_tested()}. If the keyword is yours, correct or remove it. "
                f"If the library sent it, {REMEDY}"
            )


@contextmanager
def naming_unknown_keywords(kwargs: dict[str, Any], forward: Any, generate: Callable[..., Any]) -> Iterator[None]:
    """Let the library refuse what it does not know, and say then which keyword that was, in our words.

    Args:
        kwargs: what `generate` was called with.
        forward: what it ends up calling; decorated with `known_keywords`.
        generate: the library's.

    Raises:
        UnknownKeywordError: if the library refused the call, quoting a keyword that is known to nobody.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        known = {*vars(GenerationConfig()), *inspect.signature(generate).parameters, *forward.known}
        quoted = {name: value for name, value in kwargs.items() if repr(name) in str(error)}
        if "custom_generate" not in kwargs:
            refuse_unknown(quoted, known, "generate")
        raise


TESTED_PAIR = f"install a tested pair, as with pip install transformers=={list(TESTED)[-1]} torch=={TESTED_TORCH[-1]}"
"""What helps everywhere."""

REMEDY = (
    f"{TESTED_PAIR}, or let a newer Seqloom renew the folder's code: pip install -U seqloom, then seqloom upgrade "
    f"FOLDER."
)
"""What helps where a library does what this code does not expect."""


ADAPTED = ["q_proj", "v_proj"]
"""Where `peft.LoraConfig()` puts its adapters if nobody says it: query and value, as Hu et al. 2021."""


def tell_peft(model_type: str) -> None:
    """Let peft know of the model, if it is imported: it looks up by type where adapters go, and refuses strangers."""
    constants = sys.modules.get("peft.utils.constants")
    places = getattr(constants, "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING", {})
    places.setdefault(model_type, ADAPTED)


# Weights -------------------------------------------------------------------------------------------------------------


class WeightsError(ValueError):
    """A folder's weights are not those of the network that its configuration describes."""


OWN_WEIGHTS = ("model", "encoder", "decoder", "lm_head")
"""What the names of our weights begin with; others belong to the head of a class that somebody derived."""


def refuse_other_weights(info: dict[str, Any], architectures: Iterable[str], where: Any) -> None:
    """Refuse what transformers would fill at random, or leave lying, with a report that few read.

    Args:
        info: transformers' `output_loading_info`.
        architectures: the class that was saved, by config.json.
        where: the folder, for the message.

    Raises:
        WeightsError: naming the weights.
    """
    # what a derived class adds is new in it, and left over when one of ours reads its folder
    is_derived = not any(name.startswith("Seqloom") for name in architectures)
    missing = sorted(name for name in info["missing_keys"] if name.startswith(OWN_WEIGHTS))
    unknown = sorted(name for name in info["unexpected_keys"] if not is_derived or name.startswith(OWN_WEIGHTS))
    others = [f"{name} {list(saved)} for {list(own)}" for name, saved, own in sorted(info["mismatched_keys"])]
    found = {"missing": missing, "of another shape than config.json says": others, "unknown to this network": unknown}
    if not any(found.values()):
        return
    named = "; ".join(f"{len(names)} {kind}: {_first_names(names)}" for kind, names in found.items() if names)
    raise WeightsError(
        f"{where}: the weights are not those of the network in config.json: {named}. Copy or train the folder again; "
        f"ignore_mismatched_sizes=True loads them all the same, and fills what is missing at random."
    )


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


# What older releases call otherwise ----------------------------------------------------------------------------------


class _AnswersToBothNames:
    """An output that takes and gives its cache by either name, whichever of them the library's class has."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **by_one_name(kwargs, CACHE))

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(CACHE if key in CACHE_NAMES else key)  # type: ignore[misc]


for _name in CACHE_NAMES:
    if _name != CACHE:
        setattr(_AnswersToBothNames, _name, property(lambda self: getattr(self, CACHE)))


class StepInputs(dict[str, Any]):
    """What a step reads; PEFT looks for the cache there by its old name, and puts its prefix in its place."""

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value, the cache by either name."""
        return super().get(CACHE if name in CACHE_NAMES else name, default)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(CACHE if name in CACHE_NAMES else name, value)


class BaseModelOutputWithPastAndCrossAttentions(
    _AnswersToBothNames, modeling_outputs.BaseModelOutputWithPastAndCrossAttentions
):
    """The decoder's output; see transformers."""


class Seq2SeqModelOutput(_AnswersToBothNames, modeling_outputs.Seq2SeqModelOutput):
    """The output of encoder and decoder; see transformers."""


class Seq2SeqLMOutput(_AnswersToBothNames, modeling_outputs.Seq2SeqLMOutput):
    """The output with an LM head; see transformers."""


def answer_to_both_names(output: Any) -> Any:
    """Let what `generate` returns as an object give its cache by either name; ids are returned as they are."""
    if isinstance(output, ModelOutput):
        for name in CACHE_NAMES:
            if not (hasattr(type(output), name) or hasattr(output, name)):  # asking an old name of the object warns
                setattr(output, name, getattr(output, CACHE, None))
    return output


class GradientCheckpointingLayer(modeling_layers.GradientCheckpointingLayer):
    """transformers' own, which leaves the cache out while it checkpoints, under the name that it knows."""

    if CACHE != "cache":

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Call the layer."""
            return super().__call__(*args, **by_one_name(kwargs, CACHE))
