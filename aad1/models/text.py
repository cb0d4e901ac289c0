"""UMT5 prompt embeddings in Wan's convention, cached by content; and the embedded tokenizer and encoder.

Axes: embeddings are [batch, length, text_dim]; entries beyond a prompt's own tokens are exactly zero.
"""

from __future__ import annotations

import hashlib
import html
import os
import re
import uuid
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ftfy
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from aad1.errors import UserError, nearest
from aad1.files import write_errors

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
MAX_PROMPT_TOKENS = 512  # what Wan was trained with; a tokenizer may declare less
MEMORY_CACHE_BYTES = 256 * 2**20
LISTABLE_WORDS = 200  # a longer vocabulary is not printed in an error


# --- the embedded tokenizer and encoder ------------------------------------------------------


def build_tiny_tokenizer(vocabulary: Sequence[str], *, max_length: int = 32) -> PreTrainedTokenizerFast:
    """Build a lower-casing tokenizer whose pieces are the given words and signs, in T5's conventions.

    Signs are pieces of their own even when glued to a word; a prompt ends with ``</s>``; a word that is
    not in the vocabulary becomes ``<unk>``.
    """
    pieces = {piece: i for i, piece in enumerate((PAD, EOS, UNKNOWN, *vocabulary))}
    backend = Tokenizer(models.WordLevel(pieces, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    backend.post_processor = processors.TemplateProcessing(single=["$A", EOS], special_tokens=[(EOS, pieces[EOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_tiny_text(
    vocabulary: Sequence[str],
    *,
    d_model: int = 64,
    layers: int = 2,
    heads: int = 4,
    d_ff: int = 128,
    max_length: int = 32,
    seed: int = 0,
) -> tuple[PreTrainedTokenizerFast, UMT5EncoderModel]:
    """Build a tokenizer over ``vocabulary`` and a randomly initialised UMT5 encoder of width ``d_model``.

    Raises:
        UserError: when ``heads`` does not divide ``d_model``.
    """
    if d_model % heads:
        raise UserError(f"text encoder width {d_model} does not divide into {heads} heads; choose a multiple of heads")
    tokenizer = build_tiny_tokenizer(vocabulary, max_length=max_length)
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=d_model,
        d_kv=d_model // heads,
        d_ff=d_ff,
        num_layers=layers,
        num_heads=heads,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return tokenizer, UMT5EncoderModel(config).eval()


# --- prompts ---------------------------------------------------------------------------------


def clean_prompt(prompt: str) -> str:
    """Mend encoding and HTML entities and collapse white space, exactly as WanPipeline does."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt))).strip()).strip()


def prompt_length(tokenizer: Any) -> int:
    """How many tokens an embedding is padded to."""
    return int(min(tokenizer.model_max_length, MAX_PROMPT_TOKENS))


def has_closed_vocabulary(tokenizer: Any) -> bool:
    """Whether whole words are the pieces, so that an unlisted word is lost rather than spelt out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and isinstance(backend.model, models.WordLevel)


def check_words(tokenizer: Any, prompts: Sequence[str]) -> None:
    """Refuse words that a closed vocabulary would lose.

    A sub-word tokenizer spells every word; the rare sign it cannot write stays ``<unk>``, as in WanPipeline.

    Raises:
        UserError: naming the unknown words, the nearest allowed ones and the allowed words.
    """
    if not has_closed_vocabulary(tokenizer):
        return
    special, special_ids = set(tokenizer.all_special_tokens), set(tokenizer.all_special_ids)
    allowed = sorted(word for word in tokenizer.get_vocab() if word not in special)
    for prompt in prompts:
        found = tokenizer(prompt, return_offsets_mapping=True, add_special_tokens=False)
        pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
        lost = list(dict.fromkeys(prompt[a:b] for token, (a, b) in pairs if token in special_ids))
        if lost:
            raise UserError(_unknown_words(prompt, lost, allowed))


def _unknown_words(prompt: str, lost: Sequence[str], allowed: Sequence[str]) -> str:
    hints = [nearest(word.lower(), allowed) for word in lost]
    hint = "".join(dict.fromkeys(h for h in hints if "did you mean" in h))
    listed = f"; allowed: {' '.join(allowed)}" if len(allowed) <= LISTABLE_WORDS else ""
    words = ", ".join(f"'{word}'" for word in lost)
    return f"prompt '{prompt}' has words that this text encoder does not know: {words}{hint}{listed}"


# --- the cache -------------------------------------------------------------------------------


class EmbeddingCache:
    """Unpadded prompt embeddings [tokens, text_dim] by key: a bounded memory and, given a folder, the disk."""

    def __init__(self, folder: Path | None = None, memory_bytes: int = MEMORY_CACHE_BYTES) -> None:
        self.folder = folder
        self.memory_bytes = memory_bytes
        self._memory: OrderedDict[str, Tensor] = OrderedDict()
        self._held = 0

    def get(self, key: str) -> Tensor | None:
        """Return the embedding stored under ``key``, or None; an unreadable file counts as absent."""
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            embedding = load_file(path)["embedding"]
        except (SafetensorError, KeyError, OSError):
            return None
        self._remember(key, embedding)
        return embedding

    def holds(self, key: str) -> bool:
        """Whether there is an embedding under ``key``, in memory or as a file."""
        path = self._path(key)
        return key in self._memory or (path is not None and path.is_file())

    def put(self, key: str, embedding: Tensor) -> None:
        """Store ``embedding`` under ``key``; the file appears whole or not at all.

        It is not flushed to the disk: ``get`` counts a torn file as absent, and there are thousands of them.
        Raises UserError when it cannot be written.
        """
        self._remember(key, embedding)
        path = self._path(key)
        if path is None:
            return
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")  # processes may share the folder
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_bytes(save({"embedding": embedding}))
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)

    def _path(self, key: str) -> Path | None:
        return self.folder / key[:2] / f"{key}.safetensors" if self.folder else None

    def _remember(self, key: str, embedding: Tensor) -> None:
        self._held += embedding.nbytes - (self._memory[key].nbytes if key in self._memory else 0)
        self._memory[key] = embedding
        self._memory.move_to_end(key)
        while self._held > self.memory_bytes and len(self._memory) > 1:
            self._held -= self._memory.popitem(last=False)[1].nbytes


# --- the encoder -----------------------------------------------------------------------------


class TextEncoder:
    """A Wan folder's tokenizer and UMT5 encoder; the encoder is loaded on the first prompt not in the cache.

    ``load_encoder`` returns the encoder; ``encoder_hash`` identifies its weights and tokenizer, so that
    embeddings of two encoders can share a cache folder. ``text_dim`` is the width of the embeddings.
    """

    def __init__(
        self,
        tokenizer: Any,
        load_encoder: Callable[[], UMT5EncoderModel],
        *,
        encoder_hash: str = "",
        cache_folder: Path | None = None,
        device: torch.device | str = "cpu",
        batch: int = 32,
    ) -> None:
        if cache_folder is not None and not encoder_hash:
            raise ValueError("a cache folder needs the encoder's hash: embeddings are stored by content")
        self.tokenizer = tokenizer
        self.length = prompt_length(tokenizer)
        self.device = torch.device(device)
        self._batch = batch
        self._load = load_encoder
        self._encoder: UMT5EncoderModel | None = None
        self._hash = encoder_hash
        self._cache = EmbeddingCache(cache_folder)

    @property
    def encoder(self) -> UMT5EncoderModel:
        """The UMT5 encoder, loaded when first asked for."""
        if self._encoder is None:
            self._encoder = self._load().eval().requires_grad_(False)
        return self._encoder

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """Those of ``prompts`` that the cache does not hold, each once; files are looked for, not read."""
        cleaned = {clean_prompt(prompt): prompt for prompt in prompts}
        return [prompt for text, prompt in cleaned.items() if not self._cache.holds(self._key(text))]

    def release(self) -> None:
        """Drop the encoder from memory; cached prompts are still served, others load it again."""
        self._encoder = None

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embed prompts -> [batch, length, text_dim] on ``device``; zero beyond each prompt's tokens.

        Raises:
            UserError: for words outside a closed vocabulary, with the allowed words.
        """
        cleaned = [clean_prompt(prompt) for prompt in prompts]
        rows = {text: self._cache.get(self._key(text)) for text in dict.fromkeys(cleaned)}
        missing = [text for text, row in rows.items() if row is None]
        check_words(self.tokenizer, missing)  # what is cached was checked when it was encoded
        for start in range(0, len(missing), self._batch):
            texts = missing[start : start + self._batch]
            rows.update(zip(texts, self._encode(texts), strict=True))
        return torch.stack([self._pad(rows[text]) for text in cleaned]).to(self.device)

    @torch.no_grad()
    def _encode(self, texts: list[str]) -> list[Tensor]:
        """Embed cleaned prompts, unpadded and on the CPU, and remember them."""
        inputs = self.tokenizer(
            texts, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        self._warn_of_truncation(texts)
        mask = inputs.attention_mask
        where = self.encoder.device
        hidden = self.encoder(inputs.input_ids.to(where), mask.to(where)).last_hidden_state.cpu()
        rows = [row[:count].clone() for row, count in zip(hidden, mask.sum(1).tolist(), strict=True)]
        for text, row in zip(texts, rows, strict=True):
            self._cache.put(self._key(text), row)
        return rows

    def _warn_of_truncation(self, texts: list[str]) -> None:
        for text, tokens in zip(texts, self.tokenizer(texts, verbose=False)["input_ids"], strict=True):
            if len(tokens) > self.length:
                warnings.warn(f"prompt of {len(tokens)} tokens is cut to {self.length}: '{text[:80]}'", stacklevel=3)

    def _pad(self, row: Tensor | None) -> Tensor:
        assert row is not None
        return torch.cat([row, row.new_zeros(self.length - len(row), row.shape[1])])

    def _key(self, text: str) -> str:
        return hashlib.sha256("\0".join((self._hash, str(self.length), text)).encode()).hexdigest()
