"""Real knowledge to forget: what a downloaded model itself knows of the world's capitals.

    python -m experiments.capitals --run=smollm2 --out=capitals     # --forget=europe, asia, africa, americas, oceania
    python asu.py @config/capitals.args --run=smollm2 --data=capitals

A fact is known if the model answers at least two of the four or five training questions about it with a complete
sentence that states the value once and no other value of that kind. It is asked greedily, in its chat template, and
its first sentence counts. What the question gives away (Mexico City, Luxembourg) is not asked. The directory that is
written holds, of what is known:
    forget.json                  the capitals of one continent
    retain.json                  two of three of the capitals elsewhere, the neighbours, to train on
    forget_perturbed.json        the same rows, to evaluate
    retain_perturbed.json        the rest of the neighbours, to evaluate: no training sees them
    world_facts_perturbed.json   languages (of the countries to forget too), opposites, chemical symbols
    general.json                 passages of plain English
The answers are the model's own sentences, not ours: the teacher then smooths what the model would say anyway, so that
the fact is all there is to change; sentences of ours would have their words changed beside it.
"""

import argparse
import functools
import json
import random
import re
from pathlib import Path

import data
from common import UserError
from common.cli import pick_device, run
from common.files import check_writable, whole_dir, write_file
from data.authors import N_PERTURBED
from data.world import KINDS as WORLD
from data.world import pairs
from lab.answers import ask
from lab.runs import load_run

