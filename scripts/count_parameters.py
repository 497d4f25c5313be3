"""Count parameters: python scripts/count_parameters.py CONFIG.toml ...

A Markdown table of the models of these files, from the models on meta: no memory, no data.
"""

import sys
from collections.abc import Sequence

from recipes.build import build_config
from recipes.command import ArgumentParser, path_text, report_error, run_command
from recipes.config.rules import check_settings
from recipes.config.settings import resolve_settings
from recipes.run.summary import compute_size, tabulate


def main(arguments: Sequence[str]) -> int:
    sizes = []
    try:
        parser = ArgumentParser(description=__doc__.partition(":")[0])
        parser.add_argument("paths", nargs="+", type=path_text, metavar="CONFIG.toml")
        for path in parser.parse_args(arguments).paths:
            settings = resolve_settings(path, [])
            check_settings(settings)
            size = compute_size(build_config(settings))
            sizes.append((settings.values["model"]["flavor"], size))
    except (ValueError, NotImplementedError) as error:
        return report_error(error, 2)
    print(tabulate(sizes))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, is_output_result=True))
