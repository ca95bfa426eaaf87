"""Lets `dagster asset ...`, typed literally inside the repository, find the definitions and say why it failed.

`dagster asset materialize` and `dagster asset list` read neither workspace.yaml nor pyproject.toml: without `-m` or
DAGSTER_MODULE_NAME they refuse. `em_assets_default_target.pth`, installed beside the package, calls `apply` at the
start of every interpreter whose command line holds the word `asset`. A target the user names always wins, and
nothing happens outside a folder whose workspace.yaml names `em_assets.definitions`. README: "The plain command".

Only modules that every interpreter has loaded by then are imported at the top: other programs start here too.
"""

import os
import sys

MODULE = "em_assets.definitions"
MODULE_VARIABLE = "DAGSTER_MODULE_NAME"
RUN_NOTE_VARIABLE = "EM_ASSETS_RUN_NOTE"
"""Path of the file in which a failing step leaves its sentence. Steps run in child processes, which inherit it."""

# The pointer options of Dagster 1.13's `asset` commands (and `-w`, which Dagster refuses in its own words), and the
# variables that stand for them (dagster_shared/cli). Dagster refuses two pointers, so one of these means: keep out.
_TARGET_SHORT_OPTIONS = ("-a", "-d", "-f", "-m", "-w")
_TARGET_LONG_OPTIONS = {
    "--attribute",
    "--autoload-defs-module-name",
    "--module-name",
    "--package-name",
    "--python-file",
    "--working-directory",
    "--workspace",
}
_TARGET_VARIABLES = (
    "DAGSTER_ATTRIBUTE",
    MODULE_VARIABLE,
    "DAGSTER_PACKAGE_NAME",
    "DAGSTER_PYTHON_FILE",
    "DAGSTER_WORKING_DIRECTORY",
    "DAGSTER_autoload_defs_module_name",
)
_DAGSTER_SCRIPTS = {"dagster", "dagster.exe", "dagster-script.py"}


def apply() -> None:
    """Sets the default target and prepares the closing line, if this interpreter runs `dagster asset ...` on us."""
    arguments = dagster_arguments(sys.orig_argv)
    if arguments[:1] != ["asset"]:
        return
    if not names_a_target(arguments, dict(os.environ)) and _workspace_here_names_us():
        os.environ[MODULE_VARIABLE] = MODULE
    if arguments[1:2] == ["materialize"] and _aims_at_us(arguments):
        _announce_at_exit()


def leave_run_note(sentence: str) -> None:
    """Called by a step that fails: its sentence becomes the last line of the command. Does nothing elsewhere."""
    path = os.environ.get(RUN_NOTE_VARIABLE)
    if path:
        with open(path, "a", encoding="utf-8") as file:  # noqa: PTH123  # no pathlib in this module
            file.write(" ".join(sentence.split()) + "\n")


def dagster_arguments(orig_argv: list[str]) -> list[str]:
    """What follows `dagster` on an interpreter's whole command line; empty if it runs something else.

    Both forms count: `python [options] .../bin/dagster ...` (the console script) and `python [options] -m dagster ...`.
    """
    module, rest = _module_and_rest(orig_argv[1:])
    if module is not None:
        return rest if module == "dagster" else []
    return rest[1:] if rest and os.path.basename(rest[0]) in _DAGSTER_SCRIPTS else []  # noqa: PTH119  # as above


def names_a_target(arguments: list[str], environment: dict[str, str]) -> bool:
    """Whether the user says where the definitions are, by an option or a variable."""
    return any(
        argument.startswith(_TARGET_SHORT_OPTIONS) or argument.split("=", 1)[0] in _TARGET_LONG_OPTIONS
        for argument in arguments
    ) or any(environment.get(name) for name in _TARGET_VARIABLES)


def names_module(workspace: str) -> bool:
    """Whether the text of a workspace.yaml names our module (as a whole word, outside comments)."""
    for line in workspace.splitlines():
        words = line.split("#", 1)[0]
        for separator in "{}[],:'\"":
            words = words.replace(separator, " ")
        if MODULE in words.split():
            return True
    return False


def _module_and_rest(words: list[str]) -> tuple[str | None, list[str]]:
    """Reads the interpreter's own options: the value of `-m` or None, and what follows. `-c` leaves nothing."""
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        option = rest.pop(0)
        if option == "--":
            break
        if option.startswith("--"):
            if option == "--check-hash-based-pycs":
                rest = rest[1:]
            continue
        at = next((i for i, letter in enumerate(option) if letter in "cmWX"), None)  # `-Im dagster`, `-Wignore`
        if at is None:
            continue
        value = option[at + 1 :] or (rest.pop(0) if rest else "")
        if option[at] == "m":
            return value, rest
        if option[at] == "c":
            return None, []
    return None, rest


def _workspace_here_names_us() -> bool:
    try:
        with open("workspace.yaml", encoding="utf-8", errors="replace") as file:  # noqa: PTH123  # as above
            return names_module(file.read())
    except OSError:
        return False  # no workspace here, or none that can be read: Dagster's own error is the right one


def _aims_at_us(arguments: list[str]) -> bool:
    return os.environ.get(MODULE_VARIABLE) == MODULE or any(argument.endswith(MODULE) for argument in arguments)


def _announce_at_exit() -> None:
    if os.environ.get(RUN_NOTE_VARIABLE):
        return  # whoever started this process reads the note
    import atexit
    import secrets
    import tempfile

    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:
        return  # no folder for temporary files: Dagster stops on that itself
    path = os.path.join(folder, f"em-assets-run-note-{secrets.token_hex(16)}")  # noqa: PTH118  # as above
    os.environ[RUN_NOTE_VARIABLE] = path
    # Handlers run in reverse order, so the one registered before Dagster is imported has the last word.
    atexit.register(_announce, path, os.getpid())


def _announce(path: str, pid: int) -> None:
    """Prints the sentences left in the note, each once, as the last lines of stderr, and deletes it."""
    if os.getpid() != pid:
        return  # a forked child inherits the handler
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123  # as above
            lines = dict.fromkeys(file.read().splitlines())
        os.unlink(path)  # noqa: PTH108  # as above
    except OSError:
        return  # no step left a note
    if sys.stdout is not None:
        sys.stdout.flush()  # where both go to one file, ours must come after
    print(*lines, sep="\n", file=sys.stderr, flush=True)  # noqa: T201  # the one thing it is for
