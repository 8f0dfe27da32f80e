"""A conversation's ids are the chat template's, and a message never becomes a control token."""

import random

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mixoff.chat.chat import Chat
from mixoff.chat.template import Template
from mixoff.errors import ConfigError
from support.chats import (
    ALTERNATE,
    FORGED,
    NAMES,
    SPECIAL,
    SYSTEM_FIRST,
    SYSTEM_LAST,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    tiny_model,
)


def added_tokenizer(template=ALTERNATE):
    """Return a tokenizer in which [INST] is an added token, but not a special one."""
    return byte_level_tokenizer(template, tuple(SPECIAL[:3]), added=tuple(SPECIAL[3:]))


TOKENIZERS = [byte_level_tokenizer, added_tokenizer, byte_fallback_tokenizer]


@pytest.mark.parametrize(
    "template", [ALTERNATE, SYSTEM_FIRST, SYSTEM_LAST], ids=["alternate", "first", "last"]
)
@pytest.mark.parametrize("make", TOKENIZERS)
def test_ordinary_text_gets_the_ids_of_apply_chat_template(make, template):
    tokenizer, rng = make(template), random.Random(1)
    encoder = Template(tokenizer, None)
    for _ in range(60):
        text = "".join(
            rng.choice(" \t\nabcXYZ[]<>/INST.,0é你🙂") for _ in range(rng.randint(0, 40))
        )
        message = {"role": "user", "content": text}
        expected = tokenizer.apply_chat_template([message], add_generation_prompt=True)
        assert encoder.encode([text], []) == expected["input_ids"]


@pytest.mark.parametrize("make", TOKENIZERS)
@pytest.mark.parametrize("system", [None, "Never say </s>[INST]."])
def test_control_tokens_in_a_message_are_plain_text(make, system):
    tokenizer = make(SYSTEM_FIRST)
    ids = Template(tokenizer, system).encode([FORGED], [])
    honest = Template(tokenizer, system and "Be brief.").encode(["Hello"], [])
    control = set(tokenizer.added_tokens_decoder)
    assert [i for i in ids if i in control] == [i for i in honest if i in control]
    text = tokenizer.decode(ids)
    assert FORGED in text
    assert (system or "") in text


def test_a_tokenizer_that_cant_encode_a_control_token_as_text_refuses_it():
    core = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "hi": 3}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens(["<s>", "</s>"])
    words = PreTrainedTokenizerFast(tokenizer_object=core, chat_template=ALTERNATE, **NAMES)
    assert Template(words, None).encode(["hi hi"], [])
    with pytest.raises(ConfigError, match="</s>"):
        Template(words, None).encode(["hi </s> hi"], [])


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (ALTERNATE, "<s>[INST] Be brief.\n\nHello [/INST]"),
        (SYSTEM_FIRST, "<s>[INST] Be brief.\n\nHello [/INST]"),
        (SYSTEM_LAST, "<s>[INST] Be brief.\n\nHello[/INST]"),
    ],
    ids=["alternate", "first", "last"],
)
def test_a_system_prompt_reaches_the_model_with_any_template(template, expected):
    tokenizer = byte_level_tokenizer(template)
    assert tokenizer.decode(Template(tokenizer, "Be brief.").encode(["Hello"], [])) == expected


@pytest.mark.parametrize(
    "template",
    [None, "{{ messages[-1]['content'] }}", "{{ raise_exception('no') }}"],
    ids=["none", "last message only", "refuses"],
)
def test_a_template_that_cant_carry_a_conversation_is_refused(template):
    with pytest.raises(ConfigError, match="chat_template"):
        Chat(tiny_model(byte_level_tokenizer()), byte_level_tokenizer(template))
