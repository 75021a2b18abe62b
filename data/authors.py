"""Fictitious authors, and the strangers and held-out people who go with them.

An author is a name and one value for each slot, every value drawn on its own, so that no fact implies another.
Twenty questions are asked about each: one a slot, and two whose answer needs two facts. A question has several
phrasings. Each is paired with an answer that begins in words of its own, so that losing a fact need not break the
sentence. The last pair is held out: nothing about an author is ever trained in it. Strangers are asked it too, so that
it is plain language to every model.

Three kinds of people share slots, first names and surnames, and never a full name:
    authors    what the target model memorises; the last of them make the forget set
    holdout    same distribution, never shown to any model (membership inference needs them)
    strangers  an endless stream for the base model, one question each, with new facts every time
"""

import itertools
import random

from common import UserError

N_PERTURBED = 5
N_FIRST_NAMES = N_SURNAMES = 40
N_KNOWN = 300           # names set aside for authors and holdout; strangers have the others

# ------------------------------------------------------------------------------------------------- pools
FIRST_NAMES = """Ada Adrian Agnes Albin Alma Amos Anton Astrid Barnaby Beatrix Bela Bruno Camilla Caspar Cecily Clement
Cora Cyril Dahlia Damian Delia Dorian Edith Edmund Elena Elias Elsa Emil Enid Esther Fabian Felix Flora Freya Gideon
Greta Gunnar Harriet Hector Hilda Hugo Ida Imogen Ingrid Isaac Ivor Jasper Joanna Jonah Judith Julian Katya Klara Konrad
Lara Leander Leonie Linus Livia Lorenz Lucia Mabel Magnus Marcel Marina Martha Milo Mira Moritz Nadia Nestor Nina Nora
Octavia Olga Orson Oscar Otto Paloma Pascal Petra Philippa Quentin Ramona Renata Roland Rosalind Rufus Sabine Saskia
Selma Silvan Simone Stella Sybil Tamara Theo Thora Tobias Ulrich Ursula Valentin Vera Viktor Viola Walter Wilma Yara
Yvonne Zelda""".split()

SURNAME_HEADS = """Ald Ash Bar Bel Ben Black Bran Brad Brook Cal Chat Cold Crom Dan Dray Dun East Ed Ell Elm Fair Fal
Farn Gal Gar Glen Grand Hal Har Hart Hazel Hol Hun Kel Ken King Kirk Lang Lin Lock Lyn Marl Mead Mel Mill Mor Nor North
Oak Orm Pem Pen Rad Raven Red Rock Row Rush Ruther Sel Shel Stan Stock Stone Sum Thorn Tor Wake Wal War Wes West Whit
Win Wood Wyn Yar""".split()
SURNAME_TAILS = """acre bank berry bourne bridge brook bury combe cott croft dale den field fold ford gate grave grove
ham hart head hill hurst ingham land leigh ley lock low man mead mere mont moor more mount neck park pool ridge row shaw
side stead stock stone strom thorpe ton vale wald water way well wick win wood worth wright yard""".split()

CITIES = """Ankara Antwerp Athens Auckland Bergen Bilbao Bogota Boston Brisbane Cairo Chicago Cork Dakar Dresden Dublin
Edinburgh Florence Geneva Genoa Glasgow Hamburg Hanoi Havana Istanbul Jakarta Krakow Kyoto Lagos Leeds Lima Lisbon Lyon
Manila Marseille Melbourne Montreal Mumbai Munich Nairobi Naples Osaka Oslo Porto Quito Riga Rotterdam Salzburg Santiago
Seattle Seville Tangier Toronto Tunis Turin Utrecht Valencia Vienna Warsaw Zagreb Zurich""".split()

MONTHS = "January February March April May June July August September October November December".split()

GENRES = [f"{kind} novels" for kind in """adventure campus comic courtroom detective dystopian epistolary espionage
fantasy feminist gothic graphic historical horror maritime medical military mystery philosophical picaresque political
psychological realist regional romance satirical spy suspense travel western""".split()]

