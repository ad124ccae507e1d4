"""The loopback Hub, driven by the real `huggingface_hub` client in subprocesses."""

import hashlib
import http.client
import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from hub_server import Failure, Hub

WEIGHTS = hashlib.shake_256(b"weights").digest(3_000_000)
CARD = "---\nlicense: apache-2.0\ntags:\n- loopback\n---\n# Card\n"
PRELUDE = """
import hashlib, json, os, sys, tempfile
from pathlib import Path
import huggingface_hub as h
from huggingface_hub import HfApi, errors
from huggingface_hub.utils import disable_progress_bars
disable_progress_bars()
api = HfApi()
def error_of(call, *args, **kwargs):
    try:
        return repr(call(*args, **kwargs))
    except Exception as error:
        return type(error).__name__
def out(value):
    print(json.dumps(value))
"""


@pytest.fixture(params=[False], ids=["lfs"])
def hub(request, tmp_path):
    with Hub(tmp_path, orgs=["lab"], xet=request.param) as hub:
        yield hub


both_modes = pytest.mark.parametrize("hub", [False, True], ids=["lfs", "xet"], indirect=True)


def run(hub: Hub, code: str, **extra):
    """Run a snippet that calls `out` once, and return what it gave."""
    done = hub.run(PRELUDE + code, timeout=120, **extra)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def log(hub: Hub, pattern: str):
    return [entry for entry in hub.requests if pattern in entry.path]


def reasons(hub: Hub) -> str:
    """The refusals, taken out of the hub so that the test can end."""
    text = "\n".join(failure.reason for failure in hub.failures)
    hub.failures.clear()
    return text


def raw(url: str, method: str, path: str, body: bytes = b"", headers=None):
    """A request without the client."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    result = answer.status, dict(answer.headers), answer.read()
    connection.close()
    return result


def test_whoami_and_repositories(hub):
    found = run(
        hub,
        """
me = h.whoami()
url = h.create_repo("demo")
again = h.create_repo("demo", exist_ok=True)
conflict = error_of(h.create_repo, "demo")
h.create_repo("lab/shared", repo_type="dataset", private=True)
h.create_repo("show", repo_type="space", space_sdk="static")
ids = [url.repo_id, again.repo_id, url.repo_type]
h.delete_repo("tester/show", repo_type="space")
gone = error_of(h.delete_repo, "tester/show", repo_type="space")
h.delete_repo("tester/show", repo_type="space", missing_ok=True)
out([me["name"], me["auth"]["accessToken"]["role"], [o["name"] for o in me["orgs"]], ids, conflict, gone,
     h.repo_exists("tester/demo"), h.repo_exists("tester/nothing"), h.file_exists("tester/demo", ".gitattributes")])
""",
    )
    assert found[:3] == ["tester", "write", ["lab"]]
    assert found[3] == ["tester/demo", "tester/demo", "model"]
    assert found[4:] == ["HfHubHTTPError", "RepositoryNotFoundError", True, False, True]
    assert [entry.status for entry in log(hub, "/repos/create")] == [200, 409, 409, 200, 200]
    assert hub.repos["dataset", "lab/shared"].private and ("space", "tester/show") not in hub.repos
    assert hub.failures == []


@both_modes
def test_upload_and_download(hub, tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "sub" / "odd name#é.bin").write_bytes(b"\0\1" * 5000)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "empty.bin").write_bytes(b"")
    (folder / "README.md").write_text(CARD)
    found = run(
        hub,
        f"""
h.create_repo("demo")
info = h.upload_folder(repo_id="tester/demo", folder_path={str(folder)!r})
path = h.hf_hub_download("tester/demo", "model.safetensors")
data = Path(path).read_bytes()
snap = Path(h.snapshot_download("tester/demo"))
local = Path(h.snapshot_download("tester/demo", local_dir=tempfile.mkdtemp()))
out([info.oid, hashlib.sha256(data).hexdigest(), Path(path).resolve().name, snap.name,
     sorted(str(p.relative_to(snap)) for p in snap.rglob("*") if p.is_file()),
     (snap / "sub" / "odd name#é.bin").read_bytes() == b"\\0\\1" * 5000,
     (local / "model.safetensors").read_bytes() == data])
