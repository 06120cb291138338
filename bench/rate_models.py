"""What pricing tokens by a list of models' prices costs: CPU time and peak memory of rating usage rows of 40 models, by
genai-prices and by one flat price of the book; and what the columns for such prices add to segments of usage.

Rows are key and day: 500,000 keys (models x consumers x operations) on two stretches of days. The segment is a minute's
usage of 2,000 sets of dimensions without any model, once as it is and once without the columns.
"""

import argparse
import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from apicost.catalog import model_prices, prices
from apicost.core import prompts, records
from apicost.core.meter import meter
from apicost.core.rating import period, rate
from apicost.core.rating.usage_rows import gather
from tests.store.batches import SCOPES, many

HEAD = "pricebook: {id: bench, version: '1', currency: USD}\nskus:\n"
LIST = "  llm: {meter: tokens, unit: Tokens, prices: [{from: 2026-01-01, mode: external, source: genai-prices}]}\n"
FLAT = "  llm: {meter: tokens, unit: Tokens, prices: [{from: 2026-01-01, price: '0.000002'}]}\n"
MONTH = period.month("2026-10", "UTC")
LATER = [*records.QUANTA.values(), "calls_without_quanta", "llm_calls_without_tokens", prompts.KEY]


def models():
    """40 names that the list has a price for, some of them by the length of the prompt or by date."""
    from genai_prices.data import providers

    names = [m.id for p in providers if p.id in ("openai", "anthropic", "google") for m in p.models]
    book = prices.parse(HEAD + LIST)
    found = model_prices.resolve(book, names).models
    return [m.name for m in found if any(len(d.bands) == 2 for d in m.prices)][:40]


def usage(rows, names):
    """Usage of so many keys and two days each, with the columns that prices of tokens ask."""
    rng = np.random.default_rng(1)
    key = np.tile(np.arange(rows // 2), 2)
    start = np.repeat([MONTH.starts[2], MONTH.starts[20]], rows // 2)
    texts = {
        "llm_model": (key % len(names), names),
        "consumer": (key // len(names) % 3_000, [f"consumer-{i}" for i in range(3_000)]),
        "operation_id": (key // len(names) // 3_000, [f"operation{i}" for i in range(100)]),
        prompts.KEY: (rng.integers(0, len(prompts.CLASSES), len(key)), list(prompts.CLASSES)),
    }
    columns = {"minute_unix_s": pa.array(start)}
    columns |= {name: records.text(code.astype(np.int32), values) for name, (code, values) in texts.items()}
    tokens = rng.integers(1, 10**7, (2, len(key)))
    zeros = pa.array(np.zeros(len(key), np.int64))
    columns |= {c.name: zeros for c in records.USAGE_SUMS}
    columns |= {"llm_prompt_tokens": pa.array(tokens[0]), "llm_completion_tokens": pa.array(tokens[1])}
    return pa.table(columns)


def rated(rows, names, text):
    """CPU time and charges of one rating, gathering left out."""
    book = prices.parse(HEAD + text)
    book = replace(book, models=model_prices.resolve(book, names))
    needed = rate.sums_needed(book)
    found = prompts.with_parts(usage(rows, names), needed)
    lot = gather(found.drop_columns([prompts.KEY]), MONTH, book.price_changes(MONTH.days))
    began = time.process_time()
    statement = rate.rate_rows(lot, book, MONTH)
    return {"cpu_s": round(time.process_time() - began, 2), "charges": len(statement), "lines": len(statement.lines)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="usage rows (default: %(default)s)")
    parser.add_argument("--only", choices=("list", "flat"), help="rate by one of them alone, for its peak memory")
    options = parser.parse_args()
    began = time.process_time()
    names = models()
    figures = {"bench": "rate_models", "rows": options.rows, "models": len(names)}
    figures["list_opened_cpu_s"] = round(time.process_time() - began, 2)
    for name, text in (("list", LIST), ("flat", FLAT)):
        if options.only in (None, name):
            figures[name] = rated(options.rows, names, text)
    minute = meter(many(20_000, seconds=60), SCOPES)
    for name, table in (("segment_bytes", minute), ("segment_bytes_without_the_columns", minute.drop_columns(LATER))):
        sink = pa.BufferOutputStream()
        texts = [f.name for f in table.schema if pa.types.is_dictionary(f.type)]
        pq.write_table(table, sink, compression="zstd", compression_level=1, use_dictionary=texts)
        figures[name] = sink.getvalue().size
    figures["segment_rows"] = minute.num_rows
    figures["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
