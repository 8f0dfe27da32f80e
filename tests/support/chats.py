"""Chats with tiny models."""

import itertools
from functools import cache
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

TEXT = (Path(__file__).parents[2] / "data" / "heldout.txt").read_text(encoding="utf-8")[:6000]


SPECIAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]


NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


ALTERNATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)  # as Mixtral's first one: no system role


@cache
def byte_level_tokenizer(template=ALTERNATE, special=tuple(SPECIAL), added=()):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=[*special],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    core.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=template, **NAMES)


def tiny_model(tokenizer, *, positions=512, **options):
    """Return a random model whose most probable token is always one with text of its own."""
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=positions,
        initializer_range=0.4,
        bos_token_id=1,
        eos_token_id=2,
        **options,
    )
    model = MixtralForCausalLM(config).eval()
    shown = [n for n in range(len(tokenizer)) if tokenizer.decode([n]).strip().isalnum()]
    others = [n for n in range(len(tokenizer)) if n not in shown]
    rows = model.lm_head.weight.data
    rows[others] = rows[list(itertools.islice(itertools.cycle(shown), len(others)))] / 2
    return model
