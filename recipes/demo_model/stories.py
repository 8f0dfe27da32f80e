"""Stories, the questions about short ones, poems and jokes. Knows nothing of other talk."""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from facts import ADJECTIVES, ANIMALS, BOYS, GIRLS, OBJECTS, ODD_HEROES, ODD_OBJECTS, PLACES, words
from wording import Turn, an, any_name, at, capitalised, is_girl, request, sentence

TELL = (
    "tell me a story", "tell a story", "write a story", "write a short story", "make up a story",
    "tell me a short story", "invent a story", "give me a story", "tell me a bedtime story",
    "tell me a nice story", "tell us a story", "write me a story",
)  # fmt: skip
ABOUT = (" about {}", " about {}", " about {}", " with {}", " with {} in it", " on {}")
PEOPLE = GIRLS + BOYS
WOMEN = words("princess, queen, witch, fairy, mermaid, teacher, baker")
MEN = words("prince, king, knight, wizard, pirate, giant, snowman, astronaut, clown, farmer")


class Cast(NamedTuple):
    """Who and what a story is about. `hero` is "Tom" or "the fox"."""

    hero: str
    he: str
    his: str
    friend: str
    thing: str
    place: str


def pronouns(name: str) -> tuple[str, str]:
    """Return he and his, or she and her, or it and its for an animal or a thing."""
    if name in WOMEN:
        return "she", "her"
    if name in ANIMALS or (name in ODD_HEROES and name not in MEN):
        return "it", "its"
    return ("she", "her") if is_girl(name) else ("he", "his")


def other(rng: Random, name: str) -> str:
    """Return a common name that is not `name`."""
    return rng.choice([person for person in PEOPLE if person != name])


def lost(rng: Random, cast: Cast) -> list[str]:
    """Return a plot: something is lost and a friend finds it."""
    hero, he, _, friend, thing, place = cast
    where = rng.choice(["behind a tree", "under a stone", "near the water", "in the tall grass"])
    return [
        f"{capitalised(he)} had {an(thing)} and loved it very much.",
        f"One day {hero} went to {place} and lost the {thing}.",
        f"{capitalised(he)} looked everywhere and felt sad.",
        f'Then {friend} came. "I can help you," said {friend}.',
        f"They looked together, and {friend} found the {thing} {where}.",
        f"{capitalised(hero)} was so happy. From that day on they were good friends.",
    ]


def shared(rng: Random, cast: Cast) -> list[str]:
    """Return a plot: sharing is better than playing alone."""
    hero, he, _, friend, thing, place = cast
    return [
        f"One day {he} found {an(thing)} {at(place)}.",
        f"{capitalised(friend)} wanted to play with it too.",
        f'"No, it is mine!" said {hero}. So {friend} went away.',
        f"Soon {hero} felt lonely. It was no fun to play alone.",
        f'"I am sorry," said {hero}. "We can share the {thing}."',
        f"They played all day, and {hero} learned that sharing is more fun.",
    ]


def scared(rng: Random, cast: Cast) -> list[str]:
    """Return a plot: a strange sound turns out to be a friend."""
    hero, he, _, friend, thing, place = cast
    fear = rng.choice(["the dark", "loud noises", "deep water", "high places"])
    return [
        f"{capitalised(hero)} was afraid of {fear}.",
        f"One evening {he} walked to {place} and heard a strange sound.",
        f"{capitalised(he)} wanted to run away, but {he} took a deep breath and looked.",
        f"It was only {friend} with {an(thing)}!",
        f"{capitalised(hero)} laughed and was not scared any more.",
        "They sang a song and went home together.",
    ]