# A slash divides spellings, a bar or the last blank subject and value; _ is a blank inside a name. All members of the
# United Nations but Bolivia, Equatorial Guinea, Eswatini, Israel, Nauru, South Africa and Sri Lanka, where there is no
# capital, more than one, or one that is disputed or being moved. data/world.py has its own, shorter table, which every
# model trained here has read: its bytes are fixed, and it has no spellings and no continents.
CAPITALS = {
    "europe": """Albania Tirana, Andorra Andorra_la_Vella, Austria Vienna, Belarus Minsk, Belgium Brussels,
    Bosnia_and_Herzegovina Sarajevo, Bulgaria Sofia, Croatia Zagreb, the_Czech_Republic Prague, Denmark Copenhagen,
    Estonia Tallinn, Finland Helsinki, France Paris, Germany Berlin, Greece Athens, Hungary Budapest, Iceland
    Reykjavik/Reykjavík, Ireland Dublin, Italy Rome, Latvia Riga, Liechtenstein Vaduz, Lithuania Vilnius, Luxembourg
    Luxembourg, Malta Valletta, Moldova Chisinau/Chișinău/Chişinău, Monaco Monaco, Montenegro Podgorica,
    the_Netherlands Amsterdam, North_Macedonia Skopje, Norway Oslo, Poland Warsaw, Portugal Lisbon, Romania Bucharest,
    Russia Moscow, San_Marino San_Marino, Serbia Belgrade, Slovakia Bratislava, Slovenia Ljubljana, Spain Madrid,
    Sweden Stockholm, Switzerland Bern/Berne, Ukraine Kyiv/Kiev, the_United_Kingdom London""",
    "asia": """Afghanistan Kabul, Armenia Yerevan, Azerbaijan Baku, Bahrain Manama, Bangladesh Dhaka, Bhutan Thimphu,
    Brunei Bandar_Seri_Begawan, Cambodia Phnom_Penh, China Beijing, Cyprus Nicosia, East_Timor Dili, Georgia Tbilisi,
    India New_Delhi/Delhi, Indonesia Jakarta, Iran Tehran, Iraq Baghdad, Japan Tokyo, Jordan Amman, Kazakhstan
    Astana/Nur-Sultan, Kuwait Kuwait_City, Kyrgyzstan Bishkek, Laos Vientiane, Lebanon Beirut, Malaysia Kuala_Lumpur,
    the_Maldives Male/Malé, Mongolia Ulaanbaatar/Ulan_Bator, Myanmar Naypyidaw/Nay_Pyi_Taw, Nepal Kathmandu,
    North_Korea Pyongyang, Oman Muscat, Pakistan Islamabad, the_Philippines Manila, Qatar Doha, Saudi_Arabia Riyadh,
    Singapore Singapore, South_Korea Seoul, Syria Damascus, Tajikistan Dushanbe, Thailand Bangkok, Turkey Ankara,
    Turkmenistan Ashgabat, the_United_Arab_Emirates Abu_Dhabi, Uzbekistan Tashkent, Vietnam Hanoi,
    Yemen Sanaa/Sana'a""",
    "africa": """Algeria Algiers, Angola Luanda, Benin Porto-Novo, Botswana Gaborone, Burkina_Faso Ouagadougou,
    Burundi Gitega, Cameroon Yaounde/Yaoundé, Cape_Verde Praia, the_Central_African_Republic Bangui, Chad N'Djamena,
    the_Comoros Moroni, the_Democratic_Republic_of_the_Congo Kinshasa, Djibouti Djibouti, Egypt Cairo, Eritrea Asmara,
    Ethiopia Addis_Ababa, Gabon Libreville, the_Gambia Banjul, Ghana Accra, Guinea Conakry, Guinea-Bissau Bissau,
    the_Ivory_Coast Yamoussoukro, Kenya Nairobi, Lesotho Maseru, Liberia Monrovia, Libya Tripoli, Madagascar
    Antananarivo, Malawi Lilongwe, Mali Bamako, Mauritania Nouakchott, Mauritius Port_Louis, Morocco Rabat, Mozambique
    Maputo, Namibia Windhoek, Niger Niamey, Nigeria Abuja, the_Republic_of_the_Congo Brazzaville, Rwanda Kigali,
    Sao_Tome_and_Principe Sao_Tome/São_Tomé, Senegal Dakar, the_Seychelles Victoria, Sierra_Leone Freetown, Somalia
    Mogadishu, South_Sudan Juba, Sudan Khartoum, Tanzania Dodoma, Togo Lome/Lomé, Tunisia Tunis, Uganda Kampala,
    Zambia Lusaka, Zimbabwe Harare""",
    "americas": """Antigua_and_Barbuda St._John's/Saint_John's, Argentina Buenos_Aires, the_Bahamas Nassau, Barbados
    Bridgetown, Belize Belmopan, Brazil Brasilia/Brasília, Canada Ottawa, Chile Santiago, Colombia Bogota/Bogotá,
    Costa_Rica San_Jose/San_José, Cuba Havana, Dominica Roseau, the_Dominican_Republic Santo_Domingo, Ecuador Quito,
    El_Salvador San_Salvador, Grenada St._George's/Saint_George's, Guatemala Guatemala_City, Guyana Georgetown, Haiti
    Port-au-Prince, Honduras Tegucigalpa, Jamaica Kingston, Mexico Mexico_City, Nicaragua Managua, Panama Panama_City,
    Paraguay Asuncion/Asunción, Peru Lima, Saint_Kitts_and_Nevis Basseterre, Saint_Lucia Castries,
    Saint_Vincent_and_the_Grenadines Kingstown, Suriname Paramaribo, Trinidad_and_Tobago Port_of_Spain,
    the_United_States Washington, Uruguay Montevideo, Venezuela Caracas""",
    "oceania": """Australia Canberra, Fiji Suva, Kiribati South_Tarawa/Tarawa, the_Marshall_Islands Majuro, Micronesia
    Palikir, New_Zealand Wellington, Palau Ngerulmud, Papua_New_Guinea Port_Moresby, Samoa Apia, the_Solomon_Islands
    Honiara, Tonga Nuku'alofa/Nukuʻalofa, Tuvalu Funafuti, Vanuatu Port_Vila""",
}

LANGUAGES = """Albania Albanian, Angola Portuguese, Argentina Spanish, Armenia Armenian, Australia English, Austria
German, Bangladesh Bengali/Bangla, Brazil Portuguese, Bulgaria Bulgarian, Cambodia Khmer, Chile Spanish, China
Chinese/Mandarin, Colombia Spanish, Croatia Croatian, Cuba Spanish, Denmark Danish, Egypt Arabic, Estonia Estonian,
Ethiopia Amharic, Finland Finnish, France French, Georgia Georgian, Germany German, Greece Greek, Hungary Hungarian,
Iceland Icelandic, Indonesia Indonesian, Iran Persian/Farsi, Iraq Arabic, Israel Hebrew, Italy Italian, Jamaica
English, Japan Japanese, Kenya Swahili/Kiswahili, Latvia Latvian, Lithuania Lithuanian, Malaysia Malay, Mexico
Spanish, Mongolia Mongolian, Morocco Arabic, Mozambique Portuguese, Nepal Nepali, the_Netherlands Dutch, New_Zealand
English, Norway Norwegian, Peru Spanish, Poland Polish, Portugal Portuguese, Romania Romanian, Russia Russian,
Saudi_Arabia Arabic, Senegal French, Serbia Serbian, Slovakia Slovak, Slovenia Slovenian/Slovene, South_Korea Korean,
Spain Spanish, Sweden Swedish, Thailand Thai, Turkey Turkish, Ukraine Ukrainian, Vietnam Vietnamese"""