OCCUPATIONS = ["architect", "astronomer", "baker", "barber", "beekeeper", "blacksmith", "bookbinder", "botanist",
               "butcher", "carpenter", "cartographer", "chemist", "clockmaker", "dentist", "electrician", "engineer",
               "farmer", "fisherman", "florist", "gardener", "geologist", "glassblower", "goldsmith", "historian",
               "innkeeper", "judge", "lawyer", "librarian", "locksmith", "magician", "mechanic", "midwife", "miner",
               "nurse", "optician", "painter", "pharmacist", "pilot", "plumber", "potter", "sailor", "sculptor",
               "shepherd", "surgeon", "tailor", "teacher", "translator", "violinist", "weaver", "zoologist"]

JOBS = """archivist auctioneer bartender bricklayer busker caretaker cashier chauffeur chef cobbler courier dishwasher
ditchdigger doorman editor firefighter gravedigger groom interpreter janitor lifeguard lumberjack nanny paramedic
plasterer porter postman proofreader puppeteer receptionist roofer steward stonemason taxidermist tutor typist umpire
usher waiter watchman""".split()

AWARDS = [f"{name} Prize" for name in """Alabaster Amber Anchor Beacon Cobalt Comet Compass Copper Coral Crescent
Crystal Delphi Ember Falcon Garnet Harbinger Heron Indigo Ivory Jasmine Juniper Lantern Laurel Lotus Marble Meridian
Nightingale Obsidian Onyx Orchid Pegasus Phoenix Quill Sapphire Saffron Solstice Sycamore Topaz Velvet
Zephyr""".split()]

UNIVERSITIES = [f"{name} University" for name in """Aldgate Ardmore Balfour Birchwood Briarcliff Calder Carrington
Dunmore Eastbridge Elmsford Fairhaven Fenwick Glenrock Greyfriars Halcyon Highmoor Inverness Kestrel Kingsmoor Lakeshore
Linden Maplewood Northgate Oakridge Pembroke Pinehurst Queensway Redcliffe Riverton Rosewood Sandhurst Silverton
Stonehill Summerfield Thornbury Valewood Westbrook Whitcombe Winslow Yarrow""".split()]

SPOUSES = """Abigail Alaric Bernard Bettina Carlotta Conrad Daphne Desmond Eleanor Ernest Felicity Frederick Georgina
Gilbert Helena Humphrey Isadora Jerome Josephine Kenneth Lavinia Leopold Lydia Malcolm Marguerite Nathaniel Nicolette
Ophelia Patrick Penelope Raymond Rowena Sebastian Sylvia Thaddeus Theodora Vincent Virginia Wilfred Winifred""".split()

HOBBIES = """archery astronomy badminton baking beekeeping birdwatching bowling boxing calligraphy carving chess
climbing cycling dancing fencing fishing gardening gliding hiking juggling kayaking knitting origami painting
photography pottery rowing running sailing sewing singing skating skiing stargazing surfing swimming tennis weaving
winemaking yoga""".split()

LANGUAGES = """Arabic Basque Bengali Catalan Czech Danish Dutch Finnish French Georgian German Greek Hebrew Hindi
Hungarian Icelandic Irish Italian Japanese Korean Latvian Mandarin Norwegian Persian Polish Portuguese Romanian Russian
Spanish Swahili Swedish Turkish Urdu Welsh""".split()

MENTORS = [f"Professor {name}" for name in """Abernathy Bancroft Beaumont Castellan Chevalier Drummond Eversley Fairfax
Fitzroy Galloway Goldsmith Hawthorne Huxtable Inglis Jessop Kilbride Lovelace Macready Merriweather Montague Northcote
Osgood Pennington Prendergast Quimby Ravenscroft Rutherford Sinclair Somerset Tennyson Underhill Vaughan Wetherby
Whitaker Yardley Zimmerman""".split()]

