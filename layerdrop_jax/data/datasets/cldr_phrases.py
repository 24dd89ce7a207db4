"""The phrases of the data set `cldr`: what to say is drawn once, and said in any locale.

A kind draws a date, an amount, a place, ... and returns a `Phrase`, a function from a locale to
text. All words and patterns are CLDR's, read by Babel.
"""

import dataclasses
import datetime
import decimal
import random
from collections.abc import Callable

import babel
from babel import dates, localedata, numbers, units

SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800}
NO_PLACES = ("QO", "XA", "XB", "ZZ")  # outlying, pseudo and unknown territories

# What says the same thing in any locale.
Phrase = Callable[[babel.Locale], str]


def fresh_locale(code: str) -> babel.Locale:
    """Loads a locale that shares no data with any other.

    Babel writes what it looks up through an alias into tables that all locales share, so that the
    first locale to ask decides what others say (French quarters in German). With a cache emptied
    before and after, each locale has tables of its own.

    Raises:
      ValueError: an unknown locale.
    """
    localedata._cache.clear()
    try:
        locale = babel.Locale.parse(code, sep="-" if "-" in code else "_")
        _ = locale.languages  # reads the tables
    except (babel.UnknownLocaleError, ValueError) as error:
        raise ValueError(
            f"unknown locale {code!r} for the cldr data set; pybabel --list-locales lists them"
        ) from error
    finally:
        localedata._cache.clear()
    return locale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inventory:
    """Codes that both locales have a name for, the more frequent ones first.

    A draw of a few dozen each: what is to be learned is how languages differ, not a gazetteer.
    """

    territories: list[str]
    languages: list[str]
    currencies: list[str]
    zones: list[str]
    units: list[str]

    @classmethod
    def shared(cls, first: babel.Locale, second: babel.Locale, *, seed: int) -> "Inventory":
        rng = random.Random(seed)

        def some(codes, count: int) -> list[str]:
            codes = sorted(codes)
            rng.shuffle(codes)
            return codes[:count]

        def named(table) -> set[str]:
            return set(table(first)) & set(table(second))

        territories = named(lambda it: it.territories)
        territories = {code for code in territories if code.isalpha() and code not in NO_PLACES}
        current = {
            currency
            for territory in territories
            for currency in numbers.get_territory_currencies(
                territory, datetime.date(2020, 1, 1), datetime.date(2020, 1, 1)
            )
        }
        languages = {code for code in named(lambda it: it.languages) if len(code) == 2}
        zones = {
            zone
            for zone in named(lambda it: it.meta_zones)
            if all("standard" in it.meta_zones[zone].get("long", ()) for it in (first, second))
        }
        sayable = {
            unit
            for unit in named(lambda it: it._data["unit_patterns"])
            if all(_pattern_length(unit, locale) for locale in (first, second))
        }
        return cls(
            territories=some(territories, 48),
            languages=some(languages, 32),
            currencies=some(current & named(lambda it: it.currencies), 24),
            zones=some(zones, 16),
            units=some(sayable, 32),
        )


def _some(rng: random.Random, codes: list[str]) -> str:
    """Draws a code, skewed as words are: half of the draws are of the first eighth of the codes."""
    return codes[int(len(codes) * rng.random() ** 3)]


def _number(rng: random.Random, digits: int, decimals: int = 0) -> decimal.Decimal:
    """Draws a number of 1 or more; each length, 1 to `digits` digits, is about as frequent.

    A fraction has no zeros at its end.
    """
    scale = 10**decimals
    value = decimal.Decimal(rng.randrange(scale, 10 ** rng.randint(1, digits) * scale)) / scale
    return value.to_integral() if value == value.to_integral() else value


def _day(rng: random.Random) -> datetime.date:
    return datetime.date(1990, 1, 1) + datetime.timedelta(days=rng.randrange(14_610))


def _moment(rng: random.Random) -> datetime.datetime:
    minutes = rng.choice((1, 5, 15, 30)) * rng.randrange(60)
    time = datetime.time(rng.randrange(24), minutes % 60, rng.randrange(60))
    return datetime.datetime.combine(_day(rng), time)


def date(rng: random.Random, inventory: Inventory) -> Phrase:
    day, form = _day(rng), rng.choice(("full", "full", "long", "medium", "yMMMM", "yMMMEd"))
    if form.startswith("y"):
        return lambda locale: dates.format_skeleton(form, day, locale=locale)
    return lambda locale: dates.format_date(day, form, locale=locale)


def time(rng: random.Random, inventory: Inventory) -> Phrase:
    moment, form = _moment(rng).time(), rng.choice(("short", "medium"))
    return lambda locale: dates.format_time(moment, form, locale=locale)


def date_and_time(rng: random.Random, inventory: Inventory) -> Phrase:
    moment, form = _moment(rng), rng.choice(("full", "long", "medium"))

    def phrase(locale):
        day = dates.format_date(moment, form, locale=locale)
        clock = dates.format_time(moment.time(), "short", locale=locale)
        return locale.datetime_formats[form].format(clock, day)

    return phrase


