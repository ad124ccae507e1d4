"""Codes behind any encoder of sentence-transformers: one module more makes a `SparseEncoder` of it."""

from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from tqdm.auto import trange
from transformers import AutoModelForPreTraining, PreTrainedModel

from hsvae_hf.decoding import decoded, dictionary
from hsvae_hf.dimension_names import decode
from hsvae_hf.encoding import keep_largest
from hsvae_hf.extras import require
from hsvae_hf.input_checks import check_active_dims, check_positive, check_sentences, check_switch
from hsvae_hf.loading import load_for_inference
from hsvae_hf.models.modeling_text_vae import TextVAEForPreTraining, TextVAEModel
from hsvae_hf.training import check_fit, fit

require("sentence_transformers", extra="sentence-transformers")
from sentence_transformers import SentenceTransformer, SparseEncoder  # noqa: E402 - once it is known to be there
from sentence_transformers.base.modules import Module  # noqa: E402

DOCUMENT_PROMPTS = ("document", "passage", "corpus")  # the first that a model has goes before a document


def fit_sentence_encoder(
    encoder: SentenceTransformer,
    sentences: Sequence[str],
    batch_size: int = 32,
    prompt_name: str | None = None,
    asymmetric: bool = False,
    **options: object,
) -> SparseEncoder:
    """Train sparse codes for an encoder of sentence-transformers, of any kind: `fit` on its vectors of `sentences`.

    Args:
        encoder: as it is loaded; it stays as it is. Its prompts and its `truncate_dim` stay in force.
        sentences: some thousand at least, of the kind that is to be encoded.
        batch_size: sentences per forward pass of the encoder (>= 1).
        prompt_name: which of the encoder's prompts goes before them; None takes its default, if it has one.
        asymmetric: as of `SparseCodes`.
        options: of `hsvae_hf.fit`, such as `latent_size`, `target_active_dims` and `output_dir`.

    Returns:
        The encoder's modules and a `SparseCodes`; `save_pretrained` saves all in one folder.

    Raises:
        ValueError: as `fit`; if `encoder` is no `SentenceTransformer`, or `sentences` are no list of strings.

    Example:
        >>> import hsvae_hf
        >>> from sentence_transformers import SentenceTransformer
        >>> encoder = SentenceTransformer("all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> sparse_encoder = hsvae_hf.fit_sentence_encoder(encoder, sentences)  # doctest: +SKIP
        >>> codes = sparse_encoder.encode(["A good film."], max_active_dims=16)  # doctest: +SKIP
    """
    _check_encoder(encoder)
    check_sentences(sentences)
    check_positive(batch_size=batch_size)
    check_switch(asymmetric=asymmetric)
    sentences = list(sentences)
    if not sentences:
        raise ValueError("`sentences` must hold some thousand, got none; give them.")
    check_fit(**cast(dict[str, Any], options))
    vectors = encoder.encode(sentences, prompt_name=prompt_name, batch_size=batch_size, convert_to_numpy=True)
    return add_codes(encoder, fit(vectors, **cast(dict[str, Any], options)), asymmetric)


def add_codes(
    encoder: SentenceTransformer, coder: "PreTrainedModel | str | PathLike[str]", asymmetric: bool = False
) -> SparseEncoder:
    """A `SparseEncoder` of an encoder's modules and codes of its vectors.

    `SparseEncoder(modules=[*encoder, SparseCodes(coder)])` is the same without what the encoder holds outside its
    modules: prompts, `truncate_dim`, backend.

    Args:
        encoder: whose vectors the coder was trained on. The two share their modules afterwards.
        coder: as of `SparseCodes`.
        asymmetric: likewise.

    Raises:
        ValueError: if `encoder` is no `SentenceTransformer`, or `coder` takes vectors of another width.
    """
    _check_encoder(encoder)
    codes = SparseCodes(coder, asymmetric)
    width = encoder.get_embedding_dimension()
    if width is not None and width != codes.coder.config.feature_size:
        raise ValueError(
            f"`coder` must take vectors of the encoder's width, {width}, got one for "
            f"{codes.coder.config.feature_size}; use the encoder that it was trained for, with the same `truncate_dim`."
        )
    codes.truncate_dim = None if encoder.truncate_dim is None else codes.coder.config.feature_size
    return SparseEncoder(
        modules=[*encoder, codes],
        device=str(encoder.device),
        prompts={name: prompt for name, prompt in encoder.prompts.items() if prompt is not None},
        default_prompt_name=encoder.default_prompt_name,
        backend=encoder.get_backend(),
    )


