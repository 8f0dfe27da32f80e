"""What the demo model learns from is true, correct English and the same for the same seed."""

import re
from collections.abc import Callable
from importlib import import_module
from itertools import islice
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "demo_model"
DOCUMENT = re.compile(r"<s>(\[INST\] [^\[]+ \[/INST\] [^\[<]+</s>)+|<s>[^\[<]+</s>")
SUM = re.compile(r"(\d+) ([-+x]) (\d+) = (\d+)")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return a function that imports a module of the recipe."""
    monkeypatch.syspath_prepend(str(RECIPE))
    return import_module


def replies(corpus: ModuleType, probe: str, number: int = 400) -> list[tuple[str, str]]:
    """Return the last question and reply of many conversations of one kind."""
    rng = Random(7)
    return [tuple(corpus.PROBES[probe](rng)[-1]) for _ in range(number)]


def test_the_same_seed_gives_the_same_documents(load):
    documents = load("corpus").documents
    assert list(islice(documents(5), 500)) == list(islice(documents(5), 500))


def test_another_seed_gives_other_documents(load):
    documents = load("corpus").documents
    assert list(islice(documents(5), 50)) != list(islice(documents(6), 50))


def test_turns_are_rendered_in_the_form_of_mixtral(load):
    corpus = load("corpus")
    turns = [corpus.Turn("Hi", "Hello!"), corpus.Turn("Bye", "Goodbye!")]
    expected = "<s>[INST] Hi [/INST] Hello!</s>[INST] Bye [/INST] Goodbye!</s>"
    assert corpus.render(turns) == expected


def test_every_document_is_a_conversation_or_a_plain_story(load):
    documents = islice(load("corpus").documents(1), 3000)
    assert [text for text in documents if not DOCUMENT.fullmatch(text)] == []


def test_articles_fit_the_words_after_them(load):
    text = "\n".join(islice(load("corpus").documents(2), 5000))
    slips = re.findall(r"\b[Aa] [aeio][a-z]+|\b[Aa]n [bcdfgjkmnpqrstvwxyz][a-z]+", text)
    assert set(slips) <= {"a one", "a once", "an ssd"}


def test_one_thing_is_never_in_the_plural(load):
    text = "\n".join(islice(load("corpus").documents(2), 5000))
    nouns = "|".join(load("facts").COUNTABLE)
    assert re.findall(rf"\b(?:1|one) (?:{nouns})(?:e?s)\b", text) == []


@pytest.mark.parametrize("probe", ["sum", "word_problem"])
def test_sums_are_right(load, probe):
    compute = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__}
    for _, reply in replies(load("corpus"), probe):
        first, sign, second, result = SUM.search(reply).groups()
        assert compute[sign](int(first), int(second)) == int(result), reply


@pytest.mark.parametrize(
    ("probe", "table", "form"),
    [
        ("capital", "CAPITALS", "capital of {} is {}."),
        ("job", "JOBS", "{} {}."),
        ("colour", "COLOURS", "{} is {}."),
    ],
)
def test_replies_state_what_the_table_says(load, probe, table, form):
    facts = getattr(load("facts"), table)
    true = [form.format(key, value).lower() for key, value in facts.items()]
    for question, reply in replies(load("corpus"), probe):
        assert any(reply.lower().endswith(text) for text in true), (question, reply)


def test_opposites_state_a_pair_of_the_table(load):
    pairs = load("facts").OPPOSITES.items()
    true = {f"The opposite of {a} is {b}." for pair in pairs for a, b in (pair, pair[::-1])}
    assert {reply for _, reply in replies(load("corpus"), "opposite")} <= true


def test_a_name_is_recalled_as_the_user_wrote_it(load):
    name_recall, rng = load("corpus").PROBES["name_recall"], Random(3)
    for _ in range(300):
        turns = name_recall(rng)
        name = turns[0].reply.removeprefix("Nice to meet you, ").removesuffix("!")
        assert name in turns[0].user
        assert turns[-1].reply == f"Your name is {name}."


def test_the_answer_about_a_story_stands_in_the_story(load):
    story_question, rng = load("corpus").PROBES["story_question"], Random(3)
    for _ in range(300):
        turns = story_question(rng)
        story = " ".join(turn.user for turn in turns).lower() + " the is friend got drank now"
        words = re.findall(r"\w+", turns[-1].reply.lower())
        missing = [word for word in words if word not in story]
        assert missing == [], turns


def test_lists_have_the_requested_number_of_entries_and_none_twice(load):
    numbers = load("facts").NUMBERS
    for _, reply in replies(load("corpus"), "list_count"):
        kind, _, items = reply.rstrip(".").partition(" are ")
        entries = re.split(r", | and ", items)
        assert len(entries) == len(set(entries)) == numbers.index(kind.split()[0].lower()), reply


@pytest.mark.parametrize(
    "probe", ["capital", "sum", "animal", "definition", "list_count", "advice"]
)
def test_one_question_has_one_reply(load, probe):
    corpus, known = load("corpus"), {}
    rng = Random(11)
    for _ in range(3000):
        question, reply = corpus.PROBES[probe](rng)[0]
        assert known.setdefault(question, reply) == reply


def test_the_model_is_not_said_to_be_ignorant_of_what_it_learns(load):
    outside, definitions = load("outside"), load("definitions")
    rows = definitions.DEFINITIONS + definitions.TECHNICAL
    known = {form for row in rows for form in (row[0], *row[1].split(", "))}
    assert known.isdisjoint(outside.TOPICS)


def test_no_invented_name_is_unfit(load):
    wording, unfit = load("wording"), load("facts").UNFIT
    rng = Random(1)
    names = {wording.invented_name(rng).lower() for _ in range(3000)}
    assert [name for name in names if any(part in name for part in unfit)] == []


def test_the_tables_name_nothing_twice_in_a_list(load):
    for kind, items in load("facts").LISTS.items():
        assert len(items) == len(set(items)), kind
