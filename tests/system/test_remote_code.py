"""A saved folder, opened where Seqloom cannot be imported: the same numbers, to the bit, as with the local classes.

What runs outside stands here as a function whose source is handed over (see tests/outside.py).
"""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    pipeline,
)

import seqloom
from seqloom.hub.bundle import MANIFEST_NAME
from seqloom.hub.verify import verify_folder
from tests.outside import run_outside

CHARACTERS = "今天的天气很好abcdefghij"
PROMPTS = ["今天的天气很", "a", "bc", "defghij", "今天", "天气很好abcdefghij", "很好", "jj", "的", "好天气"]
IDS = torch.tensor([[5, 6, 7, 2, 0], [8, 9, 10, 11, 2]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
TARGET = torch.tensor([[1, 12, 13], [1, 14, 15]])
CODE = ["configuration_seqloom.py", "fast_dropout.py", "fused_loss.py", "modeling_seqloom.py", "pipeline_seqloom.py"]
REMOVED_TASKS = ["summarization", "text2text-generation", "translation_zh_to_en", "translation"]
VARIANTS = {
    "模型 sinusoidal": {},
    "learned": {"position_embedding_type": "learned", "tie_word_embeddings": False},
    "rotary-1.0": {
        "position_embedding_type": "rotary",
        "norm_position": "pre",
        "norm_type": "rmsnorm",
        "use_gated_ffn": True,
        "activation_function": "silu",
        "num_key_value_heads": 2,
    },
}


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


# Run outside --------------------------------------------------------------------------------------------------------


def open_every_door(folders, expected, prompts, tasks, fine_tuned, twins):
    import importlib

    import torch
    from safetensors.torch import load_file
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        pipeline,
    )

    torch.set_num_threads(1)
    expected = load_file(expected)
    ids, mask, target = (expected[name] for name in ("ids", "mask", "target"))

    def same(name, actual):
        return actual.dtype == expected[name].dtype and torch.equal(actual, expected[name])

    def load(auto, folder, **options):
        return auto.from_pretrained(folder, trust_remote_code=True, **options).eval()

    def score(model):
        with torch.no_grad():
            return model(ids, attention_mask=mask, decoder_input_ids=target)[0]

    result = {}
    for name, folder in folders.items():
        writer = load(AutoModelForCausalLM, folder)
        scorer = load(AutoModelForSeq2SeqLM, folder)
        storages = {
            table.weight.data_ptr()
            for table in (writer.lm_head, writer.get_input_embeddings(), writer.get_decoder().embed_tokens)
        }
        result[name] = {
            "classes": [type(writer).__name__, type(scorer).__name__, type(writer.config).__name__],
            "modules": [type(writer).__module__.split(".")[0], type(writer.config).__module__.split(".")[0]],
            "base": same(f"{name} base", score(load(AutoModel, folder))),
            "logits": same(f"{name} logits", score(scorer)),
            "bfloat16": same(f"{name} bfloat16", score(load(AutoModelForSeq2SeqLM, folder, dtype=torch.bfloat16))),
            "device_map": same(f"{name} logits", score(load(AutoModelForSeq2SeqLM, folder, device_map="auto"))),
            "generate": same(f"{name} tokens", writer.generate(ids, attention_mask=mask, max_new_tokens=6)),
            "beams": same(f"{name} beams", scorer.generate(ids, attention_mask=mask, num_beams=3, max_new_tokens=6)),
            "num_storages": len(storages),
        }

    first = next(iter(folders.values()))
    result["tokenizer"] = AutoTokenizer.from_pretrained(first, trust_remote_code=True)(prompts)["input_ids"]
    generator = pipeline("text-generation", model=first, trust_remote_code=True)
    outputs = generator(prompts, batch_size=8, return_full_text=False, do_sample=False, max_new_tokens=6)
    result["texts"] = [output[0]["generated_text"] for output in outputs]
    # the complaint that must not come before, to show that it would be seen
    super(type(generator), generator).check_model_type(["nothing"])

    # An object of the class that is not meant for it, handed to the same pipeline
    tokenizer = AutoTokenizer.from_pretrained(first, trust_remote_code=True)
    generator = pipeline("text-generation", model=load(AutoModelForSeq2SeqLM, first), tokenizer=tokenizer)
    outputs = generator(prompts, batch_size=8, return_full_text=False, do_sample=False, max_new_tokens=6)
    result["texts of an object"] = [output[0]["generated_text"] for output in outputs]

    # What transformers 5 removed, and a pipeline saved and opened again
    def records(task, folder):
        answer = pipeline(task, model=folder, trust_remote_code=True)
        return answer, answer(prompts, batch_size=4, max_new_tokens=6, return_scores=True)

    result["records"] = {}
    for task in tasks:
        answer, result["records"][task] = records(task, first)
    answer.save_pretrained(f"{fine_tuned} pipeline")
    result["saved records"] = records(task, f"{fine_tuned} pipeline")[1]
    result["pipeline"] = [type(answer).__module__.split(".")[0], type(answer).__name__]

    # A step of fine-tuning, saved elsewhere and opened again
    model = load(AutoModelForSeq2SeqLM, first)
    model(ids, attention_mask=mask, labels=target).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= parameter.grad
    model.save_pretrained(fine_tuned)
    result["fine-tuned"] = torch.equal(score(load(AutoModelForSeq2SeqLM, fine_tuned)), score(model))
    result["fine-tuned logits"] = score(model).tolist()
    load(AutoModelForCausalLM, fine_tuned).generate(ids, attention_mask=mask, max_new_tokens=2)
    pipeline("translation", model=fine_tuned, tokenizer=first, trust_remote_code=True)(prompts[0], max_new_tokens=2)

    # Folders of one name, each with code and weights of its own
    result["twins"] = []
    for twin in twins:
        model = load(AutoModel, twin)
        origin = AutoConfig.from_pretrained(twin, trust_remote_code=True).origin
        result["twins"].append([model.origin, origin, score(model).sum().item()])
    try:
        importlib.import_module("seqloom")
    except ModuleNotFoundError:
        result["seqloom"] = "missing"
    return result


# Prepared inside ----------------------------------------------------------------------------------------------------


def expect(folder):
    """Return what the local classes compute from a folder."""
    tensors = {}
    options = {"attention_mask": MASK, "decoder_input_ids": TARGET}
    for key, cls, dtype in (
        ("base", seqloom.SeqloomModel, torch.float32),
        ("logits", seqloom.SeqloomForConditionalGeneration, torch.float32),
        ("bfloat16", seqloom.SeqloomForConditionalGeneration, torch.bfloat16),
    ):
        with torch.no_grad():
            tensors[key] = cls.from_pretrained(folder, dtype=dtype).eval()(IDS, **options)[0]
    writer = seqloom.SeqloomForCausalLM.from_pretrained(folder)
    tensors["tokens"] = writer.generate(IDS, attention_mask=MASK, max_new_tokens=6)
    scorer = seqloom.SeqloomForConditionalGeneration.from_pretrained(folder)
    tensors["beams"] = scorer.generate(IDS, attention_mask=MASK, num_beams=3, max_new_tokens=6)
    return tensors


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_model, char_tokenizer):
    """Return folders of models with a tokenizer, one for each kind of positions."""
    root = tmp_path_factory.mktemp("已保存 folders")
    tokenizer = char_tokenizer("".join(dict.fromkeys(CHARACTERS)))
    folders = {}
    for name, overrides in VARIANTS.items():
        folders[name] = root / name
        tiny_model(seed=2, vocab_size=len(tokenizer), **overrides).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return folders