def encode_sentences(
    encoder: SparseEncoder,
    sentences: Sequence[str],
    batch_size: int = 256,
    max_active_dims: int | None = None,
    task: Literal["query", "document"] | None = None,
    prompt_name: str | None = None,
    show_progress_bar: bool = False,
) -> sparse.csr_matrix:
    """The codes of `SparseEncoder.encode` as one CSR matrix, faster.

    `encode` makes a sparse tensor of every sentence and stacks them. Behind a static encoder this takes more time than
    the codes themselves (model_cards/GUIDE.md has the figures).

    Args:
        encoder: ends with a `SparseCodes`.
        sentences: strings.
        batch_size: sentences per forward pass (>= 1).
        max_active_dims: as of `encode`; None takes the encoder's own, if it has one.
        task: as `encode_query` and `encode_document` set it, with the prompt that goes with it.
        prompt_name: which of the encoder's prompts goes before every sentence; None takes that of the task, or the
            encoder's default.
        show_progress_bar: whether to show one.

    Returns:
        `(len(sentences), latent_size)`, float32, zeros not stored.

    Raises:
        ValueError: if `encoder` has no `SparseCodes`, `sentences` are no list of strings, or it has no such prompt.
    """
    return encode_with_vectors(
        encoder, sentences, batch_size, max_active_dims, task, prompt_name, show_progress_bar, with_vectors=False
    )[0]


