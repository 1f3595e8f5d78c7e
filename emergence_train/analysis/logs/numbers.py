"""Cells of a log as numbers: 1,000, 1.2B and what is none."""

import itertools
import re
from typing import Literal

import numpy as np
import pandas as pd

LETTERS = {1e3: "K", 1e6: "M", 1e9: "B", 1e12: "T"}
# What counts are written in, as words
MULTIPLES = {
    1e3: "k kilo thousand thousands tsd",
    1e6: "m mega million millions millionen mio mln mn",
    1e9: "b g giga billion billions milliarden bn bln mrd",
    1e12: "t tera trillion trillions tn",
}
FACTORS = {word: factor for factor, words in MULTIPLES.items() for word in words.split()}
WORDS = "|".join(sorted((word for word in FACTORS if len(word) > 1), key=len, reverse=True))
UNIT = f"{WORDS}|[kmgbt]"
POWER = r"1e\+?\d+|10\s*(?:\^|\*\*)\s*\d+|1(?:[,_. ']?000)+|0{3,9}s?"
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_OF = r"(?:tok(?:en)?s?|params?|parameters)(?![a-z])"
# What a column of counts is written in by its name: "Tokens (B)", "params [x 10^6]", "tokens_in_billions", "tokens/1e9"; and
# "billion_tokens", "Mtok"
COUNTED_IN = re.compile(
    rf"[(\[{{]\s*(?:in\s+)?[x×*·/]?\s*({UNIT}|{POWER})\.?\s*(?:of\s+)?(?:{_OF}|steps?)?\s*[)\]}}]"
    rf"|(?<=[a-z)])(?:[\s_/,.:-]+(?:in[\s_]+)?[x×*]?\s*|\s*[×*]\s*)({WORDS}|[kmgb]|{POWER})\.?$"
    rf"|(?<![a-z0-9])({UNIT})[\s_-]*(?:of[\s_-]+)?(?={_OF})",
    re.IGNORECASE,
)
# In a line of text: what parts thousands everywhere, and, behind the word step, what may as well part numbers
GROUPED = re.compile(r"(?<![\w.,'’])[1-9]\d{0,2}(?:[_'’\u00a0\u202f\u2009]\d{3})+(?![\w'’])")
_STEP = r"(\b(?:global_|train_)?(?:step|iter|iteration|update)s?['\"]?\s*[:=]?\s*['\"]?)"
STEP_GROUPED = re.compile(
    rf"{_STEP}([1-9]\d{{0,2}}(?: \d{{3}})+)(?=\s*(?:$|[|,;:)\]/]|[a-z_]*loss))", re.IGNORECASE | re.MULTILINE
)
STEP_POINTED = re.compile(rf"{_STEP}(\d+(?:\.\d{{3}})+)(?![\w.])(?!\s*(?:m?s|it|sec\w*)\b)", re.IGNORECASE)
DECIMALS = re.compile(r"0|\d{4}")  # of thousands none begin so
STEP_PLAIN = re.compile(rf"{_STEP}\d+(?![\w.,])", re.IGNORECASE)
STEP_POWER = re.compile(rf"{_STEP}(\d+(?:\.\d+)?e\+?\d+)(?![\w.])", re.IGNORECASE)
# A bar's count before such a step, which rounds it
COUNTED_STEP = re.compile(rf"(\|\s*(\d+)/\d+\s*\[[\d:?]+<[^|\n]*?){_STEP}(\d\.?(\d*)e\+?(\d+))(?![\w.])", re.IGNORECASE)
LEAST_POINTED, MOST_RISES = 3, 0.9  # steps with points, and how many of them rise, that are counts
MOST_ROUNDED = 1.2  # between a model's size by its name and by its count
OWN_UNIT = re.compile(rf"\d\s*(?:{UNIT})\.?\s*(?:tok(?:en)?s?)?\s*$", re.IGNORECASE)  # of a cell
# A logarithm, which is no count; but "log/tokens"
LOGARITHM = re.compile(r"(?<![a-z])(?:log(?:_?(?:10|2|e))?|ln|lg)(?![a-z/.])", re.IGNORECASE)
# In a line of text: "tokens: 52.43 M", "tokens 52 million"; "52.43 million tokens"
_APART = rf"((?-i:[kKMGBT])|{WORDS})"
TOKENS_IN = re.compile(
    rf"(tok(?:en)?s?\b[^|,;\d]{{0,20}}?\d[\d,]*(?:\.\d+)?)\s*{_APART}(?:tok(?:en)?s?)?\b\.?(?!\s*[:=/])", re.IGNORECASE
)
IN_TOKENS = re.compile(rf"(\d)\s*{_APART}\.?(?=\s+tok(?:en)?s?\b)", re.IGNORECASE)
# What shows that a comma is decimal: "1.234,5", "0,123", and other than three digits behind it; then what may be either
BEHIND = rf"(?:e[-+]?\d+)?\s*(?:%|(?:{UNIT})\.?)?"
DECIMAL = re.compile(rf"[-+]?(?:\d{{1,3}}(?:\.\d{{3}})+,\d+|0+,\d+|\d*,(?!\d{{3}}(?!\d))\d+){BEHIND}", re.IGNORECASE)
THOUSANDS = re.compile(rf"[-+]?\d{{1,3}}(?:,\d{{3}})+(?:\.\d*)?{BEHIND}", re.IGNORECASE)
ONE_COMMA = re.compile(rf"[-+]?\d+,\d+{BEHIND}", re.IGNORECASE)
EITHER = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")  # 5,500: one of both
# What a column's numbers are: small ones, whose only comma is decimal, or counts, whose commas part thousands
Role = Literal["small", "count", "perplexity"]
ROLES: dict[str, Role] = dict.fromkeys(("loss", "lr", "value", "stderr", "chance"), "small")
ROLES |= dict.fromkeys(("step", "tokens", "params", "items"), "count")
PERPLEXITY = re.compile(r"perplexity|(?<![a-z])ppl(?![a-z])", re.IGNORECASE)  # a number that may be above 1000
SMALL = re.compile(
    r"loss|entropy|accuracy|learning.?rate|(?<![a-z])(lr|rate|nll|acc|scores?|values?|bpb|chance|std|stderr)(?![a-z])",
    re.IGNORECASE,
)
COUNTED = re.compile(r"step|iter|token|param|sample|update|items|^n$", re.IGNORECASE)


