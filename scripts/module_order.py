#!/usr/bin/env python3
"""Prints each use of a module that its order forbids, and nothing where all is in order.

    module_order.py [ORDERS [FORMS]]

ORDERS (scripts/module-order.txt) says what may use what. FORMS (scripts/module-forms.txt) is the test of this program: forms in which
source can name a module; those that are forbidden must be found, and the others must not.
"""

import os
import re
import sys

sys.dont_write_bytecode = True
from module_uses import Crate  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))


class Rules:
    """What a file of orders says about the modules of each crate."""

    def __init__(self, lines):
        self.crates = {}
        rules = names = None
        for line in lines:
            line = line.split("#")[0].strip()
            if not line:
                continue
            if line.startswith("["):
                kind, _, rest = line.strip("[]").partition(" ")
                names = []
                if kind == "crate":
                    rules = self.crates.setdefault(rest, [])
                elif kind in ("grants", "order", "apart", "acyclic"):
                    rules.append((kind, rest, names))
                else:
                    raise SystemExit(f"no rule of orders is: {line}")
            elif rules[-1][0] in ("grants", "apart"):
                name, _, may = line.partition(":")
                names.append((name.strip(), may.split()))
            else:
                names.extend(line.split())


def unit(path, folder):
    """The module of a folder in which another one lies: `mod` for the folder's own file; None for one outside."""
    if path[: len(folder)] != folder:
        return None
    return path[len(folder)] if len(path) > len(folder) else "mod"


def folder_of(place):
    return () if place == "." else tuple(place.split("::"))


def find(root, folder):
    for name in folder:
        root = root.children[name]
    return root


def said(mention):
    return f"{mention.file}:{mention.line} uses {'::'.join(mention.segments)}"


def within(uses, folder):
    """The uses among the modules of a folder."""
    for module, target, mention in uses:
        own, other = unit(module.path, folder), unit(target.path, folder)
        if own and other and own != other:
            yield own, other, mention


def forbidden_by_grants(root, uses, names):
    allowed = dict(names)
    for name in root.children:
        if name not in allowed:
            yield f"the folder {name} has no place in the order"
    for own, other, mention in within(uses, ()):
        if own != "mod" and other not in allowed.get(own, ()):
            yield f"{said(mention)}: {own} may use {' '.join(allowed.get(own, ())) or 'nothing of the other folders'}"


def forbidden_by_order(root, uses, place, names):
    folder = folder_of(place)
    rank = {name: index for index, name in enumerate(names)}
    for name in find(root, folder).children:
        if name not in rank and not find(root, folder).children[name].test:
            yield f"the module {name} of {place} has no place in the order"
    for name in names:
        if name != "mod" and name not in find(root, folder).children:
            yield f"the order of {place} has {name}, which is not there"
    for own, other, mention in within(uses, folder):
        if not mention.test and own in rank and rank.get(other, len(rank)) > rank[own]:
            yield f"{said(mention)}: {other} does not stand before {own}"


def forbidden_apart(root, uses, names):
    for place, others in names:
        own = folder_of(place)
        for other in [place, *others]:
            find(root, folder_of(other))
        for module, target, mention in uses:
            for other in others:
                below = target.path[: len(folder_of(other))] == folder_of(other)
                if not mention.test and module.path[: len(own)] == own and below:
                    yield f"{said(mention)}: {place} uses nothing of {other}"


def circles(uses, folder, own_file_counts=True):
    """The uses among the modules of a folder that are a part of some circle."""
    edges, where = {}, {}
    for own, other, mention in within(uses, folder):
        if not mention.test and (own_file_counts or "mod" not in (own, other)):
            edges.setdefault(own, set()).add(other)
            where.setdefault((own, other), mention)
    reached = {name: reachable(edges, name) for name in edges}
    for (own, other), mention in sorted(where.items(), key=lambda use: use[0]):
        if own in reached.get(other, ()):
            yield f"{said(mention)}: {own} and {other} of {'::'.join(folder) or 'the crate'} are in a circle"


