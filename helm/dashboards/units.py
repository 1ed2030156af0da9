"""Numbers as Grafana writes them, for the units that the dashboards use."""

from collections.abc import Callable, Mapping

_THOUSANDS = ("", " K", " M", " G")
_BYTES = (" B", " KiB", " MiB", " GiB", " TiB")


def written(value: float, unit: str, decimals: int | None = None) -> str:
    return _WRITERS[unit](value, decimals)


def _plain(value: float, decimals: int | None) -> str:
    return _scaled(value, 1_000, _THOUSANDS, decimals)


def _bytes(value: float, decimals: int | None) -> str:
    return _scaled(value, 1_024, _BYTES, decimals)


def _share(value: float, decimals: int | None) -> str:
    return f"{_digits(100 * value, decimals)}%"


def _seconds(value: float, decimals: int | None) -> str:
    size = abs(value)
    if size == 0 or 1 <= size < 120:
        return f"{_digits(value, decimals)} s"
    if size < 0.001:
        return f"{_digits(1e6 * value, decimals)} µs"
    if size < 1:
        return f"{_digits(1e3 * value, decimals)} ms"
    for length, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if size >= length:
            return f"{_digits(value / length, 1 if decimals is None else decimals)} {name}"
    raise AssertionError(value)


def _scaled(value: float, factor: int, names: tuple[str, ...], decimals: int | None) -> str:
    power = 0
    while abs(value) >= factor and power < len(names) - 1:
        value, power = value / factor, power + 1
    return f"{_digits(value, decimals)}{names[power]}"


def _digits(value: float, decimals: int | None) -> str:
    if decimals is None:
        return f"{value:.3g}" if abs(value) < 1_000 else f"{value:.0f}"
    return f"{value:.{decimals}f}"


_WRITERS: Mapping[str, Callable[[float, int | None], str]] = {
    "none": _plain,
    "short": _plain,
    "bytes": _bytes,
    "percentunit": _share,
    "s": _seconds,
    "reqps": lambda value, decimals: f"{_plain(value, decimals)} req/s",
    "ops": lambda value, decimals: f"{_plain(value, decimals)}/s",
}
