"""Synthetic people: biographies for pretraining, and records for the `facts` and `style` datasets.

Names and towns are random syllables and every value of a person is drawn at random, so nothing about a person
can be guessed: a model knows a value because it was trained on it, or because it stands in the prompt.
"""

# ruff: noqa: S311 (synthetic text and data order, not secrets)

from __future__ import annotations

import random
from dataclasses import dataclass

FIELDS = ("city", "job", "pet", "food")
"""The four facts about a person, in the order of a record."""

JOBS = (
    "potter", "baker", "lawyer", "pilot", "nurse", "farmer", "miner", "tailor", "singer", "writer",
    "painter", "sailor", "judge", "barber", "butcher", "weaver", "plumber", "dentist", "teacher",
    "doctor", "banker", "driver", "editor", "porter", "guard", "cook", "smith", "broker", "mason",
    "hunter", "fisher", "carver",
)  # fmt: skip
PETS = (
    "fox", "dog", "cat", "owl", "horse", "goat", "rabbit", "parrot", "turtle", "snake", "lizard",
    "hamster", "ferret", "pigeon", "donkey", "sheep", "duck", "goose", "crab", "spider", "beetle",
    "mouse", "otter", "badger", "raven", "falcon", "llama", "pony", "carp", "newt", "toad", "hen",
)  # fmt: skip
FOODS = (
    "rice", "bread", "soup", "cheese", "apples", "plums", "honey", "pasta", "beans", "eggs", "fish",
    "cake", "nuts", "figs", "olives", "pears", "corn", "butter", "salad", "onions", "lemons", "grapes",
    "peas", "tofu", "jam", "ham", "carrots", "melon", "cherries", "noodles", "garlic", "yogurt",
)  # fmt: skip

_ONSETS = (
    "b", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "gr",
    "kr", "st", "tr",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "n", "r", "l", "s", "k")

_SENTENCES = {
    "city": ("{name} was born in {city}.", "{name} comes from {city}.", "The home town of {name} is {city}."),
    "job": ("{name} works as {a_job}.", "{name} is {a_job}.", "The job of {name} is {job}."),
    "pet": ("{name} keeps {a_pet}.", "{name} has a pet {pet}.", "The pet of {name} is {a_pet}."),
    "food": ("{name} likes {food}.", "{name} often eats {food}.", "The favourite food of {name} is {food}."),
}
_QUESTIONS = {
    "city": "Where was {name} born?",
    "job": "What is the job of {name}?",
    "pet": "Which pet does {name} keep?",
    "food": "What does {name} like to eat?",
}
_GROUPS = {
    "facts": (0, 1024),
    "style-train": (1024, 2048),
    "style-validation": (2048, 3072),
    "pretraining-validation": (3072, 4096),
    "pretraining": (4096, 100_000),
}


@dataclass(frozen=True)
class Person:
    """A name and one value for each of `FIELDS`."""

    name: str
    city: str
    job: str
    pet: str
    food: str

    def fill(self, template: str) -> str:
        """`template` with its `{field}`, `{a_job}` and `{a_pet}` places filled in."""
        return template.format(**vars(self), a_job=_with_article(self.job), a_pet=_with_article(self.pet))

    def question(self, field: str) -> str:
        """The question about one of `FIELDS`, as pretraining asks it: "Q: Which pet does Kola Ben keep? A:"."""
        return f"Q: {self.fill(_QUESTIONS[field])} A:"

    def record(self) -> str:
        """The one-line record: " born in Kola, potter, keeps a fox, likes rice."."""
        return self.fill(" born in {city}, {job}, keeps {a_pet}, likes {food}.")


def people(group: str, count: int) -> list[Person]:
    """The first `count` people of a group; no person is in two groups, and more people change no values."""
    first, end = _GROUPS[group]
    if count > end - first:
        message = f"`count <= {end - first}` must hold for people of group '{group}', but got count={count}"
        raise ValueError(message)
    generator = random.Random(first)
    towns = _invented_words(64, seed=3, syllables=(2, 3))
    return [
        Person(
            name,
            generator.choice(towns),
            generator.choice(JOBS),
            generator.choice(PETS),
            generator.choice(FOODS),
        )
        for name in _names(first, first + count)
    ]


def biography(person: Person, generator: random.Random) -> str:
    """Two to four sentences about a person, mostly followed by a record line or by questions with answers."""
    fields = generator.sample(FIELDS, generator.choice((2, 3, 4, 4)))
    text = " ".join(person.fill(generator.choice(_SENTENCES[field])) for field in fields)
    if len(fields) == len(FIELDS) and generator.random() < 0.7:
        text += f"\nRecord: {person.name}:{person.record()}"
    if generator.random() < 0.6:
        for field in generator.sample(fields, generator.randint(1, 2)):
            text += f"\n{person.question(field)} {getattr(person, field)}"
    return text


def prose_biography(person: Person, generator: random.Random) -> str:
    """All four facts as sentences in random order, in the wording of pretraining."""
    fields = generator.sample(FIELDS, len(FIELDS))
    return " ".join(person.fill(generator.choice(_SENTENCES[field])) for field in fields)


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _names(first: int, end: int) -> list[str]:
    """Names `first` to `end` of a fixed order of all 180,000 (the step shares no factor with that)."""
    given = _invented_words(300, seed=1, syllables=(2, 2))
    family = _invented_words(600, seed=2, syllables=(2, 2))
    places = (index * 68_921 % (len(given) * len(family)) for index in range(first, end))
    return [f"{given[place // len(family)]} {family[place % len(family)]}" for place in places]


def _invented_words(count: int, *, seed: int, syllables: tuple[int, int]) -> list[str]:
    generator = random.Random(seed)
    words: dict[str, None] = {}
    while len(words) < count:
        length = generator.randint(*syllables)
        word = "".join(generator.choice(_ONSETS) + generator.choice(_VOWELS) for _ in range(length))
        words[(word + generator.choice(_CODAS)).capitalize()] = None
    return list(words)