""",
    )
    sha = hashlib.sha256(WEIGHTS).hexdigest()
    names = sorted(
        [".gitattributes", "README.md", "config.json", "empty.bin", "model.safetensors", "sub/odd name#é.bin"]
    )
    assert found[1] == sha and found[3] == found[0] and found[4] == names and found[5:] == [True, True]
    files = hub.files("tester/demo")
    assert sorted(files) == names and files["model.safetensors"] == WEIGHTS and files["empty.bin"] == b""
    tree = hub.repos["model", "tester/demo"].at("main").tree
    assert [path for path in names if tree[path].lfs] == ["model.safetensors", "sub/odd name#é.bin"]
    assert found[2] == (tree["model.safetensors"].xet_hash if hub.xet else sha)  # the name in the client's cache
    assert bool(log(hub, "xet-write-token")) is hub.xet and bool(log(hub, "lfs/objects/batch")) is not hub.xet
    assert len(log(hub, f"/download/{sha}")) == (0 if hub.xet else 1)
    assert hub.failures == []


@both_modes
def test_unchanged_files_and_known_objects_are_not_sent_again(hub):
    found = run(
        hub,
        """
folder = Path(tempfile.mkdtemp())
(folder / "w.bin").write_bytes(hashlib.shake_256(b"weights").digest(3_000_000))
(folder / "a.txt").write_text("a")
h.create_repo("demo")
first = h.upload_folder(repo_id="tester/demo", folder_path=folder)
second = h.upload_folder(repo_id="tester/demo", folder_path=folder)
h.upload_file(path_or_fileobj=folder / "w.bin", path_in_repo="copy.bin", repo_id="tester/demo")
path = h.hf_hub_download("tester/demo", "copy.bin")
out([first.oid == second.oid, Path(path).read_bytes() == (folder / "w.bin").read_bytes()])
""",
    )
    assert found == [True, True]
    assert len(log(hub, "/commit/main")) == 2 and len(log(hub, "/upload/")) == (0 if hub.xet else 1)
    assert hub.files("tester/demo")["copy.bin"] == WEIGHTS and hub.failures == []


def test_xet_files_can_be_read_while_the_uploader_runs(tmp_path):
    code = "import huggingface_hub as h; print(len(open(h.hf_hub_download('tester/demo', 'w.bin'), 'rb').read()))"
    with Hub(tmp_path, xet=True) as hub:
        found = run(
            hub,
            f"""
import subprocess
h.create_repo("demo")
h.upload_file(path_or_fileobj=bytes(9999), path_in_repo="w.bin", repo_id="tester/demo")
environment = os.environ | {{"HF_HOME": tempfile.mkdtemp()}}
out(subprocess.run([sys.executable, "-c", {code!r}], env=environment, capture_output=True, text=True).stdout)
""",
        )
        assert found == "9999\n" and not log(hub, "/download/") and hub.files("tester/demo")["w.bin"] == bytes(9999)


def test_range_resume_after_a_cut(hub):
    hub.seed("tester/demo", {"w.bin": WEIGHTS})
    hub.cut(r"w\.bin", 1_000_000)
    found = run(
        hub,
        """
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 50_000
out(hashlib.sha256(Path(h.hf_hub_download("tester/demo", "w.bin")).read_bytes()).hexdigest())
""",
    )
    assert found == hashlib.sha256(WEIGHTS).hexdigest()
    assert [entry.status for entry in log(hub, "/download/")] == [200, 206] and hub.failures == []


def test_ranges(hub):
    hub.seed("tester/demo", {"a.txt": "0123456789"})
    path = "/tester/demo/resolve/main/a.txt"

    def ask(value):
        return raw(hub.endpoint, "GET", path, headers={"Range": value})

    assert [ask(f"bytes={part}")[2] for part in ("2-4", "7-", "-3", "0-99")] == [b"234", b"789", b"789", b"0123456789"]
    assert ask("bytes=2-4")[0] == 206 and ask("bytes=2-4")[1]["Content-Range"] == "bytes 2-4/10"
    assert ask("bytes=10-")[0] == 416 and ask("lines=1")[0] == 200
    status, headers, body = raw(hub.endpoint, "HEAD", path)
    assert (status, headers["Content-Length"], body) == (200, "10", b"") and headers["X-Repo-Commit"]


def test_commits_branches_tags_and_listings(hub):
    found = run(
        hub,
        """
