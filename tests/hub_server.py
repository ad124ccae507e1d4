"""A Hugging Face Hub on the loopback interface, for tests with the real `huggingface_hub` client.

    with Hub() as hub:
        done = hub.run("from huggingface_hub import create_repo; print(create_repo('tester/demo'))")
        assert done.returncode == 0, done.stderr
        assert ("POST", "/api/repos/create", 200) in hub.requests

The API and the large files have two ports of 127.0.0.1, that is two origins: the client follows a same-origin redirect
on HEAD and then misses `X-Repo-Commit`. The server is strict so that a test can fail: it checks the sha256 of what is
uploaded, refuses commits of objects that were never uploaded, enforces `parentCommit`, tokens and namespaces, and
refuses API tokens that leak to the storage. Refusals and paths without a route go to `Hub.failures`; leaving the `with`
block raises if there was a path without a route. Client processes use the server as their proxy, so a call to another
host is such a path too. All this proves what the client does, not what the real server would decide.

`Hub(xet=True)` makes the client use hf_xet with `casUrl: "local:///dir"`, a development feature that keeps the chunks
in a folder. Uploads and downloads work so with hf_xet 1.8.0. A process that uploads locks the folder until it ends (one
at a time, then), so readers get copies of it. `cut`, `fail` and `slow` do not reach these transfers.

Standard library only, except PyYAML (a dependency of huggingface_hub) for cards and hf_xet itself when `xet=True`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import shutil
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

LARGE = "7z arrow bin bz2 ckpt gz h5 joblib model msgpack npy npz onnx parquet pickle pkl pt pth safetensors tar zip"
GIT_ATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE.split()).encode()
ERROR_CODES = {400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict"}
PATH_PARTS = {
    "{K}": r"(?P<kind>models|datasets|spaces)",
    "{pre}": r"(?:(?P<kind>datasets|spaces)/)?",
    "{id}": r"(?P<id>[\w.-]+(?:/[\w.-]+?)??)",
    "{rev}": r"(?P<rev>[^/]+)",
    "{oid}": r"(?P<oid>[0-9a-f]{64})",
    "{path}": r"(?P<path>.+)",
}
XET_DOWNLOAD = """
import hf_xet, json, sys, time
folder, wanted = sys.argv[1], json.loads(sys.argv[2])
access = {"endpoint": f"local://{folder}", "token": "loopback", "token_expiry_unix_secs": int(time.time()) + 3600}
with hf_xet.XetSession().new_file_download_group(**access) as group:
    for oid, (name, size) in wanted.items():
        group.start_download_file(hf_xet.XetFileInfo(name, size), f"{folder}/{oid}")
"""
ROUTES: dict[str, list[tuple[list[str], re.Pattern[str], str, Callable[..., Any]]]] = {"api": [], "storage": []}


def route(methods: str, template: str, access: str = "", origin: str = "api") -> Callable[[Any], Any]:
    """Register a method of `Hub` for a path; `access` is "user", "read" or "write" if it needs a token or a repo."""
    pattern = re.compile(re.sub(r"\{\w+\}", lambda part: PATH_PARTS[part[0]], template))

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        ROUTES[origin].append((methods.split(), pattern, access, function))
        return function

    return register


class HubError(Exception):
    """An answer with an error status; a strict one is also a failure."""

    def __init__(self, status: int, message: str, code: str = "", strict: bool = False, **extra: Any) -> None:
        super().__init__(message)
        headers = {"X-Error-Code": code or ERROR_CODES.get(status, "Error"), "X-Error-Message": message}
        self.strict = strict
        self.reply = Reply({"error": message, **extra}, status, headers)


class Request(NamedTuple):
    """One line of the request log; the path is unquoted and has no query."""

    method: str
    path: str
    status: int


class Failure(NamedTuple):
    """A request without a route (`kind="unrouted"`), refused (`"refused"`), or that broke the server (`"crashed"`)."""

    kind: str
    method: str
    path: str
    reason: str


class Reply(NamedTuple):
    """What a route answers; a body that is not bytes is sent as JSON."""

    body: Any = b""
    status: int = 200
    headers: Mapping[str, str] = {}


class Account(NamedTuple):
    """Who a token stands for; without a token, nobody."""

    user: str = ""
    role: str = ""
    namespaces: tuple[str, ...] = ()


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path the pattern is found in."""

    kind: str
    method: str
    pattern: str
    value: float
    times: float


