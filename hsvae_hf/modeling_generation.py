"""What a text VAE says: words or vectors out of sentences, latents, draws from the prior, and the line between two."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from .modeling_decoder import GRUCache
from .outputs import TextVAEModelOutput


class TextVAEGenerationMixin(GenerationMixin):
    """Generation of transformers, from latents too; for `TextVAEForPreTraining`."""

    config: Any
    model: Any
    decoder: Any
    device: Any
    _is_stateful = True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        encoder_outputs: TextVAEModelOutput,
        past_key_values: GRUCache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The words that the GRU state has not read, and the latents."""
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        return {
            "decoder_input_ids": input_ids[:, seen:],
            "encoder_outputs": encoder_outputs,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
        }

    @torch.no_grad()
    def generate(  # type: ignore[override]
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
            ValueError: if `latents` has another width than `latent_size`, or comes together with text; if this model
                decodes vectors, not words.
        """
        if self.config.decoder_type == "vector":
            raise ValueError(
                "`decoder_type` must be 'gru' to generate words, got 'vector'; `decode_vectors` gives vectors."
            )
        if latents is not None:
            if latents.dim() != 2 or latents.shape[1] != self.config.latent_size:
                width = self.config.latent_size
                raise ValueError(f"`latents` must be (batch, {width}), got {tuple(latents.shape)}; stack single codes.")
            if inputs is not None or "input_ids" in kwargs:
                raise ValueError("`latents` must come without `input_ids`, got both; drop one of them.")
            inputs = latents.new_full((len(latents), 1), self.config.pad_token_id, dtype=torch.long)  # batch size only
            kwargs["encoder_outputs"] = TextVAEModelOutput(sparse_embedding=latents, latent=latents)
        return super().generate(inputs, generation_config, **kwargs)  # type: ignore[misc]

    @torch.no_grad()
    def decode_vectors(self, latents: Tensor) -> Tensor:
        """Sentence vectors, in the encoder's own units, `(batch, feature_size)`, out of latents `(batch, latent_size)`.

        Raises:
            ValueError: if this model decodes words.
        """
        if self.config.decoder_type != "vector":
            raise ValueError("`decoder_type` must be 'vector' to decode vectors, got 'gru'; `generate` gives words.")
        return self.model.standardizer.undo(self.decoder.mean(latents).float())

    def _decode(self, latents: Tensor, **kwargs: Any) -> Any:
        if self.config.decoder_type == "vector":
            return self.decode_vectors(latents)
        return self.generate(latents=latents, **kwargs)

    def sample_prior(self, num_samples: int, **kwargs: Any) -> Any:
        """Decode `num_samples` draws from the prior; `kwargs` as in `generate`.

        Returns:
            Token ids, `(num_samples, steps)`, or vectors, `(num_samples, feature_size)`.
        """
        latents = self.model.latent_head.sample_prior(num_samples, self.model._encode)
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
            ValueError: if `steps` is below 2 or an end is not one sentence.
        """
        if steps < 2:
            raise ValueError(f"`steps` must be at least 2, got {steps}; both ends count.")
        ends = []
        for name, end in (("a", a), ("b", b)):
            if end.dim() != 2 or len(end) != 1:
                raise ValueError(f"`{name}` must be one sentence or latent with a batch dimension of 1, got "
                                 f"shape {tuple(end.shape)}; call interpolate once per pair.")  # fmt: skip
            ends.append(end if end.is_floating_point() else self.model(end.to(self.device)).latent)
        share = torch.linspace(0, 1, steps, device=self.device).unsqueeze(1)  # (steps, 1)
        first, last = (end.to(self.device).float() for end in ends)
        return self._decode(torch.lerp(first, last, share), **kwargs)
