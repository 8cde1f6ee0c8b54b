"""Writes llama.cpp's binary file of multiple-choice tasks, and questions to put into it."""

import struct
from pathlib import Path

# Question, answers, number of the right one.
QUESTIONS = [
    ("The capital of France is", ["Paris", "London", "Rome", "Madrid"], 0),
    ("The capital of Japan is", ["Beijing", "Seoul", "Tokyo", "Bangkok"], 2),
    ("Two plus two is", ["three", "four", "five", "six", "seven"], 1),
    ("Water freezes at a temperature of", ["zero degrees Celsius", "fifty degrees Celsius", "ninety degrees"], 0),
    ("The largest planet of our solar system is", ["Mars", "Venus", "Jupiter", "Mercury"], 2),
    ("Shakespeare wrote", ["War and Peace", "Hamlet", "Don Quixote", "The Odyssey"], 1),
    ("A spider has", ["six legs", "eight legs", "ten legs", "four legs"], 1),
    ("The sun rises in the", ["east", "west", "north", "south"], 0),
    ("The chemical symbol of gold is", ["Ag", "Fe", "Au", "Pb"], 2),
    ("Ice is lighter than water because it", ["is less dense", "is colder", "is white", "is younger"], 0),
    ("The opposite of hot is", ["warm", "cold"], 1),
    ("A triangle has", ["three sides", "four sides", "five sides"], 0),
    ("The heart pumps", ["air", "blood", "bone", "thought"], 1),
    ("Bees make", ["milk", "wine", "honey", "bread"], 2),
    ("The first month of the year is", ["March", "December", "June", "January"], 3),
    ("Photosynthesis takes place in", ["roots", "leaves", "stones", "rivers"], 1),
    ("A dozen is", ["ten", "twelve", "fifteen", "twenty"], 1),
    ("The Great Wall is in", ["China", "Peru", "Egypt"], 0),
    ("Penguins cannot", ["swim", "walk", "fly", "eat"], 2),
    ("The speed of light is greater than the speed of", ["sound", "light in empty space", "thought"], 0),
    ("An octagon has", ["seven sides", "eight sides", "nine sides"], 1),
    ("The square root of nine is", ["two", "three", "four", "nine"], 1),
    ("The author of the theory of relativity is", ["Newton", "Darwin", "Einstein", "Bohr"], 2),
    ("Fish breathe with", ["lungs", "gills", "feathers"], 1),
]


def write_multiple_choice(path: Path, questions: list[tuple[str, list[str], int]]) -> Path:
    tasks = []
    for question, answers, right in questions:
        labels = [int(number == right) for number in range(len(answers))]
        tasks.append(_text(question) + _answers(answers, labels) + _answers([], []))
    first = 4 + 4 * len(tasks)
    places = [first + sum(map(len, tasks[:number])) for number in range(len(tasks))]
    path.write_bytes(struct.pack(f"<{1 + len(tasks)}I", len(tasks), *places) + b"".join(tasks))
    return path


def _text(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


def _answers(answers: list[str], labels: list[int]) -> bytes:
    return struct.pack("<I", len(answers)) + b"".join(map(_text, answers)) + struct.pack(f"<{len(labels)}i", *labels)