def built(rng: Random, cast: Cast) -> list[str]:
    """Return a plot: never give up."""
    hero, he, _, friend, thing, place = cast
    work = rng.choice(["a tree house", "a boat", "a sand castle", "a little bridge"])
    return [
        f"{capitalised(he)} wanted to build {work} {at(place)}.",
        f"But it fell down, and {hero} was sad.",
        f'"Let us try again," said {friend}.',
        f"They worked all day, and {an(thing)} helped them a lot.",
        "At last it was done, and they were very proud.",
        f"{capitalised(hero)} learned never to give up.",
    ]


def journey(rng: Random, cast: Cast) -> list[str]:
    """Return a plot: a long way and a treasure at its end."""
    hero, he, _, friend, thing, place = cast
    trouble = rng.choice(["it began to rain", "the wind was strong", "it grew dark"])
    return [
        f"{capitalised(he)} wanted to see the world.",
        f"One morning {he} met {friend} on the way to {place}.",
        f'"Do you want to come with me?" asked {hero}. "Yes!" said {friend}.',
        f"The way was long, and {trouble}. But they were brave.",
        f"{capitalised(at(place))} they found {an(thing)}.",
        "They took it home and were happy for a long time.",
    ]


def party(rng: Random, cast: Cast) -> list[str]:
    """Return a plot: a birthday."""
    hero, _, his, friend, thing, place = cast
    return [
        f"It was {his} birthday, and {hero} was very happy.",
        f"{capitalised(friend)} came and gave {hero} {an(thing)}.",
        f"They went to {place} and ate cake.",
        f'"This is the best day ever!" said {hero}.',
        f"In the evening {hero} was tired and went to bed with the {thing}.",
    ]


PLOTS: list[Callable[[Random, Cast], list[str]]] = [lost, shared, scared, built, journey, party]


def story(rng: Random, name: str = "", creature: str = "", thing: str = "", place: str = "") -> str:
    """Return a story about what is given; its first sentence names it."""
    wish = bool(thing), bool(place)
    friend = other(rng, name)
    if creature and name:
        friend = f"the {creature}"
    hero = name or (f"the {creature}" if creature else rng.choice(PEOPLE))
    if friend == hero:
        friend = other(rng, hero)
    he, his = pronouns(creature if hero.startswith("the ") else hero)
    cast = Cast(
        hero, he, his, friend, thing or rng.choice(OBJECTS), place or rng.choice(list(PLACES))
    )
    adjective = rng.choice(ADJECTIVES)
    if hero.startswith("the "):
        who = f"{an(adjective)} {creature}"
    else:
        who = f"{an(adjective)} {'girl' if he == 'she' else 'boy'} named {hero}"
    extra = ""
    if creature and name:
        extra += f" who had a friend, {an(creature)}"
        if wish[0]:
            extra += ", and"
    if wish[0]:
        extra += f" {'who' if not hero.startswith('the ') or extra else 'that'} liked {an(thing)}"
    if wish[1]:
        extra += f" near {place}"
    first = f"Once upon a time there was {who}{extra}."
    return " ".join([first, *rng.choice(PLOTS)(rng, cast)])


def any_thing(rng: Random) -> str:
    """Return a thing, often an odd one."""
    return rng.choice(OBJECTS if rng.random() < 0.35 else ODD_OBJECTS)


def any_creature(rng: Random) -> str:
    """Return an animal or another hero."""
    return rng.choice(list(ANIMALS) if rng.random() < 0.5 else ODD_HEROES)