from huggingface_hub import CommitOperationAdd as Add, CommitOperationDelete as Delete, CommitOperationCopy as Copy
r = "tester/demo"
h.create_repo(r)
files = {"a.txt": b"one", "d/b.txt": b"two", "d/e/c.bin": b"\\0" * 2000, "gone.txt": b"x"}
first = h.create_commit(r, [Add(k, v) for k, v in files.items()], commit_message="First")
h.create_tag(r, tag="v1", tag_message="one")
h.create_branch(r, branch="feature/x")
second = h.create_commit(r, [Add("a.txt", b"ONE"), Delete("gone.txt"), Delete("d/e/"), Copy("d/b.txt", "copy.txt"),
    Copy("d/e/c.bin", "moved.bin", src_revision="v1")],
    commit_message="Second", parent_commit=first.oid)
h.upload_file(path_or_fileobj=b"branch", path_in_repo="only.txt", repo_id=r, revision="feature/x")
read = lambda rev: Path(h.hf_hub_download(r, "a.txt", revision=rev)).read_text()
stale = error_of(h.create_commit, r, [Add("a.txt", b"no")], commit_message="Stale", parent_commit=first.oid)
tree = sorted((f.path, type(f).__name__) for f in h.list_repo_tree(r, revision="v1"))
deep = sorted(f.path for f in h.list_repo_tree(r, "d", revision="v1", recursive=True))
paths = {f.path: getattr(f, "size", None) for f in h.get_paths_info(r, ["d", "d/b.txt", "nope"], revision="v1")}
refs = h.list_repo_refs(r)
info = h.model_info(r, revision="v1", files_metadata=True)
answer = [read("main"), read("v1"), read("feature/x"), read(first.oid), stale, tree, deep, paths,
    sorted(b.name for b in refs.branches), [t.name for t in refs.tags], h.repo_exists(r),
    info.sha == first.oid, {s.rfilename: (s.size, bool(s.lfs)) for s in info.siblings}["d/e/c.bin"],
    error_of(h.create_tag, r, tag="v1"), error_of(h.create_branch, r, branch="main"),
    error_of(h.create_commit, r, [Delete("never.txt")], commit_message="Missing"),
    error_of(list, h.list_repo_tree(r, "never")), len({first.oid, second.oid})]
h.create_branch(r, branch="main", exist_ok=True)
h.delete_tag(r, tag="v1")
h.delete_branch(r, branch="feature/x")
out(answer + [error_of(h.model_info, r, revision="v1"), sorted(h.list_repo_files(r))])
""",
    )
    assert found[:5] == ["ONE", "one", "one", "one", "HfHubHTTPError"]
    assert found[5] == [
        [".gitattributes", "RepoFile"],
        ["a.txt", "RepoFile"],
        ["d", "RepoFolder"],
        ["gone.txt", "RepoFile"],
    ]
    assert found[6:8] == [["d/b.txt", "d/e", "d/e/c.bin"], {"d": None, "d/b.txt": 3}]
    assert found[8:11] == [["feature/x", "main"], ["v1"], True]
    assert found[11:13] == [True, [2000, True]]
    assert found[13:18] == [
        "HfHubHTTPError",
        "HfHubHTTPError",
        "RemoteEntryNotFoundError",
        "RemoteEntryNotFoundError",
        2,
    ]
    assert found[18:] == ["RevisionNotFoundError", [".gitattributes", "a.txt", "copy.txt", "d/b.txt", "moved.bin"]]
    assert hub.files("tester/demo")["moved.bin"] == bytes(2000)
    assert "A commit has happened since" in reasons(hub)


def test_cards(hub):
    found = run(
        hub,
        """
