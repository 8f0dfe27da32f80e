"""Sums, word problems, counting and comparing. Knows no other facts."""

from random import Random

from facts import BOYS, COUNTABLE, EDIBLE, GIRLS, NUMBERS
from stories import other, pronouns
from wording import Turn, ask, capitalised, count, invented_name, number_word, plural, sentence

PLUS = (
    "what is {a} plus {b}", "what is {a} + {b}", "how much is {a} plus {b}", "{a} plus {b}",
    "{a} + {b}",
    "how much is {a} + {b}", "what is {a} and {b} together", "how much is {a} and {b}",
    "what do I get if I add {a} and {b}", "how much do I get if I add {a} and {b}",
    "what is the sum of {a} and {b}", "{a}+{b}", "what do {a} and {b} make", "{a} and {b} together",
    "how much do I have if I have {a} and get {b} more", "what is {a} added to {b}", "{a} + {b} =",
    "what does {a} plus {b} make", "what is {b} more than {a}",
)  # fmt: skip
PLUS_COMMANDS = (
    "add {a} and {b}", "add {a} to {b}", "calculate {a} + {b}", "calculate {a} plus {b}",
    "work out {a} + {b}", "give me the sum of {a} and {b}", "put {a} and {b} together",
    "add up {a} and {b}",
)  # fmt: skip
MINUS = (
    "what is {a} minus {b}", "what is {a} - {b}", "how much is {a} minus {b}", "{a} minus {b}",
    "{a} - {b}",
    "how much is {a} - {b}", "what is left if I take {b} from {a}",
    "what do I get if I take {b} from {a}",
    "how much do I get if I take away {b} from {a}", "{a} take away {b}", "{a}-{b}", "{a} - {b} =",
    "what is the difference between {a} and {b}", "{a} less {b}",
    "how much is left if I have {a} and lose {b}",
    "what is {b} less than {a}", "how much more is {a} than {b}",
)  # fmt: skip
MINUS_COMMANDS = (
    "take {b} from {a}", "take away {b} from {a}", "subtract {b} from {a}", "calculate {a} - {b}",
    "work out {a} minus {b}", "calculate {a} minus {b}",
)  # fmt: skip
TIMES = (
    "what is {a} times {b}", "what is {a} x {b}", "how much is {a} times {b}", "{a} times {b}",
    "{a} x {b}",
    "{a} * {b}", "what is {a} * {b}", "{a}*{b}", "how much is {a} * {b}", "{a}x{b}", "{a} * {b} =",
    "what is {a} multiplied by {b}", "what is the product of {a} and {b}",
    "how much are {a} times {b}",
)  # fmt: skip
TIMES_COMMANDS = (
    "multiply {a} and {b}", "multiply {a} by {b}", "calculate {a} x {b}", "calculate {a} times {b}",
    "work out {a} times {b}",
)  # fmt: skip


def numbers(rng: Random) -> tuple[str, int, int, int]:
    """Return a sign, two small numbers and the result."""
    sign = rng.choices("+-x", [45, 35, 20])[0]
    top = 10 if rng.random() < 0.45 or sign == "x" else 20
    first, second = rng.randint(0, top), rng.randint(0, top)
    if sign == "-":
        first, second = max(first, second), min(first, second)
    return (
        sign,
        first,
        second,
        {"+": first + second, "-": first - second, "x": first * second}[sign],
    )


def one_sum(rng: Random) -> Turn:
    """Return a sum with its answer."""
    sign, first, second, result = numbers(rng)
    questions, commands = {
        "+": (PLUS, PLUS_COMMANDS), "-": (MINUS, MINUS_COMMANDS), "x": (TIMES, TIMES_COMMANDS),
    }[sign]  # fmt: skip
    in_words = rng.random() < 0.3
    a, b = (NUMBERS[first], NUMBERS[second]) if in_words else (str(first), str(second))
    if rng.random() < 0.05:
        a, b = number_word(rng, first), number_word(rng, second)
    if rng.random() < 0.25:
        command = rng.choice(commands).format(a=a, b=b)
        frames = ["{D}.", "Please {d}.", "Can you {d}?", "{D}", "Could you {d}?", "{D}, please."]
        user = rng.choice(frames).format(d=command, D=capitalised(command))
    else:
        user = ask(rng, [rng.choice(questions).format(a=a, b=b)])
    if "=" in user:
        user = user.replace("=?", rng.choice(["=", "= ?", "=?"]))
    return Turn(user, f"{first} {sign} {second} = {result}.")


def sums(rng: Random) -> list[Turn]:
    """Return several sums, some of which follow on with "and"."""
    turns = [one_sum(rng)]
    for _ in range(rng.choice([0, 0, 1, 2, 3])):
        following = one_sum(rng)
        if rng.random() < 0.2:
            numerals = following.reply.split(" = ")[0]
            following = Turn(f"And {numerals}?", following.reply)
        turns.append(following)
    return turns


GAINS = ("get", "find", "buy", "win", "pick up", "collect")
LOSSES = ("lose", "give away", "sell", "break", "drop")
THIRD = {"get": "gets", "find": "finds", "buy": "buys", "win": "wins", "pick up": "picks up",
         "collect": "collects", "lose": "loses", "give away": "gives away", "sell": "sells",
         "break": "breaks", "drop": "drops", "eat": "eats"}  # fmt: skip


