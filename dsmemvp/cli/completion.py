"""completion: a script for bash that completes commands, their options, recipe keys and files."""

import argparse
import re
from functools import partial
from typing import Any

SCRIPT = """\
_dsmemvp() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$word"))
        return
    fi
    # bash splits words at "=": a key's value follows, and files are offered
    if [[ "$word" == "=" || "${{COMP_WORDS[COMP_CWORD - 1]}}" == "=" ]]; then
        COMPREPLY=()
        return
    fi
    case "$command" in
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [[ "${{COMPREPLY[0]}}" == *= ]] && compopt -o nospace
}}
_dsmemvp_keys="{keys}"
complete -o default -o bashdefault -F _dsmemvp dsmemvp
"""


def add(commands: Any) -> None:
    about = "print a script that completes dsmemvp's commands in a shell: source <(dsmemvp completion bash)"
    command = commands.add_parser("completion", help=about, description=about)
    command.add_argument("shell", choices=["bash"])
    command.set_defaults(run=partial(_completion, commands))


def _completion(commands: Any, given: argparse.Namespace) -> None:
    """`commands` has all of them by the time that one runs."""
    cases = [f'        {name}) words="{" ".join(_words(parser))}" ;;' for name, parser in commands.choices.items()]
    print(SCRIPT.format(commands=" ".join(commands.choices), cases="\n".join(cases), keys=" ".join(_keys())), end="")


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """What may stand behind a command, files left out."""
    text = parser.format_help()
    inner = re.search(r"\{([\w,]+)\}", text) if "--" not in text.replace("--help", "") else None
    words = inner[1].split(",") if inner else []
    words += sorted(set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)))
    return [*words, "$_dsmemvp_keys"] if "key=value" in text else words


def _keys() -> list[str]:
    from dsmemvp.config.conversion import keys_of
    from dsmemvp.config.methods import method_names, setting_names
    from dsmemvp.config.recipe import Recipe

    of_methods = {f"method.{name}" for method in method_names() for name in setting_names(method)}
    return [f"{key}=" for key in [*(k for k in keys_of(Recipe) if k != "method"), *sorted(of_methods)]]
