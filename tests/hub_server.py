"""A Hugging Face Hub on the loopback interface, for tests with the real `huggingface_hub` client.

    with Hub(tmp_path) as hub:
        done = hub.run("from huggingface_hub import create_repo; print(create_repo('tester/demo'))")
        assert done.returncode == 0, done.stderr
        assert "POST /api/repos/create 200" in hub.requests

It has what this project needs: models and data sets of one user, tokens to read and to write, large files by LFS. The
variable `HF_HUB_DISABLE_XET` keeps the client from the Xet protocol. The server shows what the client does, not what
huggingface.co would decide.

It is strict, so that a test can fail. It checks the sha256 of every upload and refuses to commit a large file that was
never uploaded. It enforces tokens, namespaces and `parentCommit`. A request without a route, or one that breaks the
server, fails the test when the `with` block ends. The server is also the proxy of its clients, so a request to another
host has no route either.

Large files come from a second port, which is another origin, as on the real Hub. The client would follow a redirect
to the same origin on HEAD, and the answer would lack `X-Repo-Commit`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import yaml

USER = "tester"
LARGE_SUFFIXES = (".arrow", ".bin", ".npz", ".parquet", ".pt", ".safetensors")
# Variables of the tests' own environment that would lead a client elsewhere.
MISLEADING = r"(HF|HUGGINGFACE|TRANSFORMERS)_.*(OFFLINE|CACHE|HOME|TOKEN.*|ENDPOINT)|.*_PROXY"
API = r"/api/(?:models/|(?=datasets/))(?P<repo>(?:datasets/)?[\w.-]+/[\w.-]+)"
PAGE = r"/(?P<repo>(?:datasets/)?[\w.-]+/[\w.-]+?)"


class Reply(NamedTuple):
    """An answer; a body that is not bytes is sent as JSON."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = {}


class HubError(Exception):
    """An answer with an error status; the client chooses its exception by `code`."""

    def __init__(self, status: int, message: str, code: str = "Error", headers: Mapping[str, str] = {}) -> None:
        super().__init__(message)
        self.reply = Reply({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message, **headers})


@dataclass
class Fault:
    """What goes wrong with the next requests of a method for a path in which the pattern is found."""

    method: str
    pattern: str
    times: float = 1  # how many requests are left to meet
    delay: float = 0.0  # seconds to wait before the answer
    status: int = 0  # an error to answer with
    cut: int | None = None  # bytes of the body after which the connection breaks


@dataclass(frozen=True)
class File:
    """The content of a file, in git or, if it is large, in LFS."""

    data: bytes
    large: bool

    @cached_property
    def oid(self) -> str:
        """The name of the content: the sha256 of a large file, the git blob id of another."""
        if self.large:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()


class Commit(NamedTuple):
    """All files of a repository at one time, by path."""

    sha: str
    files: Mapping[str, File]


@dataclass
class Repo:
    """A repository: its commits by sha, and by the name of a branch or tag."""

    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)

    def add(self, files: Mapping[str, File]) -> Commit:
        """Commit these files, and no others, to main."""
        commit = Commit(secrets.token_hex(20), files)
        self.commits[commit.sha] = self.commits["main"] = commit
        return commit


def repo_path(repo_id: str, repo_type: str = "model") -> str:
    """Where the page of a repository is: `user/name`, or `datasets/user/name`."""
    return repo_id if repo_type == "model" else f"{repo_type}s/{repo_id}"


def is_large(path: str, start: bytes) -> bool:
    """Whether a file belongs into LFS: by its name, or because it is binary; an empty one never does."""
    return len(start) > 0 and (path.endswith(LARGE_SUFFIXES) or b"\0" in start[:512])


def card_error(text: str) -> str:
    """What is wrong with the metadata at the top of a README; nothing if it is empty."""
    block = re.match(r"---\n(.*?)---\n", text, re.DOTALL)
    try:
        data = yaml.safe_load(block[1]) if block else {}
    except yaml.YAMLError as error:
        return f"YAML Metadata Error: {error}"
    right = isinstance(data, dict) and isinstance(data.get("pipeline_tag", ""), str)
    return "" if right else 'The metadata must be a mapping, and "pipeline_tag" a string'