def role_of(column: object) -> Role | None:
    """What a column holds by its name: "loss_step" losses, "accumulated_tokens" counts; None: its name does not say."""
    name = str(column)
    if PERPLEXITY.search(name):
        return "perplexity"
    return "small" if SMALL.search(name) else "count" if COUNTED.search(name) else None


def scale_of(column: object) -> float:
    """What one of a column of steps, tokens or parameters stands for by the column's name: 1e9 of "Tokens (B)"."""
    match = COUNTED_IN.search(_with_powers(column))
    return _factor(match[1] or match[2] or match[3]) if match else 1.0


def is_logarithm(column: object) -> bool:
    """Whether a column of counts has their logarithms by its name: "log10_tokens", "tokens (log)"."""
    return role_of(column) == "count" and LOGARITHM.search(str(column)) is not None


def without_unit(column: object) -> str:
    """A column's name without what `scale_of` reads: "tokens" of "billion_tokens"."""
    return COUNTED_IN.sub("", _with_powers(column))


def _with_powers(column: object) -> str:
    """A column's name with 10^9 for 10⁹."""
    return re.sub("(?<=10)[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda power: f"^{power[0].translate(SUPERSCRIPTS)}", str(column).strip())


def _factor(unit: str) -> float:
    """What "B", "Mio", "1e9", "10^9" or "1,000,000" stands for."""
    unit = unit.lower()
    if unit in FACTORS:
        return FACTORS[unit]
    if power := re.fullmatch(r"(?:1e\+?|10\s*(?:\^|\*\*)\s*)(\d+)", unit):
        return 10.0 ** int(power[1])
    return 10.0 ** unit.count("0")


def with_units(line: str) -> str:
    """A line of text whose counts of tokens have their unit as a letter right behind them: 52.43M for "52.43 million"."""
    if "tok" not in line.lower():
        return line
    for form in (TOKENS_IN, IN_TOKENS):
        line = form.sub(lambda match: f"{match[1]}{LETTERS[_factor(match[2])]}", line)
    return line


def with_commas(text: str) -> str:
    """Text of a log with a comma between the thousands of its counts, whatever was there: 1_000, 1'000, and step 1 000.

    Points are thousands' where the steps so written are no fractions, and rise; powers of ten are written out.
    """
    text = GROUPED.sub(lambda match: re.sub(r"\D", ",", match[0]), text)
    if _are_grouped([match[2] for match in STEP_GROUPED.finditer(text)]):
        text = STEP_GROUPED.sub(lambda match: match[1] + match[2].replace(" ", ","), text)
    text = COUNTED_STEP.sub(_unrounded, text)
    text = STEP_POWER.sub(lambda match: f"{match[1]}{float(match[2]):.0f}", text)
    pointed, plain = _pointed(text)
    if _are_thousands([match[2] for match in pointed], plain):
        places = {match.start() for match in pointed}
        text = STEP_POINTED.sub(
            lambda match: match[1] + match[2].replace(".", ",") if match.start() in places else match[0], text
        )
    return text


def _unrounded(match: re.Match[str]) -> str:
    """tqdm's "| 38241/40000 [..., global_step=3.82e+4]" with the bar's count as the step, which may count from 0."""
    half = 10.0 ** (int(match[6]) - len(match[5])) / 2
    is_count = abs(float(match[4]) - int(match[2])) <= half + 1
    return f"{match[1]}{match[3]}{match[2]}" if is_count else match[0]


def _pointed(text: str) -> tuple[list[re.Match[str]], bool]:
    """-> (steps with points, but those in a line with another step: times, or parts of an epoch; whether others have none)."""
    pointed = [*STEP_POINTED.finditer(text)]
    # Where its line begins; long texts have many
    plain = {text.rfind("\n", 0, match.end()) for match in STEP_PLAIN.finditer(text)} if pointed else set()
    return [match for match in pointed if text.rfind("\n", 0, match.end()) not in plain], bool(plain)


def _are_grouped(steps: list[str]) -> bool:
    """Whether blanks in steps part thousands, and no numbers: steps lie as far apart, and end not all alike but in 000."""
    whole = [int(step.replace(" ", "")) for step in steps]
    apart = sorted(b - a for a, b in itertools.pairwise(whole))
    ends = {step[-3:] for step in steps}
    regular = not apart or 2 * apart.count(apart[len(apart) // 2]) >= len(apart)
    return regular and (len(ends) > 1 or len(steps) == 1 or ends == {"000"})


def ambiguous_step(text: str) -> str | None:
    """A step as "1.000" of a text in which all are so: of 1 or of 1,000."""
    pointed, plain = _pointed(text)
    steps = [match[2] for match in pointed]
    return steps[0] if _are_thousands(steps, plain) is None else None


def _are_thousands(pointed: list[str], plain: bool) -> bool | None:
    """Whether points in steps part thousands: they rise, and are no fractions; None: they may be whole steps with decimals.

    `plain`: other steps have no points.
    """
    steps = [int(step.replace(".", "")) for step in pointed]
    rises = [b >= a for a, b in itertools.pairwise(steps)]
    if len(steps) < LEAST_POINTED or sum(rises) < MOST_RISES * len(rises) or len({*steps}) < 2:
        return False
    if any(map(DECIMALS.match, pointed)):
        return False
    return True if plain or any(step % 1000 for step in steps) else None


def are_sizes(counts: pd.Series) -> bool:
    """Whether numbers of parameters are of models of several sizes, and not of one, counted or rounded."""
    return bool(counts.max() > MOST_ROUNDED * counts.min())


def scales_of(raw: pd.Series, column: object) -> pd.Series:
    """`scale_of` for each cell of a column: 1 where the cell says its own, as "70M" of "Params (M)"."""
    scales = pd.Series(scale_of(column), raw.index)
    return scales.mask(raw.map(_has_unit), 1.0)


def is_scaled(raw: pd.Series, column: object) -> bool:
    """Whether a column counts in thousands or more, by its name or in a cell, and so may be rounded."""
    return scale_of(column) != 1 or bool(raw.map(_has_unit).any())


def _has_unit(cell: object) -> bool:
    return isinstance(cell, str) and OWN_UNIT.search(cell) is not None


def with_points(raw: pd.Series, role: Role | None = None) -> pd.Series:
    """A column's text with "1,000" as 1000 and "3,99" as 3.99; other commas stay, so that what has them is no number.

    Three digits behind the only comma ("3,985") are decimals where another cell's surely are, and in a column of small
    numbers without points: a loss of 3985 nats is none.
    """
    if not any(isinstance(value, str) and "," in value for value in raw):
        return raw
    text = raw.map(lambda value: value.strip() if isinstance(value, str) else value)
    words = [value for value in text if isinstance(value, str)]
    decimal = any(map(DECIMAL.fullmatch, words))
    if role == "small" and not any("." in word for word in words):
        decimal |= all(ONE_COMMA.fullmatch(word) for word in words if "," in word)

    def plain(value: object) -> object:
        if not isinstance(value, str) or "," not in value:
            return value
        if DECIMAL.fullmatch(value) or decimal and ONE_COMMA.fullmatch(value):
            return value.replace(".", "").replace(",", ".")
        return value.replace(",", "") if THOUSANDS.fullmatch(value) else value

    return text.map(plain)


def is_ambiguous(raw: pd.Series, role: Role | None) -> bool:
    """Whether every cell of a column is as "5,500", and its role says neither 5.5 nor 5500."""
    known = raw[raw.notna() & raw.ne("")]
    return role == "perplexity" and len(known) > 0 and all(EITHER.fullmatch(str(value).strip()) for value in known)


def numbers_of(raw: pd.Series, role: Role | None = None) -> pd.Series:
    """A column's cells as float64: NaN where a row lacks it, infinite where what stands there is no finite number."""
    absent = raw.isna() & raw.map(lambda value: not isinstance(value, float)) | raw.eq("")
    text = with_points(raw, role)
    numbers = pd.to_numeric(text, errors="coerce").astype(float)
    if (short := numbers.isna() & ~absent).any():
        numbers[short] = text[short].map(in_full)
    return numbers.where(numbers.notna() & np.isfinite(numbers), np.inf).mask(absent, np.nan)


def in_full(text: object) -> float:
    """1.2B and "1.2 billion" as 1,200,000,000; NaN for what is no number."""
    match = re.fullmatch(rf"\s*(\d+(?:\.\d*)?)\s*({UNIT})?\.?\s*(?:tok(?:en)?s?)?\s*", str(text), re.IGNORECASE)
    return float(match[1]) * (_factor(match[2]) if match[2] else 1.0) if match else np.nan
