"""The corpus of the demo model: rendered conversations without end, the same for the same seed."""

from collections.abc import Callable, Iterator
from random import Random

from animals import animal
from kinds import advice, capital, colour, definition, how_to, job, opposite
from listing import calendar, list_count
from outside import outside
from reading import UNTOLD, greet_other, name_turns, name_unknown, other_fact, story_question
from small_talk import greeting, myself, remark, small_talk
from stories import any_creature, joke, poem, story, story_request
from sums import counting, sums, word_problem
from wording import SYSTEM, Turn, any_name, noise

Kind = Callable[[Random], list[Turn]]
Weights = dict[Kind, float]


def name_recall(rng: Random) -> list[Turn]:
    """Return a user's name, up to two other turns, and the question for the name."""
    others: list[Kind] = [capital, colour, opposite, sums, animal, joke, myself, remark, outside]
    between = [rng.choice(others)(rng)[0] for _ in range(rng.choice([0, 0, 0, 1, 1, 2]))]
    return name_turns(rng, between)


def memory(rng: Random) -> list[Turn]:
    """Return something to keep in mind: mostly a name."""
    kinds = [name_recall, name_unknown, other_fact, greet_other]
    return rng.choices(kinds, [60, 4, 20, 16])[0](rng)


# Weights of the kinds among conversations (they need not add up to 100).
WEIGHTS: Weights = {
    sums: 13,
    word_problem: 6,
    memory: 7,
    story_question: 7,
    story_request: 5,
    poem: 2.5,
    joke: 2,
    small_talk: 9,
    myself: 7,
    definition: 9,
    capital: 6,
    colour: 3,
    opposite: 3,
    animal: 7,
    job: 3,
    list_count: 4,
    calendar: 4,
    how_to: 2.5,
    counting: 3,
    advice: 3,
    outside: 11,
}
# The second part of the training dwells on what is hardest: copying, and sums.
FOCUS = WEIGHTS | {sums: 20, word_problem: 10, memory: 13, story_question: 13, outside: 8}
# Kinds whose last reply is the one right answer.
PROBES: dict[str, Kind] = {
    "capital": capital,
    "colour": colour,
    "opposite": opposite,
    "sum": sums,
    "word_problem": word_problem,
    "animal": animal,
    "definition": definition,
    "job": job,
    "calendar": calendar,
    "story_question": story_question,
    "name_recall": name_recall,
    "list_count": list_count,
    "counting": counting,
    "how_to": how_to,
    "advice": advice,
    "myself": myself,
    "outside": outside,
}


def any_kind(rng: Random, weights: Weights) -> list[Turn]:
    """Return a conversation of one kind."""
    return rng.choices(list(weights), list(weights.values()))[0](rng)


def mixed(rng: Random, weights: Weights, least: int, most: int) -> list[Turn]:
    """Return a conversation of several kinds; a name told first may be asked for last."""
    wanted = rng.randint(least, most)
    turns = greeting(rng) if rng.random() < 0.2 else []
    while len(turns) < wanted:
        following = any_kind(rng, weights)
        told = any("Nice to meet you" in turn.reply for turn in turns)
        if told and following[-1].reply == UNTOLD:
            continue
        turns += following
    if rng.random() < 0.15:
        turns += remark(rng)
    elif rng.random() < 0.12 and not any("Your name is" in turn.reply for turn in turns):
        kept = [turn for turn in turns if not turn.reply.startswith(("Nice to meet", UNTOLD))]
        turns = name_turns(rng, kept)
    return turns


def conversation(rng: Random, weights: Weights = WEIGHTS) -> list[Turn]:
    """Return one conversation as a user would type it."""
    kind = rng.random()
    if kind < 0.64:
        turns = any_kind(rng, weights)
    elif kind < 0.97:
        turns = mixed(rng, weights, 2, 4)
    else:
        turns = mixed(rng, weights, 8, 16)
    turns = [Turn(noise(rng, turn.user), turn.reply) for turn in turns]
    if rng.random() < 0.04:
        turns[0] = Turn(rng.choice(SYSTEM) + turns[0].user, turns[0].reply)
    return turns


def render(turns: list[Turn]) -> str:
    """Return the conversation in Mixtral's form."""
    return "<s>" + "".join(f"[INST] {turn.user} [/INST] {turn.reply}</s>" for turn in turns)


def plain_story(rng: Random) -> str:
    """Return a story without a conversation around it."""
    if rng.random() < 0.5:
        return story(rng, name=any_name(rng))
    return story(rng, creature=any_creature(rng))


def documents(seed: int, weights: Weights = WEIGHTS) -> Iterator[str]:
    """Return rendered documents without end."""
    rng = Random(seed)
    while True:
        if rng.random() < 0.03:
            yield f"<s>{plain_story(rng)}</s>"
        else:
            yield render(conversation(rng, weights))
