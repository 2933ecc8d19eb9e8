"""The small text side of a pretrained LDM: a byte-pair tokenizer fitted to the captions, and a CLIP text encoder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from domainfusion.config import PretrainConfig

START, END = "<|startoftext|>", "<|endoftext|>"


def fit_tokenizer(captions: Iterable[str], folder: Path, vocabulary: int, length: int) -> CLIPTokenizer:
    """A CLIP tokenizer (lower-cased byte-pair encoding, `</w>` ends a word) fitted to `captions`, saved in `folder`."""
    tokenizer = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    # Every letter and digit both inside a word and at its end, so that a user's class name never falls apart.
    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789.,-'_!?&")
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(list(captions) + alphabet, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    words = dict(model["vocab"])
    for letter in alphabet:
        words.setdefault(f"{letter}</w>", len(words))
    words[START], words[END] = len(words), len(words) + 1
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n", "utf-8")
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