@pytest.fixture(scope="module")
def outside(saved, tmp_path_factory, tiny_model):
    """Return what every door says outside, and what it printed."""
    root = tmp_path_factory.mktemp("outside")
    expected = {"ids": IDS, "mask": MASK, "target": TARGET}
    for name, folder in saved.items():
        expected |= {f"{name} {key}": tensor.contiguous() for key, tensor in expect(folder).items()}
    save_file(expected, root / "expected.safetensors")
    twins = [root / parent / "twin" for parent in ("a", "b", "a again")]
    for seed, twin in enumerate(twins):
        tiny_model("SeqloomModel", seed=seed).save_pretrained(twin)
        for name, cls in (("configuration", "SeqloomConfig"), ("modeling", "SeqloomModel")):
            with (twin / f"{name}_seqloom.py").open("a") as code:
                code.write(f"\n{cls}.origin = {twin.parent.name[0]!r}\n")
    result, printed = run_outside(
        open_every_door,
        root,
        folders={name: str(folder) for name, folder in saved.items()},
        expected=str(root / "expected.safetensors"),
        prompts=PROMPTS,
        tasks=REMOVED_TASKS,
        fine_tuned=str(root / "微调 fine-tuned"),
        twins=[str(twin) for twin in twins],
    )
    return SimpleNamespace(result=result, printed=printed, twins=twins, fine_tuned=root / "微调 fine-tuned")


# Outside ------------------------------------------------------------------------------------------------------------


def test_seqloom_is_missing_outside(outside):
    assert outside.result["seqloom"] == "missing"


@pytest.mark.parametrize("name", VARIANTS)
def test_auto_classes_give_the_same_bits_outside(outside, name):
    result = outside.result[name]
    assert result["classes"] == ["SeqloomForCausalLM", "SeqloomForConditionalGeneration", "SeqloomConfig"]
    assert result["modules"] == ["transformers_modules", "transformers_modules"]
    for door in ("base", "logits", "bfloat16", "device_map", "generate", "beams"):
        assert result[door] is True, door
    assert result["num_storages"] == (3 if name == "learned" else 1)