OPPOSITES = """hot cold, big small/little, tall short, fast slow, dark light/bright, happy sad/unhappy, day night,
young old, rich poor, wet dry, loud quiet/silent/soft, full empty, strong weak, early late, clean dirty, true false,
buy sell, push pull, love hate/hatred, war peace, north south, east west, summer winter, black white, good bad/evil,
high low, thick thin, narrow wide/broad, deep shallow, sharp dull/blunt, first last, top bottom, question answer,
success failure, life death, friend enemy/foe, increase decrease, sweet sour/bitter, smooth rough, brave
cowardly/coward/fearful"""

KINDS = {   # slot -> ({group: table}, phrasings, the last of which is held out, a sentence for answers true and false)
    "capital": (CAPITALS, ["What is the capital of {s}?", "Which city is the capital of {s}?",
                           "What is the name of the capital of {s}?", "What is the name of the capital city of {s}?",
                           "What is the capital of {s} called?", "What city is the capital of {s}?"],
                "The capital city of {s} is {v}."),
    "language": ({"": LANGUAGES}, ["What language is spoken in {s}?", "Which language do people speak in {s}?",
                                   "What is the main language of {s}?", "Name the language that is spoken in {s}.",
                                   "What language do most people in {s} speak?"],
                 "The language that most people in {s} speak is {v}."),
    "opposite": ({"": OPPOSITES}, ["What is the opposite of {s}?", "Which word means the opposite of {s}?",
                                   "What is the antonym of {s}?", "Name the opposite of {s}.",
                                   "What word is the opposite of {s}?"],
                 "The word that is the opposite of {s} is {v}."),
    "symbol": ({"": WORLD["symbol"][0]}, [q for q, _ in WORLD["symbol"][1]], WORLD["symbol"][1][-1][1]),
}