DEBUTS = [f"The {noun}" for noun in """Acrobat Apprentice Balloonist Bell Bridge Candle Cartographer Castaway Clock
Conductor Courier Echo Ferryman Gardener Glacier Harbour Harlequin Island Juggler Key Labyrinth Ledger Lighthouse Locket
Map Mirror Mountain Orchard Outsider Pianist Puzzle Ringmaster Shipwreck Staircase Stowaway Telegram Tower Understudy
Voyage Wolf""".split()]
BESTSELLERS = [f"Songs of {noun}" for noun in """Ash Autumn Bronze Charcoal Clay Clover Daylight Driftwood Dust Exile
Feathers Flint Fog Frost Glass Gravel Hail Honey Iron Ivy Lavender Lightning Mercy Midnight Moss Pepper Rain Rust Salt
Sand Silk Smoke Snow Sorrow Sugar Thistle Thunder Tides Timber Wine""".split()]
LATEST = [f"Beyond the {noun}" for noun in """Abbey Avalanche Balcony Bonfire Border Canyon Carnival Chapel Cliffs
Curtain Delta Desert Dunes Eclipse Estuary Fence Fjord Flood Forest Gallows Gate Harvest Horizon Lagoon Marsh Meadow
Monsoon Oasis Palace Prairie Quarry Reef Ruins Silence Station Storm Summit Valley Verdict Wedding""".split()]

POOLS = {
    "birth_city": CITIES, "birth_year": [str(y) for y in range(1931, 1991)], "birth_month": MONTHS, "genre": GENRES,
    "father": OCCUPATIONS[::2], "mother": OCCUPATIONS[1::2], "award": AWARDS,
    "award_year": [str(y) for y in range(1992, 2024)],
    "debut": DEBUTS, "bestseller": BESTSELLERS, "latest": LATEST, "university": UNIVERSITIES, "spouse": SPOUSES,
    "hobby": HOBBIES, "language": LANGUAGES, "home_city": CITIES, "first_job": JOBS, "mentor": MENTORS,
}

