"""Generation of words or vectors: out of sentences, latents, draws from the prior, and points between two sentences."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.utils import ModelOutput

from .configuration_text_vae import TextVAEConfig
from .modeling_decoder import Decoder, GRUCache
from .outputs import TextVAEModelOutput

CACHE = "cache" if hasattr(ModelOutput, "past_key_values") else "past_key_values"  # transformers 5.24 renamed it


class CanGenerate:
    """`can_generate()` of a class, and of a model, which can only where it decodes words."""

    def __get__(self, model: Any, owner: object) -> Callable[[], bool]:
        return lambda: model is None or model.config.decodes_words


class TextVAEGenerationMixin(GenerationMixin):
    """Generation of transformers, from latents too; for `TextVAEForPreTraining`."""

    config: TextVAEConfig
    model: Any
    decoder: Decoder
    device: Any
    can_generate: Callable[[], bool]
    _is_stateful = True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        encoder_outputs: TextVAEModelOutput,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The words that the GRU state has not read, and the latents."""
        cache: GRUCache | None = kwargs.get(CACHE)
        seen = 0 if cache is None else cache.get_seq_length()
        return {
            "decoder_input_ids": input_ids[:, seen:],
            "encoder_outputs": encoder_outputs,
            "cache": cache,
            "use_cache": use_cache,
        }

    def _update_model_kwargs_for_generation(  # type: ignore[override]
        self, outputs: Any, model_kwargs: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        """Keep the GRU state of this step for the next, under the name by which the library reorders it for beams."""
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        cache = outputs.get("cache")
        return model_kwargs if cache is None else model_kwargs | {CACHE: cache}

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: Any = None,
        *,
        latents: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Decode sentences (greedy, sampling or beam search, as in transformers) from text or from latents.

        Args:
            inputs: sentences to reconstruct, `(batch, steps)`; also as `input_ids=` with `attention_mask=`.
            generation_config: of `GenerationMixin.generate`.
            latents: codes to decode instead, `(batch, latent_size)`.
            kwargs: of `GenerationMixin.generate`.

        Returns:
            Token ids, `(batch, steps)`.

        Raises:
            ValueError: if `latents` are not finite or of another width than `latent_size`, or come together with text;
                if there is neither; if this model decodes vectors, not words.
        """
        if not self.can_generate():
            raise ValueError(
                "`decoder_type` must be 'gru' to generate words, got 'vector'; `decode_vectors` gives vectors."
            )
        if latents is not None:
            self._check_latents(latents, "latents")
            if inputs is not None or "input_ids" in kwargs:
                raise ValueError("`latents` must come without `input_ids`, got both; drop one of them.")
            inputs = latents.new_full((len(latents), 1), self.config.pad_token_id, dtype=torch.long)  # batch size only
            kwargs["encoder_outputs"] = TextVAEModelOutput(sparse_embedding=latents, latent=latents)
        elif inputs is None and not {"input_ids", "inputs_embeds"} & kwargs.keys():
            if "encoder_outputs" not in kwargs:
                raise ValueError("`input_ids` or `latents` must be given, got neither; `sample_prior` needs no input.")
            return self.generate(None, generation_config, latents=kwargs.pop("encoder_outputs").latent, **kwargs)
        return super().generate(inputs, generation_config, **kwargs)

    @torch.no_grad()
    def decode_vectors(self, latents: Tensor) -> Tensor:
        """Sentence vectors, in the encoder's own units, `(batch, feature_size)`, out of latents `(batch, latent_size)`.

        Raises:
            ValueError: if this model decodes words; if `latents` are not finite or of another width.
        """
        self._check_latents(latents, "latents")
        vectors = self.decoder.mean(latents)
        return self.model.standardizer.undo(vectors.float())

    def _check_latents(self, latents: Tensor, name: str) -> None:
        width = self.config.latent_size
        if not isinstance(latents, Tensor) or not latents.is_floating_point():
            what = str(getattr(latents, "dtype", type(latents).__name__))
            raise ValueError(f"`{name}` must be a tensor of floats, (batch, {width}), got {what}; convert it.")
        if latents.dim() != 2 or latents.shape[1] != width or len(latents) == 0:
            raise ValueError(f"`{name}` must be (batch, {width}), got {tuple(latents.shape)}; stack single codes.")
        if not latents.isfinite().all():
            raise ValueError(f"`{name}` must be finite, got NaN or infinity; drop such rows.")

    def _decode(self, latents: Tensor, **kwargs: Any) -> Any:
        if self.can_generate():
            return self.generate(latents=latents, **kwargs)
        return self.decode_vectors(latents)

    def sample_prior(self, num_samples: int, **kwargs: Any) -> Any:
        """Decode `num_samples` draws from the prior (at least 1); `kwargs` as in `generate`.

        Returns:
            Token ids, `(num_samples, steps)`, or vectors, `(num_samples, feature_size)`.

        Raises:
            ValueError: if `num_samples` is no whole number above 0; if this model has no prior.
        """
        _check_count("num_samples", num_samples, 1)
        latents = self.model.latent_head.sample_prior(num_samples)
        return self._decode(latents.to(self.device), **kwargs)

    @torch.no_grad()
    def interpolate(self, a: Tensor, b: Tensor, steps: int, **kwargs: Any) -> Any:
        """Decode points on the line between two sentences.

        Args:
            a: token ids `(1, steps)` of a sentence, or a latent `(1, latent_size)` (floating point).
            b: likewise.
            steps: number of points, both ends included, at least 2.
            kwargs: as in `generate`.

        Returns:
            Token ids, `(steps, tokens)`, or vectors, `(steps, feature_size)`.

        Raises:
            ValueError: if `steps` is no whole number above 1, or an end is not one sentence or latent.
        """
        _check_count("steps", steps, 2)
        ends = []
        for name, end in (("a", cast(Any, a)), ("b", cast(Any, b))):
            if not isinstance(end, Tensor):
                got = f"{type(end).__name__} {str(end)[:50]!r}"
                raise ValueError(f"`{name}` must be a tensor of token ids or a latent, got {got}; tokenize it first.")
            if end.dim() != 2 or len(end) != 1:
                raise ValueError(f"`{name}` must be one sentence or latent with a batch dimension of 1, got "
                                 f"shape {tuple(end.shape)}; call interpolate once per pair.")  # fmt: skip
            if end.is_floating_point():
                self._check_latents(end, name)
            ends.append(end if end.is_floating_point() else self.model(end.to(self.device), return_dict=True).latent)
        share = torch.linspace(0, 1, steps, device=self.device).unsqueeze(1)  # (steps, 1)
        first, last = (end.to(self.device).float() for end in ends)
        return self._decode(torch.lerp(first, last, share), **kwargs)


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}; raise it.")
