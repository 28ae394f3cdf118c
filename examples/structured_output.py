"""An answer that is JSON of a schema, and one out of a list: python examples/structured_output.py [MODEL]

Needs the extra [grammar]: pip install exllama[grammar]
"""

from __future__ import annotations

import json
import sys

from exllama import Generator, Grammar, Job

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "country": {"type": "string", "maxLength": 30},
        "population": {"type": "integer", "minimum": 0, "maximum": 100_000_000},
    },
    "required": ["name", "country", "population"],
    "additionalProperties": False,
}


def main(source: str) -> None:
    with Generator.from_pretrained(source) as generator:
        encode = generator.tokenizer.encode_chat
        city = Job(
            encode([{"role": "user", "content": "Describe the city of Rome as JSON."}]), max_new_tokens=200,
            grammars=[Grammar.json_schema(SCHEMA)],
        )  # fmt: skip
        mood = Job(
            encode([{"role": "user", "content": "Is this review good or bad? 'I loved every minute.'"}]),
            grammars=[Grammar.choices(["good", "bad"])],
        )
        for job in (city, mood):
            generator.enqueue(job)
        while generator.active:
            generator.step()
        print(json.loads(city.text))
        print(mood.text)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "default")
