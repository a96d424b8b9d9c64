"""Seqloom: encoder-decoder Transformers, trained from scratch, at home in the Hugging Face world.

`import seqloom` makes the classes known to transformers, so `AutoModel...from_pretrained(folder)` and `pipeline(...)`
work without `trust_remote_code`. Registration happens here and nowhere else.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.pipelines import PIPELINE_REGISTRY, REMOVED_TASKS

from seqloom.configuration.configuration_seqloom import LANGUAGE_PAIR_TASK, SeqloomConfig
from seqloom.hub.bundle import write_bundle
from seqloom.hub.export.ctranslate2_loader import offer_loader
from seqloom.hub.pipeline_seqloom import PIPELINES, make_text_generation_safe
from seqloom.modeling.modeling_seqloom import (
    SeqloomForCausalLM,
    SeqloomForConditionalGeneration,
    SeqloomModel,
    SeqloomPreTrainedModel,
)

if TYPE_CHECKING:
    from seqloom.hub.model_card import write_model_card
    from seqloom.hub.page.explain import explain
    from seqloom.hub.page.explain_figures import alignment_figure, attention_figure, next_word_figure
    from seqloom.hub.push import create_repository, push_folder

__version__ = version("seqloom")

SeqloomConfig.after_save = write_bundle
SeqloomConfig.when_made = offer_loader
AutoConfig.register(SeqloomConfig.model_type, SeqloomConfig)
AutoModel.register(SeqloomConfig, SeqloomModel)
AutoModelForSeq2SeqLM.register(SeqloomConfig, SeqloomForConditionalGeneration)
AutoModelForCausalLM.register(SeqloomConfig, SeqloomForCausalLM)


class _TaskAliases(dict[str, str]):
    """Task -> what it is another name of; "translation_xx_to_yy" is one of "translation", as in transformers 4."""

    def __contains__(self, task: object) -> bool:
        return super().__contains__(task) or LANGUAGE_PAIR_TASK.fullmatch(str(task)) is not None

    def __missing__(self, task: str) -> str:
        return "translation"


def _bring_back_pipelines() -> None:
    """Register what transformers 5 removed, for every encoder-decoder; `pipeline` refuses removed tasks first."""
    for task, pipeline_class in PIPELINES.items():
        REMOVED_TASKS.pop(task, None)
        PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, AutoModelForSeq2SeqLM, type="text")
    PIPELINE_REGISTRY.task_aliases = _TaskAliases(PIPELINE_REGISTRY.task_aliases)
    make_text_generation_safe()


_bring_back_pipelines()

_ON_DEMAND = {
    "alignment_figure": "seqloom.hub.page.explain_figures",
    "attention_figure": "seqloom.hub.page.explain_figures",
    "create_repository": "seqloom.hub.push",
    "explain": "seqloom.hub.page.explain",
    "next_word_figure": "seqloom.hub.page.explain_figures",
    "push_folder": "seqloom.hub.push",
    "write_model_card": "seqloom.hub.model_card",
}
"""Public function -> where it is defined: readers of a folder have no need of it, and it is imported when asked for."""


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ON_DEMAND[name]), name)


__all__ = [
    "SeqloomConfig",
    "SeqloomForCausalLM",
    "SeqloomForConditionalGeneration",
    "SeqloomModel",
    "SeqloomPreTrainedModel",
    "alignment_figure",
    "attention_figure",
    "create_repository",
    "explain",
    "next_word_figure",
    "push_folder",
    "write_model_card",
]
