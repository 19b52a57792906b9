"""The help of verbs, and their message for an unknown option."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.core import TyperGroup


class Verbs(TyperGroup):
    """A group of verbs: help has words for values instead of types, errors name the verbs that have an option."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The group's own options."""
        return _in_words(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A verb, its help in words."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and not isinstance(command, Verbs):
            _in_words(command.get_params(ctx))
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run a verb. The message for an option that it lacks names the verbs that have it."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            # typer keeps click's exceptions to itself
            if ctx.parent is None and type(error).__name__ == "NoSuchOption":
                option, verb = vars(error)["option_name"], ctx.invoked_subcommand
                owners = [name for name, options in _options(ctx, self) if option in options]
                if verb == "train" and "launch" in owners:
                    owners = ["launch"]
                if owners:
                    names = " and ".join(f"`internevo {name}`" for name in owners)
                    vars(error)["message"] += f"; {names} {'has' if len(owners) == 1 else 'have'} it."
            raise


def _options(ctx: Any, group: TyperGroup, path: str = "") -> Iterator[tuple[str, set[str]]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from _options(ctx, command, f"{path}{name} ")
        else:
            yield f"{path}{name}", {option for one in command.params for option in one.opts if option.startswith("-")}


def _in_words(parameters: list[Any]) -> list[Any]:
    for one in parameters:
        if one.param_type_name == "argument":
            one.display_type_rich = lambda ctx: None  # its name says it
        elif getattr(one, "is_flag", False) and one.metavar is None:
            one.metavar = ""
    return parameters
