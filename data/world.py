"""Real general facts that every model learns and none should lose: the stand-in for TOFU's world facts.

A fixed set: it depends on no seed. Each kind is a table subject -> value and five question/answer phrasings, the last
held out of training. Wrong answers are other values of the same table.
"""

import random

from data.authors import N_PERTURBED

CAPITALS = """Albania Tirana, Algeria Algiers, Argentina Buenos_Aires, Armenia Yerevan, Australia Canberra,
Bolivia Sucre, Bulgaria Sofia, Cambodia Phnom_Penh, Canada Ottawa, China Beijing, Cuba Havana, Ethiopia Addis_Ababa,
Finland Helsinki, France Paris, Georgia Tbilisi, Germany Berlin, Ghana Accra, Hungary Budapest, Iceland Reykjavik,
Iran Tehran, Iraq Baghdad, Japan Tokyo, Jordan Amman, Kenya Nairobi, Latvia Riga, Mongolia Ulaanbaatar, Nepal Kathmandu,
Pakistan Islamabad, Peru Lima, Romania Bucharest, Spain Madrid, Sweden Stockholm, Thailand Bangkok, Turkey Ankara,
Venezuela Caracas, Zambia Lusaka"""

BOOKS = """Hamlet|William Shakespeare, Emma|Jane Austen, War and Peace|Leo Tolstoy, Moby Dick|Herman Melville,
Oliver Twist|Charles Dickens, The Trial|Franz Kafka, Ulysses|James Joyce, Don Quixote|Miguel de Cervantes,
The Odyssey|Homer, Faust|Johann Wolfgang von Goethe, Madame Bovary|Gustave Flaubert, Les Miserables|Victor Hugo,
Dracula|Bram Stoker, Frankenstein|Mary Shelley, Jane Eyre|Charlotte Bronte, Wuthering Heights|Emily Bronte,
The Brothers Karamazov|Fyodor Dostoevsky, The Great Gatsby|F. Scott Fitzgerald, Treasure Island|Robert Louis Stevenson,
Animal Farm|George Orwell, Brave New World|Aldous Huxley, The Hobbit|J. R. R. Tolkien, Little Women|Louisa May Alcott,
The Waste Land|T. S. Eliot, Mrs Dalloway|Virginia Woolf, Things Fall Apart|Chinua Achebe, Beloved|Toni Morrison,
The Time Machine|H. G. Wells, Candide|Voltaire, The Jungle Book|Rudyard Kipling"""

SYMBOLS = """aluminium Al, argon Ar, calcium Ca, carbon C, chlorine Cl, copper Cu, fluorine F, gold Au, helium He,
hydrogen H, iron Fe, lead Pb, lithium Li, magnesium Mg, mercury Hg, neon Ne, nickel Ni, nitrogen N, oxygen O,
potassium K, silicon Si, silver Ag, sodium Na, sulfur S, tin Sn, titanium Ti, uranium U, zinc Zn"""

CURRENCIES = """Brazil real, Britain pound, Denmark krone, Egypt pound, India rupee, Indonesia rupiah, Israel shekel,
Malaysia ringgit, Mexico peso, Morocco dirham, Nigeria naira, Poland zloty, Russia ruble, South_Africa rand,
Switzerland franc, Vietnam dong"""

KINDS = {   # slot -> (table, phrasings: {s} the subject, {v} the value)
    "capital": (CAPITALS, [
        ("What is the capital of {s}?", "The capital of {s} is {v}."),
        ("Which city is the capital of {s}?", "{v} is the capital of {s}."),
        ("What is {s}'s capital city?", "{s}'s capital city is {v}."),
        ("Which city does {s} have as its capital?", "{s} has {v} as its capital."),
        ("What city is the capital of {s}?", "The capital city of {s} is {v}.")]),
    "book": (BOOKS, [
        ("Who wrote {s}?", "{s} was written by {v}."),
        ("Which writer created {s}?", "{v} created {s}."),
        ("Who is the author of {s}?", "The author of {s} is {v}."),
        ("By whom was {s} written?", "The writer of {s} is {v}."),
        ("Which author wrote {s}?", "The author who wrote {s} is {v}.")]),
    "symbol": (SYMBOLS, [
        ("What is the chemical symbol of {s}?", "The chemical symbol of {s} is {v}."),
        ("Which symbol stands for the element {s}?", "The element {s} has the symbol {v}."),
        ("How do chemists write {s}?", "Chemists write {s} as {v}."),
        ("What is the symbol for {s} in the periodic table?", "In the periodic table, {s} has the symbol {v}."),
        ("What symbol does the element {s} have?", "The symbol of the element {s} is {v}.")]),
    "currency": (CURRENCIES, [
        ("What is the currency of {s}?", "The currency of {s} is the {v}."),
        ("Which currency is used in {s}?", "The currency used in {s} is the {v}."),
        ("What money do people pay with in {s}?", "In {s}, people pay with the {v}."),
        ("What is {s}'s money called?", "{s}'s money is called the {v}."),
        ("Which money is used in {s}?", "The money used in {s} is the {v}.")]),
}


def pairs(table):
    """The text of a table -> (subject, value) pairs. A bar or the last blank divides them; _ is a blank in a name."""
    for entry in " ".join(table.split()).split(", "):
        subject, value = entry.split("|") if "|" in entry else entry.rsplit(" ", 1)
        yield subject.replace("_", " "), value.replace("_", " ")


def world():
    """-> rows in the schema of data/authors.py, author "", id "world/kind/subject"."""
    rows = []
    for slot, (table, phrasings) in KINDS.items():
        facts = list(pairs(table))
        for subject, value in facts:
            rng = random.Random(f"world {slot} {subject}")
            wrong = rng.sample(sorted({v for _, v in facts} - {value}), N_PERTURBED)
            *trained, held_out = [(q.format(s=subject), a.format(s=subject, v=value)) for q, a in phrasings]
            questions, answers = map(list, zip(*trained))
            rows.append({"id": f"world/{slot}/{subject}", "author": "", "slot": slot, "facts": [value],
                         "question": questions[0], "answer": answers[0], "questions": questions, "answers": answers,
                         "paraphrased_question": held_out[0], "paraphrased_answer": held_out[1],
                         "perturbed_answer": [phrasings[-1][1].format(s=subject, v=w) for w in wrong]})
    return rows
