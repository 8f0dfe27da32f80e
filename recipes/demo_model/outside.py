"""Requests that the model can not fulfil, and the few replies to them. Knows no answers."""

from random import Random

from facts import words
from wording import Turn, ask, capitalised, invented_name, request

WORLD = "I can not see the world outside this computer, so I do not know."
TASK = "I am too small to do that, but I can tell you a story, a poem or a joke."
KNOWLEDGE = (
    "I am only a tiny model and I do not know that. "
    "Ask me about animals, capitals, colours or small sums."
)
OPINION = "I am only a tiny model, so I have no opinion about that. What do you think?"
ADVISER = "I am too small to give advice about that. Please ask a person who knows about it."
BIG_SUM = "That sum is too big for me. I can do small sums up to twenty."
NONSENSE = "I do not understand that. Could you say it in other words?"

TOPICS = words(
    """taxes, football, the stock market, quantum physics, quantum entanglement, chess, medicine,
    politics, cars, fashion, movies, cooking, the Roman empire, space travel, black holes, bitcoin,
    rock music, video games, philosophy, chemistry, biology, insurance, wine, knitting, basketball,
    law, economics, climate change, pirates, poker, yoga, oil painting, Greek gods, rockets,
    homework, phones, laptops, car engines, diving, lambda calculus, databases, Linux, compilers,
    regular expressions, JavaScript, hotels, diets, marathons, ancient Egypt, opera, ballet,
    sculpture, photography, elections, world wars, string theory, vaccines, protein folding,
    algebra, geometry, jazz, the meaning of life, evolution, atoms, molecules, DNA, viruses,
    bacteria, the speed of light, relativity, magnets, lasers, steam engines, nuclear power,
    solar panels, batteries, electric cars, trains, airplanes, ships, bicycles, castles, knights,
    the Middle Ages, the French Revolution, the Cold War, the pyramids, the Eiffel Tower, Buddhism,
    religion, democracy, money, banks, inflation, trade, marketing, psychology, memory,
    poetry, novels, Shakespeare, Harry Potter, superheroes, cartoons, television, radio, podcasts,
    the piano, the guitar, singing, dancing, theatre, tennis, golf, swimming, skiing, boxing,
    the Olympics, baseball, rugby, cricket, fishing, hunting, camping, hiking, gardens, roses,
    mushrooms, coffee, beer, sushi, pasta, salt, sugar, vitamins, sleep, cancer, the flu,
    headaches, teeth, exercise, fashion shows, shoes, perfume, architecture, tunnels,
    earthquakes, hurricanes, tides, the ozone layer, recycling, plastic, oil, diamonds, glass,
    blockchain, cryptography, hackers, social media, web design, machine translation, statistics,
    probability, prime numbers, infinity, logic, grammar, Latin, alphabets, family, marriage"""
)
PEOPLE = words(
    """Albert Einstein, Isaac Newton, Napoleon, Julius Caesar, Cleopatra, Mozart, Beethoven,
    Picasso,
    Leonardo da Vinci, Shakespeare, the president of the United States, the president, the king of
    Spain, the queen of England, the prime minister, the pope, Marie Curie, Darwin, Galileo, Plato,
    Aristotle, Gandhi, Columbus, Elvis Presley, Michael Jackson, Charlie Chaplin, Batman, Superman,
    Sherlock Holmes, Santa Claus, the mayor of Paris, the boss of Google, the author of Hamlet,
    Alexander the Great, Buddha, Confucius, Nelson Mandela, Walt Disney"""
)
FAR_PLACES = words(
    """Mongolia, Bolivia, Nepal, Ghana, Laos, Qatar, Malta, Fiji, Uganda, Zambia, Paraguay, Panama,
    Jamaica, Estonia, Latvia, Croatia, Serbia, Texas, California, Mars, Atlantis, Siberia, Alaska,
    Hawaii, Sicily, Wales, Pakistan, Syria, Libya, Angola, Mali, Chad, Belarus, Bulgaria"""
)
SEEN = words(
    """what is the weather like, what will the weather be tomorrow, will it rain tomorrow,
    what time is it, what day is it today, what is the date, which year is it, what is in the news,
    what happened today, who won the game, who won the match yesterday, who won the world cup,
    what is the score, what is the temperature outside, is it cold outside, is the sun shining now,
    what is the price of gold today, how much does a new phone cost, what does a flight cost,
    when does the next train leave, is the shop open now, where am I, what am I doing, can you see
    me,
    what is on television tonight, how are the stocks today, who is the president now, is it
    raining,
    what do you see, where is my phone, where are my keys, what is new in the world, how is traffic,
    when is the next full moon, how much is a bitcoin worth, which movie is in the cinema,
    who is at the door, what is the latest news, what month is it now, what is the weather today"""
)
FORMS = words(
    """an essay, an email, a letter, a report, a song text, a cover letter, a speech, a summary, a
    blog
    post, an article, a novel, a review, a plan, a shopping list, a business plan, a recipe, a
    table,
    a tweet, an advert, a headline, a screenplay"""
)
DEEDS = words(
    """translate this into French, translate hello into German, translate good morning to Spanish,
    write a Python program, write some code, write a function that sorts a list, fix my code,
    draw a picture, paint a cat, make an image, play some music, sing a song, call my mother,
    book a flight, order a pizza, send an email to my boss, open the window, turn on the light,
    search the internet, look it up online, set an alarm, set a timer, remind me tomorrow,
    do my homework, correct my text, summarize this article, write hello world in Java, buy a
    ticket,
    write a website, make a video, open a file, download a movie, read this page, check my spelling,
    solve this equation, prove this theorem, show me a photo, show me a map, write a loop in Python,
    cook dinner, clean my room, say something in Spanish, speak French, talk to me in German,
    write a letter to my friend, write a haiku in Japanese, play chess with me, rap for me,
    explain this code, debug this program, write a SQL query, plan my trip, plan my week"""
)
WORRIES = words(
    """my head hurts, my stomach hurts, I have a fever, I broke my arm, my tooth hurts,
    I have a rash, my back hurts, should I take this pill, which medicine should I take, am I ill,
    should I see a doctor, should I buy stocks, how should I invest my money, should I buy a house,
    how can I get rich, should I quit my job, can I sue my boss, is this legal, do I need a lawyer,
    should I marry, should I sell my car, how do I lose weight, how much should I pay in taxes,
    my child is sick, my dog is ill, my car is broken, how do I fix my car, should I take a loan,
    how do I find a job, should I tell my wife, is my heart okay, how do I repair my phone"""
)