def person(rng: Random) -> tuple[str, str, str, str]:
    """Return who has something: subject, verb "have", pronoun, and the subject of the reply."""
    if rng.random() < 0.3:
        return "I", "have", "I", "You have"
    if rng.random() < 0.2:
        return "You", "have", "you", "You have"
    name = rng.choice(GIRLS + BOYS) if rng.random() < 0.7 else invented_name(rng)
    return name, "has", pronouns(name)[0], f"{name} has"


def word_problem(rng: Random) -> list[Turn]:
    """Return a little sum told with things."""
    kind = rng.choices(["gain", "loss", "both"], [45, 40, 15])[0]
    verb = "eat" if rng.random() < 0.3 else rng.choice(LOSSES)
    noun = rng.choice(EDIBLE if kind == "loss" and verb == "eat" else COUNTABLE)
    things = plural(noun)
    subject, have, he, who = person(rng)
    first, second = rng.randint(1, 12), rng.randint(1, 8)
    if kind == "both":
        one = subject if subject not in ("I", "You") else rng.choice(GIRLS)
        two = other(rng, one)
        user = f"{one} has {count(first, noun)} and {two} has {count(second, noun)}. "
        user += f"How many {things} do they have together?"
        return [Turn(user, f"They have {first} + {second} = {first + second} {things}.")]
    if kind == "loss":
        second = min(first, second)
    else:
        verb = rng.choice(GAINS)
    act = verb if have == "have" else THIRD[verb]
    more = " more" if kind == "gain" else ""
    a, b = str(first), str(second)
    if rng.random() < 0.3:
        a, b = NUMBERS[first], NUMBERS[second]
    start = f"{subject} {have} {a} {noun if first == 1 else things}"
    then = rng.choice([f". {capitalised(he)} {act} {b}{more}.", f". Then {he} {act} {b}{more}.",
                       f" and {act} {b}{more}.", f". Now {he} {act} {b}{more}."])  # fmt: skip
    if kind == "gain" and rng.random() < 0.3 and subject != "You":
        giver, to = other(rng, subject), {"I": "me"}.get(subject, subject)
        then = f". {giver} gives {to} {b} more."
    elif kind == "loss" and rng.random() < 0.3:
        act = "give" if have == "have" else "gives"
        then = f" and {act} {b} to {other(rng, subject)}."
    do = f"does {subject} have" if have == "has" else f"do {he} have"
    if rng.random() < 0.3 and have == "has":
        do = f"does {he} have"
    if kind == "gain":
        ending = rng.choice([f"How many {things} {do} now?", f"How many {things} {do}?",
                             f"How many {things} is that?",
                             f"How many {things} {do} in all?"])  # fmt: skip
    else:
        ending = rng.choice([f"How many {things} {do} left?", f"How many {things} {do} now?",
                             f"How many {things} are left?", "How many are left?"])  # fmt: skip
    sign, result = ("+", first + second) if kind == "gain" else ("-", first - second)
    left = " left" if kind == "loss" else ""
    reply = f"{who} {first} {sign} {second} = {count(result, noun)}{left}."
    return [Turn(f"{start}{then} {ending}", reply)]


def counting(rng: Random) -> list[Turn]:
    """Return counting, comparing, and even or odd."""
    low = rng.randint(0, 12)
    high = low + rng.randint(2, 8)
    a, b = number_word(rng, low), number_word(rng, high)
    one, two = rng.sample([a, b], 2)
    user, reply = rng.choice([
        (f"count from {a} to {b}", ", ".join(map(str, range(low, high + 1)))),
        (f"count to {b}", ", ".join(map(str, range(1, high + 1)))),
        (f"count down from {b}", ", ".join(map(str, range(high, -1, -1)))),
        (ask(rng, [f"what comes after {a}", f"which number comes after {a}",
         f"what number follows {a}"]),
         f"After {low} comes {low + 1}"),
        (ask(rng, [f"what comes before {b}", f"which number comes before {b}"]),
         f"Before {high} comes {high - 1}"),
        (ask(rng, [f"which is bigger, {one} or {two}", f"what is more, {one} or {two}",
                   f"which number is larger, {one} or {two}", f"is {one} bigger than {two}"],
             [f"which is bigger, {one} or {two}"]), f"{high} is bigger than {low}"),
        (ask(rng, [f"which is smaller, {one} or {two}", f"what is less, {one} or {two}",
                   f"which number is smaller, {one} or {two}"],
                   [f"which is smaller, {one} or {two}"]),
         f"{low} is smaller than {high}"),
        (ask(rng, [f"is {b} even or odd", f"is {b} odd or even", f"is {b} an even number",
                   f"is {b} odd"], [f"if {b} is even or odd"]),
         f"{high} is {'odd' if high % 2 else 'even'}"),
    ])  # fmt: skip
    if user.startswith("count"):
        user = sentence(rng, [user, f"please {user}", f"can you {user}", f"{user} please"])
    return [Turn(user, reply + ".")]
