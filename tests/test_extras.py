"""The package without its extras: it imports and encodes, and what needs one of them says so in a line."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import hsvae_hf
from hsvae_hf.extras import require

PACKAGE = Path(hsvae_hf.__file__).parent
ROOT = PACKAGE.parent
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = METADATA["project"]
NEED_EXTRA = {"sentence_transformers", "sparse_encoder_training"}  # classes of modules of sentence-transformers
MODULES = [path for path in PACKAGE.glob("*.py") if path.stem not in {"__init__", *NEED_EXTRA}]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
# transformers' Trainer and model cards of the Hub import the first three; `hsvae_hf.metrics` are `evaluate` modules.
UNIMPORTED = {"accelerate", "jinja2", "tensorboard", "evaluate"}
UNIMPORTED |= {"mteb", "pytrec-eval-terrier"}  # those of the extra `eval` that users and tests run


def canonical(requirement):
    """The name of a package, as the index spells it."""
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


DEPENDENCIES = {canonical(requirement) for requirement in PROJECT["dependencies"]}
TRAIN, EVAL, STORES, SEISMIC, ENCODER, RAY, ONNX = (
    {canonical(requirement) for requirement in PROJECT["optional-dependencies"][extra]}
    for extra in ("train", "eval", "stores", "seismic", "sentence-transformers", "ray", "onnx")
)
# As if no extra were installed: sys.modules says that these cannot be imported.
BLOCKED = "evaluate matplotlib onnx onnxruntime onnxscript peft sentence_transformers sklearn tensorboard"
BARE = f"import sys\nfor name in {BLOCKED!r}.split(): sys.modules[name] = None\n"


def bare(code):
    """What code prints that runs as if no extra were installed."""
    folders = map(str, [ROOT, ROOT / "scripts", ROOT / "scripts/experiments"])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-c", BARE + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def imported(path, inside):
    """Modules of others that a file imports: in functions, or else at its top."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    local = {node for function in functions for node in ast.walk(function)}
    names = set()
    for node in ast.walk(tree):
        if (node in local) == inside and isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            names |= {name.split(".")[0] for name in modules if not getattr(node, "level", 0)}
    return names - set(sys.stdlib_module_names) - {"hsvae_hf"}


def test_what_is_imported_is_declared_and_the_other_way_round():
    known = packages_distributions()
    top, local = (
        {canonical(known.get(name, [name])[0]) for path in MODULES for name in imported(path, inside)}
        for inside in (False, True)
    )
    assert top <= DEPENDENCIES
    assert local <= DEPENDENCIES | TRAIN | EVAL | STORES | SEISMIC | ENCODER | RAY | ONNX
    assert (top | local) >= DEPENDENCIES - UNIMPORTED
    assert local >= (TRAIN | EVAL) - UNIMPORTED


def test_without_the_extras_it_imports_models_alone_and_encodes(saved_model):
    """Each step in turn: importing the package, loading a model, then all modules."""
    bare(f"""
import torch, transformers
from transformers import AutoModel, AutoModelForPreTraining, GenerationMixin, PreTrainedModel
before, heavy = set(sys.modules), "accelerate datasets evaluate matplotlib pandas pyarrow scipy sklearn".split()
import hsvae_hf
assert not {{name.partition(".")[0] for name in set(sys.modules) - before}} & set(heavy)
assert not any(name.startswith("hsvae_hf.") and ".models" not in name for name in sys.modules)
assert {{"encode", "encode_vectors", "explain", "fit", "train"}} <= set(dir(hsvae_hf))

blocked = {{name: sys.modules.pop(name, None) for name in ("datasets", "pandas", "pyarrow")}}
sys.modules.update(dict.fromkeys(blocked))
assert AutoModelForPreTraining.from_pretrained({str(saved_model)!r}).config.model_type == "hsvae"
for name, module in blocked.items():
    del sys.modules[name]

import importlib
for name in {[path.stem for path in MODULES]}: importlib.import_module(f"hsvae_hf.{{name}}")
from hsvae_hf.active_dims import calibrate_threshold
from hsvae_hf.loading import load_for_inference
model, tokenizer = load_for_inference({str(saved_model)!r})
sentences = ["the cat sees a dog", "one and two"]
assert hsvae_hf.encode(model, tokenizer, sentences).shape == (2, model.config.latent_size)
assert isinstance(hsvae_hf.explain(model, tokenizer, *sentences).similarity, float)
from hsvae_hf import *
assert encode is hsvae_hf.encode is hsvae_hf.encoding.encode and HSVAEModel is hsvae_hf.HSVAEModel
assert not hasattr(hsvae_hf, "nothing")
""")


