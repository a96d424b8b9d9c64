"""The Trainer hooks that concern the model card and the Hub.

Trainer's own card knows nothing of the run's data and overwrites an edited README.md; its push sends the folder without
the code of the network, but with the pickle of its arguments and whatever lies in `run/`, and its repositories are as
public as the owner's settings are. Here the card is Seqloom's, a push is what `seqloom push` sends, and a repository is
private unless `hub_private_repo` is false.
"""

import logging
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy

from seqloom.hub.model_card import write_model_card
from seqloom.hub.push import create_repository, push_folder
from seqloom.training.fault_tolerance.checkpoints import STAGING, update_of

logger = logging.getLogger(__name__)


class PushingTrainer(Trainer):
    """A Trainer whose checkpoints have a model card and whose pushes are whole folders."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make sure before training that the repository exists and takes our token.

        Args:
            token: None: the arguments' `hub_token`, or the one that is logged in.
            private: None: the arguments' `hub_private_repo`, or true.

        Raises:
            ValueError: if the Hub refuses, or `hub_strategy` asks for pickles to be sent.
        """
        if not self.is_world_process_zero():
            return
        if self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"hub_strategy={self.args.hub_strategy.value} would send optimizer states, which are pickles; use end, "
                f"or every_save to send each running checkpoint without them."
            )
        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        private = self.args.hub_private_repo if private is None else private
        self.hub_model_id, _ = create_repository(
            name, private=private is not False, token=self._token(token), revision=self.args.hub_revision
        )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write Seqloom's card at the top of the folder; what it says comes from the run, not from arguments."""
        if args or kwargs.keys() - {"model_name"}:
            logger.warning("Arguments of create_model_card are ignored: recipe and run folder say what a card says.")
        if self.is_world_process_zero():
            write_model_card(self.args.output_dir, self.hub_model_id)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model, write its card, and send the folder as `seqloom push` does.

        Args:
            commit_message: of the commit.
            blocking: without effect; the call returns when the folder has arrived.
            token: None: the arguments' `hub_token`, or the one that is logged in.
            revision: the branch; None: the arguments' `hub_revision`, or main.
            private: for a repository that does not exist yet.
            kwargs: for `create_model_card`.

        Returns:
            What was sent, on process 0; None elsewhere.

        Raises:
            ValueError: if the Hub refuses or the connection breaks.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        self.create_model_card(**kwargs)
        return self.push_as_saved(commit_message or "End of training", token=token, revision=revision)

    def push_as_saved(self, message: str, *, token: str | None = None, revision: str | None = None) -> Any:
        """Send the folder as it is on disk; see `push_to_hub`."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        return self._send(self.args.output_dir, message, token, revision) if self.is_world_process_zero() else None

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Send a running checkpoint, which is a whole folder; a push that fails does not end the training.

        Trainer asks while the checkpoint is staged, `ResumableTrainer` once more when it stands in its place.
        """
        is_staged = Path(checkpoint_folder).parent.name == STAGING
        if is_staged or not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        try:
            self._send(checkpoint_folder, f"Training in progress, step {self.state.global_step}")
        except ValueError as error:
            logger.warning("The checkpoint at step %s was not pushed: %s", self.state.global_step, error)

    def write_checkpoint_card(self, folder: Path) -> None:
        """Write the card of a running checkpoint; the finished folder gets its own when the scores are known."""
        if update_of(folder) >= 0 and any(folder.glob("model*.safetensors")):
            write_model_card(folder, self.hub_model_id)

    def _send(self, folder: str, message: str, token: str | None = None, revision: str | None = None) -> Any:
        revision = revision or self.args.hub_revision
        return push_folder(folder, self.hub_model_id, token=self._token(token), revision=revision, message=message)

    def _token(self, token: str | None = None) -> str | None:
        return self.args.hub_token if token is None else token