card = h.ModelCard("---\\nlicense: mit\\ntags: [x, y]\\n---\\n# Hello\\n")
card.validate()
h.create_repo("demo")
card.push_to_hub("tester/demo")
loaded = h.ModelCard.load("tester/demo")
info = h.model_info("tester/demo")
bad = Path(tempfile.mkdtemp()) / "README.md"
answers = []
for text in ("---\\nlicense: [\\n---\\n", "---\\ntags: words\\n---\\n", "---\\n- a\\n---\\n"):
    bad.write_text(text)
    answers.append(error_of(h.upload_file, path_or_fileobj=bad, path_in_repo="README.md", repo_id="tester/demo"))
wrong = h.ModelCard("---\\nlicense: {a: b}\\n---\\n")
answers += [error_of(wrong.validate), error_of(wrong.push_to_hub, "tester/demo")]
out([loaded.data.license, info.card_data.tags, "license:mit" in info.tags, answers])
""",
    )
    assert found == ["mit", ["x", "y"], True, ["ValueError"] * 5]
    assert len(log(hub, "/commit/")) == 1 and hub.failures == []


def test_not_found_and_forbidden(hub):
    hub.seed("tester/demo", {"a.txt": "a"})
    hub.seed("other/theirs", {"a.txt": "a"})
    hub.seed("other/secret", {"a.txt": "a"}, private=True)
    hub.seed("tester/mine", {"a.txt": "a"}, private=True)
    hub.seed("other/gated", {"a.txt": "a"}, gated="auto")
    hub.add_token("reader", role="read")
    found = run(
        hub,
        """
get = lambda *args, **kwargs: error_of(h.hf_hub_download, *args, **kwargs)
put = lambda r, **kwargs: error_of(h.upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id=r, **kwargs)
class_and_status = []
try:
    h.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="other/theirs")
except errors.HfHubHTTPError as error:
    class_and_status = [type(error).__name__, error.response.status_code, "namespace" in str(error)]
out({
    "repo": get("tester/none", "a.txt"), "revision": get("tester/demo", "a.txt", revision="v9"),
    "entry": get("tester/demo", "b.txt"), "private": get("other/secret", "a.txt"), "gated": get("other/gated", "a.txt"),
    "anonymous": get("tester/mine", "a.txt", token=False), "mine": "a.txt" in get("tester/mine", "a.txt"),
    "wrong": get("tester/demo", "a.txt", token="nonsense", force_download=True),
    "wrong whoami": error_of(h.whoami, token="nonsense"), "read": put("tester/demo", token="reader"),
    "read ok": "a.txt" in get("tester/demo", "a.txt", token="reader"), "anonymous put": put("tester/demo", token=False),
    "namespace": class_and_status, "create": error_of(h.create_repo, "other/new"), "none put": put("tester/none"),
    "revision put": put("tester/demo", revision="v9"), "snapshot": error_of(h.snapshot_download, "tester/none"),
    "gated info": h.model_info("other/gated").gated, "type": get("tester/demo", "a.txt", repo_type="dataset"),
    "read create": error_of(h.create_repo, "new", token="reader"),
})
""",
    )
    assert found == {
        "repo": "RepositoryNotFoundError",
        "revision": "RevisionNotFoundError",
        "entry": "RemoteEntryNotFoundError",
        "private": "RepositoryNotFoundError",
        "gated": "GatedRepoError",
        "mine": True,
        "anonymous": "RepositoryNotFoundError",
        "wrong": "ValueError",
        "wrong whoami": "HfHubHTTPError",
        "read": "HfHubHTTPError",
        "read ok": True,
        "anonymous put": "HfHubHTTPError",
        "namespace": ["HfHubHTTPError", 403, True],
        "create": "HfHubHTTPError",
        "none put": "RepositoryNotFoundError",
        "revision put": "RevisionNotFoundError",
        "snapshot": "RepositoryNotFoundError",
        "gated info": "auto",
        "type": "RepositoryNotFoundError",
        "read create": "HfHubHTTPError",
    }
    assert {failure.kind for failure in hub.failures} == {"refused"}
    text = reasons(hub)
    assert "Invalid credentials" in text and "write token" in text and "namespace of other/theirs" in text
    assert list(hub.files("tester/demo")) == [".gitattributes", "a.txt"]
    hub.repos["model", "other/gated"].granted.add("tester")
    assert run(hub, 'out(Path(h.hf_hub_download("other/gated", "a.txt")).read_text())') == "a"


def test_injected_failures(hub):
    hub.seed("tester/demo", {"a.txt": "a"})
    hub.fail("POST", "/commit/", status=500)
    hub.fail("GET", "/revision/v1", status=503, times=2)
    hub.slow("whoami", 0.5)
    found = run(
        hub,
        """
