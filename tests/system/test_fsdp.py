"""Weights in shards: FSDP2 as accelerate sets it up, on two real processes, computes and saves what one process does.

Accelerate falls back to DDP on a CPU, so its FSDP2 wrapper is called by itself, on gloo.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from datasets import Dataset
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import GenerationConfig, Seq2SeqTrainingArguments

import seqloom
from seqloom.training.batching import BatchSettings
from seqloom.training.tokenizer import train_tokenizer
from seqloom.training.trainer import EvaluationSettings, SeqloomTrainer
from tests.toy import TINY, toy_pairs

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("load", ["everywhere", pytest.param("rank0", marks=pytest.mark.slow)])
def test_two_shards_are_one_model(tmp_path, tied, load):
    command = [*LAUNCH, "-m", "tests.system.test_fsdp", str(tmp_path), str(int(tied)), load]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("all equal") == 2
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    tables = {"lm_head.weight", "model.decoder.embed_tokens.weight", "model.encoder.embed_tokens.weight"}
    assert len(tables & set(saved)) == (1 if tied else 3)


def build_trainer(folder, model):
    """Return a trainer around a model, whose plan and data play no role here."""
    words = train_tokenizer(["ab", "ba"], ["ab", "ba"], kind="char", vocab_size=265, show_progress=False)
    rows = {"input_ids": [[4, 5, 2]] * 4, "labels": [[5, 4, 2]] * 4}
    arguments = Seq2SeqTrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True, disable_tqdm=True)
    return SeqloomTrainer(
        model,
        arguments,
        tokenizers=words,
        batching=BatchSettings(100),
        evaluation=EvaluationSettings(("exact_match",), num_beams=2, max_new_tokens=8),
        train_dataset=Dataset.from_dict(rows),
    )


def shard(model, load):
    """Shard a model as `accelerate launch` with fsdp2.yaml does."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=load == "rank0",
        state_dict_type="FULL_STATE_DICT",
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh=None,
        mixed_precision="no",
        is_main_process=dist.get_rank() == 0,
        device=torch.device("cpu"),
        parallelism_config=None,
    )
    return fsdp2_prepare_model(accelerator, model)


def compare_with_one_process(folder, tied, load):
    """Compare loss, gradients, outputs and the saved folder of two shards with those of the whole model."""
    torch.manual_seed(0)
    config = seqloom.SeqloomConfig(**{**TINY, "tie_word_embeddings": tied})
    whole = seqloom.SeqloomForConditionalGeneration(config).train()
    whole.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0, bos_token_id=1, decoder_start_token_id=1)
    trainer = build_trainer(folder / "run", copy.deepcopy(whole))
    trainer.model = trainer.model_wrapped = model = shard(trainer.model, load)
    trainer.is_fsdp_enabled = True
    dist.fsdp.register_fsdp_forward_method(model, "generate")  # Trainer does it after its wrapping

    source, mask, labels = toy_pairs(8)
    num_items = (labels != -100).sum()
    rank = dist.get_rank()
    mine = slice(0, 3) if rank == 0 else slice(3, 8)  # an uneven share
    inputs = {"input_ids": source[mine], "attention_mask": mask[mine], "labels": labels[mine]}
    loss = trainer.compute_loss(model, inputs, num_items_in_batch=num_items)  # times two, for gradients are averaged
    loss.backward()
    total = loss.detach().clone() / 2
    dist.all_reduce(total)
    expected = whole(input_ids=source, attention_mask=mask, labels=labels, num_items_in_batch=num_items).loss
    expected.backward()
    torch.testing.assert_close(total, expected.detach())
    gradients = {name: weight.grad for name, weight in whole.named_parameters()}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(weight.grad.full_tensor(), gradients[name], rtol=1e-5, atol=1e-6, msg=name)
    assert (model.lm_head.weight is model.model.encoder.embed_tokens.weight) == tied

    with torch.no_grad():  # one process is done after two words and has to help the other on
        whole.eval(), model.eval()
        trainer.evaluation = EvaluationSettings(("exact_match",), num_beams=2, max_new_tokens=2 + 6 * rank)
        written = trainer.decode(inputs)
        expected = whole.generate(source[mine], attention_mask=mask[mine], num_beams=2, max_new_tokens=2 + 6 * rank)
    assert written.tolist() == expected.tolist()

    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    trainer._save(str(folder / "saved"), state_dict=state)
    if rank == 0:
        loaded = seqloom.SeqloomForConditionalGeneration.from_pretrained(folder / "saved")
        for name, weight in whole.named_parameters():
            assert torch.equal(dict(loaded.named_parameters())[name], weight), name
    dist.barrier()
    print("all equal", flush=True)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    compare_with_one_process(Path(sys.argv[1]), bool(int(sys.argv[2])), sys.argv[3])
    dist.destroy_process_group()