def encode_with_vectors(
    encoder: SparseEncoder,
    sentences: Sequence[str],
    batch_size: int = 256,
    max_active_dims: int | None = None,
    task: Literal["query", "document"] | None = None,
    prompt_name: str | None = None,
    show_progress_bar: bool = False,
    with_vectors: bool = True,
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """The codes of `encode_sentences`, and the dense vectors that they are made of, `(len(sentences), feature_size)`.

    Args:
        encoder: as of `encode_sentences`, like all that follow.
        sentences: likewise.
        batch_size: likewise.
        max_active_dims: likewise.
        task: likewise.
        prompt_name: likewise.
        show_progress_bar: likewise.
        with_vectors: whether to keep the vectors; else none are returned.

    Raises:
        ValueError: as `encode_sentences`.
    """
    codes = find_codes(encoder)
    check_sentences(sentences)
    check_positive(batch_size=batch_size)
    check_active_dims(codes.coder, max_active_dims=max_active_dims)
    sentences, prompt = list(sentences), _prompt(encoder, task, prompt_name)
    options = {"max_active_dims": max_active_dims or encoder.max_active_dims, "task": task}
    encoder.eval()
    order = np.argsort([-len(sentence) for sentence in sentences], kind="stable")  # little padding
    blocks = [sparse.csr_matrix((0, codes.get_embedding_dimension()), dtype=np.float32)]
    vectors = [np.empty((0, codes.coder.config.feature_size), dtype=np.float32)]
    with torch.inference_mode():
        for start in trange(0, len(order), batch_size, desc="encode", disable=not show_progress_bar):
            batch = [sentences[row] for row in order[start : start + batch_size]]
            features = encoder.preprocess(batch, prompt=prompt, **({"task": task} if task else {}))
            features = {name: _moved(value, encoder.device) for name, value in features.items()}
            found = encoder(features, **options)
            blocks.append(sparse.csr_matrix(found["sentence_embedding"].float().cpu().numpy()))
            if with_vectors:
                vectors.append(found["sentence_vectors"].float().cpu().numpy())
    back = np.argsort(order)
    return sparse.vstack(blocks, format="csr")[back], np.concatenate(vectors)[back] if with_vectors else vectors[0]


class SparseCodes(Module):
    """The last module of a `SparseEncoder`: sentence vectors in, sparse codes out.

    It takes what any modules before it give as `sentence_embedding`. Codes are compared as `similarity_fn_name` of the
    coder's configuration says, which the `SparseEncoder` takes over where it is told nothing else.

    With `asymmetric`, `encode_query` gives a query that stays dense, as `hsvae_hf.encode_queries` does. `encode` and
    `encode_document` give a code divided by its length of `hsvae_hf.code_lengths`. The dot product of the two is what
    the `SparseEncoder` takes; `hsvae_hf.decoding` says what it leaves out of a cosine. A query that is capped by
    `max_active_dims` keeps its largest entries.

    Args:
        coder: a model of `hsvae_hf.fit`, or the folder or Hub id of one.
        asymmetric: whether queries stay dense.
        truncate_dim: numbers of a vector that are read, from the first on, as `truncate_dim` of `SentenceTransformer`
            (Matryoshka), which must be the coder's width; None reads all.

    Raises:
        ValueError: if `coder` is no such model, or of another width than `truncate_dim`.

    Example:
        >>> from hsvae_hf.sentence_transformers import SparseCodes
        >>> from sentence_transformers import SentenceTransformer, SparseEncoder
        >>> modules = [*SentenceTransformer("all-MiniLM-L6-v2"), SparseCodes("runs/coder")]  # doctest: +SKIP
        >>> codes = SparseEncoder(modules=modules).encode(["A good film."])  # doctest: +SKIP
    """

    config_file_name = "sparse_codes.json"  # config.json is the coder's
    config_keys = ["asymmetric", "truncate_dim"]
    forward_kwargs = {"max_active_dims", "task"}

    def __init__(
        self,
        coder: "PreTrainedModel | str | PathLike[str]",
        asymmetric: bool = False,
        truncate_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(truncate_dim=truncate_dim)
        check_switch(asymmetric=asymmetric)
        if isinstance(coder, str | PathLike):
            coder = _load_coder(coder)
        _check_coder(coder)
        width = coder.config.feature_size
        if truncate_dim not in (None, width):
            raise ValueError(
                f"`truncate_dim` must be the width of the vectors that `coder` takes, {width}, got {truncate_dim}; use "
                "a coder that was trained on vectors of that many numbers."
            )
        self.coder: Any = coder
        self.asymmetric = bool(asymmetric)
        self.truncate_dim = truncate_dim
        self.sets_similarity = False  # of the owning model, which `on_model_ready` shows

    def on_model_ready(self, model: Any) -> None:
        """Tell the owning model how codes are compared, unless it was told, and what dimensions are called."""
        self.sets_similarity = getattr(model, "_similarity_fn_name", None) is None
        self.tell_similarity(model)
        if isinstance(model, SparseEncoder):  # whose own `decode` asks the tokenizer, which knows no dimensions
            model.decode = self.name_codes  # type: ignore[method-assign]

    def name_codes(
        self, embeddings: Tensor, top_k: int | None = None
    ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        """`hsvae_hf.decode` of codes by this module's names: what `decode` of the owning model gives.

        `intersection` of the owning model multiplies codes: two values below 0 give one above, and so the name of the
        wrong end. `hsvae_hf.explain` keeps the ends apart.

        Args:
            embeddings: codes, `(rows, latent_size)` or `(latent_size,)`.
            top_k: at most so many dimensions per row (>= 1); None for all that are not 0.
        """
        return decode(self.coder, embeddings, top_k)

    def tell_similarity(self, model: SparseEncoder) -> None:
        """Tell the owning model how codes are compared now, unless somebody else did when it was made."""
        if self.sets_similarity:
            model.similarity_fn_name = self.similarity_fn_name

    @property
    def similarity_fn_name(self) -> Literal["cosine", "dot"]:
        """How codes are compared: as the coder's configuration says, or the dot product of dense queries and codes."""
        return "dot" if self.asymmetric else cast(Literal["cosine", "dot"], self.coder.config.similarity_fn_name)

    def forward(
        self, features: dict[str, Any], max_active_dims: int | None = None, task: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Put codes in the place of the vectors.

        Args:
            features: with `sentence_embedding`, `(batch, feature_size)`.
            max_active_dims: so many non-zeros per code, the strongest dimensions, as `active_dims` of `encode`; None
                leaves their number to the coder.
            task: "query" or "document", as `encode_query` and `encode_document` say it.
            kwargs: none is passed, as `forward_kwargs` says.

        Returns:
            The same, with `sentence_embedding`, `(batch, latent_size)`, and the vectors as `sentence_vectors`.

        Raises:
            ValueError: if there are no vectors, or of another width than the coder's; if codes have no such number of
                dimensions.
        """
        if "sentence_embedding" not in features:
            raise ValueError(
                "`features` must hold `sentence_embedding`, got " + f"{', '.join(map(repr, features))}; "
                "put `SparseCodes` behind the modules that make one vector of a sentence."
            )
        check_active_dims(self.coder, max_active_dims=max_active_dims)
        vectors = features["sentence_embedding"][:, : self.truncate_dim]
        features["sentence_vectors"] = vectors
        if self.asymmetric and task == "query":
            codes = keep_largest(self.query(vectors), max_active_dims)
        else:
            codes = self._code(vectors, max_active_dims)
            if self.asymmetric:
                codes = codes / self.decode(codes).norm(dim=-1, keepdim=True).clamp_min(1e-6)
        features["sentence_embedding"] = codes
        return features

    def _code(self, vectors: Tensor, active_dims: int | None) -> Tensor:
        """`(batch, latent_size)`. Past the hooks of the body, of which `ActiveDimsController` has one for the loss."""
        body = cast(TextVAEModel, self.coder.base_model)
        output = body.forward(vectors=vectors, active_dims=active_dims, return_dict=True)
        return output.sparse_embedding.float()

    def decode(self, codes: Tensor) -> Tensor:
        """The vectors that the decoder makes of codes `(batch, latent_size)`: `(batch, feature_size)`."""
        return decoded(self.coder.base_model, codes)

    def query(self, vectors: Tensor) -> Tensor:
        """`D^T x` of vectors x `(batch, feature_size)`: `(batch, latent_size)`; see `hsvae_hf.encode_queries`."""
        return vectors.float() @ dictionary(self.coder.base_model)

    def get_embedding_dimension(self) -> int:
        """Width of the codes."""
        return cast(int, self.coder.config.latent_size)

    def save(self, output_path: str, *args: object, **kwargs: object) -> None:
        """Save the coder by its own `save_pretrained`, and the settings of the module beside it."""
        self.coder.save_pretrained(output_path)
        self.save_config(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load what `save` wrote, from a folder or from the Hub; no code of the folder is run.

        Raises:
            ValueError: if it is not there, or damaged.
        """
        place: dict[str, Any] = {"token": token, "cache_folder": cache_folder, "revision": revision}
        place |= {"subfolder": subfolder, "local_files_only": local_files_only}
        folder = cls.load_dir_path(model_name_or_path, **place)
        return cls(str(folder), **cls.load_config(model_name_or_path, **place))


def find_codes(encoder: object) -> SparseCodes:
    """The `SparseCodes` of an encoder.

    Raises:
        ValueError: if it has none.
    """
    modules = encoder.modules() if isinstance(encoder, torch.nn.Module) else ()
    codes = next((module for module in modules if isinstance(module, SparseCodes)), None)
    if codes is None:
        raise ValueError(
            f"`encoder` must be a SparseEncoder with a `SparseCodes`, got a {type(encoder).__name__}; make one with "
            "`hsvae_hf.fit_sentence_encoder`."
        )
    return codes


def _check_encoder(encoder: object) -> None:
    if not isinstance(encoder, SentenceTransformer):
        raise ValueError(
            f"`encoder` must be a loaded SentenceTransformer, got a {type(encoder).__name__}; load one with "
            "`SentenceTransformer(name)`."
        )


def _check_coder(coder: object) -> None:
    if not isinstance(coder, TextVAEModel | TextVAEForPreTraining):
        raise ValueError(
            f"`coder` must be a model of `hsvae_hf.fit`, or the folder of one, got a {type(coder).__name__}; train one "
            "on vectors of the encoder."
        )
    if coder.config.decodes_words:
        raise ValueError("`coder` must take vectors, got a model of words; train one with `hsvae_hf.fit`.")
    if coder.config.reads_text:
        raise ValueError(
            "`coder` must be without a text encoder, got one that holds its own; pass `coder.without_encoder()`."
        )


def _load_coder(source: "str | PathLike[str]") -> PreTrainedModel:
    """With its decoder, if the folder has it."""
    model, _ = load_for_inference(str(source))
    if any(name.endswith("ForPreTraining") for name in model.config.architectures or []):
        model, _ = load_for_inference(str(source), AutoModelForPreTraining)
    return model


def _prompt(encoder: SparseEncoder, task: str | None, name: str | None) -> str | None:
    """The text that goes before every sentence, as `encode`, `encode_query` and `encode_document` choose it."""
    prompts: dict[str, str | None] = encoder.prompts
    if name is not None and name not in prompts:
        raise ValueError(f"`prompt_name` must be one of {sorted(prompts)}, got {name!r}; leave it out for none.")
    if task not in (None, "query", "document"):
        raise ValueError(f"`task` must be 'query', 'document' or None, got {task!r}; choose one.")
    usual = {"query": ("query",), "document": DOCUMENT_PROMPTS}.get(task or "", ())
    names = [name] if name is not None else [known for known in usual if known in prompts]
    return prompts.get(next(iter([*names, encoder.default_prompt_name or ""])))


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
