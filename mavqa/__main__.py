"""The start of `mavqa` and of all `mavqa-...` scripts.

Nothing slow is imported before Ctrl-C is handled, and neither `pipeline` nor `train` before it is known that they are
mavqa's own.
"""

import os
import signal
import sys

from mavqa import TYPE_CHECKING, check_packages

if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

INTERRUPTED = 130


def main() -> None:
    """Run the command that the script is named after; `python -m mavqa` is `mavqa`.

    The first Ctrl-C ends a command in order, a second one at once.
    """
    try:
        # A command in the background of a script ignores Ctrl-C.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, _interrupt)
        check_packages()
        from mavqa.commands import COMMANDS, load, mavqa

        script, _ = os.path.splitext(os.path.basename(sys.argv[0]))
        name = script.removeprefix("mavqa-")
        if name in COMMANDS:
            load(name).main(prog_name=script)
        else:
            mavqa.main(prog_name="mavqa")
    except ImportError as error:
        if error.name != "mavqa":
            raise
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: run the same command again\n")
        sys.exit(INTERRUPTED)


def _interrupt(signum: int, frame: "FrameType | None") -> "NoReturn":
    signal.signal(signal.SIGINT, _exit_at_once)
    raise KeyboardInterrupt


def _exit_at_once(signum: int, frame: "FrameType | None") -> "NoReturn":
    os.write(2, b"interrupted a second time: stopped at once\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
