"""Checks ARCHITECTURE.md against the code, and prints how large the code is.

    python docs/architecture.py             # exit status 1 if the page is not true
    python docs/architecture.py REVISION    # with the lines of code of that revision beside
    python docs/architecture.py --write     # makes the list under «Every file» again, from the files' own first sentences

Checked: «Every file» is what the files say of themselves; the arrows of the picture are imports, and lead to whatever a room
imports; each walk has at most eight files, defines the functions it names, and an import leads between each of its files and
another one, or both name the same route or file of the run. At most twelve modules stand at top level.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / "ARCHITECTURE.md"
PAGE = FILE.read_text(encoding="utf-8")
LONGEST_WALK, MOST_MODULES = 8, 12
MEETING = (
    r"`(/\w+|\w+\.safetensors)`"  # a route, or a file of the run, that two files of a walk share instead of an import
)
CODE = (
    ("Python", "vitrine", (".py",)),
    ("tests", "tests", (".py",)),
    ("TypeScript and Svelte", "web/src", (".ts", ".svelte")),
)


def main() -> int:
    """Print what is wrong, then the figures."""
    if sys.argv[1:] == ["--write"]:
        FILE.write_text(PAGE.partition("\n## Every file\n")[0] + "\n## Every file\n" + every_file(), encoding="utf-8")
        return 0
    problems = [*wrong_files(), *wrong_arrows(), *wrong_walks()]
    modules = sorted(file.stem for file in (ROOT / "vitrine").glob("*.py"))
    if len(modules) > MOST_MODULES:
        problems.append(f"{len(modules)} modules at top level: at most {MOST_MODULES}.")
    print(*problems, sep="\n", end="\n" if problems else "")
    print(f"modules at top level: {len(modules)} ({', '.join(modules)})")
    print(f"rooms: {', '.join(rooms())}")
    print(contracts())
    for title, files in walks().items():
        print(f"{title.lower()}: {len(files)} files: {', '.join(files)}")
    for kind, folder, endings in CODE:
        before = f", at {sys.argv[1]} {lines_at(sys.argv[1], folder, endings):,}" if sys.argv[1:] else ""
        print(f"lines of {kind}: {lines(folder, endings):,}{before}")
    return int(bool(problems))


def contracts() -> str:
    """What import-linter says at its end: how many contracts of pyproject.toml are kept."""
    linter = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    said = subprocess.run(linter, cwd=ROOT, capture_output=True, text=True).stdout
    return next((line for line in said.splitlines() if line.startswith("Contracts:")), said)


def python_files() -> list[str]:
    """Every module of the package, by its path below vitrine/. The `__init__` of a room only names it."""
    files = (file.relative_to(ROOT / "vitrine").as_posix() for file in (ROOT / "vitrine").rglob("*.py"))
    return sorted(file for file in files if not file.endswith("/__init__.py"))


def page_files() -> list[str]:
    """Every source file of the page, by its path below web/src/."""
    folder = ROOT / "web/src"
    found = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.suffix in (".ts", ".svelte"))
    return sorted(file for file in found if not file.endswith(".d.ts"))


def rooms() -> list[str]:
    """The packages inside the package."""
    return sorted(file.parent.name for file in (ROOT / "vitrine").glob("*/__init__.py"))


def every_file() -> str:
    """A table for each room, with the first sentence that each file says of itself."""
    tables: dict[str, list[str]] = {}
    for file in python_files():
        tables.setdefault(f"`vitrine/{file.rpartition('/')[0]}`".replace("/`", "`"), []).append(file)
    for file in page_files():
        tables.setdefault(f"`web/src/{file.rpartition('/')[0]}`".replace("/`", "`"), []).append(file)
    rows = (
        [f"\n### {room}", *(f"- `{file.rpartition('/')[2]}`: {sentence(file)}" for file in files)]
        for room, files in sorted(tables.items())
    )
    return "\n".join(line for room in rows for line in room) + "\n"


def sentence(file: str) -> str:
    """The first sentence of a module's docstring, or of the comment that a file of the page begins with."""
    text = where(file).read_text(encoding="utf-8")
    if file.endswith(".py"):
        said = ast.get_docstring(ast.parse(text)) or ""
    else:
        comment = re.match(r"/\*\*(.*?)\*/|<!--\s*@component(.*?)-->", text, re.S)
        said = re.sub(r"^\s*\*? ?", "", (comment[1] or comment[2]) if comment else "", flags=re.M)
    paragraph = " ".join(said.strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.?!»]) (?=[A-Z])", paragraph)[0]


def wrong_files() -> Iterator[str]:
    """Whether the list is what the files say now."""
    yield from (
        f"{file} does not say what it is in its first line."
        for file in [*python_files(), *page_files()]
        if not sentence(file)
    )
    if section("Every file") != every_file():
        yield "«Every file» is not what the files say of themselves now: python docs/architecture.py --write."


