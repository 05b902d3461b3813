"""The commands of mavqa: the table of all, and `mavqa`, which lists and runs them."""

from importlib import import_module

import click

from pipeline.cli.command import Group

# In the order of the work. `mavqa-NAME` and `mavqa NAME` are the same command.
COMMANDS = {
    "demo": "mavqa.demo:demo",
    "manifest": "pipeline.cli.manifest:manifest",
    "extract": "pipeline.cli.extract:extract",
    "import-features": "pipeline.cli.import_features:import_features",
    "export": "pipeline.cli.export:export",
    "inspect": "pipeline.cli.inspect:inspect",
    "doctor": "pipeline.cli.doctor:doctor",
    "train": "train.cli.train:train",
    "evaluate": "train.cli.evaluate:evaluate",
    "ask": "train.cli.ask:ask",
    "predict": "train.cli.predict:predict",
    "report": "train.cli.report:report",
    "sweep": "train.cli.sweep:sweep",
    "cache": "train.cli.cache:cache",
    "import": "train.cli.import_:import_",
    "export-checkpoint": "train.cli.export_checkpoint:export_checkpoint",
}


def load(name: str) -> click.Command:
    """Import the command `name` of `COMMANDS`."""
    module, _, attribute = COMMANDS[name].partition(":")
    command: click.Command = getattr(import_module(module), attribute)
    return command


class Commands(Group):
    """All commands, each imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command `cmd_name`, None if there is none."""
        return load(cmd_name) if cmd_name in COMMANDS else None


@click.group(cls=Commands)
def mavqa() -> None:
    """Answer questions about videos with sound, also when audio or video is missing.

    \b
    Examples:
      mavqa demo
      mavqa extract --dataset music-avqa
      mavqa train --backbone pano --method rmm-avr
      mavqa train --help
    """
