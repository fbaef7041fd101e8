"""Which modules of a crate use which: reads the Rust source as the compiler resolves paths, without its types.

A path counts wherever it stands: in a `use` with any braces, in an expression, in a macro, in the string of an attribute. It leads to
the module that defines what it names, through re-exports, imports under another name, `self`, `super` and globs.
"""

import os
import re
from dataclasses import dataclass, field

TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
    |(?P<comment>/\*)
    |(?P<raw>\b[bc]?r(?P<hashes>\#*)"(?:.|\n)*?"(?P=hashes))
    |(?P<string>\b[bc]"(?:\\(?:.|\n)|[^"\\])*"|"(?:\\(?:.|\n)|[^"\\])*")
    |(?P<char>\bb?'(?:\\(?:u\{[^}]*\}|x..|.)|[^'\\])'|'(?:\\(?:u\{[^}]*\}|x..|.)|[^'\\])')
    |(?P<lifetime>'[A-Za-z_]\w*)
    |(?P<ident>(?:r\#)?[A-Za-z_]\w*)
    |(?P<number>\d\w*)
    |(?P<colons>::)
    |(?P<other>.)""",
    re.X,
)
STRING_PATH = re.compile(r'r?#*"(?P<path>\w+(?:::(?:<[^"]*>|\w+))+)"#*')
KEYWORDS = {"crate", "self", "super"}
DEFINING = {"fn", "struct", "enum", "trait", "type", "const", "static", "union"}
ITEM = DEFINING | {"mod", "use", "impl", "unsafe", "extern", "async", "macro_rules"}
CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass
class Token:
    kind: str
    text: str
    line: int


@dataclass
class Mention:
    """A path in the source: its segments, and where it stands."""

    segments: tuple
    file: str
    line: int
    test: bool
    imported: str | None = None
    public: bool = False


@dataclass
class Module:
    path: tuple
    parent: "Module | None"
    children: dict = field(default_factory=dict)
    mentions: list = field(default_factory=list)
    imports: dict = field(default_factory=dict)
    globs: list = field(default_factory=list)
    items: set = field(default_factory=set)
    words: dict = field(default_factory=dict)
    impls: list = field(default_factory=list)
    calls: dict = field(default_factory=dict)
    file: str = ""
    test: bool = False

    def name(self):
        return "::".join(("crate",) + self.path)


def tokens(text):
    """The tokens of a source, without white space and comments."""
    found, place, line = [], 0, 1
    while place < len(text):
        match = TOKEN.match(text, place)
        kind, said, end = match.lastgroup, match.group(), match.end()
        kind = "raw" if kind == "hashes" else kind
        if kind == "comment":
            depth, end = 1, match.end()
            while depth and end < len(text):
                edge = re.compile(r"/\*|\*/").search(text, end)
                if edge is None:
                    end = len(text)
                    break
                depth += 1 if edge.group() == "/*" else -1
                end = edge.end()
            said = text[place:end]
        elif kind != "space":
            found.append(Token("string" if kind == "raw" else kind, said.removeprefix("r#") if kind == "ident" else said, line))
        line += said.count("\n")
        place = end
    return found


def unreadable(found):
    """Forms by which source can use a module without a path that stands in it: each with its line and the reason."""
    said = [token.text for token in found]
    for index, token in enumerate(found):
        behind = said[index + 1 :]
        if token.text == "macro_use":
            yield token.line, "imports macros without a path: name them where they are used"
        elif token.text == "include" and behind[:1] == ["!"]:
            # A file that the build script writes is generated from data, and names no modules.
            generated = ["(", "concat", "!", "(", "env", "!", "(", '"OUT_DIR"', ")", ","]
            if behind[1:11] != generated or ".." in "".join(behind[11:12]):
                yield token.line, "includes source as text: make it a module"
        elif token.text == "mod" and behind[:1] == ["$"]:
            yield token.line, "declares a module by a name that a macro is given"
        elif token.text == "$" and said[index - 1 : index] == ["::"] and said[index - 2] in KEYWORDS:
            yield token.line, "makes a path of what a macro is given"
        elif token.text == "cfg_attr" and "path" in behind[: behind.index("]") if "]" in behind else None]:
            yield token.line, "gives a module another file on a condition: put the condition on the module"


class Crate:
    """All modules that a crate's root file leads to. `overlay` has the text of files that are to be read in another form."""

    def __init__(self, root, overlay=None):
        self.overlay = overlay or {}
        self.refused = []
        self.files = {}
        self.root = Module((), None)
        self.read(root, self.root, os.path.dirname(root))

    def read(self, file, module, folder):
        text = self.overlay.get(file)
        if text is None:
            with open(file, encoding="utf-8") as source:
                text = source.read()
        self.files[file] = module
        module.file = module.file or file
        module.words.setdefault(file, {})
        found = tokens(text)
        self.refused += [(file, line, why) for line, why in unreadable(found)]
        Reader(self, file, found).module(module, folder)

    # The modules that define what a path names, seen from a module.
    def resolve(self, module, segments, seen=frozenset()):
        key = (module.path, segments)
        if key in seen or not segments:
            return []
        seen = seen | {key}
        first, rest = segments[0], segments[1:]
        if first == "crate":
            return self.walk(self.root, rest, seen)
        if first in ("self", "super"):
            place = module
            if first == "super":
                place = module.parent
            return self.walk(place, rest, seen) if place else []
        found = self.lookup(module, first, rest, seen)
        return found if found is not None else []

    def walk(self, module, segments, seen):
        while segments and segments[0] in ("self", "super"):
            module = module if segments[0] == "self" else module.parent
            segments = segments[1:]
            if module is None:
                return []
        if not segments or segments[0] == "*":
            return [module]
        found = self.lookup(module, segments[0], segments[1:], seen)
        return found if found is not None else [module]

    # The modules that a name in a module leads to; None where the module has no such name.
    def lookup(self, module, name, rest, seen):
        found = []
        if name in module.children:
            found += self.walk(module.children[name], rest, seen)
            if rest:
                return found
        for target in module.imports.get(name, ()):
            found += self.resolve(module, target + rest, seen)
        if found:
            return found
        if name in module.items:
            return [module]
        for target in module.globs:
            if (target, name, module.path) in seen:
                continue
            for other in self.resolve(module, target[:-1], seen):
                if other is not module:
                    inner = self.lookup(other, name, rest, seen | {(target, name, module.path)})
                    if inner is not None:
                        return inner
        return found if name in module.imports else None

    def modules(self):
        pending = [self.root]
        while pending:
            module = pending.pop()
            yield module
            pending.extend(module.children.values())

    def uses(self):
        """(module, module that it uses, mention), each of them; a re-export of what lies below the module is none by itself."""
        for module in self.modules():
            for mention in module.mentions:
                for target in self.resolve(module, mention.segments):
                    below = target.path[: len(module.path)] == module.path
                    if target is module or mention.segments[-1] in KEYWORDS:
                        continue
                    # To name a module around one's own is to use nothing of it yet.
                    if module.path[: len(target.path)] == target.path and self.names_module(module, mention, target):
                        continue
                    if mention.public and below and not self.uses_word(module, mention):
                        continue
                    yield module, target, mention
        yield from self.method_uses()

    def method_uses(self):
        """Uses without a path: calls of methods that a module implements for a type of another one, by the modules that name that type. A
        method is known by its name only."""
        naming = {}
        for module in self.modules():
            for mention in module.mentions:
                for target in self.resolve(module, mention.segments):
                    naming.setdefault(target.path, {})[module.path] = module
        for module in self.modules():
            for mention, methods in module.impls:
                for target in self.resolve(module, mention.segments):
                    for user in {target.path: target, **naming.get(target.path, {})}.values():
                        called = [(line, name) for name, line in user.calls.items() if name in methods and name not in user.items]
                        if user is not module and called and target is not module:
                            line, name = min(called)
                            yield user, module, Mention((name,), user.file, line, mention.test or user.test)

    def names_module(self, module, mention, target):
        return mention.segments[-1:] == target.path[-1:] and target.path[-1] not in target.items

    def uses_word(self, module, mention):
        return mention.imported in module.words[mention.file]


class Reader:
    """Reads the tokens of one file into a module."""

    def __init__(self, crate, file, stream):
        self.crate, self.file, self.stream, self.at = crate, file, stream, 0

    def text(self, offset=0):
        place = self.at + offset
        return self.stream[place].text if 0 <= place < len(self.stream) else ""

    def kind(self, offset=0):
        place = self.at + offset
        return self.stream[place].kind if 0 <= place < len(self.stream) else ""

    def refuse(self, why, line):
        self.crate.refused.append((self.file, line, why))

    def module(self, module, folder, end=None, test=False):
        """Until the end of the file, or to the brace that closes an inline module."""
        depth, limit, tests, path = 0, len(self.stream), [], None
        while self.at < limit:
            text, kind = self.text(), self.kind()
            in_test = test or module.test or any(self.at < until for until in tests)
            if text == "#" and (self.text(1) == "[" or self.text(1) == "!" and self.text(2) == "["):
                inner = self.text(1) == "!"
                attribute = self.attribute()
                said = "".join(token.text for token in attribute)
                if said.startswith("path="):
                    path = attribute[2].text.strip('"')
                if not inner and said in ("cfg(test)", "test", "bench"):
                    tests.append(self.item_end())
                for token in attribute:
                    path_said = STRING_PATH.fullmatch(token.text) if token.kind == "string" else None
                    if path_said:
                        segments = re.findall(r"\w+", re.sub(r"::<.*?>", "", path_said.group("path")))
                        self.mention(module, tuple(segments), token.line, in_test)
                continue
            if text == "mod" and kind == "ident" and self.kind(1) == "ident" and self.text(2) in (";", "{"):
                self.submodule(module, folder, path, in_test)
                path = None
                continue
            if text == "use" and kind == "ident" and self.text(1) != "<":
                self.use(module, in_test)
                continue
            if text == "extern" and self.text(1) == "crate" and self.text(2) == "self":
                self.refuse("names the crate anew", self.stream[self.at].line)
            if text == "{":
                depth += 1
            elif text == "}":
                depth -= 1
                if end and depth < 0:
                    self.at += 1
                    return
            if text == "impl" and kind == "ident" and self.text(-1) in ("", ";", "}", "{", "]", "unsafe"):
                implemented = self.inherent()
                if implemented:
                    mention = Mention(implemented, self.file, self.stream[self.at].line, in_test)
                    module.impls.append((mention, self.methods()))
            if kind == "ident":
                if text in DEFINING and self.kind(1) == "ident":
                    module.items.add(self.text(1))
                elif text == "macro_rules" and self.text(1) == "!":
                    module.items.add(self.text(2))
                if self.text(1) == "::" and self.text(-1) != "::" and (self.text(-1) != "." or self.text(-2) == "."):
                    self.chain(module, in_test)
                    continue
                module.words[self.file][text] = self.stream[self.at].line
                if self.text(-1) == "." and self.text(1) in ("(", "::") and not in_test:
                    module.calls.setdefault(text, self.stream[self.at].line)
            self.at += 1

    def attribute(self):
        """The tokens between the brackets of an attribute; goes behind it."""
        while self.text() != "[":
            self.at += 1
        start, depth = self.at + 1, 0
        while self.at < len(self.stream):
            depth += {"[": 1, "]": -1}.get(self.text(), 0) if self.kind() == "other" else 0
            self.at += 1
            if depth == 0:
                break
        return self.stream[start : self.at - 1]

    def item_end(self):
        """Where the item ends that begins here, after more attributes."""
        place, depth, first = self.at, 0, None
        while place < len(self.stream):
            token = self.stream[place]
            if token.text == "#" and first is None:
                reader = Reader(self.crate, self.file, self.stream)
                reader.at = place
                reader.attribute()
                place = reader.at
                continue
            if first is None and token.text == "pub":
                # A field may have a visibility, too: what stands behind it says whether it is an item.
                place += 1
                if place < len(self.stream) and self.stream[place].text == "(":
                    while place < len(self.stream) and self.stream[place].text != ")":
                        place += 1
                    place += 1
                continue
            first = first or token.text
            if token.kind == "other":
                if token.text in "([{":
                    depth += 1
                elif token.text in ")]}":
                    depth -= 1
                    if depth < 0:
                        return place
                    if depth == 0 and token.text == "}":
                        return place + 1
                elif depth == 0 and (token.text == ";" or token.text == "," and first not in ITEM):
                    return place + 1
            place += 1
        return place

    def inherent(self):
        """The path of the type whose inherent `impl` block begins here; None for that of a trait."""
        place, depth, segments = self.at + 1, 0, []
        while place < len(self.stream):
            token = self.stream[place]
            if token.text == "<":
                depth += 1
            elif token.text == ">" and self.stream[place - 1].text not in ("-", "="):
                depth -= 1
            elif depth == 0 and token.text == "for":
                return None
            elif depth == 0 and token.text in ("{", "where"):
                return tuple(segments)
            elif depth == 0 and token.kind == "ident":
                segments.append(token.text)
            place += 1
        return None

    def methods(self):
        """The functions of the block that begins here which other modules can call."""
        place, depth, found = self.at, 0, set()
        while place < len(self.stream):
            text = self.stream[place].text
            if text == "{":
                depth += 1
            elif text == "}":
                depth -= 1
                if depth == 0:
                    break
            elif text == "fn" and depth == 1:
                # Those that are private are called below the module only.
                before = place - 1
                while self.stream[before].text in ("const", "async", "unsafe"):
                    before -= 1
                if self.stream[before].text in ("pub", ")"):
                    found.add(self.stream[place + 1].text)
            place += 1
        return found

    def submodule(self, module, folder, path, test):
        name, inline = self.text(1), self.text(2) == "{"
        self.at += 3
        # A module that is declared twice, on conditions, is one of tests only if both declarations are.
        known = module.children.get(name)
        child = module.children.setdefault(name, Module(module.path + (name,), module))
        child.test = test and (known is None or known.test)
        inner = os.path.join(folder, name)
        if inline:
            child.words.setdefault(self.file, {})
            self.module(child, inner, end=True, test=test)
            return
        if path:
            file = os.path.join(os.path.dirname(self.file), path)
            self.crate.read(file, child, os.path.dirname(file))
            return
        for file in (inner + ".rs", os.path.join(inner, "mod.rs")):
            if file in self.crate.overlay or os.path.exists(file):
                self.crate.read(file, child, inner)
                return
        self.refuse(f"no file has the module {name}", self.stream[self.at - 1].line)

    def chain(self, module, test):
        line, segments = self.stream[self.at].line, [self.text()]
        if self.text(-1) == "$" and self.text() == "crate":
            segments = ["crate"]
        self.at += 1
        while self.text() == "::" and self.kind(1) == "ident":
            segments.append(self.text(1))
            self.at += 2
        module.words[self.file][segments[0]] = line
        self.mention(module, tuple(segments), line, test)

    def mention(self, module, segments, line, test, imported=None, public=False):
        module.mentions.append(Mention(segments, self.file, line, test, imported, public))

    def use(self, module, test):
        public = self.text(-1) == "pub" or self.text(-1) == ")"
        line = self.stream[self.at].line
        self.at += 1
        for segments, alias in self.tree(()):
            bare = [name for name in segments if name not in ("self", "super")]
            if bare in ([], ["crate"]):
                self.refuse("imports a folder above under a name: paths begin with crate, self or super", line)
                continue
            if bare in (["*"], ["crate", "*"]) and not test:
                self.refuse("imports all of a module around it: names are imported one by one", line)
            if segments[-1] == "self":
                segments = segments[:-1]
            imported = alias or segments[-1]
            if segments[-1] == "*":
                module.globs.append(segments)
            else:
                module.imports.setdefault(imported, []).append(segments)
            self.mention(module, segments, line, test, imported, public)

    def tree(self, prefix):
        """The paths of a tree of `use`, each with the name that it gets; stands behind it afterwards."""
        if self.text() == "::":
            self.at += 1
        while True:
            if self.text() == "{":
                self.at += 1
                while self.text() not in ("}", ""):
                    yield from self.tree(prefix)
                    if self.text() == ",":
                        self.at += 1
                self.at += 1
                return
            prefix += (self.text(),)
            self.at += 1
            if self.text() == "::":
                self.at += 1
                continue
            alias = None
            if self.text() == "as":
                alias = self.text(1)
                self.at += 2
            yield prefix, alias
            return
