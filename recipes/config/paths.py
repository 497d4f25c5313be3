"""`~` and `$NAME` in paths. Free of torch."""

import os
import re

PATHS = {
    "job.dump_folder",
    "job.config_file",
    "job.extends",
    "tokenizer.path",
    "data.sources.path",
    "checkpoint.initial_load_path",
}
"""Options, `table.key`, that name files or folders which may be anywhere."""

_VARIABLE = re.compile(r"\$(\w+)|\$\{([^}]*)\}")


def expand_path(path: str) -> str:
    """The path with the home directory and environment variables in their places.

    Raises ValueError for a variable that is not set, and for a home directory of nobody.
    """
    for match in _VARIABLE.finditer(path):
        name = match[1] or match[2]
        if name not in os.environ:
            raise ValueError(f"names the environment variable {name}, which is not set. Set it.")
    expanded = os.path.expandvars(os.path.expanduser(path))
    if expanded.startswith("~"):
        user = expanded.partition("/")[0]
        raise ValueError(f"begins with {user}, which is no home directory. Write ./{user}.")
    return expanded
