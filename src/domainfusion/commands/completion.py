"""`domainfusion completion SHELL`: a script that completes commands, options and the names that may follow them.

The script holds all words itself and asks nothing of Python, so that completing takes no time. Made again after an
update, it knows the new ones.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from domainfusion import __version__
from domainfusion.commands.words import SHELLS, Command, Values, commands
from domainfusion.errors import UsageError, unknown_name

USAGE = """\
usage: domainfusion completion bash|zsh|fish

  domainfusion completion bash > ~/.local/share/bash-completion/completions/domainfusion
  domainfusion completion zsh > FOLDER/_domainfusion        (FOLDER in $fpath)
  domainfusion completion fish > ~/.config/fish/completions/domainfusion.fish

Prints the script; a new shell then completes commands, options and names."""

# Words of the line up to the cursor are in `words`, the first of them `domainfusion`; `current` is being typed.
# The nearest option before it decides, if it reaches so far: 0 words, 1, or all that follow (+).
COMMON = r"""
_domainfusion_look() {
    command="${words[$((first + 1))]}"
    local at from=$((first + 2)) last=$((first + ${#words[@]}))
    if [[ " @nested@ " == *" $command "* && ${#words[@]} -gt 2 ]]; then
        command="$command ${words[$((first + 2))]}" from=$((first + 3))
    fi
    data="${words[$from]}" reached="" spec=""
    # words are as they were typed: my\ folder, 'my folder', ~/folder
    data="${data//\\/}"
    data="${data//[\"\']/}"
    if [[ "$data" == "~/"* ]]; then data="$HOME/${data:2}"; fi
    for ((at = last - 1; at >= from; at--)); do
        if [[ "${words[$at]}" == --* ]]; then
            option="${words[$at]}" distance=$((last - at))
            _domainfusion_values "$command:$option"
            case "$spec" in
                1*) (( distance == 1 )) && reached=yes ;;
                +*) reached=yes ;;
            esac
            break
        fi
    done
    if [[ -z "$reached" ]]; then
        _domainfusion_values "$command:"
    fi
}

_domainfusion_values() {
    case "$1" in
@values@
        *) spec="0" ;;
    esac
}

_domainfusion_options() {
    case "$1" in
@options@
        *) options=() ;;
    esac
}
"""

BASH = r"""# Completion of domainfusion @version@ for bash; made by `domainfusion completion bash`.
_domainfusion() {
    local current="$2" command option spec data reached distance first=0 place
    local -a words options
    words=("${COMP_WORDS[@]:0:COMP_CWORD}")
    # bash takes --option=value for three words, and a lone = for the one being typed
    if [[ "$current" == "=" ]]; then current=""; fi
    if [[ ${#words[@]} -gt 1 && "${words[${#words[@]}-1]}" == "=" ]]; then
        words=("${words[@]:0:${#words[@]}-1}")
    fi
    COMPREPLY=()
    if (( ${#words[@]} == 1 )); then
        COMPREPLY=($(compgen -W "@commands@ --help --version --debug" -- "$current"))
        return
    fi
    _domainfusion_look
    if [[ "$current" != -* ]]; then
        local IFS=$' \t\n'
        COMPREPLY=($(compgen -W "${spec:2}" -- "$current"))
        place="${spec:1:1}"
        IFS=$'\n'
        if [[ "$place" == f ]]; then
            COMPREPLY+=($(compgen -f -- "$current"))
            compopt -o filenames 2> /dev/null
        elif [[ "$place" == d && -d "$data" ]]; then
            COMPREPLY+=($(cd "$data" && compgen -d -- "$current"))
            compopt -o filenames 2> /dev/null
        elif [[ "$place" == d && "$data" == pictograms ]]; then
            IFS=$' \t\n'
            COMPREPLY+=($(compgen -W "@styles@" -- "$current"))
        fi
    fi
    if [[ -z "$reached" && ( -z "$current" || "$current" == -* ) ]]; then
        _domainfusion_options "$command"
        IFS=$' \t\n'
        COMPREPLY+=($(compgen -W "${options[*]}" -- "$current"))
    fi
}
@common@
complete -F _domainfusion domainfusion
"""

ZSH = r"""#compdef domainfusion
# Completion of domainfusion @version@ for zsh; made by `domainfusion completion zsh`.
_domainfusion() {
    local current="$words[$CURRENT]" command option spec data reached distance first=1
    local -a options found typed
    typed=("${(@)words[1,CURRENT-1]}")
    if (( $#typed == 1 )); then
        found=(
@described@
        )
        _describe -t commands command found
        return
    fi
    local -a words
    words=("${(@)typed}")
    _domainfusion_look
    if [[ "$current" != -* ]]; then
        found=(${=spec[3,-1]})
        if (( $#found )); then
            compadd -a found
        fi
        case "${spec[2]}" in
            f) _files ;;
            d)
                if [[ -d "$data" ]]; then
                    _path_files -/ -W "$data"
                elif [[ "$data" == pictograms ]]; then
                    compadd @styles@
                fi
                ;;
        esac
    fi
    if [[ -z "$reached" ]]; then
        _domainfusion_options "$command"
        if (( $#options )); then
            _describe -o -t options option options
        fi
    fi
}
@common@
if [[ "$funcstack[1]" == _domainfusion ]]; then
    _domainfusion "$@"
elif (( $+functions[compdef] )); then
    compdef _domainfusion domainfusion
fi
"""

FISH = r"""# Completion of domainfusion @version@ for fish; made by `domainfusion completion fish`.
function __domainfusion_is
    set -l typed (commandline -opc)
    set -l name $typed[2]
    if contains -- "$name" @nested@; and test (count $typed) -gt 2
        set name "$name $typed[3]"
    end
    contains -- "$name" $argv
end

function __domainfusion_in
    set -l typed (commandline -opc)
    set -l option (string match -- '--*' $typed[-1..1])[1]
    contains -- "$option" $argv
end

function __domainfusion_domains
    set -l typed (commandline -opc)
    if test -d "$typed[3]"
        path basename $typed[3]/*/
    else if test "$typed[3]" = pictograms
        string split ' ' '@styles@'
    end
end

complete -c domainfusion -f
@lines@
"""


def completion(words: list[str], summaries: Mapping[str, str], places: Mapping[str, str]) -> None:
    """`domainfusion completion`, of the commands that `domainfusion.commands.words.commands` finds in these."""
    if words in (["--help"], ["-h"]):
        print(USAGE)
        return
    if len(words) != 1:
        raise UsageError("usage: domainfusion completion bash|zsh|fish")
    if words[0] not in SHELLS:
        raise unknown_name("shell", words[0], SHELLS)
    print(script(words[0], commands(summaries, places)), end="")


def script(shell: str, known: list[Command]) -> str:
    """The completion script of a shell (bash, zsh or fish) for the commands that are known."""
    styles = "clipart flat ink pixel render3d"
    top = [command for command in known if " " not in command.name]
    nested = sorted({command.name.split()[0] for command in known if " " in command.name})
    common = _filled(
        COMMON, nested=" ".join(nested), values=_value_cases(known), options=_option_cases(known, shell)
    ).strip()  # fmt: skip
    template = {"bash": BASH, "zsh": ZSH, "fish": FISH}[shell]
    return _filled(
        template, version=__version__, common=common, styles=styles, nested=" ".join(nested),
        commands=" ".join(command.name for command in top), lines=_fish_lines(known) if shell == "fish" else "",
        described="\n".join(f"            {_described(command.name, command.summary)}" for command in top),
    )  # fmt: skip


def _filled(template: str, **parts: str) -> str:
    for name, text in parts.items():
        template = template.replace(f"@{name}@", text)
    return template


def _spec(values: Values) -> str:
    """Values in the scripts' form: how many words they reach, where else to look (files, domains, -), and names."""
    reach = {"none": "0", "one": "1", "several": "+"}[values.count]
    place = {"": "-", "files": "f", "domains": "d"}[values.places]
    return f"{reach}{place}{' '.join(values.words)}"


def _value_cases(known: list[Command]) -> str:
    """Lines of a `case` on COMMAND:OPTION, those with equal values together; COMMAND: alone is its arguments."""
    places: dict[str, list[str]] = {}
    for command in known:
        for flag, values in [("", command.arguments), *((o.flag, o.values) for o in command.options)]:
            places.setdefault(_spec(values), []).append(f"{command.name}:{flag}")
    return _cases({spec: f"spec={shlex.quote(spec)}" for spec in places if spec != "0-"}, places)


def _option_cases(known: list[Command], shell: str) -> str:
    places: dict[str, list[str]] = {}
    for command in known:
        words = [_described(o.flag, o.summary) if shell == "zsh" else o.flag for o in command.options]
        if words:
            places.setdefault(" ".join(words), []).append(command.name)
    return _cases({words: f"options=({words})" for words in places}, places)


def _cases(actions: dict[str, str], places: dict[str, list[str]]) -> str:
    return "\n".join(f"        {'|'.join(map(shlex.quote, places[key]))}) {act} ;;" for key, act in actions.items())


def _described(word: str, summary: str) -> str:
    """A word and what it is, as zsh's `_describe` takes them."""
    return shlex.quote(f"{word.replace(':', chr(92) + ':')}:{summary}")


def _fish_lines(known: list[Command]) -> str:
    """One `complete` for each command, and for each option with the commands that have the same."""
    top = [command for command in known if " " not in command.name]
    lines = [
        f"complete -c domainfusion -n __fish_use_subcommand -a {_fish(c.name)} -d {_fish(c.summary)}" for c in top
    ] + [f"complete -c domainfusion -n __fish_use_subcommand -l {flag}" for flag in ("help", "version", "debug")]
    same: dict[tuple[str, str, Values], list[str]] = {}
    for command in known:
        if command.arguments.words or command.arguments.places:
            same.setdefault(("", "", command.arguments), []).append(command.name)
        for option in command.options:
            same.setdefault((option.flag, option.summary, option.values), []).append(command.name)
    several = {flag for flag, _, values in same if values.count == "several"}

    def flags_of(names: list[str]) -> set[str]:
        return {option.flag for command in known if command.name in names for option in command.options}

    for (flag, summary, values), names in same.items():
        condition = f"__domainfusion_is {' '.join(map(_fish, names))}"
        choices = " ".join(values.words) + (" (__domainfusion_domains)" if values.places == "domains" else "")
        offered = (" -F" if values.places == "files" else "") + (f" -a {_fish(choices.strip())}" if choices else "")
        line = f"complete -c domainfusion -n {_fish(condition)}"
        if flag:
            line += f" -l {flag.removeprefix('--')} -d {_fish(summary)}"
        if not flag and (others := " ".join(sorted(several & flags_of(names)))):
            line = f"complete -c domainfusion -n {_fish(f'{condition}; and not __domainfusion_in {others}')}"
        if flag and values.count != "none":
            line += " -r" + ("" if values.places == "files" else " -f")
        lines.append(line + offered)
        if values.count == "several" and offered:  # fish knows of one word behind an option; here are the others
            after = f"{condition}; and __domainfusion_in {flag}"
            lines.append(f"complete -c domainfusion -n {_fish(after)}{offered}")
    return "\n".join(lines)


def _fish(text: str) -> str:
    """A word in fish's quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
