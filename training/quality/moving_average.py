"""EMA: a second set of weights that follows the trained ones slowly, and is what gets evaluated and kept.

After each update, average = decay * average + (1 - decay) * weights (Polyak & Juditsky 1992), by torch's own
`AveragedModel`. The decay is lower at the start, (1 + n) / (10 + n) after n updates as in TensorFlow's
ExponentialMovingAverage: else the random first weights would still be a third of the average after 1 / (1 - decay)
updates. A checkpoint holds the raw weights, which training goes on with, and the average beside them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from seqloom.modeling.canary import share

FILE = "moving_average.safetensors"
"""Beside the raw weights in a checkpoint."""

_COUNT = "num_updates"


class MovingAverage(TrainerCallback):
    """The exponential moving average of a model's weights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start with a copy of the model, on its device.

        Args:
            model: what is trained; not sharded.
            decay: how much of the average is old after an update, in [0, 1).
        """
        self.model = model
        self.decay = decay
        self.averaged = AveragedModel(model)

    @property
    def num_updates(self) -> int:
        """How many updates the average has seen."""
        return int(self.averaged.n_averaged)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Follow the weights, once an update, however many micro-batches it had."""
        warm = (1 + self.num_updates) / (10 + self.num_updates)
        self.averaged.multi_avg_fn = get_ema_multi_avg_fn(min(self.decay, warm))
        self.averaged.update_parameters(self.model)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Load the best checkpoint's average too, where Trainer has loaded that model: its score was the average's."""
        if args.load_best_model_at_end and state.best_model_checkpoint:
            self.load_part(Path(state.best_model_checkpoint))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the model have the averaged weights for a while; afterwards it has its own again, to the bit."""
        raw = [parameter.detach().clone() for parameter in self.model.parameters()]
        self.take_over()
        try:
            yield
        finally:
            _copy(raw, self.model)

    def take_over(self) -> None:
        """Give the model the averaged weights for good."""
        if self.num_updates:
            _copy(list(self.averaged.module.parameters()), self.model)

    def save_part(self, checkpoint: Path) -> None:
        """Write the average into a checkpoint; every process calls, one writes."""
        if not PartialState().is_main_process:
            return
        state: dict[str, Tensor] = {name: p.detach() for name, p in self.averaged.module.named_parameters()}
        save_file({**state, _COUNT: self.averaged.n_averaged}, checkpoint / FILE)
        share(checkpoint / FILE)

    def load_part(self, checkpoint: Path) -> None:
        """Read what `save_part` wrote, to the bit.

        Raises:
            ValueError: when the checkpoint has no average.
        """
        if not (checkpoint / FILE).is_file():
            raise ValueError(
                f"{checkpoint} has no {FILE}, which ema_decay={self.decay} goes on from; start over: --resume never."
            )
        state = load_file(checkpoint / FILE)
        self.averaged.n_averaged.copy_(state.pop(_COUNT))
        with torch.no_grad():
            for name, parameter in self.averaged.module.named_parameters():
                parameter.copy_(state[name])


@torch.no_grad()
def _copy(weights: list[Any], model: nn.Module) -> None:
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        parameter.copy_(weight)