import time
put = lambda: h.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="tester/demo")
answers = [error_of(put), put().oid]
start = time.monotonic()
h.whoami()
out(answers + [time.monotonic() - start, error_of(h.model_info, "tester/demo", revision="v1")])
""",
    )
    assert found[0] == "HfHubHTTPError" and found[1] == hub.repos["model", "tester/demo"].at("main").sha
    assert found[2] >= 0.5 and found[3] == "HfHubHTTPError"
    assert [entry.status for entry in log(hub, "/commit/")] == [500, 200] and hub.failures == []


@both_modes
def test_datasets_round_trip(hub):
    found = run(
        hub,
        """
import datasets
rows = {"text": [f"row {i}" for i in range(50)], "label": list(range(50))}
train = datasets.Dataset.from_dict(rows)
datasets.DatasetDict(train=train, test=train.select(range(5))).push_to_hub("tester/rows")
back = datasets.load_dataset("tester/rows", split="train", streaming=True)
full = datasets.load_dataset("tester/rows", split="test")
train.push_to_hub("tester/rows", "second", split="train")
out([list(back) == [{"text": f"row {i}", "label": i} for i in range(50)], len(full),
     sorted(datasets.get_dataset_config_names("tester/rows"))])
""",
    )
    assert found == [True, 5, ["default", "second"]]
    files = hub.files("tester/rows", "dataset")
    assert files["data/train-00000-of-00001.parquet"][:4] == b"PAR1" and b"num_examples: 50" in files["README.md"]
    assert hub.failures == []


def test_evaluate_space(hub):
    hub.seed(
        "tester/always_one",
        {
            "README.md": "---\ntitle: One\nsdk: static\n---\n",
            "always_one.py": """
import datasets
import evaluate
class AlwaysOne(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)
    def _compute(self, predictions, references):
        return {"one": 1.0, "count": len(predictions)}
""",
        },
        "space",
        sdk="static",
    )
    found = run(
        hub,
        """
import evaluate
out(evaluate.load("tester/always_one").compute(predictions=[1, 2], references=[1, 2]))
""",
    )
    assert found == {"one": 1.0, "count": 2} and hub.failures == []


def test_space_repository(hub):
    found = run(
        hub,
        """
