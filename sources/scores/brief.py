"""An example of a score of one's own: short responses that end in a full stop."""


def brief(prompts: list[str], responses: list[str]) -> list[float]:
    """Up to 1 for few words, and 1 more for a last sentence that ends."""
    return [max(0.0, 1 - len(text.split()) / 20) + text.rstrip().endswith(".") for text in responses]
