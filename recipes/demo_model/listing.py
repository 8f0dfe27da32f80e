"""Lists, days, months and numbers of parts. Knows phrasing; the lists are tables."""

from random import Random

from facts import DAYS, LISTS, MONTHS, NUMBERS, PLURALS, WHOLE_LISTS
from wording import Turn, ask, capitalised, joined, number_word, request


def list_answer(number: int, kind: str) -> str:
    """Return the first entries of a list as a sentence."""
    items = (LISTS.get(kind) or WHOLE_LISTS[kind])[:number]
    return f"{capitalised(NUMBERS[number])} {kind} are {joined(items)}."


def list_count(rng: Random) -> list[Turn]:
    """Return a request for some things of a kind: always the first ones of the table."""
    kind = rng.choice([*LISTS, *list(WHOLE_LISTS)[:2]])
    items = LISTS.get(kind) or WHOLE_LISTS[kind]
    number = rng.randint(2, min(6, len(items)))
    asked = number_word(rng, number)
    if rng.random() < 0.15:
        number, asked = 3, rng.choice(["some", "a few"])
    frames = ["name {}", "give me {}", "tell me {}", "list {}", "say {}", "name me {}",
              "list me {}",
              "tell me the names of {}", "write down {}", "think of {}", "give me a list of {}",
              "give me the names of {}", "make a list of {}", "write a list of {}"]  # fmt: skip
    if rng.random() < 0.15:
        user = ask(rng, [f"what are {asked} {kind}", f"which {asked} {kind} do you know",
                         f"do you know {asked} {kind}", f"can I have {asked} {kind}"],
                         (), [f"{asked} {kind}"])  # fmt: skip
    else:
        user = request(rng, rng.choice(frames).format(f"{asked} {kind}"))
    return [Turn(user, list_answer(number, kind))]


def whole_list(rng: Random) -> Turn:
    """Return a question for all the days, months, seasons or planets, or their number."""
    kind = rng.choice(list(WHOLE_LISTS))
    items = WHOLE_LISTS[kind]
    if rng.random() < 0.4:
        unit, _, of = kind.partition(" of ")
        tail = f" {'in' if of else 'of'} {of.replace('the ', 'a ')}" if of else ""
        user = ask(rng, [f"how many {unit} are there{tail}", f"how many {kind} are there"],
                   [f"how many {unit} there are{tail}"], [f"the number of {kind}"])  # fmt: skip
        return Turn(user, f"There are {NUMBERS[len(items)]} {kind}.")
    if rng.random() < 0.5:
        user = request(rng, rng.choice(["name the {}", "list the {}", "name all {}",
                                        "tell me the {}",
                                        "list all {}", "say the {}"]).format(kind))  # fmt: skip
    else:
        user = ask(rng, [f"what are the {kind}", f"which {kind} are there"],
            [f"what the {kind} are"],
                   [f"the {kind}", f"all the {kind}"])  # fmt: skip
    return Turn(user, f"The {kind} are {joined(items)}.")


FIXED = (
    ("hours", "a day", "twenty-four hours"), ("minutes", "an hour", "sixty minutes"),
    ("seconds", "a minute", "sixty seconds"), ("days", "a year", "365 days"),
    ("sides", "a triangle", "three sides"), ("sides", "a square", "four sides"),
    ("legs", "a table", "four legs"), ("fingers", "a hand", "five fingers"),
    ("weeks", "a year", "fifty-two weeks"), ("letters", "the alphabet", "twenty-six letters"),
)  # fmt: skip
SUPERLATIVES = (
    ("the largest planet", "Jupiter"), ("the largest animal",
     "the blue whale"), ("the smallest planet", "Mercury"),
    ("the tallest animal", "the giraffe"), ("the fastest land animal", "the cheetah"),
    ("the nearest star", "the sun"), ("the first month", "January"), ("the last month", "December"),
    ("the largest land animal", "the elephant"), ("the coldest season",
     "winter"), ("the hottest season", "summer"),
)  # fmt: skip


def calendar(rng: Random) -> list[Turn]:
    """Return a question about days, months, plurals and a few fixed numbers."""
    names, unit = (DAYS, "day") if rng.random() < 0.55 else (MONTHS, "month")
    at, step = rng.randrange(len(names)), rng.choice([1, -1])
    here, there = names[at], names[(at + step) % len(names)]
    where = "after" if step == 1 else "before"
    kind = rng.choices(["order", "whole", "fixed", "most", "plural"], [45, 15, 14, 12, 14])[0]
    if kind == "whole":
        return [whole_list(rng)]
    if kind == "fixed":
        part, whole, number = rng.choice(FIXED)
        user = ask(rng, [f"how many {part} does {whole} have", f"how many {part} are in {whole}"],
                   [f"how many {part} {whole} has"])  # fmt: skip
        return [Turn(user, f"{capitalised(whole)} has {number}.")]
    if kind == "most":
        thing, answer = rng.choice(SUPERLATIVES)
        user = ask(rng, [f"what is {thing}", f"which is {thing}"], [f"what {thing} is"], [thing])
        return [Turn(user, f"{capitalised(thing)} is {answer}.")]
    if kind == "plural":
        word = rng.choice(list(PLURALS))
        user = ask(rng, [f"what is the plural of {word}", f"how do you say more than one {word}",
                         f"what do you call two of them: one {word}, two what"],
                   [f"what the plural of {word} is"], [f"the plural of {word}",
                    f"plural of {word}"])  # fmt: skip
        return [Turn(user, f"The plural of {word} is {PLURALS[word]}.")]
    questions = [f"which {unit} comes {where} {here}", f"what {unit} comes {where} {here}",
                 f"what comes {where} {here}", f"what {unit} is {where} {here}",
                 f"which {unit} is {where} {here}",
                 f"what is the {unit} {where} {here}"]  # fmt: skip
    if unit == "day":
        relative = "tomorrow" if step == 1 else "yesterday"
        questions += [f"today is {here}, what is {relative}" if step == 1
                      else f"today is {here}, what was {relative}"]  # fmt: skip
    nouns = [f"the {unit} {where} {here}"]
    return [Turn(ask(rng, questions, [f"which {unit} comes {where} {here}"], nouns),
                 f"The {unit} {where} {here} is {there}.")]  # fmt: skip
