"""The `gampen-ray` command: one verb per job, configured by a TOML file and by flags named after its fields."""

import argparse
import contextlib
import dataclasses
import difflib
import logging
import os
import sys
import textwrap
import time
import tomllib
import traceback
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from gampen_ray import __version__
from gampen_ray.commands.registry import Verb, kind, load_verbs
from gampen_ray.config.base import shown, to_dict, upgraded
from gampen_ray.config.leaves import Leaf, sections
from gampen_ray.config.template import template
from gampen_ray.dry_run import DryRun, dry_run
from gampen_ray.errors import MissingError, StartError, StorageError, UserError
from gampen_ray.messages import printable
from gampen_ray.progress import ERASE, Phase

_PROGRAM = "gampen-ray"
_CONFIG = "config"
_SWITCHES: dict[str, str] = {
    "verbose": "also show Ray's own log and progress",
    "quiet": "show warnings, errors and results alone",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns
    -------
    int
        0 on success, 2 for a user's mistake, such as unreachable storage, 1 for any other failure. A mistake or a storage
        failure is reported in one line on standard error.
    """
    _log_to_stderr()
    try:
        given = sys.argv[1:] if arguments is None else arguments
        verb, config = parse(given or ["--help"])
        with Phase(given[0], announced=False):
            made = verb.run(config)
        if command := verb.following(to_dict(config), made):
            logging.getLogger(__name__).info("next: %s", command)
    except DryRun as plan:
        sys.stdout.write(f"{printable(str(plan), lines=True)}\n")
    except (UserError, StorageError, StartError) as error:
        sys.stderr.write(f"{_PROGRAM}: error: {printable(str(error))}\n")
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{_PROGRAM}: interrupted; run the same command again to resume\n")
        return 1
    except Exception:
        sys.stderr.write(printable(traceback.format_exc(), lines=True))
        return 1
    return 0


def run_job(verb: str) -> NoReturn:
    """Run a verb with the program's arguments, and exit."""
    sys.exit(main([verb, *sys.argv[1:]]))


def parse(arguments: Sequence[str]) -> tuple[Verb, Any]:
    """Return the verb and its config.

    Raises
    ------
    UserError
        For an unknown verb or flag, or an invalid value.
    SystemExit
        After ``--help``, ``--version``, ``--completion`` and ``--print-config``.
    """
    verbs = load_verbs()
    # The verb itself has the flags and the file.
    if arguments[:1] == [_CONFIG]:
        arguments = [*arguments[1:], f"--print-{_CONFIG}"]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in verbs:
        close = _close(arguments[0], verbs)
        raise UserError(f"{arguments[0]}: unknown verb; {close}`{_PROGRAM} --help` lists the valid ones")
    if not {*verbs, "-h", "--help", "--version", "--completion"}.intersection(arguments):
        raise UserError(f"{' '.join(arguments)}: no verb; begin with one of those that `{_PROGRAM} --help` lists")
    parsed, unknown = _parser(arguments).parse_known_args(list(arguments))
    flags = vars(parsed)
    name = flags.pop("verb")
    verb = verbs[name]
    if flags.pop("verbose"):
        os.environ["GAMPEN_RAY_VERBOSE"] = "1"
    printed, dry = flags.pop("print_config"), flags.pop("dry_run", False)
    if flags.pop("quiet"):
        logging.getLogger("gampen_ray").setLevel(logging.WARNING)
    if unknown:
        raise UserError(_unknown_flag(unknown[0], name, verb))
    file = flags.pop("config") or ""
    if file and verb.positional and not file.endswith(".toml"):
        if flags[verb.positional] is not None:
            raise UserError(f"{verb.positional}: given twice, {file} and {flags[verb.positional]}; give one")
        flags[verb.positional], file = file, ""
    values: dict[str, Any] = {}
    for field, text in flags.items():
        if text is not None:
            _set(values, field, _value(text, verb.leaves[field].annotation))
    if printed:
        # What is missing is filled in later.
        with contextlib.suppress(MissingError):
            verb.configured(values, file)
        sys.stdout.write(template(verb.config, verb.merged(values, file)))
        raise SystemExit(0)
    config = verb.configured(values, file)
    return dataclasses.replace(verb, function=dry_run(verb.function)) if dry else verb, config


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


class _Completion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        # `exit` would print it on standard error, which `source <(...)` does not read.
        sys.stdout.write(completion())
        parser.exit(0)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    text = "Bayesian posteriors of galaxy structural parameters, at any scale."
    more = f"`{_PROGRAM} {_CONFIG} VERB` prints a TOML file with all fields of a verb."
    parser = _Parser(prog=_PROGRAM, description=text, epilog=more, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    text = f"print a bash completion script for verbs and flags: source <({_PROGRAM} --completion bash)"
    parser.add_argument("--completion", choices=["bash"], action=_Completion, help=text)
    _add_switches(parser, default=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in load_verbs().items():
        text = verb.config.__doc__ or ""
        sub = verbs.add_parser(
            name,
            help=" ".join(text.partition("\n\n")[0].split()),
            description=textwrap.fill(text, 100) + "\n\nFlags override the fields of the TOML file.",
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=112),
            allow_abbrev=False,
        )
        # Only the verb that runs needs its many flags.
        if name in arguments:
            _add_flags(sub, verb)
    return parser


def _add_flags(parser: argparse.ArgumentParser, verb: Verb) -> None:
    metavar = "CONFIG.toml"
    meaning = 'TOML file with the fields below; with extends = "OTHER.toml", it overrides those of another file'
    if verb.positional:
        metavar, meaning = f"{verb.positional.upper()} | {metavar}", f"the field {verb.positional}, or a {meaning}"
    parser.add_argument("config", nargs="?", metavar=metavar, help=meaning)
    # Without a default, which would undo the flag before the verb.
    _add_switches(parser, default=argparse.SUPPRESS)
    text = f"print a TOML file with all fields, of which the given ones are set; the same as `{_PROGRAM} {_CONFIG} VERB`"
    parser.add_argument("--print-config", action="store_true", help=text)
    if verb.has_dry_run:
        text = "check everything, print what would be read and written, and do nothing"
        parser.add_argument("--dry-run", action="store_true", help=text)
    parser.usage = _usage(parser.prog, verb)
    for title, text, leaves in _groups(verb):
        if not leaves:
            continue
        group = parser.add_argument_group(title, text.replace("%", "%%"))
        for leaf in leaves:
            default = "required" if leaf.required else f"default: {shown(leaf.default)}"
            help_text = f"{leaf.description} [{default}]".replace("\n", " ").replace("%", "%%")
            # A boolean flag without a value is true.
            optional: dict[str, Any] = {"nargs": "?", "const": "true"} if leaf.annotation is bool else {}
            spellings = dict.fromkeys([_flag(leaf.name), f"--{leaf.name}"])
            group.add_argument(*spellings, dest=leaf.name, metavar=kind(leaf.annotation), help=help_text, **optional)


def _groups(verb: Verb) -> Iterator[tuple[str, str, list[Leaf]]]:
    """Yield title, documentation and fields of the groups of help: what is required first, what few need last."""
    advanced: list[Leaf] = []
    for section, text, leaves in sections(verb.config):
        usual = [leaf for leaf in leaves if not leaf.advanced]
        advanced += [leaf for leaf in leaves if leaf.advanced]
        if section:
            yield section, text, usual
            continue
        yield "required fields", "", [leaf for leaf in usual if leaf.required]
        yield "fields", "", [leaf for leaf in usual if not leaf.required]
    yield "advanced fields", "", advanced


def _usage(program: str, verb: Verb) -> str:
    # All flags would fill a page.
    required = [leaf.name for leaf in verb.leaves.values() if leaf.required]
    words = [verb.positional.upper()] if verb.positional else []
    words += [f"{_flag(name)} {name.rpartition('.')[2].upper()}" for name in required if name != verb.positional]
    return "\n       ".join(" ".join([program, *some, "[FLAGS]"]) for some in (words, ["CONFIG.toml"]))


def _add_switches(parser: argparse.ArgumentParser, default: Any) -> None:
    for name, text in _SWITCHES.items():
        parser.add_argument(f"-{name[0]}", f"--{name}", action="store_true", default=default, help=text)


def completion() -> str:
    """Return a bash script that completes verbs, flags and file names."""
    verbs = load_verbs()
    usual = " ".join(f"--{name}" for name in (*_SWITCHES, "print-config", "help"))
    dry = {name: "--dry-run " if verb.has_dry_run else "" for name, verb in verbs.items()}
    cases = [f'    {name}) words="{" ".join(map(_flag, verb.leaves))} {dry[name]}{usual}" ;;' for name, verb in verbs.items()]
    return "\n".join(
        [
            "_gampen_ray() {",
            '  local words current="${COMP_WORDS[COMP_CWORD]}"',
            "  case ${COMP_WORDS[1]} in",
            *cases,
            "  esac",
            f'  [ "$COMP_CWORD" = 1 ] && words="{" ".join(verbs)} {_CONFIG} --help --version --completion"',
            # What is no flag is a value or a TOML file: none of our words, but a file name.
            '  [ "$COMP_CWORD" != 1 ] && [[ $current != -* ]] && words=""',
            '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
            "}",
            f"complete -o default -F _gampen_ray {_PROGRAM}",
            "",
        ]
    )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _unknown_flag(flag: str, name: str, verb: Verb) -> str:
    field = flag.partition("=")[0].removeprefix("--").replace("-", "_")
    table: dict[str, Any] = {}
    _set(table, field, None)
    # A former name of a field has its own message.
    upgraded(verb.config, table, refuse=True)
    if not flag.startswith("-"):
        return f"{flag}: one argument too many; a flag sets each field, see `{_PROGRAM} {name} --help`"
    if section := [_flag(leaf) for leaf in verb.leaves if leaf.startswith(f"{field}.")]:
        more = ", ..." if len(section) > 3 else ""
        return f"{flag}: is a section; give its fields, {', '.join(section[:3])}{more}: see `{_PROGRAM} {name} --help`"
    hint = _close(_flag(field), [*map(_flag, verb.leaves), *map(_flag, _SWITCHES)])
    return f"{flag}: unknown flag; {hint}`{_PROGRAM} {name} --help` lists the valid ones"


def _close(word: str, words: Iterable[str]) -> str:
    return "".join(f"did you mean {name}? " for name in difflib.get_close_matches(word, [*words], 1))


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        values = values.setdefault(part, {})
    values[last] = value


def _value(text: str, annotation: Any) -> Any:
    """Parse a flag: text for a text field, else a TOML value or a comma-separated list."""
    if annotation is str or typing.get_origin(annotation) is typing.Literal:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text.split(",") if typing.get_origin(annotation) is tuple else text


class _Formatter(logging.Formatter):
    """On a terminal, above the line of progress; elsewhere with the time (UTC)."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__("%(message)s" if terminal else "%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")
        self.converter = time.gmtime
        self._before = ERASE if terminal else ""

    def format(self, record: logging.LogRecord) -> str:
        return self._before + printable(super().format(record), lines=True)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(terminal=sys.stderr.isatty()))
    logger = logging.getLogger("gampen_ray")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
