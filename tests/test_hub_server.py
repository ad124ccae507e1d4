"""The loopback Hub answers as the real one does, which the `huggingface_hub` client judges in processes of its own."""

import hashlib
import http.client
import json

import pytest
from hub_server import Fault, Hub

WEIGHTS = hashlib.shake_256(b"weights").digest(3_000_000)
CARD = "---\nlicense: apache-2.0\n---\n# Card\n"
PRELUDE = """
import hashlib, json, tempfile
from pathlib import Path
import huggingface_hub as h
from huggingface_hub import constants
def error_of(call, *args, **options):
    try:
        return repr(call(*args, **options))
    except Exception as error:
        return type(error).__name__
def out(*values):
    print(json.dumps(values))
"""


@pytest.fixture
def hub(tmp_path):
    with Hub(tmp_path) as hub:
        yield hub


def run(hub, code, **environment):
    """Run a snippet that calls `out` once, and return what it gave."""
    done = hub.run(PRELUDE + code, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def statuses(hub, pattern):
    """The statuses of the requests with a text in the path."""
    return [int(line.rpartition(" ")[2]) for line in hub.requests if pattern in line]


def test_what_is_uploaded_comes_back_also_after_a_break(hub, tmp_path):
    contents = {
        "README.md": CARD.encode(),
        "empty.bin": b"",
        "model.safetensors": WEIGHTS,
        "sub/odd name#é.bin": b"\0\1" * 5000,
    }
    hub.faults.append(Fault("GET", r"/download/.*model\.safetensors", cut=1_000_000))
    (tmp_path / "model/sub").mkdir(parents=True)
    for name, data in contents.items():
        (tmp_path / "model" / name).write_bytes(data)
    first, second, card, names = run(
        hub,
        f"""
folder = {str(tmp_path / "model")!r}
h.create_repo("demo")
h.create_repo("demo", exist_ok=True)
first, second = (h.upload_folder(repo_id="tester/demo", folder_path=folder).oid for _ in range(2))
h.upload_file(path_or_fileobj=folder + "/model.safetensors", path_in_repo="copy.bin", repo_id="tester/demo")
h.upload_folder(repo_id="tester/demo", folder_path=folder + "/sub", delete_patterns="empty.bin", allow_patterns="none")
names = h.list_repo_files("tester/demo")
constants.DOWNLOAD_CHUNK_SIZE = 50_000
h.snapshot_download("tester/demo", local_dir={str(tmp_path / "back")!r}, max_workers=1)
out(first, second, h.ModelCard.load("tester/demo").data.license, names)
""",
    )
    contents["copy.bin"] = WEIGHTS
    assert {200, 206} == set(statuses(hub, "/download/")), "a broken download did not go on where it stopped"
    assert first == second, "unchanged files were committed again"
    assert statuses(hub, "/upload/") == [200, 200], "a known object was sent again"
    assert card == "apache-2.0"
    del contents["empty.bin"]
    assert names == sorted(contents)
    assert hub.files("tester/demo") == contents
    assert {name: (tmp_path / "back" / name).read_bytes() for name in contents} == contents
    assert {name for name, file in hub.repos["tester/demo"].commits["main"].files.items() if file.large} == {
        "copy.bin",
        "model.safetensors",
        "sub/odd name#é.bin",
    }


ERRORS = {  # calls, and the exceptions of huggingface_hub that the server's answers become
    'get("tester/none")': "RepositoryNotFoundError",
    'get("tester/demo", repo_type="dataset")': "RepositoryNotFoundError",
    'get("tester/mine", token=False)': "RepositoryNotFoundError",
    'get("tester/demo", revision="v9")': "RevisionNotFoundError",
    'get("tester/demo", "b.txt")': "RemoteEntryNotFoundError",
    'put("tester/demo", token=False)': "HfHubHTTPError",
    'put("tester/demo", token="wrong")': "HfHubHTTPError",
    'put("tester/demo", token="reader")': "HfHubHTTPError",
    'put("other/theirs")': "HfHubHTTPError",
    'put("tester/none")': "RepositoryNotFoundError",
    'put("tester/mine")': "HfHubHTTPError",  # a fault
    'put("tester/demo", "README.md", b"---\\ntags: [\\n---\\n")': "ValueError",
    'put("tester/demo", parent_commit="0" * 40)': "HfHubHTTPError",
    'h.create_repo("demo")': "HfHubHTTPError",
    'h.create_repo("other/new")': "HfHubHTTPError",
}


def test_errors_are_those_of_the_client(hub):
    hub.seed("tester/demo", {"a.txt": "a"})
    hub.seed("tester/mine", {"a.txt": "a"}).private = True
    hub.seed("other/theirs", {"a.txt": "a"})
    hub.tokens["reader"] = "read"
    hub.faults.append(Fault("POST", "mine/commit/", status=500))
    (found,) = run(
        hub,
        f"""
def get(repo, name="a.txt", **options):
    return h.hf_hub_download(repo, name, **options)
def put(repo, name="x", data=b"x", **options):
    return h.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id=repo, **options)
errors = {{call: error_of(eval, call) for call in {list(ERRORS)}}}
get("tester/demo", token="reader")
get("tester/mine")
put("tester/mine", parent_commit=h.model_info("tester/mine").sha)
out(errors)
""",
    )
    assert found == ERRORS
    assert statuses(hub, "/commit/") == [500, 412, 200]
    assert statuses(hub, "/repos/create") == [409, 403]
    assert list(hub.files("tester/demo")) == ["a.txt"]


def test_a_request_that_the_server_cannot_answer_fails_the_test_and_other_hosts_cannot_be_reached(tmp_path):
    for path, reason in (("/api/nothing", "no route"), ("/api/validate-yaml", "JSONDecodeError")):
        with pytest.raises(AssertionError, match=reason), Hub(tmp_path) as hub:
            connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=10)
            connection.request("POST", path)
            assert connection.getresponse().status >= 400
            connection.close()
        assert not list(tmp_path.iterdir())
    with pytest.raises(AssertionError, match="CONNECT huggingface.co:443: no route"), Hub(tmp_path) as hub:
        run(hub, "out(error_of(h.model_info, 'gpt2'))", HF_ENDPOINT="https://huggingface.co")
