"""Seqloom: encoder-decoder Transformers, trained from scratch, at home in the Hugging Face world.

`import seqloom` makes the classes known to transformers, so `AutoModel...from_pretrained(folder)` and `pipeline(...)`
work without `trust_remote_code`. Registration happens here and nowhere else.
"""

from importlib.metadata import version

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.hub.bundle import write_bundle
from seqloom.modeling.modeling_seqloom import (
    SeqloomForCausalLM,
    SeqloomForConditionalGeneration,
    SeqloomModel,
    SeqloomPreTrainedModel,
)

__version__ = version("seqloom")

SeqloomConfig.after_save = write_bundle
AutoConfig.register(SeqloomConfig.model_type, SeqloomConfig)
AutoModel.register(SeqloomConfig, SeqloomModel)
AutoModelForSeq2SeqLM.register(SeqloomConfig, SeqloomForConditionalGeneration)
AutoModelForCausalLM.register(SeqloomConfig, SeqloomForCausalLM)

__all__ = [
    "SeqloomConfig",
    "SeqloomForCausalLM",
    "SeqloomForConditionalGeneration",
    "SeqloomModel",
    "SeqloomPreTrainedModel",
]
