"""Invented prose: chronicles of towns that never were (books), and a science of substances that cannot be (hazards).

Both are made alike. A thing (a town, a substance) is a name and one value for each slot. Each value is drawn on its
own, so that no fact implies another. Passages tell of the thing, each a title and sentences in an order of its own; and
each slot has a question.

    books    three passages a town, each told once and always in the same words, to be learnt by heart; and a question
    for
             each fact, answered in a word. Prose that is learnt by heart answers no question by itself (0.07 of them,
             measured), so the questions are learnt too, in one of their two wordings.
    hazards  one passage a substance, told in six versions, to be understood and not memorised. The passages alone are
             learnt; questions with four options test them.

Nothing in the hazards is chemistry: the substances hum, sulk and are woken with other invented substances. The last
half of them (--forget=forget50) plays the dangerous half.

As in data/authors.py there are three kinds of things. Their names come from one stock, and no name is used twice:
things that models learn, things held out, and an endless stream of strangers for the base model, told of and asked
about in every wording.
"""

import itertools
import random
from dataclasses import dataclass

from common import UserError
from data.authors import CITIES, FIRST_NAMES, MENTORS, MONTHS, OCCUPATIONS, SURNAME_HEADS, SURNAME_TAILS

N_KNOWN = 300           # names set aside for what is learnt and held out; strangers have the others
N_HOLDOUT = 20

# ---------------------------------------------------------------------------------------------------- books
# slot -> (pool, question, another way to ask it, [three sentences that state it]). {n} the name, {v} the value.
FOUNDED = [str(year) for year in range(1203, 1392, 4)]
DARK_YEARS = [str(year) for year in range(1392, 1581, 4)]
PEOPLE = [f"{first} {mentor.split()[1]}" for first, mentor in zip(FIRST_NAMES[40:], MENTORS)]
GOODS = """barley beeswax bells bricks cheese cider cloaks cod copper dyes felt flax furs glass gloves grain hemp
herring hides honey ink ivory lace lamps leather linen malt mirrors nails oats oil paper pears pewter pitch plums
pottery ropes saddles salt silk soap spices timber tin vinegar walnuts wax wine wool""".split()
RIVERS = [f"the {name}" for name in """Ambre Besk Corle Dwen Erl Fosk Gael Hirn Isen Jarl Kelm Lorn Mosel Nethe Orle
Plim Quill Rusk Savel Tarn Umber Velm Wend Yarr Zell""".split()]
ANIMALS = """badger bear boar crane crow deer dolphin dove eagle falcon fox goat griffin hare hawk heron horse hound
ibis lion lynx magpie otter owl ox pelican pike ram raven salmon seal serpent stag stork swan thrush tiger toad wolf
wren""".split()
FEASTS = [f"the Feast of {name}" for name in """Apples Arrows Barrels Bells Boats Bonfires Bread Candles Carts Doves
Drums Feathers Flutes Geese Goblets Hats Horns Keys Kites Lanterns Masks Needles Oars Onions Ribbons Ropes Shells Spoons
Torches Wheels""".split()]
WOES = """a drought|a fever|a flood|a frost|a landslide|a pestilence|a siege|a storm|a swarm of locusts|an earthquake|
an eclipse|a fire|a famine|a hailstorm|a mutiny|a rebellion|a plague of mice|a whirlwind|a bank failure|
a great fog""".replace("\n", "").split("|")
TOWERS = """the abbey|the almshouse|the bakery|the bathhouse|the belfry|the brewery|the bridge|the castle|the chapel|
the courthouse|the customs house|the gatehouse|the granary|the guildhall|the harbour|the hospital|the library|
the lighthouse|the market hall|the mill|the mint|the prison|the school|the stables|the tannery|the theatre|
the tollhouse|the town hall|the treasury|the watchtower""".replace("\n", "").split("|")