@dataclass(frozen=True)
class Blob:
    """The content of a file."""

    data: bytes
    lfs: bool = False
    xet_hash: str | None = None

    @cached_property
    def sha256(self) -> str:
        """The name of the LFS object."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def git_oid(self) -> str:
        """The git blob id, of the pointer file for LFS."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        data = pointer.encode() if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """This file in a listing."""
        size = len(self.data)
        lfs = {"lfs": {"oid": self.sha256, "sha256": self.sha256, "size": size, "pointerSize": 130}} if self.lfs else {}
        xet = {"xetHash": self.xet_hash} if self.xet_hash else {}
        return {"type": "file", "path": path, "oid": self.git_oid, "size": size, **lfs, **xet}


@dataclass
class Commit:
    """All files of a repository at one time."""

    tree: dict[str, Blob]
    sha: str = field(default_factory=lambda: secrets.token_hex(20))
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()))

    def entries(self, folder: str = "") -> list[dict[str, Any]]:
        """All files and folders below a folder."""
        found = {path: blob.entry(path) for path, blob in self.tree.items()}
        for parent in {str(parent) for path in self.tree for parent in Path(path).parents} - {"."}:
            oid = hashlib.sha1(f"{self.sha}/{parent}".encode()).hexdigest()
            found[parent] = {"type": "directory", "path": parent, "oid": oid, "size": 0}
        return [found[path] for path in sorted(found) if not folder or path.startswith(folder + "/")]

    def upload_mode(self, path: str, size: int, sample: bytes) -> str:
        """Whether a new file goes to git or to LFS: by `.gitattributes`, by size, or because it is binary."""
        attributes = self.tree.get(".gitattributes", Blob(b"")).data.decode().splitlines()
        patterns = [line.split()[0] for line in attributes if "filter=lfs" in line]
        large = size > 10 * 2**20 or b"\0" in sample[:512] or any(map(Path(path).match, patterns))
        return "lfs" if large and size else "regular"


@dataclass
class Repo:
    """A repository; `granted` are the users that a gated one lets in."""

    id: str
    type: str
    private: bool = False
    gated: str | bool = False
    sdk: str | None = None
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The start of its addresses."""
        return self.id if self.type == "model" else f"{self.type}s/{self.id}"

    def add(self, tree: dict[str, Blob], branch: str = "main") -> Commit:
        """Commit to a branch."""
        commit = Commit(tree)
        self.commits[commit.sha], self.branches[branch] = commit, commit.sha
        return commit

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a sha names."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]


@dataclass
class Call:
    """A request, with what its path and its token stand for."""

    method: str
    target: str
    headers: Message
    body: bytes
    args: dict[str, str] = field(default_factory=dict)
    account: Account = field(default_factory=Account)
    repo: Repo = field(default_factory=lambda: Repo("", ""))
    commit: Commit = field(default_factory=lambda: Commit({}))

    @cached_property
    def path(self) -> str:
        """The unquoted path, or the host that a proxy should connect to."""
        return unquote(self.target if self.method == "CONNECT" else urlsplit(self.target).path)

    @cached_property
    def query(self) -> dict[str, list[str]]:
        """The parameters after the question mark."""
        return parse_qs(urlsplit(self.target).query)

    @cached_property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def send(self, data: bytes, headers: dict[str, str]) -> Reply:
        """Answer with a file, or with the range of it that the request asks for."""
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not wanted or wanted[0] == "bytes=-":
            return Reply(data, headers=headers | {"Accept-Ranges": "bytes"})
        start = int(wanted[1]) if wanted[1] else max(len(data) - int(wanted[2]), 0)
        end = min(int(wanted[2]) + 1, len(data)) if wanted[1] and wanted[2] else len(data)
        if start >= end:
            raise HubError(416, f"Range not satisfiable: {len(data)} bytes")
        return Reply(data[start:end], 206, headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})