def entries(commit: Commit) -> list[dict[str, Any]]:
    """Every file and every folder, as the Hub lists them."""
    found: dict[str, dict[str, Any]] = {}
    for path, file in commit.files.items():
        lfs = {"lfs": {"oid": file.oid, "size": len(file.data), "pointerSize": 130}} if file.large else {}
        found[path] = {"type": "file", "path": path, "oid": file.oid, "size": len(file.data), **lfs}
        for folder in map(str, PurePosixPath(path).parents[:-1]):
            oid = hashlib.sha1(folder.encode()).hexdigest()
            found[folder] = {"type": "directory", "path": folder, "oid": oid, "size": 0}
    return [found[path] for path in sorted(found)]


class Hub:
    """A loopback Hub, started by `with`.

    Args:
        folder: Where its temporary folder goes, with the clients' caches.

    Attributes:
        endpoint: The address for `HF_ENDPOINT`.
        storage: The address of the large files.
        token: An access token that may write to the repositories of `USER`.
        tokens: What every token allows, "write" or "read".
        repos: The repositories by the path of their page: `user/name`, or `datasets/user/name`.
        objects: The contents of the large files by sha256.
        faults: What goes wrong; the first fault that a request meets counts.
        requests: Method, unquoted path, and status of all requests, in the order of their answers.
        failures: Requests that had no route or broke the server.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.token = f"hf_{secrets.token_hex(17)}"
        self.tokens = {self.token: "write"}
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.failures: list[str] = []
        self.lock = threading.Lock()
        self._temporary = tempfile.TemporaryDirectory(dir=folder, prefix="hub-", ignore_cleanup_errors=True)
        handler = type("HubHandler", (Handler,), {"hub": self})
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> Hub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._temporary.cleanup()
        if self.failures and kind is None:
            raise AssertionError("\n".join(self.failures))

    def seed(self, repo_id: str, files: Mapping[str, bytes | str], repo_type: str = "model") -> Repo:
        """Add files to main without any request; there is a new repository if there was none."""
        repo = self.repos.setdefault(repo_path(repo_id, repo_type), Repo())
        tree = dict(repo.commits["main"].files) if repo.commits else {}
        for path, text in files.items():
            data = text.encode() if isinstance(text, str) else text
            tree[path] = File(data, is_large(path, data))
            if tree[path].large:
                self.objects[tree[path].oid] = data
        repo.add(tree)
        return repo

    def files(self, repo_id: str, repo_type: str = "model") -> dict[str, bytes]:
        """The contents of the files on main, by path."""
        commit = self.repos[repo_path(repo_id, repo_type)].commits["main"]
        return {path: file.data for path, file in commit.files.items()}

    def environment(self, **extra: str | None) -> dict[str, str]:
        """Variables for a client: this hub as endpoint and proxy, a fresh `HF_HOME`; `extra` sets or (None) removes."""
        changes: dict[str, str | None] = {name: None for name in os.environ if re.fullmatch(MISLEADING, name, re.I)}
        changes |= {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": self.token, "HF_HUB_DISABLE_XET": "1"}
        changes |= {"HF_HOME": tempfile.mkdtemp(dir=self._temporary.name, prefix="home-")}
        changes |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
        changes |= {"HTTP_PROXY": self.endpoint, "HTTPS_PROXY": self.endpoint, "NO_PROXY": "127.0.0.1,localhost"}
        return {name: value for name, value in {**os.environ, **changes, **extra}.items() if value is not None}

    def run(self, code: str, **extra: str | None) -> subprocess.CompletedProcess[str]:
        """Run Python code as a client of this hub, with the variables of `environment`."""
        command, environment = [sys.executable, "-c", textwrap.dedent(code)], self.environment(**extra)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    def next_fault(self, method: str, path: str) -> Fault:
        """The fault that a request meets, used up by one; a fault without effect if there is none."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault
        return Fault(method, path)