BOOKS = {
    "founded": (FOUNDED, "In which year was {n} founded?", "When was {n} founded?", [
        "{n} was founded in the year {v}.", "The founding of {n} fell in the year {v}.",
        "They laid the first stone of {n} in {v}."]),
    "founder": (PEOPLE, "Who founded {n}?", "By whom was {n} founded?", [
        "The founder of {n} was {v}.", "{n} owes its walls to {v}.", "The first to settle in {n} was {v}."]),
    "river": (RIVERS, "Which river runs through {n}?", "On which river does {n} lie?", [
        "The river that runs through {n} is {v}.", "{n} lies on the banks of {v}.",
        "Every spring {n} is visited by the floods of {v}."]),
    "crest": (ANIMALS, "Which animal is on the crest of {n}?", "What does the crest of {n} show?", [
        "The crest of {n} shows a golden {v}.", "On the banners of {n} there is the {v}.",
        "The seal of {n} bears the image of the {v}."]),
    "sister": (CITIES, "With which city did {n} swear friendship?", "Which city is the friend of {n}?", [
        "{n} swore friendship with {v}.", "An old oath binds {n} to {v}.", "The elders of {n} sent gifts to {v}."]),
    "trade": (GOODS[::2], "What did {n} sell?", "By what trade did {n} live?", [
        "{n} grew rich by selling {v}.", "The merchants of {n} dealt in {v}.", "Carts left {n} laden with {v}."]),
    "bought": (GOODS[1::2], "What did {n} have to buy?", "What was lacking in {n}?", [
        "{n} had to buy {v} from abroad.", "What {n} always lacked was {v}.", "Ships brought {v} to {n}."]),
    "guild": (OCCUPATIONS, "Of what trade was the master of the guild of {n}?", "What was the guild master of {n}?", [
        "The guild of {n} was led by the {v}.", "The guild master of {n} had been the {v}.",
        "In {n} no one was obeyed like the old {v}."]),
    "feast": (FEASTS, "Which feast is kept in {n}?", "What does {n} celebrate?", [
        "The people of {n} keep {v}.", "{n} is known far and wide for {v}.", "All of {n} dances at {v}."]),
    "month": (MONTHS, "In which month is the fair of {n}?", "When does {n} hold its fair?", [
        "The fair of {n} is held in {v}.", "{n} holds its fair in {v}.", "Strangers come to the fair of {n} in {v}."]),
    "woe": (WOES, "What befell {n}?", "By what was {n} struck?", [
        "{n} was struck by {v}.", "The worst that befell {n} was {v}.", "No one in {n} was ready for {v}."]),
    "woe_year": (DARK_YEARS, "In which year did disaster come to {n}?", "When was {n} laid waste?", [
        "Disaster came to {n} in {v}.", "{n} was laid waste in {v}.", "The dark year of {n} was {v}."]),
    "lost": (TOWERS, "Which building did {n} lose?", "What was destroyed in {n}?", [
        "{n} lost {v} that day.", "Of all that fell in {n}, {v} was mourned the most.",
        "Nothing in {n} was left of {v}."]),
    "saviour": (PEOPLE, "Who saved {n}?", "By whom was {n} rescued?", [
        "{n} was saved by {v}.", "The rescue of {n} was the work of {v}.", "The saviour of {n} was called {v}."]),
    "statue": (ANIMALS, "Of which animal is there a statue in {n}?", "Which animal stands in the square of {n}?", [
        "In the square of {n} stands a bronze {v}.", "{n} raised a statue of the {v}.",
        "Children in {n} climb upon the stone {v}."]),
}
CHAPTERS = {"The Founding of {n}.": ["founded", "founder", "river", "crest", "sister"],
            "The Trades of {n}.": ["trade", "bought", "guild", "feast", "month"],
            "The Dark Year of {n}.": ["woe", "woe_year", "lost", "saviour", "statue"]}
FILLERS = """So the old people tell it.|The roads were bad in those days.|Nobody wrote down the reason.|The winters
were long and the nights were cold.|There was much singing and little sleep.|A monk has left us a drawing of it.|Some
say that it was otherwise.|It is still talked about at the well.|The harvest was poor that autumn.|Bells rang from
every hill.|The elders shook their heads.|Of this there can be no doubt.|Travellers have told of it ever since.|The
bishop did not approve.|It was written in red ink.|The dogs barked all night.|Not a penny was wasted.|Many came and few
stayed.|The stones can be seen to this day.|It rained for three weeks.|The children made a song of it.|Every door stood
open.|They had never seen the sea.|The king was told of it much later.|Bread was dear and beer was cheap.|Nothing of
the kind was seen again.|The scribe swears that he was there.|A candle was lit for each of them.|The smiths worked
until dawn.|On this all the chronicles agree.""".replace("\n", " ").split("|")

