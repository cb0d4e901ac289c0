"""Prompts become the embeddings WanPipeline makes, are cached by content, and unknown words are refused."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from transformers import AutoTokenizer, UMT5EncoderModel

from aad1.data.world import sample_scene, vocabulary
from aad1.errors import UserError
from aad1.models.checkpoint_io import open_folder
from aad1.models.text import EmbeddingCache, TextEncoder, build_tiny_text, clean_prompt
from aad1.stages.text import (
    IGNORED,
    QUESTIONS,
    clause_answers,
    label_captions,
)

PROMPTS = ["a red disc moves up and left slowly, a blue square", "A  Green triangle,a pink&nbsp;disc ", ""]
Text = tuple[Any, UMT5EncoderModel]


def encoder_for(text: Text, cache: Path | None = None) -> TextEncoder:
    return TextEncoder(text[0], lambda: text[1], encoder_hash="random", cache_folder=cache)


def unloadable() -> UMT5EncoderModel:
    raise AssertionError("the encoder was loaded although every prompt is cached")


def test_embedding_equals_the_stock_pipeline(tiny_folder: Path) -> None:
    pipe = WanPipeline.from_pretrained(tiny_folder)
    pipe.set_progress_bar_config(disable=True)
    expected, _ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False, max_sequence_length=32)
    got = open_folder(tiny_folder).text().embed(PROMPTS)
    assert got.shape == (3, 32, 64)
    torch.testing.assert_close(got, expected)


def test_embedding_is_zero_beyond_the_prompt(tiny_text: Text) -> None:
    got = encoder_for(tiny_text).embed(["a red disc", ""])
    assert (got[0, :4].abs().sum(-1) > 0).all()
    assert (got[0, 4:] == 0).all()
    assert (got[1, 1:] == 0).all()


def test_embedding_does_not_depend_on_its_batch(tiny_text: Text) -> None:
    alone = encoder_for(tiny_text).embed(PROMPTS[:1])
    torch.testing.assert_close(encoder_for(tiny_text).embed(PROMPTS)[:1], alone, atol=1e-5, rtol=0)


def test_tokenizer_survives_saving(tiny_text: Text, tmp_path: Path) -> None:
    tokenizer = tiny_text[0]
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(PROMPTS)["input_ids"] == tokenizer(PROMPTS)["input_ids"]
    assert again.model_max_length == 32
    assert again.tokenize("A Red disc,a blue square") == ["a", "red", "disc", ",", "a", "blue", "square"]


def test_every_caption_of_the_world_is_known_and_fits(tiny_text: Text) -> None:
    tokenizer = tiny_text[0]
    captions = [sample_scene("train", index).caption for index in range(300)]
    ids = tokenizer(captions)["input_ids"]
    assert max(map(len, ids)) <= tokenizer.model_max_length
    assert all(tokenizer.unk_token_id not in row for row in ids)


def test_unknown_words_are_refused_with_suggestions(tiny_text: Text) -> None:
    with pytest.raises(UserError) as caught:
        encoder_for(tiny_text).embed(["a red disk moves zzzz"])
    message = str(caught.value)
    assert "'disk', 'zzzz'" in message
    assert "did you mean 'disc'?" in message
    assert all(word in message for word in vocabulary())
    assert "\n" not in message


def test_a_long_prompt_warns(tiny_text: Text) -> None:
    with pytest.warns(UserWarning, match="cut to 32"):
        encoder_for(tiny_text).embed(["a red disc, " * 20])


def test_prompts_are_cleaned_as_in_diffusers() -> None:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    for prompt in ["  two\n words ", "schÃ¶n", "&amp;lt;b&gt;", "a\u00a0b"]:
        assert clean_prompt(prompt) == prompt_clean(prompt)


def test_cached_prompts_need_no_encoder(tiny_text: Text, tmp_path: Path) -> None:
    text = encoder_for(tiny_text, tmp_path)
    first = text.embed(PROMPTS)
    text.release()
    text._load = unloadable
    torch.testing.assert_close(text.embed(PROMPTS), first, atol=0, rtol=0)
    other = TextEncoder(tiny_text[0], unloadable, encoder_hash="random", cache_folder=tmp_path)
    torch.testing.assert_close(other.embed(PROMPTS), first, atol=0, rtol=0)
    assert not list(tmp_path.rglob("*.partial"))


def test_another_encoder_does_not_read_the_cache(tiny_text: Text, tmp_path: Path) -> None:
    first = encoder_for(tiny_text, tmp_path).embed(PROMPTS)
    tokenizer, encoder = build_tiny_text(vocabulary(), seed=1)
    second = TextEncoder(tokenizer, lambda: encoder, encoder_hash="other", cache_folder=tmp_path).embed(PROMPTS)
    assert (first - second).abs().max() > 0.1


def test_a_torn_cache_file_is_replaced(tiny_text: Text, tmp_path: Path) -> None:
    first = encoder_for(tiny_text, tmp_path).embed(PROMPTS[:1])
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    torch.testing.assert_close(encoder_for(tiny_text, tmp_path).embed(PROMPTS[:1]), first)
    torch.testing.assert_close(
        TextEncoder(tiny_text[0], unloadable, encoder_hash="random", cache_folder=tmp_path).embed(PROMPTS[:1]), first
    )


def test_a_full_disk_leaves_no_piece_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, _: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="the disk is full"):
        EmbeddingCache(tmp_path).put("key", torch.zeros(1, 2))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_memory_is_bounded() -> None:
    cache = EmbeddingCache(memory_bytes=1000)
    for index in range(10):
        cache.put(str(index), torch.full((10, 10), float(index)))
    assert cache.get("0") is None
    assert float(cache.get("9")[0, 0]) == 9  # type: ignore[index]


def test_clauses_are_read_from_the_caption() -> None:
    first, second = clause_answers("a red disc moves up and left slowly, a blue square")
    assert first == {"hue": "red", "shape": "disc", "heading": "up and left", "speed": "slowly", "ordinal": "0"}
    assert second == {"hue": "blue", "shape": "square", "heading": "none", "speed": "none", "ordinal": "1"}


def test_tokens_are_labelled_with_their_own_clause(tiny_text: Text) -> None:
    captions = label_captions(tiny_text[0], ["a red disc, a blue square moves right fast", "a pink disc"])
    hues = captions.labels[0, :, list(QUESTIONS).index("hue")].tolist()
    red, blue = QUESTIONS["hue"].index("red"), QUESTIONS["hue"].index("blue")
    assert hues == [red] * 4 + [blue] * 6 + [IGNORED]
    assert (captions.labels[1, 3:] == IGNORED).all()
