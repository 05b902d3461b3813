"""`mavqa`: all commands under one name, such as `mavqa train` for `mavqa-train`. The table is that of the package."""

from importlib.metadata import EntryPoint, distribution

import click

import mavqa  # noqa: F401  # checks that no other package is in the place of pipeline or train
from pipeline.cli.command import Group

PREFIX = "mavqa-"


class Commands(Group):
    """The installed commands `mavqa-NAME`, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of the work."""
        return [entry.name.removeprefix(PREFIX) for entry in _scripts()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command `mavqa-NAME`, None if there is none."""
        for entry in _scripts():
            if entry.name == PREFIX + cmd_name:
                command: click.Command = entry.load()
                return command
        return None


@click.group(cls=Commands, name="mavqa")
def main() -> None:
    """Answer questions about videos with sound, also when audio or video is missing.

    \b
    Examples:
      mavqa manifest synthesize --out clips
      mavqa extract --dataset music-avqa
      mavqa train --backbone pano --method rmm-avr
      mavqa train --help
    """


def _scripts() -> list[EntryPoint]:
    entries = distribution("mavqa").entry_points.select(group="console_scripts")
    return [entry for entry in entries if entry.name.startswith(PREFIX)]


if __name__ == "__main__":
    main(prog_name="mavqa")
