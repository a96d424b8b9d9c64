"""A stand-in of the Hugging Face Hub on loopback: as much of its HTTP API as a push and a download use.

    with LoopbackHub() as hub:
        ...                 # HF_ENDPOINT=hub.url, HF_TOKEN=hub.ALICE, HF_HUB_DISABLE_XET=1

Repositories have commits with the whole tree each, large files go through the LFS protocol, private repositories are
hidden from strangers, and a card's YAML head is checked as the Hub checks it. `hub.cut` names a request at which the
connection is closed, `hub.answers` a status that a request is answered with instead.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

PIPELINE_TAGS = {"translation", "summarization", "text-generation", "fill-mask", "text-classification"}
"""Some of the tasks that the Hub knows; text2text-generation is none."""


@dataclass
class Repository:
    """One repository: every commit is a whole tree, the last one is main."""

    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.safetensors filter=lfs\n"}])
    messages: list[str] = field(default_factory=lambda: ["initial commit"])
    type: str = "model"
    branches: set[str] = field(default_factory=lambda: {"main"})
    """Names alone: there is one history."""

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{self.messages[-1]}{len(self.commits)}".encode()).hexdigest()


class LoopbackHub:
    """The server and what it holds."""

    ALICE, BOB, READER = "hf_alice", "hf_bob", "hf_reader"

    def __init__(self) -> None:
        self.users = {
            self.ALICE: {"name": "alice", "orgs": [{"name": "lab"}], "role": "write"},
            self.BOB: {"name": "bob", "orgs": [], "role": "write"},
            self.READER: {"name": "alice", "orgs": [], "role": "read"},
        }
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cut: str | None = None
        self.answers: dict[str, int] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: _Handler(self, *args))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, token: str | None = ALICE) -> dict[str, str]:
        """Variables for a process that shall talk to this Hub."""
        settings = {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return settings | ({"HF_TOKEN": token} if token else {})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: LoopbackHub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class calls it so)
        pass

    def do_GET(self) -> None:
        self.handle_request()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        if self.hub.cut and re.search(self.hub.cut, request):
            self.rfile.read(min(100, int(self.headers.get("Content-Length") or 0)))
            self.close_connection = True
            self.connection.close()
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for pattern, status in self.hub.answers.items():
            if re.search(pattern, request):
                self.reply({"error": f"status {status}"}, status)
                return
        for pattern, answer in ROUTES:
            if match := re.fullmatch(pattern, request):
                answer(self, *match.groups())
                return
        self.reply({"error": f"no such endpoint: {request}"}, 404)

    # What every answer needs

    def reply(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def user(self) -> dict[str, Any] | None:
        return self.hub.users.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def may_write(self, owner: str) -> bool:
        names = [self.user["name"], *(org["name"] for org in self.user["orgs"])] if self.user else []
        return owner in names and self.user is not None and self.user["role"] == "write"

    def repository(self, name: str, *, write: bool = False) -> Repository | None:
        """Find a repository that the asker may see (and change), or say why not."""
        found = self.hub.repositories.get(name)
        owner = name.split("/")[0]
        names = [self.user["name"], *(org["name"] for org in self.user["orgs"])] if self.user else []
        if found is None or (found.private and owner not in names):
            status = 404 if self.user else 401
            self.reply({"error": "Repository not found"}, status, {"X-Error-Code": "RepoNotFound"})
            return None
        if write and not self.may_write(owner):
            self.reply({"error": "You don't have the rights to write here"}, 403)
            return None
        return found

    # Answers

    def whoami(self) -> None:
        if self.user is None:
            self.reply({"error": "Invalid username or password."}, 401)
        else:
            self.reply({"type": "user", **self.user})

    def create(self) -> None:
        asked = self.json()
        owner = asked.get("organization") or (self.user or {}).get("name")
        name = f"{owner}/{asked['name']}"
        url = f"{self.hub.url}/{name}"
        if self.user is None:
            self.reply({"error": "Invalid username or password."}, 401)
        elif not self.may_write(owner):
            self.reply({"error": f"You don't have the rights to create a model under the namespace {owner!r}"}, 403)
        elif name in self.hub.repositories:
            self.reply({"error": "You already created this model repo", "url": url}, 409)
        else:
            private = asked.get("visibility") == "private" or asked.get("private") is True
            self.hub.repositories[name] = Repository(private, type=asked.get("type", "model"))
            self.reply({"url": url, "name": name, "id": name})

    def validate_yaml(self) -> None:
        errors = card_errors(self.json()["content"])
        answer = {"errors": [{"message": error} for error in errors], "warnings": []}
        self.reply(answer, 400 if errors else 200)

    def info(self, name: str, revision: str | None = None) -> None:
        if (found := self.repository(name)) is None:
            return
        config = json.loads(found.files.get("config.json", b"{}"))
        head = _yaml_head(found.files.get("README.md", b"").decode()) or {}
        self.reply(
            {
                "_id": "1",
                "id": name,
                "modelId": name,
                "sha": found.sha,
                "private": found.private,
                "tags": head.get("tags", []),
                "pipeline_tag": head.get("pipeline_tag"),
                "library_name": head.get("library_name"),
                "downloads": 0,
                "likes": 0,
                "config": {key: config[key] for key in ("model_type", "architectures") if key in config},
                "siblings": [{"rfilename": path} for path in sorted(found.files)],
            }
        )

    def tree(self, name: str, revision: str, folder: str | None = None) -> None:
        if (found := self.repository(name)) is None:
            return
        prefix = f"{folder.strip('/')}/" if folder else ""
        paths = [path for path in sorted(found.files) if path.startswith(prefix)]
        if prefix and not paths:
            self.reply({"error": f"{folder} does not exist"}, 404, {"X-Error-Code": "EntryNotFound"})
            return
        self.reply([{"type": "file", "path": path, **_describe(path, found.files[path])} for path in paths])

    def resolve(self, name: str, revision: str, path: str) -> None:
        if (found := self.repository(name)) is None:
            return
        if path not in found.files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": found.sha}
            self.reply({"error": "Entry not found"}, 404, headers)
            return
        content = found.files[path]
        self.reply(content, headers={"ETag": f'"{_describe(path, content)["oid"]}"', "X-Repo-Commit": found.sha})

    def branch(self, name: str, revision: str) -> None:
        if (found := self.repository(name, write=True)) is None:
            return
        self.reply({}, 409 if revision in found.branches else 201)
        found.branches.add(revision)

    def preupload(self, name: str, revision: str) -> None:
        if (found := self.repository(name, write=True)) is None:
            return
        if revision not in found.branches:
            self.reply({"error": f"Invalid rev id: {revision}"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        rows = []
        for file in self.json()["files"]:
            old = found.files.get(file["path"])
            oid = None if old is None else _describe(file["path"], old)["oid"]
            mode = "lfs" if is_large(file["path"]) else "regular"
            rows.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.reply({"files": rows})

    def lfs_batch(self, name: str) -> None:
        if self.repository(name, write=True) is None:
            return
        rows: list[dict[str, Any]] = []
        for asked in self.json()["objects"]:
            row = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                actions = {"upload": "objects", "verify": "verify"}
                row["actions"] = {
                    key: {"href": f"{self.hub.url}/{place}/{asked['oid']}"} for key, place in actions.items()
                }
            rows.append(row)
        self.reply({"transfer": "basic", "objects": rows})

    def lfs_upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.reply({"error": "the content is not what was announced"}, 422)
            return
        self.hub.objects[oid] = self.body
        self.reply({})

    def lfs_verify(self, oid: str) -> None:
        self.reply({}, 200 if oid in self.hub.objects else 404)

    def commit(self, name: str, revision: str) -> None:
        if (found := self.repository(name, write=True)) is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = dict(found.files)
        message = ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        found.commits.append(files)
        found.messages.append(message)
        self.reply({"success": True, "commitOid": found.sha, "commitUrl": f"{self.hub.url}/{name}/commit/{found.sha}"})


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    ("GET /api/whoami-v2", _Handler.whoami),
    ("POST /api/repos/create", _Handler.create),
    ("POST /api/validate-yaml", _Handler.validate_yaml),
    (rf"GET /api/(?:models|datasets)/{REPO}(?:/revision/([^/]+))?", _Handler.info),
    (rf"GET /api/(?:models|datasets)/{REPO}/tree/([^/]+)(/.+)?", _Handler.tree),
    (rf"POST /api/models/{REPO}/branch/([^/]+)", _Handler.branch),
    (rf"POST /api/models/{REPO}/preupload/([^/]+)", _Handler.preupload),
    (rf"POST /api/models/{REPO}/commit/([^/]+)", _Handler.commit),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /objects/(\w+)", _Handler.lfs_upload),
    (r"POST /verify/(\w+)", _Handler.lfs_verify),
    (rf"(?:GET|HEAD) /(?:datasets/)?{REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
]


def is_large(path: str) -> bool:
    """As .gitattributes of a new repository says."""
    return path.endswith((".safetensors", ".bin"))


def card_errors(card: str) -> list[str]:
    """What the Hub would find wrong with a model card's head; the rules of its documentation of model cards."""
    try:
        head = _yaml_head(card)
    except yaml.YAMLError as error:
        return [f"no valid YAML: {error}"]
    if head is None:
        return []
    errors = [
        f"{key} must be a string" for key in ("license", "library_name") if not isinstance(head.get(key, ""), str)
    ]
    if head.get("pipeline_tag", "translation") not in PIPELINE_TAGS:
        errors.append(f"pipeline_tag {head['pipeline_tag']} is unknown")
    errors += [
        f"language {code}" for code in head.get("language", []) if not re.fullmatch(r"[a-z]{2,3}|multilingual", code)
    ]
    for model in head.get("model-index", []):
        errors += [] if isinstance(model.get("name"), str) else ["model-index: name is missing"]
        for result in model["results"]:
            required = [
                (result, "task"),
                (result["task"], "type"),
                (result["dataset"], "type"),
                (result["dataset"], "name"),
            ]
            required += [(metric, key) for metric in result["metrics"] for key in ("type", "value")]
            errors += [f"model-index: {key} is missing" for mapping, key in required if mapping.get(key) in (None, "")]
    return errors


def _yaml_head(card: str) -> dict[str, Any] | None:
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    return yaml.safe_load(match[1]) if match else None


def _describe(path: str, content: bytes) -> dict[str, Any]:
    sha256 = hashlib.sha256(content).hexdigest()
    if is_large(path):
        return {"oid": sha256, "size": len(content), "lfs": {"oid": sha256, "size": len(content), "pointerSize": 130}}
    return {"oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), "size": len(content)}


@contextmanager
def logged_in(monkeypatch: Any, token_file: Path) -> Iterator[LoopbackHub]:
    """A Hub that knows alice, who is logged in, as huggingface_hub sees it in this process."""
    with LoopbackHub() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(token_file))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", server.ALICE)
        yield server