def wrong_arrows() -> Iterator[str]:
    """Arrows of the picture that are no imports. It shows the order of the rooms, so that some imports skip a room."""
    drawn = set(re.findall(r"^ +(\w+) --> (\w+)$", section("Rooms"), re.M))
    real = {
        (home(file), home(other)) for file in python_files() for other in imports(file) if home(file) != home(other)
    }
    yield from (f"The picture has an arrow {a} --> {b}; no import goes there." for a, b in sorted(drawn - real))
    reached = {room: closure(room, drawn) for room, _ in real}
    yield from (
        f"{a} imports {b}; the arrows of the picture do not lead there."
        for a, b in sorted(real)
        if b not in reached[a] and "__" not in a and b not in ("errors", "_files", "_json")
    )


def closure(start: str, arrows: set[tuple[str, str]]) -> set[str]:
    """Everything that arrows lead to from here."""
    found: set[str] = set()
    ahead = [start]
    while ahead:
        here = ahead.pop()
        for a, b in arrows:
            if a == here and b not in found:
                found.add(b)
                ahead.append(b)
    return found


def walks() -> dict[str, list[str]]:
    """The files of each walk, in order."""
    parts = re.split(r"^### ", section("Three walks"), flags=re.M)[1:]
    return {part.splitlines()[0]: re.findall(r"^\d\. `([\w/.]+)`", part, re.M) for part in parts}


def wrong_walks() -> Iterator[str]:
    """What is not true in the walks."""
    for title, files in walks().items():
        if not 0 < len(files) <= LONGEST_WALK:
            yield f"{title}: {len(files)} files; at most {LONGEST_WALK}."
        if missing := [file for file in files if not where(file).is_file()]:
            yield f"{title}: there is no {', '.join(missing)}."
            continue
        text = section("Three walks").split(f"### {title}\n")[1].split("\n### ")[0]
        for file, said in lines_of(text):
            source = where(file).read_text(encoding="utf-8")
            for name in re.findall(r"`(\w+)\(\)`", said):
                if not re.search(rf"\b(def|class|function|const) {name}\b", source):
                    yield f"{title}: {file} does not define {name}."
        meeting = {file: set(re.findall(MEETING, said)) for file, said in lines_of(text)}
        for file in files:
            source = where(file).read_text(encoding="utf-8")
            yield from (f"{title}: {file} does not know {at}." for at in meeting[file] if at not in source)
            others = [other for other in files if other != file]
            if not any(linked(file, other) or meeting[file] & meeting[other] for other in others):
                yield f"{title}: no import leads between {file} and another file of the walk."


def linked(one: str, other: str) -> bool:
    """Whether one of two files imports the other."""
    return other in neighbours(one) or one in neighbours(other)


def lines_of(text: str) -> list[tuple[str, str]]:
    """Each file of a walk, with what is said of it."""
    return re.findall(r"^\d\. `([\w/.]+)`(.*(?:\n   .*)*)", text, re.M)


def where(file: str) -> Path:
    """A file of a walk on the disk."""
    return ROOT / ("web/src" if file.endswith((".ts", ".svelte")) else "vitrine") / file


def neighbours(file: str) -> set[str]:
    """The files that a file imports."""
    if file.endswith(".py"):
        return set(imports(file))
    folder, found = where(file).parent, set()
    for path in re.findall(r"from '(\.[^']+)'", where(file).read_text(encoding="utf-8")):
        target = (folder / path).resolve()
        for candidate in (target, target.with_name(target.name + ".ts")):
            if candidate.is_file():
                found.add(candidate.relative_to(ROOT / "web/src").as_posix())
    return found


def imports(file: str) -> Iterator[str]:
    """The modules of the package that a module imports when it runs, as files."""
    tree = ast.parse((ROOT / "vitrine" / file).read_text(encoding="utf-8"))
    branches = (
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    only_types = {node for branch in branches for node in ast.walk(branch)}
    for node in ast.walk(tree):
        if node not in only_types and isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vitrine"):
            base = (node.module or "").removeprefix("vitrine").strip(".").replace(".", "/")
            for name in (alias.name for alias in node.names):
                for candidate in (f"{base}/{name}.py".lstrip("/"), f"{base}.py"):
                    if (ROOT / "vitrine" / candidate).is_file():
                        yield candidate
                        break


def home(file: str) -> str:
    """The room of a file; of a module at top level its own name."""
    return file.split("/")[0].removesuffix(".py")


def section(title: str) -> str:
    """The text below a heading of the page."""
    return re.split(r"^## ", PAGE.split(f"\n## {title}\n", 1)[1], maxsplit=1, flags=re.M)[0]


def lines(folder: str, endings: tuple[str, ...]) -> int:
    """Lines of all files below a folder, as `wc -l` counts them."""
    files = (file for file in (ROOT / folder).rglob("*") if file.suffix in endings and not file.name.endswith(".d.ts"))
    return sum(file.read_text(encoding="utf-8").count("\n") for file in files)


def lines_at(revision: str, folder: str, endings: tuple[str, ...]) -> int:
    """The same in a revision."""
    command = ["git", "ls-tree", "-r", "--name-only", revision, folder]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    kept = [name for name in names if name.endswith(endings) and not name.endswith(".d.ts")]
    show = ["git", "show", *(f"{revision}:{name}" for name in kept)]
    return subprocess.run(show, cwd=ROOT, capture_output=True, text=True, check=True).stdout.count("\n")


if __name__ == "__main__":
    sys.exit(main())