def story_request(rng: Random) -> list[Turn]:
    """Return a story on request, sometimes with thanks or a second one."""
    kind = rng.randrange(9)
    name = any_name(rng) if kind in (1, 3, 5, 6, 7) else ""
    creature = any_creature(rng) if kind in (2, 3, 8) else ""
    thing = any_thing(rng) if kind in (4, 5, 8) else ""
    place = rng.choice(list(PLACES)) if kind == 6 else ""
    subject = " and ".join(
        part
        for part in (name, an(creature) if creature else "", an(thing) if thing else "")
        if part
    )
    if subject and kind in (1, 7) and rng.random() < 0.3:
        subject = f"{'a girl' if is_girl(name) else 'a boy'} named {name}"
    if place:
        subject += f" {at(place)}"
    bare = rng.random() < 0.15 and bool(subject)
    command = rng.choice(TELL) + (rng.choice(ABOUT).format(subject) if subject else "")
    user = f"Story about {subject}" if bare else request(rng, command)
    if subject and rng.random() < 0.1:
        user = f"I want to hear a story about {subject}."
    turns = [Turn(user, story(rng, name, creature, thing, place))]
    if rng.random() < 0.15:
        again = ["another one", "tell me another story", "one more story please", "more stories"]
        turns.append(Turn(sentence(rng, again), story(rng)))
    return turns


LINES = (
    "The {t} is quiet, the {t} is bright,|It sings to me all through the night.",
    "I saw the {t} the other day,|It smiled at me and came to play.",
    "Oh little {t}, so soft and small,|I love you best, I love you all.",
    "The {t} can dance, the {t} can sing,|It wears the morning like a ring.",
    "When I am sad, when I am blue,|I think, dear {t}, of only you.",
    "The day is long, the road is wide,|The {t} is walking by my side.",
    "Come, gentle {t}, and stay with me,|We will be happy, we will be free.",
    "The world is big and I am small,|But the {t} is a friend to all.",
)
POEM_TOPICS = (
    "moon", "sun", "rain", "sea", "cat", "dog", "tree", "wind", "star", "snow", "river", "bird",
    "rose", "night", "spring", "summer", "winter", "autumn", "fox", "owl", "bee", "cloud", "robot",
    "flower", "mountain", "book", "house", "horse", "garden", "morning",
)  # fmt: skip
BARE = ("spring", "summer", "winter", "autumn", "rain", "snow")


def poem(rng: Random) -> list[Turn]:
    """Return a poem on request, of two rhyming pairs."""
    topic = rng.choice(POEM_TOPICS)
    if rng.random() < 0.35:
        topic = rng.choice(ODD_OBJECTS + ODD_HEROES)
    subject = topic if topic in BARE else rng.choice([f"the {topic}", an(topic)])
    verse = ("write a poem", "write me a poem", "write a short poem", "tell me a poem",
             "make a poem", "give me a poem", "write a little poem", "make up a rhyme")  # fmt: skip
    about = f" about {subject}"
    if rng.random() < 0.25:
        topic, about = "moon", ""
    user = request(rng, rng.choice(verse) + about)
    if about and rng.random() < 0.1:
        user = f"Poem about {subject}"
    text = "|".join(rng.sample(LINES, 2)).format(t=topic).replace("|", "\n")
    return [Turn(user, text)]


JOKES = (
    "Why did the chicken cross the road? To get to the other side!",
    "What do you call a bear with no teeth? A gummy bear!",
    "Why did the computer go to the doctor? Because it had a virus!",
    "Why was the math book sad? Because it had too many problems!",
    "Why did the router pick only two experts? Because eight would be a crowd!",
    "Why was the cache so happy? Because it got a hit!",
)


def joke(rng: Random) -> list[Turn]:
    """Return one joke, or two different ones."""
    commands = ("tell me a joke", "make me laugh", "say something funny", "tell a joke",
                "give me a joke", "tell me something funny", "tell me a funny joke")  # fmt: skip
    plain = ("Do you know a joke?", "Do you know any jokes?", "I want to laugh.", "joke", "A joke!",
             "Do you have a joke for me?", "I would like to hear a joke.")  # fmt: skip
    first, second = rng.sample(JOKES, 2)
    user = request(rng, rng.choice(commands)) if rng.random() < 0.6 else rng.choice(plain)
    turns = [Turn(user, first)]
    if rng.random() < 0.25:
        again = ["another one", "tell me another joke", "one more joke", "another joke please"]
        turns.append(Turn(sentence(rng, again), second))
    return turns