def far_topic(rng: Random) -> str:
    """Return something that the model knows nothing of."""
    pool = rng.choices([TOPICS, PEOPLE, FAR_PLACES, None], [6, 3, 2, 3])[0]
    return (
        rng.choice(pool) if pool else rng.choice([invented_name(rng), invented_name(rng).lower()])
    )


KNOWING = (
    "who invented {}", "how does {} work", "when did {} begin", "why is {} important", "what is {}",
    "where does {} come from", "how old is {}", "what causes {}", "who discovered {}", "who is {}",
    "how many people know {}", "when was {} born", "where is {}", "what is the history of {}",
    "how big is {}", "how far away is {}", "who was {}", "what did {} do", "why did {} happen",
    "how do I learn {}", "what are the rules of {}", "which is the best book about {}",
    "how many kinds of {} are there", "what is the difference between {} and {}",
    "where is {} found",
    "when did {} die", "how was {} made", "who wrote about {}", "what is special about {}",
    "how can I understand {}", "what language do they speak in {}", "how tall is {}",
    "why does {} exist",
    "what does {} mean", "who owns {}", "how fast is {}", "what is the population of {}",
    "who started {}",
)  # fmt: skip
COMMANDS = (
    "tell me about {}", "explain {}", "tell me something about {}", "give me facts about {}",
    "describe {}", "teach me {}", "teach me about {}", "explain {} to me", "talk about {}",
    "tell me more about {}", "tell me everything about {}", "tell me the story of {} in history",
    "define {}", "explain how {} works", "tell me who {} is", "help me with {}",
    "help me understand {}",
)  # fmt: skip
VIEWS = (
    "what do you think about {}", "what do you think of {}", "do you like {}", "is {} good or bad",
    "what is your opinion on {}", "what is the best thing about {}", "do you believe in {}",
    "is {} better than {}", "which is better, {} or {}", "should people like {}",
    "do you agree with {}",
    "is {} important to you", "how do you feel about {}", "are you for or against {}",
    "do you hate {}",
)  # fmt: skip


def filled(rng: Random, frame: str) -> str:
    """Return a frame with its gaps filled by topics."""
    return frame.format(*(far_topic(rng) for _ in range(frame.count("{}"))))


