#!/usr/bin/env python3
"""Writes expected.jsonl: what Python's jinja2, set up as transformers sets it up, makes of each template of a folder.

    make.py FOLDER > expected.jsonl
    make.py --expressions > expressions.jsonl
    make.py --show FOLDER/NAME.jinja CONVERSATION

Needs jinja2 (3.1.6 made the file). Of a text that was rendered the SHA-256 is kept, of a template that raises the word
"raises". The switches are those of `switches` in ../mod.rs.
"""

import datetime
import hashlib
import json
import pathlib
import sys

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent
TODAY = datetime.datetime(2024, 7, 26)
BOS, EOS = "<s>", "</s>"


class Generation(Extension):
    """Marks the assistant's part for training; here it is the part itself."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def environment():
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = TODAY.strftime
    return made


def switches(source, thinking):
    """What tells a template whether to think."""
    values = {"enable_thinking": thinking, "thinking": thinking}
    values["thinking_mode"] = "enabled" if thinking else "disabled"
    if not thinking:
        values["thinking_budget"] = 0
    quoted = lambda word: f"'{word}'" in source or f'"{word}"' in source
    if quoted("no_think"):
        values["reasoning_effort"] = "high" if thinking else "no_think"
    elif not thinking and "reasoning_effort" in source:
        efforts = ["none", "minimal", "low"]
        values["reasoning_effort"] = next((word for word in efforts if quoted(word)), "low")
    return values


def render(source, conversation, tools=None):
    return environment().from_string(source).render(
        messages=conversation["messages"],
        tools=tools,
        documents=tools,
        add_generation_prompt=conversation.get("add_generation_prompt", True),
        bos_token=BOS,
        eos_token=EOS,
        **switches(source, conversation.get("thinking", False)),
    )


def outcome(source, conversation):
    try:
        text = render(source, conversation)
    except jinja2.exceptions.TemplateError:
        return "raises"
    except TypeError:
        # Templates that are for tools only do not expect that there are none.
        text = render(source, conversation, [])
    return hashlib.sha256(text.encode()).hexdigest()


def main():
    conversations = json.loads((HERE / "conversations.json").read_text())
    if sys.argv[1] == "--expressions":
        for source in (HERE / "expressions.txt").read_text().splitlines():
            text = environment().from_string(source).render()
            print(json.dumps({"template": source, "text": text}, ensure_ascii=False))
        return
    if sys.argv[1] == "--show":
        source = pathlib.Path(sys.argv[2]).read_text()
        sys.stdout.write(render(source, conversations[sys.argv[3]]))
        return
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.jinja")):
        source = path.read_text()
        outcomes = {name: outcome(source, conversation) for name, conversation in conversations.items()}
        line = {"template": path.name, "sha256": hashlib.sha256(source.encode()).hexdigest()}
        print(json.dumps({**line, "outcomes": outcomes}))


main()
