"""What can be said about a documented command without starting it."""

import re
import shlex
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import typer
import yaml

from dist_train.config import RunConfig, load_config
from launch.cli import app
from tests.docs.pages import ROOT, strip_comments

_BEFORE = re.compile(r"\w+=.*|do|then|else|exec|time|nohup|!|\{|\(")  # words that may stand before a command
_WRAPPERS = {"srun", "timeout", "nice"}  # take options, and then a command


class WrongPageError(AssertionError):
    """A page says something that the program does not do."""


def commands(text):
    """The commands of shell text, as words: pipes, lists and redirections taken apart."""
    for line in strip_comments(text.replace("\\\n", " ")).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        lexer.commenters = ""
        try:
            words = list(lexer)
        except ValueError:  # a quotation over several lines
            continue
        command = []
        for word in [*words, ";"]:
            if not set(word) <= set("|&;<>"):
                command.append(word)
            elif command:
                yield command
                command = []


def named(command, program):
    """The words after `program` where `command` starts it; None elsewhere."""
    for place, word in enumerate(command):
        if word.rpartition("/")[2] == program:
            return command[place + 1 :]
        if not _BEFORE.fullmatch(word) and command[0] not in _WRAPPERS:
            break
    return None


def check_shell(text, made=()):
    """Check every `headcount` and `make` of shell text.

    Args:
        text: the lines.
        made: names of recipes that the page itself made before.

    Raises:
        WrongPageError: one does not exist, or not so.
    """
    for command in commands(text):
        arguments = named(command, "headcount")
        if "-m launch" in " ".join(command):  # as torchrun and srun start it
            arguments = command[command.index("launch", command.index("-m")) + 1 :]
        if arguments is not None:
            check_headcount(arguments, made)
        targets = named(command, "make")
        if targets is not None:
            check_make(targets)


def check_headcount(arguments, made=()):
    """Parse the words after `headcount` as the program would, and validate recipe and overrides."""
    words = " ".join(["headcount", *arguments])
    command, rest, context = typer.main.get_command(app), list(arguments), None
    name = "headcount"
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        context = command.context_class(command, info_name=name, parent=context)
        name = rest.pop(0)
        if name not in command.commands:
            raise WrongPageError(f"{words}: no command {name!r}; there are {', '.join(command.commands)}")
        command = command.commands[name]
    try:
        with ExitStack() as stack:
            for holder in filter(None, map(_path_rules, command.params)):
                stack.enter_context(mock.patch.object(holder, "exists", False))
            parsed = command.make_context(name, rest, parent=context)
    except typer.Exit:  # --help, --version
        return
    except Exception as error:
        if not hasattr(error, "format_message"):  # of click, which some versions of typer have a copy of
            raise
        raise WrongPageError(f"{words}: {error.format_message()}") from error
    recipe = parsed.params.get("config")
    if recipe is not None and str(recipe) not in made:
        _check_recipe(words, recipe, parsed.params.get("overrides") or [])


def _path_rules(parameter):
    """What holds a parameter's `exists=True`, which is not asked of a page: photos and sets are the user's."""
    descriptor = getattr(parameter, "type_descriptor", None)  # newer versions of typer
    holder = descriptor.parameter_info if descriptor else getattr(parameter, "type", None)
    return holder if getattr(holder, "exists", False) else None


def _check_recipe(words, recipe, overrides):
    if recipe.parts[0] == "configs" and not (ROOT / recipe).is_file():
        raise WrongPageError(f"{words}: no recipe {recipe}")
    with tempfile.TemporaryDirectory() as folder:
        path = ROOT / recipe
        if recipe.parts[0] != "configs":  # the reader's own: only the overrides can be judged
            path = Path(folder) / recipe.name
            length = "steps" if any(word.startswith("train.steps=") for word in overrides) else "epochs"
            path.write_text(f"{{run_dir: runs/own, data: {{path: data/own}}, train: {{{length}: 1}}}}")
        try:
            load_config(path, overrides)
        except ValueError as error:
            raise WrongPageError(f"{words}: {error}") from error


def check_make(words):
    targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text()))
    for word in words:
        if "=" not in word and not word.startswith("-") and word not in targets:
            raise WrongPageError(f"make {' '.join(words)}: no target {word}")


def check_syntax(text):
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WrongPageError(f"bash does not read this: {done.stderr}")


def check_recipe_part(text):
    """Validate a part of a recipe: what it leaves out, and must be there, is filled in."""
    tree = yaml.safe_load(text)
    tree.setdefault("run_dir", "runs/docs")
    tree.setdefault("data", {}).setdefault("path", "data/docs")
    train = tree.setdefault("train", {})
    if not {"epochs", "steps"} & set(train):
        train["steps"] = 1
    try:
        RunConfig.model_validate(tree)
    except ValueError as error:
        raise WrongPageError(str(error)) from error


def recipes_made(text):
    """Names of files that shell text writes: by redirection, cp or mv."""
    return set(re.findall(r">\s*([\w./-]+)", text)) | set(re.findall(r"(?m)^(?:cp|mv) .*?([\w./-]+)\s*$", text))
