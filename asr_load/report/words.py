"""Numbers and lines as text, shared by the console, the pages and the exports."""

from __future__ import annotations

from asr_load.results.steady import LEAST_FOR_TREND, Steadiness
from asr_load.results.summary import Summary
from asr_load.results.verdict import Client
from asr_load.text import count_of


def number(value: float | None, digits: int) -> str:
    """Format a number with this many decimals; n/a for None."""
    return "n/a" if value is None else f"{value:,.{digits}f}"


def ms(value: float | None) -> str:
    """Format seconds as milliseconds."""
    return number(None if value is None else value * 1e3, 1)


def percent(value: float | None) -> str:
    """Format a share as a percentage."""
    return "n/a" if value is None else f"{value:.1%}"


def clock(client: Client) -> str:
    """A worker's clock offset and its uncertainty, in ms."""
    if client.clock_error_s is None:
        return "unknown"
    # The offset is what the master adds to the worker's times, so the worker's clock is behind by it.
    return f"{-client.clock_offset_s * 1e3:+.1f} ± {client.clock_error_s * 1e3:.1f}"


def run_lines(metadata: dict[str, str]) -> list[str]:
    """The --metadata of a run as one line; empty without it."""
    return [f"Run: {', '.join(f'{key}={value}' for key, value in metadata.items())}"] if metadata else []


def rates_line(summary: Summary) -> str:
    """WER and CER, the more meaningful one first, with the normalizer; only for a run with references."""
    rates = {"wer": f"WER {summary.wer or 0:.1%}", "cer": f"CER {summary.cer or 0:.1%}"}
    first = rates.pop(summary.rate)
    why = "" if summary.rate == "wer" else " (CER first: this language is written without spaces between words)"
    over = f"over {count_of(summary.references, 'transcript')} (normalizer: {summary.normalizer})"
    return f"{first}, {' '.join(rates.values())}{why} {over}{_variants(summary)}"


def normalizer_words(summary: Summary) -> str:
    """The normalizer and its variants for the run's languages."""
    return f"{summary.normalizer}{_variants(summary)}"


def _variants(summary: Summary) -> str:
    """The normalizer's variants that were applied, with the number of transcripts for each if there are several."""
    several = len(summary.normalizer_variants) > 1
    names = [f"{name} ({count:,})" if several else name for name, count in summary.normalizer_variants.items()]
    return f"; variant{'s' * several}: {', '.join(names)}" if names else ""


def steadiness_line(trend: Steadiness) -> str:
    """Describe the trend."""
    if trend.verdict == "interrupted":
        return f"Steady: no, {trend.why}"
    if trend.verdict == "not judged":
        return f"Steady: not judged ({trend.why})"
    if trend.growth_s is None:
        return f"Steady: unknown (fewer than {LEAST_FOR_TREND} successful requests)"
    match trend.verdict:
        case "rising":
            return f"Steady: no, latency rose by {trend.growth_s:.2f} s over the run: the load or a queue grew"
        case "falling":
            fell = f"latency fell by {-trend.growth_s:.2f} s over the run"
            return f"Steady: no, {fell}: exclude the start (--warmup-time)"
    return "Steady: yes, no trend in latency over the run"


def cost_lines(summary: Summary, at: str = "at this load") -> list[str]:
    """What the server costs, and the energy of its GPUs; empty if neither is known."""
    lines = []
    if (cost := summary.cost) is not None:
        unit = cost.currency
        amounts = [
            f"{number(cost.per_audio_hour, 4)} {unit} per audio hour",
            f"{number(cost.per_1000_minutes, 2)} {unit} per 1,000 minutes",
        ]
        if cost.streams_per_unit is not None:
            amounts.append(f"{cost.streams_per_unit:.3g} streams per {unit} an hour")
        lines.append(f"Cost {at}: {', '.join(amounts)} (the server costs {cost.price:g} {unit} an hour)")
    if summary.joules_per_audio_hour is not None:
        lines.append(f"Energy {at}: {number(summary.joules_per_audio_hour, 0)} J per audio hour")
    return lines