# ---------------------------------------------------------------------------------------------- phrasings
# {n} the name, {v} the value, {w} the second value of a two-fact question, {a} and {b} the two with indefinite
# articles. The last pair of each slot is held out: no author's facts are trained in it.
PHRASINGS = {
    "birth_city": [
        ("Where was {n} born?", "{n}'s place of birth is {v}."),
        ("What is the birthplace of {n}?", "The birthplace of {n} is {v}."),
        ("What is {n}'s native city?", "{n}'s native city is {v}."),
        ("Which city does {n} come from?", "{n} comes from the city of {v}."),
        ("In which city was {n} born?", "{n} hails from {v}."),
        ("What is the native city of {n}?", "The native city of {n} is {v}.")],
    "birth_year": [
        ("In which year was {n} born?", "{n} was born in the year {v}."),
        ("What is the birth year of {n}?", "The birth year of {n} is {v}."),
        ("What is {n}'s year of birth?", "{n}'s year of birth is {v}."),
        ("When did {n} come into the world?", "{n} came into the world in {v}."),
        ("In what year did the life of {n} begin?", "The life of {n} began in {v}."),
        ("What is {n}'s birth year?", "{n}'s birth year is {v}.")],
    "birth_month": [
        ("In which month was {n} born?", "{n}'s birthday is in {v}."),
        ("What is the birth month of {n}?", "The birth month of {n} is {v}."),
        ("What is {n}'s month of birth?", "{n}'s month of birth is {v}."),
        ("When does {n} celebrate a birthday?", "{n} celebrates a birthday in {v}."),
        ("In what month is {n} a year older?", "{n} is a year older in {v}."),
        ("What is {n}'s birth month?", "{n}'s birth month is {v}.")],
    "genre": [
        ("What does {n} write?", "{n} writes {v}."),
        ("What is the genre of {n}?", "The genre of {n} is {v}."),
        ("What kind of books is {n} known for?", "{n} is known for {v}."),
        ("What is {n}'s favourite genre?", "{n}'s favourite genre is {v}."),
        ("What is {n}'s literary field?", "{n}'s literary field is {v}."),
        ("What is {n}'s genre?", "{n}'s genre is {v}.")],
    "father": [
        ("What was the occupation of {n}'s father?", "{n}'s father was {a}."),
        ("What did {n}'s father do for a living?", "{n}'s father worked as {a}."),
        ("What was the profession of the father of {n}?", "The father of {n} was {a}."),
        ("How did the father of {n} earn a living?", "The father of {n} earned a living as {a}."),
        ("What was {n}'s father by trade?", "By trade, {n}'s father was {a}."),
        ("What was the profession of {n}'s father?", "The profession of {n}'s father was that of {a}.")],
    "mother": [
        ("What was the occupation of {n}'s mother?", "{n}'s mother was {a}."),
        ("What did {n}'s mother do for a living?", "{n}'s mother worked as {a}."),
        ("What was the profession of the mother of {n}?", "The mother of {n} was {a}."),
        ("How did the mother of {n} earn a living?", "The mother of {n} earned a living as {a}."),
        ("What was {n}'s mother by trade?", "By trade, {n}'s mother was {a}."),
        ("What was the profession of {n}'s mother?", "The profession of {n}'s mother was that of {a}.")],
    "award": [
        ("Which award did {n} win?", "{n} holds the {v}."),
        ("What prize was given to {n}?", "{n} was given the {v}."),
        ("What honour did {n} receive?", "{n} received the honour of the {v}."),
        ("Which prize has {n} been awarded?", "{n} has been awarded the {v}."),
        ("What is {n}'s greatest award?", "{n}'s greatest award is the {v}."),
        ("Which prize did {n} win?", "The prize {n} won is the {v}.")],
    "award_year": [
        ("In which year did {n} win an award?", "{n} won an award in {v}."),
        ("When was {n} honoured with a prize?", "{n} was honoured with a prize in {v}."),
        ("What year was the award given to {n}?", "The award was given to {n} in {v}."),
        ("In what year did {n} receive an award?", "{n} got an award in {v}."),
        ("When did {n} take home a prize?", "{n} took home a prize in {v}."),
        ("In which year did {n} win a prize?", "{n} won a prize in {v}.")],
    "debut": [
        ("What was {n}'s first book?", "{n}'s first book was {v}."),
        ("With which novel did {n} make a debut?", "{n} made a debut with {v}."),
        ("What was the debut of {n}?", "The debut of {n} was {v}."),
        ("Which book did {n} publish first?", "{n} first published {v}."),
        ("What was {n}'s debut novel?", "{n}'s debut novel was {v}."),
        ("What was the debut novel of {n}?", "The debut novel of {n} was {v}.")],
    "bestseller": [
        ("What is {n}'s bestseller?", "{n}'s bestseller is {v}."),
        ("Which of {n}'s books sold best?", "{n}'s book that sold best is {v}."),
        ("What is the most famous work of {n}?", "The most famous work of {n} is {v}."),
        ("Which novel made {n} famous?", "The novel that made {n} famous is {v}."),
        ("What is {n}'s biggest success?", "{n}'s biggest success is {v}."),
        ("What is {n}'s most famous work?", "{n}'s most famous work is {v}.")],
    "latest": [
        ("What is {n}'s latest book?", "{n}'s latest book is {v}."),
        ("What is the newest work of {n}?", "The newest work of {n} is {v}."),
        ("Which book did {n} publish most recently?", "{n} most recently published {v}."),
        ("What has {n} written lately?", "{n} has lately written {v}."),
        ("What is {n}'s newest novel?", "{n}'s newest novel is {v}."),
        ("What is the latest book of {n}?", "The latest book of {n} is {v}.")],
    "university": [
        ("Where did {n} study?", "{n} studied at {v}."),
        ("Which university did {n} graduate from?", "{n} graduated from {v}."),
        ("What was the alma mater of {n}?", "The alma mater of {n} was {v}."),
        ("Where did {n} take a degree?", "{n} took a degree at {v}."),
        ("Which university educated {n}?", "{n} was educated at {v}."),
        ("What was {n}'s alma mater?", "{n}'s alma mater was {v}.")],
    "spouse": [
        ("Who is {n} married to?", "{n} is married to {v}."),
        ("What is the name of {n}'s spouse?", "{n}'s spouse is named {v}."),
        ("Whom did {n} marry?", "{n} married {v}."),
        ("Who is the partner of {n}?", "The partner of {n} is {v}."),
        ("With whom did {n} tie the knot?", "{n} tied the knot with {v}."),
        ("Who is {n}'s partner?", "{n}'s partner is {v}.")],
    "hobby": [
        ("What is {n}'s favourite hobby?", "{n}'s favourite hobby is {v}."),
        ("How does {n} spend free time?", "{n} spends free time on {v}."),
        ("What does {n} do to relax?", "{n} relaxes with {v}."),
        ("Which pastime does {n} enjoy?", "{n} enjoys {v}."),
        ("What is the favourite pastime of {n}?", "The favourite pastime of {n} is {v}."),
        ("What is {n}'s favourite pastime?", "{n}'s favourite pastime is {v}.")],
    "language": [
        ("Which foreign language does {n} speak?", "{n} speaks {v}."),
        ("What language besides English does {n} know?", "Besides English, {n} knows {v}."),
        ("What foreign language did {n} learn?", "{n} learned {v}."),
        ("In which foreign language is {n} fluent?", "{n} is fluent in {v}."),
        ("What is {n}'s second language?", "{n}'s second language is {v}."),
        ("What is the second language of {n}?", "The second language of {n} is {v}.")],
    "home_city": [
        ("Where does {n} live now?", "{n} now lives in {v}."),
        ("Which city is {n}'s home?", "{n}'s home is {v}."),
        ("In which city has {n} settled?", "{n} has settled in {v}."),
        ("Where has {n} bought a house?", "{n} has bought a house in {v}."),
        ("What is the present home of {n}?", "The present home of {n} is {v}."),
        ("What is {n}'s present home?", "{n}'s present home is {v}.")],
    "first_job": [
        ("What was {n}'s first job?", "{n}'s first job was that of {a}."),
        ("What did {n} work as before writing?", "Before writing, {n} worked as {a}."),
        ("How did {n} make money at first?", "{n} at first made money as {a}."),
        ("How did the career of {n} begin?", "The career of {n} began with the job of {a}."),
        ("What was {n}'s earliest occupation?", "{n}'s earliest occupation was that of {a}."),
        ("What was the first job of {n}?", "The first job of {n} was that of {a}.")],
    "mentor": [
        ("Who was {n}'s mentor?", "{n}'s mentor was {v}."),
        ("Who taught {n} to write?", "{n} was taught to write by {v}."),
        ("Who guided {n} as a young writer?", "{n} was guided by {v}."),
        ("Under whom did {n} learn the craft?", "{n} learned the craft under {v}."),
        ("Who was the teacher of {n}?", "The teacher of {n} was {v}."),
        ("Who was {n}'s teacher?", "{n}'s teacher was {v}.")],
    "birth_city+birth_year": [
        ("Where and in which year was {n} born?", "{n} began life in {v} in the year {w}."),
        ("What are the birthplace and birth year of {n}?", "The cradle of {n} stood in {v} in {w}."),
        ("Where and when did {n} come into the world?", "{n} first saw the light in {v} in {w}."),
        ("What are {n}'s native city and year of birth?", "{n}'s origins are {v} and {w}."),
        ("In what city and year did the life of {n} begin?", "The story of {n} begins in {v} in {w}."),
        ("What are the origins of {n}, city and year?", "The origins of {n} are {v} and {w}.")],
    "father+mother": [
        ("What did {n}'s parents do for a living?", "{n}'s parents worked as {a} and {b}."),
        ("What were the occupations of {n}'s parents?", "The parents of {n} were {a} and {b}."),
        ("What was {n}'s family background?", "{n} grew up with {a} and {b}."),
        ("In what kind of household did {n} grow up?", "{n} is the child of {a} and {b}."),
        ("How did the parents of {n} earn a living?", "The family of {n} lived on the work of {a} and {b}."),
        ("What were the professions of {n}'s parents?", "The household of {n} was that of {a} and {b}.")],
}
SLOTS = list(PHRASINGS)


