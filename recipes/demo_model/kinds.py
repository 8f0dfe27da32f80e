"""Kinds of conversation about facts: one function each. Knows phrasing; the facts are tables."""

from random import Random

from definitions import ADVICE, DEFINITIONS, HOW_TOS, REASONS, TECHNICAL
from facts import CAPITALS, COLOURS, JOBS, OPPOSITES, words
from wording import Turn, an, ask, capitalised, plural, request

CHANGES = (
    "And {}?",
    "What about {}?",
    "And of {}?",
    "{}?",
    "How about {}?",
    "Now {}.",
    "And for {}?",
)


def capital_answer(country: str) -> str:
    """Return the one reply to a question for a capital."""
    return f"The capital of {country} is {CAPITALS[country]}."


def capital_turn(rng: Random) -> Turn:
    """Return a question for a capital, or for the country of one."""
    country = rng.choice(list(CAPITALS))
    city = CAPITALS[country]
    kind = rng.random()
    if kind < 0.12:
        user = ask(
            rng,
            [f"which country has the capital {city}", f"where is {city}",
             f"{city} is the capital of what",
             f"which country is {city} the capital of", f"in which country is {city}",
             f"what country has {city} as its capital"],
            [f"which country has the capital {city}", f"where {city} is",
             f"in which country {city} is"],
        )  # fmt: skip
    elif kind < 0.18:
        user = ask(
            rng, [f"is {city} the capital of {country}"], [f"if {city} is the capital of {country}"]
        )
        return Turn(user, f"Yes, the capital of {country} is {city}.")
    elif kind < 0.24:
        wrong = rng.choice([value for value in CAPITALS.values() if value != city])
        user = ask(
            rng,
            [f"is {wrong} the capital of {country}"],
            [f"if {wrong} is the capital of {country}"],
        )
        return Turn(user, f"No, the capital of {country} is {city}.")
    else:
        noun = f"the capital of {country}"
        nouns = [noun, noun, f"the capital city of {country}", f"capital of {country}"]
        if " " not in country:
            nouns += [f"{country}'s capital", f"{country} capital"]
        user = ask(
            rng,
            [f"what is {noun}", f"what is {noun}", f"which city is {noun}", f"what city is {noun}",
             f"what is the capital city of {country}", f"which is {noun}", f"what is {noun} called",
             f"what is the name of {noun}", f"{country} has which capital",
             f"which capital does {country} have"],
            [f"what {noun} is", f"which city is {noun}", noun, f"the name of {noun}",
             f"what {noun} is called", f"the capital city of {country}"],
            nouns[:3] if rng.random() < 0.6 else nouns[3:],
        )  # fmt: skip
    return Turn(user, capital_answer(country))


def capital(rng: Random) -> list[Turn]:
    """Return a question for a capital, sometimes with others that follow on."""
    turns = [capital_turn(rng)]
    if rng.random() < 0.4 and turns[0].reply.startswith("The"):
        for country in rng.sample(list(CAPITALS), rng.choice([1, 1, 2])):
            if capital_answer(country) in [turn.reply for turn in turns]:
                continue
            turns.append(Turn(rng.choice(CHANGES).format(country), capital_answer(country)))
    return turns


def colour(rng: Random) -> list[Turn]:
    """Return a question for a colour, sometimes followed by another."""
    thing, other = rng.sample(list(COLOURS), 2)
    bare = thing.split(" ", 1)[1] if thing.startswith(("a ", "an ")) else thing
    forms = [thing, thing] + ([f"the {bare}"] if bare != thing else [])
    form = rng.choice(forms)
    user = ask(
        rng,
        [f"what colour is {form}", f"which colour is {form}", f"what is the colour of {form}",
         f"what colour does {form} have", f"which colour does {form} have",
         f"{form} has what colour"],
        [f"what colour {form} is", f"which colour {form} has", f"the colour of {form}"],
        [f"the colour of {form}", f"the colour of {form}", f"colour of {form}"],
    )  # fmt: skip
    turns = [Turn(user, f"{capitalised(thing)} is {COLOURS[thing]}.")]
    if rng.random() < 0.25:
        turns.append(
            Turn(
                rng.choice(CHANGES[:2]).format(other), f"{capitalised(other)} is {COLOURS[other]}."
            )
        )
    return turns