def test_tokenizer_and_stock_pipeline_give_the_same_texts_outside(outside, saved):
    folder = saved["模型 sinusoidal"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert outside.result["tokenizer"] == tokenizer(PROMPTS)["input_ids"]

    model = seqloom.SeqloomForConditionalGeneration.from_pretrained(folder)
    for prompt, text in zip(PROMPTS, outside.result["texts"], strict=True):
        tokens = model.generate(**tokenizer(prompt, return_tensors="pt"), do_sample=False, max_new_tokens=6)
        assert text == tokenizer.decode(tokens[0], skip_special_tokens=True)
    assert len(set(outside.result["texts"])) > 3
    assert outside.result["texts of an object"] == outside.result["texts"]


def test_removed_pipelines_give_the_same_records_outside(outside, saved):
    for task in REMOVED_TASKS:
        answer = pipeline(task, model=str(saved["模型 sinusoidal"]), device="cpu")
        inside = answer(PROMPTS, batch_size=4, max_new_tokens=6, return_scores=True)
        assert outside.result["records"][task] == inside
    assert outside.result["pipeline"] == ["transformers_modules", "TranslationPipeline"]
    assert outside.result["saved records"] == outside.result["records"]["translation"]
    assert len({record["translation_text"] for record in inside}) > 3


def test_nothing_alarming_is_printed_outside(outside):
    complaint = "The model 'SeqloomForCausalLM' is not supported for text-generation. Supported models are ['nothing']"
    assert complaint in outside.printed
    for word in ("not supported", "MISSING", "MISMATCH", "newly initialized", "Traceback"):
        assert word not in outside.printed.replace(complaint, "")


def test_fine_tuned_outside_it_is_complete_again(outside, saved, tmp_path):
    def code_and_maps(folder):
        config = config_of(folder)
        return {name: (folder / name).read_text() for name in CODE}, config["auto_map"], config["custom_pipelines"]

    assert outside.result["fine-tuned"] is True
    assert code_and_maps(outside.fine_tuned) == code_and_maps(saved["模型 sinusoidal"])
    assert not [str(found) for found in verify_folder(outside.fine_tuned) if found.is_problem]
    assert not (outside.fine_tuned / MANIFEST_NAME).exists(), "the code itself was compared"

    model = AutoModelForSeq2SeqLM.from_pretrained(outside.fine_tuned).eval()
    with torch.no_grad():
        logits = model(IDS, attention_mask=MASK, decoder_input_ids=TARGET).logits
    assert torch.equal(logits, torch.tensor(outside.result["fine-tuned logits"]))
    model.save_pretrained(tmp_path)
    assert code_and_maps(tmp_path) == code_and_maps(saved["模型 sinusoidal"])


def test_folders_of_one_name_get_their_own_code_and_weights(outside):
    expected = []
    for origin, twin in zip("aba", outside.twins, strict=True):
        with torch.no_grad():
            model = seqloom.SeqloomModel.from_pretrained(twin).eval()
            total = model(IDS, attention_mask=MASK, decoder_input_ids=TARGET)[0].sum().item()
        expected.append([origin, origin, total])
    assert outside.result["twins"] == expected
    assert len({total for _, _, total in expected}) == 3


# Inside: with `import seqloom` ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}, {"trust_remote_code": False}], ids=str)
def test_local_classes_are_used_and_nobody_is_asked(saved, options, monkeypatch):
    monkeypatch.setattr("builtins.input", pytest.fail)
    for folder in saved.values():
        assert type(AutoConfig.from_pretrained(folder, **options)) is seqloom.SeqloomConfig
        AutoTokenizer.from_pretrained(folder, **options)
        for auto, cls in (
            (AutoModel, seqloom.SeqloomModel),
            (AutoModelForSeq2SeqLM, seqloom.SeqloomForConditionalGeneration),
            (AutoModelForCausalLM, seqloom.SeqloomForCausalLM),
        ):
            model = auto.from_pretrained(folder, **options)
            assert type(model) is cls
            assert model._auto_class is None  # or transformers would copy our files itself, and badly


def test_stock_pipeline_answers_inside_without_a_word_of_complaint(saved, outside, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    generator = pipeline("text-generation", model=str(saved["模型 sinusoidal"]))
    outputs = generator(PROMPTS, batch_size=8, return_full_text=False, do_sample=False, max_new_tokens=6)
    assert [output[0]["generated_text"] for output in outputs] == outside.result["texts"]
    assert "not supported" not in caplog.text
    super(type(generator), generator).check_model_type(["nothing"])
    assert "not supported" in caplog.text  # so it would have been seen
