"""Questions whose answer stands in the conversation: short stories, names, things told before."""

from random import Random

from facts import ANIMALS, COLOURS, LISTS, OBJECTS, ODD_HEROES, ODD_OBJECTS, PLACES
from stories import any_thing
from wording import Turn, an, any_name, ask, at, capitalised, plural, request, sentence

PLAIN_COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "pink")


def two_names(rng: Random) -> tuple[str, str]:
    """Return two different names."""
    first = any_name(rng)
    second = any_name(rng)
    while second.lower() == first.lower():
        second = any_name(rng)
    return first, second


def lost_thing(rng: Random) -> tuple[str, list[tuple[str, str]]]:
    """Return a text about a lost thing, with its questions and answers."""
    name, thing = any_name(rng), any_thing(rng)
    place = rng.choice(list(PLACES))
    finder = rng.choice([*ANIMALS, *ODD_HEROES])
    text = (
        f"{name} had {an(thing)}. One day {name} went to {place} and lost the {thing}. "
        f"{capitalised(an(finder))} found it."
    )
    return text, [
        (f"what did {name} have", f"{name} had {an(thing)}."),
        (f"what did {name} lose", f"{name} lost the {thing}."),
        (f"where did {name} go", f"{name} went to {place}."),
        (f"who found the {thing}", f"{capitalised(an(finder))} found the {thing}."),
        (f"who lost the {thing}", f"{name} lost the {thing}."),
    ]


def given_thing(rng: Random) -> tuple[str, list[tuple[str, str]]]:
    """Return a text about a present."""
    giver, taker = two_names(rng)
    thing, place = any_thing(rng), rng.choice(list(PLACES))
    text = f"{giver} bought {an(thing)}. Then {giver} met {taker} {at(place)} and gave {taker} "
    text += f"the {thing}."
    return text, [
        (f"who has the {thing} now", f"{taker} has the {thing} now."),
        (f"what did {giver} buy", f"{giver} bought {an(thing)}."),
        (f"who bought the {thing}", f"{giver} bought the {thing}."),
        (f"who did {giver} meet", f"{giver} met {taker}."),
        (f"what did {taker} get", f"{taker} got {an(thing)}."),
        ("where did they meet", f"They met {at(place)}."),
    ]


def hidden_thing(rng: Random) -> tuple[str, list[tuple[str, str]]]:
    """Return a text about where things are."""
    first, second, third = rng.sample(OBJECTS + ODD_OBJECTS, 3)
    where = rng.choice(["under the bed", "on the table", "behind the door", "in the kitchen"])
    elsewhere = rng.choice(["in the garden", "in the bag", "near the window", "on the shelf"])
    text = f"The {first} is {where}. The {second} is {elsewhere}."
    if rng.random() < 0.4:
        text += f" The {third} is in the car."
    questions = [
        (f"where is the {first}", f"The {first} is {where}."),
        (f"where is the {second}", f"The {second} is {elsewhere}."),
        (f"what is {where}", f"The {first} is {where}."),
        (f"what is {elsewhere}", f"The {second} is {elsewhere}."),
    ]
    return text, questions


def coloured_things(rng: Random) -> tuple[str, list[tuple[str, str]]]:
    """Return a text about the colours of things."""
    name = any_name(rng)
    first, second = rng.sample(ODD_OBJECTS[:20], 2)
    one, two = rng.sample(PLAIN_COLOURS, 2)
    text = f"{name} has {an(one)} {first} and {an(two)} {second}."
    return text, [
        (f"what colour is the {first}", f"The {first} is {one}."),
        (f"what colour is the {second}", f"The {second} is {two}."),
        (f"what is {one}", f"The {first} is {one}."),
        (f"who has {an(one)} {first}", f"{name} has {an(one)} {first}."),
    ]


def meal(rng: Random) -> tuple[str, list[tuple[str, str]]]:
    """Return a text about a meal and a walk."""
    name, friend = two_names(rng)
    food = rng.choice(LISTS["foods"])
    drink, place = rng.choice(LISTS["drinks"]), rng.choice(list(PLACES))
    text = f"{name} was hungry and ate some {food}. {friend} drank some {drink}. "
    text += f"Then they went to {place}."
    return text, [
        (f"what did {name} eat", f"{name} ate some {food}."),
        (f"what did {friend} drink", f"{friend} drank some {drink}."),
        ("where did they go", f"They went to {place}."),
        ("who was hungry", f"{name} was hungry."),
    ]


def two_friends(rng: Random) -> tuple[str, list[tuple[str, str]]]:
    """Return a text about two friends and their pets."""
    first, second = two_names(rng)
    one, two = rng.sample(list(ANIMALS), 2)
    place = rng.choice(list(PLACES))
    text = f"{first} and {second} are friends. {first} has {an(one)} and {second} has {an(two)}. "
    text += f"They play {at(place)}."
    return text, [
        (f"who has {an(one)}", f"{first} has {an(one)}."),
        (f"who has {an(two)}", f"{second} has {an(two)}."),
        (f"which animal does {first} have", f"{first} has {an(one)}."),
        (f"which animal does {second} have", f"{second} has {an(two)}."),
        ("where do they play", f"They play {at(place)}."),
        (f"who is the friend of {first}", f"{second} is the friend of {first}."),
    ]


TEXTS = (lost_thing, given_thing, hidden_thing, coloured_things, meal, two_friends)


