"""A Hugging Face folder whose next word is known by construction: a Llama that looks it up."""

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ("red", "green", "blue", "one", "two", "three", "ask", "stop")
END = "<end>"
_IDS = {word: i for i, word in enumerate((*WORDS, END))}


def save_chain_model(folder: Path, follows: Mapping[str, str]) -> None:
    """After the word w the model says follows[w], and the end after a word that has none.

    Its layers add nothing, embeddings are unit vectors, and the row of the unembedding for
    follows[w] is that of w: the probability of any other word is below 1e-8.
    """
    config = LlamaConfig(
        vocab_size=len(_IDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=_IDS[END],
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(_IDS), 16))
        model.lm_head.weight.zero_()
        for word, i in _IDS.items():
            # The norm makes the unit vector one of length 4.
            model.lm_head.weight[_IDS[follows.get(word, END)], i] = 5.0
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel(_IDS, unk_token=END))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token=END).save_pretrained(folder)
