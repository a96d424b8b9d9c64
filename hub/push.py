"""Sends a finished folder to a repository on the Hugging Face Hub, in one commit.

    seqloom push FOLDER REPO [--dry_run]
    seqloom copy FOLDER DEST                        -> copy_folder: the same files, on this machine
    SeqloomTrainer.push_to_hub (--push_to_hub)      -> push_folder -> create_repo, create_commit of huggingface_hub

One commit is all or nothing: when the connection breaks, the repository is what it was, and the next try does not send
again what has arrived. So `upload_folder` is not used, for it makes as many commits as it sees fit (huggingface_hub
1.31 to 2.4), and it wants the card as a file in the folder. A new repository is private unless asked to be public.

What goes: the model, its tokenizers, its code, its canary and its card. What stays: running checkpoints, optimizer
states and pickles, hidden files, and `run/`, whose records quote the data; its facts are in the card.
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.configuration.suggestion import did_you_mean
from seqloom.hub.files import RUN_FOLDERS, SEAL_NAME, names_below
from seqloom.hub.model_card import CARD_NAME, card_bytes
from seqloom.hub.quoting import shown
from seqloom.hub.verify import EARLIER, RELEASES, check_code, check_folder

LEFT_AT_HOME = (
    *(*RUN_FOLDERS, "_*", "run", SEAL_NAME),  # a run's
    *("training_args.bin", "trainer_state.json", "optimizer*", "scheduler*", "scaler*", "rng_state*"),  # Trainer's
    *("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt"),  # pickles run code when they are opened
    *(".*", "__pycache__", "runs", "events.out.tfevents.*", "*.tmp"),
)
"""Names of files and folders that do not go into a repository, at any depth."""

# validate_repo_id of huggingface_hub 1.31 lets other letters, a longer owner and a line end pass.
REPO_RULE = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*(?<![.-])(/[A-Za-z0-9][\w.-]*(?<![.-]))?", re.ASCII)
MAX_REPO_NAME = 96
HARMLESS = frozenset({".gitattributes", CARD_NAME, "LICENSE", "LICENSE.md", "LICENSE.txt"})
"""Files of a repository that hold no model."""


class HubError(ValueError):
    """Something stands between a folder and its repository; nothing was lost."""


@dataclass(frozen=True)
class PushFile:
    """One file of a push."""

    path: str
    """In the repository, with forward slashes."""
    content: Path | bytes
    """Where it lies, or what it says."""

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class PushReport:
    """What a push has done."""

    repo: str
    """Its full name, `owner/name`."""
    url: str
    files: tuple[PushFile, ...]
    is_new: bool
    """Whether the repository was made for this push."""
    is_private: bool | None
    """None where the Hub did not say."""


def plan_push(folder: str | PathLike[str], repo: str | None, *, with_run: bool = False) -> list[PushFile]:
    """Check a folder and list what of it goes into a repository; nothing is sent and nothing is written.

    Args:
        folder: a model.
        repo: `owner/name`; the card's usage code names it; None: no repository, and the card names what it knows.
        with_run: send `run/` too, which quotes the data.

    Raises:
        ValueError: if the folder is no model, or one that should not be opened; if its code is none that Seqloom wrote;
            if `repo` is no name.
    """
    if repo is not None:
        check_repo_name(repo)
    check_folder(folder)
    check_code(folder, concerns=belongs)
    contents: dict[str, Path | bytes] = {
        name: Path(folder) / name for name in names_below(folder) if belongs(name, with_run=with_run)
    }
    card = contents[CARD_NAME] = card_bytes(folder, repo)
    try:
        card.decode()
    except UnicodeDecodeError as error:
        if repo is not None:
            card_file = shown(Path(folder) / CARD_NAME)
            raise HubError(f"{card_file} is no UTF-8, and the Hub takes no other card; save it so.") from error
    return [PushFile(name, content) for name, content in sorted(contents.items())]


def copy_folder(folder: str | PathLike[str], output: str | PathLike[str], *, with_run: bool = False) -> list[PushFile]:
    """Copy what a push would send, whole or not at all; into an empty folder that is there, file by file.

    Args:
        folder: a model.
        output: where; it must not exist, or be empty.
        with_run: copy `run/` too, which quotes the data.

    Returns:
        The files that were copied.

    Raises:
        ValueError: if the folder is no model, or one that should not be opened; if `output` holds something.
    """
    files, output = plan_push(folder, None, with_run=with_run), Path(output).absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{shown(output)} holds something; name a folder that does not exist, or empty this one.")
    output.parent.mkdir(parents=True, exist_ok=True)
    name = f".{output.name}.{uuid4().hex[:8]}.part"
    is_there = output.exists()  # a mount, or where the shell stands: it is filled, not replaced
    staged = output / name if is_there else output.with_name(name)
    try:
        write_files(files, staged)
        if is_there:
            for entry in sorted(staged.iterdir()):
                entry.rename(output / entry.name)
        else:
            staged.rename(output)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return files


def write_files(files: Iterable[PushFile], folder: Path) -> None:
    """Write the files of a push below a folder, readable as the umask says, whatever the originals are."""
    for file in files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(file.content, bytes):
            target.write_bytes(file.content)
        else:
            shutil.copyfile(file.content, target)


def push_folder(
    folder: str | PathLike[str],
    repo: str,
    *,
    private: bool = True,
    with_run: bool = False,
    token: str | None = None,
    revision: str | None = None,
    message: str = "Upload a Seqloom model",
) -> PushReport:
    """Send a folder to a repository, which is made if it does not exist.

    Args:
        folder: a model.
        repo: `owner/name`, or `name` for one of the token's owner.
        private: whether a new repository is private; an existing one stays as it is.
        with_run: send `run/` too, which quotes the data.
        token: None: the one that `hf auth login` or HF_TOKEN left.
        revision: the branch; None: main.
        message: of the commit.

    Raises:
        ValueError: if the folder is no model, or the Hub refuses, or the connection breaks; the folder and what was in
            the repository are as they were.
    """
    plan_push(folder, repo, with_run=with_run)  # what is wrong with the folder is said before anybody is asked
    api = HfApi(token=token)
    repo, is_new = create_repository(repo, private=private, token=token, revision=revision)
    files = plan_push(folder, repo, with_run=with_run)  # the card names the owner
    with _explained(api, repo):
        info = api.model_info(repo, revision=revision)
        stale = [] if is_new else _stale_files(info, files)
        operations: list[Any] = [CommitOperationAdd(file.path, file.content) for file in files]
        operations += [CommitOperationDelete(path) for path in stale]
        api.create_commit(repo, operations, commit_message=message, revision=revision)
    return PushReport(repo, f"{api.endpoint}/{repo}", tuple(files), is_new, info.private)


def create_repository(
    repo: str, *, private: bool = True, token: str | None = None, revision: str | None = None
) -> tuple[str, bool]:
    """Make sure that a repository and its branch exist, may hold a Seqloom model, and take our token.

    Args:
        repo: `owner/name`, or `name` for one of the token's owner.
        private: whether a new one is private.
        token: None: the one that `hf auth login` or HF_TOKEN left.
        revision: the branch, made of main where there is none of this name; None: main.

    Returns:
        Its full name, and whether it was made just now.

    Raises:
        ValueError: for a wrong name, a missing or refused token, a repository that is somebody else's or holds
            something else.
    """
    check_repo_name(repo)
    api = HfApi(token=token)
    if token is None and huggingface_hub.get_token() is None:
        raise HubError(
            f"no Hugging Face token is set, and {repo} can only be written with one; run `hf auth login`, or set "
            f"HF_TOKEN."
        )
    with _explained(api, repo):
        owner = api.whoami()["name"]
        full_name = repo if "/" in repo else f"{owner}/{repo}"
        try:
            full_name, is_new = api.create_repo(full_name, private=private).repo_id, True
        except HfHubHTTPError as error:
            if _status(error) not in (403, 409):  # 403: a token that may make none, and write to this one
                raise
            if _status(error) == 403 and not api.repo_exists(full_name):
                raise
            is_new = False
        if not is_new:
            _refuse_other_model(full_name, api.model_info(full_name))
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(full_name, branch=revision, exist_ok=True)
        return full_name, is_new


def check_repo_name(repo: str) -> None:
    """Refuse what cannot be the name of a repository.

    Raises:
        HubError: with the rule and, where it can be guessed, the name that was meant.
    """
    if REPO_RULE.fullmatch(repo) and max(map(len, repo.split("/"))) <= MAX_REPO_NAME:
        return
    meant = re.fullmatch(r"(?:https?://[^/]+/|hf://)([\w.-]+/[\w.-]+?)(?:\.git|/.*)?", repo)
    hint = f"write {meant[1]}" if meant else "e.g. alice/date-normaliser"
    raise HubError(
        f"{repo!r} is not the name of a repository: it is owner/name, each of letters, digits, - _ and ., at most "
        f"{MAX_REPO_NAME} characters, without -- and ..; {hint}."
    )


def belongs(path: str, *, with_run: bool = False) -> bool:
    """Return whether a file, named relative to the folder and with forward slashes, belongs into a repository.

    `with_run` lets `run/` go too, but not the vocabulary that it holds a second time.
    """
    parts = PurePosixPath(path).parts
    if with_run and parts[0] == "run":
        parts = parts[1:]
        if parts[0] == "tokenizer":
            return False
    return not any(fnmatch(part, pattern) for part in parts for pattern in LEFT_AT_HOME)


def describe_plan(files: Iterable[PushFile]) -> str:
    """Return a table of what goes: one line per file with its size, and the sum."""
    rows = [(file.num_bytes, file.path) for file in files]
    rows.append((sum(size for size, _ in rows), f"in {len(rows)} files"))
    return "\n".join(f"{format_size(size):>10}  {shown(path)}" for size, path in rows)


def describe_push(report: PushReport, *, asked_for_public: bool = False) -> str:
    """Return what a person wants to know after a push: where it is, who sees it, how it is loaded.

    A push that `asked_for_public` does not make an existing repository public, and is told so.
    """
    verb, end = ("Made", ".") if report.is_new else ("Updated", "; its earlier versions stay in its history.")
    url, repo = shown(report.url), shown(report.repo)  # as the server named them
    lines = [f"{verb} {url} ({'private' if report.is_private else 'public'}){end}"]
    if asked_for_public and report.is_private:
        lines.append(f"It stays private: an existing repository is made public at {url}/settings.")
    lines.append(f'Load it with pipeline("text-generation", model="{repo}", trust_remote_code=True).')
    return "\n".join(lines)


def describe_share(folder: str | PathLike[str]) -> str:
    """Say how much of a folder a push or a copy takes along, and what stays."""
    sizes = {name: (Path(folder) / name).stat().st_size for name in names_below(folder)}
    sent = sum(size for name, size in sizes.items() if belongs(name))
    return (
        f"{format_size(sent)} of {format_size(sum(sizes.values()))}; checkpoints stay, and run/, which quotes your text"
    )


def format_size(num_bytes: int) -> str:
    """1536 -> "1.5 kB"."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    power = 1 if num_bytes < 1000**2 else 2 if num_bytes < 1000**3 else 3
    return f"{num_bytes / 1000**power:.1f} {('kB', 'MB', 'GB')[power - 1]}"


