"""README and docs/: links lead somewhere, the indexes name what exists, commands are accepted."""

import argparse
import itertools
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from snakemake.cli import get_argument_parser

from mmnet.cli import parser as mmnet_cli
from mmnet.config.load import check_params, load_params
from mmnet.config.tables import TABLES, experiments_of
from support.project import copy_project, planned, snakemake
from support.tiny import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text()
KNOWN_PROGRAMS = {".", "dvc", "git", "grep", "pip", "pytest", "torchrun"}
"""Programs other than make, snakemake and ours that a command may name."""

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def tokens(page: Path) -> list[Token]:
    """Return the tokens of a page, those inside paragraphs, headings and cells among them."""
    blocks = MarkdownIt().enable("table").parse(page.read_text())
    return [token for block in blocks for token in (block, *(block.children or []))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    parsed = MarkdownIt().parse(page.read_text())
    titles = [
        text.content for mark, text in itertools.pairwise(parsed) if mark.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def rows(page: Path, head: str) -> list[list[str]]:
    """Return the cells of the table whose first head cell is `head`."""
    tables = re.findall(r"(?:^\|.*\n)+", page.read_text(), flags=re.MULTILINE)
    (table,) = (table for table in tables if table.startswith(f"| {head} |"))
    lines = table.splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell: str) -> list[str]:
    """Return what a cell has in code marks."""
    return re.findall(r"`([^`]+)`", cell)


@by_page
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for token in tokens(page):
        target = token.attrGet("href" if token.type == "link_open" else "src")
        if token.type not in ("link_open", "image") or str(target).startswith("https://"):
            continue
        file, _, anchor = str(target).partition("#")
        found = (page.parent / file).resolve() if file else page
        assert found.exists(), target
        assert found.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(found), target


def test_readme_is_short_links_to_every_page_and_shows_one_picture() -> None:
    assert len(README.read_text().splitlines()) < 130
    found = tokens(README)
    links = {str(t.attrGet("href")).partition("#")[0] for t in found if t.type == "link_open"}
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= links
    assert sum(token.type == "image" for token in found) == 1


@by_page
def test_no_page_names_a_place_that_users_do_not_have(page: Path) -> None:
    assert not re.search(r"(?<!\w)/work/|\.\./shared|@@", page.read_text())


def test_readme_shows_every_package_and_folder() -> None:
    (tree,) = (t.content for t in tokens(README) if t.type == "fence" and t.info == "text")
    parent, shown = ROOT, set()
    for line in tree.splitlines():
        listed = re.split(r"  ", line.strip())[0]
        for name in listed.split(", "):
            path = (parent if line.startswith("  ") else ROOT) / name
            assert path.exists(), name
            shown.add(path)
            if not line.startswith("  "):
                parent = path
    packages = {path.parent for path in (ROOT / "mmnet").glob("*/__init__.py")}
    assert packages <= shown


def test_index_of_equations_names_files_and_tests_that_have_them() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    indexed: list[int] = []
    for numbers, files, named in rows(README, "Equation"):
        first, _, last = numbers.partition("-")
        code = "\n".join((ROOT / "mmnet" / file).read_text() for file in names(files))
        for number in range(int(first), int(last or first) + 1):
            indexed.append(number)
            assert re.search(rf"\bEq\. {number}\b", code), f"{files}: Eq. {number}"
            assert f"def test_eq{number}_" in tests, number
        for name in names(named):
            assert f"def {name.removesuffix('*')}" in tests, name
    assert indexed == list(range(1, 17))


def test_index_of_results_names_their_experiments_and_functions() -> None:
    params = load_params(ROOT / "params.yaml")
    index = {result: cells for result, *cells in rows(README, "Result")}
    for table in TABLES:
        experiments, rule, _ = index[table.replace("table", "Table ")]
        assert set(names(experiments)) == set(experiments_of(table, params))
        assert names(rule) == [f"write_{table}"]
    for experiments, _, functions in index.values():
        assert set(names(experiments)) <= set(params.experiments)
        for file, function in (name.split(": ") for name in names(functions)):
            assert f"def {function}(" in (ROOT / "mmnet" / file).read_text(), function


def test_architecture_names_modules_and_rules_that_exist() -> None:
    page = ROOT / "docs" / "architecture.md"
    packages = rows(page, "package")
    for package, _, modules in packages:
        for module in names(modules):
            assert (ROOT / names(package)[0] / f"{module}.py").is_file(), module
    listed = {names(package)[0].split("/")[1] for package, *_ in packages}
    assert listed == {path.parent.name for path in (ROOT / "mmnet").glob("*/__init__.py")}
    rules = "\n".join(path.read_text() for path in (ROOT / "workflow").rglob("*.smk"))
    for _, cell, *_ in rows(page, "step"):
        for rule in names(cell):
            is_named = re.search(rf"\brule {rule}:", rules) is not None
            assert is_named or rule.removeprefix("write_") in TABLES, rule


def subcommands() -> dict[str, argparse.ArgumentParser]:
    actions = mmnet_cli._parser()._actions
    (found,) = (a for a in actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def test_commands_md_lists_every_command_and_no_other() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    listed = re.findall(
        r"^\| `([\w-]+)[^`]*` \| [a-z]", text.partition("## Files")[0], re.MULTILINE
    )
    assert sorted(listed) == sorted(subcommands())


def test_yaml_shown_is_accepted_by_params_yaml() -> None:
    shown = [t.content for page in PAGES for t in tokens(page) if t.info == "yaml"]
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["profile"] = "paper"
    profile = values["profiles"]["paper"]
    for content in map(yaml.safe_load, shown):
        if "data" in content:
            profile["data"] |= content["data"]
        elif "refcocog" in content:
            profile["datasets"] |= content
        elif "processes" in content:
            profile["train"] |= content
        else:
            values["experiments"] |= content
    assert len(shown) == 4
    check_params(values)


@dataclass(frozen=True)
class Command:
    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def commands() -> list[Command]:
    """Return every command of a `sh` block, without what is assigned before it."""
    found = []
    for page in PAGES:
        for token in tokens(page):
            if token.type != "fence" or token.info != "sh":
                continue
            for line in token.content.replace("\\\n", " ").splitlines():
                lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
                lexer.whitespace_split = True
                words: list[str] = []
                for word in [*lexer, ";"]:
                    if not set(word) <= set("&|;"):
                        words.append(word)
                        continue
                    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                        words.pop(0)
                    if words:
                        found.append(Command(page.name, tuple(words)))
                    words = []
    return found


COMMANDS = commands()


def inline_commands() -> list[Command]:
    """Return what the text has in code marks and begins with one of our programs."""
    found = []
    for page in PAGES:
        for token in tokens(page):
            ours = re.match(r"(make|mmnet|python -m mmnet) [a-z]", token.content)
            if token.type == "code_inline" and ours and "=" not in token.content:
                found.append(Command(page.name, tuple(token.content.split())))
    return found


def make_problem(words: tuple[str, ...]) -> str:
    """Say what is wrong with a make command, or nothing."""
    for word in words[1:]:
        variable, assigned, _ = word.partition("=")
        pattern = rf"^(export )?{variable} [?:]?=" if assigned else rf"^{word}:"
        if not re.search(pattern, MAKEFILE, flags=re.MULTILINE):
            return word
    return ""


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_shown_is_accepted(command: Command) -> None:
    match command.words:
        case ("make", *_):
            assert not make_problem(command.words)
        case ("python", "-m", "mmnet", *arguments):
            parsed = mmnet_cli._parser().parse_args(arguments)
            if hasattr(parsed, "params"):  # commands that use a trained model need none
                params = load_params(ROOT / parsed.params, parsed.set)
                chosen = getattr(parsed, "experiment", None)
                assert chosen is None or chosen in params.experiments
        case ("python", script, *_):
            assert (ROOT / script).is_file()
        case ("snakemake", *arguments):
            get_argument_parser().parse_args(arguments)
        case (program, *_):
            assert program in KNOWN_PROGRAMS


def test_commands_named_in_the_text_exist() -> None:
    found = inline_commands()
    assert len(found) > 5
    for command in found:
        if command.words[0] == "make":
            assert not make_problem(command.words), command
        else:
            name = command.words[1 if command.words[0] == "mmnet" else 3]
            assert name in subcommands(), command


def test_snakemake_commands_can_be_planned(tmp_path: Path) -> None:
    """One dry run for each profile, of all targets shown; one with all other values shown."""
    plain, paper, others = (set[str](), set[str](), set[str]())
    values: list[str] = []
    for program, *arguments in (command.words for command in COMMANDS):
        if program != "snakemake":
            continue
        parsed = get_argument_parser().parse_args(arguments)
        if parsed.unlock or parsed.report:
            continue
        targets = parsed.targets or {"all"}
        if parsed.config in (None, ["profile=paper"]):
            (paper if parsed.config else plain).update(targets)
        else:
            values += parsed.config
            others.update(targets)
    assert plain
    assert paper
    assert others
    folder = copy_project(tmp_path, tiny=False)
    planned(snakemake(folder, "-n", "--config", "profile=paper", "--", *sorted(paper)))
    planned(snakemake(folder, "-n", "--config", *values, "--", *sorted(others)))
    jobs = planned(snakemake(folder, "-n", "--", *sorted(plain)))
    indexed = {rule for _, _, cell, _ in rows(README, "Result") for rule in names(cell)}
    assert indexed - {"write_readings"} <= set(jobs)  # `make readings` adds that one