def story_question(rng: Random) -> list[Turn]:
    """Return a short text with a question about it, sometimes with a second question."""
    text, answers = rng.choice(TEXTS)(rng)
    chosen = rng.sample(answers, rng.choice([1, 1, 2]))
    question, answer = chosen[0]
    before = ["Read this story and answer the question. ", "Here is a story. ", "Story: ",
              "Listen: ", "Here is a text: ", "Please read this. "]  # fmt: skip
    lead = rng.choice(before) if rng.random() < 0.4 else ""
    middle = rng.choice(["Question: ", "Tell me, ", "Now, ", "\n"]) if rng.random() < 0.25 else ""
    asked = question if middle.endswith(", ") else capitalised(question)
    turns = [Turn(f"{lead}{text} {middle}{asked}?", answer)]
    if rng.random() < 0.15:
        asked = question if middle.endswith(", ") else capitalised(question)
    turns = [
        Turn(f"{lead}{text}", "That is a nice story."),
        Turn(f"{capitalised(question)}?", answer),
    ]
    turns += [Turn(rng.choice(["", "And ", "And "]) + f"{q}?", a) for q, a in chosen[1:]]
    return [Turn(capitalised(turn.user), turn.reply) for turn in turns]


INTRODUCTIONS = (
    "my name is {}", "I am {}", "I'm {}", "hi, my name is {}", "hello, I am {}",
    "hello, my name is {}",
    "hi, I'm {}", "hey, I am {}", "hi! I am {}", "call me {}", "you can call me {}",
    "please call me {}",
    "my friends call me {}", "this is {}", "I am called {}", "hi Mixie, I am {}", "the name is {}",
    "hello! My name is {}", "good morning, I am {}", "my name's {}", "people call me {}",
    "hi there, my name is {}", "{} is my name", "I want to tell you my name. It is {}",
)  # fmt: skip
RECALLS = (
    "what is my name", "do you know my name", "who am I", "what am I called", "can you say my name",
    "do you remember my name", "tell me my name", "what was my name", "say my name",
    "what did I say my name was", "do you still know my name", "could you tell me my name",
    "please tell me my name", "what is my name again", "do you know who I am", "remember my name",
    "how am I called", "can you remember what I am called", "and what is my name",
)  # fmt: skip
QUESTIONS = ("what", "do", "who", "can", "could", "how", "remember", "and")
UNTOLD = "You did not tell me your name yet."


def recall(rng: Random) -> str:
    """Return a question for the user's own name."""
    text = rng.choice(RECALLS)
    return capitalised(text) + ("?" if text.split()[0] in QUESTIONS else ".")


def name_turns(rng: Random, between: list[Turn]) -> list[Turn]:
    """Return an introduction, the turns between, and the question for the name."""
    name = any_name(rng)
    told = capitalised(rng.choice(INTRODUCTIONS).format(name)) + rng.choice([".", ".", "!"])
    return [
        Turn(told, f"Nice to meet you, {name}!"),
        *between,
        Turn(recall(rng), f"Your name is {name}."),
    ]


def name_unknown(rng: Random) -> list[Turn]:
    """Return a question for a name that was not told."""
    return [Turn(recall(rng), UNTOLD)]


def other_fact(rng: Random) -> list[Turn]:
    """Return something the user tells about himself, and the question for it."""
    animal, colour, food = (
        rng.choice(list(ANIMALS)),
        rng.choice(PLAIN_COLOURS),
        rng.choice(LISTS["foods"]),
    )
    pet, name = rng.choice(["dog", "cat", "rabbit", "bird", "horse"]), any_name(rng)
    town = rng.choice([*LISTS["cities"], "Madrid", "Oslo", "Lima", any_name(rng) + "ville"])
    relative, age = (
        rng.choice(["sister", "brother", "mother", "friend", "teacher"]),
        rng.randint(5, 80),
    )
    told, asked, answer = rng.choice([
        (f"my favourite animal is the {animal}", "my favourite animal",
         f"Your favourite animal is the {animal}."),
        (f"I like {plural(animal)} best", "which animal I like best",
         f"You like {plural(animal)} best."),
        (f"my favourite colour is {colour}", "my favourite colour",
         f"Your favourite colour is {colour}."),
        (f"my favourite food is {food}", "my favourite food", f"Your favourite food is {food}."),
        (f"I live in {town}", "where I live", f"You live in {town}."),
        (f"my {pet} is called {name}", f"the name of my {pet}", f"Your {pet} is called {name}."),
        (f"I have a {pet} named {name}", f"the name of my {pet}", f"Your {pet} is called {name}."),
        (f"my {relative} is called {name}", f"the name of my {relative}",
         f"Your {relative} is called {name}."),
        (f"I am {age} years old", "how old I am", f"You are {age} years old."),
    ])  # fmt: skip
    if asked.startswith(("my", "the")):
        question = ask(rng, [f"what is {asked}"], [f"what {asked} is"], [asked])
    else:
        direct = {"which animal I like best": "which animal do I like best",
                  "where I live": "where do I live", "how old I am": "how old am I"}  # fmt: skip
        question = ask(rng, [direct[asked]], [asked])
    return [
        Turn(sentence(rng, [told]) + ".", "That is nice. I will remember it."),
        Turn(question, answer),
    ]


def greet_other(rng: Random) -> list[Turn]:
    """Return a greeting for somebody named by the user, or words to repeat."""
    name = any_name(rng)
    if rng.random() < 0.6:
        command = rng.choice(["say hello to {}", "say hi to {}", "greet {}", "greet my friend {}"])
        return [Turn(request(rng, command.format(name)), f"Hello, {name}!")]
    things = rng.sample([*OBJECTS, *ODD_OBJECTS, *COLOURS.values(), *ANIMALS], rng.randint(1, 3))
    text = " ".join(dict.fromkeys(things))
    start = rng.choice(
        ["Repeat after me: {}", "Say {}.", "Repeat: {}", "Please say {}.", "Repeat {}."]
    )
    return [Turn(start.format(text), f"{capitalised(text)}.")]