def _stale_files(info: Any, files: Iterable[PushFile]) -> list[str]:
    """Return what of an earlier push this one does not replace, and would be read.

    One file of weights would be preferred to several shards, the target's vocabulary to one of both sides, and code
    that a release had and ours has not is foreign to `seqloom verify`.
    """
    sent = {file.path for file in files}
    code = {name for known in (*RELEASES.values(), *EARLIER.values()) for name in known}
    ours = re.compile(r"model[^/]*\.safetensors(\.index\.json)?|target/[^/]+\.json")
    return [path for path in _paths(info) if path not in sent and (ours.fullmatch(path) or path in code)]


def _refuse_other_model(repo: str, info: Any) -> None:
    """A slip of the finger must not replace another model of the same owner."""
    kind = (info.config or {}).get("model_type")
    files = [path for path in _paths(info) if path not in HARMLESS]
    if files and kind != SeqloomConfig.model_type:
        what = f"a model of the type {kind}" if kind else f"{files[0]} and no Seqloom model"
        raise HubError(
            f"{repo} exists and holds {shown(what)}, which this push would replace; push to another name, or delete "
            f"what it holds first."
        )


def _paths(info: Any) -> list[str]:
    return [sibling.rfilename for sibling in info.siblings or ()]


@contextmanager
def _explained(api: HfApi, repo: str) -> Iterator[None]:
    """Turn what goes wrong on the way into a sentence with the remedy."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubError(f"HF_HUB_OFFLINE=1 forbids to send anything to {repo}; unset it to push.") from error
    except (HTTPError, ConnectionError, TimeoutError, RuntimeError) as error:
        # huggingface_hub says "Error while uploading" as a RuntimeError whose cause is the error; hf_xet has no other.
        cause = error.__cause__ if type(error) is RuntimeError and error.__cause__ is not None else error
        explain = _explain_refusal if isinstance(cause, HfHubHTTPError) else _explain_break
        raise HubError(shown(explain(api, repo, cause))) from error


def _explain_break(api: HfApi, repo: str, error: BaseException) -> str:
    return (
        f"the connection to {api.endpoint} broke while pushing to {repo} ({type(error).__name__}: {error}); the folder "
        f"is unchanged, and a push is one commit: it has arrived whole or not at all. Start the same command again; "
        f"what has arrived is not sent twice."
    )


def _explain_refusal(api: HfApi, repo: str, error: Any) -> str:
    status = _status(error)
    if status == 401:
        return (
            f"{api.endpoint} does not accept the token (401); make one with write access at "
            f"{api.endpoint}/settings/tokens, then run `hf auth login`, or set HF_TOKEN."
        )
    if status in (403, 404):
        reason = getattr(error, "server_message", None)
        said = f" The server says: {reason.rstrip('.')}." if reason else ""
        return f"the token may not write to {repo} ({status}): {_whose(api, repo)}{said}"
    said = getattr(error, "server_message", None) or " ".join(str(error).split())
    return (
        f"{api.endpoint} answered {status} to the push to {repo}: {said.rstrip('.')}. Nothing was changed, here or "
        f"there; try again later."
    )


def _whose(api: HfApi, repo: str) -> str:
    """Say whose a repository is, and whose the token, as far as the Hub tells."""
    owner, _, name = repo.rpartition("/")
    try:
        known = api.whoami()
    except HTTPError:
        return f"{owner or repo} is not yours, or the token is read-only; take a token with write access."
    own = [known["name"], *(each["name"] for each in known.get("orgs", ()))]
    if owner in own:
        return f"it is read-only; take a token with write access to {owner} at {api.endpoint}/settings/tokens."
    near = did_you_mean(owner, own, "{}") or own[0]
    return f"it is {known['name']}'s, who is not {owner} and not in an organisation of this name; use {near}/{name}."


def _status(error: HfHubHTTPError) -> int:
    return int(error.response.status_code)


__all__ = [
    "HubError",
    "PushFile",
    "PushReport",
    "belongs",
    "check_repo_name",
    "copy_folder",
    "create_repository",
    "describe_plan",
    "describe_push",
    "describe_share",
    "format_size",
    "plan_push",
    "push_folder",
    "write_files",
]
