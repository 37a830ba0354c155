"""Words of a caption as pycocoevalcap sees them: Stanford's Penn Treebank tokenizer (CoreNLP 3.4.1, lower case), punctuation dropped.

Theirs is a Java program of eight thousand rules; these are the ones that captions meet, compared with it word by word in the tests.
"""

import re

# What theirs writes in ASCII. A sign that is a word of its own has spaces around it.
_WRITTEN = str.maketrans(
    {"“": '"', "”": '"', "«": '"', "»": '"', "‘": "`", "’": "'", "‹": "`", "›": "`", "…": "...", "–": "--", "—": "--", "£": " # "}
    | {"€": " $ ", "¢": " cents ", "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "²": " ² ", "³": " ³ "}
)
_ENTITIES = {"&quot;": '"', "&apos;": "'", "&lt;": "<", "&gt;": ">", "&nbsp;": " ", "&amp;": "&"}
_UNSEEN = re.compile("[\U00010000-\U0010ffff\ufe0f\u200d]")  # theirs drops all beyond the first plane: nearly all emoji
_BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"})
_TOGETHER = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na"), "lemme": ("lem", "me"),
             "gimme": ("gim", "me"), "y'all": ("y'", "all"), "y'know": ("y'", "know"),
             "'tis": ("'t", "is"), "'twas": ("'t", "was")}  # fmt: skip

# Their point belongs to them: always, only with a capital, only before a number.
_SHORT = (
    "mr|mrs|ms|dr|prof|st|jr|sr|vs|inc|co|corp|ltd|ave|blvd|rd|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thurs?|thu|fri"
    "|ft|mt|rt|ct|sq|ste|bldg|dept|univ|assn|assoc|intl|natl|mfg|bros|cos?|cie|cf|al|est|etc|tel|ext|esq|messrs|ph\\.d|wm|jos|alex"
    "|sgt|lt|capt|gen|col|gov|sens?|reps?|rev|hon|pres|maj|cpl|pvt|adm|atty|brig|cmdr|comdr|insp|lieut|mlle|mme|pfc|supt"
    "|ala|ariz|calif|colo|conn|dak|fla|ga|ind|kan|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wis"
)
_SHORT_CAPITALISED = "Tex|Mass|Wash|Ill|La|Miss|Ore|Pa|Ark|Del"
_SHORT_BEFORE_NUMBERS = "nos?|pp|fig|art|op"
# Words that begin a sentence, so that a point behind a single letter ends the one before. The end of a caption counts as one: theirs
# looks at the next caption of the file there, which most often begins with "A".
_OPENERS = "An?|The|He|She|It|They|There|This|That|Then|But|In|We|You|Her|Their|These|What|When|One|Some|Many|As|At|If|Our|So|While"

_A = r"(?:[^\W\d_])"  # a letter
_AN = r"(?:[^\W_]|[\u0300-\u036f])"  # a letter, a digit, or an accent behind its letter
_WITHIN = rf"'(?!(?:s|m|d|re|ve|ll)(?!{_AN}))"  # an apostrophe that no ending begins with
_ONE_WORD = (  # with its apostrophe; elsewhere that parts two
    rf"(?:(?-i:[A-HJ-XZ])|[dlo]){_WITHIN}{_A}{{2,}}|{_A}*[aeiouy]{_WITHIN}(?:[aeiou]|(?-i:[A-Z])){_A}*"
    rf"|d'you|y'(?:all|know)(?!{_A})|c'mon|s'mores|li'l|nat'l|(?:ol|somethin|(?-i:Dunkin))'(?!\w)"
)
_ENDINGS = r"(?:(?:(?<=n)'t|'(?:s|m|d|re|ve|ll))(?![a-z0-9]))*"
_TOKEN = re.compile(
    r"(?P<url>(?:https?://|\w[\w.-]*\.(?:com|net|org|edu)/)\S*[^\s.,;!?'\")])"
    rf"|(?P<address>\w[\w.-]*@\w+(?:[.-]\w+)*|@{_A}\w*|\#{_A}+)"
    r"|(?P<tag></?[a-z][^<>]*>)"
    r"|(?P<smiley>[:;=]-?[()dp](?!\w))"
    r"|(?P<dropped>\.{2,}|-{2,})"
    rf"|(?P<clipped>'n'|'(?:n|em|till?|cause|tis|twas|[2-9]0s)(?!\w)|'\d\d(?!\S))"
    r"|(?P<clitic>'(?:s|m|d|re|ve|ll)(?![a-z0-9])|n't(?![a-z]))"
    rf"|(?P<initials>{_A}(?:\.{_A})+(?!\.?{_AN})\.?(?:-{_AN}+)*)"
    rf"|(?P<short>(?:{_SHORT}|(?-i:{_SHORT_CAPITALISED}))\.(?!{_A})|(?:{_SHORT_BEFORE_NUMBERS})\.(?=\s*\d))"
    rf"|(?P<letter>{_A}\.(?!{_AN}|\s*$|\s+(?-i:{_OPENERS})(?!\S)))"
    rf"|(?P<number>\d+(?:[.,]\d+)+(?:-{_AN}+)*|[+-]?\d*(?:[.,:]\d+)+|[+-]\d+)"
    r"|(?P<sign>(?-i:[A-Z]+&[A-Z]+)|(?-i:[A-Z]{1,2})\$|c\+\+|[cf]\#|[*]{2,}|_{2,}|\#{2,}|@{2,}|[!?]{2,})"
    rf"|(?P<word>(?:{_ONE_WORD}|{_A}{_AN}*(?:[.!?]{_A}{_AN}*)+|{_AN}+(?:[_/-]{_AN}+)*){_ENDINGS})"
    r"|(?P<point>[.,:;?!'\"`-])"
    r"|(?P<other>\S)",
    re.IGNORECASE,
)
_CLITICS = re.compile(r"^(?P<stem>.+?)(?P<end>n't|'s|'m|'d|'re|'ve|'ll)$")


def tokenize(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    words: list[str] = []
    for match in _TOKEN.finditer(_UNSEEN.sub(" ", text).translate(_WRITTEN)):
        if match.lastgroup not in ("dropped", "point"):
            words += _parts(match[0].lower()) if match.lastgroup in ("word", "clipped") else match[0].lower().translate(_BRACKETS).split()
    return words


def _parts(word: str) -> list[str]:
    """A word without the endings that stand for words of their own."""
    ends: list[str] = []
    while word not in _TOGETHER and (match := _CLITICS.match(word)):
        word, ends = match["stem"], [match["end"], *ends]
    return [*_TOGETHER.get(word, (word,)), *ends]
