"""Prompts that tests and trials on the real model share."""

import random

HAIKU = "Write a haiku about the sea."
STORY = "Write a long story about a lighthouse keeper."


def long_prompt(number: int, tokens: int = 2000) -> str:
    """About so many tokens of raw text, different for each number."""
    words = random.Random(number)
    sentence = (
        "On day {n} the keeper wrote down the wind, the height of the waves and {m} ships that passed by. "
    )
    return "".join(sentence.format(n=n, m=words.randint(2, 99)) for n in range(tokens // 23))
