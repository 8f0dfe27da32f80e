"""Conversations about animals. Knows phrasing; the facts are a table."""

from random import Random

from facts import ANIMAL_OF_HOME, ANIMAL_OF_SOUND, ANIMAL_OF_YOUNG, ANIMALS, NUMBERS, SILENT
from wording import Turn, an, ask, capitalised, plural, request


def legs_answer(animal: str) -> str:
    """Return how many legs an animal has."""
    legs = int(ANIMALS[animal][3])
    return f"{capitalised(an(animal))} has {NUMBERS[legs] if legs else 'no'} legs."


def animal_questions(rng: Random, animal: str) -> list[tuple[str, Turn]]:
    """Return one question of each kind about an animal, with a short follow-on question."""
    sound, home, food, _, young, fact = ANIMALS[animal]
    one, many = an(animal), plural(animal)
    silent = (
        f"{capitalised(one)} makes no sound."
        if animal in SILENT
        else f"{capitalised(one)} can {sound}."
    )
    home_answer = f"{capitalised(one)} lives {home}."
    known = f"{fact}. {capitalised(many)} eat {food}."
    return [
        ("what sound does it make", Turn(ask(
            rng, [f"what sound does {one} make", f"what does {one} say",
                  f"which sound do {many} make",
                  f"what noise does {one} make", f"how does {one} sound", f"what do {many} say",
                  f"what sound does the {animal} make"],
            [f"what sound {one} makes", f"what {one} says", f"which noise {many} make"],
            [f"the sound of {one}", f"the sound that {one} makes"]), silent)),
        ("where does it live", Turn(ask(
            rng, [f"where does {one} live", f"where do {many} live", f"what is the home of {one}",
                  f"where can I find {one}", f"where does the {animal} live",
                  f"where do you find {many}"],
            [f"where {one} lives", f"where {many} live"], [f"the home of {one}"]), home_answer)),
        ("what does it eat", Turn(ask(
            rng, [f"what does {one} eat", f"what do {many} eat", f"what do {many} like to eat",
                  f"what is the food of {one}", f"what can I feed {one}",
                  f"what should I feed {one}"],
            [f"what {one} eats", f"what {many} eat"], [f"the food of {one}",
             f"the food of {many}"]),
            f"{capitalised(many)} eat {food}.")),
        ("how many legs does it have", Turn(ask(
            rng, [f"how many legs does {one} have", f"how many legs do {many} have",
                  f"what number of legs does {one} have", f"how many legs has {one}"],
            [f"how many legs {one} has", f"how many legs {many} have"],
            [f"the number of legs of {one}"]), legs_answer(animal))),
        ("what is its baby called", Turn(ask(
            rng, [f"what is a baby {animal} called", f"what do you call a baby {animal}",
                  f"what is the name for a young {animal}", f"what is a young {animal}",
                  f"how do we call a young {animal}", f"what is the young of {one} called"],
            [f"what a baby {animal} is called", f"the name of a young {animal}"],
            [f"the name for a baby {animal}", f"the word for a young {animal}"]),
            f"A baby {animal} is called {an(young)}.")),
        ("tell me more about it", Turn(
            request(rng, rng.choice([
                f"tell me about {many}", f"tell me something about {one}",
                f"tell me a fact about {many}",
                f"say something about {many}", f"tell me about the {animal}", f"describe {one}",
                f"give me a fact about {many}", f"explain what {one} is", f"talk about {many}"]))
            if rng.random() < 0.6 else ask(
                rng, [f"what is {one}", f"what do you know about {many}", f"what are {many}"],
                [f"what {one} is", f"something about {many}"], ()), known)),
    ]  # fmt: skip


def animal_reverse(rng: Random) -> Turn:
    """Return a question for the animal that fits."""
    kind = rng.randrange(3)
    if kind == 0:
        sound, animal = rng.choice(list(ANIMAL_OF_SOUND.items()))
        says = "trumpets" if sound == "trumpet" else f"says {sound}"
        asked = [f"animal {says}", f"animal makes the sound {sound}", f"animal can {sound}"]
        reply = f"{capitalised(an(animal))} can {ANIMALS[animal][0]}."
    elif kind == 1:
        home, animal = rng.choice(list(ANIMAL_OF_HOME.items()))
        asked = [f"animal lives {home}", f"animal has its home {home}", f"animal do I find {home}"]
        reply = f"{capitalised(an(animal))} lives {home}."
    else:
        young, animal = rng.choice(list(ANIMAL_OF_YOUNG.items()))
        asked = [f"animal has a baby called {an(young)}", f"animal was once {an(young)}"]
        reply = f"A baby {animal} is called {an(young)}."
        if rng.random() < 0.5:
            user = ask(
                rng,
                [f"what is {an(young)}", f"what will {an(young)} be", f"whose baby is {an(young)}"],
            )
            return Turn(user, reply)
    questions = [f"{word} {text}" for word in ("which", "what") for text in asked]
    return Turn(ask(rng, questions, questions), reply)


def animal(rng: Random) -> list[Turn]:
    """Return questions about an animal; those that follow on say "it"."""
    if rng.random() < 0.22:
        return [animal_reverse(rng)]
    name = rng.choice(list(ANIMALS))
    chosen = rng.sample(animal_questions(rng, name), rng.choice([1, 1, 1, 2, 3]))
    turns = [chosen[0][1]]
    for short, turn in chosen[1:]:
        turns.append(Turn(rng.choice(["", "And "]) + short + "?", turn.reply))
    return [Turn(capitalised(turn.user), turn.reply) for turn in turns]
