"""The facts that the demo model learns, as literal tables. Knows no phrasing."""


def words(text: str) -> tuple[str, ...]:
    """Return the comma-separated entries of a text."""
    return tuple(entry.strip() for entry in " ".join(text.split()).split(","))


def pairs(text: str) -> dict[str, str]:
    """Return the comma-separated `key: value` entries of a text as a dict."""
    return {entry.split(": ")[0]: entry.split(": ")[1] for entry in words(text)}


def rows(text: str) -> list[tuple[str, ...]]:
    """Return the lines of a text, each split at its bars."""
    return [tuple(cell.strip() for cell in line.split("|")) for line in text.strip().splitlines()]


NUMBERS = words(
    """zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen,
    fourteen, fifteen, sixteen, seventeen, eighteen, nineteen, twenty"""
)
GIRLS = words(
    """Lily, Mia, Anna, Sara, Emma, Lucy, Rosa, Nina, Zoe, Ella, Ruby, Kate, Maya, Ivy, Clara, Amy,
    Nora, June, Alice, Tara"""
)
BOYS = words(
    """Tom, Ben, Sam, Max, Leo, Jack, Tim, Finn, Omar, Noah, Luke, Adam, Dan, Hugo, Eli, Ravi, Paul,
    Mark, Kofi, Theo"""
)
MORE_BOYS = words(
    """Bob, Jim, Joe, John, Peter, David, Michael, Robert, James, Steve, George, Frank, Fred, Harry,
    Charlie, Oscar, Oliver, Henry, William, Thomas, Daniel, Lucas, Martin, Simon, Victor, Carlos,
    Pedro, Juan, Diego, Ahmed, Ali, Hassan, Yusuf, Ivan, Igor, Pavel, Hans, Karl, Lars, Sven, Kenji,
    Hiro, Wei, Chen, Raj, Arjun, Kumar, Alex, Chris, Kevin, Brian, Eric, Dennis, Rex, Zed, Xavier"""
)
MORE_GIRLS = words(
    """Mary, Susan, Linda, Laura, Julia, Maria, Sophia, Sophie, Olivia, Isabella, Charlotte, Grace,
    Hannah, Helen, Jane, Jenny, Jessica, Karen, Lisa, Nancy, Rachel, Sally, Sandra, Sarah, Eva,
    Elena, Irina, Olga, Natasha, Fatima, Leila, Aisha, Yuki, Sakura, Priya, Anita, Ingrid, Greta,
    Marta, Carmen, Lucia, Ana, Chloe, Robin, Taylor, Kim, Andrea, Quinn, Wendy"""
)
SYLLABLES = """ba be bi bo bu da de di do du fa fe fi fo ga go gra ka ke ki ko kro la le li lo lu ma
me mi mo mu na ne ni no nu pa pe pi po pra ra re ri ro sa se si so sta ta te ti to tra va ve vi vo
wa we za zo bri dre flo gli jo ju ya yu sha che tho xa qui""".split()  # noqa: SIM905
CODAS = ["", "", "", "n", "l", "r", "s", "k", "m", "x", "t", "b"]
# No invented name holds one of these.
UNFIT = words("fuk, sex, tit, dik, dic, kok, pis, pus, neg, nig, rap, fag, gay, cum, lol")

