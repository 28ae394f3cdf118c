"""Tasks of an event loop share one model; a cancelled one frees its place: python examples/asynchronous.py [MODEL]"""

from __future__ import annotations

import asyncio
import sys

from exllama import AsyncGenerator, Generator

FRUITS = ["apple", "banana", "cherry", "lemon"]


async def ask(generator: AsyncGenerator, fruit: str) -> str:
    answer = await generator.chat([{"role": "user", "content": f"What colour is a {fruit}?"}], max_new_tokens=24)
    return f"{fruit}: {answer}"


async def main(source: str) -> None:
    async with AsyncGenerator(Generator.from_pretrained(source, cache_tokens=8192)) as generator:
        endless = asyncio.create_task(generator.generate("Once upon a time", max_new_tokens=None))
        for line in await asyncio.gather(*(ask(generator, fruit) for fruit in FRUITS)):
            print(line)
        endless.cancel()  # its pages are free before the next step
        async for chunk in generator.stream("The sky is", max_new_tokens=12):
            print(chunk.text, end="", flush=True)
        print()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "default"))