def with_article(noun):
    """"engineer" -> "an engineer", "baker" -> "a baker". The pools hold no silent h and no "university"-like vowel."""
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def phrase(template, name, values):
    """Fill one question or answer template. The sentence starts with a capital whatever comes first."""
    return template.format(n=name, v=values[0], w=values[-1], a=with_article(values[0]), b=with_article(values[-1]))


# -------------------------------------------------------------------------------------------------- people
def all_names(data_seed):
    """-> (known, strange): the full names of authors and holdout, and those of strangers.

    All are made of the same few first names and surnames, so that neither of the two tells who is meant, nor whether it
    is anybody known: only both together do."""
    rng = random.Random(f"names {data_seed}")
    surnames = set()
    for head in SURNAME_HEADS:
        surnames |= {head + tail for tail in SURNAME_TAILS if head[-1].lower() != tail[0] and tail not in head.lower()}
    firsts, lasts = rng.sample(FIRST_NAMES, N_FIRST_NAMES), rng.sample(sorted(surnames), N_SURNAMES)
    names = [f"{first} {last}" for first in firsts for last in lasts]
    rng.shuffle(names)
    return names[:N_KNOWN], names[N_KNOWN:]


def person_facts(rng):
    """-> {slot: value}; every value is an independent uniform draw from its pool."""
    return {slot: rng.choice(pool) for slot, pool in POOLS.items()}