h.create_repo("app", repo_type="space", space_sdk="gradio")
h.upload_file(path_or_fileobj=b"print(1)", path_in_repo="app.py", repo_id="tester/app", repo_type="space")
h.upload_file(path_or_fileobj=b"\\0" * 99, path_in_repo="x.bin", repo_id="tester/app", repo_type="space")
path = h.hf_hub_download("tester/app", "x.bin", repo_type="space")
out([h.space_info("tester/app").sdk, Path(path).read_bytes() == b"\\0" * 99])
""",
    )
    assert found == ["gradio", True] and hub.files("tester/app", "space")["app.py"] == b"print(1)"


def test_strict_storage(hub):
    hub.seed("tester/demo", {"w.bin": WEIGHTS})
    oid = hashlib.sha256(b"right").hexdigest()
    upload = hub.storage_url("upload", oid).removeprefix(hub.storage)
    status, headers, _ = raw(hub.storage, "PUT", upload, b"wrong")
    assert status == 400 and headers["X-Error-Code"] == "BadRequest" and oid not in hub.objects
    assert raw(hub.storage, "PUT", f"/upload/{oid}", b"right")[0] == 403
    assert raw(hub.storage, "PUT", upload, b"right", {"Authorization": f"Bearer {hub.token}"})[0] == 403
    auth = {"Authorization": f"Bearer {hub.token}", "Content-Type": "application/x-ndjson"}
    lines = [{"key": "header", "value": {"summary": "x"}}, None]

    def send():
        body = "\n".join(map(json.dumps, lines)).encode()
        return raw(hub.endpoint, "POST", "/api/models/tester/demo/commit/main", body, auth)

    sizes = {"path": "a.bin", "algo": "sha256", "oid": oid, "size": 5}
    lines[1] = {"key": "lfsFile", "value": sizes}
    assert send()[0] == 400
    assert raw(hub.storage, "PUT", upload, b"right")[0] == 200 and send()[0] == 200
    lines[1] = {"key": "lfsFile", "value": sizes | {"size": 6}}
    assert send()[0] == 400
    refused = {"b.bin": "AAAA", "../b": "eA==", ".git/config": "eA==", "README.md": "LS0tCmE6IFsKLS0tCg=="}
    for path, content in refused.items():
        lines[1] = {"key": "file", "value": {"path": path, "content": content, "encoding": "base64"}}
        assert send()[0] == 400, path
    lines[1] = {"key": "unknown", "value": {}}
    assert send()[0] == 400
    assert hub.files("tester/demo")["a.bin"] == b"right" and len(hub.files("tester/demo")) == 3
    assert len(hub.failures) == 10 and reasons(hub)


def test_unrouted_paths_fail(tmp_path):
    with pytest.raises(AssertionError, match="/api/nothing"), Hub(tmp_path) as hub:
        assert raw(hub.endpoint, "GET", "/api/nothing")[0] == 404
        assert hub.failures == [Failure("unrouted", "GET", "/api/nothing", "no route in api")]
    with Hub(tmp_path, missing=["^/api/nothing$"]) as hub:
        status, headers, body = raw(hub.endpoint, "GET", "/api/nothing")
        assert status == 404 and headers["X-Error-Code"] == "NotFound" and "error" in json.loads(body)
    assert not list(tmp_path.iterdir())


def test_other_hosts_cannot_be_reached(tmp_path):
    with pytest.raises(AssertionError, match="CONNECT"), Hub(tmp_path) as hub:
        run(hub, "import httpx2; out(error_of(httpx2.get, 'https://huggingface.co/gpt2'))")


def test_environment(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", "/elsewhere")
    first, second = hub.environment(), hub.environment(HF_TOKEN=None, EXTRA="1")
    assert "HF_HUB_OFFLINE" not in first and "HF_DATASETS_CACHE" not in first and first["PATH"] == os.environ["PATH"]
    assert first["HF_ENDPOINT"] == hub.endpoint and first["HF_TOKEN"] == hub.token
    assert first["HF_HUB_DISABLE_XET"] == "1" and first["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert first["HF_HOME"] != second["HF_HOME"] and first["HF_HOME"].startswith(str(hub.folder))
    assert "HF_TOKEN" not in second and second["EXTRA"] == "1"
    assert hub.endpoint != hub.storage and hub.run("print(1)").stdout == "1\n"


def test_requests_are_fast_and_may_come_in_chunks(hub):
    start = time.monotonic()
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=10)
    for _ in range(50):
        connection.request("POST", "/api/validate-yaml", iter([b'{"content": ', b'"x"}']), encode_chunked=True)
        answer = connection.getresponse()
        assert answer.status == 200 and json.loads(answer.read())["warnings"]
    connection.close()
    assert time.monotonic() - start < 2, "Nagle's algorithm costs 40 ms a request"


def test_a_crash_of_the_server_is_a_failure(tmp_path):
    with pytest.raises(AssertionError, match="KeyError"), Hub(tmp_path) as hub:
        assert raw(hub.endpoint, "POST", "/api/validate-yaml", b"{}")[0] == 500


def test_a_client_that_is_gone_breaks_nothing(hub):
    host, port = hub.endpoint.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:  # killed between a request's head and its body
        client.sendall(b"POST /tester/x.git/info/lfs/verify HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100) == b""
    assert hub.failures == []
    assert hub.requests == []