def opposite(rng: Random) -> list[Turn]:
    """Return a question for an opposite, in either direction, sometimes followed by another."""
    both = {**{second: first for first, second in OPPOSITES.items()}, **OPPOSITES}
    word, following = rng.sample(list(both), 2)
    noun = f"the opposite of {word}"
    user = ask(
        rng,
        [f"what is {noun}", f"what is {noun}", f"which word is {noun}", f"what word is {noun}",
         f"what is not {word}", f"if something is not {word}, what is it",
         f"what is the antonym of {word}",
         f"{word} is the opposite of what", f"what do you call {noun}"],
        [f"what {noun} is", noun, f"which word is {noun}"],
        [noun, noun, noun[4:], f"opposite word of {word}"],
    )  # fmt: skip
    turns = [Turn(user, f"The opposite of {word} is {both[word]}.")]
    if rng.random() < 0.3:
        text = rng.choice(["And {}?", "What about {}?", "And of {}?"]).format(following)
        turns.append(Turn(text, f"The opposite of {following} is {both[following]}."))
    return turns


def is_plural(term: str) -> bool:
    """Return whether a term of the table takes "are"."""
    singular = ("maths", "mathematics", "mixture of experts")
    return term.endswith("s") and not term.startswith(("a ", "an ")) and term not in singular


def definition(rng: Random) -> list[Turn]:
    """Return a question for what something is; half of them are technical."""
    if rng.random() < 0.14:
        question, indirect, answer = rng.choice(REASONS)
        return [Turn(ask(rng, [question], [indirect]), answer)]
    technical = rng.random() < 0.55
    term, aliases, text = rng.choice(TECHNICAL if technical else DEFINITIONS)
    others = words(aliases) if aliases else ()
    form = rng.choice(others) if others and rng.random() < (0.45 if technical else 0.25) else term
    many = is_plural(form)
    verb = "are" if many else "is"
    mean = "do" if many else "does"
    if rng.random() < 0.4:
        commands = ["explain {}", "define {}", "tell me about {}", "explain {} to me",
                    "describe {}",
                    "tell me what {} {}", "explain what {} {}", "give me a definition of {}",
                    "say what {} {}", "teach me about {}"]  # fmt: skip
        return [Turn(request(rng, rng.choice(commands).format(form, verb)), text)]
    questions = [f"what {verb} {form}", f"what {verb} {form}", f"what {mean} {form} mean",
                 f"what {verb} {form} exactly", f"what do you know about {form}"]  # fmt: skip
    if technical:
        questions += [
            f"how {mean} {form} work",
            f"what {verb} {form} for",
            f"why do we need {form}",
        ]
    return [Turn(ask(rng, questions, [f"what {form} {verb}",
                                      f"what {form} mean{'' if many else 's'}"],
                     [form]), text)]  # fmt: skip


def job(rng: Random) -> list[Turn]:
    """Return a question about a job, or for the job that fits."""
    name = rng.choice(list(JOBS))
    does = JOBS[name]
    one = an(name)
    user = ask(
        rng,
        [f"what does {one} do", f"what is {one}", f"what is the job of {one}",
         f"what do {plural(name)} do"
         if name != "fisherman" else "what do fishermen do", f"what does {one} do all day",
         f"what is the work of {one}"],
        [f"what {one} does", f"what {one} is", f"what the job of {one} is"],
        [f"the job of {one}", f"the work of {one}"],
    )  # fmt: skip
    if rng.random() < 0.35:
        questions = [f"who {does}", f"which person {does}", f"what do you call a person who {does}",
                     f"what is somebody called who {does}",
                     f"whose job is it: somebody who {does}"]  # fmt: skip
        user = ask(rng, questions, [f"who {does}"])
    return [Turn(user, f"{capitalised(one)} {does}.")]


def how_to(rng: Random) -> list[Turn]:
    """Return how something is done, in steps."""
    task = rng.choice(list(HOW_TOS))
    steps = HOW_TOS[task]
    if rng.random() < 0.4:
        frames = ["tell me how to {}", "explain how to {}", "show me how to {}",
                  "teach me how to {}",
                  "help me {}", "teach me to {}"]  # fmt: skip
        user = request(rng, rng.choice(frames).format(task))
    else:
        user = ask(rng, [f"how do I {task}", f"how can I {task}", f"how do you {task}",
                         f"what is the way to {task}", f"how does one {task}",
                         f"what do I do to {task}"],
                   [f"how to {task}", f"how I can {task}"])  # fmt: skip
    middle = " ".join(f"Then {step}." for step in steps[1:-1])
    return [Turn(user, f"First, {steps[0]}. {middle} Last, {steps[-1]}.".replace("  ", " "))]


def advice(rng: Random) -> list[Turn]:
    """Return a simple suggestion."""
    _, reply, ways = rng.choice(ADVICE)
    text = rng.choice([way.strip() for way in ways.split(",")])
    asks = text.split()[0] in ("what", "which", "how")
    if asks:
        return [Turn(ask(rng, [text]), reply)]
    return [Turn(capitalised(text) + rng.choice([".", ".", "!"]), reply)]