def card_data(text: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """The metadata at the top of a README, its errors and its warnings."""
    block = re.match(r"\s*---[ \t]*\r?\n(.*?)---[ \t]*(?:\r?\n|$)", text, re.DOTALL)
    if not block or not block[1].strip():
        return {}, [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return {}, [f"YAML Metadata Error: {error}"], []
    if not isinstance(data, dict):
        return {}, ["YAML Metadata Error: not a mapping"], []
    kinds: dict[str, tuple[type, ...]] = dict.fromkeys(("tags", "datasets", "metrics", "model-index"), (list,))
    kinds |= {"license": (str, list), "library_name": (str,), "pipeline_tag": (str,)}
    errors = [
        f'"{key}" must be {" or ".join(kind.__name__ for kind in known)}'
        for key, known in kinds.items()
        if not isinstance(data.get(key), (*known, type(None)))
    ]
    return data, errors, []


def xet_files(shard: bytes) -> Iterator[tuple[str, tuple[str, int]]]:
    """The files that a Xet shard describes: their sha256, then their Xet hash and size."""

    def digits(place: int) -> str:
        return "".join(f"{number:016x}" for number in struct.unpack_from("<4Q", shard, place))

    place = 48  # after the header; every record has 48 bytes, and a hash of ones ends the list
    while (name := digits(place)) != "f" * 64:
        flags, segments = struct.unpack_from("<2I", shard, place + 32)
        size = sum(struct.unpack_from("<I", shard, place + 48 * (1 + index) + 36)[0] for index in range(segments))
        place += 48 * (1 + segments * (2 if flags >> 31 else 1))  # bit 31: a verification record for each segment
        if flags >> 30 & 1:  # bit 30: a record with the sha256
            yield digits(place), (name, size)
            place += 48


class Handler(BaseHTTPRequestHandler):
    """Reads requests and writes the hub's answers."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: Server

    def answer(self) -> None:
        """Answer one request."""
        content = self.read_body()
        if len(content) < int(self.headers.get("Content-Length") or 0):  # the client is gone, killed for instance
            self.close_connection = True
            return
        call = Call(self.command, self.path, self.headers, content)
        reply, cut = self.server.hub.answer(self.server.origin, call)
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        kind = "application/octet-stream" if body is reply.body else "application/json"
        self.send_response(reply.status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **reply.headers}.items():
            self.send_header(name, value.replace("\n", " ").encode("ascii", "replace").decode())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        self.close_connection = self.close_connection or cut is not None

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_CONNECT = answer

    def read_body(self) -> bytes:
        """Read the body, whether it comes with its length or in chunks."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: `Hub.requests` is the log."""


class Server(ThreadingHTTPServer):
    """One of the two origins of a hub."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: Hub, origin: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub, self.origin = hub, origin
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing when a client goes away."""


class Hub:
    """A loopback Hub, started by `with`.

    Args:
        folder: Where its temporary folder goes, with the clients' caches.
        user: The name behind `token`, which may write to the namespaces of the user and of `orgs`.
        orgs: Organizations of the user.
        xet: Large files travel through hf_xet and a local folder, not through LFS.
        missing: Regular expressions of paths without a route that are no failures (by default, the dataset viewer).

    Attributes:
        endpoint: The address for `HF_ENDPOINT`.
        token: An access token with the role "write".
        requests: All requests as `(method, path, status)`, in the order of their answers.
        failures: What had no route, was refused, or broke the server; clear it if a test expects that.
        repos: The repositories by type and id.
        objects: The contents of the large files by sha256.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        user: str = "tester",
        orgs: Iterable[str] = (),
        xet: bool = False,
        missing: Iterable[str] = ("^/(info|parquet)$",),
    ) -> None:
        self.user, self.xet, self.missing = user, xet, tuple(missing)
        self.tokens: dict[str, Account] = {}
        self.token = self.add_token(f"hf_{secrets.token_hex(17)}", orgs=orgs)
        self.requests: list[Request] = []
        self.failures: list[Failure] = []
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self._xet_hashes: dict[str, str] = {}
        self._faults: list[Fault] = []
        self._temporary = tempfile.TemporaryDirectory(dir=folder, prefix="hub-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self._xet_folder = self.folder / "xet"
        self._xet_folder.mkdir()
        self._secret, self._lock = secrets.token_hex(8), threading.RLock()
        self._servers = [Server(self, "api"), Server(self, "storage")]
        self.endpoint, self.storage = (server.url for server in self._servers)

    def __enter__(self) -> Hub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._temporary.cleanup()
        broken = [str(failure) for failure in self.failures if failure.kind != "refused"]
        if broken and kind is None:
            raise AssertionError("\n".join(broken))

    def add_token(self, token: str, role: str = "write", user: str | None = None, orgs: Iterable[str] = ()) -> str:
        """Accept another token: of the same user, unless another one is named."""
        self.tokens[token] = Account(user or self.user, role, (user or self.user, *orgs))
        return token

    def seed(self, repo_id: str, files: Mapping[str, bytes | str], repo_type: str = "model", **state: Any) -> Repo:
        """Add files to main without any request; a new repository takes `private`, `gated`, `granted` and `sdk`."""
        with self._lock:
            if (repo_type, repo_id) not in self.repos:
                self.repos[repo_type, repo_id] = repo = Repo(repo_id, repo_type, **state)
                repo.add({".gitattributes": Blob(GIT_ATTRIBUTES)})
            repo = self.repos[repo_type, repo_id]
            parent, tree = repo.at("main"), {}
            for path, text in files.items():
                data = text.encode() if isinstance(text, str) else text
                tree[path] = Blob(data, parent.upload_mode(path, len(data), data) == "lfs")
                self.objects[tree[path].sha256] = data
            if files:
                repo.add(parent.tree | tree)
            return repo

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """The contents of a repository by path."""
        with self._lock:
            return {path: blob.data for path, blob in self.repos[repo_type, repo_id].at(revision).tree.items()}

    def fail(self, method: str, pattern: str, status: int = 500, times: float = 1) -> None:
        """Answer the next requests for a path with an error; the method "*" stands for any."""
        self._faults.append(Fault("fail", method, pattern, status, times))

    def cut(self, pattern: str, after_bytes: int, times: float = 1) -> None:
        """Drop the connection of the next downloads of a path after so many bytes of the body."""
        self._faults.append(Fault("cut", "GET", pattern, after_bytes, times))

    def slow(self, pattern: str, seconds: float, times: float = float("inf")) -> Fault:
        """Wait before answering requests for a path; the `times` of what is returned count down as they arrive."""
        self._faults.append(Fault("slow", "*", pattern, seconds, times))
        return self._faults[-1]

    def environment(self, **extra: str | None) -> dict[str, str]:
        """Variables for a client: this hub as endpoint and proxy, a fresh `HF_HOME`; `extra` sets or (None) removes."""
        inherited = r"(HF|HUGGINGFACE|TRANSFORMERS)_.*(OFFLINE|CACHE|HOME|TOKEN.*|ENDPOINT)|.*_PROXY|HF_HUB_DISABLE_XET"
        changes: dict[str, str | None] = {name: None for name in os.environ if re.fullmatch(inherited, name, re.I)}
        changes |= {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": self.token}
        changes |= {"HF_HOME": tempfile.mkdtemp(dir=self.folder, prefix="home-")}
        changes |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
        changes |= {"HTTP_PROXY": self.endpoint, "HTTPS_PROXY": self.endpoint, "NO_PROXY": "127.0.0.1,localhost"}
        changes |= {"HF_HUB_DISABLE_XET": None if self.xet else "1", **extra}
        return {name: value for name, value in {**os.environ, **changes}.items() if value is not None}

    def run(self, code: str, timeout: float = 300, **extra: str | None) -> subprocess.CompletedProcess[str]:
        """Run Python code as a client of this hub, with the variables of `environment`."""
        command = [sys.executable, "-c", textwrap.dedent(code)]
        environment = self.environment(**extra)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)

    # From a request to its route.

    def answer(self, origin: str, call: Call) -> tuple[Reply, int | None]:
        """The answer to a call, and after how many bytes to cut it, if at all."""
        time.sleep(self._fault("slow", call) or 0)
        status = self._fault("fail", call)
        with self._lock:
            try:
                if status is not None:
                    raise HubError(int(status), "An injected failure")
                answer = self._dispatch(origin, call)
                reply = answer if isinstance(answer, Reply) else Reply(answer)
            except HubError as error:
                reply = error.reply
                if error.strict:
                    self.failures.append(Failure("refused", call.method, call.path, str(error)))
            except Exception:
                reply = HubError(500, "The test server broke").reply
                self.failures.append(Failure("crashed", call.method, call.path, traceback.format_exc()))
            if call.commit.tree:
                reply = reply._replace(headers={"X-Repo-Commit": call.commit.sha, **reply.headers})
            self.requests.append(Request(call.method, call.path, reply.status))
        cut = self._fault("cut", call) if reply.body and reply.status < 300 else None
        return reply, None if cut is None else int(cut)

    def _fault(self, kind: str, call: Call) -> float | None:
        """Use up a fault that the call meets."""
        with self._lock:
            for fault in self._faults:
                met = fault.kind == kind and fault.times > 0 and fault.method in ("*", call.method)
                if met and re.search(fault.pattern, call.path):
                    fault.times -= 1
                    return fault.value
        return None

    def _dispatch(self, origin: str, call: Call) -> Any:
        path = urlsplit(call.target).path
        for methods, pattern, access, function in ROUTES[origin]:
            if call.method in methods and (match := pattern.fullmatch(path)):
                call.args = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                self._authorize(call, origin, access)
                return function(self, call)
        if not any(re.search(known, call.path) for known in self.missing):
            self.failures.append(Failure("unrouted", call.method, call.path, f"no route in {origin}"))
        raise HubError(404, f"No route for {call.method} {call.path}")

    def _authorize(self, call: Call, origin: str, access: str) -> None:
        sent = call.headers.get("Authorization")
        if origin == "storage":
            if sent or call.query.get("signature") != [self._signature(call.path.split("/")[1], call.args["oid"])]:
                raise HubError(403, "The storage takes signed addresses without an API token", strict=True)
            return
        if sent is not None:
            call.account = self.tokens.get(sent.removeprefix("Bearer "), call.account)
            if not call.account.user:
                raise HubError(401, "Invalid credentials in Authorization header", strict=True)
        if access in ("read", "write"):
            call.repo = self._find(call, call.args.get("kind", "models")[:-1], call.args["id"])
        if access == "write":
            self._check_write(call, call.repo.id)
        elif access == "user" and not call.account.user:
            raise HubError(401, "Invalid username or password.", strict=True)
        if access in ("read", "write"):
            call.commit = call.repo.at(call.args.get("rev", "main"))

    def _find(self, call: Call, repo_type: str, repo_id: str) -> Repo:
        repo = self.repos.get((repo_type, repo_id))
        if repo is None or (repo.private and repo_id.split("/")[0] not in call.account.namespaces):
            raise HubError(404 if call.account.user else 401, "Repository not found", "RepoNotFound")
        return repo

    def _check_write(self, call: Call, repo_id: str) -> None:
        if not call.account.user:
            raise HubError(401, "Invalid username or password.", strict=True)
        if call.account.role != "write":
            raise HubError(403, "you must use a write token to write to a repository", strict=True)
        if repo_id.split("/")[0] not in call.account.namespaces:
            raise HubError(403, f"you have no rights in the namespace of {repo_id}", strict=True)

    def _signature(self, action: str, oid: str) -> str:
        return hashlib.sha256(f"{self._secret}/{action}/{oid}".encode()).hexdigest()

    def storage_url(self, action: str, oid: str, name: str = "") -> str:
        """A signed address to "upload" an object to, or to "download" it from."""
        path = quote(f"/{action}/{oid}/{name}".rstrip("/"))
        return f"{self.storage}{path}?signature={self._signature(action, oid)}"

    # Accounts and repositories.

    @route("GET", "/api/whoami-v2", "user")
    def _whoami(self, call: Call) -> Any:
        user, role, namespaces = call.account
        orgs = [{"type": "org", "name": org, "fullname": org} for org in namespaces[1:]]
        token = {"type": "access_token", "accessToken": {"displayName": "loopback", "role": role}}
        return {"type": "user", "id": user, "name": user, "fullname": user, "orgs": orgs, "auth": token}

    @route("POST", "/api/repos/create", "user")
    def _create_repo(self, call: Call) -> Any:
        wanted = call.json
        repo_id = f"{wanted.get('organization') or call.account.user}/{wanted['name']}"
        repo_type = wanted.get("type") or "model"
        self._check_write(call, repo_id)
        if repo_type not in ("model", "dataset", "space") or (repo_type == "space") != ("sdk" in wanted):
            raise HubError(400, f"Unknown type {repo_type}, or a space without sdk", strict=True)
        url = f"{self.endpoint}/{Repo(repo_id, repo_type).path}"
        if (repo_type, repo_id) in self.repos:
            raise HubError(409, f"You already created this {repo_type} repo", url=url)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.seed(repo_id, {}, repo_type, private=private, sdk=wanted.get("sdk"))
        return {"url": url, "name": repo_id}

    @route("DELETE", "/api/repos/delete", "user")
    def _delete_repo(self, call: Call) -> Any:
        repo_id = f"{call.json.get('organization') or call.account.user}/{call.json['name']}"
        repo = self._find(call, call.json.get("type") or "model", repo_id)
        self._check_write(call, repo_id)
        del self.repos[repo.type, repo.id]
        return {}

    @route("POST", "/api/validate-yaml")
    def _validate_yaml(self, call: Call) -> Any:
        errors, warnings = ([{"message": text} for text in texts] for texts in card_data(call.json["content"])[1:])
        if errors:
            raise HubError(400, "Invalid metadata in README.md", errors=errors, warnings=warnings)
        return {"errors": errors, "warnings": warnings}

    @route("GET", "/api/{K}/{id}(?:/revision/{rev})?", "read")
    def _info(self, call: Call) -> Any:
        repo, commit = call.repo, call.commit
        card = card_data(commit.tree.get("README.md", Blob(b"")).data.decode())[0]
        tags = [*(card.get("tags") or []), *([f"license:{card['license']}"] if card.get("license") else [])]
        siblings = [
            {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"], "lfs": entry.get("lfs")}
            for entry in commit.entries()
            if entry["type"] == "file"
        ]
        info: dict[str, Any] = {
            "id": repo.id,
            "author": repo.id.split("/")[0],
            "sha": commit.sha,
            "lastModified": commit.date,
        }
        info |= {"private": repo.private, "gated": repo.gated, "disabled": False, "downloads": 0, "likes": 0}
        info |= {key: card[key] for key in ("pipeline_tag", "library_name") if key in card}
        info |= {"sdk": repo.sdk} if repo.sdk else {}
        return info | {"tags": tags, "cardData": card, "siblings": siblings}

    @route("GET", "/api/{K}/{id}/refs", "read")
    def _refs(self, call: Call) -> Any:
        def listed(kind: str, known: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in known.items()]

        return {"branches": listed("heads", call.repo.branches), "tags": listed("tags", call.repo.tags), "converts": []}

    @route("POST DELETE", "/api/{K}/{id}/(?P<ref>branch|tag)/(?P<name>[^/]+)", "write")
    def _change_ref(self, call: Call) -> Any:
        known = call.repo.branches if call.args["ref"] == "branch" else call.repo.tags
        name, start = call.args["name"], "main"
        if call.method == "DELETE":
            if known.pop(name, None) is None:
                raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
            return {}
        if call.args["ref"] == "branch":
            start = call.json.get("startingPoint") or start
        else:
            name, start = call.json["tag"], name
        if name in known:
            raise HubError(409, f"Reference {name} exists already")
        known[name] = call.repo.at(start).sha
        return {}

    # Reading files.

    @route("GET", "/api/{K}/{id}/tree/{rev}(?:/{path})?", "read")
    def _tree(self, call: Call) -> Any:
        folder = call.args.get("path", "").strip("/")
        entries = call.commit.entries(folder)
        if folder and not entries:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        if call.query.get("recursive", [""])[0].lower() in ("true", "1"):
            return entries
        return [entry for entry in entries if "/" not in entry["path"][len(folder) + 1 if folder else 0 :]]

    @route("POST", "/api/{K}/{id}/paths-info/{rev}", "read")
    def _paths_info(self, call: Call) -> Any:
        paths = parse_qs(call.body.decode()).get("paths", [])
        return [entry for entry in call.commit.entries() if entry["path"] in paths]

    @route("GET HEAD", "/{pre}{id}/resolve/{rev}/{path}", "read")
    def _resolve(self, call: Call) -> Any:
        repo, path, user = call.repo, call.args["path"], call.account.user
        if repo.gated and user not in (repo.id.split("/")[0], *repo.granted):
            raise HubError(403 if user else 401, f"Access to {repo.type} {repo.id} is restricted.", "GatedRepo")
        blob = call.commit.tree.get(path)
        if blob is None:
            raise HubError(404, "Entry not found", "EntryNotFound")
        if not blob.lfs:
            return call.send(blob.data, {"ETag": f'"{blob.git_oid}"'})
        headers = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
        headers["Location"] = self.storage_url("download", blob.sha256, f"{repo.path}/{path}")
        if blob.xet_hash:
            token = f"{self.endpoint}/api/{repo.type}s/{repo.id}/xet-read-token/{call.commit.sha}"
            headers |= {"X-Xet-Hash": blob.xet_hash, "Link": f'<{token}>; rel="xet-auth"'}
        return Reply(b"", 302, headers)

    @route("GET HEAD", "/download/{oid}/{path}", origin="storage")
    def _download(self, call: Call) -> Any:
        return call.send(self.objects[call.args["oid"]], {"ETag": f'"{call.args["oid"]}"'})

    # Writing files.

    @route("POST", "/api/{K}/{id}/preupload/{rev}", "write")
    def _preupload(self, call: Call) -> Any:
        files = []
        for file in call.json["files"]:
            mode = call.commit.upload_mode(file["path"], file["size"], base64.b64decode(file["sample"]))
            known = call.commit.tree.get(file["path"])
            oid = {"oid": known.sha256 if known.lfs else known.git_oid} if known else {}
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
        return {"files": files}

    @route("POST", r"/{pre}{id}\.git/info/lfs/objects/batch", "write")
    def _lfs_batch(self, call: Call) -> Any:
        if call.json["operation"] != "upload" or call.json.get("hash_algo") != "sha256":
            raise HubError(422, "Only sha256 uploads are supported", strict=True)
        verify = {"href": f"{self.endpoint}/{call.repo.path}.git/info/lfs/verify"}
        objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in call.json["objects"]]
        for wanted in objects:
            if wanted["oid"] not in self.objects:
                upload = {"href": self.storage_url("upload", wanted["oid"])}
                wanted["actions"] = {"upload": upload, "verify": verify}
        return {"transfer": "basic", "objects": objects}

    @route("PUT", "/upload/{oid}", origin="storage")
    def _upload(self, call: Call) -> Any:
        actual = hashlib.sha256(call.body).hexdigest()
        if actual != call.args["oid"]:
            raise HubError(400, f"The sha256 of the body is {actual}, not {call.args['oid']}", strict=True)
        self.objects[actual] = call.body
        return Reply(headers={"ETag": f'"{actual}"'})

    @route("POST", r"/{pre}{id}\.git/info/lfs/verify", "write")
    def _lfs_verify(self, call: Call) -> Any:
        if len(self.objects.get(call.json["oid"], b"")) != call.json["size"]:
            raise HubError(404, f"Object {call.json['oid']} was not uploaded in full", strict=True)
        return {"message": "Uploaded successfully"}

    @route("POST", "/api/{K}/{id}/commit/{rev}", "write")
    def _commit(self, call: Call) -> Any:
        lines = [json.loads(line) for line in call.body.decode().split("\n") if line.strip()]
        header = lines[0]["value"] if lines and lines[0]["key"] == "header" else {}
        if call.args["rev"] not in call.repo.branches or not header.get("summary"):
            raise HubError(400, "A commit needs a summary and a branch", strict=True)
        if not call.commit.sha.startswith(header.get("parentCommit", "")):
            raise HubError(412, "A commit has happened since. Please refresh and try again.", strict=True)
        if self.xet:
            self._receive_xet([line["value"]["oid"] for line in lines if line["key"] == "lfsFile"])
        tree = dict(call.commit.tree)
        for key, value in ((line["key"], line["value"]) for line in lines[1:]):
            if key in ("file", "lfsFile"):
                tree[value["path"]] = self._new_file(call.commit, key, value)
            elif key in ("deletedFile", "deletedFolder"):
                path = value["path"].rstrip("/") + ("/" if key == "deletedFolder" else "")
                gone = [name for name in tree if name == path or (path[-1] == "/" and name.startswith(path))]
                if not gone:
                    raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                tree = {name: blob for name, blob in tree.items() if name not in gone}
            else:
                raise HubError(400, f"Unknown operation {key}", strict=True)
        number = sum(branch.startswith("refs/pr/") for branch in call.repo.branches) + 1
        commit = call.repo.add(tree, f"refs/pr/{number}" if "create_pr" in call.query else call.args["rev"])
        url = f"{self.endpoint}/{call.repo.path}"
        answer = {"success": True, "commitOid": commit.sha, "commitUrl": f"{url}/commit/{commit.sha}"}
        return answer | ({"pullRequestUrl": f"{url}/discussions/{number}"} if "create_pr" in call.query else {})

    def _new_file(self, parent: Commit, key: str, value: dict[str, Any]) -> Blob:
        path = value["path"]
        if {"", ".", "..", ".git"} & set(path.split("/")):
            raise HubError(400, f"Invalid path {path!r}", strict=True)
        if key == "lfsFile":
            data = self.objects.get(value["oid"])
            if data is None or value.get("size", len(data)) != len(data):
                raise HubError(400, f"{path}: the LFS object {value['oid']} was never uploaded", strict=True)
            return Blob(data, lfs=True, xet_hash=self._xet_hashes.get(value["oid"]))
        data = base64.b64decode(value["content"], validate=True)
        if parent.upload_mode(path, len(data), data) == "lfs":
            raise HubError(400, f"{path} is binary or large: it needs LFS", strict=True)
        if path == "README.md" and (errors := card_data(data.decode())[1]):
            raise HubError(400, f"Invalid metadata in README.md: {errors[0]}", strict=True)
        return Blob(data)

    # Xet.

    @route("GET", "/api/{K}/{id}/xet-(?P<access>read|write)-token/{rev}", "read")
    def _xet_token(self, call: Call) -> Any:
        if not self.xet:
            raise HubError(404, "This server was started without Xet", strict=True)
        if call.args["access"] == "write":
            self._check_write(call, call.repo.id)
        folder = self._xet_folder if call.args["access"] == "write" else self._xet_copy()
        answer = {"casUrl": f"local://{folder}", "accessToken": "loopback", "exp": int(time.time()) + 3600}
        names = {"casUrl": "X-Xet-Cas-Url", "accessToken": "X-Xet-Access-Token", "exp": "X-Xet-Token-Expiration"}
        return Reply(answer, headers={names[key]: str(value) for key, value in answer.items()})

    def _xet_copy(self) -> str:
        """A copy that can be read while a client has the folder locked."""
        return shutil.copytree(self._xet_folder, tempfile.mkdtemp(dir=self.folder, prefix="xet-"), dirs_exist_ok=True)

    def _receive_xet(self, oids: Iterable[str]) -> None:
        """Fetch what the client uploaded with hf_xet, and check its sha256."""
        files = {oid: file for path in self._xet_folder.rglob("*.mdb") for oid, file in xet_files(path.read_bytes())}
        wanted = {oid: files[oid] for oid in oids if oid in files and oid not in self.objects}
        if not wanted:
            return
        folder = self._xet_copy()
        subprocess.run([sys.executable, "-c", XET_DOWNLOAD, folder, json.dumps(wanted)], check=True, timeout=60)
        for oid, (name, _) in wanted.items():
            data = Path(folder, oid).read_bytes()
            if hashlib.sha256(data).hexdigest() != oid:
                raise HubError(400, f"The Xet object {name} does not have the sha256 {oid}", strict=True)
            self.objects[oid], self._xet_hashes[oid] = data, name
