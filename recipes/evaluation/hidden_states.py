"""Texts as vectors: the mean of a frozen model's last hidden states (paper's MTEB evaluation)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mteb.models.abs_encoder import AbsEncoder
from tqdm.auto import tqdm

from recipes.models.hf.stock import quiet_transformers


class HiddenStateEncoder(AbsEncoder):
    """A Hugging Face folder as mteb's encoder.

    A text's vector is the mean over its tokens of what the unembedding consumes (transformers'
    `last_hidden_state`: after the final norm), scaled to length 1. Neither prompt nor instruction;
    special tokens as the tokenizer's files say. Of a text longer than the model's
    `max_position_embeddings` the beginning counts. A text without tokens gives zeros.

    The model computes in the dtype of its files; the mean and the vectors are float32.
    """

    def __init__(self, folder: Path, *, device: str, batch_size: int) -> None:
        """Raises ValueError for a folder that transformers cannot load."""
        self._folder = folder
        self._batch_size = batch_size
        self.model, self._tokenizer = _load(folder)
        self.model.to(device)
        self._tokenizer.truncation_side = "right"
        # Recurrent models name none.
        self._max_len = getattr(
            self.model.config.get_text_config(), "max_position_embeddings", None
        )

    def encode(self, inputs: Any, **options: Any) -> np.ndarray:
        """As mteb calls it: `inputs` gives batches whose "text" is a list of texts. [N, D]."""
        texts = [text for batch in inputs for text in batch["text"]]
        return self.embed(texts, show_progress=options.get("show_progress_bar", True))

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], *, show_progress: bool = False) -> np.ndarray:
        """[N, D] float32. Raises ValueError for token ids without an embedding and for states that
        are not finite."""
        rows = self._tokenize(texts)
        # Alike in length, so that little is padding; the longest first: what does not fit in memory
        # fails at once.
        order = sorted((i for i in range(len(rows)) if rows[i]), key=lambda i: -len(rows[i]))
        embeddings_ND = torch.zeros(len(rows), self.model.get_input_embeddings().embedding_dim)
        starts = range(0, len(order), self._batch_size)
        for start in tqdm(starts, desc="Encoding", unit="batch", disable=not show_progress):
            chosen = order[start : start + self._batch_size]
            embeddings_ND[chosen] = self._embed_batch([rows[i] for i in chosen]).cpu()
        if not embeddings_ND.isfinite().all():
            raise ValueError(
                f"{self._folder}: hidden states are not finite in {self.model.dtype}. Export the "
                "model in float32, or another checkpoint."
            )
        return embeddings_ND.numpy()

    def _embed_batch(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """[B, D] float32, on the model's device. Each row has tokens."""
        device = self.model.device
        lengths_B = torch.tensor([len(row) for row in rows], device=device)
        longest = len(max(rows, key=len))
        is_token_BL = torch.arange(longest, device=device) < lengths_B[:, None]
        # Padding is on the right, where no causal model sees it, and needs no token of its own.
        tokens_BL = torch.zeros(len(rows), longest, dtype=torch.int64, device=device)
        tokens_BL[is_token_BL] = torch.tensor([id for row in rows for id in row], device=device)
        output = self.model(input_ids=tokens_BL, attention_mask=is_token_BL.long())
        h_BLD = output.last_hidden_state.float().masked_fill(~is_token_BL[..., None], 0)
        return F.normalize(h_BLD.sum(dim=1) / lengths_B[:, None], dim=-1)

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        rows: list[list[int]] = self._tokenizer(
            list(texts),
            truncation=self._max_len is not None,
            max_length=self._max_len,
            return_attention_mask=False,
        )["input_ids"]
        largest = max((id for row in rows for id in row), default=0)
        vocab_size = self.model.get_input_embeddings().num_embeddings
        if largest >= vocab_size:
            raise ValueError(
                f"{self._folder}: the tokenizer gives the token id {largest}, but the model has "
                f"only {vocab_size} embeddings. Put the model's own tokenizer there."
            )
        return rows


def _load(folder: Path) -> tuple[Any, Any]:
    """(model without its unembedding, for evaluation; tokenizer). Raises ValueError."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, **local)
            config.use_cache = False
            loaded: Any = AutoModel.from_pretrained(
                folder, config=config, dtype="auto", output_loading_info=True, **local
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
    except Exception as error:  # of a folder that is not what it should be, transformers raises any
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder} cannot be loaded by transformers: {reason}") from error
    model, report = loaded
    for what, names in report.items():
        # Of a missing weight transformers makes up the value. One too many is the unembedding's.
        if names and what != "unexpected_keys":
            listed = ", ".join(sorted(map(str, names))[:3])
            raise ValueError(f"{folder}: transformers reports {what}: {listed}. Complete it.")
    return model.eval(), tokenizer