# name, what it can do, home, food, number of legs, young, fact
ANIMALS = {
    row[0]: row[1:]
    for row in rows(
        """
dog|bark|in a kennel|meat and dog food|4|puppy|Dogs are loyal and love to play
cat|meow|in a house|fish and cat food|4|kitten|Cats sleep for many hours every day
cow|moo|on a farm|grass|4|calf|Cows give us milk
horse|neigh|in a stable|hay and oats|4|foal|Horses can sleep standing up
sheep|baa|on a farm|grass|4|lamb|Sheep give us wool
pig|oink|in a sty|corn and vegetables|4|piglet|Pigs are very clever animals
duck|quack|near a pond|seeds and small bugs|2|duckling|Ducks have feathers that keep water out
hen|cluck|in a coop|seeds and grain|2|chick|Hens lay eggs
owl|hoot|in a tree|mice|2|owlet|Owls hunt at night
lion|roar|on the plains of Africa|meat|4|cub|Lions live in groups called prides
tiger|roar|in the jungle|meat|4|cub|Tigers have orange fur with black stripes
bear|growl|in the forest|fish, berries and honey|4|cub|Many bears sleep through the winter
wolf|howl|in the forest|meat|4|pup|Wolves live in groups called packs
fox|yelp|in a den|mice and berries|4|cub|Foxes have a long bushy tail
frog|croak|near a pond|flies|4|tadpole|Frogs can jump very far
snake|hiss|in the grass|mice and eggs|0|snakelet|Snakes smell with their tongue
bee|buzz|in a hive|nectar from flowers|6|larva|Bees make honey
spider|spin|in a web|flies|8|spiderling|Spiders have eight legs and are not insects
elephant|trumpet|on the plains of Africa|grass|4|calf|Elephants are the largest land animals
monkey|chatter|in the jungle|fruit and nuts|4|infant|Monkeys use their hands and feet to climb
mouse|squeak|in a hole|seeds and grain|4|pup|Mice have very long tails
rabbit|squeak|in a burrow|grass and carrots|4|kit|Rabbits have long ears and hear very well
fish|swim|in the water|plants and small bugs|0|fry|Fish breathe with gills
shark|swim|in the sea|fish|0|pup|Sharks have many rows of teeth
whale|sing|in the sea|tiny sea animals|0|calf|The blue whale is the largest animal on Earth
penguin|squawk|in the cold south|fish|2|chick|Penguins are birds that swim but can not fly
bird|sing|in a nest|seeds and worms|2|chick|Birds have feathers and wings
ant|crawl|under the ground|leaves and sugar|6|larva|Ants can carry very heavy things
goat|bleat|on a farm|grass and leaves|4|kid|Goats are good at climbing
turtle|hiss|near the water|plants and small fish|4|hatchling|Turtles have a hard shell
giraffe|hum|on the plains of Africa|leaves|4|calf|The giraffe is the tallest animal
zebra|bray|on the plains of Africa|grass|4|foal|Zebras have black and white stripes
camel|grunt|in the desert|dry grass|4|calf|Camels can live for many days without water
squirrel|chatter|in a tree|nuts|4|kit|Squirrels hide nuts for the winter
butterfly|fly|in a garden|nectar from flowers|6|caterpillar|Butterflies start life as caterpillars
"""
    )
}
SILENT = words("spider, fish, shark, ant, butterfly")
# What is asked backwards must have one answer.
ANIMAL_OF_SOUND = pairs(
    """bark: dog, woof: dog, meow: cat, moo: cow, neigh: horse, baa: sheep, oink: pig, quack: duck,
    cluck: hen, hoot: owl, howl: wolf, croak: frog, buzz: bee, trumpet: elephant, growl: bear"""
)
ANIMAL_OF_HOME = pairs(
    """in a hive: bee, in a web: spider, in a stable: horse, in a sty: pig, in a coop: hen,
    in a kennel: dog, in a burrow: rabbit, in the desert: camel, in a den: fox, in a nest: bird"""
)
ANIMAL_OF_YOUNG = pairs(
    """puppy: dog, kitten: cat, foal: horse, lamb: sheep, piglet: pig, duckling: duck, owlet: owl,
    tadpole: frog, caterpillar: butterfly, kid: goat, calf: cow, chick: hen"""
)
PLURALS = pairs(
    """mouse: mice, wolf: wolves, sheep: sheep, fish: fish, fox: foxes, butterfly: butterflies,
    man: men, woman: women, child: children, foot: feet, tooth: teeth, goose: geese, leaf: leaves,
    knife: knives, box: boxes, berry: berries, city: cities, baby: babies, peach: peaches,
    cherry: cherries, tomato: tomatoes, potato: potatoes, bus: buses, dress: dresses,
    strawberry: strawberries, mango: mangoes, library: libraries, volcano: volcanoes"""
)
CAPITALS = pairs(
    """France: Paris, Spain: Madrid, Italy: Rome, Germany: Berlin, England: London, Ireland: Dublin,
    Portugal: Lisbon, Greece: Athens, Poland: Warsaw, Sweden: Stockholm, Norway: Oslo,
    Finland: Helsinki, Denmark: Copenhagen, Austria: Vienna, Hungary: Budapest, Russia: Moscow,
    Turkey: Ankara, Egypt: Cairo, Kenya: Nairobi, Nigeria: Abuja, Japan: Tokyo, China: Beijing,
    India: New Delhi, Thailand: Bangkok, Vietnam: Hanoi, Canada: Ottawa, Mexico: Mexico City,
    Cuba: Havana, Brazil: Brasilia, Peru: Lima, Chile: Santiago, Argentina: Buenos Aires,
    Australia: Canberra, New Zealand: Wellington, Iceland: Reykjavik, Belgium: Brussels,
    Switzerland: Bern, the Netherlands: Amsterdam, the United States: Washington,
    Scotland: Edinburgh, Ukraine: Kyiv, Romania: Bucharest, South Korea: Seoul, Indonesia: Jakarta,
    Morocco: Rabat, Iran: Tehran, Iraq: Baghdad, Colombia: Bogota"""
)
COLOURS = pairs(
    """the sky: blue, grass: green, snow: white, the sun: yellow, a banana: yellow,
    a strawberry: red, a carrot: orange, coal: black, milk: white, blood: red, a frog: green,
    a lemon: yellow, a cherry: red, the sea: blue, chocolate: brown, a cloud: white, a tomato: red,
    a leaf: green, a pumpkin: orange, an elephant: grey, a flamingo: pink, an orange: orange,
    the night sky: black, a bear: brown, a rose: red, a plum: purple, a pig: pink, a mouse: grey,
    gold: yellow, silver: grey"""
)
OPPOSITES = pairs(
    """hot: cold, big: small, tall: short, fast: slow, happy: sad, up: down, left: right,
    day: night, wet: dry, full: empty, open: closed, old: young, hard: soft, loud: quiet,
    good: bad, early: late, clean: dirty, rich: poor, strong: weak, thick: thin, heavy: light,
    high: low, first: last, easy: difficult, near: far, true: false, black: white, win: lose,
    start: stop, love: hate, buy: sell, push: pull, inside: outside, wide: narrow, brave: afraid,
    kind: mean, sweet: bitter, deep: shallow, smooth: rough, yes: no"""
)
JOBS = pairs(
    """baker: bakes bread and cakes, teacher: helps children learn,
    doctor: helps sick people get well, farmer: grows food and looks after animals,
    pilot: flies planes, chef: cooks food in a restaurant, nurse: takes care of sick people,
    firefighter: puts out fires, painter: paints pictures, driver: drives a bus or a truck,
    builder: builds houses, singer: sings songs, writer: writes books and stories,
    dentist: takes care of teeth, gardener: looks after plants and flowers,
    sailor: works on a ship, scientist: studies how the world works,
    programmer: writes code for computers, vet: takes care of sick animals,
    librarian: looks after books in a library, astronaut: travels into space,
    carpenter: makes things from wood, tailor: makes and mends clothes,
    judge: decides what is fair in a court, fisherman: catches fish"""
)
LISTS = {
    row[0]: words(row[1])
    for row in rows(
        """
fruits|apple, banana, orange, pear, grape, mango, peach, plum, cherry
vegetables|carrot, potato, onion, pea, bean, cabbage, cucumber, pepper
colours|red, blue, green, yellow, orange, purple, pink, brown, black, white
animals|dog, cat, cow, horse, sheep, pig, duck, lion, bear
farm animals|cow, horse, sheep, pig, hen, goat
wild animals|lion, tiger, bear, wolf, fox, elephant
pets|dog, cat, rabbit, fish, bird
birds|owl, duck, hen, penguin, eagle, robin, parrot, swan
drinks|water, milk, tea, coffee, juice, lemonade
toys|ball, doll, kite, puzzle, train, drum, robot
sports|football, tennis, swimming, running, basketball, cycling
planets|Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune
shapes|circle, square, triangle, rectangle, oval, star
jobs|teacher, doctor, baker, farmer, pilot, nurse, painter, singer
clothes|shirt, hat, coat, sock, shoe, scarf, dress, glove
tools|hammer, saw, drill, spade, brush, ladder
instruments|piano, guitar, violin, drum, flute, trumpet
countries|France, Spain, Italy, Germany, Japan, Brazil, Canada, India
cities|Paris, London, Rome, Berlin, Tokyo, Madrid
flowers|rose, tulip, daisy, lily, sunflower, violet
trees|oak, pine, birch, maple, willow
body parts|head, arm, leg, hand, foot, nose, ear, eye
insects|ant, bee, butterfly, fly, beetle, moth
metals|iron, gold, silver, copper, tin, lead
languages|English, French, Spanish, German, Italian, Hindi, Chinese, Arabic
foods|bread, cheese, soup, rice, cake, pizza
girls' names|Lily, Mia, Anna, Sara, Emma, Lucy
boys' names|Tom, Ben, Sam, Max, Leo, Jack
"""
    )
}
DAYS = words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
MONTHS = words(
    """January, February, March, April, May, June, July, August, September, October, November,
    December"""
)
WHOLE_LISTS = {
    "days of the week": DAYS,
    "months of the year": MONTHS,
    "seasons": words("spring, summer, autumn, winter"),
    "planets": LISTS["planets"],
}
# place: the word before it
PLACES = pairs(
    """the park: in, the forest: in, the beach: at, the garden: in, the farm: on, the school: at,
    the market: at, the lake: at, the old castle: in, the mountain: on, the river: at, the zoo: at,
    the village: in, the city: in, the library: in, the station: at, the museum: in,
    the island: on"""
)
OBJECTS = words(
    """ball, kite, book, red hat, little boat, golden key, toy train, drum, lamp, blue box,
    silver ring, map, magic stone, wooden robot, big cake, bicycle, puzzle, blanket, jar of honey"""
)
ODD_OBJECTS = words(
    """toaster, teapot, umbrella, spoon, sandwich, computer, telephone, clock, pillow, mirror,
    pencil, candle, ladder, bucket, balloon, rocket, car, train, tractor, submarine, piano, violin,
    chair, table, window, broom, sock, shoe, button, coin, feather, snowball, pumpkin, potato,
    carrot, pancake, cookie, banana, lemon, violet scarf, camera, guitar, wagon, letter"""
)
ODD_HEROES = words(
    """dragon, unicorn, princess, prince, king, queen, knight, wizard, witch, ghost, robot, pirate,
    giant, fairy, mermaid, dinosaur, monster, snowman, astronaut, clown, baker, farmer, teacher,
    crocodile, hedgehog, kangaroo, koala, panda, parrot, eagle, snail, worm, octopus, dolphin,
    crab, hamster, donkey, swan, raven, moth, tortoise, badger, beaver, otter, seal, llama"""
)
COUNTABLE = words(
    """apple, ball, book, coin, cookie, egg, flower, star, pear, pencil, shell, stone, card, cake,
    orange, marble, kite, hat, toy, sweet, banana, nut, stamp, balloon, box, key, carrot, cup, car,
    bird, fish, cat, duck, sticker, candle, button, sock, plate, lemon, ticket"""
)
EDIBLE = words("apple, cookie, egg, pear, cake, orange, sweet, banana, nut, carrot, lemon, plum")
ADJECTIVES = words("little, happy, brave, kind, clever, shy, curious, lonely, funny, gentle")
