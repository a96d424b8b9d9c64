"""The configurations for `accelerate launch`, read by accelerate's own loader and launcher."""

import re
from importlib import resources
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import StateDictType
from torch.distributed.launcher.api import LaunchConfig

ROOT = Path(__file__).parents[2]
TYPES = {
    "one-gpu": DistributedType.NO,
    "multi-gpu": DistributedType.MULTI_GPU,
    "multi-node": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed": DistributedType.DEEPSPEED,
}
NODES = ["--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "10.0.0.1"]


def path_of(name):
    return str(resources.files("seqloom.configuration.accelerate") / f"{name}.yaml")


def launched(name, *flags):
    """Return what `accelerate launch --config_file ... FLAGS train.py` works with."""
    parser = launch_command_parser()
    arguments = parser.parse_args(["--config_file", path_of(name), *flags, "train.py"])
    return _validate_launch_command(arguments)[0]


def test_there_is_one_for_each_kind_of_hardware():
    folder = resources.files("seqloom.configuration.accelerate")
    assert {file.name for file in folder.iterdir() if file.name.endswith(".yaml")} == {f"{name}.yaml" for name in TYPES}
    page = (ROOT / "docs" / "DISTRIBUTED.md").read_text(encoding="utf-8")
    assert all(f"configuration/accelerate/{name}.yaml" in page for name in TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_accelerate_loads_it(name):
    config = load_config_from_file(path_of(name))
    assert config.distributed_type == TYPES[name]
    assert config.mixed_precision == "no"


@pytest.mark.parametrize("name", ["fsdp2", "deepspeed"])
def test_every_setting_is_one_that_the_launcher_knows(name):
    config = load_config_from_file(path_of(name))
    known = vars(launch_command_parser().parse_args(["train.py"]))
    settings = config.fsdp_config | config.deepspeed_config
    assert settings
    assert set(settings) <= set(known)


@pytest.mark.parametrize("name", [name for name in TYPES if name != "one-gpu"])
def test_the_number_of_processes_has_to_be_named(name):
    nodes = NODES if name == "multi-node" else []
    with pytest.raises(ValueError, match="--num_processes"):
        launched(name, *nodes)
    assert launched(name, "--num_processes", "4", *nodes).num_processes == 4


def test_two_machines_meet():
    arguments = launched("multi-node", "--num_processes", "16", *NODES)
    environment = prepare_multi_gpu_env(arguments)
    assert arguments.multi_gpu
    assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("2", "8", 1)
    assert arguments.rdzv_endpoint == "10.0.0.1:29500"
    assert "ACCELERATE_USE_FSDP" not in environment


def test_fsdp_reaches_the_training_process_as_version_2_that_saves_whole_models(monkeypatch):
    environment = prepare_multi_gpu_env(launched("fsdp2", "--num_processes", "2"))
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    for name, value in environment.items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert plugin.reshard_after_forward is True


def test_the_job_script_gives_the_processes_time_to_save(monkeypatch):
    """torchrun kills them after 30 s otherwise."""
    page = (ROOT / "docs" / "DISTRIBUTED.md").read_text(encoding="utf-8")
    seconds = int(re.search(r"^export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", page, re.MULTILINE)[1])
    before_the_end = int(re.search(r"^#SBATCH --signal=B:USR1@(\d+)", page, re.MULTILINE)[1])
    assert 60 < seconds < before_the_end
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(seconds))
    assert LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=1).shutdown_timeout == seconds
