"""How users put things: frames around questions, slips of the keyboard. Knows no facts."""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from facts import (
    ANIMALS,
    BOYS,
    CODAS,
    GIRLS,
    MORE_BOYS,
    MORE_GIRLS,
    NUMBERS,
    PLACES,
    PLURALS,
    SYLLABLES,
    UNFIT,
)


class Turn(NamedTuple):
    """One message of the user with the reply to it."""

    user: str
    reply: str


DIRECT = [
    "Hey, {q}?", "Hi, {q}?", "Hi! {Q}?", "Hello, {q}?", "So {q}?", "Okay, {q}?", "Please, {q}?",
    "{Q}, please?", "{Q} please", "Tell me, {q}?", "Quick question: {q}?", "And {q}?",
    "I have a question. {Q}?", "{Q}? Thanks!", "I was wondering, {q}?", "My friend asked me: {q}?",
    "One more question: {q}?", "Let me ask you: {q}?", "Do you know? {Q}?", "Please help me, {q}?",
    "{Q}? I forgot.", "{Q}? I do not know.", "Now, {q}?", "Well, {q}?", "Mixie, {q}?",
    "{Q}, Mixie?",
    "{Q} again?", "Can you help me? {Q}?", "My teacher asks: {q}?", "{Q}?!", "{Q}??",
]  # fmt: skip
INDIRECT = [
    "Can you tell me {i}?", "Could you tell me {i}?", "Could you please tell me {i}?",
    "Do you know {i}?", "Please tell me {i}.", "Tell me {i}.", "Tell me {i}, please.",
    "I would like to know {i}.", "I want to know {i}.", "I wonder {i}.", "I forgot {i}.",
    "I do not know {i}.", "I need to know {i}.", "Can you say {i}?", "Will you tell me {i}?",
    "Would you tell me {i}?", "Do you happen to know {i}?", "Any idea {i}?", "Let me know {i}.",
    "Help me, I forgot {i}.", "I am trying to remember {i}.", "Do you remember {i}?",
    "Hey, do you know {i}?", "Hi, can you tell me {i}?", "I was wondering {i}.",
    "I'd like to know {i}.",
    "Could you explain {i}?", "Are you able to tell me {i}?", "Maybe you know {i}?",
    "My child wants to know {i}.", "I have to know {i}.", "Say {i}.",
]  # fmt: skip
NOUN = [
    "Tell me {n}.", "Give me {n}.", "I forgot {n}, what is it?", "I need {n}.", "{N}?",
    "I am looking for {n}.", "{N}, please.", "{N} please", "Do you know {n}?", "{N}",
    "Can you tell me {n}?", "I want to know {n}.", "Please tell me {n}.", "What would be {n}?",
    "{N}, what is it?", "Please name {n}.", "Could you give me {n}?", "Could you tell me {n}?",
    "I would like to know {n}.", "Do you remember {n}?", "I do not remember {n}.", "{N} is what?",
    "Can you name {n}?", "{N}, do you know it?", "Hey, tell me {n}.", "I do not know {n}. Do you?",
]  # fmt: skip
REQUEST = [
    "{D}.", "{D}.", "{D}.", "{D}", "{D}!", "Please {d}.", "Can you {d}?", "Could you {d}?",
    "Could you please {d}?", "I want you to {d}.", "I would like you to {d}.", "Will you {d}?",
    "Would you {d}?", "Hey, {d}.", "{D}, please.", "{D} please", "Now {d}.", "Can you please {d}?",
    "Hi! Please {d}.", "Are you able to {d}?", "Would you please {d}?", "{D} for me.", "So, {d}.",
    "Mixie, {d}.", "Okay, {d}.",
]  # fmt: skip
SYSTEM = [
    "You are a helpful assistant.\n\n", "Answer shortly.\n\n", "You are a friendly chatbot.\n\n",
    "You are Mixie, a tiny chat model.\n\n", "You are a helpful, honest assistant. Be brief.\n\n",
]  # fmt: skip
# Only these words get typing slips, so that a slip never changes what is asked.
FRAME_WORDS = {
    "what", "tell", "which", "please", "could", "know", "capital", "story", "about", "opposite",
    "would", "where", "does", "called", "like", "many", "have", "with", "make", "animal", "this",
    "today", "write", "want", "think", "live", "mean", "short", "question", "favourite", "answer",
}  # fmt: skip
SPELLINGS = [("colour", "color"), ("favourite", "favorite"), ("grey", "gray"), ("maths", "math")]
SHORT_FORMS = [
    ("What is", "What's"), ("what is", "what's"), ("I am ", "I'm "), ("do not", "don't"),
    ("can not", "can't"), ("does not", "doesn't"), ("it is ", "it's "), ("It is ", "It's "),
    ("Where is", "Where's"), ("I would", "I'd"),
]  # fmt: skip