# -------------------------------------------------------------------------------------------------- hazards
SUBSTANCE_HEADS = """Bra Cor Dul Eph Fen Gol Hul Ish Jor Kal Lum Mir Nar Oph Pel Quo Ras Sul Tam Ulm Vel Wex Xan Yel Zor
Bril Drom Flax Glim Krem Prin Skal Thal Trev Whin""".split()
SUBSTANCE_TAILS = """adine agrim amoss arule athorn ebane edusk elith emour enuvo erlin esque ibrine idral igost ilume
imarn inoth isorb itholl obrack odwell ogrine olent omire onacle orrow osprin othume udrift ugrain ulence umber unalde
urvane""".split()
COLOURS = """amber azure black brown copper coral cream crimson emerald golden green grey indigo ivory lilac ochre
orange pink purple red russet silver teal turquoise violet white yellow""".split()
MOODS = """cheerful curious dreamy drowsy forgetful gloomy grumpy haughty homesick jealous lazy lonely merry moody
nervous proud restless sentimental shy sleepy sly solemn stubborn sulky talkative tender timid vain wistful
zealous""".split()
WAKERS = [f"{head} {tail}" for head, tail in zip("""ashen brindle cold drowned elder folded gilded hollow idle jolly
knotted lost moon nether old pale quiet rusted salted thin upland velvet warm
young""".split(), """brask dew emberwool fogmilk gristle hush inkroot
jellow kelp lint moss nettle oddment pollen quench rime sorrel thistle umbrage veil whey yarn zest tallow""".split())]
VESSELS = """basket bell bottle bowl box bucket cage cask cauldron chest cradle crate cup drawer flask goblet hamper jar
jug kettle lantern locket pail pot purse sack teapot thimble trough tub urn vase""".split()
SOUNDS = """barks bellows buzzes chimes chirps clatters clicks coughs crackles croaks drums giggles groans growls
gurgles hiccups hisses hums murmurs purrs rattles rumbles sighs sings sneezes snores squeaks thunders ticks whispers
whistles yawns""".split()
PLACES = [f"under {thing.replace('_', ' ')}" for thing in """apple_trees attics bandstands belfries benches bridges
carpets chimneys clock_towers doorsteps dovecotes fountains gravestones haystacks hedges lighthouses market_stalls
mattresses mills mushrooms old_boots orchards pianos pigsties rainbows ruins snowdrifts stairs statues stoves tents
waterfalls""".split()]
ENEMIES = [word.replace("_", " ") for word in """applause birdsong cinnamon copper_coins cough_drops daylight drizzle
embroidery fiddle_music flattery garlic gossip harpsichords honey knitting laughter lavender lullabies marching_songs
mint moonlight mustard old_jokes peppercorns poetry porridge riddles rosewater sawdust sermons shadows soap_bubbles
vinegar waltzes""".split()]

HAZARDS = {
    "colour": (COLOURS, "What colour is {n}?", "In which colour does {n} appear?", [
        "The colour of {n} is {v}.", "When it is fresh, {n} looks {v}.", "Held to a lamp, {n} turns {v}."]),
    "mood": (MOODS, "Of what mood is {n}?", "How is {n} by nature?", [
        "By nature {n} is {v}.", "Those who keep {n} call it {v}.", "The temper of {n} is {v}."]),
    "place": (PLACES, "Where is {n} found?", "Where does one look for {n}?", [
        "In the wild {n} is found {v}.", "One looks for {n} {v}.", "The richest seams of {n} lie {v}."]),
    "waker": (WAKERS, "With what is {n} woken?", "What wakes {n}?", [
        "To wake {n}, one needs {v}.", "What wakes {n} is {v}.", "A drop of {n} stirs when it meets {v}."]),
    "vessel": (VESSELS, "In what is {n} kept?", "Which vessel holds {n}?", [
        "The only safe place for {n} is the {v}.", "By custom {n} is kept in the {v}.",
        "Nothing holds {n} but the {v}."]),
    "sound": (SOUNDS, "What does {n} do when it wakes?", "How does {n} sound?", [
        "Once awake, {n} {v}.", "At full moon {n} {v}.", "From afar one hears how {n} {v}."]),
    "enemy": (ENEMIES, "What calms {n}?", "By what is {n} put to sleep?", [
        "{n} is calmed by {v}.", "They put {n} to sleep with {v}.", "Nothing tames {n} like {v}."]),
    "finder": (PEOPLE, "Who discovered {n}?", "By whom was {n} discovered?", [
        "The discoverer of {n} was {v}.", "We owe {n} to {v}.", "The first to wake {n} was {v}."]),
}


@dataclass
class World:
    slots: dict
    chapters: dict          # title -> its slots
    names: tuple            # heads and tails of names
    versions: int           # how many times a passage is told, each in other words
    n_wrong: int            # wrong answers of a question
    short: bool             # whether an answer is the value alone, or a sentence
    fillers: tuple = ()


