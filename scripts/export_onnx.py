r"""Export a saved model to ONNX: sentences, or vectors, to sparse codes, for ONNX Runtime and servers that use it.

    python scripts/export_onnx.py --model_name_or_path runs/reviews --output_dir runs/reviews-onnx
    python scripts/export_onnx.py --model_name_or_path model_cards/hsvae-minilm \
        --encoder_name_or_path sentence-transformers/all-MiniLM-L6-v2 --output_dir runs/minilm-onnx

hsvae_hf.OnnxEncoder("runs/minilm-onnx").encode(sentences) encodes with what was written.
"""

import before_imports  # noqa: F401 - first: see there

import shlex
from dataclasses import dataclass, field
from typing import Any

import hsvae_hf
from hsvae_hf.argument_names import known_as
from hsvae_hf.cli import run
from hsvae_hf.command_line import parse
from hsvae_hf.console import finish, model_facts, say, size_of
from hsvae_hf.embedding_cache import load_encoder_tokenizer
from hsvae_hf.files import load_vectors
from hsvae_hf.input_checks import check_positive
from hsvae_hf.loading import load_for_inference
from hsvae_hf.onnx_encoder import GRAPH

SECTIONS = {
    "needed": ("model_name_or_path", "output_dir"),
    "the encoder before a model of vectors": ("encoder_name_or_path", "max_length"),
    "codes": ("active_dims",),
    "8-bit weights, and what they keep": ("quantize", "calibration", "max_calibration_samples"),
}


@dataclass
class ExportArguments:
    """What to export, how, and to where."""

    model_name_or_path: str = field(metadata={"help": "Folder of a saved model, or a Hub id."})
    output_dir: str = field(metadata={"help": "Folder to write: new, empty, or an earlier export."})
    encoder_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the encoder; the graph then takes text."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens per sentence, if not as many as the encoder says."}
    )
    quantize: str | None = field(
        default=None, metadata={"help": "int8, for the weights of the encoder. Needs --calibration."}
    )
    active_dims: int | None = field(
        default=None, metadata={"help": "Non-zeros of every code: exactly so many, the strongest dimensions."}
    )
    calibration: str | None = field(
        default=None,
        metadata={
            "help": "Text like that to be encoded: a file, a folder, a Hub id, or docstrings. For a model of vectors a "
            ".npy file. Codes of the export are compared with the model's on it."
        },
    )
    max_calibration_samples: int = field(
        default=2000, metadata={"help": "Rows of --calibration that are taken, the first ones."}
    )

    def __post_init__(self) -> None:
        check_positive(max_calibration_samples=self.max_calibration_samples)
        if self.max_length is not None and self.encoder_name_or_path is None:
            raise ValueError(
                f"`max_length` must be left out without `encoder_name_or_path`, got {self.max_length}; the graph takes "
                "any length, and the tokenizer in the folder truncates."
            )


def calibration_rows(args: ExportArguments) -> Any:
    """Sentences or vectors."""
    if args.calibration is None:
        return None
    if args.calibration.endswith(".npy"):
        return load_vectors(args.calibration, "calibration")[: args.max_calibration_samples]
    with known_as(dataset="calibration"):
        splits = hsvae_hf.load_text_dataset(args.calibration, with_labels=False)
    return list(splits["train"]["text"][: args.max_calibration_samples])


def main() -> None:
    """Export, and print where to and what it was measured to keep."""
    args = parse(ExportArguments, __doc__, sections=SECTIONS)
    say(f"export_onnx.py: {args.model_name_or_path} to {args.output_dir}")
    rows = calibration_rows(args)
    model, tokenizer = load_for_inference(args.model_name_or_path)
    if args.encoder_name_or_path is not None:
        model = model.with_encoder(args.encoder_name_or_path)
        tokenizer = load_encoder_tokenizer(args.encoder_name_or_path, args.max_length)
    say(model_facts(model))
    with known_as(folder="output_dir", model="model_name_or_path", tokenizer="model_name_or_path"):
        settings = hsvae_hf.export_onnx(model, tokenizer, args.output_dir, args.quantize, args.active_dims, rows)
    call = "encode(['A sentence.'])" if tokenizer is not None else "encode_vectors(vectors)"
    code = f"import hsvae_hf; print(hsvae_hf.OnnxEncoder({args.output_dir!r}).{call})"
    graph = f"{args.output_dir}/{GRAPH}"
    finish(f"{graph}: {size_of(graph)}", settings.get("measured", {}), shlex.join(["python", "-c", code]))


if __name__ == "__main__":
    run(main)
