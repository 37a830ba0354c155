"""VQA accuracy: agreement with ten people's answers (Antol et al. 2015, arXiv:1505.00468; visualqa.org/evaluation.html).

The official page prepares both sides always; its first script, and lmms-eval with it, prepares neither when all ten people agree. We
follow the page. TextVQA's evaluators (Pythia's, now everyone's) take commas, question marks and possessives apart first.
"""

import re
from collections.abc import Sequence

NEEDED = 3  # people who must have said it for all of the score

_NUMBERS = {
    word: str(number) for number, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))
} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")  # not before a digit: the official pattern looks behind by mistake for nothing
_COMMA_IN_NUMBER = re.compile(r"\d,\d")

# Contractions get the apostrophe that people leave out. Where it goes, by ending; words as the official script lists them.
_NOT = "ai are ca could did does do had has have is might must need ought sha should was were wo would"
_ENDINGS = {
    "ve": "could might must not should they we what where who would you",
    "d": "he how it someone something there they where who you",
    "ll": "how it somebody someone something they what who why y'all you",
    "re": "there they what why you",
    "s": "he how somebody someone that there what when where who why",
}
_DOUBLE = ["he", "it", "she", "somebody", "someone", "something", "there", "they", "we", "who", "y'all", "you"]  # 'd've
_DOUBLE_NOT = ["could", "had", "might", "should", "would"]  # n't've


def _contractions() -> dict[str, str]:
    found = {f"{word}nt": f"{word}n't" for word in _NOT.split()}
    for ending, words in _ENDINGS.items():
        found |= {f"{word}{ending}": f"{word}'{ending}" for word in words.split()}
    for word in _DOUBLE:
        whole = f"{word}'d've"
        found |= {f"{word}d've": whole, f"{word}'dve": whole}
    for word in _DOUBLE_NOT:
        whole = f"{word}n't've"
        found |= {f"{word}nt've": whole, f"{word}n'tve": whole}
    found |= {"maam": "ma'am", "oclock": "o'clock", "twas": "'twas", "yall": "y'all", "yall'll": "y'all'll", "yall'd've": "y'all'd've"}
    found |= dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at")
    return found | {"somebody'd": "somebodyd"}  # so it stands in the official list


_CONTRACTIONS = _contractions()


def vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """Mean over people of min(1, how many of the *others* said the same / 3): the machine is measured as a person would be."""
    return _agreement(normalise(answer), [normalise(each) for each in answers])


def textvqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """The same with TextVQA's preparation."""
    return _agreement(normalise_textvqa(answer), [normalise_textvqa(each) for each in answers])


def _agreement(said: str, answers: Sequence[str]) -> float:
    same = [each == said for each in answers]
    total = sum(same)
    return sum(min(1.0, (total - own) / NEEDED) for own in same) / len(answers) if answers else 0.0


def normalise(text: str) -> str:
    """Punctuation, case, numbers written as words, articles, contractions: in the official order."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return _words(_without_punctuation(text))


def normalise_textvqa(text: str) -> str:
    """As `normalise`, after Pythia's word splitting."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise(text)


def _without_punctuation(text: str) -> str:
    """A mark becomes a space, or nothing where a space stands beside it anywhere in the text or a comma inside a number does."""
    has_long_number = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or has_long_number else " ")
    return _PERIOD.sub("", out)


def _words(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
