"""A receiver alone in a process, for benchmarks and crash tests: FOLDER [PORT]; prints its port when ready."""

import asyncio
import sys
from pathlib import Path

from apicost import memory

memory.tame()  # as the daemon does, before anything else is loaded

from aiohttp import web  # noqa: E402

from apicost.ingest import receiver  # noqa: E402
from apicost.ingest.spool import Spool  # noqa: E402

TOKEN = "benchmark-token-0123456789"


async def main(folder: Path, port: int, consume_s: float) -> None:
    """Serve until killed; with `consume_s`, segments are read and dropped every so often as a step would."""
    spool = Spool.open(folder)
    options = receiver.Options(token=TOKEN, max_batches_per_s=100_000)
    runner = receiver.make_runner(receiver.make_app(options, spool))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(runner.addresses[0][1], flush=True)
    while True:
        await asyncio.sleep(consume_s or 3_600)
        if consume_s:
            spool.drop(spool.sealed())


if __name__ == "__main__":
    asyncio.run(
        main(
            Path(sys.argv[1]),
            int(sys.argv[2]) if len(sys.argv) > 2 else 0,
            float(sys.argv[3]) if len(sys.argv) > 3 else 0.0,
        )
    )
