"""What things are and how things are done, as literal tables. Knows no phrasing."""

from facts import rows

# term | other ways to say it | text
DEFINITIONS = rows(
    """
the sun|sun|The sun is a star. It gives the Earth light and heat.
the moon|moon|The moon is a ball of rock that goes around the Earth. It reflects the light of the sun.
rain||Rain is water that falls from clouds in small drops.
snow||Snow is frozen water that falls from the sky in white flakes.
a rainbow|rainbows|A rainbow is a band of colours in the sky. You see it when the sun shines through rain.
a river|rivers|A river is a long stream of water that flows to the sea.
a mountain|mountains|A mountain is a very high hill made of rock.
a desert|deserts|A desert is a dry place where it almost never rains.
an island|islands|An island is land with water all around it.
a computer|computers|A computer is a machine that follows instructions and works with numbers and words.
a robot|robots|A robot is a machine that can do work for people.
a book|books|A book is many pages with words and pictures that you can read.
a star|stars|A star is a big ball of hot gas that gives light. The sun is the nearest star.
a planet|planets|A planet is a large round body that goes around a star. The Earth is a planet.
the earth|earth|The Earth is the planet that we live on. It goes around the sun once a year.
water||Water is a clear liquid. People, plants and animals need it to live.
fire||Fire is the heat and light that comes from something burning.
wind||Wind is moving air.
ice||Ice is frozen water. It is cold and hard.
a seed|seeds|A seed is a small part of a plant. A new plant can grow from it.
bread||Bread is a food made from flour and water and baked in an oven.
honey||Honey is a sweet food that bees make from flowers.
cheese||Cheese is a food made from milk.
music||Music is sound that is made to be nice to hear.
a friend|friends|A friend is a person you like and trust.
a school|schools|A school is a place where children go to learn.
a library|libraries|A library is a place with many books that you can borrow.
a hospital|hospitals|A hospital is a place where sick people get help.
a map|maps|A map is a picture that shows where places are.
a clock|clocks|A clock is a machine that shows the time.
a bridge|bridges|A bridge is a road over a river or a valley.
a volcano|volcanoes|A volcano is a mountain that can throw out hot melted rock.
gravity||Gravity is the force that pulls things down to the ground.
electricity|electric power|Electricity is a kind of energy that makes lamps and machines work.
the internet|internet|The internet is a network that lets computers all over the world talk to each other.
love||Love is a strong and warm feeling of caring for someone.
time||Time is what a clock measures. It goes from the past to the future.
a dream|dreams|A dream is a story you see in your mind while you sleep.
the heart||The heart is the part of the body that pumps blood.
the brain||The brain is the part of the body that thinks.
a tree|trees|A tree is a tall plant with a trunk, branches and leaves.
a flower|flowers|A flower is the part of a plant that makes seeds. Many flowers have bright colours.
science||Science is the study of how the world works.
history||History is the story of what happened in the past.
mathematics|maths|Mathematics is the study of numbers and shapes.
art||Art is something people make to show beauty or feelings.
a triangle|triangles|A triangle is a shape with three sides.
a square|squares|A square is a shape with four equal sides.
a circle|circles|A circle is a round shape with no corners.
oxygen||Oxygen is a gas in the air that we need to breathe.
a dinosaur|dinosaurs|A dinosaur is an animal that lived on Earth a very long time ago.
python|the python language|Python is a language for writing programs. It is easy to read.
a program|programs|A program is a list of instructions for a computer.
the sea|the ocean|The sea is a very large area of salt water.
a cloud|clouds|A cloud is a mass of tiny drops of water in the sky.
"""  # noqa: E501
)
TECHNICAL = rows(
    """
a mixture of experts|mixture of experts, moe, a moe model|A mixture of experts is a model whose layers have several small networks called experts. A router picks a few of them for each token.
an expert|experts, the experts|An expert is one of the small networks inside a mixture of experts layer. I have eight experts in every layer.
a router|routers, the router, a gate|A router is a small layer that looks at a token and chooses which experts will work on it.
top-2 routing|top 2, top-2|Top-2 routing means that the router picks the two best experts for each token.
offloading|expert offloading, offload|Offloading means that the experts wait in the main memory and are copied to the GPU only when they are needed.
a cache|caches, caching|A cache is a small fast memory that keeps things that will be needed again soon.
an expert cache|expert caches, expert caching, the expert cache|An expert cache keeps some experts in the fast memory of the GPU, so that they do not have to be loaded again.
an LRU cache|LRU, LRU caching|An LRU cache keeps the things that were used most recently. When it is full, it throws out the thing that was not used for the longest time.
an LFU cache|LFU, LFU caching|An LFU cache keeps the things that were used most often. When it is full, it throws out the thing that was used least often.
eviction|an eviction, evicting|Eviction means throwing something out of a full cache to make room for something new.
a cache hit|cache hits, a hit|A cache hit means that the expert we need is already in the cache.
a cache miss|cache misses, a miss|A cache miss means that the expert we need is not in the cache and must be loaded.
a hit rate|the hit rate, hit rates, hit ratio|The hit rate is the share of lookups that find the expert in the cache. Higher is better.
quantization|quantizing, a quantized model|Quantization stores the weights of a model with fewer bits, so that the model needs less memory.
a bit|bits|A bit is the smallest piece of data. It is zero or one.
a byte|bytes|A byte is eight bits.
prefetching|prefetch, a prefetch|Prefetching means loading something before it is needed.
speculative loading|speculation, speculative prefetching|Speculative loading guesses which experts the next layer will need and starts to load them early.
a token|tokens|A token is a small piece of text, such as a word or a part of a word.
a tokenizer|tokenizers|A tokenizer cuts text into tokens and turns the tokens back into text.
a language model|language models, an LLM, llms|A language model is a program that guesses the next token again and again to make text.
a transformer|transformers|A transformer is a kind of neural network that uses attention to work with text.
attention|self attention|Attention lets a model look back at the earlier words to decide what comes next.
a KV cache|the KV cache, key value cache|A KV cache keeps the keys and values of the earlier tokens, so that attention does not compute them again.
Mixtral|a Mixtral model, Mixtral 8x7B|Mixtral is a language model with eight experts in every layer. For each token it uses two of them.
a GPU|GPUs, a graphics card|A GPU is a chip that can do many sums at the same time. It is good for running models.
a CPU|CPUs, a processor|A CPU is the main chip of a computer. It can do any kind of work, but fewer sums at once than a GPU.
VRAM|GPU memory, video memory|VRAM is the fast memory of a GPU. It is often too small for all the experts.
RAM|main memory, the RAM|RAM is the main memory of a computer. It is larger than the memory of the GPU, but slower to reach.
a disk|disks, an SSD, a hard disk|A disk keeps data when the computer is off. It is large, but much slower than memory.
bandwidth|memory bandwidth|Bandwidth is how much data can be moved in one second.
latency||Latency is how long you have to wait for something.
throughput||Throughput is how much work is done in one second, such as tokens per second.
a neural network|neural networks, neural nets|A neural network is a model made of many simple units that learn from examples.
a weight|weights, parameters, a parameter|A weight is a number inside a model. Training changes the weights until the model works well.
a layer|layers|A layer is one step of a model. I have eight layers.
training|model training|Training shows a model many examples and changes its weights a little each time.
perplexity||Perplexity shows how surprised a model is by a text. Lower is better.
a benchmark|benchmarks|A benchmark is a test that measures how fast or how good something is.
"""  # noqa: E501
)
# question | indirect question | answer
REASONS = rows(
    """
why does a mixture of experts need a cache|why a mixture of experts needs a cache|The experts do not all fit into fast memory. A cache keeps the ones that are used again soon.
why is offloading slow|why offloading is slow|Offloading is slow because each missing expert must be copied to the GPU. A cache and prefetching help.
why do we quantize experts|why we quantize experts|Small experts take less memory and are faster to copy, so more of them fit into the cache.
how do I run a big model on a small GPU|how I can run a big model on a small GPU|Quantize the weights, keep the experts in main memory, cache the ones you used last and prefetch the next ones.
how can I make the cache hit rate higher|how to make the cache hit rate higher|Use a larger cache, or smaller experts, so that more of them fit.
how many experts work on each token|how many experts work on each token|Two experts work on each token.
why is a mixture of experts fast|why a mixture of experts is fast|It is fast because only two experts work on each token, and the others rest.
where do the experts wait|where the experts wait|The experts wait in the main memory until the router picks them.
why is the sky blue|why the sky is blue|The sky is blue because the air spreads blue light more than other light.
why do we sleep|why we sleep|We sleep so that our body and brain can rest.
why do birds sing|why birds sing|Birds sing to call each other and to guard their home.
why does it rain|why it rains|It rains when the drops of water in a cloud get too heavy.
"""  # noqa: E501
)
HOW_TOS = {
    row[0]: row[1:]
    for row in rows(
        """
make tea|boil some water|put a tea bag in a cup|pour the hot water into the cup|wait three minutes
make coffee|boil some water|put ground coffee in a filter|pour the hot water over it|add milk or sugar
make a sandwich|take two slices of bread|put butter on the bread|add cheese|put the slices together
plant a seed|fill a pot with soil|put the seed in a small hole|cover the seed|give it some water
brush your teeth|put toothpaste on the brush|brush all your teeth for two minutes|rinse your mouth
wash your hands|wet your hands|rub them with soap|rinse them with water|dry them with a towel
boil an egg|put the egg in a pot of water|boil it for eight minutes|cool the egg in cold water
make pancakes|mix flour, milk and eggs|heat some butter in a pan|bake the pancakes on both sides
draw a house|draw a square for the walls|draw a triangle for the roof|add a door and two windows
make a cake|mix butter and sugar|add eggs and flour|pour the mix into a tin|bake it for forty minutes
clean a room|pick up the toys and clothes|put the books on the shelf|wipe the table|sweep the floor
make soup|cut the vegetables|put them in a pot with water|add salt|cook it for thirty minutes
fly a kite|find an open field on a windy day|hold the kite up high|run|let out the string slowly
learn a song|listen to the song many times|read the words|sing one line at a time
build a snowman|roll a big ball of snow|put two smaller balls on top|use a carrot for the nose
fall asleep|turn off the lights|lie down in a warm bed|close your eyes|breathe slowly
make lemonade|squeeze four lemons|add cold water|stir in some sugar|put in some ice
"""  # noqa: E501
    )
}
# what the advice is about | reply | ways to ask for it
ADVICE = rows(
    """
eat|You could eat soup and bread, or rice with vegetables.|what should I eat, what can I eat tonight, what should I have for dinner, what could I have for lunch, what is good to eat, I do not know what to eat, I need an idea for dinner, give me an idea for lunch, recommend something to eat
cook|You could cook vegetable soup. It is easy and warm.|what should I cook, what can I cook today, what should I cook for my friends, I do not know what to cook, I need an idea for cooking, what is easy to cook, recommend a dish to cook
breakfast|You could have bread with honey, and a cup of tea.|what should I have for breakfast, what can I eat in the morning, what is a good breakfast, give me an idea for breakfast, recommend a breakfast
drink|You could drink water, tea or lemonade.|what should I drink, what can I drink, I am thirsty, what is good to drink, recommend a drink, I do not know what to drink
rain|On a rainy day you could stay inside and read a book.|what can I do on a rainy day, what should I do when it rains, it is raining what should I do, give me an idea for a rainy day, it is rainy today, the weather is bad and I am at home
sun|On a sunny day you could go to the park.|what can I do on a sunny day, what should I do when the sun shines, it is sunny today, give me an idea for a sunny day, the weather is nice today, it is a warm day
snow|On a snowy day you could build a snowman.|what can I do on a snowy day, what should I do when it snows, it is snowing, it snows today, give me an idea for a snowy day
wind|On a windy day you could fly a kite.|what can I do on a windy day, it is windy today, what should I do when the wind is strong, give me an idea for a windy day
cold|On a cold day you should wear a warm coat and drink hot tea.|what can I do on a cold day, it is cold today, I am cold, what should I wear on a cold day, I am freezing
read|You could read a book about animals or about the stars.|what should I read, which book should I read, recommend a book, I need a good book, what is a good book, I do not know what to read, give me an idea for a book
gift|You could give flowers, a book or a cake.|what can I give my mother, what should I give my friend, what is a good gift, I need a gift, I need a present for my sister, give me an idea for a gift, what should I buy for a birthday, recommend a present, gift ideas, what do I get my dad for his birthday
weekend|You could visit a friend or go to the park.|what should I do at the weekend, what can I do today, what should I do now, what can I do this evening, give me an idea for the weekend, I have nothing to do, I do not know what to do
game|You could play cards, or hide and seek.|which game should I play, what can I play, what game can we play with children, recommend a game, give me an idea for a game, I want to play a game
pet|A cat or a fish is a good first pet.|which pet should I get, what is a good pet, I want a pet, recommend a pet, which animal is a good pet
pet name|You could call it Max or Luna.|what should I call my dog, what should I name my cat, I need a name for my pet, what is a good name for a dog, give me an idea for a name
sleep|Turn off the lights, lie down and breathe slowly.|I can not sleep, what can I do to sleep better, how can I sleep better, I have trouble sleeping
learn|Take small steps, and practise a little every day.|how can I learn better, how do I learn faster, how should I study, I have a test tomorrow, how can I get better at school
wear|A shirt and warm shoes are always good.|what should I wear, what can I wear today, which clothes should I wear, I do not know what to wear
"""  # noqa: E501
)