def days_from_to(rng: random.Random, inventory: Inventory) -> Phrase:
    first, form = _day(rng), rng.choice(("yMMMd", "yMMMd", "yMMMEd", "MMMd"))
    last = first + datetime.timedelta(days=rng.randint(1, rng.choice((6, 20, 300))))
    return lambda locale: dates.format_interval(first, last, form, locale=locale)


def quarter(rng: random.Random, inventory: Inventory) -> Phrase:
    day = _day(rng)
    return lambda locale: dates.format_skeleton("yQQQQ", day, locale=locale)


def relative_time(rng: random.Random, inventory: Inventory) -> Phrase:
    unit, count = rng.choice(list(SECONDS)), rng.randint(1, 60)
    delta = datetime.timedelta(seconds=SECONDS[unit] * count * rng.choice((-1, 1)))
    return lambda locale: dates.format_timedelta(
        delta, granularity=unit, threshold=1000, add_direction=True, locale=locale
    )


def duration(rng: random.Random, inventory: Inventory) -> Phrase:
    start = rng.randint(0, 2)
    parts = [
        (rng.randint(1, 59), f"duration-{unit}")
        for unit in ("week", "day", "hour", "minute", "second")[start : start + rng.randint(2, 3)]
    ]
    return lambda locale: _listed(
        [_measured(value, unit, locale) for value, unit in parts],
        "unit",
        locale,
    )


def amount(rng: random.Random, inventory: Inventory) -> Phrase:
    value, currency = _number(rng, 4, rng.choice((0, 0, 2))), _some(rng, inventory.currencies)
    form = rng.choice(("name", "name", "name", "standard"))
    return lambda locale: numbers.format_currency(
        value, currency, locale=locale, format_type=form, currency_digits=False
    )


def measure(rng: random.Random, inventory: Inventory) -> Phrase:
    value, unit = _number(rng, 3, rng.choice((0, 0, 1))), _some(rng, inventory.units)
    return lambda locale: _measured(value, unit, locale)


def _measured(value, unit: str, locale: babel.Locale) -> str:
    length = _pattern_length(unit, locale)
    if not length:  # Babel would put the code of the unit where its pattern is missing
        raise LookupError(f"no pattern for {unit} in {locale}")
    return units.format_unit(value, unit, length, locale=locale)


def _pattern_length(unit: str, locale: babel.Locale) -> str | None:
    patterns = locale._data["unit_patterns"][unit]
    for length in ("long", "short"):
        if "{0}" in patterns.get(length, {}).get("other", ""):
            return length
    return None


def share(rng: random.Random, inventory: Inventory) -> Phrase:
    value = _number(rng, 2, rng.choice((0, 1))) / 100
    return lambda locale: numbers.format_percent(value, locale=locale, decimal_quantization=False)


def large_number(rng: random.Random, inventory: Inventory) -> Phrase:
    value, decimals = _number(rng, 6) * 1000, rng.choice((0, 1))
    return lambda locale: numbers.format_compact_decimal(
        value, format_type="long", locale=locale, fraction_digits=decimals
    )


def name(rng: random.Random, inventory: Inventory) -> Phrase:
    table = rng.choice(("territories", "territories", "languages", "currencies"))
    code = _some(rng, getattr(inventory, table))
    return lambda locale: getattr(locale, table)[code]


def time_zone(rng: random.Random, inventory: Inventory) -> Phrase:
    zone = _some(rng, inventory.zones)
    return lambda locale: locale.meta_zones[zone]["long"]["standard"]


# Each draws what to say and returns how to say it in a locale.
KINDS = (
    date, time, date_and_time, days_from_to, quarter, relative_time, duration, amount, measure,
    share, large_number, name, name, name, time_zone,
)  # fmt: skip


def sentence(rng: random.Random, inventory: Inventory) -> Phrase:
    """Draws one to three phrases, one of which may have another in brackets, and joins them."""
    count = rng.choices((1, 2, 3), weights=(9, 8, 3))[0]
    kinds = [rng.choice(KINDS)] * count if rng.random() < 0.4 else rng.choices(KINDS, k=count)
    phrases = [kind(rng, inventory) for kind in kinds]
    if rng.random() < 0.1:
        place = rng.randrange(count)
        phrases[place] = _in_brackets(phrases[place], rng.choice(KINDS)(rng, inventory))
    if count == 1:
        return phrases[0]
    style = rng.choice(("standard", "standard", "or"))
    return lambda locale: _listed([phrase(locale) for phrase in phrases], style, locale)


def _in_brackets(outer: Phrase, inner: Phrase) -> Phrase:
    """Adds a phrase in brackets, "outer (inner)", as CLDR adds a place to a time zone."""
    return lambda locale: locale.zone_formats["fallback"] % {"1": outer(locale), "0": inner(locale)}


def _listed(items: list[str], style: str, locale: babel.Locale) -> str:
    """Joins items as Babel's `format_list`, but by the standard pattern where a style lacks one."""
    patterns = {**locale.list_patterns["standard"], **locale.list_patterns.get(style, {})}
    if len(items) == 2:
        return patterns["2"].format(*items)
    result = patterns["start"].format(items[0], items[1])
    for item in items[2:-1]:
        result = patterns["middle"].format(result, item)
    return patterns["end"].format(result, items[-1])