CALLS = [  # what needs extras, and which packages it names
    ("sklearn", "from hsvae_hf.report import evaluate_model; evaluate_model(None, None, None, None)"),
    ("sklearn", "from hsvae_hf.probes import probe_accuracy; probe_accuracy(x, x[0], x, x[0])"),
    ("sklearn", "from hsvae_hf.probes import tfidf_accuracy; tfidf_accuracy({'text': ['a'], 'label': [0]}, None)"),
    ("sklearn", "from hsvae_hf.explanation import describe_dimensions; describe_dimensions(csr_matrix(x), ['a', 'b'])"),
    ("sentence_transformers", "import hsvae_hf; hsvae_hf.fit_sentence_encoder(None, [])"),
    ("sentence_transformers", "import hsvae_hf.sparse_encoder_training"),
    ("onnx", "import hsvae_hf; hsvae_hf.export_onnx(None, None, 'run')"),
    ("onnxruntime", "import hsvae_hf; hsvae_hf.OnnxEncoder('run')"),
    ("matplotlib", "from hsvae_hf.plots import plot_gate_heatmap; plot_gate_heatmap(x, ['a', 'b'], 'picture.png')"),
    (
        "matplotlib, sklearn",
        "from compare import CompareArguments, compare; compare(CompareArguments('docstrings', 'run'))",
    ),
    (
        "matplotlib, sklearn",
        "from reproduce import ReproduceArguments, reproduce; "
        "reproduce(ReproduceArguments('figure2', ['docstrings'], 'run'))",
    ),
]
RUNS = {
    "quickstart.py": ["--output_dir", "{run}"],
    "evaluate_model.py": ["--model_name_or_path", "{model}", "--dataset", "docstrings", "--output", "{run}.json"],
    "explain.py": ["--model_name_or_path", "{model}", "--dataset", "docstrings"],
}


def test_what_needs_the_extra_names_it_in_one_line_and_first(tmp_path):
    places = {"run": str(tmp_path / "run"), "model": str(tmp_path)}
    scripts = [[str(path), *(part.format(**places) for part in RUNS.get(path.name, ["--help"]))] for path in SCRIPTS]
    lines = bare(f"""
import contextlib, io, json, os, runpy
import numpy as np
from scipy.sparse import csr_matrix
os.chdir({str(tmp_path)!r})
for _, call in {CALLS!r}:
    try:
        exec(call, {{"x": np.ones((2, 2)), "csr_matrix": csr_matrix}})
        print("no error")
    except ImportError as error:
        print(str(error))
for call in {scripts}:
    sys.argv, said = call, io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            runpy.run_path(call[0], run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, said.getvalue()]))
""")  # one process for all: importing torch is what takes the time
    for (package, call), line in zip(CALLS, lines, strict=False):
        assert package in line, (call, line)
        extra = {"sentence_transformers": "sentence-transformers", "onnx": "onnx", "onnxruntime": "onnx"}.get(
            package, "train"
        )
        assert f"hsvae_hf[{extra}]" in line, (call, line)
    for path, line in zip(SCRIPTS, lines[len(CALLS) :], strict=True):
        status, said = json.loads(line)
        assert status == (2 if path.name in RUNS else 0), (path.name, said)
        if path.name in RUNS:
            assert re.fullmatch(r"error: This needs the extra `train` of hsvae_hf.*\n", said), (path.name, said)
    assert not list(tmp_path.iterdir())


def test_require_names_what_is_missing_and_its_extra():
    require("json", "sys")
    with pytest.raises(ImportError, match=r"extra `dev` .* of which no_such_one, nor_this cannot .*'hsvae_hf\[dev\]'"):
        require("json", "no_such_one", "nor_this", extra="dev")


def test_the_lock_pins_all_that_is_declared():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)  # no build label: `2.13.0`, not `2.13.0+cpu`
    pinned = {canonical(line) for line in lines}
    extras = [requirement for some in PROJECT["optional-dependencies"].values() for requirement in some]
    declared = METADATA["build-system"]["requires"] + PROJECT["dependencies"] + extras
    assert {canonical(requirement) for requirement in declared} - {"hsvae-hf"} <= pinned


def test_every_declared_package_has_a_floor():
    done = subprocess.run([sys.executable, ROOT / ".ci/floors.py"], capture_output=True, text=True, check=True)
    floors = {canonical(line) for line in done.stdout.splitlines()}
    assert floors >= (DEPENDENCIES | TRAIN) - {"torch"}