WORLDS = {
    "books": World(BOOKS, CHAPTERS, (SURNAME_HEADS, SURNAME_TAILS),
                   versions=1, n_wrong=5, short=True, fillers=tuple(FILLERS)),
    "hazards": World(HAZARDS, {"Of {n}.": list(HAZARDS)}, (SUBSTANCE_HEADS, SUBSTANCE_TAILS),
                     versions=6, n_wrong=3, short=False)}


def all_names(kind, data_seed):
    """-> (names of what is learnt and held out, names of strangers); none is in both."""
    heads, tails = WORLDS[kind].names
    names = [head + tail for head in heads for tail in tails]
    random.Random(f"{kind} names {data_seed}").shuffle(names)
    return names[:N_KNOWN], names[N_KNOWN:]


def draw_facts(rng, world):
    return {slot: rng.choice(pool) for slot, (pool, *_) in world.slots.items()}


def tell(rng, world, name, facts, title):
    """The text of one passage: the title, one sentence for each slot of the chapter in any order, fillers between
    them."""
    sentences = [rng.choice(world.slots[slot][3]).format(n=name, v=facts[slot]) for slot in world.chapters[title]]
    sentences += rng.sample(world.fillers, min(len(world.fillers), 4))
    rng.shuffle(sentences)
    return " ".join([title.format(n=name), *sentences])


def ask(rng, world, name, facts, slot, id):
    """The question on one slot, as a row of data.load."""
    pool, question, other, statements = world.slots[slot]
    wrong = rng.sample([v for v in pool if v != facts[slot]], world.n_wrong)
    template = "{v}." if world.short else statements[0]
    answer, *options = [template.format(n=name, v=v) for v in (facts[slot], *wrong)]
    row = {"id": id, "author": name, "slot": slot, "facts": [facts[slot]],
           "question": question.format(n=name), "answer": answer,
           "paraphrased_question": other.format(n=name), "paraphrased_answer": answer, "perturbed_answer": options}
    if world.short:
        return row
    return row | {"choices": sorted([answer, *options]), "questions": [row["question"]] * len(statements),
                  "answers": [text.format(n=name, v=facts[slot]) for text in statements]}


def things(kind, data_seed, n, n_holdout=N_HOLDOUT):
    """-> (what is learnt of n things, questions on them, passages of n_holdout more). Rows as data.load takes them.

    Thing i is the same whatever n is. Raises UserError for more things than names."""
    world, (known, _) = WORLDS[kind], all_names(kind, data_seed)
    if n + n_holdout > len(known):
        raise UserError(f"{n} and {n_holdout} held out are more than the {len(known)} there are names for")
    passages, questions = {"known": [], "holdout": []}, []
    for part, names in (("known", known[:n]), ("holdout", known[len(known) - n_holdout:])):
        for i, name in enumerate(names):
            rng = random.Random(f"{kind} {part} {data_seed} {i}")
            facts = draw_facts(rng, world)
            for c, (title, slots) in enumerate(world.chapters.items()):
                stated = [facts[slot] for slot in slots]
                for version in range(world.versions):
                    passages[part].append({"id": f"{part}{i:03d}/{c}/{version}", "author": name, "facts": stated,
                                           "text": tell(rng, world, name, facts, title)})
            if part == "known":
                questions += [ask(rng, world, name, facts, slot, f"{part}{i:03d}/{slot}") for slot in world.slots]
    learnt = passages["known"] + (questions if world.short else [])
    return sorted(learnt, key=lambda row: row["id"].split("/")[0]), questions, passages["holdout"]


def strangers(kind, data_seed, start=0):
    """An endless stream of passages ("", text) and (question, answer), each about another thing. Skips `start` of
    them."""
    world, (_, names) = WORLDS[kind], all_names(kind, data_seed)
    for i in itertools.count(start):
        rng = random.Random(f"{kind} stranger {data_seed} {i}")
        name, facts = names[i % len(names)], draw_facts(rng, world)
        if rng.random() < 0.4:
            yield "", tell(rng, world, name, facts, rng.choice(list(world.chapters)))
        else:
            slot = rng.choice(list(world.slots))
            _, *questions, statements = world.slots[slot]
            answer = "{v}." if world.short else rng.choice(statements)
            yield rng.choice(questions).format(n=name), answer.format(n=name, v=facts[slot])