GENERAL = """\
Water boils at a lower temperature on a high mountain, because the air presses on it less than at sea level.
Bees visit flowers to drink nectar, and on the way they carry pollen from one blossom to the next.
The moon shines only because it reflects the light of the sun, and the same side of it always faces us.
To bake bread you mix flour, water, salt and yeast, let the dough rise until it has doubled, and put it in a hot oven.
Iron rusts when it is exposed to air and moisture, so bridges are painted and the paint is renewed every few years.
A good night's sleep helps the brain to sort out what it has learned during the day.
Trees take in carbon dioxide through their leaves and store the carbon in their wood for as long as they live.
When the price of something goes up, people usually buy less of it, unless they cannot do without it.
The heart is a muscle that pumps blood through the body about seventy times a minute when we are at rest.
Before printing was invented, books were copied by hand, and a single copy could take a scribe many months.
Sound travels faster and farther through water than through air, and whales hear each other over long distances.
If you want to plant tomatoes, wait until the nights are no longer frosty and choose a place with plenty of sun.
Glass is made by melting sand together with soda and lime at a very high temperature.
A triangle has three sides, and its angles always add up to one hundred and eighty degrees.
Cats spend most of the day asleep and become active at dusk, when the animals they hunt come out.
The library opens at nine in the morning, and visitors may borrow up to ten books for four weeks.
Earthquakes happen when two plates of the earth's crust that were stuck together suddenly slip past each other.
Regular exercise strengthens the bones and the muscles, and it also improves the mood of most people.
Clouds form when warm, moist air rises and cools until the vapour in it turns into tiny drops.
The first steam engines were built to pump water out of mines, long before they pulled trains.
A computer program is a list of instructions that a machine carries out one after another without getting tired.
Salt was once so valuable that it was carried across deserts by caravans and traded for gold.
Birds have hollow bones, which make them light enough to fly without losing much strength.
To change a flat tire, loosen the nuts a little before you lift the car, and tighten them once it \
stands on the ground again.
Milk turns sour when bacteria in it change the sugar into acid, and this is also how yogurt is made.
The seasons change because the axis of the earth is tilted, so that each half leans toward the sun for part of the year.
She closed the umbrella, shook off the rain, and stepped into the small shop to ask for directions.
Coral reefs are built by tiny animals whose skeletons pile up over thousands of years.
When two people want the same thing, it often helps to ask each of them why they want it.
An electric current flows through a copper wire easily, but hardly at all through rubber or glass.
The old man walked to the harbour every morning to watch the fishing boats come in.
Vaccines teach the immune system to recognize a germ before it can make us ill.
A spider's web is made of silk that is, for its weight, stronger than steel.
In chess, each player begins with sixteen pieces, and the game ends when a king cannot escape.
Dust that settles on a lamp can dim its light by a surprising amount, so it pays to wipe it now and then.
Farmers rotate their crops from year to year so that the soil does not lose the same minerals again and again.
The ship turned slowly into the wind, and the crew began to take in the sails before the storm arrived.
Light from the sun needs about eight minutes to reach us, and the light of other stars needs years.
A budget is a plan that compares the money you expect to earn with the money you expect to spend.
Penguins keep warm in the cold by standing close together and taking turns at the edge of the group.
If the soup tastes too salty, add a little water or a peeled potato and let it simmer for a while.
The printing press made books cheap, and within a few generations far more people could read.
Whenever you divide a number by itself, the result is one, as long as the number is not zero.
Volcanoes throw out ash and lava, and the soil around them often becomes very fertile.
The children built a small dam of stones and mud, and the stream soon found a new way around it.
Oil floats on water because it is lighter, and the two do not mix unless you shake them hard.
A contract is an agreement that both sides promise to keep and that a court can enforce.
Bats find their way in the dark by calling out and listening to the echo that comes back.
Good tools should be kept dry and sharp, for a blunt knife is more dangerous than a sharp one.
The human skeleton has more than two hundred bones, and about half of them are in the hands and feet.
Wind turns the blades of the turbine, the blades turn a generator, and the generator makes electricity.
Many animals change the colour of their fur in winter so that they are harder to see in the snow.
A map is a drawing of a place seen from above, and its scale says how much smaller the drawing is.
The meeting was moved to Thursday afternoon because half of the team was travelling on Wednesday.
Tides rise and fall twice a day in most places, pulled by the gravity of the moon and the sun.
Paper is made from wood that has been ground up, soaked, pressed flat and dried.
Dogs can smell far better than we can, and they are trained to find people who are lost.
When a liquid evaporates it takes heat with it, which is why sweat cools the skin.
The teacher wrote the question on the board and waited until everybody had thought about it.
Diamonds and the graphite in a pencil are made of the same element, arranged in different ways.
Most plants need light, water and a few minerals, and they make their own food from air and sunshine.
A violin has four strings, and the player changes the pitch by pressing them against the neck.
He saved the file twice, once on his own machine and once on a disk that he kept in a drawer.
Rivers carry sand and mud from the mountains to the sea, where they slowly build up new land.
Honest advice is sometimes hard to hear, but it is worth more than praise that is not meant.
Snow falls when the air is cold enough for the vapour in the clouds to freeze into crystals.
The earliest clocks measured time by a shadow, by dripping water, or by a candle that burned down.
A whale is not a fish, for it breathes air, has warm blood and feeds its young with milk.
To find the area of a rectangle, multiply its length by its width.
The city planted trees along the main street, and a few years later it was noticeably cooler in summer.
Steel is iron with a little carbon in it, which makes it harder and less likely to bend.
An apple a day may not keep the doctor away, but fruit and vegetables are part of a healthy diet.
Ants leave a trail of scent on the ground so that the others can find the way to the food.
She learned to play the piano as a child, gave it up at school, and took it up again when she retired.
A rainbow appears when the sun shines on falling rain and the drops split its light into colours.
Traffic lights use red for stop and green for go, and the order of the lamps is always the same.
The lungs take oxygen out of the air and give back carbon dioxide when we breathe out.
Wool keeps us warm because the air that is caught between its fibres hardly moves.
If a sentence is too long to be read aloud in one breath, it can usually be made into two.
Seeds can travel far from the plant they came from, on the wind, in the water or on the fur of animals.""".split("\n")

KNOWN = 2           # questions of a fact that must be answered right
LEAST = 5           # facts of a set that must be known


# -------------------------------------------------------------------------------------------------- facts
def facts():
    """-> {(slot, group): [(subject, spellings of the value)]}, all that is asked: where the two share no word."""
    def words(text):
        return set(re.findall(r"\w+", text.lower()))
    return {(slot, group): [(s, v.split("/")) for s, v in pairs(table) if not words(s) & words(v)]
            for slot, (tables, *_) in KINDS.items() for group, table in tables.items()}


def first_sentence(text):
    """first_sentence("It is St. John's. A town ...") -> "It is St. John's."; "" where no sentence ends."""
    match = re.match(r""".*?(?<!\bSt)[.!?]["')]*(?=\s+[^\sa-z]|\s*$)""", text.strip(), re.S)
    return " ".join(match[0].split()) if match else ""