class Handler(BaseHTTPRequestHandler):
    """One connection to a hub. A route reads the request's `body`, the `args` of its path, and its token's `role`."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # every answer in one packet, sent at once: else each costs 40 ms
    disable_nagle_algorithm = True
    hub: Hub
    body: bytes
    args: dict[str, str]
    role: str

    def answer(self) -> None:
        """Answer one request."""
        size = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(size)
        if len(self.body) < size:  # the client is gone, killed for instance
            self.close_connection = True
            return
        # The target is the address of another host if the client takes this server for its proxy.
        path = urlsplit(self.path).path if self.path.startswith("/") else self.path
        fault = self.hub.next_fault(self.command, path)
        time.sleep(fault.delay)
        with self.hub.lock:
            try:
                reply = HubError(fault.status, "A fault").reply if fault.status else self._route(path)
            except HubError as error:
                reply = error.reply
            except Exception:
                reply = Reply({"error": "The test server broke"}, 500)
                self.hub.failures.append(f"{self.command} {path}: {traceback.format_exc()}")
            self.hub.requests.append(f"{self.command} {unquote(path)} {reply.status}")
        self._send(reply, fault.cut)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_CONNECT = answer

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: `Hub.requests` is the log."""

    def _send(self, reply: Reply, cut: int | None) -> None:
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(len(body)), **reply.headers}.items():
            self.send_header(name, value.replace("\n", " ").encode("ascii", "replace").decode())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def _route(self, path: str) -> Reply:
        for methods, pattern, function in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods:
                self.args = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                self.role = self._find_role(path)
                return function(self)
        self.hub.failures.append(f"{self.command} {path}: no route")
        raise HubError(404, "No route")

    def _find_role(self, path: str) -> str:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        if token and path.startswith(("/upload/", "/download/")):
            raise HubError(403, "The storage takes no API token")
        return self.hub.tokens.get(token, "")

    def _commit_to_read(self) -> Commit:
        """The commit that the path names, main without a name; a private repository is hidden from strangers."""
        repo, revision = self.hub.repos.get(self.args["repo"]), self.args.get("rev", "main")
        if repo is None or (repo.private and not self.role):
            raise HubError(404 if self.role else 401, "Repository not found", "RepoNotFound")
        if revision not in repo.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo.commits[revision]

    def _check_write(self, repo_path: str) -> None:
        if not self.role:
            raise HubError(401, "Invalid username or password.")
        if self.role != "write":
            raise HubError(403, "you must use a write token to write to a repository")
        if not repo_path.removeprefix("datasets/").startswith(f"{USER}/"):
            raise HubError(403, f"you have no rights in the namespace of {repo_path}")

    # Repositories and what is in them.

    def create_repo(self) -> Reply:
        wanted = json.loads(self.body)
        path = repo_path(f"{wanted.get('organization') or USER}/{wanted['name']}", wanted.get("type", "model"))
        self._check_write(path)
        answer = {"url": f"{self.hub.endpoint}/{path}"}
        if path in self.hub.repos:
            return Reply(answer | {"error": "You already created this repository"}, 409)
        self.hub.repos[path] = repo = Repo(private=wanted.get("visibility") == "private")
        repo.add({})
        return Reply(answer)

    def info(self) -> Reply:
        sha, files = self._commit_to_read()
        siblings = [{"rfilename": path} for path in files]
        return Reply({"id": self.args["repo"].removeprefix("datasets/"), "sha": sha, "tags": [], "siblings": siblings})

    def tree(self) -> Reply:
        folder = PurePosixPath(self.args.get("path", "."))
        below = [entry for entry in entries(self._commit_to_read()) if folder in PurePosixPath(entry["path"]).parents]
        if not below and folder.name:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        if re.search("recursive=true", self.path, re.IGNORECASE):
            return Reply(below)
        return Reply([entry for entry in below if PurePosixPath(entry["path"]).parent == folder])

    def resolve(self) -> Reply:
        commit, path = self._commit_to_read(), self.args["path"]
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        file = commit.files[path]
        if not file.large:
            return self.data(file, headers)
        headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(len(file.data))}
        headers["Location"] = f"{self.hub.storage}/download/{file.oid}/{quote(path)}"
        return Reply(b"", 302, headers)

    def data(self, file: File, headers: Mapping[str, str] = {}) -> Reply:
        """Answer with the content of a file, or with the range of it that the request asks for."""
        headers = {**headers, "ETag": f'"{file.oid}"'}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return Reply(file.data, headers=headers)
        size = len(file.data)
        start, stop = int(wanted[1]), min(int(wanted[2] or size) + 1, size)
        return Reply(file.data[start:stop], 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"})

    def dataset_viewer(self) -> Reply:
        raise HubError(404, "There is no dataset viewer here")

    # Writing: the client asks which files are large, uploads those to the storage, and commits them all.

    def preupload(self) -> Reply:
        self._check_write(self.args["repo"])
        known, answers = self._commit_to_read().files, []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            mode = "lfs" if is_large(path, base64.b64decode(file["sample"])) else "regular"
            oid = {"oid": known[path].oid} if path in known else {}
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **oid})
        return Reply({"files": answers})

    def lfs_batch(self) -> Reply:
        self._check_write(self.args["repo"])
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.hub.storage}/upload/{wanted['oid']}"}}}
            objects.append(wanted | ({} if wanted["oid"] in self.hub.objects else upload))
        return Reply({"transfer": "basic", "objects": objects})

    def validate_yaml(self) -> Reply:
        message = card_error(json.loads(self.body)["content"])
        return Reply({"errors": [{"message": message}] if message else [], "warnings": []}, 400 if message else 200)

    def commit(self) -> Reply:
        self._check_write(self.args["repo"])
        parent = self._commit_to_read()
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        if header["value"].get("parentCommit", parent.sha) != parent.sha:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for operation in operations:
            value = operation["value"]
            path = value["path"]
            if operation["key"] == "deletedFile":
                del files[path]
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise HubError(400, f"{path}: the LFS object {value['oid']} was never uploaded")
                files[path] = File(self.hub.objects[value["oid"]], large=True)
            else:
                data = base64.b64decode(value["content"])
                if is_large(path, data):
                    raise HubError(400, f"{path} is binary or large: it needs LFS")
                files[path] = File(data, large=False)
        sha = self.hub.repos[self.args["repo"]].add(files).sha
        return Reply({"commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{self.args['repo']}/commit/{sha}"})

    # The storage of large files. Whoever has an address may use it, so a token must not travel there.

    def upload(self) -> Reply:
        sha256 = hashlib.sha256(self.body).hexdigest()
        if sha256 != self.args["oid"]:
            raise HubError(400, f"The sha256 of the body is {sha256}, not {self.args['oid']}")
        self.hub.objects[sha256] = self.body
        return Reply(b"")

    def download(self) -> Reply:
        return self.data(File(self.hub.objects[self.args["oid"]], large=True))


ROUTES: list[tuple[str, str, Callable[[Handler], Reply]]] = [
    ("POST", "/api/repos/create", Handler.create_repo),
    ("GET", f"{API}(?:/revision/(?P<rev>[^/]+))?", Handler.info),
    ("GET", f"{API}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", Handler.tree),
    ("GET HEAD", f"{PAGE}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", Handler.resolve),
    ("GET", r"http://datasets-server\..+", Handler.dataset_viewer),
    ("POST", f"{API}/preupload/(?P<rev>[^/]+)", Handler.preupload),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", f"{API}/commit/(?P<rev>main)", Handler.commit),
    ("PUT", "/upload/(?P<oid>[0-9a-f]{64})", Handler.upload),
    ("GET", "/download/(?P<oid>[0-9a-f]{64})/.+", Handler.download),
]