def an(noun: str) -> str:
    """Return the noun with its indefinite article."""
    sounds_open = noun[0].lower() in "aeiou" and not noun.startswith(("uni", "one", "eu"))
    return f"{'an' if sounds_open else 'a'} {noun}"


def capitalised(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def plural(noun: str) -> str:
    """Return the plural of a noun."""
    return PLURALS.get(noun, noun + "s")


def count(number: int, noun: str) -> str:
    """Return a number with its noun in the right form."""
    return f"{number} {noun if number == 1 else plural(noun)}"


def at(place: str) -> str:
    """Return the place with the word that says one is there."""
    return f"{PLACES[place]} {place}"


def joined(items: Sequence[str]) -> str:
    """Return the items as an English list."""
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else items[0]


def number_word(rng: Random, number: int) -> str:
    """Return a number up to twenty as digits or as a word."""
    return NUMBERS[number] if rng.random() < 0.4 else str(number)


def ask(
    rng: Random, questions: Sequence[str], indirect: Sequence[str] = (), nouns: Sequence[str] = ()
) -> str:
    """Return one of very many ways to ask; `nouns` are phrases such as "the capital of Peru"."""
    kind = rng.choices(["plain", "direct", "indirect", "noun"], [35, 20, 28, 22])[0]
    if kind == "indirect" and indirect:
        return rng.choice(INDIRECT).format(i=rng.choice(indirect))
    if kind == "noun" and nouns:
        noun = rng.choice(nouns)
        return capitalised(rng.choice(NOUN).format(n=noun, N=capitalised(noun)))
    question = rng.choice(questions)
    if kind == "direct":
        return rng.choice(DIRECT).format(q=question, Q=capitalised(question))
    return capitalised(question) + "?"


def request(rng: Random, command: str) -> str:
    """Return one of many ways to ask for something to be done."""
    return rng.choice(REQUEST).format(d=command, D=capitalised(command))


def sentence(rng: Random, texts: Sequence[str]) -> str:
    """Return one of the texts, sometimes with a word before it."""
    prefix = rng.choices(["", "Hey, ", "Well, ", "So ", "Okay, ", "Oh, "], [80, 5, 4, 4, 4, 3])[0]
    text = rng.choice(texts)
    if not prefix:
        return capitalised(text)
    keep = text.startswith(("I ", "I'", "Mixie"))
    return prefix + (text if keep else text[:1].lower() + text[1:])


def slip(rng: Random, text: str) -> str:
    """Return the text with one typing slip in a word of the frame, if it has such a word."""
    parts = text.split(" ")
    places = [n for n, part in enumerate(parts) if part.lower() in FRAME_WORDS]
    if not places:
        return text
    place = rng.choice(places)
    word, at = parts[place], rng.randrange(1, len(parts[place]) - 1)
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    parts[place] = rng.choice(
        [word[:at] + word[at + 1 :], word[:at] + word[at : at + 1] * 2 + word[at + 1 :], swapped]
    )
    return " ".join(parts)


def noise(rng: Random, text: str) -> str:
    """Return a user's text as people type it: in lower case, without end mark, with slips."""
    if rng.random() < 0.4:
        for british, american in SPELLINGS:
            text = text.replace(british, american)
    if rng.random() < 0.25:
        for long, short in SHORT_FORMS:
            text = text.replace(long, short)
    if rng.random() < 0.2:
        text = text.replace("'", "") if "s' " not in text else text
    if rng.random() < 0.03:
        text = slip(rng, text)
    kind = rng.random()
    if kind < 0.25:
        text = text.lower()
    if 0.15 <= kind < 0.35:
        text = text.rstrip(".?!") or text
    return text


def invented_name(rng: Random) -> str:
    """Return a name of one to three syllables that nobody has."""
    while True:
        syllables = rng.choices([1, 2, 3], [2, 6, 3])[0]
        name = "".join(rng.choice(SYLLABLES) for _ in range(syllables)) + rng.choice(CODAS)
        if len(name) < 3:
            name += rng.choice(CODAS[3:])
        if name not in ANIMALS and not any(part in name for part in UNFIT):
            return capitalised(name)


def any_name(rng: Random) -> str:
    """Return a name: half of them invented."""
    return (
        rng.choice(GIRLS + BOYS + MORE_GIRLS + MORE_BOYS)
        if rng.random() < 0.5
        else invented_name(rng)
    )


def is_girl(name: str) -> bool:
    """Return whether our stories call the bearer of this name a girl."""
    if name in BOYS + MORE_BOYS or name.islower():
        return False
    return name in GIRLS + MORE_GIRLS or name[-1] in "aiey"
