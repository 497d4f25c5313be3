"""Train: python -m recipes.train --job.config_file F.toml [--table.key value ...]

One process, or one per device under torchrun. Exit code 0 done, or stopped by a signal and saved;
1 failure; 2 bad usage or configuration; 130 stopped before training or in the export after it, with
nothing to save. A user's mistake is one line on stderr that starts with `error: `, printed once
however many ranks there are.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from recipes.command import (
    check_environment,
    describe,
    print_error,
    report_error,
    run_command,
    set_single_process_environment,
)
from recipes.config.arguments import check_arguments
from recipes.config.help import find_topics, format_help
from recipes.config.rules import check_export, check_files, check_settings, check_weights
from recipes.config.schema import load_schema
from recipes.config.settings import Settings, SettingsError, resolve_settings
from recipes.run.folder import check_is_writable, check_run_folder, list_writes
from recipes.run.inputs import check_inputs, check_weights_tokenizer
from recipes.run.lock import RunLock
from recipes.stop import EndAtOnce

USAGE = __doc__.splitlines()[0]


def main(arguments: Sequence[str]) -> int:
    """Everything that can be checked without torch is checked before torch is imported."""
    try:
        topics = find_topics(arguments) if arguments else []
        if topics is not None:
            if len(topics) > 1:
                raise SettingsError(f"--help takes one table or option, not {' '.join(topics)}.")
            print(f"{USAGE}\n\n{format_help(load_schema(), topics[0] if topics else None)}")
            return 0
        check_environment(os.environ)
        check_arguments(arguments)
        settings = resolve_settings(None, arguments)
        check_settings(settings)
        check_export(settings)
        check_weights(settings)
        if settings.values["job"]["dry_run"]:
            return run(settings, _check_dry(settings))
        check_files(settings)
        if os.environ.get("RANK", "0") != "0":
            return run(settings)  # meets rank 0 when that owns the run directory
        folder = settings.values["job"]["dump_folder"]
        check_is_writable(folder)
        with RunLock(folder, writes=list_writes(settings)) as lock:
            return run(settings, _check_folder(settings), lock.release)
    except ValueError as error:
        return report_error(error, 2)
    except OSError as error:  # of the lock, or of a file that changed
        return report_error(error, 1)


def _check_dry(settings: Settings) -> list[str]:
    """The data may be on the cluster only: the rest of the configuration can be checked."""
    try:
        check_files(settings)
    except ValueError as error:
        print(f"not on this machine: {describe(error)}", file=sys.stderr)
        return check_run_folder(settings)
    return _check_folder(settings)


def _check_folder(settings: Settings) -> list[str]:
    """What there is to report before the run starts or goes on: whole lines. Raises ValueError,
    OSError."""
    changes = [*check_run_folder(settings), *check_inputs(settings)]
    notes = [f"Changed since the run began: {change}" for change in changes]
    return [*notes, *check_weights_tokenizer(settings)]


def run(
    settings: Settings,
    notes: Sequence[str] = (),
    release: Callable[[], None] = lambda: None,
) -> int:
    """Build and train (or only summarise, for job.dry_run); the exit code.

    notes: lines to be reported first. release: gives the directory up, where this process must end
    without returning.
    """
    is_dry_run = settings.values["job"]["dry_run"]
    is_launched = "RANK" in os.environ
    set_single_process_environment()
    with EndAtOnce("before training began. The same command starts again.", release) as end:
        try:
            from recipes.build import build_config
            from recipes.config.degrees import check_ranks, count_fewest_ranks

            config = build_config(settings)
            num_ranks = int(os.environ["WORLD_SIZE"])
            if is_dry_run and not is_launched:
                num_ranks = count_fewest_ranks(config.parallelism)
            check_ranks(config, num_ranks)
            if is_dry_run:
                from recipes.run.summary import summarize

                for note in notes:
                    print(note, file=sys.stderr)
                print(summarize(config, num_ranks))
                return 0
            if settings.values["export"]["enable"]:
                from recipes.export.final import check_model

                check_model(settings)
        except (ValueError, NotImplementedError) as error:
            return report_error(error, 2)
        return _train(settings, config, notes, release, end)


def _train(
    settings: Settings,
    config: Any,
    notes: Sequence[str],
    release: Callable[[], None],
    end: EndAtOnce,
) -> int:
    from torchtitan.tools.logging import logger

    from recipes.run.job import Job, init_logging
    from recipes.run.peers import PeerWatch

    init_logging()
    for note in notes:
        logger.warning(note)
    job = Job(config)

    def give_up() -> None:
        job.remove_shared_logs()
        release()

    with PeerWatch(job.remove_own_log, give_up) as peers:
        end.clear = peers.leave
        try:
            is_over = job.run()
            if is_over and settings.values["export"]["enable"] and os.environ["RANK"] == "0":
                end.remark = "in the export. The same command exports the final checkpoint."
                _export(settings)
        except Exception as error:
            if peers.claim_report():
                print_error(error)
            peers.leave()
            return 2 if isinstance(error, SettingsError) else 1
    return 0


def _export(settings: Settings) -> None:
    """Export the final checkpoint. The training state lies on the disk whatever becomes of it."""
    from torchtitan.tools.logging import logger

    from recipes.export.final import export_final

    report = export_final(settings)
    for line in str(report or "The final checkpoint is exported already.").splitlines():
        logger.info(line)


if __name__ == "__main__":
    exit_code = run_command(main)
    if exit_code:
        # At once: threads and connections may wait for ranks that are gone.
        os._exit(exit_code)
