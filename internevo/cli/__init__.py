"""The `internevo` command. Light to import: the verbs come after Ctrl-C and the console are taken care of."""

from __future__ import annotations

from typing import NoReturn

from internevo.cli.ctrl_c import CtrlC
from internevo.cli.streams import open_streams, use_utf8

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line.

    A user's mistake, or what the system refuses, ends it with one message and exit code 2; Ctrl-C with a line and 130.
    """
    ctrl_c = CtrlC()
    code = 0
    try:
        ctrl_c.heed()
        open_streams()
        use_utf8()
        from internevo.cli.verbs import UserError, app, let_go, tell

        try:
            app()
        except (UserError, OSError) as error:
            if ctrl_c.caused(error) or not tell(error):
                raise
            code = 2
        finally:
            let_go()
    except BaseException as error:
        if not ctrl_c.caused(error):
            raise
        ctrl_c.tell(error)
        code = 130
        # where an interrupt has left code that stood in a string, as in every dataclass, Python would end by SIGINT;
        # it forgets that with the next such code
        exec("")
    finally:
        ctrl_c.end()
    raise SystemExit(code)
