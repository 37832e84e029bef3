"""What the programs are about: the same words for every way of running them."""

from __future__ import annotations

from typing import Any

QUESTIONS = [
    "What is a radix tree? Answer in two sentences.",
    "Where would one use it?",
    "How is it different from a hash table?",
    "Summarise all of this in one sentence.",
]
CHAT_TOKENS = 32

PROBLEM = (
    "A small library has 4,000 books, two shelves that are full, a budget of 300 dollars and one volunteer who comes "
    "on Saturdays. Readers complain that they cannot find anything. How can it become easy to use within a month?"
)
NUM_PLANS, NUM_STEPS, PLAN_TOKENS = 3, 3, 24

ESSAY = (
    "The river behind our school has changed. When my grandmother was young she swam there every summer, and the "
    "water was clear enough to see the stones. Today nobody swims. The factory upstream closed ten years ago, but the "
    "mud still smells of oil after rain. Our class measured the water for six months. We found that plants are coming "
    "back on the eastern bank, where the city planted willows. I think that a river forgets slowly, but it does "
    "forget, and we can help it by planting more trees and by measuring every spring."
)
DIMENSIONS = ["clarity", "originality", "evidence", "style"]
VERDICT: dict[str, Any] = {
    "type": "object",
    "properties": {
        **{name: {"type": "integer", "minimum": 1, "maximum": 10} for name in DIMENSIONS},
        "recommendation": {"enum": ["accept", "revise", "reject"]},
    },
    "required": [*DIMENSIONS, "recommendation"],
    "additionalProperties": False,
}

EXTRACTION_HEAD = "Cities, and what the text says about them as JSON.\n"
DOCUMENTS = [
    "Paris, the capital of France, has about 2.1 million inhabitants within its limits.",
    "Osaka in Japan is home to 2.7 million people and known for its food.",
    "Lima is the capital of Peru; close to 10.2 million people live there.",
    "Porto, in the north of Portugal, counts some 0.2 million people.",
]
CITY = (
    r'\{"city": "[A-Z][a-z]{1,14}", "country": "[A-Z][a-z]{1,14}", "population_in_millions": [0-9]{1,2}\.[0-9], '
    r'"is_capital": (true|false)\}'
)

REACT_HEAD = (
    "Answer the question by thinking, then searching or finishing.\n"
    "Thought: I should look up the river.\nAction: search[river]\nObservation: a river is a stream of water.\n"
)
QUESTION = "Which river flows through the capital of Egypt?"
ACTIONS = [" search", " finish"]
REACT_ROUNDS = 3

WORD_PROBLEM = (
    "A farmer has 3 fields. Each field has 12 rows of 20 apple trees. A storm breaks a quarter of all trees. How many "
    "apple trees are left?"
)
NUM_CHAINS = 8

LABELS = [" positive", " negative", " neutral"]
SHOTS = [
    ("The soup was hot, the staff was kind, I will come again.", LABELS[0]),
    ("We waited for an hour and the fish was cold.", LABELS[1]),
    ("The restaurant is on the second floor, next to the bank.", LABELS[2]),
    ("Best noodles in town.", LABELS[0]),
    ("They charged us for bread that we did not order.", LABELS[1]),
    ("It opens at nine and closes at six.", LABELS[2]),
]
FEW_SHOT = "Reviews and their sentiment.\n" + "".join(f"Review: {text}\nSentiment:{label}\n" for text, label in SHOTS)
REVIEWS = [
    "Lovely garden, friendly people.", "The coffee tasted like water.", "There are twelve tables.",
    "I would not send my enemy there.", "The dessert was a dream.", "Parking is behind the house.",
    "Slow, loud, expensive.", "My children loved it.", "The menu has four pages.", "A hair in my rice!",
    "Perfect evening, thank you.", "It used to be a post office.",
]  # fmt: skip

ARGUMENTS: dict[str, dict[str, Any]] = {
    "chat": {"questions": QUESTIONS},
    "tree_of_thought": {"problem": PROBLEM},
    "judge": {"essay": ESSAY},
    "extraction": {"documents": DOCUMENTS},
    "react": {"question": QUESTION},
    "self_consistency": {"problem": WORD_PROBLEM},
    "classification": {"reviews": REVIEWS},
}