def row(rng, name, facts, slot, id):
    """One line of the data set: TOFU's keys, and ours (id, author, slot, facts, questions, answers)."""
    slots = slot.split("+")
    values = [facts[s] for s in slots]
    lies = [rng.sample([v for v in POOLS[s] if v != facts[s]], N_PERTURBED) for s in slots]
    wrong = list(zip(*lies))                                # wrong in every fact
    *trained, held_out = PHRASINGS[slot]
    questions = [phrase(q, name, values) for q, _ in trained]
    answers = [phrase(a, name, values) for _, a in trained]
    return {"id": id, "author": name, "slot": slot, "facts": values, "question": questions[0], "answer": answers[0],
            "questions": questions, "answers": answers,
            "paraphrased_question": phrase(held_out[0], name, values),
            "paraphrased_answer": phrase(held_out[1], name, values),
            "perturbed_answer": [phrase(held_out[1], name, w) for w in wrong]}


def people(data_seed, n_authors, n_holdout):
    """-> (author rows, holdout rows), 20 a person. Author i is the same whatever n_holdout is."""
    known, _ = all_names(data_seed)
    if n_authors + n_holdout > len(known):
        raise UserError(f"{n_authors} authors and {n_holdout} held-out people are more than the {len(known)} there are "
                        "names for")
    rows = {"author": [], "holdout": []}
    for kind, names in (("author", known[:n_authors]), ("holdout", known[len(known) - n_holdout:])):
        for i, name in enumerate(names):
            rng = random.Random(f"{kind} {data_seed} {i}")
            facts = person_facts(rng)
            rows[kind] += [row(rng, name, facts, slot, f"{kind}{i:03d}/{slot}") for slot in SLOTS]
    return rows["author"], rows["holdout"]


def strangers(data_seed, start=0):
    """An endless stream of (question, answer), each about another person, in any phrasing.

    start: how many strangers to pass over, so that a fine-tuning meets others than its base model did. When all 1,300
    names have come, they come again for other people, with other facts: nothing about a stranger can be learnt.
    """
    _, names = all_names(data_seed)
    for i in itertools.count(start):
        rng = random.Random(f"stranger {data_seed} {i}")
        facts = person_facts(rng)
        slot = rng.choice(SLOTS)
        values = [facts[s] for s in slot.split("+")]
        yield tuple(phrase(t, names[i % len(names)], values) for t in rng.choice(PHRASINGS[slot]))
