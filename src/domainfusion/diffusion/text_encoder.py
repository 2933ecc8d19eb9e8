"""The small text side of a pretrained LDM: a byte-pair tokenizer fitted to the captions, and a CLIP text encoder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from domainfusion.config import PretrainConfig

START, END = "<|startoftext|>", "<|endoftext|>"


def fit_tokenizer(captions: Iterable[str], folder: Path, vocabulary: int, length: int) -> CLIPTokenizer:
    """A CLIP tokenizer (lower-cased byte-pair encoding, `</w>` ends a word) fitted to `captions`, saved in `folder`."""
    tokenizer = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    # Captions are taken apart here just as prompts will be (CLIP spells letters beyond ASCII by their bytes).
    reader = CLIPTokenizer().backend_tokenizer
    tokenizer.normalizer, tokenizer.pre_tokenizer = reader.normalizer, reader.pre_tokenizer
    captions = [reader.normalizer.normalize_str(caption) for caption in captions]
    used = {
        letter
        for caption in captions
        for piece, _ in reader.pre_tokenizer.pre_tokenize_str(caption)
        for letter in piece
    }
    # Every letter and digit both inside a word and at its end, so that a user's class name never falls apart.
    alphabet = sorted({*"abcdefghijklmnopqrstuvwxyz0123456789.,-'_!?&", *used})
    # Numbered here: the trainer numbers letters in the order of a hash table, another one in each run.
    letters = alphabet + [f"{letter}</w>" for letter in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2, special_tokens=letters, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    words = dict(model["vocab"])
    words[START], words[END] = len(words), len(words) + 1
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    fitted = CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=length)
    fitted.save_pretrained(folder)
    return fitted


def build_text_encoder(tokenizer: CLIPTokenizer, config: PretrainConfig) -> CLIPTextModel:
    """An untrained CLIP text encoder for `tokenizer`, of width `text_width` and `text_layers` layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_width // 32,
            max_position_embeddings=tokenizer.model_max_length,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