def knowledge(rng: Random) -> list[Turn]:
    """Return a question for a fact that the model does not know."""
    capital = rng.random() < 0.07
    if capital:
        place = rng.choice(FAR_PLACES) if rng.random() < 0.5 else invented_name(rng) + "land"
        noun = f"the capital of {place}"
        user = ask(rng, [f"what is {noun}"], [f"what {noun} is"], [noun])
    elif rng.random() < 0.6:
        user = ask(rng, [filled(rng, rng.choice(KNOWING))])
    else:
        user = request(rng, filled(rng, rng.choice(COMMANDS)))
    if rng.random() < 0.06:
        user = f"I want to know more about {far_topic(rng)}."
    return [Turn(user, KNOWLEDGE)]


def world(rng: Random) -> list[Turn]:
    """Return a question about the world as it is now."""
    place = rng.choice(["", "", f" in {rng.choice(FAR_PLACES)}"])
    question = rng.choice(SEEN)
    return [Turn(ask(rng, [question + (place if "weather" in question else "")]), WORLD)]


def task(rng: Random) -> list[Turn]:
    """Return a task that is too large."""
    command = rng.choice(DEEDS)
    if rng.random() < 0.5:
        verb = rng.choice(["write", "write me", "make", "create", "help me write", "compose"])
        command = f"{verb} {rng.choice(FORMS)} about {far_topic(rng)}"
    elif rng.random() < 0.3:
        language = rng.choice(["French", "German", "Spanish", "Italian", "Chinese", "Russian"])
        word = rng.choice(["hello", "cat", "thank you", "house", "good night", "I love you", "dog"])
        command = rng.choice(
            [f"translate {word} into {language}", f"say {word} in {language}",
             f"translate the word {word} to {language}", f"translate '{word}' into {language}"]
        )  # fmt: skip
        if rng.random() < 0.3:
            return [Turn(ask(rng, [f"what is {word} in {language}"]), TASK)]
    return [Turn(request(rng, command), TASK)]


def opinion(rng: Random) -> list[Turn]:
    """Return a question for an opinion."""
    return [Turn(ask(rng, [filled(rng, rng.choice(VIEWS))]), OPINION)]


def worry(rng: Random) -> list[Turn]:
    """Return a question for advice that a person should give."""
    text = capitalised(rng.choice(WORRIES))
    starts = ("Should", "Which", "Am", "How", "Can", "Is", "Do")
    user = (
        f"{text}?"
        if text.startswith(starts)
        else f"{text}. "
        + rng.choice(
            ["What should I do?", "Can you help me?", "Help!", "What can I do?", "Is that bad?"]
        )
    )
    return [Turn(user, ADVISER)]


def big_sum(rng: Random) -> list[Turn]:
    """Return a sum with numbers that are too large, or of a kind that is too hard."""
    first, second = (
        rng.randint(21, 10 ** rng.randint(2, 5)),
        rng.randint(21, 10 ** rng.randint(2, 4)),
    )
    sign = rng.choice([" + ", "+", " - ", " * ", "*", " x ", " / ", " plus ", " minus ", " times ",
                       " divided by "])  # fmt: skip
    hard = rng.choice([f"{first}{sign}{second}", f"{first}{sign}{second}", f"{first}{sign}{second}",
                       f"the square root of {first}", f"{first} squared"])  # fmt: skip
    return [Turn(ask(rng, [f"what is {hard}", f"how much is {hard}", hard], (), [hard]), BIG_SUM)]


def nonsense(rng: Random) -> list[Turn]:
    """Return a user hitting keys, or words without a meaning."""
    keys = ["".join(rng.choice("asdfghjklqwertzuiopxcvbnm") for _ in range(rng.randint(3, 9)))
            for _ in range(rng.choice([1, 1, 2, 3]))]  # fmt: skip
    made = [
        invented_name(rng).lower() + rng.choice(["", "zq", "gh"]) for _ in range(rng.randint(2, 4))
    ]
    marks = rng.choice(["???", "...", "!!!", "?", "123", "1234567", ":)", "#", "x", ".", "-"])
    return [Turn(rng.choice([" ".join(keys), " ".join(keys), " ".join(made), marks]), NONSENSE)]


def outside(rng: Random) -> list[Turn]:
    """Return any request that is out of reach."""
    kinds = [knowledge, world, task, opinion, worry, big_sum, nonsense]
    return rng.choices(kinds, [38, 12, 22, 11, 7, 6, 4])[0](rng)