def all_circles(root_modules, uses, exempt):
    """Those of all folders; in exempt ones the folder's own file does not count."""
    for module in root_modules:
        if not module.test:
            place = "::".join(module.path) or "."
            yield from circles(uses, module.path, place not in exempt)
            if place in exempt and not list(circles(uses, module.path)):
                yield f"the own file of {place} is in no circle, and need not be left out"


def reachable(edges, start):
    found, pending = set(), [start]
    while pending:
        for name in edges.get(pending.pop(), ()):
            if name not in found:
                found.add(name)
                pending.append(name)
    return found


def complaints(file, rules, overlay=None):
    crate = Crate(file, overlay)
    for where, line, why in crate.refused:
        yield f"{where}:{line} {why}"
    uses = list(crate.uses())
    for kind, place, names in rules:
        if kind == "grants":
            yield from forbidden_by_grants(crate.root, uses, names)
        elif kind == "order":
            yield from forbidden_by_order(crate.root, uses, place, names)
        elif kind == "apart":
            yield from forbidden_apart(crate.root, uses, names)
        elif kind == "acyclic":
            yield from all_circles(crate.modules(), uses, names)


class Forms:
    """A small crate, its orders, and forms that are put behind what its files have."""

    def __init__(self, path):
        self.path, self.crate, self.forms, orders = path, {}, [], []
        part = None
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                head = re.fullmatch(r"== (\w+) ?(.*)", line.strip())
                if head:
                    kind, parts = head.group(1), {}
                    if kind == "orders":
                        part = orders
                    elif kind == "crate":
                        parts = self.crate
                    else:
                        self.forms.append((f"{path}:{number}", kind, head.group(2), parts))
                elif line.startswith("-- "):
                    part = parts.setdefault(line[3:].strip(), [])
                elif part is not None:
                    part.append(line)
        self.rules = Rules(orders).crates

    def untrue(self):
        """Those that are not found and must be, or are found and must not be."""
        [(root, rules)] = self.rules.items()
        yield from (f"{self.path}: {complaint}" for complaint in complaints(root, rules, Overlay(self.crate)))
        for where, kind, name, parts in self.forms:
            added = {file: self.crate.get(file, []) + lines for file, lines in parts.items()}
            found = list(complaints(root, rules, Overlay({**self.crate, **added})))
            # Where something stands that others use, the complaint is about these.
            last = list(parts)[-1]
            is_found = any(complaint.startswith(last) or "no place" in complaint for complaint in found)
            if kind == "forbidden" and not is_found:
                yield f"{where} is not found: {name}"
            elif kind == "allowed":
                yield from (f"{where} is refused: {name}: {complaint}" for complaint in found)
            elif kind not in ("forbidden", "allowed"):
                yield f"{where} is neither forbidden nor allowed"


class Overlay(dict):
    """Files by their paths, as texts."""

    def __init__(self, files):
        super().__init__((file, "".join(lines)) for file, lines in files.items())


def unread_files(roots):
    """Sources in the folders of crates that none of them leads to: a macro may have made modules of them."""
    read = {file for root in roots for file in Crate(root).files}
    for folder in sorted({os.path.dirname(root) for root in roots}):
        for place, folders, names in os.walk(folder):
            # Programs and tests of a crate have roots of their own, and so have other crates.
            own = place == folder and os.path.exists(os.path.join(folder, "Cargo.toml"))
            folders[:] = [
                name
                for name in sorted(folders)
                if not os.path.exists(os.path.join(place, name, "Cargo.toml"))
                and not (own and name in ("bin", "tests", "benches", "examples", "target"))
            ]
            files = (os.path.join(place, name) for name in sorted(names) if name.endswith(".rs"))
            yield from (f"{file}: no module leads to it" for file in files if file not in read)


def main():
    with open(sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "module-order.txt"), encoding="utf-8") as file:
        orders = Rules(file)
    found = list(Forms(sys.argv[2] if len(sys.argv) > 2 else os.path.join(HERE, "module-forms.txt")).untrue())
    found += [text for file, rules in orders.crates.items() for text in complaints(file, rules)]
    found += unread_files(orders.crates)
    for text in dict.fromkeys(found):
        print(text)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