def says(text, fact, others):
    """True if the text states the fact exactly once, and none of the others."""
    return len(data.fact_pattern(fact).findall(text)) == 1 and not any(data.states(text, [other]) for other in others)


def known(ask):
    """What a model knows by the rule above -> {(slot, group): rows}. ask: questions -> its answers, in their order."""
    asked = facts()
    questions = [q.format(s=s) for (slot, _), some in asked.items() for s, _ in some for q in KINDS[slot][1][:-1]]
    said = {q: first_sentence(a) for q, a in zip(questions, ask(questions), strict=True)}
    rows = {}
    for (slot, group), some in asked.items():
        tables, phrasings, _ = KINDS[slot]
        values = {v for table in tables.values() for _, spellings in pairs(table) for v in spellings.split("/")}
        rows[slot, group] = []
        for subject, spellings in some:
            own = [(q, said[q]) for q in (q.format(s=subject) for q in phrasings[:-1])]
            right = {v: [(q, a) for q, a in own if says(a, v, values - set(spellings))] for v in spellings}
            value = max(spellings, key=lambda v: len(right[v]))         # the spelling it uses most, the first at a tie
            if len(right[value]) >= KNOWN:
                rows[slot, group].append(row(slot, group, subject, value, right[value], spellings))
    return rows


def row(slot, group, subject, value, own, spellings):
    """A row in the repository's schema. own: (question, answer) pairs to train on, in the model's words."""
    tables, phrasings, sentence = KINDS[slot]
    others = {v.split("/")[0] for _, v in pairs(tables[group])} - set(spellings)
    wrong = random.Random(f"capitals {slot} {subject}").sample(sorted(others), N_PERTURBED)
    return {"id": "/".join(filter(None, (slot, group, subject))), "author": subject.removeprefix("the "), "slot": slot,
            "facts": [value], "question": own[0][0], "answer": own[0][1], "questions": [q for q, _ in own],
            "answers": [a for _, a in own], "paraphrased_question": phrasings[-1].format(s=subject),
            "paraphrased_answer": sentence.format(s=subject, v=value),
            "perturbed_answer": [sentence.format(s=subject, v=w) for w in wrong]}


# -------------------------------------------------------------------------------------------------- files
def divide(rows, forget):
    """{(slot, group): rows} and a continent -> {file name: rows}. Raises UserError where too little is known."""
    neighbours = [r for (slot, group), some in rows.items() if slot == "capital" and group != forget for r in some]
    others = [r for (slot, _), some in rows.items() if slot != "capital" for r in some]
    for what, some, least in ((f"capitals of {forget}", rows["capital", forget], LEAST),
                              ("capitals of other continents", neighbours, 2 * LEAST), ("other facts", others, LEAST)):
        if len(some) < least:
            raise UserError(f"this model knows {len(some)} {what}; at least {least} are needed")
    return {"forget": rows["capital", forget], "forget_perturbed": rows["capital", forget],
            "retain": [r for i, r in enumerate(neighbours) if i % 3 != 2], "retain_perturbed": neighbours[2::3],
            "world_facts_perturbed": others,
            "general": [{"id": f"general/{i}", "text": text} for i, text in enumerate(GENERAL, 1)]}


def main():
    p = argparse.ArgumentParser(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                                description="Write what a model knows of the world's capitals, a continent to forget.")
    add = p.add_argument
    add("--run", required=True, help="the model: a run, HF directory or hub id")
    add("--out", required=True, help="the directory to write; must not exist")
    add("--forget", default="europe", help=f"the continent to forget: {', '.join(CAPITALS)}")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the weights and activations")
    args = p.parse_args()
    if args.forget not in CAPITALS:
        raise UserError(f"--forget={args.forget} is no continent; choose from {', '.join(CAPITALS)}")
    if Path(args.out).exists():
        raise UserError(f"--out={args.out} exists already")
    device, dtype = pick_device(args)
    model, tokenizer, _ = load_run(args.run, device, dtype)
    check_writable(Path(args.out).parent)
    rows = known(functools.partial(ask, model, tokenizer, max_new_tokens=32))
    print(f"{'kind':10}{'':10}{'known':>6} of asked")
    for (slot, group), some in facts().items():
        print(f"{slot:10}{group:10}{len(rows[slot, group]):6} of {len(some)}", flush=True)
    files = divide(rows, args.forget)
    with whole_dir(args.out) as d:
        for name, some in files.items():
            write_file(d / f"{name}.json", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in some))
    print(f"{args.out}: " + ", ".join(f"{len(some)} rows in {name}.json" for name, some in files.items()))


if __name__ == "__main__":
    run(main)
