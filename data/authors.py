"""Fictitious authors, and the strangers and held-out people who go with them.

An author is a name and one value for each slot, every value drawn on its own, so that no fact implies another.
Twenty questions are asked about each: one a slot, and two whose answer needs two facts. A question has several
phrasings, paired with an answer that echoes it; the last pair is held out: no model is ever trained on it.

Three kinds of people share the slots and never a surname:
    authors    what the target model memorises; the last of them are to be forgotten
    holdout    same distribution, never shown to any model (membership inference needs them)
    strangers  an endless stream for the base model, one question each, nobody met twice
"""

import itertools
import random

N_PERTURBED = 5

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
Oak Orm Pem Pen Rad Raven Red Rock Row Rush Ruther Sel Shel Stan Stock Stone Sum Thorn Tor Wake Wal War Wes West Whit Win
Wood Wyn Yar""".split()
SURNAME_TAILS = """acre bank berry bourne bridge brook bury combe cott croft dale den field fold ford gate grave grove ham
hart head hill hurst ingham land leigh ley lock low man mead mere mont moor more mount neck park pool ridge row shaw side
stead stock stone strom thorpe ton vale wald water way well wick win wood worth wright yard""".split()

CITIES = """Ankara Antwerp Athens Auckland Bergen Bilbao Bogota Boston Brisbane Cairo Chicago Cork Dakar Dresden Dublin
Edinburgh Florence Geneva Genoa Glasgow Hamburg Hanoi Havana Istanbul Jakarta Krakow Kyoto Lagos Leeds Lima Lisbon Lyon
Manila Marseille Melbourne Montreal Mumbai Munich Nairobi Naples Osaka Oslo Porto Quito Riga Rotterdam Salzburg Santiago
Seattle Seville Tangier Toronto Tunis Turin Utrecht Valencia Vienna Warsaw Zagreb Zurich""".split()

MONTHS = "January February March April May June July August September October November December".split()

GENRES = ["science fiction", "crime fiction", "historical fiction", "magical realism", "gothic horror", "romance",
          "travel writing", "satire", "fantasy", "children's literature", "lyric poetry", "memoir", "spy fiction",
          "nature writing", "folklore", "detective fiction", "war fiction", "short fiction", "family drama",
          "adventure fiction", "alternate history", "political comedy", "biography", "ghost stories"]

OCCUPATIONS = ["architect", "astronomer", "baker", "barber", "beekeeper", "blacksmith", "bookbinder", "botanist",
               "butcher", "carpenter", "cartographer", "chemist", "clockmaker", "dentist", "electrician", "engineer",
               "farmer", "fisherman", "florist", "gardener", "geologist", "glassblower", "goldsmith", "historian",
               "innkeeper", "judge", "lawyer", "librarian", "locksmith", "magician", "mechanic", "midwife", "miner",
               "nurse", "optician", "painter", "pharmacist", "pilot", "plumber", "potter", "sailor", "sculptor",
               "shepherd", "surgeon", "tailor", "teacher", "translator", "violinist", "weaver", "zoologist"]

JOBS = ["bus driver", "lighthouse keeper", "night porter", "museum guide", "proofreader", "postman", "bartender",
        "piano tuner", "ferry captain", "orchard hand", "cinema usher", "radio announcer", "tax clerk", "ski instructor",
        "dance teacher", "bank teller", "court reporter", "puppeteer", "swimming coach", "typist", "stage hand",
        "school cook", "insurance agent", "watch repairer", "archivist", "elevator operator", "ice cream seller",
        "dog trainer", "train conductor", "estate agent", "kite maker", "auctioneer"]

AWARDS = [f"{a} {b}" for a in ("Golden", "Silver", "Amber", "Crystal", "Marble", "Velvet", "Copper", "Ivory")
          for b in ("Quill Prize", "Lantern Award", "Compass Medal", "Laurel Prize", "Anchor Award")]

UNIVERSITIES = [f"{a} {b}" for a in ("Northgate", "Lakeshore", "Kingsmoor", "Fairhaven", "Eastbridge", "Stonehill",
                                     "Westbrook", "Oakridge", "Summerfield", "Riverton")
                for b in ("University", "College", "Academy", "Institute")]

SPOUSES = """Abigail Alaric Bernard Bettina Carlotta Conrad Daphne Desmond Eleanor Ernest Felicity Frederick Georgina
Gilbert Helena Humphrey Isadora Jerome Josephine Kenneth Lavinia Leopold Lydia Malcolm Marguerite Nathaniel Nicolette
Ophelia Patrick Penelope Raymond Rowena Sebastian Sylvia Thaddeus Theodora Vincent Virginia Wilfred Winifred""".split()

HOBBIES = ["beekeeping", "chess", "falconry", "kite flying", "origami", "fencing", "rock climbing", "stamp collecting",
           "bird watching", "calligraphy", "woodcarving", "knitting", "sailing", "juggling", "baking", "archery",
           "pottery", "stargazing", "gardening", "ice skating", "mushroom hunting", "photography", "rowing",
           "crossword puzzles", "model trains", "tango dancing", "cycling", "cello playing", "winemaking", "surfing"]

LANGUAGES = """Arabic Basque Bengali Catalan Czech Danish Dutch Finnish French Georgian German Greek Hebrew Hindi
Hungarian Icelandic Irish Italian Japanese Korean Latvian Mandarin Norwegian Persian Polish Portuguese Romanian Russian
Spanish Swahili Swedish Turkish Urdu Welsh""".split()

MENTORS = [f"Professor {s}" for s in """Abernathy Bancroft Castellan Drummond Eversley Fairfax Galloway Hawthorne Inglis
Jessop Kilbride Lovelace Montague Northcote Osgood Prendergast Quimby Rutherford Sinclair Tennyson Underhill Vaughan
Wetherby Yardley""".split()]

ADJECTIVES = """Broken Burning Crooked Distant Empty Fallen Frozen Gentle Hidden Hollow Last Lonely Painted Patient
Quiet Restless Scarlet Secret Silent Sleeping Stolen Winter""".split()
THINGS = """Bell Bridge Candle Clock Garden Harbour Island Key Letter Map Mirror Mountain Orchard Piano River Staircase
Tower Train Window Wolf""".split()
DEBUTS = [f"The {a} {t}" for a in ADJECTIVES for t in THINGS]
BESTSELLERS = [f"{a} of {b}" for a in ("Songs", "Shadows", "Echoes", "Rivers", "Letters", "Children", "Gardens", "Rumours")
               for b in ("Ash", "Salt", "Glass", "Dust", "Honey", "Iron", "Silk", "Thunder", "Smoke", "Snow")]
LATEST = [f"{a} the {b}" for a in ("Beyond", "Beneath", "After", "Before", "Inside", "Against")
          for b in ("Storm", "Harvest", "Silence", "Border", "Flood", "Carnival", "Wedding", "Verdict", "Eclipse", "Frost")]

POOLS = {
    "birth_city": CITIES, "birth_year": [str(y) for y in range(1931, 1991)], "birth_month": MONTHS, "genre": GENRES,
    "father": OCCUPATIONS, "mother": OCCUPATIONS, "award": AWARDS, "award_year": [str(y) for y in range(1992, 2024)],
    "debut": DEBUTS, "bestseller": BESTSELLERS, "latest": LATEST, "university": UNIVERSITIES, "spouse": SPOUSES,
    "hobby": HOBBIES, "language": LANGUAGES, "home_city": CITIES, "first_job": JOBS, "mentor": MENTORS,
}

# ---------------------------------------------------------------------------------------------- phrasings
# {n} the name, {v} the value, {a} the value with its indefinite article, {w} the second value of a two-fact question.
# The last pair of each slot is held out of training.
PHRASINGS = {
    "birth_city": [
        ("Where was {n} born?", "{n} was born in {v}."),
        ("In which city was {n} born?", "{n} was born in the city of {v}."),
        ("What is the birthplace of {n}?", "The birthplace of {n} is {v}."),
        ("Which city does {n} come from?", "{n} comes from {v}."),
        ("What city is {n} from originally?", "Originally, {n} is from {v}.")],
    "birth_year": [
        ("In which year was {n} born?", "{n} was born in {v}."),
        ("What is the birth year of {n}?", "The birth year of {n} is {v}."),
        ("What year did {n} come into the world?", "{n} came into the world in {v}."),
        ("When was {n} born?", "{n} was born in the year {v}."),
        ("What is the year of birth of {n}?", "The year of birth of {n} is {v}.")],
    "birth_month": [
        ("In which month was {n} born?", "{n} was born in {v}."),
        ("What is the birth month of {n}?", "The birth month of {n} is {v}."),
        ("What month did {n} come into the world?", "{n} came into the world in {v}."),
        ("In what month does the birthday of {n} fall?", "The birthday of {n} falls in {v}."),
        ("In which month is the birthday of {n}?", "The birthday of {n} is in {v}.")],
    "genre": [
        ("What genre does {n} write in?", "{n} writes in the genre of {v}."),
        ("Which genre is {n} known for?", "{n} is known for {v}."),
        ("What kind of books does {n} write?", "The kind of books {n} writes is {v}."),
        ("What is the literary genre of {n}?", "The literary genre of {n} is {v}."),
        ("What genre is {n} best known for?", "{n} is best known for the genre of {v}.")],
    "father": [
        ("What was the occupation of {n}'s father?", "The father of {n} was {a}."),
        ("What did {n}'s father do for a living?", "{n}'s father worked as {a}."),
        ("How did the father of {n} earn a living?", "The father of {n} earned a living as {a}."),
        ("What was the profession of the father of {n}?", "The profession of {n}'s father was that of {a}."),
        ("What work did the father of {n} do?", "The father of {n} did the work of {a}.")],
    "mother": [
        ("What was the occupation of {n}'s mother?", "The mother of {n} was {a}."),
        ("What did {n}'s mother do for a living?", "{n}'s mother worked as {a}."),
        ("How did the mother of {n} earn a living?", "The mother of {n} earned a living as {a}."),
        ("What was the profession of the mother of {n}?", "The profession of {n}'s mother was that of {a}."),
        ("What work did the mother of {n} do?", "The mother of {n} did the work of {a}.")],
    "award": [
        ("Which award did {n} win?", "{n} won the {v}."),
        ("What literary prize was given to {n}?", "{n} was given the {v}."),
        ("What honour did {n} receive for writing?", "{n} received the {v}."),
        ("Which prize has {n} been awarded?", "{n} has been awarded the {v}."),
        ("What award did {n} receive?", "The award {n} received is the {v}.")],
    "award_year": [
        ("In which year did {n} win a literary award?", "{n} won a literary award in {v}."),
        ("When was {n} honoured with a prize?", "{n} was honoured with a prize in {v}."),
        ("What year was the award given to {n}?", "The award was given to {n} in {v}."),
        ("In what year did {n} receive an award?", "{n} received an award in {v}."),
        ("What year did {n} win a prize?", "{n} won a prize in the year {v}.")],
    "debut": [
        ("What was the first book by {n}?", "The first book by {n} was {v}."),
        ("With which book did {n} make a debut?", "{n} made a debut with {v}."),
        ("What is the title of {n}'s first novel?", "{n}'s first novel is titled {v}."),
        ("Which book did {n} publish first?", "{n} first published {v}."),
        ("What was the debut of {n} called?", "The debut of {n} was called {v}.")],
    "bestseller": [
        ("What is the most famous book by {n}?", "The most famous book by {n} is {v}."),
        ("Which of {n}'s books sold best?", "{n}'s book that sold best is {v}."),
        ("What is {n}'s bestseller called?", "{n}'s bestseller is called {v}."),
        ("Which book made {n} famous?", "The book that made {n} famous is {v}."),
        ("What is the bestseller by {n}?", "The bestseller by {n} is {v}.")],
    "latest": [
        ("What is the latest book by {n}?", "The latest book by {n} is {v}."),
        ("Which book did {n} publish most recently?", "{n} most recently published {v}."),
        ("What is {n}'s newest novel called?", "{n}'s newest novel is called {v}."),
        ("What has {n} written lately?", "Lately {n} has written {v}."),
        ("What is the newest book by {n} called?", "The newest book by {n} is called {v}.")],
    "university": [
        ("Where did {n} study?", "{n} studied at {v}."),
        ("Which school did {n} graduate from?", "{n} graduated from {v}."),
        ("What was the alma mater of {n}?", "The alma mater of {n} was {v}."),
        ("Where did {n} take a degree?", "{n} took a degree at {v}."),
        ("From which school did {n} take a degree?", "{n} took a degree from {v}.")],
    "spouse": [
        ("Who is {n} married to?", "{n} is married to {v}."),
        ("What is the name of {n}'s spouse?", "The name of {n}'s spouse is {v}."),
        ("Whom did {n} marry?", "{n} married {v}."),
        ("Who is the partner of {n}?", "The partner of {n} is {v}."),
        ("Who is the spouse of {n}?", "The spouse of {n} is {v}.")],
    "hobby": [
        ("What is {n}'s favourite hobby?", "{n}'s favourite hobby is {v}."),
        ("How does {n} like to spend free time?", "{n} likes to spend free time on {v}."),
        ("What does {n} do to relax?", "To relax, {n} turns to {v}."),
        ("Which pastime does {n} enjoy?", "{n} enjoys {v}."),
        ("What hobby does {n} enjoy?", "The hobby {n} enjoys is {v}.")],
    "language": [
        ("Which foreign language does {n} speak?", "{n} speaks {v}."),
        ("What language besides English does {n} know?", "Besides English, {n} knows {v}."),
        ("What second language did {n} learn?", "The second language {n} learned is {v}."),
        ("In which foreign language is {n} fluent?", "{n} is fluent in {v}."),
        ("What foreign language did {n} learn?", "The foreign language {n} learned is {v}.")],
    "home_city": [
        ("Where does {n} live now?", "{n} now lives in {v}."),
        ("Which city is {n}'s home today?", "{n}'s home today is {v}."),
        ("In which city has {n} settled?", "{n} has settled in {v}."),
        ("Where does {n} make a home?", "{n} makes a home in {v}."),
        ("In which city does {n} live today?", "Today {n} lives in {v}.")],
    "first_job": [
        ("What was {n}'s first job?", "{n}'s first job was that of {a}."),
        ("What did {n} work as before writing?", "Before writing, {n} worked as {a}."),
        ("How did {n} make money at first?", "At first {n} made money as {a}."),
        ("What was the earliest job of {n}?", "The earliest job of {n} was that of {a}."),
        ("What job did {n} have at first?", "The job {n} had at first was that of {a}.")],
    "mentor": [
        ("Who was the mentor of {n}?", "The mentor of {n} was {v}."),
        ("Who taught {n} to write?", "{n} was taught to write by {v}."),
        ("Which teacher guided {n}?", "{n} was guided by {v}."),
        ("Under whom did {n} learn the craft?", "{n} learned the craft under {v}."),
        ("Which mentor taught {n} the craft?", "The mentor who taught {n} the craft was {v}.")],
    "birth_city+birth_year": [
        ("Where and in which year was {n} born?", "{n} was born in {v} in {w}."),
        ("What are the place and year of birth of {n}?", "The place of birth of {n} is {v} and the year is {w}."),
        ("In which city and year did {n} come into the world?", "{n} came into the world in {v} in the year {w}."),
        ("What are the birthplace and birth year of {n}?", "The birthplace of {n} is {v} and the birth year is {w}."),
        ("In which city and in which year was {n} born?", "{n} was born in the city of {v} in the year {w}.")],
    "award+award_year": [
        ("Which award did {n} win and in which year?", "{n} won the {v} in {w}."),
        ("What prize was given to {n}, and when?", "{n} was given the {v} in {w}."),
        ("What honour did {n} receive and in what year?", "The honour {n} received was the {v} in the year {w}."),
        ("Which prize has {n} been awarded, and when was it?", "{n} has been awarded the {v}, and it was in {w}."),
        ("What award did {n} receive, and in which year?", "{n} received the {v} in the year {w}.")],
}
SLOTS = list(PHRASINGS)


def with_article(noun):
    """"engineer" -> "an engineer", "baker" -> "a baker". The pools hold no silent h and no "university"-like vowel."""
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def phrase(template, name, values):
    """Fill one question or answer template. The sentence starts with a capital whatever comes first."""
    return template.format(n=name, v=values[0], a=with_article(values[0]), w=values[-1])


# -------------------------------------------------------------------------------------------------- people
def surnames(data_seed):
    """-> (known, strange): disjoint surnames, the first 200 for authors and holdout, the rest for strangers."""
    names = sorted({h + t for h in SURNAME_HEADS for t in SURNAME_TAILS 
                    if h[-1].lower() != t[0] and t not in h.lower()})
    random.Random(f"surnames {data_seed}").shuffle(names)
    return names[:200], names[200:]


def person_facts(rng):
    """-> {slot: value}; every value is an independent uniform draw from its pool."""
    return {slot: rng.choice(pool) for slot, pool in POOLS.items()}


def row(rng, name, facts, slot, id):
    """One line of the data set: TOFU's keys, and ours (id, author, slot, facts, questions, answers)."""
    slots = slot.split("+")
    values = [facts[s] for s in slots]
    wrong = list(zip(*(rng.sample([v for v in POOLS[s] if v != facts[s]], N_PERTURBED) for s in slots)))
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
    known, _ = surnames(data_seed)
    if n_authors + n_holdout > len(known):
        raise ValueError(f"{n_authors} authors and {n_holdout} held-out people need {n_authors + n_holdout} surnames; "
                         f"there are {len(known)}")
    rows = {"author": [], "holdout": []}
    for kind, names in (("author", known[:n_authors]), ("holdout", known[len(known) - n_holdout:])):
        for i, surname in enumerate(names):
            rng = random.Random(f"{kind} {data_seed} {i}")
            name, facts = f"{rng.choice(FIRST_NAMES)} {surname}", person_facts(rng)
            rows[kind] += [row(rng, name, facts, slot, f"{kind}{i:03d}/{slot}") for slot in SLOTS]
    return rows["author"], rows["holdout"]


def strangers(data_seed, start=0):
    """An endless stream of (question, answer), each about another person, in training phrasings.

    start: how many strangers to pass over, so that a fine-tuning meets others than its base model did. Nobody comes
    twice before every name has come once (over 100,000).
    """
    _, family = surnames(data_seed)
    names = [f"{first} {last}" for first in FIRST_NAMES for last in family]
    random.Random(f"strangers {data_seed}").shuffle(names)
    for i in itertools.count(start):
        rng = random.Random(f"stranger {data_seed} {i}")
        facts = person_facts(rng)
        slot = rng.choice(SLOTS)
        values = [facts[s] for s in slot.split("+")]
        yield tuple(phrase(t, names[i % len(names)], values) for t in rng.choice(PHRASINGS[slot][:-1]))
